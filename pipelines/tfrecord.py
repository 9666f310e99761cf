"""TFRecord framing: length, checksum of the length, payload, checksum of the payload.

A damaged payload costs one record; a damaged length costs the rest of the file, for nothing says where the
next record begins.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import google_crc32c

HEADER, FOOTER = 12, 4


def masked_crc(data: bytes) -> int:
    """CRC-32C of ``data`` as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@dataclass(frozen=True)
class Frame:
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


def frames(file: BinaryIO, size: int, max_length: int) -> Iterator[Frame]:
    """Every record of an open file of ``size`` bytes; a payload above ``max_length`` is stepped over.

    DamagedLengthError where a length is damaged or the file ends inside a record.
    """
    offset = 0
    while offset < size:
        length = _length(file.read(HEADER), offset, size)
        if length > max_length:
            file.seek(offset + HEADER + length)
            data = None
        else:
            data = file.read(length)
        footer = file.read(FOOTER)
        if len(footer) < FOOTER or (data is not None and len(data) < length):
            raise DamagedLengthError(offset, "the file ends inside the record")
        crc = int.from_bytes(footer, "little")
        yield Frame(offset, length, crc, data, data is None or masked_crc(data) == crc)
        offset += HEADER + length + FOOTER


def read_frame(file: BinaryIO, offset: int, length: int) -> tuple[bytes, int]:
    """Payload and stored checksum of the record that a scan found at ``offset``; short where the file shrank."""
    file.seek(offset + HEADER)
    data = file.read(length + FOOTER)
    return data[:length], int.from_bytes(data[length:], "little")


def _length(header: bytes, offset: int, size: int) -> int:
    if len(header) < HEADER:
        raise DamagedLengthError(offset, "the file ends inside the record")
    length, crc = struct.unpack("<QI", header)
    if masked_crc(header[:8]) != crc:
        raise DamagedLengthError(offset, "the record's length does not match its checksum")
    if offset + HEADER + length + FOOTER > size:
        raise DamagedLengthError(offset, "the file ends inside the record")
    return length
