"""WebDataset archives, as img2dataset writes them: ``KEY.jpg``, ``KEY.txt`` and ``KEY.json`` beside each other.

A key is the path up to the first dot of the base name, as in the webdataset package. Members of one key that follow
each other are a sample; a suffix that comes a second time begins the next sample.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gatokit.pipelines.documents import reader
from gatokit.pipelines.documents.reader import DocumentFile, Loaded, ScannedDocument
from gatokit.pipelines.formats import json_lines, tar
from gatokit.pipelines.formats.compressed import Damage
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.config import ImageTextConfig
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.storage import files as storage

IMAGES = frozenset((b"jpg", b"jpeg", b"png", b"webp", b"gif", b"bmp", b"tif", b"tiff"))
"""Suffixes of images; the build decides whether one can become tokens."""

_TEXT, _JSON = b"txt", b"json"
_CAPTION = "caption"
_META = re.compile(rb"__[^/]*__(?:/|$)|(?:.*/)?__MACOSX/", re.DOTALL)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class _Sample(NamedTuple):
    """Members of one key that follow each other: by suffix, where the bytes begin and how many there are."""

    key: bytes
    offset: int
    members: dict[bytes, tuple[int, int]]

    def chosen(self, text_field: str | None) -> tuple[bytes | None, bytes | None]:
        """The suffixes of the image and of the caption."""
        image = next((suffix for suffix in self.members if suffix in IMAGES), None)
        captions = (_JSON,) if text_field is not None else (_TEXT, _JSON)
        return image, next((suffix for suffix in captions if suffix in self.members), None)


def find(config: ImageTextConfig, field: str, base: Path) -> list["WebDatasetFile"]:
    """See ``reader.plan_documents``."""
    files = reader.source_files(config.source, f"{field}.source", base, (".tar",), (".tar",))
    types = {False: "webdataset", True: "compressed_webdataset"}
    return [
        WebDatasetFile(**file, type=types[reader.suffix(file["path"])[1]], text_field=config.text_field)
        for file in files
    ]


class WebDatasetFile(DocumentFile):
    """A tar file of samples, plain or compressed: ``text_field`` is the JSON key that holds the caption.

    Without ``text_field`` the caption is the ``.txt`` member, or the JSON's ``caption`` if there is no such member.
    """

    type: str = "webdataset"
    text_field: str | None = None

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        position = 0
        seen: set[bytes] = set()
        with self._opened() as (file, damage):
            archive = tar.Reader(file)
            begin = archive.read(0, tar.BLOCK)
            for magic, compression in _COMPRESSED.items():
                if begin.startswith(magic):
                    raise DataError(
                        f"{self.name}: is compressed with {compression}; unpack it and give the .tar in `source`"
                    )
            if len(begin) == tar.BLOCK and not tar.is_tar(begin):
                raise DataError(f"{self.name}: is no tar archive; leave it out of `source`")
            try:
                for sample in _samples(archive, self.text_field):
                    yield self._document(archive, sample, position, max_bytes, sample.key in seen)
                    seen.add(sample.key)
                    position += 1
            except tar.DamagedTarError as error:
                byte_range = ByteRange(position, error.offset, archive.size - error.offset, 0)
                problem, lost_bytes = RejectedError("corrupt_length", damage or str(error)), byte_range.length
                if not self.divides:  # compressed bytes, in proportion
                    lost_bytes = max(1, self.size * byte_range.length // max(1, archive.size))
                yield reader.lost_part(byte_range, f"byte {error.offset}", problem, lost_bytes)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[storage.Ranges, str | None]]:
        """The archive, and what is wrong with its compression. A compressed one is unpacked into a temporary file."""
        if self.divides:
            with storage.ranges(self.path) as file:
                yield file, None
            return
        with json_lines.open_stream(self.path, self.name) as stream, tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(stream, unpacked)
            damage = next((event.detail for event in stream.raw.events if isinstance(event, Damage)), None)
            unpacked.flush()
            number = unpacked.fileno()
            size = os.fstat(number).st_size
            yield storage.Ranges(lambda offset, length: os.pread(number, length, offset), size), damage

    def _document(
        self, archive: tar.Reader, sample: _Sample, position: int, max_bytes: int, is_repeated: bool
    ) -> ScannedDocument:
        key, byte_range = reader.printable(sample.key), ByteRange(position, sample.offset, 0, 0)
        try:
            if is_repeated:
                raise RejectedError("duplicate_id", f"the key {key!r} comes a second time in this archive")
            image, caption = sample.chosen(self.text_field)
            if image is None or caption is None:
                has = ", ".join(f".{reader.printable(suffix)}" for suffix in sample.members)
                raise RejectedError("missing_field", f"has no {'caption' if image else 'picture'}, only {has}")
            image_place, text_place = sample.members[image], sample.members[caption]
            byte_range = byte_range._replace(length=image_place[1] + text_place[1])
            if byte_range.length > max_bytes:
                raise reader.too_large(max_bytes, f"{byte_range.length} bytes are")
            data, stored = archive.read(*image_place), archive.read(*text_place)
            byte_range = byte_range._replace(crc=reader.caption_crc(data, stored))
            text = self._text(stored, caption)
            payload = " ".join(map(str, (*image_place, *text_place, caption.decode())))
            byte_range = byte_range._replace(payload=payload)
            content = reader.caption_digest(data, text)
        except RejectedError as error:
            return reader.rejected(byte_range, key, error)
        others = [f".{suffix.decode()}" for suffix in sample.members if suffix in IMAGES and suffix != image]
        detail = f"of its pictures .{image.decode()} is read, {', '.join(others)} is not" if others else None
        return ScannedDocument(byte_range, key, content, detail=detail)

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        with self._opened() as (file, _):
            for byte_range in byte_ranges:
                image_begin, image_size, text_begin, text_size, suffix = (byte_range.payload or "").split()
                image = file.read_at(int(image_begin), int(image_size))
                text = file.read_at(int(text_begin), int(text_size))
                yield reader.caption_crc(image, text), [image, self._text(text, suffix.encode())]

    def _text(self, stored: bytes, suffix: bytes) -> str:
        text = reader.decode(stored, f".{suffix.decode()} is not valid UTF-8 at byte")
        if suffix == _TEXT:
            return text
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RejectedError("corrupt_record", f".json is no JSON: {str(error)[:200]}") from None
        return reader.string_of(values, self.text_field or _CAPTION)


def _samples(archive: tar.Reader, text_field: str | None) -> Iterator[_Sample]:
    """Every sample of an archive.

    Where the archive is damaged, the rest is lost. The last sample is lost too if it has no image or no caption yet, or
    if the file ends inside one of its members.
    """
    sample = None
    try:
        for member in tar.members(archive):
            key, suffix = _split(member.name)
            if not key:
                continue
            if sample is None or key != sample.key or suffix in sample.members:
                if sample is not None:
                    yield sample
                sample = _Sample(key, member.offset, {})
            sample.members[suffix] = (member.begin, member.size)
    except tar.DamagedTarError as error:
        if sample is not None:
            if None not in sample.chosen(text_field) and _split(error.name or b"")[0] != sample.key:
                yield sample
            else:
                error.offset = sample.offset
        raise
    if sample is not None:
        yield sample


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Key and lower-case suffix of a member; the key is empty if the member belongs to no sample."""
    begin = name.rfind(b"/") + 1
    dot = name.find(b".", begin)
    if dot <= begin or (b"__" in name and _META.match(name)):
        return b"", b""
    return name[:dot], name[dot + 1 :].lower()
