"""OBELICS (huggingface.co/datasets/HuggingFaceM4/OBELICS): Parquet whose rows are pages, the lists ``images`` and
``texts`` side by side, of which one has a value wherever the other has null."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import pyarrow as pa

from gatokit.pipelines.documents.pages import Picture, assemble
from gatokit.pipelines.documents.reader import CorpusFile, FoundDocument, Part, changed
from gatokit.pipelines.formats.json_lines import digest_of, too_large
from gatokit.pipelines.formats.parquet import (
    DamagedFileError,
    Row,
    damage,
    read_places,
    read_rows,
    read_schema,
)
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError, RejectedError

_PARAGRAPHS = "\n\n"
_COLUMNS = ["images", "texts"]


class ObelicsFile(CorpusFile):
    """A Parquet file of pages whose pictures are embedded: structs of ``bytes`` and ``path``, or plain bytes. With
    ``skip_bad`` a page stays without a picture that is missing."""

    image_dir: str | None = None
    skip_bad: bool = False

    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """See ``CorpusFile``."""
        try:
            named = self._holds_names(read_schema(self))
            for row in read_rows(self, _COLUMNS):
                yield self._found(row, named, max_bytes) if isinstance(row, Row) else damage(row)
        except DamagedFileError as error:
            yield damage(error)

    def read(self, places: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``CorpusFile``."""
        named: bool | None = None
        for place, values in read_places(self, _COLUMNS, places):
            named = self._holds_names(read_schema(self)) if named is None else named
            try:
                left_out = json.loads(place.payload or "[]")
                page = assemble(_pieces(values, named), _PARAGRAPHS, self.image_dir, place.length, left_out=left_out)
            except RejectedError:
                raise changed(self, place) from None
            if page.crc != place.crc:
                raise changed(self, place)
            yield page.parts

    def _holds_names(self, schema: pa.Schema) -> bool:
        """Whether ``images`` holds the names of files. DataError where a column holds what a page has not."""
        for column in _COLUMNS:
            if schema.names.count(column) != 1:
                there = ", ".join(map(repr, schema.names)) or "none"
                raise DataError(f"{self.name}: needs one column {column!r}; its columns are: {there}")
        images, texts = (_item(schema.field(column).type) for column in _COLUMNS)
        if not _is_string(texts):
            raise DataError(f"{self.name}: column 'texts' must hold lists of strings, not {schema.field('texts').type}")
        if pa.types.is_struct(images):
            fields = {field.name: field.type for field in images}
            embedded = _is_binary(fields.get("bytes", pa.binary())) and _is_string(fields.get("path", pa.string()))
            known = embedded and bool(fields.keys() & {"bytes", "path"})
        else:
            known = _is_string(images) or _is_binary(images)
        if not known:
            raise DataError(
                f"{self.name}: column 'images' must hold lists of structs of `bytes` and `path`, of bytes, or of names "
                f"of files, not {schema.field('images').type}"
            )
        return _is_string(images)

    def _found(self, row: Row, named: bool, max_bytes: int) -> FoundDocument:
        place = ByteRange(row.position, row.group, 0, 0)
        try:
            pieces = _pieces(row.values, named)
            room = max_bytes - sum(len(piece.encode()) for piece in pieces if isinstance(piece, str))
            if room < 0:
                raise too_large(max_bytes)
            page = assemble(pieces, _PARAGRAPHS, self.image_dir, room, skip=self.skip_bad)
            content = digest_of(page.parts)
        except RejectedError as error:
            return FoundDocument(place, str(row.position), None, None, error.reason, error.detail)
        length = sum(len(part.encode() if isinstance(part, str) else part) for part in page.parts)
        payload = json.dumps([*page.left_out], separators=(",", ":")) if page.left_out else None
        place = ByteRange(row.position, row.group, length, page.crc, payload)
        return FoundDocument(place, str(row.position), content, detail=page.note)


class ObelicsFolderFile(ObelicsFile):
    """The same with pictures, or some of them, in files of the folder ``image_dir``."""

    folder: ClassVar[bool] = True


def _pieces(values: dict[str, Any], named: bool) -> list[str | Picture]:
    """Texts and pictures in reading order."""
    images, texts = (values[column] for column in _COLUMNS)
    if images is None or texts is None:
        raise RejectedError("missing_field", f"{'images' if images is None else 'texts'!r} is null")
    if len(images) != len(texts):
        raise RejectedError("wrong_shape", f"'images' has {len(images)} entries and 'texts' {len(texts)}")
    pieces: list[str | Picture] = []
    for ordinal, (image, text) in enumerate(zip(images, texts, strict=True)):
        picture = _picture(ordinal, image, named)
        if (picture is None) == (text is None):
            both = "neither" if text is None else "both"
            raise RejectedError("corrupt_record", f"entry {ordinal} has {both} of image and text")
        pieces.append(picture if picture is not None else _decoded(text, f"texts[{ordinal}]"))
    return pieces


def _picture(ordinal: int, value: Any, named: bool) -> Picture | None:
    field = f"images[{ordinal}]"
    if isinstance(value, bytes):
        return Picture(ordinal, field, name=_decoded(value, field)) if named else Picture(ordinal, field, data=value)
    data, path = (value.get("bytes"), value.get("path")) if value is not None else (None, None)
    if data is not None:
        return Picture(ordinal, field, data=data)
    return Picture(ordinal, field, name=_decoded(path, field)) if path is not None else None


def _decoded(data: bytes, field: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RejectedError("not_utf8", f"{field} is not valid UTF-8 at its byte {error.start}") from None


def _item(kind: pa.DataType) -> pa.DataType:
    """The type of a list's items; one that fits nowhere where it is no list."""
    return kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else pa.int8()


def _is_string(kind: pa.DataType) -> bool:
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in is_text)


def _is_binary(kind: pa.DataType) -> bool:
    is_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in is_bytes)
