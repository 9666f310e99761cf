"""Steps and return of an episode: the last step is padding, and only what is counted has to be finite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.episodes.scan import steps_of, sum_rewards
from gatokit.schemas.errors import RejectedError


def flags(*values: int) -> np.ndarray:
    return np.array(values, bool)


def steps_and_return(reward: np.ndarray, is_last: np.ndarray) -> tuple[int, float]:
    steps = steps_of(None, is_last, None)
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
