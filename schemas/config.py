"""The build config: a YAML file, which is checked field by field before any work begins."""

import math
import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from gatokit.schemas import config_errors
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import LOG, MANIFEST, VOCABULARY, DocumentRules, ImageRule
from gatokit.schemas.tokens import DISCRETE_VALUES, PATCH
from gatokit.schemas.where import Where

DEFAULT_MAX_PATCHES = 64

Model = TypeVar("Model", bound=BaseModel)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number. It may be a string: YAML reads 1e-3, without a point, as a string."""
    try:
        return isinstance(value, int | float | str) and not isinstance(value, bool) and math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _not_reserved(value: str) -> str:
    if value in (MANIFEST, VOCABULARY, LOG):
        raise ValueError(f"the build writes a file {value!r} of its own; choose another name")
    return value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100), AfterValidator(_not_reserved)]
Text = Annotated[str, Field(min_length=1)]
WholeNumber = Annotated[int, Field(strict=True)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Quality = Annotated[WholeNumber, Field(ge=1, le=100)]


class MetadataKey(_Model):
    """A value stored with each episode under ``metadata``: its key path, or its last component."""

    metadata: Text


class TaskName(_Model):
    """Where an episode's task name comes from: the directory, a metadata key, or one constant."""

    source: Literal["directory"] | None = Field(None, alias="from")
    metadata: Text | None = None
    constant: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _exactly_one(cls, value: Any) -> Any:
        names = ("from", "metadata", "constant")
        if not isinstance(value, dict) or [value[name] is None for name in names if name in value] != [False]:
            raise ValueError("give exactly one of " + ", ".join(f"{{{name}: …}}" for name in names))
        return value


def _amount(value: Any) -> Any:
    if not _is_number(value) or not (type(value) is int or 0 < float(value) < 1):
        raise ValueError("must be a whole number of episodes a task, or a share of them between 0 and 1")
    if type(value) is int and value < 1:
        raise ValueError("must be at least 1 episode a task")
    return value if type(value) is int else float(value)


def _return_range(value: Any) -> Any:
    ends = list(value) if isinstance(value, list | tuple) else []
    if len(ends) != 2 or not all(end is None or _is_number(end) for end in ends):
        raise ValueError("must be [low, high], two finite numbers, of which one may be null")
    if ends == [None, None]:
        raise ValueError("must have an end; give {all: true} to keep every return")
    if None not in ends and float(ends[0]) > float(ends[1]):
        raise ValueError("low must not be above high")
    return value


def _random_return(value: Any) -> Any:
    by_task = value if isinstance(value, dict) else {"": value}
    if not all(isinstance(task, str) and _is_number(number) for task, number in by_task.items()):
        raise ValueError("must be a finite number, or such a number for each task, {TASK: NUMBER}")
    return value


def _expression(value: str) -> str:
    Where(value)
    return value


