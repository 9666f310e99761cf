"""WebDataset archives, as img2dataset writes them: ``KEY.jpg``, ``KEY.txt`` and ``KEY.json`` beside each other.

A key is the path up to the first dot of the base name, as in the webdataset package. Members of one key that follow
each other are a sample; a suffix that comes a second time begins the next sample.
"""

import contextlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gatokit.pipelines.documents import reader
from gatokit.pipelines.documents.reader import DocumentFile, Loaded, ScannedDocument
from gatokit.pipelines.formats import json_lines, tar
from gatokit.pipelines.formats.compressed import DecompressedStream
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.config import ImageTextConfig
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.schemas.index import ENDS_EARLY
from gatokit.storage import files as storage

IMAGES = frozenset((b"jpg", b"jpeg", b"png", b"webp", b"gif", b"bmp", b"tif", b"tiff"))
"""Suffixes of images; the build decides whether one can become tokens."""

_TEXT, _JSON = b"txt", b"json"
_CAPTION = "caption"
_MOST_SHOWN = 6
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


class _Unpacked(NamedTuple):
    """An archive that is not compressed: where bytes are missing in it, and what is wrong if it ends early."""

    file: storage.Ranges
    cuts: Sequence[tar.Cut] = ()
    early: str | None = None


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
        with self._opened() as unpacked:
            archive = tar.Reader(unpacked.file)
            begin = archive.read(0, tar.BLOCK)
            for magic, compression in _COMPRESSED.items():
                if begin.startswith(magic):
                    raise DataError(
                        f"{self.name}: is compressed with {compression}; unpack it and give the .tar in `source`"
                    )
            if len(begin) == tar.BLOCK and not tar.is_tar(begin) and not tar.is_damaged_tar(archive):
                raise DataError(f"{self.name}: is no tar archive; leave it out of `source`")
            for sample in _samples(archive, self.text_field, unpacked.cuts):
                if isinstance(sample, tar.Gap):
                    yield self._lost(sample, position, unpacked)
                else:
                    yield self._document(archive, sample, position, max_bytes, sample.key in seen)
                    seen.add(sample.key)
                position += 1

    def _lost(self, gap: tar.Gap, position: int, unpacked: "_Unpacked") -> ScannedDocument:
        """The row of a gap in the archive."""
        reason, problem, lost_bytes = "corrupt_length", gap.problem, gap.end - gap.offset
        if gap.ends_early:
            reason, problem = ENDS_EARLY, unpacked.early or problem
        if not self.divides:  # compressed bytes: those that hide what is missing, and their share of what is there
            lost_bytes = gap.hidden + self.size * lost_bytes // max(1, unpacked.file.size)
        byte_range = ByteRange(position, gap.offset, gap.end - gap.offset, 0)
        return reader.lost_part(byte_range, f"byte {gap.offset}", RejectedError(reason, problem), lost_bytes)

    @contextlib.contextmanager
    def _opened(self) -> Iterator["_Unpacked"]:
        """The archive. A compressed one is unpacked into a temporary file that has no name, up to
        ``max_unpacked``, without what cannot be trusted of it."""
        if self.divides:
            with storage.ranges(self.path) as file:
                yield _Unpacked(file)
            return
        opened = json_lines.open_stream(self.path, self.name, self.max_unpacked)
        with opened as stream, tempfile.TemporaryFile() as unpacked:
            assert isinstance(stream.raw, DecompressedStream)
            cuts: list[tar.Cut] = []
            early, start, buffer = None, 0, memoryview(bytearray(1 << 20))
            size = -1
            while size:
                size = stream.raw.readinto(buffer)
                # The events lie before what was read now.
                while stream.raw.events:
                    event = stream.raw.events.popleft()
                    if isinstance(event, int):
                        start = unpacked.tell()
                    elif event.ends_early:
                        early = event.detail
                    else:
                        unpacked.truncate(unpacked.seek(start))
                        cuts.append(tar.Cut(start, event.detail, event.lost_bytes))
                unpacked.write(buffer[:size])
            unpacked.flush()
            number = unpacked.fileno()
            size = os.fstat(number).st_size
            file = storage.Ranges(lambda offset, length: os.pread(number, length, offset), size)
            yield _Unpacked(file, cuts, early)

    def _document(
        self, archive: tar.Reader, sample: _Sample, position: int, max_bytes: int, is_repeated: bool
    ) -> ScannedDocument:
        key, byte_range, lost = reader.printable(sample.key), ByteRange(position, sample.offset, 0, 0), 1
        try:
            if is_repeated:
                raise RejectedError("duplicate_id", f"the key {key!r} comes a second time in this archive")
            image, caption = sample.chosen(self.text_field)
            if image is None or caption is None:
                lacks = f"has no {'caption' if image else 'picture'}, only {_listed(sample.members)}"
                stems = len({suffix.rpartition(b".")[0] for suffix in sample.members if _is_image(suffix)})
                if stems > 1:
                    lost, lacks = stems, f"{lacks}: a key ends at the first dot of a name, so leave no dot in keys"
                raise RejectedError("missing_field", lacks)
            images = [suffix for suffix in sample.members if suffix in IMAGES]
            if len(images) > 1:
                raise RejectedError("wrong_shape", f"has {len(images)} pictures, {_listed(images)}; leave one of a key")
            image_place, text_place = sample.members[image], sample.members[caption]
            byte_range = byte_range._replace(length=image_place[1] + text_place[1])
            if byte_range.length > max_bytes:
                raise reader.too_large(max_bytes, f"{byte_range.length} bytes are")
            if text_place[1] > self.max_text_bytes:
                raise reader.too_large(self.max_text_bytes, "the caption is", "max_text_bytes")
            data, stored = archive.read(*image_place), archive.read(*text_place)
            byte_range = byte_range._replace(crc=reader.caption_crc(data, stored))
            text = self._text(stored, caption)
            payload = " ".join(map(str, (*image_place, *text_place, caption.decode())))
            byte_range = byte_range._replace(payload=payload)
            return reader.caption(byte_range, key, data, text)
        except RejectedError as error:
            return reader.rejected(byte_range, key, error)._replace(lost=lost)

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        with self._opened() as unpacked:
            file = unpacked.file
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


