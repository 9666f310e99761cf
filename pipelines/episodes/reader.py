"""What a source of episodes offers, and which of its fields become tokens.

A source is directories with files, and in them stored episodes. A format is a module with a subclass of
``EpisodeFile``; ``scan.py`` lists them. Legend: N recorded steps, the last one included.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from gatokit.pipelines.formats.records import ByteRange, Stored
from gatokit.schemas.config_episodes import EpisodeImages, EpisodesConfig, FieldRule, Splits
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import EpisodeSpec, FieldKind, FieldSpec, ImageSpec
from gatokit.schemas.tokens import NO_POSITION, PATCH
from gatokit.schemas.words import did_you_mean

Values = np.ndarray | list[bytes]

_ROLES = ("observation", "action")
_NO_RULE = FieldRule.model_validate({})
_SKIP = "give it {as: skip}"


class SourceField(BaseModel):
    """A field as the source describes it; ``dtype`` is ``str`` for strings and bytes.

    ``path`` is the key path below the step (``observation/image``) or the episode
    (``episode_metadata/agent_id``). ``form`` says how values are stored: ``unreadable`` ones can only be
    skipped, and ``type_name`` says what they are.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    dtype: str
    shape: tuple[int | None, ...] = ()
    form: Literal["tensor", "image", "string", "unreadable"] = "tensor"
    encoding: Literal["none", "bytes", "zlib"] = "none"
    num: int | None = None
    type_name: str = "Tensor"

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides of the shape that are known."""
        return tuple(side for side in self.shape if side is not None)


class SourceFeatures(BaseModel):
    """The fields of a step and those of an episode."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[SourceField, ...]
    metadata: tuple[SourceField, ...]

    def step(self, path: str) -> SourceField | None:
        """The step field at ``path``."""
        return next((field for field in self.steps if field.path == path), None)

    def step_scalar(self, path: str) -> SourceField | None:
        """The step field at ``path`` if it is one number a step, of shape () or (1,)."""
        field = self.step(path)
        return field if field is not None and field.form == "tensor" and field.shape in ((), (1,)) else None

    def metadata_field(self, key: str) -> SourceField | None:
        """The metadata field with the path ``key``, or the only one whose path ends in ``key``."""
        exact = [field for field in self.metadata if field.path == key]
        last = [field for field in self.metadata if field.path.split("/")[-1] == key]
        return exact[0] if exact else last[0] if len(last) == 1 else None


class RawEpisode(Protocol):
    """One stored episode whose fields are decoded when asked for."""

    def column(self, field: SourceField) -> Values:
        """The N values of a step field: an array (N, *shape), or N byte strings for strings and images.

        Raises RejectedError if they are absent, do not parse or have another size.
        """

    def metadata(self, field: SourceField) -> str | float | int | None:
        """The value of a scalar metadata field; None if the episode has none."""


StoredEpisode = Stored[RawEpisode]


@dataclass(frozen=True)
class SourceDirectory:
    """A directory of one format: ``name`` is its path below the source without version directories.

    ``splits`` has the episodes of the files by the split, or slice of a split, that they were asked for as, and
    ``left_out`` the episodes of the splits of which nothing is read. ``missing`` is the number of files that are left
    out because they are not there. ``in_order`` is set if the files hold the episodes as they were collected.
    """

    path: str
    name: str
    features: SourceFeatures
    files: tuple["EpisodeFile", ...]
    splits: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    in_order: bool = False


