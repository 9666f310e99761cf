"""Objects on ``gs://``, read and written with the client that Beam sets up (its options, credentials and retries).

Without Beam it is Google's own client with its defaults: that is enough to read the data of a training run.

``pathlib`` writes ``gs:/`` for ``gs://``; both are accepted. An error of the service is raised as an ObjectError: it
is an OSError, like that of a disk, and its message is a sentence for the user that names the object.
"""

import base64
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gatokit.schemas.errors import ConfigError, DataError, install_hint

_NAME = re.compile(r"gs:/{1,2}(?P<bucket>[^/]+)(?:/(?P<object>.*))?", re.DOTALL)
_LEAST, _MOST = 1 << 16, 1 << 23
"""Bytes of a ranged read: few after a jump, and twice as many with each read that goes on."""
_PART_BYTES = 16 << 20
"""A larger upload is sent in parts of this size. A part that fails is sent again."""
_THREADS = threading.local()


class ObjectError(DataError, OSError):
    """An object could not be read or written."""


class MissingObjectError(ObjectError, FileNotFoundError):
    """There is no such object."""


class ReplacedObjectError(ObjectError, FileExistsError):
    """The object was replaced by another, or exists although it should not."""


@dataclass(frozen=True)
class Object:
    """An object in a listing. ``generation`` changes with its content."""

    path: str
    size: int
    generation: int


def canonical(path: str | Path) -> str:
    """The path with both slashes of ``gs://``."""
    bucket, name = _parsed(path)
    return f"gs://{bucket}/{name}"


def about(path: str | Path) -> Object:
    """The object at ``path``."""
    with _os_errors(path):
        blob = _blob(path)
        blob.reload(retry=_retry())
        return _object(blob)


def below(directory: str | Path) -> Iterator[Object]:
    """All objects below a directory, in order of name. Names that end in a slash are left out."""
    bucket, name = _parsed(directory)
    prefix = name if not name or name.endswith("/") else name + "/"
    with _os_errors(directory):
        for blob in _client().list_blobs(bucket, prefix=prefix, retry=_retry()):
            if not blob.name.endswith("/"):
                yield _object(blob)


def matching(pattern: str) -> set[str]:
    """The objects that a glob pattern matches, and the directories that hold objects and match."""
    pattern = canonical(pattern)
    fixed = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    wanted = re.compile(_expression(pattern.rstrip("/")), re.DOTALL)
    found = set()
    for item in below(fixed if fixed.count("/") > 2 else fixed + "/"):
        parts = item.path[len(fixed) + 1 :].split("/")
        for count in range(1, len(parts) + 1):
            path = f"{fixed}/{'/'.join(parts[:count])}"
            if wanted.fullmatch(path + "/"):
                found.add(path)
        if wanted.fullmatch(fixed + "/"):
            found.add(fixed)
    return found


def read(path: str | Path) -> bytes:
    """The content of an object, checked against its checksum."""
    with _os_errors(path):
        data: bytes = _blob(path).download_as_bytes(checksum="crc32c", retry=_retry())
        return data


def download(path: str | Path, local: str | Path) -> None:
    """Writes the content of an object to a local file, checked against its checksum."""
    with _os_errors(path):
        _blob(path).download_to_filename(str(local), checksum="crc32c", retry=_retry())


def download_into(path: str | Path, file: BinaryIO) -> None:
    """Writes the content of an object to an open file, unchecked: the connection may have ended early."""
    with _os_errors(path):
        _blob(path).download_to_file(file, checksum=None, retry=_retry())


def upload(local: str | Path, path: str | Path) -> None:
    """Sends a local file. Afterwards the object is complete and its checksum is right, or an error is raised and there
    is no new object."""
    import google_crc32c

    crc = google_crc32c.Checksum()
    with open(local, "rb") as file:
        for _ in crc.consume(file, 1 << 20):
            pass
        file.seek(0)
        with _os_errors(path):
            blob = _blob(path)
            blob.chunk_size = _PART_BYTES
            with _checked(blob, crc.digest()):
                blob.upload_from_file(file, checksum="crc32c", retry=_retry())


def write(path: str | Path, data: bytes | memoryview, *, new: bool = False) -> int:
    """Writes an object from memory, as ``upload`` does, and returns its generation.

    Raises ReplacedObjectError if ``new`` is set and the object exists already.
    """
    import google_crc32c

    with _os_errors(path):
        blob = _blob(path)
        match = {"if_generation_match": 0} if new else {}
        with _checked(blob, google_crc32c.Checksum(bytes(data)).digest()):
            blob.upload_from_string(bytes(data), checksum="crc32c", retry=_retry(), **match)
        return int(blob.generation)


def delete(path: str | Path, generation: int | None = None) -> None:
    """Removes an object, or only the given generation of it. A missing object is no error."""
    with suppress(FileNotFoundError), _os_errors(path):
        _blob(path).delete(if_generation_match=generation, retry=_retry())


