"""Plans the source's splits: which consecutive episodes become one shard.

Large files are divided and small ones joined. Where a group of small files ends is decided by the name of its
last file, so that a new file changes its own group and no other. Only a group that no name ends in time is ended
by its size, and then those up to the next such name may change with it.
"""

import hashlib
from collections.abc import Collection

import numpy as np

LARGEST_GROUP = 2
"""A group of joined files ends at the latest at this multiple of the split size."""


class Splitter:
    """Gives rows their split, file after file."""

    def __init__(self, split_bytes: int) -> None:
        self._split_bytes = split_bytes
        self._current = self._held = 0

    def assign(self, names: list[str], file: np.ndarray, length: np.ndarray, whole: Collection[int] = ()) -> np.ndarray:
        """The split of the next rows, int64 (R,), counting from 0 over all calls; a file's rows come in one call.

        ``file`` int (R,) is the row's file as an ascending index into ``names``, ``length`` int64 (R,) its bytes,
        ``whole`` the files that cannot be divided.
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
    """Whether a group ends behind this file: with a probability of its share of a split, by its name's hash."""
    value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return value < share * 2.0**64
