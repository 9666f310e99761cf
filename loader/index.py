"""The index of a dataset's episodes in memory: where the tokens of each are stored, and its task and agent.

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
from gatokit.schemas.index import check_index_version

_COLUMNS = ["task", "agent", "split", "steps", "part", "first_record", "record_tokens"]

RECORD_RANGE = np.dtype([("shard", np.int64), ("first", np.int64), ("stop", np.int64), ("skip", np.int64)])
"""Records [first, stop) of a shard, without the first ``skip`` tokens of the first record."""


@dataclass(frozen=True)
class EpisodeIndex:
    """Episodes sorted by task, agent, shard and first record, so that each of these is a range of episodes.

    A run is what one agent has of one task in one shard. Ids are not kept: a record names its episode.
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

    def record_ranges(self, episodes: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The records that hold the tokens [begin, end) of each of ``episodes``, as RECORD_RANGE.

        ``end`` is above ``begin``.
        """
        first = self.record_begin[episodes]
        tokens_before = self.token_end[first]
        records = np.searchsorted(self.token_end, np.stack([tokens_before + begin, tokens_before + end - 1]), "right")
        records -= 1
        in_shard = self.first_record[episodes].astype(np.int64) - first
        ranges = np.empty(len(episodes), RECORD_RANGE)
        ranges["shard"] = self.run_shard[self.run_of(episodes)]
        ranges["first"] = in_shard + records[0]
        ranges["stop"] = in_shard + records[1] + 1
        ranges["skip"] = tokens_before + begin - self.token_end[records[0]]
        return ranges


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

    ``paths`` are its index files, and ``first_shards`` the ordinals of the first shard of each. Raises DataError if one
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
        first_record=_concatenated([run.first_record for run in runs], np.uint32),
        steps=_concatenated([run.steps for run in runs], np.uint32),
        record_begin=_sums([run.records for run in runs]),
        token_end=_sums([run.record_tokens for run in runs]),
    )
    # Arrow would keep the memory of the tables for its next read.
    del runs, tasks, groups
    pa.default_memory_pool().release_unused()
    return index


def _runs(path: str, shard: int, split: str) -> Iterator[_Run]:
    """The runs of one index file, whose first shard has the ordinal ``shard``."""
    try:
        with pq.ParquetFile(path, read_dictionary=_COLUMNS[:3]) as file:
            check_index_version(file.schema_arrow, path)
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
    """The distinct strings of a column, sorted, and the ordinal of each row's string among them."""
    strings = pc.fill_null(column.cast(pa.string()), "").combine_chunks()
    names = pc.unique(strings)
    names = names.take(pc.sort_indices(names))
    return names.to_pylist(), pc.index_in(strings, names).to_numpy()


def _begins(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The sums of the first 0, 1, 2, ... ``counts``, int64."""
    begins = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=begins[1:])
    return begins


def _sums(arrays: list[np.ndarray]) -> np.ndarray:
    """``_begins`` of the concatenated arrays, without a copy of them."""
    begins = np.zeros(sum(map(len, arrays)) + 1, np.int64)
    end = 0
    for array in arrays:
        begin, end = end, end + len(array)
        np.cumsum(array, out=begins[begin + 1 : end + 1])
        begins[begin + 1 : end + 1] += begins[begin]
    return begins


def _concatenated(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype, copy=False)
