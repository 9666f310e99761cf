"""Numbered rollouts of one task by one agent: side by side on several adapters, or in several processes.

Rollout number i has the same seed for every agent, so that agents can be compared by pairs.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from gatokit.environments.adapter import Action, Adapter, Observation
from gatokit.environments.agents import RECORDING_SEEDS, Actor
from gatokit.environments.registry import make
from gatokit.schemas.errors import DataError


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
        self._adapters = adapters
        self._agent = agent
        self._actors: dict[int, Actor] = {}

    def begin(self, row: int, seed: int) -> None:
        """Starts a new episode in ``row``."""
        self._actors[row] = Actor(self._adapters[row], self._agent, seed)

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        """The action of each row's actor in the simulator's current state."""
        return {row: self._actors[row].act() for row in observations}


@dataclass
class _Episode:
    """A rollout that is being played."""

    number: int
    observation: Observation
    rewards: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)


def rollout_seed(number: int) -> int:
    """The environment's seed in rollout ``number``: the same for every agent, and never that of a recording."""
    return RECORDING_SEEDS + number


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
        seed = rollout_seed(number)
        episodes[row] = _Episode(number, adapters[row].reset(seed))
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
                number, steps = episode.number, len(episode.rewards)
                yield Rollout(number, rollout_seed(number), episode_return, steps, seconds)
                begin(row)


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
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
