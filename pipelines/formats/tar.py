"""Where the regular files of a tar archive are: it reads ustar, GNU and pax headers and skips contents.

Names are bytes to compare and show, never paths to open. A damaged header costs the rest of the archive, because
nothing says where the next header begins. Python's ``tarfile`` is several times slower and does not report damage.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from gatokit.storage.files import Ranges

BLOCK = 512
_WINDOW = 256 << 10
_MOST_EXTENDED = 1 << 20

# name, size, checksum, type, magic, prefix
_HEADER = struct.Struct("100s 24x 12s 12x 8s c 100x 6s 82x 155s 12x")
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_PAX, _LONG_NAME, _SPARSE = b"x", b"L", b"S"
_EXTENDED = (_PAX, _LONG_NAME, b"g", b"K")
_ADLER = 65521


class Member(NamedTuple):
    """A regular file of ``size`` bytes at ``begin``; its headers start at ``offset``."""

    name: bytes
    offset: int
    begin: int
    size: int


class DamagedTarError(ValueError):
    """The archive cannot be read from ``offset`` on; if the file ends inside a member, ``name`` is the member's."""

    def __init__(self, offset: int, problem: str, name: bytes | None = None) -> None:
        super().__init__(f"{problem} at byte {offset}")
        self.offset = offset
        self.name = name


class Reader:
    """Reads a file at any offset; small reads that follow each other share one system call."""

    def __init__(self, file: Ranges) -> None:
        self._read_at, self.size = file
        self._base, self._window = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``; fewer if the file ends before."""
        begin = offset - self._base
        if begin < 0 or begin + length > len(self._window):
            if length > _WINDOW // 2:
                return self._read_at(offset, length)
            self._base, begin = offset, 0
            self._window = self._read_at(offset, _WINDOW)
        return self._window[begin : begin + length]


def is_tar(block: bytes) -> bool:
    """Whether the first 512 bytes of a file are a tar header, or the end marker of an empty archive."""
    try:
        return len(block) == BLOCK and (_is_zero(block) or _is_sound(block, block[148:156]))
    except ValueError:
        return False


def members(reader: Reader) -> Iterator[Member]:
    """Every regular file of an archive, in its order.

    Raises DamagedTarError if a header is damaged, the file ends before the end marker, more than padding follows the
    end marker, or a file is sparse.
    """
    read, unpack, total = reader.read, _HEADER.unpack, reader.size
    at = offset = 0
    extended: dict[bytes, bytes] = {}
    while True:
        header = read(at, BLOCK)
        if len(header) < BLOCK:
            # The file may end inside the padding of its last member.
            raise DamagedTarError(min(offset, total), "the file ends before the archive's end marker")
        name, size_field, checksum, member_type, magic, prefix = unpack(header)
        try:
            if not _is_sound(header, checksum):
                if _is_zero(header) and not extended:
                    break
                raise ValueError("a header does not match its checksum")
            size = _number(size_field)
            at += BLOCK
            if member_type in _EXTENDED:
                # The first of several headers before a file wins, as in Python's tarfile.
                extended = _fields(member_type, read(at, min(size, _MOST_EXTENDED)), size) | extended
                at = _next_block(at + size)
                continue
            if member_type == _SPARSE or b"GNU.sparse" in extended:
                raise ValueError("a sparse file; write the archive without --sparse,")
            if extended.get(b"size"):
                size = _decimal(extended[b"size"])
        except ValueError as error:
            raise DamagedTarError(offset, str(error)) from None
        name = name.partition(b"\0")[0]
        if magic == b"ustar\0" and prefix[0]:
            name = prefix.partition(b"\0")[0] + b"/" + name
        if extended:
            name, extended = extended.get(b"path", name), {}
        end = at if member_type in _WITHOUT_DATA else at + size
        if end > total:
            raise DamagedTarError(offset, "the file ends inside a member", name)
        if member_type in _REGULAR and name[-1:] != b"/":
            yield Member(name, offset, at, size)
        at = offset = _next_block(end)
    for rest in range(at, total, _WINDOW):
        if not _is_zero(read(rest, _WINDOW)):
            raise DamagedTarError(at, "more than padding follows the archive's end marker")


def _is_sound(header: bytes, checksum: bytes) -> bool:
    """Whether a header matches its checksum: the sum of unsigned bytes or, from old writers, of signed ones."""
    # The low half of an Adler-32 is one more than the sum of the bytes, modulo a prime: ten times as fast as sum. The
    # checksum itself counts as eight blanks.
    excess = (zlib.adler32(header) & 0xFFFF) - 1 - sum(checksum) + 8 * ord(" ") - _number(checksum)
    if excess % _ADLER == 0:
        return True
    negative = sum(byte >= 0x80 for byte in header[:148] + header[156:])
    return (excess - 256 * negative) % _ADLER == 0


def _number(field: bytes) -> int:
    """An octal number, or a binary one if the first byte says so."""
    digits = field.partition(b"\0")[0].strip()
    if digits.isdigit():
        return int(digits, 8)
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if digits:
        raise ValueError("a header holds something else than a number")
    return 0


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise ValueError("an extended header holds something else than a size")
    return int(value)


def _fields(member_type: bytes, data: bytes, size: int) -> dict[bytes, bytes]:
    """What an extended header says about the next file's name and size, and whether it is sparse."""
    if len(data) < size:
        raise ValueError("the file ends inside an extended header, or its length is damaged,")
    if member_type == _LONG_NAME:
        return {b"path": data.partition(b"\0")[0]}
    fields: dict[bytes, bytes] = {}
    at = 0
    while member_type == _PAX and at < size and data[at]:
        # length " " key "=" value "\n", the length counting all of it
        length, space, _ = data[at : at + 21].partition(b" ")
        end = at + _decimal(length)
        key, equals, value = data[at + len(length) + 1 : end - 1].partition(b"=")
        if not space or not equals or end > size or data[end - 1 : end] != b"\n":
            raise ValueError("an extended header does not parse")
        if key in (b"path", b"size"):
            fields[key] = value.rstrip(b"/")
        elif key.startswith(b"GNU.sparse"):
            fields[b"GNU.sparse"] = value
        at = end
    return fields


def _next_block(at: int) -> int:
    return -(-at // BLOCK) * BLOCK


def _is_zero(data: bytes) -> bool:
    return not data.strip(b"\0")
