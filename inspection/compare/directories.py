"""What changed between two finished directories, or between two rules for one: config, datasets, tasks, episodes.

Left is what was, right what is compared with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

from gatokit.inspection.compare.episodes import MOST_ROWS, Moves, Side, first_of_each, moves
from gatokit.inspection.preview import Rule, replay
from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.directory import Directory


@dataclass(frozen=True)
class FieldChange:
    """A value that differs; None where a side has none."""

    field: str
    left: Any
    right: Any


@dataclass(frozen=True)
class Counts:
    """A dataset on one side; None is what that side does not have, as scans have no tokens and documents no steps."""

    found: int
    kept: int
    held_out: int | None
    steps: int | None
    tokens: int | None
    shards: int | None
    bytes: int | None


@dataclass(frozen=True)
class TaskChange:
    """A task on both sides: (left, right). ``kept`` is 0 where a side has no such task."""

    dataset: str
    task: str
    expert_return: tuple[float | None, float | None]
    threshold: tuple[float | None, float | None]
    kept: tuple[int, int]
    moves: Moves

    def __bool__(self) -> bool:
        pairs: Sequence[tuple[Any, Any]] = (self.expert_return, self.threshold, self.kept)
        return bool(self.moves) or any(left != right for left, right in pairs)


@dataclass(frozen=True)
class DatasetChange:
    """A dataset, None on the side that has none of its name; ``same_shards`` are on both, byte for byte."""

    name: str
    left: Counts | None
    right: Counts | None
    same_shards: int
    moves: Moves

    def __bool__(self) -> bool:
        return self.left != self.right or bool(self.moves)


@dataclass(frozen=True)
class Changes:
    """All that differs. ``config`` has the fields of the configs by path; ``made_with`` digests, vocabulary, tokenizer,
    packages and the specs of tasks. ``datasets`` are all that were compared, ``tasks`` those that differ."""

    config: list[FieldChange] = field(default_factory=list)
    made_with: list[FieldChange] = field(default_factory=list)
    datasets: list[DatasetChange] = field(default_factory=list)
    tasks: list[TaskChange] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.config or self.made_with or self.tasks) or any(self.datasets)


def against(
    left: Directory, right: Directory, names: Sequence[str] | None = None, most_rows: int = MOST_ROWS
) -> Changes:
    """What changed from one finished build or scan to another, in all datasets or those of ``names``.

    Splits whose indexes are one and the same file are not read. DataError where an index cannot be read.
    """
    changes = Changes(
        config=list(_differ(_config(left, names), _config(right, names))),
        made_with=list(_differ(_made_with(left), _made_with(right))),
    )
    for name in dict.fromkeys([*left.datasets, *right.datasets]) if names is None else names:
        readers = left.datasets.get(name), right.datasets.get(name)
        digests = [_digests(directory, name) for directory in (left, right)]
        same = set(digests[0].values()) & set(digests[1].values())
        indexes = [
            [] if reader is None else [split.index for split in reader.totals.splits if of[split.index] not in same]
            for reader, of in zip(readers, digests, strict=True)
        ]
        sides = [None if reader is None else Side(reader, own) for reader, own in zip(readers, indexes, strict=True)]
        found = moves(sides[0], sides[1], most_rows)
        counts = [None if reader is None else _counts(reader) for reader in readers]
        shards = sum(digest in same for file, digest in digests[0].items() if file.endswith(".arrayrecord"))
        total = sum((found[task] for task in sorted(found)), Moves())
        changes.datasets.append(DatasetChange(name, counts[0], counts[1], shards, total))
        tasks = [{} if reader is None else _tasks(reader) for reader in readers]
        for task in sorted(tasks[0].keys() | tasks[1].keys()):
            expert, threshold, kept = zip(*(side.get(task, (None, None, 0)) for side in tasks), strict=True)
            change = TaskChange(name, task, expert, threshold, kept, found.get(task, Moves()))
            changes.tasks.extend([change] if change else [])
        specs = [{} if reader is None else _specs(reader) for reader in readers]
        changes.made_with.extend(_differ(specs[0], specs[1]))
    return changes


def against_rules(datasets: Sequence[DatasetReader], left: Rule | None, right: Rule) -> Changes:
    """What changes in finished datasets of episodes from one rule to another; None is how they stand.

    ConfigError as ``preview.replay``.
    """
    changes = Changes()
    for dataset in datasets:
        after = replay(dataset, right)
        before = after if left is None else replay(dataset, left)
        now = {row.task: row.threshold for row in dataset.tasks}
        limits = (now if left is None else before.limits), after.limits
        kept = (before.kept if left is None else before.kept_at), after.kept_at
        side = Side(dataset, [split.index for split in dataset.totals.splits])
        apart = kept[1] & ~kept[0], kept[0] & ~kept[1]
        examples = [_examples(side, after.task, which) for which in apart]
        sums = [after.count(which)[1:] for which in (*kept, *apart)]
        expert = {row.task: row.expert_return for row in dataset.tasks}
        total = Moves()
        for code, task in sorted(enumerate(after.names), key=lambda item: item[1]):
            was, would_be, gained, lost = (of[code] for of in sums)
            ids = [of.get(code, ()) for of in examples]
            own = Moves(gained=gained, lost=lost, gained_ids=ids[0], lost_ids=ids[1])
            total += own
            change = TaskChange(
                dataset=dataset.name,
                task=task,
                expert_return=(expert.get(task), expert.get(task)),
                threshold=(limits[0].get(task), limits[1].get(task)),
                kept=(was, would_be),
                moves=own,
            )
            changes.tasks.extend([change] if change else [])
        counts = [_counts_at(dataset, which) for which in kept]
        changes.datasets.append(DatasetChange(dataset.name, counts[0], counts[1], 0, total))
    return changes


def _examples(side: Side, task: np.ndarray, which: np.ndarray) -> dict[int, tuple[str, ...]]:
    """The first ids of each task among the rows of ``which``, bool (R,)."""
    rows = np.flatnonzero(which)
    first = first_of_each(task[rows], rows)
    wanted = np.sort(np.concatenate([np.empty(0, np.int64), *first.values()]))
    ids = dict(zip(wanted.tolist(), side.ids(wanted), strict=True))
    return {code: tuple(ids[row] for row in own.tolist()) for code, own in first.items()}


def _digests(directory: Directory, name: str) -> dict[str, str]:
    """The digest of each file of a dataset's splits, by its name; empty where there is no such dataset."""
    dataset = directory.datasets.get(name)
    if dataset is None:
        return {}
    of_file = {entry.path: entry.blake2b for entry in directory.manifest.files}
    files = [file for split in dataset.totals.splits for file in (split.index, *(part.file for part in split.parts))]
    return {file: of_file[f"{dataset.totals.directory}/{file}"] for file in files}


