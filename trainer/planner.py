"""How to cut a batch on a device: microbatches, remat and the memory that they take, by formula.

Legend: P parameters, N layers, r rows of a device's microbatch, L tokens, D width, A = H K width of all heads, F half
of the feed-forward width, V rows of the vocabulary's table, C patch channels, c bytes of a computed number (2 for
bfloat16), f and t devices along ``fsdp`` and ``tensor``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax

from gatokit.schemas.errors import ConfigError
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import PATCH, TokenIds
from gatokit.trainer import flops
from gatokit.trainer.attention import Tree
from gatokit.trainer.compile import PATCH_SHARE
from gatokit.trainer.flops import DEVICES, device_named
from gatokit.trainer.loss import BLOCK
from gatokit.trainer.mesh import AXES, check_mesh
from gatokit.trainer.model import count, parameter_table

Remat = Literal["none", "dots", "full"]

USABLE = 0.9
"""Of a device's memory: the rest is the driver's, and what fragments."""
ENOUGH_TOKENS = 8192
"""A device's microbatch of this many keeps it busy; below it, computing again is preferred to a smaller one."""
_GIB = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Bytes of one device in a step, by what holds them."""

    state: int
    """Parameters and two moments, float32: 12 P / (f t)."""
    gradients: int
    """float32, 8 P / (f t), with microbatches 12; and the parameters in the compute dtype."""
    saved: int
    """What the forward pass keeps of every layer for the backward one. ``full``: c r L D a layer. ``dots``: c r L
    (3 A / t + 2 D + 2 F / t) more. ``none``: also norms and activations, c r L (A / t + 8 D + 4 F / t), and the scores
    of attention, (4 + c) r L² H / t."""
    layer: int
    """What the layer at hand keeps besides: as much as ``none`` does of one, and 4 r L² H / t more."""
    vocabulary: int
    """The gradient of the table, 4 V D / t, where f > 1 also the gathered table; a block of logits and of gradients."""
    patches: int
    """Pixels and features of the patch slots of a microbatch."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.state + self.gradients + self.saved + self.layer + self.vocabulary + self.patches


@dataclass(frozen=True)
class Plan:
    """The fastest way to cut the batch that fits, by estimate."""

    device: str
    device_bytes: int
    devices: int
    parameters: int
    microbatches: int
    microbatch_rows: int
    """Of one device."""
    remat: Remat
    memory: Memory
    flops: float
    """Of a step on all devices, every slot a patch and every position a target."""
    seconds_at_peak: float | None
    """What ``flops`` take at the devices' peak; real steps take two to three times as long."""

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in vars(self.memory).items())
        peak = "unknown peak" if self.seconds_at_peak is None else f"{self.seconds_at_peak:.3f} s at peak"
        return (
            f"{self.device}: microbatches {self.microbatches} ({self.microbatch_rows} rows a device), "
            f"remat {self.remat}, {self.devices} device{'s' * (self.devices > 1)}\n"
            f"{self.parameters:,} parameters; about {self.memory.total / _GIB:.2f} of "
            f"{self.device_bytes / _GIB:.1f} GiB: {parts}\n"
            f"{self.flops / 1e12:,.1f} TFLOP a step, {peak}"
        )


