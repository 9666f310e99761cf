"""The plan of a dataset of episodes: its directories with their specs, verdicts over its returns, its orders.

Legend: R rows of the scan.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.pipelines.dataset import (
    SCAN_UNIT_BYTES,
    TASK_ROWS,
    GrowingArray,
    Losses,
    ShardSettings,
    Task,
    check_budget,
    row_hash,
)
from gatokit.pipelines.episodes.episode_lists import read_selection
from gatokit.pipelines.episodes.filter import Passes, Rows, held_out, judge_rows
from gatokit.pipelines.episodes.formats import FORMATS
from gatokit.pipelines.episodes.reader import EpisodeFile, SourceDirectory, SourceFeatures
from gatokit.pipelines.episodes.scan import ScanFields, ScanFile, ScanUnit, scan_fields
from gatokit.pipelines.episodes.spec import check_rules, episode_spec
from gatokit.pipelines.episodes.tokenize import EpisodeShardHeader
from gatokit.pipelines.find import find_directories, fixed_part, local_path, local_pattern
from gatokit.pipelines.planning.plan import DatasetPlan, Judged
from gatokit.schemas.config import BuildConfig, EpisodesConfig, Keep
from gatokit.schemas.episode import EpisodeSpec, FieldSpec
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.filter import sample_hash
from gatokit.schemas.index import HELD_OUT, TRAIN
from gatokit.schemas.manifest import DatasetFile, TaskEntry
from gatokit.schemas.tokens import DISCRETE_VALUES
from gatokit.schemas.where import Column, Strings, Where
from gatokit.storage import files
from gatokit.storage.files import read_rows
from gatokit.storage.prefetch import prefetch

_MOST_NAMES = 5


@dataclass(frozen=True)
class DirectoryPlan:
    """A source directory with the task it gives (None: each episode names its own), its spec, in which
    ``num`` of a discrete action may be open, and what a scan reads of it."""

    directory: SourceDirectory
    task: str | None
    spec: EpisodeSpec
    scan_fields: ScanFields


@dataclass(frozen=True)
class EpisodesPlan(DatasetPlan):
    """See ``DatasetPlan``. ``list_path`` is where the list of episodes to keep is, if there is one; of a dataset that
    ``is_partial`` the list may name other episodes too."""

    config: EpisodesConfig
    field: str
    directories: tuple[DirectoryPlan, ...]
    list_path: str | None = None
    is_partial: bool = False
    what: ClassVar[str] = "episodes"

    @cached_property
    def files(self) -> list[tuple[EpisodeFile, SourceFeatures]]:
        """All files in order, with their features."""
        return [(file, plan.directory.features) for plan in self.directories for file in plan.directory.files]

    def sources(self) -> list[EpisodeFile]:
        """See ``DatasetPlan``."""
        return [file for file, _ in self.files]

    def units(self, max_bytes: int, unit_bytes: int = SCAN_UNIT_BYTES) -> list[ScanUnit]:
        """See ``DatasetPlan``."""
        units: list[ScanUnit] = []
        group: list[tuple[DirectoryPlan, ScanFile]] = []
        size = 0
        for ordinal, directory in enumerate(self.directories):
            for number, file in enumerate(directory.directory.files):
                if group and size + file.size > unit_bytes:
                    units.append(_unit(self.config.name, group, max_bytes))
                    group, size = [], 0
                item = ScanFile(directory=ordinal, ordinal=number, task=directory.task, fields=0, file=file)
                group.append((directory, item))
                size += file.size
        if group:
            units.append(_unit(self.config.name, group, max_bytes))
        return units

    def judge(self, results: Sequence[Path], config: BuildConfig, limit: int | None) -> "JudgedEpisodes":
        """See ``DatasetPlan``; windows, thresholds and verdicts follow Gato, section 3.2."""
        keep = self.config.keep
        selection = None if self.list_path is None else read_selection(keep, self.list_path, self.config.name)
        scanned = _Scanned(self, results, limit)
        gathered = _Gathered()
        losses = Losses()
        for table in scanned:
            ids = scanned.ids(table)
            gathered.add(table, [row_hash(config.seed, id_) for id_ in ids])
            if selection is not None:
                gathered.mark("listed", selection.find(ids, table["task"].to_pylist()))
            if keep.sample is not None:
                gathered.mark("sample", np.array([sample_hash(keep.seed or 0, id_) for id_ in ids], np.uint64))
            if table["reason"].null_count < len(table):
                bad = table.filter(pc.is_valid(table["reason"]))
                reasons, lost, details = (bad[name].to_pylist() for name in ("reason", "lost", "detail"))
                losses.add(reasons, lost, scanned.ids(bad), details)
        rows = gathered.rows()
        if self.config.id is not None:
            _check_ids(scanned, gathered.hashes, self.config)
        check_budget(losses, gathered.lost, config.max_bad_fraction, self.config.name)
        if selection is not None and limit is None and not self.is_partial:
            selection.check_found(self.config.name)
        where = None if keep.where is None else _passes(scanned, rows, Where(keep.where))
        tasks, kept, reason = judge_rows(rows, keep, self.config.name, where)
        apart = held_out(gathered.hashes, kept, rows.task, config.holdout)
        specs, notices = _task_specs(self, gathered)
        notices += _left_out(self.config.name, tasks)
        if self.config.order is None and (keep.min_return is not None or _names_expert(keep)):
            notices.append(
                f"{self.config.name}: no collection order is configured ({self.field}.order), so expert returns run "
                "over the order of the files, which TFDS shuffles"
            )
        return JudgedEpisodes(self, scanned, rows, specs, kept, apart, reason, tuple(tasks), tuple(notices))


class JudgedEpisodes(Judged):
    """See ``Judged``. Of a row it holds some thirty bytes."""

    scanned: "_Scanned"

    def __init__(
        self,
        plan: EpisodesPlan,
        scanned: "_Scanned",
        rows: Rows,
        specs: dict[str, EpisodeSpec],
        kept: np.ndarray,
        apart: np.ndarray,
        reason: np.ndarray,
        tasks: tuple[Task, ...],
        notices: tuple[str, ...],
    ) -> None:
        self.tasks, self.notices, self.names = tasks, notices, scanned.names
        self.scanned, self.specs = scanned, specs
        self._plan, self._kept, self._apart = plan, kept, apart
        self._reason = pa.array(reason, pa.string()).dictionary_encode()
        nothing = np.empty(0)
        self._rows = replace(rows, steps=nothing, success=None, reason=nothing, listed=None, sample=None)

    def head(self, files: list[int], rows: pa.Table, settings: ShardSettings) -> EpisodeShardHeader:
        """See ``Judged``."""
        tasks = rows["task"].unique().to_pylist()
        specs = {self.specs[task].id: self.specs[task] for task in tasks if task is not None}
        found = [self._plan.files[number] for number in files]
        return EpisodeShardHeader.of(self._plan.config.name, settings, dict(sorted(specs.items())), found)

    def range_of(self, task: str, path: str) -> list[list[float]]:
        """See ``Judged``."""
        fields = self.specs[task].action
        return [list(pair) for field in fields if field.path == path for pair in field.range or ()]

    def describe(self, episodes: int, kept: int) -> DatasetFile:
        """See ``Judged``."""
        config, ordered = self._plan.config, self._plan.config.order is not None
        specs = dict(sorted(self.specs.items()))
        return DatasetFile(
            name=config.name,
            kind=config.kind,
            specs={spec.id: spec for spec in specs.values()},
            tasks={task: TaskEntry(spec=spec.id, ordered=ordered) for task, spec in specs.items()},
            episodes=episodes,
            kept=kept,
        )

    def table(self, scanned: pa.Table, part: slice) -> pa.Table:
        """See ``Judged``."""
        rows, names = self._rows, self._rows.task_names
        by_name = {task.name: task for task in self.tasks}
        order, positions = rows.order[part], scanned["position"].to_numpy()
        file = self.scanned.files(scanned)
        kept, apart = self._kept[part], self._apart[part]
        columns = {
            "episode_id": self.scanned.ids(scanned),
            "task": _named(rows.task[part], names),
            "agent": _named(rows.agent[part], rows.agent_names),
            "spec": _named(rows.task[part], [self.specs[name].id for name in names]),
            "order": _order(order, positions),
            "split": _named(np.where(kept, apart.astype(np.int8), -1), [TRAIN, HELD_OUT]),
            "steps": scanned["steps"],
            "return": pa.array(rows.returns[part], from_pandas=True),
            "expert_return": _named(rows.task[part], [by_name[name].expert_return for name in names]),
            "threshold": _named(rows.task[part], [by_name[name].threshold for name in names]),
            "kept": kept,
            "reason": self._reason[part].cast(pa.string()),
            "detail": scanned["detail"],
            "lost": scanned["lost"],
            "source_file": _named(file, self.names),
            "source_position": positions,
            "file": file,
            "offset": scanned["offset"],
            "length": scanned["length"],
            "crc": scanned["crc"],
        }
        return pa.table(columns).select(TASK_ROWS.names).cast(TASK_ROWS)


def plan_episodes(dataset: EpisodesConfig, field: str, base: Path) -> EpisodesPlan:
    """Finds the sources of a dataset and derives their specs; ConfigError or DataError where that fails.

    Relative paths start at ``base``.
    """
    pattern = local_pattern(dataset.source, base, f"{field}.source")
    below = fixed_part(pattern)
    directories = [
        FORMATS[found.marker].read_directory(found.path, found.name, below, dataset.splits)
        for found in find_directories(pattern, tuple(FORMATS), f"{field}.source")
    ]
    check_rules(dataset, [directory.features for directory in directories], field)
    plans = [_plan_directory(directory, dataset, field) for directory in directories]
    _check_tasks([(plan.task, plan.directory.path) for plan in plans if plan.task is not None], dataset, field)
    listed = dataset.keep.episodes
    list_path = None if listed is None else local_path(listed, base, f"{field}.keep.episodes")
    return EpisodesPlan(dataset, field, tuple(plans), list_path)


def _plan_directory(directory: SourceDirectory, dataset: EpisodesConfig, field: str) -> DirectoryPlan:
    spec = episode_spec(directory.features, dataset, field, directory.path)
    counted = tuple(item.path for item in spec.action if item.kind == "discrete" and item.num is None)
    keys = {
        "task": dataset.task.metadata,
        "agent": dataset.agent.metadata if dataset.agent else None,
        "order": dataset.order.metadata if dataset.order else None,
        "id": dataset.id.metadata if dataset.id else None,
        "success": dataset.keep.success,
    }
    task = dataset.task.constant or (None if dataset.task.metadata else directory.name)
    where = f"{directory.path}, {field}"
    return DirectoryPlan(directory, task, spec, scan_fields(directory.features, keys, counted, where))


def _check_tasks(tasks: list[tuple[str, str]], dataset: EpisodesConfig, field: str) -> None:
    seen: dict[str, str] = {}
    for task, path in tasks:
        if task in seen and seen[task] != path and not dataset.merge:
            raise ConfigError(
                f"{field}: {seen[task]} and {path} both give the task {task!r}; "
                "set merge: true, or narrow source or task"
            )
        seen.setdefault(task, path)


def _unit(dataset: str, group: list[tuple[DirectoryPlan, ScanFile]], max_bytes: int) -> ScanUnit:
    fields = list(dict.fromkeys(directory.scan_fields for directory, _ in group))
    items = [item.model_copy(update={"fields": fields.index(directory.scan_fields)}) for directory, item in group]
    return ScanUnit(
        dataset=dataset,
        max_episode_bytes=max_bytes,
        fields=tuple(fields),
        files=tuple(items),
        versions=tuple(files.version(item.file.path) for item in items),
    )


class _Scanned:
    """The scanned rows of a dataset in source order, a unit at a time, cut to ``limit`` episodes a task."""

    def __init__(self, plan: EpisodesPlan, results: Sequence[Path], limit: int | None) -> None:
        self._results, self._limit = results, limit
        self.names = [file.name for file, _ in plan.files]
        counts = [len(directory.directory.files) for directory in plan.directories]
        self._first_file = np.cumsum([0, *counts])

    def __iter__(self) -> Iterator[pa.Table]:
        seen: dict[str | None, int] = {}
        for table in prefetch(self._results, read_rows, lambda read: int(read.nbytes)):
            yield table if self._limit is None else _first_of_each_task(table, self._limit, seen)

    def files(self, table: pa.Table) -> np.ndarray:
        """The ordinal of each row's file in the dataset, int (R,)."""
        files: np.ndarray = self._first_file[table["directory"].to_numpy()] + table["file"].to_numpy()
        return files

    def places(self, table: pa.Table) -> list[str]:
        """Each row's file and position."""
        positions = table["position"].to_pylist()
        return [f"{self.names[file]}#{at}" for file, at in zip(self.files(table).tolist(), positions, strict=True)]

    def ids(self, table: pa.Table) -> list[str]:
        """Each row's id: the configured one, else its place."""
        places = self.places(table)
        if table["id"].null_count == len(table):
            return places
        return [place if id_ is None else id_ for id_, place in zip(table["id"].to_pylist(), places, strict=True)]


