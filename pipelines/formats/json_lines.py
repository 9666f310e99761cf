"""JSON: an object a line, in plain or compressed files, and whole files that are one object.

A plain file of lines can be read from any newline. A compressed one is read from its start, and the offsets are those
of the decompressed stream.
"""

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import google_crc32c
import zstandard

from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.storage import files as storage

BYTE_ORDER_MARK = "\ufeff"
"""Is no part of the text that begins with it."""
UTF8_MARK = BYTE_ORDER_MARK.encode()
LARGEST_OBJECT = 2 << 30
"""Bytes of a file that is read as one object."""
_BUFFER_BYTES = 1 << 18
_SKIP_BYTES = 1 << 20
_ZSTD_WINDOW = 1 << 31
"""The largest window of a frame that is read, which `zstd --long=31` writes; memory holds as much of its content."""
_ZSTD_INPUT_BYTES = 1 << 12  # a few bytes can expand to 128 KiB, and larger inputs to gigabytes
_MAGIC = {
    ".gz": [b"\x1f\x8b"],
    ".tgz": [b"\x1f\x8b"],
    ".zst": [zstandard.FRAME_HEADER, *(bytes([0x50 + number, 0x2A, 0x4D, 0x18]) for number in range(16))],
}
_ZIP = b"PK\x03\x04"
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


class DamagedStreamError(ValueError):
    """A compressed stream is damaged or ends early; everything before the damage was read."""


def scan_lines(path: str, name: str, max_bytes: int) -> Iterator[tuple[ByteRange, bytes | None]]:
    """Every line that is not blank, without its newline, and where it is; positions count blank lines too.

    A line that is longer than ``max_bytes`` is None, with a CRC of 0. Raises as ``open_stream``.
    """
    position = offset = 0
    with open_stream(path, name) as stream:
        while data := stream.readline(max_bytes + 1):
            begin, line = offset, data.removesuffix(b"\n")
            length = len(line)
            offset += len(data)
            if length > max_bytes:
                while data and not data.endswith(b"\n"):
                    data = stream.readline(_SKIP_BYTES)
                    offset += len(data)
                    length += len(data.removesuffix(b"\n"))
                yield ByteRange(position, begin, length, 0), None
            else:
                if line.startswith(UTF8_MARK):  # also where files with a mark were joined
                    begin, line = begin + len(UTF8_MARK), line.removeprefix(UTF8_MARK)
                if line and not line.isspace():
                    yield ByteRange(position, begin, len(line), google_crc32c.value(line)), line
            position += 1


