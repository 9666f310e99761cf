"""Where the regular files of a tar archive are: it reads ustar, GNU and pax headers and skips contents.

Names are bytes to compare and show, never paths to open. Behind a damaged header the walk goes on at the next one that
matches its checksum, wherever it stands. Python's ``tarfile`` is several times slower and does not report damage.
"""

import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
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
_MAGIC, _MAGIC_AT = b"ustar", 257
_NAME, _PREFIX_AT = 100, 345
_ADLER = 65521


class Member(NamedTuple):
    """A regular file of ``size`` bytes at ``begin``; its headers start at ``offset``."""

    name: bytes
    offset: int
    begin: int
    size: int


class Gap(NamedTuple):
    """A part of the archive, from ``offset`` to ``end``, that cannot be read. ``name`` is that of the member in which
    it begins, if it is known. If ``ends_early`` is set, nobody knows what else the archive had.

    ``hidden`` is the number of bytes that are not there at all, see ``Cut``.
    """

    offset: int
    end: int
    problem: str
    name: bytes | None = None
    ends_early: bool = False
    hidden: int = 0


class Cut(NamedTuple):
    """A place in the archive where bytes are missing, why, and how many bytes of the compressed file they were."""

    place: int
    problem: str
    hidden: int


class _DamageError(Exception):
    """An archive cannot be read at a place; ``name`` is that of the member there, and ``behind`` where the next one
    begins, if they are known."""

    def __init__(self, problem: str, name: bytes | None = None, behind: int = 0) -> None:
        super().__init__(problem)
        self.name, self.behind = name, behind


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


def is_damaged_tar(reader: Reader) -> bool:
    """Whether a file that does not begin as an archive has a header nevertheless."""
    return _MAGIC in reader.read(0, _WINDOW) and next_header(reader, 1) < reader.size


def members(reader: Reader, cuts: Sequence[Cut] = ()) -> Iterator[Member | Gap]:
    """Every regular file of an archive, in its order, and the gaps between them.

    A gap begins where a header is damaged, a file is sparse, bytes are missing (``cuts``, ascending), the file ends
    before the end marker, or more than padding follows that marker. A member is part of the gap behind it if a header
    stands in its bytes, or bytes may have been put in.
    """
    total, offset, held = reader.size, 0, None
    left = deque(cuts)
    while True:
        try:
            member, behind = _member(reader, offset)
            if left and left[0].place < behind:
                raise _DamageError(left[0].problem, member.name if member and left[0].place > offset else None)
        except _DamageError as error:
            if error.args == (_END,):
                rest = offset
                while rest < total and _is_zero(reader.read(rest, _WINDOW)):
                    rest += _WINDOW
                if rest >= total:
                    break
                error = _DamageError("more than padding follows the archive's end marker")
            at_cut = left and str(error) == left[0].problem
            if error.behind:
                end = min(error.behind, total)
            else:
                end = _resumes(reader, left[0].place if at_cut else (held.begin if held else offset + 1), offset)
            begin, is_shifted = min(offset, total), end < total and (end - offset) % BLOCK != 0
            is_shifted = is_shifted and not (left and left[0].place <= end)
            if held is not None and (end < offset or (is_shifted and not _is_padded(reader, held))):
                begin, held = held.offset, None
            if held is not None:
                yield held
                held = None
            hidden = 0
            while left and left[0].place <= end:
                hidden += left.popleft().hidden
            ends_early = end == total and str(error).startswith(_EARLY)
            yield Gap(begin, end, f"{error} at byte {begin}", error.name, ends_early, hidden)
            offset = end
            if offset >= total:
                return
            continue
        if held is not None:
            yield held
        held, offset = member, behind
    if held is not None:
        yield held
    for cut in left:
        yield Gap(cut.place, cut.place, cut.problem, hidden=cut.hidden)


_EARLY = "the file ends"
_END = "the end marker"


def _is_padded(reader: Reader, member: Member) -> bool:
    """Whether zeros follow the data of a member: then no byte was put in before its end."""
    end = member.begin + member.size
    padding = padded(member.size) - member.size
    return padding > 0 and _is_zero(reader.read(end, padding))


def next_header(reader: Reader, begin: int) -> int:
    """The first place from ``begin`` on where a header stands that matches its checksum; the file's end if none does.

    Only headers with the magic number of ustar, GNU and pax archives are found.
    """
    at = begin
    while at < reader.size:
        data = reader.read(at, _WINDOW)
        found = data.find(_MAGIC)
        while found >= 0:
            header = data[found - _MAGIC_AT : found - _MAGIC_AT + BLOCK] if found >= _MAGIC_AT else b""
            if len(header) == BLOCK and header[0] and is_tar(header):
                return at + found - _MAGIC_AT
            found = data.find(_MAGIC, found + 1)
        at += max(1, _WINDOW - BLOCK)
    return reader.size


def _resumes(reader: Reader, begin: int, offset: int) -> int:
    """The first place from ``begin`` on at which a member can be read behind damage at ``offset``."""
    end = next_header(reader, begin)
    # A name that fills its field is cut, and the header with the whole of it is lost.
    while end == offset or (b"\0" not in reader.read(end, _NAME) and not reader.read(end + _PREFIX_AT, 1).strip(b"\0")):
        end = next_header(reader, end + 1)
        if end == reader.size:
            break
    return end


def _member(reader: Reader, offset: int) -> tuple[Member | None, int]:
    """The member whose headers begin at ``offset``, None if it is no regular file, and where the next one begins.

    Raises _DamageError, ``_END`` at the end marker.
    """
    read, unpack, total = reader.read, _HEADER.unpack, reader.size
    at = offset
    extended: dict[bytes, bytes] = {}
    while True:
        header = read(at, BLOCK)
        if len(header) < BLOCK:
            # The file may end inside the padding of its last member.
            raise _DamageError(f"{_EARLY} before the archive's end marker")
        name, size_field, checksum, member_type, magic, prefix = unpack(header)
        try:
            if not _is_sound(header, checksum):
                if _is_zero(header) and not extended:
                    raise _DamageError(_END)
                raise ValueError("a header does not match its checksum")
            size = _number(size_field)
            at += BLOCK
            if member_type in _EXTENDED:
                # The first of several headers before a file wins, as in Python's tarfile.
                extended = _fields(member_type, read(at, min(size, _MOST_EXTENDED)), size) | extended
                at += padded(size)
                continue
            if extended.get(b"size"):
                size = _decimal(extended[b"size"])
            if member_type == _SPARSE or b"GNU.sparse" in extended:
                problem = "a sparse file; write the archive without --sparse,"
                raise _DamageError(problem, behind=at + padded(size))
        except ValueError as error:
            raise _DamageError(str(error)) from None
        name = name.partition(b"\0")[0]
        if magic == b"ustar\0" and prefix[0]:
            name = prefix.partition(b"\0")[0] + b"/" + name
        if extended:
            name = extended.get(b"path", name)
        if member_type in _WITHOUT_DATA:
            size = 0
        if at + size > total:
            raise _DamageError(f"{_EARLY} inside a member", name)
        is_regular = member_type in _REGULAR and name[-1:] != b"/"
        return Member(name, offset, at, size) if is_regular else None, at + padded(size)


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


def padded(size: int) -> int:
    """Bytes that the data of a member of ``size`` bytes take in an archive."""
    return -(-size // BLOCK) * BLOCK


def _is_zero(data: bytes) -> bool:
    return not data.strip(b"\0")
