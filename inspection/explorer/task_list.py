"""The table of tasks of one session: found by name, sorted, one of them chosen."""

import dataclasses
from collections.abc import Callable, Sequence

import panel as pn

from gatokit.inspection.explorer.query import Order, toggled
from gatokit.inspection.explorer.widgets import WIDGET_STYLE, Table, column, table_data
from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import TaskTotals
from gatokit.schemas.words import shown

TASKS_A_PAGE = 15
TASK_COLUMNS = tuple(field.name for field in dataclasses.fields(TaskTotals))


def arranged(lines: Sequence[TaskTotals], text: str, column: str, descending: bool) -> list[TaskTotals]:
    """The tasks whose name has ``text`` in it, in upper or lower case, sorted; unknown values come last."""
    named = [line for line in lines if text.casefold() in line.task.casefold()]
    known = [line for line in named if getattr(line, column) is not None]
    unknown = [line for line in named if getattr(line, column) is None]
    # A stable sort keeps equal values in order of name, also in reverse.
    return [*sorted(known, key=lambda line: getattr(line, column), reverse=descending), *unknown]


class TaskList:
    """The tasks of the chosen dataset."""

    def __init__(self, choose: Callable[[str], None]) -> None:
        """``choose`` is called with the task that somebody clicks on."""
        self._choose = choose
        self._lines: list[TaskTotals] = []
        self._hidden: set[str] = set()
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
        self._hidden = {"expert_return", "threshold", "steps"} if dataset.holds_documents else {"threshold", "steps"}
        self.text.param.update(value="", value_input="", visible=len(self._lines) > TASKS_A_PAGE)
        self._turn(0)
        return [line.task for line in self._lines]

    def mark(self, task: str | None) -> None:
        """Marks the task that rows are filtered by."""
        self._marked = task
        self._draw()

    def _open(self, place: int) -> None:
        self._choose(self._arranged()[self._begin + place].task)

    def _sort(self, name: str) -> None:
        self._order = toggled(self._order, name)
        self._turn(0)

    def _turn(self, begin: int) -> None:
        self._begin = begin
        self._draw()

    def _arranged(self) -> list[TaskTotals]:
        return arranged(self._lines, self.text.value_input or "", self._order.column, self._order.descending)

    def _draw(self) -> None:
        lines = self._arranged()
        listed = lines[self._begin : self._begin + TASKS_A_PAGE]
        names = [name for name in TASK_COLUMNS if name not in self._hidden]
        self.table.data = table_data(
            [column(name, number=name != "task", sorts=True) for name in names],
            [[shown(getattr(line, name)) for name in names] for line in listed],
            begin=self._begin,
            total=len(lines),
            size=TASKS_A_PAGE,
            sort=self._order.column,
            descending=self._order.descending,
            marked=next((at for at, line in enumerate(listed) if line.task == self._marked), -1),
            empty="No task has this in its name." if self._lines else "The dataset has no tasks.",
            unit="tasks",
        )
