"""What a training step takes: operations, counted from the model's sizes, and memory, from the compiled step; and the
devices that run it.

A multiplication and an addition are two operations. Only products of matrices are counted: they are all but a few
percent.
"""

import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import TokenizerSettings
from gatokit.schemas.run import ModelConfig, RunConfig
from gatokit.schemas.tokens import PATCH
from gatokit.trainer.mesh import make_mesh
from gatokit.trainer.model import POOLED, count
from gatokit.trainer.step import Trainer

BACKWARD = 2  # of forward passes, what a backward pass costs: the inputs' gradients and the parameters'
VOCABULARY_SIZE = TokenizerSettings.of(0).vocabulary_size  # without data: discrete ids overlap text ids
PATCH_SHARE = 4  # if the config gives no ``patch_slots``, one token in this many is taken for a patch


class Device(NamedTuple):
    """One accelerator as JAX counts them: of TPU v2 and v3 a core, of later ones a chip."""

    memory: int  # bytes; drivers keep a part
    peak: float  # FLOP/s of dense bfloat16 products with float32 sums


DEVICES = {
    "TPU v2": Device(8 << 30, 22.5e12),
    "TPU v3": Device(16 << 30, 61.5e12),
    "TPU v4": Device(32 << 30, 275e12),
    "TPU v5 lite": Device(16 << 30, 197e12),
    "TPU v5e": Device(16 << 30, 197e12),
    "TPU v5": Device(95 << 30, 459e12),
    "TPU v5p": Device(95 << 30, 459e12),
    "TPU v6 lite": Device(32 << 30, 918e12),
    "TPU v6e": Device(32 << 30, 918e12),
    "NVIDIA A100-SXM4-40GB": Device(40 << 30, 312e12),
    "NVIDIA A100-PCIE-40GB": Device(40 << 30, 312e12),
    "NVIDIA A100-SXM4-80GB": Device(80 << 30, 312e12),
    "NVIDIA A100 80GB PCIe": Device(80 << 30, 312e12),
    "NVIDIA H100 80GB HBM3": Device(80 << 30, 989.4e12),
    "NVIDIA H100 PCIe": Device(80 << 30, 756e12),
    "NVIDIA H200": Device(141 << 30, 989.4e12),
}
"""By what JAX calls them; from the vendors' data sheets."""


def peak(device_kind: str, precision: str) -> float | None:
    """FLOP/s of a device for matrix products of ``precision``; None if no data sheet says."""
    known = DEVICES.get(device_kind)
    return known.peak if known is not None and precision == "bfloat16" else None


def forward_flops(
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


def train_step_flops(config: ModelConfig, **sizes: float) -> float:
    """Operations of a training step, forward and backward, with the arguments of ``forward_flops``; nothing is added
    for what remat computes again."""
    return (1 + BACKWARD) * sum(forward_flops(config, **sizes).values())  # type: ignore[arg-type]


def compile_only(config: RunConfig, devices: Sequence[Any]) -> dict[str, Any]:
    """Compiles the step of ``config`` for devices, which may be of another machine. Returns what the step takes, for
    ``--json``; bytes are those of one device.

    Raises ConfigError if the mesh does not fit the devices, or the step does not fit their memory.
    """
    slots = config.input.patch_slots or config.patch_group_rows * config.context // PATCH_SHARE
    mesh = make_mesh(config.mesh, devices)
    restricted = config.input.hide_actions > 0 or config.input.pack
    trainer = Trainer(config, VOCABULARY_SIZE, datasets=1, patch_slots=slots, mesh=mesh, restricted=restricted)
    begin = time.monotonic()
    try:
        compiled = trainer.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
        if used is None:
            raise
        raise ConfigError(
            f"the step takes {used[1]} of the {used[2]} of memory of a {devices[0].device_kind}: raise mesh.fsdp or "
            "mesh.tensor, raise microbatches, or set remat: full"
        ) from None
    memory: Any = compiled.memory_analysis()
    known = DEVICES.get(devices[0].device_kind)
    # A patch in every slot, and a target at every position.
    full = {"patch_slots": config.batch // config.patch_group_rows * slots, "targets": config.batch * config.context}
    sizes = {"rows": config.batch, "context": config.context} | full
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "hosts": len({device.process_index for device in devices}),
        "mesh": dict(mesh.shape),
        **config.model_dump(include={"batch", "context", "microbatches", "remat"}),
        "patch_slots": slots,
        "vocabulary_size": VOCABULARY_SIZE,
        "parameters": count(trainer.table),
        # Parameters, optimizer state and the batch; the new state takes the old one's place.
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "device_bytes": known.memory if known else None,
        "flops": train_step_flops(config.model, vocabulary_size=VOCABULARY_SIZE, **sizes),  # on all devices
        "seconds": time.monotonic() - begin,
    }
