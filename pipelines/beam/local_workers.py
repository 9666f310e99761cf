"""Worker processes of Beam's local runner whose death ends the job.

Beam waits for ever for a worker that was killed: nobody answers its requests any more. Here the requests to a dead
process are answered with an error, and the processes beside it end with it.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2, endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
from apache_beam.transforms.environments import Environment
from google.protobuf import json_format, text_format

from gatokit.pipelines.beam.forks import forks

DIED = "a worker process ended"
"""Begins the error of a job that lost a process; its exit status stands behind it."""
_URN = "gatokit:environment:process:v1"
_READERS = ("beam_control_read", "read_grpc_client_inputs")
"""Beam's threads that say in a traceback of their own that a process is gone."""
_GRACE_SECONDS = 5


@Environment.register_urn(_URN, bytes)
class ProcessEnvironment(Environment):
    """Runs a pipeline in processes of this machine, which write what they have to say to the file ``log``."""

    def __init__(
        self,
        log: str,
        capabilities: Iterable[str] = (),
        artifacts: Iterable[Any] = (),
        resource_hints: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(capabilities, artifacts, resource_hints)
        self.log = log

    def to_runner_api_parameter(self, context: Any) -> tuple[str, bytes]:
        """See ``Environment``."""
        return _URN, self.log.encode()

    @staticmethod
    def from_runner_api_parameter(
        payload: bytes, capabilities: Any, artifacts: Any, resource_hints: Any, context: Any
    ) -> "ProcessEnvironment":
        """See ``Environment``."""
        return ProcessEnvironment(payload.decode(), capabilities, artifacts, resource_hints)


@WorkerHandler.register_environment(_URN, bytes)
class _ProcessHandler(GrpcWorkerHandler):
    """A process, and what is done when it ends before it was told to."""

    def __init__(self, log: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._log = Path(log.decode())
        self._together: list[_ProcessHandler] = grpc_server.__dict__.setdefault("gatokit_processes", [])
        self._error = ""
        self._ends = False
        self._push = self.control_conn.push
        self.control_conn.push = self._push_unless_dead

    def start_worker(self) -> None:
        """Starts the process, and sees to its end."""
        control = endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
        environment = {
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(control),
            "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
            "WORKER_ID": self.worker_id,
        }
        self._together.append(self)
        self._process = forks().start(self._log, environment, self._ended)

    def stop_worker(self) -> None:
        """Waits for the process, which was told to end."""
        self._ends = True
        if not self._process.wait(_GRACE_SECONDS):
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Ends the process and the connections to it."""
        self._ends = True
        if not self._error:
            super().close()
            return
        for connection in (self.control_conn, self.data_conn):
            with suppress(Exception):  # each says again that the process is gone
                connection.close()
        self._process.wait()

    def _ended(self, status: int) -> None:
        if not self._ends:
            for handler in list(self._together):
                handler._fail(f"{DIED} with status {status}; {self._log} has its last words")

    def _fail(self, error: str) -> None:
        self._ends, self._error = True, error
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
def without_noise() -> Iterator[None]:
    """Keeps from the terminal what Beam's own threads say about a process that is gone."""
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
