"""The scan of episodes: rewards, flags and metadata of every episode, and nothing else.

An ``EpisodeUnit`` groups files into one unit of work, whose rows become one Arrow file. Legend: N recorded steps of an
episode, the last one included.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from gatokit.pipelines.episodes.formats import AnyEpisodeFile
from gatokit.pipelines.episodes.reader import RawEpisode, SourceFeatures, SourceField, StoredEpisode
from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.manifest import json_digest

SCANNED = pa.schema(
    [
        pa.field("directory", pa.int32()),  # ordinal of the source directory in the plan
        pa.field("file", pa.int32()),  # ordinal of the file in that directory
        pa.field("position", pa.int64()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc", pa.uint32()),
        pa.field("task", pa.dictionary(pa.int32(), pa.string())),
        pa.field("agent", pa.dictionary(pa.int32(), pa.string())),
        pa.field("id", pa.string()),  # null: named by file and position
        pa.field("order", pa.float64()),  # NaN: by position
        pa.field("success", pa.bool_()),
        pa.field("steps", pa.int64()),
        pa.field("return", pa.float64()),  # NaN if the rewards do not parse or are not finite
        pa.field("reason", pa.dictionary(pa.int32(), pa.string())),
        pa.field("detail", pa.string()),
        pa.field("lost", pa.int64()),
        pa.field("largest", pa.list_(pa.int64())),  # of each counted action field
    ]
)
"""Rows of a scan in memory and in the files between scan and plan."""


class ScanFields(BaseModel):
    """The fields that a scan reads of an episode; None if the config does not ask for one.

    ``counted`` are the discrete action fields whose number of values only the data knows.
    """

    model_config = ConfigDict(frozen=True)

    reward: SourceField
    is_last: SourceField
    task: SourceField | None
    agent: SourceField | None
    order: SourceField | None
    id: SourceField | None
    success: SourceField | None
    counted: tuple[SourceField, ...]


class ScanFile(BaseModel):
    """A file of the plan: ordinal of its directory, its own ordinal there, the task that the directory gives (None:
    each episode names its own), and the index of its ``ScanFields``."""

    model_config = ConfigDict(frozen=True)

    directory: int
    ordinal: int
    task: str | None
    fields: int
    file: AnyEpisodeFile


class EpisodeUnit(BaseModel):
    """Files of a dataset that are scanned together."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["episodes"] = "episodes"
    dataset: str
    max_episode_bytes: int
    fields: tuple[ScanFields, ...]
    """Each once; ``ScanFile.fields`` is an index into it."""
    files: tuple[ScanFile, ...]
    versions: tuple[int, ...]
    """Modification times of the files in nanoseconds: a file that changed is scanned again."""

    @property
    def fingerprint(self) -> str:
        """Names the unit's result, so that an interrupted scan continues where it stopped."""
        return json_digest(self.model_dump(mode="json"), 8)

    def scan(self, most_bytes: int | None = None) -> pa.Table:
        """Rows (schema ``SCANNED``) in the order of files and positions.

        With ``most_bytes`` the last row is the one with which the stored lengths reach it.
        """
        rows: list[dict[str, Any]] = []
        size = 0
        for row in self._rows():
            rows.append(row)
            size += row["length"]
            if most_bytes is not None and size >= most_bytes:
                break
        columns = ([row[field.name] for row in rows] for field in SCANNED)
        # Arrow has no direct way from a list to a dictionary column with 32-bit codes.
        arrays = [
            pa.array(column, pa.string()).dictionary_encode().cast(field.type)
            if pa.types.is_dictionary(field.type)
            else pa.array(column, field.type)
            for field, column in zip(SCANNED, columns, strict=True)
        ]
        return pa.table(arrays, schema=SCANNED)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for item in self.files:
            fields = self.fields[item.fields]
            for stored in item.file.read_all(self.max_episode_bytes):
                row = {"directory": item.directory, "file": item.ordinal, "lost": stored.lost}
                where = stored.byte_range
                row |= {"position": where.position, "offset": where.offset, "length": where.length, "crc": where.crc}
                yield row | _scan_episode(stored, item.task, fields)


