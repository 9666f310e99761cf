"""What lies in a run's directory: ``run.json``, ``metrics.jsonl``, checkpoints and the files of its policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import indented_json
from gatokit.schemas.run import RunConfig

RUN = "run.json"
RUN_VERSION = 2
"""Runs of version 1 drew other windows for the same seed."""
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
    "most_skipped",
    "init_from",
    "resume_from",
    "model.attention",
    "input.skip",
    "input.workers",
    "optimizer.schedule_steps",
    "optimizer.skip_norm",
)
"""Fields that may change when a run goes on; ``steps`` may only grow."""

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
    norms: dict[str, float] = field(default_factory=dict)  # running means by step (``metrics.NormLimit``)


def flatten(mapping: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """The leaves of nested mappings by path, the keys joined by ``separator``."""
    leaves: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            leaves |= {f"{key}{separator}{name}": leaf for name, leaf in flatten(value, separator).items()}
        else:
            leaves[key] = value
    return leaves
