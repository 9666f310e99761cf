"""Run by ``test_processes`` as one of several: the digests of some global batches, then a few steps; JSON.

Arguments: coordinator, processes, process, config, data, directory of the run, last step (0: none).
"""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from runs import Silent

from gatokit.loader.batch import Batch
from gatokit.loader.mixture import open_mixture
from gatokit.loader.windows import Windows
from gatokit.schemas.run import read_run_config
from gatokit.trainer.distributed import is_first, meet
from gatokit.trainer.mesh import make_mesh, place, process_rows
from gatokit.trainer.train import train

STEPS = (0, 3)
"""Whose batches are compared."""


def digest(batch: Batch) -> str:
    found = hashlib.sha256()
    for array in batch:
        values = np.ascontiguousarray(array)
        found.update(f"{values.dtype} {values.shape}".encode() + values.tobytes())
    return found.hexdigest()


def main(coordinator: str, processes: str, process: str, config: str, data: str, out: str, last: str) -> None:
    meet(coordinator, int(processes), int(process))
    run = read_run_config(config)
    windows = Windows(open_mixture([data], run.input.weights), run)
    mesh = make_mesh(run.mesh, jax.devices())
    rows = process_rows(mesh, run.batch)
    found = []
    for step in STEPS:
        batch = place(windows.batch(step, rows), mesh)
        # Booleans travel as bytes: not every collective knows them.
        shown = [array.view(np.uint8) if array.dtype == bool else array for array in batch]
        gathered = multihost_utils.process_allgather(shown, tiled=True)
        back = [
            values.view(bool) if array.dtype == bool else values for values, array in zip(gathered, batch, strict=True)
        ]
        found.append(digest(Batch(*back)))
    if int(last):
        train(run, [data], Path(out), Silent(), steps=int(last))
    if is_first():
        print(json.dumps({"processes": jax.process_count(), "rows": len(rows), "digests": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
