"""Files that appear whole or not at all, on a local or mounted disk or on ``gs://``.

Every function takes local paths and names of objects alike. On a disk a file is written beside its place, synced and
renamed; of an object the finished upload is the commit.
"""

import ctypes
import fcntl
import glob
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa

from gatokit.schemas.errors import ConfigError, DataError
from gatokit.storage import gcs as cloud
from gatokit.storage import object_lock
from gatokit.storage.gcs import CONNECTIONS, is_remote

TEMPORARY = ".tmp-"
LOCK = ".lock"
_WRITERS = 4
"""Files that are written side by side on a disk, where each waits to be synced."""
_M_MMAP_THRESHOLD = -3
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/")


class Ranges(NamedTuple):
    """A file of ``size`` bytes; ``read_at`` takes an offset and a length and gives fewer bytes where it ends before."""

    read_at: Callable[[int, int], bytes]
    size: int


# --- reading ---------------------------------------------------------------------------------------------------


@contextmanager
def ranges(path: str | Path) -> Iterator[Ranges]:
    """Reads of a file at any offset."""
    if is_remote(path):
        remote = cloud.Ranges(path)
        yield Ranges(remote.read_at, remote.size)
        return
    with open(path, "rb", buffering=0) as file:
        number = file.fileno()
        yield Ranges(lambda offset, length: os.pread(number, length, offset), os.fstat(number).st_size)


def stream(path: str | Path) -> io.RawIOBase:
    """A file to be read from its beginning or anywhere, unbuffered."""
    return _ObjectFile(path) if is_remote(path) else io.FileIO(path)


@contextmanager
def arrow_file(path: str | Path) -> Iterator[pa.NativeFile]:
    """A file as Arrow reads it."""
    with pa.PythonFile(stream(path), "r") if is_remote(path) else pa.OSFile(str(path)) as file:
        yield file


@contextmanager
def local_copy(path: str | Path) -> Iterator[str]:
    """The path itself, or that of a copy on this machine, for libraries that open files themselves."""
    if not is_remote(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="gatokit-") as directory:
        copy = os.path.join(directory, Path(path).name)
        cloud.download(path, copy)
        yield copy


def read_bytes(path: str | Path) -> bytes:
    """All of a file."""
    return cloud.read(path) if is_remote(path) else Path(path).read_bytes()


def read_rows(path: str | Path) -> pa.Table:
    """Reads what ``write_rows`` wrote."""
    source = pa.BufferReader(cloud.read(path)) if is_remote(path) else pa.OSFile(str(path))
    with source as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()


def file_digest(path: str | Path) -> tuple[int, str]:
    """Size in bytes and BLAKE2b-256 digest of a file."""
    with local_copy(path) as local, open(local, "rb", buffering=0) as file:
        hash_ = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32))
        return os.fstat(file.fileno()).st_size, hash_.hexdigest()


@contextmanager
def local_descriptions(directory: str | Path) -> Iterator[str]:
    """The directory itself, or one on this machine with copies of its ``.json`` and ``.txt`` files."""
    if not is_remote(directory):
        yield str(directory)
        return
    with tempfile.TemporaryDirectory(prefix="gatokit-") as local:
        for name in sizes(directory):
            if name.endswith((".json", ".txt")):
                cloud.download(f"{cloud.canonical(directory)}/{name}", os.path.join(local, name))
        yield local


def version(path: str | Path) -> int:
    """A number that changes when the file does: its modification time in nanoseconds, or an object's generation; 0 of
    a directory of objects, for only listing all of them would tell."""
    if not is_remote(path):
        return os.stat(path).st_mtime_ns
    try:
        return cloud.about(path).generation
    except FileNotFoundError:
        return 0


# --- what is there ---------------------------------------------------------------------------------------------


def exists(path: str | Path) -> bool:
    """Whether there is a file."""
    if not is_remote(path):
        return Path(path).exists()
    try:
        cloud.about(path)
    except FileNotFoundError:
        return False
    return True


def existing(paths: Iterable[Path]) -> set[Path]:
    """Those files that are there; of objects with one listing a directory."""
    paths = list(paths)
    if not any(map(is_remote, paths)):
        return {path for path in paths if path.exists()}
    found = {Path(item.path) for directory in {path.parent for path in paths} for item in cloud.below(directory)}
    return found.intersection(paths)


def names(directory: str | Path) -> list[str]:
    """Names of the files and directories in a directory; none where there is no directory."""
    if is_remote(directory):
        begin = len(cloud.canonical(directory).rstrip("/")) + 1
        return sorted({item.path[begin:].partition("/")[0] for item in cloud.below(directory)})
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def sizes(directory: str | Path) -> dict[str, int]:
    """Bytes of each file that stands in a directory itself, by name."""
    if is_remote(directory):
        begin = len(cloud.canonical(directory).rstrip("/")) + 1
        return {item.path[begin:]: item.size for item in cloud.below(directory) if "/" not in item.path[begin:]}
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def size(path: str | Path) -> int:
    """Bytes of a file."""
    return cloud.about(path).size if is_remote(path) else os.stat(path).st_size


