"""Window, expert return and threshold against small cases worked out by hand and a loop in exact sums."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.episodes.filter import expert_return, window
from gatokit.schemas.filter import at_or_above, return_threshold


def best_window(returns: list[float], width: int) -> float:
    """The largest mean of ``width`` consecutive returns, summed exactly."""
    return max(math.fsum(returns[begin : begin + width]) / width for begin in range(len(returns) - width + 1))


@pytest.mark.parametrize(
    ("episodes", "width"),
    [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (29, 2), (30, 3), (9_999, 999), (10_000, 1000), (10_001, 1000)],
)
def test_window(episodes: int, width: int) -> None:
    assert window(episodes) == width


@pytest.mark.parametrize("episodes", [1, 9, 10, 19])
def test_below_twenty_episodes_the_best_single_one_counts(episodes: int) -> None:
    returns = np.zeros(episodes)
    returns[episodes // 2] = 7.5
    assert expert_return(returns) == 7.5


def test_twenty_episodes_count_pairs() -> None:
    returns = np.array([0, 9, 0, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4], float)
    assert expert_return(returns) == 5.5


def test_thirty_episodes_count_triples_at_both_ends() -> None:
    returns = np.zeros(30)
    returns[-3:] = 1, 2, 6
    assert expert_return(returns) == 3.0
    assert expert_return(returns[::-1]) == 3.0


def test_a_window_never_wraps_around() -> None:
    returns = np.zeros(20)
    returns[0] = returns[-1] = 10
    assert expert_return(returns) == 5.0


def test_ten_thousand_and_one_episodes_count_thousands() -> None:
    returns = np.arange(10_001, dtype=float)
    assert expert_return(returns) == sum(range(9_001, 10_001)) / 1000


def test_all_returns_negative() -> None:
    assert expert_return(np.array([-3.0, -1.0, -2.0])) == -1.0


def test_integers_and_float32_are_summed_in_float64() -> None:
    returns = np.full(20, 16_777_217.0)  # no float32
    assert expert_return(returns) == 16_777_217.0
    assert expert_return(np.array([0.1] * 20, np.float32)) == float(np.float32(0.1))


@settings(max_examples=60)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=90))
def test_whole_numbers_agree_exactly_with_the_loop(values: list[int]) -> None:
    returns = [float(value) for value in values]
    assert expert_return(np.array(returns)) == best_window(returns, window(len(values)))


@settings(max_examples=60)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=90))
def test_any_numbers_agree_with_the_loop(values: list[float]) -> None:
    found, exact = expert_return(np.array(values)), best_window(values, window(len(values)))
    # One rounding a doubling, none of which sees more than the absolute sum.
    assert abs(found - exact) <= 1e-15 * max(1.0, math.fsum(map(abs, values)))


@pytest.mark.parametrize("episodes", [630, 1_000, 10_000, 12_345])
def test_wide_windows_agree_with_the_loop(episodes: int) -> None:
    returns = np.random.default_rng(episodes).normal(100, 30, episodes)
    exact = best_window(returns.tolist(), window(episodes))
    assert expert_return(returns) == pytest.approx(exact, rel=1e-14, abs=0)


@pytest.mark.parametrize(
    ("expert", "fraction", "random", "limit"),
    [
        (100.0, 0.8, None, 80.0),
        (-100.0, 0.8, None, -120.0),
        (0.0, 0.8, None, 0.0),
        (10.0, 0.0, None, 0.0),
        (-10.0, 1.0, None, -10.0),
        (-10.0, 0.0, None, -20.0),
        (100.0, 0.8, 20.0, 84.0),
        (-100.0, 0.8, -200.0, -120.0),
        (0.0, 0.5, -50.0, -25.0),
    ],
)
def test_threshold(expert: float, fraction: float, random: float | None, limit: float) -> None:
    assert return_threshold(expert, fraction, random) == pytest.approx(limit, rel=1e-15, abs=0)


@given(st.floats(-1e6, 1e6), st.floats(0, 1))
def test_the_expert_itself_is_always_kept(expert: float, fraction: float) -> None:
    limit = return_threshold(expert, fraction)
    assert at_or_above(np.array([expert]), limit).tolist() == [True]


@given(st.floats(1e-6, 1e6), st.floats(0, 1))
def test_a_positive_expert_gives_the_plain_fraction(expert: float, fraction: float) -> None:
    exact = Fraction(expert) * Fraction(fraction)
    assert abs(Fraction(return_threshold(expert, fraction)) - exact) <= Fraction(expert) / 2**52


def test_equality_is_kept() -> None:
    returns = np.array([80.0, np.nextafter(80.0, 0), 79.999999, 80.1, -80.0])
    assert at_or_above(returns, 80.0).tolist() == [True, True, False, True, False]


def test_tolerance_is_relative_and_one_in_a_thousand_million() -> None:
    for limit in (1e6, -1e6, 1e-6, -1e-6):
        inside, outside = limit - 0.9e-9 * abs(limit), limit - 1.1e-9 * abs(limit)
        assert at_or_above(np.array([inside, outside]), limit).tolist() == [True, False]


def test_a_zero_threshold_has_no_tolerance() -> None:
    assert at_or_above(np.array([0.0, -0.0, -5e-324, 1.0]), 0.0).tolist() == [True, True, False, True]


def test_the_rounding_of_eighty_percent_drops_nobody() -> None:
    expert = 0.7 + 0.1 + 0.2  # 0.9999999999999999
    assert at_or_above(np.array([0.8 * expert]), return_threshold(expert, 0.8)).tolist() == [True]
