"""Several finished builds as one mixture of datasets, checked before any work begins, and the indexes of its episodes.

Legend: E episodes, N records of them, R runs.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.loader.records import Shard
from gatokit.schemas.errors import ConfigError, DataError, MalformedError
from gatokit.schemas.index import TRAIN
from gatokit.schemas.manifest import (
    MANIFEST,
    DatasetEntry,
    DatasetFile,
    Manifest,
    SplitEntry,
    TokenizerSettings,
    digest,
    json_digest,
    local_directory,
)
from gatokit.schemas.untrusted import quoted
from gatokit.schemas.words import did_you_mean
from gatokit.storage.cache import MARKER, cached_shards
from gatokit.storage.folder import listed_file, listed_size, read_file, read_listed_dataset, read_manifest, regular_file
from gatokit.storage.index import check_columns, check_places, index_schema, read_tasks

RECORD_RANGE = np.dtype([("shard", np.int64), ("first", np.int64), ("stop", np.int64), ("skip", np.int64)])
"""Records [first, stop) of a shard, without the first ``skip`` tokens of the first record."""

_PAIRS = frozenset(("image_text", "image_question_answer"))
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")
_COLUMNS = ["task", "agent", "split", "steps", "part", "first_record", "record_tokens"]


# --- datasets ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MixedDataset:
    """A dataset of a mixture: its ``name`` there, its ``weight`` before normalization, and its folder ``path``."""

    name: str
    weight: float
    path: Path
    manifest: Manifest = field(repr=False, compare=False)
    """Of its build."""
    totals: DatasetEntry
    config: dict[str, Any]
    """The dataset's part of the build's config."""
    shards: tuple[Shard, ...]
    """In the manifest's order."""
    _indexes: dict[str, "EpisodeIndex"] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def holds_episodes(self) -> bool:
        """Whether it holds episodes of tasks, not documents."""
        return self.totals.kind == "episodes"

    @property
    def pairs(self) -> int | None:
        """Pairs of image and text in a window (Gato, section 2.3); None if the dataset holds no such pairs."""
        if self.totals.kind not in _PAIRS:
            return None
        pairs = self.config.get("pairs_per_sequence")
        if not isinstance(pairs, int) or pairs < 1:
            place = f"{self.path.parent / MANIFEST}: config of the dataset {self.totals.name}"
            raise MalformedError(f"{place}: pairs_per_sequence is {quoted(pairs)}, not a number above 0")
        return pairs

    @cached_property
    def described(self) -> DatasetFile:
        """``dataset.json``: the specs of the tasks, or the rules of the documents."""
        return read_listed_dataset(self.path.parent, self.manifest, self.totals)

    def records(self, split: str) -> int:
        """Number of records of ``train`` or ``held_out``."""
        return self.totals.training if split == TRAIN else self.totals.held_out

    def index(self, split: str) -> "EpisodeIndex":
        """The kept episodes of ``train`` or ``held_out``, which are loaded once."""
        if split not in self._indexes:
            self._indexes[split] = load_index(list(self._index_files()), split)
        return self._indexes[split]

    def best_episodes(self, most: int) -> dict[str, list[dict[str, Any]]]:
        """By task the index rows of the ``most`` training episodes of the highest returns, best first, of equal ones
        the first, with ``shard``, the ordinal of the shard, and ``expert_return``, that of the task; empty for
        documents. Raises DataError if an index or the table of tasks cannot be read."""
        best: dict[str, list[dict[str, Any]]] = {}
        experts = self._expert_returns() if self.holds_episodes else {}
        for file in self._index_files() if self.holds_episodes else ():
            table = _read_index(file, ["episode_id", "return", *_COLUMNS], TRAIN)
            _, tasks = _codes(table["task"])
            order = np.lexsort((-table["return"].to_numpy(), tasks))
            starts = np.flatnonzero(np.diff(tasks[order], prepend=-1))
            rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
            for episode in table.take(order[rank < most]).to_pylist():
                more = {"shard": file.first_shard + episode["part"], "expert_return": experts.get(episode["task"])}
                best.setdefault(episode["task"], []).append(episode | more)
        # Without rewards the first one is as good as any.
        return {task: sorted(rows, key=lambda row: -(row["return"] or 0.0))[:most] for task, rows in best.items()}

    def _expert_returns(self) -> dict[str, float | None]:
        table = read_tasks(self._file(self.totals.tasks_file))
        return dict(zip(table["task"].to_pylist(), table["expert_return"].to_pylist(), strict=True))

    def _index_files(self) -> "Iterator[IndexFile]":
        """The index of each source split."""
        first_shard = 0
        for split in self.totals.splits:
            yield IndexFile(self._file(split.index), first_shard, split)
            first_shard += len(split.parts)

    def _file(self, name: str) -> Path:
        """The path of a file in the dataset's folder. Raises DataError if it is missing or another than the manifest
        says."""
        try:
            return listed_file(self.path.parent, self.manifest, f"{self.totals.directory}/{name}")
        except OSError as error:
            raise DataError(f"{self.path / name} cannot be read: {error.strerror}; gatokit verify says more") from None


