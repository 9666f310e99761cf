"""TFRecord files: each record is a length, the checksum of the length, the payload and the checksum of the payload.

A damaged payload loses one record. A damaged length loses the rest of the file, because nothing says where the next
record begins.
"""

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import google_crc32c

from gatokit.pipelines.formats.records import ByteRange, RecordFile, Stored, too_large
from gatokit.storage.files import ranges

HEADER, FOOTER = 12, 4
ReadAt = Callable[[int, int], bytes]
"""Reads (offset, length) of a file; fewer bytes if the file ends before."""


class TfRecordFile(RecordFile):
    """A TFRecord file, read by offset."""

    def read_all(self, max_bytes: int) -> Iterator[Stored[bytes]]:
        """See ``RecordFile``."""
        position = 0
        with ranges(self.path) as (read, size):
            end = size
            try:
                for frame in frames(read, size, max_bytes):
                    byte_range = ByteRange(position, frame.offset, frame.length, frame.crc)
                    if frame.data is None:
                        yield too_large(byte_range, max_bytes)
                    elif not frame.is_sound:
                        yield Stored(byte_range, None, "corrupt_record", "the payload does not match its checksum")
                    else:
                        yield Stored(byte_range, frame.data)
                    position += 1
                detail = f"the file ends after {position} of the {self.declared} {self.noun} that its dataset states"
            except DamagedLengthError as error:
                end, detail = error.offset, str(error)
        lost = (self.declared or 0) - position
        if lost > 0 or end < size:
            rest = ByteRange(position, end, size - end, 0)
            yield Stored(rest, None, "corrupt_length", detail, max(1, lost))

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


class Frame(NamedTuple):
    """A record at ``offset`` of its file. ``data`` is None if the record was too large to be read. ``is_sound`` says
    whether payload and checksum agree."""

    offset: int
    length: int
    crc: int
    data: bytes | None
    is_sound: bool


class DamagedLengthError(ValueError):
    """The file cannot be read from ``offset`` on."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(f"{why} at byte {offset}")
        self.offset = offset


def frames(read: ReadAt, size: int, max_length: int) -> Iterator[Frame]:
    """Yields every record of a file of ``size`` bytes; payloads above ``max_length`` are skipped unread.

    Raises DamagedLengthError if a length is damaged or the file ends inside a record.
    """
    offset, header = 0, read(0, HEADER) if size else b""
    while offset < size:
        length = _length(header, offset, size)
        data = None if length > max_length else read(offset + HEADER, length)
        # The checksum is read together with the next record's header, which saves a read a record.
        behind = read(offset + HEADER + length, FOOTER + HEADER)
        if len(behind) < FOOTER or (data is not None and len(data) < length):
            raise DamagedLengthError(offset, "the file ends inside the record")
        crc = int.from_bytes(behind[:FOOTER], "little")
        yield Frame(offset, length, crc, data, data is None or masked_crc(data) == crc)
        offset, header = offset + HEADER + length + FOOTER, behind[FOOTER:]


def masked_crc(data: bytes) -> int:
    """CRC-32C of ``data`` as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _length(header: bytes, offset: int, size: int) -> int:
    if len(header) < HEADER:
        raise DamagedLengthError(offset, "the file ends inside the record")
    length, crc = struct.unpack("<QI", header)
    if masked_crc(header[:8]) != crc:
        raise DamagedLengthError(offset, "the record's length does not match its checksum")
    if offset + HEADER + length + FOOTER > size:
        raise DamagedLengthError(offset, "the file ends inside the record")
    return length
