"""What every format of documents offers, files and in them stored documents, and the scan of a dataset of them.

A document is a text, an image with its caption, an image with a question and its answer, or a page of texts and images.
A format is a module beside this one with a function ``find`` and a subclass of ``DocumentFile``, and a line in
``FORMATS``. A scan reads everything once, so that every fault of a source is a row with a reason before a build
begins; but only the build decodes the images.
"""

import codecs
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import BaseModel, ConfigDict

from gatokit.pipelines import inputs
from gatokit.pipelines.formats.compressed import MAX_UNPACKED
from gatokit.pipelines.formats.json_lines import BYTE_ORDER_MARK
from gatokit.pipelines.formats.records import CHANGED, ByteRange
from gatokit.pipelines.scan_cache import LOOKED_AT, Pictures, unit_keys, with_pictures
from gatokit.pipelines.versions import code_digest, packages
from gatokit.schemas.config import CorpusConfig
from gatokit.schemas.errors import ConfigError, DataError, RejectedError
from gatokit.schemas.manifest import json_digest
from gatokit.storage import files as storage

Part = str | bytes
"""A text, or an encoded image as it is stored."""
Loaded = tuple[int, list[Part]]
"""The CRC-32C and the parts of a stored document."""

FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "text": (
        "text",
        {
            "lines": "text.TextLinesFile",
            "compressed_lines": "text.TextLinesFile",
            "plain": "text.PlainTextFile",
            "rows": "parquet.TextRowsFile",
        },
    ),
    "webdataset": (
        "webdataset",
        {"webdataset": "webdataset.WebDatasetFile", "compressed_webdataset": "webdataset.WebDatasetFile"},
    ),
    "coco": ("image_folder", {"coco": "image_folder.CocoFile"}),
    "image_question_answer": ("image_folder", {"vqa": "image_folder.VqaFile"}),
    "parquet": ("parquet", {"picture_rows": "parquet.ImageRowsFile"}),
    "tfds": (
        "tfds_images",
        {"tfds_tfrecord": "tfds_images.TfdsImagesFile", "tfds_array_record": "tfds_images.TfdsImagesFile"},
    ),
    "mmc4": ("interleaved", {"mmc4": "interleaved.Mmc4File", "compressed_mmc4": "interleaved.Mmc4File"}),
    "obelics": ("interleaved", {"obelics": "interleaved.ObelicsFile", "obelics_folder": "interleaved.ObelicsFile"}),
}
"""The formats of documents: the module whose ``find`` finds the files of each, and the class of each type of file.

A key is the config's ``format``, or its ``kind`` if the kind has only one format. A module is imported when it is first
used. The names of types are part of fingerprints and must not change.
"""

