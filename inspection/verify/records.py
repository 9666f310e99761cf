"""The records of a shard: what an episode or a document may hold, and whether its index row says the same.

Legend: T tokens, S time steps, of one record.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gatokit.inspection.read.directory import open_shard
from gatokit.inspection.read.values import kind_name
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.schemas.manifest import DocumentRules, EpisodeSpec, FieldSpec, TokenizerSettings
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


class EpisodeCheck:
    """Checks the records of episodes: whole steps of their spec, and together the steps and the return of the index."""

    noun = "episode"

    def __init__(self, specs: dict[str, EpisodeSpec], settings: TokenizerSettings, pieces: int) -> None:
        """``specs`` are those of ``dataset.json`` by id, ``pieces`` is the size of the vocabulary."""
        self._layouts = {id_: StepLayout(spec) for id_, spec in specs.items()}
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
        """Raises ValueError, with a sentence, if the record is not one of the owner's that may come next. ``next_step``
        is the step that it should begin with, None if that is unknown."""
        if next_step not in (None, record.first_step):
            raise ValueError(f"it begins with step {record.first_step}, and step {next_step} comes next")
        if record.spec != owner.spec or record.spec not in self._layouts:
            raise ValueError(f"it has the spec {record.spec}, and the index says {owner.spec}")
        layout = self._layouts[record.spec]
        arrangement = layout.arrangement_of(record.sequence)
        tokens, kinds = record.sequence.tokens, record.sequence.kinds
        wrong = (tokens < self._low[kinds]) | (tokens > self._high[kinds])
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(f"token {at} has the id {tokens[at]}, which no {kind_name(kinds[at])} has")
        image_fields = {number: field for number, field in layout.fields.items() if field.kind == "image"}
        if image_fields or record.sequence.images:
            _check_images_of_steps(record.sequence, arrangement, image_fields)

    def fault(self, owner: Owner, rewards: np.ndarray | None, flags: np.ndarray) -> str | None:
        """What is wrong with an owner whose records are each sound; ``rewards`` (None if there are none) and ``flags``
        are of all its steps."""
        if len(flags) != owner.steps:
            return f"its records hold {len(flags)} steps, and the index says {owner.steps}"
        if (flags[1:] & FIRST).any() or (flags[:-1] & (LAST | TERMINAL)).any():
            return "a step within it is marked as the first, last or terminal one"
        if rewards is None or owner.episode_return is None:
            has = "rewards" if rewards is not None else "no rewards"
            is_right = rewards is None and owner.episode_return is None
            return None if is_right else f"it has {has}, and the index says that its return is {owner.episode_return}"
        total = float(np.add.accumulate(rewards)[-1])
        if total != owner.episode_return:
            return f"its rewards sum to {total!r}, and the index says {owner.episode_return!r}"
        return None


def _check_images_of_steps(sequence: TokenSequence, arrangement: Arrangement, fields: dict[int, FieldSpec]) -> None:
    """Raises ValueError if the images are not those of the image fields, which are keyed by their number in a step."""
    begins = arrangement.step_begin[:, None] + arrangement.begin[..., list(fields)]
    if [placed.token for placed in sequence.images] != begins.ravel().tolist():
        raise ValueError("its images are not at the tokens of its steps' image fields")
    fields_of_step = list(fields.values())
    for number, placed in enumerate(sequence.images):
        step, number_in_step = divmod(number, len(fields))
        field = fields_of_step[number_in_step]
        spec, image = field.image, placed.image
        assert spec is not None
        try:
            if (image.height, image.width) != (spec.height, spec.width):
                size = f"{spec.height} x {spec.width}"
                raise ValueError(f"the image is {image.height} x {image.width} pixels, and the spec says {size}")
            codec = _codec(image)
            if spec.codec not in (None, codec):
                raise ValueError(f"the image is {codec.upper()}, and the spec says {str(spec.codec).upper()}")
        except ValueError as error:
            raise ValueError(f"{field.path} at step {step} of the record: {error}") from None


class DocumentCheck:
    """Checks the records of documents: texts and whole images, as the rules of their dataset say.

    A record that passes decodes, because every piece of the vocabulary is text.
    """

    noun = "document"

    def __init__(self, rules: DocumentRules, text: TextTokenizer, chunk_tokens: int) -> None:
        """``rules`` are those of ``dataset.json``, ``text`` is the build's vocabulary."""
        self._rules, self._text, self._chunk_tokens = rules, text, chunk_tokens

    def check(self, record: Record, owner: Owner, next_step: int | None) -> None:
        """See ``EpisodeCheck``."""
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
        tokens, most = len(sequence.tokens), self._chunk_tokens
        is_one_image = len(sequence.images) == 1 and not is_text.any()
        if tokens > most and not is_one_image:
            raise ValueError(f"it has {tokens} tokens, more than the {most} of chunk_tokens, and is no single image")
        if self._text.end_id is not None:
            # The end piece closes the last record, if the rules say so; it also stands where a text has a marker.
            is_end = is_text & (sequence.tokens == self._text.end_id)
            if not self._rules.end_of_document and is_end.any():
                raise ValueError("it holds the vocabulary's end piece, and end_of_document is false")
            if self._rules.end_of_document and record.chunk + 1 == record.chunks and not is_end[-1]:
                raise ValueError("it does not end with the vocabulary's end piece, and end_of_document is true")
            if (is_end[1:] & is_end[:-1]).any():
                raise ValueError("two end pieces follow each other")
        for number, placed in enumerate(sequence.images):
            try:
                self._check_image(placed.image)
            except ValueError as error:
                raise ValueError(f"image {number} of the record: {error}") from None

    def fault(self, owner: Owner, rewards: np.ndarray | None, flags: np.ndarray) -> str | None:
        """See ``EpisodeCheck``."""
        return None

    def _check_image(self, image: EncodedImage) -> None:
        """Raises ValueError if a build by the rules would not have stored the image."""
        rule, size = self._rules.pictures, (image.height, image.width)
        if rule is None:
            raise ValueError("the dataset holds text alone")
        codec = _codec(image)
        try:
            if target_size(*size, rule) != size:
                wanted = f"{rule.max_patches} patches at most" if rule.size is None else "{} x {}".format(*rule.size)
                raise ValueError(f"the image is {size[0]} x {size[1]} pixels, and the rule says {wanted}")
            if rule.codec not in (None, codec):
                raise ValueError(f"the image is {codec.upper()}, and the rule says {str(rule.codec).upper()}")
            # A build copies an image that it has made by the same rule.
            if prepare(image.data, rule).data is not image.data:
                raise ValueError(f"the {codec.upper()} is not complete, not upright, or not 8-bit gray or RGB")
        except RejectedError as error:
            raise ValueError(error.detail) from None


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


