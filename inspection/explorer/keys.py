"""What rows are sorted by: one column of all rows that match, as small as its kind allows.

Legend: R rows of a batch, M rows that match.
"""

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.explorer.columns import KINDS, Batches
from gatokit.schemas.where import Strings, Truth

_WRITTEN_OUT = ("episode_id", "detail")
"""Strings that hardly ever come again."""


class Key(Protocol):
    """A column of M rows that grows by batches."""

    def add(self, batch: pa.RecordBatch, passes: np.ndarray | None, batches: Batches, first: int) -> None:
        """Takes the rows of a batch that pass, bool (R,), all of them where that is None."""

    def sorted(self, descending: bool) -> np.ndarray:
        """The places of the rows in order, int64 (M,); equal ones as they came, unknown ones last."""


def new_key(column: str) -> Key:
    """An empty key of a column."""
    return _Texts(column) if column in _WRITTEN_OUT else _Numbers(column)


class _Numbers:
    """Numbers and truths as float64; strings that come again and again as codes."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._codes: dict[str, int] = {}
        self._parts: list[np.ndarray] = []

    def add(self, batch: pa.RecordBatch, passes: np.ndarray | None, batches: Batches, first: int) -> None:
        column = batches.values(batch, self._column, first)
        if isinstance(column, Truth):
            values = np.where(column.true, 1.0, np.where(column.false, 0.0, np.nan)).astype(np.float32)
        elif isinstance(column, Strings):
            known = [self._codes.setdefault(name, len(self._codes)) for name in column.names]
            values = np.array([*known, -1], np.int32)[column.codes]
        else:
            values = column
        self._parts.append(values if passes is None else values[passes])

    def sorted(self, descending: bool) -> np.ndarray:
        values = np.concatenate(self._parts)
        self._parts = []
        if KINDS[self._column] == "string":
            ranks = np.empty(len(self._codes) + 1, np.float32 if len(self._codes) < 1 << 24 else np.float64)
            ranks[[self._codes[name] for name in sorted(self._codes)]] = np.arange(len(self._codes))
            ranks[-1] = np.nan
            values = ranks[values]
        return np.argsort(-values if descending else values, kind="stable")


class _Texts:
    """Strings as they are."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._parts: list[pa.Array] = []

    def add(self, batch: pa.RecordBatch, passes: np.ndarray | None, batches: Batches, first: int) -> None:
        column = pc.cast(batch[self._column], pa.large_string())
        self._parts.append(column if passes is None else column.filter(pa.array(passes)))

    def sorted(self, descending: bool) -> np.ndarray:
        column = pa.chunked_array(self._parts, pa.large_string())
        self._parts = []
        known = pc.is_valid(column).to_numpy()
        order = "descending" if descending else "ascending"
        places = pc.sort_indices(column.drop_null(), sort_keys=[("", order)]).to_numpy()
        return np.concatenate([np.flatnonzero(known)[places], np.flatnonzero(~known)])
