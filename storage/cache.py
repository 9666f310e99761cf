"""A bounded cache of files from ``gs://`` on this machine's disk, which several processes may share.

A file is downloaded completely and counts only if it has the expected size and digest. If the cache would exceed its
bound, it removes the files whose last use is longest ago. A file that is open anywhere is locked and stays.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gatokit.schemas.errors import ConfigError, DataError
from gatokit.storage import gcs
from gatokit.storage.files import TEMPORARY, commit, file_digest, temporary_beside

_ATTEMPTS = 3


class CacheFullError(DataError):
    """Every file in the cache is open."""


class HeldFile:
    """Keeps a cached file on this disk until it is garbage collected."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@dataclass(frozen=True)
class Cache:
    """The files with ``suffix`` in the folders of ``directory`` that hold a file ``marker``.

    They take at most ``most_bytes`` (None: no bound). Files in other folders are not the cache's, and stay.
    """

    directory: Path
    marker: str
    suffix: str
    most_bytes: int | None = None

    def hold(self, url: str, path: Path, size: int, blake2b: str) -> HeldFile:
        """Keeps the object ``url`` at ``path``, and downloads it first if necessary.

        Raises CacheFullError if there is no room, DataError if the object does not have this size and digest.
        """
        while True:
            with suppress(FileNotFoundError):
                held = HeldFile(path)
                status = os.fstat(held.descriptor)
                if status.st_nlink and status.st_size == size:
                    os.utime(path)
                    return held
                if status.st_nlink:  # damaged; without a link it was removed before it was locked
                    path.unlink()
            with _locked(path.with_name(path.name + ".lock")):  # one process downloads it, the others wait
                if not path.exists():
                    self.download(url, path, size, blake2b)

    def download(self, url: str, path: Path, size: int, blake2b: str) -> None:
        """Downloads an object to ``path``, where it appears complete or not at all. Errors as for ``hold``."""
        temporary = Path(temporary_beside(path))
        with _locked(self.directory / ".lock"):
            if path.name.endswith(self.suffix):
                self._make_room(url, size)
            file = open(temporary, "w+b")  # noqa: SIM115
            # Other processes see the room that the file will take, and that the download is alive.
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(size)
        try:
            with file:
                for _ in range(_ATTEMPTS):
                    file.seek(0)
                    gcs.download_into(url, file)
                    file.truncate()
                    file.flush()
                    size_found, digest_found = file_digest(temporary)
                    if (size_found, digest_found) == (size, blake2b):
                        break
                else:
                    problem = "what came has another digest than the manifest says"
                    if size_found != size:
                        problem = f"{size_found} bytes came and the manifest says {size}"
                    raise DataError(f"{url}: {problem}, {_ATTEMPTS} times; gatokit verify says more of a copy")
                os.fsync(file.fileno())
                commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, url: str, size: int) -> None:
        """Removes files until one of ``size`` bytes fits: first the remains of killed downloads, then the oldest."""
        if self.most_bytes is None:
            return
        if size > self.most_bytes:
            raise ConfigError(f"--cache-bytes {self.most_bytes}: {url} has {size} bytes; give room for several")
        files = []
        for marker in self.directory.glob(f"*/{self.marker}"):
            for path in marker.parent.rglob(f"*{self.suffix}"):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    files.append((not path.name.startswith(TEMPORARY), status.st_mtime_ns, path, status.st_size))
        total = size + sum(file[-1] for file in files)
        for _, _, path, freed in sorted(files):
            if total > self.most_bytes and _removed(path):
                total -= freed
        if total > self.most_bytes:
            raise CacheFullError(
                f"--cache-bytes {self.most_bytes}: all that is in {self.directory} is open, and there is no room for "
                f"{url}; give more, or lower input.open_shards"
            )


def _removed(path: Path) -> bool:
    """Removes a file unless a process has it open. Returns whether it is gone."""
    with suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    return not path.exists()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that one thread of all processes has at a time."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
