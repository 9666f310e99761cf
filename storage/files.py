"""Files on a disk or on ``gs://``: reading, listing, and writing that leaves a whole file or none.

Every function takes local paths and names of objects alike. A local file is written under a temporary name in the same
directory, synced and renamed. An object exists as soon as its upload has finished, and not before. What is written or
removed on a disk is a regular file: nothing is written through a link, and no link is removed (``ownership``).
"""

import errno
import fcntl
import glob
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar
from uuid import uuid4

import pyarrow as pa

from gatokit.schemas.errors import ConfigError, DataError
from gatokit.storage import gcs
from gatokit.storage.ownership import check_output

TEMPORARY = ".tmp-"
"""Begins the names of files that are not complete yet."""
TEMPORARY_NAME = re.compile(re.escape(TEMPORARY) + r"[0-9a-f]{32}-.+", re.DOTALL)
"""The whole name of such a file."""
CONNECTIONS = 16
"""Requests to ``gs://`` that are made at a time, since each waits for its answer."""
_WRITERS = 4
"""Local files that are written at a time, since each waits until it is synced."""
_FIRST_PART, _MOST_PART = 256 << 10, 8 << 20
"""Bytes of a partial copy that are fetched at a time."""
_PREFETCHED_BYTES = 64 << 20
"""About as many bytes are read before they are asked for."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/")
_LASTING_ERRORS = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_LASTING_NUMBERS = {errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
_NAMED_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOENT, errno.EACCES)


def is_remote(path: str | Path) -> bool:
    """Whether a path names an object on ``gs://``."""
    return str(path).startswith("gs:/")