@dataclass(frozen=True)
class Mixture:
    """The datasets that a run draws from; ``open_mixture`` opens one.

    All were built with the same tokenizer settings, and those that have text with the same vocabulary.
    """

    directories: tuple[str, ...]
    """The arguments of ``open_mixture``, ``DIR`` or ``NAME=DIR``."""
    given_weights: Mapping[str, float] | None
    """The argument of ``open_mixture``."""
    datasets: tuple[MixedDataset, ...]
    tokenizer: TokenizerSettings
    vocabulary: bytes | None
    """The SentencePiece model; None if no dataset has text."""
    vocabulary_digest: str | None
    """BLAKE2b of the SentencePiece model."""
    data_digests: tuple[str, ...]
    """Of the directories: ``Manifest.data_digest``, or the digest of a manifest that has none (format 1)."""
    has_data_digests: tuple[bool, ...]
    """Which of them are ``Manifest.data_digest``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the datasets, in the order in which a batch numbers them."""
        return tuple(dataset.name for dataset in self.datasets)

    @property
    def weights(self) -> np.ndarray:
        """Share of windows by dataset, float64; the sum is 1."""
        weights = np.array([dataset.weight for dataset in self.datasets])
        return weights / weights.sum()

    @property
    def data_digest(self) -> str:
        """Digest of everything but the config that the windows of a run depend on: the shards of the builds, and the
        names, weights and ``pairs`` of the datasets. Of builds of format 1 the digests of their manifests count."""
        content = {"builds": list(self.data_digests), "names": self.names, "weights": self.weights.tolist()}
        if any(self.has_data_digests):
            content["pairs"] = [dataset.pairs for dataset in self.datasets]
        return json_digest(content)

    def with_records(self, split: str) -> tuple[str, ...]:
        """Names of the datasets that have records of ``train`` or ``held_out``."""
        return tuple(dataset.name for dataset in self.datasets if dataset.records(split))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_mixture, (self.directories, self.given_weights)


def open_mixture(directories: Sequence[str | os.PathLike[str]], weights: Mapping[str, float] | None = None) -> Mixture:
    """The datasets of finished builds, mixed by ``weights`` (default: the weights of the builds).

    Each directory is ``DIR``, or ``NAME=DIR``, which names its datasets ``NAME/dataset``. A dataset without a weight is
    left out. Raises ConfigError if directories cannot be mixed or a name is unknown, DataError if a directory is not
    complete, has a newer format, or lacks a shard.
    """
    if not directories:
        raise ConfigError("there is no directory to train from: give one with --data")
    arguments = [os.fspath(directory) for directory in directories]
    manifests: list[Manifest] = []
    paths: list[Path] = []
    known: dict[str, MixedDataset] = {}
    for argument in arguments:
        named = None if os.path.isdir(argument) else _NAMED.fullmatch(argument)
        prefix, directory = ("", argument) if named is None else (f"{named[1]}/", named[2])
        manifest, path = read_manifest(local_directory(directory)), Path(directory)
        if manifest.content != "build":
            raise ConfigError(f"{path} is a scan, which stores no tokens: train from what gatokit build made")
        for other, before in zip(arguments, manifests, strict=False):
            _check_same_tokens(other, before, argument, manifest)
        for dataset in _datasets(path, manifest):
            name = prefix + dataset.name
            if name in known:
                raise ConfigError(
                    f"{path} and {known[name].path.parent} both have a dataset {name}: "
                    f"name one of the directories, such as new={path}"
                )
            known[name] = replace(dataset, name=name)
        manifests.append(manifest)
        paths.append(path)
    models = (_read_vocabulary(path, manifest) for path, manifest in zip(paths, manifests, strict=True))
    vocabulary = next((model for model in models if model is not None), None)
    datasets = _weighted(known, weights)
    for dataset in datasets:
        _check_files(dataset)
    return Mixture(
        directories=tuple(arguments),
        given_weights=weights,
        datasets=tuple(datasets),
        tokenizer=manifests[0].tokenizer,
        vocabulary=vocabulary,
        vocabulary_digest=None if vocabulary is None else digest(vocabulary),
        data_digests=tuple(manifest.data_digest or manifest.digest for manifest in manifests),
        has_data_digests=tuple(bool(manifest.data_digest) for manifest in manifests),
    )


