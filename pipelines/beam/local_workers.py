"""Worker processes of this machine, forked by a server that has imported what they need.

Beam's local runner waits for ever for a worker that was killed. Here the death of one ends the others and the job.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_GRACE_SECONDS = 5
_UNKNOWN_STATUS = 255
"""What multiprocessing reports of a process whose server is gone."""
_SERVER_SECONDS = 1
_PR_SET_PDEATHSIG = 1
_CONTEXT = multiprocessing.get_context("forkserver")


class WorkerDiedError(Exception):
    """A worker process ended before its work did."""


def prepare_workers() -> None:
    """Starts the server that forks workers, so that it imports their modules while this process does other work."""
    _CONTEXT.set_forkserver_preload(["gatokit.pipelines.beam.jobs"])
    forkserver.ensure_running()


def run(
    call: Callable[[Any], dict[str, int]],
    pieces: Sequence[object],
    workers: int,
    log: Path,
    poll: Callable[[], None],
    poll_seconds: float,
) -> dict[str, int]:
    """Calls a function with each piece in ``workers`` processes, whose output goes to the file ``log``.

    Returns the sums of what the calls count. ``poll`` is called at least every ``poll_seconds``. Raises
    WorkerDiedError if a process dies, and RuntimeError with the traceback if a call raises.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    waiting, counts = deque(pieces), Counter[str]()
    processes: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(min(workers, len(waiting))):
            here, there = _CONTEXT.Pipe()
            process = _CONTEXT.Process(
                target=_work, args=(there, call, str(log.absolute()), dict(os.environ)), daemon=True
            )
            try:
                with _hidden_main():
                    process.start()
            except (EOFError, OSError):
                raise _died(_UNKNOWN_STATUS, log) from None
            there.close()
            processes[here] = process
        for connection in processes:
            _send(connection, waiting.popleft())
        while processes:
            ready = wait(list(processes), poll_seconds)
            for connection in [connection for connection in processes if connection in ready]:
                try:
                    result = connection.recv()
                except (EOFError, OSError):
                    processes[connection].join()
                    status = processes[connection].exitcode
                    if status == _UNKNOWN_STATUS:
                        time.sleep(_SERVER_SECONDS)  # else multiprocessing takes the dying server for a living one
                    raise _died(status, log) from None
                if isinstance(result, str):
                    raise RuntimeError(result)
                counts.update(result)
                if waiting:
                    _send(connection, waiting.popleft())
                else:
                    connection.close()
                    processes.pop(connection).join(_GRACE_SECONDS)
            poll()
    finally:
        for left in processes.values():
            left.kill()
            left.join()
    return dict(counts)


def _send(connection: Connection, piece: object) -> None:
    with suppress(OSError):  # the worker is dead, which its next answer says
        connection.send(piece)


def _died(status: int | None, log: Path) -> WorkerDiedError:
    return WorkerDiedError(f"a worker process ended with status {status}; {log} has its last words")


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Hides the caller's program from multiprocessing, which would otherwise run it again in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_with_parent() -> None:
    """Ends this process, even in the middle of a piece, when the process that started the job is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(connection: Connection, call: Callable[[Any], dict[str, int]], log: str, environment: dict[str, str]) -> None:
    """Does pieces in a forked process until the connection is closed. The process dies with the server."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C reaches every process of a terminal; the process that started the job ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.update(environment)  # the server may be older than a variable
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError):
        while True:
            piece = connection.recv()
            try:
                connection.send(call(piece))
            except Exception:
                connection.send(traceback.format_exc())
