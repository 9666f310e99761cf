"""Meshes that do not fit end in a sentence. (Shapes that do fit: test_eight_devices.)"""

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from gatokit.schemas.errors import ConfigError
from gatokit.schemas.run import MeshConfig, RunConfig
from gatokit.trainer.mesh import AXES, check_mesh, make_mesh, process_rows


@dataclass(frozen=True)
class Device:
    """As much of a device as its place in a mesh depends on."""

    process_index: int
    id: int


def devices(processes: int, each: int) -> list[Device]:
    """Numbered as TPU slices number theirs: not in the order of processes."""
    return [Device(number % processes, number) for number in range(processes * each)]


def test_devices_stand_in_the_order_of_processes() -> None:
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=1), devices(2, 4))
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert [device.id for device in mesh.devices.flat] == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize(
    ("axes", "count"),
    [({"data": 3}, 8), ({"fsdp": 3}, 8), ({"fsdp": 16}, 8), ({"data": 2}, 1), ({"data": 0}, 4), ({"tensor": 2}, 1)],
)
def test_axes_that_do_not_fill_the_devices(axes: dict[str, int], count: int) -> None:
    with pytest.raises(ConfigError, match=rf"mesh \(data .*\) does not fill {count} devices?: "):
        make_mesh(MeshConfig(**axes), devices(1, count))


def mesh_of(data: int, fsdp: int, tensor: int) -> Mesh:
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices(1, data * fsdp * tensor))


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((1, 1, 3), {}, r"mesh.tensor 3 does not divide model.heads 4: choose a divisor of 4"),
        (
            (1, 1, 2),
            {"hidden": 510},
            r"mesh.tensor 2 does not divide half of model.hidden 255: choose a divisor of 255",
        ),
        ((1, 3, 1), {}, r"mesh.fsdp 3 does not divide model.width 128: choose a divisor of 128"),
        (
            (3, 1, 1),
            {},
            r"mesh \(data 3, fsdp 1\) does not divide the 32 rows of a microbatch into 3 parts of whole patch groups "
            r"\(input.patch_group_rows 8\): make batch / microbatches a multiple of 24",
        ),
        ((4, 2, 1), {}, r"make batch / microbatches a multiple of 64"),
    ],
)
def test_axes_that_do_not_divide(shape: tuple[int, int, int], changes: dict[str, int], message: str) -> None:
    config = RunConfig(model={"size": "tiny", **changes}, batch=64, microbatches=2, steps=20_000)
    with pytest.raises(ConfigError, match=message):
        check_mesh(mesh_of(*shape), config)


def test_a_mesh_that_divides() -> None:
    check_mesh(mesh_of(2, 2, 4), RunConfig(model="tiny", batch=64, microbatches=2, steps=20_000))


def test_one_process_loads_every_row() -> None:
    assert process_rows(Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES), 24) == range(24)
