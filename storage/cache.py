"""Builds on ``gs://``, read through a bounded cache on this machine's disk, which several processes may share.

Everything but the shards is downloaded when a build is opened, and a shard when it is first read. A file counts only if
it has the size and digest of the manifest. If the cache would exceed its bound, it removes the shards whose last use is
longest ago. A shard that is open anywhere is locked and stays. So does every file that no build in the cache names.
"""

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gatokit.schemas.errors import ConfigError, DataError, MalformedError
from gatokit.schemas.manifest import MANIFEST, Manifest, digest
from gatokit.storage import gcs
from gatokit.storage.files import (
    TEMPORARY,
    TEMPORARY_NAME,
    commit,
    file_digest,
    open_appending,
    remove,
    temporary_beside,
    write_atomically,
)
from gatokit.storage.folder import read_file, read_json, read_manifest
from gatokit.storage.ownership import check_folders

MARKER = "remote.json"
"""File of a cached build that says where the build comes from."""
_SHARD = ".arrayrecord"
_ARGUMENT = re.compile(r"(?:(?P<name>[A-Za-z0-9_.-]+)=)?(?P<url>gs://[^/]+(?:/.*?)?)/*", re.DOTALL)
_ATTEMPTS = 3


class CacheFullError(DataError):
    """Every shard in the cache is open."""


