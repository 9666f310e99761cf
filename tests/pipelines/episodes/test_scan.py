"""Steps and return of an episode: the last step is padding, and only what is counted has to be finite. The table of a
scan: what is found for many episodes at once is what each of them gives alone."""

import tracemalloc
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.episodes import scan as scan_module
from gatokit.pipelines.episodes.ranges import MeasuredField
from gatokit.pipelines.episodes.reader import SourceField
from gatokit.pipelines.episodes.rlds import ExampleEpisode
from gatokit.pipelines.episodes.scan import SCANNED, ScanFields, scan_table, steps_of, sum_rewards
from gatokit.pipelines.episodes.values import EpisodeValue, EpisodeValues
from gatokit.pipelines.formats.records import ByteRange, Stored
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.manifest import MetadataType


def flags(*values: int) -> np.ndarray:
    return np.array(values, bool)


def steps_and_return(reward: np.ndarray, is_last: np.ndarray) -> tuple[int, float]:
    steps = steps_of(None, is_last.astype(bool).tobytes(), None)
    return steps, sum_rewards(reward, steps, len(is_last))


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("reward", "is_last", "expected"),
    [
        (floats(1, 2, 4), flags(0, 0, 1), (2, 3.0)),
        (floats(1, 2, 4), flags(0, 0, 0), (3, 7.0)),
        (floats(1, 2, np.nan), flags(0, 0, 1), (2, 3.0)),
        (floats(1, 2, -np.inf), flags(0, 0, 1), (2, 3.0)),
        (floats(5), flags(1), (0, 0.0)),
        (floats(5), flags(0), (1, 5.0)),
        (floats(), flags(), (0, 0.0)),
        (np.array([2, 3, 9], np.int64), np.array([0, 0, 1], np.int64), (2, 5.0)),
        (np.array([True, True, True]), flags(0, 0, 1), (2, 2.0)),
    ],
)
def test_steps_and_return(reward: np.ndarray, is_last: np.ndarray, expected: tuple[int, float]) -> None:
    found = steps_and_return(reward, is_last)
    assert found == expected
    assert (type(found[0]), type(found[1])) == (int, float)


@pytest.mark.parametrize(
    ("reward", "is_last", "reason", "detail"),
    [
        (floats(1, np.nan, 4), flags(0, 0, 1), "not_finite", "reward is nan at step 1"),
        (floats(1, 2, np.inf), flags(0, 0, 0), "not_finite", "reward is inf at step 2"),
        (floats(-np.inf, np.nan, 0), flags(0, 0, 1), "not_finite", "reward is -inf at step 0"),
        (floats(1, 2, 4), flags(0, 1, 0), "malformed_steps", "steps follow step 1, which is_last marks"),
        (floats(1, 2, 4), flags(1, 0, 1), "malformed_steps", "steps follow step 0, which is_last marks"),
        (floats(1, 2, 4), flags(0, 1, 1), "malformed_steps", "steps follow step 1, which is_last marks"),
        (floats(1, 2), flags(0, 0, 1), "malformed_steps", "2 rewards and 3 is_last flags"),
        (floats(1, 2, 3), flags(), "malformed_steps", "3 rewards and 0 is_last flags"),
    ],
)
def test_rejections(reward: np.ndarray, is_last: np.ndarray, reason: str, detail: str) -> None:
    with pytest.raises(RejectedError) as caught:
        steps_and_return(reward, is_last)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_the_sum_runs_in_step_order_in_float64() -> None:
    # Pairwise or exact summation would give 1 or 2; one after the other the ones vanish in 2**53.
    reward = np.array([2.0**53, 1.0, 1.0, -(2.0**53), 1.0, 99.0])
    assert steps_and_return(reward, flags(0, 0, 0, 0, 0, 1)) == (5, 1.0)


def test_float32_rewards_are_summed_in_float64() -> None:
    reward = np.full(1001, np.float32(0.1))
    steps, total = steps_and_return(reward, np.arange(1001) == 1000)
    expected = 0.0
    for _ in range(1000):
        expected += float(np.float32(0.1))
    assert (steps, total) == (1000, expected)
    assert total != float(np.float32(100))


