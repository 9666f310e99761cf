"""Builds a shard: writes its records, and its index, whose presence marks the shard as finished.

Each file appears complete, checked and synced, or not at all.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from gatokit.pipelines import versions
from gatokit.pipelines.episodes.fields import Constants
from gatokit.pipelines.losses import LeftOut
from gatokit.pipelines.planning import ShardTask
from gatokit.pipelines.stages import MADE_BY_BUILD, METADATA, OutOfRange, TokenizedRow, with_metadata
from gatokit.schemas.errors import DataError, RejectedError, first_line
from gatokit.schemas.index import HELD_OUT, INDEX, INDEX_SUFFIX, TRAIN
from gatokit.schemas.manifest import Provenance, ShardEntry
from gatokit.storage.files import (
    arrow_file,
    commit,
    is_directory,
    is_remote,
    named_error,
    prefetch,
    remove,
    size,
    sizes,
    temporary_beside,
    write_atomically,
)
from gatokit.tokenizers.text import TextTokenizer

_PARTS = b"gatokit.parts"
_OUT_OF_RANGE = b"gatokit.outside"
_CONSTANTS = b"gatokit.constants"
_LEFT_OUT = b"gatokit.left_out"
_PROVENANCE = b"gatokit.provenance"
_GENERATIONS = b"gatokit.generations"
_FOOTER_BYTES = 1 << 16
"""About what is read of an index to know its parts."""
_HASH_BYTES = 16 << 20
"""A shard is hashed and synced on whenever about this many bytes of records were written."""
_HELD_BYTES = 32 << 20
"""Records of held-out rows that wait in memory until the training rows of their shard are written."""
MOST_RECORDS = 65_536
"""A part with this many records is full; only an owner with more of them makes a larger one."""
WRITER_OPTIONS = "group_size:1,zstd:-1"
_READ_TOGETHER = 8
_READER_OPTIONS = "readahead_buffer_size:1M,max_parallelism:0"
"""The thread that asks reads ahead. Without the buffer a pool of threads reads a range, which costs more."""
CRASHED = "crashed_decoder"
_NO_CRASHES: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True)
class Built:
    """What ``build_shard`` wrote: rows of the index (``kind`` is ``episodes`` or ``documents``), rows that are kept,
    records and their tokens, shard files and their bytes, and the rows without records by their reason."""

    kind: str
    rows: int
    kept: int
    records: int
    tokens: int
    shards: int
    bytes: int
    reasons: dict[str, int]

    @staticmethod
    def of(kind: str, index: pa.Table, parts: Sequence[ShardEntry]) -> "Built":
        """What an index and its parts say."""
        counted = pc.value_counts(index["reason"]).to_pylist()
        return Built(
            kind=kind,
            rows=index.num_rows,
            kept=pc.sum(index["kept"]).as_py() or 0,
            records=sum(part.records for part in parts),
            tokens=sum(part.tokens for part in parts),
            shards=len(parts),
            bytes=sum(part.size for part in parts),
            reasons={item["values"]: item["counts"] for item in counted if item["values"] is not None},
        )


def build_shard(
    task: ShardTask, directory: str | Path, text: TextTokenizer | None, crashed: Mapping[int, str] = _NO_CRASHES
) -> Built:
    """Reads, tokenizes and writes the kept rows of a task, and then the index, which marks the shard as finished.

    ``text`` is None if nothing is text. Training rows come first in the shard and held-out rows last, both in source
    order. The source is read once: records of held-out rows wait until those of the last training row are written. A
    row that cannot become tokens is dropped with a reason. Rows in ``crashed`` are not read, because that ends the
    process as their text says. Raises DataError if the source changed since the scan, or if pictures would be made by
    other versions than the task names.
    """
    if task.header.settings.codecs not in ({}, versions.codecs()):
        raise DataError(
            f"{task.header.dataset}: this worker has {_named(versions.codecs())} for pictures, and the command was "
            f"started with {_named(task.header.settings.codecs)}; install the same packages on both"
        )
    columns = {name: task.rows[name].to_pylist() for name in task.rows.column_names if not name.startswith(METADATA)}
    for row, detail in crashed.items():
        columns["kept"][row], columns["split"][row] = False, None
        columns["reason"][row], columns["detail"][row] = CRASHED, detail
    result: dict[str, list[Any]] = {name: [None] * task.rows.num_rows for name in MADE_BY_BUILD}
    builder = task.header.builder(text)
    rows = [row for row, value in enumerate(columns["split"]) if value is not None]
    training = sum(columns["split"][row] == TRAIN for row in rows)

    def write(row: int, made: TokenizedRow, split: str) -> None:
        part, first = writer.add(made.records, made.tokens, held_out=split == HELD_OUT)
        result["tokens"][row], result["part"][row] = sum(made.tokens), part
        result["first_record"][row], result["record_tokens"][row] = first, made.tokens

    with ShardWriter(directory, task.stem) as writer, _HeldBack(directory) as waiting:
        for row, made in builder.tokenize(columns, rows):
            split = columns["split"][row]
            training -= split == TRAIN
            if isinstance(made, RejectedError):
                columns["kept"][row], columns["split"][row] = False, None
                columns["reason"][row], columns["detail"][row] = made.reason, made.detail
                continue
            if made.remark is not None:
                columns["detail"][row] = "; ".join(filter(None, (columns["detail"][row], made.remark)))
            if split == HELD_OUT and (training or len(waiting)):
                waiting.add(row, made)
            else:
                write(row, made, split)
        for row, made in waiting:
            write(row, made, HELD_OUT)
        writer.finish()
        result["tokens"] = [0 if tokens is None else tokens for tokens in result["tokens"]]
        index = pa.table({**columns, **result}).select(INDEX.names).cast(INDEX)
        index = with_metadata(index, task.rows)
        path, constants = Path(directory) / task.index, getattr(builder, "constants", None)
        made_by, generations = provenance(task.header.kind), task.header.generations
        try:
            write_index(
                path,
                index,
                writer.parts,
                builder.out_of_range,
                constants,
                builder.left_out,
                made_by=made_by,
                generations=generations,
            )
        except OSError:
            with suppress(OSError):
                remove(path)  # it may be in its place, in a directory that could not be synced
            raise
    return Built.of(task.header.kind, index, writer.parts)


def finished_shard(task: ShardTask, directory: str | Path) -> Built | None:
    """What an earlier attempt wrote of a task; None if none finished."""
    path = Path(directory) / task.index
    try:
        with arrow_file(path) as file:
            index = pq.read_table(file, columns=["kept", "reason"])
        parts = read_parts(index.schema.metadata)
        if any(size(path.with_name(part.file)) != part.size for part in parts):
            return None
    except FileNotFoundError:
        return None
    return Built.of(task.header.kind, index, parts)


def _named(packages: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())


class _HeldBack:
    """Tokenized rows that are to be written later, in the order in which they were added.

    Records above ``_HELD_BYTES`` together lie in a temporary file without a name, in ``directory`` if that is local.
    Use as a context manager.
    """

    def __init__(self, directory: str | Path) -> None:
        folder = None
        if not is_remote(directory):
            folder = str(directory)
            os.makedirs(folder, exist_ok=True)
        self._file = tempfile.SpooledTemporaryFile(_HELD_BYTES, dir=folder)  # noqa: SIM115
        self._rows: list[tuple[int, list[int], list[int]]] = []

    def __enter__(self) -> "_HeldBack":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: int, made: TokenizedRow) -> None:
        """Takes a row."""
        self._file.writelines(made.records)
        self._rows.append((row, list(map(len, made.records)), made.tokens))

    def __iter__(self) -> Iterator[tuple[int, TokenizedRow]]:
        self._file.seek(0)
        for row, lengths, tokens in self._rows:
            yield row, TokenizedRow([self._file.read(length) for length in lengths], tokens)


class _GrowingDigest:
    """Size and BLAKE2b-256 of a file that grows at its end, computed by another thread while it is written.

    With ``synced`` that thread also syncs it, so that little is left to wait for in the end. The system reports an
    error of the disk once, so the first one is kept and raised by every later call.
    """

    def __init__(self, path: str, synced: bool) -> None:
        self._path, self._synced = path, synced
        self._error: OSError | None = None
        self._hash, self._size, self._unread = hashlib.blake2b(digest_size=32), 0, 0
        self._buffer = memoryview(bytearray(1 << 18))
        self._thread = ThreadPoolExecutor(1)

    def grown(self, size: int) -> None:
        """About so many bytes were written. Raises OSError if an earlier part could not be read or synced."""
        if self._error is not None:
            raise self._error
        self._unread += size
        if self._unread >= _HASH_BYTES:
            self._unread = 0
            self.read_on()

    def read_on(self) -> "Future[tuple[int, str]]":
        """Size and digest of what the file holds by now, which is synced then; its errors are those of ``grown``."""
        return self._thread.submit(self._read)

    def stop(self) -> None:
        """Ends the other thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self) -> tuple[int, str]:
        if self._error is not None:
            raise self._error
        try:
            with open(self._path, "rb", buffering=0) as file:
                file.seek(self._size)
                while size := file.readinto(self._buffer):
                    self._hash.update(self._buffer[:size])
                    self._size += size
                if self._synced:
                    os.fsync(file.fileno())
        except OSError as error:
            error.filename = error.filename or self._path
            self._error = error
            raise
        return self._size, self._hash.hexdigest()


