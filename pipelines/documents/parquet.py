"""Documents in Parquet rows: what all formats of them share, texts, and captioned images.

Captioned images are as Hugging Face ``datasets`` stores them: a column of images as bytes, or as structs of ``bytes``
and ``path``, and a column of captions or of lists of captions.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa

from gatokit.pipelines.documents.reader import (
    DocumentFile,
    Part,
    ScannedDocument,
    captioned,
    content_digest,
    decode,
    not_blank,
    rejected,
    source_files,
    too_large,
)
from gatokit.pipelines.formats.parquet import (
    BINARIES,
    DamagedFileError,
    Row,
    column_type,
    holds_text,
    is_list,
    open_rows,
)
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.config import ImageTextConfig
from gatokit.schemas.errors import DataError, RejectedError

TEXT_FIELDS = ("caption", "text")
"""Columns that are taken for captions if the config names none; the first that is there."""


def find(config: ImageTextConfig, field: str, base: Path) -> list["ImageRowsFile"]:
    """See ``reader.find_documents``."""
    files = source_files(config.source, f"{field}.source", base, (".parquet",))
    return [ImageRowsFile(**file, image_field=config.image_field, text_field=config.text_field) for file in files]


class RowsFile(DocumentFile):
    """A Parquet file whose rows hold documents; the ``offset`` of a document is its row group."""

    @abstractmethod
    def columns(self, schema: pa.Schema) -> dict[str, pa.DataType]:
        """The columns to read and their types. Raises DataError if one is not there or holds something else."""

    @abstractmethod
    def documents(self, row: Row, columns: dict[str, pa.DataType], max_bytes: int) -> Iterator[ScannedDocument]:
        """The documents of a row."""

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        try:
            with open_rows(self.path, self.name) as file:
                columns = self.columns(file.schema)
                for row in file.read(list(columns)):
                    if isinstance(row, Row):
                        yield from self.documents(row, columns, max_bytes)
                    else:
                        damage = RejectedError("corrupt_record", f"row group {row.group} is damaged: {row.detail}")
                        byte_range = ByteRange(row.position, row.group, 0, 0)
                        yield rejected(byte_range, str(row.position), damage, lost=row.rows)
        except DamagedFileError as error:
            damage = RejectedError("corrupt_length", f"the file's footer is damaged or missing: {error}")
            yield rejected(ByteRange(0, 0, 0, 0), "0", damage)

    def rows_at(
        self, byte_ranges: Iterable[ByteRange]
    ) -> Iterator[tuple[ByteRange, dict[str, Any], dict[str, pa.DataType]]]:
        """Ascending byte_ranges, each with the values of the columns there, and the columns' types.

        Raises DataError if the rows can no longer be read.
        """
        try:
            with open_rows(self.path, self.name) as file:
                try:
                    columns = self.columns(file.schema)
                except DataError as error:
                    raise DamagedFileError(str(error)) from None
                for group, members in itertools.groupby(byte_ranges, lambda byte_range: byte_range.offset):
                    rows = file.read(list(columns), [group])
                    for byte_range in members:
                        row = next((row for row in rows if row.position >= byte_range.position), None)
                        if not isinstance(row, Row) or row.position != byte_range.position:
                            raise self.changed(byte_range)
                        yield byte_range, row.values, columns
        except DamagedFileError as error:
            raise DataError(f"{self.name}: changed between scan and build: {error}. Run the build again") from None


class TextRowsFile(RowsFile):
    """A Parquet file whose column ``field`` holds texts, as strings or as bytes of UTF-8."""

    type: str = "rows"
    field: str

    def columns(self, schema: pa.Schema) -> dict[str, pa.DataType]:
        """See ``RowsFile``."""
        type_ = column_type(self.name, schema, self.field, "field")
        if not holds_text(type_):
            texts = ", ".join(repr(column.name) for column in schema if holds_text(column.type)) or "none"
            raise DataError(
                f"{self.name}: column {self.field!r} holds {type_}, no text; set `field` to one that does: {texts}"
            )
        return {self.field: type_}

    def documents(self, row: Row, columns: dict[str, pa.DataType], max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``RowsFile``."""
        data = row.values[self.field]
        byte_range = ByteRange(row.position, row.group, len(data or b""), google_crc32c.value(data or b""))
        try:
            if data is None:
                raise RejectedError("missing_field", f"{self.field!r} is null")
            if len(data) > max_bytes:
                raise too_large(max_bytes)
            yield ScannedDocument(byte_range, str(row.position), content_digest([self._text(data)]))
        except RejectedError as error:
            yield rejected(byte_range, str(row.position), error)

    def read(self, byte_ranges: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``DocumentFile``."""
        for byte_range, values, _ in self.rows_at(byte_ranges):
            data = values[self.field]
            if data is None or google_crc32c.value(data) != byte_range.crc:
                raise self.changed(byte_range)
            yield [self._text(data)]

    def _text(self, data: bytes) -> str:
        return not_blank(decode(data, f"{self.field!r} is not valid UTF-8 at its byte"), self.field)


class ImageRowsFile(RowsFile):
    """A Parquet file of images and captions; every caption of a row is a document, with the row's image."""

    type: str = "picture_rows"
    image_field: str
    text_field: str | None = None

    def columns(self, schema: pa.Schema) -> dict[str, pa.DataType]:
        """See ``RowsFile``; first the column of images, then that of texts."""
        text_field = self.text_field or next((name for name in TEXT_FIELDS if name in schema.names), TEXT_FIELDS[0])
        image = column_type(self.name, schema, self.image_field, "image_field")
        if not (image in BINARIES or (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0)):
            raise DataError(
                f"{self.name}: column {self.image_field!r} holds {image}; set `image_field` to a column of bytes or of "
                "structs with `bytes`"
            )
        text = column_type(self.name, schema, text_field, "text_field")
        if not (holds_text(text) or (is_list(text) and holds_text(text.value_type))):
            raise DataError(
                f"{self.name}: column {text_field!r} holds {text}; set `text_field` to a column of strings or of lists "
                "of strings"
            )
        return {self.image_field: image, text_field: text}

    def documents(self, row: Row, columns: dict[str, pa.DataType], max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``RowsFile``."""
        image, text_field = row.values[self.image_field], list(columns)[-1]
        for ordinal, text in _captions(row.values[text_field]):
            key = str(row.position) if ordinal is None else f"{row.position}.{ordinal}"
            group = None if ordinal is None else f"{self.name}#{row.position}"
            byte_range = ByteRange(row.position, row.group, 0, 0)
            try:
                data = self._image(image)
                if text is None:
                    raise RejectedError("missing_field", f"{text_field!r} is null or empty")
                length = len(data) + len(text)
                crc = google_crc32c.extend(google_crc32c.value(data), text)
                payload = None if ordinal is None else str(ordinal)
                byte_range = ByteRange(row.position, row.group, length, crc, payload)
                if length > max_bytes:
                    raise too_large(max_bytes, f"{length} bytes are")
                caption = decode(text, f"{text_field!r} is not valid UTF-8 at byte")
                yield captioned(byte_range, key, data, caption, group=group)
            except RejectedError as error:
                yield rejected(byte_range, key, error, group)

    def read(self, byte_ranges: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``DocumentFile``."""
        same_row: list[ByteRange] = []

        def rows() -> Iterator[ByteRange]:
            """The first byte range of each row; all of the row's are in ``same_row`` meanwhile."""
            for _, members in itertools.groupby(
                byte_ranges, lambda byte_range: (byte_range.offset, byte_range.position)
            ):
                same_row[:] = members
                yield same_row[0]

        for _, values, columns in self.rows_at(rows()):
            image, text_field = values[self.image_field], list(columns)[-1]
            texts = dict(_captions(values[text_field]))
            for byte_range in same_row:
                text = texts.get(None if byte_range.payload is None else int(byte_range.payload))
                try:
                    data = self._image(image)
                except RejectedError:
                    raise self.changed(byte_range) from None
                if text is None or google_crc32c.extend(google_crc32c.value(data), text) != byte_range.crc:
                    raise self.changed(byte_range)
                yield [data, decode(text, f"{text_field} is not valid UTF-8 at byte")]

    def _image(self, value: Any) -> bytes:
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(data, bytes):
            return data
        if path is not None:
            name = str(path, "utf-8", "replace")
            raise RejectedError("missing_image", f"{self.image_field!r} has no bytes, only the path {name!r:.200}")
        raise RejectedError("missing_field", f"{self.image_field!r} is null")


def _captions(value: Any) -> list[tuple[int | None, bytes | None]]:
    """The captions of a row with their ordinals; a caption that does not stand in a list has none."""
    if isinstance(value, list) and value:
        return list(enumerate(value))
    return [(None, None if isinstance(value, list) else value)]
