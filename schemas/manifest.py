"""``manifest.json`` and ``dataset.json``, which describe a finished directory.

The manifest is written last and atomically: its presence means that the directory is complete. It lists every
file except itself and the log, and ends with the digest of its own canonical JSON.
"""

import functools
import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from gatokit.schemas.errors import ConfigError, DataError, MalformedError
from gatokit.schemas.tokens import BINS, CONTINUOUS_OFFSET, DISCRETE_VALUES, PATCH
from gatokit.schemas.untrusted import Count, PathName, PlainName, parse_json, quoted, validated_model

MANIFEST_VERSION = 2
INDEX_VERSION = 2
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.model"
LOG = "build.log.jsonl"
CARD = "README.md"
"""The card of a published directory; the manifest does not list it, so that people can edit it."""
DATASET = "dataset.json"
TASKS_FILE = "tasks.parquet"
DISCRETE_OFFSET = CONTINUOUS_OFFSET + BINS
"""The first id behind those of continuous values, where discrete ids begin if they do not overlap text ids."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Model):
    """A file in the directory: its ``path`` with forward slashes, its ``size`` in bytes, its BLAKE2b-256 digest."""

    path: PathName
    size: Count
    blake2b: str


class ShardEntry(_Model):
    """One shard (ArrayRecord file) of a split; training records come first, held-out records last."""

    file: PlainName
    size: Count
    blake2b: str
    training: Count
    held_out: Count
    tokens: Count

    @property
    def records(self) -> int:
        """Number of records, training and held out."""
        return self.training + self.held_out


class SplitEntry(_Model):
    """A split of the source: its index file and its shards (none if nothing was kept)."""

    fingerprint: str
    index: PlainName
    rows: Count
    kept: Count
    parts: list[ShardEntry]
    made_by: str | None = None
    """Key into the manifest's ``provenance``. None, and left out of JSON, in format 1."""
    generations: dict[str, int] = {}
    """The generations of the split's source files on ``gs://``, by their names. Left out of JSON if there are none."""


