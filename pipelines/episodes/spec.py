"""Which fields of a source become tokens, and in what form: from a source's features and the config to a spec.

Fields of a source are named by the key path that the source gives them: ``observation/image`` or
``language_instruction`` of a step, ``episode_metadata/task`` of an episode. In a spec, the path of every field begins
with its role: ``observation`` or ``action``.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gatokit.pipelines.episodes.reader import SourceDirectory, SourceFeatures, SourceField
from gatokit.pipelines.episodes.videos import frame_field
from gatokit.schemas.config_episodes import EpisodeImages, EpisodesConfig, FieldRule
from gatokit.schemas.errors import ConfigError, ConfigErrors
from gatokit.schemas.manifest import EpisodeSpec, FieldKind, FieldSpec, ImageSpec
from gatokit.schemas.tokens import NO_POSITION, PATCH
from gatokit.schemas.words import did_you_mean

_Owner = Literal["step", "episode"]
_NO_RULE = FieldRule.model_validate({})
_SKIP = {"as": "skip"}
_SKIP_RULE = FieldRule.model_validate(_SKIP)
_READ_AS_SUCH = ("reward", "discount", "is_first", "is_last", "is_terminal")
_UNUSED, _SKIPPED = "neither observation nor action", "skipped by the config"
_PICTURE_SIDE = 32
"""Numbers with two sides of at least this many are perhaps a picture."""
_WIDE = 256
"""A field of more tokens a step is worth a note."""
_WINDOW = 1024
"""Tokens of a window (Gato, section 3.1), in which two steps should have room."""
_DEPTHS = {"f": ([0, 10], "metres"), "u": ([0, 10_000], "millimetres"), "i": ([0, 10_000], "millimetres")}
"""By the kind of a dtype, a range of depths that would do, and its unit."""


@dataclass(frozen=True)
class FieldUse:
    """What becomes of a field of a source: ``spec``, or None and ``why`` it has no tokens.

    ``belongs_to`` tells fields of steps from those of episodes. ``is_error`` is set if a build refuses the field as the
    config has it; then ``why`` is the problem. ``way_out`` says what to do about it, and ``rule`` is what to write for
    the field under ``fields``, if that would do.
    """

    source: SourceField
    belongs_to: _Owner
    spec: FieldSpec | None = None
    why: str = ""
    way_out: str = ""
    rule: dict[str, Any] | None = field(default=None, hash=False)
    is_error: bool = False


class _FieldError(Exception):
    """A field cannot become tokens: its problem, what to do about it, and the keys to add to its rule."""

    def __init__(self, problem: str, way_out: str = "", rule: dict[str, Any] | None = None, else_: str = "") -> None:
        super().__init__(problem)
        self.problem, self.rule = problem, rule
        self.way_out = f"give it {_flow(rule)}{else_}" if rule is not None else way_out


class _LeftOutError(_FieldError):
    """A field that has no tokens, whatever is written, or none without more being written."""


def episode_specs(
    directories: Sequence[SourceDirectory], dataset: EpisodesConfig, config_path: str
) -> list[EpisodeSpec]:
    """The spec of each directory's tasks; ``config_path`` is where the config describes the dataset.

    ``num`` of a discrete action stays None if neither source nor config knows it. Raises ConfigError, which names every
    field that cannot become tokens and what to do about it.
    """
    collected = ConfigErrors()
    _check_names(dataset, [directory.features for directory in directories], config_path, collected)
    specs: dict[SourceFeatures, EpisodeSpec] = {}
    errors: dict[str, tuple[str, FieldUse]] = {}
    for directory in directories:
        if directory.features in specs:
            continue
        uses = field_uses(directory.features, dataset)
        specs[directory.features] = _spec(uses)
        for use in uses:
            if use.is_error:
                errors.setdefault(use.source.path, (directory.path, use))
    with collected.collect("fields"):
        if errors:
            raise _field_errors(list(errors.values()), config_path)
    collected.check()
    for directory in directories:
        _check_spec(specs[directory.features], directory, dataset, config_path)
    return [specs[directory.features] for directory in directories]


def field_uses(features: SourceFeatures, dataset: EpisodesConfig) -> list[FieldUse]:
    """Every field of a step, then every field of an episode, with what becomes of it."""
    targets = _targets(features, dataset)
    steps = {source.path: source for source in features.steps}
    uses: dict[tuple[str, str], FieldUse] = {}
    for path, sources in targets.items():
        for number, source in enumerate(sources):
            belongs_to: _Owner = "step" if steps.get(source.path) is source else "episode"
            if number:
                use = FieldUse(source, belongs_to, why=f"stands in for {sources[0].path} where that is empty")
            else:
                use = _used(path, sources, belongs_to, dataset)
            uses[belongs_to, source.path] = use
    every: list[tuple[_Owner, SourceField]] = [("step", source) for source in features.steps]
    stored = features.stored_values
    every += [("episode", item) for item in features.metadata if item in stored or ("episode", item.path) in uses]
    return [uses.get((owner, source.path)) or _unused(source, owner, dataset) for owner, source in every]


def _spec(uses: Iterable[FieldUse]) -> EpisodeSpec:
    return EpisodeSpec.ordered([use.spec for use in uses if use.spec is not None])


def _used(path: str, sources: Sequence[SourceField], belongs_to: _Owner, dataset: EpisodesConfig) -> FieldUse:
    """What becomes of the field at ``path`` of a spec, which is read from ``sources``."""
    first, is_action = sources[0], path.split("/")[0] == "action"
    rule, is_own = rule_of(dataset, first.path), first.path in dataset.fields
    if rule.kind == "skip":
        return FieldUse(first, belongs_to, why=_SKIPPED)
    try:
        ones = sources if belongs_to == "step" else list(map(frame_field, sources))
        specs = [_field_spec(source, rule, dataset.images, is_action, is_own) for source in ones]
        if len(sources) > 1 and any(spec.kind != "text" for spec in specs):
            raise _FieldError("is to be replaced where it is empty, which texts alone can be", "name one field")
    except _FieldError as error:
        is_asked = rule.kind is not None or is_action or first.path in (dataset.observe or ())
        added = error.rule
        if added is not None and added != _SKIP:
            given = rule.model_dump(mode="json", by_alias=True, exclude_unset=True)
            images = {**given.get("images", {}), **added.get("images", {})}
            added = {**given, **added} | ({"images": images} if images else {})
        is_error = is_asked or not isinstance(error, _LeftOutError)
        return FieldUse(first, belongs_to, None, error.problem, error.way_out, added, is_error)
    paths = tuple(source.path for source in sources)
    return FieldUse(
        first, belongs_to, specs[0].model_copy(update={"path": path, "source": None if paths == (path,) else paths})
    )


def _unused(source: SourceField, belongs_to: _Owner, dataset: EpisodesConfig) -> FieldUse:
    if rule_of(dataset, source.path).kind == "skip":
        return FieldUse(source, belongs_to, why=_SKIPPED)
    if belongs_to == "step" and source.path in _READ_AS_SUCH:
        return FieldUse(source, belongs_to, why=f"read as {source.path}")
    return FieldUse(source, belongs_to, why=_UNUSED, way_out=f"observe: [{_plain(source.path)}]")


def rule_of(dataset: EpisodesConfig, path: str) -> FieldRule:
    """The config's rule for a field of the source: that of its path, or of the closest path above it."""
    while path and path not in dataset.fields:
        path = path.rpartition("/")[0]
    return dataset.fields.get(path, _NO_RULE)


