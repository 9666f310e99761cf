"""Several processes as one run: how they meet, agree to stop, and name the process that hangs or fails.

Every process runs the same program; the first process alone writes the files of the run and prints.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gatokit.schemas.errors import ConfigError

_KEYS = "gatokit/processes"
_FAILED = "gatokit/failed"
_LOOK_EVERY = 1.0  # seconds


def meet(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes of the run; does nothing if there is one process.

    Without arguments the environment decides: JAX finds the others by itself on Cloud TPU, Slurm and Open MPI.
    Call it before anything uses a device. Raises ConfigError if the arguments do not belong together.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise ConfigError("--coordinator, --processes and --process go together: give all three or none")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ConfigError(f"--process {process} must be in 0 … {processes - 1}, since --processes is {processes}")
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
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"the processes of the run did not meet at {coordinator or 'their first host'}: {reason}"
        ) from None


def is_first() -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0


class StopFlag:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.by is not None


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """A flag that the first SIGTERM or SIGINT sets; the second one ends the process at once.

    Enter it in the main thread.
    """
    flag = StopFlag()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def remember(number: int, frame: FrameType | None) -> None:
        flag.by = signal.Signals(number)
        # The system's own handler also ends a process that is deep in a compilation, where Python sees no signal.
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    for number in before:
        signal.signal(number, remember)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Agreement:
    """Tells all processes at the same step whether any process was asked to stop.

    The flags are combined on the devices, in order with the steps, so no process waits for the answer.
    """

    def __init__(self) -> None:
        mesh = Mesh(np.array(jax.devices()), ("all",))
        self._split = NamedSharding(mesh, PartitionSpec("all"))
        self._any = jax.jit(lambda flags: flags.any(), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(self, flag: bool) -> Any:
        """Whether any process gave a true ``flag`` at this call: an array () or bool, to be read later."""
        if jax.process_count() == 1:
            return flag
        mine = np.full(jax.local_device_count(), flag)
        return self._any(jax.make_array_from_process_local_data(self._split, mine, (jax.device_count(),)))


class Watchdog:
    """Ends this process if the run makes no progress, and names the process at fault; idle if there is one process.

    Each process writes to the coordinator's memory how many steps it has begun and what it is doing. A process that
    makes no progress for ``timeout`` seconds names those that began the fewest steps.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._begun, self._doing, self._since = 0, "starting", time.monotonic()
        self._client: Any = None
        self._over = threading.Event()
        if jax.process_count() > 1:
            from jax._src.distributed import global_state

            self._client = global_state.client
            self._say()
            threading.Thread(target=self._look, name="watch", daemon=True).start()

    def at(self, begun: int, doing: str) -> None:
        """Records progress: ``begun`` steps were begun, and the process is now ``doing`` this."""
        self._begun, self._doing, self._since = begun, doing, time.monotonic()

    def failed(self, sentence: str, status: int) -> None:
        """Tells the other processes why this one ends, and ends it; returns if there is one process."""
        if self._client is not None:
            self._over.set()
            self._client.key_value_set(f"{_FAILED}/{jax.process_index()}", sentence, allow_overwrite=True)
            self._end(sentence, status)

    def lost(self, error: Exception) -> None:
        """Ends this process after a collective failed because another process has ended, with that one's message if it
        left one; returns if there is one process."""
        if self._client is not None:
            time.sleep(10 * _LOOK_EVERY)
            reason = str(error).splitlines()[0]
            self._end(f"another process was lost after step {self._begun} was begun; its own log says why ({reason})")

    def close(self) -> None:
        """The run is over."""
        self._over.set()

    def _say(self) -> None:
        value = json.dumps({"host": socket.gethostname(), "begun": self._begun, "doing": self._doing})
        self._client.key_value_set(f"{_KEYS}/{jax.process_index()}", value, allow_overwrite=True)

    def _look(self) -> None:
        while not self._over.wait(_LOOK_EVERY):
            try:
                self._say()
                failures = self._client.key_value_dir_get(_FAILED)
                if failures and not self._over.is_set():
                    key, sentence = failures[0]
                    self._end(f"process {key.rsplit('/', 1)[1]} ended the run: {sentence}")
                if time.monotonic() - self._since > self._timeout:
                    self._end(self._blame())
            except jax.errors.JaxRuntimeError as error:
                if not self._over.is_set():
                    self._end(f"process 0, which coordinates the run, does not answer: {str(error).splitlines()[0]}")

    def _end(self, sentence: str, status: int = 1) -> NoReturn:
        sys.stderr.write(f"gatokit: {sentence}\n")
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(3 * _LOOK_EVERY)  # the other processes read the message from this one
        # The main thread may wait in a collective that never returns, and JAX's own exit waits for all the others.
        os._exit(status)

    def _blame(self) -> str:
        records = {
            int(key.rsplit("/", 1)[1]): json.loads(value) for key, value in self._client.key_value_dir_get(_KEYS)
        }
        return blame(records, jax.process_count(), self._timeout)


def blame(records: dict[int, dict[str, Any]], processes: int, timeout: float) -> str:
    """The sentence about a run without progress, from the last record of each process."""
    silent = sorted(set(range(processes)) - set(records))
    if silent:
        return f"no step ended for {timeout:g} s: process {', '.join(map(str, silent))} never began"
    least = min(item["begun"] for item in records.values())
    behind = {number: item for number, item in sorted(records.items()) if item["begun"] == least}
    if len(behind) == processes:
        return f"no step ended for {timeout:g} s, and no process is behind: all began {least} steps"
    who = "; ".join(f"process {number} on {item['host']}, {item['doing']}" for number, item in behind.items())
    return f"no step ended for {timeout:g} s; behind the others, with {least} steps begun: {who}"
