"""Values of an episode beside its steps: its task, agent, order and id, its mark of success, and its metadata.

A value is stored with the episode, or is that of its first step, or follows from the config and the episode's file.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from gatokit.pipelines.episodes.reader import RawEpisode, SourceFeatures, SourceField
from gatokit.pipelines.stages import METADATA
from gatokit.schemas.config_episodes import EpisodeKey, EpisodesConfig, Success
from gatokit.schemas.errors import ConfigError, ConfigErrors, RejectedError
from gatokit.schemas.index import common_type, metadata_columns
from gatokit.schemas.manifest import MetadataType
from gatokit.schemas.where import COLUMNS, Where, column_type, matching, unknown_column
from gatokit.schemas.words import did_you_mean

ROLES = ("task", "agent", "order", "id")
_SCALAR = ((), (1,))
_MOST_NAMED = 30
_LARGEST_INTEGER = 2**63


class EpisodeValue(BaseModel):
    """A field with a value for each episode: one stored with it, or one of its steps, of which the first counts."""

    model_config = ConfigDict(frozen=True)

    source: SourceField
    of_steps: bool = False


class SuccessMark(BaseModel):
    """A field that marks a success: if the value, or that of any step, is true, or a text in which ``matches``."""

    model_config = ConfigDict(frozen=True)

    value: EpisodeValue
    matches: str | None = None


class EpisodeValues(BaseModel):
    """What a scan reads of each episode besides its steps; None if the config does not ask for it, or the file gives
    it. ``metadata`` has the columns of the index with their fields."""

    model_config = ConfigDict(frozen=True)

    task: EpisodeValue | None = None
    agent: EpisodeValue | None = None
    order: EpisodeValue | None = None
    id: EpisodeValue | None = None
    success: SuccessMark | None = None
    metadata: tuple[tuple[str, SourceField], ...] = ()


# --- what the config asks for ------------------------------------------------------------------------------------


class _ValueError(Exception):
    """A value that the source does not have as the config asks: the problem, and what to write."""


def index_columns(sources: Iterable[SourceFeatures]) -> tuple[dict[str, str], dict[str, MetadataType]]:
    """The index's columns for the values that are stored with the episodes of a dataset, by the values' key paths; and
    the type of each column."""
    types: dict[str, set[MetadataType]] = {}
    for features in sources:
        for field in _scalars(features):
            types.setdefault(field.path, set()).add(_type(field))
    names = metadata_columns(types)
    return names, {names[path]: common_type(types[path]) for path in sorted(types)}


def find_values(
    features: SourceFeatures, dataset: EpisodesConfig, names: Mapping[str, str], prefix: str, errors: ConfigErrors
) -> EpisodeValues:
    """The fields of a directory that hold the values that a config asks for. ``names`` are those of ``index_columns``.

    A field that is absent or has the wrong type is left out; ``errors`` collects what would do, after ``prefix``.
    """
    found: dict[str, Any] = {}
    for role in (*ROLES, "success"):
        key = None if role == "success" else getattr(dataset, role)
        with errors.collect(role):
            try:
                if key is not None:
                    found[role] = _value(role, key, features)
                elif role == "success" and dataset.keep.success is not None:
                    found[role] = _mark(dataset.keep.success, features)
            except _ValueError as error:
                problem, way_out = error.args
                raise ConfigError(f"{prefix}: {problem}", way_out=way_out) from None
    return EpisodeValues(**found, metadata=tuple((names[field.path], field) for field in _scalars(features)))


def file_values(
    dataset: EpisodesConfig, directory: str, file: str, field: str, errors: ConfigErrors
) -> dict[str, str | float]:
    """The task, agent, order and id of the episodes of a file, as far as the config and the file's path give them.

    ``directory`` is the name of the file's directory and ``file`` the file's path, both below the source. ``errors``
    collects ConfigErrors, which name ``field``, if a regular expression of the config does not fit the path.
    """
    values: dict[str, str | float] = {"agent": ""} if dataset.agent is None else {}
    for role in ROLES:
        key = getattr(dataset, role)
        constant, source = getattr(key, "constant", None), getattr(key, "source", None)
        if constant is not None or source is not None:
            values[role] = directory if constant is None else constant
        elif key is not None and key.path is not None:
            with errors.collect(role):
                values[role] = _from_path(role, key.path, file, field)
    return values


def check_columns(dataset: EpisodesConfig, types: Mapping[str, MetadataType], field: str, errors: ConfigErrors) -> None:
    """Collects ConfigErrors if ``keep`` names a column that the index will not have, or one of another type.

    ``types`` are those of the columns of values stored with the episodes.
    """
    known = COLUMNS | {name: column_type(type_) for name, type_ in types.items()}
    keep = dataset.keep
    with errors.collect("where"):
        try:
            if keep.where is not None:
                Where(keep.where, known)
        except ValueError as error:
            raise ConfigError(f"{field}.keep.where: {error}") from None
    with errors.collect("by"):
        if keep.by is not None and known.get(keep.by) != "number":
            numbers = [name for name, type_ in known.items() if type_ == "number"]
            if keep.by not in known:
                raise ConfigError(f"{field}.keep.by: {unknown_column(keep.by, numbers)}")
            type_name = types.get(keep.by, "string")
            raise ConfigError(
                f"{field}.keep.by: {keep.by} is a column of type {type_name}, and best needs numbers; "
                f"the columns of numbers are {', '.join(numbers)}"
            )


def _from_path(role: str, pattern: str, file: str, field: str) -> str | float:
    match = re.search(pattern, file)
    if match is None or (match.re.groups and match[1] is None):
        raise ConfigError(
            f"{field}.{role}.path: {pattern!r} finds nothing in {file!r}, the path of a file below the source; mend "
            f"the expression, or narrow {field}.source"
        )
    text = match[1] if match.re.groups else match[0]
    return _number(text, f"{field}.{role}.path", file) if role == "order" else text


def _number(text: str, field: str, file: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{field}: finds {text!r} in {file!r}, which is no number; mend the expression")
    return number


def _value(role: str, key: EpisodeKey, features: SourceFeatures) -> EpisodeValue | None:
    """The field that a role asks for; None if the file gives the value."""
    if key.metadata is not None:
        value = EpisodeValue(source=_metadata_field(role, key.metadata, features))
    elif key.field is not None:
        value = EpisodeValue(source=_step_field(role, key.field, features), of_steps=True)
    else:
        return None
    is_possible = _is_number if role == "order" else _is_number_or_text
    if not is_possible(value):
        need = "a number" if role == "order" else "a string or a number"
        fields = (EpisodeValue(source=source, of_steps=value.of_steps) for source in _beside(value, features))
        raise _wrong_type(role, need, value, [field.source.path for field in fields if is_possible(field)])
    return value


def _mark(success: Success, features: SourceFeatures) -> SuccessMark | None:
    """The field that marks a success; None if it is the last reward."""
    key = success.key
    if key is not None:
        metadata, step = features.metadata_field(key), _ending(features.steps, key)
        if metadata is None and len(step) == 1:
            value = EpisodeValue(source=step[0], of_steps=True)
        else:
            value = EpisodeValue(source=_metadata_field("success", key, features))
    elif success.metadata is not None:
        value = EpisodeValue(source=_metadata_field("success", success.metadata, features))
    elif success.field is not None:
        value = EpisodeValue(source=_step_field("success", success.field, features), of_steps=True)
    else:
        return None
    source = value.source
    if success.matches is None and source.form == "string" and source.shape in _SCALAR:
        role = "field" if value.of_steps else "metadata"
        raise _ValueError(
            f"success needs a number or a truth, and {source.path} is a text",
            f"say which texts are a success, such as {{{role}: {source.path}, matches: '^success$'}}",
        )
    is_number = source.form == "tensor" and (value.of_steps or source.shape in _SCALAR)
    if not (is_number if success.matches is None else _is_number_or_text(value)):
        need = "a number" if success.matches is None else "a text or a number"
        others = [field.path for field in _beside(value, features) if _is_number(EpisodeValue(source=field))]
        raise _wrong_type("success", need, value, others)
    return SuccessMark(value=value, matches=success.matches)


def _metadata_field(role: str, key: str, features: SourceFeatures) -> SourceField:
    """The metadata field of a key. Raises _ValueError, which names what the source has, if there is none."""
    source = features.metadata_field(key)
    if source is not None:
        return source
    same = _ending(features.metadata, key)
    if len(same) > 1:
        paths = ", ".join(field.path for field in same)
        raise _ValueError(f"{role} asks for the metadata key {key!r}, in which {paths} end", "give one of these paths")
    problem = f"{role} asks for the metadata key {key!r}"
    step = _ending(features.steps, key)
    if step:
        path = step[0].path
        raise _ValueError(f"{problem}, which is a field of the steps", f"write {role}: {{field: {path}}}")
    keys = sorted(known.path for known in features.metadata)
    raise _ValueError(problem, f"{_question(key, keys)}the source's keys are {_listed(keys)}{_or_a_step(features)}")


def _step_field(role: str, path: str, features: SourceFeatures) -> SourceField:
    """The step field of a path. Raises _ValueError, which names what the source has, if there is none."""
    found = _ending(features.steps, path)
    if len(found) == 1:
        return found[0]
    if found:
        paths = ", ".join(field.path for field in found)
        raise _ValueError(f"{role} asks for the step field {path!r}, in which {paths} end", "give one of these paths")
    problem = f"{role} asks for the step field {path!r}"
    if features.metadata_field(path) is not None:
        raise _ValueError(f"{problem}, which is stored with the episode", f"write {role}: {{metadata: {path}}}")
    known = sorted(field.path for field in features.steps)
    raise _ValueError(problem, f"{_question(path, known)}the steps' fields are {_listed(known)}")


def _ending(fields: tuple[SourceField, ...], key: str) -> list[SourceField]:
    """The field at the path ``key``, or all whose path ends in it."""
    exact = [field for field in fields if field.path == key]
    return exact or [field for field in fields if field.path.endswith(f"/{key}")]


def _wrong_type(role: str, need: str, value: EpisodeValue, others: list[str]) -> _ValueError:
    source = value.source
    what = f"{source.path} is a {source.type_name} of {source.dtype or 'another type'}"
    shape = "" if source.shape in _SCALAR else f" and shape {list(source.shape)}"
    way_out = f"of the others these would do: {_listed(sorted(others))}" if others else "the source has no other"
    return _ValueError(f"{role} needs {need}, and {what}{shape}", way_out)


def _beside(value: EpisodeValue, features: SourceFeatures) -> tuple[SourceField, ...]:
    return features.steps if value.of_steps else features.metadata


def _question(word: str, known: list[str]) -> str:
    by_last = {path.rpartition("/")[2]: path for path in known}
    question = did_you_mean(word, known) or did_you_mean(word, by_last)
    return f"{question} " if question else ""


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "") if names else "none"


def _or_a_step(features: SourceFeatures) -> str:
    texts = [field.path for field in features.steps if field.form == "string" and not field.shape]
    return f"; of the steps {{field: {texts[0]}}} is a text" if texts else ""


def _is_number(value: EpisodeValue) -> bool:
    return value.source.form == "tensor" and value.source.shape in _SCALAR


def _is_number_or_text(value: EpisodeValue) -> bool:
    source = value.source
    is_text = source.form == "string" and source.shape in _SCALAR
    return is_text or _is_number(value) or (value.of_steps and _has_codes(source))


def _has_codes(source: SourceField) -> bool:
    """Whether a field may hold the bytes of a text as integers."""
    return (
        source.form == "tensor"
        and len(source.shape) == 1
        and source.shape != (1,)
        and np.dtype(source.dtype).kind in "iu"
    )


def _scalars(features: SourceFeatures) -> list[SourceField]:
    """The values stored with an episode that can be a column of the index."""
    return [field for field in features.stored_values if field.form in ("tensor", "string") and field.shape in _SCALAR]


def _type(field: SourceField) -> MetadataType:
    if field.form == "string":
        return "string"
    kind = np.dtype(field.dtype).kind
    return "bool" if kind == "b" else "float64" if kind == "f" else "int64"


# --- what an episode holds -----------------------------------------------------------------------------------------


Metadata = dict[str, str | float | int]
"""Values stored with an episode by their key paths."""


def read_metadata(episode: RawEpisode, values: EpisodeValues) -> Metadata:
    """The values stored with an episode that are columns of the index. Absent and damaged ones are left out."""
    found: Metadata = {}
    for _, field in values.metadata:
        try:
            value = episode.metadata(field)
        except RejectedError:
            continue
        if value is not None:
            found[field.path] = value
    return found


def typed_columns(
    metadata: Metadata, values: EpisodeValues, types: Mapping[str, MetadataType]
) -> dict[str, str | float | int | bool | None]:
    """The columns of a scan for values stored with an episode; ``types`` are those of the index's columns."""
    return {METADATA + name: _as_type(metadata.get(field.path), types[name]) for name, field in values.metadata}


