"""Counts what is lost on the way from a source to its shards, and stops a build that loses more than its config allows.

Three things are counted apart: rows that are rejected (``Losses``), bytes of files that cannot be read to their end
(``SourceLosses``), and parts of kept rows that a rule skips or changes, such as pictures (``LeftOut``).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from gatokit.schemas.config import BuildConfig
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import BAD_REASONS, CONTAINER_REASONS, ENDS_EARLY
from gatokit.schemas.manifest import SourceLoss

_MOST_EXAMPLES = 5


class Losses:
    """Counts episodes or documents, ``rows`` of them, and the lost ones by reason. ``examples`` has the first id of
    each reason with its detail."""

    def __init__(self) -> None:
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, rows: pa.Table, ids: Callable[[pa.Table], Iterable[str]]) -> None:
        """Counts the next rows; those with a ``reason`` are lost. ``ids`` gives the ids of rows."""
        self.rows += pc.sum(rows["lost"]).as_py() or 0
        if rows["reason"].null_count == len(rows):
            return
        bad = rows.filter(pc.is_valid(rows["reason"]))
        columns = (bad[name].to_pylist() for name in ("reason", "lost", "detail"))
        for id_, reason, number, detail in zip(ids(bad), *columns, strict=True):
            self.counts[reason] += number
            self.examples.setdefault(reason, id_ if detail is None else f"{id_}: {detail}")

    def allowed(self, config: BuildConfig) -> int:
        """The number of rows that may be bad."""
        share = config.max_bad_fraction
        return max(config.free_bad_rows, math.floor(share * self.rows + 1e-9)) if share else 0

    def check_budget(self, config: BuildConfig, dataset: str, noun: str = "episodes") -> None:
        """Raises DataError if more of the episodes (or ``noun``) are bad than the config allows.

        Of documents, those that are lost with a part of their file count in bytes alone (``SourceLosses``), because
        nobody knows how many they are.
        """
        counted = BAD_REASONS.keys() - (CONTAINER_REASONS if noun == "documents" else frozenset())
        bad = {reason: count for reason, count in self.counts.items() if reason in counted}
        total, allowed = sum(bad.values()), self.allowed(config)
        if total > allowed:
            parts = "; ".join(
                f"{count} {reason} (first {self.examples[reason]})" for reason, count in sorted(bad.items())
            )
            raise DataError(
                f"{dataset}: {total} of {self.rows} {noun} are bad, more than the {allowed} that max_bad_fraction "
                f"{config.max_bad_fraction:g} allows: {parts}. Mend the source or raise max_bad_fraction"
            )


class _File(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...


class SourceLosses:
    """Adds up the bytes of a dataset's ``files`` that cannot be read, from the rows of its scan.

    A file that ends early counts with all its bytes, because nobody knows how many it lacks.
    """

    def __init__(self, files: Sequence[_File]) -> None:
        self._files = files
        self._lost: dict[int, int] = {}
        self._early: set[int] = set()
        self._examples: dict[int, str] = {}

    def add(self, scanned: pa.Table) -> None:
        """Takes the next rows of the scan."""
        reasons = scanned["reason"]
        if reasons.null_count == len(scanned):
            return
        rows = scanned.filter(pc.is_in(reasons.cast(pa.string()), pa.array(sorted(CONTAINER_REASONS))))
        columns = (rows[name].to_pylist() for name in ("file", "reason", "detail", "lost_bytes"))
        for file, reason, detail, lost in zip(*columns, strict=True):
            self._lost[file] = self._lost.get(file, 0) + lost
            self._examples.setdefault(file, f"{self._files[file].name}: {detail}")
            if reason == ENDS_EARLY:
                self._early.add(file)

    def entry(self) -> SourceLoss | None:
        """What the manifest says of it; None if every file was read to its end."""
        if not self._lost:
            return None
        lost = {
            file: self._files[file].size if file in self._early else min(count, self._files[file].size)
            for file, count in self._lost.items()
        }
        return SourceLoss(
            files=len(self._files),
            damaged=len(self._lost.keys() - self._early),
            ends_early=len(self._early),
            bytes=sum(file.size for file in self._files),
            lost_bytes=sum(lost.values()),
            examples=[self._examples[file] for file in sorted(self._examples)[:_MOST_EXAMPLES]],
        )

    def check_budget(self, config: BuildConfig, dataset: str) -> None:
        """Raises DataError if a larger share of the bytes is lost than ``max_lost_bytes``. If that is 0, no file may be
        damaged."""
        entry = self.entry()
        if entry is None or (config.max_lost_bytes and entry.share <= config.max_lost_bytes):
            return
        more = f", more than the {config.max_lost_bytes:g} that max_lost_bytes allows" if config.max_lost_bytes else ""
        raise DataError(
            f"{dataset}: {entry.sentence}{more}. Fetch or mend the files, leave them out of the source, or set "
            "max_lost_bytes to the share that may be lost"
        )


class LeftOut:
    """Counts what rules skip or change in rows that are kept: by what it is and the reason, the number and the first
    one; and by what it is, the number of all that there are.

    ``what`` is a plural that a sentence can begin with, such as ``pictures``. Counts of several shards are merged.
    """

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.examples: dict[tuple[str, str], str] = {}

    def add(self, what: str, reason: str, count: int, first: str) -> None:
        """Counts ``count`` more of ``what`` that are left out for ``reason``; ``first`` says where the first of them
        is."""
        self.counts[what, reason] += count
        self.examples.setdefault((what, reason), first)

    def merge(self, other: "LeftOut") -> None:
        """Adds the counts of a later shard."""
        self.totals.update(other.totals)
        for (what, reason), count in other.counts.items():
            self.add(what, reason, count, other.examples[what, reason])

    def to_json(self) -> dict[str, Any]:
        """Plain values: by ``what``, ``of`` and for each reason its count and its first."""
        return {
            what: {
                "of": total,
                "reasons": {
                    reason: [count, self.examples[what, reason]]
                    for (of, reason), count in sorted(self.counts.items())
                    if of == what
                },
            }
            for what, total in sorted(self.totals.items())
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "LeftOut":
        """The counts whose ``to_json`` is ``values``."""
        left_out = LeftOut()
        for what, entry in values.items():
            left_out.totals[what] = entry["of"]
            for reason, (count, first) in entry["reasons"].items():
                left_out.add(what, reason, count, first)
        return left_out

    def check_bound(self, what: str, share: float, dataset: str, way_out: str) -> None:
        """Raises DataError, with the way out, if a larger share of ``what`` than ``share`` is left out."""
        total = self.totals[what]
        reasons = {reason: count for (of, reason), count in self.counts.items() if of == what}
        count = sum(reasons.values())
        if count > share * total:
            parts = "; ".join(
                f"{number:,} {reason}, first {self.examples[what, reason]}" for reason, number in reasons.items()
            )
            raise DataError(f"{dataset}: {what} left out: {count:,} of {total:,} ({parts}). {way_out}")
