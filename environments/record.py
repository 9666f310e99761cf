"""Records RLDS directories by playing tasks, several at a time: one directory per task, complete or absent."""

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np

from gatokit.environments.adapter import Adapter
from gatokit.environments.agents import AGENTS, Actor, Bursts, Mix, episode_seed
from gatokit.environments.registry import make
from gatokit.environments.writers import EpisodeWriter, metadata_of, open_writer
from gatokit.schemas.errors import ConfigError
from gatokit.storage.files import whole_folder
from gatokit.storage.ownership import check_folders

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
    if os.path.lexists(directory):
        recording, recorded = _read(directory)
        for key, value in settings.items():
            if recorded.get(key) != value:
                differs = f"{key} {recorded.get(key)}, not {value}"
                raise ConfigError(
                    f"{directory} holds a recording with {differs}; record to another folder or remove it"
                )
        if progress:
            progress(adapter.name, mix.total, mix.total)
        return recording
    check_folders(Path(out), directory.parent)
    with whole_folder(directory) as partial:
        episodes = open_writer(adapter, partial, writer)
        try:
            returns, steps = _play(adapter, episodes, mix, seed, bursts, progress)
            episodes.close()
        except BaseException:
            # Without this, EnvLogger's destructor would make the folder again when it is removed.
            with contextlib.suppress(Exception):
                episodes.close()
            raise
        content = {"settings": settings, "episodes": mix.total, "steps": steps, "returns": returns}
        (partial / MARKER).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return Recording(adapter.name, directory, writer, mix.total, steps, returns)


def _play(
    adapter: Adapter, episodes: EpisodeWriter, mix: Mix, seed: int, bursts: Bursts, progress: Progress | None
) -> tuple[dict[str, list[float]], int]:
    """Plays the episodes. Returns the episode returns by agent in collection order, and the number of steps."""
    returns: dict[str, list[float]] = {agent: [] for agent in AGENTS}
    total = 0
    for index, agent in enumerate(mix.order()):
        reset_seed = episode_seed(adapter.name, seed, index)
        observation = adapter.reset(reset_seed)
        actor = Actor(adapter, agent, reset_seed, bursts)
        steps: list[dict[str, Any]] = []
        over = terminated = False
        while not over:
            action = actor.act()
            following, reward, terminated, truncated = adapter.step(action)
            steps.append(
                {
                    "observation": observation,
                    "action": action,
                    "reward": np.float32(reward),
                    "discount": np.float32(0 if terminated else 1),
                    "is_first": not steps,
                    "is_last": False,
                    "is_terminal": False,
                }
            )
            observation, over = following, terminated or truncated
        zero = np.float32(0)
        last = {"observation": observation, "action": np.zeros_like(action), "reward": zero, "discount": zero}
        last |= {"is_first": False, "is_last": True, "is_terminal": terminated}
        episodes.write({"steps": [*steps, last], **metadata_of(adapter, agent, index, reset_seed)})
        rewards = np.array([step["reward"] for step in steps], np.float32)
        returns[agent].append(float(np.sum(rewards, dtype=np.float64)))
        total += len(steps)
        if progress:
            progress(adapter.name, index + 1, mix.total)
    return returns, total


def read_recording(directory: str | Path) -> Recording:
    """Reads the marker of a finished task directory. Raises ConfigError if there is none."""
    return _read(Path(directory))[0]


def _read(directory: Path) -> tuple[Recording, dict[str, Any]]:
    """The recording in a directory, and its settings."""
    try:
        content: dict[str, Any] = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        settings, counts = content["settings"], (content["episodes"], content["steps"])
        return Recording(settings["env_id"], directory, settings["writer"], *counts, content["returns"]), settings
    except (OSError, ValueError, KeyError):
        raise ConfigError(f"{directory} is not a finished recording: it has no readable {MARKER}; remove it") from None


@dataclass(frozen=True)
class Job:
    """One task to record; ``options`` go to ``make``."""

    name: str
    mix: Mix
    seed: int = 0
    writer: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def record_tasks(
    work: Sequence[Job], out: str | Path, jobs: int = 1, progress: Progress | None = None
) -> list[Recording]:
    """Records every job in ``jobs`` processes at a time. Finished directories are skipped.

    The first failure is raised when the running tasks have ended; the others are left for the next call.
    """
    names = sorted(job.name for job in work)
    for name, following in pairwise(names):
        if name == following:
            raise ConfigError(f"the task {name} is named twice; one recording holds all its episodes")
    if jobs == 1 or len(work) == 1:
        return [_record(job, str(out), progress) for job in work]
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    with ProcessPoolExecutor(min(jobs, len(work)), context, _connect, (reports,)) as pool:
        running = [pool.submit(_record_reporting, job, str(out)) for job in work]
        try:
            while wait(running, timeout=0.2).not_done:
                _forward(reports, progress)
                if any(future.done() and future.exception() for future in running):
                    break
            _forward(reports, progress)
            return [future.result() for future in running]
        finally:
            pool.shutdown(cancel_futures=True)


def _record(job: Job, out: str, progress: Progress | None) -> Recording:
    adapter = make(job.name, **job.options)
    try:
        return record(adapter, out, job.mix, seed=job.seed, writer=job.writer, progress=progress)
    finally:
        adapter.close()


_reports: Any = None


def _connect(reports: Any) -> None:
    global _reports
    _reports = reports


def _record_reporting(job: Job, out: str) -> Recording:
    return _record(job, out, lambda *report: _reports.put(report))


def _forward(reports: Any, progress: Progress | None) -> None:
    while True:
        try:
            report = reports.get_nowait()
        except Empty:
            return
        if progress:
            progress(*report)