JSON_LINES, PLAIN_TEXT, COMPRESSIONS = (".jsonl", ".ndjson", ".json"), (".txt", ".text", ".md", ".rst"), (".gz", ".zst")
"""Suffixes of files; the suffix of a compression follows another one."""
FOUND = pa.schema(
    {
        "file": pa.int32(),  # ordinal among the dataset's files
        "key": pa.string(),
        "position": pa.int64(),
        "offset": pa.int64(),
        "length": pa.int64(),
        "crc": pa.uint32(),
        "payload": pa.string(),
        "content": pa.binary(16),  # null if the document is rejected
        "group": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "lost": pa.int64(),
        "lost_bytes": pa.int64(),
        "images": pa.int32(),
        "images_left_out": pa.int32(),
        "pictures": pa.list_(pa.uint64()),
        "text": pa.uint64(),
    }
)
"""The rows of a scan."""
_BATCH_ROWS = 8192
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, and the encodings that read them."""


# --- the contract ----------------------------------------------------------------------------------------------


class ScannedDocument(NamedTuple):
    """A document as a scan finds it, or what was wrong with it.

    ``key`` names it in its file: its position, or the format's own key, unique in the file. ``content`` is a 16-byte
    digest of its parts (``content_digest``), None for a rejected one. ``group`` names documents that are held out
    together because they share an image (None: on its own). A rejected row counts for ``lost`` documents of the
    source; if these lie in a part of the file that cannot be read, the reason is one of ``CONTAINER_REASONS`` and
    ``lost_bytes`` are the bytes of that part, compressed ones if the file is compressed. The ``takes_back`` rows of the
    file before it are void then: they come from that part too. Of the ``images`` of a page the scan has left out
    ``images_left_out``, and ``detail`` says why, also if nothing else is left of it. ``pictures`` and ``text`` are
    digests of its stored pictures and of all its text, None if it has no pictures: then ``content`` says as much.
    """

    byte_range: ByteRange
    key: str
    content: bytes | None
    group: str | None = None
    reason: str | None = None
    detail: str | None = None
    lost: int = 1
    lost_bytes: int = 0
    images: int = 0
    images_left_out: int = 0
    pictures: Sequence[int] | None = None
    text: int | None = None
    takes_back: int = 0


class DocumentFile(BaseModel, ABC):
    """A file of documents: ``path`` opens it, ``name`` is its path below the source, ``size`` its bytes.

    Subclasses add what the config says, such as the field that holds the text. Files are written to JSON on their way
    to a worker (``model_dump(mode="json")``), and ``file_from_json`` reads them back.
    """

    model_config = ConfigDict(frozen=True)

    type: str
    """The name of the file's type in ``FORMATS``."""
    path: inputs.SourcePath
    name: inputs.SourceName
    size: int
    max_text_bytes: int = 64 << 20
    """Longer texts are rejected."""
    max_unpacked: int = MAX_UNPACKED
    """See ``compressed.most_unpacked``."""

    separator: ClassVar[str] = "\n\n"
    """Joins two texts of a page that become neighbours because an image between them is left out."""

    divides_at_offsets: ClassVar[bool] = False
    """The documents of one offset are stored together, and reading one of them reads those before it."""

    @property
    def divides(self) -> bool:
        """Whether documents in the middle of the file can be read without reading what is before them."""
        return not self.type.startswith("compressed_")

    def text_bound(self, max_bytes: int) -> tuple[int, str]:
        """The most bytes of a text, and the key of the config that says so; ``max_bytes`` is that of a document."""
        return min((max_bytes, "max_episode_bytes"), (self.max_text_bytes, "max_text_bytes"))

    def identity(self) -> dict[str, Any]:
        """Everything but the type, the bounds, and where the file and its images lie on this machine."""
        places = {"path", "image_dir", "annotations", "follow_links"}
        return self.model_dump(mode="json", exclude={"type", "max_text_bytes", "max_unpacked", *places})

    def versions(self) -> tuple[int, ...]:
        """``files.version`` of the file, and of its annotations if it has any."""
        paths = [getattr(self, field, None) for field in ("path", "annotations")]
        return tuple(storage.version(path) for path in paths if path is not None)

    @abstractmethod
    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """Every document in file order, in memory that does not grow with the file.

        A document that is damaged, empty or above ``max_bytes`` comes as a rejection. Raises DataError only if the file
        is not of this format at all.
        """

    @abstractmethod
    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """The CRC-32C and the parts of what is stored at each of ``byte_ranges`` now; see ``read``.

        Raises RejectedError if there is no document any more.
        """

    def read(self, byte_ranges: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """The parts of the documents at ``byte_ranges`` (ascending, from ``scan``, not rejected), in their order.

        Neighbouring texts are one part. Raises DataError if the file no longer holds what the scan found.
        """
        byte_ranges = list(byte_ranges)
        documents = self.load(byte_ranges)
        for byte_range in byte_ranges:
            try:
                crc, parts = next(documents)
            except RejectedError:
                crc, parts = None, []
            if crc != byte_range.crc:
                raise DataError(f"{self.name}: document {byte_range.position} {CHANGED}. Run the build again")
            yield parts


def file_from_json(value: dict[str, Any]) -> DocumentFile:
    """The file whose ``model_dump(mode="json")`` is ``value``."""
    name = next(types[value["type"]] for _, types in FORMATS.values() if value["type"] in types)
    module, class_name = name.split(".")
    file_class: type[DocumentFile] = getattr(import_module(f"{__package__}.{module}"), class_name)
    return file_class.model_validate(value)


# --- the scan --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentsPlan:
    """A dataset of documents before its scan; messages call its config ``field``."""

    config: CorpusConfig
    field: str
    files: tuple[DocumentFile, ...]
    kind: ClassVar = "documents"

    def ids(self, scanned: pa.Table) -> list[str]:
        """The id of each scanned row: its file and its key there. If an earlier document of the file has the same key,
        the position follows."""
        ordinals, keys = scanned["file"].to_pylist(), scanned["key"].to_pylist()
        ids = [f"{self.files[file].name}#{key}" for file, key in zip(ordinals, keys, strict=True)]
        for row in np.flatnonzero(pc.equal(scanned["reason"], "duplicate_id").fill_null(False)).tolist():
            ids[row] += f"@{scanned['position'][row]}"
        return ids

    @cached_property
    def versions(self) -> list[int]:
        """``files.version`` of each file."""
        return [storage.version(file.path) for file in self.files]

    def task_of(self, ordinal: int) -> str | None:
        """The one task of all files."""
        return self.config.name

    def keys(self, max_bytes: int) -> list[str]:
        """For each file a digest of all that its scanned rows depend on, but the pictures that it names."""
        if max_bytes not in self._keys:
            common = json_digest([max_bytes, code_digest(self.kind), packages()])
            parts = ([common, file.model_dump(mode="json"), file.versions()] for file in self.files)
            self._keys[max_bytes] = [json_digest(part, 16) for part in parts]
        return self._keys[max_bytes]

    @cached_property
    def _keys(self) -> dict[int, list[str]]:
        return {}

    def scan_unit(self, ordinals: Sequence[int], max_bytes: int, most_rows: int | None = None) -> "DocumentUnit":
        """These of the files as a unit of the scan. Documents above ``max_bytes`` will be rejected. The unit ends with
        its row ``most_rows``, if that is given."""
        return DocumentUnit(
            dataset=self.config.name,
            max_bytes=max_bytes,
            ordinals=tuple(ordinals),
            files=tuple(self.files[ordinal].model_dump(mode="json") for ordinal in ordinals),
            keys=unit_keys(self.keys(max_bytes), ordinals, most_rows),
            most_rows=most_rows,
        )


def plan_documents(config: CorpusConfig, field: str, base: Path) -> DocumentsPlan:
    """Finds the files of a dataset, in order of their names; relative paths start at ``base``.

    Raises ConfigError, naming the key below ``field``, if there are none or one has a suffix of another format.
    """
    module, _ = FORMATS[getattr(config, "format", config.kind)]
    files: list[DocumentFile] = import_module(f"{__package__}.{module}").find(config, field, base)
    bounds = {key: value for key in ("max_text_bytes", "max_unpacked") if (value := getattr(config, key)) is not None}
    if bounds:
        files = [file.model_copy(update=bounds) for file in files]
    _check_ids(files, field)
    return DocumentsPlan(config, field, tuple(files))


def _check_ids(files: Sequence[DocumentFile], field: str) -> None:
    """Raises ConfigError if documents of two files could have one id: a name that is no UTF-8 is written as another's,
    or as another's with the sign that divides names from keys."""
    names = {file.name: file.path for file in files}
    for file in files:
        begins = [file.name[:at] for at, sign in enumerate(file.name) if sign == "#"]
        twin = names[file.name] if names[file.name] != file.path else next(filter(None, map(names.get, begins)), None)
        if twin is not None:
            paths = f"{inputs.source_name(file.path)} and {inputs.source_name(twin)}"
            raise ConfigError(f"{field}: documents of {paths} could have the same ids; rename one of the files")


class DocumentUnit(BaseModel):
    """Consecutive files of a dataset that are scanned together, as plain values. ``ordinals`` are their indexes in the
    dataset."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["documents"] = "documents"
    dataset: str
    max_bytes: int
    ordinals: tuple[int, ...]
    files: tuple[dict[str, Any], ...]
    keys: tuple[str, ...]
    """A digest for each file of all that its rows depend on: a file that changed is scanned again."""
    most_rows: int | None = None
    """The scan ends with this many rows."""

    @property
    def size(self) -> int:
        """The bytes of its files."""
        return sum(file["size"] for file in self.files)

    @property
    def fingerprint(self) -> str:
        """Names the file with the unit's rows, so that an interrupted scan continues where it stopped."""
        return json_digest(self.keys, 8)

    def scan(self, most_bytes: int | None = None) -> pa.Table:
        """The rows of the unit's documents (schema ``FOUND``).

        ``most_bytes`` ends the scan with the row that brings the sum of the rows' lengths to it.
        """
        batches: list[pa.RecordBatch] = []
        rows: list[tuple[Any, ...]] = []
        pictures: dict[int, Pictures] = {}
        size = 0
        for ordinal, found in self._found(pictures):
            taken_back = found.takes_back
            while taken_back > len(rows):
                taken_back -= len(rows)
                rows = list(zip(*(column.to_pylist() for column in batches.pop().columns), strict=True))
            del rows[len(rows) - taken_back :]
            # The fields of both tuples stand in the order of the schema.
            rows.append((ordinal, found.key, *found.byte_range, *found[2:-1]))
            size += found.byte_range.length
            if len(rows) == _BATCH_ROWS:
                batches.append(_batch(rows))
                rows = []
            is_last = _BATCH_ROWS * len(batches) + len(rows) == self.most_rows
            if is_last or (most_bytes is not None and size >= most_bytes):
                break
        return with_pictures(pa.Table.from_batches([*batches, _batch(rows)], FOUND), pictures)

    def _found(self, pictures: dict[int, Pictures]) -> Iterator[tuple[int, ScannedDocument]]:
        for ordinal, file in zip(self.ordinals, self.files, strict=True):
            pictures[ordinal] = {}
            LOOKED_AT.set(pictures[ordinal])
            try:
                for found in file_from_json(file).scan(self.max_bytes):
                    yield ordinal, found
            finally:
                LOOKED_AT.set(None)


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(FOUND)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, FOUND, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=FOUND)


