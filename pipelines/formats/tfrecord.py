"""TFRecord framing: length, checksum of the length, payload, checksum of the payload.

A damaged payload costs one record; a damaged length costs the rest of the file, for nothing says where the
next record begins.
"""

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import google_crc32c

HEADER, FOOTER = 12, 4
ReadAt = Callable[[int, int], bytes]
"""Reads (offset, length) of a file; fewer bytes where it ends before."""


def masked_crc(data: bytes) -> int:
    """CRC-32C of ``data`` as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class Frame(NamedTuple):
    """A record at ``offset`` of its file: ``data`` is None where it was too large to be read, ``sound`` says
    whether payload and checksum agree."""

    offset: int
    length: int
    crc: int
    data: bytes | None
    sound: bool


class DamagedLengthError(ValueError):
    """The rest of the file from ``offset`` on cannot be read."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(f"{why} at byte {offset}")
        self.offset = offset


def frames(read: ReadAt, size: int, max_length: int) -> Iterator[Frame]:
    """Every record of a file of ``size`` bytes; a payload above ``max_length`` is stepped over.

    DamagedLengthError where a length is damaged or the file ends inside a record.
    """
    offset, header = 0, read(0, HEADER) if size else b""
    while offset < size:
        length = _length(header, offset, size)
        data = None if length > max_length else read(offset + HEADER, length)
        # The next record's header comes with this one's checksum: a read a record less.
        behind = read(offset + HEADER + length, FOOTER + HEADER)
        if len(behind) < FOOTER or (data is not None and len(data) < length):
            raise DamagedLengthError(offset, "the file ends inside the record")
        crc = int.from_bytes(behind[:FOOTER], "little")
        yield Frame(offset, length, crc, data, data is None or masked_crc(data) == crc)
        offset, header = offset + HEADER + length + FOOTER, behind[FOOTER:]


def read_frame(read: ReadAt, offset: int, length: int) -> tuple[bytes, int]:
    """Payload and stored checksum of the record that a scan found at ``offset``; short where the file shrank."""
    data = read(offset + HEADER, length)
    return data, int.from_bytes(read(offset + HEADER + length, FOOTER), "little")


def _length(header: bytes, offset: int, size: int) -> int:
    if len(header) < HEADER:
        raise DamagedLengthError(offset, "the file ends inside the record")
    length, crc = struct.unpack("<QI", header)
    if masked_crc(header[:8]) != crc:
        raise DamagedLengthError(offset, "the record's length does not match its checksum")
    if offset + HEADER + length + FOOTER > size:
        raise DamagedLengthError(offset, "the file ends inside the record")
    return length