def _first_of_each_task(table: pa.Table, limit: int, seen: dict[str | None, int]) -> pa.Table:
    keep = []
    for task in table["task"].to_pylist():
        seen[task] = seen.get(task, 0) + 1
        keep.append(seen[task] <= limit)
    return table.filter(pa.array(keep, pa.bool_()))


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
    """What the verdicts need of all rows."""

    def __init__(self) -> None:
        self.tasks, self._agents, self._reasons = _Names(), _Names(), _Names()
        self._columns = {name: GrowingArray(dtype) for name, dtype in self._COLUMNS.items()}
        self._marked = False
        self.lost = 0
        self.directories: dict[int, set[int]] = {}
        """The directories of each task."""
        self.largest: dict[int, np.ndarray] = {}
        """The largest value of each counted action of each task."""

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

    def add(self, table: pa.Table, hashes: list[int]) -> None:
        """Takes the next rows."""
        add = {name: column.add for name, column in self._columns.items()}
        task = self.tasks.of(table["task"])
        add["task"](task)
        add["agent"](self._agents.of(table["agent"]))
        add["reason"](self._reasons.of(table["reason"]).astype(np.int16))
        add["order"](table["order"].to_numpy())
        add["steps"](table["steps"].fill_null(0).to_numpy())
        add["return"](table["return"].to_numpy())
        add["success"](table["success"].fill_null(False).to_numpy())
        add["hash"](np.array(hashes, np.uint64))
        self._marked |= table["success"].null_count < len(table)
        self.lost += int(table["lost"].to_numpy().sum())
        directory = table["directory"].to_numpy()
        for code, number in np.unique(np.stack([task, directory]), axis=1).T.tolist():
            self.directories.setdefault(code, set()).add(number)
        self._add_largest(task, table["largest"].combine_chunks())

    def mark(self, name: str, values: np.ndarray) -> None:
        """Takes what a rule has to know of the same rows: a column of ``Rows`` that is not always there."""
        self._columns.setdefault(name, GrowingArray(self._MARKS[name])).add(values)

    def _add_largest(self, task: np.ndarray, column: pa.ListArray) -> None:
        counts, values = column.value_lengths().fill_null(0).to_numpy(), column.flatten().to_numpy()
        if len(values):
            starts = np.cumsum(counts) - counts
            for code in np.unique(task[counts > 0]).tolist():
                rows = np.flatnonzero((task == code) & (counts > 0))
                # Directories of one task that count different actions are refused when their specs are compared.
                before = self.largest.get(code, np.zeros(counts[rows].min(), np.int64))
                width = min(len(before), counts[rows].min())
                found = values[starts[rows][:, None] + np.arange(width)].max(axis=0)
                self.largest[code] = np.maximum(before[:width], found)

    def rows(self) -> Rows:
        """The columns over all rows; they are given up here."""
        columns = {name: self._columns.pop(name).joined() for name in list(self._columns)}
        self.hashes = columns["hash"]
        reasons = np.array([*self._reasons.codes, None], object)
        return Rows(
            task=columns["task"],
            agent=columns["agent"],
            order=columns["order"],
            steps=columns["steps"],
            returns=columns["return"],
            success=columns["success"] if self._marked else None,
            reason=reasons[columns["reason"]],
            task_names=list(self.tasks.codes),
            agent_names=list(self._agents.codes),
            listed=columns.get("listed"),
            sample=columns.get("sample"),
        )