class Provenance(_Model):
    """What made a shard: the versions of packages, and a digest of the source code that scans and tokenizes its kind of
    dataset."""

    packages: dict[str, str]
    code: str

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name it in a manifest."""
        return json_digest(self.model_dump(mode="json"), 6)


class LastStep(_Model):
    """How a dataset of episodes was read at the steps that ``is_last`` marks, and what these hold.

    ``other_rewards`` and ``other_actions`` are those that are neither zero nor a copy of the first step or of the step
    before; ``other`` is the number of ``episodes`` with one of either.
    """

    reading: Literal["padding", "real"]
    """``padding``: such a step has no action and no reward. ``real``: it is a step like any other."""
    decided_by: Literal["config", "data"]
    episodes: Count
    """Sound episodes with such a step."""
    other_rewards: Count
    other_actions: Count
    other: int


class Overlap(_Model):
    """The number of stored pictures and of texts that documents have both in the training and the held-out part."""

    pictures: Count
    texts: int


class SourceLoss(_Model):
    """What of a dataset's source could not be read, left out of the manifest if that is nothing.

    Of ``files`` with ``bytes`` in all, ``damaged`` ones hold bytes that cannot be read, and ``ends_early`` ones end
    before their time. ``lost_bytes`` are the unreadable bytes, and all bytes of files that end early, because nobody
    knows how many they lack. Compressed files count as they are stored.
    """

    files: Count
    damaged: Count
    ends_early: Count
    bytes: Count
    lost_bytes: Count
    examples: list[str]
    """The first of these files, and what is wrong with them."""

    @property
    def share(self) -> float:
        """The share of the bytes that is lost."""
        return self.lost_bytes / max(1, self.bytes)

    @property
    def sentence(self) -> str:
        """All of it in words."""
        parts: list[str] = []
        for count, one, several in (
            (self.ends_early, "ends early", "end early"),
            (self.damaged, "is damaged", "are damaged"),
        ):
            if count:
                of = f"{count:,} of {self.files:,} files" if not parts else f"{count:,}"
                parts.append(f"{of} {one if count == 1 else several}")
        return f"{' and '.join(parts)}, {100 * self.share:.3g} % of the bytes (first {self.examples[0]})"


class LeftOutEntry(_Model):
    """What a rule skips or changes in rows that are kept: ``what`` it does, such as ``pictures left out``, why, how
    often, of how many there are, and where first."""

    what: str
    reason: str
    count: Count
    of: Count
    first: str

    @property
    def sentence(self) -> str:
        """All of it in words."""
        return f"{self.what}: {self.count:,} of {self.of:,} ({self.reason}, first {self.first})"


class DatasetEntry(_Model):
    """Totals and splits of one dataset; ``directory`` is its folder in the build.

    ``update`` is empty, except while an update of the directory replaces the two summary files. These then have other
    names, so that the manifests before, during and after the replacement all describe a complete directory.
    """

    name: PlainName
    kind: str
    directory: PlainName
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    license: str | None
    hz: float | None
    ordered: bool
    episodes: Count
    kept: Count
    tokens: Count
    training: Count
    held_out: Count
    shards: Count
    bytes: Count
    splits: list[SplitEntry]
    last_step: LastStep | None = None
    """None for documents; left out of JSON then."""
    source_loss: SourceLoss | None = None
    """None if every file of the source was read to its end; left out of JSON then."""
    left_out: list[LeftOutEntry] = []
    """Left out of JSON if it is empty."""
    overlap: Overlap | None = None
    """None for episodes and in directories that were made before it was counted; left out of JSON then."""
    update: Annotated[str, Field(pattern="^([0-9a-f]{16})?$")] = ""

    @property
    def losses(self) -> list[str]:
        """A sentence for each thing that is lost besides whole episodes and documents."""
        lost = [] if self.source_loss is None else [self.source_loss.sentence]
        return lost + [entry.sentence for entry in self.left_out]

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
    """The id of the discrete value 0: 0 (discrete ids overlap text ids, as the paper literally says), or 33024."""
    separator: int
    """The id of the token between a step's observation and its action; it is the last id."""
    vocabulary_size: int
    """Number of ids."""
    chunk_tokens: int

    @staticmethod
    def of(discrete_offset: int, chunk_tokens: int = 4096) -> "TokenizerSettings":
        """The settings that follow from the offset; ValueError if it is neither 0 nor 33024."""
        if discrete_offset not in (0, DISCRETE_OFFSET):
            raise ValueError(f"discrete_offset must be 0 or {DISCRETE_OFFSET}, not {discrete_offset}")
        separator = DISCRETE_OFFSET + (DISCRETE_VALUES if discrete_offset else 0)
        return TokenizerSettings(
            discrete_offset=discrete_offset,
            separator=separator,
            vocabulary_size=separator + 1,
            chunk_tokens=chunk_tokens,
        )


class VocabularyEntry(_Model):
    """The SentencePiece model beside the manifest."""

    file: PlainName
    pieces: Count
    blake2b: str


