"""Loss on held-out episodes and documents, per dataset and per kind."""

import math
from typing import Any

import numpy as np

from gatokit.loader.batch import NO_TOKEN, Batch
from gatokit.loader.loader import batches_ahead
from gatokit.loader.mixture import Mixture
from gatokit.loader.windows import Windows
from gatokit.schemas.run import RunConfig
from gatokit.schemas.run_directory import Line
from gatokit.schemas.tokens import TokenKind
from gatokit.trainer.loss import Sums
from gatokit.trainer.mesh import place
from gatokit.trainer.metrics import KIND_NAMES, float64, losses
from gatokit.trainer.model import check_positions
from gatokit.trainer.step import Trainer


class HeldOut:
    """The held-out windows of a run: the same ones at every evaluation."""

    def __init__(self, mixture: Mixture, config: RunConfig, rows: range) -> None:
        """``rows`` are those of a global batch that this process loads."""
        self.names = mixture.with_records("held_out")
        self._mixture, self._config, self._rows = mixture, config, rows
        self._windows = {
            name: Windows(mixture, config, split="held_out", dataset=name, training=False) for name in self.names
        }
        slots = {windows.patch_slots for windows in self._windows.values()}
        self._few, self._many = min(slots, default=0), max(slots, default=0)

    def evaluate(self, trainer: Trainer, params: Any) -> Line:
        """Mean losses in nats per dataset, each with its kinds, and their mean over datasets.

        All other losses are those of the mixture: datasets count by their weight, as they do in training.
        """
        names, by_dataset, weighed = self._mixture.names, {}, []
        weights = dict(zip(names, self._mixture.weights.tolist(), strict=True))
        for name, windows in self._windows.items():
            sums = self._sums(trainer, params, windows)
            line = losses(sums, names)
            by_dataset[name] = {"loss": line["datasets"][name]["loss"], "kinds": line["kinds"]}
            weighed.append([weights[name] * values for values in sums])
        of_all = losses(Sums._make(map(sum, zip(*weighed, strict=True))), names)
        known = [item["loss"] for item in by_dataset.values() if item["loss"] is not None]
        text = of_all["kinds"].get(KIND_NAMES[TokenKind.TEXT])
        mean = sum(known) / len(known) if known else None
        perplexity = None if text is None else math.exp(min(text, 700.0))
        return {"loss": mean, "text_perplexity": perplexity} | of_all | {"datasets": by_dataset}

    def _sums(self, trainer: Trainer, params: Any, windows: Windows) -> Sums:
        sums: list[Sums] = []
        batches, workers = self._config.evaluation.batches, self._config.input.workers
        with batches_ahead(windows, 0, batches, self._rows, workers) as ready:
            for batch in ready:
                check_positions(batch)
                # The sums are read only after the next batch was dispatched.
                sums.append(trainer.evaluate(params, place(self._padded(batch), trainer.mesh)))
        return Sums._make(np.sum(values, axis=0) for values in zip(*map(float64, sums), strict=True))

    def _padded(self, batch: Batch) -> Batch:
        """The batch with as many patch slots as that of the dataset with the most, or the fewest: so that evaluation
        is compiled at most twice, and texts do not cost what images cost."""
        more = self._many - batch.patch_token.shape[1]
        if batch.patch_token.shape[1] == self._few or not more:
            return batch

        def pad(array: np.ndarray, value: int = 0) -> np.ndarray:
            return np.pad(array, [(0, 0), (0, more)] + [(0, 0)] * (array.ndim - 2), constant_values=value)

        return batch._replace(
            patches=pad(batch.patches),
            patch_token=pad(batch.patch_token, NO_TOKEN),
            patch_row=pad(batch.patch_row),
            patch_column=pad(batch.patch_column),
        )
