"""The records of a shard file against the index rows of the episodes or documents that it holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gatokit.inspection.read.directory import open_shard
from gatokit.inspection.read.values import kind_name
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.schemas.manifest import DocumentRules, EpisodeSpec, FieldSpec, ImageRule, TokenizerSettings
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import (
    BINS,
    CONTINUOUS_OFFSET,
    DISCRETE_VALUES,
    FIRST,
    IMAGE_ID,
    LAST,
    NO_POSITION,
    TERMINAL,
    EncodedImage,
    TokenKind,
    TokenSequence,
)
from gatokit.storage.array_record import ArrayRecordFile
from gatokit.tokenizers.document import prepare, target_size
from gatokit.tokenizers.episode import Arrangement, StepLayout
from gatokit.tokenizers.image_codec import probe
from gatokit.tokenizers.text import TextTokenizer

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


class EpisodeCheck:
    """See ``ContentCheck``."""

    noun = "episode"

    def __init__(self, specs: dict[str, EpisodeSpec], settings: TokenizerSettings, pieces: int) -> None:
        """``specs`` are those of ``dataset.json`` by id, ``pieces`` is the size of the vocabulary."""
        self._layouts = {id_: StepLayout(spec) for id_, spec in specs.items()}
        self._images = {
            id_: {number: field for number, field in layout.fields.items() if field.kind == "image"}
            for id_, layout in self._layouts.items()
        }
        discrete = (settings.discrete_offset, settings.discrete_offset + DISCRETE_VALUES - 1)
        continuous = (CONTINUOUS_OFFSET, CONTINUOUS_OFFSET + BINS - 1)
        # The lowest and the highest id of each kind, uint16 (256,).
        self._low, self._high = np.zeros((2, 256), np.uint16)
        for kind, (low, high) in {
            TokenKind.TEXT: (0, pieces - 1),
            TokenKind.IMAGE: (IMAGE_ID, IMAGE_ID),
            TokenKind.DISCRETE: discrete,
            TokenKind.CONTINUOUS: continuous,
            TokenKind.SEPARATOR: (settings.separator, settings.separator),
            TokenKind.DISCRETE_ACTION: discrete,
            TokenKind.CONTINUOUS_ACTION: continuous,
        }.items():
            self._low[kind], self._high[kind] = low, high

    def check(self, record: Record, owner: Owner, next_step: int | None) -> None:
        """See ``ContentCheck``."""
        if next_step not in (None, record.first_step):
            raise ValueError(f"it begins with step {record.first_step}, and step {next_step} comes next")
        if record.spec != owner.spec or record.spec not in self._layouts:
            raise ValueError(f"it has the spec {record.spec}, and the index says {owner.spec}")
        sequence = record.sequence
        arrangement = self._layouts[record.spec].arrangement_of(sequence)
        tokens, kinds = sequence.tokens, sequence.kinds
        wrong = (tokens < self._low[kinds]) | (tokens > self._high[kinds])
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(f"token {at} has the id {tokens[at]}, which no {kind_name(kinds[at])} has")
        _check_images(sequence, arrangement, self._images[record.spec])

    def fault(self, owner: Owner, rewards: np.ndarray, flags: np.ndarray) -> str | None:
        """See ``ContentCheck``."""
        if len(flags) != owner.steps:
            return f"its records hold {len(flags)} steps, and the index says {owner.steps}"
        if (flags[1:] & FIRST).any() or (flags[:-1] & (LAST | TERMINAL)).any():
            return "a step within it is marked as the first, last or terminal one"
        total = float(np.add.accumulate(rewards)[-1])
        if owner.episode_return is not None and total != owner.episode_return:
            return f"its rewards sum to {total!r}, and the index says {owner.episode_return!r}"
        return None


def _check_images(sequence: TokenSequence, arrangement: Arrangement, image_fields: dict[int, FieldSpec]) -> None:
    """Raises ValueError if the images are not those of ``image_fields``, which are keyed by their number in a step."""
    if not image_fields and not sequence.images:
        return
    begins = arrangement.step_begin[:, None] + arrangement.begin[..., list(image_fields)]
    if [placed.token for placed in sequence.images] != begins.ravel().tolist():
        raise ValueError("its images are not at the tokens of its steps' image fields")
    fields = list(image_fields.values())
    for number, placed in enumerate(sequence.images):
        step, field = number // len(fields), fields[number % len(fields)]
        fault = _image_fault(placed.image.data, placed.image.height, placed.image.width, field)
        if fault:
            raise ValueError(f"{field.path} at step {step} of the record: {fault}")


def _image_fault(data: bytes, height: int, width: int, field: FieldSpec) -> str | None:
    assert field.image is not None
    spec = field.image
    if (height, width) != (spec.height, spec.width):
        return f"the image is {height} x {width} pixels, and the spec says {spec.height} x {spec.width}"
    try:
        header = probe(data)
    except RejectedError as error:
        return error.detail
    if (header.height, header.width) != (height, width):
        return f"the encoded image is {header.height} x {header.width} pixels, and the record says {height} x {width}"
    if spec.codec is not None and header.codec != spec.codec:
        return f"the image is {header.codec.upper()}, and the spec says {spec.codec.upper()}"
    return None


class DocumentCheck:
    """See ``ContentCheck``. A record that passes decodes, because every piece of the vocabulary is text."""

    noun = "document"

    def __init__(self, rules: DocumentRules, text: TextTokenizer, chunk_tokens: int) -> None:
        """``rules`` are those of ``dataset.json``, ``text`` is the build's vocabulary."""
        self._rules, self._text, self._chunk_tokens = rules, text, chunk_tokens

    def check(self, record: Record, owner: Owner, next_step: int | None) -> None:
        """See ``ContentCheck``."""
        sequence = record.sequence
        if record.spec or record.first_step or len(sequence.step_begin):
            raise ValueError("it has a spec or time steps, and documents have neither")
        _check_kinds(sequence)
        is_text = sequence.kinds == TokenKind.TEXT
        wrong = np.where(is_text, sequence.tokens >= self._text.pieces, sequence.tokens != IMAGE_ID)
        if wrong.any():
            at = int(wrong.argmax())
            kind = "text" if is_text[at] else "image"
            raise ValueError(f"token {at} has the id {sequence.tokens[at]}, which no {kind} has")
        tokens = len(sequence.tokens)
        is_one_image = len(sequence.images) == 1 and not is_text.any()
        if tokens > self._chunk_tokens and not is_one_image:
            raise ValueError(
                f"it has {tokens} tokens, more than the {self._chunk_tokens} of chunk_tokens, and is no single image"
            )
        self._check_end(record)
        for number, placed in enumerate(sequence.images):
            fault = _document_image_fault(placed.image, self._rules.pictures)
            if fault is not None:
                raise ValueError(f"image {number} of the record: {fault}")

    def fault(self, owner: Owner, rewards: np.ndarray, flags: np.ndarray) -> str | None:
        """See ``ContentCheck``."""
        return None

    def _check_end(self, record: Record) -> None:
        """The end piece closes the last record, if the rules say so, and no other."""
        if self._text.end_id is None:
            return
        sequence = record.sequence
        ends = bool(sequence.tokens[-1] == self._text.end_id and sequence.kinds[-1] == TokenKind.TEXT)
        is_last = record.chunk + 1 == record.chunks
        if ends and not is_last:
            raise ValueError("it ends with the vocabulary's end piece, and the document goes on")
        if is_last and ends != self._rules.end_of_document:
            verb = "ends" if ends else "does not end"
            raise ValueError(
                f"it {verb} with the vocabulary's end piece, and end_of_document is {str(not ends).lower()}"
            )


