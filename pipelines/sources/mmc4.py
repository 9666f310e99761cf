"""MMC4 (github.com/allenai/mmc4): a JSON object a line is a page of sentences, and pictures beside it in a folder.

A picture stands before the sentence that it was matched to. What pages of any format need is here too: pictures of
a folder, and neighbouring texts as one.
"""

import errno
import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import google_crc32c

from gatokit.pipelines.sources.corpus import DocumentPlace, FoundDocument, Part, changed
from gatokit.pipelines.sources.lines import (
    LinesFile,
    digest_of,
    parse_object,
    read_lines,
    value_of,
)
from gatokit.schemas.errors import DataError, RejectedError

_SENTENCES = " "
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES}


@dataclass(frozen=True)
class Picture:
    """A picture of a page: its ordinal there, the field that holds it, and the name of its file or its bytes."""

    ordinal: int
    field: str
    name: str | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Page:
    """The parts of a page in reading order, and the ordinals of pictures that were left out, with why."""

    parts: list[Part]
    left_out: dict[int, str]

    @property
    def crc(self) -> int:
        """CRC-32C of the parts, with a mark before each that says what it is."""
        crc = 0
        for part in self.parts:
            mark, data = (b"text", part.encode()) if isinstance(part, str) else (b"image", part)
            crc = google_crc32c.extend(google_crc32c.extend(crc, mark), data)
        return crc

    @property
    def pictures(self) -> list[bytes]:
        """The parts that are pictures."""
        return [part for part in self.parts if isinstance(part, bytes)]

    @property
    def note(self) -> str | None:
        """A sentence about what was left out."""
        if not self.left_out:
            return None
        first = next(iter(self.left_out.values()))
        return f"without {len(self.left_out)} of its pictures: {first}"


class Mmc4File(LinesFile):
    """A JSONL file of MMC4; ``image_dir`` is the folder of its pictures. With ``skip_bad`` a page stays without a
    picture that is missing."""

    image_dir: str
    skip_bad: bool = False

    folder: ClassVar[bool] = True

    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """See ``CorpusFile``."""
        check_folder(self.image_dir)
        yield from super().scan(max_bytes)

    def document(self, line: bytes, place: DocumentPlace, max_bytes: int) -> FoundDocument:
        """See ``LinesFile``."""
        room = max_bytes - len(line)
        page = assemble(_pieces(parse_object(line)), _SENTENCES, self.image_dir, room, skip=self.skip_bad)
        content = digest_of(page.parts)
        place = DocumentPlace(
            place.position,
            place.offset,
            len(line) + sum(map(len, page.pictures)),
            _extend_crc(place.crc, page.pictures),
            json.dumps([len(line), *page.left_out], separators=(",", ":")),
        )
        return FoundDocument(place, str(place.position), content, detail=page.note)

    def read(self, places: Iterable[DocumentPlace]) -> Iterator[list[Part]]:
        """See ``CorpusFile``."""
        for place, line in read_lines(self, ((place, _payload(place)[0]) for place in places)):
            length, *left_out = _payload(place)
            try:
                pieces = _pieces(parse_object(line))
                page = assemble(pieces, _SENTENCES, self.image_dir, place.length - length, left_out=left_out)
            except RejectedError:
                raise changed(self, place) from None
            if _extend_crc(google_crc32c.value(line), page.pictures) != place.crc:
                raise changed(self, place)
            yield page.parts


class CompressedMmc4File(Mmc4File):
    """The same, compressed with gzip (``.gz``) or Zstandard (``.zst``)."""

    divides: ClassVar[bool] = False


def _extend_crc(crc: int, pictures: list[bytes]) -> int:
    for picture in pictures:
        crc = google_crc32c.extend(crc, picture)
    return crc


def _payload(place: DocumentPlace) -> list[int]:
    """Bytes of the line, then the ordinals of the pictures that the scan left out."""
    assert place.payload is not None
    ordinals: list[int] = json.loads(place.payload)
    return ordinals