@settings(max_examples=60)
@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=300), st.booleans())
def test_the_return_is_the_plain_loop(values: list[float], ends: bool) -> None:
    is_last = np.zeros(len(values), bool)
    is_last[-1] = ends
    expected = 0.0
    for value in values[: len(values) - ends]:
        expected += value
    assert steps_and_return(np.array(values), is_last) == (len(values) - ends, expected)


# --- the table -----------------------------------------------------------------------------------------------------

NUMBER = SourceField(path="number", dtype="int64")


def fields(width: int, keeps_values: bool = False, has_reward: bool = True) -> ScanFields:
    """The fields of episodes with ``width`` components of action in [-1, 1], and a discrete observation."""
    action = SourceField(path="action", dtype="float32", shape=(width,))
    count = SourceField(path="observation/count", dtype="int64")
    return ScanFields(
        reward=SourceField(path="reward", dtype="float32") if has_reward else None,
        is_first=None,
        is_last=SourceField(path="is_last", dtype="bool"),
        is_terminal=None,
        values=EpisodeValues(order=EpisodeValue(source=NUMBER), metadata=(("number", NUMBER),)),
        measured=(
            MeasuredField(
                path="action",
                source=action,
                kind="continuous",
                is_action=True,
                width=width,
                range=((-1.0, 1.0),),
                keeps_values=keeps_values,
            ),
            MeasuredField(path="observation/count", source=count, kind="discrete", is_action=False, width=1),
        ),
    )


def stored(position: int, actions: list[list[float]], rewards: list[float], ends: bool, number: int | None) -> Any:
    """An episode whose last step ``is_last`` marks if it ``ends``; its counts are 10, 11, …"""
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

    example = Example()
    lists = example.features.feature
    lists["steps/action"].float_list.value.extend(value for action in actions for value in action)
    lists["steps/reward"].float_list.value.extend(rewards)
    lists["steps/observation/count"].int64_list.value.extend(range(10, 10 + len(actions)))
    lists["steps/is_last"].int64_list.value.extend([0] * len(actions))
    if actions and ends:
        lists["steps/is_last"].int64_list.value[-1] = 1
    if number is not None:
        lists["number"].int64_list.value.append(number)
    return Stored(ByteRange(position, 100 * position, 100, 7), ExampleEpisode(example.SerializeToString()))


def test_the_rows_of_a_table() -> None:
    known = {"file": 3, "task": "walk", "agent": ""}
    damaged = Stored(ByteRange(2, 200, 9, 1), None, "corrupt_record", "no tf.train.Example")
    table = scan_table(
        [
            (known, fields(2, keeps_values=True), stored(0, [[0, 1], [0.5, -2], [0, 0]], [1, 2, 8], True, 5)),
            (known, fields(1), stored(1, [[0.25]], [4], False, None)),
            (known, fields(1), damaged),
            (known, fields(1), stored(3, [[0.5], [0.5]], [4], False, 6)),
            (known, fields(1, has_reward=False), stored(4, [[0.5], [0.5]], [], True, 7)),
        ],
        {"number": "int64"},
    )
    assert table.schema == pa.schema([*SCANNED, pa.field("metadata/number", pa.int64())])
    assert table.to_pydict() == {
        "file": [3] * 5,
        "position": [0, 1, 2, 3, 4],
        "offset": [0, 100, 200, 300, 400],
        "length": [100, 100, 9, 100, 100],
        "crc": [7, 7, 1, 7, 7],
        "task": ["walk"] * 5,
        "agent": [""] * 5,
        "id": [None] * 5,
        "order": [5.0, pytest.approx(np.nan, nan_ok=True), pytest.approx(np.nan, nan_ok=True), 6.0, 7.0],
        "success": [None] * 5,
        "steps": [2, None, None, 2, 1],
        "return": [3.0, *[pytest.approx(np.nan, nan_ok=True)] * 3, None],
        "rounding": [2.0**-24 + 2.0**-23, None, None, None, None],
        "last_reward": [2.0, None, None, None, None],
        "last_rounding": [2.0**-23, None, None, None, None],
        "end_reward": [8.0, None, None, None, None],
        "end_rounding": [2.0**-21, None, None, None, None],
        "end_reward_look": ["other", None, None, None, None],
        "end_action": ["zero", None, None, None, "copy"],
        "reason": [None, "missing_field", "corrupt_record", "malformed_steps", None],
        "detail": [
            None,
            "number is absent from the episode",
            "no tf.train.Example",
            "1 rewards and 2 is_last flags",
            None,
        ],
        "lost": [1] * 5,
        "lost_bytes": [0] * 5,
        "low": [[0.0, -2.0, 10.0], None, None, None, [0.5, 10.0]],
        "high": [[0.5, 1.0, 11.0], None, None, None, [0.5, 10.0]],
        "end_low": [[0.0, 0.0, 12.0], None, None, None, [0.5, 11.0]],
        "end_high": [[0.0, 0.0, 12.0], None, None, None, [0.5, 11.0]],
        "outside": [[0, 1, 0], None, None, None, [0, 0]],
        "at_ends": [[0, 2, 0], None, None, None, [0, 0]],
        "values": [[0.0, 1.0, 0.5, -2.0], None, None, None, None],
        "metadata/number": [5, None, None, 6, 7],
    }