def scan_fields(
    features: SourceFeatures, keys: dict[str, str | None], counted: tuple[str, ...], where: str
) -> ScanFields:
    """Finds the fields that a scan reads.

    ``keys`` maps task, agent, order, id and success to metadata keys. Raises ConfigError, which begins with ``where``,
    if the source does not have one of them or it has the wrong type.
    """
    found: dict[str, SourceField | None] = {}
    for role, key in keys.items():
        field = features.metadata_field(key) if key is not None else None
        if key is not None and field is None:
            names = ", ".join(sorted(field.path for field in features.metadata)) or "none"
            raise ConfigError(f"{where}: {role} asks for the metadata key {key!r}; the source's keys are {names}")
        if field is not None:
            _check_metadata(field, role, where)
        found[role] = field
    for path in ("reward", "is_last"):
        found[path] = features.step_scalar(path)
        if found[path] is None:
            raise ConfigError(f"{where}: the source has no scalar steps/{path}, which RLDS episodes need")
    counted_fields = tuple(field for field in features.steps if field.path in counted)
    return ScanFields.model_validate({**found, "counted": counted_fields})


def _check_metadata(field: SourceField, role: str, where: str) -> None:
    is_number = field.form == "tensor" and field.shape == ()
    needs_number = role in ("order", "success")
    if not is_number and (needs_number or field.form != "string"):
        need = "a number" if needs_number else "a string or a number"
        raise ConfigError(f"{where}: {role} needs {need}, and {field.path} is a {field.type_name} of {field.dtype}")


def _scan_episode(stored: StoredEpisode, task: str | None, fields: ScanFields) -> dict[str, Any]:
    """Task, agent, order, marks, steps and return of one stored episode, or the reason why it has none."""
    row: dict[str, Any] = {
        "task": task,
        "agent": "" if fields.agent is None else None,
        "id": None,
        "order": math.nan,
        "success": None,
        "steps": None,
        "return": math.nan,
        "reason": stored.reason,
        "detail": stored.detail,
        "largest": None,
    }
    episode = stored.value
    if episode is None:
        return row
    try:
        for role in ("task", "agent", "id", "order", "success"):
            field = getattr(fields, role)
            if field is not None:
                row[role] = _metadata(episode, field, role)
        reward, is_last = _numbers(episode, fields.reward), _numbers(episode, fields.is_last)
        row["steps"], row["return"] = steps_and_return(reward, is_last)
        row["largest"] = [_largest(episode, field, row["steps"]) for field in fields.counted]
    except RejectedError as error:
        row["reason"], row["detail"] = error.reason, error.detail
    return row


def steps_and_return(reward: np.ndarray, is_last: np.ndarray) -> tuple[int, float]:
    """Number of steps that have an action, and the float64 sum of their stored rewards, (N,), in step order.

    The step that ``is_last`` marks has no action and its reward is padding. Raises RejectedError if a step
    follows it, the lengths differ or a counted reward is not finite.
    """
    if len(reward) != len(is_last):
        raise RejectedError("malformed_steps", f"{len(reward)} rewards and {len(is_last)} is_last flags")
    marks = np.flatnonzero(is_last)
    if len(marks) and marks[0] != len(is_last) - 1:
        raise RejectedError("malformed_steps", f"steps follow step {marks[0]}, which is_last marks")
    steps = len(is_last) - len(marks)
    counted = reward[:steps].astype(np.float64)
    # Not np.sum, which adds in pairs: its result depends on the length and the NumPy version.
    total = float(np.add.accumulate(counted)[-1]) if steps else 0.0
    if not math.isfinite(total):  # a sum of finite rewards may overflow, which is no fault of a step
        finite = np.isfinite(counted)
        if not finite.all():
            step = int(np.argmin(finite))
            raise RejectedError("not_finite", f"reward is {counted[step]} at step {step}")
    return steps, total


def _metadata(episode: RawEpisode, field: SourceField, role: str) -> str | float | bool:
    value = episode.metadata(field)
    if value is None:
        raise RejectedError("missing_field", f"{field.path} is absent from the episode")
    if role == "success":
        return bool(value)
    if role == "order":
        if not math.isfinite(float(value)):
            raise RejectedError("not_finite", f"{field.path} is {value}")
        return float(value)
    return str(value)


def _numbers(episode: RawEpisode, field: SourceField) -> np.ndarray:
    values = episode.column(field)
    assert isinstance(values, np.ndarray)
    return values


def _largest(episode: RawEpisode, field: SourceField, steps: int) -> int:
    values = _numbers(episode, field)[:steps]
    return int(values.max()) if values.size else 0
