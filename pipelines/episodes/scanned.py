"""The scanned rows of a dataset of episodes: gathered for the filter, and joined with its verdicts for the shard tasks.

The rows stay in files. In memory there are about thirty bytes of each. Legend: R rows of the scan.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from gatokit.pipelines.episodes.filter import Passes, Rows, filter_rows
from gatokit.pipelines.episodes.plan import EpisodesPlan, check_tasks
from gatokit.pipelines.episodes.tokenize import EpisodeShardHeader
from gatokit.pipelines.stages import TASK_ROWS, FilterResult, Losses, ShardSettings, Task, row_hash
from gatokit.schemas.config import BuildConfig, Keep
from gatokit.schemas.episode_list import EpisodeList
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.filter import sample_hash
from gatokit.schemas.index import HELD_OUT, TRAIN
from gatokit.schemas.manifest import EpisodeSpec
from gatokit.schemas.tokens import DISCRETE_VALUES
from gatokit.schemas.where import Column, Strings, Where
from gatokit.storage.files import prefetch, read_bytes, read_rows

_MOST_NAMES = 5


@dataclass(frozen=True)
class EpisodeFilterResult(FilterResult):
    """Adds the columns that only episodes have. ``reason`` is a dictionary array of R strings."""

    rows: Rows
    reason: pa.DictionaryArray


def filter_episodes(plan: EpisodesPlan, paths: Sequence[Path], config: BuildConfig, limit: int | None) -> FilterResult:
    """Windows, thresholds and verdicts over the rows of the scanned units (Gato, section 3.2).

    ``limit`` takes only the first episodes of each task. Raises DataError or ConfigError if the error budget is
    exceeded, two episodes have the same id, specs of one task differ, or nothing is kept.
    """
    keep, name = plan.config.keep, plan.config.name
    selection = None if plan.list_path is None else read_episode_list(keep, plan.list_path, name)
    scanned = _Scanned(paths, limit)
    gathered, losses = _Gathered(), Losses()
    for table in scanned:
        ids = plan.ids(table)
        gathered.add(table, [row_hash(config.seed, id_) for id_ in ids])
        if selection is not None:
            gathered.add_mark("listed", selection.find(ids, table["task"].to_pylist()))
        if keep.sample is not None:
            gathered.add_mark("sample", np.array([sample_hash(keep.seed or 0, id_) for id_ in ids], np.uint64))
        losses.add(table, plan.ids)
    rows = gathered.rows()
    if plan.config.id is not None:
        _check_ids(plan, scanned, gathered.hashes)
    losses.check_budget(config.max_bad_fraction, name)
    if selection is not None and limit is None and not plan.is_partial:
        selection.check_found(name)
    where = None if keep.where is None else _passes(plan, scanned, rows, Where(keep.where))
    tasks, kept, reason = filter_rows(rows, keep, name, where)
    specs, notices = _task_specs(plan, gathered)
    notices += _left_out(name, tasks)
    needs_order = keep.min_return is not None or (
        keep.where is not None and "expert_return" in Where(keep.where).columns
    )
    if plan.config.order is None and needs_order:
        notices.append(
            f"{name}: no collection order is configured ({plan.field}.order), so expert returns run "
            "over the order of the files, which TFDS shuffles"
        )
    nothing = np.empty(0)
    return EpisodeFilterResult(
        scanned=scanned,
        tasks=tuple(tasks),
        notices=tuple(notices),
        specs=specs,
        task=rows.task,
        hashes=gathered.hashes,
        kept=kept,
        held_out=nothing,
        rows=replace(rows, steps=nothing, success=None, reason=nothing, listed=None, sample=None),
        reason=pa.array(reason, pa.string()).dictionary_encode(),
    )


def task_rows(plan: EpisodesPlan, result: EpisodeFilterResult, scanned: pa.Table, part: slice) -> pa.Table:
    """Scanned rows, which are ``part`` of the dataset's, as a shard task holds them (schema ``TASK_ROWS``).

    ``file`` is an index into the plan's files.
    """
    rows, names = result.rows, result.rows.task_names
    by_name = {task.name: task for task in result.tasks}
    positions = scanned["position"].to_numpy()
    file, task = plan.file_ordinals(scanned), rows.task[part]
    kept, held_out = result.kept[part], result.held_out[part]
    columns = {
        "episode_id": plan.ids(scanned),
        "task": _named(task, names),
        "agent": _named(rows.agent[part], rows.agent_names),
        "spec": _named(task, [result.specs[name].id for name in names]),
        "order": _order(rows.order[part], positions),
        "split": _named(np.where(kept, held_out.astype(np.int8), -1), [TRAIN, HELD_OUT]),
        "steps": scanned["steps"],
        "return": pa.array(rows.returns[part], from_pandas=True),
        "expert_return": _named(task, [by_name[name].expert_return for name in names]),
        "threshold": _named(task, [by_name[name].threshold for name in names]),
        "kept": kept,
        "reason": result.reason[part].cast(pa.string()),
        "detail": scanned["detail"],
        "lost": scanned["lost"],
        "source_file": _named(file, [file.name for file in plan.files]),
        "source_position": positions,
        "file": file,
        "offset": scanned["offset"],
        "length": scanned["length"],
        "crc": scanned["crc"],
    }
    return pa.table(columns).select(TASK_ROWS.names).cast(TASK_ROWS)


def shard_header(
    plan: EpisodesPlan, result: FilterResult, files: list[int], rows: pa.Table, settings: ShardSettings
) -> EpisodeShardHeader:
    """The header of a shard task with these rows, which lie in these of the plan's files."""
    tasks = rows["task"].unique().to_pylist()
    specs = {result.specs[task].id: result.specs[task] for task in tasks if task is not None}
    sources = [(plan.files[number], plan.features[number]) for number in files]
    return EpisodeShardHeader.of(plan.config.name, settings, dict(sorted(specs.items())), sources)


