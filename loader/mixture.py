"""Several finished builds as one mixture of datasets, checked before any work begins."""

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gatokit.loader.index import EpisodeIndex, load_index
from gatokit.loader.records import Shard
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.index import TRAIN
from gatokit.schemas.manifest import (
    DatasetEntry,
    DatasetFile,
    EpisodeSpec,
    Manifest,
    TokenizerSettings,
    digest,
    json_digest,
    local_directory,
)
from gatokit.storage.cache import cached_shards

EPISODES = "episodes"
_PAIRS = frozenset(("image_text", "image_question_answer"))
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")


@dataclass(frozen=True)
class MixedDataset:
    """A dataset of a mixture: its ``name`` there, its ``weight`` before normalization, and its folder ``path``."""

    name: str
    weight: float
    path: Path
    totals: DatasetEntry
    config: dict[str, Any]
    """The dataset's part of the build's config."""
    shards: tuple[Shard, ...]
    """In the manifest's order."""

    @property
    def holds_episodes(self) -> bool:
        """Whether it holds episodes of tasks, not documents."""
        return self.totals.kind == EPISODES

    @property
    def pairs(self) -> int | None:
        """Pairs of image and text in a window (Gato, section 2.3); None if the dataset holds no such pairs."""
        return int(self.config["pairs_per_sequence"]) if self.totals.kind in _PAIRS else None

    @cached_property
    def described(self) -> DatasetFile:
        """``dataset.json``: the specs of the tasks, or the rules of the documents."""
        return DatasetFile.read(self.path / self.totals.described_file)

    @property
    def specs(self) -> dict[str, EpisodeSpec]:
        """The spec of each task; empty for documents."""
        return {task: self.described.specs[entry.spec] for task, entry in self.described.tasks.items()}

    @property
    def has_images(self) -> bool:
        """Whether episodes or documents may hold images."""
        rules = self.described.documents
        in_documents = rules is not None and rules.pictures is not None
        return in_documents or any(
            field.kind == "image" for spec in self.described.specs.values() for field in spec.fields
        )

    def records(self, split: str) -> int:
        """Number of records of ``train`` or ``held_out``."""
        return self.totals.training if split == TRAIN else self.totals.held_out

    def index(self, split: str) -> EpisodeIndex:
        """The kept episodes of ``train`` or ``held_out``, which are loaded once."""
        if split not in self._indexes:
            splits = self.totals.splits
            first_shards = np.cumsum([0, *(len(item.parts) for item in splits)])[:-1].tolist()
            self._indexes[split] = load_index([str(self.path / item.index) for item in splits], first_shards, split)
        return self._indexes[split]

    @cached_property
    def _indexes(self) -> dict[str, EpisodeIndex]:
        return {}


@dataclass(frozen=True)
class Mixture:
    """The datasets that a run draws from; ``open_mixture`` opens one.

    All were built with the same vocabulary and the same tokenizer settings.
    """

    directories: tuple[str, ...]
    """The arguments of ``open_mixture``, ``DIR`` or ``NAME=DIR``."""
    given_weights: Mapping[str, float] | None
    """The argument of ``open_mixture``."""
    datasets: tuple[MixedDataset, ...]
    tokenizer: TokenizerSettings
    vocabulary: bytes
    """The SentencePiece model."""
    vocabulary_digest: str
    """BLAKE2b of the SentencePiece model."""
    manifest_digests: tuple[str, ...]
    """Of the directories."""

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
        """Digest of everything but the config that the windows of a run depend on."""
        return json_digest(
            {"builds": list(self.manifest_digests), "names": self.names, "weights": self.weights.tolist()}
        )

    def with_records(self, split: str) -> tuple[str, ...]:
        """Names of the datasets that have records of ``train`` or ``held_out``."""
        return tuple(dataset.name for dataset in self.datasets if dataset.records(split))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_mixture, (self.directories, self.given_weights)


class _Build(NamedTuple):
    """A directory of the mixture; the names of its datasets begin with ``prefix``."""

    argument: str
    prefix: str
    path: Path
    manifest: Manifest


