"""Which episodes stay. A rule sees the returns and marks of one task's sound episodes and says which it keeps.

A new rule is a function here, an entry in ``RULES`` and a key of ``schemas.config.Keep``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gatokit.schemas.config import Keep
from gatokit.schemas.returns import reaches, threshold


@dataclass(frozen=True)
class Candidates:
    """The episodes of one task whose rewards parse and are finite, in source order.

    ``returns`` is float64 (N,), ``success`` bool (N,) or None where the config names no mark.
    """

    task: str
    returns: np.ndarray
    success: np.ndarray | None
    expert_return: float


@dataclass(frozen=True)
class Verdict:
    """``kept`` is bool (N,); every other episode is dropped with ``reason``; ``threshold`` where there is one."""

    kept: np.ndarray
    reason: str
    threshold: float | None


def keep_min_return(keep: Keep, candidates: Candidates) -> Verdict:
    """Returns of at least ``min_return`` of the windowed expert return."""
    random = keep.random_return
    if isinstance(random, dict):
        random = random.get(candidates.task)
    limit = threshold(candidates.expert_return, keep.min_return or 0.0, random)
    return Verdict(reaches(candidates.returns, limit), "below_threshold", limit)


def keep_all(keep: Keep, candidates: Candidates) -> Verdict:
    """Everything that is sound."""
    return Verdict(np.ones(len(candidates.returns), bool), "below_threshold", None)


def keep_success(keep: Keep, candidates: Candidates) -> Verdict:
    """Episodes whose metadata marks them as successes."""
    assert candidates.success is not None
    return Verdict(candidates.success, "not_success", None)


RULES: dict[str, Callable[[Keep, Candidates], Verdict]] = {
    "min_return": keep_min_return,
    "all": keep_all,
    "success": keep_success,
}


def judge(keep: Keep, candidates: Candidates) -> Verdict:
    """The verdict of the rule that the config names."""
    name = next(name for name in RULES if getattr(keep, name) is not None)
    return RULES[name](keep, candidates)
