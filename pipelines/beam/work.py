"""The pieces of work of a job: functions of plain arguments, which any scheduler may call on any machine.

The result of a piece is a file, and a repeated call writes the same file again. A piece that fails for a reason that
the user can mend writes the reason to a file below ``work``, the working directory of the job: Beam would wrap it in
its own traceback. This module does not import Beam.
"""

import ctypes
import errno
import functools
import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gatokit.pipelines.beam import crash_isolation
from gatokit.pipelines.inputs import load_vocabulary
from gatokit.pipelines.planning import ShardTask, unit_from_json
from gatokit.pipelines.shards.writer import build_shard
from gatokit.schemas.errors import GatokitError
from gatokit.schemas.manifest import digest
from gatokit.storage import files
from gatokit.tokenizers.text import TextTokenizer

ERRORS = "errors"
"""Folder in ``work`` with the reasons of pieces that failed."""
ATTEMPTS = "attempts"
"""Folder in ``work`` with a marker for each piece that is being worked on."""
FULL = "the disk is full; make room and run the build again: finished shards stay"
_M_MMAP_THRESHOLD = -3

Counts = dict[str, int]
"""What a piece did: ``scanned`` rows; of a build ``episodes`` or ``documents``, those ``kept``, ``tokens``, ``shards``
and their ``bytes``. Empty if it failed."""


def scan(piece: tuple[str, str, int, int], directory: str, work: str) -> Counts:
    """Scans a unit and writes its rows to a file in ``directory``.

    ``piece`` is the unit's fingerprint, which names that file, and the path, offset and length of its JSON. A job of
    thousands of units would be too large for Dataflow with the units themselves.
    """
    fingerprint, path, offset, length = piece
    result = Path(directory) / f"{fingerprint}.arrow"

    def attempt(died: bool) -> Counts:
        with files.ranges(path) as file:
            unit = unit_from_json(file.read_at(offset, length))
        if died:
            return {"scanned": crash_isolation.scan(unit, result)}
        rows = unit.scan()
        files.write_rows(result, rows)
        return {"scanned": rows.num_rows}

    return _do(attempt, work, fingerprint)


def build(piece: tuple[str, str], vocabulary: str, work: str) -> Counts:
    """Builds a shard. ``piece`` is the path of its task and the directory of its dataset.

    Reading, tokenizing and writing stay together, so that no image and no token passes through a scheduler.
    """
    path, directory = piece

    def attempt(died: bool) -> Counts:
        if died:
            built = crash_isolation.build(path, directory, vocabulary)
        else:
            built = build_shard(ShardTask.read(path), directory, vocabulary_at(vocabulary))
        return {
            built.kind: built.rows,
            "kept": built.kept,
            "tokens": built.tokens,
            "shards": built.shards,
            "bytes": built.bytes,
        }

    return _do(attempt, work, path)


@functools.lru_cache(maxsize=1)
def vocabulary_at(path: str) -> TextTokenizer:
    """The vocabulary, which all pieces of a process share."""
    return load_vocabulary(path)


def return_large_blocks() -> None:
    """From now on this process returns large blocks of memory to the system when they are freed.

    glibc would keep freed blocks of up to 32 MiB for every thread. With another C library nothing happens.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _do(attempt: Callable[[bool], Counts], work: str, name: str) -> Counts:
    """Calls ``attempt`` with True if an earlier attempt at the piece ``name`` died."""
    key = digest(name.encode(), 8)
    try:
        # The collector need not look again and again at what exists already: modules, features and columns.
        gc.freeze()
        with marked(Path(work) / ATTEMPTS / key) as died:
            return attempt(died)
    except (GatokitError, OSError) as error:
        files.write_atomically(Path(work) / ERRORS / f"{key}.json", json.dumps({"message": sentence(error)}).encode())
        return {}
    finally:
        gc.unfreeze()


@contextmanager
def marked(marker: Path) -> Iterator[bool]:
    """A marker file exists while the block runs. Yields whether it existed before.

    Then an attempt died, was killed or still runs elsewhere. In each case an isolated process gives the same result.
    """
    died = files.exists(marker)
    files.write_atomically(marker, b"")
    try:
        yield died
    finally:
        files.remove(marker)


def sentence(error: Exception) -> str:
    """The message of an error for the user who can mend its reason."""
    message = str(error) if isinstance(error, GatokitError) else f"{type(error).__name__}: {error}"
    return f"{FULL} ({message})" if is_full(message) else message


def is_full(message: str) -> bool:
    """Whether a message says that a disk is full."""
    return any(os.strerror(number) in message for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