# --- which fields the config names -------------------------------------------------------------------------------


def _named(fields: Iterable[SourceField], name: str) -> list[SourceField]:
    """The fields at or below a key path."""
    return [source for source in fields if source.path == name or source.path.startswith(name + "/")]


def _observed(features: SourceFeatures, name: str) -> list[SourceField]:
    """What a name under ``observe`` means: step fields or, if there are none, fields of the episode."""
    metadata = features.metadata_field(name)
    found = _named(features.steps, name) or _named(features.metadata, name)
    return found or ([] if metadata is None else [metadata])


def _targets(features: SourceFeatures, dataset: EpisodesConfig) -> dict[str, list[SourceField]]:
    """The path in the spec of every field that is observation or action, and the source's fields that it is read from,
    more than one if the first that is not empty counts."""
    targets: dict[str, list[SourceField]] = {}
    names = dataset.action or ("action",)
    last = Counter(name.split("/")[-1] for name in names)
    for name in names:
        place = "action"
        if len(names) > 1:
            place += "/" + (name if last[name.split("/")[-1]] > 1 else name.split("/")[-1])
        for source in _named(features.steps, name):
            targets[place + source.path.removeprefix(name)] = [source]
    observed: dict[str, list[SourceField]] = {}
    for entry in _entries(dataset):
        found = [source for name in entry for source in _observed(features, name)]
        if len(entry) > 1 and found:
            observed[_observation(found[0].path)] = found
        else:
            observed |= {_observation(source.path): [source] for source in found}
    taken = {source.path for sources in (*targets.values(), *observed.values()) for source in sources}
    targets |= {source.path: [source] for source in _named(features.steps, "observation") if source.path not in taken}
    return targets | observed