def _samples(archive: tar.Reader, text_field: str | None, cuts: Sequence[tar.Cut] = ()) -> Iterator[_Sample | tar.Gap]:
    """Every sample of an archive, and the gaps between them.

    The samples at both ends of a gap are part of it, if it may hide their image or caption.
    """
    sample: _Sample | None = None
    gap: tar.Gap | None = None
    has_text: bool | None = None  # whether captions are .txt in this archive; None: nobody knows
    end = 0

    def closed(sample: _Sample) -> tuple[list[_Sample | tar.Gap], tar.Gap | None]:
        """The sample that ends, with the gap in it or before it; and the gap, if it is the one behind it."""
        if gap is None:
            return [sample], None
        is_whole = None not in sample.chosen(text_field)
        if is_whole and (text_field is not None or _TEXT in sample.members or has_text is False):
            if end <= gap.offset:
                return [sample], gap
            return [sample, gap] if sample.offset < gap.offset else [gap, sample], None
        joined = _joined(gap, tar.Gap(sample.offset, min(end, archive.size), gap.problem))
        return ([], joined) if end <= gap.offset else ([joined], None)

    for member in tar.members(archive, cuts):
        if isinstance(member, tar.Gap):
            has_text = True if _split(member.name or b"")[1] == _TEXT else has_text
            gap = member if gap is None else _joined(gap, member)
            continue
        key, suffix = _split(member.name)
        if not key:
            continue
        if sample is None or key != sample.key or suffix in sample.members:
            if sample is not None:
                has_text = has_text or _TEXT in sample.members
                items, gap = closed(sample)
                yield from items
            sample = _Sample(key, member.offset, {})
        sample.members[suffix] = (member.begin, member.size)
        end = member.begin + tar.padded(member.size)
    if sample is not None:
        items, gap = closed(sample)
        yield from items
    if gap is not None:
        yield gap


def _joined(gap: tar.Gap, other: tar.Gap) -> tar.Gap:
    return gap._replace(
        offset=min(gap.offset, other.offset),
        end=max(gap.end, other.end),
        ends_early=gap.ends_early or other.ends_early,
        hidden=gap.hidden + other.hidden,
    )


def _is_image(suffix: bytes) -> bool:
    return suffix.rpartition(b".")[2] in IMAGES


def _listed(suffixes: Collection[bytes]) -> str:
    """The first few of these suffixes, and how many more there are."""
    shown = ", ".join(f".{reader.printable(suffix)}" for suffix in itertools.islice(suffixes, _MOST_SHOWN))
    return shown if len(suffixes) <= _MOST_SHOWN else f"{shown} and {len(suffixes) - _MOST_SHOWN:,} more"


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Key and lower-case suffix of a member; the key is empty if the member belongs to no sample."""
    begin = name.rfind(b"/") + 1
    dot = name.find(b".", begin)
    if dot <= begin or (b"__" in name and _META.match(name)):
        return b"", b""
    return name[:dot], name[dot + 1 :].lower()
