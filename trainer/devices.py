"""Accelerators by name: their memory and, by ``peaks``, their speed."""

from dataclasses import dataclass

from gatokit.trainer.peaks import peak

_GIGA = 1 << 30


@dataclass(frozen=True)
class Device:
    """One device as JAX counts them: of TPU v2 and v3 a core, of later ones a chip."""

    name: str
    kind: str
    """What JAX calls it."""
    memory: int
    """Bytes."""

    @property
    def peak(self) -> float | None:
        """FLOP/s of dense bfloat16 products."""
        return peak(self.kind, "bfloat16")


DEVICES = (
    Device("v3", "TPU v3", 16 * _GIGA),
    Device("v4", "TPU v4", 32 * _GIGA),
    Device("v5e", "TPU v5 lite", 16 * _GIGA),
    Device("v5p", "TPU v5", 95 * _GIGA),
    Device("v6e", "TPU v6 lite", 32 * _GIGA),
    Device("A100-40GB", "NVIDIA A100-SXM4-40GB", 40 * _GIGA),
    Device("A100", "NVIDIA A100-SXM4-80GB", 80 * _GIGA),
    Device("H100", "NVIDIA H100 80GB HBM3", 80 * _GIGA),
    Device("H200", "NVIDIA H200", 141 * _GIGA),
)
"""From the vendors' data sheets; drivers keep a part of the memory."""


def device_named(name: str) -> Device | None:
    """The device of a name of ours or of JAX's, in any case of letters; None where it is not known."""
    return next((device for device in DEVICES if name.lower() in (device.name.lower(), device.kind.lower())), None)
