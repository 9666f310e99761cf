"""Tasks of episodes: their streams, the fields of a step, the returns, and what another rule would keep of them."""

import dataclasses
from collections.abc import Sequence
from itertools import islice

from gatokit.inspection.preview import Rule, preview, rule_text, rule_value
from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import TaskRow
from gatokit.inspection.tables.output import Output, known_columns, show_table, titled
from gatokit.inspection.tables.summary import Bin, drops, histogram, show_drops
from gatokit.schemas.errors import ConfigError

_FIRST_EPISODES = 10
_STREAM = titled(
    "task agent episodes window expert_return threshold kept dropped held_out steps tokens", episodes="N", window="W"
)
_FIELD = titled("path kind dtype shape range num tokens", path="field")
_EPISODE = titled("agent order steps return tokens verdict episode_id", episode_id="episode")


def show_streams(output: Output, title: str, streams: Sequence[TaskRow]) -> None:
    """Shows streams of tasks, one a row."""
    rows = [vars(stream) for stream in streams]
    show_table(output, title, known_columns(_STREAM, rows), rows, "held_out steps window tokens")


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
                "range": ", ".join(f"[{low:g}, {high:g}]" for low, high in dict.fromkeys(field.range or ())) or None,
                "tokens": field.tokens if field.tokens is not None else "varies",
            }
            for field in fields
        ]
        show_table(output, "a time step, in token order", _FIELD, rows, "dtype num range")
        _show_returns(output, bins, streams[0].threshold)
        show_drops(output, task, dropped)
        episodes = islice(dataset.episodes(task=task), _FIRST_EPISODES)
        rows = [row.columns() | {"verdict": row.verdict} for row in episodes]
        show_table(output, "first episodes", known_columns(_EPISODE, rows), rows, "order tokens agent")
        if output.as_json:
            results.append(
                {
                    "dataset": dataset.name,
                    "task": task,
                    "streams": [{"dataset": dataset.name, **dataclasses.asdict(row)} for row in streams],
                    "fields": [field.model_dump(mode="json") for field in fields],
                    "returns": [dataclasses.asdict(item) for item in bins],
                    "drops": [dataclasses.asdict(drop) for drop in dropped],
                    "episodes": [row.columns() for row in dataset.episodes(task=task)],
                }
            )
    output.result({"tasks": results})


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
    when = f"at {rule:g}" if is_fraction else "then"
    columns = titled(
        "dataset task expert_return threshold threshold_at kept kept_at difference dropped_at",
        threshold_at=when if is_fraction else "threshold then",
        kept_at="kept then",
        dropped_at="dropped then",
    )
    if all(row["threshold_at"] is None for row in rows):
        del columns["threshold_at"]
    show_table(output, f"keep: {rule_text(rule)}", columns, rows, "expert_return threshold dropped_at dataset")
    kept, kept_at = sum(row["kept"] for row in rows), sum(row["kept_at"] for row in rows)
    output.say(f"{kept:,} episodes are kept now, {kept_at:,} would be {when} ({kept_at - kept:+,})")
    if documents:
        output.say(exception)
    output.result({"at" if is_fraction else "keep": rule_value(rule), "kept": kept, "kept_at": kept_at, "tasks": rows})
