"""The tasks of a dataset as lines of a table, found by name and sorted."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.rows import TaskRow


@dataclass(frozen=True)
class TaskLine:
    """A task, all its agents together; ``found`` counts rows of the index."""

    task: str
    found: int
    kept: int
    expert_return: float | None
    threshold: float | None
    steps: int


TASK_COLUMNS = tuple(field.name for field in dataclasses.fields(TaskLine))


def task_lines(dataset: DatasetReader) -> list[TaskLine]:
    """Every task, in order of name."""
    streams: dict[str, list[TaskRow]] = {}
    for row in dataset.tasks:
        streams.setdefault(row.task, []).append(row)
    return [
        TaskLine(
            task=task,
            found=sum((row.kept or 0) + (row.dropped or 0) for row in rows),
            kept=sum(row.kept or 0 for row in rows),
            expert_return=next((row.expert_return for row in rows if row.expert_return is not None), None),
            threshold=next((row.threshold for row in rows if row.threshold is not None), None),
            steps=sum(row.steps or 0 for row in rows),
        )
        for task, rows in sorted(streams.items())
    ]


def arranged(lines: Sequence[TaskLine], text: str, column: str, descending: bool) -> list[TaskLine]:
    """The tasks whose name holds ``text``, in any case of letters, sorted; what is unknown comes last."""
    named = [line for line in lines if text.casefold() in line.task.casefold()]
    known = [line for line in named if getattr(line, column) is not None]
    unknown = [line for line in named if getattr(line, column) is None]
    # Reversed twice: equal values stay in order of name.
    ordered = sorted(known[::-1] if descending else known, key=lambda line: getattr(line, column))
    return [*(ordered[::-1] if descending else ordered), *unknown]
