"""Scans files of episodes: a row for each episode, in one table for each unit of work.

A scan reads rewards, flags, metadata, actions and discrete observations of every episode, and nothing else. Legend: N
recorded steps of an episode, the last one included; E episodes; R rows.
"""

import functools
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, TypeAdapter

from gatokit.pipelines.episodes.envlogger import EnvLoggerFile
from gatokit.pipelines.episodes.ranges import MEASURED, MeasuredField, measure, reduce_parts
from gatokit.pipelines.episodes.reader import EpisodeFile, RawEpisode, SourceField, StoredEpisode
from gatokit.pipelines.episodes.rlds import RldsFile
from gatokit.pipelines.episodes.values import EpisodeValues, read_metadata, read_values, typed_columns
from gatokit.pipelines.stages import metadata_schema
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.manifest import MetadataType, json_digest

_Formats = RldsFile | EnvLoggerFile
"""A new format of episodes is a module beside this one, and its type of files here."""
FORMATS: dict[str, type[EpisodeFile]] = {type_.marker: type_ for type_ in typing.get_args(_Formats)}
"""The type of files of each format, by the name of the file that marks its directories."""
_BY_FORMAT: TypeAdapter[_Formats] = TypeAdapter(Annotated[_Formats, Field(discriminator="format")])
AnyEpisodeFile = Annotated[SerializeAsAny[EpisodeFile], BeforeValidator(_BY_FORMAT.validate_python)]
"""A file of any format, in models that are written to JSON and read again."""

