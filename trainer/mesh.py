"""The mesh of devices, who loads which rows of a batch, and how they get to the devices.

The axis ``data`` divides the rows and repeats the parameters, ``fsdp`` divides the rows and the parameters, ``tensor``
divides heads, feed-forward units and the vocabulary. One place along ``data`` × ``fsdp`` holds consecutive rows of a
batch, in whole patch groups.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gatokit.loader.batch import Batch
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.run import MeshConfig, RunConfig

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that divide the rows of a batch


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh over all of ``devices``, in the order of their processes; ``data: -1`` takes what is left.

    Raises ConfigError if the product of the axes is not the number of devices.
    """
    others = config.fsdp * config.tensor
    data = len(devices) // others if config.data == -1 else config.data
    if data < 1 or data * others != len(devices):
        raise ConfigError(
            f"mesh (data {config.data}, fsdp {config.fsdp}, tensor {config.tensor}) does not fill {len(devices)} "
            f"device{'s' * (len(devices) > 1)}: their product must be that number; data: -1 takes what the others leave"
        )
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered, object).reshape(data, config.fsdp, config.tensor), AXES)


def row_parts(mesh: Mesh) -> int:
    """Number of parts that a batch's rows are divided into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_mesh(mesh: Mesh, config: RunConfig) -> None:
    """Raises ConfigError if an axis does not divide what it should divide."""
    model = config.model
    for axis, name, value in (
        ("tensor", "model.heads", model.heads),
        ("tensor", "half of model.hidden", model.hidden // 2),
        ("fsdp", "model.width", model.width),
    ):
        size = mesh.shape[axis]
        if value % size:
            raise ConfigError(f"mesh.{axis} {size} does not divide {name} {value}: choose a divisor of {value}")
    microbatch, group, parts = config.batch // config.microbatches, config.patch_group_rows, row_parts(mesh)
    if microbatch % (parts * group):
        raise ConfigError(
            f"mesh (data {mesh.shape['data']}, fsdp {mesh.shape['fsdp']}) does not divide the {microbatch} rows of a "
            f"microbatch into {parts} parts of whole patch groups (input.patch_group_rows {group}): "
            f"make batch / microbatches a multiple of {parts * group}"
        )


def row_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first dimension counts rows or groups of rows."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def process_rows(mesh: Mesh, batch: int) -> range:
    """The rows of a global batch of ``batch`` rows that this process loads, whatever the number of microbatches.

    Processes whose devices share rows along ``tensor`` load the same rows.
    """
    parts = row_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    spans = [part[0].indices(batch)[:2] for part in parts if part is not None]
    return range(min(begin for begin, _ in spans), max(end for _, end in spans))


def place(batch: Batch, mesh: Mesh) -> Batch:
    """A process's ``process_rows`` of a batch, as the global batch on all devices; nothing is sent between devices."""
    sharding = row_sharding(mesh)
    return Batch(*(jax.make_array_from_process_local_data(sharding, array) for array in batch))


def split(rows: Any, microbatches: int, mesh: Mesh) -> Any:
    """The microbatches of placed arrays of rows, M in front of each one's shape; called inside a jitted function.

    Each takes its part of every device's rows, so that rows stay where they are and each process loads one range.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, ROWS))

    def divide(array: jax.Array) -> jax.Array:
        rest = array.shape[1:]
        pieces = array.reshape(row_parts(mesh), microbatches, -1, *rest).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(pieces.reshape(microbatches, -1, *rest), sharding)

    return jax.tree.map(divide, rows)
