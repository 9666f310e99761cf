"""Plans a dataset: the units of its scan, and after the scan the verdicts and a task for every shard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from gatokit.pipelines.dataset import DatasetPlan, FilterResult, ScanUnit, ShardSettings
from gatokit.pipelines.planning.kinds import KINDS
from gatokit.pipelines.planning.shard_task import ShardTask
from gatokit.pipelines.planning.splits import Splitter, hold_out
from gatokit.schemas.config import BuildConfig, EpisodesConfig
from gatokit.storage.files import side_by_side

SCAN_UNIT_BYTES = 256 << 20
"""Files are scanned together up to about this many bytes."""


def plan_datasets(config: BuildConfig, base: Path) -> list[DatasetPlan]:
    """The plan of each dataset of a config; relative paths start at ``base``.

    Raises ConfigError or DataError if its sources cannot be used.
    """
    return [
        KINDS["episodes" if isinstance(dataset, EpisodesConfig) else "documents"].plan(
            dataset, f"datasets[{number}]", base
        )
        for number, dataset in enumerate(config.datasets)
    ]


def scan_units(plan: DatasetPlan, max_bytes: int, unit_bytes: int | None = None) -> list[ScanUnit]:
    """The dataset's files in order, grouped into units of about ``unit_bytes``.

    Episodes or documents above ``max_bytes`` will be rejected.
    """
    return KINDS[plan.kind].units(plan, max_bytes, unit_bytes or SCAN_UNIT_BYTES)


@dataclass(frozen=True)
class PlannedShard:
    """A shard task in a file, the number of its rows that are to be kept, and their stored bytes."""

    path: Path
    stem: str
    fingerprint: str
    kept: int
    length: int


@dataclass(frozen=True)
class Plan:
    """A dataset after its scan, with its shards in source order."""

    dataset: DatasetPlan
    result: FilterResult
    shards: tuple[PlannedShard, ...]


def plan_shards(
    dataset: DatasetPlan,
    scanned: Sequence[Path],
    config: BuildConfig,
    vocabulary_digest: str,
    limit: int | None,
    directory: Path,
) -> Plan:
    """Filters the rows of the scanned units, and writes the shard tasks of the build into ``directory``.

    ``limit`` takes only the first episodes of each task. Raises DataError if the error budget is exceeded, a task
    keeps nothing or two episodes have the same id.
    """
    settings = ShardSettings(
        chunk_tokens=config.chunk_tokens, discrete_offset=config.discrete_offset, vocabulary_digest=vocabulary_digest
    )
    result = filter_dataset(dataset, scanned, config, limit)
    shards = []
    with side_by_side(directory) as submit:
        for rows in _splits(dataset, result, config.shard_bytes):
            task = _shard_task(dataset, result, rows, settings)
            path = directory / f"{task.stem}.arrow"
            submit(partial(task.write, path))
            kept = rows["kept"].to_numpy()
            length = int(rows["length"].to_numpy()[kept].sum())
            shards.append(PlannedShard(path, task.stem, task.fingerprint, int(np.count_nonzero(kept)), length))
    return Plan(dataset, result, tuple(shards))


def filter_dataset(
    dataset: DatasetPlan, scanned: Sequence[Path], config: BuildConfig, limit: int | None
) -> FilterResult:
    """The verdicts over the rows of the scanned units, and which of them are held out; errors as ``plan_shards``."""
    return hold_out(KINDS[dataset.kind].filter(dataset, scanned, config, limit), config.holdout)


def task_rows(dataset: DatasetPlan, result: FilterResult) -> Iterator[pa.Table]:
    """All rows in source order with their verdicts, one table per unit of the scan.

    They are as in a shard task, but ``file`` is an index into the dataset's files.
    """
    begin = 0
    for scanned in result.scanned:
        end = begin + scanned.num_rows
        yield KINDS[dataset.kind].task_rows(dataset, result, scanned, slice(begin, end))
        begin = end


def undivided(dataset: DatasetPlan) -> set[int]:
    """The indexes of the files that cannot be read from the middle."""
    return {ordinal for ordinal, file in enumerate(dataset.files) if not file.divides}


def _splits(dataset: DatasetPlan, result: FilterResult, shard_bytes: int) -> Iterator[pa.Table]:
    """The rows of each split. Files of several units can be joined into one split."""
    splitter = Splitter(shard_bytes)
    names, whole = [file.name for file in dataset.files], undivided(dataset)
    pending: list[pa.Table] = []
    current = -1
    for table in task_rows(dataset, result):
        split = splitter.assign(names, table["file"].to_numpy(), table["length"].to_numpy(), whole)
        # A unit may have no rows, if its files are empty or lie behind a limit.
        starts = np.flatnonzero(np.diff(split, prepend=-1)).tolist()
        for start, end in pairwise([*starts, len(split)]):
            if split[start] != current and pending:
                yield pa.concat_tables(pending)
                pending = []
            current = split[start]
            pending.append(table.slice(start, end - start))
    if pending:
        yield pa.concat_tables(pending)


def _shard_task(dataset: DatasetPlan, result: FilterResult, rows: pa.Table, settings: ShardSettings) -> ShardTask:
    files, file = np.unique(rows["file"].to_numpy(), return_inverse=True)
    column = rows.schema.get_field_index("file")
    rows = rows.set_column(column, rows.schema.field(column), pa.array(file, pa.int32()))
    return ShardTask(KINDS[dataset.kind].shard_header(dataset, result, files.tolist(), rows, settings), rows)
