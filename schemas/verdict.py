"""Which episodes stay. A rule sees one task's episodes and says which pass it; the build applies the rules, and
inspection asks what others would keep.

A new rule is a function here, an entry in ``RULES``, a key of ``schemas.config.Keep`` and a word in ``schemas.index``.

Legend: N episodes of one task.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gatokit.schemas.config import Keep
from gatokit.schemas.returns import reaches, threshold


@dataclass(frozen=True)
class Candidates:
    """The episodes of one task whose rewards parse and are finite, in source order.

    ``returns`` is float64 (N,). The others are (N,) and None where no rule asks for them: ``success``, ``where`` and
    ``listed`` are bool, marks of the source, of the expression and of the list; ``hashes`` is uint64 (``sample_hash``).
    ``playable`` is false where no step has an action; such an episode takes no place among the best or in a sample.
    """

    task: str
    returns: np.ndarray
    expert_return: float
    playable: np.ndarray | None = None
    success: np.ndarray | None = None
    where: np.ndarray | None = None
    listed: np.ndarray | None = None
    hashes: np.ndarray | None = None


@dataclass(frozen=True)
class Verdict:
    """``kept`` is bool (N,). ``failed``, int8 (N,), is the place in ``REASONS`` of why another is dropped, by the first
    of its rules that it fails, and -1 of those kept. ``threshold`` is that of ``min_return``."""

    kept: np.ndarray
    failed: np.ndarray
    threshold: float | None


def limit_of(keep: Keep, task: str, expert_return: float) -> float | None:
    """The smallest return that ``min_return`` keeps of a task; None where the rule is not among those of ``keep``."""
    if keep.min_return is None:
        return None
    random = keep.random_return
    return threshold(expert_return, keep.min_return, random.get(task) if isinstance(random, dict) else random)


def _success(keep: Keep, candidates: Candidates, left: np.ndarray) -> np.ndarray:
    """Episodes whose metadata marks them as successes."""
    assert candidates.success is not None
    return candidates.success


def _min_return(keep: Keep, candidates: Candidates, left: np.ndarray) -> np.ndarray:
    """Returns of at least ``min_return`` of the windowed expert return."""
    limit = limit_of(keep, candidates.task, candidates.expert_return)
    assert limit is not None
    return reaches(candidates.returns, limit)


def _return(keep: Keep, candidates: Candidates, left: np.ndarray) -> np.ndarray:
    """Returns within the range, its ends included."""
    return in_range(keep, candidates.returns)


def _where(keep: Keep, candidates: Candidates, left: np.ndarray) -> np.ndarray:
    """Episodes for which the expression is true."""
    assert candidates.where is not None
    return candidates.where


def _listed(keep: Keep, candidates: Candidates, left: np.ndarray) -> np.ndarray:
    """Episodes that the list names."""
    assert candidates.listed is not None
    return candidates.listed


def _best(keep: Keep, candidates: Candidates, left: np.ndarray) -> np.ndarray:
    """The highest returns of those left; of equal ones the first in source order."""
    assert keep.best is not None
    return _first(left, -candidates.returns, keep.best)


def _sample(keep: Keep, candidates: Candidates, left: np.ndarray) -> np.ndarray:
    """Of a number the lowest hashes of those left; of a share every hash below it, and at least the lowest."""
    assert keep.sample is not None
    assert candidates.hashes is not None
    if isinstance(keep.sample, int):
        return _first(left, candidates.hashes, keep.sample)
    return _first(left, candidates.hashes, 1) | (candidates.hashes < np.uint64(keep.sample * 2.0**64))


def in_range(keep: Keep, returns: np.ndarray) -> np.ndarray:
    """Which returns, float64 (N,), lie within ``keep.returns``, its ends included: bool (N,)."""
    assert keep.returns is not None
    low, high = keep.returns
    within: np.ndarray = (returns >= (-math.inf if low is None else low)) & (
        returns <= (math.inf if high is None else high)
    )
    return within


RULES: dict[str, tuple[str, Callable[[Keep, Candidates, np.ndarray], np.ndarray]]] = {
    "success": ("not_success", _success),
    "min_return": ("below_threshold", _min_return),
    "returns": ("outside_range", _return),
    "where": ("not_where", _where),
    "episodes": ("not_listed", _listed),
    "best": ("not_best", _best),
    "sample": ("not_sampled", _sample),
}
"""By field of ``Keep`` the reason for dropping and the rule, in the order in which they are applied."""

REASONS: Sequence[str] = tuple(reason for reason, _ in RULES.values())


def judge(keep: Keep, candidates: Candidates) -> Verdict:
    """The verdict of all rules that the config names; each sees what those before it have left."""
    total = len(candidates.returns)
    playable = np.ones(total, bool) if candidates.playable is None else candidates.playable
    left, failed = np.ones(total, bool), np.full(total, -1, np.int8)
    for place, (key, (_, rule)) in enumerate(RULES.items()):
        if getattr(keep, key) is not None:
            passes = rule(keep, candidates, left & playable)
            failed[left & ~passes] = place
            left &= passes
    return Verdict(left, failed, limit_of(keep, candidates.task, candidates.expert_return))


def sample_hash(seed: int, id_: str) -> int:
    """64 bits that decide whether a sample takes an episode; not those that decide what is held out."""
    return int.from_bytes(hashlib.blake2b(f"sample\0{seed}\0{id_}".encode(), digest_size=8).digest(), "big")


def _first(left: np.ndarray, keys: np.ndarray, amount: int | float) -> np.ndarray:
    """The ``amount`` (a number, or a share that is rounded up) of those left with the lowest keys, bool (N,); of equal
    keys the first."""
    among = np.flatnonzero(left)
    # The share is the decimal number that was written: 0.07 of 100 is 7.
    count = amount if isinstance(amount, int) else math.ceil(Fraction(repr(amount)) * len(among))
    chosen = np.zeros(len(left), bool)
    chosen[among[np.argsort(keys[among], kind="stable")[:count]]] = True
    return chosen
