"""Peak speeds of devices, for the share of them that a run uses."""

_TERA = 1e12

# Dense bfloat16 products with float32 sums, per device as JAX counts them (a v2 or v3 chip is two devices), from the
# vendors' data sheets.
_BFLOAT16 = {
    "TPU v2": 22.5 * _TERA,
    "TPU v3": 61.5 * _TERA,
    "TPU v4": 275 * _TERA,
    "TPU v5 lite": 197 * _TERA,
    "TPU v5e": 197 * _TERA,
    "TPU v5": 459 * _TERA,
    "TPU v5p": 459 * _TERA,
    "TPU v6 lite": 918 * _TERA,
    "TPU v6e": 918 * _TERA,
    "NVIDIA A100-SXM4-40GB": 312 * _TERA,
    "NVIDIA A100-SXM4-80GB": 312 * _TERA,
    "NVIDIA A100-PCIE-40GB": 312 * _TERA,
    "NVIDIA A100 80GB PCIe": 312 * _TERA,
    "NVIDIA H100 80GB HBM3": 989.4 * _TERA,
    "NVIDIA H100 PCIe": 756 * _TERA,
    "NVIDIA H200": 989.4 * _TERA,
}


def peak(device_kind: str, precision: str) -> float | None:
    """FLOP/s of a device for matrix products of ``precision``; None where no data sheet says."""
    return _BFLOAT16.get(device_kind) if precision == "bfloat16" else None
