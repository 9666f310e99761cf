"""Where tables are printed: the part of a command's output that they use, and tables that fit a line."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from gatokit.schemas.progress import Progress
from gatokit.schemas.words import shown


class Output(Protocol):
    """Prints tables and sentences for people, or one JSON object; ``cli.console.Output`` is one."""

    as_json: bool
    """Whether only the JSON object is printed."""
    width: int
    """Characters of a line."""

    def say(self, *lines: str) -> None:
        """Prints lines for people."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints a table for people."""

    def result(self, value: dict[str, Any]) -> None:
        """Prints the JSON object, if it is asked for."""

    def progress(self) -> AbstractContextManager[Progress]:
        """A function (stage, done, total) that shows progress."""


def titled(keys: str, **titles: str) -> dict[str, str]:
    """The title of each of some columns, whose keys are given as words: one of ``titles``, else the key with spaces."""
    return {key: titles.get(key, key.replace("_", " ")) for key in keys.split()}


def known_columns(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The columns in which some row has a value."""
    return {key: title for key, title in columns.items() if any(row[key] not in (None, "") for row in rows)}


def show_table(
    output: Output,
    title: str,
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    least: str = "",
) -> None:
    """Prints a table. ``columns`` has the title of each key of ``rows`` that is shown.

    If the table is wider than a line, columns of ``least``, keys as words, are left out from the first on until it
    fits; its title names them.
    """
    left = dict(columns)
    for key in least.split():
        widths = [max(map(len, [*name.split(), *(shown(row[at]) for row in rows)])) for at, name in left.items()]
        if sum(widths) + 3 * len(widths) + 1 <= output.width:
            break
        left.pop(key, None)
    dropped = [name for key, name in columns.items() if key not in left]
    output.table(
        title + (f" (too narrow for {', '.join(dropped)})" if dropped else ""),
        [name.replace(" ", "\n") for name in left.values()],
        [[row[key] for key in left] for row in rows],
    )
