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
from gatokit.schemas.manifest import LeftOutEntry, SourceLoss

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


PICTURES = "pictures left out"
UNKNOWN_PIECES = "text tokens unknown to the vocabulary"


class LeftOut:
    """Counts what rules skip or change in rows that are kept: by what they do and why, how often and where first; and
    by what they do, how often they could have.

    What they do is a phrase that a sentence can begin with, such as ``pictures left out``. Counts of several shards are
    merged.
    """

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], str] = {}

    def add(self, what: str, reason: str, count: int, first: str) -> None:
        """Counts ``count`` more cases of ``what`` for ``reason``, of which the first is at ``first``."""
        if count:
            self._counts[what, reason] += count
            self._first.setdefault((what, reason), first)

    @property
    def is_used(self) -> bool:
        """Whether there was anything that a rule could leave out."""
        return bool(self.totals or self._counts)

    def merge(self, other: "LeftOut") -> None:
        """Adds the counts of a later shard."""
        self.totals.update(other.totals)
        for (what, reason), count in other._counts.items():
            self.add(what, reason, count, other._first[what, reason])

    def entries(self) -> list[LeftOutEntry]:
        """What the manifest says of it."""
        return [
            LeftOutEntry(what=what, reason=reason, count=count, of=self.totals[what], first=self._first[what, reason])
            for (what, reason), count in sorted(self._counts.items())
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values, of which ``from_json`` makes the same counts."""
        return {"totals": dict(sorted(self.totals.items())), "entries": [item.model_dump() for item in self.entries()]}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "LeftOut":
        """The counts whose ``to_json`` is ``values``."""
        left_out = LeftOut()
        left_out.totals.update(values["totals"])
        for entry in values["entries"]:
            left_out.add(entry["what"], entry["reason"], entry["count"], entry["first"])
        return left_out

    def check_bounds(self, config: BuildConfig, dataset: str) -> None:
        """Raises DataError if more pictures are left out, or more pieces are unknown, than the config allows."""
        bounds = (
            (PICTURES, "max_bad_images", "Get the pictures, or set image_dir to their folder"),
            (UNKNOWN_PIECES, "max_unknown_pieces", "Train a vocabulary with `gatokit vocab`, which knows every byte"),
        )
        for what, key, way_out in bounds:
            entries = [entry for entry in self.entries() if entry.what == what]
            share = getattr(config, key)
            if sum(entry.count for entry in entries) > share * self.totals[what]:
                said = "; ".join(entry.sentence for entry in entries)
                raise DataError(f"{dataset}: {said}, more than the share {share:g}. {way_out}, or raise {key}")
