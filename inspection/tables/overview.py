"""Datasets of documents: lengths, tokens by kind, images by size, why documents were dropped."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.inspection.tables.output import Output, known_columns, show_table
from gatokit.inspection.tables.summary import (
    Contents,
    Drop,
    Effort,
    Lengths,
    contents,
    drops,
    hours,
    lengths,
    show_drops,
)
from gatokit.inspection.tables.tasks import show_streams, task_values
from gatokit.schemas.manifest import DocumentRules
from gatokit.schemas.words import byte_size

OVERVIEW = Effort(records=2_000, bytes=32 << 20)
"""What is read of each dataset if many are shown."""
DETAILS = Effort(records=50_000, bytes=256 << 20)
"""What is read of a dataset that is asked for."""

_MOST_SIZES = 5
_MOST_SIZES_IN_DETAIL = 30
_FIRST_DOCUMENTS = 10
_IMAGE_COLUMNS = ("text_tokens", "image_tokens", "pictures")
_DOCUMENT_TOTALS = {
    "name": "dataset",
    "kind": "kind",
    "episodes": "documents",
    "kept": "kept",
    "held_out": "held out",
    "tokens": "tokens",
    "text_tokens": "text tokens",
    "image_tokens": "image tokens",
    "pictures": "images",
    "median_tokens": "median tokens",
    "longest_tokens": "longest tokens",
    "records": "records",
    "shards": "shards",
    "bytes": "size",
    "weight": "weight",
}
_LEAST = ("weight", "shards", "kind", "records", "held_out", "median_tokens", "longest_tokens", "bytes", "text_tokens")


@dataclass(frozen=True)
class Documents:
    """A dataset of documents and what was read of it; ``contents`` and ``lengths`` are None in a scan."""

    dataset: DatasetReader
    contents: Contents | None
    lengths: Lengths | None
    drops: list[Drop]

    @staticmethod
    def of(dataset: DatasetReader, effort: Effort, output: Output) -> "Documents":
        """Reads as much of the dataset as ``effort`` allows, with progress if that may take seconds."""
        if not dataset.totals.shards:
            counted = None
        elif min(effort.bytes, dataset.totals.bytes) <= OVERVIEW.bytes:
            counted = contents(dataset, effort)
        else:
            with output.progress() as progress:
                counted = contents(dataset, effort, lambda done, total: progress("records", done, total))
        return Documents(dataset, counted, lengths(dataset), drops(dataset))

    def totals(self) -> dict[str, Any]:
        """The totals of the dataset as JSON; counts of a sample are scaled to the whole dataset."""
        totals, counted, long = self.dataset.totals, self.contents, self.lengths
        stored = self.dataset.stored
        text = image = images = None
        if counted is not None:
            image = _scaled(counted.image_tokens, counted.text_tokens + counted.image_tokens, totals.tokens)
            text = totals.tokens - image
            images = _scaled(counted.images, counted.counted, counted.records)
        return {
            "name": totals.name,
            "kind": totals.kind,
            "episodes": totals.episodes,
            "kept": totals.kept,
            "held_out": self.dataset.held_out,
            "tokens": stored.pop("tokens"),
            "text_tokens": text,
            "image_tokens": image,
            "pictures": images,
            **stored,
            "median_tokens": None if long is None else long.median,
            "longest_tokens": None if long is None else long.longest,
            "longest_document": None if long is None else long.longest_id,
            "counted_records": None if counted is None else counted.counted,
            "picture_sizes": None
            if counted is None
            else [{"height": item.height, "width": item.width, "pictures": item.images} for item in counted.sizes],
            "weight": totals.weight,
            "license": totals.license,
        }


def show_document_totals(output: Output, title: str, documents: Sequence[Documents]) -> None:
    """Shows one row a dataset, without columns that hold nothing."""
    rows = [item.totals() for item in documents]
    columns = known_columns(_DOCUMENT_TOTALS, rows)
    if not any(row["pictures"] for row in rows):
        columns = {key: name for key, name in columns.items() if key not in _IMAGE_COLUMNS}
    rows = [row | {"bytes": byte_size(row["bytes"]) if row["bytes"] else row["bytes"]} for row in rows]
    show_table(output, title, columns, rows, _LEAST)
    estimated = [item.dataset.name for item in documents if item.contents and not item.contents.is_complete]
    if estimated:
        output.say(
            f"text tokens, image tokens and images of {', '.join(estimated)}: estimated from a sample, see below"
        )


def show_findings(output: Output, documents: Documents) -> None:
    """Shows the most frequent sizes of a dataset's images in one line, and why documents were dropped."""
    counted, name = documents.contents, documents.dataset.name
    if counted is not None and counted.images:
        sizes = [f"{item.height} x {item.width}: {item.images:,}" for item in counted.sizes[:_MOST_SIZES]]
        more = len(counted.sizes) - len(sizes)
        rest = f", … and {more:,} more sizes; --dataset {name} shows them" if more else ""
        output.say(f"images of {name}{_sample(counted)}: {', '.join(sizes)}{rest}")
    show_drops(output, name, documents.drops)


