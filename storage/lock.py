"""The lock of a directory, so that one build at a time writes it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gatokit.schemas.errors import ConfigError, DataError
from gatokit.storage import gcs
from gatokit.storage.files import is_remote, open_appending

LOCK = ".lock"
"""Name of the lock, in the directory that is held."""
_MOST_BYTES = 1 << 16


@contextmanager
def hold(directory: str | Path) -> Iterator[None]:
    """Holds a directory, which is made if it is missing.

    On a disk the lock is a locked file, which the system frees when its process ends. A file of that name that holds
    what no lock holds is somebody's own, and stays. Raises DataError if another process holds the directory,
    ConfigError if it cannot be written, MalformedError if the lock is a link.
    """
    if is_remote(directory):
        with gcs.hold(f"{gcs.canonical(directory).rstrip('/')}/{LOCK}"):
            yield
        return
    path = Path(directory) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_appending(path)
    except OSError as error:
        raise ConfigError(f"--out {directory}: cannot be written: {error.strerror}; choose another directory") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder may have removed the file after we opened it; then the next holder locks a new one.
            is_held = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            is_held = False
        except OSError as error:
            reason = f"its file system locks no files ({error.strerror})"
            raise ConfigError(
                f"--out {directory}: {reason}; choose another disk, or mount this one with locks"
            ) from None
        if not is_held:
            raise DataError(f"{directory} is in use by another gatokit; wait for it or choose another --out")
        if not is_lock(path):
            raise ConfigError(f"--out {directory}: holds {LOCK}, which no gatokit made; choose another directory")
        try:
            file.truncate(0)
            file.write(json.dumps({"lock": "gatokit", **gcs.describe(os.getpid())}).encode() + b"\n")
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)


def is_lock(path: Path, *, may_be_empty: bool = True) -> bool:
    """Whether a local file is a lock. Those of earlier versions, and those that were just made, are empty."""
    with open(path, "rb") as file:
        data = file.read(_MOST_BYTES)
    try:
        return may_be_empty if not data else json.loads(data)["lock"] == "gatokit"
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
