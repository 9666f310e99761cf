"""Continuous values ↔ ids (Gato, section 2.1 and appendix B).

Observations are companded, actions are rescaled from their range to [-1, 1] and never companded; then both are
clipped to [-1, 1] and binned. The kind of a field decides, never its data, so that a number has one id. The id
is the one that float64 arithmetic gives on the stored value.

Legend: S time steps, N components of one step in row-major order.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.tokens import BINS, CONTINUOUS_OFFSET
from gatokit.tokenizers.mulaw import M, bins, centres, compand, expand
from gatokit.tokenizers.mulaw_table import float32_ids

Pairs = tuple[tuple[float, float], ...]
"""``(low, high)`` of a continuous action: one pair for all components, or one each."""

_UNIT: Pairs = ((-1.0, 1.0),)
_BLOCK = 32_768
"""Values worked on at once, so that what lies in between stays in the cache and memory stays flat."""


def encode_observation(values: np.ndarray, out: np.ndarray, *, path: str = "") -> None:
    """Writes the ids of real observations (S, N) to ``out``, uint16 (S, N), which may be strided.

    Raises RejectedError ``not_finite`` that names the field ``path``, the value and the step.
    """
    for rows in _blocks(values):
        block = values[rows]
        if np.can_cast(block.dtype, np.float32, casting="safe"):
            if not float32_ids(np.ascontiguousarray(block, np.float32), out[rows]):
                raise _not_finite(values, path)
        else:
            numbers = bins(compand(np.clip(_finite(block, values, path), -M, M)))
            np.add(numbers, CONTINUOUS_OFFSET, out=out[rows], casting="unsafe")


def decode_observation(tokens: np.ndarray, *, path: str = "") -> np.ndarray:
    """The values float64 (S, N) at the bin centres of ids (S, N): |F(decoded) − clip(F(x))| ≤ 1/1024.

    Raises ValueError that names ``path`` for an id of no bin.
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

        Raises ConfigError, naming ``path``, for another number of pairs or one that is no finite interval.
        """
        low, high = _bounds(pairs)
        if len(low) not in (1, components):
            raise ConfigError(f"field {path} has {components} components and {len(low)} ranges: give one, or one each")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ConfigError(f"field {path} has range {list(pairs or ())}: each pair must be finite with low < high")
        return ActionRange(centre=(low + high) / 2, half=(high - low) / 2)

    @functools.cached_property
    def is_unit(self) -> bool:
        """Whether the range is [-1, 1], so that values stand for themselves."""
        return bool((self.centre == 0.0).all() and (self.half == 1.0).all())


def encode_action(values: np.ndarray, out: np.ndarray, *, scale: ActionRange, path: str = "") -> None:
    """Writes the ids of real actions (S, N), never companded, to ``out``, uint16 (S, N), which may be strided.

    Raises RejectedError ``not_finite`` that names the field ``path``, the value and the step.
    """
    for rows in _blocks(values):
        exact = _finite(values[rows], values, path)
        numbers = bins(exact if scale.is_unit else (exact - scale.centre) / scale.half)
        np.add(numbers, CONTINUOUS_OFFSET, out=out[rows], casting="unsafe")


def decode_action(tokens: np.ndarray, *, scale: ActionRange, path: str = "") -> np.ndarray:
    """The actions float64 (S, N) at the bin centres of ids (S, N), in their own units.

    Raises ValueError that names ``path`` for an id of no bin.
    """
    return _centres(tokens, path) * scale.half + scale.centre


def count_outside(values: np.ndarray, pairs: Pairs | None) -> int:
    """How many values of a continuous action (S, *shape) lie outside their range (None: [-1, 1]); NaN is not counted.

    A value that passes an end by at most four ulps of the larger end (of float32, or float16 where the values
    are) counts as inside: stored values and declared bounds are often rounded differently.
    """
    ranges = _UNIT if pairs is None else pairs
    if not values.size or (
        values.max() <= min(high for _, high in ranges) and values.min() >= max(low for low, _ in ranges)
    ):
        return 0
    flat = values.reshape(len(values), -1)
    low, high = _bounds(pairs)
    epsilon = float(np.finfo(np.float16 if values.dtype == np.float16 else np.float32).eps)
    slack = 4.0 * epsilon * np.maximum(np.abs(low), np.abs(high))
    return int(np.count_nonzero((flat < low - slack) | (flat > high + slack)))


def _bounds(pairs: Pairs | None) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array(_UNIT if pairs is None else pairs, np.float64).reshape(-1, 2).T
    return low, high


def _blocks(values: np.ndarray) -> Iterator[slice]:
    steps, components = values.shape
    rows = max(1, _BLOCK // max(1, components))
    return (slice(begin, begin + rows) for begin in range(0, steps, rows))


def _centres(tokens: np.ndarray, path: str) -> np.ndarray:
    numbers = tokens.astype(np.int64) - CONTINUOUS_OFFSET
    wrong = (numbers < 0) | (numbers >= BINS)
    if wrong.any():
        raise ValueError(f"field {path} has id {tokens[wrong][0]}, which is no continuous value")
    return centres(numbers)


def _finite(block: np.ndarray, values: np.ndarray, path: str) -> np.ndarray:
    exact = block.astype(np.float64)
    if not np.isfinite(exact).all():
        raise _not_finite(values, path)
    return exact


def _not_finite(values: np.ndarray, path: str) -> RejectedError:
    step, component = np.argwhere(~np.isfinite(values))[0]
    value = float(values[step, component])
    return RejectedError("not_finite", f"field {path} is {'NaN' if value != value else value} at step {step}")
