"""Rollouts of scripted agents, played by several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from gatokit.environments.adapter import Adapter
from gatokit.environments.registry import make
from gatokit.evaluation.rollout_log import RolloutLog
from gatokit.evaluation.rollouts import AgentMaker, Rollout, play
from gatokit.schemas.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called with who plays, the rollouts that are finished and those in all."""


@dataclass(frozen=True)
class Match:
    """An environment, the options that go to ``make``, and the agents that play in it, by their names in the log."""

    task: str
    options: dict[str, Any]
    makers: Mapping[str, AgentMaker]


def options_of(name: str, time_limits: Mapping[str, int]) -> dict[str, Any]:
    """The options of an environment whose time limit (steps) stands under its name or its family's, or nowhere."""
    limit = time_limits.get(name, time_limits.get(name.partition("/")[0]))
    return {} if limit is None else {"time_limit": limit}


def play_missing(log: RolloutLog, matches: Sequence[Match], rollouts: int, workers: int, progress: Progress) -> None:
    """Plays what the log lacks of each agent's first ``rollouts`` rollouts in every match, in ``workers`` processes."""
    done: dict[str, int] = {}
    total: dict[str, int] = {}
    jobs = []
    for match in matches:
        for agent, maker in match.makers.items():
            missing = log.missing(match.task, agent, rollouts)
            done[agent] = done.get(agent, 0) + rollouts - len(missing)
            total[agent] = total.get(agent, 0) + rollouts
            jobs += [RolloutJob(match.task, agent, number, maker, match.options) for number in missing]
    for agent, count in done.items():
        progress(agent, count, total[agent])
    for job, rollout in play_jobs(jobs, workers):
        log.add(job.task, job.agent, rollout)
        done[job.agent] += 1
        progress(job.agent, done[job.agent], total[job.agent])


@dataclass(frozen=True)
class RolloutJob:
    """One rollout to play. ``maker`` can be pickled; ``options`` go to ``make``."""

    task: str
    agent: str
    number: int
    maker: AgentMaker
    options: dict[str, Any] = field(default_factory=dict)


def play_jobs(jobs: Sequence[RolloutJob], workers: int) -> Iterator[tuple[RolloutJob, Rollout]]:
    """Plays every job and yields it with its rollout when that ends, in any order.

    Jobs of one task should follow each other, since a process keeps the adapter of its last one. DataError where a
    process dies.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from _play_here(jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        running = {pool.submit(_play_in_worker, job): job for job in jobs}
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


class _Stage:
    """The adapter of the last job."""

    def __init__(self) -> None:
        self._made: tuple[str, dict[str, Any]] | None = None
        self._adapter: Adapter | None = None

    def play(self, job: RolloutJob) -> Rollout:
        if self._adapter is None or self._made != (job.task, job.options):
            self.close()
            self._adapter, self._made = make(job.task, **job.options), (job.task, job.options)
        return next(play([self._adapter], job.maker([self._adapter]), [job.number]))

    def close(self) -> None:
        if self._adapter is not None:
            self._adapter.close()
        self._adapter = None


def _play_here(jobs: Sequence[RolloutJob]) -> Iterator[tuple[RolloutJob, Rollout]]:
    stage = _Stage()
    try:
        for job in jobs:
            yield job, stage.play(job)
    finally:
        stage.close()


_stage = _Stage()


def _play_in_worker(job: RolloutJob) -> Rollout:
    return _stage.play(job)


def _begin_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
