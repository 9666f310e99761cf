"""TFRecord files, and the ``tf.train.Example`` messages in them.

Each record is a length, the checksum of the length, the payload and the checksum of the payload. A damaged payload
loses one record. Behind a damaged length the file is searched for the next length that matches its checksum.

An Example is read in place: the wire format is walked, and a feature is decoded when asked for. The message of an
episode holds every step of a field in one list, so a list of images is stepped over in one jump and a list of floats is
an array already. ``Example`` holds ``Features``, which holds map entries (key = ``steps/reward``, value = ``Feature``);
a ``Feature`` holds one list of bytes, floats or integers. Only the form in which writers leave a message is walked: key
before value, packed lists, no unknown fields. Protobuf brings a message of another form into this one.
"""

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example
from tensorflow_datasets.proto.tf_feature_generated_pb2 import Feature

from gatokit.pipelines.formats.records import ByteRange, RecordFile, Stored, too_large
from gatokit.schemas.index import ENDS_EARLY
from gatokit.schemas.record import read_varint
from gatokit.storage.files import ranges

# --- files ---------------------------------------------------------------------------------------------------

HEADER, FOOTER = 12, 4
_SEARCH_BYTES = 1 << 20
ReadAt = Callable[[int, int], bytes]
"""Reads (offset, length) of a file; fewer bytes if the file ends before."""


class TfRecordFile(RecordFile):
    """A TFRecord file, read by offset."""

    def read_all(self, max_bytes: int) -> Iterator[Stored[bytes]]:
        """See ``RecordFile``. Behind a damaged length nothing of a slice is read, because positions are unknown."""
        first, last = self.positions or (0, self.declared or 0)
        position = offset = 0
        is_damaged, held = False, None
        with ranges(self.path) as (read, size):
            while True:
                try:
                    for record in records(read, size, max_bytes, first, position, offset):
                        if held is not None:
                            yield held
                        # A damaged payload may have another length than was written.
                        held = record if record.reason == "corrupt_record" and position >= first else None
                        if held is None and position >= first:
                            yield record
                        position += 1
                        if self.positions is not None and position >= last:
                            break
                    break
                except DamagedLengthError as error:
                    begin, damage = error.offset, error
                if held is not None:
                    begin, position, held = held.byte_range.offset, held.byte_range.position, None
                offset = size if self.positions else next_record(read, size, begin + 1)
                position = max(position, first)
                gap, is_damaged = ByteRange(position, begin, offset - begin, 0), True
                reason = ENDS_EARLY if damage.ends_early and offset == size else "corrupt_length"
                left = last - position
                if offset < size:
                    behind = _count(read, size, offset)
                    left = 1 if behind is None else left - behind
                yield Stored(gap, None, reason, str(damage), max(1, left), offset - begin)
                position += max(1, left)
                if offset == size:
                    return
            if held is not None:
                yield held
        position = max(position, first)
        if position < last:
            detail = f"the file ends after {position} of the {last} {self.noun} that its dataset states"
            reason = "corrupt_length" if is_damaged else ENDS_EARLY
            yield Stored(ByteRange(position, size, 0, 0), None, reason, detail, last - position)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[ByteRange], bytes | None]]:
        """See ``RecordFile``."""
        with ranges(self.path) as (read_at, _):

            def read(byte_range: ByteRange) -> bytes | None:
                begin = byte_range.offset + HEADER
                data = read_at(begin, byte_range.length)
                crc = int.from_bytes(read_at(begin + byte_range.length, FOOTER), "little")
                return data if crc == byte_range.crc == masked_crc(data) else None

            yield read


class DamagedLengthError(ValueError):
    """The file cannot be read from ``offset`` on; ``ends_early`` is set if it ends inside the record there."""

    def __init__(self, offset: int, why: str | None = None) -> None:
        super().__init__(f"{why or 'the file ends inside the record'} at byte {offset}")
        self.offset, self.ends_early = offset, why is None


