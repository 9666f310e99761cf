"""What a training step takes: compiled for a TPU slice without one, or estimated for one device by a formula."""

import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
from jax.experimental import topologies

from gatokit.schemas.errors import ConfigError, first_line, install_hint
from gatokit.schemas.manifest import TokenizerSettings
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import PATCH
from gatokit.trainer import flops
from gatokit.trainer.loss import BLOCK
from gatokit.trainer.mesh import AXES, check_mesh, make_mesh
from gatokit.trainer.model import count, parameter_table
from gatokit.trainer.step import Trainer

VOCABULARY_SIZE = TokenizerSettings.of(0).vocabulary_size
"""There is no data, so ids are counted with discrete ids overlapping text ids."""
PATCH_SHARE = 4
"""If the config gives no ``patch_slots``, one token in this many is taken for a patch."""
USABLE = 0.9
"""Share of a device's memory: the rest is the driver's, and lost to fragmentation."""
ENOUGH_TOKENS = 8192
"""A device's microbatch of this many tokens keeps it busy; below it, remat is preferred to a smaller microbatch."""

_WHOLE_SLICES = {"v3": "16x16", "v4": "8x8x8", "v5e": "16x16", "v5p": "8x8x8", "v6e": "16x16"}
_OFFLINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Keeps libtpu from asking a metadata server what this machine is, and from locking out another user of its TPU."""
_GIB = 1 << 30


def _slots(config: RunConfig) -> int:
    """Patch slots of a group; a guess if the config has none."""
    return config.input.patch_slots or config.patch_group_rows * config.context // PATCH_SHARE


def _step_flops(config: RunConfig) -> float:
    """Operations of a step on all devices, with a patch in every slot and a target at every position."""
    return flops.train_step(
        config.model,
        rows=config.batch,
        context=config.context,
        patch_slots=config.batch // config.patch_group_rows * _slots(config),
        targets=config.batch * config.context,
        vocabulary_size=VOCABULARY_SIZE,
    )


# ---- compiled ----------------------------------------------------------------------------------------------------


def compile_only(config: RunConfig, topology: str) -> dict[str, Any]:
    """Compiles the step of ``config`` for a slice such as ``v3:16x16``; a generation alone means a large slice of it.
    Returns what the step takes, for ``--json`` and ``compiled_text``; bytes are those of one device.

    Raises ConfigError if libtpu is not installed, there is no such slice, the mesh does not fit it, or the step does
    not fit its memory.
    """
    if not re.fullmatch(r"v\d+[a-z]*(:\d+(x\d+)+)?", topology):
        raise ConfigError(f"topology {topology!r} is not a TPU slice such as v3:16x16 or v5e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        needs = "compiling for a TPU needs libtpu, with or without a TPU"
        raise ConfigError(needs, way_out=install_hint("tpu"), code="missing_package")
    if ":" not in topology:
        if topology not in _WHOLE_SLICES:
            raise ConfigError(f"topology {topology!r}: name its shape too, such as {topology}:4x4")
        topology = f"{topology}:{_WHOLE_SLICES[topology]}"
    os.environ.update({name: value for name, value in _OFFLINE.items() if name not in os.environ})
    # A TPU of this machine is left alone.
    jax.config.update("jax_platforms", "cpu")
    try:
        devices: list[Any] = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"topology {topology}: {first_line(error)}") from None
    mesh = make_mesh(config.mesh, devices)
    trainer = Trainer(config, VOCABULARY_SIZE, datasets=1, patch_slots=_slots(config), mesh=mesh)
    begin = time.monotonic()
    try:
        compiled = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch).compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
        if sizes is None:
            raise
        raise ConfigError(
            f"the step takes {sizes[1]} of the {sizes[2]} of memory of a device of {topology}: raise mesh.fsdp or "
            "mesh.tensor, raise microbatches, or set remat: full"
        ) from None
    memory: Any = compiled.memory_analysis()
    known = flops.device_named(devices[0].device_kind)
    return {
        "topology": topology,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "hosts": len({device.process_index for device in devices}),
        "mesh": dict(mesh.shape),
        **config.model_dump(include={"batch", "context", "microbatches", "remat"}),
        "patch_slots": _slots(config),
        "vocabulary_size": VOCABULARY_SIZE,
        "parameters": count(trainer.table),
        # Parameters, optimizer state and the batch; the new state takes the old one's place.
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "device_bytes": known.memory if known else None,
        "flops": _step_flops(config),
        "seconds": time.monotonic() - begin,
    }


def compiled_text(found: dict[str, Any]) -> str:
    """What ``compile_only`` found, to be read by people."""
    sizes = {name: found[f"{name}_bytes"] / _GIB for name in ("argument", "temporary", "output")}
    used = sizes["argument"] + sizes["temporary"]
    memory = f" of {found['device_bytes'] / _GIB:.1f} GiB" if found["device_bytes"] else ""
    return (
        f"{found['topology']}: {found['devices']} devices ({found['device']}) on {found['hosts']} hosts; mesh "
        f"{', '.join(f'{axis} {size}' for axis, size in found['mesh'].items())}\n"
        f"batch {found['batch']} x {found['context']} tokens, microbatches {found['microbatches']}, "
        f"remat {found['remat']}, {found['patch_slots']} patch slots a group, {found['vocabulary_size']} ids\n"
        f"{found['parameters']:,} parameters\n"
        f"{used:.2f} GiB{memory} a device: arguments {sizes['argument']:.2f} GiB, temporaries "
        f"{sizes['temporary']:.2f} GiB, output {sizes['output']:.2f} GiB in the arguments' place\n"
        f"{found['flops'] / 1e12:,.1f} TFLOP a step, {found['flops'] / found['devices'] / 1e12:,.2f} a device\n"
        f"compiled in {found['seconds']:.0f} s"
    )


# ---- planned -----------------------------------------------------------------------------------------------------


def plan(config: RunConfig, device: str) -> dict[str, Any]:
    """Microbatches and remat for the config's batch, model and mesh on a device; ``data: -1`` counts as one.
    Returns the fastest choice that fits by estimate, for ``--json`` and ``plan_text``.

    The least remat comes first, then the largest microbatch that fits. Raises ConfigError if the device is not known
    or nothing fits.
    """
    known = flops.device_named(device)
    if known is None:
        raise ConfigError(f"device {device!r} is not one of {', '.join(item.name for item in flops.DEVICES)}")
    axes = max(1, config.mesh.data), config.mesh.fsdp, config.mesh.tensor
    check_mesh(jax.sharding.AbstractMesh(axes, AXES), config.model_copy(update={"microbatches": 1}))
    rows, devices, work = config.batch // (axes[0] * axes[1]), math.prod(axes), _step_flops(config)
    parts = [part for part in range(rows, 0, -1) if rows % part == 0 and part % config.patch_group_rows == 0]
    large = [part for part in parts if part * config.context >= ENOUGH_TOKENS] or parts[:1]
    small = [part for part in parts if part not in large]
    cuts = [(remat, part) for remat in ("none", "dots", "full") for part in large]
    cuts += [(remat, part) for remat in ("full", "dots", "none") for part in small]
    sizes = []
    for remat, part in cuts:
        memory = estimate(config, rows=part, microbatches=rows // part, remat=remat)
        sizes.append(sum(memory.values()))
        if sizes[-1] <= USABLE * known.memory:
            return {
                "device": known.name,
                "device_bytes": known.memory,
                "devices": devices,
                "parameters": count(parameter_table(config.model, VOCABULARY_SIZE)),
                "microbatches": rows // part,
                "microbatch_rows": part,  # of one device
                "remat": remat,
                "memory": memory,
                "flops": work,
                "seconds_at_peak": work / devices / known.peak,  # real steps take two to three times as long
            }
    raise ConfigError(
        f"the smallest cut takes {min(sizes) / _GIB:.1f} GiB of a {known.name}'s {known.memory / _GIB:.0f}: raise "
        "mesh.fsdp or mesh.tensor, or lower input.patch_group_rows"
    )


def plan_text(found: dict[str, Any]) -> str:
    """What ``plan`` found, to be read by people."""
    parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in found["memory"].items())
    return (
        f"{found['device']}: microbatches {found['microbatches']} ({found['microbatch_rows']} rows a device), "
        f"remat {found['remat']}, {found['devices']} device{'s' * (found['devices'] > 1)}\n"
        f"{found['parameters']:,} parameters; about {sum(found['memory'].values()) / _GIB:.2f} of "
        f"{found['device_bytes'] / _GIB:.1f} GiB: {parts}\n"
        f"{found['flops'] / 1e12:,.1f} TFLOP a step, {found['seconds_at_peak']:.3f} s at peak"
    )


def estimate(config: RunConfig, *, rows: int, microbatches: int, remat: str, block: int = BLOCK) -> dict[str, int]:
    """Bytes of a device for ``rows`` of a microbatch on it, by what holds them; ``block`` targets have logits at a
    time."""
    model, fsdp, tensor = config.model, config.mesh.fsdp, config.mesh.tensor
    width, heads, half, context = model.width, model.heads * model.head_size, model.hidden // 2, config.context
    size = 2 if config.precision == "bfloat16" else 4
    table = parameter_table(model, VOCABULARY_SIZE)
    divisors = {"fsdp": fsdp, "tensor": tensor, None: 1}
    held = sum(  # parameters of one device
        math.prod(leaf.shape) // math.prod(divisors[axis] for axis in leaf.spec) for leaf in jax.tree.leaves(table)
    )
    tokens = rows * context
    # A layer's products with parameters: norms, queries, keys, values, what attention adds; gate, values and output.
    products = size * tokens * (3 * heads // tensor + 2 * width + 2 * half // tensor)
    norms_and_activations = size * tokens * (heads // tensor + 8 * width + 4 * half // tensor)
    layer = products + norms_and_activations
    scores = tokens * context * model.heads // tensor
    kept = {"full": 0, "dots": products, "none": layer + (4 + size) * scores}[remat]
    features = PATCH * PATCH * model.patch_channels * rows // config.patch_group_rows * _slots(config)
    vocabulary = table["embedding"]["token"].shape[0] // tensor
    return {
        "state": 12 * held,  # parameters and two moments, float32
        # float32, twice, with microbatches three times; and the parameters in the compute dtype.
        "gradients": 4 * held * (3 if microbatches > 1 else 2) + (size * held if size < 4 else 0),
        # What the forward pass keeps of every layer for the backward one.
        "saved": model.layers * (size * tokens * width + kept),
        # What the current layer keeps in addition.
        "layer": layer + (8 + size) * scores,
        # The gradient of the table, with fsdp the gathered table; a block of logits and of gradients.
        "vocabulary": vocabulary * width * (8 if fsdp > 1 else 4) + 2 * min(block, tokens) * vocabulary * 4,
        "patches": features * (size + 4) + 4 * features * (size + 4) // model.patch_stride**2,
    }
