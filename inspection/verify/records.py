"""The records of a shard file against the index rows of the episodes or documents that it holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gatokit.inspection.read.shards import open_shard
from gatokit.schemas.errors import DataError
from gatokit.schemas.record import Record
from gatokit.storage.array_record import ArrayRecordFile

_BATCH = 32


@dataclass(frozen=True)
class Owner:
    """What the index says of one stored episode or document; its records follow each other in the shard."""

    id: str
    spec: str | None
    steps: int | None
    episode_return: float | None
    record_tokens: list[int]


class ContentCheck(Protocol):
    """Checks what the records of a dataset hold; ``noun`` is ``episode`` or ``document``."""

    noun: str

    def check(self, record: Record, owner: Owner, next_step: int | None) -> None:
        """Raises ValueError, with a sentence, if the record is not one of the owner's that may come next. ``next_step``
        is the step that it should begin with, None if that is unknown."""

    def fault(self, owner: Owner, rewards: np.ndarray, flags: np.ndarray) -> str | None:
        """What is wrong with an owner whose records are each sound; ``rewards`` and ``flags`` are of all its steps."""


def shard_faults(
    path: Path, records: int, owners: list[Owner], content: ContentCheck, moved: Callable[[int], None]
) -> Iterator[str]:
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
                yield from _owner_faults(owner, stream, content)
    except DataError as error:
        yield str(error).removeprefix(f"{path} ")


def _owner_faults(owner: Owner, stream: Iterator[tuple[int, bytes | str]], content: ContentCheck) -> Iterator[str]:
    next_step: int | None = 0
    rewards, flags = [], []
    is_sound = True
    for chunk, size in enumerate(owner.record_tokens):
        number, data = next(stream)
        record = None
        try:
            if isinstance(data, str):
                raise ValueError(data)
            record = Record.from_bytes(data)
            _check_place(record, owner, chunk, size, content.noun)
            content.check(record, owner, next_step)
            rewards.append(record.reward)
            flags.append(record.flags)
        except ValueError as error:
            yield f"record {number:,} of {content.noun} {owner.id!r}: {error}"
            is_sound = False
        # The step that follows a record that does not parse is unknown.
        next_step = None if record is None else record.first_step + len(record.flags)
    if is_sound and flags:
        fault = content.fault(owner, np.concatenate(rewards), np.concatenate(flags))
        if fault is not None:
            yield f"{content.noun} {owner.id!r}: {fault}"


def _check_place(record: Record, owner: Owner, chunk: int, size: int, noun: str) -> None:
    """Raises ValueError if the index has something else at this place."""
    chunks = len(owner.record_tokens)
    if record.owner != owner.id:
        raise ValueError(f"it belongs to {noun} {record.owner!r}")
    if (record.chunk, record.chunks) != (chunk, chunks):
        raise ValueError(f"it is chunk {record.chunk} of {record.chunks}, and the index says {chunk} of {chunks}")
    if len(record.sequence.tokens) != size:
        raise ValueError(f"it has {len(record.sequence.tokens)} tokens, and the index says {size}")


def _stream(shard: ArrayRecordFile, moved: Callable[[int], None]) -> Iterator[tuple[int, bytes | str]]:
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
