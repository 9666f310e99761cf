"""The build config: a YAML file, which is checked field by field before any work begins."""

import itertools
import math
import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, Field, StrictBool, ValidationError, model_validator

from gatokit.schemas import config_errors
from gatokit.schemas.config_episodes import EpisodesConfig
from gatokit.schemas.config_types import ConfigModel, DatasetModel, Number, Quality, Size, Text, WholeNumber
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import LOG, MANIFEST, VOCABULARY, DocumentRules, ImageRule

DEFAULT_MAX_PATCHES = 64
_WIDEST = 1000
_LARGEST_CONFIG, _MOST_VALUES = 16 << 20, 1_000_000
"""Bytes of a config file, and values and characters that its aliases may unfold to."""

Model = TypeVar("Model", bound=BaseModel)
FolderConfig = TypeVar("FolderConfig", "ImageTextConfig", "InterleavedConfig")


class DocumentImages(ConfigModel):
    """Pixels and codec of the stored images of documents."""

    size: Size | None = None
    """Of every image, whatever its own shape."""
    max_patches: Annotated[WholeNumber, Field(ge=1, le=4096)] | None = None
    """Keeps the shape: the largest multiples of 16 with at most this many patches. Default: 64, if no size is given."""
    codec: Literal["png", "jpeg"] | None = None
    """Default: that of the source if it is PNG or JPEG; else JPEG for lossy WebP, and PNG for all others."""
    quality: Quality = 95
    """Of JPEG."""

    @model_validator(mode="after")
    def _one_rule(self) -> "DocumentImages":
        if self.size is not None and self.max_patches is not None:
            raise ValueError("give size or max_patches, not both")
        return self

    def rule(self) -> ImageRule:
        """The rule that this config means: 64 patches if it names neither a size nor a number of patches."""
        patches = DEFAULT_MAX_PATCHES if self.size is None and self.max_patches is None else self.max_patches
        return ImageRule(size=self.size, max_patches=patches, codec=self.codec, quality=self.quality)


class _Documents(DatasetModel):
    """The keys of every dataset of documents."""

    drop_duplicates: StrictBool = True
    """Of documents with exactly the same content only the first is kept."""
    end_of_document: StrictBool = True
    """A document ends with the vocabulary's ``</s>``, if it has one, which also replaces ``<|endoftext|>``."""
    max_text_bytes: Annotated[WholeNumber, Field(ge=1)] | None = None
    """Longer texts, and longer lines of JSON, are rejected as ``too_large``. Default: 64 MiB."""
    max_unpacked: Annotated[WholeNumber, Field(ge=1)] | None = None
    """A compressed file, or a row group of Parquet, ends early where it unpacks to more than so many times its size,
    and to more than 64 MiB. Default: 200."""


class TextConfig(_Documents):
    """Documents of text: JSONL, Parquet or plain text files, by suffix."""

    kind: Literal["text"]
    """Says that the dataset holds text."""
    source: Text
    """A pattern of files: ``.jsonl``, ``.parquet``, ``.txt``."""
    field: Text = "text"
    """The JSON key or Parquet column that holds the text."""


class ImageTextConfig(_Documents):
    """Images with their captions; a record is one (image, text)."""

    kind: Literal["image_text"]
    """Says that the dataset holds images with captions."""
    format: Literal["webdataset", "coco", "parquet", "tfds"]
    """How they are stored: tar files, COCO's annotations, Parquet, or TFDS directories."""
    source: Text
    """A pattern of files, or with ``tfds`` of directories."""
    image_dir: Text | None = None
    """With ``coco``: the folder of the image files."""
    follow_links: StrictBool | None = None
    """Images may be links out of ``image_dir``, as in the cache of the Hugging Face hub. Default: false."""
    image_field: Text = "image"
    """With ``parquet`` and ``tfds``: the column or feature that holds the image."""
    text_field: Text | None = None
    """The column, feature or JSON key that holds the caption. Default: ``caption`` or ``text``, and with
    ``webdataset`` the ``.txt`` member if there is one."""
    images: DocumentImages = DocumentImages()
    """Pixels and codec of stored images."""
    pairs_per_sequence: Annotated[WholeNumber, Field(ge=1)] = 1
    """Records in one training sequence."""

    @model_validator(mode="after")
    def _places(self) -> "ImageTextConfig":
        if (self.format == "coco") != (self.image_dir is not None):
            raise ValueError("image_dir belongs to format: coco, which needs it")
        return _with_folder(self)


def _with_folder(config: FolderConfig) -> FolderConfig:
    if config.follow_links is not None and config.image_dir is None:
        raise ValueError("follow_links belongs to image_dir, which is not given")
    return config


def _placeholders(value: str, known: dict[str, Any], required: tuple[str, ...]) -> str:
    try:
        parsed = [(name, width or "") for _, name, width, _ in string.Formatter().parse(value) if name is not None]
        used = {name for name, _ in parsed}
        for name, width in parsed:
            if "{" in width or any(int(number) > _WIDEST for number in re.findall(r"\d+", width)):
                raise ValueError(f"{{{name}:{width:.20}}} may be wider than {_WIDEST} characters")
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
    """Says that the dataset holds questions about images."""
    questions: Text
    """The JSON file of the questions."""
    annotations: Text
    """The JSON file of the answers."""
    image_dir: Text
    """The folder of the image files."""
    follow_links: StrictBool | None = None
    """Images may be links out of ``image_dir``, as in the cache of the Hugging Face hub. Default: false."""
    image_name: Annotated[Text, AfterValidator(_image_name)] = "COCO_{data_subtype}_{image_id:012d}.jpg"
    """Name of an image in ``image_dir``; files with another suffix are found too."""
    template: Annotated[Text, AfterValidator(_template)] = "Q: {question} A: {answer}"
    """The text of a record, with {question} and {answer}."""
    images: DocumentImages = DocumentImages()
    """Pixels and codec of stored images."""
    pairs_per_sequence: Annotated[WholeNumber, Field(ge=1)] = 5
    """Records in one training sequence (Gato, section 2.3)."""


