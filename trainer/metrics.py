"""The numbers of a run: losses since the last logged step, losses on what is held out, the lines of ``metrics.jsonl``,
TensorBoard.

Legend: E datasets, 8 kinds (by ``TokenKind``; the first is unused).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gatokit.loader.batch import Batch, empty_batch
from gatokit.loader.loader import batches_ahead
from gatokit.loader.mixture import Mixture
from gatokit.loader.windows import Windows
from gatokit.schemas.run import RunConfig
from gatokit.schemas.run_directory import METRICS, Line, flatten
from gatokit.schemas.tokens import TokenKind
from gatokit.storage.files import open_appending, write_atomically, writing
from gatokit.storage.run_directory import read_metrics
from gatokit.trainer.loss import Sums
from gatokit.trainer.mesh import place
from gatokit.trainer.step import Trainer

NORM_DECAY = 0.98  # of the running mean of norms
NORM_STEPS = 50  # before which no norm is too large
OF_LOSSES = [name for name in Sums._fields if name.endswith(("loss", "targets", "weight"))]


@dataclass
class Interval:
    """Sums over the steps since the last logged one; float64, so that a checkpoint's JSON holds them exactly."""

    steps: int = 0  # that were taken
    skipped: int = 0
    loss: float = 0.0
    gradient_norm: float = 0.0
    sums: Any = None  # ``Sums``, or the lists that ``saved`` made of them; None before the first step

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "Interval":
        """What ``saved`` returned; empty if another version, with other sums, saved it."""
        return cls(**saved) if len(saved.get("sums", ())) == len(Sums._fields) else cls()

    def add(self, loss: float, gradient_norm: float, sums: Sums, taken: bool = True) -> None:
        """Adds a step, whose arrays are read here. The losses of one that was not ``taken`` do not count."""
        values = float64(sums)
        if not taken:
            loss = gradient_norm = 0.0
            values = values._replace(**{name: np.zeros_like(getattr(values, name)) for name in OF_LOSSES})
        self.sums = values if self.sums is None else Sums._make(map(np.add, self.sums, values))
        self.steps += taken
        self.skipped += not taken
        self.loss += loss
        self.gradient_norm += gradient_norm

    def saved(self) -> dict[str, Any]:
        """The fields as JSON; empty if nothing was added."""
        if self.sums is None:
            return {}
        return vars(self) | {"sums": [np.asarray(values).tolist() for values in self.sums]}

    def line(self, datasets: Sequence[str]) -> Line:
        """Means of the interval: ``loss`` and ``gradient_norm`` over the steps that were taken, the other losses over
        their targets; ``skipped_steps`` and ``unusable`` windows where there are any."""
        means = {"loss": _mean(self.loss, self.steps), "gradient_norm": _mean(self.gradient_norm, self.steps)}
        redraws = {name: int(count) for name, count in zip(datasets, self.sums.redraws, strict=True) if count}
        counts = {"skipped_steps": self.skipped, "unusable": int(self.sums.unusable)}
        counted = {name: count for name, count in counts.items() if count}
        return means | losses(self.sums, datasets) | {"redraws": redraws} | counted


class NormLimit:
    """The largest norm of a gradient with which a step is taken: ``factor`` times the running mean of those before.

    It follows from the steps alone, not from when their metrics are read: that of step k from those up to k − 2.
    """

    def __init__(self, factor: float | None, means: Mapping[str, float]) -> None:
        """``means`` are those of a checkpoint."""
        self._factor, self.means = factor, dict(means)

    def add(self, step: int, norm: float, taken: bool) -> None:
        """Adds the norm of a step."""
        mean = self.means.get(str(step - 1), norm)
        self.means = {name: value for name, value in self.means.items() if int(name) == step - 1}
        self.means[str(step)] = NORM_DECAY * mean + (1 - NORM_DECAY) * norm if taken else mean

    def of(self, step: int) -> float:
        """The limit of a step; infinite for the first ones."""
        mean = self.means.get(str(step - 2))
        return math.inf if self._factor is None or mean is None or step <= NORM_STEPS else self._factor * mean


def float64(sums: Sequence[Any]) -> Sums:
    """Sums as arrays of the host, to be added up."""
    return Sums._make(np.asarray(values, np.float64) for values in sums)