def _passes(scanned: _Scanned, rows: Rows, where: Where) -> Passes:
    """Which rows an expression is true for, worked out a unit at a time."""

    def passes(experts: np.ndarray) -> np.ndarray:
        found, begin = np.zeros(len(rows.task), bool), 0
        of_task = np.append(experts, np.nan)
        for table in scanned:
            part = slice(begin, begin + len(table))
            columns = {name: _column(name, table, scanned, rows, part, of_task) for name in where.columns}
            found[part] = where.passes(columns, len(table))
            begin = part.stop
        return found

    return passes


def _column(name: str, table: pa.Table, scanned: _Scanned, rows: Rows, part: slice, experts: np.ndarray) -> Column:
    """The next rows' column as an index will hold it."""
    match name:
        case "episode_id":
            return Strings(np.arange(len(table)), scanned.ids(table))
        case "source_file":
            return Strings(scanned.files(table), scanned.names)
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
    """The collection order, float64 (R,): the configured one, else the place in the file."""
    return np.where(np.isfinite(order), order, positions.astype(np.float64))


def _names_expert(keep: Keep) -> bool:
    return keep.where is not None and "expert_return" in Where(keep.where).columns


def _left_out(dataset: str, tasks: Sequence[Task]) -> list[str]:
    """A sentence where the rules leave whole tasks out."""
    names = [task.name for task in tasks if task.is_left_out]
    if not names:
        return []
    shown = ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")
    return [f"{dataset}: keep leaves no episode of {len(names)} of {len(tasks)} tasks: {shown}"]


