"""What the commands share: progress on standard error, tables and notices, one JSON object with ``--json``."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gatokit.schemas.words import shown

ProgressFunction = Callable[[str, int, int], None]

_PIPED_WIDTH = 160


class Output:
    """Where a command prints: tables and sentences for people, or one JSON object on standard output.

    Progress and notices go to standard error in both cases.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.width = Console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
        """Characters of a line."""
        self._out = Console(width=self.width, highlight=False, soft_wrap=not sys.stdout.isatty(), emoji=False)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.as_json:
            self._out.print(escape(text))

    def notice(self, text: str) -> None:
        """A line on standard error that a person should read."""
        self._err.print(f"[yellow]note:[/yellow] {escape(text)}")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table for people; numbers stand right."""
        if self.as_json:
            return
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


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, does: str, example: str
) -> argparse.ArgumentParser:
    """A subparser with ``--json`` and an example at the end of its help."""
    parser = commands.add_parser(
        name,
        help=does,
        description=does[0].upper() + does[1:] + ".",
        epilog="example:\n  " + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output, nothing else")
    return parser


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
