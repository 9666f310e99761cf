"""What the commands share: progress on standard error, tables and notices, one JSON object with ``--json``, and the
packages that only some of them need.

Rich is imported by the first command that prints, so that ``--help`` does not pay for it.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gatokit.schemas.errors import missing_package
from gatokit.schemas.words import shown

ProgressFunction = Callable[[str, int, int], None]

_PIPED_WIDTH = 160


class Output:
    """Where a command prints: tables and sentences for people, or one JSON object on standard output.

    Progress and notices go to standard error in both cases.
    """

    def __init__(self, as_json: bool) -> None:
        from rich.console import Console

        self.as_json = as_json
        self.width = Console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
        """Characters of a line."""
        self._out = Console(width=self.width, highlight=False, soft_wrap=not sys.stdout.isatty(), emoji=False)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.as_json:
            self._out.print(text, markup=False)

    def notice(self, text: str) -> None:
        """A line on standard error that a person should read."""
        self._err.print("[yellow]note:[/yellow]", end=" ")
        self._err.print(text, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table for people; numbers stand right."""
        if self.as_json:
            return
        from rich.markup import escape
        from rich.table import Table

        rows = [list(row) for row in rows]
        table = Table(title=escape(title), title_justify="left", title_style="bold", header_style="bold")
        for number, column in enumerate(columns):
            values = [row[number] for row in rows if row[number] is not None]
            numeric = bool(values) and all(isinstance(value, int | float) for value in values)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(shown(value)) for value in row))
        self._out.print(table)

    def result(self, value: dict[str, Any]) -> None:
        """The JSON object of ``--json``; nothing without it."""
        if self.as_json:
            print(json.dumps(_finite(value), ensure_ascii=False), flush=True)

    @contextmanager
    def progress(self) -> Iterator[ProgressFunction]:
        """A function (stage, done, total) that moves one bar a stage."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._err,
        )
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        with bar:
            yield update


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: raises ConfigError if a package of ``extra`` is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("gatokit"):
            raise
        raise missing_package(error.name.partition(".")[0], extra) from None


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