EPISODES = st.tuples(
    st.lists(st.lists(st.sampled_from([-1.5, -1, 0, 0.5, 1, np.nan]), min_size=2, max_size=2), max_size=4),
    st.lists(st.sampled_from([-1.0, 0, 0.1, 2.5, np.inf]), max_size=1),
    st.booleans(),
    st.integers(0, 2),
)


@settings(max_examples=60)
@given(st.lists(EPISODES, min_size=1, max_size=6), st.sampled_from([1, 2, 3, 1 << 12]), st.sampled_from([1, 2, 32]))
def test_a_table_of_many_episodes_is_the_tables_of_each(
    episodes: Sequence[tuple[Any, ...]], batch_rows: int, joined_batches: int
) -> None:
    kinds = [fields(2), fields(2, keeps_values=True), fields(2, has_reward=False)]
    items = [
        ({"file": 0, "task": "walk"}, kinds[kind], stored(at, actions, rewards * len(actions), ends, at))
        for at, (actions, rewards, ends, kind) in enumerate(episodes)
    ]
    types: dict[str, MetadataType] = {"number": "int64"}
    joined = pa.concat_tables([scan_table([item], types) for item in items], promote_options="permissive")
    with mock.patch.multiple(scan_module, _BATCH_ROWS=batch_rows, _JOINED_BATCHES=joined_batches):
        table = scan_table(items, types)
    assert repr(table.to_pylist()) == repr(joined.to_pylist())
    assert table["file"].num_chunks == -(-len(items) // (batch_rows * joined_batches))


def test_scanned_rows_take_the_memory_of_their_columns() -> None:
    known, read = {"file": 0, "task": "walk"}, fields(2)

    def peak(count: int) -> int:
        episodes = ((known, read, stored(at, [[0, 1]] * 2, [0.0] * 2, True, at)) for at in range(count))
        tracemalloc.start()
        try:
            with mock.patch.multiple(scan_module, _BATCH_ROWS=64, _JOINED_BATCHES=16):
                table = scan_table(episodes, {"number": "int64"})
            assert table.num_rows == count
            assert table.nbytes <= 330 * count  # 172 of SCANNED, 8 of metadata, 48 of each measured value
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1 << 8)
    # Values of Python would be 1500 bytes a row, and NumPy's arrays, which batches have before they are joined, 200.
    assert peak(1 << 12) - peak(1 << 10) < 50 * 3 * (1 << 10)


def test_a_table_of_no_episode() -> None:
    assert scan_table([], {"name": "string"}).to_pydict() == {name: [] for name in [*SCANNED.names, "metadata/name"]}
