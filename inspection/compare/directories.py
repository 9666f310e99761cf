"""What changed between two finished directories, or between two rules for one: config, datasets, tasks, episodes.

Left is what was, right is what it is compared with. Legend: R rows of an index.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

from gatokit.inspection.compare.rows import MOST_ROWS, RowChanges, Side, compare_rows, first_of_each
from gatokit.inspection.preview import Rule, replay
from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.directory import Directory
from gatokit.inspection.read.rows import TaskTotals


@dataclass(frozen=True)
class FieldChange:
    """A value that differs; None on a side that has none."""

    field: str
    left: Any
    right: Any


@dataclass(frozen=True)
class Counts:
    """A dataset on one side; None is what that side lacks: a scan has no tokens, and documents have no steps."""

    found: int
    kept: int
    held_out: int | None
    steps: int | None
    tokens: int | None
    shards: int | None
    bytes: int | None


@dataclass(frozen=True)
class TaskChange:
    """A task on both sides: (left, right). ``kept`` is 0 on a side without the task."""

    dataset: str
    task: str
    expert_return: tuple[float | None, float | None]
    threshold: tuple[float | None, float | None]
    kept: tuple[int, int]
    moves: RowChanges

    def __bool__(self) -> bool:
        pairs: Sequence[tuple[Any, Any]] = (self.expert_return, self.threshold, self.kept)
        return bool(self.moves) or any(left != right for left, right in pairs)


@dataclass(frozen=True)
class DatasetChange:
    """A dataset; a side without it is None. ``same_shards`` counts those that are equal to the byte."""

    name: str
    left: Counts | None
    right: Counts | None
    same_shards: int
    moves: RowChanges

    def __bool__(self) -> bool:
        return self.left != self.right or bool(self.moves)


@dataclass(frozen=True)
class Changes:
    """All that differs. ``config`` has the fields of the configs by path; ``made_with`` has digests, vocabulary,
    tokenizer, packages and the specs of tasks. ``datasets`` are all that were compared, ``tasks`` those that differ."""

    config: list[FieldChange] = field(default_factory=list)
    made_with: list[FieldChange] = field(default_factory=list)
    datasets: list[DatasetChange] = field(default_factory=list)
    tasks: list[TaskChange] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.config or self.made_with or self.tasks) or any(self.datasets)


def compare(
    left: Directory, right: Directory, names: Sequence[str] | None = None, most_rows: int = MOST_ROWS
) -> Changes:
    """What changed from one finished build or scan to another, in all datasets or those of ``names``.

    Splits with the same index file on both sides are not read. Raises DataError if an index cannot be read.
    """
    changes = Changes(
        config=list(_differing(_config(left, names), _config(right, names))),
        made_with=list(_differing(_made_with(left), _made_with(right))),
    )
    for name in dict.fromkeys([*left.datasets, *right.datasets]) if names is None else names:
        digests = [_digests(directory, name) for directory in (left, right)]
        same = set(digests[0].values()) & set(digests[1].values())
        readers = left.datasets.get(name), right.datasets.get(name)
        sides = [
            None
            if reader is None
            else Side(reader, [split.index for split in reader.totals.splits if of_file[split.index] not in same])
            for reader, of_file in zip(readers, digests, strict=True)
        ]
        rows = compare_rows(sides[0], sides[1], most_rows)
        counts = [None if reader is None else _counts(reader) for reader in readers]
        same_shards = sum(digest in same for file, digest in digests[0].items() if file.endswith(".arrayrecord"))
        total = sum((rows[task] for task in sorted(rows)), RowChanges())
        changes.datasets.append(DatasetChange(name, counts[0], counts[1], same_shards, total))
        tasks = [{} if reader is None else {item.task: item for item in reader.task_totals} for reader in readers]
        for task in sorted(tasks[0].keys() | tasks[1].keys()):
            was, now = (side.get(task, TaskTotals(task, 0, 0, None, None, 0)) for side in tasks)
            change = TaskChange(
                dataset=name,
                task=task,
                expert_return=(was.expert_return, now.expert_return),
                threshold=(was.threshold, now.threshold),
                kept=(was.kept, now.kept),
                moves=rows.get(task, RowChanges()),
            )
            changes.tasks.extend([change] if change else [])
        specs = [{} if reader is None else _specs(reader) for reader in readers]
        changes.made_with.extend(_differing(specs[0], specs[1]))
    return changes


def compare_rules(datasets: Sequence[DatasetReader], left: Rule | None, right: Rule) -> Changes:
    """What changes in finished datasets of episodes from one rule to another; None is the rule of the directory.

    Raises ConfigError as ``preview.replay``.
    """
    changes = Changes()
    for dataset in datasets:
        after = replay(dataset, right)
        if left is None:
            kept_before, thresholds = after.kept, {row.task: row.threshold for row in dataset.tasks}
        else:
            before = replay(dataset, left)
            kept_before, thresholds = before.kept_at, before.thresholds
        gained, lost = after.kept_at & ~kept_before, kept_before & ~after.kept_at
        side = Side(dataset, [split.index for split in dataset.totals.splits])
        gained_ids, lost_ids = (_first_ids(side, after.task, mask) for mask in (gained, lost))
        counts = [after.count(mask)[1:] for mask in (kept_before, after.kept_at, gained, lost)]
        expert = {row.task: row.expert_return for row in dataset.tasks}
        total = RowChanges()
        for code, task in sorted(enumerate(after.names), key=lambda item: item[1]):
            kept, kept_at, gains, losses = (of_tasks[code] for of_tasks in counts)
            rows = RowChanges(
                gained=gains, lost=losses, gained_ids=gained_ids.get(code, ()), lost_ids=lost_ids.get(code, ())
            )
            total += rows
            change = TaskChange(
                dataset=dataset.name,
                task=task,
                expert_return=(expert.get(task), expert.get(task)),
                threshold=(thresholds.get(task), after.thresholds.get(task)),
                kept=(kept, kept_at),
                moves=rows,
            )
            changes.tasks.extend([change] if change else [])
        left_counts, right_counts = (_counts_of(dataset, mask) for mask in (kept_before, after.kept_at))
        changes.datasets.append(DatasetChange(dataset.name, left_counts, right_counts, 0, total))
    return changes


def _first_ids(side: Side, tasks: np.ndarray, mask: np.ndarray) -> dict[int, tuple[str, ...]]:
    """The first ids of each task among the rows of ``mask``, bool (R,)."""
    rows = np.flatnonzero(mask)
    first: dict[int, np.ndarray] = {}
    first_of_each(tasks[rows], rows, first)
    return side.first_ids(first)


def _digests(directory: Directory, name: str) -> dict[str, str]:
    """The digest of each file of a dataset's splits by its name; empty if there is no such dataset."""
    dataset = directory.datasets.get(name)
    if dataset is None:
        return {}
    of_file = {entry.path: entry.blake2b for entry in directory.manifest.files}
    files = [file for split in dataset.totals.splits for file in (split.index, *(part.file for part in split.parts))]
    return {file: of_file[f"{dataset.totals.directory}/{file}"] for file in files}


