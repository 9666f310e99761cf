"""``manifest.json`` and ``dataset.json``: what a finished directory holds.

The manifest is written last and atomically: its presence means that the directory is complete. It lists every
file but itself and the log, and ends with the digest of its own canonical JSON.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

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
    """A file below the directory: ``path`` with forward slashes, ``size`` in bytes, BLAKE2b-256 digest."""

    path: str
    size: int
    blake2b: str


class ShardEntry(_Model):
    """One ArrayRecord file of a split; training records come first, held-out ones last."""

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
    """A split of the source: its index file and its parts (none where nothing was kept)."""

    fingerprint: str
    index: str
    rows: int
    kept: int
    parts: list[ShardEntry]


class DatasetEntry(_Model):
    """Totals and splits of one dataset; ``directory`` is its folder below the root.

    ``update`` is empty but in the moment in which an update of the directory replaces the two summary files: both have
    names of their own then, and the manifest before and behind are as whole as this one.
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
    """The settings that, with the vocabulary and the specs, decide every token."""

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
    """A complete directory: a build, or a scan (which has no shards and no vocabulary)."""

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
        """Indented JSON with the digest of everything else as its last key."""
        content = self.model_dump(mode="json", exclude={"digest"})
        for dataset in content["datasets"]:
            if not dataset["update"]:
                del dataset["update"]
        content["digest"] = json_digest(content)
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

    @staticmethod
    def read(directory: str | Path) -> "Manifest":
        """The manifest of a finished directory.

        DataError where there is none (the directory is not complete), where it was edited or where a newer
        gatokit wrote it.
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
        """The manifest that the file at ``path`` holds; DataError as in ``read``."""
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(content, dict) or content.get("format") != "gatokit":
            raise DataError(f"{path} is no Gatokit manifest")
        version = content.get("version")
        if not isinstance(version, int) or version > MANIFEST_VERSION:
            raise DataError(
                f"{path} has format version {version} and this gatokit reads up to {MANIFEST_VERSION}: "
                "install a newer gatokit"
            )
        said = content.pop("digest", None)
        try:
            is_whole = said == json_digest(content)
        except ValueError:  # NaN or a lone surrogate, which no manifest of ours holds
            is_whole = False
        if not is_whole:
            raise DataError(f"{path} was edited: its content does not match its own digest")
        try:
            return Manifest(**content, digest=said)
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def local_directory(path: str | Path) -> Path:
    """The path of a directory on this machine; ConfigError, with the way out, where there is none."""
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
    """``dataset.json``: the distinct specs of a dataset and the spec of each task, or the rules of its documents."""

    version: int = MANIFEST_VERSION
    name: str
    kind: str
    specs: dict[str, EpisodeSpec]
    tasks: dict[str, TaskEntry]
    documents: DocumentRules | None = None
    """How documents became tokens; None of episodes."""
    episodes: int
    kept: int

    def to_bytes(self) -> bytes:
        """Indented JSON."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()

    @staticmethod
    def read(path: str | Path) -> "DatasetFile":
        """Reads the file; DataError where it is damaged or of a newer version."""
        try:
            content = json.loads(Path(path).read_bytes())
            if content["version"] > MANIFEST_VERSION:
                raise DataError(
                    f"{path} has format version {content['version']} and this gatokit reads up to {MANIFEST_VERSION}: "
                    "install a newer gatokit"
                )
            return DatasetFile(**content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
