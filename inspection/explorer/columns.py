"""The columns of the explorer: those of the index without ``record_tokens``, and two that follow from it.

A new column is an entry in ``COLUMNS`` and, if the index does not hold it, a branch of ``values``.

Legend: R rows of a batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import EpisodeRow, coded, where_column
from gatokit.schemas import where
from gatokit.schemas.where import ColumnType, Strings, Truth


@dataclass(frozen=True)
class Column:
    """A column; ``about`` says what it is, ``of`` names the columns of the index it is made of, by default itself."""

    name: str
    kind: ColumnType
    about: str
    of: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the index that it is made of."""
        return self.of or (self.name,)


COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("episode_id", "string", "the configured metadata key, or the file and the position in it"),
        Column("task", "string", "the task"),
        Column("agent", "string", "the source agent"),
        Column("return", "number", "sum of the rewards"),
        Column("steps", "number", "steps with an action"),
        Column("kept", "truth", "whether it stays"),
        Column("reason", "string", "why it was dropped"),
        Column("split", "string", "train or held_out; none when dropped"),
        Column("tokens", "number", "tokens that are stored"),
        Column("order", "number", "collection order"),
        Column("expert_return", "number", "windowed expert return of the task", ("task",)),
        Column("threshold", "number", "lowest return that stays"),
        Column("detail", "string", "what exactly was wrong, or left out"),
        Column("lost", "number", "episodes of the source that the row stands for"),
        Column("records", "number", "records that hold it", ("record_tokens",)),
        Column("shard", "string", "the file that holds it", ("part",)),
        Column("part", "number", "ordinal of that file in its split"),
        Column("first_record", "number", "ordinal of its first record in that file"),
        Column("source_file", "string", "path below the source"),
        Column("source_position", "number", "ordinal in that file"),
        Column("spec", "string", "key of the fields of its steps"),
    )
}
FIRST = ("episode_id", "task", "agent", "return", "steps", "kept", "reason", "split", "tokens")
"""Columns of episodes that are shown until others are chosen."""
FIRST_OF_DOCUMENTS = ("episode_id", "kept", "reason", "split", "tokens", "records")
"""The same for documents."""
KINDS: dict[str, ColumnType] = {name: column.kind for name, column in COLUMNS.items()}


class IndexColumns:
    """Turns rows of one dataset's index into columns."""

    def __init__(self, dataset: DatasetReader) -> None:
        self._expert = dataset.expert_returns
        splits = dataset.totals.splits
        self._ends = np.array(list(accumulate(split.rows for split in splits)), np.int64)
        self._first_part = np.array([0, *accumulate(len(split.parts) for split in splits)], np.int64)
        self._shards = [part.file for split in splits for part in split.parts]

    def values(self, batch: pa.RecordBatch, name: str, first: int) -> where.Column:
        """The column ``name`` of R rows, of which the first has the ordinal ``first`` in the index."""
        if name == "records":
            return _numbers(pc.list_value_length(batch["record_tokens"]))
        if name == "shard":
            return Strings(self._shard_codes(batch, first), self._shards)
        if name == "kept":
            known, true = (
                column.to_numpy(zero_copy_only=False)
                for column in (pc.is_valid(batch["kept"]), pc.fill_null(batch["kept"], False))
            )
            return Truth(true, known & ~true)
        if name in where.COLUMNS:
            return where_column(batch, name, self._expert)
        return Strings(*coded(batch[name])) if KINDS[name] == "string" else _numbers(batch[name])

    def _shard_codes(self, batch: pa.RecordBatch, first: int) -> np.ndarray:
        part = pc.fill_null(batch["part"], -1).to_numpy(zero_copy_only=False).astype(np.int64)
        split = np.searchsorted(self._ends, np.arange(first, first + batch.num_rows), side="right")
        return np.where(part < 0, -1, self._first_part[np.minimum(split, len(self._ends) - 1)] + part)


def value_of(row: EpisodeRow, name: str) -> str | float | int | bool | None:
    """The value of a column of one row; None if it is unknown."""
    if name == "records":
        return None if row.record_tokens is None else len(row.record_tokens)
    found: str | float | int | bool | None = getattr(row, "episode_return" if name == "return" else name)
    return found


def reads(names: Iterable[str]) -> set[str]:
    """The columns of the index that some columns are made of."""
    return {read for name in names for read in COLUMNS[name].reads}


def _numbers(column: pa.Array) -> np.ndarray:
    found: np.ndarray = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    return found
