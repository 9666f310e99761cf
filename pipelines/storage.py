"""Files that appear whole or not at all, on a local or mounted disk."""

import ctypes
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from gatokit.schemas.errors import ConfigError, DataError

TEMPORARY = ".tmp-"
LOCK = ".lock"
_M_MMAP_THRESHOLD = -3


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Writes, syncs and renames, so that ``path`` is either what it was or all of ``data``."""
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        commit(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_rows(path: str | Path, rows: pa.Table) -> None:
    """Writes a table for our own use between the stages of a job."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema, options=pa.ipc.IpcWriteOptions(unify_dictionaries=True)) as writer:
        writer.write_table(rows)
    write_atomically(path, memoryview(sink.getvalue()))


def read_rows(path: str | Path) -> pa.Table:
    """Reads what ``write_rows`` wrote."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()


def return_large_blocks() -> None:
    """From now on this process gives large blocks of memory back to the system when they are freed.

    glibc otherwise comes to keep blocks of up to 32 MiB for every thread that it has seen. Nothing happens with
    another C library.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def temporary_beside(path: str | Path) -> str:
    """A name in the directory of ``path`` that nobody else uses."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path.parent / f"{TEMPORARY}{uuid4().hex}-{path.name}")


def commit(temporary: str | Path, path: str | Path) -> None:
    """Renames a synced file to its final name and syncs the directory."""
    os.replace(temporary, path)
    directory = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def file_digest(path: str | Path) -> tuple[int, str]:
    """Size in bytes and BLAKE2b-256 digest of a file."""
    with open(path, "rb", buffering=0) as file:
        hash_ = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32))
        return os.fstat(file.fileno()).st_size, hash_.hexdigest()


def local_directory(out: str | Path) -> Path:
    """The directory to write into; ConfigError where it is no local path."""
    # Of a Path the second slash is gone already.
    if re.match(r"[A-Za-z][A-Za-z0-9+.\-]+:/", str(out)):
        raise ConfigError(f"--out {out}: no local path; build into a local or mounted directory")
    return Path(out)


@contextmanager
def hold(directory: str | Path) -> Iterator[None]:
    """Holds a directory for one build; the lock ends with the process, however it ends.

    DataError where another process holds it.
    """
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
        yield
        Path(directory, LOCK).unlink(missing_ok=True)
