"""The build config: a YAML file, checked field by field before any work begins."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gatokit.schemas.errors import ConfigError
from gatokit.schemas.tokens import BINS, CONTINUOUS_OFFSET, DISCRETE_VALUES, PATCH

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _one_of(value: Any, names: tuple[str, ...]) -> Any:
    if not isinstance(value, dict) or len(set(value) & set(names)) != 1:
        raise ValueError("give exactly one of " + ", ".join(f"{{{name}: …}}" for name in names))
    return value


class MetadataKey(_Model):
    """A value stored with each episode under ``metadata``: its key path, or its last component."""

    metadata: str


class TaskName(_Model):
    """Where an episode's task name comes from: the directory, a metadata key, or one constant."""

    source: Literal["directory"] | None = Field(None, alias="from")
    metadata: str | None = None
    constant: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _exactly_one(cls, value: Any) -> Any:
        return _one_of(value, ("from", "metadata", "constant"))


class Keep(_Model):
    """Which episodes stay: a fraction of the windowed expert return, all, or those marked as successes."""

    min_return: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    random_return: float | dict[str, float] | None = None
    """With ``min_return``: the fraction counts from this return (one, or one a task) instead of from zero."""
    streams: Literal["agent", "task"] = "agent"
    """With ``min_return``: windows run inside one agent's episodes, or over all of a task's."""
    all: Literal[True] | None = None
    success: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _exactly_one(cls, value: Any) -> Any:
        value = _one_of(value, ("min_return", "all", "success"))
        if "min_return" not in value and len(value) > 1:
            raise ValueError("random_return and streams belong to min_return")
        return value


class ImageSize(_Model):
    """Pixels and codec of stored frames."""

    size: tuple[int, int] | None = None
    """Height and width; default: as recorded."""
    codec: Literal["png", "jpeg"] | None = None
    """Default: PNG and JPEG stay as they are, everything else becomes PNG."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95

    @field_validator("size")
    @classmethod
    def _multiples(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and any(side <= 0 or side % PATCH for side in value):
            near = [max(PATCH, PATCH * round(side / PATCH)) for side in value]
            raise ValueError(f"height and width must be multiples of {PATCH}; the nearest are {near}")
        return value


class FieldRule(_Model):
    """What the source's own description of a field cannot say."""

    kind: Literal["skip", "text", "image", "discrete", "continuous"] | None = Field(None, alias="as")
    range: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    """Continuous actions: low and high, or one such pair a component."""
    num: Annotated[int, Field(ge=1, le=DISCRETE_VALUES)] | None = None
    images: ImageSize | None = None

    @field_validator("range")
    @classmethod
    def _ascending(cls, value: Any) -> Any:
        pairs = [value] if value and isinstance(value[0], float) else value or []
        for pair in pairs:
            if not (math.isfinite(pair[0]) and math.isfinite(pair[1]) and pair[0] < pair[1]):
                raise ValueError(f"low must be below high and both finite, not {list(pair)}")
        return value

    @property
    def pairs(self) -> tuple[tuple[float, float], ...] | None:
        """``range`` as pairs, one for all components or one each."""
        if self.range is None:
            return None
        if isinstance(self.range[0], float):
            return (self.range,)
        return self.range


class EpisodesConfig(_Model):
    """A dataset of RL episodes (RLDS)."""

    name: Name
    kind: Literal["episodes"]
    source: str
    task: TaskName = TaskName.model_validate({"from": "directory"})
    agent: MetadataKey | None = None
    order: MetadataKey | None = None
    id: MetadataKey | None = None
    splits: tuple[str, ...] | None = None
    merge: bool = False
    keep: Keep = Keep(min_return=0.8)
    fields: dict[str, FieldRule] = {}
    images: ImageSize = ImageSize()
    hz: Positive | None = None
    license: str | None = None
    weight: Positive = 1.0

    @field_validator("fields")
    @classmethod
    def _paths(cls, value: dict[str, FieldRule]) -> dict[str, FieldRule]:
        for path in value:
            if path.split("/")[0] not in ("observation", "action"):
                raise ValueError(f"{path!r} is no field path: it begins with observation or action")
        return value


class BuildConfig(_Model):
    """A whole build: the vocabulary, how records are cut and shards planned, and the datasets."""

    vocabulary: str
    discrete_offset: Literal[0, 33024] = 0
    chunk_tokens: Annotated[int, Field(ge=1, le=1 << 24)] = 4096
    shard_bytes: Annotated[int, Field(ge=1 << 10)] = 256 << 20
    max_episode_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.01
    seed: int = 0
    datasets: Annotated[tuple[EpisodesConfig, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names(self) -> "BuildConfig":
        names = [dataset.name for dataset in self.datasets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two datasets have the name {name!r}")
        return self


assert CONTINUOUS_OFFSET + BINS == 33024


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)


def read_config(path: str | Path) -> BuildConfig:
    """Reads and checks a config file.

    ConfigError names the file, the field's path, the value and what is allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config: {getattr(error, 'strerror', None) or error}") from None
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a mapping with the keys vocabulary and datasets")
    try:
        return BuildConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_sentence(item, content) for item in _worst(error))) from None


def _worst(error: ValidationError) -> list[Any]:
    """At most three errors, those of a union's branches that were not meant left out."""
    return [item for item in error.errors() if item["type"] != "model_type"][:3] or error.errors()[:3]


def _sentence(item: Any, content: Any) -> str:
    path, model = "", content
    for part in item["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
            model = model[part] if isinstance(model, list | tuple) and part < len(model) else None
        elif (isinstance(model, dict) and part in model) or not path.endswith(f".{part}"):
            if not isinstance(part, str) or "[" in part or part in ("float", "int", "str"):
                continue
            path += f".{part}" if path else part
            model = model.get(part) if isinstance(model, dict) else None
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        return f"{path}: unknown key; remove it or check its spelling"
    if kind == "missing":
        return f"{path}: this key is required"
    message = item["msg"].removeprefix("Value error, ")
    shown = repr(value)
    return f"{path or 'config'}: {message[0].lower() + message[1:]}" + (
        f" (got {shown})" if len(shown) <= 60 and not isinstance(value, BaseModel) else ""
    )
