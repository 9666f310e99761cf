"""What documents hold: tokens by kind and images by size, counted in all records of a dataset or in a sample."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.shards import open_shard
from gatokit.schemas.errors import DataError
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import TokenKind
from gatokit.storage.array_record import ArrayRecordFile

_BATCH = 32


@dataclass(frozen=True)
class Effort:
    """At most so many records are read, and about so many bytes of them."""

    records: int
    bytes: int


@dataclass(frozen=True)
class ImageSize:
    """``images`` of one size, in pixels."""

    height: int
    width: int
    images: int


@dataclass(frozen=True)
class Contents:
    """Counts over ``counted`` of the ``records`` of a dataset: all of them, or evenly spaced ones.

    ``sizes`` are those of the ``images``, the most frequent first.
    """

    counted: int
    records: int
    text_tokens: int
    image_tokens: int
    images: int
    sizes: tuple[ImageSize, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every record was counted."""
        return self.counted == self.records


def contents(dataset: DatasetReader, effort: Effort, moved: Callable[[int, int], None] | None = None) -> Contents:
    """Counts the kinds of tokens and the images of a dataset of documents, in a sample if ``effort`` does not allow
    all records. Nothing is read of a dataset of text. ``moved`` is called with the records done and their number.

    Raises DataError if a shard cannot be read.
    """
    totals = dataset.totals
    if dataset.described.documents is None or dataset.described.documents.pictures is None:
        return Contents(totals.records, totals.records, totals.tokens, 0, 0, ())
    most = min(effort.records, effort.bytes * totals.records // max(totals.bytes, 1))
    count = min(totals.records, max(most, 1))
    # Record k·R/n of R for each k of n: every record if n is R.
    sample = np.arange(count, dtype=np.int64) * totals.records // max(count, 1)
    kinds, sizes, first, done = np.zeros(256, np.int64), Counter[tuple[int, int]](), 0, 0
    for part in (part for split in totals.splits for part in split.parts):
        ordinals = sample[(sample >= first) & (sample < first + part.records)] - first
        first += part.records
        if not len(ordinals):
            continue
        path = dataset.path / part.file
        with open_shard(path) as shard:
            for begin in range(0, len(ordinals), _BATCH):
                for record in _read(shard, path, ordinals[begin : begin + _BATCH]):
                    kinds += np.bincount(record.sequence.kinds, minlength=256)
                    sizes.update((placed.image.height, placed.image.width) for placed in record.sequence.images)
                    done += 1
                if moved is not None:
                    moved(done, count)
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return Contents(
        counted=count,
        records=totals.records,
        text_tokens=int(kinds[TokenKind.TEXT]),
        image_tokens=int(kinds[TokenKind.IMAGE]),
        images=sizes.total(),
        sizes=tuple(ImageSize(height, width, images) for (height, width), images in ordered),
    )


def _read(shard: ArrayRecordFile, path: Path, ordinals: np.ndarray) -> list[Record]:
    """The records with these ordinals, ascending; in one read if they follow each other."""
    begin, end = int(ordinals[0]), int(ordinals[-1]) + 1
    if end - begin == len(ordinals):
        data = shard.read(begin, end)
    else:
        data = [shard.read(ordinal, ordinal + 1)[0] for ordinal in ordinals.tolist()]
    try:
        return [Record.from_bytes(record) for record in data]
    except ValueError as error:
        raise DataError(f"{path}: a record of [{begin}, {end}) is damaged: {error}") from None
