"""What lies in a run's directory: ``run.json``, ``metrics.jsonl``, checkpoints and the files of its policy."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gatokit.schemas.config import validated
from gatokit.schemas.errors import ConfigError, DataError, first_line
from gatokit.schemas.manifest import indented_json
from gatokit.schemas.run import RunConfig

RUN = "run.json"
RUN_VERSION = 1
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
POLICY_FOLDER = "policy"
"""In a run and in each of its checkpoints; an export holds the same files beside its weights."""
WEIGHTS = "model.safetensors"
"""In an export."""
CHANGEABLE = (
    "steps",
    "log_every",
    "microbatches",
    "remat",
    "mesh",
    "evaluation",
    "checkpoint",
    "init_from",
    "model.attention",
    "input.workers",
)
"""Fields that may change when a run goes on; ``steps`` may only grow. They change no batch, and losses only by
rounding."""

Line = dict[str, Any]
"""One line of ``metrics.jsonl``."""


class RunFile(BaseModel):
    """``run.json``: the resolved config of a run, and what it reads."""

    model_config = ConfigDict(extra="forbid")

    version: int = RUN_VERSION
    config: RunConfig
    data: list[str]
    """Directories as they were given."""
    data_digest: str

    def to_bytes(self) -> bytes:
        """Indented JSON."""
        return indented_json(self.model_dump(mode="json"))

    @staticmethod
    def read(out: Path) -> "RunFile | None":
        """The file of a run's directory, None if there is no such file. Raises DataError if it cannot be read."""
        path = out / RUN
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("overfit_one_batch", False):
                raise ValueError("a run on one batch (--overfit-one-batch) cannot go on")
            return validated(RunFile, content, RUN)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError, ConfigError) as error:
            raise DataError(f"{path} cannot be read: {first_line(error)}; give another --out") from None

    def check_same(self, wanted: "RunFile", out: Path) -> None:
        """Raises ConfigError, which names what differs, if this run in ``out`` cannot go on as ``wanted``."""
        before, after = (flatten(item.config.model_dump(mode="json")) for item in (self, wanted))
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name) and not name.startswith(CHANGEABLE):
                raise ConfigError(
                    f"{out} holds a run whose {name} is {before.get(name)!r}, and the config says {after.get(name)!r}: "
                    "give another --out, or the run's own config"
                )
        if wanted.config.steps < self.config.steps:
            raise ConfigError(
                f"{out} holds a run of {self.config.steps} steps, and the config says {wanted.config.steps}: steps may "
                "only grow; --steps stops earlier"
            )
        if self.data_digest != wanted.data_digest:
            raise ConfigError(
                f"{out} holds a run on other data ({', '.join(self.data)}; its digest is {self.data_digest[:12]}, not "
                f"{wanted.data_digest[:12]}): give another --out, or init_from to go on with other data"
            )


@dataclass(frozen=True)
class RunState:
    """The item ``run`` of a checkpoint: the state of a run besides parameters and optimizer."""

    step: int  # steps done
    samples: int  # windows consumed: the whole state of the input
    best: float | None  # the lowest mean held-out loss so far, in nats
    best_step: int | None
    interval: dict[str, Any]  # sums since the last logged step (``metrics.Interval``)


def read_metrics(out: Path) -> list[Line]:
    """The lines of a run's ``metrics.jsonl``, without a line that a kill cut short; empty if there is no file."""
    path = out / METRICS
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def last_line(out: Path) -> Line:
    """The last metrics of a run, with the losses of the last evaluation as ``held_out``, None without one."""
    lines = read_metrics(out)
    trained = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "held_out" in line]
    return (trained[-1] if trained else {}) | {"held_out": held_out[-1]["held_out"] if held_out else None}


def find_checkpoint(path: Path) -> Path:
    """The newest complete checkpoint of a run's directory, or ``path`` if it is itself a checkpoint.

    Raises DataError if it is neither.
    """
    if (path / "params").is_dir():
        return path
    steps = [int(item.name) for item in (path / CHECKPOINTS).glob("*") if item.name.isdigit()]
    if not steps:
        raise DataError(f"{path} holds no checkpoint: give a run's directory or one of its checkpoints")
    return path / CHECKPOINTS / str(max(steps))


def policy_folder(path: Path) -> Path:
    """The folder of the policy's files in a run, a checkpoint or an export. Raises DataError if there is none."""
    return path if (path / WEIGHTS).exists() else find_checkpoint(path) / POLICY_FOLDER


def flatten(mapping: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """The leaves of nested mappings by path, the keys joined by ``separator``."""
    leaves: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            leaves |= {f"{key}{separator}{name}": leaf for name, leaf in flatten(value, separator).items()}
        else:
            leaves[key] = value
    return leaves
