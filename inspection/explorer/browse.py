"""The tasks and rows of one session: widgets make a ``Filter``, and a page of the rows that match is drawn."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import panel as pn

from gatokit.inspection.explorer.query import Filter, Match, Order, Selection, columns_of, find, page, toggled, value_of
from gatokit.inspection.explorer.widgets import WIDGET_STYLE, Table, Words, column, table_data
from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import EpisodeRow, TaskTotals
from gatokit.schemas.errors import ConfigError, GatokitError
from gatokit.schemas.index import HELD_OUT, REASONS, TRAIN
from gatokit.schemas.words import counted, shown, visible

TASKS_A_PAGE = 15
TASK_COLUMNS = tuple(field.name for field in dataclasses.fields(TaskTotals))
ROWS_A_PAGE = 20
_MOST_OPTIONS = 2_000
"""Tasks that a list to choose from may have; more are found in the table of tasks."""
ANY = "any"
_ALL_TASKS = ""
"""The value of the choice of all tasks; no task has this name."""
_KEPT = {"kept": True, "dropped": False}
_WIDE = ("episode_id", "detail", "source_file", "shard")
_FIRST = ("episode_id", "task", "agent", "return", "steps", "kept", "reason", "split", "tokens")
"""Columns of episodes that are shown until others are chosen."""
_FIRST_OF_DOCUMENTS = ("episode_id", "kept", "reason", "split", "tokens", "records")


# --- tasks ----------------------------------------------------------------------------------------------------------


def arranged(lines: Sequence[TaskTotals], text: str, column: str, descending: bool) -> list[TaskTotals]:
    """The tasks whose name has ``text`` in it, in upper or lower case, sorted; unknown values come last."""
    named = [line for line in lines if text.casefold() in line.task.casefold()]
    known = [line for line in named if getattr(line, column) is not None]
    unknown = [line for line in named if getattr(line, column) is None]
    # A stable sort keeps equal values in order of name, also in reverse.
    return [*sorted(known, key=lambda line: getattr(line, column), reverse=descending), *unknown]


class TaskList:
    """The table of tasks of the chosen dataset: found by name, sorted, one of them chosen."""

    def __init__(self, choose: Callable[[str], None]) -> None:
        """``choose`` is called with the task that somebody clicks on."""
        self._choose = choose
        self._lines: list[TaskTotals] = []
        self._shown: list[TaskTotals] = []
        self._names: list[str] = []
        self._marked: str | None = None
        self._begin, self._order = 0, Order("task")
        self.text = pn.widgets.TextInput(
            placeholder="find a task", stylesheets=[WIDGET_STYLE], sizing_mode="stretch_width", margin=(8, 0)
        )
        self.table = Table({"open": self._open, "sort": self._sort, "begin": self._turn})
        self.text.param.watch(lambda _: self._turn(0), "value_input")

    def take(self, dataset: DatasetReader) -> list[str]:
        """Shows the tasks of another dataset, and returns their names."""
        self._lines, self._marked = dataset.task_totals, None
        hidden = {"expert_return", "threshold", "steps"} if dataset.holds_documents else {"threshold", "steps"}
        self._names = [name for name in TASK_COLUMNS if name not in hidden]
        self.text.param.update(value="", value_input="", visible=len(self._lines) > TASKS_A_PAGE)
        self._turn(0)
        return [line.task for line in self._lines]

    def mark(self, task: str | None) -> None:
        """Marks the task that rows are filtered by."""
        self._marked = task
        self._turn(self._begin)

    def _open(self, place: int) -> None:
        self._choose(self._shown[place].task)

    def _sort(self, name: str) -> None:
        self._order = toggled(self._order, name)
        self._turn(0)

    def _turn(self, begin: int) -> None:
        self._begin, order = begin, self._order
        lines = arranged(self._lines, self.text.value_input or "", order.column, order.descending)
        self._shown = lines[begin : begin + TASKS_A_PAGE]
        self.table.data = table_data(
            [column(name, number=name != "task", sorts=True) for name in self._names],
            [[shown(getattr(line, name)) for name in self._names] for line in self._shown],
            begin=begin,
            total=len(lines),
            size=TASKS_A_PAGE,
            sort=order.column,
            descending=order.descending,
            marked=next((at for at, line in enumerate(self._shown) if line.task == self._marked), -1),
            empty="No task has this in its name." if self._lines else "The dataset has no tasks.",
            unit="tasks",
        )


# --- rows -----------------------------------------------------------------------------------------------------------


class _Superseded(Exception):
    """Another query has begun meanwhile."""


class Browse:
    """The widgets that find rows, by name, and what they found."""

    def __init__(
        self,
        datasets: Sequence[DatasetReader],
        selection: Selection,
        open_row: Callable[[DatasetReader, EpisodeRow], None],
        selection_changed: Callable[[], None],
    ) -> None:
        """``open_row`` is called with a row to open."""
        self._datasets = {dataset.name: dataset for dataset in datasets}
        self._selection, self._open_row, self._selection_changed = selection, open_row, selection_changed
        self._match: Match | None = None
        self._page: list[EpisodeRow] = []
        self._begin = self._query = 0
        self._opened: tuple[str, int] | None = None
        self._order: Order | None = None
        self._missing: tuple[str, ...] = ()
        self._lock = asyncio.Lock()
        self._is_resetting = False
        style: dict[str, Any] = {"stylesheets": [WIDGET_STYLE], "sizing_mode": "stretch_width", "margin": 0}
        select, write = partial(pn.widgets.Select, **style), partial(pn.widgets.TextInput, **style)
        names = list(self._datasets)
        self.dataset = select(label="dataset", options=names, value=names[0])
        self.tasks = TaskList(self._choose_task)
        self.task = select(label="task")
        self.kept = select(label="kept", options=[ANY, *_KEPT])
        self.split = select(label="split", options=[ANY, TRAIN, HELD_OUT])
        self.reason = select(label="reason", options=[ANY, *REASONS])
        self.text = write(label="text in id", placeholder="any")
        self.where = write(label="expression", placeholder="return > 0.5 * expert_return and steps < 400")
        self.wrong, self.counts = Words(visible=False), Words()
        self.rows = Table({"open": self._open, "tick": self._tick, "sort": self._sort, "begin": self._turn})
        small: dict[str, Any] = {"stylesheets": [WIDGET_STYLE], "margin": (0, 8, 6, 0)}
        button = partial(pn.widgets.Button, **small)
        self._all = button(label="select all that match", on_click=lambda _: self._select_all(True))
        self._none = button(label="unselect all that match", on_click=lambda _: self._select_all(False))
        more = pn.widgets.Toggle(label="columns", **small)
        style["css_classes"] = ["choices"]
        self._shown = pn.widgets.CheckBoxGroup(options=[], inline=True, visible=False, **style)
        more.link(self._shown, value="visible")
        buttons = pn.FlexBox(self._all, self._none, more)
        self.actions = pn.Column(buttons, self._shown, sizing_mode="stretch_width")
        self.dataset.param.watch(self._choose_dataset, "value")
        self._shown.param.watch(lambda _: self.draw_rows(), "value")
        for widget in (self.task, self.kept, self.split, self.reason, self.text, self.where):
            widget.param.watch(self._ask, "value")
        self._reset()

    @property
    def reader(self) -> DatasetReader:
        """The chosen dataset."""
        return self._datasets[self.dataset.value]

    async def refresh(self) -> None:
        """Finds what the widgets ask for and shows its first page. If that fails, shows a sentence, and the table stays
        as it was."""
        self._query += 1
        query, reader = self._query, self.reader
        self.counts.data = {"lines": ["reading …"], "style": "counts"}

        def moved(_: int) -> None:
            if query != self._query:
                raise _Superseded

        try:
            wanted = Filter(
                task=self.task.value or None,
                kept=_KEPT.get(self.kept.value),
                split=None if self.split.value == ANY else self.split.value,
                reason=None if self.reason.value == ANY else self.reason.value,
                text=self.text.value or "",
                where=self.where.value or "",
            )
            wanted.expression(reader)
            async with self._lock:
                match = await asyncio.to_thread(find, reader, wanted, self._order, moved)
        except _Superseded:
            return
        except GatokitError as error:
            self._show_error(error)
            self._draw_counts()
            return
        if query == self._query:
            self.wrong.visible = False
            self._match = match
            self._draw_counts()
            self._turn(0)

    def draw_rows(self) -> None:
        """Draws the page of rows, with what is selected and open."""
        reader, match, order, ordinals = self.reader, self._match, self._order, self._ordinals()
        known = columns_of(reader)
        names = [name for name in known if name in self._shown.value] or ["episode_id"]
        columns = [
            column(name, number=known[name].kind == "number", about=known[name].about, sorts=True, style=_style(name))
            for name in names
        ]
        self.rows.data = table_data(
            columns,
            [[shown(value_of(row, name)) for name in names] for row in self._page],
            begin=self._begin,
            total=0 if match is None else match.rows,
            size=ROWS_A_PAGE,
            sort=None if order is None else order.column,
            descending=order is not None and order.descending,
            ticked=None if reader.holds_documents else self._selection.holds(reader.name, ordinals),
            marked=next((at for at, ordinal in enumerate(ordinals) if (reader.name, ordinal) == self._opened), -1),
            fixed=True,
            empty="Nothing matches." if match is not None else "Reading …",
        )

    def _ask(self, _: object) -> None:
        if not self._is_resetting:
            self.tasks.mark(self.task.value or None)
            pn.state.execute(self.refresh)

    def _choose_dataset(self, _: object) -> None:
        self._reset()
        pn.state.execute(self.refresh)

    def _reset(self) -> None:
        """Clears filters, order and rows for the chosen dataset."""
        reader = self.reader
        self._missing = reader.missing_columns()
        self._order, self._match, self._page = None, None, []
        names = self.tasks.take(reader)
        self._is_resetting = True
        self.task.param.update(options=_options(names if len(names) <= _MOST_OPTIONS else []), value=_ALL_TASKS)
        for widget in (self.kept, self.split, self.reason):
            widget.value = ANY
        self.text.value = self.where.value = ""
        self._is_resetting = False
        shown_first = list(_FIRST_OF_DOCUMENTS if reader.holds_documents else _FIRST)
        self._shown.param.update(options=list(columns_of(reader)), value=shown_first)
        self._all.visible = self._none.visible = not reader.holds_documents

    def _choose_task(self, task: str) -> None:
        if task not in self.task.options.values():
            self.task.options = _options([task])
        self.task.value = _ALL_TASKS if self.task.value == task else task

    def _sort(self, name: str) -> None:
        self._order = None if self._order == Order(name, True) else toggled(self._order, name)
        pn.state.execute(self.refresh)

    def _turn(self, begin: int) -> None:
        self._begin = begin
        try:
            self._page = [] if self._match is None else page(self.reader, self._match, begin, begin + ROWS_A_PAGE)
        except GatokitError as error:
            self._show_error(error)
        self.draw_rows()

    def _ordinals(self) -> list[int]:
        ordinals: Any = [] if self._match is None else self._match.ordinals[self._begin : self._begin + len(self._page)]
        return [int(ordinal) for ordinal in ordinals]

    def _open(self, place: int) -> None:
        self._opened = self.reader.name, self._ordinals()[place]
        self.draw_rows()
        self._open_row(self.reader, self._page[place])

    def _tick(self, ticked: tuple[int, bool]) -> None:
        place, on = ticked
        self._select([self._ordinals()[place]], on)

    def _select_all(self, on: bool) -> None:
        if self._match is not None:
            self._select(self._match.ordinals, on)

    def _select(self, ordinals: Any, on: bool) -> None:
        change = self._selection.add if on else self._selection.remove
        change(self.reader.name, ordinals)
        self.draw_rows()
        self._selection_changed()

    def _show_error(self, error: GatokitError) -> None:
        text = str(error)
        if isinstance(error, ConfigError):
            text = text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
        self.wrong.param.update(data={"lines": [text], "style": "wrong"}, visible=True)

    def _draw_counts(self) -> None:
        match, reader = self._match, self.reader
        if match is None:
            self.counts.data = {}
            return
        words = [f"{counted(match.rows, 'row')} match", f"{match.kept:,} kept"]
        if not reader.holds_documents:
            words.append(counted(match.steps, "step"))
        words.append(counted(match.tokens, "token") if reader.totals.shards else "no tokens in a scan")
        lines = [", ".join(words)]
        if self._missing:
            lines.append(f"The index lacks {', '.join(self._missing)}: what depends on them is unknown.")
        self.counts.data = {"lines": lines, "style": "counts"}


def _style(name: str) -> str:
    return "wide" if name in _WIDE else ""


def _options(tasks: Sequence[str]) -> dict[str, str]:
    return {ANY: _ALL_TASKS, **{visible(task): task for task in tasks if task != ANY}}
