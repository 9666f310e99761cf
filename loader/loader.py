"""Batches of windows made ahead of the trainer, by threads or processes of Grain.

The state of the input is the number of steps done: Grain's own state is never saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import grain
import numpy as np

from gatokit.loader.batch import Batch
from gatokit.loader.windows import Windows

_READY = 4
"""Batches that are kept ready."""
_THREADS = 2
"""Threads that assemble batches if there are no worker processes."""


@contextmanager
def batches_ahead(windows: Windows, first: int, last: int, rows: range, workers: int = 0) -> Iterator[Iterator[Batch]]:
    """Yields an iterator over ``rows`` of the batches of steps ``first`` to ``last`` - 1, in order.

    ``workers`` processes assemble the batches; with 0, threads of this process do. They end with the context. Errors of
    ``Windows.batch`` are raised when the batch is asked for.
    """
    steps = grain.MapDataset.range(first, last).map(partial(windows.batch, rows=rows))
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
    made = iter(batches)
    # Arrays of another process lie in shared memory, which is given back as soon as nothing refers to them.
    ready = (Batch(*map(np.array, batch)) if workers else batch for batch in made)
    try:
        yield ready
    finally:
        ready.close()
        if hasattr(made, "close"):
            made.close()
