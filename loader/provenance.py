"""What a row of a batch was made of, for people to read: which records of whom, and how many tokens count."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from gatokit.loader.canvas import Part
from gatokit.loader.records import Shard


@dataclass(frozen=True)
class Segment:
    """Tokens of one episode or document: those of [``begin``, ``end``), counted from the beginning of the first of
    the records ``first_record`` to ``last_record`` of the file ``shard``."""

    owner: str
    shard: str
    first_record: int
    last_record: int
    begin: int
    end: int


@dataclass(frozen=True)
class Sample:
    """One window: ``task`` and ``agent`` are None of documents, ``prompt`` where there is none.

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


def segments_of(parts: Iterable[Part], shards: list[Shard], context: int) -> tuple[Segment, ...]:
    """The segments that consecutive parts of a row make, without the token behind its window."""
    found = []
    shown = [part._replace(take=min(part.take, context - part.column)) for part in parts if part.column < context]
    for _, group in groupby(enumerate(shown), lambda item: _document(*item)):
        of = [part for _, part in group]
        found.append(
            Segment(
                owner=of[0].chunk.owner,
                shard=shards[of[0].shard].path,
                first_record=of[0].record,
                last_record=of[-1].record,
                begin=of[0].skip,
                end=of[0].skip + sum(part.take for part in of),
            )
        )
    return tuple(found)


def _document(number: int, part: Part) -> tuple[int, int]:
    """The same for consecutive records of one owner."""
    return part.shard, part.record - part.chunk.chunk
