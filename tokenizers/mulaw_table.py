"""The bin of every float32 observation by one table look-up, equal to float64 arithmetic for each of them.

A float32 is a cell (its upper 16 bits: sign, exponent, 7 bits of mantissa) and an offset in it (the lower 16).
Mu-law bins are so wide for their cells that no cell holds two bin edges, so a cell needs its first id and the
offset of its edge. Both fit one uint32, arranged so that adding the offset carries into the upper half at the
edge.

Legend: S time steps, N components of one step.
"""

import functools

import numpy as np

from gatokit.schemas.tokens import BINS, CONTINUOUS_OFFSET
from gatokit.tokenizers.mulaw import bins, compand

_CELLS = 1 << 15  # of either sign
_CELL = 1 << 16
_FIRST_NOT_FINITE = 0x7F80
_NOT_FINITE = np.uint32(0xFFFF_0000)


def float32_ids(values: np.ndarray, out: np.ndarray) -> bool:
    """Writes the ids of C-contiguous float32 observations (S, N) to ``out``, uint16 (S, N), maybe strided.

    Returns False, with ``out`` untouched, where a value is NaN or infinite.
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
    above = np.full(BINS - 1, _key(np.finfo(np.float32).max))  # always in its bin or a later one
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


def _key(value: np.float32) -> int:
    bits = int(np.float32(value).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFF_FFFF)


@functools.cache
def _table() -> np.ndarray:
    """uint32 (65536,): what, added to abs(bits as int32), has a float's id in its upper half."""
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
    broken = slice(_FIRST_NOT_FINITE, None)
    positive[broken] = int(_NOT_FINITE) - start[broken]
    negative[broken] = int(_NOT_FINITE) + _CELL - 1 + start[broken] - (1 << 31)
    return (np.concatenate([positive, negative]) % (1 << 32)).astype(np.uint32)


def _id(keys: np.ndarray) -> np.ndarray:
    return CONTINUOUS_OFFSET + np.searchsorted(edges(), keys, side="right")
