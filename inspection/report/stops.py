"""What every threshold of a slider would keep, in exact counts that add up from stop to stop.

Legend: R rows of one task, K stops.
"""

from dataclasses import dataclass

import numpy as np

from gatokit.schemas.config import Keep
from gatokit.schemas.filter import TOLERANCE, return_threshold

STEPS = 200
"""Between two stops lies this part of one."""
FRACTIONS = tuple(stop / STEPS for stop in range(STEPS + 1))
"""The fractions of the expert return at which counts are known."""


@dataclass(frozen=True)
class Stops:
    """Sums over what ``keep: {min_return: F}`` keeps of a task, each int64 (K,), for K fractions F.

    ``episodes`` and ``steps`` are of all that is kept, ``tokens`` of those whose tokens are stored, and
    ``unstored_steps`` are the steps of the others.
    """

    episodes: np.ndarray
    steps: np.ndarray
    tokens: np.ndarray
    unstored_steps: np.ndarray


def bounds(keep: Keep, task: str, expert_return: float) -> np.ndarray | None:
    """The lowest return that each fraction keeps, float64 (K,); None where ``keep`` counts from the returns of random
    policies and names none for the task."""
    if isinstance(keep.random_return, dict) and task not in keep.random_return:
        return None
    random = random_return(keep, task)
    limits = np.array([return_threshold(expert_return, fraction, random) for fraction in FRACTIONS])
    return limits - TOLERANCE * np.abs(limits)


def random_return(keep: Keep, task: str) -> float | None:
    """The return of a random policy that fractions count from; None where they count from zero."""
    return keep.random_return.get(task) if isinstance(keep.random_return, dict) else keep.random_return


def stops(lowest: np.ndarray, returns: np.ndarray, steps: np.ndarray, tokens: np.ndarray) -> Stops:
    """The sums over rows that may be kept: ``returns`` float64 (R,), ``steps`` int64 (R,), ``tokens`` int64 (R,), -1
    where nothing is stored."""
    order = np.argsort(lowest, kind="stable")
    # A row is kept by the stops whose bound it reaches: the first so many of the ascending ones.
    reached = np.searchsorted(lowest[order], returns, side="right")
    stored = tokens >= 0
    return Stops(
        episodes=_sums(reached, np.ones(len(reached), np.int64), order),
        steps=_sums(reached, steps, order),
        tokens=_sums(reached, np.where(stored, tokens, 0), order),
        unstored_steps=_sums(reached, np.where(stored, 0, steps), order),
    )


def _sums(reached: np.ndarray, weights: np.ndarray, order: np.ndarray) -> np.ndarray:
    """By stop the sum of the weights, int64 (R,), of the rows that reach it."""
    last = np.zeros(len(order) + 1, np.int64)
    np.add.at(last, reached, weights)
    sums = np.empty(len(order), np.int64)
    sums[order] = last[::-1].cumsum()[::-1][1:]
    return sums