def show_documents(output: Output, content: str, documents: Documents) -> dict[str, Any]:
    """Shows a dataset in detail: rules, lengths, images by size, drops, the first documents. Returns the JSON keys that
    these add to the totals."""
    dataset, counted, long = documents.dataset, documents.contents, documents.lengths
    show_document_totals(output, f"{dataset.path.parent}: a finished {content}", [documents])
    rules = dataset.described.documents
    if rules is not None:
        output.say(_rules(rules))
    if long is not None:
        titles = ("shortest", "10%", "median", "90%", "longest", "longest document")
        show_table(output, "tokens a document", dict(zip(vars(long), titles, strict=True)), [vars(long)])
    if counted is not None and counted.images:
        _show_image_sizes(output, counted)
    show_drops(output, dataset.name, documents.drops)
    first = list(islice(dataset.rows(), _FIRST_DOCUMENTS))
    columns = {"tokens": "tokens", "records": "records", "verdict": "verdict", "episode_id": "document"}
    if counted is None:
        columns = {key: columns[key] for key in ("verdict", "episode_id")}
    rows = [
        {
            "tokens": row.tokens or None,
            "records": len(row.record_tokens) if row.record_tokens else None,
            "verdict": row.verdict,
            "episode_id": row.episode_id,
        }
        for row in first
    ]
    show_table(output, "first documents; --document ID shows one", columns, rows)
    return {
        "rules": None if rules is None else rules.model_dump(mode="json"),
        "lengths": None if long is None else dataclasses.asdict(long),
        "first_documents": [row.columns() for row in first],
    }


def _show_image_sizes(output: Output, counted: Contents) -> None:
    listed = counted.sizes[:_MOST_SIZES_IN_DETAIL]
    rows = [
        {
            "size": f"{item.height} x {item.width}",
            "patches": item.height * item.width // 256,
            "images": item.images,
            "share": f"{item.images / counted.images:.1%}",
        }
        for item in listed
    ]
    columns = {name: name for name in ("size", "patches", "images", "share")}
    show_table(output, f"images by size{_sample(counted)}", columns, rows)
    if len(counted.sizes) > len(listed):
        rest = sum(item.images for item in counted.sizes[len(listed) :])
        output.say(f"… and {rest:,} images of {len(counted.sizes) - len(listed):,} more sizes; --json gives all")


def _sample(counted: Contents) -> str:
    return "" if counted.is_complete else f", in {counted.counted:,} of {counted.records:,} records, evenly spaced"


def _rules(rules: DocumentRules) -> str:
    end = "a document ends with </s>" if rules.end_of_document else "documents have no end token"
    if rules.pictures is None:
        return f"text alone; {end}"
    rule = rules.pictures
    sides = f"{rule.size[0]} x {rule.size[1]}" if rule.size else f"at most {rule.max_patches} patches each"
    codec = "PNG or JPEG" if rule.codec is None else rule.codec.upper()
    bad = "costs its document" if rules.bad_images == "reject" else "is left out"
    return f"images of {sides}, {codec} (quality {rule.quality}); a bad image {bad}; {end}"


def _scaled(count: int, of: int, total: int) -> int:
    return 0 if not of else count if of == total else round(count * total / of)


_MOST_TASKS = 40
_EPISODE_TOTALS = {
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
    show_table(
        output, title, known_columns(_EPISODE_TOTALS, rows), rows, ("weight", "kind", "records", "shards", "held_out")
    )
