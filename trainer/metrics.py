"""The numbers of a run: sums since the last logged step, the lines of ``metrics.jsonl``, TensorBoard.

Legend: E datasets, 8 kinds (by ``TokenKind``; the first is unused).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gatokit.schemas.errors import DataError
from gatokit.schemas.run_directory import METRICS, Line, flatten, read_metrics
from gatokit.schemas.tokens import TokenKind
from gatokit.storage.files import write_atomically
from gatokit.trainer.loss import Sums

KIND_NAMES = {kind: kind.name.lower() for kind in TokenKind}


class Interval:
    """Sums over the steps since the last logged one; float64, so that a checkpoint's JSON holds them exactly."""

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        """``saved`` is what ``saved`` returned."""
        saved = saved or {"steps": 0, "loss": 0.0, "gradient_norm": 0.0}
        self.steps, self.loss, self.gradient_norm = saved["steps"], saved["loss"], saved["gradient_norm"]
        self.sums = float64(saved["sums"]) if "sums" in saved else None

    def add(self, loss: float, gradient_norm: float, sums: Sums) -> None:
        """Adds a step, whose arrays are read here."""
        values = float64(sums)
        self.sums = values if self.sums is None else Sums._make(map(np.add, self.sums, values))
        self.steps += 1
        self.loss += loss
        self.gradient_norm += gradient_norm

    def saved(self) -> dict[str, Any]:
        """The interval as JSON; empty if nothing was added."""
        if self.sums is None:
            return {}
        sums = [np.asarray(values).tolist() for values in self.sums]
        return {"steps": self.steps, "loss": self.loss, "gradient_norm": self.gradient_norm, "sums": sums}

    def line(self, datasets: Sequence[str]) -> Line:
        """Means of the interval: ``loss`` and ``gradient_norm`` over its steps, the other losses over its targets."""
        assert self.sums is not None
        means = {"loss": self.loss / self.steps, "gradient_norm": self.gradient_norm / self.steps}
        redraws = {name: int(count) for name, count in zip(datasets, self.sums.redraws, strict=True) if count}
        return means | losses(self.sums, datasets) | {"redraws": redraws}


def float64(sums: Sequence[Any]) -> Sums:
    """Sums as arrays of the host, to be added up."""
    return Sums._make(np.asarray(values, np.float64) for values in sums)


def losses(sums: Sums, datasets: Sequence[str]) -> Line:
    """Mean losses in nats per dataset (with its share of all targets) and per kind, of all actions and of those that
    are the first of their window; None without a target."""
    targets = float(np.sum(sums.dataset_targets))
    actions = [TokenKind.DISCRETE_ACTION, TokenKind.CONTINUOUS_ACTION]
    return {
        "datasets": {
            name: {"share": _mean(count, targets), "loss": _mean(total, count)}
            for name, total, count in zip(datasets, sums.dataset_loss, sums.dataset_targets, strict=True)
        },
        "kinds": {
            name: _mean(sums.kind_loss[kind], sums.kind_targets[kind])
            for kind, name in KIND_NAMES.items()
            if sums.kind_targets[kind]
        },
        "action_loss": _mean(np.sum(sums.kind_loss[actions]), np.sum(sums.kind_targets[actions])),
        "first_action_loss": _mean(sums.first_action_loss, sums.first_action_targets),
    }


def _mean(total: Any, count: Any) -> float | None:
    return float(total) / float(count) if count else None


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
        with self._faults():
            write_atomically(self._path, "".join(map(_dump, kept)).encode())
            self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, line: Line) -> None:
        """Appends a line; it is in the file when this returns."""
        with self._faults():
            self._file.write(_dump(line))
            self._file.flush()
            for name, value in scalars(line).items():
                self._board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Closes both."""
        with self._faults():
            self._board.close()
            self._file.close()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self._path} cannot be written: {error.strerror}; mend that and run the same command again"
            ) from None


def _dump(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def scalars(line: Line) -> dict[str, float]:
    """The numbers of a line by name, nested keys joined by slashes."""
    return {
        name: float(value)
        for name, value in flatten(line, "/").items()
        if isinstance(value, int | float) and name != "step"
    }
