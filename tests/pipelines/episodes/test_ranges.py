"""Ranges that the data give, and values that do not fit: found at the plan, for every field and component."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.estimate import estimate
from gatokit.pipelines.run import build, scan
from gatokit.schemas.errors import DataError
from gatokit.tokenizers.tensors import count_saturated, outside_range

F = tfds.features
FLAGS = {name: F.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")}
RNG = np.random.default_rng(7)
# Six episodes of twenty steps with a real last one: wide, narrow and constant components, and a gripper.
ACTIONS = [
    np.stack(
        [RNG.normal(size=20) * 30, RNG.normal(size=20) * 0.01, np.full(20, 0.25), np.arange(20) % 2], axis=1
    ).astype(np.float32)
    for _ in range(6)
]
ALL = np.concatenate(ACTIONS).astype(np.float64)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, write_tfds: Callable[..., Path]) -> Path:
    steps = {
        "observation": {
            "state": F.Tensor(shape=(2,), dtype=np.float32),
            "grip": F.Scalar(dtype=np.int32),
            "house": F.Scalar(dtype=np.int64),
        },
        "action": F.Tensor(shape=(4,), dtype=np.float32),
        **FLAGS,
    }
    episodes = [
        {
            "steps": [
                {
                    "observation": {
                        "state": np.array([300, step], np.float32),
                        "grip": step % 3 - 1,
                        "house": 1500 + step,
                    },
                    "action": action,
                    "is_first": step == 0,
                    "is_last": step == 19,
                    "is_terminal": False,
                }
                for step, action in enumerate(actions)
            ]
        }
        for actions in ACTIONS
    ]
    folder = tmp_path_factory.mktemp("ranges")
    write_tfds(folder / "data" / "t", steps, episodes, max_examples_per_shard=2)
    return folder


@pytest.fixture
def config(recorded: Path, vocabulary: Path) -> Callable[..., Path]:
    def write(name: str, fields: dict[str, Any], **dataset: Any) -> Path:
        entry = {
            "name": "d",
            "kind": "episodes",
            "source": "data/*",
            "keep": {"all": True},
            "fields": fields,
            **dataset,
        }
        path = recorded / f"{name}.yaml"
        path.write_text(json.dumps({"vocabulary": str(vocabulary), "datasets": [entry]}))
        return path

    return write


SKIPPED: dict[str, Any] = {"observation/grip": {"as": "skip"}, "observation/house": {"as": "skip"}}


def pairs_of(out: Path) -> list[tuple[float, float]]:
    [spec] = open_directory(out).datasets["d"].described.specs.values()
    [action] = spec.action
    return list(action.range or ())


def actions_of(out: Path) -> np.ndarray:
    dataset = open_directory(out).datasets["d"]
    return np.concatenate([stored.decode()["action"] for stored in dataset.read(dataset.episodes())])


def test_the_range_of_the_data(config: Callable[..., Path], tmp_path: Path) -> None:
    path = config("data", SKIPPED | {"action": {"range": "data"}})
    result = build(path, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    expected = list(zip(ALL.min(axis=0).tolist(), ALL.max(axis=0).tolist(), strict=True))
    expected[2] = (-0.25, 0.75)  # a constant has a range of 1 around it
    assert pairs_of(tmp_path / "out") == expected
    widths = np.array([high - low for low, high in expected])
    assert (np.abs(actions_of(tmp_path / "out") - ALL) <= widths / 2048 + 1e-12).all()
    assert any(
        "the data give action the range [[" in notice or "the data give action" in notice for notice in result.notices
    )
    scan(path, tmp_path / "scanned")
    assert pairs_of(tmp_path / "scanned") == expected
    # Another limit or order of work changes no range.
    build(path, tmp_path / "some", limit=1)
    assert pairs_of(tmp_path / "some") == expected


def test_quantiles_are_those_of_numpy(config: Callable[..., Path], tmp_path: Path) -> None:
    path = config("quantiles", SKIPPED | {"action": {"range": {"quantiles": [0.1, 0.9]}}})
    build(path, tmp_path / "out")
    low, high = np.quantile(ALL, [0.1, 0.9], axis=0)
    expected = list(zip(low.tolist(), high.tolist(), strict=True))
    expected[2] = (-0.25, 0.75)
    assert pairs_of(tmp_path / "out") == expected
    clipped = np.clip(ALL, low, high)
    decoded = actions_of(tmp_path / "out")
    assert (np.abs(decoded[:, [0, 1, 3]] - clipped[:, [0, 1, 3]]) <= (high - low)[[0, 1, 3]] / 2048 + 1e-12).all()
    # A padding reading leaves the last steps out of the count.
    build(config("padding", SKIPPED | {"action": {"range": "data"}}, last_step="padding"), tmp_path / "padding")
    counted = np.concatenate([actions[:-1] for actions in ACTIONS]).astype(np.float64)
    assert pairs_of(tmp_path / "padding")[0] == (counted[:, 0].min(), counted[:, 0].max())


def test_every_field_that_does_not_fit_is_named_at_once(config: Callable[..., Path], tmp_path: Path) -> None:
    path = config("wrong", {})
    outside = np.count_nonzero(np.abs(ALL[:, 0]) > 1)
    for number, stage in enumerate((scan, build, lambda path, out: estimate(path))):
        with pytest.raises(DataError) as raised:
            stage(path, tmp_path / f"out{number}")  # type: ignore[operator]
        said = str(raised.value)
        numbers = ", ".join(
            f"[{np.float32(low)!s}, {np.float32(high)!s}]"
            for low, high in [*zip(ALL.min(axis=0), ALL.max(axis=0), strict=True)][:2]
        )
        assert f"values of action lie outside of its range [[-1.0, 1.0]] (component 0: {outside} of 120)" in said
        assert (
            f"{{as: continuous, range: data}} or {{as: continuous, range: [{numbers}, [-0.25, 0.75], [0.0, 1.0]]}}"
            in said
        )
        assert "observation/grip holds values from -1 to 1, and 0 to 1023 have ids, in 6 of 6 episodes" in said
        assert "give datasets[0].fields.observation/grip: {offset: -1} or {as: continuous}" in said
        assert "observation/house holds values from 1500 to 1519" in said
        assert "{offset: 1500}" in said
        assert not list((tmp_path / f"out{number}").glob("d/*"))


def test_what_the_error_says_builds(config: Callable[..., Path], tmp_path: Path) -> None:
    low, high = ALL.min(axis=0), ALL.max(axis=0)
    pairs = [[float(str(np.float32(a))), float(str(np.float32(b)))] for a, b in zip(low, high, strict=True)]
    pairs[2] = [-0.25, 0.75]
    rules = {"observation/grip": {"offset": -1}, "observation/house": {"offset": 1500}, "action": {"range": pairs}}
    result = build(config("right", rules), tmp_path / "out")
    assert result.manifest.datasets[0].kept == 6
    dataset = open_directory(tmp_path / "out").datasets["d"]
    decoded = next(dataset.read(dataset.episodes())).decode()
    assert decoded["observation/grip"].tolist() == [step % 3 - 1 for step in range(20)]
    assert decoded["observation/house"].tolist() == [1500 + step for step in range(20)]


def test_clip_and_notices(config: Callable[..., Path], tmp_path: Path) -> None:
    path = config("clip", SKIPPED | {"action": {"range": [-1, 1], "clip": True}})
    result = build(path, tmp_path / "out")
    outside = np.count_nonzero(np.abs(ALL[:, 0]) > 1)
    said = "\n".join(result.notices)
    assert f"d: values of action outside of its range are clipped (component 0: {outside} of 120)" in said
    ids = int(np.ceil((ALL[:, 1].max() - ALL[:, 1].min()) / 2 * 1024))
    assert f"d: action is narrow for its range: fewer than 64 of 1,024 ids are used (component 1: {ids})" in said
    assert "d: 50.0% of the values of observation/state are beyond ±256, where tokens are saturated" in said
    np.testing.assert_allclose(actions_of(tmp_path / "out"), np.clip(ALL, -1, 1), atol=1 / 1024)


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3), min_size=1, max_size=20),
    st.lists(st.tuples(st.floats(-2, 0), st.floats(0.5, 2)), min_size=3, max_size=3),
)
def test_counts_are_those_of_the_plain_comparison(rows: Sequence[Any], pairs: Sequence[Any]) -> None:
    values = np.array(rows, np.float32)
    low, high = np.array(pairs).T
    slack = 4 * 2.0**-23 * np.maximum(np.abs(low), np.abs(high))
    outside, at_ends = outside_range(values, tuple(map(tuple, pairs)))
    expected = ((values < low - slack) | (values > high + slack)).sum(axis=0)
    np.testing.assert_array_equal(np.broadcast_to(outside, 3), expected)
    expected = ((values <= low + slack) | (values >= high - slack)).sum(axis=0)
    np.testing.assert_array_equal(np.broadcast_to(at_ends, 3), expected)


def test_saturated_values_are_counted() -> None:
    values = np.array([[256, -256, 257], [-1000, np.nan, 0]], np.float32)
    assert count_saturated(values) == 2
    assert count_saturated(np.zeros((0, 3))) == 0
    assert count_saturated(np.full((2, 2), 256.0)) == 0
