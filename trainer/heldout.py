"""Loss on held-out episodes and documents, per dataset and per kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gatokit.loader.batch import NO_TOKEN, Batch
from gatokit.loader.loader import batches_ahead
from gatokit.loader.mixture import Mixture
from gatokit.loader.windows import Windows
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import TokenKind
from gatokit.trainer.loss import Sums
from gatokit.trainer.mesh import place
from gatokit.trainer.metrics import KIND_NAMES, Line, as_sums, losses, perplexity
from gatokit.trainer.model import check_positions
from gatokit.trainer.step import Trainer


class HeldOut:
    """The held-out windows of a run: the same ones at every evaluation."""

    def __init__(self, mixture: Mixture, config: RunConfig, rows: range) -> None:
        """``rows`` are those of a global batch that this process loads."""
        self.names = mixture.with_records("held_out")
        self._datasets = mixture.names
        self._weights = dict(zip(mixture.names, mixture.weights.tolist(), strict=True))
        self._config = config
        self._rows = rows
        self._windows = {
            name: Windows(mixture, config, split="held_out", dataset=name, training=False) for name in self.names
        }
        slots = {windows.patch_slots for windows in self._windows.values()}
        self._few, self._many = min(slots, default=0), max(slots, default=0)

    def evaluate(self, trainer: Trainer, params: Any) -> Line:
        """Mean losses in nats per dataset, each with its kinds, and their mean over datasets.

        ``kinds`` are those of the mixture: datasets count by their weight, as they do in training. Text perplexity is
        that of its texts. Actions are means of the mixture too, those of a window's first action beside all.
        """
        by_dataset: dict[str, Line] = {}
        totals: list[np.ndarray] | None = None
        for name, windows in self._windows.items():
            sums = self._sums(trainer, params, windows)
            line = losses(as_sums(sums), self._datasets)
            by_dataset[name] = {"loss": line["datasets"][name]["loss"], "kinds": line["kinds"]}
            weighed = [self._weights[name] * values for values in sums]
            totals = weighed if totals is None else [a + b for a, b in zip(totals, weighed, strict=True)]
        assert totals is not None
        of_all = losses(as_sums(totals), self._datasets)
        return {
            "loss": _mean([item["loss"] for item in by_dataset.values()]),
            "text_perplexity": perplexity(of_all["kinds"].get(KIND_NAMES[TokenKind.TEXT])),
            "kinds": of_all["kinds"],
            "action_loss": of_all["action_loss"],
            "first_action_loss": of_all["first_action_loss"],
            "datasets": by_dataset,
        }

    def _sums(self, trainer: Trainer, params: Any, windows: Windows) -> list[np.ndarray]:
        sums: list[Sums] = []
        with batches_ahead(
            windows, 0, self._config.evaluation.batches, self._rows, self._config.input.workers
        ) as ready:
            for batch in ready:
                check_positions(batch)
                # The sums are read only after the next batch was dispatched.
                sums.append(trainer.evaluate(params, place(self._padded(batch), trainer.mesh)))
        return [np.sum([np.asarray(values, np.float64) for values in each], axis=0) for each in zip(*sums, strict=True)]

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


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
