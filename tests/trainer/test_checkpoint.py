"""Checkpoints of small trees: what is kept, and what a full disk leaves behind."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gatokit.schemas.errors import DataError
from gatokit.schemas.run import CheckpointConfig
from gatokit.schemas.run_directory import RunState
from gatokit.storage.run_directory import find_checkpoint
from gatokit.trainer.checkpoint import Checkpoints, restore_all, restore_params


def params(step: int) -> dict[str, Any]:
    """Incompressible, so that the file has a size."""
    noise = np.random.default_rng(step).standard_normal(20_000).astype(np.float32)
    return {"layers": {"in": jnp.asarray(noise)}, "norm": jnp.full(3, step, jnp.float32)}


def optimizer(step: int) -> tuple[Any, ...]:
    return jnp.int32(step), {"mean": params(step + 1)}


def state(step: int) -> RunState:
    return RunState(step=step, samples=8 * step, best=None, best_step=None, interval={"loss": 0.1 + 0.2})


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "policy.json").write_text("{}")
    return folder


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more to a file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def kept(out: Path) -> list[int]:
    return sorted(int(item.name) for item in (out / "checkpoints").iterdir() if item.name.isdigit())


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(state(step), params(step), optimizer(step))


def test_restored_as_saved_and_its_parts_stand_alone(tmp_path: Path, policy: Path) -> None:
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.newest() is None
        save(checkpoints, 5)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params(0), optimizer(0)))
    assert checkpoints.newest() == 5
    found = checkpoints.restore(5, *shapes)
    jax.tree.map(np.testing.assert_array_equal, found, (params(5), optimizer(5), state(5)))
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "5"
    found = restore_params(find_checkpoint(tmp_path), shapes[0])
    jax.tree.map(np.testing.assert_array_equal, found, params(5))
    assert (tmp_path / "checkpoints" / "5" / "policy" / "policy.json").read_text() == "{}"


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path, policy: Path) -> None:
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=2)) as checkpoints:
        for step in range(1, 11):
            save(checkpoints, step)
            checkpoints.best = 1 if step == 1 else 2  # as an evaluation says, after the checkpoint was written
    assert kept(tmp_path) == [2, 9, 10]


@pytest.mark.parametrize("item", ["params", "optimizer", "run", "policy"])
def test_a_flipped_bit_is_named(tmp_path: Path, policy: Path, item: str) -> None:
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        save(checkpoints, 5)
    checkpoint = tmp_path / "checkpoints" / "5"
    files = [path for path in (checkpoint / item).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    sound = file.read_bytes()
    content = bytearray(sound)
    content[len(content) // 4] ^= 4
    file.write_bytes(content)
    said = rf"checkpoints/5 is damaged: {item}/.* is not what was written\. Remove it to go on from the one before"
    with pytest.raises(DataError, match=said):
        Checkpoints(tmp_path, CheckpointConfig()).restore(5, params(0), optimizer(0))
    with pytest.raises(DataError, match=said):
        restore_all(checkpoint, params(0), optimizer(0))
    if item == "params":
        with pytest.raises(DataError, match=said):
            restore_params(checkpoint, params(0))
    else:
        restore_params(checkpoint, params(0))
    # A checkpoint of an earlier version has no digests.
    file.write_bytes(sound)
    (checkpoint / "digests.json").unlink()
    restored = Checkpoints(tmp_path, CheckpointConfig()).restore(5, params(0), optimizer(0))
    jax.tree.map(np.testing.assert_array_equal, restored, (params(5), optimizer(5), state(5)))


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, policy: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    save(checkpoints, 1)
    checkpoints.wait()
    with files_of_at_most(50_000):
        save(checkpoints, 2)
        with pytest.raises(DataError) as found:
            checkpoints.wait()
    assert str(found.value) == (
        f"the checkpoint of step 2 could not be written to {tmp_path / 'checkpoints'}: File too large; "
        "the last good one is step 1. Make room and run the same command again"
    )
    again = Checkpoints(tmp_path, CheckpointConfig())
    assert again.newest() == 1
    assert kept(tmp_path) == [1]
    jax.tree.map(np.testing.assert_array_equal, again.restore(1, params(0), optimizer(0))[0], params(1))


def test_shapes_that_do_not_fit_and_files_that_are_gone_are_named(tmp_path: Path, policy: Path) -> None:
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        save(checkpoints, 1)
    wanted = {"layers": {"out": jnp.zeros(3)}, "norm": jnp.zeros(4)}
    with pytest.raises(DataError) as found:
        restore_params(find_checkpoint(tmp_path), wanted)
    assert str(found.value) == (
        f"{tmp_path / 'checkpoints' / '1'} does not fit the config's model: layers.out is missing; "
        "layers.in is not of this model; norm is (3,), not (4,)"
    )
    for file in (tmp_path / "checkpoints" / "1" / "params").rglob("manifest.ocdbt"):
        file.unlink()
    with pytest.raises(DataError, match=r"checkpoints/1 is damaged: params/.*Remove it to go on from the one before"):
        Checkpoints(tmp_path, CheckpointConfig()).restore(1, params(0), optimizer(0))
    with pytest.raises(DataError, match="holds no checkpoint: give a run's directory or one of its checkpoints"):
        find_checkpoint(policy)