class _Scanned:
    """The scanned rows of a dataset in source order, one table per unit, cut to ``limit`` episodes per task."""

    def __init__(self, paths: Sequence[Path], limit: int | None) -> None:
        self._paths, self._limit = paths, limit

    def __iter__(self) -> Iterator[pa.Table]:
        seen: dict[str | None, int] = {}
        for table in prefetch(self._paths, read_rows, lambda read: int(read.nbytes)):
            yield table if self._limit is None else _first_of_each_task(table, self._limit, seen)


def _first_of_each_task(table: pa.Table, limit: int, seen: dict[str | None, int]) -> pa.Table:
    mask = []
    for task in table["task"].to_pylist():
        seen[task] = seen.get(task, 0) + 1
        mask.append(seen[task] <= limit)
    return table.filter(pa.array(mask, pa.bool_()))


# --- gathering -----------------------------------------------------------------------------------------------


class _Names:
    """Numbers names in the order in which they come."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    def of(self, column: pa.ChunkedArray) -> np.ndarray:
        """The codes of a dictionary column, int32, -1 for null."""
        parts = [np.empty(0, np.int32)]
        for chunk in column.chunks:
            known = [self.codes.setdefault(name, len(self.codes)) for name in chunk.dictionary.to_pylist()]
            parts.append(np.array([*known, -1], np.int32)[chunk.indices.fill_null(-1).to_numpy()])
        return np.concatenate(parts)


class _Gathered:
    """What the filter needs of all rows."""

    _MARKS: ClassVar = {"listed": np.bool_, "sample": np.uint64}
    _COLUMNS: ClassVar = {
        "task": np.int32,
        "agent": np.int32,
        "reason": np.int16,
        "order": np.float64,
        "steps": np.uint32,
        "return": np.float64,
        "success": np.bool_,
        "hash": np.uint64,
    }

    def __init__(self) -> None:
        self.tasks, self._agents, self._reasons = _Names(), _Names(), _Names()
        self._columns = {name: bytearray() for name in self._COLUMNS}
        self._has_success = False
        self.directories: dict[int, set[int]] = {}
        """The directories of each task."""
        self.largest: dict[int, np.ndarray] = {}
        """The largest value of each counted action of each task."""

    def add(self, table: pa.Table, hashes: list[int]) -> None:
        """Appends the next rows."""
        task = self.tasks.of(table["task"])
        values = {
            "task": task,
            "agent": self._agents.of(table["agent"]),
            "reason": self._reasons.of(table["reason"]).astype(np.int16),
            "order": table["order"].to_numpy(),
            "steps": table["steps"].fill_null(0).to_numpy(),
            "return": table["return"].to_numpy(),
            "success": table["success"].fill_null(False).to_numpy(),
            "hash": np.array(hashes, np.uint64),
        }
        for name, column in values.items():
            self._columns[name] += column.astype(self._COLUMNS[name]).tobytes()
        self._has_success |= table["success"].null_count < len(table)
        directory = table["directory"].to_numpy()
        for code, number in np.unique(np.stack([task, directory]), axis=1).T.tolist():
            self.directories.setdefault(code, set()).add(number)
        self._add_largest(task, table["largest"].combine_chunks())

    def add_mark(self, name: str, values: np.ndarray) -> None:
        """Appends the same rows of an optional column of ``Rows``."""
        self._columns.setdefault(name, bytearray()).extend(values.tobytes())

    def _add_largest(self, task: np.ndarray, column: pa.ListArray) -> None:
        counts, values = column.value_lengths().fill_null(0).to_numpy(), column.flatten().to_numpy()
        if len(values):
            starts = np.cumsum(counts) - counts
            for code in np.unique(task[counts > 0]).tolist():
                rows = np.flatnonzero((task == code) & (counts > 0))
                # If directories of one task count different actions, the comparison of their specs fails later.
                before = self.largest.get(code, np.zeros(counts[rows].min(), np.int64))
                width = min(len(before), counts[rows].min())
                largest = values[starts[rows][:, None] + np.arange(width)].max(axis=0)
                self.largest[code] = np.maximum(before[:width], largest)

    def rows(self) -> Rows:
        """The columns over all rows. Call it once: it releases what was gathered."""
        dtypes = self._COLUMNS | self._MARKS
        columns: dict[str, np.ndarray] = {
            name: np.frombuffer(column, dtypes[name]) for name, column in self._columns.items()
        }
        self.hashes = columns["hash"]
        reasons = np.array([*self._reasons.codes, None], object)
        return Rows(
            task=columns["task"],
            agent=columns["agent"],
            order=columns["order"],
            steps=columns["steps"],
            returns=columns["return"],
            success=columns["success"] if self._has_success else None,
            reason=reasons[columns["reason"]],
            task_names=list(self.tasks.codes),
            agent_names=list(self._agents.codes),
            listed=columns.get("listed"),
            sample=columns.get("sample"),
        )


# --- rules that need more than the gathered columns ----------------------------------------------------------


def read_episode_list(keep: Keep, path: str, dataset: str) -> EpisodeList:
    """The dataset's episodes of the list at ``path``. Raises ConfigError if it changed since the config was read."""
    selection = EpisodeList(read_bytes(path), path, dataset)
    if keep.digest is not None and selection.digest != keep.digest:
        raise ConfigError(f"{path}: the list changed since the config was read; run the command again")
    return selection


