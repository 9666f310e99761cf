"""``rollouts.jsonl``: a line for every finished rollout, so that an evaluation goes on where it was killed."""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from gatokit.evaluation.rollouts import Rollout
from gatokit.schemas.errors import ConfigError, DataError

ROLLOUTS = "rollouts.jsonl"
SETTINGS = "evaluation.json"

Settings = dict[str, Any]
"""JSON values by name: all that rollouts depend on beside their task, agent and number."""


class RolloutLog:
    """The rollouts of one directory, by task, agent and number; held by one process at a time.

    A line is appended whole. What a kill left of the last line is removed, and that rollout is played again.
    """

    def __init__(self, out: Path, settings: Settings) -> None:
        """Opens ``out`` or begins it. ConfigError where it holds rollouts of other ``settings`` or is in use, DataError
        where it cannot be read or written."""
        self._path = out / ROLLOUTS
        self._found: dict[tuple[str, str, int], Rollout] = {}
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

    def of(self, task: str, agent: str, count: int) -> list[Rollout]:
        """The finished rollouts below ``count``, by number."""
        found = (self._found.get((task, agent, number)) for number in range(count))
        return [rollout for rollout in found if rollout is not None]

    def missing(self, task: str, agent: str, count: int) -> list[int]:
        """The numbers below ``count`` of rollouts that are not finished."""
        return [number for number in range(count) if (task, agent, number) not in self._found]

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
        self._found[task, agent, rollout.number] = rollout

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        for place, text in enumerate(whole.splitlines()):
            try:
                line = json.loads(text)
                rollout = Rollout(line["number"], line["seed"], line["return"], line["steps"], line["seconds"])
                self._found.setdefault((line["task"], line["agent"], rollout.number), rollout)
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{self._path}: line {place + 1} is no rollout; remove the line, and that rollout is played again"
                ) from None


def _check_settings(out: Path, settings: Settings) -> None:
    """Writes them where there are none; ConfigError where others are."""
    path = out / SETTINGS
    wanted = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in _names(there, wanted) if there.get(name) != wanted.get(name)]
    except (ValueError, AttributeError):
        raise DataError(f"{path} cannot be read: it is no JSON object; give another --out") from None
    if different:
        name = different[0]
        raise ConfigError(
            f"{out} holds rollouts whose {name} is {json.dumps(there.get(name))}, not {json.dumps(wanted.get(name))}: "
            "give another --out"
        )


def _names(there: Settings, wanted: Settings) -> Iterable[str]:
    return [*wanted, *(name for name in there if name not in wanted)]


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; DataError where it cannot be written."""
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
