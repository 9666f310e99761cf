"""Numbers of a dataset for tables: hours, drops, returns, lengths, and the kinds of tokens and images of documents."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from gatokit.inspection.read.directory import DatasetReader, open_shard, read_records
from gatokit.inspection.read.index import reason_meaning
from gatokit.inspection.tables.output import Output
from gatokit.schemas.tokens import TokenKind

_BATCH = 32
_BINS = 12


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
        ordinals = (sample[(sample >= first) & (sample < first + part.records)] - first).tolist()
        first += part.records
        if not ordinals:
            continue
        with open_shard(dataset.file(part.file)) as shard:
            for at in range(0, len(ordinals), _BATCH):
                batch = ordinals[at : at + _BATCH]
                if batch[-1] - batch[0] == len(batch) - 1:
                    records = read_records(shard, batch[0], batch[-1] + 1)
                else:
                    records = [record for ordinal in batch for record in read_records(shard, ordinal, ordinal + 1)]
                for record in records:
                    kinds += np.bincount(record.sequence.kinds, minlength=256)
                    sizes.update((placed.image.height, placed.image.width) for placed in record.sequence.images)
                done += len(batch)
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


@dataclass(frozen=True)
class Drop:
    """A reason, the episodes or documents that were dropped for it, what it means and the id of the first."""

    reason: str
    episodes: int
    meaning: str
    example: str


@dataclass(frozen=True)
class Bin:
    """Sound episodes whose return lies in [low, high), or [low, high] in the last bin."""

    low: float
    high: float
    kept: int
    dropped: int


@dataclass(frozen=True)
class Lengths:
    """Tokens of the kept documents: the shortest, the one that a tenth are shorter than, … and the longest.

    The median of an even number of documents is the lower one of the middle two.
    """

    shortest: int
    tenth: int
    median: int
    nine_tenths: int
    longest: int
    longest_id: str


def hours(dataset: DatasetReader) -> float | None:
    """Duration of the kept steps in hours; None if the control rate is unknown."""
    hz = dataset.totals.hz
    return None if hz is None else sum(row.steps for row in dataset.tasks) / hz / 3600


def drops(dataset: DatasetReader, task: str | None = None) -> list[Drop]:
    """Why episodes or documents of a dataset, or of one of its tasks, were dropped, the most frequent reason first."""
    where = ~pc.field("kept") if task is None else ~pc.field("kept") & (pc.field("task") == task)
    rows = dataset.index(["reason", "lost", "episode_id"], where)
    grouped = rows.group_by("reason", use_threads=False).aggregate([("lost", "sum"), ("episode_id", "first")])
    dropped = [
        Drop(
            reason=row["reason"] or "unknown",
            episodes=row["lost_sum"],
            meaning=reason_meaning(row["reason"]),
            example=row["episode_id_first"],
        )
        for row in grouped.to_pylist()
    ]
    return sorted(dropped, key=lambda drop: (-drop.episodes, drop.reason))


def show_drops(output: Output, name: str, dropped: Sequence[Drop]) -> None:
    """Shows each reason with its count and meaning, and below it the first episode or document."""
    if dropped:
        output.say(f"dropped of {name}:")
    for drop in dropped:
        output.say(f"{drop.episodes:>9,}  {drop.reason}: {drop.meaning}", f"{'':11}such as {drop.example}")


def lengths(dataset: DatasetReader) -> Lengths | None:
    """The lengths of the kept documents (or episodes) of a dataset in tokens; None in a scan."""
    rows = dataset.index(["tokens"], pc.field("kept") & pc.field("tokens").is_valid())
    tokens = rows["tokens"].to_numpy()
    if not len(tokens):
        return None
    ranks = [(len(tokens) - 1) * tenths // 10 for tenths in (0, 1, 5, 9, 10)]
    shortest, tenth, median, nine_tenths, last = np.partition(tokens, ranks)[ranks].tolist()
    longest = next(iter(dataset.index(["episode_id"], pc.field("tokens") == last)["episode_id"]))
    return Lengths(shortest, tenth, median, nine_tenths, last, longest.as_py())


def histogram(dataset: DatasetReader, task: str) -> list[Bin]:
    """The returns of a task's sound episodes in about a dozen bins, whose borders are round numbers."""
    rows = dataset.index(["return", "kept"], (pc.field("task") == task) & pc.field("return").is_valid())
    returns, kept = rows["return"].to_numpy(), rows["kept"].to_numpy()
    if not len(returns):
        return []
    low, high = float(returns.min()), float(returns.max())
    if not high - low > abs(high) * 1e-12:
        return [Bin(low, high, int(kept.sum()), int((~kept).sum()))]
    # The borders are multiples of 1, 2 or 5 times a power of ten.
    least_width = (high - low) / _BINS
    power = 10.0 ** math.floor(math.log10(least_width))
    width = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least_width * (1 - 1e-9))
    first, last = math.floor(low / width), math.ceil(high / width)
    borders = np.arange(first, max(last, first + 1) + 1) * width
    counts = (np.histogram(returns[which], borders)[0].tolist() for which in (kept, ~kept))
    return [Bin(*values) for values in zip(borders[:-1].tolist(), borders[1:].tolist(), *counts, strict=True)]
