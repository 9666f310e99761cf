"""Rows of a Parquet file in order, in memory that a batch and a page bound, with what is damaged named, not raised.

Texts come as bytes, also inside lists and structs, because a file may call a column text whose bytes are not UTF-8.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gatokit.pipelines.documents.reader import CorpusFile, FoundDocument, changed
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError
from gatokit.storage import files

BATCH_BYTES = 8 << 20
BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Row:
    """A row: its ordinal in the file, its row group, and its values by column; texts and dictionaries are bytes."""

    position: int
    group: int
    values: dict[str, Any]


@dataclass(frozen=True)
class DamagedRows:
    """``rows`` rows from ``position`` on, to the end of their row group, that cannot be read."""

    position: int
    group: int
    rows: int
    detail: str


class DamagedFileError(Exception):
    """The file begins as Parquet and its footer cannot be read, so nothing of it can."""


def read_schema(file: CorpusFile) -> pa.Schema:
    """The columns of a file. DataError where it is no Parquet at all, DamagedFileError where it lacks its end."""
    with _opened(file) as parquet:
        return parquet.schema_arrow


def column_type(file: CorpusFile, schema: pa.Schema, column: str, option: str) -> pa.DataType:
    """The type of ``column``; DataError where the file has none or two of that name, which the config gives as
    ``option``."""
    if schema.names.count(column) == 1:
        return schema.field(column).type
    has = "two columns" if column in schema.names else "no column"
    there = ", ".join(map(repr, schema.names)) or "none"
    raise DataError(f"{file.name}: has {has} {column!r}; set `{option}` to one of its columns: {there}")


def read_rows(file: CorpusFile, columns: list[str], groups: Iterable[int] | None = None) -> Iterator[Row | DamagedRows]:
    """Every row of ``groups`` (None: of the file), ascending, with the values of ``columns`` (top-level names).

    A row group is read up to where it is damaged; ``DamagedRows`` stands for the rest of it. Errors of
    ``read_schema``, and DamagedFileError where a column or row group is not there.
    """
    with _opened(file) as parquet:
        if missing := sorted(set(columns) - set(parquet.schema_arrow.names)):
            raise DamagedFileError(f"has no column {missing[0]!r}")
        metadata = parquet.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        for group in range(len(rows)) if groups is None else groups:
            if group >= len(rows):
                raise DamagedFileError(f"has no row group {group}")
            position, end = sum(rows[:group]), sum(rows[: group + 1])
            try:
                size = _batch_rows(metadata.row_group(group))
                for batch in parquet.iter_batches(size, [group], columns, use_threads=False):
                    for values in zip(*(_plain(batch.column(column)) for column in columns), strict=True):
                        yield Row(position, group, dict(zip(columns, values, strict=True)))
                        position += 1
                detail = "the row group ends early"
            except (pa.ArrowException, OSError, ValueError) as error:
                detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            if position < end:
                yield DamagedRows(position, group, end - position, detail)


def read_places(
    file: CorpusFile, columns: list[str], places: Iterable[ByteRange]
) -> Iterator[tuple[ByteRange, dict[str, Any]]]:
    """The values of ``columns`` at ascending places whose ``offset`` is their row group.

    DataError where the rows can no longer be read.
    """
    for group, members in itertools.groupby(places, lambda place: place.offset):
        rows = read_rows(file, columns, [group])
        for place in members:
            try:
                row = next(row for row in rows if row.position >= place.position or isinstance(row, DamagedRows))
            except (DamagedFileError, StopIteration):
                raise changed(file, place) from None
            if isinstance(row, DamagedRows) or row.position != place.position:
                raise changed(file, place)
            yield place, row.values


def damage(found: DamagedRows | DamagedFileError) -> FoundDocument:
    """The row that stands for what cannot be read."""
    if isinstance(found, DamagedFileError):
        detail = f"the file's footer is damaged or missing: {found}"
        return FoundDocument(ByteRange(0, 0, 0, 0), "0", None, None, "corrupt_length", detail)
    place = ByteRange(found.position, found.group, 0, 0)
    detail = f"row group {found.group} is damaged: {found.detail}"
    return FoundDocument(place, str(found.position), None, None, "corrupt_record", detail, found.rows)


def _batch_rows(group: Any) -> int:
    """As many rows as hold ``BATCH_BYTES``, by the row group's own count of bytes.

    The counts of single columns would be nearer, but asking for them ends the process where the footer is damaged.
    """
    return max(1, min(BATCH_ROWS, BATCH_BYTES * max(1, group.num_rows) // max(1, group.total_byte_size)))


def _plain(array: pa.Array) -> list[Any]:
    return array.cast(_bytes_type(array.type)).to_pylist()


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    """The type with binary in place of text, plain values in place of dictionaries."""
    if pa.types.is_dictionary(kind):
        return _bytes_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_bytes_type(field.type)) for field in kind])
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_bytes_type(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_bytes_type(kind.value_type)))
    return kind


@contextlib.contextmanager
def _opened(file: CorpusFile) -> Iterator[pq.ParquetFile]:
    with files.arrow_file(file.path) as source:
        begin = source.read(len(_MAGIC))
        if not _MAGIC.startswith(begin):
            raise DataError(f"{file.name}: is no Parquet file; leave it out of `source`")
        try:
            parquet = pq.ParquetFile(
                source, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
            )
        except (pa.ArrowException, OSError, ValueError) as error:
            detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DamagedFileError(detail) from None
        yield parquet