class Ranges:
    """Ranged reads of one object, of the generation that it has when this is created."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        found = about(path)
        self.size, self._generation = found.size, found.generation
        with _os_errors(path):
            self._blob = _blob(path)
        self._begin, self._data, self._ahead = 0, b"", _LEAST

    def read_at(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``; fewer if the object ends before.

        Raises ReplacedObjectError or MissingObjectError if the object is no longer the same.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        have = self._begin + len(self._data)
        if not self._begin <= offset or end > have:
            kept = self._data[offset - self._begin :] if self._begin <= offset < have else b""
            self._ahead = min(2 * self._ahead, _MOST) if kept or offset == have else _LEAST
            begin = offset + len(kept)
            self._data = kept + self._fetched(begin, min(self.size, max(end, begin + self._ahead)))
            self._begin = offset
        return self._data[offset - self._begin : end - self._begin]

    def _fetched(self, begin: int, end: int) -> bytes:
        def once() -> bytes:
            data: bytes = self._blob.download_as_bytes(
                start=begin, end=end - 1, if_generation_match=self._generation, checksum=None, retry=None
            )
            if len(data) != end - begin:
                # The connection ended early. The client retries after a ConnectionError.
                raise ConnectionError(f"{len(data)} of the {end - begin} bytes from byte {begin} on came")
            return data

        with _os_errors(self._path):
            found: bytes = _retry()(once)()
            return found


def _parsed(path: str | Path) -> tuple[str, str]:
    match = _NAME.fullmatch(str(path))
    if match is None:
        raise ConfigError(f"{path}: names no bucket; write gs://BUCKET/NAME")
    return match["bucket"], match["object"] or ""


def _expression(pattern: str) -> str:
    """A regular expression for a glob pattern, with the meaning of Python's own ``glob``; paths end in a slash."""
    parts = []
    for part in pattern.split("/"):
        if part == "**":
            parts.append(r"(?:(?!\.)[^/]+/)*")
        else:
            visible = r"(?!\.)" if part[:1] in ("*", "?", "[") else ""
            parts.append(f"{visible}{_component(part)}/")
    return "".join(parts)


def _component(pattern: str) -> str:
    """The regular expression of one path component."""
    found, at = "", 0
    while at < len(pattern):
        end = pattern.find("]", at + 2 + (pattern[at + 1 : at + 2] == "!")) if pattern[at] == "[" else -1
        if end > 0:
            inner = (
                pattern[at + 1 : end].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]").replace("^", r"\^")
            )
            found += f"(?!/)[{'^' + inner[1:] if inner[0] == '!' else inner}]"
            at = end + 1
            continue
        found += {"*": "[^/]*", "?": "[^/]"}.get(pattern[at], re.escape(pattern[at]))
        at += 1
    return found


def _client() -> Any:
    """A storage client for this thread: Beam's or, if Beam is not installed, Google's own."""
    if not hasattr(_THREADS, "client"):
        try:
            from apache_beam.io.filesystems import FileSystems
        except ModuleNotFoundError:
            from google.cloud import storage
            from google.cloud.storage.retry import DEFAULT_RETRY

            # Reading needs no project, and without one the client looks for it.
            _THREADS.client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "none"))
            _THREADS.retry = DEFAULT_RETRY
            return _THREADS.client
        try:
            beam = FileSystems.get_filesystem("gs://")._gcsIO()
        except ValueError:
            raise ConfigError(
                "paths on gs:// need an extra", way_out=install_hint("gcp"), code="missing_package"
            ) from None
        _THREADS.client, _THREADS.retry = beam.client, beam._storage_client_retry
    return _THREADS.client


def _retry() -> Any:
    _client()
    return _THREADS.retry


def _blob(path: str | Path) -> Any:
    bucket, name = _parsed(path)
    return _client().bucket(bucket).blob(name)


def _object(blob: Any) -> Object:
    return Object(f"gs://{blob.bucket.name}/{blob.name}", int(blob.size), int(blob.generation))


@contextmanager
def _checked(blob: Any, crc: bytes) -> Iterator[None]:
    """Removes the object again and raises ObjectError if its checksum is not ``crc``."""
    from google.cloud.storage.exceptions import DataCorruption

    try:
        yield
        arrived = blob.crc32c == base64.b64encode(crc).decode()
    except DataCorruption:
        arrived = False
    if not arrived:
        blob.delete(retry=_retry())
        raise ObjectError(f"gs://{blob.bucket.name}/{blob.name}: what arrived has another checksum than what was sent")


@contextmanager
def _os_errors(path: str | Path) -> Iterator[None]:
    """Raises the service's errors as ObjectError."""
    try:
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from requests import RequestException
    except ImportError:
        raise ConfigError(
            "paths on gs:// need Google's client", way_out="pip install google-cloud-storage", code="missing_package"
        ) from None
    failures = (exceptions.GoogleAPIError, GoogleAuthError, RequestException, ConnectionError, DataCorruption)
    try:
        yield
    except exceptions.NotFound:
        raise MissingObjectError(f"{canonical(path)}: does not exist") from None
    except exceptions.PreconditionFailed:
        raise ReplacedObjectError(f"{canonical(path)}: was replaced, or exists already") from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise ObjectError(f"{canonical(path)}: access denied: {_first_line(error)}") from None
    except (*failures, InvalidResponse) as error:
        raise ObjectError(f"{canonical(path)}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
