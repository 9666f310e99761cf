"""Objects on ``gs://``, read and written with the client that Beam sets up (its options, credentials and retries).

Without Beam it is Google's own client with its defaults: that is enough to read the data of a training run.

``pathlib`` writes ``gs:/`` for ``gs://``; both are accepted. An error of the service is raised as an ObjectError: it
is an OSError, like that of a disk, and its message is a sentence for the user that names the object.
"""

import base64
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from gatokit.schemas.errors import ConfigError, DataError, MalformedError, first_line, install_hint
from gatokit.schemas.untrusted import quoted

_NAME = re.compile(r"gs:/{1,2}(?P<bucket>[^/]+)(?:/(?P<object>.*))?", re.DOTALL)
_STRANGE = re.compile(r"[\x00-\x1f\x7f-\x9f]|(?:^|/)\.{1,2}(?:/|$)")
_LEAST, _MOST = 1 << 16, 1 << 23
"""Bytes of a ranged read: few after a jump, and twice as many with each read that goes on."""
_PART_BYTES = 16 << 20
"""A larger upload is sent in parts of this size. A part that fails is sent again."""
_THREADS = threading.local()
OWNER = "GATOKIT_LOCK_OWNER"
"""The environment variable with the name of what starts this command, of which one at a time runs."""


class ObjectError(DataError, OSError):
    """An object could not be read or written."""


class MissingObjectError(ObjectError, FileNotFoundError):
    """There is no such object."""


class DeniedObjectError(ObjectError, PermissionError):
    """The credentials do not allow it."""


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
    """All objects below a directory, in order of name. Names that end in a slash are left out.

    Raises MalformedError if a name has a control character, or a part that is ``.`` or ``..``: such a part is a name
    like any other to the service, and leads to another directory where it is taken for a path.
    """
    bucket, name = _parsed(directory)
    prefix = name if not name or name.endswith("/") else name + "/"
    with _os_errors(directory):
        for blob in _client().list_blobs(bucket, prefix=prefix, retry=_retry()):
            if _STRANGE.search(blob.name):
                raise MalformedError(
                    f"gs://{bucket} holds an object with the name {quoted(blob.name)}, which is no path; rename it"
                )
            if not blob.name.endswith("/"):
                yield _object(blob)


def matching(pattern: str) -> set[str]:
    """The objects that a glob pattern matches, and the directories that hold objects and match."""
    pattern = canonical(pattern)
    fixed = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    wanted = [part for part in pattern[len(fixed) + 1 :].split("/") if part]
    found = set()
    for item in below(fixed if fixed.count("/") > 2 else fixed + "/"):
        parts = item.path[len(fixed) + 1 :].split("/")
        for count in range(len(parts) + 1):
            if matches(parts[:count], wanted):
                found.add("/".join([fixed, *parts[:count]]))
    return found


def matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether the components of a path match those of a pattern, with the meaning of Python's own ``glob``."""
    if not pattern:
        return not parts
    if pattern[0] == "**" and matches(parts, pattern[1:]):
        return True
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern if pattern[0] == "**" else pattern[1:])


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
    with open(local, "rb") as file:
        _send(file, path)


def write(path: str | Path, data: bytes | memoryview, *, new: bool = False) -> int:
    """Writes an object from memory, as ``upload`` does, and returns its generation.

    Raises ReplacedObjectError if ``new`` is set and the object exists already.
    """
    match = {"if_generation_match": 0} if new else {}
    return _send(io.BytesIO(data), path, size=len(data), **match)


def _send(file: BinaryIO, path: str | Path, **options: Any) -> int:
    import google_crc32c
    from google.cloud.storage.exceptions import DataCorruption

    crc = google_crc32c.Checksum()
    for _ in crc.consume(file, 1 << 20):
        pass
    file.seek(0)
    with _os_errors(path):
        blob = _blob(path)
        blob.chunk_size = _PART_BYTES
        try:
            blob.upload_from_file(file, checksum="crc32c", retry=_retry(), **options)
            arrived = blob.crc32c == base64.b64encode(crc.digest()).decode()
        except DataCorruption:
            arrived = False
        if not arrived:
            blob.delete(retry=_retry())
            raise ObjectError(f"{canonical(path)}: what arrived has another checksum than what was sent")
        return int(blob.generation)


def delete(path: str | Path, generation: int | None = None) -> None:
    """Removes an object, or only the given generation of it. A missing object is no error."""
    with suppress(FileNotFoundError), _os_errors(path):
        _blob(path).delete(if_generation_match=generation, retry=_retry())


