"""Which episodes or documents two indexes keep differently; two rows are of the same one if their ids are equal.

Legend: R rows of an index that a pass looks at.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.columns import TaskCodes, among
from gatokit.inspection.read.dataset import DatasetReader
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
