"""What ``gatokit inspect A --against B`` shows: tables for people, an object with ``--json``."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gatokit.cli.console import Output, size
from gatokit.cli.fit import fitting_table
from gatokit.inspection.compare.directories import Changes, Counts, FieldChange, TaskChange
from gatokit.schemas.words import shown

_MOST_TASKS = 40
_COUNTS = {"found": "found", "kept": "kept", "steps": "steps", "tokens": "tokens", "shards": "shards", "bytes": "size"}


def show_changes(output: Output, changes: Changes, left: str, right: str, detailed: bool) -> None:
    """All that differs between ``left`` and ``right``; of many tasks all only where ``detailed``."""
    output.say(f"from {left} to {right}")
    _show_fields(output, "config", changes.config)
    _show_fields(output, "made with", changes.made_with)
    _show_datasets(output, changes)
    _show_tasks(output, changes.tasks if detailed else changes.tasks[:_MOST_TASKS])
    if not detailed and len(changes.tasks) > _MOST_TASKS:
        output.say(f"… and {len(changes.tasks) - _MOST_TASKS:,} more; --dataset NAME shows all of a dataset")
    if not changes:
        output.say("nothing changed")
    output.result({"from": left, "to": right, "changed": bool(changes), **dataclasses.asdict(changes)})


def _show_fields(output: Output, title: str, fields: Sequence[FieldChange]) -> None:
    if fields:
        lines = [[item.field, _short(item.left), _short(item.right)] for item in fields]
        output.table(title, [title, "from", "to"], lines)


def _short(value: Any) -> Any:
    """A value as a table shows it; of a digest the first characters."""
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return f"{value[:12]}…"
    return value if value is None or isinstance(value, int | float) else str(value)


def _show_datasets(output: Output, changes: Changes) -> None:
    columns = [
        name
        for name in _COUNTS
        if any(_value(side, name) is not None for item in changes.datasets for side in (item.left, item.right))
    ]
    stored = "shards" in columns
    rows = [
        [
            item.name,
            *(_pair(name, _value(item.left, name), _value(item.right, name)) for name in columns),
            item.moves.gained,
            item.moves.lost,
            item.moves.changed,
            item.moves.moved,
            *([item.same_shards] if stored else []),
        ]
        for item in changes.datasets
    ]
    titles = ["dataset", *(_COUNTS[name] for name in columns), "gained", "lost", "changed", "moved"]
    titles += ["same shards"] if stored else []
    fitting_table(output, "datasets", titles, rows, ("moved", "changed", "steps", "same shards", "shards", "found"))
    for item in changes.datasets:
        gained, lost = item.moves.gained, item.moves.lost
        if gained:
            _say(
                output, f"gained of {item.name}: {gained:,}", item.moves.new, "not there before", item.moves.gained_ids
            )
        if lost:
            _say(output, f"lost of {item.name}: {lost:,}", item.moves.gone, "no longer there", item.moves.lost_ids)


def _say(output: Output, what: str, count: int, how: str, ids: Sequence[str]) -> None:
    of_these = f", {count:,} of them {how}" if count else ""
    output.say(f"{what}{of_these}, such as\n" + "\n".join(f"    {id_}" for id_ in ids))


def _value(counts: Counts | None, name: str) -> Any:
    return None if counts is None else getattr(counts, name)


def _pair(name: str, left: Any, right: Any) -> Any:
    """One value where both are the same, else both."""
    texts = [size(value) if name == "bytes" and value is not None else shown(value) for value in (left, right)]
    return (left if name != "bytes" else texts[0]) if left == right else " → ".join(texts)


def _show_tasks(output: Output, tasks: Sequence[TaskChange]) -> None:
    if not tasks:
        return
    rows = [
        [
            item.dataset,
            item.task,
            _pair("expert_return", *item.expert_return),
            _pair("threshold", *item.threshold),
            *item.kept,
            item.moves.gained,
            item.moves.lost,
            item.moves.changed,
        ]
        for item in tasks
    ]
    titles = ["dataset", "task", "expert return", "threshold", "kept", "kept then", "gained", "lost", "changed"]
    fitting_table(output, "tasks that differ", titles, rows, ("changed", "expert return", "threshold", "dataset"))
