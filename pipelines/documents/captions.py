"""A picture and its text as a document: what all formats of captioned pictures check in the same way."""

from gatokit.pipelines.documents.reader import FoundDocument, content_digest
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import RejectedError


def captioned(
    place: ByteRange, key: str, image: bytes, text: str, *, group: str | None = None, detail: str | None = None
) -> FoundDocument:
    """The document [image, text], rejected where one of them is empty or the text cannot be written as UTF-8."""
    if not image:
        return rejected(place, key, RejectedError("bad_image", "the picture has no bytes"), group)
    if not text.strip():
        return rejected(place, key, RejectedError("empty", "the text is empty"), group)
    try:
        content = content_digest([image, text])
    except UnicodeEncodeError:
        return rejected(place, key, RejectedError("not_utf8", "the text holds half of a surrogate pair"), group)
    return FoundDocument(place, key, content, group, detail=detail)


def rejected(place: ByteRange, key: str, why: RejectedError, group: str | None = None) -> FoundDocument:
    """The row of a document that cannot be had."""
    return FoundDocument(place, key, None, group, why.reason, why.detail)


def too_large(length: int, max_bytes: int) -> RejectedError:
    """Why a document of ``length`` bytes was not read."""
    return RejectedError("too_large", f"{length} bytes are above max_episode_bytes {max_bytes}")


def decoded(data: bytes, where: str) -> str:
    """A stored text; RejectedError where it is no UTF-8."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise RejectedError("not_utf8", f"{where} is not valid UTF-8 at byte {error.start}") from None


def printable(name: str | bytes) -> str:
    """A name as a key: what is no UTF-8 in it is written as escapes."""
    if isinstance(name, bytes):
        return str(name, "utf-8", "backslashreplace")
    return name if name.isascii() else str(name.encode("utf-8", "backslashreplace"), "utf-8")