def _check_same_tokens(first: str, first_manifest: Manifest, other: str, other_manifest: Manifest) -> None:
    """Raises ConfigError if a token id does not mean the same in both builds.

    A build without a vocabulary has no text.
    """
    ours, theirs = (
        manifest.tokenizer.model_dump(exclude={"chunk_tokens"})
        | {"vocabulary": manifest.vocabulary and manifest.vocabulary.blake2b[:16]}
        for manifest in (first_manifest, other_manifest)
    )
    for name in ours:
        if ours[name] != theirs[name] and None not in (ours[name], theirs[name]):
            raise ConfigError(
                f"{other} was built with {name} {theirs[name]} and {first} with {ours[name]}, so their tokens do not "
                "mean the same: build one of them again with the other's settings"
            )


def _datasets(path: Path, manifest: Manifest) -> Iterator[MixedDataset]:
    """The datasets of a build, with the build's weights."""
    configs = manifest.dataset_configs
    cached = cached_shards(path, manifest) if (path / MARKER).exists() else {}
    for totals in manifest.datasets:
        folder = path / totals.directory
        shards = (
            Shard(str(folder / part.file), part.training, part.held_out, cached.get(folder / part.file))
            for split in totals.splits
            for part in split.parts
        )
        yield MixedDataset(totals.name, totals.weight, folder, manifest, totals, configs[totals.name], tuple(shards))


def _read_vocabulary(directory: Path, manifest: Manifest) -> bytes | None:
    """The SentencePiece model; None if there is none. Raises DataError if it is not the one of the manifest."""
    if manifest.vocabulary is None:
        return None
    name = manifest.vocabulary.file
    path = directory / name
    try:
        content = read_file(directory, name, listed_size(directory, manifest, name))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; gatokit verify says what else is damaged") from None
    if digest(content) != manifest.vocabulary.blake2b:
        raise DataError(f"{path} is not the model that the tokens were made with")
    return content


def _weighted(known: dict[str, MixedDataset], weights: Mapping[str, float] | None) -> list[MixedDataset]:
    """The datasets with a weight above 0, with that weight. Raises ConfigError for a wrong weight or name."""
    for name in weights or ():
        if name not in known:
            instead = did_you_mean(name, known) or f"there are {', '.join(known)}"
            raise ConfigError(f"input.weights.{name}: no directory has a dataset of this name; {instead}")
    datasets = []
    for name, dataset in known.items():
        weight = dataset.weight if weights is None else weights.get(name, 0)
        if weight <= 0:
            continue
        if not math.isfinite(weight):
            raise ConfigError(f"input.weights.{name}: a weight is a finite number, not {weight}")
        if not dataset.totals.training:
            raise ConfigError(
                f"{dataset.path} keeps nothing for training: leave {name} out by listing the others in input.weights"
            )
        datasets.append(replace(dataset, weight=weight))
    if not datasets:
        raise ConfigError(f"input.weights: no dataset has a weight above 0; there are {', '.join(known)}")
    return datasets


def _check_files(dataset: MixedDataset) -> None:
    """Raises DataError if a shard is missing or its size is not the one of the manifest, MalformedError if the shards
    have other records together than the dataset. Opens no shard."""
    parts = [part for split in dataset.totals.splits for part in split.parts]
    for name in ("training", "held_out"):
        stated, found = getattr(dataset.totals, name), sum(getattr(part, name) for part in parts)
        if stated != found:
            raise MalformedError(
                f"{dataset.path.parent / MANIFEST}: {dataset.name} has {stated:,} {name} records and its shards have "
                f"{found:,}; gatokit verify says more"
            )
    for shard, part in zip(dataset.shards, parts, strict=True):
        if shard.remote is not None:  # it is downloaded when it is opened
            continue
        try:
            regular_file(dataset.path.parent, f"{dataset.totals.directory}/{part.file}", part.size)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            raise DataError(f"the shard {shard.path} {problem}; gatokit verify says what else is damaged") from None


