"""A lock that is an object: whoever made it holds it. It outlives a process that is killed.

Nobody can tell a dead process of another machine from one that sleeps, and no write to a bucket can be made to depend
on the lock; so only a person removes such a lock. That of a dead process of this machine is taken away.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from gatokit.schemas.errors import DataError
from gatokit.storage import gcs as cloud


@contextmanager
def hold(lock: str) -> Iterator[None]:
    """Holds the directory in which the object ``lock`` is made, and removes the object in the end.

    DataError where a process holds it that is not known to be dead.
    """
    mine = {
        **describe(os.getpid()),
        "token": uuid4().hex,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    generation = None
    while generation is None:
        try:
            generation = cloud.write(lock, json.dumps(mine).encode(), new=True)
        except FileExistsError:
            # It may go away, or become another's, at any time.
            with suppress(FileNotFoundError):
                generation = _own_or_freed(lock, mine)
    try:
        yield
    finally:
        # Whoever took the lock away and holds the directory now keeps it.
        with suppress(FileExistsError):
            cloud.delete(lock, generation)


def describe(process: int) -> dict[str, Any]:
    """What a lock says of a process of this machine: ``machine`` stands for a start of it and those processes that see
    each other, ``started`` counts ticks; both are empty where the system does not say."""
    machine = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return {"host": socket.gethostname(), "process": process, "machine": machine, "started": _state(process)[1]}


def _own_or_freed(lock: str, mine: dict[str, Any]) -> int | None:
    """The generation of a lock that is ours; None of a dead process's, which is there no more. DataError where another
    holds it."""
    directory = lock.rpartition("/")[0]
    way_out = f"wait for it or, where that one is dead, remove its lock: gcloud storage rm {lock}"
    generation = cloud.about(lock).generation
    try:
        held = json.loads(cloud.read(lock))
        who = f"process {held['process']} on {held['host']} since {held['since']}"
        is_dead = _is_dead(held)
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{directory} is in use by another gatokit; {way_out}") from None
    if held == mine:  # an answer that was lost makes the client ask again
        return generation
    if not is_dead:
        raise DataError(f"{directory} is in use by {who}; {way_out}")
    # Of several that see it dead one removes this generation of the lock.
    with suppress(FileExistsError):
        cloud.delete(lock, generation)
    return None


def _is_dead(held: dict[str, Any]) -> bool:
    """Whether a lock's process ran on this machine and runs no more."""
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
    """The state and the start of a process."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