def _pieces(record: dict[str, Any]) -> list[str | Picture]:
    """Sentences and pictures in reading order."""
    sentences = value_of(record, "text_list")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise RejectedError("wrong_shape", "'text_list' is no list of strings")
    infos = value_of(record, "image_info")
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise RejectedError("wrong_shape", "'image_info' is no list of objects")
    before: list[list[Picture]] = [[] for _ in sentences]
    for ordinal, info in enumerate(infos):
        field = f"image_info[{ordinal}]"
        index, name = info.get("matched_text_index"), info.get("image_name")
        if type(index) is not int or not 0 <= index < len(sentences):
            there = f"no sentence of {len(sentences)}"
            raise RejectedError("corrupt_record", f"{field}: 'matched_text_index' is {index!r:.50}, {there}")
        if name is not None and not isinstance(name, str):
            raise RejectedError("wrong_shape", f"{field}: 'image_name' is {name!r:.50}, no string")
        before[index].append(Picture(ordinal, field, name))
    return [piece for sentence, pictures in zip(sentences, before, strict=True) for piece in (*pictures, sentence)]


def assemble(
    pieces: Iterable[str | Picture],
    separator: str,
    image_dir: str | None,
    room: int,
    *,
    skip: bool = False,
    left_out: Collection[int] = (),
) -> Page:
    """The page of ``pieces``: texts that stand side by side are joined with ``separator``, blank ones drop out.

    ``left_out`` pictures are not looked for; with ``skip`` missing ones are left out too. RejectedError where the
    pictures together are above ``room`` bytes, where one is missing, or where nothing remains.
    """
    parts: list[Part] = []
    missing = {}
    for piece in pieces:
        if isinstance(piece, Picture):
            if piece.ordinal in left_out:
                continue
            try:
                picture = _bytes_of(piece, image_dir, room)
            except RejectedError as error:
                if not skip or error.reason != "missing_image":
                    raise
                missing[piece.ordinal] = error.detail
                continue
            room -= len(picture)
            parts.append(picture)
        elif piece and not piece.isspace():
            if parts and isinstance(parts[-1], str):
                parts[-1] += separator + piece
            else:
                parts.append(piece)
    page = Page(parts, missing)
    if not parts:
        raise RejectedError("empty", page.note or "the page holds neither text nor pictures")
    return page


def check_folder(image_dir: str) -> None:
    """DataError where the folder of pictures is none."""
    if not os.path.isdir(image_dir):
        raise DataError(f"{image_dir}: is no folder; set `image_dir` to the folder of the pictures")


def _bytes_of(picture: Picture, image_dir: str | None, room: int) -> bytes:
    """The stored bytes of a picture; RejectedError above ``room`` or where there is no such file below
    ``image_dir``."""
    if picture.data is None:
        return _read_file(picture, image_dir, room)
    if len(picture.data) > room:
        raise _too_large()
    return picture.data


def _read_file(picture: Picture, image_dir: str | None, room: int) -> bytes:
    name = picture.name
    if not name:
        raise RejectedError("missing_image", f"{picture.field} has no name")
    what = f"{picture.field}: {name!r:.200}"
    if "://" in name:
        raise RejectedError("missing_image", f"{what} is a URL; pictures come from files")
    if image_dir is None:
        raise RejectedError("missing_image", f"{what} is a file; set `image_dir`")
    root = os.path.realpath(image_dir)
    try:
        path = os.path.realpath(os.path.join(root, name))
        if os.path.isabs(name) or ".." in name.split("/") or not path.startswith(os.path.join(root, "")):
            raise RejectedError("missing_image", f"{what} leads out of image_dir")
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise RejectedError("missing_image", f"{what} is no file")
        if about.st_size > room:
            raise _too_large()
        with open(path, "rb", buffering=0) as file:
            return file.read(about.st_size)
    except ValueError:
        raise RejectedError("missing_image", f"{what} is no name of a file") from None
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        raise RejectedError("missing_image", f"{what} is not in image_dir: {error.strerror}") from None


def _too_large() -> RejectedError:
    return RejectedError("too_large", "the page with its pictures is above max_episode_bytes")
