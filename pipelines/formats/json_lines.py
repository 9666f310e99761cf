"""JSONL: one document a line, in plain or compressed files.

A plain file divides at its newlines. A compressed one is read from its start, and the offsets are those of the
uncompressed stream.
"""

import contextlib
import gzip
import io
import json
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import google_crc32c
import zstandard

from gatokit.pipelines.documents.reader import CorpusFile, FoundDocument, Part, changed, content_digest
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.storage import files

UTF8_MARK = b"\xef\xbb\xbf"
STREAM_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)
"""What a truncated or damaged compressed stream raises, after everything before the damage was read."""
_BUFFER_BYTES = 1 << 18
_SKIP_BYTES = 1 << 20
_ZSTD_INPUT_BYTES = 1 << 12  # a few bytes may stand for 128 KiB, so that larger pieces could become gigabytes
_MAGIC = {
    ".gz": [b"\x1f\x8b"],
    ".zst": [zstandard.FRAME_HEADER, *(bytes([0x50 + number, 0x2A, 0x4D, 0x18]) for number in range(16))],
}
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank, without its newline; ``data`` is None where it is longer than the bound."""

    position: int
    offset: int
    length: int
    data: bytes | None


class LinesFile(CorpusFile):
    """A file with a JSON object a line."""

    @abstractmethod
    def document(self, line: bytes, place: ByteRange, max_bytes: int) -> FoundDocument:
        """The document in a line at ``place``. RejectedError where there is something wrong with it."""

    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """See ``CorpusFile``."""
        position = offset = 0
        with opened(self) as stream:
            try:
                for line in split_lines(stream, max_bytes):
                    position, offset = line.position + 1, line.offset + line.length + 1
                    yield self._found(line, max_bytes)
            except STREAM_ERRORS as error:
                place = ByteRange(position, offset, 0, 0)
                yield FoundDocument(place, str(position), None, None, "corrupt_length", damaged_stream(error))

    def _found(self, line: Line, max_bytes: int) -> FoundDocument:
        crc = 0 if line.data is None else google_crc32c.value(line.data)
        place = ByteRange(line.position, line.offset, line.length, crc)
        try:
            if line.data is None:
                raise too_large(max_bytes)
            return self.document(line.data, place, max_bytes)
        except RejectedError as error:
            return FoundDocument(place, str(place.position), None, reason=error.reason, detail=error.detail)


class TextLinesFile(LinesFile):
    """JSONL of texts: the string of the key ``field`` is the document."""

    field: str

    def document(self, line: bytes, place: ByteRange, max_bytes: int) -> FoundDocument:
        """See ``LinesFile``."""
        return FoundDocument(place, str(place.position), digest_of([self._text(line)]))

    def read(self, places: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``CorpusFile``."""
        for place, line in read_lines(self, ((place, place.length) for place in places)):
            if google_crc32c.value(line) != place.crc:
                raise changed(self, place)
            yield [self._text(line)]

    def _text(self, line: bytes) -> str:
        return checked_text(text_of(parse_object(line), self.field), self.field)


class CompressedTextLinesFile(TextLinesFile):
    """The same, compressed with gzip (``.gz``) or Zstandard (``.zst``)."""

    divides: ClassVar[bool] = False


def too_large(max_bytes: int) -> RejectedError:
    """The rejection of a document above ``max_bytes``."""
    return RejectedError("too_large", f"the document is above max_episode_bytes {max_bytes}")


