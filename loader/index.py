"""The index of a dataset's episodes in memory: where each one's tokens are, and which belong to a task and agent.

Legend: E episodes, N records of them, R runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.schemas.errors import DataError
from gatokit.schemas.index import INDEX_VERSION

_COLUMNS = ["task", "agent", "split", "steps", "part", "first_record", "record_tokens"]
_VERSION = b"gatokit.index"


@dataclass(frozen=True)
class EpisodeIndex:
    """Episodes sorted by task, agent, shard and first record, so that each of these is a range of them.

    A run is what one agent has of one task in one shard. No ids are held: a record names its owner.
    """

    tasks: tuple[str, ...]
    task_begin: np.ndarray
    """int64 (tasks + 1,): the first episode of each task, and E."""
    agents: tuple[str, ...]
    """The agent of each group: the episodes of one task and agent."""
    group_begin: np.ndarray
    """int64 (groups + 1,)."""
    run_shard: np.ndarray
    """int32 (R,): ordinal of a run's shard among the dataset's."""
    run_begin: np.ndarray
    """int64 (R + 1,)."""
    first_record: np.ndarray
    """uint32 (E,): ordinal in the shard."""
    steps: np.ndarray
    """uint32 (E,)."""
    record_begin: np.ndarray
    """int64 (E + 1,): ordinal of an episode's first record among the N."""
    token_end: np.ndarray
    """int64 (N + 1,): tokens of all records before the one of that ordinal."""

    @property
    def episodes(self) -> int:
        """E."""
        return len(self.first_record)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def tokens(self, episodes: np.ndarray) -> np.ndarray:
        """Tokens of each of ``episodes``, int64."""
        begin, end = self.record_begin[episodes], self.record_begin[episodes + 1]
        return self.token_end[end] - self.token_end[begin]

    def run_of(self, episodes: np.ndarray) -> np.ndarray:
        """The run of each of ``episodes``, int64."""
        return np.searchsorted(self.run_begin, episodes, "right") - 1

    def group_of(self, episodes: np.ndarray) -> np.ndarray:
        """The group of each of ``episodes``, int64."""
        return np.searchsorted(self.group_begin, episodes, "right") - 1

    def task_of(self, group: int) -> str:
        """The task of a group."""
        return self.tasks[int(np.searchsorted(self.task_begin, self.group_begin[group], "right")) - 1]

    def locate(self, episodes: np.ndarray, begin: np.ndarray, end: np.ndarray) -> "Ranges":
        """The records that hold the tokens [begin, end) of each of ``episodes``; ``end`` is above ``begin``."""
        first = self.record_begin[episodes]
        before = self.token_end[first]
        records = np.searchsorted(self.token_end, np.stack([before + begin, before + end - 1]), "right") - 1
        at = self.first_record[episodes].astype(np.int64) - first
        return Ranges(
            shard=self.run_shard[self.run_of(episodes)].astype(np.int64),
            first=at + records[0],
            stop=at + records[1] + 1,
            skip=before + begin - self.token_end[records[0]],
        )


class Ranges(NamedTuple):
    """Records [first, stop) of ``shard``, and the tokens of the first of them to ``skip``: int64 arrays."""

    shard: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    skip: np.ndarray


class _Run(NamedTuple):
    task: str
    agent: str
    shard: int
    first_record: np.ndarray
    steps: np.ndarray
    records: np.ndarray
    record_tokens: np.ndarray