def next_record(read: ReadAt, size: int, begin: int) -> int:
    """The first place from ``begin`` on where a length and its checksum stand; ``size`` if there is none."""
    for at in range(begin, size - HEADER - FOOTER + 1, _SEARCH_BYTES):
        data = read(at, _SEARCH_BYTES + HEADER)
        places: list[int] = []
        for shift in range(min(8, len(data) - 7)):
            lengths = np.frombuffer(data, "<u8", (len(data) - shift) // 8, shift)
            fitting = (lengths > 0) & (lengths <= size - at)
            places += (np.flatnonzero(fitting) * 8 + shift).tolist()
        for place in sorted(places):
            header = data[place : place + HEADER]
            if len(header) == HEADER and masked_crc(header[:8]) == int.from_bytes(header[8:], "little"):
                return at + place
    return size


def _count(read: ReadAt, size: int, offset: int) -> int | None:
    """The number of records from ``offset`` on; None if a length is damaged there."""
    try:
        return sum(1 for _ in records(read, size, -1, 0, 0, offset))
    except DamagedLengthError:
        return None


def records(
    read: ReadAt, size: int, max_bytes: int, first: int = 0, position: int = 0, offset: int = 0
) -> Iterator[Stored[bytes]]:
    """Yields the records of a file of ``size`` bytes from the one at ``position`` and ``offset`` on.

    Payloads above ``max_bytes`` and those before the position ``first`` are not read, and yielded as rejections.

    Raises DamagedLengthError if a length is damaged or the file ends inside a record.
    """
    header = read(offset, HEADER) if offset < size else b""
    while offset < size:
        if len(header) < HEADER:
            raise DamagedLengthError(offset)
        length, crc = struct.unpack("<QI", header)
        if masked_crc(header[:8]) != crc:
            raise DamagedLengthError(offset, "the record's length does not match its checksum")
        end = offset + HEADER + length
        if end + FOOTER > size:
            raise DamagedLengthError(offset)
        data = None if length > max_bytes or position < first else read(offset + HEADER, length)
        # The checksum is read together with the next record's header, which saves a read a record.
        behind = read(end, FOOTER + HEADER)
        if len(behind) < FOOTER or (data is not None and len(data) < length):
            raise DamagedLengthError(offset)
        crc = int.from_bytes(behind[:FOOTER], "little")
        byte_range = ByteRange(position, offset, length, crc)
        if data is None:
            yield too_large(byte_range, max_bytes)
        elif masked_crc(data) != crc:
            yield Stored(byte_range, None, "corrupt_record", "the payload does not match its checksum")
        else:
            yield Stored(byte_range, data)
        position, offset, header = position + 1, end + FOOTER, behind[FOOTER:]


def masked_crc(data: bytes) -> int:
    """CRC-32C of ``data`` as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# --- messages: every function raises ValueError if the bytes are no such message -------------------------------

Span = tuple[int, int]
"""Begin and end of a part of a message."""
Found = TypeVar("Found")

_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 0x0A, 0x12, 0x1A
_FIRST, _SECOND = 0x0A, 0x12
"""Tags of the fields 1 and 2 that have a length: an entry of a map and a list's values, and the value of an entry."""
_KEYS: dict[bytes, str] = {}
"""Decoded feature names, which repeat in every message; at most ``_MOST_KEYS``."""
_MOST_KEYS = 1024
_LAYOUTS: dict[int, list[tuple[dict[str, Span], list[tuple[int, bytes]]]]] = {}
"""By length, at most ``_MOST_LENGTHS``, the spans of the last messages of that length and the bytes around them."""
_MOST_LENGTHS, _MOST_LAYOUTS = 256, 8
_FEW_BYTES = 16


def walk_example(data: bytes) -> tuple[bytes, dict[str, Span]]:
    """Finds each feature of an Example: the message in the form that writers leave, and the span of each ``Feature`` in
    it by key. Do not change the result.

    Messages of one length mostly differ in their values alone. The bytes around the values decide where these are, so
    if they equal those of an earlier message of that length, its result is returned.
    """
    for spans, around in _LAYOUTS.get(len(data), ()):
        for at, part in around:
            if not data.startswith(part, at):
                break
        else:
            return data, spans
    found = _feature_spans(data)
    if found is None:
        data = _rewritten(Example, data)
        found = _feature_spans(data)
    if found is None:
        raise ValueError("a feature's name is not valid UTF-8")
    around, at = [], 0
    for begin, end in sorted(found.values()):
        around.append((at, data[at:begin]))
        at = end
    if len(_LAYOUTS) >= _MOST_LENGTHS:
        _LAYOUTS.clear()
    known = _LAYOUTS.setdefault(len(data), [])
    known.insert(0, (found, [*around, (at, data[at:])]))
    del known[_MOST_LAYOUTS:]
    return data, found


def floats(data: bytes, span: Span) -> np.ndarray:
    """The float list of a feature, float32 (n,): a view of ``data``."""
    data, (begin, end) = _in_list(_numbers, data, span, _FLOAT_LIST)
    if (end - begin) % 4:
        raise ValueError("a packed float list is no multiple of 4 bytes long")
    return np.frombuffer(data, "<f4", (end - begin) // 4, begin)


def integers(data: bytes, span: Span) -> np.ndarray:
    """The integer list of a feature, int64 (n,)."""
    data, (begin, end) = _in_list(_numbers, data, span, _INT64_LIST)
    packed = data[begin:end]
    if packed.isascii():  # each number is one byte
        return np.frombuffer(packed, np.uint8).astype(np.int64)
    if data[end - 1] >= 0x80:
        raise ValueError("the last number of a packed list is cut off")
    if end - begin <= _FEW_BYTES:  # a loop is faster for few numbers
        numbers = []
        while begin < end:
            number, begin = read_varint(data, begin)
            numbers.append(number & 0xFFFF_FFFF_FFFF_FFFF)
        return np.array(numbers, np.uint64).view(np.int64)
    raw = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ValueError("a number is longer than 64 bits")
    value = np.zeros(len(ends), np.uint64)
    for digit in range(int(lengths.max())):
        has = lengths > digit
        value[has] |= (raw[starts[has] + digit] & 0x7F).astype(np.uint64) << np.uint64(7 * digit)
    return value.view(np.int64)


def first_integer(data: bytes, span: Span) -> int | None:
    """The first number of a feature's integer list; None if the list is empty."""
    data, (begin, end) = _in_list(_numbers, data, span, _INT64_LIST)
    if begin == end:
        return None
    if data[end - 1] >= 0x80:
        raise ValueError("the last number of a packed list is cut off")
    number = read_varint(data, begin)[0] & 0xFFFF_FFFF_FFFF_FFFF
    return number - (1 << 64) if number >> 63 else number


def one_byte_integers(data: bytes, span: Span) -> bytes | None:
    """The integer list of a feature if each number is from 0 to 127; None for another list, also if it is damaged."""
    numbers = _numbers(data, *span, _INT64_LIST)
    packed = b"\x80" if numbers is None else data[slice(*numbers)]
    return packed if packed.isascii() else None


def byte_strings(data: bytes, span: Span) -> list[bytes]:
    """The bytes list of a feature."""
    return _in_list(_strings, data, span, _BYTES_LIST)[1]


def _feature_spans(data: bytes) -> dict[str, Span] | None:
    """The span of each feature; None if the message has another form than writers leave."""
    spans: dict[str, Span] = {}
    at, end = 0, len(data)
    try:
        if end:
            size, at = read_varint(data, 1)
            if data[0] != _FIRST or at + size != end:
                return None
        while at < end:
            size, begin = read_varint(data, at + 1)
            stop = begin + size
            key_size, key_begin = read_varint(data, begin + 1)
            key_end = key_begin + key_size
            value_size, value = read_varint(data, key_end + 1)
            if not (data[at] == data[begin] == _FIRST and data[key_end] == _SECOND and value + value_size == stop):
                return None
            raw = data[key_begin:key_end]
            key = _KEYS.get(raw)
            if key is None:
                key = str(raw, "utf-8")
                if len(_KEYS) < _MOST_KEYS:
                    _KEYS[raw] = key
            spans[key] = (value, stop)
            at = stop
    except (IndexError, ValueError):
        return None
    return spans if at == end else None


def _in_list(
    find: Callable[[bytes, int, int, int], Found | None], data: bytes, span: Span, tag: int
) -> tuple[bytes, Found]:
    """What ``find`` finds in a feature's list, and the bytes that it looked at: ``data``, or the rewritten feature."""
    found = find(data, *span, tag)
    if found is None:
        data = _rewritten(Feature, data[span[0] : span[1]])
        found = find(data, 0, len(data), tag)
    if found is None:
        raise ValueError("the feature holds a list of another type")
    return data, found


def _numbers(data: bytes, at: int, end: int, tag: int) -> Span | None:
    """The span of the numbers in a feature's list; None if the feature has another form than writers leave, or another
    list."""
    try:
        size = end - at - 2
        if 2 <= size < 0x80:  # a short list, as most values of an episode are
            is_packed = data[at] == tag and data[at + 1] == size and data[at + 2] == _FIRST and data[at + 3] == size - 2
            return (at + 4, end) if is_packed else None
        if at < end:
            size, begin = read_varint(data, at + 1)
            if data[at] != tag or begin + size != end:
                return None
            at = begin
        if at < end:
            size, begin = read_varint(data, at + 1)
            if data[at] != _FIRST or begin + size != end:
                return None
            at = begin
    except IndexError:
        return None
    return at, end


def _strings(data: bytes, at: int, end: int, tag: int) -> list[bytes] | None:
    """The strings of a feature's list; None as in ``_numbers``."""
    found: list[bytes] = []
    try:
        if at < end:
            size, begin = read_varint(data, at + 1)
            if data[at] != tag or begin + size != end:
                return None
            at = begin
        while at < end and data[at] == _FIRST:
            length = data[at + 1]
            at += 2
            if length >= 0x80:
                if data[at] < 0x80:  # a length of two bytes, as most frames have
                    length += (data[at] - 1) << 7
                    at += 1
                else:
                    length, at = read_varint(data, at - 1)
            found.append(data[at : at + length])
            at += length
    except IndexError:
        return None
    return found if at == end else None


def _rewritten(message_type: Any, data: bytes) -> bytes:
    """A message in the form that writers leave."""
    try:
        message = message_type.FromString(data)
    except DecodeError:
        raise ValueError("a field reaches outside of its message") from None
    message.DiscardUnknownFields()
    written: bytes = message.SerializeToString()
    return written
