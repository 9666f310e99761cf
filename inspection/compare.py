"""What changed between two finished directories, or between two rules for one: config, datasets, tasks, episodes.

Left is what was, right is what it is compared with. Two rows of indexes are of the same episode or document if their
ids are equal.

Legend: R rows of an index that are compared at a time.
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
from gatokit.schemas.manifest import SplitEntry

MOST_ROWS = 1 << 22
"""Rows of each side that are compared at a time, at about 100 bytes each; more are compared in several passes."""
MOST_EXAMPLES = 3
_COUNTED = ("gained", "new", "lost", "gone", "changed", "moved")
_COLUMNS = ["task", "kept", "split", "steps", "return", "tokens", "episode_id"]
_ROW = np.dtype(
    [
        ("id", np.uint64),  # hash of the id
        ("content", np.uint64),  # hash of steps, return and tokens
        ("ordinal", np.int64),
        ("task", np.int32),
        ("kept", bool),
        ("held_out", bool),
    ]
)
_MIX = tuple(np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


# --- what a comparison finds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldChange:
    """A value that differs; None on a side that has none."""

    field: str
    left: Any
    right: Any


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


# --- two directories -------------------------------------------------------------------------------------------


def compare(
    left: Directory, right: Directory, names: Sequence[str] | None = None, most_rows: int = MOST_ROWS
) -> Changes:
    """What changed from one finished build or scan to another, in all datasets or those of ``names``.

    Splits with the same index file on both sides are not read. Raises DataError if an index cannot be read.
    """
    changes = Changes(
        config=_differing(_config(left, names), _config(right, names)),
        made_with=_differing(_made_with(left), _made_with(right)),
    )
    for name in dict.fromkeys([*left.datasets, *right.datasets]) if names is None else names:
        before, after = _Side(left.datasets.get(name)), _Side(right.datasets.get(name))
        same = set(before.digests.values()) & set(after.digests.values())
        for side in (before, after):
            side.splits = [split for split in side.splits if side.digests[split.index] not in same]
        rows = _compare_rows(before, after, most_rows)
        same_shards = sum(before.digests[file] in same for file in before.digests if file.endswith(".arrayrecord"))
        total = sum((rows[task] for task in sorted(rows)), RowChanges())
        changes.datasets.append(DatasetChange(name, before.counts, after.counts, same_shards, total))
        for task in sorted(before.tasks.keys() | after.tasks.keys()):
            absent = TaskTotals(task, 0, 0, None, None, 0)
            was, now = before.tasks.get(task, absent), after.tasks.get(task, absent)
            change = TaskChange(
                dataset=name,
                task=task,
                expert_return=(was.expert_return, now.expert_return),
                threshold=(was.threshold, now.threshold),
                kept=(was.kept, now.kept),
                moves=rows.get(task, RowChanges()),
            )
            if change:
                changes.tasks.append(change)
        changes.made_with.extend(_differing(before.specs, after.specs))
    return changes


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


def _made_with(directory: Directory) -> dict[str, Any]:
    """What a manifest says of a directory, besides its config and datasets."""
    manifest = directory.manifest
    vocabulary = manifest.vocabulary
    return {
        "content": manifest.content,
        "data": manifest.data_digest or None,
        "manifest": manifest.digest,
        "vocabulary": None if vocabulary is None else vocabulary.blake2b,
        "vocabulary pieces": None if vocabulary is None else vocabulary.pieces,
        **{f"tokenizer {name}": value for name, value in manifest.tokenizer.model_dump().items()},
        **manifest.packages,
    }


def _differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[FieldChange]:
    return [
        FieldChange(name, left.get(name), right.get(name))
        for name in dict.fromkeys([*left, *right])
        if left.get(name) != right.get(name)
    ]


# --- rows of two indexes ---------------------------------------------------------------------------------------


class _Side:
    """A dataset of one directory; all is empty if the directory lacks it. ``splits`` are those that are compared."""

    def __init__(self, dataset: DatasetReader | None) -> None:
        self.dataset = dataset
        self.splits: Sequence[SplitEntry] = ()
        self.digests: dict[str, str] = {}
        """Of each file of the dataset, by its name."""
        self.counts: Counts | None = None
        self.tasks: dict[str, TaskTotals] = {}
        self.specs: dict[str, str] = {}
        """The columns of the index for values of the source, and the fields of a step of each task."""
        if dataset is None:
            return
        totals, described, stored = dataset.totals, dataset.described, dataset.stored
        self.splits = totals.splits
        for file in dataset.directory.manifest.files:
            folder, _, name = file.path.rpartition("/")
            if folder == totals.directory:
                self.digests[name] = file.blake2b
        self.counts = Counts(
            found=totals.episodes,
            kept=totals.kept,
            held_out=dataset.held_out,
            steps=None if dataset.holds_documents else sum(row.steps for row in dataset.tasks),
            tokens=stored["tokens"],
            shards=stored["shards"],
            bytes=stored["bytes"],
        )
        self.tasks = {item.task: item for item in dataset.task_totals}
        self.specs = {f"{dataset.name}: column {name}": type_ for name, type_ in dataset.columns.items()}
        for task, entry in described.tasks.items():
            for item in described.specs[entry.spec].fields if entry.spec in described.specs else ():
                values = item.model_dump(mode="json", exclude={"path"}, exclude_none=True).items()
                self.specs[f"{dataset.name}/{task}: {item.path}"] = " ".join(f"{key}={value}" for key, value in values)

    def batches(self, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows in order, some at a time, and the ordinal of the first."""
        first, indexes = 0, [split.index for split in self.splits]
        for batch in () if self.dataset is None else self.dataset.batches(columns, indexes):
            yield first, batch
            first += batch.num_rows

    def ids(self, rows: Mapping[int, np.ndarray]) -> dict[int, tuple[str, ...]]:
        """The ids of the rows of each task, which are given by their ordinals, int64."""
        ordinals = np.sort(np.concatenate([np.empty(0, np.int64), *rows.values()]))
        ids: list[str] = []
        for first, batch in self.batches(["episode_id"]) if len(ordinals) else ():
            in_batch = ordinals[(ordinals >= first) & (ordinals < first + batch.num_rows)] - first
            ids += batch["episode_id"].take(pa.array(in_batch)).to_pylist()
        id_at = dict(zip(ordinals.tolist(), ids, strict=True))
        return {task: tuple(id_at[row] for row in of_task.tolist()) for task, of_task in rows.items()}


