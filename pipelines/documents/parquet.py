"""Documents in Parquet rows: what all formats of them share, texts, and captioned images.

Captioned images are as Hugging Face ``datasets`` stores them: a column of images as bytes, or as structs of ``bytes``
and ``path``, and a column of captions or of lists of captions.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa

from gatokit.pipelines.documents import reader
from gatokit.pipelines.documents.reader import DocumentFile, Loaded, ScannedDocument
from gatokit.pipelines.formats import parquet
from gatokit.pipelines.formats.compressed import most_unpacked
from gatokit.pipelines.formats.parquet import Row
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.config import ImageTextConfig
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.schemas.index import ENDS_EARLY

Columns = dict[str, pa.DataType]
"""The columns of a file that are read, and their types."""
TEXT_FIELDS = ("caption", "text")
"""The first of these columns that exists holds the captions, if the config names none."""


def find(config: ImageTextConfig, field: str, base: Path) -> list["ImageRowsFile"]:
    """See ``reader.plan_documents``."""
    files = reader.source_files(config.source, f"{field}.source", base, (".parquet",))
    return [ImageRowsFile(**file, image_field=config.image_field, text_field=config.text_field) for file in files]


class RowsFile(DocumentFile):
    """A Parquet file whose rows hold documents; the ``offset`` of a document is its row group."""

    divides_at_offsets = True

    @abstractmethod
    def columns(self, schema: pa.Schema) -> Columns:
        """The columns to read and their types. Raises DataError if one is not there or holds something else."""

    @abstractmethod
    def documents(self, row: Row, columns: Columns, max_bytes: int) -> Iterator[ScannedDocument]:
        """The documents of a row."""

    @abstractmethod
    def document(self, values: dict[str, Any], columns: Columns, byte_range: ByteRange) -> Loaded:
        """The CRC-32C and the parts of a document, from the values of its row. Errors as ``load``."""

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        try:
            with parquet.open_file(self.path, self.name) as file:
                columns = self.columns(file.schema_arrow)
                for row in parquet.read_rows(file, columns, most=most_unpacked(self.size, self.max_unpacked)):
                    if isinstance(row, Row):
                        yield from self.documents(row, columns, max_bytes)
                    else:
                        damage = RejectedError("corrupt_length", f"row group {row.group} is damaged: {row.detail}")
                        byte_range = ByteRange(row.position, row.group, 0, 0)
                        lost_bytes = min(self.size, max(1, round(row.share * self.size)))
                        yield reader.lost_part(byte_range, str(row.position), damage, lost_bytes, row.rows)
        except parquet.DamagedFileError as error:
            damage = RejectedError("corrupt_length", f"the file's footer is damaged or missing: {error}")
            if not self.size:
                damage = RejectedError(ENDS_EARLY, "the file is empty")
            yield reader.lost_part(ByteRange(0, 0, 0, 0), "0", damage, self.size)

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        try:
            with parquet.open_file(self.path, self.name) as file:
                columns = self.columns(file.schema_arrow)
                for group, members in itertools.groupby(byte_ranges, lambda byte_range: byte_range.offset):
                    rows = parquet.read_rows(file, columns, [group])
                    row = next(rows, None)
                    for byte_range in members:
                        while row is not None and row.position < byte_range.position:
                            row = next(rows, None)
                        if not isinstance(row, Row) or row.position != byte_range.position:
                            raise RejectedError("corrupt_record", "the row is gone")
                        yield self.document(row.values, columns, byte_range)
        except (parquet.DamagedFileError, DataError) as error:
            raise DataError(f"{self.name}: changed between scan and build: {error}. Run the build again") from None


class TextRowsFile(RowsFile):
    """A Parquet file whose column ``field`` holds texts, as strings or as bytes of UTF-8."""

    type: str = "rows"
    field: str

    def columns(self, schema: pa.Schema) -> Columns:
        """See ``RowsFile``."""
        type_ = parquet.column_type(self.name, schema, self.field, "field")
        if not parquet.holds_text(type_):
            texts = ", ".join(repr(column.name) for column in schema if parquet.holds_text(column.type)) or "none"
            raise DataError(
                f"{self.name}: column {self.field!r} holds {type_}, no text; set `field` to one that does: {texts}"
            )
        return {self.field: type_}

    def documents(self, row: Row, columns: Columns, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``RowsFile``."""
        data = row.values[self.field]
        byte_range = ByteRange(row.position, row.group, len(data or b""), google_crc32c.value(data or b""))
        try:
            most, key = self.text_bound(max_bytes)
            if data is not None and len(data) > most:
                raise reader.too_large(most, key=key)
            _, parts = self.document(row.values, columns, byte_range)
            yield reader.sound(byte_range, str(row.position), parts)
        except RejectedError as error:
            yield reader.rejected(byte_range, str(row.position), error)

    def document(self, values: dict[str, Any], columns: Columns, byte_range: ByteRange) -> Loaded:
        """See ``RowsFile``."""
        data = values[self.field]
        if data is None:
            raise RejectedError("missing_field", f"{self.field!r} is null")
        text = reader.decode(data, f"{self.field!r} is not valid UTF-8 at its byte")
        return google_crc32c.value(data), [reader.not_blank(text, self.field)]


