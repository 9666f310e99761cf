"""Reads gzip and Zstandard files as one stream of bytes: all members or frames, one after the other.

A member or frame that is damaged does not end the stream: the reader goes on at the next one, and notes a ``Damage``.
The file is read once, and a damaged member a second time, to find where the next one begins.
"""

import io
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import zstandard

from gatokit.storage.files import Ranges

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGICS = (zstandard.FRAME_HEADER, *(bytes([0x50 + number, 0x2A, 0x4D, 0x18]) for number in range(16)))
MAX_UNPACKED = 200
"""A file that is read whole may unpack to this many times its size, if nothing else is said, and to ``FREE_BYTES``."""
FREE_BYTES = 64 << 20
ZSTD_WINDOW = 1 << 31
"""The largest window of a frame that is read, which `zstd --long=31` writes; memory holds as much of its content."""

# What gzip writers put there: no reserved flag, a known compression level and system.
_GZIP_HEADER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f].{4}[\x00\x02\x04][\x00-\x0d\xff]", re.DOTALL)
_ZSTD_HEADER = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
_LONGEST_HEADER = 18
_INPUT_BYTES, _OUTPUT_BYTES = 1 << 18, 1 << 20
_LARGEST_BLOCK = 1 << 17
_WINDOW = 1 << 20
_TRIED_BYTES, _LEAST_BYTES = 1 << 16, 256
"""What looks like the beginning of a gzip member is one if it gives this much without a fault, or ends soundly before;
at the end of the file, if it gives at least the second number of bytes."""


@dataclass(frozen=True)
class Damage:
    """A part of a compressed file that cannot be read, of ``lost_bytes`` compressed bytes; ``at`` is the byte of the
    stream at which it goes on behind it.

    What the stream gave of the member or frame before is not to be trusted. If ``ends_early`` is set, it is sound: the
    file ends inside the member or frame, and nobody knows what it lacks.
    """

    lost_bytes: int
    detail: str
    ends_early: bool = False
    at: int = 0


