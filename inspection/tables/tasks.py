"""Tasks of episodes: their streams, the fields of a step, the returns, and what another rule would keep of them."""

import dataclasses
from collections.abc import Sequence
from itertools import islice
from typing import Any

from gatokit.inspection.preview import Rule, preview, rule_text, rule_value
from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import TaskRow
from gatokit.inspection.tables.output import Output, known_columns, show_table
from gatokit.inspection.tables.summary import Bin, drops, histogram, show_drops
from gatokit.schemas.errors import ConfigError

_FIRST_EPISODES = 10
_STREAM = {
    "task": "task",
    "agent": "agent",
    "episodes": "N",
    "window": "W",
    "expert_return": "expert return",
    "threshold": "threshold",
    "kept": "kept",
    "dropped": "dropped",
    "held_out": "held out",
    "steps": "steps",
    "tokens": "tokens",
}
_FIELD = {
    "path": "field",
    "kind": "kind",
    "dtype": "dtype",
    "shape": "shape",
    "range": "range",
    "num": "num",
    "tokens": "tokens",
}
_EPISODE = {
    "agent": "agent",
    "order": "order",
    "steps": "steps",
    "return": "return",
    "tokens": "tokens",
    "verdict": "verdict",
    "episode_id": "episode",
}


def task_values(dataset: DatasetReader, row: TaskRow) -> dict[str, Any]:
    """A stream of a task as JSON."""
    return {"dataset": dataset.name, **dataclasses.asdict(row)}


def show_streams(output: Output, title: str, streams: Sequence[TaskRow]) -> None:
    """Shows streams of tasks, one a row."""
    rows = [vars(stream) for stream in streams]
    show_table(output, title, known_columns(_STREAM, rows), rows, ("held_out", "steps", "window", "tokens"))


def show_task(output: Output, datasets: Sequence[DatasetReader], task: str) -> None:
    """Shows a task's streams, the fields of a step, its returns, drops and first episodes (all of them as JSON)."""
    results = []
    for dataset in datasets:
        streams = [row for row in dataset.tasks if row.task == task]
        fields, bins, dropped = dataset.spec(task).fields, histogram(dataset, task), drops(dataset, task)
        show_streams(output, f"{dataset.name}: {task}", streams)
        rows = [
            {
                **vars(field),
                "shape": " x ".join(map(str, field.shape)) or "scalar",
                "range": _range(field.range),
                "tokens": field.tokens if field.tokens is not None else "varies",
            }
            for field in fields
        ]
        show_table(output, "a time step, in token order", _FIELD, rows, ("dtype", "num", "range"))
        _show_returns(output, bins, streams[0].threshold)
        show_drops(output, task, dropped)
        episodes = islice(dataset.episodes(task=task), _FIRST_EPISODES)
        rows = [row.columns() | {"verdict": row.verdict} for row in episodes]
        show_table(output, "first episodes", known_columns(_EPISODE, rows), rows, ("order", "tokens", "agent"))
        if output.as_json:
            results.append(
                {
                    "dataset": dataset.name,
                    "task": task,
                    "streams": [task_values(dataset, row) for row in streams],
                    "fields": [field.model_dump(mode="json") for field in fields],
                    "returns": [dataclasses.asdict(item) for item in bins],
                    "drops": [dataclasses.asdict(drop) for drop in dropped],
                    "episodes": [row.columns() for row in dataset.episodes(task=task)],
                }
            )
    output.result({"tasks": results})


def _range(pairs: Sequence[tuple[float, float]] | None) -> str | None:
    return None if pairs is None else ", ".join(f"[{low:g}, {high:g}]" for low, high in dict.fromkeys(pairs))


def _show_returns(output: Output, bins: Sequence[Bin], threshold: float | None) -> None:
    """Shows returns as horizontal bars; the threshold's bin is marked."""
    if not bins:
        return
    output.say("returns: █ kept, ░ dropped" + ("" if threshold is None else f", ◂ the threshold {threshold:g}"))
    labels = [f"{item.low:g} … {item.high:g}" for item in bins]
    label_width = max(map(len, labels))
    most = max(item.kept + item.dropped for item in bins)
    bar_width = max(10, min(60, output.width - label_width - 24))
    for label, item in zip(labels, bins, strict=True):
        kept, dropped = (-(-count * bar_width // most) for count in (item.kept, item.dropped))
        mark = " ◂" if threshold is not None and item.low <= threshold < item.high else ""
        counts = f"{item.kept:,} + {item.dropped:,}" if item.kept and item.dropped else f"{item.kept + item.dropped:,}"
        output.say(f"  {label:>{label_width}}  {'█' * kept}{'░' * dropped} {counts}{mark}")


def show_rule(output: Output, datasets: Sequence[DatasetReader], task: str | None, rule: Rule) -> None:
    """Shows what a rule would keep of every task, or of one. A fraction is the rule ``keep: {min_return: fraction}``.

    Raises ConfigError if all datasets hold documents.
    """
    is_fraction = isinstance(rule, float)
    documents = [dataset.name for dataset in datasets if dataset.holds_documents]
    exception = f"{', '.join(documents)} hold{'s' * (len(documents) == 1)} documents, which have no threshold"
    if len(documents) == len(datasets):
        raise ConfigError(f"--at {rule:g}: {exception}" if is_fraction else f"--keep: {exception}")
    rows = [
        {"dataset": dataset.name, **dataclasses.asdict(row), "difference": row.kept_at - row.kept}
        for dataset in datasets
        if not dataset.holds_documents
        for row in preview(dataset, rule)
        if task is None or row.task == task
    ]
    columns = {
        "dataset": "dataset",
        "task": "task",
        "expert_return": "expert return",
        "threshold": "threshold",
        "threshold_at": f"at {rule:g}" if is_fraction else "threshold then",
        "kept": "kept",
        "kept_at": "kept then",
        "difference": "difference",
        "dropped_at": "dropped then",
    }
    if all(row["threshold_at"] is None for row in rows):
        del columns["threshold_at"]
    least = ("expert_return", "threshold", "dropped_at", "dataset")
    show_table(output, f"keep: {rule_text(rule)}", columns, rows, least)
    kept, kept_at = sum(row["kept"] for row in rows), sum(row["kept_at"] for row in rows)
    when = f"at {rule:g}" if is_fraction else "then"
    output.say(f"{kept:,} episodes are kept now, {kept_at:,} would be {when} ({kept_at - kept:+,})")
    if documents:
        output.say(exception)
    output.result({"at" if is_fraction else "keep": rule_value(rule), "kept": kept, "kept_at": kept_at, "tasks": rows})
