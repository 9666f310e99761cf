"""What every stop of the page's threshold slider would keep, in exact counts.

Legend: R rows of one task, K stops.
"""

from dataclasses import dataclass

import numpy as np

from gatokit.schemas.config import Keep
from gatokit.schemas.filter import TOLERANCE, return_threshold

STEPS = 200
"""Stops between the fractions 0 and 1."""
FRACTIONS = tuple(stop / STEPS for stop in range(STEPS + 1))
"""The fractions of the expert return at the K stops."""


@dataclass(frozen=True)
class Stops:
    """Sums over the rows of a task that ``keep: {min_return: F}`` keeps, each int64 (K,), for K fractions F.

    ``episodes`` and ``steps`` are sums over all of them, ``tokens`` over those whose tokens are stored, and
    ``unstored_steps`` over the others.
    """

    episodes: np.ndarray
    steps: np.ndarray
    tokens: np.ndarray
    unstored_steps: np.ndarray


def bounds(keep: Keep, task: str, expert_return: float) -> np.ndarray | None:
    """The lowest return that each fraction keeps, float64 (K,).

    None if ``keep`` counts fractions from the returns of random policies and has none for the task.
    """
    random = random_return(keep, task)
    if random is None and isinstance(keep.random_return, dict):
        return None
    limits = np.array([return_threshold(expert_return, fraction, random) for fraction in FRACTIONS])
    return limits - TOLERANCE * np.abs(limits)


def random_return(keep: Keep, task: str) -> float | None:
    """The return of a random policy that fractions count from; None if they count from zero."""
    return keep.random_return.get(task) if isinstance(keep.random_return, dict) else keep.random_return


def stops(lowest: np.ndarray, returns: np.ndarray, steps: np.ndarray, tokens: np.ndarray) -> Stops:
    """The sums at each bound of ``lowest``, float64 (K,), over rows that may be kept.

    ``returns`` are float64 (R,), ``steps`` and ``tokens`` int64 (R,); -1 tokens if none are stored.
    """
    order = np.argsort(lowest, kind="stable")
    # A row that reaches n bounds is kept by the n lowest.
    reached = np.searchsorted(lowest[order], returns, side="right")

    def sums(amounts: np.ndarray) -> np.ndarray:
        of_reached = np.zeros(len(order) + 1, np.int64)
        np.add.at(of_reached, reached, amounts)
        by_stop = np.empty(len(order), np.int64)
        by_stop[order] = of_reached[::-1].cumsum()[::-1][1:]
        return by_stop

    is_stored = tokens >= 0
    return Stops(
        episodes=sums(np.ones(len(reached), np.int64)),
        steps=sums(steps),
        tokens=sums(np.where(is_stored, tokens, 0)),
        unstored_steps=sums(np.where(is_stored, 0, steps)),
    )
