"""One build at a time holds a directory.

On a disk the lock is a locked file, which the system frees when its process ends, however it ends. On ``gs://`` it is
an object that only its creator may delete: it outlives a process that is killed. A later process on the same machine
removes the lock of a dead process. Nobody can tell whether a process of another machine is dead, and a write to a
bucket cannot be made conditional on the lock, so such a lock is removed by a person.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from gatokit.schemas.errors import ConfigError, DataError
from gatokit.storage import gcs
from gatokit.storage.files import is_remote

LOCK = ".lock"
"""Name of the lock, in the directory that is held."""


@contextmanager
def hold(directory: str | Path) -> Iterator[None]:
    """Holds a directory, which is made if it is missing.

    Raises DataError if another process holds it, ConfigError if it cannot be written.
    """
    if is_remote(directory):
        with _hold_object(f"{gcs.canonical(directory).rstrip('/')}/{LOCK}"):
            yield
        return
    path = Path(directory) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"--out {directory}: cannot be written: {error.strerror}; choose another directory") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder may have removed the file after we opened it; then the next holder locks a new one.
            is_held = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except OSError:
            is_held = False
        if not is_held:
            raise DataError(f"{directory} is in use by another gatokit; wait for it or choose another --out")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _hold_object(lock: str) -> Iterator[None]:
    mine = {
        **describe(os.getpid()),
        "token": uuid4().hex,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    generation = None
    while generation is None:
        try:
            generation = gcs.write(lock, json.dumps(mine).encode(), new=True)
        except FileExistsError:
            # The lock may disappear, or change its owner, at any time.
            with suppress(FileNotFoundError):
                generation = _check_owner(lock, mine)
    try:
        yield
    finally:
        # Another process that took the lock away, and holds the directory now, keeps it.
        with suppress(FileExistsError):
            gcs.delete(lock, generation)


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
    generation = gcs.about(lock).generation
    try:
        held = json.loads(gcs.read(lock))
        owner = f"process {held['process']} on {held['host']} since {held['since']}"
        is_dead = _is_dead(held)
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{directory} is in use by another gatokit; {way_out}") from None
    if held == mine:  # the answer to our request was lost, and the client asked again
        return generation
    if not is_dead:
        raise DataError(f"{directory} is in use by {owner}; {way_out}")
    # Several processes may see that the owner is dead; only one of them removes this generation of the lock.
    with suppress(FileExistsError):
        gcs.delete(lock, generation)
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
