"""Rows of an index as the explorer asks for them: their columns, filters, orders and pages, and which are selected.

An index is read some rows at a time; of the rows that match, only the ordinals and the column to sort by are held. The
columns are those of the index without ``record_tokens``, two that follow from it, and the values that the source stores
with each episode. A new column is an entry in ``COLUMNS`` and, if the index does not hold it, a branch of
``_IndexColumns.values``.

Legend: R rows of a batch, M rows that match.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import EpisodeRow, among, where_column
from gatokit.schemas import where
from gatokit.schemas.episode_list import csv_cell
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.where import ColumnType, Rounded, Strings, Truth, Where, column_type


@dataclass(frozen=True)
class Column:
    """A column; ``about`` says what it is, ``of`` names the column of the index it is made of, if that is another."""

    kind: ColumnType
    about: str
    of: str | None = None


COLUMNS = {
    "episode_id": Column("string", "the configured metadata key, or the file and the position in it"),
    "task": Column("string", "the task"),
    "agent": Column("string", "the source agent"),
    "return": Column("number", "sum of the rewards"),
    "steps": Column("number", "steps with an action"),
    "kept": Column("truth", "whether it stays"),
    "reason": Column("string", "why it was dropped"),
    "split": Column("string", "train or held_out; none when dropped"),
    "tokens": Column("number", "tokens that are stored"),
    "order": Column("number", "collection order"),
    "expert_return": Column("number", "windowed expert return of the task", "task"),
    "threshold": Column("number", "lowest return of the task that stays", "task"),
    "detail": Column("string", "what exactly was wrong, or left out"),
    "lost": Column("number", "episodes of the source that the row stands for"),
    "records": Column("number", "records that hold it", "record_tokens"),
    "shard": Column("string", "the file that holds it", "part"),
    "part": Column("number", "ordinal of that file in its split"),
    "first_record": Column("number", "ordinal of its first record in that file"),
    "source_file": Column("string", "path below the source"),
    "source_position": Column("number", "ordinal in that file"),
    "spec": Column("string", "key of the fields of its steps"),
}
HEADER = ("episode_id", "dataset", "task")
_NOT_PLAIN = r'^[=+\-@"]|[^ -~]'
"""Matches all texts that ``csv_cell`` may change, and others."""
"""The columns of a list of selected episodes, as ``schemas.episode_list`` reads them."""
_DISTINCT_TEXTS = ("episode_id", "detail")
"""Strings that hardly ever come twice. They and those of the source are held as they are, other strings as codes."""


def columns_of(dataset: DatasetReader) -> dict[str, Column]:
    """The columns of a dataset's index."""
    of_source = "stored with the episode in the source"
    return COLUMNS | {name: Column(column_type(type_), of_source) for name, type_ in dataset.columns.items()}


def kinds_of(dataset: DatasetReader) -> dict[str, ColumnType]:
    """The type of each column of a dataset's index."""
    return {name: column.kind for name, column in columns_of(dataset).items()}


def value_of(row: EpisodeRow, name: str) -> str | float | int | bool | None:
    """The value of a column of one row; None if it is unknown."""
    if name in row.metadata:
        return row.metadata[name]
    if name == "records":
        return None if row.record_tokens is None else len(row.record_tokens)
    found: str | float | int | bool | None = getattr(row, "episode_return" if name == "return" else name)
    return found


class _IndexColumns:
    """Turns rows of one dataset's index into columns."""

    def __init__(self, dataset: DatasetReader) -> None:
        self._of_tasks = dataset.of_tasks
        splits = dataset.totals.splits
        self._ends = np.array(list(accumulate(split.rows for split in splits)), np.int64)
        self._first_part = np.array([0, *accumulate(len(split.parts) for split in splits)], np.int64)
        self._shards = [part.file for split in splits for part in split.parts]

    def values(self, batch: pa.RecordBatch, name: str, first: int) -> where.Column:
        """The column ``name`` of R rows, of which the first has the ordinal ``first`` in the index."""
        if name == "records":
            return _numbers(pc.list_value_length(batch["record_tokens"]))
        if name == "shard":
            part = pc.fill_null(batch["part"], -1).to_numpy(zero_copy_only=False).astype(np.int64)
            split = np.searchsorted(self._ends, np.arange(first, first + batch.num_rows), side="right")
            shards = self._first_part[np.minimum(split, len(self._ends) - 1)] + part
            return Strings(np.where(part < 0, -1, shards), self._shards)
        return where_column(batch, name, self._of_tasks)