def is_utf8(path: str | Path) -> bool:
    """Whether a path can be written as UTF-8; in Python other bytes of it are surrogates."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


Item = TypeVar("Item")
Read = TypeVar("Read")


# --- errors ----------------------------------------------------------------------------------------------------


def may_pass(error: BaseException) -> bool:
    """Whether the same work may succeed when it is tried again, perhaps on another machine: a disk, a network or a
    service failed, and nothing that a person has to mend."""
    return isinstance(error, OSError) and not (isinstance(error, _LASTING_ERRORS) or error.errno in _LASTING_NUMBERS)


def is_failure(error: BaseException) -> bool:
    """Whether a disk or a service failed where a library reads a file, so that the file itself may be sound."""
    return isinstance(error, gcs.ObjectError) or (may_pass(error) and getattr(error, "errno", None) is not None)


def named_error(path: str | Path, message: str) -> OSError:
    """The error of a library that says only in words what the system answered about a file."""
    for number in _NAMED_NUMBERS:
        if os.strerror(number) in message:
            return OSError(number, os.strerror(number), str(path))
    return OSError(f"{path}: {message}")


# --- reading ---------------------------------------------------------------------------------------------------


class Ranges(NamedTuple):
    """A file of ``size`` bytes. ``read_at(offset, length)`` returns fewer bytes if the file ends before."""

    read_at: Callable[[int, int], bytes]
    size: int


@contextmanager
def ranges(path: str | Path) -> Iterator[Ranges]:
    """Opens a file for reads at any offset."""
    if is_remote(path):
        remote = gcs.ObjectFile(path)
        yield Ranges(remote.read_at, remote.size)
        return
    with open(path, "rb", buffering=0) as file:
        number = file.fileno()
        yield Ranges(lambda offset, length: os.pread(number, length, offset), os.fstat(number).st_size)


def stream(path: str | Path) -> io.RawIOBase:
    """Opens a file for unbuffered reading; it can seek."""
    return gcs.ObjectFile(path) if is_remote(path) else io.FileIO(path)


@contextmanager
def arrow_file(path: str | Path) -> Iterator[pa.NativeFile]:
    """Opens a file for Arrow."""
    by_python = is_remote(path) or not is_utf8(path)
    with pa.PythonFile(stream(path), "r") if by_python else pa.OSFile(str(path)) as file:
        yield file


@contextmanager
def local_copy(path: str | Path) -> Iterator[str]:
    """A local path for libraries that open files themselves: the path itself, or that of a temporary copy, or of a
    temporary link if the path is not UTF-8."""
    if not is_remote(path) and is_utf8(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="gatokit-") as directory:
        if is_remote(path):
            copy = os.path.join(directory, Path(path).name)
            gcs.download(path, copy)
        else:
            copy = os.path.join(directory, "link")
            os.symlink(os.path.abspath(path), copy)
        yield copy


class PartialCopy:
    """A local file of an object's size that holds a beginning and an end of its content, and zeros between them.

    For libraries that open files themselves and notice by checksums that something is missing.
    """

    def __init__(self, path: str | Path, local: str) -> None:
        self.path = local
        self._remote = gcs.ObjectFile(path)
        self._begin, self._end = 0, self._remote.size
        with open(local, "wb") as file:
            file.truncate(self._end)

    def extend_end(self) -> bool:
        """Fetches more before the end: 256 KiB, then as much as is there already. False if nothing was missing."""
        return self._fetch(max(self._begin, self._end - max(_FIRST_PART, self._remote.size - self._end)), self._end)

    def extend_beginning(self) -> bool:
        """Fetches more behind the beginning: 256 KiB, then as much as is there already, and at most 8 MiB. False if
        nothing was missing."""
        return self._fetch(self._begin, min(self._end, self._begin + min(max(_FIRST_PART, self._begin), _MOST_PART)))

    def _fetch(self, begin: int, end: int) -> bool:
        if begin == end:
            return False
        with open(self.path, "r+b") as file:
            file.seek(begin)
            file.write(self._remote.fetch(begin, end))
        if begin == self._begin:
            self._begin = end
        else:
            self._end = begin
        return True


@contextmanager
def partial_copy(path: str | Path) -> Iterator[PartialCopy]:
    """A temporary local copy of an object into which parts are fetched."""
    with tempfile.TemporaryDirectory(prefix="gatokit-") as directory:
        yield PartialCopy(path, os.path.join(directory, Path(path).name))


@contextmanager
def local_descriptions(directory: str | Path) -> Iterator[str]:
    """The directory itself, or a temporary local one with copies of its ``.json`` and ``.txt`` files."""
    if not is_remote(directory):
        yield str(directory)
        return
    with tempfile.TemporaryDirectory(prefix="gatokit-") as local:
        for name in sizes(directory):
            if name.endswith((".json", ".txt")):
                gcs.download(f"{gcs.canonical(directory)}/{name}", os.path.join(local, name))
        yield local


def read_bytes(path: str | Path) -> bytes:
    """The content of a file."""
    return gcs.read(path) if is_remote(path) else Path(path).read_bytes()


def read_rows(path: str | Path, without: Callable[[str], bool] | None = None, *, is_mapped: bool = False) -> pa.Table:
    """Reads a table that ``write_rows`` wrote, without the columns of which ``without`` is true.

    With ``is_mapped`` nothing is read of a local file but what is looked at.
    """
    if is_remote(path):
        source = pa.BufferReader(gcs.read(path))
    else:
        source = pa.memory_map(str(path)) if is_mapped else pa.OSFile(str(path))
    with source as file, pa.ipc.open_file(file) as reader:
        if without is None:
            return reader.read_all()
        places = [place for place, name in enumerate(reader.schema.names) if not without(name)]
        options = pa.ipc.IpcReadOptions(included_fields=places)
        with pa.ipc.open_file(file, options=options) as chosen:
            return chosen.read_all()


def prefetch(
    paths: Sequence[Item],
    read: Callable[[Item], Read],
    size: Callable[[Read], int],
    *,
    several: bool | None = None,
) -> Iterator[Read]:
    """Yields ``read(path)`` for each path, or anything else that is read, in order.

    Several are read at a time if ``several`` is set, by default if they are paths on ``gs://``. How many at a time
    follows from the ``size``, in bytes, of the largest result so far.
    """
    if several is None:
        several = any(is_remote(str(path)) for path in paths)
    if not several:
        yield from map(read, paths)
        return
    rest, waiting, largest, most = iter(paths), deque[Future[Read]](), 1, 1
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        try:
            while True:
                waiting.extend(pool.submit(read, path) for path in islice(rest, max(0, most - len(waiting))))
                if not waiting:
                    return
                result = waiting.popleft().result()
                largest = max(largest, size(result))
                most = max(1, min(CONNECTIONS, _PREFETCHED_BYTES // largest))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def file_digest(path: str | Path) -> tuple[int, str]:
    """The size in bytes and the BLAKE2b-256 digest of a file."""
    with local_copy(path) as local, open(local, "rb", buffering=0) as file:
        hash_ = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32))
        return os.fstat(file.fileno()).st_size, hash_.hexdigest()


def version(path: str | Path) -> int:
    """A number that changes when the file changes: its modification time in nanoseconds, or an object's generation.

    It is 0 for a directory of objects, because only a listing of all of them would tell.
    """
    if not is_remote(path):
        return os.stat(path).st_mtime_ns
    try:
        return gcs.about(path).generation
    except FileNotFoundError:
        return 0


# --- listing ---------------------------------------------------------------------------------------------------


def exists(path: str | Path) -> bool:
    """Whether there is a file."""
    if not is_remote(path):
        return Path(path).exists()
    try:
        gcs.about(path)
    except FileNotFoundError:
        return False
    return True


def existing(paths: Iterable[Path]) -> set[Path]:
    """Those of the files that exist. Objects take one listing per directory."""
    paths = list(paths)
    if not any(map(is_remote, paths)):
        return {path for path in paths if path.exists()}
    found = {Path(item.path) for directory in {path.parent for path in paths} for item in gcs.below(directory)}
    return found.intersection(paths)


def names(directory: str | Path) -> list[str]:
    """The names of the files and directories in a directory; empty if there is no directory."""
    if is_remote(directory):
        return sorted({name.partition("/")[0] for name in _names_below(directory)})
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def sizes(directory: str | Path, *, links: bool = True) -> dict[str, int]:
    """The size in bytes of each file in a directory, by name; files in directories below it are left out, and with
    ``links`` unset links too."""
    if is_remote(directory):
        return {name: size for name, size in _names_below(directory).items() if "/" not in name}
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file(follow_symlinks=links)}


def _names_below(directory: str | Path) -> dict[str, int]:
    """The size of each object below a directory, by its path relative to the directory."""
    begin = len(gcs.canonical(directory).rstrip("/")) + 1
    return {item.path[begin:]: item.size for item in gcs.below(directory)}


def states(directory: str | Path) -> dict[str, tuple[int, int]]:
    """Size and generation of each object below a directory, by its path relative to the directory."""
    begin = len(gcs.canonical(directory).rstrip("/")) + 1
    return {item.path[begin:]: (item.size, item.generation) for item in gcs.below(directory)}


def size(path: str | Path) -> int:
    """The size of a file in bytes."""
    return gcs.about(path).size if is_remote(path) else os.stat(path).st_size


def is_file(path: str | Path) -> bool:
    """Whether the path names a file, not a directory."""
    return exists(path) if is_remote(path) else os.path.isfile(path)


def is_directory(path: str | Path) -> bool:
    """Whether the path names a directory; on ``gs://``, whether there are objects below it."""
    return next(gcs.below(path), None) is not None if is_remote(path) else os.path.isdir(path)


