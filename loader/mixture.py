"""Several built directories as one mixture of datasets, checked before any work begins."""

import difflib
import functools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gatokit.loader.index import EpisodeIndex, load_index
from gatokit.loader.records import Shard
from gatokit.loader.remote import Remote, source_of
from gatokit.schemas.digests import digest, json_digest
from gatokit.schemas.episode import EpisodeSpec
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.index import TRAIN
from gatokit.schemas.manifest import DatasetEntry, DatasetFile, Manifest, TokenizerSettings, local_directory
from gatokit.schemas.tokens import TokenIds

EPISODES = "episodes"
_PAIRS = frozenset(("image_text", "image_question_answer"))
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")


@dataclass(frozen=True)
class MixedDataset:
    """One dataset of a mixture: ``name`` in it, ``weight`` as configured, and ``path``, its folder."""

    name: str
    weight: float
    path: Path
    totals: DatasetEntry
    config: dict[str, Any]
    """Its part of the build's config."""
    shards: tuple[Shard, ...]
    """In the manifest's order."""

    @property
    def holds_episodes(self) -> bool:
        """Whether it has tasks and episodes, and not documents."""
        return self.totals.kind == EPISODES

    @property
    def pairs(self) -> int | None:
        """Pairs of picture and text that make a sequence (Gato, section 2.3); None of what is no pairs."""
        return int(self.config["pairs_per_sequence"]) if self.totals.kind in _PAIRS else None

    @functools.cached_property
    def described(self) -> DatasetFile:
        """``dataset.json``: the specs of its tasks, or the rules of its documents."""
        return DatasetFile.read(self.path / self.totals.described_file)

    @property
    def specs(self) -> dict[str, EpisodeSpec]:
        """The spec of each task; none of documents."""
        return {task: self.described.specs[entry.spec] for task, entry in self.described.tasks.items()}

    def records(self, split: str) -> int:
        """Records of ``train`` or ``held_out``."""
        return self.totals.training if split == TRAIN else self.totals.held_out

    def index(self, split: str) -> EpisodeIndex:
        """The kept episodes of ``train`` or ``held_out``, loaded once."""
        return self._indexes[split] if split in self._indexes else self._indexes.setdefault(split, self._load(split))

    @functools.cached_property
    def _indexes(self) -> dict[str, EpisodeIndex]:
        return {}

    def _load(self, split: str) -> EpisodeIndex:
        splits = self.totals.splits
        first_shards = np.cumsum([0, *(len(item.parts) for item in splits)])[:-1]
        return load_index([str(self.path / item.index) for item in splits], first_shards.tolist(), split)


@dataclass(frozen=True)
class Mixture:
    """The datasets that a run draws from; ``open_mixture`` makes one.

    All were made with one vocabulary and one tokenizer setting: ``vocabulary`` is the SentencePiece model's bytes,
    ``digest`` their BLAKE2b.
    """

    directories: tuple[str, ...]
    """As they were given, ``DIR`` or ``NAME=DIR``."""
    asked: Mapping[str, float] | None
    """Weights as they were given."""
    datasets: tuple[MixedDataset, ...]
    tokenizer: TokenizerSettings
    vocabulary: bytes
    digest: str
    manifests: dict[str, Manifest] = field(repr=False)
    """By directory, as it was given."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the datasets, in the order in which a batch numbers them."""
        return tuple(dataset.name for dataset in self.datasets)

    @property
    def weights(self) -> np.ndarray:
        """Share of windows by dataset, float64; the sum is 1."""
        weights = np.array([dataset.weight for dataset in self.datasets])
        return weights / weights.sum()

    @property
    def ids(self) -> TokenIds:
        """The ranges of token ids."""
        return TokenIds(self.tokenizer.discrete_offset)

    @property
    def data_digest(self) -> str:
        """What the windows of a run depend on beside its config."""
        manifests = [manifest.digest for manifest in self.manifests.values()]
        return json_digest({"builds": manifests, "names": self.names, "weights": self.weights.tolist()})

    def with_records(self, split: str) -> tuple[str, ...]:
        """Names of the datasets that have records of ``train`` or ``held_out``."""
        return tuple(dataset.name for dataset in self.datasets if dataset.records(split))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_mixture, (self.directories, self.asked)


