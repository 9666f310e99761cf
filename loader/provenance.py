"""What a row of a batch was made of, for people to read: which records of which owner, and how many tokens count."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gatokit.loader.records import RecordSpan, Shard

COLUMNS = ("row", "dataset", "task", "episode or document", "shard", "records", "tokens", "prompt from", "targets")
"""Titles of ``table_rows``."""


@dataclass(frozen=True)
class Segment:
    """Tokens [``begin``, ``end``) of one episode or document, counted from the beginning of the first of the records
    ``first_record`` to ``last_record`` of the file ``shard``."""

    owner: str
    shard: str
    first_record: int
    last_record: int
    begin: int
    end: int


@dataclass(frozen=True)
class Provenance:
    """One window: ``task`` and ``agent`` are None for documents, ``prompt`` is None without one.

    ``redraws`` counts the windows that were given up for this one because the group's patch slots were full.
    """

    row: int
    sample: int
    dataset: str
    task: str | None
    agent: str | None
    prompt: Segment | None
    segments: tuple[Segment, ...]
    tokens: int
    targets: int
    patches: int
    hides_actions: bool
    redraws: int

    @property
    def owner(self) -> str:
        """Id of the (first) episode or document."""
        return self.segments[0].owner

    def to_json(self) -> dict[str, Any]:
        """The fields by name, and the owner."""
        return asdict(self) | {"owner": self.owner}


def segments_of(spans: Iterable[RecordSpan], shards: list[Shard], context: int) -> tuple[Segment, ...]:
    """The segments of consecutive spans of a row, without the token behind its window."""
    found = []
    shown = [span._replace(take=min(span.take, context - span.column)) for span in spans if span.column < context]
    # Records of one owner have the same first record.
    for _, group in groupby(shown, lambda span: (span.document, span.shard, span.record - span.view.chunk)):
        of_owner = list(group)
        found.append(
            Segment(
                owner=of_owner[0].view.owner,
                shard=shards[of_owner[0].shard].path,
                first_record=of_owner[0].record,
                last_record=of_owner[-1].record,
                begin=of_owner[0].skip,
                end=of_owner[0].skip + sum(span.take for span in of_owner),
            )
        )
    return tuple(found)


def table_rows(windows: Iterable[Provenance]) -> list[list[Any]]:
    """One row for each episode or document of the windows; the first of a window has what counts for all of it."""
    rows: list[list[Any]] = []
    for window in windows:
        prompt = window.prompt
        of_prompt = "" if prompt is None else f"{prompt.owner} {prompt.begin}–{prompt.end}"
        for number, segment in enumerate(window.segments):
            records = f"{segment.first_record}"
            if segment.last_record > segment.first_record:
                records += f"–{segment.last_record}"
            place = [segment.owner, Path(segment.shard).name, records, f"{segment.begin}–{segment.end}"]
            if number == 0:
                rows.append([window.row, window.dataset, window.task or "", *place, of_prompt, window.targets])
            else:
                rows.append([window.row, "", "", *place, "", None])
    return rows