class ImageRowsFile(RowsFile):
    """A Parquet file of images and captions; every caption of a row is a document, with the row's image."""

    type: str = "picture_rows"
    image_field: str
    text_field: str | None = None

    def columns(self, schema: pa.Schema) -> Columns:
        """See ``RowsFile``; first the column of images, then that of texts."""
        text_field = self.text_field or next((name for name in TEXT_FIELDS if name in schema.names), TEXT_FIELDS[0])
        image = parquet.column_type(self.name, schema, self.image_field, "image_field")
        is_struct = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
        if not is_struct and parquet.plain_type(image) not in parquet.BINARIES:
            raise DataError(
                f"{self.name}: column {self.image_field!r} holds {image}; set `image_field` to a column of bytes or of "
                "structs with `bytes`"
            )
        text = parquet.column_type(self.name, schema, text_field, "text_field")
        if not (parquet.holds_text(text) or (parquet.is_list(text) and parquet.holds_text(text.value_type))):
            raise DataError(
                f"{self.name}: column {text_field!r} holds {text}; set `text_field` to a column of strings or of lists "
                "of strings"
            )
        return {self.image_field: image, text_field: text}

    def documents(self, row: Row, columns: Columns, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``RowsFile``."""
        image, text_field = row.values[self.image_field], list(columns)[-1]
        for ordinal, text in _captions(row.values[text_field]):
            key, group, payload = str(row.position), None, None
            if ordinal is not None:
                key, group, payload = f"{row.position}.{ordinal}", f"{self.name}#{row.position}", str(ordinal)
            byte_range = ByteRange(row.position, row.group, 0, 0)
            try:
                data = self._image(image)
                if text is None:
                    raise RejectedError("missing_field", f"{text_field!r} is null or empty")
                if len(text) > self.max_text_bytes:
                    raise reader.too_large(self.max_text_bytes, "the caption is", "max_text_bytes")
                byte_range = ByteRange(
                    row.position, row.group, len(data) + len(text), reader.caption_crc(data, text), payload
                )
                if byte_range.length > max_bytes:
                    raise reader.too_large(max_bytes, f"{byte_range.length} bytes are")
                caption = reader.decode(text, f"{text_field!r} is not valid UTF-8 at byte")
                yield reader.caption(byte_range, key, data, caption, group)
            except RejectedError as error:
                yield reader.rejected(byte_range, key, error, group)

    def document(self, values: dict[str, Any], columns: Columns, byte_range: ByteRange) -> Loaded:
        """See ``RowsFile``."""
        text_field = list(columns)[-1]
        text = dict(_captions(values[text_field])).get(None if byte_range.payload is None else int(byte_range.payload))
        if text is None:
            raise RejectedError("missing_field", f"{text_field!r} is null or empty")
        image = self._image(values[self.image_field])
        return reader.caption_crc(image, text), [image, reader.decode(text, f"{text_field} is not valid UTF-8 at byte")]

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