def _counts(dataset: DatasetReader) -> Counts:
    totals, stored = dataset.totals, dataset.totals.shards > 0
    return Counts(
        found=totals.episodes,
        kept=totals.kept,
        held_out=sum(row.held_out for row in dataset.tasks),
        steps=None if dataset.holds_documents else sum(row.steps for row in dataset.tasks),
        tokens=totals.tokens if stored else None,
        shards=totals.shards if stored else None,
        bytes=totals.bytes if stored else None,
    )


def _counts_at(dataset: DatasetReader, kept: np.ndarray) -> Counts:
    """What a rule says of a dataset; the rest follows from a build alone."""
    steps, first = 0, 0
    for batch in dataset.batches(["steps"]):
        own = kept[first : first + batch.num_rows]
        steps += int(pc.fill_null(batch["steps"], 0).to_numpy()[own].sum())
        first += batch.num_rows
    return Counts(dataset.totals.episodes, int(kept.sum()), None, steps, None, None, None)


def _tasks(dataset: DatasetReader) -> dict[str, tuple[float | None, float | None, int]]:
    """Expert return, threshold and kept episodes of each task."""
    found: dict[str, tuple[float | None, float | None, int]] = {}
    for row in dataset.tasks:
        before = found.get(row.task, (None, None, 0))[2]
        found[row.task] = row.expert_return, row.threshold, before + row.kept
    return found


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
    """What else a manifest says of the whole."""
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
    """The fields of a config by their paths; datasets go by name."""
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


def _differ(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[FieldChange]:
    for name in dict.fromkeys([*left, *right]):
        if left.get(name) != right.get(name):
            yield FieldChange(name, left.get(name), right.get(name))
