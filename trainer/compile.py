"""Compiles the real training step for a TPU slice without one."""

import importlib.util
import os
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from gatokit.schemas.errors import ConfigError, install_hint
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import TokenIds
from gatokit.trainer import flops, model
from gatokit.trainer.flops import device_named
from gatokit.trainer.mesh import make_mesh
from gatokit.trainer.step import Trainer

PATCH_SHARE = 4
"""Where the config gives no ``patch_slots``, one token in this many is taken for a patch."""

_WHOLE_SLICES = {"v3": "16x16", "v4": "8x8x8", "v5e": "16x16", "v5p": "8x8x8", "v6e": "16x16"}
_TOPOLOGY = re.compile(r"v\d+[a-z]*(:\d+(x\d+)+)?")
_OFFLINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Keeps libtpu from asking a metadata server who this machine is, and from locking out whoever uses its TPU."""
_GIGA = 1 << 30


@dataclass(frozen=True)
class Compiled:
    """What a compiled step takes; bytes are those of one device."""

    topology: str
    device: str
    devices: int
    hosts: int
    mesh: dict[str, int]
    batch: int
    context: int
    microbatches: int
    remat: str
    patch_slots: int
    vocabulary_size: int
    parameters: int
    argument_bytes: int
    """Parameters, optimizer state and the batch; the new state takes the old one's place."""
    temporary_bytes: int
    output_bytes: int
    device_bytes: int | None
    """Memory of a device, where it is known."""
    flops: float
    """Of a step on all devices by ``flops.train_step``, with every slot a patch and every position a target."""
    seconds: float
    """Of compiling."""

    def __str__(self) -> str:
        used = self.argument_bytes + self.temporary_bytes
        memory = f" of {self.device_bytes / _GIGA:.1f} GiB" if self.device_bytes else ""
        mesh = ", ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        lines = [
            f"{self.topology}: {self.devices} devices ({self.device}) on {self.hosts} hosts; mesh {mesh}",
            f"batch {self.batch} x {self.context} tokens, microbatches {self.microbatches}, remat {self.remat}, "
            f"{self.patch_slots} patch slots a group, {self.vocabulary_size} ids",
            f"{self.parameters:,} parameters",
            f"{used / _GIGA:.2f} GiB{memory} a device: arguments {self.argument_bytes / _GIGA:.2f} GiB, temporaries "
            f"{self.temporary_bytes / _GIGA:.2f} GiB, output "
            f"{self.output_bytes / _GIGA:.2f} GiB in the arguments' place",
            f"{self.flops / 1e12:,.1f} TFLOP a step, {self.flops / self.devices / 1e12:,.2f} a device",
            f"compiled in {self.seconds:.0f} s",
        ]
        return "\n".join(lines)


def compile_only(config: RunConfig, topology: str) -> Compiled:
    """Compiles the step of ``config`` for a slice such as ``v3:16x16``; a bare generation means its largest square or
    cubic slice here. There is no data, so ids are counted with discrete ids overlapping text ids.

    ConfigError: libtpu is not installed, there is no such slice, the mesh does not fit it, or the step does not fit
    its memory.
    """
    topology, devices = _devices(topology)
    mesh = make_mesh(config.mesh, devices)
    group = config.patch_group_rows
    slots = config.input.patch_slots or group * config.context // PATCH_SHARE
    ids = TokenIds().vocabulary_size
    trainer = Trainer(config, ids, datasets=1, patch_slots=slots, mesh=mesh)
    begin = time.monotonic()
    try:
        compiled = trainer.step.lower(trainer.abstract_state(), trainer.abstract_batch()).compile()
    except jax.errors.JaxRuntimeError as error:
        raise _too_large(error, topology) from None
    seconds = time.monotonic() - begin
    memory: Any = compiled.memory_analysis()
    known = device_named(devices[0].device_kind)
    work = flops.train_step(
        config.model,
        rows=config.batch,
        context=config.context,
        patch_slots=config.batch // group * slots,
        targets=config.batch * config.context,
        vocabulary_size=ids,
    )
    return Compiled(
        topology=topology,
        device=devices[0].device_kind,
        devices=len(devices),
        hosts=len({device.process_index for device in devices}),
        mesh=dict(mesh.shape),
        batch=config.batch,
        context=config.context,
        microbatches=config.microbatches,
        remat=config.remat,
        patch_slots=slots,
        vocabulary_size=ids,
        parameters=model.count(trainer.table),
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        device_bytes=known.memory if known else None,
        flops=work.total,
        seconds=seconds,
    )


def _devices(topology: str) -> tuple[str, list[jax.Device]]:
    if not _TOPOLOGY.fullmatch(topology):
        raise ConfigError(f"topology {topology!r} is no TPU slice such as v3:16x16 or v5e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "compiling for a TPU needs libtpu, with or without a TPU",
            way_out=install_hint("tpu"),
            code="missing_package",
        )
    if ":" not in topology:
        if topology not in _WHOLE_SLICES:
            raise ConfigError(f"topology {topology!r}: name its shape too, such as {topology}:4x4")
        topology = f"{topology}:{_WHOLE_SLICES[topology]}"
    os.environ.update({name: value for name, value in _OFFLINE.items() if name not in os.environ})
    # A TPU of this machine's own is left alone.
    jax.config.update("jax_platforms", "cpu")
    try:
        return topology, list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"topology {topology}: {str(error).splitlines()[0]}") from None


def _too_large(error: Exception, topology: str) -> Exception:
    """The sentence of a step that does not fit; another error as it is."""
    found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
    if found is None:
        return error
    return ConfigError(
        f"the step takes {found[1]} of the {found[2]} of memory of a device of {topology}: raise mesh.fsdp or "
        "mesh.tensor, raise microbatches, or set remat: full"
    )