def _hexadecimal(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError("must be 64 hexadecimal digits in lower case")
    return value


ReturnRange = Annotated[tuple[Number | None, Number | None], BeforeValidator(_return_range)]
Amount = Annotated[int | float, BeforeValidator(_amount)]
"""A number of episodes of each task, or a share of them."""
_KEEP_RULES = ("min_return", "return", "success", "where", "episodes", "best", "sample")
_BELONGS_TO = {"random_return": "min_return", "streams": "min_return", "digest": "episodes", "seed": "sample"}


class Keep(_Model):
    """Which episodes are kept: all, or those that pass every given rule.

    The rules are a fraction of the windowed expert return, a range of returns, a mark of success, an expression over
    columns of the index, and a list. Of the episodes of a task that pass these, ``best`` keeps those with the highest
    returns, and of these ``sample`` keeps a random sample.
    """

    min_return: Annotated[Number, Field(ge=0, le=1)] | None = None
    random_return: Annotated[float | dict[str, float], BeforeValidator(_random_return)] | None = None
    """With ``min_return``: the fraction counts from this return (one number, or one a task) and not from zero."""
    streams: Literal["agent", "task"] = "agent"
    """With ``min_return``: windows contain the episodes of one agent, or of all agents of a task."""
    all: Literal[True] | None = None
    success: Text | None = None
    """The metadata key that marks an episode as a success."""
    returns: ReturnRange | None = Field(default=None, alias="return")
    """Lowest and highest return, both included; one of them may be null."""
    where: Annotated[Text, AfterValidator(_expression)] | None = None
    """An expression (``schemas.where``)."""
    episodes: Text | None = None
    """The path of a list of episodes (``schemas.episode_list``)."""
    digest: Annotated[Text, AfterValidator(_hexadecimal)] | None = None
    """With ``episodes``: the BLAKE2b-256 digest of the file; another file is refused. A manifest always has it."""
    best: Amount | None = None
    sample: Amount | None = None
    seed: WholeNumber | None = None
    """With ``sample``: the seed, 0 by default."""

    @model_validator(mode="before")
    @classmethod
    def _some_rule(cls, value: Any) -> Any:
        given = {key for key in value if value[key] is not None} if isinstance(value, dict) else set()
        rules = [rule for rule in _KEEP_RULES if rule in given]
        if "all" in given and rules:
            raise ValueError(f"all keeps everything, and {rules[0]} does not; remove one")
        if "all" not in given and not rules:
            every = ", ".join(f"{{{rule}: …}}" for rule in _KEEP_RULES)
            raise ValueError(f"give {{all: true}}, or one or more of {every}")
        for key, rule in _BELONGS_TO.items():
            if key in given and rule not in given and value[key] != cls.model_fields[key].default:
                raise ValueError(f"{key} belongs to {rule}; remove it")
        return value


def _multiples(value: Any) -> Any:
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(type(side) is int for side in value)):
        raise ValueError("must be [height, width] in pixels, two whole numbers")
    if any(side <= 0 or side % PATCH for side in value):
        near = [max(PATCH, PATCH * round(side / PATCH)) for side in value]
        raise ValueError(f"height and width must be multiples of {PATCH}; the nearest are {near}")
    return value


Size = Annotated[tuple[int, int], BeforeValidator(_multiples)]
"""Height and width in pixels."""


class EpisodeImages(_Model):
    """Pixels and codec of an episode's stored frames."""

    size: Size | None = None
    """Default: as recorded."""
    codec: Literal["png", "jpeg"] | None = None
    """Default: PNG and JPEG are copied, everything else becomes PNG."""
    quality: Quality = 95


class DocumentImages(_Model):
    """Pixels and codec of the stored images of documents."""

    size: Size | None = None
    """Of every image, whatever its own shape."""
    max_patches: Annotated[WholeNumber, Field(ge=1, le=4096)] | None = None
    """Keeps the shape: the largest multiples of 16 with at most this many patches. Default: 64, if no size is given."""
    codec: Literal["png", "jpeg"] | None = None
    """Default: that of the source if it is PNG or JPEG; else JPEG for lossy WebP, and PNG for all others."""
    quality: Quality = 95

    @model_validator(mode="after")
    def _one_rule(self) -> "DocumentImages":
        if self.size is not None and self.max_patches is not None:
            raise ValueError("give size or max_patches, not both")
        return self

    def rule(self) -> ImageRule:
        """The rule that this config means: 64 patches if it names neither a size nor a number of patches."""
        patches = DEFAULT_MAX_PATCHES if self.size is None and self.max_patches is None else self.max_patches
        return ImageRule(size=self.size, max_patches=patches, codec=self.codec, quality=self.quality)


def _ascending(value: Any) -> Any:
    pairs = value if isinstance(value, list | tuple) and value and not _is_number(value[0]) else [value]
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_number, pair))):
            raise ValueError("must be [low, high], two finite numbers, or a list of one such pair a component")
        if not float(pair[0]) < float(pair[1]):
            raise ValueError(f"low must be below high, not {list(pair)}")
    return value


_Range = tuple[float, float] | tuple[tuple[float, float], ...]


