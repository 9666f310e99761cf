"""Opens what lies in a run's directory, in a checkpoint or in an export; somebody else may have made it."""

import json
from pathlib import Path

from gatokit.schemas.config import validated
from gatokit.schemas.errors import ConfigError, DataError, MalformedError, first_line
from gatokit.schemas.run_directory import (
    CHECKPOINTS,
    METRICS,
    POLICY_FOLDER,
    RUN,
    WEIGHTS,
    Line,
    RunFile,
)
from gatokit.storage.folder import check_tree, read_file, read_json, regular_file

_MOST_METRICS = 1 << 32


def read_run(out: Path) -> RunFile | None:
    """``run.json`` of a run's directory, None if there is no such file. Raises DataError if it cannot be read."""
    path = out / RUN
    try:
        content = read_json(out, RUN)
        if content.pop("overfit_one_batch", False):
            raise ValueError("a run on one batch (--overfit-one-batch) cannot go on")
        return validated(RunFile, content, RUN)
    except FileNotFoundError:
        return None
    except MalformedError as error:
        raise MalformedError(f"{error}; give another --out") from None
    except (OSError, ValueError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}; give another --out") from None


def read_metrics(out: Path) -> list[Line]:
    """The lines of a run's ``metrics.jsonl``, without a line that a kill cut short; empty if there is no file. Raises
    MalformedError, with the number of the line, if one is no JSON object with a step."""
    lines: list[Line] = []
    try:
        data = read_file(out, METRICS, most=_MOST_METRICS)
    except FileNotFoundError:
        return lines
    for number, text in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            line = json.loads(text)
            has_step = type(line["step"]) is int
        except (ValueError, RecursionError, TypeError, KeyError):
            has_step = False
        if not has_step:
            raise MalformedError(f"{out / METRICS}: line {number} is no metrics of a step; remove the line")
        lines.append(line)
    return lines


def last_line(out: Path) -> Line:
    """The last metrics of a run, with the losses of the last evaluation as ``held_out``, None without one."""
    lines = read_metrics(out)
    trained = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "held_out" in line]
    return (trained[-1] if trained else {}) | {"held_out": held_out[-1]["held_out"] if held_out else None}


def find_checkpoint(path: Path) -> Path:
    """The newest complete checkpoint of a run's directory, or ``path`` if it is itself a checkpoint.

    Raises DataError if it is neither, MalformedError if it holds anything but directories and regular files.
    """
    if not (path / "params").is_dir():
        steps = [int(item.name) for item in (path / CHECKPOINTS).glob("*") if _is_step(item.name)]
        if not steps:
            raise DataError(f"{path} holds no checkpoint: give a run's directory or one of its checkpoints")
        for folder in (path / CHECKPOINTS, path / CHECKPOINTS / str(max(steps))):
            if folder.is_symlink():
                raise MalformedError(f"{folder} is a link, not a directory; copy the folder again")
        path = path / CHECKPOINTS / str(max(steps))
    check_tree(path)
    return path


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 20


def policy_folder(path: Path) -> Path:
    """The folder of the policy's files in a run, a checkpoint or an export. Raises DataError if there is none."""
    if not holds_weights(path):
        return find_checkpoint(path) / POLICY_FOLDER
    return path


def holds_weights(path: Path) -> bool:
    """Whether a folder is an export. Raises MalformedError if its weights are no regular file."""
    try:
        regular_file(path, WEIGHTS)
    except OSError:
        return False
    return True