def is_file(path: str | Path) -> bool:
    """Whether there is a file and no directory."""
    return exists(path) if is_remote(path) else os.path.isfile(path)


def is_directory(path: str | Path) -> bool:
    """Whether there is a directory; of objects, whether there are any below."""
    return next(cloud.below(path), None) is not None if is_remote(path) else os.path.isdir(path)


def matching(pattern: str) -> list[str]:
    """Files and directories that a glob pattern matches, in order; ``**`` stands for any directories. Names that begin
    with a dot are matched by patterns that do."""
    return sorted(cloud.matching(pattern) if is_remote(pattern) else glob.glob(pattern, recursive=True))


# --- writing ---------------------------------------------------------------------------------------------------


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Writes ``path`` so that it is either what it was or all of ``data``."""
    if is_remote(path):
        cloud.write(path, data)
        return
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        commit(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_rows(path: str | Path, rows: pa.Table) -> None:
    """Writes a table for our own use between the stages of a job."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema, options=pa.ipc.IpcWriteOptions(unify_dictionaries=True)) as writer:
        writer.write_table(rows)
    write_atomically(path, memoryview(sink.getvalue()))


def return_large_blocks() -> None:
    """From now on this process gives large blocks of memory back to the system when they are freed.

    glibc otherwise comes to keep blocks of up to 32 MiB for every thread that it has seen. Nothing happens with
    another C library.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def temporary_beside(path: str | Path) -> str:
    """A name on this machine that nobody else uses, in the directory of ``path`` where that is local."""
    path = Path(path)
    directory = Path(tempfile.gettempdir()) if is_remote(path) else path.parent
    directory.mkdir(parents=True, exist_ok=True)
    return str(directory / f"{TEMPORARY}{uuid4().hex}-{path.name}")


def commit(temporary: str | Path, path: str | Path) -> None:
    """Gives a synced file its final name, durably; an upload may be repeated, and leaves no file here."""
    if is_remote(path):
        cloud.upload(temporary, path)
        os.unlink(temporary)
        return
    os.replace(temporary, path)
    directory = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove(path: str | Path) -> None:
    """Removes a file; one that is not there is no error."""
    if is_remote(path):
        cloud.delete(path)
    else:
        Path(path).unlink(missing_ok=True)


def remove_tree(directory: str | Path) -> None:
    """Removes a directory with everything below it, where there is one."""
    if is_remote(directory):
        with side_by_side(directory) as do:
            for item in list(cloud.below(directory)):
                do(partial(cloud.delete, item.path))
    else:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def side_by_side(directory: str | Path) -> Iterator[Callable[[Callable[[], None]], None]]:
    """A function that does pieces of work below a directory, several at a time, for each waits for the disk or for an
    answer; all are done in the end, or the error of one is raised."""
    waiting: deque[Future[None]] = deque()
    most = CONNECTIONS if is_remote(directory) else _WRITERS

    def begin(work: Callable[[], None]) -> None:
        if len(waiting) >= 2 * most:
            waiting.popleft().result()
        waiting.append(others.submit(work))

    with ThreadPoolExecutor(most) as others:
        yield begin
        for work in waiting:
            work.result()


def append_line(path: str | Path, line: str) -> None:
    """Adds a line to a small file that one process writes."""
    if is_remote(path):
        before = cloud.read(path) if exists(path) else b""
        cloud.write(path, before + line.encode() + b"\n")
    else:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def out_directory(out: str | Path) -> Path:
    """The directory to write into; ConfigError where it is neither a local path nor one on ``gs://``."""
    if _SCHEME.match(str(out)) and not is_remote(out):
        raise ConfigError(f"--out {out}: is neither a local path nor one on gs://; choose another directory")
    return Path(out)


@contextmanager
def hold(directory: str | Path) -> Iterator[None]:
    """Holds a directory for one build. A lock on a disk ends with the process, however it ends; an object stays where
    its process was killed, until a process of the same machine sees that or a person removes it.

    DataError where another process holds it.
    """
    if is_remote(directory):
        with object_lock.hold(f"{cloud.canonical(directory).rstrip('/')}/{LOCK}"):
            yield
        return
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        file = open(Path(directory) / LOCK, "a")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"--out {directory}: cannot be written: {error.strerror}; choose another directory") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A build that ended in between took its lock file away, and the next one holds another.
            is_held = os.path.samestat(os.fstat(file.fileno()), os.stat(Path(directory) / LOCK))
        except OSError:
            is_held = False
        if not is_held:
            raise DataError(f"{directory} is in use by another gatokit; wait for it or choose another --out")
        try:
            yield
        finally:
            Path(directory, LOCK).unlink(missing_ok=True)


class _ObjectFile(io.RawIOBase):
    """An object as a file that is read."""

    def __init__(self, path: str | Path) -> None:
        self._ranges = cloud.Ranges(path)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ranges.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._ranges.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