class FieldRule(_Model):
    """How a field is read, where the source's own description does not say it."""

    kind: Literal["skip", "text", "image", "discrete", "continuous"] | None = Field(None, alias="as")
    range: Annotated[_Range, BeforeValidator(_ascending)] | None = None
    """Of a continuous action: low and high, or one such pair a component."""
    num: Annotated[WholeNumber, Field(ge=1, le=DISCRETE_VALUES)] | None = None
    images: EpisodeImages | None = None

    @property
    def pairs(self) -> tuple[tuple[float, float], ...] | None:
        """``range`` as pairs: one for all components, or one each."""
        if self.range is None or not isinstance(self.range[0], float):
            return self.range
        return (self.range,)


class _Dataset(_Model):
    """The keys of every dataset."""

    name: Name
    license: str | None = None
    weight: Positive = 1.0


class EpisodesConfig(_Dataset):
    """A dataset of RL episodes (RLDS)."""

    kind: Literal["episodes"]
    source: Text
    task: TaskName = TaskName.model_validate({"from": "directory"})
    agent: MetadataKey | None = None
    order: MetadataKey | None = None
    id: MetadataKey | None = None
    splits: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    merge: StrictBool = False
    keep: Keep = Keep(min_return=0.8)
    fields: dict[str, FieldRule] = {}
    images: EpisodeImages = EpisodeImages()
    hz: Positive | None = None

    @field_validator("splits")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("name each split once")
        return value

    @field_validator("fields")
    @classmethod
    def _paths(cls, value: dict[str, FieldRule]) -> dict[str, FieldRule]:
        for path in value:
            if path.split("/")[0] not in ("observation", "action"):
                raise ValueError(f"{path!r} is no field path: it must begin with observation or action")
        return value


class _Documents(_Dataset):
    """The keys of every dataset of documents."""

    drop_duplicates: StrictBool = True
    """Of documents with exactly the same content only the first is kept."""
    end_of_document: StrictBool = True
    """A document ends with the vocabulary's ``</s>``, if it has one."""


class TextConfig(_Documents):
    """Documents of text: JSONL, Parquet or plain text files, by suffix."""

    kind: Literal["text"]
    source: Text
    field: Text = "text"
    """The JSON key or Parquet column that holds the text."""


class ImageTextConfig(_Documents):
    """Images with their captions; a record is one (image, text)."""

    kind: Literal["image_text"]
    format: Literal["webdataset", "coco", "parquet", "tfds"]
    source: Text
    image_dir: Text | None = None
    """With ``coco``: the folder of the image files."""
    image_field: Text = "image"
    """With ``parquet`` and ``tfds``: the column or feature that holds the image."""
    text_field: Text | None = None
    """The column, feature or JSON key that holds the caption. Default: ``caption`` or ``text``, and with
    ``webdataset`` the ``.txt`` member if there is one."""
    images: DocumentImages = DocumentImages()
    pairs_per_sequence: Annotated[WholeNumber, Field(ge=1)] = 1
    """Records in one training sequence."""

    @model_validator(mode="after")
    def _places(self) -> "ImageTextConfig":
        if (self.format == "coco") != (self.image_dir is not None):
            raise ValueError("image_dir belongs to format: coco, which needs it")
        return self


def _placeholders(value: str, known: dict[str, Any], required: tuple[str, ...]) -> str:
    try:
        used = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
        if unknown := sorted(used - known.keys()):
            raise ValueError(f"{{{unknown[0]}}} is unknown; use " + " and ".join(f"{{{name}}}" for name in known))
        value.format(**known)
    except (IndexError, AttributeError, KeyError) as error:
        raise ValueError(f"is not a valid template: {error}") from None
    if missing := [name for name in required if name not in used]:
        raise ValueError(f"must hold {{{missing[0]}}}")
    return value


def _template(value: str) -> str:
    return _placeholders(value, {"question": "", "answer": ""}, required=("question", "answer"))


def _image_name(value: str) -> str:
    return _placeholders(value, {"data_subtype": "", "image_id": 0}, required=("image_id",))