def read_lines(path: str, name: str, places: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes at each (offset, length), ascending; fewer if the file ends before or is damaged there."""
    at = 0
    with open_stream(path, name) as stream:
        for offset, length in places:
            try:
                if stream.seekable():
                    stream.seek(offset)
                else:
                    while skipped := stream.read(min(_SKIP_BYTES, offset - at)):
                        at += len(skipped)
                data = stream.read(length)
            except DamagedStreamError:
                data = b""
            at += len(data)
            yield data


def read_object(
    path: str,
    name: str,
    lists: tuple[str, ...],
    keep: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    values: tuple[str, ...] = (),
    hint: str,
) -> dict[str, Any]:
    """Of the object that a JSON file holds, its ``lists`` and ``values`` that are there, in the file's order.

    ``keep`` gets every object below it as it is read, and returns what is used of it, so that memory holds no more.
    Bytes that are not UTF-8 become surrogates (``surrogateescape``), so that a bad text does not cost the others.
    Raises DataError, with ``hint``, if the file cannot be read, is damaged or above 2 GiB, or lacks a list.
    """

    def hook(entry: dict[str, Any]) -> dict[str, Any]:
        return keep(entry) if entry.keys().isdisjoint(lists) else entry

    try:
        size = storage.size(path)
        if size > LARGEST_OBJECT:
            raise DataError(f"{name}: has {size} bytes, more than the 2 GiB that are read as one; divide it; {hint}")
        text = str(storage.read_bytes(path), "utf-8-sig", "surrogateescape")
        content = json.loads(text, object_hook=hook)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}; {hint}") from None
    except RecursionError:
        raise DataError(f"{name}: is damaged: values are nested too deeply; {hint}") from None
    except json.JSONDecodeError as error:
        problem = "the text ends early" if error.pos == len(text) else error.msg
        raise DataError(f"{name}: is damaged at character {error.pos}: {problem}; {hint}") from None
    except ValueError as error:
        raise DataError(f"{name}: is damaged: {error}; {hint}") from None
    if not isinstance(content, dict):
        raise DataError(f"{name}: holds no JSON object but {_kind(content)}; {hint}")
    for key in sorted(lists):
        if not isinstance(content.get(key), list):
            raise DataError(f"{name}: has no list {key!r}; {hint}")
    return {key: value for key, value in content.items() if key in lists or key in values}


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises RejectedError if it holds none."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RejectedError("not_utf8", f"the line is not valid UTF-8 at its byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise RejectedError("corrupt_record", f"the line is no JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise RejectedError("corrupt_record", f"the line holds no JSON object but {_kind(value)}")
    return value


def key_value(record: dict[str, Any], key: str) -> Any:
    """The value of a key. Raises RejectedError if it is absent or null."""
    value = record.get(key)
    if value is None:
        there = ", ".join(map(repr, record))[:200] or "none"
        raise RejectedError("missing_field", f"{key!r} is {'null' if key in record else f'not among the keys {there}'}")
    return value


def key_text(record: dict[str, Any], key: str) -> str:
    """The string of a key. Raises RejectedError if it is absent, null or not a string."""
    value = key_value(record, key)
    if not isinstance(value, str):
        raise RejectedError("wrong_shape", f"{key!r} holds no string but {_kind(value)}")
    return value.removeprefix(BYTE_ORDER_MARK)


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")


@contextlib.contextmanager
def open_stream(path: str, name: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed if its suffix says so; reading them may raise DamagedStreamError.

    Raises DataError if the first bytes are not what the suffix says.
    """
    suffix = next((suffix for suffix in _MAGIC if path.lower().endswith(suffix)), None)
    with io.BufferedReader(storage.stream(path), _BUFFER_BYTES) as plain:
        begin = plain.peek(4)[:4]
        if begin == _ZIP:
            raise DataError(f"{name}: is a zip archive; unpack it")
        if suffix is None:
            for other, magic in _MAGIC.items():
                if any(map(begin.startswith, magic)):
                    raise DataError(f"{name}: is compressed; give it a name that ends in {other}")
            yield plain
        elif any(known.startswith(begin) or begin.startswith(known) for known in _MAGIC[suffix]):
            blocks = _zstd_blocks(plain) if suffix == ".zst" else _gzip_blocks(plain)
            yield io.BufferedReader(_Decompressed(blocks), _BUFFER_BYTES)
        else:
            raise DataError(f"{name}: is not compressed as {suffix} files are; give it its right name")


class _Decompressed(io.RawIOBase):
    """A stream of blocks of bytes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            while not self._left:
                self._left = memoryview(next(self._blocks))
        except StopIteration:
            return 0
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise DamagedStreamError(f"the compressed stream is damaged or ends early: {str(error)[:200]}") from None
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def _gzip_blocks(file: BinaryIO) -> Iterator[bytes]:
    """The content of all members of a gzip file, one after the other."""
    members = gzip.GzipFile(fileobj=file)
    # read1, not read: it returns the bytes before the damage, and only the next call raises.
    while data := members.read1(_BUFFER_BYTES):
        yield data


def _zstd_blocks(file: BinaryIO) -> Iterator[bytes]:
    """The content of all frames of a Zstandard file, one after the other."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame: Any = None
    data = b""
    while data := data or file.read(_ZSTD_INPUT_BYTES):
        frame = frame or decompressor.decompressobj()
        yield frame.decompress(data)
        data = frame.unused_data if frame.eof else b""
        if frame.eof:
            frame = None
    if frame is not None:
        raise EOFError("the file ends inside a Zstandard frame")
