"""Floating-point operations of the model, counted from its sizes, and the devices that run them.

A multiplication and an addition are two operations. Only products of matrices are counted: they are all but a few
percent.
"""

from typing import NamedTuple

from gatokit.schemas.run import ModelConfig
from gatokit.schemas.tokens import PATCH
from gatokit.trainer.model import POOLED

BACKWARD = 2
"""A backward pass costs this many forward passes: one for the inputs' gradients, one for the parameters'."""


class Device(NamedTuple):
    """One accelerator as JAX counts them: of TPU v2 and v3 a core, of later ones a chip."""

    memory: int
    """Bytes; drivers keep a part."""
    peak: float
    """FLOP/s of dense bfloat16 products with float32 sums."""


_GIBIBYTES_AND_TERAFLOPS = {
    ("TPU v2",): (8, 22.5),
    ("TPU v3",): (16, 61.5),
    ("TPU v4",): (32, 275),
    ("TPU v5 lite", "TPU v5e"): (16, 197),
    ("TPU v5", "TPU v5p"): (95, 459),
    ("TPU v6 lite", "TPU v6e"): (32, 918),
    ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"): (40, 312),
    ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"): (80, 312),
    ("NVIDIA H100 80GB HBM3",): (80, 989.4),
    ("NVIDIA H100 PCIe",): (80, 756),
    ("NVIDIA H200",): (141, 989.4),
}
DEVICES = {
    kind: Device(memory << 30, teraflops * 1e12)
    for kinds, (memory, teraflops) in _GIBIBYTES_AND_TERAFLOPS.items()
    for kind in kinds
}
"""By what JAX calls them; from the vendors' data sheets."""


def peak(device_kind: str, precision: str) -> float | None:
    """FLOP/s of a device for matrix products of ``precision``; None if no data sheet says."""
    known = DEVICES.get(device_kind)
    return known.peak if known is not None and precision == "bfloat16" else None


def forward(
    config: ModelConfig, *, rows: float, context: int, patch_slots: float, targets: float, vocabulary_size: int
) -> dict[str, float]:
    """Operations of a forward pass, by what they are spent on, over ``rows`` windows of ``context`` tokens with
    ``patch_slots`` slots and ``targets`` positions with logits, in all rows together."""
    width, heads, channels = config.width, config.heads * config.head_size, config.patch_channels
    tokens = rows * context
    scores = 2 * rows * context * context * heads
    relative = 2 * context * width * heads + scores if config.positions == "relative" else 0
    pixels, cells = PATCH**2, POOLED**2
    convolutions = 2 * 2 * (pixels // config.patch_stride**2) * 9 * channels * channels
    projections = 2 * cells * (channels // 2) * (channels + width)
    return {
        # Projections, scores and weighted values; scores of keys behind their queries included.
        "attention": config.layers * (4 * 2 * tokens * width * heads + 2 * scores),
        # What relative positions add: the projection of the distances and their scores.
        "relative": config.layers * relative,
        "feed_forward": config.layers * 2 * tokens * width * (config.hidden + config.hidden // 2),
        "patches": patch_slots * (2 * pixels * 3 * channels + convolutions + projections),
        "logits": 2 * targets * width * vocabulary_size,
    }


def train_step(config: ModelConfig, **sizes: float) -> float:
    """Operations of a training step, forward and backward, with the arguments of ``forward``; nothing is added for what
    remat computes again."""
    return (1 + BACKWARD) * sum(forward(config, **sizes).values())  # type: ignore[arg-type]
