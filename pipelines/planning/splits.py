"""Decides which rows become one shard, and which kept rows are held out for evaluation.

Large files are divided and small ones joined. The name of a file decides whether a group of small files ends with it,
so that a new file changes its own group and no other. Only if no name ends a group in time, its size does; then the
groups up to the next such name may change too. Legend: R rows of a dataset.
"""

import hashlib
from collections.abc import Collection
from dataclasses import replace
from typing import TypeVar

import numpy as np

from gatokit.pipelines.dataset import FilterResult

LARGEST_GROUP = 2
"""A group of joined files ends at the latest at this multiple of the split size."""
Result = TypeVar("Result", bound=FilterResult)


class Splitter:
    """Assigns rows to splits, file after file."""

    def __init__(self, split_bytes: int) -> None:
        self._split_bytes = split_bytes
        self._current = self._held = 0

    def assign(self, names: list[str], file: np.ndarray, length: np.ndarray, whole: Collection[int] = ()) -> np.ndarray:
        """The split of the next rows, int64 (R,), counted from 0 over all calls. All rows of a file come in one call.

        ``file``, int (R,), is the row's file as an ascending index into ``names``. ``length``, int64 (R,), is the
        row's size in bytes. ``whole`` has the files that cannot be divided.
        """
        split = np.zeros(len(file), np.int64)
        if not len(file):
            return split
        ordinals, starts = np.unique(file, return_index=True)
        ends = np.append(starts[1:], len(file))
        for ordinal, start, end in zip(ordinals.tolist(), starts, ends, strict=True):
            sizes = length[start:end]
            total = int(sizes.sum())
            if total > self._split_bytes:
                self._current += self._held > 0
                pieces = 1 if ordinal in whole else -(-total // self._split_bytes)
                numbers = _divide(sizes, pieces)
                split[start:end] = self._current + numbers
                self._current += int(numbers[-1]) + 1
                self._held = 0
                continue
            if self._held + total > LARGEST_GROUP * self._split_bytes:
                self._current, self._held = self._current + 1, 0
            split[start:end] = self._current
            self._held += max(total, 1)
            if _ends_group(names[ordinal], total / self._split_bytes):
                self._current, self._held = self._current + 1, 0
        return split


def _divide(sizes: np.ndarray, pieces: int) -> np.ndarray:
    before = np.cumsum(sizes) - sizes
    _, dense = np.unique(before * pieces // max(1, int(sizes.sum())), return_inverse=True)
    return dense


def _ends_group(name: str, share: float) -> bool:
    """Whether a group ends with this file: decided by the hash of its name, with the probability ``share``."""
    value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return value < share * 2.0**64


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
