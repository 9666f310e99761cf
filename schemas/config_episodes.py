"""The keys of a dataset of episodes: its sources, its names, which episodes are kept, which fields become tokens."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    model_serializer,
    model_validator,
)

from gatokit.schemas.config_types import (
    ConfigModel,
    DatasetModel,
    Number,
    Positive,
    Quality,
    Size,
    Text,
    WholeNumber,
    is_number,
)
from gatokit.schemas.tokens import DISCRETE_VALUES
from gatokit.schemas.where import Where, check_pattern

# --- values of an episode ------------------------------------------------------------------------------------------


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return value


def _text_pattern(value: str) -> str:
    check_pattern(value)
    return value


Pattern = Annotated[Text, AfterValidator(_pattern)]
"""A regular expression of Python, which may match anywhere in the text."""
TextPattern = Annotated[Text, AfterValidator(_text_pattern)]
"""A regular expression of RE2, as ``matches`` of ``where`` has it."""


class _OneOf(ConfigModel):
    """A mapping of which exactly one key is given."""

    @model_validator(mode="before")
    @classmethod
    def _exactly_one(cls, value: Any) -> Any:
        names = [field.alias or name for name, field in cls.model_fields.items() if name != "matches"]
        if not isinstance(value, dict) or [value[name] is None for name in names if name in value] != [False]:
            raise ValueError("give exactly one of " + ", ".join(f"{{{name}: …}}" for name in names))
        return value


class EpisodeKey(_OneOf):
    """A number or text of each episode."""

    metadata: Text | None = None
    """A value stored with each episode: its key path, or its last component if that is unique."""
    field: Text | None = None
    """A field of the steps, of which the first step's value counts: its key path."""
    path: Pattern | None = None
    """A regular expression in the path of the episode's file below the source: its first group, or the whole match."""


class EpisodeName(EpisodeKey):
    """A name of each episode: of its task or its agent."""

    source: Literal["directory"] | None = Field(None, alias="from")
    """The directory's path below the source, without version directories."""
    constant: Text | None = None
    """One name for all."""


# --- which episodes are kept ---------------------------------------------------------------------------------------


class Success(_OneOf):
    """What marks an episode as a success. A text in the config is its ``key``."""

    key: Text | None = None
    """A metadata key or, if there is none, a field of the steps."""
    metadata: Text | None = None
    """A value stored with each episode."""
    field: Text | None = None
    """A field of the steps: a success if any step has a true one."""
    last_reward: Number | None = None
    """A success if the last reward is at least this."""
    matches: TextPattern | None = None
    """With ``key``, ``metadata`` or ``field``: a success if the text matches, and not if it is a true number."""

    @model_validator(mode="after")
    def _text(self) -> "Success":
        if self.matches is not None and self.last_reward is not None:
            raise ValueError("matches belongs to metadata or field; remove it")
        return self

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> Any:
        return self.key if self.key is not None and self.matches is None else write(self)


def _mark(value: Any) -> Any:
    return {"key": value} if isinstance(value, str) else value


def _amount(value: Any) -> Any:
    if not is_number(value) or not (type(value) is int or 0 < float(value) < 1):
        raise ValueError("must be a whole number of episodes a task, or a share of them between 0 and 1")
    if type(value) is int and value < 1:
        raise ValueError("must be at least 1 episode a task")
    return value if type(value) is int else float(value)


def _return_range(value: Any) -> Any:
    ends = list(value) if isinstance(value, list | tuple) else []
    if len(ends) != 2 or not all(end is None or is_number(end) for end in ends):
        raise ValueError("must be [low, high], two finite numbers, of which one may be null")
    if ends == [None, None]:
        raise ValueError("must have an end; give {all: true} to keep every return")
    if None not in ends and float(ends[0]) > float(ends[1]):
        raise ValueError("low must not be above high")
    return value


def _random_return(value: Any) -> Any:
    by_task = value if isinstance(value, dict) else {"": value}
    if not all(isinstance(task, str) and is_number(number) for task, number in by_task.items()):
        raise ValueError("must be a finite number, or such a number for each task, {TASK: NUMBER}")
    return value


def _expression(value: str) -> str:
    Where(value, None)  # only the source knows the columns
    return value