def matching(pattern: str) -> list[str]:
    """The files and directories that a glob pattern matches, sorted. ``**`` matches any number of directories.

    Names that begin with a dot are matched only by patterns that begin with one.
    """
    return sorted(gcs.matching(pattern) if is_remote(pattern) else glob.glob(pattern, recursive=True))


# --- writing ---------------------------------------------------------------------------------------------------


def out_directory(out: str | Path, option: str = "--out") -> Path:
    """The directory to write into, which ``option`` gives. Raises ConfigError if it is neither a local path nor one on
    ``gs://``, or not UTF-8, which what writes shards needs."""
    if _SCHEME.match(str(out)) and not is_remote(out):
        raise ConfigError(f"{option} {out}: is neither a local path nor one on gs://; choose another directory")
    if not is_utf8(out):
        name = os.fsencode(str(out))
        raise ConfigError(f"{option} {name!r}: the name is not valid UTF-8; choose another directory")
    return Path(out)


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Writes ``path`` so that it holds either what it held before or all of ``data``. Raises MalformedError if it is no
    regular file."""
    if is_remote(path):
        gcs.write(path, data)
        return
    with _replacing(path) as file:
        file.write(data)


def write_new(path: str | Path, data: bytes | memoryview) -> None:
    """Writes a file that is not there yet. Raises FileExistsError if anything is at ``path``."""
    if is_remote(path):
        gcs.write(path, data, new=True)
        return
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    write_atomically(path, data)


@contextmanager
def _replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A new local file that takes the place of ``path`` when the block ends, and is removed if an error ends it."""
    check_output(path)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        commit(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Around what writes to ``path``. Raises DataError, with the reason, if one of ``errors`` says that it cannot be
    written."""
    try:
        yield
    except errors as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be written: {reason}; mend that and run the same command again") from None


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary local folder that becomes ``path``, which must not exist, at the end; it is removed if an error ends
    the block. What killed processes left of such folders is removed too."""
    _remove_abandoned(path)
    temporary = Path(temporary_beside(path))
    temporary.mkdir()
    number = os.open(temporary, os.O_RDONLY)
    try:
        # The lock says to others that this process lives.
        fcntl.flock(number, fcntl.LOCK_EX)
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(number)


def _remove_abandoned(path: Path) -> None:
    """Removes the temporary folders of ``path`` that no process has locked."""
    for found in path.parent.glob(f"{TEMPORARY}*-{glob.escape(path.name)}"):
        if TEMPORARY_NAME.fullmatch(found.name) and found.name[len(TEMPORARY) + 33 :] == path.name:
            with suppress(OSError):  # it is a link or no folder, or a process holds it
                number = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(found, ignore_errors=True)
                finally:
                    os.close(number)


def write_rows(path: str | Path, rows: pa.Table) -> None:
    """Writes a table that a later stage of the same job reads with ``read_rows``."""

    def write(sink: pa.NativeFile) -> None:
        with pa.ipc.new_file(sink, rows.schema, options=pa.ipc.IpcWriteOptions(unify_dictionaries=True)) as writer:
            writer.write_table(rows)

    if is_remote(path):
        sink = pa.BufferOutputStream()
        write(sink)
        write_atomically(path, memoryview(sink.getvalue()))
        return
    with _replacing(path) as file:
        write(pa.PythonFile(file, "w"))


def append_line(path: str | Path, line: str) -> None:
    """Adds a line to a small file that only one process writes. Surrogates become escapes, as JSON has them."""
    data = line.encode(errors="backslashreplace") + b"\n"
    if is_remote(path):
        before = gcs.read(path) if exists(path) else b""
        gcs.write(path, before + data)
    else:
        with open_appending(path) as file:
            file.write(data)


def open_appending(path: str | Path) -> BinaryIO:
    """Opens a local file, which is made if it is missing, for reading and for writing at its end. A file with several
    names, as in a backup of hard links, becomes a copy first. Raises MalformedError if it is no regular file."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    check_output(path)
    file = os.fdopen(os.open(path, flags, 0o666), "a+b")
    if os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        write_atomically(path, Path(path).read_bytes())
        return open_appending(path)
    return file


def temporary_beside(path: str | Path) -> str:
    """A unique local name: in the directory of ``path`` if that is local, else in the system's temporary directory."""
    path = Path(path)
    directory = Path(tempfile.gettempdir()) if is_remote(path) else path.parent
    directory.mkdir(parents=True, exist_ok=True)
    return str(directory / f"{TEMPORARY}{uuid4().hex}-{path.name}")


def commit(temporary: str | Path, path: str | Path) -> None:
    """Moves a synced local file to its final name, durably. An upload may be repeated; it removes the local file.

    Raises MalformedError if the final name is there and is no regular file.
    """
    if is_remote(path):
        gcs.upload(temporary, path)
        os.unlink(temporary)
        return
    check_output(path)
    os.replace(temporary, path)
    directory = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove(path: str | Path) -> None:
    """Removes a file, if it exists. Raises MalformedError if it is no regular file."""
    if is_remote(path):
        gcs.delete(path)
    else:
        check_output(path)
        Path(path).unlink(missing_ok=True)


def remove_temporaries(directory: Path) -> None:
    """Removes the temporary files that killed processes left in a local directory, which this process alone writes."""
    for name in sizes(directory, links=False):
        if TEMPORARY_NAME.fullmatch(name):
            remove(directory / name)


def remove_tree(directory: str | Path) -> None:
    """Removes a directory with everything below it, if it exists."""
    if is_remote(directory):
        with side_by_side(directory) as submit:
            for item in list(gcs.below(directory)):
                submit(partial(gcs.delete, item.path))
    else:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def side_by_side(directory: str | Path) -> Iterator[Callable[[Callable[[], None]], None]]:
    """A function that starts calls which write below a directory, several at a time.

    All of them have ended when the block ends. The error of one is raised.
    """
    waiting: deque[Future[None]] = deque()
    most = CONNECTIONS if is_remote(directory) else _WRITERS
    with ThreadPoolExecutor(most) as pool:

        def submit(call: Callable[[], None]) -> None:
            if len(waiting) >= 2 * most:
                waiting.popleft().result()
            waiting.append(pool.submit(call))

        yield submit
        for future in waiting:
            future.result()
