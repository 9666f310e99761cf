"""Plans and scans a dataset of episodes: its source directories with their specs, and a row for each episode.

A scan reads rewards, flags, metadata, actions and discrete observations of every episode, and nothing else. An
``EpisodeUnit`` groups files into one unit of work, whose rows become one Arrow file. Legend: N recorded steps of an
episode, the last one included; R scanned rows.
"""

import dataclasses
import math
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, TypeAdapter

from gatokit.pipelines.episodes.envlogger import EnvLoggerFile
from gatokit.pipelines.episodes.last_step import looks
from gatokit.pipelines.episodes.ranges import (
    MEASURED,
    MeasuredField,
    measure,
    measured_columns,
    measured_fields,
    reduce_parts,
)
from gatokit.pipelines.episodes.reader import (
    EpisodeFile,
    RawEpisode,
    SourceDirectory,
    SourceFeatures,
    SourceField,
    StoredEpisode,
)
from gatokit.pipelines.episodes.rlds import RldsFile
from gatokit.pipelines.episodes.spec import episode_specs
from gatokit.pipelines.episodes.values import (
    EpisodeValues,
    check_columns,
    file_values,
    find_values,
    index_columns,
    read_metadata,
    read_values,
)
from gatokit.pipelines.inputs import find_directories, fixed_part, local_path, local_pattern
from gatokit.pipelines.stages import METADATA, metadata_schema
from gatokit.schemas.config_episodes import EpisodesConfig
from gatokit.schemas.errors import ConfigError, DataError, RejectedError
from gatokit.schemas.manifest import EpisodeSpec, MetadataType, json_digest
from gatokit.storage import files

_Formats = RldsFile | EnvLoggerFile
"""A new format of episodes is a module beside this one, and its type of files here."""
FORMATS: dict[str, type[EpisodeFile]] = {type_.marker: type_ for type_ in typing.get_args(_Formats)}
"""The type of files of each format, by the name of the file that marks its directories."""
_BY_FORMAT: TypeAdapter[_Formats] = TypeAdapter(Annotated[_Formats, Field(discriminator="format")])
AnyEpisodeFile = Annotated[SerializeAsAny[EpisodeFile], BeforeValidator(_BY_FORMAT.validate_python)]
"""A file of any format, in models that are written to JSON and read again."""