class InterleavedConfig(_Documents):
    """Pages of text and images in reading order."""

    kind: Literal["interleaved"]
    """Says that the dataset holds pages of text and images."""
    format: Literal["mmc4", "obelics"]
    """How they are stored: MMC4's JSON lines, or OBELICS' Parquet."""
    source: Text
    """A pattern of files."""
    image_dir: Text | None = None
    """The folder of the image files; ``obelics`` needs none if images are embedded."""
    follow_links: StrictBool | None = None
    """Images may be links out of ``image_dir``, as in the cache of the Hugging Face hub. Default: false."""
    bad_images: Literal["reject", "skip"] = "reject"
    """A page with a missing or damaged image is dropped, or kept without the image."""
    images: DocumentImages = DocumentImages()
    """Pixels and codec of stored images."""

    @model_validator(mode="after")
    def _places(self) -> "InterleavedConfig":
        if self.format == "mmc4" and self.image_dir is None:
            raise ValueError("format: mmc4 needs image_dir, the folder of its images")
        return _with_folder(self)


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


class BuildConfig(ConfigModel):
    """A build: the vocabulary, how records are cut and shards are planned, and the datasets."""

    vocabulary: Text | None = None
    """The path of a SentencePiece model of at most 32,000 pieces; ``gatokit vocab`` trains one. Needed if a
    dataset has text."""
    discrete_offset: Literal[0, 33024] = 0
    """First id of discrete values: 0 shares ids with text, as the paper does; 33024 gives them ids of their own."""
    chunk_tokens: Annotated[WholeNumber, Field(ge=1, le=1 << 24)] = 4096
    """Most tokens of a record; longer episodes are cut between time steps."""
    shard_bytes: Annotated[WholeNumber, Field(ge=1 << 10)] = 256 << 20
    """Bytes of a shard, about."""
    max_episode_bytes: Annotated[WholeNumber, Field(ge=1)] = 1 << 30
    """Larger episodes and documents are rejected as ``too_large``."""
    max_bad_fraction: Annotated[Number, Field(ge=0, le=1)] = 0.01
    """A build ends with status 1 if more than this fraction of a dataset's rows is damaged; 0 allows none."""
    free_bad_rows: Annotated[WholeNumber, Field(ge=0)] = 10
    """So many damaged rows are always allowed, unless ``max_bad_fraction`` is 0."""
    max_lost_bytes: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """A build ends with status 1 if more than this share of a dataset's bytes lies in files, or parts of files, that
    cannot be read. A file that ends early counts whole. 0 allows no such file."""
    max_bad_images: Annotated[Number, Field(ge=0, le=1)] = 0.5
    """A build ends with status 1 if ``bad_images: skip`` leaves out more than this share of a dataset's images."""
    max_unknown_pieces: Annotated[Number, Field(ge=0, le=1)] = 0.001
    """A build ends with status 1 if the vocabulary lacks more than this share of a dataset's text, in tokens."""
    holdout: Annotated[Number, Field(ge=0, lt=1)] = 0.01
    """Share of episodes and documents that is held out, chosen by a hash of id and ``seed``."""
    seed: WholeNumber = 0
    """Of the held-out choice and of the order of documents."""
    datasets: Annotated[tuple[DatasetConfig, ...], Field(min_length=1)]
    """What is built; the keys of a dataset depend on its ``kind``."""

    @model_validator(mode="after")
    def _names(self) -> "BuildConfig":
        names = [dataset.name for dataset in self.datasets]
        for number, name in enumerate(names):
            if name in (MANIFEST, VOCABULARY, LOG):
                raise ValueError(
                    f"datasets[{number}].name: the build writes a file {name!r} of its own; choose another name"
                )
            if name in names[:number]:
                raise ValueError(
                    f"datasets[{number}].name: datasets[{names.index(name)}] has the name {name!r} already; "
                    "choose another"
                )
        return self


BUDGETS = ("free_bad_rows", "max_lost_bytes", "max_bad_images", "max_unknown_pieces")
"""Keys that are written into a manifest only if they have another value than the default."""


def read_config(path: str | Path) -> BuildConfig:
    """Reads and checks a config file; ConfigError names the file, the field's path, the value and what is allowed."""
    return validated(BuildConfig, read_mapping(path, "the keys vocabulary and datasets"), str(path))


def read_mapping(path: str | Path, keys: str) -> dict[str, Any]:
    """The mapping in the YAML file at ``path``; ``keys`` says in an error what such a file holds.

    Raises ConfigError if the file cannot be read or is not YAML.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST_CONFIG)
        if len(text) == _LARGEST_CONFIG:
            raise ConfigError(f"{path}: has more than {_LARGEST_CONFIG:,} characters; give a config")
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
    """SafeLoader that refuses a key given twice, where YAML would silently take the last, and aliases that unfold to
    very many values."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _unfolded(node, {}) > _MOST_VALUES:
            problem = f"aliases unfold to more than {_MOST_VALUES:,} values and characters; write less"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node

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


def _unfolded(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """The values and characters below a node, those behind aliases each time that they are named."""
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if node not in known:
        known[node] = math.inf  # an alias inside of what it names
        children = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[node] = 1 + sum(_unfolded(child, known) for child in children)
    return known[node]
