"""A record of a shard, and its serialized form (``record.proto``).

Legend: T tokens, S time steps.
"""

import functools
from bisect import bisect_left
from dataclasses import dataclass
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from gatokit.schemas.record_pb2 import Image as ImageMessage
from gatokit.schemas.record_pb2 import Record as RecordMessage
from gatokit.schemas.tokens import PATCH, EncodedImage, PlacedImage, TokenSequence

RECORD_VERSION = 1
_VERSION = RecordMessage(version=RECORD_VERSION).SerializeToString(deterministic=True)
_NUMBERS = {name: field.number for name, field in RecordMessage.DESCRIPTOR.fields_by_name.items()}
_TOKENS, _KINDS, _POSITIONS = (_NUMBERS[name] for name in ("tokens", "kinds", "positions"))
_IMAGES = _NUMBERS["images"]
_token = attrgetter("token")
_Parts = list[bytes | memoryview]
_Arranged = tuple[list[int], list[_Parts]]
_ARRANGED_CACHE: dict[tuple[int, ...], tuple[tuple[np.ndarray, ...], _Arranged]] = {}
_CACHE_SIZE, _MOST_CACHED_TOKENS = 32, 65_536
_U1, _U2, _U4, _F8 = np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<f8")


@dataclass(frozen=True)
class Record:
    """A chunk of an episode or document (its owner): which chunk it is, its tokens, and values of each step.

    ``reward`` and ``discount`` are float64 (S,), None if the source has none; ``flags`` is uint8 (S,).
    """

    owner: str
    chunk: int
    chunks: int
    first_step: int
    spec: str
    sequence: TokenSequence
    reward: np.ndarray | None
    discount: np.ndarray | None
    flags: np.ndarray

    def to_bytes(self) -> bytes:
        """The serialized message."""
        return self.divided([0])[0]

    def divided(self, first_steps: list[int]) -> list[bytes]:
        """The serialized messages of the records into which this one is cut; each begins with one of the
        ``first_steps``, the first of which is 0.

        The bytes are those of protobuf's own serializer. That copies every array three times; here each array is copied
        once, into its message.
        """
        sequence = self.sequence
        first_tokens, arranged = _arranged(sequence, first_steps)
        columns = (
            _rows("tokens", sequence.tokens, _U2, first_tokens),
            arranged,
            _rows("reward", self.reward, _F8, first_steps),
            _rows("discount", self.discount, _F8, first_steps),
            _rows("flags", self.flags, _U1, first_steps),
            _images(sequence.images, first_tokens),
            _rows("text_tokens", sequence.text_tokens, _U4, first_steps),
        )
        chunks = self.chunks + len(first_steps) - 1
        owner = _owner(self.owner)
        found = []
        for number, (first_step, *fields) in enumerate(zip(first_steps, *columns, strict=True)):
            scalars = _scalars(self.chunk + number, chunks, self.first_step + first_step, self.spec)
            found.append(b"".join(chain((owner, scalars), *fields)))
        return found

    @staticmethod
    def from_bytes(data: bytes) -> "Record":
        """The record of the message ``data``; ValueError if it is damaged or of a newer version."""
        message = RecordMessage()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            raise ValueError("the record is no Gatokit record message") from error
        if message.version > RECORD_VERSION:
            raise ValueError(
                f"the record has format version {message.version} and this gatokit reads up to {RECORD_VERSION}: "
                "install a newer gatokit"
            )
        if not message.version:
            raise ValueError("the record has no format version")
        tokens = _unpack(message, "tokens", _U2)
        record = Record(
            owner=message.owner,
            chunk=message.chunk,
            chunks=message.chunks,
            first_step=message.first_step,
            spec=message.spec,
            sequence=TokenSequence(
                tokens=tokens,
                kinds=_unpack(message, "kinds", _U1),
                positions=_unpack(message, "positions", _U2),
                step_begin=_unpack(message, "step_begin", _U4),
                images=[
                    PlacedImage(image.token, EncodedImage(image.data, image.height, image.width))
                    for image in message.images
                ],
                text_tokens=_text_tokens(message),
            ),
            reward=_unpack(message, "reward", _F8) if message.reward or not message.step_begin else None,
            discount=_unpack(message, "discount", _F8) if message.discount else None,
            flags=_unpack(message, "flags", _U1),
        )
        record._check()
        return record

    def _check(self) -> None:
        sequence, steps = self.sequence, len(self.sequence.step_begin)
        if not len(sequence.tokens) == len(sequence.kinds) == len(sequence.positions) > 0:
            raise ValueError("the record's tokens, kinds and positions differ in length or are empty")
        if any(len(values) != steps for values in (self.reward, self.flags, self.discount) if values is not None):
            raise ValueError("the record's steps, rewards, discounts and flags differ in number")
        if steps and (sequence.step_begin[0] != 0 or np.any(np.diff(sequence.step_begin.astype(np.int64)) <= 0)):
            raise ValueError("the record's steps do not begin in increasing order at its first token")
        if steps and sequence.step_begin[-1] >= len(sequence.tokens):
            raise ValueError("the record's last step begins behind its last token")
        if self.chunk >= self.chunks:
            raise ValueError(f"the record says it is chunk {self.chunk} of {self.chunks}")
        end = 0
        for placed in sequence.images:
            data, height, width = placed.image
            if height % PATCH or width % PATCH or not (data and height and width):
                size = f"{height}x{width}"
                raise ValueError(f"the record has an image of {size} without data or no multiple of {PATCH}")
            rows, columns = placed.grid
            if placed.token < end or placed.token + rows * columns > len(sequence.tokens):
                raise ValueError("the record's images overlap or reach beyond its tokens")
            end = placed.token + rows * columns


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Protobuf's variable-length number that begins at ``at``, and the offset behind it.

    This is for readers that walk a message by themselves. Raises IndexError if the data end inside the number, and
    ValueError if it is longer than 64 bits.
    """
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def document_record(owner: str, chunk: int, chunks: int, sequence: TokenSequence, spec: str = "") -> bytes:
    """The serialized message of a record without time steps, by a shorter way: documents are small and many."""
    parts: _Parts = [_owner(owner), _scalars(chunk, chunks, 0, spec)]
    for name, values, dtype in (
        (_TOKENS, sequence.tokens, _U2),
        (_KINDS, sequence.kinds, _U1),
        (_POSITIONS, sequence.positions, _U2),
    ):
        if values.size:
            data = values.astype(dtype, copy=False).tobytes()
            parts += (_head(name, len(data)), data)
    if sequence.images:
        parts += _image_parts(sequence.images, 0)
    return b"".join(parts)


def _unpack(message: RecordMessage, name: str, dtype: np.dtype[Any]) -> np.ndarray:
    data = getattr(message, name)
    try:
        return np.frombuffer(data, dtype)
    except ValueError:
        size = np.dtype(dtype).itemsize
        raise ValueError(f"the record's {name} have {len(data)} bytes, no multiple of {size}") from None


def _text_tokens(message: RecordMessage) -> np.ndarray | None:
    if not message.text_tokens:
        return None
    counts, steps = _unpack(message, "text_tokens", _U4), len(message.step_begin) // 4
    if not steps or len(counts) % steps:
        raise ValueError(f"the record counts the tokens of {len(counts)} texts for {steps} steps")
    return counts.reshape(steps, -1)


def _rows(field: str, values: np.ndarray | None, dtype: np.dtype[Any], first_rows: list[int]) -> list[_Parts]:
    """An array as a bytes field of each record; an empty field is left out, as protobuf does."""
    if values is None or not values.size:
        return [[] for _ in first_rows]
    number, width = _NUMBERS[field], dtype.itemsize * (values.size // len(values))
    data = np.ascontiguousarray(values, dtype).ravel().view(_U1).data
    begins = [*(row * width for row in first_rows), len(data)]
    return [[_head(number, end - begin), data[begin:end]] if begin < end else [] for begin, end in pairwise(begins)]


def _arranged(sequence: TokenSequence, first_steps: list[int]) -> _Arranged:
    """The first token of each record, and its serialized kinds, positions and step beginnings.

    Episodes of one length share these arrays as read-only views; for those the result is cached.
    """
    arrays = sequence.kinds, sequence.positions, sequence.step_begin
    if len(sequence.kinds) > _MOST_CACHED_TOKENS or any(array.flags.writeable for array in arrays):
        return _new_arranged(sequence, first_steps)
    key = (*map(id, arrays), *first_steps)
    known = _ARRANGED_CACHE.get(key)
    if known is None:
        if len(_ARRANGED_CACHE) >= _CACHE_SIZE:
            _ARRANGED_CACHE.clear()
        # The arrays are kept too, so that no new array can get the id of one of them.
        known = _ARRANGED_CACHE[key] = arrays, _new_arranged(sequence, first_steps)
    return known[1]


def _new_arranged(sequence: TokenSequence, first_steps: list[int]) -> _Arranged:
    first_tokens = [0, *sequence.step_begin[first_steps[1:]].tolist()]
    steps_of_each = [end - begin for begin, end in pairwise([*first_steps, len(sequence.step_begin)])]
    step_begin = sequence.step_begin - np.repeat(np.array(first_tokens, np.uint32), steps_of_each)
    columns = (
        _rows("kinds", sequence.kinds, _U1, first_tokens),
        _rows("positions", sequence.positions, _U2, first_tokens),
        _rows("step_begin", step_begin, _U4, first_steps),
    )
    return first_tokens, [[b"".join(chain(*fields))] for fields in zip(*columns, strict=True)]


def _images(images: list[PlacedImage], first_tokens: list[int]) -> list[_Parts]:
    """The image messages of each record."""
    begins = [bisect_left(images, token, key=_token) for token in first_tokens]
    ranges = pairwise([*begins, len(images)])
    return [_image_parts(images[begin:end], token) for token, (begin, end) in zip(first_tokens, ranges, strict=True)]


def _image_parts(images: list[PlacedImage], first_token: int) -> _Parts:
    parts: _Parts = []
    for token, (data, height, width) in images:
        tail = _image_tail(height, width, token - first_token)
        parts += (_image_head(len(data), len(tail)), data, tail)
    return parts


def _owner(owner: str) -> bytes:
    """The format's version and the owner."""
    data = owner.encode()
    return _VERSION + _head(_NUMBERS["owner"], len(data)) + data if data else _VERSION