def _compare_rows(left: _Side, right: _Side, most_rows: int) -> dict[str, RowChanges]:
    """What changed of the episodes or documents of each task. One that has another task than before is lost there and
    gained here."""
    has_tokens = all(side.dataset is not None and side.dataset.totals.shards > 0 for side in (left, right))
    passes = -(-max(sum(split.rows for split in side.splits) for side in (left, right)) // most_rows)
    codes = TaskCodes()
    counts: dict[str, Counter[int]] = {name: Counter() for name in _COUNTED}
    lost_rows: dict[int, np.ndarray] = {}
    gained_rows: dict[int, np.ndarray] = {}
    for number in range(passes):
        a, b = (_read(side, codes, number, passes, has_tokens) for side in (left, right))
        _, at_a, at_b = np.intersect1d(a["id"], b["id"], return_indices=True)
        a_is_in_b, b_is_in_a = np.zeros(len(a), bool), np.zeros(len(b), bool)
        a_is_in_b[at_a] = b_is_in_a[at_b] = True
        both_keep = a["kept"][at_a] & b["kept"][at_b] & (a["task"][at_a] == b["task"][at_b])
        at_a, at_b = at_a[both_keep], at_b[both_keep]
        lost, gained = a["kept"].copy(), b["kept"].copy()
        lost[at_a] = gained[at_b] = False
        for name, rows in {
            "gained": b[gained],
            "new": b[gained & ~b_is_in_a],
            "lost": a[lost],
            "gone": a[lost & ~a_is_in_b],
            "changed": b[at_b[a["content"][at_a] != b["content"][at_b]]],
            "moved": b[at_b[a["held_out"][at_a] != b["held_out"][at_b]]],
        }.items():
            tasks, numbers = np.unique(rows["task"], return_counts=True)
            counts[name].update(dict(zip(tasks.tolist(), numbers.tolist(), strict=True)))
        _add_first_rows(lost_rows, a["task"][lost], a["ordinal"][lost])
        _add_first_rows(gained_rows, b["task"][gained], b["ordinal"][gained])
    lost_ids, gained_ids = left.ids(lost_rows), right.ids(gained_rows)
    return {
        task: RowChanges(
            **{name: of_tasks[code] for name, of_tasks in counts.items()},
            gained_ids=gained_ids.get(code, ()),
            lost_ids=lost_ids.get(code, ()),
        )
        for task, code in codes.of_name.items()
    }


def _read(side: _Side, tasks: TaskCodes, number: int, passes: int, has_tokens: bool) -> np.ndarray:
    """The rows of a side that pass ``number`` of ``passes`` compares, ``_ROW`` (R,): the hash of the id decides."""
    parts = [np.empty(0, _ROW)]
    for first, batch in side.batches(_COLUMNS):
        digests = [hashlib.blake2b(id_.encode(), digest_size=8).digest() for id_ in batch["episode_id"].to_pylist()]
        hashes = np.frombuffer(b"".join(digests), np.uint64)
        places = np.flatnonzero(hashes % np.uint64(passes) == number)
        batch = batch.take(pa.array(places))
        steps, tokens = (pc.fill_null(batch[name], 0).to_numpy().view(np.uint64) for name in ("steps", "tokens"))
        returns = pc.fill_null(batch["return"], 0.0).to_numpy().view(np.uint64)
        rows = np.empty(len(places), _ROW)
        rows["id"] = hashes[places]
        rows["content"] = steps * _MIX[0] ^ returns * _MIX[1]
        if has_tokens:
            rows["content"] ^= tokens * _MIX[2]
        rows["ordinal"] = places + first
        rows["task"] = tasks.codes(batch["task"])
        rows["kept"] = batch["kept"].to_numpy(zero_copy_only=False)
        rows["held_out"] = among(batch["split"], {HELD_OUT})
        parts.append(rows)
    return np.concatenate(parts)


def _add_first_rows(first: dict[int, np.ndarray], tasks: np.ndarray, rows: np.ndarray) -> None:
    """Adds ``rows``, ordinals int64 (R,) with their tasks, to ``first``, which has the lowest few of each task."""
    order = np.lexsort((rows, tasks))
    codes, begins = np.unique(tasks[order], return_index=True)
    for code, begin in zip(codes.tolist(), begins.tolist(), strict=True):
        lowest = order[begin : begin + MOST_EXAMPLES]
        known = first.get(code, np.empty(0, np.int64))
        first[code] = np.sort(np.append(known, rows[lowest[tasks[lowest] == code]]))[:MOST_EXAMPLES]


# --- two rules -------------------------------------------------------------------------------------------------


def compare_rules(datasets: Sequence[DatasetReader], left: Rule | None, right: Rule) -> Changes:
    """What changes in finished datasets of episodes from one rule to another; None is the rule of the directory.

    Raises ConfigError as ``preview.replay`` does.
    """
    changes = Changes()
    for dataset in datasets:
        after = replay(dataset, right)
        thresholds: Mapping[str, float | None]
        if left is None:
            kept_before, thresholds = after.kept, dataset.thresholds
        else:
            before = replay(dataset, left)
            kept_before, thresholds = before.kept_at, before.thresholds
        masks = {
            "gained": after.kept_at & ~kept_before,
            "lost": kept_before & ~after.kept_at,
            "before": kept_before,
            "after": after.kept_at,
        }
        counts = {name: after.count(mask)[1:] for name, mask in masks.items()}
        side = _Side(dataset)
        ids = {}
        for name in ("gained", "lost"):
            first: dict[int, np.ndarray] = {}
            rows = np.flatnonzero(masks[name])
            _add_first_rows(first, after.task[rows], rows)
            ids[name] = side.ids(first)
        expert_returns = dataset.expert_returns
        total = RowChanges()
        for code, task in sorted(enumerate(after.names), key=lambda item: item[1]):
            moves = RowChanges(
                gained=counts["gained"][code],
                lost=counts["lost"][code],
                gained_ids=ids["gained"].get(code, ()),
                lost_ids=ids["lost"].get(code, ()),
            )
            total += moves
            expert_return = expert_returns.get(task)
            change = TaskChange(
                dataset=dataset.name,
                task=task,
                expert_return=(expert_return, expert_return),
                threshold=(thresholds.get(task), after.thresholds.get(task)),
                kept=(counts["before"][code], counts["after"][code]),
                moves=moves,
            )
            if change:
                changes.tasks.append(change)
        sides = [
            Counts(dataset.totals.episodes, int(mask.sum()), None, int(after.steps[mask].sum()), None, None, None)
            for mask in (masks["before"], masks["after"])
        ]
        changes.datasets.append(DatasetChange(dataset.name, sides[0], sides[1], 0, total))
    return changes