def read_values(episode: RawEpisode, values: EpisodeValues, metadata: Metadata) -> dict[str, str | float | bool]:
    """The task, agent, order, id and mark of success of an episode that its fields give.

    ``metadata`` are those of ``read_metadata``. Raises RejectedError, which names the field, if one is absent or is no
    finite number where it has to be one.
    """
    row: dict[str, str | float | bool] = {}
    for role in ROLES:
        value = getattr(values, role)
        if value is not None:
            found = metadata.get(value.source.path) if not value.of_steps else None
            found = _read(episode, value) if found is None else found
            row[role] = _finite(found, value) if role == "order" else str(found)
    if values.success is not None:
        row["success"] = _is_success(episode, values.success)
    return row


def _is_success(episode: RawEpisode, mark: SuccessMark) -> bool:
    value, source = mark.value, mark.value.source
    if mark.matches is not None:
        found = _texts(episode, value) if value.of_steps else [str(_read(episode, value))]
        return any(matching(sorted(set(found)), mark.matches))
    if value.of_steps:
        column = np.asarray(episode.column(source))
        return bool(np.any((column != 0) & (column == column)))  # NaN is no mark
    return _finite(_read(episode, value), value) != 0


def _read(episode: RawEpisode, value: EpisodeValue) -> str | float | int:
    source = value.source
    if not value.of_steps:
        found = episode.metadata(source)
        if found is None:
            raise RejectedError("missing_field", f"{source.path} is absent from the episode")
        return found
    column = episode.column(source)
    if not len(column):
        raise RejectedError("malformed_steps", f"{source.path} has no step")
    return _step_value(source, column[0])