def losses(sums: Sums, datasets: Sequence[str]) -> Line:
    """Mean losses in nats per dataset (with its share of all targets, and ``fill``, the share of its positions that
    are not padding) and per kind, of all actions and of those that are the first of their window; None without a
    target."""
    targets = float(np.sum(sums.dataset_targets))
    actions = [TokenKind.DISCRETE_ACTION, TokenKind.CONTINUOUS_ACTION]
    return {
        "datasets": {
            name: {"share": _mean(count, targets), "loss": _mean(total, count), "fill": _mean(tokens, positions)}
            for name, total, count, tokens, positions in zip(
                datasets,
                sums.dataset_loss,
                sums.dataset_targets,
                sums.dataset_tokens,
                sums.dataset_positions,
                strict=True,
            )
        },
        "kinds": {
            kind.name.lower(): _mean(sums.kind_loss[kind], sums.kind_targets[kind])
            for kind in TokenKind
            if sums.kind_targets[kind]
        },
        "action_loss": _mean(np.sum(sums.kind_loss[actions]), np.sum(sums.kind_targets[actions])),
        "first_action_loss": _mean(sums.first_action_loss, sums.first_action_targets),
    }


def _mean(total: Any, count: Any) -> float | None:
    return float(total) / float(count) if count else None


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

    def evaluate(self, trainer: Trainer, params: Any, is_stopped: Callable[[], bool] = lambda: False) -> Line | None:
        """Mean losses in nats per dataset, each with its kinds, and their mean over datasets; None if ``is_stopped``,
        which is asked before each batch.

        All other losses are those of the mixture: datasets count by their weight, as they do in training.
        """
        names, by_dataset, weighed = self._mixture.names, {}, []
        weights = dict(zip(names, self._mixture.weights.tolist(), strict=True))
        for name, windows in self._windows.items():
            sums = self._sums(trainer, params, windows, is_stopped)
            if sums is None:
                return None
            line = losses(sums, names)
            by_dataset[name] = {"loss": line["datasets"][name]["loss"], "kinds": line["kinds"]}
            weighed.append([weights[name] * values for values in sums])
        of_all = losses(Sums._make(map(sum, zip(*weighed, strict=True))), names)
        known = [item["loss"] for item in by_dataset.values() if item["loss"] is not None]
        text = of_all["kinds"].get("text")
        mean = sum(known) / len(known) if known else None
        perplexity = None if text is None else math.exp(min(text, 700.0))
        return {"loss": mean, "text_perplexity": perplexity} | of_all | {"datasets": by_dataset}

    def _sums(self, trainer: Trainer, params: Any, windows: Windows, is_stopped: Callable[[], bool]) -> Sums | None:
        sums: list[Sums] = []
        batches, workers = self._config.evaluation.batches, self._config.input.workers
        with batches_ahead(windows, 0, batches, self._rows, workers) as ready:
            for batch in ready:
                if is_stopped():
                    return None
                # The sums are read only after the next batch was dispatched.
                sums.append(trainer.evaluate(params, place(self._padded(batch), trainer.mesh)))
        return Sums._make(np.sum(values, axis=0) for values in zip(*map(float64, sums), strict=True))

    def _padded(self, batch: Batch) -> Batch:
        """The batch with as many patch slots as that of the dataset with the most, or the fewest: so that evaluation
        is compiled at most twice, and texts do not cost what images cost."""
        slots = batch.patch_token.shape[1]
        if slots in (self._few, self._many):
            return batch
        unused = empty_batch(0, 0, len(batch.patch_token), self._many - slots)
        names = ("patches", "patch_token", "patch_row", "patch_column")
        return batch._replace(
            **{name: np.concatenate([getattr(batch, name), getattr(unused, name)], axis=1) for name in names}
        )


class MetricsFile:
    """``metrics.jsonl`` of a run, and the same numbers for TensorBoard; written by the first process alone.

    Every method raises DataError if the file cannot be written.
    """

    def __init__(self, out: Path, step: int) -> None:
        """Opens the file for the steps behind ``step``, as in a run that was never stopped: lines of later steps
        are removed, and lines that an early stop wrote in the middle of an interval (``partial``)."""
        from tensorboardX import SummaryWriter

        self._path = out / METRICS
        kept = [line for line in read_metrics(out) if line["step"] <= step and not line.get("partial")]
        with writing(self._path):
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
            self._file = open_appending(self._path)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, line: Line) -> None:
        """Appends a line; it is in the file when this returns."""
        with writing(self._path):
            self._file.write((json.dumps(line, allow_nan=False) + "\n").encode())
            self._file.flush()
            for name, value in flatten(line, "/").items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, float(value), line["step"])

    def close(self) -> None:
        """Closes both."""
        with writing(self._path):
            self._board.close()
            self._file.close()
