"""Texts: a JSON line or a plain text file (``.txt``, ``.text``, ``.md``, ``.rst``) is one document.

Files may be compressed with gzip (``.gz``) or Zstandard (``.zst``). Texts in Parquet rows are in ``parquet.py``.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import google_crc32c

from gatokit.pipelines.documents.reader import (
    JSON_LINES,
    PLAIN_TEXT,
    DocumentFile,
    Loaded,
    ScannedDocument,
    content_digest,
    decode,
    file_from_json,
    not_blank,
    rejected,
    source_files,
    suffix,
    too_large,
)
from gatokit.pipelines.formats.json_lines import (
    UTF8_MARK,
    DamagedStreamError,
    key_text,
    open_stream,
    parse_object,
    read_lines,
    scan_lines,
)
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.config import TextConfig
from gatokit.schemas.errors import RejectedError


def find(config: TextConfig, field: str, base: Path) -> list[DocumentFile]:
    """See ``reader.plan_documents``; a file's suffix says what it holds."""
    files = []
    suffixes, compressible = (*JSON_LINES, ".parquet", *PLAIN_TEXT), (*JSON_LINES, *PLAIN_TEXT)
    for file in source_files(config.source, f"{field}.source", base, suffixes, compressible):
        name, is_compressed = suffix(file["path"])
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
        try:
            for byte_range, line in scan_lines(self.path, self.name, max_bytes):
                position, offset = byte_range.position + 1, byte_range.offset + byte_range.length + 1
                try:
                    if line is None:
                        raise too_large(max_bytes)
                    yield self.document(line, byte_range, max_bytes)
                except RejectedError as error:
                    yield rejected(byte_range, str(byte_range.position), error)
        except DamagedStreamError as error:
            damage = RejectedError("corrupt_length", str(error))
            yield rejected(ByteRange(position, offset, 0, 0), str(position), damage)


class TextLinesFile(LinesFile):
    """JSONL of texts: the string of the key ``field`` is the document."""

    type: str = "lines"
    field: str

    def document(self, line: bytes, byte_range: ByteRange, max_bytes: int) -> ScannedDocument:
        """See ``LinesFile``."""
        return ScannedDocument(byte_range, str(byte_range.position), content_digest([self._text(line)]))

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        places = ((byte_range.offset, byte_range.length) for byte_range in byte_ranges)
        for line in read_lines(self.path, self.name, places):
            yield google_crc32c.value(line), [self._text(line)]

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

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        for byte_range in byte_ranges:
            data = self._data(byte_range.length)
            yield google_crc32c.value(data), [self._text(data)]

    def _data(self, max_bytes: int) -> bytes:
        """The content; of a longer one than ``max_bytes`` the first ``max_bytes + 1`` bytes."""
        with open_stream(self.path, self.name) as stream:
            try:
                return stream.read(max_bytes + 1)
            except DamagedStreamError as error:
                raise RejectedError("corrupt_length", str(error)) from None

    def _text(self, data: bytes) -> str:
        text = decode(data.removeprefix(UTF8_MARK), "the file is not valid UTF-8 at its byte")
        return not_blank(text, "the file")