class Manifest(_Model):
    """A complete directory: a build, or a scan, which has no shards and no vocabulary. A build without text has no
    vocabulary either."""

    format: Literal["gatokit"] = "gatokit"
    version: int = MANIFEST_VERSION
    content: Literal["build", "scan"]
    packages: dict[str, str]
    """The packages that made the shards, by name: their versions, several if shards were made with different ones."""
    config: dict[str, Any]
    config_digest: str
    tokenizer: TokenizerSettings
    vocabulary: VocabularyEntry | None
    datasets: list[DatasetEntry]
    files: list[FileEntry]
    provenance: dict[str, Provenance] = {}
    """What made each split, by ``SplitEntry.made_by``. Empty, and left out of JSON, in format 1."""
    data_digest: str = ""
    """``digest_of_data`` of a build. Empty, and left out of JSON, in a scan and in format 1."""
    digest: str = ""

    @model_validator(mode="after")
    def _names_once(self) -> "Manifest":
        for what, names in (
            ("files", [entry.path for entry in self.files]),
            ("datasets", [dataset.name for dataset in self.datasets]),
            ("directories of datasets", [dataset.directory for dataset in self.datasets]),
        ):
            if len(set(names)) < len(names):
                twice = next(name for name, count in Counter(names).items() if count > 1)
                raise ValueError(f"the {what} name {twice!r} twice")
        return self

    @functools.cached_property
    def entries(self) -> dict[str, FileEntry]:
        """The listed files by path."""
        return {entry.path: entry for entry in self.files}

    @property
    def dataset_configs(self) -> dict[str, dict[str, Any]]:
        """The part of the config of each dataset, by name. Raises MalformedError if a dataset has none."""
        parts = self.config.get("datasets")
        mappings = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        named = {part["name"]: part for part in mappings if isinstance(part.get("name"), str)}
        for dataset in self.datasets:
            if dataset.name not in named:
                raise MalformedError(f"{MANIFEST}: config: it has no dataset {dataset.name}")
        return named

    @property
    def digest_of_data(self) -> str:
        """A digest of the names, sizes and digests of the shards by dataset, and of nothing else."""
        return json_digest(
            {
                dataset.name: [(part.file, part.size, part.blake2b) for split in dataset.splits for part in split.parts]
                for dataset in self.datasets
            }
        )

    def to_bytes(self) -> bytes:
        """Indented JSON, whose last key is the digest of everything else."""
        content = self.model_dump(mode="json", exclude={"digest"})
        for dataset in content["datasets"]:
            _drop_empty(dataset, "update", "last_step", "source_loss", "left_out", "overlap")
            for split in dataset["splits"]:
                _drop_empty(split, "made_by", "generations")
        _drop_empty(content, "provenance", "data_digest")
        content["digest"] = json_digest(content)
        return indented_json(content)

    @staticmethod
    def parse(data: bytes, path: str | Path) -> "Manifest":
        """The manifest in the bytes of the file at ``path``. Raises as ``storage.folder.read_manifest`` does."""
        content = parse_json(data, path)
        if not isinstance(content, dict) or content.get("format") != "gatokit":
            raise MalformedError(f"{path} is no Gatokit manifest")
        check_version(content.get("version"), MANIFEST_VERSION, path)
        declared = content.pop("digest", None)
        try:
            is_intact = declared == json_digest(content)
        except ValueError:  # a lone surrogate, which a manifest never holds
            is_intact = False
        if not is_intact:
            raise DataError(f"{path} was edited: its content does not match its own digest")
        return validated_model(Manifest, content | {"digest": declared}, path)


def _drop_empty(values: dict[str, Any], *names: str) -> None:
    """Removes those of the entries that are None or empty."""
    for name in names:
        if not values[name]:
            del values[name]


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


FieldKind = Literal["text", "image", "discrete", "continuous"]


