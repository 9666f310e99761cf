"""JSON: an object a line, in plain or compressed files, and whole files that are one object.

A plain file of lines can be read from any newline. A compressed one is read from its start, and the offsets are those
of the decompressed stream.
"""

import contextlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import google_crc32c

from gatokit.pipelines.formats.compressed import GZIP_MAGIC, ZSTD_MAGICS, Damage, DecompressedStream
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.schemas.index import ENDS_EARLY
from gatokit.storage import files as storage

BYTE_ORDER_MARK = "\ufeff"
"""Is no part of the text that begins with it."""
UTF8_MARK = BYTE_ORDER_MARK.encode()
LARGEST_OBJECT = 2 << 30
"""Bytes of a file that is read as one object."""
_BUFFER_BYTES = 1 << 18
_SKIP_BYTES = 1 << 20
_MOST_NESTED = 4 << 20
"""Lists and objects of a line: each takes at least 64 bytes of memory, for two or three bytes of the line."""
_MAGIC = {".gz": (GZIP_MAGIC,), ".tgz": (GZIP_MAGIC,), ".zst": ZSTD_MAGICS}
_ZIP = b"PK\x03\x04"
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


Line = tuple[ByteRange, bytes | None, bool]
"""A line that is not blank: where it is, its bytes without the newline, and whether it has a newline. The bytes of a
line that is too long are None, and its CRC is 0."""


class LostLines(NamedTuple):
    """A part of the file that cannot be read, and why. ``byte_range`` is what is left of lines at its ends.

    ``untrusted`` is the number of lines before it that were given, and may be wrong.
    """

    byte_range: ByteRange
    untrusted: int
    lost_bytes: int
    reason: str
    detail: str


def scan_lines(path: str, name: str, max_bytes: int, max_unpacked: int | None = None) -> Iterator[Line | LostLines]:
    """Every line that is not blank; positions count blank lines too.

    A line that is longer than ``max_bytes`` comes without its bytes. Behind damage of a compressed file, the first line
    is left out if it is no JSON object, because its beginning may be lost. Raises as ``open_stream``.
    """
    position = offset = trusted = 0
    with open_stream(path, name, max_unpacked) as stream:
        events = stream.raw.events if isinstance(stream.raw, DecompressedStream) else deque[int | Damage]()
        while True:
            data = stream.readline(max_bytes + 1)
            begin, length = offset, len(data)
            is_ended = data.endswith(b"\n")
            line = data[:-1] if is_ended else data
            is_long = len(line) > max_bytes
            while is_long and not is_ended and (data := stream.readline(_SKIP_BYTES)):
                length += len(data)
                is_ended = data.endswith(b"\n")
            offset = begin + length
            if events or not length:
                lost = None
                while events and (_place(events[0]) < offset or (_place(events[0]) == offset and not is_ended)):
                    event = events.popleft()
                    if isinstance(event, Damage):
                        if lost is not None:
                            yield lost
                        reason = ENDS_EARLY if event.ends_early else "corrupt_length"
                        untrusted = 0 if event.ends_early else trusted
                        broken = ByteRange(position, begin, event.at - begin, 0)
                        lost = LostLines(broken, untrusted, event.lost_bytes, reason, event.detail)
                        begin, line, position = event.at, line[event.at - begin :], position + 1
                    trusted = 0
                if lost is not None:
                    if is_long or (line and not _is_object(line)):
                        length_lost = offset - lost.byte_range.offset
                        lost = lost._replace(byte_range=lost.byte_range._replace(length=length_lost))
                        line, is_long = b"", False
                    yield lost
                    position -= not line  # nothing is left of the line
                if not length:
                    break
            if is_long:
                yield ByteRange(position, begin, offset - begin - is_ended, 0), None, is_ended
                trusted += 1
            else:
                if line.startswith(UTF8_MARK):  # also where files with a mark were joined
                    begin, line = begin + len(UTF8_MARK), line.removeprefix(UTF8_MARK)
                if line and not line.isspace():
                    yield ByteRange(position, begin, len(line), google_crc32c.value(line)), line, is_ended
                    trusted += 1
            position += 1


def _place(event: int | Damage) -> int:
    return event.at if isinstance(event, Damage) else event


def _is_object(line: bytes) -> bool:
    try:
        parse_object(line)
    except RejectedError:
        return False
    return True


