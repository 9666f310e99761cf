"""Which episodes a build keeps. A rule sees the episodes of one task and says which of them pass.

The build applies the rules, and inspection asks what other rules would keep. A new rule is a case of ``_passes``, an
entry in ``RULES``, a key of ``schemas.config.Keep`` and a reason in ``schemas.index``.

Legend: N episodes of one task.
"""

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from gatokit.schemas.config_episodes import Keep

TOLERANCE = 1e-9
"""Relative: a return this close below the threshold is kept, so that rounding drops no episode."""


@dataclass(frozen=True)
class Candidates:
    """The episodes of one task whose rewards parse and are finite, in source order.

    ``returns`` is float64 (N,), ``rounding`` as in ``in_range``. The other arrays are (N,), and None if no rule
    needs them. ``success``, ``where`` and ``listed`` are bool: what the source's mark, the expression and the list say
    of each episode. ``hashes`` is uint64 (``sample_hash``). ``by`` is float64, NaN where unknown: the highest values
    are the best. ``playable`` is false if no step has an action: such an episode is never among the best and never in a
    sample.
    """

    task: str
    returns: np.ndarray
    expert_return: float
    playable: np.ndarray | None = None
    success: np.ndarray | None = None
    where: np.ndarray | None = None
    listed: np.ndarray | None = None
    hashes: np.ndarray | None = None
    rounding: np.ndarray | None = None
    by: np.ndarray | None = None


@dataclass(frozen=True)
class FilterOutcome:
    """What the rules decide: ``kept`` is bool (N,), ``threshold`` that of ``min_return``.

    ``failed`` is int8 (N,): the index in ``FILTER_REASONS`` of the first rule that the episode fails, -1 if it is kept.
    """

    kept: np.ndarray
    failed: np.ndarray
    threshold: float | None


def return_threshold(expert: float, fraction: float, random: float | None = None) -> float:
    """The smallest return to keep.

    Counted from zero it is E - (1 - fraction) |E|, which is fraction * E for E >= 0 and stays below E for a
    negative one; with the return of a random policy it is random + fraction (E - random).
    """
    if random is not None:
        return random + fraction * (expert - random)
    return expert - (1 - fraction) * abs(expert)


def float32_rounding(returns: np.ndarray) -> np.ndarray:
    """How far returns, float64 (N,), may be from those of the recorder, whose rewards were rounded to float32 and have
    one sign: half an ulp. Where only an index is known, this stands for the sum that a scan makes."""
    return np.abs(returns) * 2.0**-24


def at_or_above(returns: np.ndarray, limit: float | np.ndarray, rounding: np.ndarray | None = None) -> np.ndarray:
    """Which returns, float64 (N,), are at or above ``limit`` (one number, or one for each return): bool (N,).

    ``rounding`` is as in ``in_range``. A threshold that follows from the returns themselves needs none.
    """
    slack = 0.0 if rounding is None else rounding
    reached: np.ndarray = returns + slack >= limit - TOLERANCE * np.abs(limit)
    return reached


def min_return_threshold(keep: Keep, task: str, expert_return: float) -> float | None:
    """The smallest return that ``min_return`` keeps of a task; None if ``keep`` does not have this rule."""
    if keep.min_return is None:
        return None
    random = keep.random_return
    return return_threshold(expert_return, keep.min_return, random.get(task) if isinstance(random, dict) else random)


def in_range(keep: Keep, returns: np.ndarray, rounding: np.ndarray | None = None) -> np.ndarray:
    """Which returns, float64 (N,), lie within ``keep.returns``, both ends included: bool (N,).

    A return that differs from an end only as float32 rounds its rewards is equal to it. ``rounding``, float64 (N,), is
    the sum of half an ulp of each reward; None: rewards are exact.
    """
    assert keep.returns is not None
    slack = 0.0 if rounding is None else rounding
    low, high = keep.returns
    above: np.ndarray = returns + slack >= (-math.inf if low is None else low)
    return above & (returns - slack <= (math.inf if high is None else high))


def _passes(rule: str, keep: Keep, episodes: Candidates, left: np.ndarray) -> Any:
    """The episodes that pass one rule, bool (N,); ``left``, bool (N,), are those that the rules before it have left."""
    amount = getattr(keep, rule)
    match rule:
        case "success":
            return episodes.success
        case "min_return":
            limit: Any = min_return_threshold(keep, episodes.task, episodes.expert_return)
            return at_or_above(episodes.returns, limit)
        case "returns":
            return in_range(keep, episodes.returns, episodes.rounding)
        case "where":
            return episodes.where
        case "episodes":
            return episodes.listed
        case "best":
            values = episodes.returns if episodes.by is None else episodes.by
            return _lowest(left & ~np.isnan(values), -values, amount)
        case "sample":
            assert episodes.hashes is not None
            if isinstance(amount, int):
                return _lowest(left, episodes.hashes, amount)
            # A share takes every hash below it, and at least the lowest.
            return _lowest(left, episodes.hashes, 1) | (episodes.hashes < np.uint64(amount * 2.0**64))


RULES = {
    "success": "not_success",
    "min_return": "below_threshold",
    "returns": "outside_range",
    "where": "not_where",
    "episodes": "not_listed",
    "best": "not_best",
    "sample": "not_sampled",
}
"""For each field of ``Keep`` that is a rule: the reason for dropping. The rules are applied in this order."""
FILTER_REASONS = tuple(RULES.values())


def apply_rules(keep: Keep, candidates: Candidates) -> FilterOutcome:
    """Applies all rules of the config, one after the other; each sees what those before it have left."""
    total = len(candidates.returns)
    playable = np.ones(total, bool) if candidates.playable is None else candidates.playable
    left, failed = np.ones(total, bool), np.full(total, -1, np.int8)
    for number, rule in enumerate(RULES):
        if getattr(keep, rule) is not None:
            passes = _passes(rule, keep, candidates, left & playable)
            failed[left & ~passes] = number
            left &= passes
    return FilterOutcome(left, failed, min_return_threshold(keep, candidates.task, candidates.expert_return))


def sample_hash(seed: int, id_: str) -> int:
    """64 bits that decide if a sample takes an episode. They are independent of those that decide what is held out."""
    return int.from_bytes(hashlib.blake2b(f"sample\0{seed}\0{id_}".encode(), digest_size=8).digest(), "big")


def _lowest(left: np.ndarray, keys: np.ndarray, amount: int | float) -> np.ndarray:
    """The ``amount`` (a number, or a share that is rounded up) of those left with the lowest keys, bool (N,); of equal
    keys the first."""
    among = np.flatnonzero(left)
    # The share is the decimal number that was written: 0.07 of 100 is 7.
    count = amount if isinstance(amount, int) else math.ceil(Fraction(repr(amount)) * len(among))
    chosen = np.zeros(len(left), bool)
    chosen[among[np.argsort(keys[among], kind="stable")[:count]]] = True
    return chosen
