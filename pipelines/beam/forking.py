"""The process that starts workers of Beam's local runner: it imports once what they need, and forks one a request.

It has one thread and no connection to Beam, for a fork would lose both. Over the socket that the first argument numbers
comes, with a byte, a socket for each worker: on that a line of JSON, ``log`` and ``environment``, and back go lines
with the worker's process id and, when it has ended, its exit status. This process ends, and its workers with it, when
the other end of its socket is closed.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any

from apache_beam.runners.worker import sdk_worker_main

import gatokit.pipelines.beam.jobs  # noqa: F401

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves until the other end is closed."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    workers: dict[int, socket.socket] = {}

    def reap(*_: object) -> None:
        while workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with workers.pop(pid) as answers, suppress(OSError):
                answers.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))

    signal.signal(signal.SIGCHLD, reap)
    # Ctrl-C reaches every process of a terminal, and who asked for the workers ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what is there already is shared, as long as no worker's collector marks it
    own = os.getpid()
    while True:
        byte, numbers, *_ = socket.recv_fds(requests, 1, 1)
        if not byte:
            break
        answers = socket.socket(fileno=numbers[0])
        with answers.makefile("rb") as lines:
            request = json.loads(lines.readline())
        # Whoever ends at once is known before it is reaped.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if not pid:
            for inherited in (requests, answers, *workers.values()):
                inherited.close()
            _work(request, own)
        workers[pid] = answers
        with suppress(OSError):
            answers.sendall(b"%d\n" % pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    for pid in workers:
        os.waitpid(pid, 0)


def _work(request: dict[str, Any], parent: int) -> None:
    """What a forked process does."""
    status = 1
    try:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ.update(request["environment"])
        sdk_worker_main.main(sys.argv)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
