"""All datasets of a directory side by side, or one in detail: totals, tasks, what documents hold, what was dropped."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.inspection.tables.fields import show_fields
from gatokit.inspection.tables.output import Output, known_columns, show_table, titled
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
from gatokit.inspection.tables.tasks import show_streams
from gatokit.schemas.manifest import DocumentRules
from gatokit.schemas.words import byte_size

OVERVIEW = Effort(records=2_000, bytes=32 << 20)
"""What is read of each dataset if many are shown."""
DETAILS = Effort(records=50_000, bytes=256 << 20)
"""What is read of a dataset that is asked for."""

_MOST_TASKS = 40
_MOST_SIZES = 5
_MOST_SIZES_IN_DETAIL = 30
_FIRST_DOCUMENTS = 10
_EPISODE_TOTALS = titled(
    "name kind episodes kept held_out tokens records shards bytes hours weight", name="dataset", bytes="size"
)
_DOCUMENT_TOTALS = titled(
    "name kind episodes kept held_out tokens text_tokens image_tokens pictures median_tokens longest_tokens records "
    "shards bytes weight",
    name="dataset",
    episodes="documents",
    pictures="images",
    bytes="size",
)
_IMAGE_COLUMNS = ("text_tokens", "image_tokens", "pictures")
_LEAST_OF_DOCUMENTS = "weight shards kind records held_out median_tokens longest_tokens bytes text_tokens"


def show_directory(output: Output, directory: Directory, datasets: Sequence[DatasetReader], detailed: bool) -> None:
    """Shows datasets, their tasks or documents, and what was dropped; of a dataset with many tasks all of them only if
    ``detailed``."""
    content = directory.manifest.content
    title = f"{directory.path}: a finished {content}"
    effort = DETAILS if detailed else OVERVIEW
    documents = [_Documents.of(dataset, effort, output) for dataset in datasets if dataset.holds_documents]
    episodes = [dataset for dataset in datasets if not dataset.holds_documents]
    dropped = {dataset.name: drops(dataset) for dataset in datasets}
    totals = {
        dataset.name: _totals(dataset) | {"hours": hours(dataset), "hz": dataset.totals.hz} for dataset in episodes
    }
    totals |= {item.dataset.name: item.totals() for item in documents}
    if episodes:
        rows = [
            row
            | {"bytes": None if row["bytes"] is None else byte_size(row["bytes"])}
            | {"hours": None if row["hours"] is None else round(row["hours"], 2)}
            for row in (totals[dataset.name] for dataset in episodes)
        ]
        columns = known_columns(_EPISODE_TOTALS, rows)
        show_table(output, title + ", episodes" * bool(documents), columns, rows, "weight kind records shards held_out")
    for dataset in episodes:
        heading = dataset.name if dataset.totals.ordered else f"{dataset.name}, in the order of its files"
        show_streams(output, heading, dataset.tasks if detailed else dataset.tasks[:_MOST_TASKS])
        if not detailed and len(dataset.tasks) > _MOST_TASKS:
            output.say(f"… and {len(dataset.tasks) - _MOST_TASKS:,} more; --dataset {dataset.name} shows all")
        show_drops(output, dataset.name, dropped[dataset.name])
        if detailed:
            step = dataset.described.step
            show_fields(output, {dataset.name: step})
            totals[dataset.name] |= {} if step is None else {"step": step.model_dump(mode="json")}
    if documents:
        rows = [totals[item.dataset.name] for item in documents]
        columns = known_columns(_DOCUMENT_TOTALS, rows)
        if not any(row["pictures"] for row in rows):
            columns = {key: name for key, name in columns.items() if key not in _IMAGE_COLUMNS}
        rows = [row | {"bytes": byte_size(row["bytes"]) if row["bytes"] else row["bytes"]} for row in rows]
        show_table(output, title + ", documents" * bool(episodes), columns, rows, _LEAST_OF_DOCUMENTS)
        estimated = [item.dataset.name for item in documents if item.contents and not item.contents.is_complete]
        if estimated:
            names = ", ".join(estimated)
            output.say(f"text tokens, image tokens and images of {names}: estimated from a sample, see below")
    for item in documents:
        name = item.dataset.name
        if detailed:
            totals[name] |= _show_details(output, item, dropped[name])
        else:
            _show_frequent_sizes(output, item)
            show_drops(output, name, dropped[name])
    for dataset in datasets:
        overlap = dataset.totals.overlap
        if overlap is not None:
            counts = f"{overlap.pictures:,} pictures and {overlap.texts:,} texts"
            output.say(f"{dataset.name}: {dataset.held_out:,} documents are held out; shared with the others: {counts}")
        for sentence in dataset.totals.losses:
            output.say(f"{dataset.name}: {sentence}")
    output.result(
        {
            "content": content,
            "datasets": [totals[dataset.name] for dataset in datasets],
            "losses": {dataset.name: dataset.totals.losses for dataset in datasets if dataset.totals.losses},
            "tasks": [
                {"dataset": dataset.name, **dataclasses.asdict(row)} for dataset in datasets for row in dataset.tasks
            ],
            "drops": [
                {"dataset": dataset.name, **dataclasses.asdict(drop)}
                for dataset in datasets
                for drop in dropped[dataset.name]
            ],
        }
    )


def _totals(dataset: DatasetReader) -> dict[str, Any]:
    """The totals of a dataset as JSON."""
    named = dataset.totals.model_dump(include={"name", "kind", "episodes", "kept", "weight", "license"})
    overlap = dataset.totals.overlap
    shared = {} if overlap is None else {"overlap": overlap.model_dump()}
    return named | {"held_out": dataset.held_out, **shared, **dataset.stored}


@dataclass(frozen=True)
class _Documents:
    """A dataset of documents and what was read of it; ``contents`` and ``lengths`` are None in a scan."""

    dataset: DatasetReader
    contents: Contents | None
    lengths: Lengths | None

    @staticmethod
    def of(dataset: DatasetReader, effort: Effort, output: Output) -> "_Documents":
        """Reads as much of the dataset as ``effort`` allows, with progress if that may take seconds."""
        if not dataset.totals.shards:
            counted = None
        elif min(effort.bytes, dataset.totals.bytes) <= OVERVIEW.bytes:
            counted = contents(dataset, effort)
        else:
            with output.progress() as progress:
                counted = contents(dataset, effort, lambda done, total: progress("records", done, total))
        return _Documents(dataset, counted, lengths(dataset))

    def totals(self) -> dict[str, Any]:
        """The totals of the dataset as JSON; counts of a sample are scaled to the whole dataset."""
        counted, long, tokens = self.contents, self.lengths, self.dataset.totals.tokens
        text = image = images = sizes = None
        if counted is not None:
            image = _scaled(counted.image_tokens, counted.text_tokens + counted.image_tokens, tokens)
            text = tokens - image
            images = _scaled(counted.images, counted.counted, counted.records)
            sizes = [{"height": item.height, "width": item.width, "pictures": item.images} for item in counted.sizes]
        return _totals(self.dataset) | {
            "text_tokens": text,
            "image_tokens": image,
            "pictures": images,
            "median_tokens": None if long is None else long.median,
            "longest_tokens": None if long is None else long.longest,
            "longest_document": None if long is None else long.longest_id,
            "counted_records": None if counted is None else counted.counted,
            "picture_sizes": sizes,
        }


def _scaled(count: int, of: int, total: int) -> int:
    return 0 if not of else count if of == total else round(count * total / of)


def _show_frequent_sizes(output: Output, documents: _Documents) -> None:
    """Shows the most frequent sizes of a dataset's images in one line."""
    counted, name = documents.contents, documents.dataset.name
    if counted is None or not counted.images:
        return
    sizes = [f"{item.height} x {item.width}: {item.images:,}" for item in counted.sizes[:_MOST_SIZES]]
    more = len(counted.sizes) - len(sizes)
    rest = f", … and {more:,} more sizes; --dataset {name} shows them" if more else ""
    output.say(f"images of {name}{_sample(counted)}: {', '.join(sizes)}{rest}")


