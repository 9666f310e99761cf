"""What a job is about to do: the units of a dataset's scan, and the orders of its build.

A kind of dataset is a ``DatasetPlan`` (before its scan) and the ``Judged`` that comes of the scan's rows. Neither
holds more of a row than a verdict needs: the rows stay in files, and the orders are written as they are planned.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from gatokit.pipelines.dataset import SCAN_UNIT_BYTES, ScanUnit, ShardSettings, Task
from gatokit.pipelines.documents.reader import DocumentFile
from gatokit.pipelines.episodes.reader import EpisodeFile
from gatokit.pipelines.planning.shard_task import ShardHeader, ShardTask
from gatokit.pipelines.planning.splits import Splitter
from gatokit.schemas.config import BuildConfig
from gatokit.schemas.manifest import DatasetFile
from gatokit.storage.files import side_by_side


class Judged(ABC):
    """A dataset after its scan: tasks, notices for a person to read, and the rows with their verdicts."""

    tasks: tuple[Task, ...]
    notices: tuple[str, ...]
    names: list[str]
    """Of the dataset's files, in order."""
    scanned: Iterable[pa.Table]
    """The rows as they were scanned, in source order, a unit at a time."""
    whole: Collection[int] = ()
    """Ordinals of files that cannot be divided."""

    def tables(self) -> Iterator[pa.Table]:
        """The rows in source order, a unit at a time, as an order holds them; ``file`` is an index into ``names``."""
        begin = 0
        for scanned in self.scanned:
            end = begin + scanned.num_rows
            yield self.table(scanned, slice(begin, end))
            begin = end

    @abstractmethod
    def table(self, scanned: pa.Table, part: slice) -> pa.Table:
        """Scanned rows, which are ``part`` of the dataset's, as an order holds them."""

    @abstractmethod
    def head(self, files: list[int], rows: pa.Table, settings: ShardSettings) -> ShardHeader:
        """The head of an order of these rows, which lie in ``files``."""

    def range_of(self, task: str, path: str) -> list[list[float]]:
        """The range of a task's continuous action; empty where the action has none, as in documents."""
        return []

    @abstractmethod
    def describe(self, episodes: int, kept: int) -> DatasetFile:
        """The dataset's description on disk."""


class DatasetPlan(ABC):
    """A dataset before its scan; ``field`` is its path in the config, for messages."""

    config: Any
    field: str
    what: ClassVar[str]
    """What its rows are, in the plural."""

    @abstractmethod
    def sources(self) -> Sequence[EpisodeFile | DocumentFile]:
        """The dataset's files in order."""

    @abstractmethod
    def units(self, max_bytes: int, unit_bytes: int = SCAN_UNIT_BYTES) -> Sequence[ScanUnit]:
        """The dataset's files in order, grouped into units of work of about ``unit_bytes``; episodes or documents above
        ``max_bytes`` are to be rejected."""

    @abstractmethod
    def judge(self, results: Sequence[Path], config: BuildConfig, limit: int | None) -> Judged:
        """The verdicts on the rows of the scanned units, of which ``limit`` a task are looked at."""


@dataclass(frozen=True)
class Planned:
    """An order on disk, how many of its rows are to be kept and their stored bytes."""

    path: Path
    stem: str
    fingerprint: str
    kept: int
    length: int


@dataclass(frozen=True)
class Plan:
    """A dataset after its scan, with the orders of its build in source order."""

    dataset: DatasetPlan
    judged: Judged
    orders: tuple[Planned, ...]


def make_plan(
    dataset: DatasetPlan,
    results: Sequence[Path],
    config: BuildConfig,
    vocabulary: str,
    limit: int | None,
    directory: Path,
) -> Plan:
    """Judges the rows of the scanned units and writes the orders of the build into ``directory``.

    ``vocabulary`` is the model's digest, ``limit`` the number of episodes a task that are looked at. DataError
    where the error budget is exceeded, a task keeps nothing or two episodes share an id.
    """
    settings = ShardSettings(
        chunk_tokens=config.chunk_tokens, discrete_offset=config.discrete_offset, vocabulary_digest=vocabulary
    )
    judged = dataset.judge(results, config, limit)
    orders = []
    with side_by_side(directory) as do:
        for rows in _splits(judged, config.shard_bytes):
            order = _order(judged, rows, settings)
            path = directory / f"{order.stem}.arrow"
            do(partial(order.write, path))
            kept = rows["kept"].to_numpy()
            length = int(rows["length"].to_numpy()[kept].sum())
            orders.append(Planned(path, order.stem, order.fingerprint, int(np.count_nonzero(kept)), length))
    return Plan(dataset, judged, tuple(orders))


def _splits(judged: Judged, shard_bytes: int) -> Iterator[pa.Table]:
    """The rows of each split; joined files of several units can make one."""
    splitter = Splitter(shard_bytes)
    pending: list[pa.Table] = []
    current = -1
    for table in judged.tables():
        split = splitter.assign(judged.names, table["file"].to_numpy(), table["length"].to_numpy(), judged.whole)
        # A unit may have no rows: empty files, or those behind a limit.
        starts = np.flatnonzero(np.diff(split, prepend=-1)).tolist()
        for start, end in pairwise([*starts, len(split)]):
            if split[start] != current and pending:
                yield pa.concat_tables(pending)
                pending = []
            current = split[start]
            pending.append(table.slice(start, end - start))
    if pending:
        yield pa.concat_tables(pending)


def _order(judged: Judged, rows: pa.Table, settings: ShardSettings) -> ShardTask:
    used, local = np.unique(rows["file"].to_numpy(), return_inverse=True)
    at = rows.schema.get_field_index("file")
    rows = rows.set_column(at, rows.schema.field(at), pa.array(local, pa.int32()))
    return ShardTask(header=judged.head(used.tolist(), rows, settings), rows=rows)
