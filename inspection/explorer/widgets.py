"""The widgets that Panel does not have: a table of any length, a player of steps, a document, a text.

Each is a script beside this file, with ``make.js``. It draws ``data``, always as visible text and never as HTML, and
sends messages; ``answers`` has the function for each message by name, which is called with its value.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import panel as pn
import param

from gatokit.schemas.words import visible_texts

_HERE = Path(__file__).parent


def _script(name: str) -> str:
    """A script, with the one that all use before it."""
    return "\n".join((_HERE / part).read_text(encoding="utf-8") for part in ("make.js", name))


WIDGET_STYLE = (_HERE / "widgets.css").read_text(encoding="utf-8")
"""The style of Panel's own widgets and of these."""


class Drawn(pn.custom.JSComponent):
    """A component that a script draws."""

    data = param.Dict(default={}, doc="What to draw.")

    _stylesheets = [WIDGET_STYLE]  # noqa: RUF012
    __abstract = True

    def __init__(self, answers: Mapping[str, Callable[[Any], None]] | None = None, **params: Any) -> None:
        super().__init__(**{"sizing_mode": "stretch_width", "margin": 0, **params})
        self._answers = dict(answers or {})

    def _process_param_change(self, params: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = super()._process_param_change(params)
        if "data" in changed:
            changed["data"] = visible_texts(changed["data"])
        return changed

    def _handle_msg(self, data: dict[str, Any]) -> None:
        for name, value in data.items():
            self._answers[name](value)


class Table(Drawn):
    """Rows of a longer table: ``table_data`` makes what it draws. Messages: ``open`` (place of a row), ``tick``
    ([place, on]), ``sort`` (name of a column), ``begin`` (of the page that is wanted)."""

    _esm = _script("table.js")


class Player(Drawn):
    """A time step with a slider over all of them. Message: ``step``."""

    _esm = _script("player.js")


class Parts(Drawn):
    """Texts and images in reading order: ``parts`` are ``{"text": …}`` or ``{"url": …, "about": …}``."""

    _esm = _script("parts.js")


class Words(Drawn):
    """Paragraphs: ``lines`` are texts, ``code`` a text to copy, ``link`` where a file is downloaded from and its name,
    ``style`` a class; a new ``reveal`` scrolls to it."""

    _esm = _script("words.js")


def table_data(columns: list[dict[str, Any]], rows: list[list[str]], **more: Any) -> dict[str, Any]:
    """What ``Table`` draws: columns as ``column`` makes them, and rows.

    ``more``: the rows are those from ``begin`` on of ``total``, in pages of ``size``, sorted by ``sort``,
    ``descending`` or not. ``ticked`` says of each whether it is ticked, and is None if rows cannot be. ``marked`` is
    the place of the open row. ``fixed`` cuts texts so that each row is one line; ``opens`` says whether rows can be
    opened; ``empty`` stands in place of no rows, ``unit`` behind their number.
    """
    data: dict[str, Any] = {"begin": 0, "total": len(rows), "size": max(1, len(rows)), "sort": None, "ticked": None}
    data |= {"descending": False, "marked": -1, "fixed": False, "opens": True, "empty": "", "unit": "rows"}
    return data | {"columns": columns, "rows": rows} | more


def column(name: str, *, number: bool = False, about: str = "", sorts: bool = False, style: str = "") -> dict[str, Any]:
    """A column of ``Table``; numbers are aligned on the right, ``style`` is ``wide`` (ids), ``word`` or ``note``."""
    return {"name": name, "number": number, "about": about, "sorts": sorts, "style": style}
