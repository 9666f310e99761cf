"""Plans a dataset of episodes: its source directories with their specs, and the units of its scan."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from gatokit.pipelines.episodes.formats import FORMATS
from gatokit.pipelines.episodes.reader import EpisodeFile, SourceDirectory, SourceFeatures
from gatokit.pipelines.episodes.scan import EpisodeUnit, ScanFields, ScanFile, scan_fields
from gatokit.pipelines.episodes.spec import check_rules, episode_spec
from gatokit.pipelines.inputs import find_directories, fixed_part, local_path, local_pattern
from gatokit.schemas.config import EpisodesConfig
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import EpisodeSpec
from gatokit.storage import files


@dataclass(frozen=True)
class DirectoryPlan:
    """A source directory with its task (None if each episode names its own), its spec and what a scan reads of it.

    ``num`` of a discrete action may be open in the spec.
    """

    directory: SourceDirectory
    task: str | None
    spec: EpisodeSpec
    scan_fields: ScanFields


@dataclass(frozen=True)
class EpisodesPlan:
    """A dataset of episodes before its scan; messages call its config ``field``.

    ``list_path`` is the list of episodes to keep, if there is one. ``is_partial`` is set if only a part of the source
    is looked at, so that the list may name episodes that are not found.
    """

    config: EpisodesConfig
    field: str
    files: tuple[EpisodeFile, ...]
    directories: tuple[DirectoryPlan, ...]
    list_path: str | None = None
    is_partial: bool = False
    kind: ClassVar = "episodes"

    @cached_property
    def features(self) -> list[SourceFeatures]:
        """The features of each file."""
        return [plan.directory.features for plan in self.directories for _ in plan.directory.files]

    @cached_property
    def _first_file(self) -> np.ndarray:
        return np.cumsum([0, *(len(plan.directory.files) for plan in self.directories)])

    def file_ordinals(self, scanned: pa.Table) -> np.ndarray:
        """The index into ``files`` of each scanned row, int (R,)."""
        ordinals: np.ndarray = self._first_file[scanned["directory"].to_numpy()] + scanned["file"].to_numpy()
        return ordinals

    def addresses(self, scanned: pa.Table) -> list[str]:
        """The file and position of each scanned row."""
        ordinals, positions = self.file_ordinals(scanned).tolist(), scanned["position"].to_pylist()
        return [f"{self.files[file].name}#{position}" for file, position in zip(ordinals, positions, strict=True)]

    def ids(self, scanned: pa.Table) -> list[str]:
        """The episode id of each scanned row: the configured one, else file and position."""
        addresses = self.addresses(scanned)
        if scanned["id"].null_count == len(scanned):
            return addresses
        ids = scanned["id"].to_pylist()
        return [address if id_ is None else id_ for id_, address in zip(ids, addresses, strict=True)]


def plan_episodes(dataset: EpisodesConfig, field: str, base: Path) -> EpisodesPlan:
    """Finds the source directories of a dataset and derives their specs. Relative paths start at ``base``.

    Raises ConfigError or DataError if the sources cannot be used.
    """
    pattern = local_pattern(dataset.source, base, f"{field}.source")
    below = fixed_part(pattern)
    directories = [
        FORMATS[found.marker].read_directory(found.path, found.name, below, dataset.splits)
        for found in find_directories(pattern, tuple(FORMATS), f"{field}.source")
    ]
    check_rules(dataset, [directory.features for directory in directories], field)
    plans = [_plan_directory(directory, dataset, field) for directory in directories]
    check_tasks([(plan.task, plan.directory.path) for plan in plans if plan.task is not None], dataset, field)
    listed = dataset.keep.episodes
    return EpisodesPlan(
        config=dataset,
        field=field,
        files=tuple(file for directory in directories for file in directory.files),
        directories=tuple(plans),
        list_path=None if listed is None else local_path(listed, base, f"{field}.keep.episodes"),
    )


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
    return DirectoryPlan(
        directory, task, spec, scan_fields(directory.features, keys, counted, f"{directory.path}, {field}")
    )


def check_tasks(tasks: list[tuple[str, str]], dataset: EpisodesConfig, field: str) -> None:
    """Raises ConfigError if two directories give the same task, which ``merge`` allows.

    ``tasks`` are pairs of a task and the path of a directory.
    """
    seen: dict[str, str] = {}
    for task, path in tasks:
        if task in seen and seen[task] != path and not dataset.merge:
            raise ConfigError(
                f"{field}: {seen[task]} and {path} both give the task {task!r}; "
                "set merge: true, or narrow source or task"
            )
        seen.setdefault(task, path)


def scan_units(plan: EpisodesPlan, max_bytes: int, unit_bytes: int) -> list[EpisodeUnit]:
    """Groups the files, in order, into units of about ``unit_bytes``. Episodes above ``max_bytes`` will be rejected."""
    units: list[EpisodeUnit] = []
    group: list[tuple[DirectoryPlan, ScanFile]] = []
    size = 0
    for ordinal, directory in enumerate(plan.directories):
        for number, file in enumerate(directory.directory.files):
            if group and size + file.size > unit_bytes:
                units.append(_scan_unit(plan.config.name, group, max_bytes))
                group, size = [], 0
            item = ScanFile(directory=ordinal, ordinal=number, task=directory.task, fields=0, file=file)
            group.append((directory, item))
            size += file.size
    if group:
        units.append(_scan_unit(plan.config.name, group, max_bytes))
    return units


def _scan_unit(dataset: str, group: list[tuple[DirectoryPlan, ScanFile]], max_bytes: int) -> EpisodeUnit:
    fields = list(dict.fromkeys(directory.scan_fields for directory, _ in group))
    items = [item.model_copy(update={"fields": fields.index(directory.scan_fields)}) for directory, item in group]
    return EpisodeUnit(
        dataset=dataset,
        max_episode_bytes=max_bytes,
        fields=tuple(fields),
        files=tuple(items),
        versions=tuple(files.version(item.file.path) for item in items),
    )
