"""``rollouts.jsonl``: a line for every finished rollout, so that an evaluation continues where it was killed."""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gatokit.evaluation.rollouts import Rollout, RolloutJob, play_jobs
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.progress import Progress

ROLLOUTS = "rollouts.jsonl"
SETTINGS = "evaluation.json"

Settings = dict[str, Any]
"""JSON values by name: everything that rollouts depend on besides their task, agent and number."""


class RolloutLog:
    """The rollouts of one directory (``rollouts.jsonl``), by task, agent and number; one process holds it at a time.

    Each line is appended whole. If a kill cut the last line short, the rest of it is removed, and that rollout is
    played again.
    """

    def __init__(self, out: Path, settings: Settings) -> None:
        """Opens the log in ``out`` or creates it.

        Raises ConfigError if it holds rollouts of other ``settings`` or is in use, and DataError if it cannot be read
        or written.
        """
        self._path = out / ROLLOUTS
        self._rollouts: dict[tuple[str, str, int], Rollout] = {}
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{out} is in use by another gatokit evaluate: wait for it, or give another --out"
                ) from None
            _check_settings(out, settings)
            self._read()
        except OSError as error:
            raise DataError(f"{error.filename or out} cannot be read or written: {error.strerror}") from None

    def __enter__(self) -> "RolloutLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def has(self, task: str, agent: str, number: int) -> bool:
        """Whether a rollout is finished."""
        return (task, agent, number) in self._rollouts

    def of(self, task: str, agent: str, count: int) -> list[Rollout]:
        """The finished rollouts with a number below ``count``, by number."""
        return [self._rollouts[task, agent, number] for number in range(count) if self.has(task, agent, number)]

    def missing(self, task: str, agent: str, count: int) -> list[int]:
        """The numbers below ``count`` of rollouts that are not finished."""
        return [number for number in range(count) if not self.has(task, agent, number)]

    def add(self, task: str, agent: str, rollout: Rollout) -> None:
        """Appends a finished rollout; it is in the file when this returns."""
        key = {"task": task, "agent": agent, "number": rollout.number, "seed": rollout.seed}
        result = {"return": rollout.episode_return, "steps": rollout.steps, "seconds": round(rollout.seconds, 3)}
        try:
            self._file.write((json.dumps(key | result, allow_nan=False) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"{self._path} cannot be written: {error.strerror}; mend that and run the same command again"
            ) from None
        self._rollouts[task, agent, rollout.number] = rollout

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            self._file.truncate(len(complete))
        for number, text in enumerate(complete.splitlines(), 1):
            try:
                line = json.loads(text)
                rollout = Rollout(line["number"], line["seed"], line["return"], line["steps"], line["seconds"])
                self._rollouts.setdefault((line["task"], line["agent"], rollout.number), rollout)
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{self._path}: line {number} is no rollout; remove the line, and that rollout is played again"
                ) from None


def _check_settings(out: Path, settings: Settings) -> None:
    """Writes the settings if there are none; ConfigError if there are other ones."""
    path = out / SETTINGS
    wanted = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in wanted | stored if stored.get(name) != wanted.get(name)]
    except (ValueError, TypeError):
        raise DataError(f"{path} cannot be read: it is no JSON object; give another --out") from None
    if different:
        name = different[0]
        raise ConfigError(
            f"{out} holds rollouts whose {name} is {json.dumps(stored.get(name))}, not {json.dumps(wanted.get(name))}: "
            "give another --out"
        )


def play_missing(log: RolloutLog, jobs: Sequence[RolloutJob], workers: int, progress: Progress) -> None:
    """Plays the jobs that the log does not have yet, in ``workers`` processes."""
    done: dict[str, int] = {}
    total: dict[str, int] = {}
    missing = []
    for job in jobs:
        total[job.agent] = total.get(job.agent, 0) + 1
        done.setdefault(job.agent, 0)
        if log.has(job.task, job.agent, job.number):
            done[job.agent] += 1
        else:
            missing.append(job)
    for agent, count in done.items():
        progress(agent, count, total[agent])
    for job, rollout in play_jobs(missing, workers):
        log.add(job.task, job.agent, rollout)
        done[job.agent] += 1
        progress(job.agent, done[job.agent], total[job.agent])


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; DataError if it cannot be written."""
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
