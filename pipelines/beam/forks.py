"""Processes forked by one that has imported what they need, ``forking``, so that none of them imports it again."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_PROGRAM = [sys.executable, "-m", "gatokit.pipelines.beam.forking"]
_MOST_SAID = 1 << 16


class Fork:
    """A forked process, which writes what it has to say to the file ``log``; ``ended`` is called with its exit status,
    of a signal its negative number."""

    def __init__(self, server: "Forks", answers: socket.socket, log: Path, ended: Callable[[int], None]) -> None:
        self._server, self._answers, self._log, self._ended = server, answers, log, ended
        self._lock = threading.Lock()
        self._pid = 0
        self._is_doomed = False
        self._over = threading.Event()
        threading.Thread(target=self._follow, name="gatokit_worker", daemon=True).start()

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        with self._lock:
            self._is_doomed = True
            self._kill()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it has ended, after at most so many seconds."""
        return self._over.wait(seconds)

    def _kill(self) -> None:
        if self._pid and not self._over.is_set():
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def _follow(self) -> None:
        said = b""
        with self._answers, self._answers.makefile("rb") as lines, suppress(ConnectionError):
            pid = int(lines.readline() or 0)
            with self._lock:
                self._pid = pid
                if self._is_doomed:
                    self._kill()
            said = lines.readline()
        # Without an answer the server is gone, and its processes with it.
        status = int(said) if said else self._server.last_words(self._log)
        with self._lock:
            self._over.set()
        self._ended(status)


class Forks:
    """The process that forks."""

    def __init__(self) -> None:
        self._asked = False
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._requests, theirs = socket.socketpair()
        number = theirs.fileno()
        with theirs:
            self._process = subprocess.Popen(
                [*_PROGRAM, str(number)],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
            )

    @property
    def is_alive(self) -> bool:
        """Whether it can still fork."""
        return self._process.poll() is None

    def start(self, log: Path, environment: Mapping[str, str], ended: Callable[[int], None]) -> Fork:
        """Asks for a Beam worker with ``environment`` beside this process's own; it is forked as soon as may be."""
        self._asked = True
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        ours, theirs = socket.socketpair()
        ours.sendall(json.dumps({"log": str(log.absolute()), "environment": dict(environment)}).encode() + b"\n")
        with theirs, suppress(ConnectionError):  # where nobody takes it, nobody answers
            socket.send_fds(self._requests, [b"+"], [theirs.fileno()])
        return Fork(self, ours, log, ended)

    def last_words(self, log: Path) -> int:
        """Its exit status when it has ended; what it said then stands in the file ``log``."""
        status = self._process.wait()
        with suppress(OSError, ValueError), open(log, "ab") as file:
            file.write(os.pread(self._said.fileno(), _MOST_SAID, 0))
        return status

    def close(self) -> None:
        """Ends it and its processes."""
        self._requests.close()
        if not self._asked:
            self._process.kill()
        self._process.wait()
        self._said.close()


class _Shared:
    """What all jobs of this process have in common."""

    lock = threading.Lock()
    users = 0
    forks: Forks | None = None


@contextmanager
def kept(processes: int | None) -> Iterator[None]:
    """One process forks for all jobs inside this block, and has ended after it; it begins now where there are to be
    several ``processes``."""
    with _Shared.lock:
        _Shared.users += 1
    try:
        if processes is not None and processes > 1:
            forks()
        yield
    finally:
        ending = None
        with _Shared.lock:
            _Shared.users -= 1
            if not _Shared.users:
                ending, _Shared.forks = _Shared.forks, None
        if ending is not None:
            ending.close()


def forks() -> Forks:
    """The process that forks; started where none lives."""
    with _Shared.lock:
        if _Shared.forks is None or not _Shared.forks.is_alive:
            _Shared.forks = Forks()
        return _Shared.forks
