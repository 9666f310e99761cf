"""What changed from one directory, or rule, to another."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gatokit.inspection.compare import Changes, DatasetChange, FieldChange
from gatokit.inspection.tables.output import Output, known_columns, show_table, titled
from gatokit.schemas.words import byte_size, shown

_MOST_TASKS = 40
_COUNTS = titled("found kept steps tokens shards bytes", bytes="size")
_ROW_CHANGES = titled("gained lost changed moved")
_TASK = titled("dataset task expert_return threshold kept kept_then gained lost changed")


def show_changes(output: Output, changes: Changes, left: str, right: str, detailed: bool) -> None:
    """Shows all that differs between ``left`` and ``right``; of many tasks all only if ``detailed``."""
    output.say(f"from {left} to {right}")
    _show_fields(output, "config", changes.config)
    _show_fields(output, "made with", changes.made_with)
    _show_datasets(output, changes.datasets)
    tasks = changes.tasks if detailed else changes.tasks[:_MOST_TASKS]
    if tasks:
        rows = [
            vars(item.moves)
            | {
                "dataset": item.dataset,
                "task": item.task,
                "expert_return": _pair(*item.expert_return),
                "threshold": _pair(*item.threshold),
                "kept": item.kept[0],
                "kept_then": item.kept[1],
            }
            for item in tasks
        ]
        show_table(output, "tasks that differ", _TASK, rows, "changed expert_return threshold dataset")
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
    rows = []
    for item in datasets:
        left, right = (dict.fromkeys(_COUNTS) if side is None else dict(vars(side)) for side in (item.left, item.right))
        for side in (left, right):
            side["bytes"] = None if side["bytes"] is None else byte_size(side["bytes"])
        pairs = {key: _pair(left[key], right[key]) for key in _COUNTS}
        rows.append({"name": item.name, **pairs, **vars(item.moves), "same_shards": item.same_shards})
    counts = known_columns(_COUNTS, rows)
    columns = {"name": "dataset", **counts, **_ROW_CHANGES}
    if "shards" in counts:
        columns["same_shards"] = "same shards"
    show_table(output, "datasets", columns, rows, "moved changed steps same_shards shards found")
    for item in datasets:
        moves = item.moves
        _show_ids(output, f"gained of {item.name}", moves.gained, moves.new, "not there before", moves.gained_ids)
        _show_ids(output, f"lost of {item.name}", moves.lost, moves.gone, "no longer there", moves.lost_ids)


def _show_ids(output: Output, title: str, count: int, absent: int, reason: str, ids: Sequence[str]) -> None:
    if count:
        of_these = f", {absent:,} of them {reason}" if absent else ""
        output.say(f"{title}: {count:,}{of_these}, such as", *(f"    {id_}" for id_ in ids))


def _pair(left: Any, right: Any) -> Any:
    """One value if both sides are the same, else both."""
    return left if left == right else f"{shown(left)} → {shown(right)}"
