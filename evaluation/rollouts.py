"""Numbered rollouts of one task by one agent: side by side on several adapters, or in several processes.

Rollout number i has the same seed for every agent, so that agents can be compared by pairs. Finished rollouts are lines
of ``rollouts.jsonl``, so that an evaluation continues where it was killed.
"""

import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from gatokit.environments.adapter import Action, Adapter, Observation
from gatokit.environments.agents import RECORDING_SEEDS, Actor
from gatokit.environments.registry import make
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.progress import Progress
from gatokit.schemas.words import one_line
from gatokit.storage.files import open_appending, write_atomically, writing
from gatokit.storage.folder import read_json
from gatokit.storage.ownership import check_own

_ROLLOUTS = "rollouts.jsonl"
_SETTINGS = "evaluation.json"
_WRITTEN = (_ROLLOUTS, "scores.json", "scores.png", "ceiling.json", "videos")
"""What evaluations write into the folder."""


@dataclass(frozen=True)
class Rollout:
    """One finished episode.

    ``episode_return`` is the float64 sum of float32 rewards, as recorders sum them. ``seconds`` is the time from its
    beginning to its end, during which other episodes may have been played beside it.
    """

    number: int
    seed: int
    episode_return: float
    steps: int
    seconds: float


class RowAgent(Protocol):
    """An agent that plays rows of one task; each row is an episode of its own."""

    def begin(self, row: int, seed: int) -> None:
        """Starts a new episode in ``row``; everything random in the agent follows from ``seed``."""

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        """The action of each row that is given with its observation."""


AgentMaker = Callable[[Sequence[Adapter]], RowAgent]
"""Makes the agent that plays on these adapters, one a row."""

Watch = Callable[[int, Adapter], None]
"""Called with a rollout's number and its adapter after the reset and after every step."""


class Scripted:
    """The scripted expert (random where it has no action, as in recordings) or the random agent."""

    def __init__(self, adapters: Sequence[Adapter], agent: Literal["expert", "random"]) -> None:
        self.adapters, self._agent = adapters, agent
        self._actors: dict[int, Actor] = {}

    def begin(self, row: int, seed: int) -> None:
        """Starts a new episode in ``row``."""
        self._actors[row] = Actor(self.adapters[row], self._agent, seed)

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        """The action of each row's actor in the simulator's current state."""
        return {row: self._actors[row].act() for row in observations}


@dataclass
class _Episode:
    """A rollout that is being played."""

    number: int
    seed: int
    observation: Observation
    rewards: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)


def play(
    adapters: Sequence[Adapter], agent: RowAgent, numbers: Iterable[int], watch: Watch | None = None
) -> Iterator[Rollout]:
    """Plays the rollouts ``numbers`` and yields each when it ends; its row begins the next one at once.

    Row i plays on ``adapters[i]``; rows for which no rollout is left stay idle.
    """
    waiting = iter(numbers)
    episodes: dict[int, _Episode] = {}

    def begin(row: int) -> None:
        episodes.pop(row, None)
        number = next(waiting, None)
        if number is None:
            return
        seed = RECORDING_SEEDS + number  # never the seed of a recording
        episodes[row] = _Episode(number, seed, adapters[row].reset(seed))
        agent.begin(row, seed)
        if watch:
            watch(number, adapters[row])

    for row in range(len(adapters)):
        begin(row)
    while episodes:
        actions = agent.act({row: episode.observation for row, episode in episodes.items()})
        for row, episode in list(episodes.items()):
            episode.observation, reward, terminated, truncated = adapters[row].step(actions[row])
            episode.rewards.append(reward)
            if watch:
                watch(episode.number, adapters[row])
            if terminated or truncated:
                episode_return = float(np.sum(np.array(episode.rewards, np.float32), dtype=np.float64))
                seconds = time.monotonic() - episode.started
                yield Rollout(episode.number, episode.seed, episode_return, len(episode.rewards), seconds)
                begin(row)


# --- in several processes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RolloutJob:
    """One rollout to play. ``agent`` is the agent's name in the log, ``maker`` can be pickled, ``options`` go to
    ``make``."""

    task: str
    agent: str
    number: int
    maker: AgentMaker
    options: dict[str, Any] = field(default_factory=dict)


def environment_options(name: str, time_limits: Mapping[str, int]) -> dict[str, Any]:
    """The options of an environment: its time limit in steps, if one is given under its name or its family's."""
    limit = time_limits.get(name, time_limits.get(name.partition("/")[0]))
    return {} if limit is None else {"time_limit": limit}


