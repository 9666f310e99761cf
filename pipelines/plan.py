"""What a job is about to do: the sources of a dataset, the units of its scan, and the orders of its build."""

import glob
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from gatokit.pipelines import splits
from gatokit.pipelines.orders import ORDER, Order, Settings, make_head
from gatokit.pipelines.scan import ScanFile, ScanUnit, Wanted, wanted
from gatokit.pipelines.sources.find import find, fixed_part
from gatokit.pipelines.sources.formats import READERS
from gatokit.pipelines.sources.source import SourceDirectory
from gatokit.pipelines.specs import Context, check_rules, episode_spec
from gatokit.pipelines.tasks import Rows, Task, check_budget, held_out, judge_rows
from gatokit.schemas.config import BuildConfig, EpisodesConfig
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.index import HELD_OUT, TRAIN
from gatokit.schemas.spec import EpisodeSpec, FieldSpec
from gatokit.schemas.tokens import DISCRETE_VALUES

SCAN_UNIT_BYTES = 256 << 20
"""Files are scanned together up to about this many bytes."""


@dataclass(frozen=True)
class DirectoryPlan:
    """A source directory with the task it gives (None: each episode names its own), its spec, in which
    ``num`` of a discrete action may be open, and what a scan reads of it."""

    directory: SourceDirectory
    task: str | None
    spec: EpisodeSpec
    wanted: Wanted


@dataclass(frozen=True)
class DatasetPlan:
    """A dataset before its scan; ``field`` is its path in the config, for messages."""

    config: EpisodesConfig
    field: str
    directories: tuple[DirectoryPlan, ...]


@dataclass(frozen=True)
class Plan:
    """A dataset after its scan: tasks, the spec of each, and the orders of its build in source order.

    ``notices`` are sentences that a person should read.
    """

    dataset: DatasetPlan
    tasks: tuple[Task, ...]
    specs: dict[str, EpisodeSpec]
    orders: tuple[Order, ...]
    notices: tuple[str, ...]


def plan_dataset(config: BuildConfig, number: int, base: Path) -> DatasetPlan:
    """Finds the sources of a dataset and derives their specs; ConfigError or DataError where that fails.

    Relative paths start at ``base``.
    """
    dataset = config.datasets[number]
    field = f"datasets[{number}]"
    pattern = os.path.join(glob.escape(os.fspath(base)), os.path.expanduser(dataset.source))
    below = fixed_part(pattern)
    directories = [
        READERS[found.marker](found.path, found.name, below, dataset.splits)
        for found in find(pattern, tuple(READERS), f"{field}.source")
    ]
    check_rules(dataset, [directory.features for directory in directories], field)
    plans = [_plan_directory(directory, dataset, field) for directory in directories]
    _check_tasks([(plan.task, plan.directory.path) for plan in plans if plan.task is not None], dataset, field)
    return DatasetPlan(dataset, field, tuple(plans))


def scan_units(plan: DatasetPlan, max_episode_bytes: int) -> list[ScanUnit]:
    """The dataset's files in order, grouped into units of work."""
    units: list[ScanUnit] = []
    group: list[tuple[DirectoryPlan, ScanFile]] = []
    size = 0
    for ordinal, directory in enumerate(plan.directories):
        for number, file in enumerate(directory.directory.files):
            if group and size + file.size > SCAN_UNIT_BYTES:
                units.append(_unit(plan, group, max_episode_bytes))
                group, size = [], 0
            item = ScanFile(directory=ordinal, ordinal=number, task=directory.task, wanted=0, file=file)
            group.append((directory, item))
            size += file.size
    if group:
        units.append(_unit(plan, group, max_episode_bytes))
    return units


