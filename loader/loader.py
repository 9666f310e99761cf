"""Batches of windows made ahead of the trainer, carried by Grain.

The state of the input is the number of steps done: what Grain remembers is never saved.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import grain
import numpy as np

from gatokit.loader.batch import Batch
from gatokit.loader.windows import Windows
from gatokit.schemas.run import InputConfig

_READY = 4
"""Batches that are kept ready."""
_THREADS = 2
"""Threads that assemble batches if there are no worker processes."""


class _Batches:
    """Grain's source: element k is the part of step k's batch that one process trains on."""

    def __init__(self, windows: Windows, rows: range, last: int) -> None:
        self._windows, self._rows, self._last = windows, rows, last

    def __len__(self) -> int:
        return self._last

    def __getitem__(self, step: int) -> Batch:
        return self._windows.batch(step, self._rows)

    def __repr__(self) -> str:
        return "Batches"


class Loader:
    """The batches of steps ``first`` to ``last`` - 1 in order, ``_READY`` of them made ahead.

    Use as a context manager; leaving it ends its threads or processes. Errors of ``Windows.batch`` come where the
    batch is asked for.
    """

    def __init__(self, windows: Windows, first: int, last: int, rows: range, input: InputConfig) -> None:
        self._windows, self._rows, self._input = windows, rows, input
        steps = grain.MapDataset.source(_Batches(windows, rows, last))[first:]
        if input.workers:
            from absl import flags

            # Grain's processes are started by absl, which wants the command line parsed.
            flags.FLAGS.mark_as_parsed()
            found = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
            ahead = max(1, -(-_READY // input.workers))
            found = found.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=input.workers, per_worker_buffer_size=ahead)
            )
        else:
            found = steps.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_READY))
        self._iterator: Any = iter(found)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        found: Batch = next(self._iterator)
        # Arrays of another process lie in shared memory, which is given back as soon as nobody holds them.
        return Batch(*map(np.array, found)) if self._input.workers else found

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
        self._iterator = iter(())


def batches(windows: Windows, first: int, last: int, rows: range, input: InputConfig) -> Loader:
    """The batches of steps ``first`` to ``last`` - 1, of which this process trains on ``rows``; see ``Loader``."""
    return Loader(windows, first, last, rows, input)
