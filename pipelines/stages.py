"""What the stages of a job hand on, the same for episodes and for documents. Legend: R rows of a scan.

A scan gives rows. A filter gives every row a verdict. A shard task holds the rows of one shard, and a shard builder
turns those that are kept into serialized records.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from gatokit.pipelines.formats.records import ByteRange
from gatokit.pipelines.losses import UNKNOWN_PIECES, LeftOut
from gatokit.pipelines.scan_cache import Segment
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.index import INDEX, METADATA_TYPES
from gatokit.schemas.manifest import EpisodeSpec, MetadataType, Overlap, SourceLoss
from gatokit.schemas.tokens import TokenKind, TokenSequence
from gatokit.storage.files import is_remote, prefetch

MADE_BY_BUILD = ("tokens", "part", "first_record", "record_tokens")
"""Columns of an index that say where the records are."""
TASK_ROWS = pa.schema(
    [
        *(field for field in INDEX if field.name not in MADE_BY_BUILD),
        pa.field("file", pa.int32()),  # ordinal in the header's files
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc", pa.uint32()),
    ]
)
"""The rows of a shard task: those of the shard's index before tokenization, and where each episode is stored."""

METADATA = "metadata/"
"""Before the names of columns in a scan and in a shard task that hold values stored with the episodes. They are copied
to the index under their names; a shard's bytes do not depend on them."""


def metadata_schema(columns: Mapping[str, MetadataType]) -> pa.Schema:
    """The columns of a scan for those that an index has behind its own."""
    repeated = {"string": pa.dictionary(pa.int32(), pa.string())}
    return pa.schema([(METADATA + name, repeated.get(type_, METADATA_TYPES[type_])) for name, type_ in columns.items()])


def with_metadata(index: pa.Table, rows: pa.Table) -> pa.Table:
    """The index with the values that are stored with the episodes of ``rows`` behind its own columns."""
    for name in rows.column_names:
        if name.startswith(METADATA):
            column = rows[name]
            if pa.types.is_dictionary(column.type):
                column = column.cast(pa.string())
            index = index.append_column(name.removeprefix(METADATA), column)
    return index


# --- filter --------------------------------------------------------------------------------------------------

MOST_ROWS = 1 << 15
"""Rows that become Python's values at a time, because as such they take ten times the memory."""


def parts(table: pa.Table) -> Iterator[pa.Table]:
    """The table in parts of at most ``MOST_ROWS``; at least one, which may be empty."""
    for begin in range(0, len(table) or 1, MOST_ROWS):
        yield table.slice(begin, MOST_ROWS)


class ScannedRows:
    """The scanned rows of a dataset in source order, cut to the first ``limit`` of each task: all of a segment in one
    table, or ``tables`` of at most ``MOST_ROWS``.

    A dataset of documents is one task. ``read`` makes of each table the rows that count.
    """

    def __init__(
        self, scanned: Sequence[Segment], limit: int | None, read: Callable[[pa.Table], pa.Table] | None = None
    ) -> None:
        self._scanned, self._limit, self._read = scanned, limit, read

    def __iter__(self) -> Iterator[pa.Table]:
        return self._segments(None)

    def tables(self, metadata: Collection[str] = ()) -> Iterator[pa.Table]:
        """The same rows in ``parts``; of the values stored with the episodes only these columns are read."""
        wanted = {METADATA + name for name in metadata}
        for table in self._segments(lambda name: name.startswith(METADATA) and name not in wanted):
            yield from parts(table)

    def _segments(self, without: Callable[[str], bool] | None) -> Iterator[pa.Table]:
        seen: Counter[str | None] = Counter()
        several = any(is_remote(segment.path) for segment in self._scanned)
        read = partial(Segment.read, without=without)
        for table in prefetch(self._scanned, read, lambda table: int(table.nbytes), several=several):
            if self._limit is not None:
                mask = []
                for task in table["task"].to_pylist() if "task" in table.column_names else [None] * len(table):
                    seen[task] += 1
                    mask.append(seen[task] <= self._limit)
                table = table.filter(pa.array(mask, pa.bool_()))
            yield table if self._read is None else self._read(table)


@dataclass(frozen=True)
class Stream:
    """The sound episodes of one agent on one task: their number N, the window W, and the best mean return of W
    consecutive episodes.

    A dataset of documents is one task with one stream, which has neither window nor return.
    """

    agent: str
    episodes: int
    window: int | None
    stream_return: float | None


@dataclass(frozen=True)
class Task:
    """A task's expert return (None for documents), its threshold (None if the rule has none) and its streams.

    ``is_left_out`` is set if the rules keep no episode of it.
    """

    name: str
    expert_return: float | None
    threshold: float | None
    streams: tuple[Stream, ...]
    is_left_out: bool = False


@dataclass(frozen=True)
class FilterResult:
    """The verdicts over a dataset's scanned rows, R of them in source order."""

    scanned: ScannedRows
    tasks: tuple[Task, ...]
    notices: tuple[str, ...]
    """Sentences for the user."""
    specs: dict[str, EpisodeSpec]
    """The spec of each task; empty for documents."""
    kept: np.ndarray
    """bool (R,)."""
    held_out: np.ndarray
    """bool (R,): which of the kept rows are held out."""
    source_loss: SourceLoss | None = None
    """What of the source cannot be read; None if every file was read to its end."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """What a scan leaves out of rows that are kept."""
    overlap: Overlap | None = None
    """What stands on both sides of the held-out split; None for episodes."""


# --- build ---------------------------------------------------------------------------------------------------


class ShardSettings(BaseModel):
    """What every shard of a build depends on besides its rows."""

    model_config = ConfigDict(frozen=True)

    chunk_tokens: int
    discrete_offset: int
    vocabulary_digest: str
    codecs: dict[str, str] = {}
    """The versions of ``versions.codecs`` if the shard may hold pictures. Left out of JSON if it holds none."""

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if not self.codecs:
            del written["codecs"]
        return written


class TokenizedRow(NamedTuple):
    """The serialized records of one episode or document, the number of tokens in each, and a remark for the index."""

    records: list[bytes]
    tokens: list[int]
    remark: str | None = None


def count_unknown(left_out: LeftOut, sequence: TokenSequence, unknown_id: int, id_: str) -> None:
    """Counts the text tokens of an episode or document, and those that stand for what the vocabulary lacks."""
    texts = sequence.tokens[sequence.kinds == TokenKind.TEXT]
    left_out.totals[UNKNOWN_PIECES] += len(texts)
    left_out.add(UNKNOWN_PIECES, "unknown_piece", int(np.count_nonzero(texts == unknown_id)), id_)


def rows_by_file(
    columns: dict[str, list[Any]], rows: Sequence[int]
) -> Iterator[tuple[int, list[int], list[ByteRange]]]:
    """Each file of a shard task in turn, with those of ``rows`` that lie in it and where they are stored."""
    names = [name for name in ("source_position", "offset", "length", "crc", "payload") if name in columns]
    for file, group in groupby(rows, key=columns["file"].__getitem__):
        members = list(group)
        yield file, members, [ByteRange(*(columns[name][row] for name in names)) for row in members]


Tokenized = tuple[int, TokenizedRow | RejectedError]
"""The number of a row with its records, or with the error that says why it has none."""
OutOfRange = dict[str, dict[str, tuple[int, int]]]
"""By task and continuous field: the number of values outside of the range of an action, or beyond the ends of the
mu-law of an observation, and of all values."""
