"""Numbers of a dataset for tables: hours, drops, and how returns and lengths are distributed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.tables.output import Output
from gatokit.schemas.index import REASONS


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
            meaning=REASONS.get(row["reason"], "a reason that this gatokit does not know"),
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
        output.say(f"{drop.episodes:>9,}  {drop.reason}: {drop.meaning}\n{'':11}such as {drop.example}")


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


def histogram(dataset: DatasetReader, task: str, bins: int = 12) -> list[Bin]:
    """The returns of a task's sound episodes in at most about ``bins`` bins whose borders are round numbers."""
    rows = dataset.index(["return", "kept"], (pc.field("task") == task) & pc.field("return").is_valid())
    returns, kept = rows["return"].to_numpy(), rows["kept"].to_numpy()
    if not len(returns):
        return []
    low, high = float(returns.min()), float(returns.max())
    if not high - low > abs(high) * 1e-12:
        return [Bin(low, high, int(kept.sum()), int((~kept).sum()))]
    edges = _edges(low, high, bins)
    counts = [np.histogram(returns[which], edges)[0].tolist() for which in (kept, ~kept)]
    borders = edges.tolist()
    return [Bin(*values) for values in zip(borders[:-1], borders[1:], *counts, strict=True)]


def _edges(low: float, high: float, bins: int) -> np.ndarray:
    """Multiples of 1, 2 or 5 times a power of ten that enclose [low, high]."""
    raw = (high - low) / bins
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / width), math.ceil(high / width)
    return np.arange(first, max(last, first + 1) + 1) * width
