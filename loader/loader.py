"""Batches of windows made ahead of the trainer, by threads or processes of Grain.

The state of the input is the number of steps done: Grain's own state is never saved.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from gatokit.loader.batch import Batch
from gatokit.loader.windows import Windows

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


class Loader:
    """``rows`` of the batches of steps ``first`` to ``last`` - 1, in order.

    Use it as a context manager; leaving it ends its threads or processes. Errors of ``Windows.batch`` are raised when
    the batch is asked for.
    """

    def __init__(self, windows: Windows, first: int, last: int, rows: range, workers: int = 0) -> None:
        """``workers`` processes assemble the batches; with 0, threads of this process do."""
        self._workers = workers
        steps = grain.MapDataset.source(_Batches(windows, rows, last))[first:]
        if workers:
            from absl import flags

            # Grain's processes are started by absl, which wants the command line parsed.
            flags.FLAGS.mark_as_parsed()
            batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, -(-_READY // workers)))
            )
        else:
            batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_READY))
        self._iterator: Any = iter(batches)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch: Batch = next(self._iterator)
        # Arrays of another process lie in shared memory, which is given back as soon as nothing refers to them.
        return Batch(*map(np.array, batch)) if self._workers else batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
        self._iterator = iter(())
