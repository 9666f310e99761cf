"""Parquet of captioned pictures in the layout of Hugging Face ``datasets``: a column of pictures as bytes, or as
structs of ``bytes`` and ``path``, and a column of captions or of lists of captions."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import google_crc32c
import pyarrow as pa

from gatokit.pipelines.documents.captions import captioned, decoded, rejected, too_large
from gatokit.pipelines.documents.reader import CorpusFile, FoundDocument, Part, changed
from gatokit.pipelines.formats.parquet import (
    DamagedFileError,
    DamagedRows,
    Row,
    column_type,
    damage,
    read_places,
    read_rows,
    read_schema,
)
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError, RejectedError

TEXT_FIELDS = ("caption", "text")
"""Columns that are taken for captions where the config names none; the first that is there."""

_Captions = list[tuple[int | None, bytes | None]]


class PictureRowsFile(CorpusFile):
    """A Parquet file of pictures and captions; every caption of a row is a document, and its picture the same."""

    image_field: str
    text_field: str | None = None

    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """See ``CorpusFile``."""
        try:
            columns = self._columns()
            for row in read_rows(self, columns):
                if isinstance(row, DamagedRows):
                    yield damage(row)
                else:
                    yield from self._found(row, columns, max_bytes)
        except DamagedFileError as error:
            yield damage(error)

    def read(self, places: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``CorpusFile``."""
        same_row: list[ByteRange] = []

        def rows() -> Iterator[ByteRange]:
            for _, members in itertools.groupby(places, lambda place: (place.offset, place.position)):
                same_row[:] = members
                yield same_row[0]

        try:
            columns = self._columns()
        except DamagedFileError as error:
            raise DataError(f"{self.name}: {error}. Run the build again") from None
        for _, values in read_places(self, columns, rows()):
            image, captions = values[columns[0]], dict(_captions(values[columns[1]]))
            for place in same_row:
                text = captions.get(None if place.payload is None else int(place.payload))
                try:
                    data = self._picture(image)
                except RejectedError:
                    raise changed(self, place) from None
                if text is None or google_crc32c.extend(google_crc32c.value(data), text) != place.crc:
                    raise changed(self, place)
                yield [data, decoded(text, columns[1])]

    def _columns(self) -> list[str]:
        """The columns of pictures and of texts. DataError where one is not there or holds something else."""
        schema = read_schema(self)
        text_field = self.text_field or next((name for name in TEXT_FIELDS if name in schema.names), TEXT_FIELDS[0])
        image = column_type(self, schema, self.image_field, "image_field")
        if not (_is_bytes(image) or (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0)):
            raise DataError(
                f"{self.name}: column {self.image_field!r} holds {image}; set `image_field` to a column of bytes or of "
                "structs with `bytes`"
            )
        text = column_type(self, schema, text_field, "text_field")
        if not (_is_text(text) or (_is_list(text) and _is_text(text.value_type))):
            raise DataError(
                f"{self.name}: column {text_field!r} holds {text}; set `text_field` to a column of strings or of lists "
                "of strings"
            )
        return [self.image_field, text_field]

    def _found(self, row: Row, columns: list[str], max_bytes: int) -> Iterator[FoundDocument]:
        image, captions = row.values[columns[0]], _captions(row.values[columns[1]])
        for ordinal, text in captions:
            key = str(row.position) if ordinal is None else f"{row.position}.{ordinal}"
            group = None if ordinal is None else f"{self.name}#{row.position}"
            place = ByteRange(row.position, row.group, 0, 0)
            try:
                data = self._picture(image)
                if text is None:
                    raise RejectedError("missing_field", f"{columns[1]!r} is null or empty")
                length = len(data) + len(text)
                crc = google_crc32c.extend(google_crc32c.value(data), text)
                payload = None if ordinal is None else str(ordinal)
                place = ByteRange(row.position, row.group, length, crc, payload)
                if length > max_bytes:
                    raise too_large(length, max_bytes)
                yield captioned(place, key, data, decoded(text, repr(columns[1])), group=group)
            except RejectedError as error:
                yield rejected(place, key, error, group)

    def _picture(self, value: Any) -> bytes:
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(data, bytes):
            return data
        if path is not None:
            name = str(path, "utf-8", "replace")
            raise RejectedError("missing_image", f"{self.image_field!r} has no bytes, only the path {name!r:.200}")
        raise RejectedError("missing_field", f"{self.image_field!r} is null")


def _captions(value: Any) -> _Captions:
    """The captions of a row with their ordinals, which a caption that is no list's has not."""
    if isinstance(value, list) and value:
        return list(enumerate(value))
    return [(None, None if isinstance(value, list) else value)]


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(is_string or _is_bytes(kind) or pa.types.is_null(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