def _show_details(output: Output, documents: _Documents, dropped: Sequence[Drop]) -> dict[str, Any]:
    """Shows rules, lengths, images by size, drops and the first documents. Returns the JSON keys that these add to the
    totals."""
    dataset, counted, long = documents.dataset, documents.contents, documents.lengths
    rules = dataset.described.documents
    if rules is not None:
        output.say(_rules(rules))
    if long is not None:
        titles = ("shortest", "10%", "median", "90%", "longest", "longest document")
        show_table(output, "tokens a document", dict(zip(vars(long), titles, strict=True)), [vars(long)])
    if counted is not None and counted.images:
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
        show_table(output, f"images by size{_sample(counted)}", titled("size patches images share"), rows)
        if len(counted.sizes) > len(listed):
            rest = sum(item.images for item in counted.sizes[len(listed) :])
            output.say(f"… and {rest:,} images of {len(counted.sizes) - len(listed):,} more sizes; --json gives all")
    show_drops(output, dataset.name, dropped)
    first = list(islice(dataset.rows(), _FIRST_DOCUMENTS))
    columns = titled("verdict episode_id" if counted is None else "tokens records verdict episode_id")
    rows = [
        {
            "tokens": row.tokens or None,
            "records": len(row.record_tokens) if row.record_tokens else None,
            "verdict": row.verdict,
            "episode_id": row.episode_id,
        }
        for row in first
    ]
    show_table(output, "first documents; --document ID shows one", columns | {"episode_id": "document"}, rows)
    return {
        "rules": None if rules is None else rules.model_dump(mode="json"),
        "lengths": None if long is None else dataclasses.asdict(long),
        "first_documents": [row.columns() for row in first],
    }


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