def open_mixture(directories: Sequence[str | os.PathLike[str]], weights: Mapping[str, float] | None = None) -> Mixture:
    """The datasets of finished builds, mixed by ``weights`` (default: the weights of the builds).

    Each directory is ``DIR``, or ``NAME=DIR``, which names its datasets ``NAME/dataset``. A dataset without a weight is
    left out. Raises ConfigError if directories cannot be mixed or a name is unknown, DataError if a directory is not
    complete, has a newer format, or lacks a shard.
    """
    if not directories:
        raise ConfigError("there is no directory to train from: give one with --data")
    builds = [_open_build(os.fspath(argument)) for argument in directories]
    for build in builds[1:]:
        _check_same_tokens(builds[0], build)
    known: dict[str, MixedDataset] = {}
    for build in builds:
        for dataset in _datasets(build):
            if dataset.name in known:
                raise ConfigError(
                    f"{build.path} and {known[dataset.name].path.parent} both have a dataset {dataset.name}: "
                    f"name one of the directories, such as new={build.path}"
                )
            known[dataset.name] = dataset
    vocabulary, vocabulary_digest = _read_vocabulary(builds[0])
    datasets = _weighted(known, weights)
    for dataset in datasets:
        _check_files(dataset)
    return Mixture(
        directories=tuple(build.argument for build in builds),
        given_weights=weights,
        datasets=tuple(datasets),
        tokenizer=builds[0].manifest.tokenizer,
        vocabulary=vocabulary,
        vocabulary_digest=vocabulary_digest,
        manifest_digests=tuple(build.manifest.digest for build in builds),
    )


def _open_build(argument: str) -> _Build:
    """Reads the manifest of ``DIR`` or ``NAME=DIR``."""
    named = None if os.path.isdir(argument) else _NAMED.fullmatch(argument)
    prefix, path = ("", argument) if named is None else (f"{named[1]}/", named[2])
    manifest = Manifest.read(local_directory(path))
    if manifest.content != "build":
        raise ConfigError(f"{path} is a scan, which stores no tokens: train from what gatokit build made")
    return _Build(argument, prefix, Path(path), manifest)


def _datasets(build: _Build) -> Iterator[MixedDataset]:
    """The datasets of a build, with the build's weights."""
    configs = {config["name"]: config for config in build.manifest.config["datasets"]}
    remote = cached_shards(build.path, build.manifest)
    for totals in build.manifest.datasets:
        folder = build.path / totals.directory
        parts = [part for split in totals.splits for part in split.parts]
        yield MixedDataset(
            name=build.prefix + totals.name,
            weight=totals.weight,
            path=folder,
            totals=totals,
            config=configs[totals.name],
            shards=tuple(
                Shard(
                    path=str(folder / part.file),
                    training=part.training,
                    held_out=part.held_out,
                    remote=remote.get(folder / part.file),
                )
                for part in parts
            ),
        )


def _read_vocabulary(build: _Build) -> tuple[bytes, str]:
    """The SentencePiece model and its digest. Raises DataError if it is not the one of the manifest."""
    assert build.manifest.vocabulary is not None
    path = build.path / build.manifest.vocabulary.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; gatokit verify says what else is damaged") from None
    if digest(content) != build.manifest.vocabulary.blake2b:
        raise DataError(f"{path} is not the model that the tokens were made with")
    return content, build.manifest.vocabulary.blake2b


def _weighted(known: dict[str, MixedDataset], weights: Mapping[str, float] | None) -> list[MixedDataset]:
    """The datasets with a weight above 0, with that weight. Raises ConfigError for a wrong weight or name."""
    for name in weights or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            instead = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
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


def _check_same_tokens(first: _Build, other: _Build) -> None:
    """Raises ConfigError if a token id does not mean the same in both builds."""
    assert first.manifest.vocabulary is not None
    assert other.manifest.vocabulary is not None
    ours, theirs = first.manifest.tokenizer, other.manifest.tokenizer
    for name, our_value, their_value in (
        ("discrete_offset", ours.discrete_offset, theirs.discrete_offset),
        ("separator", ours.separator, theirs.separator),
        ("vocabulary_size", ours.vocabulary_size, theirs.vocabulary_size),
        ("vocabulary", first.manifest.vocabulary.blake2b[:16], other.manifest.vocabulary.blake2b[:16]),
    ):
        if our_value != their_value:
            raise ConfigError(
                f"{other.argument} was built with {name} {their_value} and {first.argument} with {our_value}, so their "
                "tokens do not mean the same: build one of them again with the other's settings"
            )


def _check_files(dataset: MixedDataset) -> None:
    """Raises DataError if a shard is missing or its size is not the one of the manifest. Opens no shard."""
    parts = [part for split in dataset.totals.splits for part in split.parts]
    for shard, part in zip(dataset.shards, parts, strict=True):
        if shard.remote is not None:  # it is downloaded when it is opened
            continue
        try:
            size = os.stat(shard.path).st_size
        except OSError as error:
            raise DataError(
                f"the shard {shard.path} cannot be read: {error.strerror}; gatokit verify says what else is missing"
            ) from None
        if size != part.size:
            raise DataError(
                f"the shard {shard.path} has {size} bytes and the manifest says {part.size}; "
                "gatokit verify says what else is damaged"
            )
