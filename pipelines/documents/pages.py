"""What pages of any format need: their pictures, from a folder or embedded, and neighbouring texts as one."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import google_crc32c

from gatokit.pipelines.documents.image_folder import picture_folder
from gatokit.pipelines.documents.reader import Part
from gatokit.schemas.errors import RejectedError


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
    pictures together are above ``room`` bytes, where one is missing, or where nothing remains; DataError where there
    is no folder ``image_dir``.
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


def _bytes_of(picture: Picture, image_dir: str | None, room: int) -> bytes:
    """The stored bytes of a picture; RejectedError above ``room`` or where there is no such file in ``image_dir``."""
    data, name = picture.data, picture.name
    if data is None:
        if not name:
            raise RejectedError("missing_image", f"{picture.field} has no name")
        try:
            data = _read(name, image_dir, room)
        except RejectedError as error:
            if error.reason == "missing_image":
                raise RejectedError(error.reason, f"{picture.field}: {error.detail}") from None
            raise _too_large() from None
    if len(data) > room:
        raise _too_large()
    return data


def _read(name: str, image_dir: str | None, room: int) -> bytes:
    if "://" in name:
        raise RejectedError("missing_image", f"{name!r:.200} is a URL; pictures come from files")
    if image_dir is None:
        raise RejectedError("missing_image", f"{name!r:.200} is a file; set `image_dir`")
    return picture_folder(image_dir).read(name, room)


def _too_large() -> RejectedError:
    return RejectedError("too_large", "the page with its pictures is above max_episode_bytes")
