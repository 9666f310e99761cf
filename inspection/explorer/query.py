"""Finds rows of an index: a filter, an order, a page.

An index is read some rows at a time; of the rows that match, only the ordinals and the column to sort by are held.

Legend: R rows of a batch, M rows that match.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.explorer.columns import KINDS, IndexColumns, reads
from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import EpisodeRow, among
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.where import Column, Strings, Truth, Where

_COUNTED = {"kept", "steps", "tokens"}
_DISTINCT_TEXTS = ("episode_id", "detail")
"""Strings that hardly ever come twice; they are held as they are, other strings as codes."""


@dataclass(frozen=True)
class Filter:
    """Which rows to find; all conditions must hold. ``text`` is looked for in ids, in upper or lower case; ``where`` is
    an expression of ``schemas.where`` over ``KINDS``."""

    task: str | None = None
    kept: bool | None = None
    split: str | None = None
    reason: str | None = None
    text: str = ""
    where: str = ""

    def expression(self) -> Where | None:
        """The parsed expression, if there is one. Raises ConfigError, with a sentence, if it is not valid."""
        if not self.where.strip():
            return None
        try:
            return Where(self.where, KINDS)
        except ValueError as error:
            raise ConfigError(f"the expression {error}") from None

    @property
    def reads(self) -> set[str]:
        """The columns of the index that it looks at."""
        columns = {name for name in ("task", "kept", "split", "reason") if getattr(self, name) is not None}
        where = self.expression()
        return columns | ({"episode_id"} if self.text else set()) | (set() if where is None else reads(where.columns))


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
    where, columns = wanted.expression(), IndexColumns(dataset)
    key = None if order is None else _SortKey(order.column)
    names = wanted.reads | _COUNTED | (set() if order is None else reads({order.column}))
    found: list[np.ndarray] = []
    rows = kept = steps = tokens = 0
    is_all = wanted == Filter()
    dtype = np.int32 if sum(split.rows for split in dataset.totals.splits) < 1 << 31 else np.int64
    for batch in dataset.batches(sorted(names)):
        passes = None if is_all else _passes(batch, wanted, where, columns, rows)
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
    batch: pa.RecordBatch, wanted: Filter, where: Where | None, columns: IndexColumns, first: int
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
    if where is not None:
        passes &= where.passes({name: columns.values(batch, name, first) for name in where.columns}, batch.num_rows)
    return passes


class _SortKey:
    """One column of the M rows that match, which grows by batches, as small as its kind allows: numbers and booleans as
    floats, repeated strings as codes, other strings as they are."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._is_text = column in _DISTINCT_TEXTS
        self._codes: dict[str, int] = {}
        self._parts: list[Any] = []

    def add(self, batch: pa.RecordBatch, passes: np.ndarray | None, columns: IndexColumns, first: int) -> None:
        """Adds the rows of a batch that pass, bool (R,), or all of them if that is None."""
        if self._is_text:
            texts = pc.cast(batch[self._column], pa.large_string())
            self._parts.append(texts if passes is None else texts.filter(pa.array(passes)))
        else:
            values = self._numbers(columns.values(batch, self._column, first))
            self._parts.append(values if passes is None else values[passes])

    def _numbers(self, column: Column) -> np.ndarray:
        if isinstance(column, Truth):
            return np.where(column.true, 1.0, np.where(column.false, 0.0, np.nan)).astype(np.float32)
        if isinstance(column, Strings):
            codes = [self._codes.setdefault(name, len(self._codes)) for name in column.names]
            return np.array([*codes, -1], np.int32)[column.codes]
        return column

    def sorted(self, descending: bool) -> np.ndarray:
        """The places of the rows in order, int64 (M,); equal ones as they came, unknown ones last."""
        parts, self._parts = self._parts, []
        if self._is_text:
            texts = pa.chunked_array(parts, pa.large_string())
            known = pc.is_valid(texts).to_numpy()
            order = "descending" if descending else "ascending"
            places = pc.sort_indices(texts.drop_null(), sort_keys=[("", order)]).to_numpy()
            return np.concatenate([np.flatnonzero(known)[places], np.flatnonzero(~known)])
        values = np.concatenate(parts)
        if KINDS[self._column] == "string":
            ranks = np.empty(len(self._codes) + 1, np.float32 if len(self._codes) < 1 << 24 else np.float64)
            ranks[[self._codes[name] for name in sorted(self._codes)]] = np.arange(len(self._codes))
            ranks[-1] = np.nan
            values = ranks[values]
        return np.argsort(-values if descending else values, kind="stable")