class DecompressedStream(io.RawIOBase):
    """The content of a compressed file.

    ``events`` is filled in the order of the stream while it is read, and a reader takes out what it has seen: the
    places where a member or frame begins, and the damages.
    """

    def __init__(self, file: Ranges, suffix: str, max_unpacked: int | None = None) -> None:
        """``suffix`` is that of the file: ``.zst``, or one of gzip. The stream ends early where there is more of it
        than ``most_unpacked`` (None: never)."""
        self._most = None if max_unpacked is None else most_unpacked(file.size, max_unpacked)
        self.events: deque[int | Damage] = deque()
        self._parts = (_zstd_content if suffix == ".zst" else _gzip_content)(file)
        self._left = memoryview(b"")
        self._at = 0

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See ``io.RawIOBase``."""
        while not self._left:
            part = next(self._parts, None)
            if part is None:
                return 0
            if isinstance(part, bytes):
                if self._most is not None and self._at + len(part) > self._most:
                    part = part[: self._most - self._at]
                    detail = f"unpacks to more than {self._most:,} bytes; max_unpacked of the dataset allows more"
                    self._parts = iter((Damage(0, detail, ends_early=True),))
                self._left = memoryview(part)
                self._at += len(part)
            elif isinstance(part, _Start):
                self.events.append(self._at)
            else:
                self.events.append(replace(part, at=self._at))
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def most_unpacked(size: int, max_unpacked: int) -> int:
    """The bytes that a file of ``size`` bytes may unpack to."""
    return max(FREE_BYTES, size * max_unpacked)


class _Start:
    """A member or frame begins."""


_Part = bytes | _Start | Damage
_EMPTY = Damage(0, "the file is empty", ends_early=True)


class _Input:
    """Reads a file at any place; small reads that follow each other share one system call."""

    def __init__(self, file: Ranges) -> None:
        self._file, self.size = file, file.size
        self._base, self._data = 0, b""

    def some(self, at: int) -> memoryview:
        """At least one byte at ``at``; none at the end of the file."""
        begin = at - self._base
        if not 0 <= begin < len(self._data):
            self._base, begin = at, 0
            self._data = self._file.read_at(at, _INPUT_BYTES)
        return memoryview(self._data)[begin:]

    def exactly(self, at: int, length: int) -> memoryview:
        """``length`` bytes at ``at``. Raises EOFError if the file ends before."""
        data = self.some(at)
        if len(data) < length:
            self._base, self._data = at, self._file.read_at(at, max(length, _INPUT_BYTES))
            data = memoryview(self._data)
            if len(data) < length:
                raise EOFError
        return data[:length]

    def next_header(self, begin: int, header: re.Pattern[bytes], accepts: Callable[["_Input", int], bool]) -> int:
        """The first place from ``begin`` on where a header stands that ``accepts`` confirms; the file's end if none
        does."""
        at = begin
        while at < self.size:
            data = self._file.read_at(at, _WINDOW + _LONGEST_HEADER)
            for match in header.finditer(data):
                if match.start() < _WINDOW and accepts(self, at + match.start()):
                    return at + match.start()
            at += _WINDOW
        return self.size


def _gap(begin: int, end: int, size: int, error: Exception) -> Damage:
    """What is damaged from ``begin`` on in a file of ``size`` bytes; at ``end`` reading goes on."""
    if isinstance(error, EOFError) and end == size:
        return Damage(0, f"the compressed stream ends early, inside what begins at its byte {begin}", ends_early=True)
    problem = str(error).removeprefix("Error -3 while decompressing data: ")[:200] or "it ends early"
    return Damage(end - begin, f"the compressed stream is damaged in what begins at its byte {begin}: {problem}")


# --- gzip ----------------------------------------------------------------------------------------------------------


def _gzip_content(file: Ranges) -> Iterator[_Part]:
    """The content of all members."""
    source, at = _Input(file), 0
    if not source.size:
        yield _EMPTY
    while at < source.size:
        begin, data = at, source.some(at)
        if not data[0]:  # padding
            at += len(data) - len(bytes(data).lstrip(b"\0"))
            continue
        yield _Start()
        member = _Member(source, begin)
        try:
            yield from member.content()
            at = member.at
        except (EOFError, zlib.error) as error:
            at = source.next_header(begin + 1, _GZIP_HEADER, _is_member)
            yield _gap(begin, at, source.size, error)


class _Member:
    """The gzip member that begins at ``at``, which moves on while it is read."""

    def __init__(self, source: _Input, at: int) -> None:
        self._source, self.at = source, at

    def content(self) -> Iterator[bytes]:
        """The content. Raises EOFError if the file ends before the member, zlib.error if it is damaged; what is before
        the damage comes first."""
        decoder = zlib.decompressobj(31)
        while not decoder.eof:
            data = self._source.some(self.at)
            before = decoder.copy()
            try:
                content = decoder.decompress(data, _OUTPUT_BYTES)
            except zlib.error:
                yield from _bytewise(before, data)
                raise
            self.at += len(data) - len(decoder.unused_data if decoder.eof else decoder.unconsumed_tail)
            if content:
                yield content
            elif not data:
                raise EOFError


def _bytewise(decoder: Any, data: memoryview) -> Iterator[bytes]:
    """What a decoder gives before the byte of ``data`` at which it fails."""
    content = bytearray()
    try:
        for number in range(len(data)):
            content += decoder.decompress(data[number : number + 1])
            if len(content) > _OUTPUT_BYTES:
                yield bytes(content)
                content.clear()
    except zlib.error:
        pass
    if content:
        yield bytes(content)


def _is_member(source: _Input, at: int) -> bool:
    """Whether what looks like a gzip header begins a member."""
    given = 0
    try:
        for content in _Member(source, at).content():
            given += len(content)
            if given >= _TRIED_BYTES:
                break
    except EOFError:
        return given >= _LEAST_BYTES
    except zlib.error:
        return False
    return True


# --- Zstandard -----------------------------------------------------------------------------------------------------


def _zstd_content(file: Ranges) -> Iterator[_Part]:
    """The content of all frames."""
    source, at = _Input(file), 0
    if not source.size:
        yield _EMPTY
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    while at < source.size:
        begin = at
        yield _Start()
        frame = _Frame(source, begin)
        try:
            yield from frame.content(decompressor)
            at = frame.at
        except (EOFError, zstandard.ZstdError) as error:
            at = source.next_header(begin + 1, _ZSTD_HEADER, _is_frame)
            yield _gap(begin, at, source.size, error)


class _Frame:
    """The Zstandard or skippable frame that begins at ``at``, which moves on while it is read.

    A frame is read block by block, because a decoder gives a block as a whole or not at all.
    """

    def __init__(self, source: _Input, at: int) -> None:
        self._source, self.at = source, at

    def content(self, decompressor: zstandard.ZstdDecompressor) -> Iterator[bytes]:
        """The content. Raises EOFError if the file ends before the frame, ZstdError if it is damaged."""
        magic = self._take(4)
        if magic not in ZSTD_MAGICS:
            raise zstandard.ZstdError("no frame begins there")
        if magic != ZSTD_MAGICS[0]:
            size = int.from_bytes(self._take(4), "little")
            if self.at + size > self._source.size:
                raise EOFError
            self.at += size
            return
        frame = decompressor.decompressobj()
        # Frame_Header_Descriptor: bits 7 and 6 the size of the content's size, 5 single segment, 2 checksum, 1 and 0
        # the size of the dictionary's id (RFC 8878, section 3.1.1.1).
        descriptor = self._take(1)
        flags = descriptor[0]
        single, has_checksum = flags >> 5 & 1, flags >> 2 & 1
        header = self._take((not single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6])
        content = frame.decompress(magic + descriptor + header)
        is_last = False
        while not is_last:
            # Block_Header: bit 0 last block, bits 1 and 2 the type (1: one byte repeated), the others the size.
            block = self._take(3)
            number = int.from_bytes(block, "little")
            size = number >> 3
            if size > _LARGEST_BLOCK:
                raise zstandard.ZstdError("a block is too large")
            is_last = bool(number & 1)
            content += frame.decompress(block + self._take(1 if number >> 1 & 3 == 1 else size))
            if content and not is_last:
                yield content
                content = b""
        if has_checksum:
            content += frame.decompress(self._take(4))
        if not frame.eof:
            raise zstandard.ZstdError("the frame goes on behind its last block")
        if content:
            yield content

    def _take(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        data = bytes(self._source.exactly(self.at, length))
        self.at += length
        return data


def _is_frame(source: _Input, at: int) -> bool:
    """Whether a frame with at least one sound block, or a whole skippable frame, begins at a magic number."""
    try:
        for _ in _Frame(source, at).content(zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)):
            break
    except (EOFError, zstandard.ZstdError):
        return False
    return True
