"""What changed from one directory, or rule, to another."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gatokit.inspection.compare import Changes, Counts, DatasetChange, FieldChange, TaskChange
from gatokit.inspection.tables.output import Output, show_table
from gatokit.schemas.words import byte_size, shown

_MOST_TASKS = 40
_COUNTS = {"found": "found", "kept": "kept", "steps": "steps", "tokens": "tokens", "shards": "shards", "bytes": "size"}
_ROW_CHANGES = {name: name for name in ("gained", "lost", "changed", "moved")}
_TASK = {
    "dataset": "dataset",
    "task": "task",
    "expert_return": "expert return",
    "threshold": "threshold",
    "kept": "kept",
    "kept_then": "kept then",
    "gained": "gained",
    "lost": "lost",
    "changed": "changed",
}


def show_changes(output: Output, changes: Changes, left: str, right: str, detailed: bool) -> None:
    """Shows all that differs between ``left`` and ``right``; of many tasks all only if ``detailed``."""
    output.say(f"from {left} to {right}")
    _show_fields(output, "config", changes.config)
    _show_fields(output, "made with", changes.made_with)
    _show_datasets(output, changes.datasets)
    tasks = changes.tasks if detailed else changes.tasks[:_MOST_TASKS]
    if tasks:
        least = ("changed", "expert_return", "threshold", "dataset")
        show_table(output, "tasks that differ", _TASK, [_task_row(item) for item in tasks], least)
    if len(changes.tasks) > len(tasks):
        output.say(f"… and {len(changes.tasks) - len(tasks):,} more; --dataset NAME shows all of a dataset")
    if not changes:
        output.say("nothing changed")
    output.result({"from": left, "to": right, "changed": bool(changes), **dataclasses.asdict(changes)})


def _show_fields(output: Output, title: str, fields: Sequence[FieldChange]) -> None:
    if fields:
        rows = [[item.field, _short(item.left), _short(item.right)] for item in fields]
        output.table(title, [title, "from", "to"], rows)


def _short(value: Any) -> Any:
    """A value as a table shows it; of a digest the first characters."""
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return f"{value[:12]}…"
    return value if value is None or isinstance(value, int | float) else str(value)


def _show_datasets(output: Output, datasets: Sequence[DatasetChange]) -> None:
    sides = [side for item in datasets for side in (item.left, item.right)]
    counts = {key: name for key, name in _COUNTS.items() if any(_count(side, key) is not None for side in sides)}
    columns = {"name": "dataset", **counts, **_ROW_CHANGES}
    if "shards" in counts:
        columns["same_shards"] = "same shards"
    rows = [
        {
            "name": item.name,
            **{key: _pair(key, _count(item.left, key), _count(item.right, key)) for key in counts},
            **{key: getattr(item.moves, key) for key in _ROW_CHANGES},
            "same_shards": item.same_shards,
        }
        for item in datasets
    ]
    show_table(output, "datasets", columns, rows, ("moved", "changed", "steps", "same_shards", "shards", "found"))
    for item in datasets:
        moves = item.moves
        _show_ids(output, f"gained of {item.name}", moves.gained, moves.new, "not there before", moves.gained_ids)
        _show_ids(output, f"lost of {item.name}", moves.lost, moves.gone, "no longer there", moves.lost_ids)


def _show_ids(output: Output, title: str, count: int, absent: int, reason: str, ids: Sequence[str]) -> None:
    if count:
        of_these = f", {absent:,} of them {reason}" if absent else ""
        output.say(f"{title}: {count:,}{of_these}, such as\n" + "\n".join(f"    {id_}" for id_ in ids))


def _count(counts: Counts | None, key: str) -> Any:
    return None if counts is None else getattr(counts, key)


def _pair(key: str, left: Any, right: Any) -> Any:
    """One value if both sides are the same, else both."""
    if key == "bytes":
        left, right = (None if value is None else byte_size(value) for value in (left, right))
    return left if left == right else f"{shown(left)} → {shown(right)}"


def _task_row(item: TaskChange) -> dict[str, Any]:
    return {
        "dataset": item.dataset,
        "task": item.task,
        "expert_return": _pair("expert_return", *item.expert_return),
        "threshold": _pair("threshold", *item.threshold),
        "kept": item.kept[0],
        "kept_then": item.kept[1],
        "gained": item.moves.gained,
        "lost": item.moves.lost,
        "changed": item.moves.changed,
    }
