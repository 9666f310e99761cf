"""The records of a shard file against the index rows of the episodes that it holds.

Legend: T tokens, S time steps, of one record.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gatokit.inspection.shards import ShardReader, open_shard
from gatokit.schemas.episode import FIRST, LAST, TERMINAL, TokenSequence
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.schemas.record import Record
from gatokit.schemas.spec import EpisodeSpec, FieldSpec
from gatokit.schemas.tokens import BINS, CONTINUOUS_OFFSET, DISCRETE_VALUES, IMAGE_ID, Kind, TokenIds
from gatokit.tokenizers.header import probe
from gatokit.tokenizers.layout import Arrangement, StepLayout

_BATCH = 32


@dataclass(frozen=True)
class Owner:
    """What the index says of one stored episode; its records follow each other in the shard."""

    episode_id: str
    spec: str
    steps: int
    episode_return: float | None
    record_tokens: list[int]


class RecordChecker:
    """Checks the shards of one dataset."""

    def __init__(self, specs: dict[str, EpisodeSpec], ids: TokenIds, pieces: int) -> None:
        """``specs`` are those of ``dataset.json`` by id, ``pieces`` the size of the vocabulary."""
        self._specs = {id_: _SpecChecker(spec, ids, pieces) for id_, spec in specs.items()}

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
        step: int | None = 0
        rewards, flags, sound = [], [], True
        for chunk, size in enumerate(owner.record_tokens):
            number, data = next(stream)
            record = None
            try:
                if isinstance(data, str):
                    raise ValueError(data)
                record = Record.from_bytes(data)
                self._place(record, owner, chunk, step, size)
                self._specs[record.spec].check(record)
                rewards.append(record.reward)
                flags.append(record.flags)
            except ValueError as error:
                yield f"record {number:,} of episode {owner.episode_id!r}: {error}"
                sound = False
            # Behind a record that does not parse nobody knows which step comes next.
            step = None if record is None else record.first_step + len(record.flags)
        if sound:
            fault = _whole(owner, np.concatenate(rewards), np.concatenate(flags))
            if fault:
                yield f"episode {owner.episode_id!r}: {fault}"

    def _place(self, record: Record, owner: Owner, chunk: int, step: int | None, size: int) -> None:
        """ValueError where the index has something else at this place."""
        chunks = len(owner.record_tokens)
        if record.owner != owner.episode_id:
            raise ValueError(f"it belongs to episode {record.owner!r}")
        if (record.chunk, record.chunks) != (chunk, chunks):
            raise ValueError(f"it is chunk {record.chunk} of {record.chunks}, and the index says {chunk} of {chunks}")
        if step not in (None, record.first_step):
            raise ValueError(f"it begins with step {record.first_step}, and step {step} comes next")
        if record.spec != owner.spec or record.spec not in self._specs:
            raise ValueError(f"it has the spec {record.spec}, and the index says {owner.spec}")
        if len(record.sequence.tokens) != size:
            raise ValueError(f"it has {len(record.sequence.tokens)} tokens, and the index says {size}")


class _SpecChecker:
    """Checks sequences of one spec: layout, ids of every kind, images."""

    def __init__(self, spec: EpisodeSpec, ids: TokenIds, pieces: int) -> None:
        self._layout = StepLayout(spec)
        self._images = {block: field for block, field in self._layout.fields.items() if field.kind == "image"}
        discrete = (ids.discrete_offset, ids.discrete_offset + DISCRETE_VALUES - 1)
        continuous = (CONTINUOUS_OFFSET, CONTINUOUS_OFFSET + BINS - 1)
        self._low, self._high = np.zeros((2, 256), np.uint16)
        for kind, (low, high) in {
            Kind.TEXT: (0, pieces - 1),
            Kind.IMAGE: (IMAGE_ID, IMAGE_ID),
            Kind.DISCRETE: discrete,
            Kind.CONTINUOUS: continuous,
            Kind.SEPARATOR: (ids.separator, ids.separator),
            Kind.DISCRETE_ACTION: discrete,
            Kind.CONTINUOUS_ACTION: continuous,
        }.items():
            self._low[kind], self._high[kind] = low, high

    def check(self, record: Record) -> None:
        """ValueError where the record's tokens are not those of whole steps of the spec."""
        sequence = record.sequence
        arrangement = self._layout.arrangement_of(sequence)
        tokens, kinds = sequence.tokens, sequence.kinds
        wrong = (tokens < self._low[kinds]) | (tokens > self._high[kinds])
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(f"token {at} has the id {tokens[at]}, which no {_name(kinds[at])} has")
        if self._images or sequence.images:
            self._check_images(sequence, arrangement)

    def _check_images(self, sequence: TokenSequence, arrangement: Arrangement) -> None:
        begin = arrangement.step_begin[:, None] + arrangement.begin[..., list(self._images)]
        if [placed.token for placed in sequence.images] != begin.ravel().tolist():
            raise ValueError("its images are not at the tokens of its steps' image fields")
        fields = list(self._images.values())
        for number, placed in enumerate(sequence.images):
            step, place = divmod(number, len(fields))
            fault = _image_fault(placed.image.data, placed.image.height, placed.image.width, fields[place])
            if fault:
                raise ValueError(f"{fields[place].path} at step {step} of the record: {fault}")


def _image_fault(data: bytes, height: int, width: int, field: FieldSpec) -> str | None:
    assert field.image is not None
    want = field.image
    if (height, width) != (want.height, want.width):
        return f"the image is {height} x {width} pixels, and the spec says {want.height} x {want.width}"
    try:
        header = probe(data)
    except RejectedError as error:
        return error.detail
    if (header.height, header.width) != (height, width):
        return f"the encoded image is {header.height} x {header.width} pixels, and the record says {height} x {width}"
    if want.codec is not None and header.codec != want.codec:
        return f"the image is {header.codec.upper()}, and the spec says {want.codec.upper()}"
    return None


def _whole(owner: Owner, rewards: np.ndarray, flags: np.ndarray) -> str | None:
    """What is wrong with an episode whose records are each sound."""
    if len(flags) != owner.steps:
        return f"its records hold {len(flags)} steps, and the index says {owner.steps}"
    if (flags[1:] & FIRST).any() or (flags[:-1] & (LAST | TERMINAL)).any():
        return "a step within it is marked as the first, last or terminal one"
    total = float(np.add.accumulate(rewards)[-1])
    if owner.episode_return is not None and total != owner.episode_return:
        return f"its rewards sum to {total!r}, and the index says {owner.episode_return!r}"
    return None


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


def _name(kind: int) -> str:
    return Kind(kind).name.lower().replace("_", " ")
