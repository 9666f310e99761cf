"""Plans the source's splits: which consecutive episodes become one shard.

Large files are divided and small ones joined. Where a group of small files ends is decided by the name of its
last file, so that a new file changes its own group and no other. Only a group that no name ends in time is ended
by its size, and then those up to the next such name may change with it.
"""

import hashlib

import numpy as np

LARGEST_GROUP = 2
"""A group of joined files ends at the latest at this multiple of the split size."""


def assign(names: list[str], file: np.ndarray, length: np.ndarray, split_bytes: int) -> np.ndarray:
    """The split of every row, int64 (R,) counting from 0.

    ``file`` int (R,) is the row's file as an ascending index into ``names``, ``length`` int64 (R,) its bytes.
    """
    split = np.zeros(len(file), np.int64)
    if not len(file):
        return split
    ordinals, starts = np.unique(file, return_index=True)
    ends = np.append(starts[1:], len(file))
    current, held = 0, 0
    for ordinal, start, end in zip(ordinals, starts, ends, strict=True):
        sizes = length[start:end]
        total = int(sizes.sum())
        if total > split_bytes:
            current += held > 0
            pieces = _divide(sizes, -(-total // split_bytes))
            split[start:end] = current + pieces
            current += int(pieces[-1]) + 1
            held = 0
            continue
        if held + total > LARGEST_GROUP * split_bytes:
            current, held = current + 1, 0
        split[start:end] = current
        held += max(total, 1)
        if _ends_group(names[ordinal], total / split_bytes):
            current, held = current + 1, 0
    return split


def _divide(sizes: np.ndarray, pieces: int) -> np.ndarray:
    before = np.cumsum(sizes) - sizes
    _, dense = np.unique(before * pieces // max(1, int(sizes.sum())), return_inverse=True)
    return dense


def _ends_group(name: str, share: float) -> bool:
    """Whether a group ends behind this file: with a probability of its share of a split, by its name's hash."""
    value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return value < share * 2.0**64