class ShardWriter:
    """Writes records in order into as many parts as needed; training records come first.

    Use as a context manager; ``finish`` commits the last part. A part is written under a temporary name, read
    back record by record, synced and renamed; leaving without ``finish`` removes what is not committed.
    """

    def __init__(self, directory: str | Path, stem: str) -> None:
        self._directory = Path(directory)
        self._stem = stem
        self._writer: ArrayRecordWriter | None = None
        self._temporary = ""
        self._checksums: list[int] = []
        self._held_out = self._tokens = 0
        self.parts: list[ShardEntry] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            with suppress(RuntimeError):  # what brought us here matters more
                self._writer.close()
            self._writer = None
        if self._temporary:
            self._digest.stop()
            Path(self._temporary).unlink(missing_ok=True)

    def add(self, records: Sequence[bytes], tokens: Sequence[int], *, held_out: bool) -> tuple[int, int]:
        """Appends all records of one owner, of ``tokens`` tokens each.

        Returns the ordinal of their part, and of the first of them in it. An owner is never divided between
        parts: a full part ends before it.
        """
        if self._writer is not None and len(self._checksums) + len(tokens) > MOST_RECORDS:
            self.finish()
        if self._writer is None:
            self._temporary = temporary_beside(self._directory / self._name())
            with _os_errors(self._temporary):
                self._writer = ArrayRecordWriter(self._temporary, WRITER_OPTIONS)
            # An upload reads the file at once, and it is gone afterwards.
            self._digest = _GrowingDigest(self._temporary, synced=not is_remote(self._directory))
        where = len(self.parts), len(self._checksums)
        with _os_errors(self._temporary):
            for record in records:
                self._writer.write(record)
                self._checksums.append(google_crc32c.value(record))
        self._digest.grown(sum(map(len, records)))
        self._held_out += len(tokens) if held_out else 0
        self._tokens += sum(tokens)
        return where

    def finish(self) -> None:
        """Commits the open part, if there is one."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        with _os_errors(self._temporary):
            writer.close()
            rest = self._digest.read_on()
            _check(self._temporary, self._checksums)
            size, digest = rest.result()
            self._digest.stop()
        name = self._name()
        commit(self._temporary, self._directory / name)
        records = len(self._checksums)
        self.parts.append(
            ShardEntry(
                file=name,
                size=size,
                blake2b=digest,
                training=records - self._held_out,
                held_out=self._held_out,
                tokens=self._tokens,
            )
        )
        self._temporary, self._checksums, self._held_out, self._tokens = "", [], 0, 0

    def _name(self) -> str:
        number = f"-{len(self.parts):03d}" if self.parts else ""
        return f"{self._stem}{number}.arrayrecord"


def _check(path: str, checksums: list[int]) -> None:
    """Raises OSError if the file does not hold the records that were written: the disk is full or fails."""

    def check_range(begin: int, end: int) -> None:
        reader = ArrayRecordReader(path, _READER_OPTIONS)
        # A truncated file opens without an error, and is not ok.
        if not reader.ok() or reader.num_records() != len(checksums):
            raise OSError(f"{path}: the shard does not read back; is the disk full?")
        for first in range(begin, end, _READ_TOGETHER):
            records = reader.read(first, min(first + _READ_TOGETHER, end))
            for ordinal, record in enumerate(records, first):
                if google_crc32c.value(record) != checksums[ordinal]:
                    raise OSError(f"{path}: record {ordinal} does not read back as it was written")
        reader.close()

    # The native reader lets other threads run.
    middle = len(checksums) // 2
    with ThreadPoolExecutor(1) as other:
        half = other.submit(check_range, middle, len(checksums))
        check_range(0, middle)
        half.result()


@contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """OSError instead of the RuntimeError that the native library raises whatever the disk does."""
    try:
        yield
    except RuntimeError as error:
        raise named_error(path, first_line(error)) from None


# --- the index ---------------------------------------------------------------------------------------------------


def write_index(
    path: str | Path,
    rows: pa.Table,
    parts: list[ShardEntry],
    out_of_range: OutOfRange,
    constants: Constants | None = None,
    left_out: LeftOut | None = None,
    *,
    made_by: Provenance,
    generations: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Writes the index of a split, with its parts, the counts of values out of their range, the constant components of
    episodes, what else was left out, if anything could be, what made it and the generations of its source files as
    metadata."""
    metadata = {
        **(rows.schema.metadata or {}),
        _PARTS: json.dumps([part.model_dump() for part in parts]).encode(),
        _OUT_OF_RANGE: json.dumps(out_of_range, sort_keys=True).encode(),
        **({} if constants is None else {_CONSTANTS: json.dumps(constants, sort_keys=True).encode()}),
        **({_LEFT_OUT: json.dumps(left_out.to_json()).encode()} if left_out is not None and left_out.is_used else {}),
        _PROVENANCE: made_by.model_dump_json().encode(),
        **({_GENERATIONS: json.dumps(dict(generations), sort_keys=True).encode()} if generations else {}),
    }
    write_atomically(path, _index_bytes(rows.replace_schema_metadata(metadata)))