SCANNED = pa.schema(
    [
        pa.field("file", pa.int32()),  # ordinal among the dataset's files
        pa.field("position", pa.int64()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc", pa.uint32()),
        pa.field("task", pa.dictionary(pa.int32(), pa.string())),
        pa.field("agent", pa.dictionary(pa.int32(), pa.string())),
        pa.field("id", pa.string()),  # null: named by file and position
        pa.field("order", pa.float64()),  # NaN: by position
        pa.field("success", pa.bool_()),
        # Of the steps that is_last does not mark:
        pa.field("steps", pa.int64()),
        pa.field("return", pa.float64()),  # NaN if the rewards do not parse or are not finite, null if there are none
        pa.field("rounding", pa.float64()),  # how far the return may be from the recorder's (``half_ulps``); null: 0
        pa.field("last_reward", pa.float64()),
        pa.field("last_rounding", pa.float64()),
        # Of the step that is_last marks, null if there is none (``last_step``):
        pa.field("end_reward", pa.float64()),
        pa.field("end_rounding", pa.float64()),
        pa.field("end_reward_look", pa.dictionary(pa.int32(), pa.string())),
        pa.field("end_action", pa.dictionary(pa.int32(), pa.string())),  # its look
        pa.field("reason", pa.dictionary(pa.int32(), pa.string())),
        pa.field("detail", pa.string()),
        pa.field("lost", pa.int64()),
        pa.field("lost_bytes", pa.int64()),
        *MEASURED,
    ]
)
"""Rows of a scan in memory and in the files between scan and plan."""


class ScanFields(BaseModel):
    """The fields that a scan reads of an episode; None if the source has none."""

    model_config = ConfigDict(frozen=True)

    reward: SourceField | None
    is_first: SourceField | None
    is_last: SourceField
    is_terminal: SourceField | None
    values: EpisodeValues
    measured: tuple[MeasuredField, ...]


class ScanFile(BaseModel):
    """A file of the plan: its ordinal among the dataset's files, what the config and its path say of its episodes, and
    the index of its ``ScanFields``."""

    model_config = ConfigDict(frozen=True)

    ordinal: int
    given: dict[str, str | float]
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
    columns: dict[str, MetadataType]
    """The columns of values stored with the episodes of the dataset."""
    files: tuple[ScanFile, ...]
    keys: tuple[str, ...]
    """A digest for each file of all that its rows depend on: a file that changed is scanned again."""
    most_rows: int | None = None
    """The scan ends with this many rows."""

    @property
    def size(self) -> int:
        """The bytes of its files."""
        return sum(item.file.size for item in self.files)

    @property
    def fingerprint(self) -> str:
        """Names the file with the unit's rows, so that an interrupted scan continues where it stopped."""
        return json_digest(self.keys, 8)

    @property
    def ordinals(self) -> tuple[int, ...]:
        """The numbers of its files among the dataset's."""
        return tuple(item.ordinal for item in self.files)

    def scan(self, most_bytes: int | None = None) -> pa.Table:
        """The ``scan_table`` of the files in order. With ``most_bytes`` its last row is the one with which the stored
        lengths reach it."""
        return scan_table(self._episodes(most_bytes), self.columns)

    def _episodes(self, most_bytes: int | None) -> Iterator[tuple[dict[str, Any], ScanFields, StoredEpisode]]:
        size = rows = 0
        for item in self.files:
            known, fields = {"file": item.ordinal, **item.given}, self.fields[item.fields]
            for stored in item.file.read_all(self.max_episode_bytes):
                yield known, fields, stored
                size, rows = size + stored.byte_range.length, rows + 1
                if rows == self.most_rows or (most_bytes is not None and size >= most_bytes):
                    return


# --- the table -------------------------------------------------------------------------------------------------


def scan_table(
    episodes: Iterable[tuple[Mapping[str, Any], ScanFields, StoredEpisode]], columns: Mapping[str, MetadataType]
) -> pa.Table:
    """A row for each episode (schema ``SCANNED``, and ``metadata_schema`` of ``columns``).

    Each episode comes with the values of its row that are known beforehand, and the fields that are read. Rows become
    columns ``_BATCH_ROWS`` at a time, because as Python's values they take ten times the memory.
    """
    schema = pa.schema([*SCANNED, *metadata_schema(columns)])
    tables: list[pa.Table] = []
    batches: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    measured = _Measured()

    def join_batches() -> None:
        joined = pa.concat_tables(batches).unify_dictionaries()
        tables.append(joined.combine_chunks(memory_pool=pa.system_memory_pool()))
        batches.clear()

    def finish_rows() -> None:
        nonlocal measured
        measured.finish()
        arrays = [
            measured.column(field, len(rows))
            if field.name in measured.parts
            else pa.array([row.get(field.name) for row in rows], field.type)
            for field in schema
        ]
        batches.append(pa.table(arrays, schema=schema))
        if len(batches) == _JOINED_BATCHES:
            join_batches()
        rows.clear()
        measured = _Measured()

    for known, fields, stored in episodes:
        row = {**known, **stored.byte_range._asdict(), "lost": stored.lost, "lost_bytes": stored.lost_bytes}
        row |= {"return": math.nan, "reason": stored.reason, "detail": stored.detail}
        row.setdefault("order", math.nan)
        if stored.value is not None:
            _read_episode(stored.value, row, len(rows), fields, columns, measured)
        rows.append(row)
        if len(rows) == _BATCH_ROWS:
            finish_rows()
    if rows or not (tables or batches):
        finish_rows()
    if batches:
        join_batches()
    return pa.concat_tables(tables).unify_dictionaries()


def _read_episode(
    episode: RawEpisode,
    row: dict[str, Any],
    number: int,
    fields: ScanFields,
    types: Mapping[str, MetadataType],
    measured: "_Measured",
) -> None:
    """Adds task, agent, order, marks, steps, return and metadata of an episode to its row, or the reason why it has
    none, and its values to ``measured``. A column that is left out is null."""
    metadata = read_metadata(episode, fields.values)
    row |= typed_columns(metadata, fields.values, types)
    try:
        row |= read_values(episode, fields.values, metadata)
        is_last = episode.flags(fields.is_last)
        is_first = None if fields.is_first is None else episode.flags(fields.is_first)
        is_terminal = None if fields.is_terminal is None else episode.flags(fields.is_terminal)
        row["steps"] = steps = steps_of(is_first, is_last, is_terminal)
        recorded = len(is_last)
        rewards = [] if fields.reward is None else [_values(episode, fields.reward)]
        row["return"] = sum_rewards(rewards[0][:, 0], steps, recorded) if rewards else None
        columns = [*rewards, *_measured_values(episode, fields.measured, recorded)]
        if recorded:
            measured.add(number, steps, recorded, columns, fields)
    except RejectedError as error:
        row["reason"], row["detail"] = error.reason, error.detail


def _measured_values(episode: RawEpisode, fields: Sequence[MeasuredField], recorded: int) -> Iterator[np.ndarray]:
    """Yields the ``_values`` of the fields. Raises RejectedError if there are not as many as ``recorded`` steps."""
    for field in fields:
        values = _values(episode, field.source)
        if len(values) != recorded:
            raise RejectedError("malformed_steps", f"{field.path} has {len(values)} values for {recorded} steps")
        yield values


def _values(episode: RawEpisode, field: SourceField) -> np.ndarray:
    """The values of a field, (N, C); C = 1 if it has one number a step."""
    values = episode.column(field)
    assert isinstance(values, np.ndarray)
    return values if values.ndim == 2 else values.reshape(len(values), math.prod(values.shape[1:]))


class _Measured:
    """Columns that are found for many episodes at once, which is far faster than one by one.

    ``parts`` has, by column, numbers of rows and their values.
    """

    def __init__(self) -> None:
        self.parts: dict[str, list[tuple[np.ndarray, Any]]] = {}
        self._added: list[tuple[int, int, int, list[np.ndarray]]] = []
        self._steps = self._most_steps = 0
        self._fields: ScanFields | None = None
        self._dtypes: list[np.dtype] = []

    def add(self, row: int, steps: int, recorded: int, columns: Sequence[np.ndarray], fields: ScanFields) -> None:
        """Takes an episode of ``recorded`` > 0 steps, of which ``is_last`` does not mark the first ``steps``.

        ``columns`` are the rewards, if the source has any, and the measured fields, each (N, C).
        """
        dtypes = [values.dtype for values in columns]
        if self._steps > self._most_steps or fields is not self._fields or dtypes != self._dtypes:
            self.finish()
            self._fields, self._dtypes = fields, dtypes
            self._most_steps = _BATCH_VALUES // max(1, sum(values.shape[1] for values in columns))
        # Copies, because a view keeps the whole stored episode in memory.
        self._added.append((row, steps, recorded, [values.T.copy() for values in columns]))
        self._steps += recorded

    def finish(self) -> None:
        """Measures the episodes that were added."""
        if not self._added or self._fields is None:
            return
        rows, steps, recorded = np.array([added[:3] for added in self._added]).T
        joined = [np.concatenate(parts, axis=1) for parts in zip(*(added[3] for added in self._added), strict=True)]
        self._added, self._steps, fields = [], 0, self._fields
        ends = np.cumsum(recorded)
        begins = ends - recorded
        stops = begins + steps
        found: dict[str, Any] = {}
        if fields.reward is not None:
            found = reward_columns(joined.pop(0), begins, stops, ends)
        actions = [values for values, field in zip(joined, fields.measured, strict=True) if field.is_action]
        found |= {"end_action": looks(actions, begins, ends), **measure(joined, fields.measured, begins, stops, ends)}
        for name, values in found.items():
            there = stops < ends if name.startswith("end_") else begins < stops if name.startswith("last_") else ...
            self.parts.setdefault(name, []).append((rows[there], values if there is ... else values[there]))

    def column(self, field: pa.Field, count: int) -> pa.Array:
        """A column of ``count`` rows, null where nothing was found."""
        parts = self.parts[field.name]
        rows = np.concatenate([rows for rows, _ in parts])
        is_null = np.ones(count, bool)
        is_null[rows] = False
        if pa.types.is_list(field.type):
            lists = [item for _, values in parts for item in values]
            lengths = np.zeros(count, np.int64)
            lengths[rows] = [len(item) for item in lists]
            offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32(), mask=np.append(is_null, False))
            joined = np.concatenate([np.empty(0, np.int64), *lists])
            return pa.ListArray.from_arrays(offsets, pa.array(joined, field.type.value_type))
        found = np.concatenate([values for _, values in parts])
        values = np.zeros(count, found.dtype)
        values[rows] = found
        array = pa.array(values, mask=is_null)
        return array.dictionary_encode() if pa.types.is_dictionary(field.type) else array.cast(field.type)