def _counts(dataset: DatasetReader) -> Counts:
    stored = dataset.stored
    return Counts(
        found=dataset.totals.episodes,
        kept=dataset.totals.kept,
        held_out=dataset.held_out,
        steps=None if dataset.holds_documents else sum(row.steps for row in dataset.tasks),
        tokens=stored["tokens"],
        shards=stored["shards"],
        bytes=stored["bytes"],
    )


def _counts_of(dataset: DatasetReader, kept: np.ndarray) -> Counts:
    """The counts of a dataset of which a rule keeps the rows ``kept``, bool (R,); only a build gives the others."""
    steps, first = 0, 0
    for batch in dataset.batches(["steps"]):
        in_batch = kept[first : first + batch.num_rows]
        steps += int(pc.fill_null(batch["steps"], 0).to_numpy()[in_batch].sum())
        first += batch.num_rows
    return Counts(dataset.totals.episodes, int(kept.sum()), None, steps, None, None, None)


def _specs(dataset: DatasetReader) -> dict[str, Any]:
    """The fields of a step of each task."""
    described = dataset.described
    return {
        f"{dataset.name}/{task}: {item.path}": " ".join(
            f"{key}={value}" for key, value in item.model_dump(mode="json", exclude={"path"}, exclude_none=True).items()
        )
        for task, entry in described.tasks.items()
        if entry.spec in described.specs
        for item in described.specs[entry.spec].fields
    }


def _made_with(directory: Directory) -> dict[str, Any]:
    """What a manifest says of a directory, besides its config and datasets."""
    manifest = directory.manifest
    vocabulary = manifest.vocabulary
    return {
        "content": manifest.content,
        "manifest": manifest.digest,
        "vocabulary": None if vocabulary is None else vocabulary.blake2b,
        "vocabulary pieces": None if vocabulary is None else vocabulary.pieces,
        **{f"tokenizer {name}": value for name, value in manifest.tokenizer.model_dump().items()},
        **manifest.packages,
    }


def _config(directory: Directory, names: Sequence[str] | None) -> dict[str, Any]:
    """The fields of a config by their paths, with the names of datasets in place of their numbers."""
    config = dict(directory.manifest.config)
    datasets = config.pop("datasets")
    wanted = {item["name"]: item for item in datasets if names is None or item["name"] in names}
    return dict(_flat(config, "")) | dict(_flat(wanted, ""))


def _flat(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[FieldChange]:
    for name in dict.fromkeys([*left, *right]):
        if left.get(name) != right.get(name):
            yield FieldChange(name, left.get(name), right.get(name))
