"""Discrete values and booleans ↔ ids (Gato, section 2.1: integers in [0, 1024), not shifted by default).

Legend: S time steps, N components of one step, row-major.
"""

import numpy as np

from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import DISCRETE_VALUES


def encode(values: np.ndarray, out: np.ndarray, *, num: int | None = None, offset: int = 0, path: str = "") -> None:
    """Writes the ids of integers or booleans (S, N) to ``out``, uint16 (S, N), which may be strided.

    The id is the value plus ``offset``. Raises RejectedError ``out_of_range``, naming field ``path``, value and
    step, for a value outside [0, ``num``), where ``num`` is 1024 unless given; nothing is ever clipped.
    """
    limit = value_count(num)
    if values.size and values.dtype != np.bool_ and (values.min() < 0 or values.max() >= limit):
        step, component = (int(index) for index in np.argwhere((values < 0) | (values >= limit))[0])
        raise RejectedError(
            "out_of_range",
            f"field {path} is {values[step, component]} at step {step}, outside 0 to {limit - 1}",
        )
    out[...] = values
    if offset:
        out += np.uint16(offset)


def decode(tokens: np.ndarray, *, num: int | None = None, offset: int = 0, path: str = "") -> np.ndarray:
    """The values int64 (S, N) of ids uint16 (S, N); ValueError, naming ``path``, for an id out of range."""
    values = tokens.astype(np.int64) - offset
    if values.size and (values.min() < 0 or values.max() >= value_count(num)):
        wrong = values[(values < 0) | (values >= value_count(num))][0]
        raise ValueError(f"field {path} has id {wrong + offset}, which is no discrete value below {value_count(num)}")
    return values


def value_count(num: int | None) -> int:
    """How many values a discrete field has: ``num``, never more than 1024."""
    return DISCRETE_VALUES if num is None else min(num, DISCRETE_VALUES)
