"""Built directories on ``gs://``, read through a cache on this machine's disk.

What a run needs at its start comes at once: manifest, indexes, descriptions and vocabulary. A shard comes whole when it
is first opened, and counts only if it has the size and the digest that the manifest says. Beyond the cache's bound the
shard goes whose last opening is longest ago. One that is open anywhere is locked and stays; so processes may share a
cache.
"""

import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from gatokit.schemas.digests import digest
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import MANIFEST, FileEntry, Manifest

MARK = "remote.json"
"""File of a cached directory that says where it comes from."""
_GIVEN = re.compile(r"(?:(?P<name>[A-Za-z0-9_.-]+)=)?gs://(?P<bucket>[^/]+)/(?P<folder>.*?)/*", re.DOTALL)
_SHARD = ".arrayrecord"
_TEMPORARY = ".tmp-"
_ATTEMPTS = 3
_THREADS = threading.local()


class CacheFullError(DataError):
    """Everything in the cache is open."""


@dataclass(frozen=True)
class Source:
    """Where a cached directory comes from: ``bucket`` and ``folder``; ``cache`` is bounded to ``most_bytes`` of shards
    (None: not at all)."""

    bucket: str
    folder: str
    cache: str
    most_bytes: int | None

    def url(self, path: str) -> str:
        """Of a file below the directory."""
        return f"gs://{self.bucket}/{self.object(path)}"

    def object(self, path: str) -> str:
        """Its name in the bucket."""
        return f"{self.folder}/{path}" if self.folder else path


def is_remote(item: str) -> bool:
    """Whether a directory argument, ``[NAME=]DIR``, names a directory on ``gs://``."""
    return _GIVEN.fullmatch(item) is not None


def open_remote(item: str, cache: str | Path | None, most_bytes: int | None = None) -> str:
    """``[NAME=]gs://BUCKET/DIR`` as ``[NAME=]DIR`` of a directory in ``cache``, with everything but its shards.

    Each state of the remote directory has one of its own. ConfigError without a cache, DataError where the directory
    is not complete or cannot be read.
    """
    match = _GIVEN.fullmatch(item)
    assert match is not None
    if cache is None:
        raise ConfigError(f"--data {item}: give --cache DIR, a directory for copies of its shards, or mount the bucket")
    source = Source(match["bucket"], match["folder"], str(Path(cache).absolute()), most_bytes)
    data = _download_bytes(source, MANIFEST)
    manifest = Manifest.parse(data, source.url(MANIFEST))
    url = f"gs://{source.bucket}/{source.folder}"
    local = Path(cache).absolute() / f"{digest(url.encode(), 8)}-{manifest.digest[:16]}"
    try:
        local.mkdir(parents=True, exist_ok=True)
        for file in manifest.files:
            if not file.path.endswith(_SHARD):
                _bring(source, file, local)
            else:
                (local / file.path).parent.mkdir(parents=True, exist_ok=True)
        _write(local / MARK, json.dumps({"url": url, "most_bytes": most_bytes}).encode())
        _write(local / MANIFEST, data)
    except OSError as error:
        raise DataError(f"--cache {cache}: cannot be written: {error.strerror or error}") from None
    return f"{match['name']}={local}" if match["name"] else str(local)


def source_of(directory: Path) -> Source | None:
    """Where a directory comes from; None of one that is no cached one."""
    try:
        said = json.loads((directory / MARK).read_bytes())
    except FileNotFoundError:
        return None
    bucket, _, folder = said["url"].removeprefix("gs://").partition("/")
    return Source(bucket, folder, str(directory.parent), said["most_bytes"])


class Held:
    """A shard that is on this disk as long as this lives."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True)
class Remote:
    """A shard of a cached ``directory``, and what the manifest says of it."""

    source: Source
    directory: str
    file: FileEntry

    def hold(self) -> Held:
        """Keeps it here, downloaded where it is not there.

        CacheFullError where there is no room and nothing can go, DataError where it cannot be had as the manifest says.
        """
        path = Path(self.directory, self.file.path)
        try:
            while True:
                held = _held(path, self.file.size)
                if held is not None:
                    return held
                with _locked(path.with_name(path.name + ".lock")):
                    if not path.exists():
                        _bring(self.source, self.file, Path(self.directory))
        except OSError as error:
            raise DataError(f"--cache {self.source.cache}: cannot be written: {error.strerror or error}") from None


def _held(path: Path, size: int) -> Held | None:
    """The shard, if it is there and whole; one of another size goes."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    held = Held(descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    found = os.fstat(descriptor)
    with suppress(FileNotFoundError):
        if not os.path.samestat(found, os.stat(path)):  # it was evicted in between
            return None
        if found.st_size == size:
            os.utime(path)
            return held
        path.unlink()
    return None