def _index_bytes(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows.combine_chunks(), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def write_index_again(task: ShardTask, directory: str | Path, earlier: str) -> Built:
    """Writes the index of a task whose records stand already in ``directory``, without reading the source.

    ``earlier`` is the name of an index with the same kept rows, whose shard is finished. What the build found there of
    these rows holds for the new index too.
    """
    with arrow_file(Path(directory) / earlier) as file:
        before = pq.read_table(file)
    kept = task.rows["kept"].to_numpy()
    places = pc.index_in(task.rows["episode_id"].combine_chunks(), before["episode_id"].combine_chunks())
    found = before.take(pc.if_else(pa.array(kept), places, None))
    taken = {name: found[name] for name in (*MADE_BY_BUILD, "kept", "split", "reason", "detail")}
    taken["tokens"] = pc.fill_null(taken["tokens"], 0)
    columns = {name: task.rows[name] for name in INDEX.names if name in task.rows.column_names}
    columns |= {
        name: pc.if_else(pa.array(kept), column, columns[name]) if name in columns else column
        for name, column in taken.items()
    }
    index = with_metadata(pa.table(columns).select(INDEX.names).cast(INDEX), task.rows)
    kept_metadata = {key: value for key, value in before.schema.metadata.items() if key.startswith(b"gatokit.")}
    index = index.replace_schema_metadata((index.schema.metadata or {}) | kept_metadata)
    write_atomically(Path(directory) / task.index, _index_bytes(index))
    return Built.of(task.header.kind, index, read_parts(before.schema.metadata))


def read_parts(metadata: dict[bytes, bytes]) -> list[ShardEntry]:
    """The parts that an index names in its metadata."""
    return [ShardEntry(**part) for part in json.loads(metadata[_PARTS])]


def read_out_of_range(metadata: dict[bytes, bytes]) -> OutOfRange:
    """The counts of out-of-range values that an index holds in its metadata."""
    return json.loads(metadata[_OUT_OF_RANGE])


def read_left_out(metadata: dict[bytes, bytes]) -> LeftOut:
    """What an index says in its metadata that was left out."""
    return LeftOut.from_json(json.loads(metadata[_LEFT_OUT])) if _LEFT_OUT in metadata else LeftOut()


def read_constants(metadata: dict[bytes, bytes]) -> Constants | None:
    """The constant components that an index holds in its metadata; None if nobody counted."""
    return json.loads(metadata[_CONSTANTS]) if _CONSTANTS in metadata else None


def read_provenance(metadata: dict[bytes, bytes]) -> tuple[Provenance, dict[str, int]]:
    """What made a split, and the generations of its source files, as its index says in its metadata."""
    return Provenance.model_validate_json(metadata[_PROVENANCE]), json.loads(metadata.get(_GENERATIONS, b"{}"))


def provenance(kind: str) -> Provenance:
    """What makes the shards of a kind of dataset in this process."""
    return Provenance(packages=versions.packages(), code=versions.code_digest(kind))


def finished_indexes(directory: Path, wanted: Callable[[str], bool]) -> set[str]:
    """The names of those ``wanted`` indexes whose splits are finished: every part that the index names exists and has
    its size."""
    there = sizes(directory, links=False) if is_directory(directory) else {}

    def is_finished(index: Path) -> bool:
        try:
            with arrow_file(index) as file:
                parts = read_parts(pq.read_schema(file).metadata)
        except (OSError, KeyError, ValueError, pa.ArrowInvalid):
            return False
        return all(there.get(part.file) == part.size for part in parts)

    begun = [directory / name for name in there if name.endswith(INDEX_SUFFIX) and wanted(name)]
    found = prefetch(begun, is_finished, lambda _: _FOOTER_BYTES)
    return {index.name for index, finished in zip(begun, found, strict=True) if finished}