def _texts(episode: RawEpisode, value: EpisodeValue) -> list[str]:
    return [str(_step_value(value.source, item)) for item in episode.column(value.source)]


def _step_value(source: SourceField, item: Any) -> str | float | int:
    """The value of one step: a text, a number, or the text whose bytes are stored as integers."""
    if source.form == "tensor" and not _has_codes(source):
        number: float | int = np.asarray(item).reshape(-1)[0].item()
        return number
    try:
        return text_of_codes(item) if source.form == "tensor" else str(item, "utf-8")
    except (UnicodeDecodeError, ValueError):
        raise RejectedError("not_utf8", f"{source.path} is not valid UTF-8 at the first step") from None


def text_of_codes(codes: np.ndarray) -> str:
    """The text whose bytes in UTF-8 are stored as integers with zeros behind it. Raises ValueError if they are none."""
    return bytes(codes[codes != 0].tolist()).decode()


def _finite(value: str | float | int, field: EpisodeValue) -> float:
    if not math.isfinite(float(value)):
        raise RejectedError("not_finite", f"{field.source.path} is {value}")
    return float(value)


def _as_type(value: str | float | int | None, type_: MetadataType) -> str | float | int | bool | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if type_ == "string":
        return str(value)
    if isinstance(value, str):
        return None
    if type_ == "int64":
        return int(value) if -_LARGEST_INTEGER <= value < _LARGEST_INTEGER else None
    return bool(value) if type_ == "bool" else float(value)