def plan(config: RunConfig, device: str) -> Plan:
    """Microbatches and remat for the config's batch, model and mesh on a device; ``data: -1`` counts as one.

    Least computed again first, then the largest microbatch that fits. ConfigError: the device is not known, or
    nothing fits.
    """
    known = device_named(device)
    if known is None:
        raise ConfigError(f"device {device!r} is not one of {', '.join(item.name for item in DEVICES)}")
    shards = max(1, config.mesh.data) * config.mesh.fsdp
    devices = shards * config.mesh.tensor
    group = config.patch_group_rows
    abstract = jax.sharding.AbstractMesh((max(1, config.mesh.data), config.mesh.fsdp, config.mesh.tensor), AXES)
    check_mesh(abstract, config.model_copy(update={"microbatches": 1}))
    rows = config.batch // shards
    table = parameter_table(config.model, TokenIds().vocabulary_size)
    work = flops.train_step(
        config.model,
        rows=config.batch,
        context=config.context,
        patch_slots=config.batch // group * _slots(config),
        targets=config.batch * config.context,
        vocabulary_size=TokenIds().vocabulary_size,
    )
    smallest: int | None = None
    for remat, part in _choices(rows, group, config.context):
        memory = estimate(config, rows=part, microbatches=rows // part, remat=remat)
        if memory.total <= USABLE * known.memory:
            return Plan(
                device=known.name,
                device_bytes=known.memory,
                devices=devices,
                parameters=count(table),
                microbatches=rows // part,
                microbatch_rows=part,
                remat=remat,
                memory=memory,
                flops=work.total,
                seconds_at_peak=work.total / devices / known.peak if known.peak else None,
            )
        smallest = min(smallest or memory.total, memory.total)
    assert smallest is not None
    raise ConfigError(
        f"the smallest cut takes {smallest / _GIB:.1f} GiB of a {known.name}'s {known.memory / _GIB:.0f}: raise "
        "mesh.fsdp or mesh.tensor, or lower input.patch_group_rows"
    )


def _choices(rows: int, group: int, context: int) -> Iterator[tuple[Remat, int]]:
    """Remat and rows of a microbatch, the most wanted first."""
    parts = [part for part in range(rows, 0, -1) if rows % part == 0 and part % group == 0]
    large = [part for part in parts if part * context >= ENOUGH_TOKENS] or parts[:1]
    policies: tuple[Remat, ...] = ("none", "dots", "full")
    for remat in policies:
        yield from ((remat, part) for part in large)
    for remat in policies[::-1]:
        yield from ((remat, part) for part in parts if part not in large)


def estimate(config: RunConfig, *, rows: int, microbatches: int, remat: Remat, block: int = BLOCK) -> Memory:
    """Bytes of a device for ``rows`` of a microbatch on it; ``block`` targets have logits at a time."""
    model, mesh = config.model, config.mesh
    width, heads, half, context = model.width, model.heads * model.head_size, model.hidden // 2, config.context
    size = 2 if config.precision == "bfloat16" else 4
    table = parameter_table(model, TokenIds().vocabulary_size)
    held = _held(table, mesh.fsdp, mesh.tensor)
    tokens = rows * context
    # A layer's vectors: norms, queries, keys, values, what attention took, its output; gate, values and their product.
    products = 3 * heads // mesh.tensor + 2 * width + 2 * half // mesh.tensor
    others = heads // mesh.tensor + 8 * width + 4 * half // mesh.tensor
    scores = rows * context * context * model.heads // mesh.tensor
    of_layer = {
        "full": 0,
        "dots": size * products * tokens,
        "none": size * (products + others) * tokens + (4 + size) * scores,
    }
    saved = model.layers * (size * tokens * width + of_layer[remat])
    slots = rows // config.patch_group_rows * _slots(config)
    features = PATCH * PATCH * model.patch_channels
    vocabulary = table["embedding"]["token"].shape[0] // mesh.tensor
    return Memory(
        state=12 * held,
        gradients=4 * held * (3 if microbatches > 1 else 2) + (size * held if size < 4 else 0),
        saved=saved,
        layer=size * (products + others) * tokens + (8 + size) * scores,
        vocabulary=vocabulary * width * (8 if mesh.fsdp > 1 else 4) + 2 * min(block, tokens) * vocabulary * 4,
        patches=slots * (features * (size + 4) + 4 * features * (size + 4) // model.patch_stride**2),
    )


def _slots(config: RunConfig) -> int:
    """Patch slots of a group; a guess where the config has none."""
    return config.input.patch_slots or config.patch_group_rows * config.context // PATCH_SHARE


def _held(table: Tree, fsdp: int, tensor: int) -> int:
    """Parameters of one device."""
    sizes = {"fsdp": fsdp, "tensor": tensor}
    return sum(
        math.prod(leaf.shape) // math.prod(sizes[axis] for axis in leaf.spec if axis) for leaf in jax.tree.leaves(table)
    )
