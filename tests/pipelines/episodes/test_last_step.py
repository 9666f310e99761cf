"""The step that ``is_last`` marks: padding or real, decided by the data of the whole dataset or by the config."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.episodes.ranges import MeasuredField, measure
from gatokit.pipelines.episodes.reader import SourceField
from gatokit.pipelines.episodes.scan import look, looks, reward_columns, steps_of
from gatokit.pipelines.estimate import estimate
from gatokit.pipelines.run import Result, build, scan
from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.tokenizers.tensors import outside_range

F = tfds.features
STEPS = {
    "observation": {"state": F.Tensor(shape=(2,), dtype=np.float32)},
    "action": F.Tensor(shape=(2,), dtype=np.float32),
    "reward": F.Scalar(dtype=np.float32),
    "is_first": F.Scalar(dtype=np.bool_),
    "is_last": F.Scalar(dtype=np.bool_),
    "is_terminal": F.Scalar(dtype=np.bool_),
}
NAN = float("nan")


def episode(actions: Sequence[Any], rewards: Sequence[Any], **changed: Sequence[Any]) -> dict[str, Any]:
    """Steps with these actions and rewards, of which the last is marked."""
    last = len(actions) - 1
    steps = [
        {
            "observation": {"state": np.full(2, step / 8, np.float32)},
            "action": np.broadcast_to(np.array(action, np.float32), 2),
            "reward": reward,
            "is_first": step == 0,
            "is_last": step == last,
            "is_terminal": False,
            **{key: values[step] for key, values in changed.items()},
        }
        for step, (action, reward) in enumerate(zip(actions, rewards, strict=True))
    ]
    return {"steps": steps}


# The template of robot data: a real action in the last step, where the only reward stands.
SUCCESS = episode([0.5, -0.5, 0.25], [0, 0, 1])
FAILURE = episode([0.5, -0.5, 0.75], [0, 0, 0])
PADDED = {
    "zeros": episode([0.5, -0.5, 0], [1, 2, 0]),
    "the first step again": episode([0.5, -0.5, 0.5], [1, 2, 1]),
    "the step before again": episode([0.5, -0.5, -0.5], [1, 2, 2]),
    "no numbers": episode([0.5, -0.5, NAN], [1, 2, NAN]),
}
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, write_tfds: Callable[..., Path], vocabulary: Path) -> Run:
    """Writes episodes as the task ``t`` once, and builds or scans them into a folder of each name."""

    def go(episodes: Sequence[Any], stage: Any = build, steps: Any = STEPS, out: str = "out", **dataset: Any) -> Any:
        if not (tmp_path / "data").exists():
            write_tfds(tmp_path / "data" / "t", steps, episodes)
        arguments = dataset.pop("arguments", {})
        entry = {"name": "d", "kind": "episodes", "source": "data/*", "keep": {"all": True}, **dataset}
        path = tmp_path / f"{out}.yaml"
        path.write_text(json.dumps({"vocabulary": str(vocabulary), "datasets": [entry]}))
        result = stage(path, tmp_path / out, **arguments)
        assert verify(tmp_path / out) == []
        return result

    return go


def index(out: Path) -> list[dict[str, Any]]:
    splits = open_directory(out).manifest.datasets[0].splits
    return [row for split in splits for row in pq.read_table(out / "d" / split.index).to_pylist()]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([[1, 2], [3, 4], [0, 0]], "zero"),
        ([[1, 2], [3, 4], [0, NAN]], "zero"),
        ([[1, 2], [3, 4], [NAN, np.inf]], "zero"),
        ([[1, 2], [3, 4], [1, 2]], "copy"),
        ([[1, 2], [3, 4], [3, 4]], "copy"),
        ([[1, 2], [5, 6], [3, 4], [5, 6], [5, 6]], "copy"),
        ([[1, 2], [5, 6], [3, 4], [5, 6]], "other"),
        ([[1, 2], [3, 4], [1, 4]], "other"),
        ([[1, 2]], "other"),
        ([[0, 0]], "zero"),
    ],
)
def test_what_a_last_step_looks_like(column: list[list[float]], expected: str) -> None:
    values = np.array(column, np.float32)
    assert look([values]) == expected
    assert look([values[:, :1].astype(np.float64), values[:, 1:]]) == expected


def test_fields_are_looked_at_together() -> None:
    first, before = np.array([1, 2, 1]), np.array([3, 4, 4])
    assert (look([first]), look([before]), look([first, before])) == ("copy", "copy", "other")
    assert look([np.array([True, True, False]), np.array([1, 2, 0])]) == "zero"
    assert look([]) == "zero"


def test_a_real_last_step_counts(tmp_path: Path, run: Run) -> None:
    result = run([SUCCESS, FAILURE] * 4, keep={"return": [1, None]})
    entry = result.manifest.datasets[0].last_step
    assert entry is not None
    assert entry.model_dump() == {
        "reading": "real",
        "decided_by": "data",
        "episodes": 8,
        "other_rewards": 4,
        "other_actions": 8,
        "other": 8,
    }
    assert result.notices[1] == (
        "d: the last step is taken for real, so it is a step like any other: in 8 of 8 episodes the step that is_last "
        "marks has a reward (4) or an action (8) that is neither zero nor a copy of the first step's or of the one "
        "before; state it as datasets[0].last_step: real, or padding"
    )
    rows = index(tmp_path / "out")
    assert [(row["steps"], row["return"], row["kept"]) for row in rows] == [(3, 1.0, True), (3, 0.0, False)] * 4
    reader = open_directory(tmp_path / "out").datasets["d"]
    for stored in reader.read(reader.episodes(kept=True)):
        assert stored.reward is not None
        assert (stored.reward.tolist(), stored.flags.tolist()) == ([0, 0, 1], [1, 0, 2])
        np.testing.assert_allclose(stored.decode()["action"], [[0.5] * 2, [-0.5] * 2, [0.25] * 2], atol=1 / 1024)


@pytest.mark.parametrize("kind", PADDED)
def test_padding_is_left_out_as_the_config_would_say_it(kind: str, tmp_path: Path, run: Run) -> None:
    result = run([PADDED[kind]] * 3)
    entry = result.manifest.datasets[0].last_step
    assert entry is not None
    assert (entry.reading, entry.decided_by, entry.episodes, entry.other) == ("padding", "data", 3, 0)
    assert "the last step is taken for padding" in result.notices[1]
    assert [(row["steps"], row["return"], row["reason"]) for row in index(tmp_path / "out")] == [(2, 3.0, None)] * 3
    stated = run([], out="stated", last_step="padding")
    assert stated.notices == ("d: reads split train (3)",)
    shards = [
        {path.name: path.read_bytes() for path in (tmp_path / out / "d").glob("*.arrayrecord")}
        for out in ("out", "stated")
    ]
    assert shards[0] == shards[1] != {}


def test_one_real_step_decides_for_the_dataset(tmp_path: Path, run: Run) -> None:
    padded, real = PADDED["zeros"], episode([0.5, -0.5, 0.25], [1, 2, 0])
    result = run([padded, real, padded])
    entry = result.manifest.datasets[0].last_step
    assert entry is not None
    assert (entry.reading, entry.other_rewards, entry.other_actions, entry.other) == ("real", 0, 1, 1)
    assert "in 1 of 3 episodes" in result.notices[1]
    assert [row["steps"] for row in index(tmp_path / "out")] == [3, 3, 3]
    # A limit reads the first episode alone, which is padding.
    run([], out="some", arguments={"limit": 1})
    assert [row["steps"] for row in index(tmp_path / "some")] == [2]
    run([], out="scanned", stage=scan)
    assert [row["steps"] for row in index(tmp_path / "scanned")] == [3, 3, 3]
    sampled = estimate(tmp_path / "out.yaml").datasets[0]
    assert (sampled.kept, sampled.tokens) == (3, result.manifest.datasets[0].tokens)


def test_the_config_decides(tmp_path: Path, run: Run) -> None:
    result = run([SUCCESS, FAILURE], last_step="padding")
    assert [(row["steps"], row["return"]) for row in index(tmp_path / "out")] == [(2, 0.0), (2, 0.0)]
    assert result.notices[1] == (
        "d: the config says last_step: padding, and in 2 of 2 episodes the step that is_last marks has a reward (1) or "
        "an action (2) that is neither zero nor a copy of the first step's or of the one before"
    )
    real = run([], out="real", last_step="real")
    assert real.notices == ("d: reads split train (2)",)
    fingerprints = [item.manifest.datasets[0].splits[0].fingerprint for item in (result, real)]
    assert fingerprints[0] != fingerprints[1]


def test_a_last_reward_that_is_not_finite_is_a_fault_of_a_real_step_alone(tmp_path: Path, run: Run) -> None:
    bad = episode([0.5, -0.5, 0.25], [1, 2, NAN])
    run([bad, SUCCESS], last_step="padding")
    assert [row["reason"] for row in index(tmp_path / "out")] == [None, None]
    run([], out="real")
    rows = index(tmp_path / "real")
    assert [(row["reason"], row["detail"]) for row in rows] == [("not_finite", "reward is nan at step 2"), (None, None)]
    assert (rows[0]["return"], rows[0]["kept"], rows[1]["return"]) == (None, False, 1.0)


def test_an_episode_whose_last_step_is_not_marked_is_whole_in_both_readings(tmp_path: Path, run: Run) -> None:
    cut = episode([0.5, -0.5, 0.25], [1, 2, 4], is_last=[False] * 3)
    result = run([cut] * 2)
    assert [(row["steps"], row["return"]) for row in index(tmp_path / "out")] == [(3, 7.0)] * 2
    assert result.notices == ("d: reads split train (2)",)
    run([], out="real", last_step="real")
    assert [(row["steps"], row["return"]) for row in index(tmp_path / "real")] == [(3, 7.0)] * 2


def test_a_source_without_rewards(tmp_path: Path, run: Run) -> None:
    steps = {key: value for key, value in STEPS.items() if key != "reward"}
    bare = {"steps": [{key: value for key, value in step.items() if key != "reward"} for step in SUCCESS["steps"]]}
    run([bare] * 3, steps=steps)
    rows = index(tmp_path / "out")
    assert [(row["steps"], row["return"], row["kept"]) for row in rows] == [(3, None, True)] * 3
    reader = open_directory(tmp_path / "out").datasets["d"]
    assert {row.expert_return for row in reader.tasks} == {None}
    stored = next(reader.read(reader.episodes()))
    assert stored.reward is None
    assert [step.reward for step in stored.decoded_steps()] == [None] * 3
    run([], out="some", keep={"sample": 2})
    assert sum(row["kept"] for row in index(tmp_path / "some")) == 2
    for number, (keep, rule) in enumerate(
        [
            ({"min_return": 0.5}, "keep.min_return"),
            ({"return": [0, 1]}, "keep.return"),
            ({"best": 1}, "keep.best without by"),
            ({"success": {"last_reward": 1}}, "keep.success.last_reward"),
        ]
    ):
        with pytest.raises(ConfigError) as caught:
            run([], out=f"refused{number}", keep=keep)
        said = f"datasets[0]: the source has no steps/reward, and {rule} needs rewards; write keep: {{all: true}}"
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (F.Tensor(shape=(1,), dtype=np.float32), lambda number: np.array([number], np.float32)),
        (F.Scalar(dtype=np.int64), int),
        (F.Scalar(dtype=np.uint8), int),
        (F.Scalar(dtype=np.bool_), bool),
    ],
)
def test_rewards_of_one_component_and_integers(feature: Any, value: Any, tmp_path: Path, run: Run) -> None:
    rewards = [value(number) for number in (0, 1, 1)]
    steps = {**STEPS, "reward": feature, "discount": feature}
    run([episode([0.5, -0.5, 0.25], rewards, discount=rewards)] * 2, steps=steps)
    assert [(row["steps"], row["return"]) for row in index(tmp_path / "out")] == [(3, 2.0)] * 2
    reader = open_directory(tmp_path / "out").datasets["d"]
    stored = next(reader.read(reader.episodes()))
    assert stored.reward is not None
    assert stored.discount is not None
    assert (stored.reward.tolist(), stored.discount.tolist()) == ([0, 1, 1], [0, 1, 1])


@pytest.mark.parametrize(
    ("is_first", "is_last", "is_terminal", "detail"),
    [
        ([1, 0, 1, 0], [0, 0, 0, 1], None, "is_first marks step 2, which is not the first"),
        (None, [0, 1, 0, 1], None, "steps follow step 1, which is_last marks"),
        (None, [0, 0, 0, 1], [0, 1, 0, 1], "is_terminal marks step 1, which is_last does not mark"),
        (None, [0, 0, 0, 0], [0, 0, 0, 1], "is_terminal marks step 3, which is_last does not mark"),
        ([1, 0, 0], [0, 0, 0, 1], None, "3 is_first flags and 4 is_last flags"),
        (None, [0, 0, 0, 1], [0, 0, 1], "3 is_terminal flags and 4 is_last flags"),
    ],
)
def test_flags_that_contradict_each_other(is_first: Any, is_last: Any, is_terminal: Any, detail: str) -> None:
    flags = [None if flag is None else bytes(flag) for flag in (is_first, is_last, is_terminal)]
    with pytest.raises(RejectedError) as caught:
        steps_of(*flags)  # type: ignore[arg-type]
    assert (caught.value.reason, caught.value.detail) == ("malformed_steps", detail)


def test_flags_that_agree() -> None:
    last = bytes([0, 0, 1])
    assert steps_of(bytes([1, 0, 0]), last, last) == 2
    assert steps_of(bytes([0, 0, 0]), last, bytes(3)) == 2
    assert steps_of(bytes([0, 0, 0]), bytes([0, 0, 127]), bytes([0, 0, 2])) == 2
    assert steps_of(None, bytes(3), bytes(3)) == 3
    assert steps_of(b"", b"", b"") == 0


def test_both_readings_of_rewards() -> None:
    rewards = np.array([[0.5, 0.25, 8, 1, 2, 3]], np.float32)  # of three episodes, of which the second has no last step
    begins, stops, ends = np.array([0, 3, 5]), np.array([2, 5, 5]), np.array([3, 5, 6])
    found = {name: column.tolist() for name, column in reward_columns(rewards, begins, stops, ends).items()}
    assert found["rounding"] == [2.0**-25 + 2.0**-26, 2.0**-24 + 2.0**-23, 0.0]
    assert (found["last_reward"][:2], found["last_rounding"][:2]) == ([0.25, 2.0], [2.0**-26, 2.0**-23])
    assert [found[name][::2] for name in ("end_reward", "end_rounding", "end_reward_look")] == [
        [8.0, 3.0],
        [2.0**-21, 2.0**-23],
        ["other", "other"],
    ]
    exact = reward_columns(rewards.astype(np.float64), begins, stops, ends)["rounding"]
    assert exact.tolist() == [0.0, 0.0, 0.0]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=6), st.integers(0, 2**32))
def test_many_episodes_are_looked_at_as_one_is(lengths: list[tuple[int, bool]], seed: int) -> None:
    recorded = np.array([length for length, _ in lengths])
    ends = np.cumsum(recorded)
    begins, stops = ends - recorded, ends - [marked for _, marked in lengths]
    values = np.random.default_rng(seed).choice(
        [-1.5, 0, 0.5, np.nan, np.inf], (2, ends[-1]), p=[0.2, 0.4, 0.2, 0.1, 0.1]
    )
    episodes = [values[:, begin:end].T for begin, end in zip(begins, ends, strict=True)]
    assert looks([values], begins, ends).tolist() == [look([episode]) for episode in episodes]
    source = SourceField(path="action", dtype="float64", shape=(2,))
    pairs = ((-1.0, 0.5),)
    field = MeasuredField(path="action", source=source, kind="continuous", is_action=True, width=2, range=pairs)
    found = measure([values], [field], begins, stops, ends)
    for at, (episode, stop) in enumerate(zip(episodes, stops - begins, strict=True)):
        for prefix, part in (("", episode[:stop]), ("end_", episode[stop:])):
            if len(part):
                np.testing.assert_array_equal(found[prefix + "low"][at], np.min(part, axis=0))
                np.testing.assert_array_equal(found[prefix + "high"][at], np.max(part, axis=0))
        if np.isfinite(episode[:stop]).all():
            outside, at_ends = np.broadcast_arrays(*outside_range(episode[:stop], pairs), np.zeros(2))[:2]
            assert found["outside"][at].tolist() == outside.tolist()
            assert found["at_ends"][at].tolist() == at_ends.tolist()
