"""Plans a dataset of episodes: its source directories with their specs, and what a scan reads of each file. After the
scan, the spec of each task."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from gatokit.pipelines.episodes.ranges import Measurements, data_ranges, measured_fields
from gatokit.pipelines.episodes.reader import EpisodeFile, SourceDirectory, SourceFeatures
from gatokit.pipelines.episodes.scan import FORMATS, EpisodeUnit, ScanFields, ScanFile
from gatokit.pipelines.episodes.spec import episode_specs
from gatokit.pipelines.episodes.values import EpisodeValues, check_columns, file_values, find_values, index_columns
from gatokit.pipelines.inputs import find_directories, fixed_part, local_path, local_pattern
from gatokit.pipelines.scan_cache import unit_keys
from gatokit.pipelines.versions import code_digest, packages
from gatokit.schemas.config_episodes import EpisodesConfig
from gatokit.schemas.errors import ConfigError, ConfigErrors, DataError
from gatokit.schemas.manifest import EpisodeSpec, MetadataType, json_digest
from gatokit.schemas.tokens import DISCRETE_VALUES
from gatokit.storage import files

_MOST_PAIRS = 16


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

    @cached_property
    def versions(self) -> list[int]:
        """``files.version`` of each file."""
        return [files.version(file.path) for file in self.files]

    def task_of(self, ordinal: int) -> str | None:
        """The task of all episodes of a file; None if each names its own, or if the range of an action follows from all
        episodes of the source."""
        fields = self.directories[self.directory_of[ordinal]].spec.fields
        needs_all = any(field.is_action and field.kind == "continuous" and field.range is None for field in fields)
        task = self.given[ordinal].get("task")
        return None if task is None or needs_all else str(task)

    def keys(self, max_bytes: int) -> list[str]:
        """For each file a digest of all that its scanned rows depend on."""
        if max_bytes not in self._keys:
            self._keys[max_bytes] = self._made_keys(max_bytes)
        return self._keys[max_bytes]

    @cached_property
    def _keys(self) -> dict[int, list[str]]:
        return {}

    def _made_keys(self, max_bytes: int) -> list[str]:
        common = [max_bytes, self.columns, code_digest(self.kind), packages()]
        fields = [
            json_digest([common, directory.scan_fields.model_dump(mode="json")]) for directory in self.directories
        ]
        return [
            json_digest([fields[directory], given, file.model_dump(mode="json"), version], 16)
            for directory, given, file, version in zip(
                self.directory_of.tolist(), self.given, self.files, self.versions, strict=True
            )
        ]

    def scan_unit(self, ordinals: Sequence[int], max_bytes: int, most_rows: int | None = None) -> "EpisodeUnit":
        """These of the files as a unit of the scan. Episodes above ``max_bytes`` will be rejected. The unit ends with
        its row ``most_rows``, if that is given."""
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
            keys=unit_keys(self.keys(max_bytes), ordinals, most_rows),
            most_rows=most_rows,
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
    names, columns = index_columns([directory.features for directory in directories])
    errors, found = ConfigErrors(), []
    with errors.collect("fields"):
        specs = episode_specs(directories, dataset, field)
    check_columns(dataset, columns, field, errors)
    for directory in directories:
        prefix = f"{directory.path}, {field}"
        values = find_values(directory.features, dataset, names, prefix, errors)
        given = tuple(file_values(dataset, directory.name, file.name, field, errors) for file in directory.files)
        found.append((values, given))
        _check_steps(directory.features, dataset, prefix, errors)
    errors.check()
    plans: list[DirectoryPlan] = []
    tasks: list[tuple[str, str]] = []
    for directory, spec, (values, given) in zip(directories, specs, found, strict=True):
        tasks += dict.fromkeys((str(item["task"]), directory.path) for item in given if "task" in item)
        plans.append(DirectoryPlan(directory, spec, _scan_fields(directory.features, spec, values, dataset), given))
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
    features: SourceFeatures, spec: EpisodeSpec, values: EpisodeValues, dataset: EpisodesConfig
) -> ScanFields:
    """The fields that a scan reads, ``values`` among them."""
    found = {path: features.step_scalar(path) for path in ("reward", "is_first", "is_last", "is_terminal")}
    return ScanFields.model_validate({**found, "values": values, "measured": measured_fields(features, spec, dataset)})


def _check_steps(features: SourceFeatures, dataset: EpisodesConfig, prefix: str, errors: ConfigErrors) -> None:
    """Collects ConfigError if the steps lack the flag that ends an episode, or rewards that a rule needs."""
    with errors.collect("is_last"):
        if features.step_scalar("is_last") is None:
            raise ConfigError(f"{prefix}: the source has no scalar steps/is_last, which RLDS episodes need")
    with errors.collect("reward"):
        if features.step_scalar("reward") is None:
            _check_no_return(features, dataset, prefix)


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


# --- after the scan ----------------------------------------------------------------------------------------------


def task_specs(
    plan: EpisodesPlan, directories_of: Mapping[str, Sequence[int]], measured: Measurements
) -> tuple[dict[str, EpisodeSpec], list[str]]:
    """The spec of each task, and notices; ``directories_of`` has the ordinals of a task's directories.

    What the source and the config leave open is counted: the number of values of a discrete action, and the range of a
    continuous one. Raises ConfigError if a task has other fields in another directory.
    """
    specs, owners = {}, []
    counts: dict[tuple[str, int], list[str]] = {}
    highest = measured.highest()
    of_data = data_ranges(measured, plan.config)
    for task, numbers in directories_of.items():
        directories = [plan.directories[number] for number in numbers]
        owners += [(task, item.directory.path) for item in directories]
        first = directories[0]
        for other in directories[1:]:
            if other.spec != first.spec:
                left, right = ({field.path: field for field in item.spec.fields} for item in (first, other))
                differing = sorted(path for path in left.keys() | right.keys() if left.get(path) != right.get(path))
                raise ConfigError(
                    f"{plan.field}: task {task!r} has other fields in {other.directory.path} than in "
                    f"{first.directory.path} ({', '.join(differing)}); give them different tasks or equal fields"
                )
        fields = []
        for field in first.spec.fields:
            if field.is_action and field.kind == "discrete" and field.num is None:
                value = int(highest.get((task, field.path), 0)) - field.offset
                num = min(DISCRETE_VALUES, max(1, value + 1))
                counts.setdefault((field.source[0] if field.source else field.path, num), []).append(task)
                field = field.model_copy(update={"num": num})
            elif field.is_action and field.kind == "continuous" and field.range is None:
                pairs = of_data.get((field.path, math.prod(field.shape)))
                if pairs is None:
                    raise ConfigError(
                        f"{plan.field}: the range of {field.path} cannot be counted; give {{range: [low, high]}}"
                    )
                field = field.model_copy(update={"range": pairs})
            fields.append(field)
        specs[task] = EpisodeSpec(fields=tuple(fields))
    if plan.config.task.metadata is not None or plan.config.task.field is not None:
        check_tasks(owners, plan.config, plan.field)
    notices = [
        f"{plan.config.name}: {path} is taken to have {num} values, the largest seen plus one, in "
        f"{tasks[0] if len(tasks) == 1 else f'{len(tasks)} tasks'}; state it as {plan.field}.fields: "
        f"{{{path}: {{num: {num}}}}}"
        for (path, num), tasks in counts.items()
    ]
    for (path, _), pairs in of_data.items():
        shown = ", ".join(f"[{low:g}, {high:g}]" for low, high in pairs[:_MOST_PAIRS])
        more = ", …" if len(pairs) > _MOST_PAIRS else ""
        notices.append(f"{plan.config.name}: the data give {path} the range [{shown}{more}]")
    return specs, notices
