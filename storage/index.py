"""Checks the tables of a build where they are opened: columns, types and values of indexes and of tables of tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.schemas.errors import DataError, MalformedError
from gatokit.schemas.index import INDEX, METADATA_TYPES, OF_TASK, TASKS, common_type
from gatokit.schemas.manifest import DATASET, MetadataType, ShardEntry, check_index_version
from gatokit.schemas.untrusted import quoted
from gatokit.schemas.words import one_line

_LEAST = {"lost": 1, "steps": 0, "tokens": 0, "part": 0, "first_record": 0, "source_position": 0}
_LEAST_OF_TASKS = dict.fromkeys(("episodes", "window", "kept", "dropped", "held_out", "steps", "tokens"), 0)
_NOT_OF_TASKS = {"window", "stream_return", "expert_return", "threshold", "tokens"}
"""Columns of the table of tasks that may be null."""


def index_schema(path: Path, rows: int | None, columns: Mapping[str, MetadataType] | None) -> pa.Schema:
    """The schema of the index file at ``path`` if it holds ``rows`` rows (None: any number) of the columns of
    ``INDEX``, of ``OF_TASK`` in format 1, and of ``columns`` (None: any others). Some may be missing.

    Raises MalformedError if it does not, DataError if the file cannot be read or is of a newer version.
    """
    schema = _footer(path, rows)
    check_index_version(schema, path)
    own = {field.name: field.type for field in INDEX} | dict.fromkeys(OF_TASK, pa.float64())
    for field in schema:
        name, type_ = one_line(field.name), field.type
        if schema.names.count(field.name) > 1:
            raise MalformedError(f"{path} has the column {name} twice")
        if field.name in own:
            if type_ != own[field.name]:
                raise MalformedError(f"{path} has a column {name} of {type_}, not {own[field.name]}")
        elif columns is not None and field.name not in columns:
            raise MalformedError(f"{path} has a column {name}, which {DATASET} does not have")
        elif columns is not None and not _fits(type_, columns[field.name]):
            raise MalformedError(f"{path} has a column {name} of {type_}, not {columns[field.name]}")
    return schema


def check_columns(rows: pa.Table | pa.RecordBatch, path: Path) -> None:
    """Raises MalformedError if a value of some rows of the index at ``path`` is out of its range. Only the columns that
    are there are looked at."""
    for name in rows.schema.names:
        column = rows[name]
        if name in _LEAST:
            _check_least(column, _LEAST[name], path, name)
        elif name == "return":
            _check_finite(column, path, name)
        elif name == "record_tokens":
            _check_least(pc.list_flatten(column), 1, path, name)


def check_places(rows: pa.Table, parts: Sequence[ShardEntry], path: Path) -> None:
    """Raises MalformedError unless every row is stored in records of one of a split's shards, ``parts``, and no record
    belongs to two rows. The columns are those of ``check_columns``, which has passed."""
    for name in ("part", "first_record", "record_tokens"):
        if rows[name].null_count or (name == "record_tokens" and pc.list_flatten(rows[name]).null_count):
            _wrong(path, name, None)
    part, first = rows["part"].to_numpy(), rows["first_record"].to_numpy()
    counts = pc.list_value_length(rows["record_tokens"]).to_numpy()
    if len(part) and part.max() >= len(parts):
        _wrong(path, "part", int(part.max()), f"the split has {len(parts)} shards")
    records = np.array([entry.records for entry in parts], np.int64)[part]
    outside = (counts == 0) | (first > records - counts)
    if outside.any():
        at = int(outside.argmax())
        shard = parts[part[at]]
        problem = f"{counts[at]} records from there on are not in {shard.file}, which has {shard.records}"
        _wrong(path, "first_record", int(first[at]), problem)
    order = np.lexsort((first, part))
    same = part[order][1:] == part[order][:-1]
    overlaps = same & (first[order][1:] < (first + counts)[order][:-1])
    if overlaps.any():
        _wrong(path, "first_record", int(first[order][1:][overlaps.argmax()]), "another row has this record")


def read_tasks(path: Path) -> pa.Table:
    """The table of tasks at ``path``: the columns of ``TASKS``. Raises MalformedError if it is another table or a value
    is out of its range, DataError if it cannot be read or is of a newer version."""
    schema = _footer(path, None)
    check_index_version(schema, path)
    found = {field.name: field.type for field in schema}
    for field in TASKS:
        if found.get(field.name) != field.type:
            problem = f"a column {field.name} of {found[field.name]}, not" if field.name in found else "no column of"
            raise MalformedError(f"{path} has {problem} {field.type}: {field.name}")
    try:
        rows = pq.read_table(path, columns=TASKS.names)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    for name in TASKS.names:
        if name not in _NOT_OF_TASKS and rows[name].null_count:
            _wrong(path, name, None)
        if name in _LEAST_OF_TASKS:
            _check_least(rows[name], 0, path, name)
        elif TASKS.field(name).type == pa.float64():
            _check_finite(rows[name], path, name)
    return rows


def _footer(path: Path, rows: int | None) -> pa.Schema:
    """The schema of a Parquet file. A row takes at least a byte of the file, so that a small file stays small."""
    try:
        with pq.ParquetFile(path) as file:
            groups = map(file.metadata.row_group, range(file.num_row_groups))
            count, schema = sum(group.num_rows for group in groups), file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if rows is not None and count != rows:
        raise MalformedError(f"{path} has {count} rows and the manifest says {rows}")
    if count > path.stat().st_size:
        raise MalformedError(f"{path} has {count} rows in {path.stat().st_size} bytes")
    return schema


def _fits(type_: pa.DataType, wanted: MetadataType) -> bool:
    """Whether a column of values stored with episodes is of a type that the one in ``dataset.json`` holds."""
    name = next((name for name, known in METADATA_TYPES.items() if known == type_), None)
    return name is not None and common_type((name, wanted)) == wanted


def _check_least(column: pa.ChunkedArray | pa.Array, least: int, path: Path, name: str) -> None:
    found = pc.min(column).as_py()
    if found is not None and found < least:
        _wrong(path, name, found)


def _check_finite(column: pa.ChunkedArray | pa.Array, path: Path, name: str) -> None:
    wrong = column.filter(pc.invert(pc.is_finite(column)))
    if len(wrong):
        _wrong(path, name, wrong[0].as_py())


def _wrong(path: Path, name: str, value: object, why: str = "") -> NoReturn:
    value = "nothing" if value is None else quoted(value)
    raise MalformedError(f"{path} has a row with {name} {value}{': ' if why else ''}{why}")
