"""A limit of returns is compared as the recorder would, whose rewards were rounded to float32."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.episodes.scan import half_ulps, reward_columns, sum_rewards
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.filter import at_or_above, in_range
from gatokit.schemas.where import Rounded, Where


def scanned(rewards: list[float]) -> tuple[np.ndarray, np.ndarray]:
    stored, end = np.array(rewards, np.float32), np.array([len(rewards)])
    rounding = reward_columns(stored[None], np.array([0]), end, end)["rounding"]
    return np.array([sum_rewards(stored, len(stored), len(stored))]), np.array(rounding)


def passes(rewards: list[float], low: float | None, high: float | None) -> bool:
    return bool(in_range(Keep.model_validate({"return": [low, high]}), *scanned(rewards))[0])


@pytest.mark.parametrize("rewards", [[0.7], [0.1] * 7, [0.9], [1, -0.1, -0.1, -0.1], [10] + [-0.1] * 97, [1e6, -0.3]])
def test_a_return_that_the_recorder_calls_equal_is_equal(rewards: list[float]) -> None:
    limit = float(sum(Fraction(str(reward)) for reward in rewards))
    assert passes(rewards, limit, None)
    assert passes(rewards, None, limit)
    returns, rounding = scanned(rewards)
    columns = {"return": Rounded(returns, rounding)}
    for text, expected in [
        (f"return >= {limit!r}", True),
        (f"return <= {limit!r}", True),
        (f"return == {limit!r}", True),
        (f"return in ({limit!r},)", True),
        (f"return > {limit!r}", False),
        (f"return < {limit!r}", False),
        (f"return != {limit!r}", False),
        (f"{limit!r} <= return", True),
    ]:
        assert Where(text).passes(columns, 1).tolist() == [expected]


def test_a_return_that_is_not_equal_is_not() -> None:
    for limit in (0.7, 0.9, 1.0, 123.4):
        below = float(np.nextafter(np.float32(limit), np.float32(0)))
        above = float(np.nextafter(np.float32(limit), np.float32(np.inf)))
        if np.float32(limit) < limit:
            assert not passes([below], limit, None)
        if np.float32(limit) > limit:
            assert not passes([above], None, limit)
    assert not passes([1.0] * 999 + [0.999], 1000, None)


def test_other_rewards_are_exact() -> None:
    assert half_ulps(np.array([0.1, 1.0])).tolist() == [0, 0]
    assert half_ulps(np.array([1, 2])).tolist() == [0, 0]
    assert half_ulps(np.array([1.0, np.nan, np.inf, 0.0], np.float32)).tolist() == [2.0**-24, 0, 0, 2.0**-150]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.sampled_from([np.float32, np.float16]))
def test_half_an_ulp_is_half_the_distance_to_the_next_number(bits: list[int], dtype: type[np.floating]) -> None:
    values = np.array(bits, np.uint32).view(dtype)
    values = values[np.abs(values) < np.finfo(dtype).max]
    np.testing.assert_array_equal(half_ulps(values), np.spacing(np.abs(values)).astype(np.float64) / 2)


@settings(max_examples=100)
@given(st.lists(st.integers(-999, 999), min_size=1, max_size=60), st.sampled_from([10, 100, 1000]))
def test_no_decimal_return_is_lost(numbers: list[int], scale: int) -> None:
    total, rewards = Fraction(sum(numbers), scale), [number / scale for number in numbers]
    assert passes(rewards, float(total), float(total))
    step = Fraction(1, scale)
    assert not passes(rewards, float(total + step), None)
    assert not passes(rewards, None, float(total - step))


def test_a_last_reward() -> None:
    last, rounding = scanned([0.9])
    assert at_or_above(last, 0.9, rounding).tolist() == [True]
    assert at_or_above(last, 0.9001, rounding).tolist() == [False]
