"""The threshold of ``min_return``: the build applies it, and inspection asks what another one would keep."""

import numpy as np

TOLERANCE = 1e-9
"""Relative: a return this close below the threshold is kept, so that rounding drops nobody."""


def threshold(expert: float, fraction: float, random: float | None = None) -> float:
    """The smallest return to keep.

    Counted from zero it is E - (1 - fraction) |E|, which is fraction * E for E >= 0 and stays below E for a
    negative one; with the return of a random policy it is random + fraction (E - random).
    """
    if random is not None:
        return random + fraction * (expert - random)
    return expert - (1 - fraction) * abs(expert)


def reaches(returns: np.ndarray, limit: float | np.ndarray) -> np.ndarray:
    """Which returns, float64 (N,), are at or above ``limit`` (one, or one each), equality kept: bool (N,)."""
    reached: np.ndarray = returns >= limit - TOLERANCE * np.abs(limit)
    return reached