def _numbers(column: pa.Array) -> np.ndarray:
    found: np.ndarray = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    return found


# --- filters and orders ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """Which rows to find; all conditions must hold. ``text`` is looked for in ids, in upper or lower case; ``where`` is
    an expression of ``schemas.where``."""

    task: str | None = None
    kept: bool | None = None
    split: str | None = None
    reason: str | None = None
    text: str = ""
    where: str = ""

    def expression(self, dataset: DatasetReader) -> Where | None:
        """The parsed expression over the columns of a dataset, if there is one. Raises ConfigError, with a sentence, if
        it is not valid."""
        if not self.where.strip():
            return None
        try:
            return Where(self.where, kinds_of(dataset))
        except ValueError as error:
            raise ConfigError(f"the expression {error}") from None


@dataclass(frozen=True)
class Order:
    """What rows are sorted by. Equal values stay in the order of the index; unknown values come last."""

    column: str
    descending: bool = False


def toggled(order: Order | None, column: str) -> Order:
    """The order after a click on a column: ascending, or descending if it was ascending by it."""
    return Order(column, order == Order(column))


@dataclass(frozen=True)
class Match:
    """The M rows that were found, in order: their ``ordinals`` in the index. ``steps`` and ``tokens`` are sums, the
    latter of what is stored."""

    ordinals: np.ndarray | range
    kept: int
    steps: int
    tokens: int

    @property
    def rows(self) -> int:
        """M."""
        return len(self.ordinals)


def find(
    dataset: DatasetReader, wanted: Filter, order: Order | None = None, moved: Callable[[int], None] | None = None
) -> Match:
    """The rows of a dataset's index that a filter asks for, in source order if ``order`` is None.

    ``moved`` is called with the number of rows that were read, and may raise to give up. Raises ConfigError if the
    expression is not valid; DataError if the index cannot be read.
    """
    expression, columns, known = wanted.expression(dataset), _IndexColumns(dataset), columns_of(dataset)
    key = None if order is None else _SortKey(order.column, known[order.column].kind)
    names = {"kept", "steps", "tokens"}
    names |= {name for name in ("task", "split", "reason") if getattr(wanted, name) is not None}
    if wanted.text:
        names.add("episode_id")
    if expression is not None:
        names |= expression.columns
    if order is not None:
        names.add(order.column)
    reads = {known[name].of or name for name in names}
    found: list[np.ndarray] = []
    rows = kept = steps = tokens = 0
    is_all = wanted == Filter()
    dtype = np.int32 if sum(split.rows for split in dataset.totals.splits) < 1 << 31 else np.int64
    for batch in dataset.batches(sorted(reads)):
        passes = None if is_all else _passes(batch, wanted, expression, columns, rows)
        matching = batch if passes is None else batch.filter(pa.array(passes))
        if matching.num_rows:
            kept += pc.sum(matching["kept"]).as_py() or 0
            steps += pc.sum(matching["steps"]).as_py() or 0
            tokens += pc.sum(pc.if_else(pc.fill_null(matching["kept"], False), matching["tokens"], 0)).as_py() or 0
            if passes is not None:
                found.append((np.flatnonzero(passes) + rows).astype(dtype))
            if key is not None:
                key.add(batch, passes, columns, rows)
        rows += batch.num_rows
        if moved is not None:
            moved(rows)
    ordinals: np.ndarray | range = range(rows) if is_all else np.concatenate(found) if found else range(0)
    if order is not None and key is not None and len(ordinals):
        places = key.sorted(order.descending)
        ordinals = places.astype(dtype) if isinstance(ordinals, range) else ordinals[places]
    # Arrow keeps memory for the next query, which may be as large as a column of strings.
    pa.default_memory_pool().release_unused()
    return Match(ordinals, kept, steps, tokens)


def page(dataset: DatasetReader, match: Match, begin: int, end: int) -> list[EpisodeRow]:
    """The rows [begin, end) of a match, in its order. Raises DataError if they cannot be read."""
    return dataset.rows_at([int(ordinal) for ordinal in match.ordinals[begin:end]])


def _passes(
    batch: pa.RecordBatch, wanted: Filter, expression: Where | None, columns: _IndexColumns, first: int
) -> np.ndarray:
    """Which of R rows the filter asks for, bool (R,)."""
    passes = np.ones(batch.num_rows, bool)
    for name in ("task", "split", "reason"):
        if getattr(wanted, name) is not None:
            passes &= among(batch[name], {getattr(wanted, name)})
    if wanted.kept is not None:
        passes &= pc.fill_null(pc.equal(batch["kept"], wanted.kept), False).to_numpy(zero_copy_only=False)
    if wanted.text:
        contains = pc.match_substring(batch["episode_id"], wanted.text, ignore_case=True)
        passes &= pc.fill_null(contains, False).to_numpy(zero_copy_only=False)
    if expression is not None:
        values = {name: columns.values(batch, name, first) for name in expression.columns}
        passes &= expression.passes(values, batch.num_rows)
    return passes


class _SortKey:
    """One column of the M rows that match, which grows by batches, as small as its kind allows: numbers and booleans as
    floats, repeated strings as codes, other strings as they are."""

    def __init__(self, column: str, kind: ColumnType) -> None:
        self._column, self._kind = column, kind
        self._is_distinct = kind == "string" and (column in _DISTINCT_TEXTS or column not in COLUMNS)
        self._codes: dict[str, int] = {}
        self._parts: list[Any] = []

    def add(self, batch: pa.RecordBatch, passes: np.ndarray | None, columns: _IndexColumns, first: int) -> None:
        """Adds the rows of a batch that pass, bool (R,), or all of them if that is None."""
        if self._is_distinct:
            texts = pc.cast(batch[self._column], pa.large_string())
            self._parts.append(texts if passes is None else texts.filter(pa.array(passes)))
            return
        values = columns.values(batch, self._column, first)
        if isinstance(values, Truth):
            values = np.where(values.true, 1.0, np.where(values.false, 0.0, np.nan)).astype(np.float32)
        elif isinstance(values, Rounded):
            values = values.values
        elif isinstance(values, Strings):
            codes = [self._codes.setdefault(name, len(self._codes)) for name in values.names]
            values = np.array([*codes, -1], np.int32)[values.codes]
        self._parts.append(values if passes is None else values[passes])

    def sorted(self, descending: bool) -> np.ndarray:
        """The places of the rows in order, int64 (M,); equal ones as they came, unknown ones last."""
        parts, self._parts = self._parts, []
        if self._is_distinct:
            texts = pa.chunked_array(parts, pa.large_string())
            known = pc.is_valid(texts).to_numpy()
            order = "descending" if descending else "ascending"
            places = pc.sort_indices(texts.drop_null(), sort_keys=[("", order)]).to_numpy()
            return np.concatenate([np.flatnonzero(known)[places], np.flatnonzero(~known)])
        values = np.concatenate(parts)
        if self._kind == "string":
            ranks = np.empty(len(self._codes) + 1, np.float32 if len(self._codes) < 1 << 24 else np.float64)
            ranks[[self._codes[name] for name in sorted(self._codes)]] = np.arange(len(self._codes))
            ranks[-1] = np.nan
            values = ranks[values]
        return np.argsort(-values if descending else values, kind="stable")


# --- selected episodes ----------------------------------------------------------------------------------------------


class Selection:
    """Selected rows of all datasets, by their ordinals in the index: one byte a row of datasets that have any."""

    def __init__(self, datasets: Mapping[str, DatasetReader]) -> None:
        self._datasets = datasets
        self._marks: dict[str, np.ndarray] = {}

    def add(self, dataset: str, ordinals: np.ndarray | range | Sequence[int]) -> None:
        """Selects some rows."""
        if dataset not in self._marks:
            self._marks[dataset] = np.zeros(sum(split.rows for split in self._datasets[dataset].totals.splits), bool)
        if isinstance(ordinals, range):
            self._marks[dataset][ordinals.start : ordinals.stop : ordinals.step] = True
        else:
            self._marks[dataset][np.asarray(ordinals, np.int64)] = True

    def remove(self, dataset: str, ordinals: np.ndarray | range | Sequence[int]) -> None:
        """Deselects some rows."""
        if dataset in self._marks:
            self._marks[dataset][np.asarray(ordinals, np.int64)] = False

    def clear(self) -> None:
        """Deselects all rows."""
        self._marks.clear()

    def holds(self, dataset: str, ordinals: Iterable[int]) -> list[bool]:
        """Whether each of some rows is selected."""
        marks = self._marks.get(dataset)
        return [marks is not None and bool(marks[ordinal]) for ordinal in ordinals]

    def counts(self) -> dict[str, int]:
        """How many rows are selected in each dataset that has any."""
        found = {name: int(np.count_nonzero(self._marks[name])) for name in self._datasets if name in self._marks}
        return {name: count for name, count in found.items() if count}

    def copy(self) -> "Selection":
        """A copy, which does not change with this selection."""
        copy = Selection(self._datasets)
        copy._marks = {name: marks.copy() for name, marks in self._marks.items()}
        return copy

    def csv(self) -> Iterator[bytes]:
        """The list for ``keep: {episodes: FILE}``, some rows at a time. Raises DataError if an index cannot be read."""
        yield (",".join(HEADER) + "\n").encode()
        for name in self.counts():
            dataset, marks = self._datasets[name], self._marks[name]
            splits = dataset.totals.splits
            begins = np.cumsum([0, *(split.rows for split in splits)]).tolist()
            for split, (begin, end) in zip(splits, pairwise(begins), strict=True):
                if not marks[begin:end].any():
                    continue
                for batch in dataset.batches(["episode_id", "task"], [split.index]):
                    chosen = batch.filter(pa.array(marks[begin : begin + batch.num_rows]))
                    begin += batch.num_rows
                    chosen = chosen.filter(pc.is_valid(chosen["episode_id"]))
                    if chosen.num_rows:
                        yield _csv_lines(chosen, name)


def config_lines(counts: Mapping[str, int], file: str) -> str:
    """The lines of a config that keep the selected episodes of each dataset."""
    lines = [f"  - name: {name}\n    keep: {{episodes: {file}}}" for name in counts]
    return "\n".join(["datasets:", *lines]) if lines else ""


def _csv_lines(rows: pa.RecordBatch, dataset: str) -> bytes:
    names = pa.array([dataset]).take(pa.array(np.zeros(rows.num_rows, np.int8)))
    columns = [_csv_cells(rows["episode_id"]), names, _csv_cells(pc.cast(rows["task"], pa.string()))]
    table = pa.table(columns, names=list(HEADER))
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(table, sink, pa_csv.WriteOptions(include_header=False))
    lines: bytes = sink.getvalue().to_pybytes()
    return lines


def _csv_cells(texts: pa.Array) -> pa.Array:
    """Each text as a cell."""
    if not pc.any(pc.match_substring_regex(texts, _NOT_PLAIN)).as_py():
        return texts
    return pa.array([text if text is None else csv_cell(text) for text in texts.to_pylist()], pa.string())
