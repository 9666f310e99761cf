"""MMC4 (github.com/allenai/mmc4): a JSON object a line is a page of sentences, and pictures beside it in a folder.

A picture stands before the sentence that it was matched to.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import google_crc32c

from gatokit.pipelines.documents.pages import Picture, assemble
from gatokit.pipelines.documents.reader import FoundDocument, Part, changed
from gatokit.pipelines.formats.json_lines import (
    LinesFile,
    digest_of,
    parse_object,
    read_lines,
    value_of,
)
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import RejectedError

_SENTENCES = " "


class Mmc4File(LinesFile):
    """A JSONL file of MMC4; ``image_dir`` is the folder of its pictures. With ``skip_bad`` a page stays without a
    picture that is missing."""

    image_dir: str
    skip_bad: bool = False

    folder: ClassVar[bool] = True

    def document(self, line: bytes, place: ByteRange, max_bytes: int) -> FoundDocument:
        """See ``LinesFile``."""
        room = max_bytes - len(line)
        page = assemble(_pieces(parse_object(line)), _SENTENCES, self.image_dir, room, skip=self.skip_bad)
        content = digest_of(page.parts)
        place = ByteRange(
            place.position,
            place.offset,
            len(line) + sum(map(len, page.pictures)),
            _extend_crc(place.crc, page.pictures),
            json.dumps([len(line), *page.left_out], separators=(",", ":")),
        )
        return FoundDocument(place, str(place.position), content, detail=page.note)

    def read(self, places: Iterable[ByteRange]) -> Iterator[list[Part]]:
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


def _payload(place: ByteRange) -> list[int]:
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
