"""Counts over all rows of an index, in one pass: what is kept, what is dropped and why, with examples."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import coded

_MOST_EXAMPLES = 3
_COLUMNS = ["task", "kept", "reason", "lost", "tokens", "episode_id"]
_Reasons = list[tuple[str | None, int]]


@dataclass
class IndexCounts:
    """``found`` counts the episodes or documents that the rows stand for.

    ``drops`` are by task and reason, each None if unknown; ``examples`` are the first ids of each reason. ``sizes``
    counts kept rows by the bits of their number of tokens: b bits for 2^(b-1) to 2^b - 1 tokens. ``first_kept`` are
    ordinals of rows, ``missing`` are columns that the index lacks.
    """

    missing: tuple[str, ...]
    rows: int = 0
    found: int = 0
    kept: int = 0
    drops: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    examples: dict[str | None, list[str]] = field(default_factory=dict)
    sizes: Counter[int] = field(default_factory=Counter)
    first_kept: list[int] = field(default_factory=list)

    def reasons(self) -> _Reasons:
        """How many were dropped for each reason, the most frequent reason first."""
        counts: Counter[str | None] = Counter()
        for (_, reason), count in self.drops.items():
            counts[reason] += count
        return sorted(counts.items(), key=_most_first)

    def reasons_by_task(self) -> dict[str | None, _Reasons]:
        """The same for each task that lost any."""
        counts: dict[str | None, _Reasons] = {}
        for (task, reason), count in self.drops.items():
            counts.setdefault(task, []).append((reason, count))
        return {task: sorted(reasons, key=_most_first) for task, reasons in counts.items()}


def _most_first(item: tuple[str | None, int]) -> tuple[int, str]:
    return -item[1], item[0] or ""


def count_index(dataset: DatasetReader, first_kept: int) -> IndexCounts:
    """Reads an index once, a batch of rows at a time, and notes the ordinals of the first ``first_kept`` kept rows.

    Raises DataError if the index cannot be read.
    """
    counts = IndexCounts(dataset.missing_columns())
    for batch in dataset.batches(_COLUMNS):
        _add(counts, batch, first_kept)
    return counts


def _add(counts: IndexCounts, batch: pa.RecordBatch, first_kept: int) -> None:
    kept = pc.fill_null(batch["kept"], False).to_numpy(zero_copy_only=False)
    lost = pc.fill_null(batch["lost"], 1).to_numpy(zero_copy_only=False)
    tokens = pc.fill_null(batch["tokens"], 0).to_numpy(zero_copy_only=False)
    counts.first_kept += (np.flatnonzero(kept)[: first_kept - len(counts.first_kept)] + counts.rows).tolist()
    counts.rows += len(kept)
    counts.found += int(lost.sum())
    counts.kept += int(kept.sum())
    bits = np.frexp(tokens[kept].astype(np.float64))[1]
    counts.sizes.update({bit: count for bit, count in enumerate(np.bincount(bits).tolist()) if count})
    if kept.all():
        return
    tasks, task_names = coded(batch["task"])
    reasons, reason_names = coded(batch["reason"])
    # One code for each pair of task and reason; null has the code 0 of both.
    width = len(reason_names) + 1
    pairs = (tasks + 1) * width + reasons + 1
    lost_of_pair = np.bincount(pairs[~kept], lost[~kept])
    for pair in np.flatnonzero(lost_of_pair).tolist():
        task, reason = [None, *task_names][pair // width], [None, *reason_names][pair % width]
        counts.drops[task, reason] += int(lost_of_pair[pair])
        examples = counts.examples.setdefault(reason, [])
        if len(examples) < _MOST_EXAMPLES:
            rows = np.flatnonzero(~kept & (pairs == pair))[: _MOST_EXAMPLES - len(examples)]
            ids = batch["episode_id"].take(pa.array(rows)).to_pylist()
            examples.extend(id_ for id_ in ids if id_ is not None)