# --- for the formats -------------------------------------------------------------------------------------------


def source_files(
    pattern: str, field: str, base: Path, suffixes: tuple[str, ...] = (), compressible: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Path, name and size of the files that a pattern matches.

    Raises ConfigError, naming ``field``, if there are none or one has none of ``suffixes`` (none given: any will do).
    The suffix of a compression may follow those that are ``compressible``.
    """
    found = inputs.find_files(inputs.local_pattern(pattern, base, field), field)
    for path, _ in found:
        name, is_compressed = suffix(path)
        if suffixes and name not in (compressible if is_compressed else suffixes):
            known = ", ".join(suffixes) + (f", and {' or '.join(COMPRESSIONS)} behind" if compressible else "")
            raise ConfigError(f"{field}: {path} has none of the suffixes {known}; narrow source, or rename the file")
    return [{"path": path, "name": name, "size": storage.size(path)} for path, name in found]


def suffix(path: str) -> tuple[str, bool]:
    """The suffix of a file, and whether that of a compression follows it, as in ``.tar.gz``, or ``.tgz``."""
    stem, last = os.path.splitext(os.path.basename(path).lower())
    if last == ".tgz":
        return ".tar", True
    return (os.path.splitext(stem)[1], True) if last in COMPRESSIONS else (last, False)


def image_directory(path: str, field: str, base: Path) -> str:
    """The folder of images that a config names. Raises ConfigError if there is none."""
    folder = inputs.local_path(path, base, field)
    if not storage.is_directory(folder):
        problem = "is a file" if storage.exists(folder) else "does not exist"
        raise ConfigError(f"{field}: {folder} {problem}; give the folder of the images, relative to the config file")
    return folder


def rejected(
    byte_range: ByteRange,
    key: str,
    error: RejectedError,
    group: str | None = None,
) -> ScannedDocument:
    """The row of a document that cannot be used."""
    return ScannedDocument(byte_range, key, None, group, error.reason, error.detail)


def lost_part(
    byte_range: ByteRange, key: str, error: RejectedError, lost_bytes: int, lost: int = 1, takes_back: int = 0
) -> ScannedDocument:
    """The row of a part of a file that cannot be read; the error's reason is one of ``CONTAINER_REASONS``."""
    return ScannedDocument(
        byte_range, key, None, None, error.reason, error.detail, lost, lost_bytes, takes_back=takes_back
    )


def too_large(max_bytes: int, subject: str = "the document is", key: str = "max_episode_bytes") -> RejectedError:
    """The rejection of a document that was not read, because of a ``key`` of the config."""
    return RejectedError("too_large", f"{subject} above {key} {max_bytes}")


def decode(data: bytes, complaint: str) -> str:
    """A stored text without its byte order mark, which may also be one of UTF-16 or UTF-32.

    Raises RejectedError, ``complaint`` and the number of the first bad byte, if it is not UTF-8.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return str(data, encoding)
    except UnicodeDecodeError as error:
        raise RejectedError("not_utf8", f"{complaint} {error.start}") from None


def not_blank(text: str, field: str) -> str:
    """The text. Raises RejectedError if it is empty or white space."""
    if not text or text.isspace():
        raise RejectedError("empty", f"{field!r} holds nothing but white space")
    return text


def string_of(entry: Any, field: str) -> str:
    """The string that a JSON object has under ``field``. Raises RejectedError if there is none."""
    value = value_of(entry, field)
    if not isinstance(value, str):
        raise RejectedError("wrong_shape", f"{field!r} holds no string")
    return value.removeprefix(BYTE_ORDER_MARK)


def value_of(entry: Any, field: str) -> Any:
    """The value that a JSON object has under ``field``. Raises RejectedError if it is absent or null."""
    value = entry.get(field) if isinstance(entry, dict) else None
    if value is None:
        raise RejectedError("missing_field", f"the JSON has no {field!r}")
    return value


def printable(name: str | bytes) -> str:
    """A name as a key; what is not UTF-8 in it is written as escapes."""
    if isinstance(name, bytes):
        return str(name, "utf-8", "backslashreplace")
    return name if name.isascii() else str(name.encode("utf-8", "backslashreplace"), "utf-8")


def caption_crc(image: bytes, text: bytes) -> int:
    """CRC-32C of an image and its caption as they are stored."""
    crc: int = google_crc32c.extend(google_crc32c.value(image), text)
    return crc


def sound(
    byte_range: ByteRange, key: str, parts: Sequence[Part], group: str | None = None, detail: str | None = None
) -> ScannedDocument:
    """The row of a document with these parts. Raises RejectedError as ``content_digest``."""
    content = content_digest(parts)
    pictures = [_short(content_digest([part])) for part in parts if isinstance(part, bytes)]
    texts = [part for part in parts if isinstance(part, str)]
    text = _short(content_digest(texts)) if pictures and texts else None
    return ScannedDocument(byte_range, key, content, group, detail=detail, pictures=pictures or None, text=text)


def caption(byte_range: ByteRange, key: str, image: bytes, text: str, group: str | None = None) -> ScannedDocument:
    """The row of an image with a text. Raises RejectedError if one of them is empty or the text is no Unicode."""
    if not image:
        raise RejectedError("bad_image", "the picture has no bytes")
    if not text.strip():
        raise RejectedError("empty", "the text is empty")
    try:
        return sound(byte_range, key, [image, text], group)
    except RejectedError:
        raise RejectedError("not_utf8", "the text holds half of a surrogate pair") from None


def _short(content: bytes) -> int:
    """The first 64 bits of a digest, as NumPy reads them."""
    return int.from_bytes(content[:8], "little")


def content_digest(parts: Iterable[Part]) -> bytes:
    """16 bytes that are equal only for equal parts, as long as nobody forges two that agree (XXH3).

    Raises RejectedError if a text holds half a surrogate pair, which JSON can hold and UTF-8 cannot.
    """
    content = xxhash.xxh3_128()
    for part in parts:
        try:
            mark, data = (b"s", part.encode()) if isinstance(part, str) else (b"b", part)
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise RejectedError("not_utf8", f"a text holds {half}, half a surrogate pair") from None
        # Mark and length come first, so that no two lists of parts are the same bytes.
        content.update(mark + len(data).to_bytes(8, "little"))
        content.update(data)
    return content.digest()
