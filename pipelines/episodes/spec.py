"""From a source's description of its fields and the config's rules to a task's spec."""

from dataclasses import dataclass

import numpy as np

from gatokit.pipelines.episodes.reader import SourceFeatures, SourceField
from gatokit.schemas.config import EpisodeImages, EpisodesConfig, FieldRule
from gatokit.schemas.episode import EpisodeSpec, FieldKind, FieldSpec, ImageSpec
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.tokens import NO_POSITION, PATCH
from gatokit.schemas.words import did_you_mean

_NO_RULE = FieldRule.model_validate({})


@dataclass(frozen=True)
class Context:
    """Where a spec is made, for error messages: the config path of the dataset and the source directory."""

    config: str
    directory: str

    def error(self, field: SourceField, problem: str, way_out: str) -> ConfigError:
        """An error about ``field`` that says what to write into the config."""
        return ConfigError(f"{self.directory}: field {field.path} {problem}; {way_out} under {self.config}.fields")


def episode_spec(features: SourceFeatures, dataset: EpisodesConfig, context: Context) -> EpisodeSpec:
    """The spec of a directory's tasks.

    ``num`` of a discrete action stays None where neither source nor config knows it. ConfigError names the
    field that cannot become tokens and what to do about it.
    """
    fields = []
    for source in features.steps:
        if source.path.split("/")[0] not in ("observation", "action"):
            continue
        field = _field(source, rule_of(dataset, source.path), dataset.images, context)
        if field is not None:
            fields.append(field)
    spec = EpisodeSpec.ordered(fields)
    for role, found in (("observation", spec.observation), ("action", spec.action)):
        if not found:
            raise ConfigError(f"{context.directory}: no {role} field is left to tokenize; see {context.config}.fields")
    fixed = sum(field.tokens or 0 for field in spec.observation)
    if fixed >= NO_POSITION:
        raise ConfigError(
            f"{context.directory}: a step's observation has {fixed} tokens, more than {NO_POSITION - 1}; "
            f"skip a field or give smaller images.size under {context.config}"
        )
    return spec


def rule_of(dataset: EpisodesConfig, path: str) -> FieldRule:
    """The config's rule for a field: that of its path, or of the closest path above it."""
    parts = path.split("/")
    for count in range(len(parts), 0, -1):
        rule = dataset.fields.get("/".join(parts[:count]))
        if rule is not None:
            return rule
    return _NO_RULE


def check_rules(dataset: EpisodesConfig, sources: list[SourceFeatures], config: str) -> None:
    """ConfigError where a rule names a field that no directory of the dataset has."""
    paths = {field.path for features in sources for field in features.steps}
    for rule_path in dataset.fields:
        if not any(path == rule_path or path.startswith(rule_path + "/") for path in paths):
            known = ", ".join(sorted(path for path in paths if path.split("/")[0] in ("observation", "action")))
            way_out = f"{did_you_mean(rule_path, paths)} its fields are {known}".lstrip()
            raise ConfigError(f"{config}.fields: the source has no field {rule_path!r}", way_out=way_out)


def _field(source: SourceField, rule: FieldRule, images: EpisodeImages, context: Context) -> FieldSpec | None:
    if rule.kind == "skip":
        return None
    if source.form == "unreadable":
        raise context.error(source, f"is a {source.type_name}, which has no tokens", "give it {as: skip}")
    kind = rule.kind or _default_kind(source)
    is_action = source.path.split("/")[0] == "action"
    _check_kind(source, kind, is_action, context)
    _check_rule(source, rule, kind, is_action, context)
    shape = tuple(side for side in source.shape if side is not None)
    if kind == "image":
        return FieldSpec(
            path=source.path,
            kind=kind,
            dtype="uint8",
            shape=shape,
            image=_image(source, rule.images or images, context),
        )
    if kind == "continuous":
        pairs = (rule.pairs or ((-1.0, 1.0),)) if is_action else None
        if pairs is not None and len(pairs) not in (1, int(np.prod(shape))):
            raise context.error(
                source, f"has {int(np.prod(shape))} components and range has {len(pairs)} pairs", "give one or as many"
            )
        return FieldSpec(path=source.path, kind=kind, dtype=source.dtype, shape=shape, range=pairs)
    if kind == "discrete":
        num = 2 if source.dtype == "bool" else rule.num or source.num
        return FieldSpec(path=source.path, kind=kind, dtype=source.dtype, shape=shape, num=num)
    return FieldSpec(path=source.path, kind=kind, dtype="str")


def _default_kind(source: SourceField) -> FieldKind:
    if source.form == "image":
        return "image"
    if source.form == "string":
        return "text"
    if source.dtype == "uint8" and len(source.shape) == 3 and source.shape[2] in (1, 3):
        return "image"
    return "continuous" if np.dtype(source.dtype).kind == "f" else "discrete"


def _check_kind(source: SourceField, kind: FieldKind, is_action: bool, context: Context) -> None:
    is_float = source.form == "tensor" and np.dtype(source.dtype).kind == "f"
    is_number = source.form == "tensor" and np.dtype(source.dtype).kind in "biuf"
    allowed = {
        "text": source.form == "string" and source.shape == (),
        "image": source.form == "image" or source.dtype == "uint8" or (source.form == "string" and not source.shape),
        "discrete": is_number and not is_float,
        "continuous": is_number and source.dtype != "bool",
    }[kind]
    if is_action and kind in ("text", "image"):
        raise context.error(
            source,
            f"is {'a text' if kind == 'text' else 'an image'}, and actions are discrete or continuous",
            "give it {as: skip}",
        )
    if not allowed:
        shape = list(source.shape)
        raise context.error(source, f"of dtype {source.dtype} and shape {shape} cannot be {kind}", "give it {as: skip}")
    if 0 in source.shape:
        raise context.error(source, f"is empty: its shape is {list(source.shape)}", "give it {as: skip}")


def _check_rule(source: SourceField, rule: FieldRule, kind: FieldKind, is_action: bool, context: Context) -> None:
    if rule.range is not None and not (kind == "continuous" and is_action):
        raise context.error(source, "is no continuous action and takes no range", "remove range")
    if rule.num is not None and (kind != "discrete" or source.dtype == "bool"):
        raise context.error(source, f"of dtype {source.dtype} as {kind} takes no num", "remove num")
    if rule.images is not None and kind != "image":
        raise context.error(source, f"is {kind} and takes no images", "remove images")


def _image(source: SourceField, images: EpisodeImages, context: Context) -> ImageSpec:
    shape = source.shape
    if source.form != "string" and (source.dtype != "uint8" or len(shape) != 3 or shape[2] not in (1, 3)):
        raise context.error(
            source,
            f"of dtype {source.dtype} and shape {list(shape)} is no image of one or three 8-bit channels",
            "give it {as: skip}",
        )
    size = images.size
    if size is None:
        if source.form == "string" or None in shape:
            raise context.error(source, "has frames of unknown size", "give it {images: {size: [H, W]}}")
        height, width = int(shape[0] or 0), int(shape[1] or 0)
        if height % PATCH or width % PATCH:
            near = [max(PATCH, PATCH * round(side / PATCH)) for side in (height, width)]
            raise context.error(
                source,
                f"has frames of {height}x{width}, no multiple of {PATCH}",
                f"give it {{images: {{size: {near}}}}}"
                + ("" if source.form == "image" else ", or {as: discrete} if it is no picture,"),
            )
        size = (height, width)
    return ImageSpec(height=size[0], width=size[1], codec=images.codec, quality=images.quality)
