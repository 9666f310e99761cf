"""Which episodes or documents two indexes keep differently; they are the same where their ids are.

Legend: R rows of an index that a pass looks at.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.columns import among, coded
from gatokit.inspection.read.dataset import DatasetReader
from gatokit.schemas.index import HELD_OUT

MOST_ROWS = 1 << 22
"""Rows of each side that are compared at a time, at about 100 bytes each; more are compared in several passes."""
MOST_EXAMPLES = 3
_COUNTED = ("gained", "new", "lost", "gone", "changed", "moved")
_COLUMNS = ["task", "kept", "split", "steps", "return", "tokens", "episode_id"]
_MIX = tuple(np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


@dataclass(frozen=True)
class Moves:
    """Episodes or documents that are kept on one side alone, and what else became of those that are on both.

    Of the ``gained`` ``new`` ones are not in the left index at all, and of the ``lost`` ``gone`` ones not in the
    right; the others were, or are, dropped. Of those kept on both sides ``changed`` have other steps, returns or (of
    two builds) tokens, and ``moved`` are held out on one side alone. The ids are those of the first.
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

    def __add__(self, other: "Moves") -> "Moves":
        sums = {name: getattr(self, name) + getattr(other, name) for name in _COUNTED}
        gained_ids, lost_ids = self.gained_ids + other.gained_ids, self.lost_ids + other.lost_ids
        return Moves(**sums, gained_ids=gained_ids[:MOST_EXAMPLES], lost_ids=lost_ids[:MOST_EXAMPLES])


