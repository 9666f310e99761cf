"""The page of one session: tasks, filters and rows, what is open, what is selected."""

from collections.abc import Sequence
from importlib import resources
from pathlib import PurePath

import panel as pn

from gatokit.inspection.explorer.browse import Browse
from gatokit.inspection.explorer.opened import Opened
from gatokit.inspection.explorer.selection import Selection, config_lines
from gatokit.inspection.explorer.widgets import WIDGET_STYLE, Words
from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.directory import Directory
from gatokit.schemas.words import counted

LIST = "episodes.csv"
"""The name of an exported list."""
_HINT = "Tick episodes to select them; they become a list for keep: {episodes: FILE}."


def session_page(
    directory: Directory, datasets: Sequence[DatasetReader], selection: Selection, export: str
) -> pn.Template:
    """The page of a new session; the list of its ``selection`` is at the address ``export``."""
    opened = Opened(directory)
    summary = Words()
    clear = pn.widgets.Button(label="clear", stylesheets=[WIDGET_STYLE], margin=(6, 0, 0, 0), visible=False)

    def draw_selection() -> None:
        counts = selection.counts()
        clear.visible = bool(counts)
        if not counts:
            summary.data = {"lines": [_HINT], "style": "soft"}
            return
        total = sum(counts.values())
        of = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
        summary.data = {
            "lines": [f"{counted(total, 'episode')} selected: {of}"],
            "link": {"href": export, "name": LIST, "text": f"download {LIST}"},
            "code": config_lines(counts, LIST),
        }

    browse = Browse(datasets, selection, opened.show, draw_selection)

    def clear_all(_: object) -> None:
        selection.clear()
        browse.draw_rows()
        draw_selection()

    clear.on_click(clear_all)
    draw_selection()
    pn.state.onload(browse.refresh)
    kinds = "a finished build" if directory.manifest.content == "build" else "a scan: no tokens are stored"
    roots = {
        "selection": pn.Column(summary, clear, sizing_mode="stretch_width"),
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
    page = pn.Template(_file("page.html"), items=roots)
    page.add_variable("style", _file("page.css"))
    page.add_variable("name", PurePath(directory.path).name or str(directory.path))
    page.add_variable("about", f"{directory.path}: {kinds}, {counted(len(datasets), 'dataset')}")
    return page


def _file(name: str) -> str:
    return (resources.files("gatokit.inspection.explorer") / name).read_text(encoding="utf-8")
