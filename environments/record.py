"""Records RLDS directories by playing tasks: one directory per task, complete or absent."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gatokit.environments.adapter import Adapter
from gatokit.environments.agents import AGENTS, Actor, Bursts, Mix, episode_seed
from gatokit.environments.writers import Recorder, metadata_of, open_recorder
from gatokit.schemas.errors import ConfigError

MARKER = "recording.json"
"""Written last into a finished task directory: what was recorded, and every agent's mean return."""

DEFAULT_WRITER = {
    "atari": "array_record",
    "babyai": "array_record-shuffled",
    "dm_control": "tfrecord-shuffled",
    "metaworld": "envlogger",
}

Progress = Callable[[str, int, int], None]
"""Called with the task's name, the episodes done and the episodes in all."""


@dataclass(frozen=True)
class Recording:
    """What a finished directory holds: ``mean_return`` and ``returns`` by agent, in collection order."""

    env_id: str
    directory: Path
    writer: str
    episodes: int
    steps: int
    returns: dict[str, list[float]] = field(repr=False)

    @property
    def mean_return(self) -> dict[str, float]:
        """Mean return by agent."""
        return {agent: float(np.mean(values)) for agent, values in self.returns.items() if values}


def record(
    adapter: Adapter,
    out: str | Path,
    mix: Mix,
    *,
    seed: int = 0,
    writer: str | None = None,
    bursts: Bursts | None = None,
    progress: Progress | None = None,
) -> Recording:
    """Plays the episodes of ``mix`` and records them to ``out/<family>/<task>``.

    The default writer is the family's. A directory that was finished with the same settings stays as it is; with other
    settings ConfigError is raised. Everything is written under a name that begins with a dot and renamed at the end, so
    a killed recording leaves no directory of the task's name. Only one process may record a task at a time.

    The same settings give the same episodes in the same order, but not always the same bytes: an Example is a protobuf
    map, whose keys protobuf writes in an order that differs between processes.
    """
    family, task = adapter.name.split("/")
    writer = writer or DEFAULT_WRITER[family]
    bursts = bursts or Bursts.of(adapter)
    directory = Path(out) / family / task
    settings = {
        "env_id": adapter.name,
        "seed": seed,
        "mix": mix.counts,
        "writer": writer,
        "time_limit": adapter.time_limit,
        "bursts": json.loads(json.dumps(asdict(bursts))),
        "spec": adapter.spec.id,
    }
    if directory.exists():
        recording = _finished(directory, settings)
        if progress:
            progress(adapter.name, mix.total, mix.total)
        return recording
    partial = directory.with_name(f".{task}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    recorder = None
    try:
        recorder = open_recorder(adapter, partial, writer)
        returns, steps = _play(adapter, recorder, mix, seed, bursts, progress)
        recorder.close()
    except BaseException:
        # Without this, EnvLogger's destructor would write into the folder of a later recording.
        with contextlib.suppress(Exception):
            if recorder:
                recorder.close()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    content = {"settings": settings, "episodes": mix.total, "steps": steps, "returns": returns}
    (partial / MARKER).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.rename(partial, directory)
    return Recording(adapter.name, directory, writer, mix.total, steps, returns)


def _play(
    adapter: Adapter, recorder: Recorder, mix: Mix, seed: int, bursts: Bursts, progress: Progress | None
) -> tuple[dict[str, list[float]], int]:
    """Plays the episodes. Returns the episode returns by agent in collection order, and the number of steps."""
    returns: dict[str, list[float]] = {agent: [] for agent in AGENTS}
    steps = 0
    for index, agent in enumerate(mix.order()):
        reset_seed = episode_seed(adapter.name, seed, index)
        recorder.reset(reset_seed, metadata_of(adapter, agent, index, reset_seed))
        actor = Actor(adapter, agent, reset_seed, bursts)
        rewards: list[float] = []
        over = False
        while not over:
            _, reward, terminated, truncated = recorder.step(actor.act())
            rewards.append(reward)
            over = terminated or truncated
        returns[agent].append(float(np.sum(np.array(rewards, np.float32), dtype=np.float64)))
        steps += len(rewards)
        if progress:
            progress(adapter.name, index + 1, mix.total)
    return returns, steps


def read_recording(directory: str | Path) -> Recording:
    """Reads the marker of a finished task directory. Raises ConfigError if there is none."""
    try:
        content: dict[str, Any] = json.loads((Path(directory) / MARKER).read_text(encoding="utf-8"))
        settings = content["settings"]
        return Recording(
            settings["env_id"],
            Path(directory),
            settings["writer"],
            content["episodes"],
            content["steps"],
            content["returns"],
        )
    except (OSError, ValueError, KeyError):
        raise ConfigError(f"{directory} is not a finished recording: it has no readable {MARKER}; remove it") from None


def _finished(directory: Path, settings: dict[str, Any]) -> Recording:
    """The recording in a directory. Raises ConfigError if it was made with other settings."""
    recording = read_recording(directory)
    recorded = json.loads((directory / MARKER).read_text(encoding="utf-8"))["settings"]
    different = [key for key in settings if recorded.get(key) != settings[key]]
    if different:
        key = different[0]
        raise ConfigError(
            f"{directory} holds a recording with {key} {recorded.get(key)}, not {settings[key]}; "
            "record to another folder or remove it"
        )
    return recording