def _passes(plan: EpisodesPlan, scanned: Iterable[pa.Table], rows: Rows, where: Where) -> Passes:
    """Which rows an expression is true for, evaluated one unit at a time."""

    def passes(experts: np.ndarray) -> np.ndarray:
        result, begin = np.zeros(len(rows.task), bool), 0
        experts = np.append(experts, np.nan)  # for rows without a task
        for table in scanned:
            part = slice(begin, begin + len(table))
            columns = {name: _column(name, plan, table, rows, part, experts) for name in where.columns}
            result[part] = where.passes(columns, len(table))
            begin = part.stop
        return result

    return passes


def _column(name: str, plan: EpisodesPlan, table: pa.Table, rows: Rows, part: slice, experts: np.ndarray) -> Column:
    """A column of ``table``, which is ``part`` of the dataset, as an index will hold it."""
    match name:
        case "episode_id":
            return Strings(np.arange(len(table)), plan.ids(table))
        case "source_file":
            return Strings(plan.file_ordinals(table), [file.name for file in plan.files])
        case "task":
            return Strings(rows.task[part], rows.task_names)
        case "agent":
            return Strings(rows.agent[part], rows.agent_names)
    numbers: np.ndarray
    match name:
        case "steps":
            numbers = rows.steps[part]
        case "return":
            numbers = rows.returns[part]
        case "expert_return":
            numbers = experts[rows.task[part]]
        case "source_position":
            numbers = table["position"].to_numpy()
        case "order":
            numbers = _order(rows.order[part], table["position"].to_numpy())
    return numbers.astype(np.float64)