class ImageQuestionAnswerConfig(_Documents):
    """Questions about images, VQAv2 or OK-VQA; a record is one (image, question, answer)."""

    kind: Literal["image_question_answer"]
    questions: Text
    annotations: Text
    image_dir: Text
    image_name: Annotated[Text, AfterValidator(_image_name)] = "COCO_{data_subtype}_{image_id:012d}.jpg"
    """Name of an image in ``image_dir``; files with another suffix are found too."""
    template: Annotated[Text, AfterValidator(_template)] = "Q: {question} A: {answer}"
    images: DocumentImages = DocumentImages()
    pairs_per_sequence: Annotated[WholeNumber, Field(ge=1)] = 5
    """Records in one training sequence (Gato, section 2.3)."""


class InterleavedConfig(_Documents):
    """Pages of text and images in reading order."""

    kind: Literal["interleaved"]
    format: Literal["mmc4", "obelics"]
    source: Text
    image_dir: Text | None = None
    """The folder of the image files; ``obelics`` needs none if images are embedded."""
    bad_images: Literal["reject", "skip"] = "reject"
    """A page with a missing or damaged image is dropped, or kept without the image."""
    images: DocumentImages = DocumentImages()

    @model_validator(mode="after")
    def _places(self) -> "InterleavedConfig":
        if self.format == "mmc4" and self.image_dir is None:
            raise ValueError("format: mmc4 needs image_dir, the folder of its images")
        return self


PATHS = frozenset(("source", "image_dir", "questions", "annotations"))
"""Keys of a dataset that hold paths or patterns of paths, relative to the config file."""
CorpusConfig = TextConfig | ImageTextConfig | ImageQuestionAnswerConfig | InterleavedConfig
DatasetConfig = Annotated[EpisodesConfig | CorpusConfig, Field(discriminator="kind")]


def document_rules(config: CorpusConfig) -> DocumentRules:
    """What a build does with the documents of a dataset."""
    return DocumentRules(
        pictures=None if isinstance(config, TextConfig) else config.images.rule(),
        end_of_document=config.end_of_document,
        bad_images=getattr(config, "bad_images", "reject"),
    )


class BuildConfig(_Model):
    """A build: the vocabulary, how records are cut and shards are planned, and the datasets."""

    vocabulary: Text
    discrete_offset: Literal[0, 33024] = 0
    chunk_tokens: Annotated[WholeNumber, Field(ge=1, le=1 << 24)] = 4096
    shard_bytes: Annotated[WholeNumber, Field(ge=1 << 10)] = 256 << 20
    max_episode_bytes: Annotated[WholeNumber, Field(ge=1)] = 1 << 30
    max_bad_fraction: Annotated[Number, Field(ge=0, le=1)] = 0.01
    holdout: Annotated[Number, Field(ge=0, lt=1)] = 0.01
    seed: WholeNumber = 0
    datasets: Annotated[tuple[DatasetConfig, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names(self) -> "BuildConfig":
        names = [dataset.name for dataset in self.datasets]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(
                    f"datasets[{number}].name: datasets[{names.index(name)}] has the name {name!r} already; "
                    "choose another"
                )
        return self


def read_config(path: str | Path) -> BuildConfig:
    """Reads and checks a config file; ConfigError names the file, the field's path, the value and what is allowed."""
    return validated(BuildConfig, read_mapping(path, "the keys vocabulary and datasets"), str(path))


def read_mapping(path: str | Path, keys: str) -> dict[str, Any]:
    """The mapping in the YAML file at ``path``; ``keys`` says in an error what such a file holds.

    Raises ConfigError if the file cannot be read or is not YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the config is not UTF-8 text: {error}; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}; give the path of a YAML file") from None
    return parse_mapping(text, str(path), keys)


def parse_mapping(text: str, name: str, keys: str) -> dict[str, Any]:
    """The mapping in YAML ``text``. Raises ConfigError, which begins with ``name``, if it holds none."""
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}{config_errors.explain_yaml(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: must be a mapping with {keys}")
    return content


def validated(model: type[Model], content: dict[str, Any], name: str) -> Model:
    """The model of ``content``; raises ConfigError, which begins with ``name``, if it does not validate."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problem, way_out = config_errors.explain(model, error)
        raise ConfigError(f"{name}: {problem}", way_out=way_out) from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} stands twice; remove one"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node
