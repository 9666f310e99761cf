"""One progress bar a task on standard error, for recorders."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from gatokit.environments.record import Progress


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Yields a callback for ``record`` and ``record_tasks`` that moves the bar of the task it is called with."""
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        rows: dict[str, TaskID] = {}

        def move(task: str, done: int, total: int) -> None:
            if task not in rows:
                rows[task] = bars.add_task(task, total=total)
            bars.update(rows[task], completed=done)

        yield move
