"""Texts: a JSON line or a plain text file (``.txt``, ``.text``, ``.md``, ``.rst``) is one document.

Files may be compressed with gzip (``.gz``) or Zstandard (``.zst``). Texts in Parquet rows are in ``parquet.py``.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c

from gatokit.pipelines.documents import reader
from gatokit.pipelines.documents.reader import DocumentFile, Loaded, ScannedDocument
from gatokit.pipelines.formats import json_lines
from gatokit.pipelines.formats.compressed import Damage, DecompressedStream
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.config import TextConfig
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.index import ENDS_EARLY


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

    @abstractmethod
    def is_document(self, record: dict[str, Any]) -> bool:
        """Whether an object looks like a document, wherever in the file it stands."""

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        if not self.size and self.divides:  # as Spark writes for a partition without rows
            yield reader.rejected(ByteRange(0, 0, 0, 0), "0", RejectedError("empty", "the file is empty"))
        most, key = self.text_bound(max_bytes)
        for line in json_lines.scan_lines(self.path, self.name, most, self.max_unpacked):
            if isinstance(line, json_lines.LostLines):
                lost = max(1, line.untrusted + (line.byte_range.length > 0))
                error, key = RejectedError(line.reason, line.detail), str(line.byte_range.position)
                yield reader.lost_part(line.byte_range, key, error, line.lost_bytes, lost, line.untrusted)
                continue
            byte_range, data, _ = line
            try:
                if data is None:
                    raise reader.too_large(most, key=key)
                yield self.document(data, byte_range, max_bytes)
            except RejectedError as error:
                yield self._rejected(line, error)

    def _rejected(self, line: json_lines.Line, error: RejectedError) -> ScannedDocument:
        """The row of a line that is no document, or of all that it hides."""
        byte_range, data, is_ended = line
        key, lost, problem = str(byte_range.position), 1, None
        if data is not None and error.reason in ("corrupt_record", "missing_field", "wrong_shape"):
            lost = max(1, json_lines.count_documents(data, self.is_document))
            if lost > 1:
                problem = f"the line holds {lost:,} documents and not one: write one JSON object a line"
            elif error.reason == "corrupt_record" and b"\0" in data:
                problem = "a part of the file is filled with zeros"
        if problem is not None:
            damage = RejectedError("corrupt_length", problem)
        elif data is not None and not is_ended and error.reason in ("corrupt_record", "not_utf8"):
            damage = RejectedError(ENDS_EARLY, f"the file ends inside a line: {error.detail}")
        else:
            return reader.rejected(byte_range, key, error)
        return reader.lost_part(byte_range, key, damage, byte_range.length, lost)


class TextLinesFile(LinesFile):
    """JSONL of texts: the string of the key ``field`` is the document."""

    type: str = "lines"
    field: str

    def is_document(self, record: dict[str, Any]) -> bool:
        """See ``LinesFile``."""
        return isinstance(record.get(self.field), str)

    def document(self, line: bytes, byte_range: ByteRange, max_bytes: int) -> ScannedDocument:
        """See ``LinesFile``."""
        return reader.sound(byte_range, str(byte_range.position), [self._text(line)])

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
        data, (most, key) = b"", self.text_bound(max_bytes)
        try:
            data, damage = self._data(most, self.max_unpacked)
            if damage is not None:
                reason = ENDS_EARLY if damage.ends_early else "corrupt_length"
                lost_bytes = 0 if damage.ends_early else self.size
                error = RejectedError(reason, damage.detail)
                yield reader.lost_part(ByteRange(0, 0, len(data), 0), "0", error, lost_bytes)
                return
            if len(data) > most:
                raise reader.too_large(most, key=key)
            byte_range = ByteRange(0, 0, len(data), google_crc32c.value(data))
            document = reader.sound(byte_range, "0", [self._text(data)])
        except RejectedError as error:
            yield reader.rejected(ByteRange(0, 0, len(data), 0), "0", error)
        else:
            yield document

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        for byte_range in byte_ranges:
            data, _ = self._data(byte_range.length)
            yield google_crc32c.value(data), [self._text(data)]

    def _data(self, max_bytes: int, max_unpacked: int | None = None) -> tuple[bytes, Damage | None]:
        """The content, and its first damage; of a longer one than ``max_bytes`` the first ``max_bytes + 1`` bytes."""
        with json_lines.open_stream(self.path, self.name, max_unpacked) as stream:
            data, raw = stream.read(max_bytes + 1), stream.raw
            events = raw.events if isinstance(raw, DecompressedStream) else ()
            return data, next((event for event in events if isinstance(event, Damage)), None)

    def _text(self, data: bytes) -> str:
        return reader.not_blank(reader.decode(data, "the file is not valid UTF-8 at its byte"), "the file")