# --- what the scan shows of names ----------------------------------------------------------------------------------

_OF_TASKS = re.compile(
    r"(^|[_\s])(task|instruction|env_name|env_id)([_\s](name|id|family|description))*$", re.IGNORECASE
)
"""The last component of key paths that name tasks."""
_MOST_VALUES = 10_000
"""A column with more distinct values is not counted further."""
_LEAST_EPISODES, _MOST_SHOWN = 3, 3
_A = {"task": "a task", "agent": "an agent"}


def name_notices(
    dataset: EpisodesConfig,
    field: str,
    columns: Mapping[str, MetadataType],
    task: np.ndarray,
    agent: np.ndarray,
    tables: Callable[[Collection[str]], Iterator[pa.Table]],
) -> list[str]:
    """Notices about a key that gives every episode a task or agent of its own, and about tasks that seem to be several.

    ``task`` and ``agent`` are the numbers of names, int (R,), -1 for none. ``tables`` gives the R scanned rows with
    some of the ``columns`` for values that are stored with the episodes.
    """
    notices = []
    for role, codes in (("task", task), ("agent", agent)):
        key, known = getattr(dataset, role), codes[codes >= 0]
        if key is None or key.constant or key.source or len(known) < _LEAST_EPISODES:
            continue
        if len(np.unique(known)) == len(known):
            names = [name for name, type_ in columns.items() if type_ in ("string", "int64")]
            counts = {name: len({value for _, value in pairs}) for name, pairs in _values(tables, names).items()}
            fewer = sorted((count, name) for name, count in counts.items() if 1 < count <= len(known) / 2)
            others = ", ".join(f"{name} ({count} values)" for count, name in fewer[:_MOST_NAMED]) or "no other key"
            written = json.dumps(key.model_dump(by_alias=True, exclude_none=True), ensure_ascii=False)
            notices.append(
                f"{dataset.name}: {field}.{role}: {written} gives each of {len(known)} episodes {_A[role]} of its own, "
                f"with which no other is compared; choose a key whose values repeat: {others}"
            )
    if dataset.task.source or dataset.task.constant or dataset.task.path:
        asked = {key.metadata for key in (dataset.agent, dataset.order, dataset.id) if key is not None}
        names = [
            name
            for name, type_ in columns.items()
            if type_ in ("string", "int64") and _OF_TASKS.search(name.rpartition("/")[2]) and name not in asked
        ]
        for name, pairs in _values(tables, names).items():
            by_task: dict[str, list[str]] = {}
            for code, value in sorted(pairs, key=str):
                if code is not None and value is not None:
                    by_task.setdefault(code, []).append(str(value))
            several = {code: values for code, values in by_task.items() if len(values) > 1}
            if several and len(pairs) <= len(task) / 2:
                first, values = next(iter(several.items()))
                shown = ", ".join(values[:_MOST_SHOWN]) + (", …" if len(values) > _MOST_SHOWN else "")
                notices.append(
                    f"{dataset.name}: task {first!r} seems to be several: {name} has {len(values)} values in it "
                    f"({shown}); write {field}.task: {{metadata: {name.removeprefix('metadata/')}}} to tell them apart"
                )
    return notices


def _values(
    tables: Callable[[Collection[str]], Iterator[pa.Table]], names: Sequence[str]
) -> dict[str, set[tuple[str | None, Any]]]:
    """The distinct pairs of a task and a value of each column; a column with too many is left out."""
    found: dict[str, set[tuple[str | None, Any]]] = {name: set() for name in names}
    for table in tables(names) if names else ():
        for name in list(found):
            pairs = table.select(["task", METADATA + name]).group_by(["task", METADATA + name]).aggregate([])
            found[name].update(zip(pairs["task"].to_pylist(), pairs[METADATA + name].to_pylist(), strict=True))
            if len(found[name]) > _MOST_VALUES:
                del found[name]
    return found