def _codec(image: EncodedImage) -> str:
    """The codec of an image. Raises ValueError if it cannot be read, or is of another size than the record says."""
    try:
        header = probe(image.data)
    except RejectedError as error:
        raise ValueError(error.detail) from None
    if (header.height, header.width) != (image.height, image.width):
        size = f"{image.height} x {image.width}"
        raise ValueError(f"the encoded image is {header.height} x {header.width} pixels, and the record says {size}")
    return header.codec


ContentCheck = EpisodeCheck | DocumentCheck


def shard_faults(
    path: Path, records: int, owners: list[Owner], content: ContentCheck, count: Callable[[int], None]
) -> Iterator[str]:
    """What is wrong with a shard that should hold ``records`` records, those of ``owners`` in order.

    ``count`` is called with the number of records that were just read.
    """
    try:
        with open_shard(path) as shard:
            if shard.records != records:
                yield f"holds {shard.records:,} records, and the manifest says {records:,}"
                return
            stream = _stream(shard, count)
            for owner in owners:
                yield from _owner_faults(owner, stream, content)
    except DataError as error:
        yield str(error).removeprefix(f"{path} ")


def _stream(shard: ArrayRecordFile, count: Callable[[int], None]) -> Iterator[tuple[int, bytes | None]]:
    """Number and bytes of every record, None for one that cannot be read."""
    for begin in range(0, shard.records, _BATCH):
        end = min(begin + _BATCH, shard.records)
        count(end - begin)
        try:
            yield from enumerate(shard.read(begin, end), begin)
        except DataError:
            for number in range(begin, end):
                try:
                    yield number, shard.read(number, number + 1)[0]
                except DataError:
                    yield number, None


def _owner_faults(owner: Owner, stream: Iterator[tuple[int, bytes | None]], content: ContentCheck) -> Iterator[str]:
    next_step: int | None = 0
    rewards, flags = [], []
    is_sound = True
    chunks = len(owner.record_tokens)
    for chunk, size in enumerate(owner.record_tokens):
        number, data = next(stream)
        record = None
        try:
            if data is None:
                raise ValueError("it cannot be read")
            record = Record.from_bytes(data)
            tokens = len(record.sequence.tokens)
            if record.owner != owner.id:
                raise ValueError(f"it belongs to {content.noun} {record.owner!r}")
            if (record.chunk, record.chunks) != (chunk, chunks):
                place = f"chunk {record.chunk} of {record.chunks}"
                raise ValueError(f"it is {place}, and the index says {chunk} of {chunks}")
            if tokens != size:
                raise ValueError(f"it has {tokens} tokens, and the index says {size}")
            content.check(record, owner, next_step)
            rewards.append(record.reward)
            flags.append(record.flags)
        except ValueError as error:
            yield f"record {number:,} of {content.noun} {owner.id!r}: {error}"
            is_sound = False
        # The step that follows a record that does not parse is unknown.
        next_step = None if record is None else record.first_step + len(record.flags)
    if is_sound and flags:
        known = [values for values in rewards if values is not None]
        together = np.concatenate(known) if len(known) == len(rewards) else None
        fault = content.fault(owner, together, np.concatenate(flags))
        if fault is not None:
            yield f"{content.noun} {owner.id!r}: {fault}"