class EpisodeFile(BaseModel, ABC):
    """A file of a source: ``path`` opens it, ``name`` is its path below the source, ``size`` its bytes, ``episodes``
    the number that the source states. It travels to workers as JSON, in which ``format`` tells the subclasses apart.

    If only a part of the file is read, ``positions`` are its first episode and the one behind its last, and ``size`` is
    its share of the bytes. ``split`` is that of the source, and ``held_out`` is set if the config holds it out.
    """

    model_config = ConfigDict(frozen=True)

    marker: ClassVar[str]
    """The name of the file that marks a directory of this format."""

    format: str
    path: str
    name: str
    size: int
    episodes: int | None
    positions: tuple[int, int] | None = None
    split: str = ""
    held_out: bool = False

    divides: ClassVar[bool] = True
    """Every format of episodes can be read from the middle of a file."""

    @staticmethod
    @abstractmethod
    def read_directory(
        path: str, name: str, below: str, splits: Splits | None, is_partial: bool = False
    ) -> SourceDirectory:
        """The features and files of a directory of this format.

        ``below`` is the path that file names are relative to. ``splits`` None means ``train``, or all splits if there
        is no such split. With ``is_partial`` files may be missing. Raises ConfigError if a split does not exist,
        DataError if the directory cannot be read or is incomplete.
        """

    @abstractmethod
    def read_all(self, max_bytes: int) -> Iterator[StoredEpisode]:
        """Yields the episodes of ``positions`` in file order. Damaged ones and those above ``max_bytes`` are
        rejections."""

    @abstractmethod
    def read_some(self, byte_ranges: Iterable[ByteRange]) -> Iterator[RawEpisode]:
        """Yields the episodes at ``byte_ranges``, in their order.

        Raises DataError (``changed``) if the file no longer holds what a scan found there.
        """

    def changed(self, byte_range: ByteRange) -> DataError:
        """The error of a file that no longer holds what a scan found at ``byte_range``."""
        return DataError(
            f"{self.name}: episode {byte_range.position} changed between scan and build. Run the build again"
        )


# --- from the fields of a source and the rules of the config to a spec ---------------------------------------


class _FieldError(Exception):
    """A field cannot become tokens: its problem, and what to write into the config."""


def episode_spec(features: SourceFeatures, dataset: EpisodesConfig, config_path: str, directory: str) -> EpisodeSpec:
    """The spec of a directory's tasks; ``config_path`` is where the config describes the dataset.

    ``num`` of a discrete action stays None if neither source nor config knows it. Raises ConfigError, which names the
    field and what to do about it, if one cannot become tokens.
    """
    fields = []
    for source in features.steps:
        if source.path.split("/")[0] not in _ROLES:
            continue
        try:
            field = _field_spec(source, rule_of(dataset, source.path), dataset.images)
        except _FieldError as error:
            problem, way_out = error.args
            raise ConfigError(
                f"{directory}: field {source.path} {problem}; {way_out} under {config_path}.fields"
            ) from None
        if field is not None:
            fields.append(field)
    spec = EpisodeSpec.ordered(fields)
    for role, fields_of_role in zip(_ROLES, (spec.observation, spec.action), strict=True):
        if not fields_of_role:
            raise ConfigError(f"{directory}: no {role} field is left to tokenize; see {config_path}.fields")
    fixed = sum(field.tokens or 0 for field in spec.observation)
    if fixed >= NO_POSITION:
        raise ConfigError(
            f"{directory}: a step's observation has {fixed} tokens, more than {NO_POSITION - 1}; "
            f"skip a field or give smaller images.size under {config_path}"
        )
    return spec


def rule_of(dataset: EpisodesConfig, path: str) -> FieldRule:
    """The config's rule for a field: that of its path, or of the closest path above it."""
    while path and path not in dataset.fields:
        path = path.rpartition("/")[0]
    return dataset.fields.get(path, _NO_RULE)


def check_rules(dataset: EpisodesConfig, sources: Iterable[SourceFeatures], config_path: str) -> None:
    """Raises ConfigError if a rule names a field that no directory of the dataset has."""
    paths = {field.path for features in sources for field in features.steps}
    for rule_path in dataset.fields:
        if not any(path == rule_path or path.startswith(rule_path + "/") for path in paths):
            known = ", ".join(sorted(path for path in paths if path.split("/")[0] in _ROLES))
            way_out = f"{did_you_mean(rule_path, paths)} its fields are {known}".lstrip()
            raise ConfigError(f"{config_path}.fields: the source has no field {rule_path!r}", way_out=way_out)


