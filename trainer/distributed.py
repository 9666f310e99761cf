"""Several processes as one run: how they meet, agree to stop, and name the process that hangs or fails.

Every process runs the same program; the first process alone writes the files of the run and prints.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gatokit.schemas.errors import ConfigError, GatokitError, first_line
from gatokit.schemas.words import visible

_KEYS = "gatokit/processes"
_FAILED = "gatokit/failed"
_LOOK_EVERY = 1.0  # seconds


def meet(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes of the run; does nothing if there is one process.

    Without arguments the environment decides: JAX finds the others by itself on Cloud TPU, Slurm and Open MPI.
    Call it before anything uses a device. Raises ConfigError if the processes do not meet.
    """
    if processes == 1:
        return
    # The run has its own way to stop on SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:
        if coordinator is not None or "coordinator_address" not in str(error):
            raise
    except RuntimeError as error:
        if coordinator is None and "before any JAX" in str(error):
            return  # a process that has used its devices alone stays alone
        where, reason = coordinator or "their first host", first_line(error)
        raise ConfigError(f"the processes of the run did not meet at {where}: {reason}") from None


def is_first() -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0


def any_process() -> Callable[[bool], Any]:
    """A function from each process's flag to whether any process gave a true one at the same call: an array () or bool.

    The flags are combined on the devices, in order with the steps, so no process waits for the answer.
    """
    if jax.process_count() == 1:
        return lambda flag: flag
    mesh = Mesh(np.array(jax.devices()), ("all",))
    split, everywhere = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    combine = jax.jit(lambda flags: flags.any(), out_shardings=everywhere)

    def ask(flag: bool) -> Any:
        mine = np.full(jax.local_device_count(), flag)
        return combine(jax.make_array_from_process_local_data(split, mine, (jax.device_count(),)))

    return ask


class Watchdog:
    """Around a run: ends this process if no step ends for ``timeout`` seconds, and tells the other processes why it
    ends. With one process it only turns memory that runs out into a ConfigError.

    Each process writes to the coordinator's memory how many steps it has begun and what it is doing. A process that
    makes no progress names those that began the fewest steps.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._client: Any = None
        self._over = threading.Event()
        self.at(0, "starting")

    def at(self, begun: int, doing: str) -> None:
        """Records progress: ``begun`` steps were begun, and the process is now ``doing`` this."""
        self._begun, self._doing, self._since = begun, doing, time.monotonic()

    def __enter__(self) -> "Watchdog":
        if jax.process_count() > 1:
            from jax._src.distributed import global_state

            self._client = global_state.client
            threading.Thread(target=self._look, name="watch", daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        out_of_memory: ConfigError | None = None
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            error = out_of_memory = ConfigError(
                f"a device is out of memory: {first_line(error)}; raise microbatches or set remat: full; "
                "gatokit train CONFIG --compile-only shows what a step takes"
            )
        if self._client is not None and isinstance(error, jax.errors.JaxRuntimeError):
            # Another process has ended. If it left a message, the watch finds it and ends this process with it.
            time.sleep(10 * _LOOK_EVERY)
            reason = first_line(error)
            self._end(f"another process was lost after step {self._begun} was begun; its own log says why ({reason})")
        self._over.set()
        if self._client is not None and isinstance(error, GatokitError):
            self._client.key_value_set(f"{_FAILED}/{jax.process_index()}", str(error), allow_overwrite=True)
            self._end(str(error), error.exit_status)
        if out_of_memory is not None:
            raise out_of_memory from None

    def _look(self) -> None:
        """Until the run is over: tells the others about this process, and ends it if another failed or hangs."""
        host = socket.gethostname()
        try:
            while not self._over.wait(_LOOK_EVERY):
                record = json.dumps({"host": host, "begun": self._begun, "doing": self._doing})
                self._client.key_value_set(f"{_KEYS}/{jax.process_index()}", record, allow_overwrite=True)
                failures = self._client.key_value_dir_get(_FAILED)
                if failures and not self._over.is_set():
                    key, sentence = failures[0]
                    self._end(f"process {key.rsplit('/', 1)[1]} ended the run: {sentence}")
                if time.monotonic() - self._since > self._timeout:
                    said = self._client.key_value_dir_get(_KEYS)
                    records = {int(key.rsplit("/", 1)[1]): json.loads(value) for key, value in said}
                    self._end(blame(records, jax.process_count(), self._timeout))
        except jax.errors.JaxRuntimeError as error:
            if not self._over.is_set():
                self._end(f"process 0, which coordinates the run, does not answer: {first_line(error)}")

    def _end(self, sentence: str, status: int = 1) -> NoReturn:
        sys.stderr.write(f"gatokit: {visible(sentence)}\n")
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(3 * _LOOK_EVERY)  # the other processes read the message from this one
        # The main thread may wait in a collective that never returns, and JAX's own exit waits for all the others.
        os._exit(status)


def blame(records: dict[int, dict[str, Any]], processes: int, timeout: float) -> str:
    """The sentence about a run without progress, from the last record of each process."""
    problem = f"no step ended for {timeout:g} s"
    silent = sorted(set(range(processes)) - set(records))
    if silent:
        return f"{problem}: process {', '.join(map(str, silent))} never began"
    least = min(item["begun"] for item in records.values())
    behind = {number: item for number, item in sorted(records.items()) if item["begun"] == least}
    if len(behind) == processes:
        return f"{problem}, and no process is behind: all began {least} steps"
    who = "; ".join(f"process {number} on {item['host']}, {item['doing']}" for number, item in behind.items())
    return f"{problem}; behind the others, with {least} steps begun: {who}"
