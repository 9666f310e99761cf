"""The values of one tensor field ↔ its ids (Gato, section 2.1 and appendix B).

Discrete values and booleans are integers in [0, 1024), after the field's own lowest value was subtracted; their id is
the value plus the build's offset. Continuous
observations are companded by a mu-law; continuous actions are rescaled from their range to [-1, 1] and never companded;
then both are clipped to [-1, 1] and fall into 1,024 uniform bins. The kind of a field decides, never its data, so that
a number has one id. The id is the one that float64 arithmetic gives on the stored value.

Legend: S time steps, N components of one step in row-major order.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.manifest import FieldSpec
from gatokit.schemas.tokens import BINS, CONTINUOUS_OFFSET, DISCRETE_VALUES

Pairs = tuple[tuple[float, float], ...]
"""``(low, high)`` of a continuous action: one pair for all components, or one each."""

MU = 100.0
M = 256.0
"""The magnitude that F maps to 1; larger ones saturate."""

_UNIT: Pairs = ((-1.0, 1.0),)
_DTYPE_KINDS = {"continuous": "fiub", "discrete": "iub"}
_CACHED_VALUES = 32_768
"""Values that are converted at once, so that intermediate arrays stay in the cache and memory stays flat."""


class TensorTokenizer:
    """Encodes and decodes one discrete or continuous field as its spec says."""

    def __init__(self, field: FieldSpec, discrete_offset: int) -> None:
        """Raises ConfigError, naming the field, for a range or ``num`` that cannot be used."""
        self.field = field
        self.components = math.prod(field.shape)
        """N, the tokens of one step."""
        self._offset = discrete_offset
        self._num = 2 if field.dtype == "bool" else field.num
        if field.kind == "discrete" and self._num is not None and self._num < 1:
            raise ConfigError(f"field {field.path} has num {self._num}: a discrete field has at least one value")
        self._scale: ActionRange | None = None
        if field.kind == "continuous" and field.is_action:
            self._scale = ActionRange.of(field.range, self.components, path=field.path)

    def checked(self, values: Any, steps: int) -> np.ndarray:
        """The values of S ``steps`` as (S, N); RejectedError ``wrong_shape`` for another shape or sort of dtype."""
        field, problem = self.field, None
        if not isinstance(values, np.ndarray):
            problem = f"is a {type(values).__name__}, not an array"
        elif values.shape != (steps, *field.shape):
            problem = f"has shape {values.shape}, not {(steps, *field.shape)}"
        elif values.dtype.kind not in _DTYPE_KINDS[field.kind]:
            problem = f"is {field.kind} and has dtype {values.dtype}"
        if problem is not None:
            raise RejectedError("wrong_shape", f"field {field.path} {problem}")
        return values.reshape(steps, self.components)

    def encode(self, values: np.ndarray, out: np.ndarray) -> None:
        """Writes the ids of values (S, N) to ``out``, uint16 (S, N), which may be strided; raises RejectedError."""
        path = self.field.path
        if self.field.kind == "discrete":
            encode_discrete(values, out, num=self._num, lowest=self.field.offset, offset=self._offset, path=path)
        elif self._scale is not None:
            encode_action(values, out, scale=self._scale, path=path)
        else:
            encode_observation(values, out, path=path)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """The values (S, *shape) of ids (S, N): float64, or int64, or bool if the field's dtype is bool.

        Raises ValueError, naming the field, for an id that is no value's.
        """
        path = self.field.path
        if self.field.kind == "discrete":
            values = decode_discrete(tokens, num=self._num, lowest=self.field.offset, offset=self._offset, path=path)
            if self.field.dtype == "bool":
                values = values.astype(np.bool_)
        elif self._scale is not None:
            values = decode_action(tokens, scale=self._scale, path=path)
        else:
            values = decode_observation(tokens, path=path)
        return values.reshape(len(tokens), *self.field.shape)


def encode_discrete(
    values: np.ndarray, out: np.ndarray, *, num: int | None = None, lowest: int = 0, offset: int = 0, path: str = ""
) -> None:
    """Writes the ids of integers or booleans (S, N) to ``out``, uint16 (S, N), which may be strided; the value
    ``lowest`` has the id ``offset``.

    Raises RejectedError ``out_of_range``, naming field ``path``, value and step, for a value that is not one of the
    ``num`` (or 1,024) from ``lowest`` on; nothing is ever clipped.
    """
    end = lowest + min(num or DISCRETE_VALUES, DISCRETE_VALUES)
    if values.size and values.dtype != np.bool_ and (values.min() < lowest or values.max() >= end):
        step, component = np.argwhere((values < lowest) | (values >= end))[0]
        wrong = f"field {path} is {values[step, component]} at step {step}, outside {lowest} to {end - 1}"
        raise RejectedError("out_of_range", wrong)
    out[...] = values if lowest == 0 else values.astype(np.int64) - lowest
    if offset:
        out += np.uint16(offset)


def decode_discrete(
    tokens: np.ndarray, *, num: int | None = None, lowest: int = 0, offset: int = 0, path: str = ""
) -> np.ndarray:
    """The values int64 (S, N) of ids uint16 (S, N); ValueError, naming ``path``, for an id out of range."""
    values, limit = tokens.astype(np.int64) - offset, min(num or DISCRETE_VALUES, DISCRETE_VALUES)
    if values.size and (values.min() < 0 or values.max() >= limit):
        wrong = values[(values < 0) | (values >= limit)][0]
        raise ValueError(f"field {path} has id {wrong + offset}, which is no discrete value below {limit}")
    return values + lowest if lowest else values


def encode_observation(values: np.ndarray, out: np.ndarray, *, path: str = "") -> None:
    """Writes the ids of real observations (S, N) to ``out``, uint16 (S, N), which may be strided.

    Raises RejectedError ``not_finite`` that names the field ``path``, the value and the step.
    """
    for rows in _slices(values):
        part = values[rows]
        if np.can_cast(part.dtype, np.float32, casting="safe"):
            if not _float32_ids(np.ascontiguousarray(part, np.float32), out[rows]):
                raise _not_finite(values, path)
        else:
            numbers = _bins(compand(np.clip(_finite(part, values, path), -M, M)))
            np.add(numbers, CONTINUOUS_OFFSET, out=out[rows], casting="unsafe")


def decode_observation(tokens: np.ndarray, *, path: str = "") -> np.ndarray:
    """The values float64 (S, N) at the bin centres of ids (S, N): |F(decoded) − clip(F(x))| ≤ 1/1024.

    Raises ValueError that names ``path`` for an id that is no bin's.
    """
    return expand(_centres(tokens, path))


@dataclass(frozen=True)
class ActionRange:
    """Where the values of a continuous action lie: x = (a − centre) / half is in [-1, 1].

    ``centre`` and ``half`` are float64, (1,) for all components or (N,).
    """

    centre: np.ndarray
    half: np.ndarray

    @staticmethod
    def of(pairs: Pairs | None, components: int, *, path: str = "") -> "ActionRange":
        """The range of ``pairs`` (None: [-1, 1]) for an action of N ``components``.

        Raises ConfigError, naming ``path``, for another number of pairs or for a pair that is no finite interval.
        """
        low, high = np.array(_UNIT if pairs is None else pairs, np.float64).reshape(-1, 2).T
        if len(low) not in (1, components):
            raise ConfigError(f"field {path} has {components} components and {len(low)} ranges: give one, or one each")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ConfigError(f"field {path} has range {list(pairs or ())}: each pair must be finite with low < high")
        return ActionRange(centre=(low + high) / 2, half=(high - low) / 2)

    @functools.cached_property
    def is_unit(self) -> bool:
        """Whether the range is [-1, 1], so that values need no rescaling."""
        return bool((self.centre == 0.0).all() and (self.half == 1.0).all())


def encode_action(values: np.ndarray, out: np.ndarray, *, scale: ActionRange, path: str = "") -> None:
    """Writes the ids of real actions (S, N), never companded, to ``out``, uint16 (S, N), which may be strided.

    Raises RejectedError ``not_finite`` that names the field ``path``, the value and the step.
    """
    for rows in _slices(values):
        exact = _finite(values[rows], values, path)
        numbers = _bins(exact if scale.is_unit else (exact - scale.centre) / scale.half)
        np.add(numbers, CONTINUOUS_OFFSET, out=out[rows], casting="unsafe")


def decode_action(tokens: np.ndarray, *, scale: ActionRange, path: str = "") -> np.ndarray:
    """The actions float64 (S, N) at the bin centres of ids (S, N), in their own units.

    Raises ValueError that names ``path`` for an id that is no bin's.
    """
    return _centres(tokens, path) * scale.half + scale.centre


def outside_range(values: np.ndarray, pairs: Pairs | None) -> tuple[np.ndarray, np.ndarray]:
    """How many values of a continuous action (S, *shape) lie outside their range (None: [-1, 1]), and how many lie
    outside or at one of its ends, int64 (N,) each or () if all are 0; NaN is not counted.

    A value that passes an end by at most four ulps of the larger end (ulps of float16 for float16 values, else of
    float32) counts as inside: stored values and declared bounds are often rounded differently.
    """
    low, high, slack = range_ends(pairs, values.dtype)
    if not values.size or (values.max() < high.min() and values.min() > low.max()):
        return np.zeros((), np.int64), np.zeros((), np.int64)
    flat = values.reshape(len(values), -1)
    outside = np.add.reduce((flat < low - slack) | (flat > high + slack), axis=0, dtype=np.int64)
    return outside, np.add.reduce((flat <= low + slack) | (flat >= high - slack), axis=0, dtype=np.int64)


def range_ends(pairs: Pairs | None, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ends of a range (None: [-1, 1]), and by how much values of ``dtype`` may pass them and count as inside: each
    float64 (N,), or (1,) if one pair holds for all components."""
    low, high = np.array(_UNIT if pairs is None else pairs, np.float64).reshape(-1, 2).T
    epsilon = float(np.finfo(np.float16 if dtype == np.float16 else np.float32).eps)
    return low, high, 4.0 * epsilon * np.maximum(np.abs(low), np.abs(high))


