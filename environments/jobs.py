"""Records many tasks in several processes, with one progress bar per task."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from gatokit.environments.agents import Mix
from gatokit.environments.record import Progress, Recording, record
from gatokit.environments.registry import make
from gatokit.schemas.errors import ConfigError


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
    names = [job.name for job in work]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ConfigError(f"the task {duplicates[0]} is named twice; one recording holds all its episodes")
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


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A callback for ``record`` and ``record_tasks`` that shows one bar per task on standard error."""
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        rows: dict[str, TaskID] = {}

        def move(task: str, done: int, total: int) -> None:
            if task not in rows:
                rows[task] = bars.add_task(task, total=total)
            bars.update(rows[task], completed=done)

        yield move