def _field_spec(source: SourceField, rule: FieldRule, images: EpisodeImages) -> FieldSpec | None:
    """The spec of a field, None if the rule skips it. Raises _FieldError."""
    if rule.kind == "skip":
        return None
    if source.form == "unreadable":
        raise _FieldError(f"is a {source.type_name}, which has no tokens", _SKIP)
    kind: FieldKind = "image" if rule.kind == "depth" else rule.kind or _default_kind(source)
    is_action = source.path.split("/")[0] == "action"
    _check_kind(source, kind, is_action)
    if rule.range is not None and not (kind == "continuous" and is_action):
        raise _FieldError("is no continuous action and takes no range", "remove range")
    if rule.num is not None and (kind != "discrete" or source.dtype == "bool"):
        raise _FieldError(f"of dtype {source.dtype} as {kind} takes no num", "remove num")
    if rule.images is not None and kind != "image":
        raise _FieldError(f"is {kind} and takes no images", "remove images")
    if kind == "image":
        image = _image_spec(source, rule.images or images)
        return FieldSpec(path=source.path, kind=kind, dtype="uint8", shape=source.sides, image=image)
    if kind == "continuous":
        is_open = rule.range is not None and rule.pairs is None  # the data will say it
        pairs = (rule.pairs or ((-1.0, 1.0),)) if is_action and not is_open else None
        size = math.prod(source.sides)
        if pairs is not None and len(pairs) not in (1, size):
            raise _FieldError(f"has {size} components and range has {len(pairs)} pairs", "give one or as many")
        return FieldSpec(path=source.path, kind=kind, dtype=source.dtype, shape=source.sides, range=pairs)
    if kind == "discrete":
        num = 2 if source.dtype == "bool" else rule.num or source.num
        return FieldSpec(path=source.path, kind=kind, dtype=source.dtype, shape=source.sides, num=num)
    return FieldSpec(path=source.path, kind=kind, dtype="str")


def _default_kind(source: SourceField) -> FieldKind:
    if source.form == "string":
        return "text"
    if source.form == "image" or _is_image_array(source):
        return "image"
    return "continuous" if np.dtype(source.dtype).kind == "f" else "discrete"


def _is_image_array(source: SourceField) -> bool:
    return source.dtype == "uint8" and len(source.shape) == 3 and source.shape[2] in (1, 3)


def _check_kind(source: SourceField, kind: FieldKind, is_action: bool) -> None:
    type_code = np.dtype(source.dtype).kind if source.form == "tensor" else ""
    is_scalar_string = source.form == "string" and not source.shape
    is_possible = {
        "text": is_scalar_string,
        "image": source.form == "image" or source.dtype == "uint8" or is_scalar_string,
        "discrete": type_code in ("b", "i", "u"),
        "continuous": type_code in ("i", "u", "f"),
    }[kind]
    if is_action and kind in ("text", "image"):
        noun = "a text" if kind == "text" else "an image"
        raise _FieldError(f"is {noun}, and actions are discrete or continuous", _SKIP)
    if not is_possible:
        raise _FieldError(f"of dtype {source.dtype} and shape {list(source.shape)} cannot be {kind}", _SKIP)
    if 0 in source.shape:
        raise _FieldError(f"is empty: its shape is {list(source.shape)}", _SKIP)


def _image_spec(source: SourceField, images: EpisodeImages) -> ImageSpec:
    shape, size = source.shape, images.size
    if source.form != "string" and not _is_image_array(source):
        problem = f"of dtype {source.dtype} and shape {list(shape)} is no image of one or three 8-bit channels"
        raise _FieldError(problem, _SKIP)
    if size is None:
        if source.form == "string" or None in shape:
            raise _FieldError("has frames of unknown size", "give it {images: {size: [H, W]}}")
        size = (int(shape[0] or 0), int(shape[1] or 0))
        if size[0] % PATCH or size[1] % PATCH:
            near = [max(PATCH, PATCH * round(side / PATCH)) for side in size]
            other = "" if source.form == "image" else ", or {as: discrete} if it is no image,"
            problem = f"has frames of {size[0]}x{size[1]}, no multiple of {PATCH}"
            raise _FieldError(problem, f"give it {{images: {{size: {near}}}}}{other}")
    return ImageSpec(height=size[0], width=size[1], codec=images.codec, quality=images.quality)
