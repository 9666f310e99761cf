"""What another threshold would keep, answered from the index without a rebuild."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.dataset import DatasetReader
from gatokit.schemas.config import Keep
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.index import BAD_REASONS
from gatokit.schemas.returns import reaches, threshold


@dataclass(frozen=True)
class TaskPreview:
    """A task under ``keep: {min_return: F}`` beside what it is now.

    ``added`` are kept then and not now, ``removed`` the other way round. ``dropped_at`` counts every episode
    that would not be kept, damaged ones included. ``task`` is None for episodes too damaged to name theirs.
    """

    task: str | None
    expert_return: float | None
    threshold: float | None
    threshold_at: float | None
    kept: int
    kept_at: int
    added: int
    removed: int
    dropped_at: int


def preview(dataset: DatasetReader, fraction: float) -> list[TaskPreview]:
    """What ``min_return: fraction`` would keep of every task, by the build's own rule, whatever rule it used.

    Expert returns are those of the tasks, over all sound episodes. Episodes that are damaged, were rejected
    for their content or have no step with an action are never kept; in a scan, and for episodes that the build
    dropped by their return, content has not been looked at. ConfigError for a fraction outside of [0, 1], and for
    documents.
    """
    keep = dataset.keep
    if keep is None:
        raise ConfigError(f"{dataset.name} holds documents, which have no threshold")
    if not 0 <= fraction <= 1:
        raise ConfigError(f"{fraction:g} is no fraction of the expert return: give a number from 0 to 1")
    expert = {row.task: row.expert_return for row in dataset.tasks if row.expert_return is not None}
    now = {row.task: row.threshold for row in dataset.tasks}
    then = {name: threshold(value, fraction, _random(keep, name)) for name, value in expert.items()}

    table = dataset.index(["task", "return", "steps", "kept", "reason", "lost"]).combine_chunks()
    task, names = _codes(table["task"])
    reason, reasons = _codes(table["reason"])
    # The last entry of each stands for null, whose code is -1.
    limits = np.array([then.get(name, np.nan) for name in names] + [np.nan])
    bad = np.array([name in BAD_REASONS for name in reasons] + [False])
    returns = table["return"].to_numpy()
    steps = pc.fill_null(table["steps"], 0).to_numpy()
    kept = table["kept"].to_numpy()
    kept_at = reaches(returns, limits[task]) & np.isfinite(returns) & (steps > 0) & ~bad[reason]

    def count(which: np.ndarray) -> list[int]:
        counts: list[int] = np.bincount(task[which] + 1, minlength=len(names) + 1).tolist()
        return counts

    lost = np.bincount(task + 1, table["lost"].to_numpy(), len(names) + 1).astype(np.int64).tolist()
    counts = zip(
        [None, *names], lost, count(kept), count(kept_at), count(kept_at & ~kept), count(kept & ~kept_at), strict=True
    )
    rows = [
        TaskPreview(
            task=name,
            expert_return=expert.get(name),
            threshold=now.get(name),
            threshold_at=then.get(name),
            kept=is_kept,
            kept_at=would_be,
            added=added,
            removed=removed,
            dropped_at=total - would_be,
        )
        for name, total, is_kept, would_be, added, removed in counts
        if total
    ]
    return sorted(rows, key=lambda row: (row.task is None, row.task or ""))


def _random(keep: Keep, task: str) -> float | None:
    random = keep.random_return
    return random.get(task) if isinstance(random, dict) else random


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """The code of each row, int64 (R,), -1 for null, and what the codes stand for."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    codes: np.ndarray = pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, array.dictionary.to_pylist()