class ObjectFile(io.RawIOBase):
    """An object as a file for reading, of the generation that it has when this is created."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        found = about(path)
        self.size, self._generation = found.size, found.generation
        with _os_errors(path):
            self._blob = _blob(path)
        self._begin, self._data, self._ahead = 0, b"", _LEAST
        self._at = 0

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def seekable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See ``io.RawIOBase``."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See ``io.RawIOBase``."""
        data = self.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

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
            self._data = kept + self.fetch(begin, min(self.size, max(end, begin + self._ahead)))
            self._begin = offset
        return self._data[offset - self._begin : end - self._begin]

    def fetch(self, begin: int, end: int) -> bytes:
        """The bytes [begin, end), which lie in the object, and nothing ahead; raises as ``read_at`` does."""

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


# --- the lock of a directory -----------------------------------------------------------------------------------


@contextmanager
def hold(lock: str) -> Iterator[None]:
    """Holds the directory of an object that is the lock. Raises DataError if another process holds it.

    Only the creator of the lock may delete it, so it outlives a process that is killed. A later process on the same
    machine removes the lock of a dead process. Nobody can tell whether a process of another machine is dead, and a
    write to a bucket cannot be made conditional on the lock, so such a lock is removed by a person. A service that
    starts a command again only when the last one is gone names itself in ``GATOKIT_LOCK_OWNER``: a process removes the
    lock of its own owner.
    """
    mine = {
        **describe(os.getpid()),
        "owner": os.environ.get(OWNER, ""),
        "token": uuid4().hex,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    generation = None
    while generation is None:
        try:
            generation = write(lock, json.dumps(mine).encode(), new=True)
        except FileExistsError:
            # The lock may disappear, or change its owner, at any time.
            with suppress(FileNotFoundError):
                generation = _check_owner(lock, mine)
    try:
        yield
    finally:
        # Another process that took the lock away, and holds the directory now, keeps it.
        with suppress(FileExistsError):
            delete(lock, generation)


def describe(process: int) -> dict[str, Any]:
    """What a lock says of a process of this machine.

    ``machine`` names the boot of the machine and the process namespace, ``started`` is the start time of the process
    in ticks. Both are empty if the system does not provide them.
    """
    machine = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return {"host": socket.gethostname(), "process": process, "machine": machine, "started": _state(process)[1]}


def _check_owner(lock: str, mine: dict[str, Any]) -> int | None:
    """The generation of the lock if it is ours. Removes the lock of a dead process and returns None.

    Raises DataError if another process holds it.
    """
    directory = lock.rpartition("/")[0]
    way_out = f"wait for it or, where that one is dead, remove its lock: gcloud storage rm {lock}"
    generation = about(lock).generation
    try:
        held = json.loads(read(lock))
        owner = f"process {held['process']} on {held['host']} since {held['since']}"
        is_dead = _is_dead(held) or (bool(mine["owner"]) and held.get("owner") == mine["owner"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{directory} is in use by another gatokit; {way_out}") from None
    if held == mine:  # the answer to our request was lost, and the client asked again
        return generation
    if not is_dead:
        raise DataError(f"{directory} is in use by {owner}; {way_out}")
    # Several processes may see that the owner is dead; only one of them removes this generation of the lock.
    with suppress(FileExistsError):
        delete(lock, generation)
    return None


def _is_dead(held: dict[str, Any]) -> bool:
    """Whether the owner of a lock ran on this machine and has ended."""
    now = describe(int(held["process"]))
    if not held["machine"] or held["machine"] != now["machine"]:
        return False
    try:
        os.kill(held["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    state, started = _state(held["process"])
    return state in ("Z", "X") or (bool(started) and started != held["started"])


def _state(process: int) -> tuple[str, str]:
    """The state of a process and its start time; empty if the system does not provide them."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


# --- the client ------------------------------------------------------------------------------------------------


def _parsed(path: str | Path) -> tuple[str, str]:
    match = _NAME.fullmatch(str(path))
    if match is None:
        raise ConfigError(f"{path}: names no bucket; write gs://BUCKET/NAME")
    return match["bucket"], match["object"] or ""


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
        raise DeniedObjectError(f"{canonical(path)}: access denied: {first_line(error)}") from None
    except (*failures, InvalidResponse) as error:
        raise ObjectError(f"{canonical(path)}: {first_line(error)}") from None
