"""Columns of an index as NumPy arrays.

Legend: R rows.
"""

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.schemas.where import COLUMNS, Column, Strings


def coded(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """The code of each row, int64 (R,), -1 for null, and the value of each code."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes: np.ndarray = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, column.dictionary.to_pylist()


class TaskCodes:
    """Codes of tasks that stay the same over the batches of an index."""

    def __init__(self) -> None:
        self.of_name: dict[str, int] = {}

    def codes(self, column: pa.Array) -> np.ndarray:
        """The code of each row, int32 (R,), -1 for null."""
        local, names = coded(column)
        return np.array([*(self.of_name.setdefault(name, len(self.of_name)) for name in names), -1], np.int32)[local]


def among(column: pa.Array, words: Collection[str]) -> np.ndarray:
    """Whether each row of a column of strings is one of some words, bool (R,)."""
    codes, names = coded(column)
    return np.array([*(name in words for name in names), False], bool)[codes]


def named(rows: pa.RecordBatch | pa.Table, name: str, expert_returns: Mapping[str, float]) -> Column:
    """A column that an expression can name; expert returns are looked up by task, whatever the rows hold."""
    if name == "expert_return":
        codes, tasks = coded(rows["task"])
        return np.array([*(expert_returns.get(task, np.nan) for task in tasks), np.nan])[codes]
    if COLUMNS[name] == "string":
        return Strings(*coded(rows[name]))
    numbers: np.ndarray = pc.cast(rows[name], pa.float64()).to_numpy(zero_copy_only=False)
    return numbers
