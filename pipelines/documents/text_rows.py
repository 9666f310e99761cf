"""Parquet of texts: a row is one document, the value of one column."""

from collections.abc import Iterable, Iterator

import google_crc32c
import pyarrow as pa

from gatokit.pipelines.documents.reader import CorpusFile, FoundDocument, Part, changed, content_digest
from gatokit.pipelines.formats.json_lines import checked_text, too_large
from gatokit.pipelines.formats.parquet import (
    DamagedFileError,
    Row,
    column_type,
    damage,
    read_places,
    read_rows,
    read_schema,
)
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError, RejectedError


class TextRowsFile(CorpusFile):
    """A Parquet file whose column ``field`` holds texts, as strings or as bytes of UTF-8."""

    field: str

    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """See ``CorpusFile``."""
        try:
            self._check(read_schema(self))
            for row in read_rows(self, [self.field]):
                yield self._found(row, max_bytes) if isinstance(row, Row) else damage(row)
        except DamagedFileError as error:
            yield damage(error)

    def read(self, places: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``CorpusFile``."""
        for place, values in read_places(self, [self.field], places):
            data = values[self.field]
            if data is None or google_crc32c.value(data) != place.crc:
                raise changed(self, place)
            yield [self._text(data)]

    def _check(self, schema: pa.Schema) -> None:
        kind = column_type(self, schema, self.field, "field")
        if not _holds_text(kind):
            texts = ", ".join(repr(column.name) for column in schema if _holds_text(column.type)) or "none"
            raise DataError(
                f"{self.name}: column {self.field!r} holds {kind}, no text; set `field` to one that does: {texts}"
            )

    def _found(self, row: Row, max_bytes: int) -> FoundDocument:
        data = row.values[self.field]
        place = ByteRange(row.position, row.group, len(data or b""), google_crc32c.value(data or b""))
        try:
            if data is None:
                raise RejectedError("missing_field", f"{self.field!r} is null")
            if len(data) > max_bytes:
                raise too_large(max_bytes)
            return FoundDocument(place, str(row.position), content_digest([self._text(data)]))
        except RejectedError as error:
            return FoundDocument(place, str(row.position), None, None, error.reason, error.detail)

    def _text(self, data: bytes) -> str:
        try:
            return checked_text(data.decode(), self.field)
        except UnicodeDecodeError as error:
            raise RejectedError("not_utf8", f"{self.field!r} is not valid UTF-8 at its byte {error.start}") from None


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    known = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_null,
    )
    return any(is_kind(kind) for is_kind in known)