SCANNED = pa.schema(
    [
        pa.field("file", pa.int32()),  # ordinal among the dataset's files
        pa.field("position", pa.int64()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc", pa.uint32()),
        pa.field("task", pa.dictionary(pa.int32(), pa.string())),
        pa.field("agent", pa.dictionary(pa.int32(), pa.string())),
        pa.field("id", pa.string()),  # null: named by file and position
        pa.field("order", pa.float64()),  # NaN: by position
        pa.field("success", pa.bool_()),
        # Of the steps that is_last does not mark:
        pa.field("steps", pa.int64()),
        pa.field("return", pa.float64()),  # NaN if the rewards do not parse or are not finite, null if there are none
        pa.field("rounding", pa.float64()),  # how far the return may be from the recorder's (``half_ulps``)
        pa.field("last_reward", pa.float64()),
        pa.field("last_rounding", pa.float64()),
        # Of the step that is_last marks, null if there is none (``last_step``):
        pa.field("end_reward", pa.float64()),
        pa.field("end_rounding", pa.float64()),
        pa.field("end_reward_look", pa.dictionary(pa.int32(), pa.string())),
        pa.field("end_action", pa.dictionary(pa.int32(), pa.string())),  # its look
        pa.field("reason", pa.dictionary(pa.int32(), pa.string())),
        pa.field("detail", pa.string()),
        pa.field("lost", pa.int64()),
        pa.field("lost_bytes", pa.int64()),
        *MEASURED,
    ]
)
"""Rows of a scan in memory and in the files between scan and plan."""


class ScanFields(BaseModel):
    """The fields that a scan reads of an episode; None if the source has none."""

    model_config = ConfigDict(frozen=True)

    reward: SourceField | None
    is_first: SourceField | None
    is_last: SourceField
    is_terminal: SourceField | None
    values: EpisodeValues
    measured: tuple[MeasuredField, ...]


# --- plan ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DirectoryPlan:
    """A source directory with its spec and what a scan reads of it.

    ``num`` of a discrete action and ``range`` of a continuous one may be open in the spec. ``given`` has for each file
    what the config and the path say of its episodes: by role, their task, agent, order and id.
    """

    directory: SourceDirectory
    spec: EpisodeSpec
    scan_fields: ScanFields
    given: tuple[dict[str, str | float], ...]


@dataclass(frozen=True)
class EpisodesPlan:
    """A dataset of episodes before its scan; messages call its config ``field``.

    ``list_path`` is the list of episodes to keep, if there is one. ``is_partial`` is set if only a part of the source
    is looked at, so that the list may name episodes that are not found.
    """

    config: EpisodesConfig
    field: str
    directories: tuple[DirectoryPlan, ...]
    list_path: str | None = None
    is_partial: bool = False
    columns: dict[str, MetadataType] = dataclasses.field(default_factory=dict)
    """The columns of the index for the values that are stored with the episodes, and their types."""
    kind: ClassVar = "episodes"

    @property
    def in_order(self) -> bool:
        """Whether the collection order is known: the config names it, or every file holds it."""
        return self.config.order is not None or all(plan.directory.in_order for plan in self.directories)

    @property
    def splits_read(self) -> dict[str, int]:
        """Episodes by split, or slice of a split, that is read; empty if the source has no splits."""
        return _sums(plan.directory.splits for plan in self.directories)

    @property
    def splits_left_out(self) -> dict[str, int]:
        """Episodes by split of which nothing is read."""
        return _sums(plan.directory.left_out for plan in self.directories)

    @property
    def notices(self) -> list[str]:
        """Sentences for the user: which splits are read, how many episodes they have, and what is left out."""
        name, read, left_out = self.config.name, self.splits_read, self.splits_left_out
        if not read:
            return []
        held_out = (self.config.splits.held_out if self.config.splits else None) or ()
        said = ", ".join(f"{'held out ' * (split in held_out)}{split} ({count})" for split, count in read.items())
        if left_out:
            said += "; leaves out " + ", ".join(f"{split} ({count})" for split, count in left_out.items())
        notices = [f"{name}: reads {'split' if len(read) == 1 else 'splits'} {said}"]
        missing = sum(plan.directory.missing for plan in self.directories)
        if missing:
            listed = missing + len({file.path for file in self.files})
            notices.append(f"{name}: {missing} of {listed} files are not there and are left out, as `files` says")
        return notices

    @cached_property
    def files(self) -> list[EpisodeFile]:
        """The files of all directories in order."""
        return [file for plan in self.directories for file in plan.directory.files]

    @cached_property
    def directory_of(self) -> np.ndarray:
        """The index into ``directories`` of each file, int (files,)."""
        return np.repeat(np.arange(len(self.directories)), [len(plan.directory.files) for plan in self.directories])

    @cached_property
    def held_out(self) -> np.ndarray:
        """Whether the config holds out the split of each file, bool (files,)."""
        return np.array([file.held_out for file in self.files], bool)

    @cached_property
    def features(self) -> list[SourceFeatures]:
        """The features of each file."""
        return [plan.directory.features for plan in self.directories for _ in plan.directory.files]

    @cached_property
    def given(self) -> list[dict[str, str | float]]:
        """What the config and the path say of the episodes of each file."""
        return [given for plan in self.directories for given in plan.given]

    def addresses(self, scanned: pa.Table) -> list[str]:
        """The file and position of each scanned row."""
        ordinals, positions = scanned["file"].to_pylist(), scanned["position"].to_pylist()
        return [f"{self.files[file].name}#{position}" for file, position in zip(ordinals, positions, strict=True)]

    def ids(self, scanned: pa.Table) -> list[str]:
        """The episode id of each scanned row: the configured one, else file and position."""
        addresses = self.addresses(scanned)
        if scanned["id"].null_count == len(scanned):
            return addresses
        ids = scanned["id"].to_pylist()
        return [address if id_ is None else id_ for id_, address in zip(ids, addresses, strict=True)]

    def scan_unit(self, ordinals: Sequence[int], max_bytes: int) -> "EpisodeUnit":
        """These of the files as a unit of the scan. Episodes above ``max_bytes`` will be rejected."""
        directories = [self.directories[self.directory_of[ordinal]] for ordinal in ordinals]
        fields = list(dict.fromkeys(directory.scan_fields for directory in directories))
        scanned = []
        for ordinal, directory in zip(ordinals, directories, strict=True):
            index, file = fields.index(directory.scan_fields), self.files[ordinal]
            scanned.append(ScanFile(ordinal=ordinal, given=self.given[ordinal], fields=index, file=file))
        return EpisodeUnit(
            dataset=self.config.name,
            max_episode_bytes=max_bytes,
            columns=self.columns,
            fields=tuple(fields),
            files=tuple(scanned),
            versions=tuple(files.version(self.files[ordinal].path) for ordinal in ordinals),
        )


def plan_episodes(dataset: EpisodesConfig, field: str, base: Path) -> EpisodesPlan:
    """Finds the source directories of a dataset and derives their specs. Relative paths start at ``base``.

    Raises ConfigError or DataError if the sources cannot be used.
    """
    pattern = local_pattern(dataset.source, base, f"{field}.source")
    below = fixed_part(pattern)
    directories = [
        FORMATS[found.marker].read_directory(found.path, found.name, below, dataset.splits, dataset.files == "present")
        for found in find_directories(pattern, tuple(FORMATS), f"{field}.source")
    ]
    if not any(directory.files for directory in directories):
        missing = sum(directory.missing for directory in directories)
        reason = f"none of its {missing} files is there" if missing else "the splits that are read hold no episode"
        raise DataError(f"{field}.source: {directories[0].path}: {reason}; get its files, or change splits or source")
    specs = episode_specs(directories, dataset, field)
    names, columns = index_columns([directory.features for directory in directories])
    check_columns(dataset, columns, field)
    plans: list[DirectoryPlan] = []
    tasks: list[tuple[str, str]] = []
    for directory, spec in zip(directories, specs, strict=True):
        values = find_values(directory.features, dataset, names, f"{directory.path}, {field}")
        given = tuple(file_values(dataset, directory.name, file.name, field) for file in directory.files)
        tasks += dict.fromkeys((str(item["task"]), directory.path) for item in given if "task" in item)
        plans.append(DirectoryPlan(directory, spec, _scan_fields(directory, spec, values, dataset, field), given))
    check_tasks(tasks, dataset, field)
    listed = dataset.keep.episodes
    list_path = None if listed is None else local_path(listed, base, f"{field}.keep.episodes")
    return EpisodesPlan(dataset, field, tuple(plans), list_path, columns=columns)


def _sums(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    sums = Counter[str]()
    for item in counts:
        sums.update(item)
    return sums


def _scan_fields(
    directory: SourceDirectory, spec: EpisodeSpec, values: EpisodeValues, dataset: EpisodesConfig, field: str
) -> ScanFields:
    """The fields that a scan reads, ``values`` among them. Raises ConfigError if one is absent."""
    features, prefix = directory.features, f"{directory.path}, {field}"
    found: dict[str, Any] = {}
    for path in ("reward", "is_first", "is_last", "is_terminal"):
        found[path] = features.step_scalar(path)
    if found["is_last"] is None:
        raise ConfigError(f"{prefix}: the source has no scalar steps/is_last, which RLDS episodes need")
    if found["reward"] is None:
        _check_no_return(features, dataset, prefix)
    return ScanFields.model_validate({**found, "values": values, "measured": measured_fields(features, spec, dataset)})


def _check_no_return(features: SourceFeatures, dataset: EpisodesConfig, prefix: str) -> None:
    """Raises ConfigError if a rule of the config needs rewards, which the source does not have as a number a step."""
    reward, keep = features.step("reward"), dataset.keep
    has = "has no steps/reward"
    if reward is not None:
        has = f"has a steps/reward that is no number a step ({reward.type_name} of {reward.dtype} {list(reward.shape)})"
    rules = {
        "keep.min_return": keep.min_return is not None,
        "keep.return": keep.returns is not None,
        "keep.success.last_reward": keep.success is not None and keep.success.last_reward is not None,
        "keep.best without by": keep.best is not None and keep.by is None,
    }
    for rule, is_asked in rules.items():
        if is_asked:
            given = "" if "keep" in dataset.model_fields_set else ", the default,"
            raise ConfigError(
                f"{prefix}: the source {has}, and {rule}{given} needs rewards; "
                "write keep: {all: true}, or keep by {success: KEY}, {where: …}, {episodes: …} or {sample: …}"
            )


def check_tasks(tasks: list[tuple[str, str]], dataset: EpisodesConfig, field: str) -> None:
    """Raises ConfigError if two directories give the same task, which ``merge`` allows.

    ``tasks`` are pairs of a task and the path of a directory.
    """
    seen: dict[str, str] = {}
    for task, path in tasks:
        if seen.setdefault(task, path) != path and not dataset.merge:
            raise ConfigError(
                f"{field}: {seen[task]} and {path} both give the task {task!r}; "
                "set merge: true, or narrow source or task"
            )


# --- scan ----------------------------------------------------------------------------------------------------


class ScanFile(BaseModel):
    """A file of the plan: its ordinal among the dataset's files, what the config and its path say of its episodes, and
    the index of its ``ScanFields``."""

    model_config = ConfigDict(frozen=True)

    ordinal: int
    given: dict[str, str | float]
    fields: int
    file: AnyEpisodeFile


class EpisodeUnit(BaseModel):
    """Files of a dataset that are scanned together."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["episodes"] = "episodes"
    dataset: str
    max_episode_bytes: int
    fields: tuple[ScanFields, ...]
    """Each once; ``ScanFile.fields`` is an index into it."""
    columns: dict[str, MetadataType]
    """The columns of values stored with the episodes of the dataset."""
    files: tuple[ScanFile, ...]
    versions: tuple[int, ...]
    """Modification times of the files in nanoseconds: a file that changed is scanned again."""

    @property
    def fingerprint(self) -> str:
        """Names the file with the unit's rows, so that an interrupted scan continues where it stopped."""
        return json_digest(self.model_dump(mode="json"), 8)

    def scan(self, most_bytes: int | None = None) -> pa.Table:
        """Rows (schema ``SCANNED`` and the columns of ``metadata_schema``) in the order of files and positions.

        With ``most_bytes`` the last row is the one with which the stored lengths reach it.
        """
        rows: list[dict[str, Any]] = []
        batch = _Batch(self.fields[0])
        for item, stored in self._stored(most_bytes):
            fields = self.fields[item.fields]
            if batch.fields is not fields:
                batch.finish()
                batch = _Batch(fields)
            losses = {"lost": stored.lost, "lost_bytes": stored.lost_bytes}
            row = {"file": item.ordinal, **losses, **stored.byte_range._asdict(), **item.given}
            _scan_episode(stored, row, self.columns, batch)
            rows.append(row)
        batch.finish()
        return pa.Table.from_pylist(rows, pa.schema([*SCANNED, *metadata_schema(self.columns)]))

    def _stored(self, most_bytes: int | None) -> Iterator[tuple[ScanFile, StoredEpisode]]:
        size = 0
        for item in self.files:
            for stored in item.file.read_all(self.max_episode_bytes):
                yield item, stored
                size += stored.byte_range.length
                if most_bytes is not None and size >= most_bytes:
                    return


class _Batch:
    """Episodes whose rewards and measured values are looked at together, which is far faster than one by one."""

    def __init__(self, fields: ScanFields) -> None:
        self.fields = fields
        self._added: list[tuple[dict[str, Any], int, int, list[np.ndarray]]] = []
        self._size = 0

    def add(self, row: dict[str, Any], steps: int, recorded: int, columns: Sequence[np.ndarray]) -> None:
        """Takes an episode of ``recorded`` > 0 steps, of which ``is_last`` does not mark the first ``steps``.

        ``columns`` are the rewards, if the source has any, and the measured fields, each (N, C). What they give stands
        in ``row`` when ``finish`` has been called.
        """
        before = self._added[-1][3] if self._added else columns
        if self._size > _BATCH_VALUES or any(a.dtype != b.dtype for a, b in zip(before, columns, strict=True)):
            self.finish()
        # Copies, because a view keeps the whole stored episode in memory.
        self._added.append((row, steps, recorded, [values.T.copy() for values in columns]))
        self._size += sum(values.size for values in columns)

    def finish(self) -> None:
        """Completes the rows of all episodes."""
        if not self._added:
            return
        rows, steps, recorded, columns = zip(*self._added, strict=True)
        self._added, self._size = [], 0
        ends = np.cumsum(recorded)
        begins = ends - recorded
        stops = begins + steps
        joined = [np.concatenate(parts, axis=1) for parts in zip(*columns, strict=True)]
        found: dict[str, list[Any]] = {}
        if self.fields.reward is not None:
            found = reward_columns(joined.pop(0), begins, stops, ends)
        measured = self.fields.measured
        actions = [values for values, field in zip(joined, measured, strict=True) if field.is_action]
        found |= {"end_action": looks(actions, begins, ends), **measure(joined, measured, begins, stops, ends)}
        counts = list(zip(rows, steps, recorded, strict=True))
        for name, values in found.items():
            is_end, is_last = name.startswith("end_"), name.startswith("last_")
            for (row, counted, total), value in zip(counts, values, strict=True):
                if not (is_end and counted == total) and not (is_last and not counted):
                    row[name] = value


_BATCH_VALUES = 1 << 17
"""Episodes are looked at when they have more values than this together."""


def _scan_episode(stored: StoredEpisode, row: dict[str, Any], columns: dict[str, MetadataType], batch: _Batch) -> None:
    """Adds task, agent, order, marks, steps, return and metadata of one stored episode to its row, or the reason why it
    has none.

    A column that is left out is null.
    """
    row |= {"return": math.nan, "reason": stored.reason, "detail": stored.detail}
    row.setdefault("order", math.nan)
    episode, fields = stored.value, batch.fields
    if episode is None:
        return
    for name, value in read_metadata(episode, fields.values, columns):
        row[METADATA + name] = value
    try:
        row |= read_values(episode, fields.values)
        is_last = _numbers(episode, fields.is_last)
        is_first, is_terminal = (
            None if field is None else _numbers(episode, field) for field in (fields.is_first, fields.is_terminal)
        )
        row["steps"] = steps = steps_of(is_first, is_last, is_terminal)
        recorded = len(is_last)
        reward = None if fields.reward is None else _numbers(episode, fields.reward)
        has_none = {"return": None}
        row |= has_none if reward is None else {"return": sum_rewards(reward, steps, recorded), "rounding": 0.0}
        measured = measured_columns(episode, fields.measured, recorded)
        if recorded:
            batch.add(row, steps, recorded, measured if reward is None else [reward[:, None], *measured])
    except RejectedError as error:
        row["reason"], row["detail"] = error.reason, error.detail


def steps_of(is_first: np.ndarray | None, is_last: np.ndarray, is_terminal: np.ndarray | None) -> int:
    """Number of steps that ``is_last`` does not mark, given the flags of N steps, (N,) each.

    Raises RejectedError if the lengths differ or the flags contradict each other: an episode begins or ends in the
    middle, or it is over at a step that is not its last.
    """
    recorded = len(is_last)
    for name, flag in (("is_first", is_first), ("is_terminal", is_terminal)):
        if flag is not None and len(flag) != recorded:
            raise RejectedError("malformed_steps", f"{len(flag)} {name} flags and {recorded} is_last flags")
    marks = is_last.nonzero()[0]
    if len(marks) and marks[0] != recorded - 1:
        raise RejectedError("malformed_steps", f"steps follow step {marks[0]}, which is_last marks")
    for step in () if is_first is None else is_first.nonzero()[0]:
        if step:
            raise RejectedError("malformed_steps", f"is_first marks step {step}, which is not the first")
    for step in () if is_terminal is None else is_terminal.nonzero()[0]:
        if not is_last[step]:
            raise RejectedError("malformed_steps", f"is_terminal marks step {step}, which is_last does not mark")
    return recorded - len(marks)


def sum_rewards(reward: np.ndarray, steps: int, recorded: int) -> float:
    """The return of an episode: the float64 sum of the first ``steps`` of its rewards (N,) in step order.

    Raises RejectedError if there are not as many rewards as ``recorded`` steps, or one of the first is not finite.
    """
    if len(reward) != recorded:
        raise RejectedError("malformed_steps", f"{len(reward)} rewards and {recorded} is_last flags")
    counted = reward[:steps].astype(np.float64)
    # Not np.sum, which adds in pairs: its result depends on the length and the NumPy version.
    total = float(np.add.accumulate(counted)[-1]) if steps else 0.0
    if not math.isfinite(total):  # a sum of finite rewards may overflow, which is no fault of a step
        finite = np.isfinite(counted)
        if not finite.all():
            step = int(np.argmin(finite))
            raise RejectedError("not_finite", f"reward is {counted[step]} at step {step}")
    return total


def reward_columns(
    rewards: np.ndarray, begins: np.ndarray, stops: np.ndarray, ends: np.ndarray
) -> dict[str, list[Any]]:
    """The columns of ``SCANNED`` that the rewards of E episodes give, which follow each other, (1, …).

    The steps of an episode that ``is_last`` does not mark go from ``begins`` to ``stops``, the others up to ``ends``,
    each int (E,). What belongs to a step that an episode does not have means nothing.
    """
    rounding = half_ulps(rewards[0])
    return {
        "rounding": reduce_parts(np.add, rounding[None], begins, stops, 0.0)[0].tolist(),
        "last_reward": rewards[0, stops - 1].astype(np.float64).tolist(),
        "last_rounding": rounding[stops - 1].tolist(),
        "end_reward": rewards[0, ends - 1].astype(np.float64).tolist(),
        "end_rounding": rounding[ends - 1].tolist(),
        "end_reward_look": looks([rewards], begins, ends),
    }


_LARGE = 2.0**15
"""Up to here NumPy finds the distance to the next value without a warning, in every type."""


def half_ulps(values: np.ndarray) -> np.ndarray:
    """How far each stored value may be from the one that its recorder had, float64 (N,): half of the distance to the
    next float32 (or float16). Values of other types are exact."""
    if values.dtype.kind != "f" or values.dtype.itemsize > 4:
        return np.zeros(len(values))
    sizes = np.abs(values)
    if len(sizes) and not np.maximum.reduce(sizes) < _LARGE:
        with np.errstate(invalid="ignore", over="ignore"):
            ulps = np.spacing(sizes).astype(np.float64)
        return np.where(np.isfinite(ulps), ulps, 0.0) / 2
    return np.spacing(sizes).astype(np.float64) / 2


def _numbers(episode: RawEpisode, field: SourceField) -> np.ndarray:
    """The values of a field with one number a step, (N,)."""
    values = episode.column(field)
    assert isinstance(values, np.ndarray)
    return values.reshape(len(values))
