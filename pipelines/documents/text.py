"""Texts: a JSON line or a plain text file (``.txt``, ``.text``, ``.md``, ``.rst``) is one document.

Files may be compressed with gzip (``.gz``) or Zstandard (``.zst``). Texts in Parquet rows are in ``parquet.py``.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import google_crc32c

from gatokit.pipelines.documents import reader
from gatokit.pipelines.documents.reader import DocumentFile, Loaded, ScannedDocument
from gatokit.pipelines.formats import json_lines
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.config import TextConfig
from gatokit.schemas.errors import RejectedError


def find(config: TextConfig, field: str, base: Path) -> list[DocumentFile]:
    """See ``reader.plan_documents``; a file's suffix says what it holds."""
    files = []
    suffixes = (*reader.JSON_LINES, ".parquet", *reader.PLAIN_TEXT)
    compressible = (*reader.JSON_LINES, *reader.PLAIN_TEXT)
    for file in reader.source_files(config.source, f"{field}.source", base, suffixes, compressible):
        name, is_compressed = reader.suffix(file["path"])
        lines = "compressed_lines" if is_compressed else "lines"
        type_ = "rows" if name == ".parquet" else "plain" if name in reader.PLAIN_TEXT else lines
        files.append(reader.file_from_json({**file, "type": type_, "field": config.field}))
    return files


class LinesFile(DocumentFile):
    """A file with a JSON object a line."""

    @abstractmethod
    def document(self, line: bytes, byte_range: ByteRange, max_bytes: int) -> ScannedDocument:
        """The document in a line at ``byte_range``. Raises RejectedError if there is something wrong with it."""

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        position = offset = 0
        try:
            for byte_range, line in json_lines.scan_lines(self.path, self.name, max_bytes):
                position, offset = byte_range.position + 1, byte_range.offset + byte_range.length + 1
                try:
                    if line is None:
                        raise reader.too_large(max_bytes)
                    yield self.document(line, byte_range, max_bytes)
                except RejectedError as error:
                    yield reader.rejected(byte_range, str(byte_range.position), error)
        except json_lines.DamagedStreamError as error:
            damage = RejectedError("corrupt_length", str(error))
            yield reader.rejected(ByteRange(position, offset, 0, 0), str(position), damage)


class TextLinesFile(LinesFile):
    """JSONL of texts: the string of the key ``field`` is the document."""

    type: str = "lines"
    field: str

    def document(self, line: bytes, byte_range: ByteRange, max_bytes: int) -> ScannedDocument:
        """See ``LinesFile``."""
        return ScannedDocument(byte_range, str(byte_range.position), reader.content_digest([self._text(line)]))

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        places = ((byte_range.offset, byte_range.length) for byte_range in byte_ranges)
        for line in json_lines.read_lines(self.path, self.name, places):
            yield google_crc32c.value(line), [self._text(line)]

    def _text(self, line: bytes) -> str:
        return reader.not_blank(json_lines.key_text(json_lines.parse_object(line), self.field), self.field)


class PlainTextFile(DocumentFile):
    """A file whose whole content is one text, to the byte: line ends stay as they are."""

    type: str = "plain"

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        data = b""
        try:
            data = self._data(max_bytes)
            if len(data) > max_bytes:
                raise reader.too_large(max_bytes)
            content = reader.content_digest([self._text(data)])
        except RejectedError as error:
            yield reader.rejected(ByteRange(0, 0, len(data), 0), "0", error)
        else:
            yield ScannedDocument(ByteRange(0, 0, len(data), google_crc32c.value(data)), "0", content)

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        for byte_range in byte_ranges:
            data = self._data(byte_range.length)
            yield google_crc32c.value(data), [self._text(data)]

    def _data(self, max_bytes: int) -> bytes:
        """The content; of a longer one than ``max_bytes`` the first ``max_bytes + 1`` bytes."""
        with json_lines.open_stream(self.path, self.name) as stream:
            try:
                return stream.read(max_bytes + 1)
            except json_lines.DamagedStreamError as error:
                raise RejectedError("corrupt_length", str(error)) from None

    def _text(self, data: bytes) -> str:
        return reader.not_blank(reader.decode(data, "the file is not valid UTF-8 at its byte"), "the file")