def _order(order: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The collection order, float64 (R,): the configured one, else the position in the file."""
    return np.where(np.isfinite(order), order, positions.astype(np.float64))


def _left_out(dataset: str, tasks: Sequence[Task]) -> list[str]:
    """A notice if the rules leave out whole tasks."""
    names = [task.name for task in tasks if task.is_left_out]
    if not names:
        return []
    shown = ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")
    return [f"{dataset}: keep leaves no episode of {len(names)} of {len(tasks)} tasks: {shown}"]


def _named(codes: np.ndarray, names: Sequence[object]) -> pa.Array:
    """The names of codes, null for -1."""
    return pa.array([*names, None]).take(pa.array(np.where(codes < 0, len(names), codes)))


def _check_ids(plan: EpisodesPlan, scanned: Iterable[pa.Table], hashes: np.ndarray) -> None:
    """Raises DataError if two episodes have the same id. Only ids with equal hashes are compared."""
    values, counts = np.unique(hashes, return_counts=True)
    suspects = np.flatnonzero(np.isin(hashes, values[counts > 1]))
    if not len(suspects):
        return
    seen: dict[str, str] = {}
    begin = 0
    for table in scanned:
        here = suspects[(suspects >= begin) & (suspects < begin + len(table))] - begin
        begin += len(table)
        rows = table.take(pa.array(here))
        for id_, address in zip(plan.ids(rows), plan.addresses(rows), strict=True):
            if id_ in seen:
                raise DataError(
                    f"{plan.config.name}: {seen[id_]} and {address} have the same episode id {id_!r}; "
                    "choose another metadata key for id, or leave id out"
                )
            seen[id_] = address


def _task_specs(plan: EpisodesPlan, gathered: _Gathered) -> tuple[dict[str, EpisodeSpec], list[str]]:
    """The spec of each task, and notices.

    The number of values of a discrete action is counted if neither the config nor the source gives it.
    """
    specs, owners = {}, []
    counts: dict[tuple[str, int], list[str]] = {}
    for task, code in gathered.tasks.codes.items():
        directories = [plan.directories[number] for number in sorted(gathered.directories[code])]
        owners += [(task, item.directory.path) for item in directories]
        first = directories[0]
        for other in directories[1:]:
            if other.spec != first.spec:
                raise ConfigError(
                    f"{plan.field}: task {task!r} has other fields in {other.directory.path} than in "
                    f"{first.directory.path} ({_difference(first.spec, other.spec)}); give them "
                    "different tasks or equal fields"
                )
        spec, actions = first.spec, first.scan_fields.counted
        largest = gathered.largest.get(code, np.zeros(len(actions), np.int64))
        for counted, value in zip(actions, largest.tolist(), strict=True):
            num = min(DISCRETE_VALUES, max(1, value + 1))
            spec = _with_num(spec, counted.path, num)
            counts.setdefault((counted.path, num), []).append(task)
        specs[task] = spec
    if plan.config.task.metadata is not None:
        check_tasks(owners, plan.config, plan.field)
    return specs, [
        f"{plan.config.name}: {path} is taken to have {num} values, the largest seen plus one, in "
        f"{tasks[0] if len(tasks) == 1 else f'{len(tasks)} tasks'}; state it as {plan.field}.fields: "
        f"{{{path}: {{num: {num}}}}}"
        for (path, num), tasks in counts.items()
    ]


def _with_num(spec: EpisodeSpec, path: str, num: int) -> EpisodeSpec:
    return EpisodeSpec(
        fields=tuple(
            field.model_copy(update={"num": num}) if field.path == path and field.is_action else field
            for field in spec.fields
        )
    )


def _difference(one: EpisodeSpec, other: EpisodeSpec) -> str:
    left, right = ({field.path: field for field in spec.fields} for spec in (one, other))
    return ", ".join(sorted(path for path in left.keys() | right.keys() if left.get(path) != right.get(path)))
