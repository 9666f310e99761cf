"""Small runs: their config, a report that says nothing, and the command in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from gatokit.schemas.run import RunConfig, read_run_config

CONFIG: dict[str, Any] = {
    "model": {"layers": 1, "width": 16, "heads": 2, "head_size": 8, "hidden": 32},
    "context": 48,
    "batch": 4,
    "steps": 1000,
    "precision": "float32",
    "remat": "none",
    "log_every": 1,
    "input": {"weights": {"grid": 2, "books": 1}, "patch_group_rows": 2},
    "optimizer": {"learning_rate": 3e-3, "final_learning_rate": 1e-3, "warmup_steps": 2},
    "evaluation": {"every": 1000, "batches": 1},
    "checkpoint": {"every": 5},
}
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parent)}
"""Of programs that tests start: JAX on the CPU, and the helpers of tests where they are found."""
TIMES = ("seconds", "step_seconds", "tokens_per_second", "mfu", "input_wait")


def write_config(folder: Path, **changes: Any) -> Path:
    """The config with other top-level values, as a file."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(CONFIG | changes))
    return path


def config(folder: Path, **changes: Any) -> RunConfig:
    return read_run_config(write_config(folder, **changes))


class Silent:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begins(self, trainer: Any, mixture: Any, held_out: Any) -> None:
        pass

    def say(self, text: str) -> None:
        self.lines.append(text)

    notice = say

    def progress(self, step: int, last: int, line: dict[str, Any]) -> None:
        pass


def lines(out: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without what depends on the machine."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


def start(*words: Any, **environment: str) -> "subprocess.Popen[str]":
    """``gatokit train`` with these arguments, on the CPU; its progress comes line by line on standard error."""
    return subprocess.Popen(
        [sys.executable, "-m", "gatokit.cli.main", "train", *map(str, words)],
        env=os.environ | ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process: "subprocess.Popen[str]", text: str) -> str:
    """What the process says up to the line that begins with ``text``."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(text):
            return said
    raise AssertionError(f"the process ended without saying {text!r}: {said}")