def count_outside(values: np.ndarray, pairs: Pairs | None) -> int:
    """How many values of a continuous action (S, *shape) lie outside their range, as ``outside_range`` counts them."""
    low, high = np.array(_UNIT if pairs is None else pairs, np.float64).reshape(-1, 2).T
    if not values.size or (values.max() <= high.min() and values.min() >= low.max()):
        return 0
    return int(outside_range(values, pairs)[0].sum())


def count_saturated(values: np.ndarray) -> int:
    """How many finite values of a continuous observation are beyond ±256, where the mu-law ends."""
    if not values.size or (values.max() <= M and values.min() >= -M):
        return 0
    return int(np.count_nonzero((values < -M) | (values > M)))


def compand(values: np.ndarray) -> np.ndarray:
    """F(x) = sgn(x) · log(|x|·100 + 1) / log(256·100 + 1), float64; not clipped: |F| > 1 where |x| > 256."""
    exact = np.asarray(values, np.float64)
    return np.copysign(np.log(np.abs(exact) * MU + 1.0) / np.log(M * MU + 1.0), exact)


def expand(companded: np.ndarray) -> np.ndarray:
    """The inverse of F, float64."""
    exact = np.asarray(companded, np.float64)
    return np.copysign(((M * MU + 1.0) ** np.abs(exact) - 1.0) / MU, exact)


