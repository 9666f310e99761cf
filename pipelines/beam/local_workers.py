"""Worker processes of Beam's local runner: forked by a server that has imported what they need, and watched.

Beam waits for ever for a worker that was killed, because no process answers its requests any more. Here the requests
to a dead process are answered with an error, and the processes beside it end with it.

Private names of Beam that this module uses: ``GrpcWorkerHandler``, ``WorkerHandler`` and ``control_conn``'s
``push`` and ``_futures_by_id``.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2, endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.transforms.environments import Environment
from google.protobuf import json_format, text_format

from gatokit.storage.files import open_appending

DIED = "a worker process ended"
"""The error of a job that lost a process begins with these words; the exit status follows."""
_URN = "gatokit:environment:process:v1"
_READERS = ("beam_control_read", "read_grpc_client_inputs")
"""Threads of Beam that print a traceback of their own when a process is gone."""
_GRACE_SECONDS = 5
_UNKNOWN_STATUS = 255
"""What multiprocessing reports of a process whose server is gone."""
_PR_SET_PDEATHSIG = 1
_CONTEXT = multiprocessing.get_context("forkserver")
_START_LOCK = threading.Lock()


def prepare_workers() -> None:
    """Starts the server that forks workers, so that it imports their modules while this process does other work."""
    _CONTEXT.set_forkserver_preload(["gatokit.pipelines.beam.jobs"])
    forkserver.ensure_running()


@Environment.register_urn(_URN, bytes)
class ProcessEnvironment(Environment):
    """Runs a pipeline in processes of this machine, whose output goes to the file ``log``."""

    def __init__(self, log: str) -> None:
        super().__init__()
        self.log = log

    def to_runner_api_parameter(self, context: Any) -> tuple[str, bytes]:
        """See ``Environment``."""
        return _URN, self.log.encode()

    @staticmethod
    def from_runner_api_parameter(
        payload: bytes, capabilities: Any, artifacts: Any, resource_hints: Any, context: Any
    ) -> "ProcessEnvironment":
        """See ``Environment``."""
        return ProcessEnvironment(payload.decode())


@WorkerHandler.register_environment(_URN, bytes)
class _ProcessHandler(GrpcWorkerHandler):
    """One worker process, and what happens when it ends before it is told to."""

    def __init__(self, log: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._log = Path(log.decode())
        self._handlers: list[_ProcessHandler] = grpc_server.__dict__.setdefault("gatokit_processes", [])
        self._error = ""
        self._ends = False
        self._over = threading.Event()
        self._push = self.control_conn.push
        self.control_conn.push = self._push_unless_dead

    def start_worker(self) -> None:
        """Starts the process and a thread that waits for its end."""
        control = endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
        environment = {
            **os.environ,
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(control),
            "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
            "WORKER_ID": self.worker_id,
        }
        open_appending(self._log).close()
        self._process = _CONTEXT.Process(target=_work, args=(str(self._log.absolute()), environment), daemon=True)
        try:
            with _START_LOCK, _hidden_main():
                self._process.start()
        except (EOFError, OSError):  # the server is gone
            self._over.set()
            self._error = self._death(_UNKNOWN_STATUS)
            raise RuntimeError(self._error) from None
        self._handlers.append(self)
        threading.Thread(target=self._watch, name="gatokit_worker", daemon=True).start()

    def stop_worker(self) -> None:
        """Waits for the process, which was told to end."""
        self._ends = True
        if not self._over.wait(_GRACE_SECONDS):
            self._process.kill()
            self._over.wait()

    def close(self) -> None:
        """Ends the process and the connections to it."""
        self._ends = True
        if not self._error:
            super().close()
            return
        for connection in (self.control_conn, self.data_conn):
            with suppress(Exception):  # each says again that the process is gone
                connection.close()
        self._over.wait()

    def _watch(self) -> None:
        # Only this thread asks for the exit status: the server tells it once.
        self._process.join()
        self._over.set()
        if not self._ends:
            for handler in list(self._handlers):
                handler._fail(self._death(self._process.exitcode))

    def _death(self, status: int | None) -> str:
        return f"{DIED} with status {status}; {self._log} has its last words"

    def _fail(self, error: str) -> None:
        self._ends, self._error = True, error
        if not self._over.is_set():
            self._process.kill()
        for id_ in list(self.control_conn._futures_by_id):
            self._answer(id_)

    def _push_unless_dead(self, request: Any) -> Any:
        future = self._push(request)
        if self._error and future is not None:
            self._answer(request.instruction_id)
        return future

    def _answer(self, id_: str) -> None:
        future = self.control_conn._futures_by_id.pop(id_, None)
        if future is not None:
            future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=id_, error=self._error))


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Hides the caller's program from multiprocessing, which would otherwise run it again in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(log: str, environment: Mapping[str, str]) -> None:
    """Runs a Beam worker in a forked process, which dies with the server."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C reaches every process of a terminal; the process that started the job ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open_appending(log) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(environment)
    status = 1
    try:
        sdk_worker_main.main(["worker"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)  # Beam's threads would keep the process


@contextmanager
def without_noise() -> Iterator[None]:
    """Keeps from the terminal what Beam's own threads print about a process that is gone."""
    before = threading.excepthook
    logger = logging.getLogger("apache_beam.runners.worker.data_plane")
    level = logger.level

    def hook(arguments: Any) -> None:
        if arguments.thread is None or not arguments.thread.name.startswith(_READERS):
            before(arguments)

    threading.excepthook = hook
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        threading.excepthook = before
        logger.setLevel(level)
