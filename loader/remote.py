"""Builds on ``gs://``, read through a cache on this machine's disk.

Everything but the shards is downloaded at the start: manifest, indexes, descriptions and vocabulary. A shard is
downloaded when it is first opened.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import MANIFEST, FileEntry, Manifest, digest
from gatokit.storage.cache import Cache, HeldFile
from gatokit.storage.files import read_bytes, write_atomically

MARKER = "remote.json"
"""File of a cached build that says where the build comes from."""
_ARGUMENT = re.compile(r"(?:(?P<name>[A-Za-z0-9_.-]+)=)?(?P<url>gs://[^/]+(?:/.*?)?)/*", re.DOTALL)
_SHARD = ".arrayrecord"


@dataclass(frozen=True)
class RemoteShard:
    """A shard of a build on ``gs://`` whose place in the cache is ``path``."""

    cache: Cache
    url: str
    path: Path
    size: int
    blake2b: str

    def hold(self) -> HeldFile:
        """Keeps the shard on this disk, and downloads it first if necessary.

        Raises CacheFullError if there is no room, DataError if the object is not the one of the manifest.
        """
        try:
            return self.cache.hold(self.url, self.path, self.size, self.blake2b)
        except OSError as error:
            raise _cache_error(self.cache.directory, error) from None


def is_remote(argument: str) -> bool:
    """Whether an argument ``[NAME=]DIR`` names a directory on ``gs://``."""
    return _ARGUMENT.fullmatch(argument) is not None


def open_remote(argument: str, cache_directory: str | Path | None, most_bytes: int | None = None) -> str:
    """Turns ``[NAME=]gs://BUCKET/DIR`` into ``[NAME=]DIR`` of a directory in the cache, which holds the build's files
    but its shards. After an update of the build that is another directory.

    Raises ConfigError without a cache, DataError if the build is not complete or cannot be read.
    """
    match = _ARGUMENT.fullmatch(argument)
    assert match is not None
    if cache_directory is None:
        raise ConfigError(
            f"--data {argument}: give --cache DIR, a directory for copies of its shards, or mount the bucket"
        )
    url, root = match["url"], Path(cache_directory).absolute()
    try:
        data = read_bytes(f"{url}/{MANIFEST}")
    except FileNotFoundError:
        raise DataError(f"{url}/{MANIFEST} does not exist: give a finished build") from None
    manifest = Manifest.parse(data, f"{url}/{MANIFEST}")
    cache = Cache(root, MARKER, _SHARD, most_bytes)
    directory = root / f"{digest(url.encode(), 8)}-{manifest.digest[:16]}"
    try:
        for file in manifest.files:
            path = directory / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if not file.path.endswith(_SHARD) and not (path.exists() and path.stat().st_size == file.size):
                cache.download(f"{url}/{file.path}", path, file.size, file.blake2b)
        write_atomically(directory / MARKER, json.dumps({"url": url, "most_bytes": most_bytes}).encode())
        write_atomically(directory / MANIFEST, data)
    except OSError as error:
        raise _cache_error(root, error) from None
    return f"{match['name']}={directory}" if match["name"] else str(directory)


def remote_shards(directory: Path, files: list[FileEntry]) -> dict[str, RemoteShard]:
    """The shards among the files of a cached build, by path below the directory."""
    content = json.loads((directory / MARKER).read_bytes())
    cache = Cache(directory.parent, MARKER, _SHARD, content["most_bytes"])
    return {
        file.path: RemoteShard(cache, f"{content['url']}/{file.path}", directory / file.path, file.size, file.blake2b)
        for file in files
        if file.path.endswith(_SHARD)
    }


def _cache_error(directory: Path, error: OSError) -> DataError:
    if isinstance(error, DataError):  # from the bucket
        return error
    return DataError(f"--cache {directory}: cannot be written: {error.strerror or error}")