class HeldFile:
    """Keeps a cached file on this disk until it is garbage collected."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@dataclass(frozen=True)
class CachedFile:
    """A file ``path`` of a cached build, and the object ``url`` that it is a copy of.

    The shards of all builds below the directory ``cache`` take at most ``most_bytes`` (None: no bound).
    """

    cache: Path
    most_bytes: int | None
    url: str
    path: Path
    size: int
    blake2b: str

    def hold(self) -> HeldFile:
        """Keeps the file on this disk, and downloads it first if necessary.

        Raises CacheFullError if there is no room, DataError if the object does not have this size and digest or the
        cache cannot be written, or holds links.
        """
        with _cache_errors(self.cache):
            check_folders(self.cache, self.path.parent)
            while True:
                with suppress(FileNotFoundError):
                    held = HeldFile(self.path)
                    status = os.fstat(held.descriptor)
                    if status.st_nlink and status.st_size == self.size:
                        os.utime(self.path)
                        return held
                    if status.st_nlink:  # damaged; without a link it was removed before it was locked
                        remove(self.path)
                # One process downloads it, the others wait.
                with _locked(self.path.with_name(self.path.name + ".lock")):
                    if not self.path.exists():
                        self.download()

    def download(self) -> None:
        """Downloads the object to ``path``, where it appears complete or not at all."""
        check_folders(self.cache, self.path.parent)
        temporary = Path(temporary_beside(self.path))
        with _locked(self.cache / ".lock"):
            if self.path.name.endswith(_SHARD) and self.most_bytes is not None:
                self._make_room(self.most_bytes)
            file = open(temporary, "x+b")  # noqa: SIM115
            # Other processes see the room that the file will take, and that the download is alive.
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(self.size)
        try:
            with file:
                for _ in range(_ATTEMPTS):
                    file.seek(0)
                    gcs.download_into(self.url, file)
                    file.truncate()
                    file.flush()
                    size, blake2b = file_digest(temporary)
                    if (size, blake2b) == (self.size, self.blake2b):
                        break
                else:
                    problem = "what came has another digest than the manifest says"
                    if size != self.size:
                        problem = f"{size} bytes came and the manifest says {self.size}"
                    raise DataError(f"{self.url}: {problem}, {_ATTEMPTS} times; gatokit verify says more of a copy")
                os.fsync(file.fileno())
                commit(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, most_bytes: int) -> None:
        """Removes shards until this one fits: first the remains of killed downloads, then the oldest."""
        if self.size > most_bytes:
            raise ConfigError(f"--cache-bytes {most_bytes}: {self.url} has {self.size} bytes; give room for several")
        files = []
        for marker in self.cache.glob(f"*/{MARKER}"):
            for path in _shards(marker.parent):
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        files.append((not path.name.startswith(TEMPORARY), status.st_mtime_ns, path, status.st_size))
        total = self.size + sum(file[-1] for file in files)
        for _, _, path, freed in sorted(files):
            if total > most_bytes and _removed(path):
                total -= freed
        if total > most_bytes:
            raise CacheFullError(
                f"--cache-bytes {most_bytes}: all that is in {self.cache} is open, and there is no room for "
                f"{self.url}; give more, or lower input.open_shards"
            )


def open_remote(argument: str, cache_directory: str | Path | None, most_bytes: int | None = None) -> str:
    """Turns ``[NAME=]gs://BUCKET/DIR`` into ``[NAME=]DIR`` of a directory in the cache, which holds the build's files
    but its shards. After an update of the build that is another directory. Local arguments are returned as they are.

    Raises ConfigError without a cache, DataError if the build is not complete or cannot be read.
    """
    match = _ARGUMENT.fullmatch(argument)
    if match is None:
        return argument
    if cache_directory is None:
        raise ConfigError(
            f"--data {argument}: give --cache DIR, a directory for copies of its shards, or mount the bucket"
        )
    url, cache = match["url"], Path(cache_directory).absolute()
    try:
        data = read_file(url, MANIFEST)
    except FileNotFoundError:
        raise DataError(f"{url}/{MANIFEST} does not exist: give a finished build") from None
    manifest = Manifest.parse(data, f"{url}/{MANIFEST}")
    directory = cache / f"{digest(url.encode(), 8)}-{manifest.digest[:16]}"
    with _cache_errors(cache):
        for file in _files(directory, manifest, url, most_bytes):
            file.path.parent.mkdir(parents=True, exist_ok=True)
            check_folders(cache, file.path.parent)
            is_there = file.path.exists() and file.path.stat().st_size == file.size
            if not file.path.name.endswith(_SHARD) and not is_there:
                file.download()
        write_atomically(directory / MARKER, json.dumps({"url": url, "most_bytes": most_bytes}).encode())
        write_atomically(directory / MANIFEST, data)
    return f"{match['name']}={directory}" if match["name"] else str(directory)


def cached_shards(directory: Path, manifest: Manifest) -> dict[Path, CachedFile]:
    """The shards of a build in the cache, whose directory holds a MARKER, by their paths.

    Raises MalformedError if ``open_remote`` did not make this directory: then nothing is downloaded.
    """
    said = read_json(directory, MARKER)
    try:
        url, most_bytes = said["url"], said["most_bytes"]
        name = f"{digest(url.encode(), 8)}-{manifest.digest[:16]}"
        is_own = _ARGUMENT.fullmatch(url) is not None and isinstance(most_bytes, int | None)
    except (KeyError, TypeError, AttributeError, ValueError):
        is_own, name = False, ""
    if not is_own or directory.resolve().name != name:
        raise MalformedError(
            f"{directory / MARKER} is not of a build in a cache; remove it, or give the gs:// address with --cache"
        )
    files = _files(directory, manifest, url, most_bytes)
    return {file.path: file for file in files if file.path.name.endswith(_SHARD)}


def _files(directory: Path, manifest: Manifest, url: str, most_bytes: int | None) -> list[CachedFile]:
    return [
        CachedFile(directory.parent, most_bytes, f"{url}/{file.path}", directory / file.path, file.size, file.blake2b)
        for file in manifest.files
    ]


def _shards(directory: Path) -> Iterator[Path]:
    """The shards of a build in the cache, and what killed downloads left of some."""
    with suppress(OSError, DataError):
        names = _shard_names(directory, (directory / MANIFEST).stat().st_mtime_ns)
        for folder in sorted({(directory / name).parent for name in names}):
            with suppress(OSError, DataError):
                check_folders(directory.parent, folder)
                for name in os.listdir(folder):
                    is_left = bool(TEMPORARY_NAME.fullmatch(name)) and name.endswith(_SHARD)
                    if is_left or (folder / name).relative_to(directory).as_posix() in names:
                        yield folder / name


@lru_cache(maxsize=64)
def _shard_names(directory: Path, version: int) -> frozenset[str]:
    """The shards that the manifest of a build in the cache names. Raises DataError if it cannot be read."""
    return frozenset(file.path for file in read_manifest(directory).files if file.path.endswith(_SHARD))


def _removed(path: Path) -> bool:
    """Removes a file unless a process has it open. Returns whether it is gone."""
    with suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    return not path.exists()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that one thread of all processes has at a time."""
    with open_appending(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _cache_errors(directory: Path) -> Iterator[None]:
    """Turns an OSError of the cache's disk into a DataError; those of the bucket are DataErrors already."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"--cache {directory}: cannot be written: {error.strerror or error}") from None