def _hexadecimal(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError("must be 64 hexadecimal digits in lower case")
    return value


ReturnRange = Annotated[tuple[Number | None, Number | None], BeforeValidator(_return_range)]
Amount = Annotated[int | float, BeforeValidator(_amount)]
"""A number of episodes of each task, or a share of them."""
_KEEP_RULES = ("min_return", "return", "success", "where", "episodes", "best", "sample")
_BELONGS_TO = {
    "random_return": "min_return",
    "streams": "min_return",
    "digest": "episodes",
    "by": "best",
    "seed": "sample",
}


class Keep(ConfigModel):
    """Which episodes are kept: all, or those that pass every given rule.

    The rules are a fraction of the windowed expert return, a range of returns, a mark of success, an expression over
    columns of the index, and a list. Of the episodes of a task that pass these, ``best`` keeps those with the highest
    returns, and of these ``sample`` keeps a random sample.
    """

    min_return: Annotated[Number, Field(ge=0, le=1)] | None = None
    """Lowest return, as a fraction of the task's windowed expert return (Gato, section 2.2)."""
    random_return: Annotated[float | dict[str, float], BeforeValidator(_random_return)] | None = None
    """With ``min_return``: the fraction counts from this return (one number, or one a task) and not from zero."""
    streams: Literal["agent", "task"] = "agent"
    """With ``min_return``: windows contain the episodes of one agent, or of all agents of a task."""
    all: Literal[True] | None = None
    """Every sound episode."""
    success: Annotated[Success, BeforeValidator(_mark)] | None = None
    """What marks an episode as a success."""
    returns: ReturnRange | None = Field(default=None, alias="return")
    """Lowest and highest return, both included; one of them may be null."""
    where: Annotated[Text, AfterValidator(_expression)] | None = None
    """An expression over columns of the index."""
    episodes: Text | None = None
    """The path of a list of episodes."""
    digest: Annotated[Text, AfterValidator(_hexadecimal)] | None = None
    """With ``episodes``: the BLAKE2b-256 digest of the file; another file is refused. A manifest always has it."""
    best: Amount | None = None
    """The episodes of the highest returns of each task."""
    by: Text | None = None
    """With ``best``: a column of numbers of the index; the highest values are the best. Default: the return."""
    sample: Amount | None = None
    """Random episodes of each task."""
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


class EpisodeImages(ConfigModel):
    """Pixels and codec of an episode's stored frames."""

    size: Size | None = None
    """Default: as recorded."""
    codec: Literal["png", "jpeg"] | None = None
    """Default: PNG and JPEG are copied, everything else becomes PNG."""
    quality: Quality = 95
    """Of JPEG."""


# --- which fields become tokens ------------------------------------------------------------------------------------


class Quantiles(ConfigModel):
    """A range between two quantiles of each component's values, such as [0.01, 0.99]."""

    quantiles: tuple[float, float]
    """Two shares of the values, from 0 to 1."""


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))


def _ascending(value: Any) -> Any:
    if value is None or value == "data" or isinstance(value, Quantiles):
        return value
    if isinstance(value, dict) and value.keys() == {"quantiles"}:
        quantiles = value["quantiles"]
        if not _is_pair(quantiles) or not 0 <= float(quantiles[0]) < float(quantiles[1]) <= 1:
            raise ValueError("quantiles must be two numbers from 0 to 1, such as [0.01, 0.99]")
        return Quantiles(quantiles=quantiles)
    pairs = value if isinstance(value, list | tuple) and value and not is_number(value[0]) else [value]
    for pair in pairs:
        if not _is_pair(pair):
            raise ValueError(
                "must be [low, high], two finite numbers, or a list of one such pair a component, or data, or "
                "{quantiles: [low, high]}"
            )
        if not float(pair[0]) < float(pair[1]):
            raise ValueError(f"low must be below high, not {list(pair)}")
    return value


_Range = tuple[float, float] | tuple[tuple[float, float], ...]


