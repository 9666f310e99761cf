"""What the commands share: progress on standard error, tables and notices, one JSON object with ``--json``, optional
packages, and numbers as arguments.

All of it is printed as text: what stands in data and in names of files does not reach the terminal as control
characters or as markup.

Rich is imported by the first command that prints, so that ``--help`` does not pay for it.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from gatokit.cli.progress import bars, lines
from gatokit.schemas.errors import missing_package
from gatokit.schemas.progress import Progress
from gatokit.schemas.words import ascii_json, shown, visible

_PIPED_WIDTH = 160


class Output:
    """Prints tables and sentences for people, or one JSON object on standard output.

    Progress and notices go to standard error in both cases.
    """

    def __init__(self, as_json: bool) -> None:
        from rich.console import Console

        self.as_json = as_json
        self.width = Console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
        """Characters of a line."""
        self._out = Console(width=self.width, highlight=False, soft_wrap=not sys.stdout.isatty(), emoji=False)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def say(self, *lines: str) -> None:
        """Prints lines for people."""
        if not self.as_json:
            for line in lines:
                self._out.print(visible(line), markup=False)

    def notice(self, text: str) -> None:
        """Prints a line that a person should read to standard error."""
        self._err.print("[yellow]note:[/yellow]", end=" ")
        self._err.print(visible(text), markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
        """Prints a table for people; columns of numbers are aligned on the right."""
        if self.as_json:
            return
        from rich.table import Table
        from rich.text import Text

        lines = [list(row) for row in rows]
        heading = Text(visible(title), style="bold", justify="left")
        table = Table(title=heading if title else None, header_style="bold")
        for number, column in enumerate(columns):
            values = [line[number] for line in lines if line[number] is not None]
            numeric = bool(values) and all(isinstance(value, int | float) for value in values)
            # A title may have a word a line, so that the column is narrow.
            words = Text("\n".join(map(visible, column.split("\n"))))
            table.add_column(words, justify="right" if numeric else "left", overflow="fold")
        for line in lines:
            table.add_row(*(Text(shown(value)) for value in line))
        self._out.print(table)

    def result(self, value: dict[str, Any]) -> None:
        """Prints the JSON object if ``--json`` was given."""
        if self.as_json:
            print(ascii_json(_finite(value)), flush=True)

    def progress(self) -> AbstractContextManager[Progress]:
        """Gives a function that moves the bar of a stage, or without a terminal writes a line a minute."""
        return bars(self._err) if self._err.is_terminal else lines(self._err)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Encloses imports; raises ConfigError if a package of ``extra`` is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("gatokit"):
            raise
        raise missing_package(error.name, extra) from None


def positive(text: str) -> int:
    """Reads an argument that is an integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def not_negative(text: str) -> int:
    """Reads an argument that is an integer of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 0 on")
    return int(text)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