# --- indexes of episodes -----------------------------------------------------------------------------------------


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


class IndexFile(NamedTuple):
    """The index of a source split, and the ordinal of the split's first shard among the dataset's."""

    path: Path
    first_shard: int
    split: SplitEntry


def load_index(files: Sequence[IndexFile], split: str) -> EpisodeIndex:
    """The kept episodes of one split (``train`` or ``held_out``) of a dataset, from its indexes. Raises DataError if
    one cannot be read or is wrong."""
    runs = [run for file in files for run in _read_runs(file, split)]
    runs.sort(key=lambda run: run[:3])
    run_begin = np.cumsum([0, *(len(run.steps) for run in runs)])
    new_task = [at for at, run in enumerate(runs) if at == 0 or run.task != runs[at - 1].task]
    new_group = [at for at, run in enumerate(runs) if at == 0 or run[:2] != runs[at - 1][:2]]
    none = np.zeros(0, np.uint32)
    index = EpisodeIndex(
        tasks=tuple(runs[at].task for at in new_task),
        task_begin=run_begin[[*new_task, len(runs)]],
        agents=tuple(runs[at].agent for at in new_group),
        group_begin=run_begin[[*new_group, len(runs)]],
        run_shard=np.array([run.shard for run in runs], np.int32),
        run_begin=run_begin,
        first_record=np.concatenate([none, *(run.first_record for run in runs)]),
        steps=np.concatenate([none, *(run.steps for run in runs)]),
        record_begin=_running_sums([none, *(run.records for run in runs)]),
        token_end=_running_sums([none, *(run.record_tokens for run in runs)]),
    )
    # Arrow would keep the memory of the tables for its next read.
    del runs
    pa.default_memory_pool().release_unused()
    return index


def _read_runs(file: IndexFile, split: str) -> Iterator[_Run]:
    """The runs of one index file."""
    table = _read_index(file, _COLUMNS, split)
    (tasks, task), (agents, agent) = _codes(table["task"]), _codes(table["agent"])
    part, first = (table[name].to_numpy() for name in ("part", "first_record"))
    order = np.lexsort((first, part, agent, task))
    if not np.array_equal(order, np.arange(len(order))):
        table = table.take(order)
        task, agent, part, first = task[order], agent[order], part[order], first[order]
    lists = table["record_tokens"].combine_chunks()
    ends, tokens = lists.offsets.to_numpy(), lists.values.to_numpy()
    steps, records = table["steps"].to_numpy().astype(np.uint32), np.diff(ends).astype(np.uint32)
    first = first.astype(np.uint32)
    is_new = [np.diff(values, prepend=-1) != 0 for values in (task, agent, part)]
    for begin, end in pairwise([*np.flatnonzero(np.any(is_new, axis=0)).tolist(), len(order)]):
        yield _Run(
            task=tasks[task[begin]],
            agent=agents[agent[begin]],
            shard=file.first_shard + int(part[begin]),
            first_record=first[begin:end],
            steps=steps[begin:end],
            records=records[begin:end],
            record_tokens=tokens[ends[begin] : ends[end]],
        )


def _read_index(file: IndexFile, columns: list[str], split: str) -> pa.Table:
    """The rows of one split of an index file. Raises DataError if it cannot be read or is wrong."""
    names = index_schema(file.path, file.split.rows, None).names
    for name in columns:
        if name not in names:
            raise MalformedError(f"the index {file.path} has no column {name}; gatokit verify says more")
    try:
        with pq.ParquetFile(file.path, read_dictionary=["task", "agent", "split"]) as opened:
            table = opened.read(columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the index {file.path} cannot be read: {error}; gatokit verify says more") from None
    table = table.filter(pc.equal(table["split"], split))
    check_columns(table, file.path)
    check_places(table, file.split.parts, file.path)
    return table


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The distinct strings of a column, sorted, and the ordinal of each row's string among them."""
    strings = pc.fill_null(column.cast(pa.string()), "").combine_chunks()
    names = pc.unique(strings)
    names = names.take(pc.sort_indices(names))
    return names.to_pylist(), pc.index_in(strings, names).to_numpy()


def _running_sums(arrays: list[np.ndarray]) -> np.ndarray:
    """The sums of the first 0, 1, 2, … numbers of the arrays joined, int64."""
    sums = np.zeros(sum(map(len, arrays)) + 1, np.int64)
    np.concatenate(arrays, out=sums[1:])
    return np.cumsum(sums, out=sums)