@dataclass(frozen=True)
class Side:
    """A dataset, and which of its splits' indexes are looked at."""

    dataset: DatasetReader
    indexes: list[str]

    @property
    def rows(self) -> int:
        """Their rows."""
        return sum(split.rows for split in self.dataset.totals.splits if split.index in self.indexes)

    def batches(self, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Their rows in order, some at a time, and the ordinal of the first."""
        first = 0
        for batch in self.dataset.batches(columns, self.indexes):
            yield first, batch
            first += batch.num_rows

    def ids(self, rows: np.ndarray) -> list[str]:
        """The ids of rows by their ordinals, int64, ascending."""
        found: list[str] = []
        for first, batch in self.batches(["episode_id"]) if len(rows) else ():
            own = rows[(rows >= first) & (rows < first + batch.num_rows)] - first
            found += batch["episode_id"].take(pa.array(own)).to_pylist()
        return found


def moves(left: Side | None, right: Side | None, most_rows: int = MOST_ROWS) -> dict[str, Moves]:
    """What became of the episodes or documents of each task; None is a side without the dataset.

    One that has another task than before is lost there and gained here. DataError where an index cannot be read.
    """
    sides = (left, right)
    has_tokens = all(side is not None and side.dataset.totals.shards > 0 for side in sides)
    passes = -(-max(0 if side is None else side.rows for side in sides) // most_rows)
    found = _Found()
    for number in range(passes):
        found.join(*(_read(side, found, number, passes, has_tokens) for side in sides))
    return found.moves(sides)


@dataclass(frozen=True)
class _Rows:
    """Hashes of ids and of what the rows say, uint64 (R,); ordinals int64, tasks int32, marks bool."""

    id: np.ndarray
    content: np.ndarray
    at: np.ndarray
    task: np.ndarray
    kept: np.ndarray
    held_out: np.ndarray


_KINDS = {"id": np.uint64, "content": np.uint64, "at": np.int64, "task": np.int32, "kept": bool, "held_out": bool}


class _Found:
    """Adds up, by task, what the passes find."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self._sums: dict[tuple[str, int], int] = {}
        self._first: list[dict[int, np.ndarray]] = [{}, {}]

    def join(self, left: _Rows, right: _Rows) -> None:
        """Takes the rows of both sides whose hashes fall to a pass."""
        _, at_left, at_right = np.intersect1d(left.id, right.id, return_indices=True)
        on_left, on_right = np.zeros(len(right.id), bool), np.zeros(len(left.id), bool)
        on_left[at_right] = on_right[at_left] = True
        stays = left.kept[at_left] & right.kept[at_right] & (left.task[at_left] == right.task[at_right])
        at_left, at_right = at_left[stays], at_right[stays]
        lost, gained = left.kept.copy(), right.kept.copy()
        lost[at_left] = gained[at_right] = False
        self._add("gained", right.task[gained])
        self._add("new", right.task[gained & ~on_left])
        self._add("lost", left.task[lost])
        self._add("gone", left.task[lost & ~on_right])
        self._add("changed", right.task[at_right[left.content[at_left] != right.content[at_right]]])
        self._add("moved", right.task[at_right[left.held_out[at_left] != right.held_out[at_right]]])
        self._note(0, left.task[lost], left.at[lost])
        self._note(1, right.task[gained], right.at[gained])

    def moves(self, sides: Sequence[Side | None]) -> dict[str, Moves]:
        """The sums and examples of each task."""
        ids = []
        for side, first in zip(sides, self._first, strict=True):
            rows = np.sort(np.concatenate([np.empty(0, np.int64), *first.values()]))
            known = dict(zip(rows.tolist(), [] if side is None else side.ids(rows), strict=True))
            ids.append({code: tuple(known[row] for row in own.tolist()) for code, own in first.items()})
        found = {}
        for task, code in self.codes.items():
            sums = {what: self._sums.get((what, code), 0) for what in _COUNTED}
            found[task] = Moves(**sums, gained_ids=ids[1].get(code, ()), lost_ids=ids[0].get(code, ()))
        return found

    def _add(self, what: str, tasks: np.ndarray) -> None:
        codes, counts = np.unique(tasks, return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            self._sums[what, code] = self._sums.get((what, code), 0) + count

    def _note(self, side: int, tasks: np.ndarray, rows: np.ndarray) -> None:
        """Keeps the first rows of each task."""
        for code, first in first_of_each(tasks, rows).items():
            before = self._first[side].get(code, np.empty(0, np.int64))
            self._first[side][code] = np.sort(np.concatenate([before, first]))[:MOST_EXAMPLES]


def first_of_each(tasks: np.ndarray, rows: np.ndarray) -> dict[int, np.ndarray]:
    """The lowest few of ``rows``, int64 (R,), of each task, int (R,)."""
    order = np.lexsort((rows, tasks))
    codes, starts = np.unique(tasks[order], return_index=True)
    ends = np.append(starts, len(order))[1:].tolist()
    return {
        code: rows[order[start : min(end, start + MOST_EXAMPLES)]]
        for code, start, end in zip(codes.tolist(), starts.tolist(), ends, strict=True)
    }


def _read(side: Side | None, found: _Found, number: int, passes: int, has_tokens: bool) -> _Rows:
    """The rows of a side whose hashes fall to a pass."""
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0, kind)] for name, kind in _KINDS.items()}
    for first, batch in () if side is None else side.batches(_COLUMNS):
        id_ = _hashes(batch["episode_id"].to_pylist())
        own = np.flatnonzero(id_ % np.uint64(passes) == number)
        taken = batch.take(pa.array(own))
        codes, names = coded(taken["task"])
        known = [found.codes.setdefault(name, len(found.codes)) for name in names]
        columns = {
            "id": id_[own],
            "content": _content(taken, has_tokens),
            "at": own + first,
            "task": np.array([*known, -1], np.int32)[codes],
            "kept": taken["kept"].to_numpy(zero_copy_only=False),
            "held_out": among(taken["split"], {HELD_OUT}),
        }
        for name, values in columns.items():
            parts[name].append(values)
    return _Rows(**{name: np.concatenate(values) for name, values in parts.items()})


def _hashes(ids: list[str]) -> np.ndarray:
    """64 bits of each id, uint64 (R,)."""
    return np.frombuffer(b"".join(hashlib.blake2b(id_.encode(), digest_size=8).digest() for id_ in ids), np.uint64)


def _content(batch: pa.RecordBatch, has_tokens: bool) -> np.ndarray:
    """64 bits of the steps, return and tokens of each row, uint64 (R,)."""
    steps, tokens = (pc.fill_null(batch[name], 0).to_numpy().view(np.uint64) for name in ("steps", "tokens"))
    returns = pc.fill_null(batch["return"], 0.0).to_numpy().view(np.uint64)
    mixed: np.ndarray = steps * _MIX[0] ^ returns * _MIX[1]
    return mixed ^ tokens * _MIX[2] if has_tokens else mixed
