"""The records of a shard file against the index rows of what it holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gatokit.inspection.read.shards import ShardReader, open_shard
from gatokit.schemas.errors import DataError
from gatokit.schemas.record import Record

_BATCH = 32


@dataclass(frozen=True)
class Owner:
    """What the index says of one stored episode or document; its records follow each other in the shard."""

    id: str
    spec: str | None
    steps: int | None
    episode_return: float | None
    record_tokens: list[int]


class OwnerCheck(Protocol):
    """Checks what the records of one owner hold, one after the other."""

    def check(self, record: Record) -> None:
        """ValueError, as a sentence, where the record is not what may come next."""

    def passed(self, record: Record | None) -> None:
        """Called behind every record, also a faulty one; None stands for one that does not parse."""

    def whole(self) -> str | None:
        """What is wrong with an owner whose records are each sound."""


class ContentCheck(Protocol):
    """Checks what the records of a dataset hold; ``what`` is it made of: ``episode`` or ``document``."""

    what: str

    def begin(self, owner: Owner) -> OwnerCheck:
        """The check of one owner."""


class RecordChecker:
    """Checks the shards of one dataset: every record is its owner's, in its place, and sound."""

    def __init__(self, content: ContentCheck) -> None:
        self._content = content

    def faults(self, path: Path, records: int, owners: list[Owner], moved: Callable[[int], None]) -> Iterator[str]:
        """What is wrong with a shard that should hold ``records`` records, those of ``owners`` in order.

        ``moved`` is called with the number of records that were just read.
        """
        try:
            with open_shard(path) as shard:
                if shard.records != records:
                    yield f"holds {shard.records:,} records, and the manifest says {records:,}"
                    return
                stream = _stream(shard, moved)
                for owner in owners:
                    yield from self._owner(owner, stream)
        except DataError as error:
            yield str(error).removeprefix(f"{path} ")

    def _owner(self, owner: Owner, stream: Iterator[tuple[int, bytes | str]]) -> Iterator[str]:
        what, check, sound = self._content.what, self._content.begin(owner), True
        for chunk, size in enumerate(owner.record_tokens):
            number, data = next(stream)
            record = None
            try:
                if isinstance(data, str):
                    raise ValueError(data)
                record = Record.from_bytes(data)
                self._place(record, owner, chunk, size)
                check.check(record)
            except ValueError as error:
                yield f"record {number:,} of {what} {owner.id!r}: {error}"
                sound = False
            check.passed(record)
        fault = check.whole() if sound else None
        if fault is not None:
            yield f"{what} {owner.id!r}: {fault}"

    def _place(self, record: Record, owner: Owner, chunk: int, size: int) -> None:
        """ValueError where the index has something else at this place."""
        chunks = len(owner.record_tokens)
        if record.owner != owner.id:
            raise ValueError(f"it belongs to {self._content.what} {record.owner!r}")
        if (record.chunk, record.chunks) != (chunk, chunks):
            raise ValueError(f"it is chunk {record.chunk} of {record.chunks}, and the index says {chunk} of {chunks}")
        if len(record.sequence.tokens) != size:
            raise ValueError(f"it has {len(record.sequence.tokens)} tokens, and the index says {size}")


def _stream(shard: ShardReader, moved: Callable[[int], None]) -> Iterator[tuple[int, bytes | str]]:
    """Number and bytes of every record, or the sentence that says why it cannot be read."""
    for begin in range(0, shard.records, _BATCH):
        end = min(begin + _BATCH, shard.records)
        moved(end - begin)
        try:
            yield from enumerate(shard.read(begin, end), begin)
        except DataError:
            for number in range(begin, end):
                try:
                    yield number, shard.read(number, number + 1)[0]
                except DataError:
                    yield number, "it cannot be read"