@functools.lru_cache(maxsize=4096)
def _scalars(chunk: int, chunks: int, first_step: int, spec: str) -> bytes:
    """The serialized fields between the owner and the arrays."""
    message = RecordMessage(chunk=chunk, chunks=chunks, first_step=first_step, spec=spec)
    return message.SerializeToString(deterministic=True)


@functools.lru_cache(maxsize=4096)
def _image_tail(height: int, width: int, token: int) -> bytes:
    """The serialized fields of an image message except its data."""
    return ImageMessage(height=height, width=width, token=token).SerializeToString(deterministic=True)


def _image_head(data: int, tail: int) -> bytes:
    """The bytes before the data of an image, given the lengths of the data and of the fields behind it."""
    head = _new_head(ImageMessage.DATA_FIELD_NUMBER, data)
    return _new_head(_IMAGES, len(head) + data + tail) + head


def _new_head(number: int, length: int) -> bytes:
    """Tag and length of a bytes or message field."""
    tag = number << 3 | 2
    if length < 1 << 14:  # a fast path without a cache: the lengths of images seldom repeat
        return bytes((tag, length)) if length < 1 << 7 else bytes((tag, length & 0x7F | 0x80, length >> 7))
    head = [tag]
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


_head = functools.lru_cache(maxsize=4096)(_new_head)
"""The same, cached for lengths that repeat."""