class ImageSpec(_Frozen):
    """How the frames of a field are stored: pixels, codec, and how a frame of another size is resized."""

    height: int
    width: int
    codec: Literal["png", "jpeg"] | None = None
    """None: PNG and JPEG are copied, and everything else becomes PNG."""
    quality: int = 95
    """JPEG quality of a frame that has to be encoded."""
    resize: Literal["area"] = "area"
    """Filter of a frame that has to be resized (OpenCV's INTER_AREA)."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.height // PATCH, self.width // PATCH


_SELDOM = ("source", "every", "offset", "clip", "levels", "channels_first", "max_length")


class FieldSpec(_Frozen):
    """One observation or action field of a time step.

    ``path`` is the key path joined by ``/`` and begins with ``observation`` or ``action``. ``shape`` and
    ``dtype`` are those of one recorded step (``dtype`` is ``str`` for text). ``range`` holds ``(low, high)``
    pairs of a continuous action, one for all components or one each; ``num`` the number of values of a
    discrete field, if known. The attributes behind ``image`` are left out of JSON if they have their default.
    """

    path: str
    kind: FieldKind
    dtype: str
    shape: tuple[int, ...] = ()
    range: tuple[tuple[float, float], ...] | None = None
    num: int | None = None
    image: ImageSpec | None = None
    source: tuple[str, ...] | None = None
    """Key paths in the step or the episode as the source has them: the first whose value is not empty counts.
    None: ``path``."""
    every: Literal["step", "episode"] = "step"
    """Text that is ``episode`` stands in an episode's first step, and is empty in the others."""
    offset: int = 0
    """The value of a discrete field that becomes 0."""
    clip: bool = False
    """Values outside of ``range`` are taken for its ends, however many they are."""
    levels: tuple[float, float] | None = None
    """The values of an image of depths or of floats that become the pixels 0 and 255; what lies outside is clipped.
    None: the values are 8-bit pixels."""
    channels_first: bool = False
    """Frames are recorded as (C, H, W)."""
    max_length: int | None = None
    """The values of a step are at most this many along the first axis, and are filled up with zeros to ``shape``.
    None: they are always as many as ``shape`` says."""

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        for name in _SELDOM:
            if getattr(self, name) == FieldSpec.model_fields[name].default:
                written.pop(name, None)
        return written

    @property
    def is_action(self) -> bool:
        """Whether the field is (part of) the action."""
        return self.components[0] == "action"

    @property
    def components(self) -> tuple[str, ...]:
        """The key path; fields are ordered by it, compared component by component (code points)."""
        return tuple(self.path.split("/"))

    @property
    def tokens(self) -> int | None:
        """Tokens a step: None for text, whose length varies."""
        if self.kind == "text":
            return None
        if self.image is not None:
            rows, columns = self.image.grid
            return rows * columns
        return math.prod(self.shape)


class EpisodeSpec(_Frozen):
    """The fields of a task's time step in token order: observations by key path, then actions by key path
    (Gato, section 2.1)."""

    fields: tuple[FieldSpec, ...]

    @staticmethod
    def ordered(fields: list[FieldSpec]) -> "EpisodeSpec":
        """The spec of ``fields`` given in any order."""
        return EpisodeSpec(fields=tuple(sorted(fields, key=lambda field: (field.is_action, field.components))))

    @property
    def observation(self) -> tuple[FieldSpec, ...]:
        """Observation fields in token order."""
        return tuple(field for field in self.fields if not field.is_action)

    @property
    def action(self) -> tuple[FieldSpec, ...]:
        """Action fields in token order."""
        return tuple(field for field in self.fields if field.is_action)

    @functools.cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that name this spec in records, indexes and ``dataset.json``."""
        return json_digest(self.model_dump(mode="json"), 6)


_Side = Annotated[int, Field(gt=0, multiple_of=PATCH)]


class ImageRule(_Frozen):
    """Size, codec and filter of a document's stored images; ``tokenizers.document.prepare`` applies it.

    Exactly one of ``size`` and ``max_patches`` is set. Its JSON is part of shard tasks, of fingerprints and of
    ``dataset.json``, so that evaluation can prepare an image exactly as the build did.
    """

    size: tuple[_Side, _Side] | None = None
    """Height and width of every image."""
    max_patches: Annotated[int, Field(ge=1)] | None = None
    """Keeps the shape, in at most this many patches."""
    codec: Literal["png", "jpeg"] | None = None
    """None: JPEG for JPEG and lossy WebP, PNG for everything else."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of an image that has to be encoded."""
    resize: Literal["area"] = "area"
    """Filter of an image that has to be resized (OpenCV's INTER_AREA)."""

    @model_validator(mode="after")
    def _one_size(self) -> "ImageRule":
        if (self.size is None) == (self.max_patches is None):
            raise ValueError("give size or max_patches, one of them")
        return self


class DocumentRules(_Frozen):
    """What a build does with the documents of a dataset."""

    pictures: ImageRule | None
    """How images are stored; None if documents hold only text."""
    end_of_document: bool
    """A document ends with the vocabulary's end piece, if it has one."""
    bad_images: Literal["reject", "skip"] = "reject"
    """What a damaged image does: its document is rejected, or stays without the image."""