def read_lines(path: str, name: str, places: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes at each (offset, length), ascending; fewer if the file ends before."""
    at = 0
    with open_stream(path, name) as stream:
        for offset, length in places:
            if stream.seekable():
                stream.seek(offset)
            else:
                while skipped := stream.read(min(_SKIP_BYTES, offset - at)):
                    at += len(skipped)
            data = stream.read(length)
            at += len(data)
            yield data


class DamagedObjectError(DataError):
    """A file that holds one JSON object is damaged, so that nothing of it can be read; or it ends early."""

    def __init__(self, message: str, ends_early: bool = False) -> None:
        super().__init__(message)
        self.ends_early = ends_early


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
    Raises DataError, with ``hint``, if the file cannot be read, is above 2 GiB, holds no JSON or lacks a list;
    DamagedObjectError if it is damaged.
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
        raise DamagedObjectError(f"{name}: is damaged: values are nested too deeply; {hint}") from None
    except json.JSONDecodeError as error:
        is_cut = error.pos == len(text) or error.msg.startswith("Unterminated string")
        problem = "the text ends early" if error.pos == len(text) else error.msg
        message = f"{name}: is damaged at character {error.pos}: {problem}; {hint}"
        if text and not error.pos:
            raise DataError(message) from None
        raise DamagedObjectError(message, ends_early=is_cut) from None
    except ValueError as error:
        raise DamagedObjectError(f"{name}: is damaged: {error}; {hint}") from None
    if not isinstance(content, dict):
        raise DataError(f"{name}: holds no JSON object but {_kind(content)}; {hint}")
    for key in sorted(lists):
        if not isinstance(content.get(key), list):
            raise DataError(f"{name}: has no list {key!r}; {hint}")
    return {key: value for key, value in content.items() if key in lists or key in values}


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises RejectedError if it holds none, or so many values that memory would not."""
    if line.count(b"[") + line.count(b"{") > _MOST_NESTED:
        raise RejectedError("too_large", f"the line holds more than {_MOST_NESTED:,} lists and objects")
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RejectedError("not_utf8", f"the line is not valid UTF-8 at its byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise RejectedError("corrupt_record", f"the line is no JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise RejectedError("corrupt_record", f"the line holds no JSON object but {_kind(value)}")
    return value


def count_documents(line: bytes, is_document: Callable[[dict[str, Any]], bool]) -> int:
    """How many objects a line holds for which ``is_document`` is true, one after another, in lists, or in lists of an
    object. It says how much is lost where other JSON stands than an object a line."""
    text, at = line.decode("utf-8", "replace").strip(), 0
    count = 0
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        count += _count(value, is_document, 3)
        while at < len(text) and text[at] in " \t\r,":
            at += 1
    return count


_DECODER = json.JSONDecoder()


def _count(value: Any, is_document: Callable[[dict[str, Any]], bool], depth: int) -> int:
    if isinstance(value, dict):
        if is_document(value):
            return 1
        value = list(value.values())
    if not isinstance(value, list) or not depth:
        return 0
    return sum(_count(item, is_document, depth - 1) for item in value)


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
def open_stream(path: str, name: str, max_unpacked: int | None = None) -> "Iterator[io.BufferedReader[Any]]":
    """The bytes of a file, decompressed if its suffix says so: ``raw`` is a DecompressedStream then.

    Raises DataError if the first bytes are not what the suffix says.
    """
    suffix = next((suffix for suffix in _MAGIC if path.lower().endswith(suffix)), None)
    if suffix is not None:
        with storage.ranges(path) as file:
            _check_magic(file.read_at(0, 4), suffix, name)
            yield io.BufferedReader(DecompressedStream(file, suffix, max_unpacked), _BUFFER_BYTES)
    else:
        with io.BufferedReader(storage.stream(path), _BUFFER_BYTES) as plain:
            _check_magic(plain.peek(4)[:4], None, name)
            yield plain


def _check_magic(begin: bytes, suffix: str | None, name: str) -> None:
    if begin == _ZIP:
        raise DataError(f"{name}: is a zip archive; unpack it")
    if suffix is None:
        for other, magic in _MAGIC.items():
            if any(map(begin.startswith, magic)):
                raise DataError(f"{name}: is compressed; give it a name that ends in {other}")
    elif not any(known.startswith(begin) or begin.startswith(known) for known in _MAGIC[suffix]):
        raise DataError(f"{name}: is not compressed as {suffix} files are; give it its right name")