def _named(codes: np.ndarray, names: Sequence[object]) -> pa.Array:
    """The names of codes, null for -1."""
    return pa.array([*names, None]).take(pa.array(np.where(codes < 0, len(names), codes)))


def _check_ids(scanned: _Scanned, hashes: np.ndarray, dataset: EpisodesConfig) -> None:
    """DataError where two episodes have the same id; only ids whose hashes meet are looked at."""
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
        for id_, place in zip(scanned.ids(rows), scanned.places(rows), strict=True):
            if id_ in seen:
                raise DataError(
                    f"{dataset.name}: {seen[id_]} and {place} have the same episode id {id_!r}; "
                    "choose another metadata key for id, or leave id out"
                )
            seen[id_] = place


def _task_specs(plan: EpisodesPlan, gathered: _Gathered) -> tuple[dict[str, EpisodeSpec], list[str]]:
    """Each task's spec, with the number of its discrete actions counted where nobody states it."""
    specs, owners = {}, []
    counts: dict[tuple[str, int], list[str]] = {}
    for task, code in gathered.tasks.codes.items():
        found = [plan.directories[number] for number in sorted(gathered.directories[code])]
        owners += [(task, item.directory.path) for item in found]
        for other in found[1:]:
            if other.spec != found[0].spec:
                raise ConfigError(
                    f"{plan.field}: task {task!r} has other fields in {other.directory.path} than in "
                    f"{found[0].directory.path} ({_difference(found[0].spec, other.spec)}); give them "
                    "different tasks or equal fields"
                )
        spec, actions = found[0].spec, found[0].scan_fields.counted
        largest = gathered.largest.get(code, np.zeros(len(actions), np.int64))
        for counted, value in zip(actions, largest.tolist(), strict=True):
            num = min(DISCRETE_VALUES, max(1, value + 1))
            spec = _with_num(spec, counted.path, num)
            counts.setdefault((counted.path, num), []).append(task)
        specs[task] = spec
    if plan.config.task.metadata is not None:
        _check_tasks(owners, plan.config, plan.field)
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
    def by_path(spec: EpisodeSpec) -> dict[str, FieldSpec]:
        return {field.path: field for field in spec.fields}

    left, right = by_path(one), by_path(other)
    return ", ".join(sorted(path for path in left.keys() | right.keys() if left.get(path) != right.get(path)))
