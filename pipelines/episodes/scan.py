"""The first pass: rewards, flags and metadata of every episode, and nothing else.

``scan_file`` is the work on one file; ``ScanUnit`` groups files into one piece of work, whose rows become one
Parquet file. Legend: N recorded steps of an episode, the last one included.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, SerializeAsAny

from gatokit.pipelines.episodes.reader import EpisodeFile, RawEpisode, SourceFeatures, SourceField, Stored
from gatokit.schemas.digests import json_digest
from gatokit.schemas.errors import ConfigError, RejectedError

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
        pa.field("return", pa.float64()),  # NaN where the rewards do not parse or are not finite
        pa.field("reason", pa.dictionary(pa.int32(), pa.string())),
        pa.field("detail", pa.string()),
        pa.field("lost", pa.int64()),
        pa.field("largest", pa.list_(pa.int64())),  # of each counted action field
    ]
)
"""Rows of a scan in memory and on its way between the two passes."""


class Wanted(BaseModel):
    """What to read of an episode besides rewards and flags; None where the config does not ask for it.

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
    """A file with its place in the plan, its features and the task that its directory gives."""

    model_config = ConfigDict(frozen=True)

    directory: int
    ordinal: int
    task: str | None
    wanted: int
    file: SerializeAsAny[EpisodeFile]


class ScanUnit(BaseModel):
    """Files of a dataset that are scanned in one go; ``features`` and ``wanted`` are shared by index."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    max_episode_bytes: int
    features: tuple[SourceFeatures, ...]
    wanted: tuple[Wanted, ...]
    files: tuple[ScanFile, ...]
    versions: tuple[int, ...]
    """Modification times of the files in nanoseconds: a file that changed is scanned again."""

    @property
    def fingerprint(self) -> str:
        """Names the unit's result, so that an interrupted scan goes on where it stopped."""
        return json_digest(self.model_dump(mode="json"), 8)

    def scan(self, most_bytes: int | None = None) -> pa.Table:
        """See ``scan_unit``."""
        return scan_unit(self, most_bytes)


def wanted(features: SourceFeatures, keys: dict[str, str | None], counted: tuple[str, ...], where: str) -> Wanted:
    """Finds the fields that a scan reads.

    ``keys`` maps task, agent, order, id and success to metadata keys. ConfigError, beginning with ``where``,
    names one that the source does not have.
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
        field = features.step(path)
        if field is None or field.form != "tensor" or field.shape != ():
            raise ConfigError(f"{where}: the source has no scalar steps/{path}, which RLDS episodes need")
        found[path] = field
    counted_fields = tuple(field for field in features.steps if field.path in counted)
    return Wanted.model_validate({**found, "counted": counted_fields})


def _check_metadata(field: SourceField, role: str, where: str) -> None:
    is_number = field.form == "tensor" and field.shape == ()
    if not (is_number or (field.form == "string" and role not in ("order", "success"))):
        need = "a number" if role in ("order", "success") else "a string or a number"
        raise ConfigError(f"{where}: {role} needs {need}, and {field.path} is a {field.type_name} of {field.dtype}")


def scan_unit(unit: ScanUnit, most_bytes: int | None = None) -> pa.Table:
    """Scans the files of a unit; rows follow files and positions, with ``most_bytes`` up to the one with which their
    lengths reach it."""
    rows: list[dict[str, Any]] = []
    size = 0
    for row in (row for item in unit.files for row in scan_file(item, unit)):
        rows.append(row)
        size += row["length"]
        if most_bytes is not None and size >= most_bytes:
            break
    columns = {name: [row[name] for row in rows] for name in SCANNED.names}
    arrays = []
    for field in SCANNED:
        if pa.types.is_dictionary(field.type):
            arrays.append(pa.array(columns[field.name], pa.string()).dictionary_encode().cast(field.type))
        else:
            arrays.append(pa.array(columns[field.name], field.type))
    return pa.table(arrays, schema=SCANNED)


def scan_file(item: ScanFile, unit: ScanUnit) -> Iterator[dict[str, Any]]:
    """The scan rows of one file's episodes."""
    want = unit.wanted[item.wanted]
    features = unit.features[item.wanted]
    for stored in item.file.read_all(features, unit.max_episode_bytes):
        yield {
            "directory": item.directory,
            "file": item.ordinal,
            "position": stored.place.position,
            "offset": stored.place.offset,
            "length": stored.place.length,
            "crc": stored.place.crc,
            "lost": stored.lost,
            **scan_episode(stored, item.task, want),
        }


def scan_episode(stored: Stored, task: str | None, want: Wanted) -> dict[str, Any]:
    """Task, agent, order, marks, steps and return of one stored episode, or why it has none."""
    row: dict[str, Any] = {
        "task": task,
        "agent": "" if want.agent is None else None,
        "id": None,
        "order": float("nan"),
        "success": None,
        "steps": None,
        "return": float("nan"),
        "reason": stored.reason,
        "detail": stored.detail,
        "largest": None,
    }
    episode = stored.episode
    if episode is None:
        return row
    try:
        for role in ("task", "agent", "id", "order", "success"):
            field = getattr(want, role)
            if field is not None:
                row[role] = _metadata(episode, field, role)
        reward, is_last = _numbers(episode, want.reward), _numbers(episode, want.is_last)
        row["steps"], row["return"] = steps_and_return(reward, is_last)
        row["largest"] = [_largest(episode, field, row["steps"]) for field in want.counted]
    except RejectedError as error:
        row["reason"], row["detail"] = error.reason, error.detail
    return row


def steps_and_return(reward: np.ndarray, is_last: np.ndarray) -> tuple[int, float]:
    """Steps that have an action, and the float64 sum of their stored rewards, (N,), in step order.

    The step that ``is_last`` marks has no action and its reward is padding. RejectedError where a step
    follows it, the lengths differ or a counted reward is not finite.
    """
    if len(reward) != len(is_last):
        raise RejectedError("malformed_steps", f"{len(reward)} rewards and {len(is_last)} is_last flags")
    marks = np.flatnonzero(is_last)
    if len(marks) and marks[0] != len(is_last) - 1:
        raise RejectedError("malformed_steps", f"steps follow step {marks[0]}, which is_last marks")
    steps = len(is_last) - len(marks)
    counted = reward[:steps].astype(np.float64)
    total = float(np.add.accumulate(counted)[-1]) if steps else 0.0
    if not math.isfinite(total):  # of finite rewards too, where the sum overflows
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
        if not np.isfinite(float(value)):
            raise RejectedError("not_finite", f"{field.path} is {value}")
        return float(value)
    return value if isinstance(value, str) else str(value)


def _numbers(episode: RawEpisode, field: SourceField) -> np.ndarray:
    values = episode.column(field)
    assert isinstance(values, np.ndarray)
    return values


def _largest(episode: RawEpisode, field: SourceField, steps: int) -> int:
    values = _numbers(episode, field)
    return int(values[:steps].max()) if steps and values[:steps].size else 0