def load_index(paths: Sequence[str], first_shards: Sequence[int], split: str) -> EpisodeIndex:
    """The kept episodes of one split (``train`` or ``held_out``) of a dataset.

    ``paths`` are its index files, and ``first_shards`` the ordinals of the first shard of each. DataError where one
    cannot be read.
    """
    runs = [run for path, shard in zip(paths, first_shards, strict=True) for run in _runs(path, shard, split)]
    runs.sort(key=lambda run: run[:3])
    tasks = [(task, list(of_task)) for task, of_task in groupby(runs, lambda run: run.task)]
    groups = [(agent, list(of)) for _, run in tasks for agent, of in groupby(run, lambda run: run.agent)]
    index = EpisodeIndex(
        tasks=tuple(task for task, _ in tasks),
        task_begin=_begins([sum(len(run.steps) for run in of) for _, of in tasks]),
        agents=tuple(agent for agent, _ in groups),
        group_begin=_begins([sum(len(run.steps) for run in of) for _, of in groups]),
        run_shard=np.array([run.shard for run in runs], np.int32),
        run_begin=_begins([len(run.steps) for run in runs]),
        first_record=_joined([run.first_record for run in runs], np.uint32),
        steps=_joined([run.steps for run in runs], np.uint32),
        record_begin=_sums([run.records for run in runs]),
        token_end=_sums([run.record_tokens for run in runs]),
    )
    # Arrow would keep the memory of what it has read for the next time.
    del runs, tasks, groups
    pa.default_memory_pool().release_unused()
    return index


def _runs(path: str, shard: int, split: str) -> Iterator[_Run]:
    """The runs of one index file, whose first shard has the ordinal ``shard``."""
    try:
        with pq.ParquetFile(path, read_dictionary=_COLUMNS[:3]) as file:
            version = int((file.schema_arrow.metadata or {}).get(_VERSION, b"0"))
            if version > INDEX_VERSION:
                raise DataError(
                    f"{path} has index version {version} and this gatokit reads up to {INDEX_VERSION}: "
                    "install a newer gatokit"
                )
            table = file.read(_COLUMNS, use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"the index {path} cannot be read: {error}; gatokit verify says more") from None
    table = table.filter(pc.equal(table["split"], split))
    if not table.num_rows:
        return
    (tasks, task), (agents, agent) = _codes(table["task"]), _codes(table["agent"])
    part, first = (table[name].to_numpy() for name in ("part", "first_record"))
    order = np.lexsort((first, part, agent, task))
    if not np.array_equal(order, np.arange(len(order))):
        table = table.take(order)
        task, agent, part, first = task[order], agent[order], part[order], first[order]
    lists = table["record_tokens"].combine_chunks()
    ends = lists.offsets.to_numpy().astype(np.int64)
    tokens = lists.values.to_numpy()
    steps = table["steps"].to_numpy().astype(np.uint32)
    records = np.diff(ends).astype(np.uint32)
    first = first.astype(np.uint32)
    changes = (np.diff(task) != 0) | (np.diff(agent) != 0) | (np.diff(part) != 0)
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(order)]
    for begin, end in pairwise(bounds):
        yield _Run(
            task=tasks[task[begin]],
            agent=agents[agent[begin]],
            shard=shard + int(part[begin]),
            first_record=first[begin:end],
            steps=steps[begin:end],
            records=records[begin:end],
            record_tokens=tokens[ends[begin] : ends[end]],
        )


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The distinct strings of a column in order, and the place of each row's among them."""
    encoded = column.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().chunk(0)
    names = [name or "" for name in encoded.dictionary.to_pylist()]
    indices = encoded.indices.fill_null(len(names)).to_numpy()
    known = sorted({*names, ""})
    places = {name: place for place, name in enumerate(known)}
    return known, np.array([places[name] for name in [*names, ""]], np.int64)[indices]


def _begins(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The running sum of ``counts`` from 0, int64, one longer than they are."""
    begins = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=begins[1:])
    return begins


def _sums(arrays: list[np.ndarray]) -> np.ndarray:
    """``_begins`` of the arrays one behind the other, which are never joined."""
    begins = np.zeros(sum(map(len, arrays)) + 1, np.int64)
    end = 0
    for array in arrays:
        begin, end = end, end + len(array)
        np.cumsum(array, out=begins[begin + 1 : end + 1])
        begins[begin + 1 : end + 1] += begins[begin]
    return begins


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype, copy=False)
