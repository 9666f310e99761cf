"""Which episodes or documents two indexes keep differently; two rows are of the same one if their ids are equal.

Legend: R rows of an index that a pass looks at.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.preview import Rule, replay
from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.inspection.read.index import TaskCodes, TaskTotals, among
from gatokit.schemas.index import HELD_OUT

MOST_ROWS = 1 << 22
"""Rows of each side that are compared at a time, at about 100 bytes each; more are compared in several passes."""
MOST_EXAMPLES = 3
_COUNTED = ("gained", "new", "lost", "gone", "changed", "moved")
_COLUMNS = ["task", "kept", "split", "steps", "return", "tokens", "episode_id"]
_MIX = tuple(np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


@dataclass(frozen=True)
class RowChanges:
    """Episodes or documents that only one side keeps, and what else changed of those that both keep.

    Of the ``gained`` ones ``new`` are not in the left index at all, and of the ``lost`` ones ``gone`` are not in the
    right index; the others are dropped there. Of those kept on both sides ``changed`` have other steps, returns or (in
    two builds) tokens, and ``moved`` are held out on one side only. The ids are those of the first.
    """

    gained: int = 0
    new: int = 0
    lost: int = 0
    gone: int = 0
    changed: int = 0
    moved: int = 0
    gained_ids: tuple[str, ...] = ()
    lost_ids: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in _COUNTED)

    def __add__(self, other: "RowChanges") -> "RowChanges":
        sums = {name: getattr(self, name) + getattr(other, name) for name in _COUNTED}
        gained_ids, lost_ids = self.gained_ids + other.gained_ids, self.lost_ids + other.lost_ids
        return RowChanges(**sums, gained_ids=gained_ids[:MOST_EXAMPLES], lost_ids=lost_ids[:MOST_EXAMPLES])


@dataclass(frozen=True)
class Side:
    """A dataset, and the indexes of those of its splits that are compared."""

    dataset: DatasetReader
    indexes: list[str]

    @property
    def rows(self) -> int:
        """The number of rows of the indexes."""
        return sum(split.rows for split in self.dataset.totals.splits if split.index in self.indexes)

    def batches(self, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows in order, some at a time, and the ordinal of the first."""
        first = 0
        for batch in self.dataset.batches(columns, self.indexes):
            yield first, batch
            first += batch.num_rows

    def first_ids(self, rows: dict[int, np.ndarray]) -> dict[int, tuple[str, ...]]:
        """The ids of rows, given by their ordinals for each task, int64."""
        ordinals = np.sort(np.concatenate([np.empty(0, np.int64), *rows.values()]))
        ids: list[str] = []
        for first, batch in self.batches(["episode_id"]) if len(ordinals) else ():
            in_batch = ordinals[(ordinals >= first) & (ordinals < first + batch.num_rows)] - first
            ids += batch["episode_id"].take(pa.array(in_batch)).to_pylist()
        id_at = dict(zip(ordinals.tolist(), ids, strict=True))
        return {task: tuple(id_at[row] for row in of_task.tolist()) for task, of_task in rows.items()}


