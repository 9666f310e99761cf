"""Rows of a Parquet file in order, in memory that a batch and a page bound; damage is reported as a row.

Texts come as bytes, also inside lists and structs, because a file may call a column text whose bytes are not UTF-8.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.schemas.errors import DataError, first_line
from gatokit.storage import files as storage

BATCH_BYTES = 8 << 20
BATCH_ROWS = 1024
STRINGS = frozenset((pa.string(), pa.large_string(), pa.string_view()))
BINARIES = frozenset((pa.binary(), pa.large_binary(), pa.binary_view()))
_RECURRING_BYTES, _MOST_OF_SMALL = 256 << 20, 2 << 30
_BUFFER_BYTES = 1 << 20
_MAGIC = b"PAR1"
_DAMAGE = (pa.ArrowException, OSError, ValueError)


class Row(NamedTuple):
    """A row: its ordinal in the file, its row group, and its values by column; texts and dictionaries are bytes."""

    position: int
    group: int
    values: dict[str, Any]


class DamagedRows(NamedTuple):
    """``rows`` rows from ``position`` on, to the end of their row group, that cannot be read. ``share`` is about their
    share of the file's bytes."""

    position: int
    group: int
    rows: int
    detail: str
    share: float


class DamagedFileError(Exception):
    """The file begins as Parquet and its footer cannot be read, so nothing of it can."""


@contextlib.contextmanager
def open_file(path: str, name: str) -> Iterator[pq.ParquetFile]:
    """Opens a file, which messages call ``name``.

    Raises DataError if it is not a Parquet file at all, DamagedFileError if its end is damaged or missing.
    """
    with storage.arrow_file(path) as source:
        begin = source.read(len(_MAGIC))
        if not _MAGIC.startswith(begin):
            raise DataError(f"{name}: is no Parquet file; leave it out of `source`")
        try:
            file = pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
        except _DAMAGE as error:
            if storage.is_failure(error):
                raise
            raise DamagedFileError(first_line(error)[:200]) from None
        yield file


def read_rows(
    file: pq.ParquetFile, columns: Iterable[str], groups: Iterable[int] | None = None, most: int | None = None
) -> Iterator[Row | DamagedRows]:
    """Every row of ``groups`` (None: of the file), ascending, with the values of ``columns`` (top-level names).

    A row group is read up to where it is damaged; ``DamagedRows`` replaces the rest of it. So do they behind the batch
    that brings the values to more than ``most`` bytes. Raises DamagedFileError if a row group is not there.
    """
    columns, metadata, left = list(columns), file.metadata, most
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    for group in range(len(rows)) if groups is None else groups:
        if group >= len(rows):
            raise DamagedFileError(f"has no row group {group}")
        position, end = sum(rows[:group]), sum(rows[: group + 1])
        try:
            # The counts of bytes of single columns would be nearer, but asking for them ends the process if the footer
            # is damaged.
            group_bytes = max(1, metadata.row_group(group).total_byte_size)
            # In a small file, a value that is stored once may recur in every row.
            most_rows = BATCH_ROWS if most is None or most > _MOST_OF_SMALL else _RECURRING_BYTES // group_bytes
            batch_rows = max(1, min(BATCH_ROWS, most_rows, BATCH_BYTES * max(1, rows[group]) // group_bytes))
            for batch in file.iter_batches(batch_rows, [group], columns, use_threads=False):
                arrays = [_plain(batch.column(column)) for column in columns]
                if left is not None and (left := left - sum(array.nbytes for array in arrays)) < 0:
                    raise ValueError(f"unpacks to more than {most:,} bytes; max_unpacked of the dataset allows more")
                values = [_values(array) for array in arrays]
                for row in zip(*values, strict=True):
                    yield Row(position, group, dict(zip(columns, row, strict=True)))
                    position += 1
            detail = "the row group ends early"
        except _DAMAGE as error:
            if storage.is_failure(error):
                raise
            detail = first_line(error)[:200]
        if position < end:
            # By the uncompressed sizes of the row groups; a damaged footer may hold anything.
            sizes = [max(0, metadata.row_group(number).total_byte_size) for number in range(len(rows))]
            share = sizes[group] / sum(sizes) if sum(sizes) else 1 / len(rows)
            yield DamagedRows(position, group, end - position, detail, share * (end - position) / rows[group])


def column_type(name: str, schema: pa.Schema, column: str, option: str) -> pa.DataType:
    """The type of a column that the config gives as ``option``.

    Raises DataError if the file, which is called ``name``, has no such column or two of them.
    """
    if schema.names.count(column) == 1:
        return schema.field(column).type
    has = "two columns" if column in schema.names else "no column"
    there = ", ".join(map(repr, schema.names)) or "none"
    raise DataError(f"{name}: has {has} {column!r}; set `{option}` to one of its columns: {there}")


def holds_text(type_: pa.DataType) -> bool:
    """Whether a column holds texts, as strings or bytes, or nothing but nulls."""
    return plain_type(type_) in STRINGS | BINARIES | {pa.null()}


def is_list(type_: pa.DataType) -> bool:
    """Whether values are lists, of any length or of a fixed one."""
    of_lists = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return bool(of_lists or _is_list_view(type_))


def plain_type(type_: pa.DataType) -> pa.DataType:
    """The type of the values themselves, if they are stored as a dictionary, as runs or as those of an extension."""
    if isinstance(type_, pa.BaseExtensionType):
        return plain_type(type_.storage_type)
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        return plain_type(type_.value_type)
    return type_


def _is_list_view(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(type_) or pa.types.is_large_list_view(type_))


def _plain(array: pa.Array) -> pa.Array:
    """The array with texts as bytes, without dictionaries, runs and extensions. Views of lists stay."""
    type_ = array.type
    if isinstance(type_, pa.BaseExtensionType):
        return _plain(array.storage)
    if pa.types.is_run_end_encoded(type_):
        return _plain(pc.run_end_decode(array))
    bytes_type = _bytes_type(type_)
    return array if _is_list_view(type_) or type_ == bytes_type else array.cast(bytes_type)


def _values(array: pa.Array) -> list[Any]:
    """The values of a plain array."""
    if _is_list_view(array.type):  # a cast to lists loses their values
        flat = _values(_plain(array.values))
        places = (column.to_pylist() for column in (array.offsets, array.sizes, array.is_valid()))
        return [flat[begin : begin + size] if valid else None for begin, size, valid in zip(*places, strict=True)]
    values: list[Any] = array.to_pylist()
    return values


def _bytes_type(type_: pa.DataType) -> pa.DataType:
    """The type with binary in place of text, plain values in place of dictionaries."""
    if pa.types.is_dictionary(type_):
        return _bytes_type(type_.value_type)
    if type_ == pa.large_string():
        return pa.large_binary()
    if type_ in STRINGS or type_ == pa.binary_view():
        return pa.binary()
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_bytes_type(field.type)) for field in type_])
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        list_type = pa.large_list if pa.types.is_large_list(type_) else pa.list_
        return list_type(type_.value_field.with_type(_bytes_type(type_.value_type)))
    return type_
