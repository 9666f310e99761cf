"""Finds rows of an index: a filter, an order, a page. An index is read some rows at a time; of what matches, the
ordinals and the one column to sort by are held.

Legend: R rows of a batch, M rows that match.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.explorer.columns import KINDS, Batches, reads
from gatokit.inspection.explorer.keys import new_key
from gatokit.inspection.read.columns import among
from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.rows import EpisodeRow
from gatokit.inspection.report.rows import rows_at
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.where import Where

_COUNTED = {"kept", "steps", "tokens"}


@dataclass(frozen=True)
class Filter:
    """Which rows to find: all that are asked for must hold. ``text`` is looked for in ids, in any case of letters;
    ``where`` is an expression of ``schemas.where`` over ``KINDS``."""

    task: str | None = None
    kept: bool | None = None
    split: str | None = None
    reason: str | None = None
    text: str = ""
    where: str = ""

    def expression(self) -> Where | None:
        """The parsed expression, if there is one; ConfigError, a sentence, where it is none."""
        if not self.where.strip():
            return None
        try:
            return Where(self.where, KINDS)
        except ValueError as error:
            raise ConfigError(f"the expression {error}") from None

    @property
    def reads(self) -> set[str]:
        """The columns of the index that it looks at."""
        found = {name for name in ("task", "kept", "split", "reason") if getattr(self, name) is not None}
        where = self.expression()
        return found | ({"episode_id"} if self.text else set()) | (set() if where is None else reads(where.columns))


@dataclass(frozen=True)
class Order:
    """By what rows are sorted. Of equal values the first in the index comes first, what is unknown comes last."""

    column: str
    descending: bool = False


def turned(order: Order | None, column: str) -> Order:
    """The order after a click on a column: ascending, and descending where it was ascending by it."""
    return Order(column, order == Order(column))


@dataclass(frozen=True)
class Match:
    """The M rows that were found, in order: ``ordinals`` among all of the index. ``steps`` and ``tokens`` are sums, the
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
    dataset: DatasetReader, asked: Filter, order: Order | None = None, moved: Callable[[int], None] | None = None
) -> Match:
    """The rows of a dataset's index that a filter asks for; in source order where none is given.

    ``moved`` is called with the number of rows that were read, and may raise to give up. ConfigError where the
    expression is none; DataError where the index cannot be read.
    """
    where, batches = asked.expression(), Batches(dataset)
    key = None if order is None else new_key(order.column)
    columns = asked.reads | _COUNTED | (set() if order is None else reads({order.column}))
    found: list[np.ndarray] = []
    rows = kept = steps = tokens = 0
    is_all = asked == Filter()
    small = np.int32 if sum(split.rows for split in dataset.totals.splits) < 1 << 31 else np.int64
    for batch in dataset.batches(sorted(columns)):
        passes = None if is_all else _passes(batch, asked, where, batches, rows)
        counted = batch if passes is None else batch.filter(pa.array(passes))
        if counted.num_rows:
            kept += pc.sum(counted["kept"]).as_py() or 0
            steps += pc.sum(counted["steps"]).as_py() or 0
            tokens += pc.sum(pc.if_else(pc.fill_null(counted["kept"], False), counted["tokens"], 0)).as_py() or 0
            if passes is not None:
                found.append((np.flatnonzero(passes) + rows).astype(small))
            if key is not None:
                key.add(batch, passes, batches, rows)
        rows += batch.num_rows
        if moved is not None:
            moved(rows)
    ordinals: np.ndarray | range = range(rows) if is_all else np.concatenate(found) if found else range(0)
    if order is not None and key is not None and len(ordinals):
        places = key.sorted(order.descending)
        ordinals = places.astype(small) if isinstance(ordinals, range) else ordinals[places]
    # What Arrow keeps for the next time may be a column of strings.
    pa.default_memory_pool().release_unused()
    return Match(ordinals, kept, steps, tokens)


def page(dataset: DatasetReader, match: Match, begin: int, end: int) -> list[EpisodeRow]:
    """The rows [begin, end) of a match, in its order; DataError where they cannot be read."""
    return rows_of(dataset, [int(ordinal) for ordinal in match.ordinals[begin:end]])


def rows_of(dataset: DatasetReader, ordinals: Sequence[int]) -> list[EpisodeRow]:
    """The rows with these ordinals, in their order."""
    ascending = sorted(ordinals)
    known = dict(zip(ascending, rows_at(dataset, ascending), strict=True))
    return [known[ordinal] for ordinal in ordinals]


def _passes(batch: pa.RecordBatch, asked: Filter, where: Where | None, batches: Batches, first: int) -> np.ndarray:
    """Which of R rows the filter asks for, bool (R,)."""
    passes = np.ones(batch.num_rows, bool)
    for name in ("task", "split", "reason"):
        if getattr(asked, name) is not None:
            passes &= among(batch[name], {getattr(asked, name)})
    if asked.kept is not None:
        passes &= pc.fill_null(pc.equal(batch["kept"], asked.kept), False).to_numpy(zero_copy_only=False)
    if asked.text:
        contains = pc.match_substring(batch["episode_id"], asked.text, ignore_case=True)
        passes &= pc.fill_null(contains, False).to_numpy(zero_copy_only=False)
    if where is not None:
        columns = {name: batches.values(batch, name, first) for name in where.columns}
        passes &= where.passes(columns, batch.num_rows)
    return passes
