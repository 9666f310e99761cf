"""Statistics of fields, against NumPy over what TFDS itself reads."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gatokit.pipelines.describe import statistics
from gatokit.pipelines.describe.source import Description, describe
from gatokit.pipelines.episodes.reader import SourceField

F = tfds.features
FIELDS = {
    "observation": F.FeaturesDict(
        {
            "state": F.Tensor(shape=(3,), dtype=np.float32),
            "wide": F.Tensor(shape=(2, 40), dtype=np.float64),
            "still": F.Tensor(shape=(4,), dtype=np.float32),
            "count": np.int64,
            "broken": np.float32,
            "view": F.Image(shape=(32, 48, 3), encoding_format="png"),
            "word": F.Text(),
        }
    ),
    "action": F.Tensor(shape=(2,), dtype=np.float64),
    **{name: F.Scalar(dtype=np.bool_) for name in ("is_first", "is_last")},
    "reward": F.Scalar(dtype=np.float32),
}
METADATA = {"success": np.bool_, "seed": np.int64, "task": F.Text(), "pose": F.Tensor(shape=(3,), dtype=np.float32)}
WORDS = ("", "red block", "blau – grün")


def episode(rng: np.random.Generator, number: int, steps: int) -> dict[str, Any]:
    black = np.zeros((32, 48, 3), np.uint8)
    return {
        "steps": [
            {
                "observation": {
                    "state": rng.normal(number, 2, 3).astype(np.float32),
                    "wide": rng.normal(size=(2, 40)),
                    "still": np.array([1, 2, rng.random(), 4], np.float32),
                    "count": rng.integers(-5, 40),
                    "broken": np.float32(np.nan if step == 1 else step),
                    "view": black if number % 2 else black + rng.integers(1, 255, dtype=np.uint8),
                    "word": WORDS[number % len(WORDS)],
                },
                "action": rng.uniform(-1, 1, 2) if step < steps - 1 or number == 2 else np.zeros(2),
                "is_first": step == 0,
                "is_last": step == steps - 1,
                "reward": np.float32(number if step in (1, steps - 1) else 0),
            }
            for step in range(steps)
        ],
        "success": number % 2 == 0,
        "seed": 100 + number,
        "task": f"task {number % 2}",
        "pose": np.arange(3, dtype=np.float32),
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, write_tfds: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(5)
    episodes = [episode(rng, number, 4 + number) for number in range(7)]
    splits = {"train": episodes, "val": [episode(rng, 1, 5)]}
    return write_tfds(tmp_path_factory.mktemp("recorded") / "set", FIELDS, splits, metadata=METADATA)


@pytest.fixture(scope="module")
def found(recorded: Path) -> Description:
    return describe(str(recorded))


@pytest.fixture(scope="module")
def values(recorded: Path) -> dict[str, np.ndarray]:
    """All steps of the split ``train`` by path, as TFDS gives them."""
    columns: dict[str, list[Any]] = {}
    for one in tfds.as_numpy(tfds.builder_from_directory(recorded).as_dataset("train")):
        for step in one["steps"]:
            for key, value in [*step["observation"].items(), *step.items()]:
                path = f"observation/{key}" if key in step["observation"] else key
                if key != "observation":
                    columns.setdefault(path, []).append(value)
    return {path: np.array(column) for path, column in columns.items()}


def test_what_was_looked_at(found: Description):
    assert (found.seen, found.episodes, found.is_all, found.bad) == (7, 7, True, 0)
    assert [(split.name, split.episodes, split.is_read) for split in found.splits] == [
        ("train", 7, True),
        ("val", 1, False),
    ]
    assert found.lengths == (4, 7.0, 10)
    assert (found.format, found.directories, found.problems) == ("tfrecord", ("set",), ())


def test_rewards_and_last_steps(found: Description):
    ends = found.ends
    assert (ends.rewards, ends.in_last, ends.before) == (7, 6 / 7, 6 / 7)
    assert ends.last_action == {"other": 1, "zero": 6}
    assert ends.last_reward == {"other": 6, "zero": 1}
    assert ends.lasts == (0, 1, 2, 3, 4, 5, 6)
    assert ends.returns == (0, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("path", ["observation/state", "observation/wide", "observation/count", "action", "reward"])
def test_numbers_are_those_of_numpy(path: str, found: Description, values: dict[str, np.ndarray]):
    column = values[path].reshape(len(values[path]), -1).astype(np.float64)
    [item] = [item for item in found.fields if item.path == path]
    got = item.statistics
    assert (got.min, got.max) == (column.min(), column.max())
    assert np.allclose((got.q01, got.q99), np.quantile(column, (0.01, 0.99)), rtol=1e-6)
    assert got.distinct == min(statistics.MOST_DISTINCT, len(np.unique(column)))
    assert got.constant == 0
    assert got.not_finite == 0
    assert got.episodes == 7
    if column.shape[1] <= 64:
        assert got.components is not None
        assert got.components["low"] == tuple(column.min(0))
        assert got.components["high"] == tuple(column.max(0))
        assert np.allclose(got.components["q01"], np.quantile(column, 0.01, axis=0), rtol=1e-6)
        assert np.allclose(got.components["q99"], np.quantile(column, 0.99, axis=0), rtol=1e-6)
    else:
        assert got.components is None


def test_what_else_a_field_tells(found: Description):
    fields = {item.path: item.statistics for item in found.fields}
    assert fields["observation/still"].constant == 0.75
    assert fields["observation/broken"].not_finite == 7 / 49
    assert (fields["observation/broken"].min, fields["observation/broken"].max) == (0, 9)
    assert (fields["observation/view"].frame, fields["observation/view"].black) == ((32, 48, 3), 3 / 7)
    word = fields["observation/word"]
    assert (word.distinct, word.longest, word.steady, word.is_text) == (3, 11, True, True)
    assert word.empty == (4 + 7 + 10) / 49
    assert set(word.examples) == {"red block", "blau – grün"}
    assert fields["is_first"].steady is False
    assert (fields["seed"].min, fields["seed"].max, fields["seed"].distinct) == (100, 106, 7)
    assert (fields["success"].min, fields["success"].max) == (0, 1)
    assert fields["task"].examples == ("task 0", "task 1")
    assert (fields["pose"].episodes, fields["pose"].max) == (7, 2)


def test_less_is_looked_at_if_asked(recorded: Path):
    few = describe(str(recorded), episodes=4)
    assert (few.seen, few.is_all) == (4, False)  # the first one of each of the four files
    assert describe(str(recorded), episodes=None).seen == 7
    both = describe(str(recorded), splits=("train", "val"))
    assert (both.seen, both.episodes) == (8, 8)


def test_no_episode_is_kept_in_memory(tmp_path: Path, write_tfds: Callable[..., Path]):
    steps = {"state": F.Tensor(shape=(2,), dtype=np.float32), "blob": F.Text(), "is_last": F.Scalar(dtype=np.bool_)}
    rng = np.random.default_rng(0)
    episodes = [
        {"steps": [{"state": rng.random(2, np.float32), "blob": rng.bytes(1 << 20), "is_last": True}]}
        for _ in range(24)
    ]
    write_tfds(tmp_path / "set", steps, episodes, max_examples_per_shard=8)
    describe(str(tmp_path / "set"), episodes=3)  # what is read once is imported
    tracemalloc.start()
    found = describe(str(tmp_path / "set"), episodes=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.seen, [item.statistics.distinct for item in found.fields]) == (24, [24, 1, 48])
    assert peak < 12 << 20


@given(
    st.lists(
        arrays.arrays(np.float64, st.tuples(st.integers(1, 9), st.just(3)), elements=st.floats(-1e9, 1e9)),
        min_size=1,
        max_size=9,
    )
)
def test_parts_give_what_the_whole_gives(parts: list[np.ndarray]):
    numbers = statistics._Numbers()
    for part in parts:
        numbers.add(part)
    whole = np.concatenate(parts)
    got = numbers.statistics(SourceField(path="x", dtype="float64", shape=(3,)))
    assert (got["min"], got["max"]) == (whole.min(), whole.max())
    assert (got["q01"], got["q99"]) == tuple(np.quantile(whole, (0.01, 0.99)))
    assert got["constant"] == np.mean(whole.min(0) == whole.max(0))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_many_values_are_thinned_evenly(size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "_MOST_VALUES", 1000)
    numbers = statistics._Numbers()
    for begin in range(0, 100_000, 1000):
        numbers.add(np.repeat(np.arange(begin, begin + 1000.0)[:, None], size, 1))
        assert numbers._kept <= 1000
    rows = np.concatenate(numbers._rows)[:, 0]
    assert set(np.diff(rows)) == {float(numbers._stride)}
    got = numbers.statistics(SourceField(path="x", dtype="float64", shape=(size,)))
    assert (got["min"], got["max"]) == (0, 99_999)
    assert got["q01"] == pytest.approx(1000, abs=20_000 / len(rows) * 10)


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        ([104, 105, 0, 0], "hi"),
        ([0, 0, 0], ""),
        ([104, 0, 105], None),
        ([104, -1, 0], None),
        ([1, 2, 3], None),
        ([104, 0x11FFFF, 0], None),
        ([0x4F60, 0x597D], "你好"),
    ],
)
def test_codes_of_characters(codes: list[int], text: str | None):
    assert statistics.code_text(np.array(codes)) == text
