"""Decides which kept episodes and documents are held out for evaluation. Legend: R rows of a dataset."""

from dataclasses import replace
from typing import TypeVar

import numpy as np

from gatokit.pipelines.dataset import FilterResult

Result = TypeVar("Result", bound=FilterResult)


def hold_out(result: Result, share: float) -> Result:
    """The same result with ``held_out`` decided, and without the hashes, which nothing needs any more."""
    return replace(result, held_out=held_out(result.hashes, result.kept, result.task, share), hashes=np.empty(0))


def held_out(hashes: np.ndarray, kept: np.ndarray, task: np.ndarray, share: float) -> np.ndarray:
    """The kept rows that are held out, bool (R,): those whose hash falls below ``share`` of its range.

    At least one row and never all rows of every task that keeps two or more. No other row decides about a row, so that
    new rows elsewhere change nothing. Rows with the same hash stay together, unless a task has no other hash.
    """
    result = np.zeros(len(kept), bool)
    if share == 0:
        return result
    below = hashes < np.uint64(share * 2.0**64)
    rows = np.flatnonzero(kept & (task >= 0))
    rows = rows[np.argsort(task[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(task[rows], prepend=-1))
    for members in np.split(rows, starts[1:]):
        if len(members) < 2:
            continue
        values = hashes[members]
        lowest, highest = values.min(), values.max()
        chosen = below[members]
        if lowest == highest:
            chosen = np.arange(len(members)) == 0
        elif not chosen.any():
            chosen = values == lowest
        elif chosen.all():
            chosen = values != highest
        result[members[chosen]] = True
    return result
