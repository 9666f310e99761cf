"""``manifest.json`` and ``dataset.json``, which describe a finished directory.

The manifest is written last and atomically: its presence means that the directory is complete. It lists every
file except itself and the log, and ends with the digest of its own canonical JSON.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from gatokit.schemas.digests import json_digest
from gatokit.schemas.document import DocumentRules
from gatokit.schemas.episode import EpisodeSpec
from gatokit.schemas.errors import ConfigError, DataError

MANIFEST_VERSION = 1
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.model"
LOG = "build.log.jsonl"
DATASET = "dataset.json"
TASKS_FILE = "tasks.parquet"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileEntry(_Model):
    """A file in the directory: its ``path`` with forward slashes, its ``size`` in bytes, its BLAKE2b-256 digest."""

    path: str
    size: int
    blake2b: str


class ShardEntry(_Model):
    """One shard (ArrayRecord file) of a split; training records come first, held-out records last."""

    file: str
    size: int
    blake2b: str
    training: int
    held_out: int
    tokens: int

    @property
    def records(self) -> int:
        """Number of records, training and held out."""
        return self.training + self.held_out


class SplitEntry(_Model):
    """A split of the source: its index file and its shards (none if nothing was kept)."""

    fingerprint: str
    index: str
    rows: int
    kept: int
    parts: list[ShardEntry]


class DatasetEntry(_Model):
    """Totals and splits of one dataset; ``directory`` is its folder in the build.

    ``update`` is empty, except while an update of the directory replaces the two summary files. These then have other
    names, so that the manifests before, during and after the replacement all describe a complete directory.
    """

    name: str
    kind: str
    directory: str
    weight: float
    license: str | None
    hz: float | None
    ordered: bool
    episodes: int
    kept: int
    tokens: int
    training: int
    held_out: int
    shards: int
    bytes: int
    splits: list[SplitEntry]
    update: str = ""

    @property
    def described_file(self) -> str:
        """Name of the dataset's description in its directory."""
        return f"dataset-{self.update}.json" if self.update else DATASET

    @property
    def tasks_file(self) -> str:
        """Name of the table of tasks in its directory."""
        return f"tasks-{self.update}.parquet" if self.update else TASKS_FILE

    @property
    def records(self) -> int:
        """Number of records, training and held out."""
        return self.training + self.held_out


class TokenizerSettings(_Model):
    """The settings that decide every token, together with the vocabulary and the specs."""

    discrete_offset: int
    separator: int
    vocabulary_size: int
    chunk_tokens: int


class VocabularyEntry(_Model):
    """The SentencePiece model beside the manifest."""

    file: str
    pieces: int
    blake2b: str


class Manifest(_Model):
    """A complete directory: a build, or a scan, which has no shards and no vocabulary."""

    format: Literal["gatokit"] = "gatokit"
    version: int = MANIFEST_VERSION
    content: Literal["build", "scan"]
    packages: dict[str, str]
    config: dict[str, Any]
    config_digest: str
    tokenizer: TokenizerSettings
    vocabulary: VocabularyEntry | None
    datasets: list[DatasetEntry]
    files: list[FileEntry]
    digest: str = ""

    def to_bytes(self) -> bytes:
        """Indented JSON, whose last key is the digest of everything else."""
        content = self.model_dump(mode="json", exclude={"digest"})
        for dataset in content["datasets"]:
            if not dataset["update"]:
                del dataset["update"]
        content["digest"] = json_digest(content)
        return indented_json(content)

    @staticmethod
    def read(directory: str | Path) -> "Manifest":
        """The manifest of a finished directory.

        Raises DataError if there is no manifest (the directory is not complete), if it was edited or if a newer gatokit
        wrote it.
        """
        path = Path(directory) / MANIFEST
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"{directory} has no {MANIFEST}: it is no finished build or scan. Run the build again to finish it"
            ) from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        return Manifest.parse(data, path)

    @staticmethod
    def parse(data: bytes, path: str | Path) -> "Manifest":
        """The manifest in the bytes of the file at ``path``; DataError as in ``read``."""
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(content, dict) or content.get("format") != "gatokit":
            raise DataError(f"{path} is no Gatokit manifest")
        _check_version(content.get("version"), MANIFEST_VERSION, path)
        declared = content.pop("digest", None)
        try:
            is_intact = declared == json_digest(content)
        except ValueError:  # NaN or a lone surrogate, which a manifest never holds
            is_intact = False
        if not is_intact:
            raise DataError(f"{path} was edited: its content does not match its own digest")
        try:
            return Manifest(**content, digest=declared)
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def local_directory(path: str | Path) -> Path:
    """The path of a directory on this machine; ConfigError, with the way out, if there is none."""
    if re.match(r"gs:/", str(path)):
        raise ConfigError(
            f"{path} is no local directory: copy it (gcloud storage rsync --recursive) or mount the bucket (gcsfuse)"
        )
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(f"{path} is no directory" if path.exists() else f"there is no directory {path}")
    return path


class TaskEntry(_Model):
    """A task's spec id, and how it was collected."""

    spec: str
    ordered: bool


class DatasetFile(_Model):
    """``dataset.json``: the distinct specs of a dataset and the spec of each task, or the rules for its documents."""

    version: int = MANIFEST_VERSION
    name: str
    kind: str
    specs: dict[str, EpisodeSpec]
    tasks: dict[str, TaskEntry]
    documents: DocumentRules | None = None
    """How documents became tokens; None for episodes."""
    episodes: int
    kept: int

    def to_bytes(self) -> bytes:
        """Indented JSON."""
        return indented_json(self.model_dump(mode="json"))

    @staticmethod
    def read(path: str | Path) -> "DatasetFile":
        """Reads the file; DataError if it is damaged or of a newer version."""
        return read_versioned(path, DatasetFile, MANIFEST_VERSION)


Model = TypeVar("Model", bound=BaseModel)


def indented_json(content: Any) -> bytes:
    """The bytes of a JSON file for people and programs."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def read_versioned(path: str | Path, model: type[Model], newest: int) -> Model:
    """The model in a JSON file with the key ``version``; DataError if it is damaged or newer than ``newest``."""
    try:
        content = json.loads(Path(path).read_bytes())
        if not isinstance(content["version"], int):
            raise TypeError("its version is not a number")
        _check_version(content["version"], newest, path)
        return model(**content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _check_version(version: Any, newest: int, path: str | Path) -> None:
    if not isinstance(version, int) or version > newest:
        raise DataError(
            f"{path} has format version {version} and this gatokit reads up to {newest}: install a newer gatokit"
        )