def _entries(dataset: EpisodesConfig) -> list[tuple[str, ...]]:
    """The entries of ``observe``, each as the names of which the first that is not empty counts."""
    return [(entry,) if isinstance(entry, str) else entry for entry in dataset.observe or ()]


def _observation(path: str) -> str:
    return path if path.split("/")[0] == "observation" else f"observation/{path}"


def _check_names(
    dataset: EpisodesConfig, sources: Sequence[SourceFeatures], config_path: str, errors: ConfigErrors
) -> None:
    """Collects ConfigErrors if the config names fields that no directory of the dataset has, or has rules for fields
    that are neither observation nor action."""
    steps = [source for features in sources for source in features.steps]
    every = steps + [source for features in sources for source in features.metadata]
    observed = [name for entry in _entries(dataset) for name in entry]
    unknown = [
        *(("fields", name) for name in dataset.fields if not _named(every, name)),
        *(("observe", name) for name in observed if not any(_observed(features, name) for features in sources)),
        *(("action", name) for name in dataset.action or () if not _named(steps, name)),
    ]
    known = {source.path for source in every if source.path not in _READ_AS_SUCH}
    with errors.collect("names"):
        if unknown:
            problems = [f"{config_path}.{key}: the source has no field {name!r}" for key, name in unknown]
            meant = dict.fromkeys(did_you_mean(name, known) for _, name in unknown)
            way_out = " ".join([*meant, "its fields are " + ", ".join(sorted(known))])
            raise ConfigError("; ".join(problems), way_out=way_out.lstrip())
    used = [source for item in sources for found in _targets(item, dataset).values() for source in found]
    both = set(dataset.action or ("action",)) & set(observed)
    with errors.collect("observe"):
        if both:
            problem = f"{config_path}.observe: {min(both)} is the action, which is to be predicted"
            raise ConfigError(problem, way_out="remove it")
    for name, rule in dataset.fields.items():
        is_known = not any(name == unknown_name for _, unknown_name in unknown)
        if is_known and rule not in (_NO_RULE, _SKIP_RULE) and not _named(used, name):
            with errors.collect(f"fields.{name}"):
                raise ConfigError(
                    f"{config_path}.fields: {name} is {_UNUSED}, so its rule would do nothing",
                    way_out=f"write observe: [{_plain(name)}] or action: {_plain(name)} under {config_path}",
                )


# --- errors ------------------------------------------------------------------------------------------------------


def _field_errors(errors: list[tuple[str, FieldUse]], config_path: str) -> ConfigError:
    """One error for all fields that a build refuses, each with the path of a directory that has it."""
    if len(errors) == 1:
        [(directory, use)] = errors
        message = f"{directory}: field {use.source.path} {use.why}"
        return ConfigError(message, way_out=f"{use.way_out} under {config_path}.fields")
    lines = "".join(f"\n  {use.source.path} {use.why}" for _, use in errors)
    block = ""
    for _, use in errors:
        key = _plain(use.source.path)
        block += f"\n    # {key}: {use.way_out}" if use.rule is None else f"\n    {key}: {_flow(use.rule)}"
    return ConfigError(
        f"{errors[0][0]}: {len(errors)} fields cannot become tokens:{lines}",
        way_out=f"under {config_path} this would do:\n  fields:{block}",
    )


def _check_spec(spec: EpisodeSpec, directory: SourceDirectory, dataset: EpisodesConfig, config_path: str) -> None:
    """Raises ConfigError if a directory lacks a field that the config names or a spec lacks a role, or if a step's
    observation has too many tokens."""
    features = directory.features
    lacking = [
        ("observe", entry) for entry in _entries(dataset) if not any(_observed(features, name) for name in entry)
    ]
    lacking += [("action", (name,)) for name in dataset.action or () if not _named(features.steps, name)]
    for key, entry in lacking:
        way_out = "narrow source, or name the field of this directory beside it in a list"
        raise ConfigError(f"{directory.path}: has no {' or '.join(entry)} ({config_path}.{key})", way_out=way_out)
    for role, fields in (("observation", spec.observation), ("action", spec.action)):
        if not fields:
            uses = field_uses(features, dataset)
            others = [use for use in uses if use.belongs_to == "step" and use.why == _UNUSED]
            left_out = "".join(f" ({use.source.path} {use.why})" for use in _left_out(uses))
            way_out = f"see {config_path}.fields"
            if others:
                key = "action" if role == "action" else "observe"
                way_out += f", or choose {config_path}.{key} from " + ", ".join(use.source.path for use in others)
            raise ConfigError(f"{directory.path}: no {role} field is left to tokenize{left_out}", way_out=way_out)
    fixed = sum(field.tokens or 0 for field in spec.observation)
    if fixed >= NO_POSITION:
        raise ConfigError(
            f"{directory.path}: a step's observation has {fixed} tokens, more than {NO_POSITION - 1}; "
            f"skip a field or give smaller images.size under {config_path}"
        )


