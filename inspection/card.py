"""A dataset card: what a finished directory holds and what it was made of and with, as sections of tables.

The same card becomes Markdown for a repository and a part of the report.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.directory import Directory
from gatokit.inspection.tables.summary import hours

_MOST_TASKS = 100
_SOURCES = ("source", "questions", "annotations", "image_dir")


@dataclass(frozen=True)
class Section:
    """A heading and a table below it, every cell a text; numbers of ``right`` columns stand right."""

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
    """The card of a directory's datasets. DataError where a table of tasks cannot be read."""
    manifest = directory.manifest
    totals = [dataset.totals for dataset in datasets]
    tokens = sum(item.tokens for item in totals)
    is_build = manifest.content == "build"
    kept, shards = sum(item.kept for item in totals), sum(item.shards for item in totals)
    summary = (
        f"A {manifest.content} of Gatokit with {len(totals)} dataset{'s' * (len(totals) != 1)}: {kept:,} of "
        f"{sum(item.episodes for item in totals):,} episodes and documents kept"
        + (f", {tokens:,} tokens in {shards:,} shard{'s' * (shards != 1)}." if is_build else ".")
    )
    return Card(
        title=directory.path.resolve().name,
        summary=summary,
        sections=(
            _counts(datasets, is_build),
            _sources(datasets, manifest.config),
            *_tasks(datasets),
            *_vocabulary(directory),
            Section("Made with", ("package", "version"), tuple(manifest.packages.items())),
            _digests(directory, datasets),
        ),
    )


def markdown(found: Card) -> str:
    """The card as Markdown, with every text escaped."""
    lines = [f"# {_plain(found.title)}", "", _plain(found.summary)]
    for section in found.sections:
        rules = ["--:" if number in section.right else "---" for number in range(len(section.columns))]
        lines += ["", f"## {_plain(section.title)}", ""]
        for row in (section.columns, rules, *section.rows):
            cells = row if row is rules else [_plain(cell) for cell in row]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A text that Markdown and HTML take as it is, on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", " ".join(text.split()))


def _counts(datasets: Sequence[DatasetReader], is_build: bool) -> Section:
    columns = ["dataset", "kind", "found", "kept", "held out", "hours"]
    columns += ["tokens", "records", "shards", "bytes"] if is_build else []
    rows = []
    for dataset in datasets:
        totals, long = dataset.totals, hours(dataset)
        row = [totals.name, totals.kind, f"{totals.episodes:,}", f"{totals.kept:,}"]
        row += [f"{sum(item.held_out or 0 for item in dataset.tasks):,}", "" if long is None else f"{long:,.2f}"]
        if is_build:
            row += [f"{number:,}" for number in (totals.tokens, totals.records, totals.shards, totals.bytes)]
        rows.append(tuple(row))
    return Section("Contents", tuple(columns), tuple(rows), frozenset(range(2, len(columns))))


def _sources(datasets: Sequence[DatasetReader], config: dict[str, Any]) -> Section:
    of = {item["name"]: item for item in config["datasets"]}
    rows = []
    for dataset in datasets:
        own = of[dataset.name]
        places = [f"{key}: {own[key]}" if key != "source" else str(own[key]) for key in _SOURCES if own.get(key)]
        keep = own.get("keep") or {}
        rule = ", ".join(f"{key}: {value}" for key, value in keep.items() if value is not None)
        weight = f"{dataset.totals.weight:g}"
        rows.append((dataset.name, ", ".join(places), dataset.totals.license or "not stated", rule, weight))
    return Section("Sources", ("dataset", "source", "licence", "kept by", "weight"), tuple(rows), frozenset({4}))


def _tasks(datasets: Sequence[DatasetReader]) -> list[Section]:
    rows = []
    for dataset in datasets:
        by_task: dict[str, list[Any]] = {}
        for row in dataset.tasks if not dataset.holds_documents else ():
            by_task.setdefault(row.task, []).append(row)
        for task, streams in by_task.items():
            expert, limit = streams[0].expert_return, streams[0].threshold
            kept, dropped = (sum(getattr(row, name) or 0 for row in streams) for name in ("kept", "dropped"))
            numbers = [
                f"{kept:,}",
                f"{dropped:,}",
                *("" if value is None else f"{value:g}" for value in (expert, limit)),
            ]
            rows.append((dataset.name, task, *numbers))
    if not rows:
        return []
    title = "Tasks" if len(rows) <= _MOST_TASKS else f"Tasks, the first {_MOST_TASKS} of {len(rows):,}"
    columns = ("dataset", "task", "kept", "dropped", "expert return", "threshold")
    return [Section(title, columns, tuple(rows[:_MOST_TASKS]), frozenset(range(2, 6)))]


def _vocabulary(directory: Directory) -> list[Section]:
    manifest = directory.manifest
    rows = [("ids", f"{manifest.tokenizer.vocabulary_size:,}"), ("separator", str(manifest.tokenizer.separator))]
    rows += [("discrete values from", str(manifest.tokenizer.discrete_offset))]
    if manifest.vocabulary is not None:
        rows += [("text pieces", f"{manifest.vocabulary.pieces:,}"), ("BLAKE2b-256", manifest.vocabulary.blake2b)]
    return [Section("Vocabulary", ("what", "value"), tuple(rows))]


def _digests(directory: Directory, datasets: Sequence[DatasetReader]) -> Section:
    manifest = directory.manifest
    rows = [("manifest", manifest.digest), ("config", manifest.config_digest)]
    rows += [
        (f"{dataset.name}, split {number}", split.fingerprint)
        for dataset in datasets
        for number, split in enumerate(dataset.totals.splits, 1)
    ][:_MOST_TASKS]
    return Section("Digests", ("of", "digest"), tuple(rows))