def play_jobs(jobs: Sequence[RolloutJob], workers: int) -> Iterator[tuple[RolloutJob, Rollout]]:
    """Plays every job and yields it with its rollout when that ends, in any order.

    Jobs of one task should follow each other, because a process keeps the adapter of its last job. Raises DataError if
    a process dies.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        try:
            for job in jobs:
                yield job, _play_job(job)
        finally:
            _close_adapter()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        running = {pool.submit(_play_job, job): job for job in jobs}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BrokenProcessPool:
            raise DataError(
                "a process that played rollouts was killed, most likely for memory; run the same command again, with "
                "fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_adapter: tuple[str, dict[str, Any], Adapter] | None = None
"""Task, options and adapter of this process's last job."""


def _play_job(job: RolloutJob) -> Rollout:
    global _adapter
    if _adapter is None or _adapter[:2] != (job.task, job.options):
        _close_adapter()
        _adapter = job.task, job.options, make(job.task, **job.options)
    adapter = _adapter[2]
    return next(play([adapter], job.maker([adapter]), [job.number]))


def _close_adapter() -> None:
    global _adapter
    if _adapter is not None:
        _adapter[2].close()
    _adapter = None


def _begin_worker() -> None:
    """Makes a worker leave Ctrl-C to its parent, and end if the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


# --- the log -----------------------------------------------------------------------------------------------------


class RolloutLog:
    """The rollouts of one directory (``rollouts.jsonl``), by task, agent and number; one process holds it at a time.

    Each line is appended whole. If a kill cut the last line short, the rest of it is removed, and that rollout is
    played again.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """Opens the log in ``out`` or creates it. ``settings`` are JSON values: everything that rollouts depend on
        besides their task, agent and number.

        Raises ConfigError if it holds rollouts of other settings, files that no evaluation wrote, or is in use, and
        DataError if it cannot be read or written.
        """
        self._path = out / _ROLLOUTS
        self._rollouts: dict[tuple[str, str, int], Rollout] = {}
        try:
            check_own(out, _SETTINGS, _WRITTEN)
            out.mkdir(parents=True, exist_ok=True)
            _check_settings(out, settings)
            self._file = open_appending(self._path)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{out} is in use by another gatokit evaluate: wait for it, or give another --out"
                ) from None
            self._read()
        except OSError as error:
            raise DataError(f"{error.filename or out} cannot be read or written: {error.strerror}") from None

    def __enter__(self) -> "RolloutLog":
        return self

    def __exit__(self, *exception: object) -> None:
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
        with writing(self._path):
            self._file.write((json.dumps(key | result, allow_nan=False) + "\n").encode())
            self._file.flush()
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
                number_of, seed, steps = (int(line[name]) for name in ("number", "seed", "steps"))
                rollout = Rollout(number_of, seed, float(line["return"]), steps, float(line["seconds"]))
                self._rollouts.setdefault((str(line["task"]), str(line["agent"]), number_of), rollout)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                raise DataError(
                    f"{self._path}: line {number} is no rollout; remove the line, and that rollout is played again"
                ) from None


def _check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings if there are none; raises ConfigError if there are other ones."""
    path = out / _SETTINGS
    wanted = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, wanted)
        return
    stored = read_json(out, _SETTINGS)
    if not isinstance(stored, dict):
        raise DataError(f"{path} cannot be read: it is no JSON object; give another --out")
    for name in wanted | stored:
        if stored.get(name) != wanted.get(name):
            found, asked = (one_line(json.dumps(of.get(name)), 80) for of in (stored, wanted))
            raise ConfigError(
                f"{out} holds rollouts whose {one_line(name, 80)} is {found}, not {asked}: give another --out"
            )


def play_missing(log: RolloutLog, jobs: Sequence[RolloutJob], workers: int, progress: Progress) -> None:
    """Plays the jobs that the log does not have yet, in ``workers`` processes."""
    total = Counter(job.agent for job in jobs)
    missing = [job for job in jobs if not log.has(job.task, job.agent, job.number)]
    done = total - Counter(job.agent for job in missing)
    for agent, count in total.items():
        progress(agent, done[agent], count)
    for job, rollout in play_jobs(missing, workers):
        log.add(job.task, job.agent, rollout)
        done[job.agent] += 1
        progress(job.agent, done[job.agent], total[job.agent])


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all. Raises DataError if it cannot be written."""
    data = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(path):
        write_atomically(path, data.encode())