def _bins(values: np.ndarray) -> np.ndarray:
    """The bin of finite float64 values, clipped to [-1, 1], as float64 integers in [0, 1024).

    floor((x + 1) · 512), except that x = 1 belongs to the last bin.
    """
    scaled = values + 1.0
    scaled *= BINS / 2
    np.maximum(scaled, 0.0, out=scaled)
    np.minimum(scaled, BINS - 1.0, out=scaled)
    return np.floor(scaled, out=scaled)


def _centres(tokens: np.ndarray, path: str) -> np.ndarray:
    """The centre in [-1, 1] of the bins of ids, float64: at most 1/1024 from every value of the bin."""
    numbers = tokens.astype(np.int64) - CONTINUOUS_OFFSET
    wrong = (numbers < 0) | (numbers >= BINS)
    if wrong.any():
        raise ValueError(f"field {path} has id {tokens[wrong][0]}, which is no continuous value")
    return (2.0 * numbers + 1.0) / BINS - 1.0


def _slices(values: np.ndarray) -> Iterator[slice]:
    """Slices of steps that hold about ``_CACHED_VALUES`` values each."""
    steps, components = values.shape
    rows = max(1, _CACHED_VALUES // max(1, components))
    return (slice(begin, begin + rows) for begin in range(0, steps, rows))


def _finite(part: np.ndarray, values: np.ndarray, path: str) -> np.ndarray:
    """A part of ``values`` as float64."""
    exact = part.astype(np.float64)
    if not np.isfinite(exact).all():
        raise _not_finite(values, path)
    return exact


def _not_finite(values: np.ndarray, path: str) -> RejectedError:
    step, component = np.argwhere(~np.isfinite(values))[0]
    value = float(values[step, component])
    return RejectedError("not_finite", f"field {path} is {'NaN' if math.isnan(value) else value} at step {step}")


# Observations are nearly always float32, so each of them gets its bin by one table look-up, which equals float64
# arithmetic for every float32. A float32 is a cell (its upper 16 bits: sign, exponent, 7 bits of mantissa) and an
# offset in it (the lower 16). Mu-law bins are so wide for their cells that no cell holds two bin edges, so a cell needs
# its first id and the offset of its edge. Both fit one uint32, arranged so that adding the offset carries into the
# upper half at the edge.

_CELLS = 1 << 15  # of either sign
_CELL = 1 << 16
_FIRST_NOT_FINITE = 0x7F80
_NOT_FINITE = np.uint32(0xFFFF_0000)


def _float32_ids(values: np.ndarray, out: np.ndarray) -> bool:
    """Writes the ids of C-contiguous float32 observations (S, N) to ``out``, uint16 (S, N), which may be strided.

    Returns False and leaves ``out`` untouched if a value is NaN or infinite.
    """
    if not values.size:
        return True
    sums = _table().take(values.view(np.uint32) >> 16, mode="wrap")
    # abs() counts a negative float's magnitude downwards from 2**31, so that one addition serves both signs.
    np.add(sums, np.abs(values.view(np.int32)).view(np.uint32), out=sums)
    if sums.max() >= _NOT_FINITE:
        return False
    np.right_shift(sums, 16, out=sums)
    out[...] = sums
    return True


@functools.cache
def _table() -> np.ndarray:
    """uint32 (65536,): the number that, added to abs(bits as int32), has a float's id in its upper half."""
    edges = _edges()

    def bin_of(keys: np.ndarray) -> np.ndarray:
        return np.searchsorted(edges, keys, side="right")

    start = np.arange(_CELLS, dtype=np.int64) * _CELL  # the smallest magnitude of each cell
    first, last = bin_of(start), bin_of(start + _CELL - 1)
    edge = np.where(first < last, edges[np.minimum(first, BINS - 2)] - start, _CELL)
    positive = (CONTINUOUS_OFFSET + first) * _CELL + (_CELL - edge) - start

    first_negative, last_negative = bin_of(-start), bin_of(-start - _CELL + 1)
    under = edges[np.maximum(first_negative, 1) - 1]
    stays = np.where(first_negative > last_negative, -under - start, _CELL - 1)  # the last offset before the edge
    negative = (CONTINUOUS_OFFSET + first_negative) * _CELL + stays + start - (1 << 31)

    finite, not_finite = slice(0, _FIRST_NOT_FINITE), slice(_FIRST_NOT_FINITE, None)
    assert (last - first)[finite].max() <= 1, "a cell of positive floats holds two bin edges"
    assert (first_negative - last_negative)[finite].max() <= 1, "a cell of negative floats holds two bin edges"
    positive[not_finite] = int(_NOT_FINITE) - start[not_finite]
    negative[not_finite] = int(_NOT_FINITE) + _CELL - 1 + start[not_finite] - (1 << 31)
    return (np.concatenate([positive, negative]) % (1 << 32)).astype(np.uint32)


def _edges() -> np.ndarray:
    """For every bin from 1 to 1023 its smallest float32 as a key, int64 (1023,), found by bisection.

    A key numbers the finite float32 in the order of their values: the bits of a positive float, minus the bits
    of its magnitude for a negative one.
    """
    above = np.full(BINS - 1, int(np.finfo(np.float32).max.view(np.int32)))  # always in its bin or a later one
    below = -above  # always in an earlier bin
    while (above - below).max() > 1:
        middle = (above + below) // 2
        magnitude = np.abs(middle).astype(np.uint32).view(np.float32)
        reached = _bins(compand(np.where(middle < 0, -magnitude, magnitude))) >= np.arange(1, BINS)
        above = np.where(reached, middle, above)
        below = np.where(reached, below, middle)
    return above
