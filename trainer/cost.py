"""What a training step takes: operations, counted from the model's sizes, and memory, from the compiled step; and the
devices that run it.

A multiplication and an addition are two operations. Only products of matrices are counted: they are all but a few
percent.
"""

import importlib.util
import os
import re
import time
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from gatokit.schemas.errors import ConfigError, first_line, install_hint
from gatokit.schemas.manifest import TokenizerSettings
from gatokit.schemas.run import ModelConfig, RunConfig
from gatokit.schemas.tokens import PATCH
from gatokit.trainer.mesh import make_mesh
from gatokit.trainer.model import POOLED, count
from gatokit.trainer.step import Trainer

BACKWARD = 2
"""A backward pass costs this many forward passes: one for the inputs' gradients, one for the parameters'."""
VOCABULARY_SIZE = TokenizerSettings.of(0).vocabulary_size
"""There is no data, so ids are counted with discrete ids overlapping text ids."""
PATCH_SHARE = 4
"""If the config gives no ``patch_slots``, one token in this many is taken for a patch."""

_WHOLE_SLICES = {"v3": "16x16", "v4": "8x8x8", "v5e": "16x16", "v5p": "8x8x8", "v6e": "16x16"}
_OFFLINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Keeps libtpu from asking a metadata server what this machine is, and from locking out another user of its TPU."""


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


def compile_only(config: RunConfig, topology: str | None) -> dict[str, Any]:
    """Compiles the step of ``config`` for this machine's devices, or for a TPU slice such as ``v3:16x16``; a generation
    alone means a large slice of it. Returns what the step takes, for ``--json``; bytes are those of one device.

    Raises ConfigError if libtpu is needed and not installed, there is no such slice, the mesh does not fit the devices,
    or the step does not fit their memory.
    """
    topology, devices = (None, jax.devices()) if topology is None else _slice(topology)
    slots = config.input.patch_slots or config.patch_group_rows * config.context // PATCH_SHARE
    mesh = make_mesh(config.mesh, devices)
    trainer = Trainer(config, VOCABULARY_SIZE, datasets=1, patch_slots=slots, mesh=mesh)
    begin = time.monotonic()
    try:
        compiled = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch).compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
        if sizes is None:
            raise
        raise ConfigError(
            f"the step takes {sizes[1]} of the {sizes[2]} of memory of a {devices[0].device_kind}: raise mesh.fsdp or "
            "mesh.tensor, raise microbatches, or set remat: full"
        ) from None
    memory: Any = compiled.memory_analysis()
    known = DEVICES.get(devices[0].device_kind)
    return {
        "topology": topology,
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
        # On all devices, with a patch in every slot and a target at every position.
        "flops": train_step_flops(
            config.model,
            rows=config.batch,
            context=config.context,
            patch_slots=config.batch // config.patch_group_rows * slots,
            targets=config.batch * config.context,
            vocabulary_size=VOCABULARY_SIZE,
        ),
        "seconds": time.monotonic() - begin,
    }


def _slice(topology: str) -> tuple[str, list[Any]]:
    """The full name of a TPU slice, and its devices, of which this machine has none."""
    if not re.fullmatch(r"v\d+[a-z]*(:\d+(x\d+)+)?", topology):
        raise ConfigError(f"topology {topology!r} is not a TPU slice such as v3:16x16 or v5e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        needs = "compiling for a TPU slice needs libtpu, with or without a TPU"
        raise ConfigError(needs, way_out=install_hint("tpu"), code="missing_package")
    if ":" not in topology:
        if topology not in _WHOLE_SLICES:
            raise ConfigError(f"topology {topology!r}: name its shape too, such as {topology}:4x4")
        topology = f"{topology}:{_WHOLE_SLICES[topology]}"
    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)
    # A TPU of this machine is left alone.
    jax.config.update("jax_platforms", "cpu")
    try:
        return topology, list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"topology {topology}: {first_line(error)}") from None
