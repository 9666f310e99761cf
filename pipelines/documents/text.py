"""Texts: a JSON line or a plain text file (``.txt``, ``.text``, ``.md``, ``.rst``) is one document.

Files may be compressed with gzip (``.gz``) or Zstandard (``.zst``). Texts in Parquet rows are in ``parquet.py``.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import google_crc32c

from gatokit.pipelines.documents.reader import (
    COMPRESSIONS,
    JSON_LINES,
    PLAIN_TEXT,
    DocumentFile,
    Part,
    ScannedDocument,
    content_digest,
    decode,
    file_from_json,
    not_blank,
    other_suffix,
    rejected,
    source_files,
    suffix,
    text_digest,
    too_large,
)
from gatokit.pipelines.formats.json_lines import (
    UTF8_MARK,
    DamagedStreamError,
    Line,
    key_text,
    open_stream,
    parse_object,
    read_lines,
    split_lines,
)
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.config import TextConfig
from gatokit.schemas.errors import RejectedError

_READ_BYTES = 1 << 20


def find(config: TextConfig, field: str, base: Path) -> list[DocumentFile]:
    """See ``reader.find_documents``; a file's suffix says what it holds."""
    suffixes = (*JSON_LINES, ".parquet", *PLAIN_TEXT)
    files = []
    for file in source_files(config.source, f"{field}.source", base, suffixes, COMPRESSIONS):
        name, is_compressed = suffix(file["path"])
        if name == ".parquet" and is_compressed:
            raise other_suffix(file["path"], f"{field}.source", suffixes, COMPRESSIONS)
        lines = "compressed_lines" if is_compressed else "lines"
        type_ = "rows" if name == ".parquet" else "plain" if name in PLAIN_TEXT else lines
        files.append(file_from_json({**file, "type": type_, "field": config.field}))
    return files


class LinesFile(DocumentFile):
    """A file with a JSON object a line."""

    @abstractmethod
    def document(self, line: bytes, byte_range: ByteRange, max_bytes: int) -> ScannedDocument:
        """The document in a line at ``byte_range``. Raises RejectedError if there is something wrong with it."""

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        position = offset = 0
        with open_stream(self.path, self.name) as stream:
            try:
                for line in split_lines(stream, max_bytes):
                    position, offset = line.position + 1, line.offset + line.length + 1
                    yield self._scanned(line, max_bytes)
            except DamagedStreamError as error:
                byte_range = ByteRange(position, offset, 0, 0)
                yield rejected(byte_range, str(position), RejectedError("corrupt_length", str(error)))

    def _scanned(self, line: Line, max_bytes: int) -> ScannedDocument:
        crc = 0 if line.data is None else google_crc32c.value(line.data)
        byte_range = ByteRange(line.position, line.offset, line.length, crc)
        try:
            if line.data is None:
                raise too_large(max_bytes)
            return self.document(line.data, byte_range, max_bytes)
        except RejectedError as error:
            return rejected(byte_range, str(byte_range.position), error)


class TextLinesFile(LinesFile):
    """JSONL of texts: the string of the key ``field`` is the document."""

    type: str = "lines"
    field: str

    def document(self, line: bytes, byte_range: ByteRange, max_bytes: int) -> ScannedDocument:
        """See ``LinesFile``."""
        return ScannedDocument(byte_range, str(byte_range.position), text_digest([self._text(line)]))

    def read(self, byte_ranges: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``DocumentFile``."""
        for byte_range, line in read_lines(
            self.path, self.name, ((byte_range, byte_range.length) for byte_range in byte_ranges)
        ):
            if google_crc32c.value(line) != byte_range.crc:
                raise self.changed(byte_range)
            yield [self._text(line)]

    def _text(self, line: bytes) -> str:
        return not_blank(key_text(parse_object(line), self.field), self.field)


class PlainTextFile(DocumentFile):
    """A file whose whole content is one text, to the byte: line ends stay as they are."""

    type: str = "plain"

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        data = b""
        try:
            data = self._data(max_bytes)
            if len(data) > max_bytes:
                raise too_large(max_bytes)
            content = content_digest([self._text(data)])
        except RejectedError as error:
            yield rejected(ByteRange(0, 0, len(data), 0), "0", error)
        else:
            yield ScannedDocument(ByteRange(0, 0, len(data), google_crc32c.value(data)), "0", content)

    def read(self, byte_ranges: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``DocumentFile``."""
        for byte_range in byte_ranges:
            try:
                data = self._data(byte_range.length)
                if len(data) != byte_range.length or google_crc32c.value(data) != byte_range.crc:
                    raise self.changed(byte_range)
                yield [self._text(data)]
            except RejectedError:
                raise self.changed(byte_range) from None

    def _data(self, max_bytes: int) -> bytes:
        """The content; of a longer one than ``max_bytes`` the first ``max_bytes + 1`` bytes."""
        pieces, room = [], max_bytes + 1
        with open_stream(self.path, self.name) as stream:
            try:
                while piece := stream.read(min(_READ_BYTES, room)):
                    pieces.append(piece)
                    room -= len(piece)
            except DamagedStreamError as error:
                raise RejectedError("corrupt_length", str(error)) from None
        return b"".join(pieces)

    def _text(self, data: bytes) -> str:
        text = decode(data.removeprefix(UTF8_MARK), "the file is not valid UTF-8 at its byte")
        return not_blank(text, "the file")
