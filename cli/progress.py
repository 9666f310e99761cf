"""How far a command is, on standard error: bars on a terminal, and a line a minute where a log is kept."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gatokit.schemas.progress import Progress
from gatokit.schemas.words import byte_size, duration, visible

if TYPE_CHECKING:
    from rich.console import Console

_LINE_SECONDS = 60.0


class Stage:
    """What is known of a stage: where it began and how far it is."""

    def __init__(self, now: float, done: int, size: int) -> None:
        self.begin, self._first_done, self._first_size = now, done, size
        self.done, self.total, self.rows, self.size, self.total_size = done, 0, 0, size, 0

    @property
    def is_over(self) -> bool:
        """Whether all is done."""
        return self.done >= self.total > 0

    def reach(self, done: int, total: int, rows: int, size: int, total_size: int) -> None:
        """See ``schemas.progress.Progress``."""
        self.done, self.total, self.rows, self.size, self.total_size = done, total, rows, size, total_size

    def counts(self, now: float) -> str:
        """Rows, bytes, rate and time left, as far as they are known."""
        parts, seconds = [], now - self.begin
        if self.rows:
            parts.append(f"{self.rows:,} rows")
        if self.total_size:
            parts.append(f"{byte_size(self.size)} of {byte_size(self.total_size)}")
        moved, left = self.done - self._first_done, self.total - self.done
        if self.total_size and self.size > self._first_size:
            moved, left = self.size - self._first_size, self.total_size - self.size
            if seconds > 0:
                parts.append(f"{byte_size(moved / seconds)}/s")
        if moved > 0 and left > 0 and seconds > 0:
            parts.append(f"{duration(left / moved * seconds)} left")
        return ", ".join(parts)


class Lines:
    """Writes a line a minute for each stage, and one when it is done. Stages may go on side by side."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._stages: dict[str, Stage] = {}
        self._written: dict[str, float] = {}

    def __call__(
        self, stage: str, done: int, total: int, /, *, rows: int = 0, size: int = 0, total_size: int = 0
    ) -> None:
        """See ``Progress``."""
        now = self._clock()
        known = self._stages.get(stage)
        if known is None or done < known.done:
            known = self._stages[stage] = Stage(now, done, size)
            self._written[stage] = now
        was_over = known.is_over
        known.reach(done, total, rows, size, total_size)
        if known.is_over and not was_over:
            self._say(stage, duration(now - known.begin))
        elif not known.is_over and now - self._written[stage] >= _LINE_SECONDS:
            self._written[stage] = now
            self._say(stage, known.counts(now))

    def end(self) -> None:
        """Nothing more comes: the stages that are not done end where they are."""
        for name, stage in self._stages.items():
            if not stage.is_over:
                self._say(name, duration(self._clock() - stage.begin))

    def _say(self, name: str, more: str) -> None:
        stage = self._stages[name]
        self._write(f"{visible(name)}: {stage.done:,} of {stage.total:,}" + (f", {more}" if more else ""))


@contextmanager
def bars(console: "Console") -> Iterator[Progress]:
    """A bar for each stage, with its counts."""
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    shown: dict[str, tuple[Any, Stage]] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeElapsedColumn(), TextColumn("{task.fields[counts]}"), console=console) as drawn:

        def update(stage: str, done: int, total: int, /, *, rows: int = 0, size: int = 0, total_size: int = 0) -> None:
            now = time.monotonic()
            if stage not in shown:
                shown[stage] = drawn.add_task(visible(stage), counts=""), Stage(now, done, size)
            task, known = shown[stage]
            known.reach(done, total, rows, size, total_size)
            drawn.update(task, completed=done, total=total, counts=known.counts(now))

        yield update


@contextmanager
def lines(console: "Console") -> Iterator[Progress]:
    """Lines for a log."""
    written = Lines(lambda line: console.print(line, markup=False))
    try:
        yield written
    finally:
        written.end()