def _flow(value: Any) -> str:
    """A rule as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _plain(path: str) -> str:
    """A key path as YAML."""
    return path if re.fullmatch(r"[A-Za-z_][\w/.\-]*", path) else json.dumps(path, ensure_ascii=False)


# --- the form of a field -----------------------------------------------------------------------------------------


def _field_spec(
    source: SourceField, rule: FieldRule, images: EpisodeImages, is_action: bool, is_own: bool = True
) -> FieldSpec:
    """The spec of a field, with the source's path. Raises _FieldError.

    ``is_own`` is False if the rule is that of a group, whose keys hold for those of its fields that they suit.
    """
    kind = _kind(source, rule)
    _check_kind(source, kind, rule, is_action)
    is_ragged, is_range = source.form == "ragged" and kind != "text", kind == "continuous" and is_action
    is_counted = kind == "discrete" and source.dtype != "bool"
    frames = _frames(source, rule, rule.images or images) if kind == "image" else None
    suits = {
        "range": (is_range or (frames is not None and frames.levels is not None), "is no continuous action and takes"),
        "clip": (rule.range is not None, "has no range to clip to and takes"),
        "num": (is_counted, f"of dtype {source.dtype} as {kind} takes"),
        "offset": (is_counted, f"of dtype {source.dtype} as {kind} takes"),
        "images": (frames is not None, f"is {kind} and takes"),
        "every": (kind == "text", "is no text and takes"),
        "max_length": (is_ragged, "has values of one length in every step and takes"),
    }
    for key, (does_suit, problem) in suits.items():
        if is_own and getattr(rule, key) is not None and not does_suit:
            raise _FieldError(f"{problem} no {key}", f"remove {key}")
    if frames is not None:
        return frames
    if kind == "text":
        return FieldSpec(path=source.path, kind=kind, dtype="str", every=rule.every or "step")
    max_length = rule.max_length if is_ragged else None
    shape = (max_length or 0, *source.sides) if is_ragged else source.sides
    numbers = FieldSpec(path=source.path, kind=kind, dtype=source.dtype, shape=shape, max_length=max_length)
    if kind == "discrete":
        num = 2 if source.dtype == "bool" else rule.num or source.num
        return numbers.model_copy(update={"num": num, "offset": (rule.offset or 0) if is_counted else 0})
    is_open = rule.range is not None and rule.pairs is None  # the data will say it
    if not is_action or is_open:
        return numbers.model_copy(update={"clip": is_action and bool(rule.clip)})
    pairs, size = rule.pairs or ((-1.0, 1.0),), math.prod(shape)
    if len(pairs) not in (1, size):
        raise _FieldError(f"has {size} components and range has {len(pairs)} pairs", "give one or as many")
    return numbers.model_copy(update={"range": pairs, "clip": bool(rule.clip)})


def _kind(source: SourceField, rule: FieldRule) -> FieldKind:
    match rule.kind:
        case "text" | "image" | "discrete" | "continuous":
            return rule.kind
        case "depth":
            return "image"
    if source.form == "string":
        return "text"
    if source.form == "image" or _is_image_array(source):
        return "image"
    return "continuous" if source.dtype and np.dtype(source.dtype).kind == "f" else "discrete"


def _is_image_array(source: SourceField) -> bool:
    return source.dtype == "uint8" and len(source.shape) == 3 and source.shape[2] in (1, 3)


def _check_kind(source: SourceField, kind: FieldKind, rule: FieldRule, is_action: bool) -> None:
    """Raises _FieldError if a field cannot be of a kind."""
    if source.form == "unreadable":
        raise _LeftOutError(f"is a {source.type_name}, which has no tokens", rule=_SKIP)
    if 0 in source.shape:
        raise _LeftOutError(f"is empty: its shape is {list(source.shape)}", rule=_SKIP)
    if source.form == "string" and source.shape and rule.kind is None:
        raise _LeftOutError(f"of dtype {source.dtype} and shape {list(source.shape)} cannot be text", rule=_SKIP)
    type_code = np.dtype(source.dtype).kind if source.form in ("tensor", "ragged") else ""
    is_scalar_string = source.form == "string" and not source.shape
    is_possible = {
        "text": is_scalar_string or (type_code in ("i", "u") and len(source.shape) == 1),
        "image": source.form == "image" or is_scalar_string or len(_picture_sides(source)) == 2,
        "discrete": type_code in ("b", "i", "u"),
        "continuous": type_code in ("i", "u", "f"),
    }[kind]
    if is_action and kind in ("text", "image"):
        noun = "a text" if kind == "text" else "an image"
        raise _FieldError(f"is {noun}, and actions are discrete or continuous", rule=_SKIP)
    if not is_possible:
        raise _FieldError(f"of dtype {source.dtype} and shape {list(source.shape)} cannot be {kind}", rule=_SKIP)
    if source.form == "ragged" and kind != "text" and rule.max_length is None:
        way_out = "give it {max_length: N}, the most values of a step"
        raise _LeftOutError(f"has another number of values in every step (shape {list(source.shape)})", way_out)


# --- pictures ----------------------------------------------------------------------------------------------------


def _picture_sides(source: SourceField) -> tuple[int, ...]:
    """Height and width of numbers that may be a picture: (H, W), or (H, W) of each of one, three or four channels."""
    shape = source.shape
    if source.form != "tensor" or len(shape) not in (2, 3):
        return ()
    sides = shape if len(shape) == 2 else shape[:2] if shape[2] in (1, 3, 4) else ()
    if not sides and shape[0] in (1, 3):
        sides = shape[1:]
    return tuple(side for side in sides if side is not None)


def _frames(source: SourceField, rule: FieldRule, images: EpisodeImages) -> FieldSpec:
    """The spec of a field of pictures. Raises _FieldError."""
    shape, is_file = source.shape, source.form in ("image", "string")
    sides: tuple[int | None, ...] = shape[:2] if source.form == "image" else _picture_sides(source)
    channels_first = source.form == "tensor" and len(shape) == 3 and sides != shape[:2]
    channels = 0 if source.form == "string" else 1 if len(shape) == 2 else shape[0 if channels_first else 2]
    wanted: dict[str, Any] = {}
    problems, else_ = [], ""
    dtype = "uint8" if source.form == "string" else source.dtype
    code = np.dtype(dtype).kind
    levels = None
    if rule.kind == "depth":
        candidate, unit = _DEPTHS.get(code, _DEPTHS["u"])
        if channels not in (0, 1):
            problem = f"of dtype {source.dtype} and shape {list(shape)} is no picture of one depth a pixel"
            raise _FieldError(problem, rule=_SKIP)
        if rule.pairs is None or len(rule.pairs) != 1:
            wanted["range"] = candidate
            problems.append("as depth needs the depths that become black and white")
            else_ = f" if these are {unit}"
        else:
            levels = rule.pairs[0]
    elif dtype != "uint8":
        if rule.kind is None and channels == 1:
            candidate, unit = _DEPTHS.get(code, _DEPTHS["u"])
            wanted |= {"as": "depth", "range": candidate}
            problems.append(f"of dtype {source.dtype} and shape {list(shape)} is no picture of 8-bit values")
            else_ = f" if these are depths in {unit}"
        elif rule.range is not None and (rule.pairs is None or len(rule.pairs) != 1):
            raise _FieldError("as image takes the two values that become black and white", rule={"range": [0, 1]})
        elif rule.pairs is not None:
            levels = rule.pairs[0]
        else:
            levels = (0.0, 1.0 if code in ("f", "b") else 65_535.0 if dtype == "uint16" else 255.0)
    size = images.size
    if size is None:
        if len(sides) != 2 or None in sides:
            wanted["images"] = {"size": ["H", "W"]}
            problems.append("has frames of unknown size")
        else:
            size = int(sides[0] or 0), int(sides[1] or 0)
            if size[0] % PATCH or size[1] % PATCH:
                near = [max(PATCH, PATCH * round(side / PATCH)) for side in size]
                wanted["images"] = {"size": near}
                problems.append(f"has frames of {size[0]}x{size[1]}, no multiple of {PATCH}")
                else_ = else_ or ("" if is_file or rule.kind else ", or {as: discrete} if it is no image,")
    if problems or size is None:
        raise _FieldError(" and ".join(problems), rule=wanted, else_=else_)
    return FieldSpec(
        path=source.path,
        kind="image",
        dtype=dtype,
        shape=source.sides,
        image=ImageSpec(height=size[0], width=size[1], codec=images.codec, quality=images.quality),
        levels=levels,
        channels_first=channels_first,
    )


# --- what the user should know -----------------------------------------------------------------------------------


def field_notices(directories: Sequence[SourceDirectory], dataset: EpisodesConfig) -> list[str]:
    """Sentences about step fields without tokens, and about fields and steps of very many."""
    uses, specs = dict[FieldUse, None](), dict[EpisodeSpec, None]()
    for features in dict.fromkeys(directory.features for directory in directories):
        found = field_uses(features, dataset)
        uses |= dict.fromkeys(found)
        specs[_spec(found)] = None
    notices = []
    unused = dict.fromkeys(use.source.path for use in uses if use.belongs_to == "step" and use.why == _UNUSED)
    if unused:
        notices.append(
            f"{dataset.name}: fields of the steps without tokens, for they are {_UNUSED}: {', '.join(unused)}; "
            "`observe: [PATH]` makes one a part of the observation, `action: PATH` the action"
        )
    for use in _left_out(uses):
        notices.append(f"{dataset.name}: {use.source.path} is left out, for it {use.why}; {use.way_out}")
    converted: dict[str, list[str]] = {}
    for use in uses:
        for text in _conversions(use):
            converted.setdefault(text, []).append(use.source.path)
    notices += [f"{dataset.name}: {', '.join(paths)}: {text}" for text, paths in converted.items()]
    wide: dict[tuple[int, str], list[str]] = {}
    for use in uses:
        if use.spec is not None and (use.spec.tokens or 0) > _WIDE:
            wide.setdefault((use.spec.tokens or 0, _hint(use)), []).append(use.source.path)
    for (tokens, hint), paths in wide.items():
        notices.append(
            f"{dataset.name}: {', '.join(paths)}: {tokens:,} tokens a step{' each' * (len(paths) > 1)}; {hint}"
        )
    longest = max((sum(field.tokens or 0 for field in spec.fields) + 1 for spec in specs), default=0)
    if 2 * longest > _WINDOW:
        size = f"a step has {longest:,} tokens without its texts"
        notices.append(f"{dataset.name}: {size}, so that two steps do not fit into a window of {_WINDOW:,}")
    return notices


def _left_out(uses: Iterable[FieldUse]) -> list[FieldUse]:
    return [use for use in uses if use.spec is None and use.way_out and use.why != _UNUSED]


def _conversions(use: FieldUse) -> Iterator[str]:
    """What is lost where a field becomes an image."""
    spec = use.spec
    if spec is None or spec.kind != "image":
        return
    if spec.levels is not None:
        low, high = spec.levels
        yield f"stored in 8 bits, {low:g} and below as black, {high:g} and above as white"
    if len(spec.shape) == 3 and spec.shape[0 if spec.channels_first else 2] == 4:
        yield "the fourth channel, alpha, is dropped"


def _hint(use: FieldUse) -> str:
    """How a field of very many tokens gets fewer."""
    source, spec = use.source, use.spec
    assert spec is not None
    if spec.kind == "image":
        return f"a smaller images.size under fields.{source.path} makes them fewer"
    sides, rule = _picture_sides(source), ""
    if len(sides) == 2 and min(sides) >= _PICTURE_SIDE:
        near = [max(PATCH, PATCH * round(side / PATCH)) for side in sides]
        size = "" if tuple(near) == sides else f", images: {{size: {near}}}"
        candidate, unit = _DEPTHS.get(np.dtype(source.dtype).kind, _DEPTHS["u"])
        if source.shape[2:] in ((), (1,)) and source.dtype not in ("uint8", "bool"):
            rule = f"{{as: depth, range: {candidate}{size}}} if it is a picture of depths in {unit}, "
        rule += f"{{as: image{size}}} if it is a picture"
        if source.shape[-1] == 4:
            rule += " whose fourth channel is alpha, which is dropped"
    elif spec.kind == "discrete" and len(source.shape) == 1:
        rule = "{as: text} if they are codes of characters"
    return "each number is a token: give it " + (f"{rule}, or " if rule else "") + "{as: skip} to leave it out"
