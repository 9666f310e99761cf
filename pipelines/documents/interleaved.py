"""Pages of texts and images: MMC4 (github.com/allenai/mmc4) and OBELICS (hf.co/datasets/HuggingFaceM4/OBELICS).

A page of MMC4 is a JSON object a line with a list of sentences and a list of images, which are files in a folder; an
image stands before the sentence that it was matched to. A page of OBELICS is a Parquet row with the lists ``images``
and ``texts``, of which one has a value wherever the other has null.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import google_crc32c
import pyarrow as pa

from gatokit.pipelines.documents import reader
from gatokit.pipelines.documents.image_folder import ImageFolder
from gatokit.pipelines.documents.parquet import Columns, RowsFile
from gatokit.pipelines.documents.reader import DocumentFile, Loaded, Part, ScannedDocument
from gatokit.pipelines.documents.text import LinesFile
from gatokit.pipelines.formats.json_lines import BYTE_ORDER_MARK, key_value, parse_object, read_lines
from gatokit.pipelines.formats.parquet import BINARIES, STRINGS, Row, is_list, plain_type
from gatokit.pipelines.formats.records import ByteRange
from gatokit.pipelines.inputs import SourcePath
from gatokit.schemas.config import InterleavedConfig
from gatokit.schemas.errors import DataError, RejectedError

_STRINGS, _BINARIES = STRINGS | {pa.null()}, BINARIES | {pa.null()}


def find(config: InterleavedConfig, field: str, base: Path) -> list["Mmc4File"] | list["ObelicsFile"]:
    """See ``reader.plan_documents``."""
    folder = None if config.image_dir is None else reader.image_directory(config.image_dir, f"{field}.image_dir", base)
    options: dict[str, Any] = {
        "image_dir": folder,
        "follow_links": bool(config.follow_links),
        "skip_bad": config.bad_images == "skip",
    }
    if config.format == "obelics":
        files = reader.source_files(config.source, f"{field}.source", base, (".parquet",))
        return [ObelicsFile(**file, **options, type="obelics_folder" if folder else "obelics") for file in files]
    files = reader.source_files(config.source, f"{field}.source", base, reader.JSON_LINES, reader.JSON_LINES)
    types = {False: "mmc4", True: "compressed_mmc4"}
    return [Mmc4File(**file, **options, type=types[reader.suffix(file["path"])[1]]) for file in files]


# --- pages of any format ---------------------------------------------------------------------------------------


class Image(NamedTuple):
    """An image of a page: its ordinal there, the field that holds it, and the name of its file or its bytes."""

    ordinal: int
    field: str
    name: str | None = None
    data: bytes | None = None


class Page(NamedTuple):
    """The parts of a page in reading order, and the ordinals of images that were left out, each with the reason."""

    parts: list[Part]
    left_out: dict[int, str]

    @property
    def images(self) -> list[bytes]:
        """The parts that are images."""
        return [part for part in self.parts if isinstance(part, bytes)]

    @property
    def note(self) -> str | None:
        """A sentence about what was left out."""
        for reason in self.left_out.values():
            return f"without {len(self.left_out)} of its pictures: {reason}"
        return None


class PageFile(DocumentFile):
    """A file of pages; ``image_dir`` is the folder of images that are files, or links if ``follow_links`` is set. With
    ``skip_bad`` a page stays without an image that is missing."""

    image_dir: SourcePath | None = None
    follow_links: bool = False
    skip_bad: bool = False

    def page(self, pieces: Iterable[str | Image], room: int, left_out: Collection[int] | None = None) -> Page:
        """The page of ``pieces``: neighbouring texts are joined with ``separator``, blank ones are left out.

        The images that a scan has ``left_out`` are not looked for; None: this is the scan. Raises RejectedError if the
        images together are above ``room`` bytes, or if one is missing; DataError if there is no folder ``image_dir``.
        """
        page = Page([], {})
        for piece in pieces:
            if isinstance(piece, Image):
                if piece.ordinal in (left_out or ()):
                    continue
                try:
                    image = self._image_bytes(piece, room)
                except RejectedError as error:
                    if left_out is not None or not self.skip_bad or error.reason != "missing_image":
                        raise
                    page.left_out[piece.ordinal] = error.detail
                    continue
                room -= len(image)
                page.parts.append(image)
            elif piece and not piece.isspace():
                if page.parts and isinstance(page.parts[-1], str):
                    page.parts[-1] += self.separator + piece
                else:
                    page.parts.append(piece)
        return page

    def found(self, page: Page, byte_range: ByteRange) -> ScannedDocument:
        """The row of a page."""
        key = str(byte_range.position)
        if page.parts:
            document = reader.sound(byte_range, key, page.parts, detail=page.note)
        else:
            problem = page.note or "the page holds neither text nor pictures"
            document = reader.rejected(byte_range, key, RejectedError("empty", problem))
        left_out = len(page.left_out)
        return document._replace(images=len(page.images) + left_out, images_left_out=left_out)

    def _image_bytes(self, image: Image, room: int) -> bytes:
        """The stored bytes of an image. Raises RejectedError above ``room`` or if ``image_dir`` has no such file."""
        data, name = image.data, image.name
        if data is None:
            if not name:
                raise RejectedError("missing_image", f"{image.field} has no name")
            if "://" in name:
                raise RejectedError("missing_image", f"{image.field}: {name!r:.200} is a URL; pictures come from files")
            if self.image_dir is None:
                raise RejectedError("missing_image", f"{image.field}: {name!r:.200} is a file; set `image_dir`")
            try:
                return ImageFolder(self.image_dir, self.follow_links).read(name, room)
            except RejectedError as error:
                if error.reason == "missing_image":
                    raise RejectedError(error.reason, f"{image.field}: {error.detail}") from None
        if data is None or len(data) > room:
            raise RejectedError("too_large", "the page with its pictures is above max_episode_bytes")
        return data


# --- MMC4 ------------------------------------------------------------------------------------------------------


class Mmc4File(PageFile, LinesFile):
    """A JSONL file of MMC4, all of whose images are files."""

    type: str = "mmc4"

    separator: ClassVar[str] = " "

    def is_document(self, record: dict[str, Any]) -> bool:
        """See ``LinesFile``."""
        return "text_list" in record

    def document(self, line: bytes, byte_range: ByteRange, max_bytes: int) -> ScannedDocument:
        """See ``LinesFile``."""
        page = self.page(_sentences(parse_object(line)), max_bytes - len(line))
        if page.parts:
            byte_range = byte_range._replace(
                length=len(line) + sum(map(len, page.images)),
                crc=_mmc4_crc(line, page),
                payload=json.dumps([len(line), *page.left_out], separators=(",", ":")),
            )
        return self.found(page, byte_range)

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        # The length of each line, and then the ordinals of the images that the scan left out.
        payloads = [json.loads(byte_range.payload or "") for byte_range in byte_ranges]
        places = [(byte_range.offset, payload[0]) for byte_range, payload in zip(byte_ranges, payloads, strict=True)]
        lines = read_lines(self.path, self.name, places)
        for byte_range, (length, *left_out), line in zip(byte_ranges, payloads, lines, strict=True):
            page = self.page(_sentences(parse_object(line)), byte_range.length - length, left_out)
            yield _mmc4_crc(line, page), page.parts


def _mmc4_crc(line: bytes, page: Page) -> int:
    """CRC-32C of a line and of the images of its page."""
    crc: int = google_crc32c.value(line)
    for image in page.images:
        crc = google_crc32c.extend(crc, image)
    return crc


def _sentences(record: dict[str, Any]) -> list[str | Image]:
    """Sentences and images of a page of MMC4 in reading order."""
    sentences = key_value(record, "text_list")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise RejectedError("wrong_shape", "'text_list' is no list of strings")
    infos = key_value(record, "image_info")
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise RejectedError("wrong_shape", "'image_info' is no list of objects")
    images_before: list[list[Image]] = [[] for _ in sentences]
    for ordinal, info in enumerate(infos):
        field = f"image_info[{ordinal}]"
        index, name = info.get("matched_text_index"), info.get("image_name")
        if type(index) is not int or not 0 <= index < len(sentences):
            problem = f"'matched_text_index' is {index!r:.50}, no sentence of {len(sentences)}"
            raise RejectedError("corrupt_record", f"{field}: {problem}")
        if name is not None and not isinstance(name, str):
            raise RejectedError("wrong_shape", f"{field}: 'image_name' is {name!r:.50}, no string")
        images_before[index].append(Image(ordinal, field, name))
    sentences = [sentence.removeprefix(BYTE_ORDER_MARK) for sentence in sentences]
    return [piece for sentence, images in zip(sentences, images_before, strict=True) for piece in (*images, sentence)]


# --- OBELICS ---------------------------------------------------------------------------------------------------


class ObelicsFile(PageFile, RowsFile):
    """A Parquet file of pages whose images are embedded, as structs of ``bytes`` and ``path`` or as plain bytes, or are
    files."""

    type: str = "obelics"

    def columns(self, schema: pa.Schema) -> Columns:
        """See ``RowsFile``; the types are those of the lists' items."""
        items: Columns = {}
        for column in ("images", "texts"):
            if schema.names.count(column) != 1:
                there = ", ".join(map(repr, schema.names)) or "none"
                raise DataError(f"{self.name}: needs one column {column!r}; its columns are: {there}")
            type_ = schema.field(column).type
            # An integer fits neither column.
            items[column] = plain_type(type_.value_type) if is_list(type_) else pa.int8()
        images, texts = items.values()
        if texts not in _STRINGS:
            raise DataError(f"{self.name}: column 'texts' must hold lists of strings, not {schema.field('texts').type}")
        if pa.types.is_struct(images):
            fields = {field.name: plain_type(field.type) for field in images}
            is_embedded = fields.get("bytes", pa.null()) in _BINARIES and fields.get("path", pa.null()) in _STRINGS
            is_known = is_embedded and bool(fields.keys() & {"bytes", "path"})
        else:
            is_known = images in _STRINGS | _BINARIES
        if not is_known:
            raise DataError(
                f"{self.name}: column 'images' must hold lists of structs of `bytes` and `path`, of bytes, or of names "
                f"of files, not {schema.field('images').type}"
            )
        return items

    def documents(self, row: Row, columns: Columns, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``RowsFile``."""
        byte_range, key = ByteRange(row.position, row.group, 0, 0), str(row.position)
        try:
            pieces = _pieces(row.values, are_names=columns["images"] in _STRINGS)
            text_bytes = sum(len(piece.encode()) for piece in pieces if isinstance(piece, str))
            if text_bytes > self.max_text_bytes:
                raise reader.too_large(self.max_text_bytes, "the text of the page is", "max_text_bytes")
            page = self.page(pieces, max_bytes - text_bytes)
            if page.parts:
                length = sum(len(part.encode() if isinstance(part, str) else part) for part in page.parts)
                payload = json.dumps([*page.left_out], separators=(",", ":")) if page.left_out else None
                byte_range = ByteRange(row.position, row.group, length, _obelics_crc(page), payload)
            yield self.found(page, byte_range)
        except RejectedError as error:
            yield reader.rejected(ByteRange(row.position, row.group, 0, 0), key, error)

    def document(self, values: dict[str, Any], columns: Columns, byte_range: ByteRange) -> Loaded:
        """See ``RowsFile``."""
        pieces = _pieces(values, are_names=columns["images"] in _STRINGS)
        page = self.page(pieces, byte_range.length, json.loads(byte_range.payload or "[]"))
        return _obelics_crc(page), page.parts


def _obelics_crc(page: Page) -> int:
    """CRC-32C of the parts of a page, with a mark before each that says what it is."""
    crc = 0
    for part in page.parts:
        mark, data = (b"text", part.encode()) if isinstance(part, str) else (b"image", part)
        crc = google_crc32c.extend(google_crc32c.extend(crc, mark), data)
    return crc


def _pieces(values: dict[str, Any], *, are_names: bool) -> list[str | Image]:
    """Texts and images of a page of OBELICS in reading order; ``are_names`` says what images that are bytes are."""
    images, texts = values["images"], values["texts"]
    if images is None or texts is None:
        raise RejectedError("missing_field", f"{'images' if images is None else 'texts'!r} is null")
    if len(images) != len(texts):
        raise RejectedError("wrong_shape", f"'images' has {len(images)} entries and 'texts' {len(texts)}")
    pieces: list[str | Image] = []
    for ordinal, (stored, text) in enumerate(zip(images, texts, strict=True)):
        image = _embedded_image(ordinal, stored, are_names)
        if (image is None) == (text is None):
            both = "neither" if text is None else "both"
            raise RejectedError("corrupt_record", f"entry {ordinal} has {both} of image and text")
        pieces.append(image if image is not None else _decoded(text, f"texts[{ordinal}]"))
    return pieces


def _embedded_image(ordinal: int, value: Any, is_name: bool) -> Image | None:
    field = f"images[{ordinal}]"
    if isinstance(value, bytes):
        return Image(ordinal, field, name=_decoded(value, field)) if is_name else Image(ordinal, field, data=value)
    data, path = (value.get("bytes"), value.get("path")) if value is not None else (None, None)
    if data is not None:
        return Image(ordinal, field, data=data)
    return Image(ordinal, field, name=_decoded(path, field)) if path is not None else None


def _decoded(data: bytes, field: str) -> str:
    return reader.decode(data, f"{field} is not valid UTF-8 at its byte")