class TaskEntry(_Model):
    """A task's spec id, and how it was collected."""

    spec: str
    ordered: bool


MetadataType = Literal["string", "bool", "int64", "float64"]
"""The type of a value stored with each episode."""


class StepField(_Model):
    """What became of a field of the source, over all tasks of a dataset."""

    path: str
    """Its key path in the spec, or in the source if it has no tokens."""
    becomes: str = ""
    """What it becomes, such as ``image 96x128``; empty if it has no tokens."""
    tokens: float | None = None
    """Tokens of an average kept step; None for text, and for fields without tokens."""
    components: int = 0
    """Components of a step's value; 0 for text and images."""
    constant: int | None = None
    """How many of them have one value in all kept episodes; None if nobody counted."""
    why: str = ""
    """Why it has no tokens."""


class StepTokens(_Model):
    """The tokens of an average kept step, and what became of every field of the source."""

    tokens: float | None
    """Tokens a step, the separator included; None in a scan of a dataset with text."""
    text: float | None
    """Tokens a step of all texts together; None in a scan."""
    fields: list[StepField]
    """First those with tokens, in token order."""
    cut: int
    """Last steps that are no steps, because they have neither action nor reward."""
    splits: dict[str, int]
    """Episodes of the splits that were read."""
    left_out: dict[str, int]
    """Episodes of the splits that were not."""


class DatasetFile(_Model):
    """``dataset.json``: the distinct specs of a dataset and the spec of each task, or the rules for its documents."""

    version: int = MANIFEST_VERSION
    name: str
    kind: str
    specs: dict[str, EpisodeSpec]
    tasks: dict[str, TaskEntry]
    documents: DocumentRules | None = None
    """How documents became tokens; None for episodes."""
    columns: dict[str, MetadataType] = {}
    """Columns of the index behind its own: values stored with each episode."""
    episodes: int
    kept: int
    step: StepTokens | None = None
    """What a time step is made of; None for documents, and left out of JSON then."""

    def spec_of(self, task: str) -> EpisodeSpec:
        """The fields of a task's time step. Raises MalformedError if they are not there."""
        entry = self.tasks.get(task)
        if entry is None or entry.spec not in self.specs:
            raise MalformedError(f"{DATASET} of {self.name} has no spec of the task {quoted(task)}")
        return self.specs[entry.spec]

    @property
    def has_images(self) -> bool:
        """Whether episodes or documents may hold images."""
        fields = (field for spec in self.specs.values() for field in spec.fields)
        return bool(self.documents and self.documents.pictures) or any(field.kind == "image" for field in fields)

    def to_bytes(self) -> bytes:
        """Indented JSON."""
        return indented_json(self.model_dump(mode="json", exclude={"step"} if self.step is None else None))


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces; NaN and infinities are refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(data: bytes, size: int = 32) -> str:
    """BLAKE2b of ``data`` as ``2 * size`` hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def json_digest(value: Any, size: int = 32) -> str:
    """``digest`` of the canonical JSON of ``value``."""
    return digest(canonical_json(value), size)


def indented_json(content: Any) -> bytes:
    """The bytes of a JSON file for people and programs."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def check_index_version(schema: Any, path: str | Path) -> None:
    """Raises DataError if the index file at ``path``, of this Arrow schema, is newer than this gatokit reads."""
    version = (schema.metadata or {}).get(b"gatokit.index", b"0")
    check_version(int(version) if version.isdigit() else quoted(version), INDEX_VERSION, path, "index")


def check_version(version: Any, newest: int, path: str | Path, what: str = "format") -> None:
    """Raises DataError if the file at ``path`` has a version above ``newest``."""
    if not isinstance(version, int) or version > newest:
        raise DataError(
            f"{path} has {what} version {version} and this gatokit reads up to {newest}: install a newer gatokit"
        )
