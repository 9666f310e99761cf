"""Mu-law companding, its inverse, and the 1,024 uniform bins over [-1, 1] (Gato, appendix B).

Observations are nearly always float32, so each of them gets its bin by one table look-up, which equals float64
arithmetic for every float32. A float32 is a cell (its upper 16 bits: sign, exponent, 7 bits of mantissa) and an offset
in it (the lower 16). Mu-law bins are so wide for their cells that no cell holds two bin edges, so a cell needs its
first id and the offset of its edge. Both fit one uint32, arranged so that adding the offset carries into the upper half
at the edge.

Legend: S time steps, N components of one step.
"""

import functools

import numpy as np

from gatokit.schemas.tokens import BINS, CONTINUOUS_OFFSET

MU = 100.0
M = 256.0
"""The magnitude that F maps to 1; larger ones saturate."""

_CELLS = 1 << 15  # of either sign
_CELL = 1 << 16
_FIRST_NOT_FINITE = 0x7F80
_NOT_FINITE = np.uint32(0xFFFF_0000)


def compand(values: np.ndarray) -> np.ndarray:
    """F(x) = sgn(x) · log(|x|·100 + 1) / log(256·100 + 1), float64; not clipped: |F| > 1 where |x| > 256."""
    exact = np.asarray(values, np.float64)
    return np.copysign(np.log(np.abs(exact) * MU + 1.0) / np.log(M * MU + 1.0), exact)


def expand(companded: np.ndarray) -> np.ndarray:
    """The inverse of F, float64."""
    exact = np.asarray(companded, np.float64)
    return np.copysign(((M * MU + 1.0) ** np.abs(exact) - 1.0) / MU, exact)


def bins(values: np.ndarray) -> np.ndarray:
    """The bin of finite float64 values, clipped to [-1, 1], as float64 integers in [0, 1024).

    floor((x + 1) · 512), except that x = 1 belongs to the last bin.
    """
    scaled = values + 1.0
    scaled *= BINS / 2
    np.maximum(scaled, 0.0, out=scaled)
    np.minimum(scaled, BINS - 1.0, out=scaled)
    return np.floor(scaled, out=scaled)


def centres(numbers: np.ndarray) -> np.ndarray:
    """The centre in [-1, 1] of bins, float64: at most 1/1024 from every value of the bin."""
    return (2.0 * numbers + 1.0) / BINS - 1.0


def float32_ids(values: np.ndarray, out: np.ndarray) -> bool:
    """Writes the ids of C-contiguous float32 observations (S, N) to ``out``, uint16 (S, N), which may be strided.

    Returns False and leaves ``out`` untouched if a value is NaN or infinite.
    """
    if not values.size:
        return True
    bits = values.view(np.int32)
    sums = _table().take(values.view(np.uint32) >> 16, mode="wrap")
    # abs() counts a negative float's magnitude downwards from 2**31, so that one addition serves both signs.
    np.add(sums, np.abs(bits).view(np.uint32), out=sums)
    if sums.max() >= _NOT_FINITE:
        return False
    np.right_shift(sums, 16, out=sums)
    out[...] = sums
    return True


@functools.cache
def edges() -> np.ndarray:
    """For every bin from 1 to 1023 its smallest float32 as a key, int64 (1023,), found by bisection.

    A key numbers the finite float32 in the order of their values: the bits of a positive float, minus the bits
    of its magnitude for a negative one.
    """
    wanted = np.arange(1, BINS)
    above = np.full(BINS - 1, int(np.finfo(np.float32).max.view(np.int32)))  # always in its bin or a later one
    below = -above  # always in an earlier bin
    while (above - below).max() > 1:
        middle = (above + below) // 2
        reached = bins(compand(floats(middle))) >= wanted
        above = np.where(reached, middle, above)
        below = np.where(reached, below, middle)
    return above


def floats(keys: np.ndarray) -> np.ndarray:
    """The float32 of keys."""
    magnitude = np.abs(keys).astype(np.uint32).view(np.float32)
    return np.where(keys < 0, -magnitude, magnitude)


@functools.cache
def _table() -> np.ndarray:
    """uint32 (65536,): the number that, added to abs(bits as int32), has a float's id in its upper half."""
    start = np.arange(_CELLS, dtype=np.int64) * _CELL  # the smallest magnitude of each cell
    first, last = _id(start), _id(start + _CELL - 1)
    edge = np.where(first < last, edges()[np.minimum(first - CONTINUOUS_OFFSET, BINS - 2)] - start, _CELL)
    positive = first * _CELL + (_CELL - edge) - start

    first_negative, last_negative = _id(-start), _id(-start - _CELL + 1)
    under = edges()[np.maximum(first_negative - CONTINUOUS_OFFSET, 1) - 1]
    stays = np.where(first_negative > last_negative, -under - start, _CELL - 1)  # the last offset before the edge
    negative = first_negative * _CELL + stays + start - (1 << 31)

    finite = slice(0, _FIRST_NOT_FINITE)
    assert (last - first)[finite].max() <= 1, "a cell of positive floats holds two bin edges"
    assert (first_negative - last_negative)[finite].max() <= 1, "a cell of negative floats holds two bin edges"
    not_finite = slice(_FIRST_NOT_FINITE, None)
    positive[not_finite] = int(_NOT_FINITE) - start[not_finite]
    negative[not_finite] = int(_NOT_FINITE) + _CELL - 1 + start[not_finite] - (1 << 31)
    return (np.concatenate([positive, negative]) % (1 << 32)).astype(np.uint32)


def _id(keys: np.ndarray) -> np.ndarray:
    return CONTINUOUS_OFFSET + np.searchsorted(edges(), keys, side="right")