def damaged_stream(error: Exception) -> str:
    """What was wrong with a compressed stream."""
    return f"the compressed stream is damaged or ends early: {str(error)[:200]}"


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. RejectedError where it holds none."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RejectedError("not_utf8", f"the line is not valid UTF-8 at its byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise RejectedError("corrupt_record", f"the line is no JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise RejectedError("corrupt_record", f"the line holds no JSON object but {_kind(value)}")
    return value


def value_of(record: dict[str, Any], key: str) -> Any:
    """The value of a key. RejectedError where it is absent or null."""
    value = record.get(key)
    if value is None:
        there = ", ".join(map(repr, record))[:200] or "none"
        raise RejectedError("missing_field", f"{key!r} is {'null' if key in record else f'not among the keys {there}'}")
    return value


def text_of(record: dict[str, Any], key: str) -> str:
    """The string of a key. RejectedError where it is absent, null or no string."""
    value = value_of(record, key)
    if not isinstance(value, str):
        raise RejectedError("wrong_shape", f"{key!r} holds no string but {_kind(value)}")
    return value


def checked_text(text: str, field: str) -> str:
    """A text that has tokens. RejectedError where it holds nothing but white space."""
    if not text or text.isspace():
        raise RejectedError("empty", f"{field!r} holds nothing but white space")
    return text


def digest_of(parts: list[Part]) -> bytes:
    """``content_digest``. RejectedError where JSON held half a surrogate pair, which UTF-8 cannot hold."""
    try:
        return content_digest(parts)
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise RejectedError("not_utf8", f"a text holds {half}, half a surrogate pair") from None


def _kind(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a string", "bool": "true or false", "NoneType": "null"}
    return names.get(type(value).__name__, "a number")


def split_lines(stream: BinaryIO, max_bytes: int) -> Iterator[Line]:
    """Every line that is not blank; positions count blank ones too. Of a longer one than ``max_bytes`` only the
    length is kept. Errors of the stream pass through."""
    position = offset = 0
    while data := stream.readline(max_bytes + 1):
        begin, kept = offset, data.removesuffix(b"\n")
        length = len(kept)
        offset += len(data)
        if length > max_bytes:
            while len(data) and not data.endswith(b"\n"):
                data = stream.readline(_SKIP_BYTES)
                offset += len(data)
                length += len(data.removesuffix(b"\n"))
            yield Line(position, begin, length, None)
        else:
            if not begin and kept.startswith(UTF8_MARK):
                begin, kept = len(UTF8_MARK), kept[len(UTF8_MARK) :]
            if kept and not kept.isspace():
                yield Line(position, begin, len(kept), kept)
        position += 1


def read_lines(file: CorpusFile, lines: Iterable[tuple[ByteRange, int]]) -> Iterator[tuple[ByteRange, bytes]]:
    """The bytes at the offset of each place, as many as are asked for; fewer where the file ends before.

    DataError where a compressed stream is damaged.
    """
    at = 0
    with opened(file) as stream:
        for place, length in lines:
            try:
                if stream.seekable():
                    stream.seek(place.offset)
                else:
                    while skipped := stream.read(min(_SKIP_BYTES, place.offset - at)):
                        at += len(skipped)
                data = stream.read(length)
            except STREAM_ERRORS:
                raise changed(file, place) from None
            at += len(data)
            yield place, data


@contextlib.contextmanager
def opened(file: CorpusFile) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed where its suffix says so.

    DataError where its first bytes say something else.
    """
    suffix = next((suffix for suffix in _MAGIC if file.path.lower().endswith(suffix)), None)
    with io.BufferedReader(files.stream(file.path), _BUFFER_BYTES) as plain:
        begin = plain.peek(4)[:4]
        if begin == _ZIP:
            raise DataError(f"{file.name}: is a zip archive; unpack it")
        if suffix is None:
            for other, magic in _MAGIC.items():
                if any(map(begin.startswith, magic)):
                    raise DataError(f"{file.name}: is compressed; give it a name that ends in {other}")
        elif not any(known.startswith(begin) or begin.startswith(known) for known in _MAGIC[suffix]):
            raise DataError(f"{file.name}: is not compressed as {suffix} files are; give it its right name")
        if suffix == ".gz":
            yield io.BufferedReader(_GzipStream(plain), _BUFFER_BYTES)
        elif suffix == ".zst":
            yield io.BufferedReader(_ZstdStream(plain), _BUFFER_BYTES)
        else:
            yield plain


class _GzipStream(io.RawIOBase):
    """All members of a gzip file, one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._members = gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # read1 and not read: what stands before damage comes in a call of its own.
        data = self._members.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _ZstdStream(io.RawIOBase):
    """All frames of a Zstandard file, one after the other; EOFError where the last one is not whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output and self._advance():
            pass
        size = min(len(buffer), len(self._output))
        buffer[:size], self._output = self._output[:size], self._output[size:]
        return size

    def _advance(self) -> bool:
        data = self._input or self._file.read(_ZSTD_INPUT_BYTES)
        if not data:
            if self._frame is not None:
                raise EOFError("the file ends inside a Zstandard frame")
            return False
        self._frame = self._frame or self._decompressor.decompressobj()
        self._output = memoryview(self._frame.decompress(data))
        self._input = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return True