def compare_rows(left: Side | None, right: Side | None, most_rows: int = MOST_ROWS) -> dict[str, RowChanges]:
    """What changed of the episodes or documents of each task. None is a side without the dataset.

    One that has another task than before is lost there and gained here. Raises DataError if an index cannot be read.
    """
    has_tokens = all(side is not None and side.dataset.totals.shards > 0 for side in (left, right))
    passes = -(-max(0 if side is None else side.rows for side in (left, right)) // most_rows)
    codes = TaskCodes()
    counts: Counter[tuple[str, int]] = Counter()
    lost_rows: dict[int, np.ndarray] = {}
    gained_rows: dict[int, np.ndarray] = {}
    for number in range(passes):
        a, b = (_read(side, codes, number, passes, has_tokens) for side in (left, right))
        _, at_a, at_b = np.intersect1d(a.id, b.id, return_indices=True)
        in_a, in_b = np.zeros(len(b.id), bool), np.zeros(len(a.id), bool)
        in_a[at_b] = in_b[at_a] = True
        both = a.kept[at_a] & b.kept[at_b] & (a.task[at_a] == b.task[at_b])
        at_a, at_b = at_a[both], at_b[both]
        lost, gained = a.kept.copy(), b.kept.copy()
        lost[at_a] = gained[at_b] = False
        for name, tasks in {
            "gained": b.task[gained],
            "new": b.task[gained & ~in_a],
            "lost": a.task[lost],
            "gone": a.task[lost & ~in_b],
            "changed": b.task[at_b[a.content[at_a] != b.content[at_b]]],
            "moved": b.task[at_b[a.held_out[at_a] != b.held_out[at_b]]],
        }.items():
            for code, count in zip(*(column.tolist() for column in np.unique(tasks, return_counts=True)), strict=True):
                counts[name, code] += count
        first_of_each(a.task[lost], a.ordinal[lost], lost_rows)
        first_of_each(b.task[gained], b.ordinal[gained], gained_rows)
    lost_ids = {} if left is None else left.first_ids(lost_rows)
    gained_ids = {} if right is None else right.first_ids(gained_rows)
    return {
        task: RowChanges(
            **{name: counts[name, code] for name in _COUNTED},
            gained_ids=gained_ids.get(code, ()),
            lost_ids=lost_ids.get(code, ()),
        )
        for task, code in codes.of_name.items()
    }


def first_of_each(tasks: np.ndarray, rows: np.ndarray, first: dict[int, np.ndarray]) -> None:
    """Adds ``rows``, ordinals int64 (R,), to ``first``, which has the lowest few of each task; ``tasks``: int (R,)."""
    order = np.lexsort((rows, tasks))
    codes, begins = np.unique(tasks[order], return_index=True)
    ends = np.append(begins, len(order))[1:].tolist()
    for code, begin, end in zip(codes.tolist(), begins.tolist(), ends, strict=True):
        found = np.append(first.get(code, np.empty(0, np.int64)), rows[order[begin : min(end, begin + MOST_EXAMPLES)]])
        first[code] = np.sort(found)[:MOST_EXAMPLES]


@dataclass(frozen=True)
class _Rows:
    """Hashes of ids and of what the rows say, uint64 (R,); ordinals int64, tasks int32, marks bool."""

    id: np.ndarray
    content: np.ndarray
    ordinal: np.ndarray
    task: np.ndarray
    kept: np.ndarray
    held_out: np.ndarray


_DTYPES = (np.uint64, np.uint64, np.int64, np.int32, bool, bool)


def _read(side: Side | None, tasks: TaskCodes, number: int, passes: int, has_tokens: bool) -> _Rows:
    """The rows of a side whose hashes fall to pass ``number``."""
    batches: list[Sequence[np.ndarray]] = [[np.empty(0, dtype) for dtype in _DTYPES]]
    for first, batch in () if side is None else side.batches(_COLUMNS):
        hashes = _hashes(batch["episode_id"].to_pylist())
        places = np.flatnonzero(hashes % np.uint64(passes) == number)
        rows = batch.take(pa.array(places))
        batches.append(
            (
                hashes[places],
                _content(rows, has_tokens),
                places + first,
                tasks.codes(rows["task"]),
                rows["kept"].to_numpy(zero_copy_only=False),
                among(rows["split"], {HELD_OUT}),
            )
        )
    return _Rows(*(np.concatenate(columns) for columns in zip(*batches, strict=True)))


def _hashes(ids: list[str]) -> np.ndarray:
    """64 bits of each id, uint64 (R,)."""
    return np.frombuffer(b"".join(hashlib.blake2b(id_.encode(), digest_size=8).digest() for id_ in ids), np.uint64)


def _content(batch: pa.RecordBatch, has_tokens: bool) -> np.ndarray:
    """64 bits of the steps, return and tokens of each row, uint64 (R,)."""
    steps, tokens = (pc.fill_null(batch[name], 0).to_numpy().view(np.uint64) for name in ("steps", "tokens"))
    returns = pc.fill_null(batch["return"], 0.0).to_numpy().view(np.uint64)
    mixed: np.ndarray = steps * _MIX[0] ^ returns * _MIX[1]
    return mixed ^ tokens * _MIX[2] if has_tokens else mixed


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
