"""What the planner chooses, and its memory against the compiler's."""

from typing import Any

import jax
import pytest

from gatokit.schemas.errors import ConfigError
from gatokit.schemas.run import RunConfig, read_run_config
from gatokit.trainer.compile import estimate, plan
from gatokit.trainer.loss import CPU_BLOCK
from gatokit.trainer.mesh import make_mesh
from gatokit.trainer.step import Trainer


def config(**changes: Any) -> RunConfig:
    return RunConfig(**{"model": "tiny", "context": 256, "batch": 32, "steps": 20_000} | changes)


def bytes_of(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("size", ["tiny", "79m", "1.2b"])
def test_the_state_is_counted_exactly(size: str) -> None:
    settings = config(model=size)
    trainer = Trainer(settings, 33_025, 1, 8, make_mesh(settings.mesh, jax.devices()[:1]))
    memory = estimate(settings, rows=8, microbatches=4, remat="full")
    assert memory["state"] == bytes_of(trainer.abstract_state) - 8


@pytest.mark.parametrize(
    ("size", "device", "microbatches", "rows", "remat"),
    [
        ("tiny", "h100", 1, 32, "none"),
        ("79m", "v5e", 32, 16, "dots"),
        ("364m", "TPU v5 lite", 64, 8, "full"),
        ("1.2b", "H100", 4, 8, "none"),  # on the sixteen that its preset asks for
    ],
)
def test_choices(size: str, device: str, microbatches: int, rows: int, remat: str) -> None:
    found = plan(read_run_config(size), device)
    assert (found["microbatches"], found["microbatch_rows"], found["remat"]) == (microbatches, rows, remat)
    assert sum(found["memory"].values()) < found["device_bytes"]


def test_a_mesh_divides_rows_and_state() -> None:
    paper = read_run_config("1.2b").model_dump()
    paper |= {"mesh": {"data": 32, "fsdp": 16}, "input": {"patch_group_rows": 1}}
    found = plan(RunConfig(**paper), "v3")
    names = ("devices", "microbatches", "microbatch_rows", "remat")
    assert [found[name] for name in names] == [512, 1, 1, "none"]
    # Compiling this for v3:16x16 took 7.68 GiB.
    assert sum(found["memory"].values()) == pytest.approx(7.68 * (1 << 30), rel=0.1)


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({}, "abacus", "device 'abacus' is not one of v2, v3, v4, v5e,"),
        ({"model": "1.2b", "context": 1024}, "v3", r"the smallest cut takes 3\d\.\d GiB of a v3's 16: raise mesh.fsdp"),
        ({"mesh": {"tensor": 3}}, "v3", "mesh.tensor 3 does not divide model.heads 4"),
        ({"mesh": {"data": 8}, "input": {"patch_group_rows": 8}}, "v3", r"make batch / microbatches a multiple of 64"),
    ],
)
def test_what_cannot_be_planned(changes: dict[str, Any], device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(config(**changes), device)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("changes", [{}, {"model": "79m", "context": 512, "batch": 8, "input": {"patch_slots": 8}}])
def test_the_estimate_is_near_the_compiled_size(remat: Any, changes: dict[str, Any]) -> None:
    settings = config(**changes, precision="float32", remat=remat)
    slots = settings.input.patch_slots or 8 * settings.context // 4
    trainer = Trainer(settings, 33_025, 1, slots, make_mesh(settings.mesh, jax.devices()[:1]))
    sizes: Any = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch).compile().memory_analysis()
    compiled = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    memory = estimate(settings, rows=settings.batch, microbatches=1, remat=remat, block=CPU_BLOCK)
    assert sum(memory.values()) == pytest.approx(compiled, rel=0.3)