def make_plan(plan: DatasetPlan, scanned: pa.Table, config: BuildConfig, vocabulary: str, limit: int | None) -> Plan:
    """Judges the scanned rows (schema ``SCANNED``, in source order) and divides them into orders.

    ``vocabulary`` is the model's digest, ``limit`` the number of episodes a task that are looked at. DataError
    where the error budget is exceeded, a task keeps nothing or two episodes share an id.
    """
    dataset = plan.config
    if limit is not None:
        scanned = _first_of_each_task(scanned, limit)
    names = [file.name for directory in plan.directories for file in directory.directory.files]
    first_file = np.cumsum([0, *(len(directory.directory.files) for directory in plan.directories)])
    file = first_file[scanned["directory"].to_numpy()] + scanned["file"].to_numpy()
    positions = scanned["position"].to_numpy()
    ids = [
        f"{names[number]}#{position}" if id_ is None else id_
        for id_, number, position in zip(scanned["id"].to_pylist(), file, positions, strict=True)
    ]
    if dataset.id is not None:
        _check_ids(
            ids, [f"{names[number]}#{position}" for number, position in zip(file, positions, strict=True)], dataset
        )
    rows = _rows(scanned)
    lost = scanned["lost"].to_numpy()
    reasons, examples = count_reasons(rows.reason, lost, ids, scanned["detail"].to_pylist())
    check_budget(reasons, examples, int(lost.sum()), config.max_bad_fraction, dataset.name)
    tasks, kept, reason = judge_rows(rows, dataset.keep, dataset.name)
    apart = held_out(ids, kept, rows.task, config.holdout, config.seed)
    specs, notices = _task_specs(plan, scanned, rows)
    if dataset.order is None and dataset.keep.min_return is not None:
        notices.append(
            f"{dataset.name}: no collection order is configured ({plan.field}.order), so expert returns run over "
            "the order of the files, which TFDS shuffles"
        )
    by_name = {task.name: task for task in tasks}
    task_of = [None if code < 0 else rows.task_names[code] for code in rows.task]
    table = pa.table(
        {
            "episode_id": ids,
            "task": task_of,
            "agent": [None if code < 0 else rows.agent_names[code] for code in rows.agent],
            "spec": [None if task is None else specs[task].id for task in task_of],
            "order": pa.array(np.where(np.isfinite(rows.order), rows.order, positions.astype(np.float64))),
            "split": [(HELD_OUT if a else TRAIN) if k else None for k, a in zip(kept, apart, strict=True)],
            "steps": scanned["steps"],
            "return": pa.array(rows.returns, from_pandas=True),
            "expert_return": [None if task is None else by_name[task].expert_return for task in task_of],
            "threshold": [None if task is None else by_name[task].threshold for task in task_of],
            "kept": kept,
            "reason": pa.array(reason, pa.string()),
            "detail": scanned["detail"],
            "lost": scanned["lost"],
            "source_file": [names[number] for number in file],
            "source_position": positions,
            "file": file.astype(np.int32),
            "offset": scanned["offset"],
            "length": scanned["length"],
            "crc": scanned["crc"],
        }
    )
    split = splits.assign(names, file, scanned["length"].to_numpy(), config.shard_bytes)
    settings = Settings(
        chunk_tokens=config.chunk_tokens, discrete_offset=config.discrete_offset, vocabulary_digest=vocabulary
    )
    orders = _orders(plan, table.select(ORDER.names).cast(ORDER), split, specs, settings)
    return Plan(plan, tuple(tasks), specs, tuple(orders), tuple(notices))