def _check_kinds(sequence: TokenSequence) -> None:
    """Raises ValueError if kinds and positions are not those of texts and of the record's images."""
    expected = np.full(len(sequence.kinds), TokenKind.TEXT, np.uint8)
    for placed in sequence.images:
        rows, columns = placed.grid
        expected[placed.token : placed.token + rows * columns] = TokenKind.IMAGE
    wrong = sequence.kinds != expected
    if wrong.any():
        at = int(wrong.argmax())
        if expected[at] == TokenKind.IMAGE:
            raise ValueError(f"token {at} lies in an image and has the kind {sequence.kinds[at]}")
        if sequence.kinds[at] == TokenKind.IMAGE:
            raise ValueError(f"token {at} is a patch of no image")
        raise ValueError(f"token {at} has the kind {sequence.kinds[at]}, which no document has")
    has_position = sequence.positions != NO_POSITION
    if has_position.any():
        raise ValueError(f"token {int(has_position.argmax())} has a position, which no document has")


def _document_image_fault(image: EncodedImage, rule: ImageRule | None) -> str | None:
    """Why a build by the rule would not have stored the image."""
    if rule is None:
        return "the dataset holds text alone"
    height, width = image.height, image.width
    try:
        header = probe(image.data)
        if (header.height, header.width) != (height, width):
            return (
                f"the encoded image is {header.height} x {header.width} pixels, and the record says {height} x {width}"
            )
        if target_size(height, width, rule) != (height, width):
            size = f"{rule.max_patches} patches at most" if rule.size is None else f"{rule.size[0]} x {rule.size[1]}"
            return f"the image is {height} x {width} pixels, and the rule says {size}"
        if rule.codec not in (None, header.codec):
            return f"the image is {header.codec.upper()}, and the rule says {str(rule.codec).upper()}"
        # A build copies an image that it has made by the same rule.
        if prepare(image.data, rule).data is not image.data:
            return f"the {header.codec.upper()} is not complete, not upright, or not 8-bit gray or RGB"
    except RejectedError as error:
        return error.detail
    return None