class FieldRule(ConfigModel):
    """How a field is read, where the source's own description does not say it."""

    kind: Literal["skip", "text", "image", "depth", "discrete", "continuous"] | None = Field(None, alias="as")
    """What it becomes: no tokens, text, an image, a grey image of depths, discrete or continuous values. ``text`` can
    be made of strings or of integers that are codes of characters, ``image`` of files in strings and of numbers of the
    shapes (H, W), (H, W, 1 or 3 or 4) and (1 or 3, H, W); a fourth channel is dropped. A video of the episode with one
    frame for each step gives each step an image."""
    range: Annotated[_Range | Literal["data"] | Quantiles | None, BeforeValidator(_ascending)] = None
    """Of a continuous action: low and high, or one such pair a component, which are rescaled to -1 and 1 (default:
    [-1, 1]); ``data`` takes the lowest and highest value of each component, ``{quantiles: [low, high]}`` two quantiles.
    Of ``depth``: the depths that become black and white, which must be given. Of an ``image`` whose values are no 8-bit
    pixels: the values that become black and white (default: [0, 1] of floats, [0, 65535] of uint16, [0, 255] of other
    integers). What lies outside is black or white, and counted."""
    clip: StrictBool | None = None
    """Values outside of ``range`` are taken for its ends, however many they are; they are counted."""
    num: Annotated[WholeNumber, Field(ge=1, le=DISCRETE_VALUES)] | None = None
    """Of a discrete field: the number of values."""
    offset: WholeNumber | None = None
    """Of a discrete field: its lowest value, which becomes 0."""
    every: Literal["step", "episode"] | None = None
    """Of text: stands in every step (default), or only in the first step of an episode."""
    max_length: Annotated[WholeNumber, Field(ge=1)] | None = None
    """Of a field whose length varies: values behind this many are refused, and shorter ones are filled with zeros."""
    images: EpisodeImages | None = None
    """Pixels and codec of its stored frames. Default: those of the dataset."""

    @property
    def pairs(self) -> tuple[tuple[float, float], ...] | None:
        """``range`` as pairs, one for all components or one each; None if it is not given as numbers."""
        if not isinstance(self.range, tuple):
            return None
        return self.range if isinstance(self.range[0], tuple) else (self.range,)


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[Text, ...], BeforeValidator(_list), Field(min_length=1)]


class Splits(ConfigModel):
    """Splits of the source, or slices of them such as ``train[:25%]``. A list in the config is ``train``."""

    train: Names
    """Splits to build."""
    held_out: Names | None = None
    """Splits that are held out in place of ``holdout``."""

    @model_validator(mode="after")
    def _each_once(self) -> "Splits":
        every = [*self.train, *(self.held_out or ())]
        if len(set(every)) < len(every):
            raise ValueError("name each split once")
        return self

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> Any:
        return list(self.train) if self.held_out is None else write(self)


def _splits(value: Any) -> Any:
    return value if isinstance(value, dict | Splits) else {"train": value}


class EpisodesConfig(DatasetModel):
    """A dataset of RL episodes (RLDS)."""

    kind: Literal["episodes"]
    """Says that the dataset holds episodes."""
    source: Text
    """A pattern of directories: TFDS directories or EnvLogger logs at or below its matches."""
    splits: Annotated[Splits, BeforeValidator(_splits)] | None = None
    """Which splits of the source are read. Default: ``train`` where there is one, else all."""
    files: Literal["all", "present"] | None = None
    """``present`` reads a part of a download: files that are missing are counted, and no error. Default: all."""
    merge: StrictBool = False
    """Several directories may give one task."""
    last_step: Literal["auto", "padding", "real"] | None = None
    """Whether the step that ``is_last`` marks has no action and no reward (RLDS) or real ones (Open X-Embodiment).
    ``auto``, the default, decides by the data."""
    task: EpisodeName = EpisodeName.model_validate({"from": "directory"})
    """The task's name."""
    agent: EpisodeName | None = None
    """The name of the agent that acted. Default: one agent a task."""
    order: EpisodeKey | None = None
    """The number by which an agent's episodes were collected. Default: the position in the source."""
    id: EpisodeKey | None = None
    """The episode's id. Default: file and position."""
    keep: Keep = Keep(min_return=0.8)
    """Which episodes are kept."""
    observe: tuple[Text | Annotated[tuple[Text, ...], Field(min_length=1)], ...] | None = None
    """Fields of steps or episodes that become part of the observation beside ``observation``. Of a list in it, the
    first that is not empty counts."""
    action: Names | None = None
    """The field or fields that are the action. Default: ``action``."""
    fields: dict[str, FieldRule] = Field(default_factory=dict)
    """Rules by key path of a field, or of a group of fields."""
    images: EpisodeImages = EpisodeImages()
    """Pixels and codec of stored frames."""
    hz: Positive | None = None
    """Steps a second, if known."""
