"""What ``gatokit inspect`` shows of datasets and tasks: tables and bars for people, an object with ``--json``."""

import dataclasses
from collections.abc import Sequence
from itertools import islice
from typing import Any

from gatokit.cli.console import Output, size
from gatokit.cli.documents import DETAILS, OVERVIEW, Documents, show_documents, show_findings, show_table, verdict
from gatokit.cli.drops import show_drops
from gatokit.cli.fit import fitting_table
from gatokit.cli.rules import as_json
from gatokit.cli.rules import shown as shown_rule
from gatokit.inspection import DatasetReader, Directory, TaskRow, preview
from gatokit.inspection.preview import Rule
from gatokit.inspection.tables.summary import Bin, drops, histogram, hours
from gatokit.schemas.errors import ConfigError

_MOST_TASKS = 40
_MOST_EPISODES = 10
_SHOWN = {
    "name": "dataset",
    "kind": "kind",
    "episodes": "episodes",
    "kept": "kept",
    "held_out": "held out",
    "tokens": "tokens",
    "records": "records",
    "shards": "shards",
    "bytes": "size",
    "hours": "hours",
    "weight": "weight",
}
_EPISODE = {
    "agent": "agent",
    "order": "order",
    "steps": "steps",
    "episode_return": "return",
    "tokens": "tokens",
}
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


def show_directory(output: Output, directory: Directory, datasets: list[DatasetReader], detailed: bool) -> None:
    """Datasets, their tasks (of a large one all only where ``detailed``) or documents, and what was dropped."""
    content = directory.manifest.content
    effort = DETAILS if detailed else OVERVIEW
    documents = {item.name: Documents.of(item, effort, output) for item in datasets if item.holds_documents}
    episodes = [item for item in datasets if not item.holds_documents]
    lines = {item.name: _dataset_line(item) for item in episodes}
    found = {item.name: drops(item) for item in episodes} | {name: item.drops for name, item in documents.items()}
    details = {}
    if episodes:
        _show_episodes(output, _title(directory, "episodes" if documents else ""), list(lines.values()))
        for dataset in episodes:
            title = dataset.name if dataset.totals.ordered else f"{dataset.name}, in the order of its files"
            _show_tasks(output, dataset, title, None, None if detailed else _MOST_TASKS)
            show_drops(output, dataset.name, found[dataset.name])
    if detailed:
        for item in documents.values():
            details[item.dataset.name] = show_documents(output, content, item)
    elif documents:
        show_table(output, _title(directory, "documents" if episodes else ""), list(documents.values()))
        for item in documents.values():
            show_findings(output, item)
    lines |= {name: item.line() | details.get(name, {}) for name, item in documents.items()}
    output.result(
        {
            "content": content,
            "datasets": [lines[dataset.name] for dataset in datasets],
            "tasks": [_task_line(dataset, row) for dataset in datasets for row in dataset.tasks],
            "drops": [
                {"dataset": dataset.name, **dataclasses.asdict(drop)}
                for dataset in datasets
                for drop in found[dataset.name]
            ],
        }
    )


def _title(directory: Directory, part: str) -> str:
    return f"{directory.path}: a finished {directory.manifest.content}" + (f", {part}" if part else "")


def _show_episodes(output: Output, title: str, lines: list[dict[str, Any]]) -> None:
    columns = [key for key in _SHOWN if any(line[key] is not None for line in lines)]
    fitting_table(
        output,
        title,
        [_SHOWN[key] for key in columns],
        [[_cell(key, line[key]) for key in columns] for line in lines],
        ("weight", "kind", "records", "shards", "held out"),
    )


def _dataset_line(dataset: DatasetReader) -> dict[str, Any]:
    totals, stored = dataset.totals, dataset.totals.shards > 0
    return {
        "name": totals.name,
        "kind": totals.kind,
        "episodes": totals.episodes,
        "kept": totals.kept,
        "held_out": sum(row.held_out for row in dataset.tasks),
        "tokens": totals.tokens if stored else None,
        "records": totals.records if stored else None,
        "shards": totals.shards if stored else None,
        "bytes": totals.bytes if stored else None,
        "hours": hours(dataset),
        "weight": totals.weight,
        "hz": totals.hz,
        "license": totals.license,
    }


def _cell(key: str, value: Any) -> Any:
    if value is None:
        return None
    return size(value) if key == "bytes" else round(value, 2) if key == "hours" else value


def _task_line(dataset: DatasetReader, row: TaskRow) -> dict[str, Any]:
    return {"dataset": dataset.name, **dataclasses.asdict(row)}


def _show_tasks(output: Output, dataset: DatasetReader, title: str, task: str | None, most: int | None) -> None:
    rows = [row for row in dataset.tasks if task is None or row.task == task]
    columns = [key for key in _STREAM if any(getattr(row, key) not in (None, "") for row in rows)]
    fitting_table(
        output,
        title,
        [_STREAM[key] for key in columns],
        [[getattr(row, key) for key in columns] for row in rows[:most]],
        ("held out", "steps", "W", "tokens"),
    )
    if most is not None and len(rows) > most:
        output.say(f"… and {len(rows) - most:,} more; --dataset {dataset.name} shows all")