def _bring(source: Source, file: FileEntry, directory: Path) -> None:
    """Downloads a file, unless it is there; it appears whole."""
    path = directory / file.path
    with suppress(FileNotFoundError):
        if os.stat(path).st_size == file.size:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{uuid4().hex}-{path.name}")
    with _locked(Path(source.cache) / ".lock"):
        if file.path.endswith(_SHARD):
            _make_room(source, file)
        part = open(temporary, "w+b")  # noqa: SIM115
        # Others see what it will take, and that somebody is at work on it.
        fcntl.flock(part, fcntl.LOCK_EX)
        os.truncate(part.fileno(), file.size)
    with part:
        try:
            for _ in range(_ATTEMPTS):
                part.seek(0)
                part.truncate(file.size)
                why = _download(source, file, part)
                if why is None:
                    break
            else:
                raise DataError(
                    f"{source.url(file.path)}: {why}, {_ATTEMPTS} times; gatokit verify says more of a copy"
                )
            part.flush()
            os.fsync(part.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _download(source: Source, file: FileEntry, part: Any) -> str | None:
    """Writes an object into a file; what is wrong with what came."""
    with _errors(source, file.path):
        _blob(source, file.path).download_to_file(part, checksum=None)
    end = part.tell()
    if end != file.size:
        return f"{end} bytes came and the manifest says {file.size}"
    part.seek(0)
    found = hashlib.file_digest(part, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
    return None if found == file.blake2b else "what came has another digest than the manifest says"


def _download_bytes(source: Source, path: str) -> bytes:
    with _errors(source, path):
        data: bytes = _blob(source, path).download_as_bytes()
        return data


def _make_room(source: Source, file: FileEntry) -> None:
    """Evicts until a shard fits."""
    if source.most_bytes is None:
        return
    if file.size > source.most_bytes:
        raise ConfigError(
            f"--cache-bytes {source.most_bytes}: {source.url(file.path)} has {file.size} bytes; give room for several"
        )
    there = []
    for path in Path(source.cache).rglob(f"*{_SHARD}"):
        with suppress(FileNotFoundError):
            found = path.stat()
            there.append((not path.name.startswith(_TEMPORARY), found.st_mtime_ns, path, found.st_size))
    total = sum(size for *_, size in there) + file.size
    for _, _, path, size in sorted(there):
        if total <= source.most_bytes:
            return
        if _evicted(path):
            total -= size
    if total > source.most_bytes:
        raise CacheFullError(
            f"--cache-bytes {source.most_bytes}: all that is in {source.cache} is open, and there is no room for "
            f"{source.url(file.path)}; give more, or lower input.open_shards"
        )


def _evicted(path: Path) -> bool:
    """Whether a file that nobody had open is gone."""
    with suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return not path.exists()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One thread of all processes at a time."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{_TEMPORARY}{uuid4().hex}-{path.name}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _blob(source: Source, path: str) -> Any:
    from google.cloud import storage

    if not hasattr(_THREADS, "client"):
        # Reading needs no project, and without one the client looks for it.
        _THREADS.client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "none"))
    return _THREADS.client.bucket(source.bucket).blob(source.object(path))


@contextmanager
def _errors(source: Source, path: str) -> Iterator[None]:
    """What the service answers, as a sentence that names the object."""
    try:
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from requests import RequestException
    except ImportError:
        raise ConfigError("--data gs://… needs Google's client: pip install google-cloud-storage") from None
    try:
        yield
    except exceptions.NotFound:
        raise DataError(f"{source.url(path)} is not there, or not any more: give a finished build") from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise DataError(f"{source.url(path)}: access denied: {_first_line(error)}") from None
    except (exceptions.GoogleAPIError, GoogleAuthError, RequestException, DataCorruption, InvalidResponse) as error:
        raise DataError(f"{source.url(path)}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
