"""WebDataset archives, as img2dataset writes them: ``KEY.jpg``, ``KEY.txt`` and ``KEY.json`` beside each other.

A key is the path up to the first dot of the base name, which is webdataset's own rule. Members of one key that follow
each other are a sample; a suffix that comes twice begins the next one.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import google_crc32c

from gatokit.pipelines.documents.captions import captioned, decoded, printable, rejected, too_large
from gatokit.pipelines.documents.descriptions import text_of
from gatokit.pipelines.documents.reader import CorpusFile, FoundDocument, Part, changed
from gatokit.pipelines.formats import tar
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.storage import files

IMAGES = frozenset((b"jpg", b"jpeg", b"png", b"webp", b"gif", b"bmp", b"tif", b"tiff"))
"""Suffixes of pictures; whether one can become tokens is for the build to say."""

_TEXT, _JSON = b"txt", b"json"
_CAPTION = "caption"
_META = re.compile(rb"__[^/]*__(?:/|$)|(?:.*/)?__MACOSX/", re.DOTALL)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class _Sample:
    """A run of members of one key: where each suffix's bytes begin and how many there are."""

    key: bytes
    offset: int
    members: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    @property
    def image(self) -> bytes | None:
        return next((suffix for suffix in self.members if suffix in IMAGES), None)

    def caption(self, text_field: str | None) -> bytes | None:
        if text_field is None and _TEXT in self.members:
            return _TEXT
        return _JSON if _JSON in self.members else None


class WebDatasetFile(CorpusFile):
    """A tar file of samples: ``text_field`` is the JSON key that holds the caption.

    Without one the caption is the ``.txt`` member, or the JSON's ``caption`` where there is none.
    """

    text_field: str | None = None

    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """See ``CorpusFile``."""
        position = 0
        seen: set[bytes] = set()
        with _opened(self.path) as reader:
            self._check(reader.read(0, tar.BLOCK))
            try:
                for sample in _samples(reader, self.text_field):
                    yield self._found(reader, sample, position, max_bytes, sample.key in seen)
                    seen.add(sample.key)
                    position += 1
            except tar.DamagedTarError as error:
                place = ByteRange(position, error.offset, reader.size - error.offset, 0)
                yield rejected(place, f"byte {error.offset}", RejectedError("corrupt_length", str(error)))

    def read(self, places: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``CorpusFile``."""
        with files.ranges(self.path) as file:
            read = file.read_at
            for place in places:
                image_begin, image_size, text_begin, text_size, suffix = (place.payload or "").split()
                image = read(int(image_begin), int(image_size))
                stored = read(int(text_begin), int(text_size))
                if google_crc32c.extend(google_crc32c.value(image), stored) != place.crc:
                    raise changed(self, place)
                yield [image, self._text(stored, suffix.encode())]

    def _check(self, begin: bytes) -> None:
        """DataError where the file's first bytes are no tar's; a file that is cut off counts as one."""
        kind = next((kind for magic, kind in _COMPRESSED.items() if begin.startswith(magic)), None)
        if kind is not None:
            raise DataError(f"{self.name}: is compressed with {kind}; unpack it and give the .tar in `source`")
        if len(begin) == tar.BLOCK and not tar.is_tar(begin):
            raise DataError(f"{self.name}: is no tar archive; leave it out of `source`")

    def _found(self, reader: tar.Reader, sample: _Sample, position: int, max_bytes: int, again: bool) -> FoundDocument:
        key = printable(sample.key)
        length = crc = 0
        try:
            if again:
                raise RejectedError("duplicate_id", f"the key {key!r} comes a second time in this archive")
            image, caption = sample.image, sample.caption(self.text_field)
            if image is None or caption is None:
                has = ", ".join(f".{printable(suffix)}" for suffix in sample.members)
                raise RejectedError("missing_field", f"has no {'caption' if image else 'picture'}, only {has}")
            (image_begin, image_size), (text_begin, text_size) = sample.members[image], sample.members[caption]
            length = image_size + text_size
            if length > max_bytes:
                raise too_large(length, max_bytes)
            data, stored = reader.read(image_begin, image_size), reader.read(text_begin, text_size)
            crc = google_crc32c.extend(google_crc32c.value(data), stored)
            text = self._text(stored, caption)
        except RejectedError as error:
            return rejected(ByteRange(position, sample.offset, length, crc), key, error)
        payload = f"{image_begin} {image_size} {text_begin} {text_size} {caption.decode()}"
        others = [f".{suffix.decode()}" for suffix in sample.members if suffix in IMAGES and suffix != image]
        detail = f"of its pictures .{image.decode()} is read, {', '.join(others)} is not" if others else None
        place = ByteRange(position, sample.offset, length, crc, payload)
        return captioned(place, key, data, text, detail=detail)

    def _text(self, stored: bytes, suffix: bytes) -> str:
        text = decoded(stored, f".{suffix.decode()}")
        if suffix == _TEXT:
            return text
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RejectedError("corrupt_record", f".json is no JSON: {str(error)[:200]}") from None
        return text_of(values, self.text_field or _CAPTION)


def _samples(reader: tar.Reader, text_field: str | None) -> Iterator[_Sample]:
    """Every sample of an archive. Of one that damage may have cut off, what follows is lost, and so is the sample
    where it has no picture or no caption yet or the file ends inside one of its members."""
    sample = None
    try:
        for member in tar.members(reader):
            key, suffix = _split(member.name)
            if not key:
                continue
            if sample is None or key != sample.key or suffix in sample.members:
                if sample is not None:
                    yield sample
                sample = _Sample(key, member.offset)
            sample.members[suffix] = (member.begin, member.size)
    except tar.DamagedTarError as error:
        if sample is not None:
            whole = sample.image is not None and sample.caption(text_field) is not None
            if whole and _split(error.name or b"")[0] != sample.key:
                yield sample
            else:
                error.offset = sample.offset
        raise
    if sample is not None:
        yield sample


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Key and lower-case suffix of a member; an empty key where it belongs to no sample."""
    begin = name.rfind(b"/") + 1
    dot = name.find(b".", begin)
    if dot <= begin or (b"__" in name and _META.match(name)):
        return b"", b""
    return name[:dot], name[dot + 1 :].lower()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tar.Reader]:
    with files.ranges(path) as file:
        yield tar.Reader(file)
