"""Tables that leave out what the terminal has no room for."""

from collections.abc import Sequence
from typing import Any

from gatokit.cli.console import Output
from gatokit.schemas.words import shown


def fitting_table(
    output: Output, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], less: Sequence[str] = ()
) -> None:
    """A table without the columns of ``less``, first ones first, that the terminal is too narrow for."""
    left = list(columns)
    for name in less:
        widths = [
            max([*map(len, name.split()), *(len(shown(row[number])) for row in rows)])
            for number, name in enumerate(columns)
            if name in left
        ]
        if sum(widths) + 3 * len(widths) + 1 <= output.width:
            break
        left = [other for other in left if other != name]
    out = [name for name in columns if name not in left]
    places = [columns.index(name) for name in left]
    output.table(
        title + (f" (too narrow for {', '.join(out)})" if out else ""),
        [name.replace(" ", "\n") for name in left],
        [[row[place] for place in places] for row in rows],
    )
