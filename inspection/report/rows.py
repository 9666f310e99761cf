"""One pass over an index for what its rows say together: how many there are, why they were dropped, examples.

Legend: R rows of a batch.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.columns import coded
from gatokit.inspection.read.dataset import DatasetReader

_MOST_EXAMPLES = 3
_COLUMNS = ["task", "kept", "reason", "lost", "tokens", "episode_id"]


@dataclass
class Overview:
    """All rows of an index. ``found`` counts what they stand for, ``drops`` by task (None where it is unknown) and
    reason (None likewise); ``examples`` are the first ids of each reason. ``sizes`` counts kept rows by the bits of
    their number of tokens: n in [2^(b-1), 2^b) has b. ``first_kept`` are the ordinals of the first kept rows."""

    rows: int = 0
    found: int = 0
    kept: int = 0
    drops: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    examples: dict[str | None, list[str]] = field(default_factory=dict)
    sizes: Counter[int] = field(default_factory=Counter)
    first_kept: list[int] = field(default_factory=list)
    missing: tuple[str, ...] = ()
    """Columns that the index lacks."""

    def reasons(self) -> list[tuple[str | None, int]]:
        """How many were dropped for each reason, the most frequent first."""
        counts: Counter[str | None] = Counter()
        for (_, reason), count in self.drops.items():
            counts[reason] += count
        return sorted(counts.items(), key=_most_first)

    def reasons_by_task(self) -> dict[str | None, list[tuple[str | None, int]]]:
        """The same of each task that lost any."""
        found: dict[str | None, list[tuple[str | None, int]]] = {}
        for (task, reason), count in self.drops.items():
            found.setdefault(task, []).append((reason, count))
        return {task: sorted(counts, key=_most_first) for task, counts in found.items()}


def _most_first(item: tuple[str | None, int]) -> tuple[int, str]:
    return -item[1], item[0] or ""


def overview(dataset: DatasetReader, first_kept: int) -> Overview:
    """Reads an index once, some rows at a time; notes the ordinals of so many kept rows. DataError where it cannot be
    read."""
    found = Overview(missing=dataset.missing_columns())
    for batch in dataset.batches(_COLUMNS):
        _add(found, batch, first_kept)
    return found


def _add(found: Overview, batch: pa.RecordBatch, first_kept: int) -> None:
    kept = pc.fill_null(batch["kept"], False).to_numpy(zero_copy_only=False)
    lost = pc.fill_null(batch["lost"], 1).to_numpy(zero_copy_only=False)
    tokens = pc.fill_null(batch["tokens"], 0).to_numpy(zero_copy_only=False)
    if len(found.first_kept) < first_kept:
        found.first_kept += (np.flatnonzero(kept)[: first_kept - len(found.first_kept)] + found.rows).tolist()
    found.rows += len(kept)
    found.found += int(lost.sum())
    found.kept += int(kept.sum())
    bits = np.frexp(tokens[kept].astype(np.float64))[1]
    found.sizes.update({bit: count for bit, count in enumerate(np.bincount(bits).tolist()) if count})
    if kept.all():
        return
    tasks, task_names = coded(batch["task"])
    reasons, reason_names = coded(batch["reason"])
    width = len(reason_names) + 1
    pairs = (tasks[~kept] + 1) * width + reasons[~kept] + 1
    counts = np.bincount(pairs, lost[~kept])
    for pair in np.flatnonzero(counts).tolist():
        task, reason = [None, *task_names][pair // width], [None, *reason_names][pair % width]
        found.drops[task, reason] += int(counts[pair])
        own = found.examples.setdefault(reason, [])
        if len(own) < _MOST_EXAMPLES:
            rows = np.flatnonzero(~kept & (tasks + 1 == pair // width) & (reasons + 1 == pair % width))
            ids = batch["episode_id"].take(pa.array(rows[: _MOST_EXAMPLES - len(own)])).to_pylist()
            own.extend(id_ for id_ in ids if id_ is not None)
