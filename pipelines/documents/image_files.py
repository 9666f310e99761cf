"""Reads images by name from a folder on a disk or on ``gs://``; no name leads out of the folder."""

import errno
import functools
import os
import stat

from gatokit.pipelines.documents.reader import too_large
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.storage import files as storage
from gatokit.storage.files import is_remote

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES}
_NO_FILE = {errno.EISDIR, errno.ENXIO}


class ImageFolder:
    """Reads images by name from a folder; no name leads out of it."""

    def __init__(self, path: str) -> None:
        self._path, self._root = path, os.path.realpath(path)

    def has(self, name: str) -> bool:
        """Whether there is something of that name."""
        return os.path.lexists(os.path.join(self._path, name))

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of the file ``name``.

        Raises RejectedError if it is missing, is not a file or lies outside of the folder (``missing_image``), or if it
        has more than ``max_bytes`` bytes.
        """
        try:
            with open(name, "rb", buffering=0, opener=self._open) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise RejectedError("missing_image", f"{name!r:.200} is no file")
                if status.st_size > max_bytes:
                    raise too_large(max_bytes, f"{status.st_size} bytes are")
                return file.read(status.st_size)
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
        # A plain name that is no link needs no look at where it really lies; O_NONBLOCK, so that a pipe does not wait.
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


class RemoteImageFolder(ImageFolder):
    """The same for objects below a path on ``gs://``."""

    def has(self, name: str) -> bool:
        """See ``ImageFolder``."""
        return self._is_inside(name) and storage.exists(f"{self._path}/{name}")

    def read(self, name: str, max_bytes: int) -> bytes:
        """See ``ImageFolder``."""
        if not self._is_inside(name):
            raise RejectedError("missing_image", f"{name!r:.200} leads out of image_dir")
        try:
            size = storage.size(f"{self._path}/{name}")
            if size > max_bytes:
                raise too_large(max_bytes, f"{size} bytes are")
            return storage.read_bytes(f"{self._path}/{name}")
        except FileNotFoundError:
            raise RejectedError("missing_image", f"{name!r:.200} is not in image_dir") from None

    @staticmethod
    def _is_inside(name: str) -> bool:
        return not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


def image_folder(path: str) -> ImageFolder:
    """The folder of images at ``path``. Raises DataError if there is none."""
    if not (_has_objects(path) if is_remote(path) else os.path.isdir(path)):
        raise DataError(f"{path}: is no folder; set `image_dir` to the folder of the images")
    return (RemoteImageFolder if is_remote(path) else ImageFolder)(path)


@functools.lru_cache(maxsize=64)
def _has_objects(path: str) -> bool:
    return storage.is_directory(path)
