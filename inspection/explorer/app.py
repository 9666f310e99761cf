"""The page of one session: tasks, filters and rows, what is open, what is selected."""

from collections.abc import Sequence
from importlib import resources
from pathlib import PurePath

import panel as pn

from gatokit.inspection.explorer.browse import Browse
from gatokit.inspection.explorer.opened import Opened
from gatokit.inspection.explorer.picked import Picked, config_lines
from gatokit.inspection.explorer.widgets import WIDGET_STYLE, Words
from gatokit.inspection.explorer.words import counted
from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.directory import Directory

LIST = "episodes.csv"
"""The name of an exported list."""
_HINT = "Tick episodes to select them; they become a list for keep: {episodes: FILE}."


def session_page(directory: Directory, datasets: Sequence[DatasetReader], picked: Picked, export: str) -> pn.Template:
    """The page of a new session, with its own selection, whose list is at the address ``export``."""
    opened = Opened(directory)
    selection = Words()
    clear = pn.widgets.Button(label="clear", stylesheets=[WIDGET_STYLE], margin=(6, 0, 0, 0), visible=False)

    def draw_selection() -> None:
        counts = picked.counts()
        clear.visible = bool(counts)
        if not counts:
            selection.data = {
                "lines": [_HINT],
                "style": "soft",
            }
            return
        total = sum(counts.values())
        of = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
        selection.data = {
            "lines": [f"{counted(total, 'episode')} selected: {of}"],
            "link": {"href": export, "name": LIST, "text": f"download {LIST}"},
            "code": config_lines(counts, LIST),
        }

    browse = Browse(datasets, picked, opened.show, draw_selection)

    def clear_all(_: object) -> None:
        picked.clear()
        browse.redraw()
        draw_selection()

    clear.on_click(clear_all)
    draw_selection()
    pn.state.onload(browse.refresh)
    kinds = "a finished build" if directory.manifest.content == "build" else "a scan: no tokens are stored"
    roots = {
        "picked": pn.Column(selection, clear, sizing_mode="stretch_width"),
        "opened": opened.panel,
        "tasks": browse.tasks.table,
        "task_text": browse.tasks.text,
        **{
            name: getattr(browse, name)
            for name in (
                "dataset", "task", "kept", "split", "reason", "text", "where", "wrong", "counts",
                "actions", "rows",
            )
        },
    }  # fmt: skip
    page = pn.Template(_part("page.html"), items=roots)
    page.add_variable("style", _part("page.css"))
    page.add_variable("name", PurePath(directory.path).name or str(directory.path))
    page.add_variable("about", f"{directory.path}: {kinds}, {counted(len(datasets), 'dataset')}")
    return page


def _part(name: str) -> str:
    return (resources.files("gatokit.inspection.explorer") / name).read_text(encoding="utf-8")
