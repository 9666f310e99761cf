"""All datasets of a directory side by side: their totals, their tasks, and why episodes and documents were dropped."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.directory import Directory
from gatokit.inspection.tables.documents import (
    DETAILS,
    OVERVIEW,
    Documents,
    show_document_totals,
    show_documents,
    show_findings,
)
from gatokit.inspection.tables.output import Output, known_columns, show_table
from gatokit.inspection.tables.summary import drops, hours, show_drops
from gatokit.inspection.tables.tasks import show_streams, task_values
from gatokit.schemas.words import byte_size

_MOST_TASKS = 40
_TOTALS = {
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


def show_directory(output: Output, directory: Directory, datasets: Sequence[DatasetReader], detailed: bool) -> None:
    """Shows datasets, their tasks or documents, and what was dropped; of a dataset with many tasks all of them only if
    ``detailed``."""
    content = directory.manifest.content
    title = f"{directory.path}: a finished {content}"
    effort = DETAILS if detailed else OVERVIEW
    documents = {item.name: Documents.of(item, effort, output) for item in datasets if item.holds_documents}
    episodes = [item for item in datasets if not item.holds_documents]
    totals = {item.name: _episode_totals(item) for item in episodes}
    totals |= {name: item.totals() for name, item in documents.items()}
    dropped = {item.name: drops(item) for item in episodes} | {name: item.drops for name, item in documents.items()}
    if episodes:
        _show_episode_totals(
            output, title + (", episodes" if documents else ""), [totals[item.name] for item in episodes]
        )
    for dataset in episodes:
        heading = dataset.name if dataset.totals.ordered else f"{dataset.name}, in the order of its files"
        show_streams(output, heading, dataset.tasks if detailed else dataset.tasks[:_MOST_TASKS])
        if not detailed and len(dataset.tasks) > _MOST_TASKS:
            output.say(f"… and {len(dataset.tasks) - _MOST_TASKS:,} more; --dataset {dataset.name} shows all")
        show_drops(output, dataset.name, dropped[dataset.name])
    if detailed:
        for name, item in documents.items():
            totals[name] |= show_documents(output, content, item)
    elif documents:
        show_document_totals(output, title + (", documents" if episodes else ""), list(documents.values()))
        for item in documents.values():
            show_findings(output, item)
    output.result(
        {
            "content": content,
            "datasets": [totals[dataset.name] for dataset in datasets],
            "tasks": [task_values(dataset, row) for dataset in datasets for row in dataset.tasks],
            "drops": [
                {"dataset": dataset.name, **dataclasses.asdict(drop)}
                for dataset in datasets
                for drop in dropped[dataset.name]
            ],
        }
    )


def _episode_totals(dataset: DatasetReader) -> dict[str, Any]:
    totals = dataset.totals
    return {
        "name": totals.name,
        "kind": totals.kind,
        "episodes": totals.episodes,
        "kept": totals.kept,
        "held_out": dataset.held_out,
        **dataset.stored,
        "hours": hours(dataset),
        "weight": totals.weight,
        "hz": totals.hz,
        "license": totals.license,
    }


def _show_episode_totals(output: Output, title: str, totals: Sequence[dict[str, Any]]) -> None:
    rows = [
        row
        | {"bytes": None if row["bytes"] is None else byte_size(row["bytes"])}
        | {"hours": None if row["hours"] is None else round(row["hours"], 2)}
        for row in totals
    ]
    show_table(output, title, known_columns(_TOTALS, rows), rows, ("weight", "kind", "records", "shards", "held_out"))
