"""Captions in a JSON file, their pictures in a folder: what COCO and VQA have in common.

Documents are ordered by picture, so that each picture is opened once for all its texts.
"""

import errno
import functools
import json
import os
import stat
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import google_crc32c

from gatokit.pipelines.documents.captions import captioned, printable, rejected, too_large
from gatokit.pipelines.documents.reader import CorpusFile, FoundDocument, Part, changed
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.storage import files
from gatokit.storage.files import is_remote

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES}
_NO_FILE = {errno.EISDIR, errno.ENXIO}


@dataclass(frozen=True)
class Caption:
    """A document as the JSON describes it: its text and its picture's file name, or why it is rejected."""

    key: str
    text: str = ""
    picture: str = ""
    why: RejectedError | None = None


class PictureFolderFile(CorpusFile):
    """A JSON file that names pictures in the folder ``image_dir``."""

    image_dir: str

    folder: ClassVar[bool] = True

    @abstractmethod
    def captions(self) -> Iterator[Caption]:
        """Every document of the JSON file, those of one picture one after the other."""

    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """See ``CorpusFile``."""
        folder = picture_folder(self.image_dir)
        opened: str | None = None
        picture: bytes | RejectedError = b""
        crc = 0
        for position, document in enumerate(self.captions()):
            place = ByteRange(position, 0, 0, 0)
            if document.why is not None:
                yield rejected(place, document.key, document.why)
                continue
            if document.picture != opened:
                opened, picture = document.picture, _tried(folder, document.picture, max_bytes)
                crc = 0 if isinstance(picture, RejectedError) else google_crc32c.value(picture)
            group = printable(document.picture)
            if isinstance(picture, RejectedError):
                yield rejected(place, document.key, picture, group)
                continue
            text = document.text.encode("utf-8", "replace")
            length = len(picture) + len(text)
            payload = json.dumps([document.picture, document.text], separators=(",", ":"))
            place = ByteRange(position, 0, length, google_crc32c.extend(crc, text), payload)
            if length > max_bytes:
                yield rejected(place, document.key, too_large(length, max_bytes), group)
            else:
                yield captioned(place, document.key, picture, document.text, group=group)

    def read(self, places: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``CorpusFile``."""
        folder = picture_folder(self.image_dir)
        opened, picture, crc = None, b"", 0
        for place in places:
            name, text = json.loads(place.payload or "")
            if name != opened:
                try:
                    picture = folder.read(name, place.length)
                except RejectedError:
                    raise changed(self, place) from None
                opened, crc = name, google_crc32c.value(picture)
            if google_crc32c.extend(crc, text.encode()) != place.crc:
                raise changed(self, place)
            yield [picture, text]


def picture_folder(path: str) -> "PictureFolder | ObjectFolder":
    """The folder of pictures at ``path``; DataError where there is none."""
    if not _is_folder(path):
        raise DataError(f"{path}: is no folder; set `image_dir` to the folder of the pictures")
    return ObjectFolder(path) if is_remote(path) else PictureFolder(path)


def _is_folder(path: str) -> bool:
    return _has_objects(path) if is_remote(path) else os.path.isdir(path)


@functools.lru_cache(maxsize=64)
def _has_objects(path: str) -> bool:
    return files.is_directory(path)


class PictureFolder:
    """Reads pictures by name; no name leads out of the folder."""

    def __init__(self, path: str) -> None:
        self._path, self._root = path, os.path.realpath(path)

    def has(self, name: str) -> bool:
        """Whether there is something of that name."""
        return os.path.lexists(os.path.join(self._path, name))

    def read(self, name: str, most: int) -> bytes:
        """The bytes of the file ``name``.

        RejectedError where it is missing, is no file or lies elsewhere (``missing_image``), or is above ``most``
        bytes.
        """
        try:
            with open(name, "rb", buffering=0, opener=self._open) as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise RejectedError("missing_image", f"{name!r:.200} is no file")
                if about.st_size > most:
                    raise too_large(about.st_size, most)
                return file.read(about.st_size)
        except ValueError:
            raise RejectedError("missing_image", f"{name!r:.200} is no name of a file") from None
        except OSError as error:
            if error.errno in _NO_FILE:
                raise RejectedError("missing_image", f"{name!r:.200} is no file") from None
            if error.errno not in _NOT_THERE:
                raise
            raise RejectedError("missing_image", f"{name!r:.200} is not in image_dir: {error.strerror}") from None

    def _open(self, name: str, flags: int) -> int:
        path = os.path.join(self._root, name)
        if "/" not in name:
            try:
                return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
        real = os.path.realpath(path)
        if os.path.isabs(name) or ".." in name.split("/") or not real.startswith(os.path.join(self._root, "")):
            raise RejectedError("missing_image", f"{name!r:.200} leads out of image_dir")
        return os.open(real, flags | os.O_NONBLOCK)


class ObjectFolder:
    """The same of objects."""

    def __init__(self, path: str) -> None:
        self._path = path

    def has(self, name: str) -> bool:
        """See ``PictureFolder``."""
        return _stays_inside(name) and files.exists(f"{self._path}/{name}")

    def read(self, name: str, most: int) -> bytes:
        """See ``PictureFolder``."""
        if not _stays_inside(name):
            raise RejectedError("missing_image", f"{name!r:.200} leads out of image_dir")
        try:
            size = files.size(f"{self._path}/{name}")
            if size > most:
                raise too_large(size, most)
            return files.read_bytes(f"{self._path}/{name}")
        except FileNotFoundError:
            raise RejectedError("missing_image", f"{name!r:.200} is not in image_dir") from None


def _stays_inside(name: str) -> bool:
    return not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


def _tried(folder: PictureFolder | ObjectFolder, name: str, most: int) -> bytes | RejectedError:
    try:
        return folder.read(name, most)
    except RejectedError as error:
        return error
