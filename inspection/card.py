"""A dataset card: what a finished directory holds and what it was made of and with, as sections of tables.

The same card becomes Markdown for a repository and a part of the report.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.inspection.tables.fields import COLUMNS, field_rows
from gatokit.inspection.tables.summary import hours
from gatokit.schemas.words import counted, visible

_MOST_ROWS = 100
_SOURCES = ("source", "questions", "annotations", "image_dir")


@dataclass(frozen=True)
class Section:
    """A heading and a table of texts below it; the columns ``right`` hold numbers, aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Card:
    """The card of a directory. ``title`` is its name, ``summary`` a sentence."""

    title: str
    summary: str
    sections: tuple[Section, ...]


def card(directory: Directory, datasets: Sequence[DatasetReader]) -> Card:
    """The card of a directory's datasets. Raises DataError if a table of tasks cannot be read."""
    manifest = directory.manifest
    totals = [dataset.totals for dataset in datasets]
    is_build = manifest.content == "build"
    kept, found = sum(item.kept for item in totals), sum(item.episodes for item in totals)
    summary = f"A {manifest.content} of Gatokit with {counted(len(totals), 'dataset')}: "
    summary += f"{kept:,} of {found:,} episodes and documents kept"
    if is_build:
        tokens, shards = sum(item.tokens for item in totals), sum(item.shards for item in totals)
        summary += f", {tokens:,} tokens in {counted(shards, 'shard')}"
    vocabulary = [
        ("ids", f"{manifest.tokenizer.vocabulary_size:,}"),
        ("separator", str(manifest.tokenizer.separator)),
        ("discrete values from", str(manifest.tokenizer.discrete_offset)),
    ]
    if manifest.vocabulary is not None:
        vocabulary.append(("text pieces", f"{manifest.vocabulary.pieces:,}"))
        vocabulary.append(("BLAKE2b-256", manifest.vocabulary.blake2b))
    splits = [
        (f"{dataset.name}, split {number}", split.fingerprint)
        for dataset in datasets
        for number, split in enumerate(dataset.totals.splits, 1)
    ]
    data = [("data", manifest.data_digest)] if manifest.data_digest else []
    digests = [*data, ("manifest", manifest.digest), ("config", manifest.config_digest), *splits[:_MOST_ROWS]]
    return Card(
        title=directory.path.resolve().name,
        summary=f"{summary}.",
        sections=(
            _counts(datasets, is_build),
            _sources(datasets, manifest.config),
            *_losses(datasets),
            *_tasks(datasets),
            *_fields(datasets),
            Section("Vocabulary", ("what", "value"), tuple(vocabulary)),
            Section("Made with", ("package", "version"), tuple(manifest.packages.items())),
            Section("Digests", ("of", "digest"), tuple(digests)),
        ),
    )


def _counts(datasets: Sequence[DatasetReader], is_build: bool) -> Section:
    columns = ["dataset", "kind", "found", "kept", "held out", "hours"]
    columns += ["tokens", "records", "shards", "bytes"] if is_build else []
    rows = []
    for dataset in datasets:
        totals, duration = dataset.totals, hours(dataset)
        row = [totals.name, totals.kind, f"{totals.episodes:,}", f"{totals.kept:,}", f"{dataset.held_out:,}"]
        row.append("" if duration is None else f"{duration:,.2f}")
        if is_build:
            row += [f"{number:,}" for number in (totals.tokens, totals.records, totals.shards, totals.bytes)]
        rows.append(tuple(row))
    return Section("Contents", tuple(columns), tuple(rows), frozenset(range(2, len(columns))))


def _sources(datasets: Sequence[DatasetReader], config: dict[str, Any]) -> Section:
    configs = {item["name"]: item for item in config["datasets"]}
    rows = []
    for dataset in datasets:
        given = configs[dataset.name]
        sources = [str(given[key]) if key == "source" else f"{key}: {given[key]}" for key in _SOURCES if given.get(key)]
        rule = [f"{key}: {value}" for key, value in (given.get("keep") or {}).items() if value is not None]
        license_, weight = dataset.totals.license or "not stated", f"{dataset.totals.weight:g}"
        rows.append((dataset.name, ", ".join(sources), license_, ", ".join(rule), weight))
    return Section("Sources", ("dataset", "source", "licence", "kept by", "weight"), tuple(rows), frozenset({4}))


def _losses(datasets: Sequence[DatasetReader]) -> list[Section]:
    rows = [(dataset.name, sentence) for dataset in datasets for sentence in dataset.totals.losses]
    return [Section("Left out", ("dataset", "what"), tuple(rows))] if rows else []


def _tasks(datasets: Sequence[DatasetReader]) -> list[Section]:
    rows = [
        (
            dataset.name,
            task.task,
            f"{task.kept:,}",
            f"{task.found - task.kept:,}",
            *("" if value is None else f"{value:g}" for value in (task.expert_return, task.threshold)),
        )
        for dataset in datasets
        for task in (() if dataset.holds_documents else dataset.task_totals)
    ]
    if not rows:
        return []
    title = "Tasks" if len(rows) <= _MOST_ROWS else f"Tasks, the first {_MOST_ROWS} of {len(rows):,}"
    columns = ("dataset", "task", "kept", "dropped", "expert return", "threshold")
    return [Section(title, columns, tuple(rows[:_MOST_ROWS]), frozenset(range(2, 6)))]


def _fields(datasets: Sequence[DatasetReader]) -> list[Section]:
    rows = [
        (dataset.name, path, becomes, "" if tokens is None else f"{tokens:,.4g}", share, note)
        for dataset in datasets
        for path, becomes, tokens, share, note in field_rows(dataset.described.step)
    ]
    title = "Fields" if len(rows) <= _MOST_ROWS else f"Fields, the first {_MOST_ROWS} of {len(rows):,}"
    return [Section(title, ("dataset", *COLUMNS), tuple(rows[:_MOST_ROWS]), frozenset({3, 4}))] if rows else []


def markdown(card: Card) -> str:
    """The card as Markdown, with every text escaped."""
    lines = [f"# {_escaped(card.title)}", "", _escaped(card.summary)]
    for section in card.sections:
        alignments = ["--:" if number in section.right else "---" for number in range(len(section.columns))]
        rows = [list(map(_escaped, row)) for row in (section.columns, *section.rows)]
        lines += ["", f"## {_escaped(section.title)}", ""]
        lines += ["| " + " | ".join(cells) + " |" for cells in (rows[0], alignments, *rows[1:])]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """A text on one line that Markdown and HTML show as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", visible(text))
