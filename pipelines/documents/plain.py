"""Plain text files (``.txt``, ``.text``, ``.md``, ``.rst``, also compressed): a file is one document."""

from collections.abc import Iterable, Iterator

import google_crc32c

from gatokit.pipelines.documents.reader import CorpusFile, FoundDocument, Part, changed, content_digest
from gatokit.pipelines.formats.json_lines import (
    STREAM_ERRORS,
    UTF8_MARK,
    checked_text,
    damaged_stream,
    opened,
    too_large,
)
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import RejectedError

_PIECE_BYTES = 1 << 20


class PlainTextFile(CorpusFile):
    """A file whose whole content is one text, to the byte: line ends stay as they are."""

    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """See ``CorpusFile``."""
        data = b""
        try:
            data = self._data(max_bytes)
            if len(data) > max_bytes:
                raise too_large(max_bytes)
            content = content_digest([_text(data)])
        except RejectedError as error:
            place = ByteRange(0, 0, len(data), 0)
            yield FoundDocument(place, "0", None, reason=error.reason, detail=error.detail)
        else:
            yield FoundDocument(ByteRange(0, 0, len(data), google_crc32c.value(data)), "0", content)

    def read(self, places: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``CorpusFile``."""
        for place in places:
            try:
                data = self._data(place.length)
                if len(data) != place.length or google_crc32c.value(data) != place.crc:
                    raise changed(self, place)
                yield [_text(data)]
            except RejectedError:
                raise changed(self, place) from None

    def _data(self, max_bytes: int) -> bytes:
        """The content; of a longer one than ``max_bytes`` the first ``max_bytes + 1`` bytes."""
        pieces, room = [], max_bytes + 1
        with opened(self) as stream:
            try:
                while piece := stream.read(min(_PIECE_BYTES, room)):
                    pieces.append(piece)
                    room -= len(piece)
            except STREAM_ERRORS as error:
                raise RejectedError("corrupt_length", damaged_stream(error)) from None
        return b"".join(pieces)


def _text(data: bytes) -> str:
    try:
        text = data.removeprefix(UTF8_MARK).decode()
    except UnicodeDecodeError as error:
        raise RejectedError("not_utf8", f"the file is not valid UTF-8 at its byte {error.start}") from None
    return checked_text(text, "the file")