_BATCH_ROWS = 1 << 10
_JOINED_BATCHES = 1 << 5
"""Batches of rows become one table of few large arrays. In Arrow's own pool they would take a third more."""
_BATCH_VALUES = 1 << 17
"""Episodes are looked at when they have more values than this together."""


# --- steps and rewards -----------------------------------------------------------------------------------------


def steps_of(is_first: bytes | None, is_last: bytes, is_terminal: bytes | None) -> int:
    """Number of steps that ``is_last`` does not mark, given the flags of N steps, one byte each.

    Raises RejectedError if the lengths differ or the flags contradict each other: an episode begins or ends in the
    middle, or it is over at a step that is not its last.
    """
    recorded = len(is_last)
    for name, flags in (("is_first", is_first), ("is_terminal", is_terminal)):
        if flags is not None and len(flags) != recorded:
            raise RejectedError("malformed_steps", f"{len(flags)} {name} flags and {recorded} is_last flags")
    step = _first_mark(is_last, 0, recorded - 1)
    if step is not None:
        raise RejectedError("malformed_steps", f"steps follow step {step}, which is_last marks")
    steps = recorded - 1 if is_last[-1:].strip(b"\0") else recorded
    step = None if is_first is None else _first_mark(is_first, 1, recorded)
    if step is not None:
        raise RejectedError("malformed_steps", f"is_first marks step {step}, which is not the first")
    step = None if is_terminal is None else _first_mark(is_terminal, 0, steps)
    if step is not None:
        raise RejectedError("malformed_steps", f"is_terminal marks step {step}, which is_last does not mark")
    return steps