def show_task(output: Output, datasets: list[DatasetReader], task: str) -> None:
    """A task's streams, the fields of a step, its returns, drops and first episodes (all of them as JSON)."""
    results = []
    for dataset in datasets:
        spec, bins, found = dataset.spec(task), histogram(dataset, task), drops(dataset, task)
        _show_tasks(output, dataset, f"{dataset.name}: {task}", task, None)
        fitting_table(
            output,
            "a time step, in token order",
            ["field", "kind", "dtype", "shape", "range", "num", "tokens"],
            [
                [
                    field.path,
                    field.kind,
                    field.dtype,
                    " x ".join(map(str, field.shape)) or "scalar",
                    _range(field.range),
                    field.num,
                    field.tokens if field.tokens is not None else "varies",
                ]
                for field in spec.fields
            ],
            ("dtype", "num", "range"),
        )
        _show_bins(output, bins, next(row.threshold for row in dataset.tasks if row.task == task))
        show_drops(output, task, found)
        rows = list(islice(dataset.episodes(task=task), _MOST_EPISODES))
        columns = [name for name in _EPISODE if any(getattr(row, name) not in (None, "") for row in rows)]
        fitting_table(
            output,
            "first episodes",
            [*(_EPISODE[name] for name in columns), "verdict", "episode"],
            [[*(getattr(row, name) for name in columns), verdict(row), row.episode_id] for row in rows],
            ("order", "tokens", "agent"),
        )
        if output.as_json:
            results.append(
                {
                    "dataset": dataset.name,
                    "task": task,
                    "streams": [_task_line(dataset, row) for row in dataset.tasks if row.task == task],
                    "fields": spec.model_dump(mode="json")["fields"],
                    "returns": [dataclasses.asdict(item) for item in bins],
                    "drops": [dataclasses.asdict(drop) for drop in found],
                    "episodes": [row.columns() for row in dataset.episodes(task=task)],
                }
            )
    output.result({"tasks": results})


def _range(pairs: Sequence[tuple[float, float]] | None) -> str | None:
    return None if pairs is None else ", ".join(f"[{low:g}, {high:g}]" for low, high in dict.fromkeys(pairs))


def _show_bins(output: Output, bins: list[Bin], threshold: float | None) -> None:
    """Returns as horizontal bars; the threshold's bin is marked."""
    if not bins:
        return
    output.say("returns: █ kept, ░ dropped" + ("" if threshold is None else f", ◂ the threshold {threshold:g}"))
    labels = [f"{item.low:g} … {item.high:g}" for item in bins]
    wide = max(map(len, labels))
    most = max(item.kept + item.dropped for item in bins)
    room = max(10, min(60, output.width - wide - 24))
    for label, item in zip(labels, bins, strict=True):
        cells = [-(-count * room // most) for count in (item.kept, item.dropped)]
        mark = " ◂" if threshold is not None and item.low <= threshold < item.high else ""
        counts = f"{item.kept:,} + {item.dropped:,}" if item.kept and item.dropped else f"{item.kept + item.dropped:,}"
        output.say(f"  {label:>{wide}}  {'█' * cells[0]}{'░' * cells[1]} {counts}{mark}")


def show_at(output: Output, datasets: list[DatasetReader], task: str | None, rule: Rule) -> None:
    """What a rule (a fraction: ``keep: {min_return: fraction}``) would keep of every task, or of one; ConfigError for
    documents alone."""
    is_fraction = isinstance(rule, float)
    documents = [dataset.name for dataset in datasets if dataset.holds_documents]
    datasets = [dataset for dataset in datasets if not dataset.holds_documents]
    without = f"{', '.join(documents)} hold{'s' * (len(documents) == 1)} documents, which have no threshold"
    if not datasets:
        raise ConfigError(f"--at {rule:g}: {without}" if is_fraction else f"--keep: {without}")
    rows = [
        {"dataset": dataset.name, **dataclasses.asdict(row), "difference": row.kept_at - row.kept}
        for dataset in datasets
        for row in preview(dataset, rule)
        if task is None or row.task == task
    ]
    columns = {
        "dataset": "dataset",
        "task": "task",
        "expert return": "expert_return",
        "threshold": "threshold",
        f"at {rule:g}" if is_fraction else "threshold then": "threshold_at",
        "kept": "kept",
        "kept then": "kept_at",
        "difference": "difference",
        "dropped then": "dropped_at",
    }
    if all(row["threshold_at"] is None for row in rows):
        columns = {title: key for title, key in columns.items() if key != "threshold_at"}
    fitting_table(
        output,
        f"keep: {shown_rule(rule)}",
        list(columns),
        [[row[key] for key in columns.values()] for row in rows],
        ("expert return", "threshold", "dropped then", "dataset"),
    )
    kept, then = sum(row["kept"] for row in rows), sum(row["kept_at"] for row in rows)
    where = f"at {rule:g}" if is_fraction else "then"
    output.say(f"{kept:,} episodes are kept now, {then:,} would be {where} ({then - kept:+,})")
    if documents:
        output.say(without)
    asked = {"at" if is_fraction else "keep": as_json(rule)}
    output.result({**asked, "kept": kept, "kept_at": then, "tasks": rows})