def count_reasons(
    reasons: np.ndarray | list[str | None],
    lost: np.ndarray | list[int],
    ids: list[str],
    details: list[str | None],
) -> tuple[Counter[str], dict[str, str]]:
    """Lost episodes by reason, and the first id of each with its detail."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for reason, number, id_, detail in zip(reasons, lost, ids, details, strict=True):
        if reason is not None:
            counts[reason] += int(number)
            examples.setdefault(reason, id_ if detail is None else f"{id_}: {detail}")
    return counts, examples


def _plan_directory(directory: SourceDirectory, dataset: EpisodesConfig, field: str) -> DirectoryPlan:
    spec = episode_spec(directory.features, dataset, Context(field, directory.path))
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
    return DirectoryPlan(directory, task, spec, wanted(directory.features, keys, counted, where))


def _check_tasks(tasks: list[tuple[str, str]], dataset: EpisodesConfig, field: str) -> None:
    seen: dict[str, str] = {}
    for task, path in tasks:
        if task in seen and seen[task] != path and not dataset.merge:
            raise ConfigError(
                f"{field}: {seen[task]} and {path} both give the task {task!r}; "
                "set merge: true, or narrow source or task"
            )
        seen.setdefault(task, path)


def _unit(plan: DatasetPlan, group: list[tuple[DirectoryPlan, ScanFile]], max_episode_bytes: int) -> ScanUnit:
    kinds: list[tuple[object, Wanted]] = []
    files = []
    for directory, item in group:
        kind = (directory.directory.features, directory.wanted)
        if kind not in kinds:
            kinds.append(kind)
        files.append(item.model_copy(update={"wanted": kinds.index(kind)}))
    return ScanUnit(
        dataset=plan.config.name,
        max_episode_bytes=max_episode_bytes,
        features=tuple(features for features, _ in kinds),  # type: ignore[misc]
        wanted=tuple(want for _, want in kinds),
        files=tuple(files),
        versions=tuple(os.stat(item.file.path).st_mtime_ns for item in files),
    )


def _first_of_each_task(scanned: pa.Table, limit: int) -> pa.Table:
    codes = scanned["task"].combine_chunks().indices.fill_null(-1).to_numpy()
    keep = np.zeros(len(codes), bool)
    for code in np.unique(codes):
        keep[np.flatnonzero(codes == code)[:limit]] = True
    return scanned.filter(pa.array(keep))


def _rows(scanned: pa.Table) -> Rows:
    task, agent = scanned["task"].combine_chunks(), scanned["agent"].combine_chunks()
    success = scanned["success"]
    return Rows(
        task=task.indices.fill_null(-1).to_numpy().astype(np.int64),
        agent=agent.indices.fill_null(-1).to_numpy().astype(np.int64),
        order=scanned["order"].to_numpy(),
        steps=scanned["steps"].fill_null(0).to_numpy(),
        returns=scanned["return"].to_numpy(),
        success=None if success.null_count == len(success) else success.fill_null(False).to_numpy(),
        reason=np.array(scanned["reason"].to_pylist(), object),
        task_names=_used(task),
        agent_names=_used(agent),
    )


def _used(column: pa.DictionaryArray) -> list[str]:
    return column.dictionary.to_pylist()


def _check_ids(ids: list[str], places: list[str], dataset: EpisodesConfig) -> None:
    seen: dict[str, str] = {}
    for id_, place in zip(ids, places, strict=True):
        if id_ in seen:
            raise DataError(
                f"{dataset.name}: {seen[id_]} and {place} have the same episode id {id_!r}; "
                "choose another metadata key for id, or leave id out"
            )
        seen[id_] = place


def _task_specs(plan: DatasetPlan, scanned: pa.Table, rows: Rows) -> tuple[dict[str, EpisodeSpec], list[str]]:
    """Each task's spec, with the number of its discrete actions counted where nobody states it."""
    directory = scanned["directory"].to_numpy()
    specs, owners = {}, []
    counts: dict[tuple[str, int], list[str]] = {}
    for code, task in enumerate(rows.task_names):
        members = np.flatnonzero(rows.task == code)
        sources = sorted({int(number) for number in directory[members]})
        found = [plan.directories[number] for number in sources]
        owners += [(task, item.directory.path) for item in found]
        for other in found[1:]:
            if other.spec != found[0].spec:
                raise ConfigError(
                    f"{plan.field}: task {task!r} has other fields in {other.directory.path} than in "
                    f"{found[0].directory.path} ({_difference(found[0].spec, other.spec)}); give them "
                    "different tasks or equal fields"
                )
        largest = _largest(scanned, members, len(found[0].wanted.counted))
        spec = found[0].spec
        for counted, value in zip(found[0].wanted.counted, largest, strict=True):
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


def _largest(scanned: pa.Table, members: np.ndarray, count: int) -> list[int]:
    if not count:
        return []
    values = [item for item in scanned["largest"].take(pa.array(members)).to_pylist() if item is not None]
    return [max((item[number] for item in values), default=0) for number in range(count)]


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


def _orders(
    plan: DatasetPlan, table: pa.Table, split: np.ndarray, specs: dict[str, EpisodeSpec], settings: Settings
) -> list[Order]:
    files = [
        (file, directory.directory.features) for directory in plan.directories for file in directory.directory.files
    ]
    orders = []
    starts = np.flatnonzero(np.diff(split, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(split)], strict=True):
        part = table.slice(int(start), int(end - start))
        used = sorted(set(part["file"].to_pylist()))
        renumbered = {number: ordinal for ordinal, number in enumerate(used)}
        local = pa.array([renumbered[number] for number in part["file"].to_pylist()], pa.int32())
        part = part.set_column(part.schema.get_field_index("file"), ORDER.field("file"), local)
        ids = {spec.id: spec for task, spec in specs.items() if task in set(part["task"].to_pylist())}
        head = make_head(plan.config.name, settings, dict(sorted(ids.items())), [files[number] for number in used])
        orders.append(Order(head=head, rows=part))
    return orders