def open_mixture(directories: Sequence[str | os.PathLike[str]], weights: Mapping[str, float] | None = None) -> Mixture:
    """The datasets of finished builds, mixed by ``weights`` (default: those of the builds).

    Each directory is ``DIR``, or ``NAME=DIR``, which makes its datasets ``NAME/dataset``. A dataset without a weight
    is left out. ConfigError for directories that cannot be mixed and for unknown names, DataError for one that is
    not complete, of a newer format, or lacks a shard.
    """
    if not directories:
        raise ConfigError("there is no directory to train from: give one with --data")
    given = [os.fspath(item) for item in directories]
    parts = [_divided(item) for item in given]
    manifests = {item: _manifest(path) for item, (_, path) in zip(given, parts, strict=True)}
    for item in given[1:]:
        _check_alike(given[0], manifests[given[0]], item, manifests[item])
    found: dict[str, MixedDataset] = {}
    for item, (prefix, path) in zip(given, parts, strict=True):
        for dataset in _datasets(Path(path), manifests[item], prefix):
            if dataset.name in found:
                raise ConfigError(
                    f"{path} and {found[dataset.name].path.parent} both have a dataset {dataset.name}: "
                    f"name one of the directories, such as new={path}"
                )
            found[dataset.name] = dataset
    vocabulary, said = _vocabulary(parts[0][1], manifests[given[0]])
    drawn = _weighted(found, weights)
    for dataset in drawn:
        _check_files(dataset)
    tokenizer = manifests[given[0]].tokenizer
    return Mixture(tuple(given), weights, tuple(drawn), tokenizer, vocabulary, said, manifests)


def _divided(item: str) -> tuple[str, str]:
    """The name and the path of a directory argument."""
    named = _NAMED.fullmatch(item)
    if named is None or os.path.isdir(item):
        return "", item
    return named[1], named[2]


def _manifest(path: str) -> Manifest:
    manifest = Manifest.read(local_directory(path))
    if manifest.content != "build":
        raise ConfigError(f"{path} is a scan, which stores no tokens: train from what gatokit build made")
    return manifest


def _check_alike(first: str, known: Manifest, item: str, manifest: Manifest) -> None:
    """ConfigError where the tokens of two directories do not mean the same."""
    assert known.vocabulary is not None
    assert manifest.vocabulary is not None
    ours, theirs = known.tokenizer, manifest.tokenizer
    for name, one, other in (
        ("discrete_offset", ours.discrete_offset, theirs.discrete_offset),
        ("separator", ours.separator, theirs.separator),
        ("vocabulary_size", ours.vocabulary_size, theirs.vocabulary_size),
        ("vocabulary", known.vocabulary.blake2b[:16], manifest.vocabulary.blake2b[:16]),
    ):
        if one != other:
            raise ConfigError(
                f"{item} was built with {name} {other} and {first} with {one}, so their tokens do not mean the same: "
                "build one of them again with the other's settings"
            )


def _datasets(path: Path, manifest: Manifest, prefix: str) -> Iterable[MixedDataset]:
    configs = {config["name"]: config for config in manifest.config["datasets"]}
    source = source_of(path)
    remote = {file.path: Remote(source, str(path), file) for file in manifest.files} if source is not None else {}
    for totals in manifest.datasets:
        folder = path / totals.directory
        yield MixedDataset(
            name=f"{prefix}/{totals.name}" if prefix else totals.name,
            weight=totals.weight,
            path=folder,
            totals=totals,
            config=configs[totals.name],
            shards=tuple(
                Shard(
                    str(folder / part.file),
                    part.training,
                    part.held_out,
                    remote.get(f"{totals.directory}/{part.file}"),
                )
                for split in totals.splits
                for part in split.parts
            ),
        )


def _weighted(found: dict[str, MixedDataset], weights: Mapping[str, float] | None) -> list[MixedDataset]:
    """The datasets that are drawn, with their weights."""
    for name in weights or ():
        if name not in found:
            near = difflib.get_close_matches(name, found, n=3)
            instead = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(found)}"
            raise ConfigError(f"input.weights.{name}: no directory has a dataset of this name; {instead}")
    drawn = []
    for name, dataset in found.items():
        weight = dataset.weight if weights is None else weights.get(name, 0)
        if weight <= 0:
            continue
        if not math.isfinite(weight):
            raise ConfigError(f"input.weights.{name}: a weight is a finite number, not {weight}")
        if not dataset.totals.training:
            raise ConfigError(
                f"{dataset.path} keeps nothing for training: leave {name} out by listing the others in input.weights"
            )
        drawn.append(MixedDataset(name, weight, dataset.path, dataset.totals, dataset.config, dataset.shards))
    if not drawn:
        raise ConfigError(f"input.weights: no dataset has a weight above 0; there are {', '.join(found)}")
    return drawn


def _vocabulary(path: str, manifest: Manifest) -> tuple[bytes, str]:
    assert manifest.vocabulary is not None
    file = Path(path) / manifest.vocabulary.file
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; gatokit verify says what else is damaged") from None
    if digest(content) != manifest.vocabulary.blake2b:
        raise DataError(f"{file} is not the model that the tokens were made with")
    return content, manifest.vocabulary.blake2b


def _check_files(dataset: MixedDataset) -> None:
    """DataError where a shard is missing or has another size than the manifest says: nothing is opened."""
    parts = [part for split in dataset.totals.splits for part in split.parts]
    for shard, part in zip(dataset.shards, parts, strict=True):
        if shard.remote is not None:  # it comes when it is opened
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