def _first_mark(flags: bytes, begin: int, end: int) -> int | None:
    """The first step from ``begin`` to ``end`` that is marked; None if there is none."""
    if flags.count(0, begin, end) >= end - begin:
        return None
    return next(step for step in range(begin, end) if flags[step])


def sum_rewards(reward: np.ndarray, steps: int, recorded: int) -> float:
    """The return of an episode: the float64 sum of the first ``steps`` of its rewards (N,) in step order.

    Raises RejectedError if there are not as many rewards as ``recorded`` steps, or one of the first is not finite.
    """
    if len(reward) != recorded:
        raise RejectedError("malformed_steps", f"{len(reward)} rewards and {recorded} is_last flags")
    counted = reward[:steps].astype(np.float64)
    # Not np.sum, which adds in pairs: its result depends on the length and the NumPy version.
    total = float(np.add.accumulate(counted)[-1]) if steps else 0.0
    if not math.isfinite(total):  # a sum of finite rewards may overflow, which is no fault of a step
        finite = np.isfinite(counted)
        if not finite.all():
            step = int(np.argmin(finite))
            raise RejectedError("not_finite", f"reward is {counted[step]} at step {step}")
    return total


def reward_columns(
    rewards: np.ndarray, begins: np.ndarray, stops: np.ndarray, ends: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of ``SCANNED`` that the rewards of E episodes give, (E,). The rewards follow each other, (1, …).

    The steps of an episode that ``is_last`` does not mark go from ``begins`` to ``stops``, the others up to ``ends``,
    each int (E,). What belongs to a step that an episode does not have means nothing.
    """
    rounding = half_ulps(rewards[0])
    return {
        "rounding": reduce_parts(np.add, rounding[None], begins, stops, 0.0)[0],
        "last_reward": rewards[0, stops - 1].astype(np.float64),
        "last_rounding": rounding[stops - 1],
        "end_reward": rewards[0, ends - 1].astype(np.float64),
        "end_rounding": rounding[ends - 1],
        "end_reward_look": looks([rewards], begins, ends),
    }


def half_ulps(values: np.ndarray) -> np.ndarray:
    """How far each stored value may be from the one that its recorder had, float64 (N,): half of the distance to the
    next float32 (or float16). Values of other types are exact."""
    if values.dtype.kind != "f" or values.dtype.itemsize > 4:
        return np.zeros(len(values))
    bits, by_exponent = _half_ulps_by_exponent(values.dtype)
    return by_exponent[values.view(f"u{values.dtype.itemsize}") >> bits & len(by_exponent) - 1]


@functools.cache
def _half_ulps_by_exponent(dtype: np.dtype) -> tuple[int, np.ndarray]:
    """The number of bits of the type's mantissa, and half of the distance to the next value for each exponent as it is
    stored, float64; 0 for that of infinities and NaN."""
    info = np.finfo(dtype)
    exponents = np.maximum(np.arange(2**info.iexp), 1)
    distances = np.ldexp(0.5, exponents + int(info.minexp) - 1 - int(info.nmant))
    distances[-1] = 0.0
    return int(info.nmant), distances


# --- last steps ------------------------------------------------------------------------------------------------

Look = Literal["zero", "copy", "other"]


def look(columns: Sequence[np.ndarray]) -> Look:
    """What the last of N > 0 steps holds in these fields together, each (N, …): only zeros or values that are not
    finite, a copy of the first step or of the one before, or something else. Fields of no step are zeros."""
    steps = len(columns[0]) if columns else 1
    parts = [column.reshape(steps, math.prod(column.shape[1:])).T for column in columns]
    found: Look = looks(parts, np.array([0]), np.array([steps])).item()
    return found


def looks(columns: Sequence[np.ndarray], begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """``look`` of E episodes, str (E,). The values of each field follow each other in a column (C, …); the steps of an
    episode go from ``begins`` to ``ends``, int (E,)."""
    is_zero = np.ones(len(begins), bool)
    is_first = is_before = ends - begins > 1
    for column in columns:
        last = column[:, ends - 1]
        is_zero = is_zero & ~(last.astype(bool) & np.isfinite(last)).any(axis=0)
        is_first = is_first & (last == column[:, begins]).all(axis=0)
        is_before = is_before & (last == column[:, np.maximum(ends - 2, begins)]).all(axis=0)
    return np.select([is_zero, is_first | is_before], ["zero", "copy"], "other")
