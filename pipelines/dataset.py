"""What a kind of dataset and the stages of a job exchange. It is the same for episodes and for documents.

A scan reads a unit of files and returns rows. A filter gives every row a verdict. A shard task holds the rows of one
shard, and a shard builder turns those that are kept into serialized records.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from gatokit.schemas.errors import DataError, RejectedError
from gatokit.schemas.index import BAD_REASONS, INDEX
from gatokit.schemas.manifest import EpisodeSpec

LEAST_BAD_ROWS = 10
"""The error budget always allows this many bad rows."""
_BLOCK_ROWS = 1 << 20

_BEFORE_TOKENS = [field for field in INDEX if field.name not in ("tokens", "part", "first_record", "record_tokens")]
TASK_ROWS = pa.schema(
    [
        *_BEFORE_TOKENS,
        pa.field("file", pa.int32()),  # ordinal in the header's files
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc", pa.uint32()),
    ]
)
"""The rows of a shard task: those of the shard's index before tokenization, and where each episode is stored."""
DOCUMENT_TASK_ROWS = pa.schema([*TASK_ROWS, pa.field("payload", pa.string())])
"""The same for documents."""


# --- plan ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetPlan:
    """A dataset before its scan: its config, the field path of that config for messages, and its source files in order.

    A file has a ``name`` below the source, a ``size`` in bytes, and ``divides`` if it can be read from the middle.
    """

    config: Any
    field: str
    files: Sequence[Any]
    kind: ClassVar[str]
    """``episodes`` or ``documents``: the name of its rows, and its key in ``planning.kinds``."""


# --- scan ----------------------------------------------------------------------------------------------------


class ScanUnit(Protocol):
    """Consecutive files of a dataset that are scanned together."""

    @property
    def kind(self) -> str:
        """The ``DatasetPlan.kind``."""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""

    @property
    def files(self) -> Sequence[Any]:
        """The files in order."""

    @property
    def fingerprint(self) -> str:
        """Names the file with the unit's rows, so that an interrupted scan can continue."""

    def scan(self, most_bytes: int | None = None) -> pa.Table:
        """The rows of the files, in order. ``most_bytes`` ends the scan with the row that brings the sum of the rows'
        lengths to it."""

    def model_dump_json(self) -> str:
        """The unit as JSON: it is a pydantic model."""


# --- filter --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """The sound episodes of one agent on one task: their number N, the window W, and the best mean return of W
    consecutive episodes.

    A dataset of documents is one task with one stream, which has neither window nor return.
    """

    task: str
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


class Losses:
    """Counts lost episodes or documents by reason, and remembers the first id of each reason with its detail."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(
        self,
        reasons: Iterable[str | None],
        lost: Iterable[int],
        ids: Iterable[str],
        details: Iterable[str | None],
    ) -> None:
        """Counts the next rows. A row without a reason is not lost."""
        for reason, number, id_, detail in zip(reasons, lost, ids, details, strict=True):
            if reason is not None:
                self.counts[reason] += number
                self.examples.setdefault(reason, id_ if detail is None else f"{id_}: {detail}")


@dataclass(frozen=True)
class FilterResult:
    """The verdicts over a dataset's scanned rows, R of them in source order.

    ``scanned`` reads the rows again, one table per unit of the scan.
    """

    scanned: Iterable[pa.Table]
    tasks: tuple[Task, ...]
    notices: tuple[str, ...]
    """Sentences for the user."""
    specs: dict[str, EpisodeSpec]
    """The spec of each task; empty for documents."""
    task: np.ndarray
    """int (R,): the row's task, -1 if it has none."""
    hashes: np.ndarray
    """uint64 (R,): see ``row_hash``. Empty once it is decided what is held out."""
    kept: np.ndarray
    """bool (R,)."""
    held_out: np.ndarray
    """bool (R,): empty until ``planning.holdout`` decides it."""


def check_budget(losses: Losses, rows: int, share: float, dataset: str, noun: str = "episodes") -> None:
    """Raises DataError if more episodes (or ``noun``) are bad than the error budget allows.

    ``rows`` is the number of episodes, lost ones included; ``share`` is the config's ``max_bad_fraction``.
    """
    bad = {reason: count for reason, count in losses.counts.items() if reason in BAD_REASONS}
    total, allowed = sum(bad.values()), max(LEAST_BAD_ROWS, math.floor(share * rows + 1e-9))
    if total > allowed:
        parts = "; ".join(
            f"{count} {reason} (first {losses.examples[reason]})" for reason, count in sorted(bad.items())
        )
        raise DataError(
            f"{dataset}: {total} of {rows} {noun} are bad, more than the {allowed} that max_bad_fraction "
            f"{share:g} allows: {parts}. Mend the source or raise max_bad_fraction"
        )


def row_hash(seed: int, id_: str) -> int:
    """64 bits that decide whether the episode or document with this id is held out."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{id_}".encode(), digest_size=8).digest(), "big")


class GrowingArray:
    """An array to which rows are appended.

    It grows by large blocks. Many small arrays, one per unit of a scan, would fragment the memory.
    """

    def __init__(self, dtype: type, *shape: int) -> None:
        """``shape`` is the shape of a row; none for a number."""
        self._full: list[np.ndarray] = []
        self._block: np.ndarray = np.empty((0, *shape), dtype)
        self._dtype, self._shape, self._filled = dtype, shape, 0

    def add(self, values: np.ndarray) -> None:
        """Appends rows."""
        while len(values):
            if self._filled == len(self._block):
                self._full.append(self._block)
                self._block, self._filled = np.empty((_BLOCK_ROWS, *self._shape), self._dtype), 0
            count = min(len(values), len(self._block) - self._filled)
            self._block[self._filled : self._filled + count] = values[:count]
            self._filled, values = self._filled + count, values[count:]

    def joined(self) -> np.ndarray:
        """All rows. Call it once: it releases the full blocks."""
        full, self._full = self._full, []
        return np.concatenate([*full, self._block[: self._filled]])


# --- build ---------------------------------------------------------------------------------------------------


class ShardSettings(BaseModel):
    """What every shard of a build depends on besides its rows."""

    model_config = ConfigDict(frozen=True)

    chunk_tokens: int
    discrete_offset: int
    vocabulary_digest: str


OutOfRange = dict[str, dict[str, tuple[int, int]]]
"""By task and continuous action: the number of values outside of the range, and of all values."""


class TokenizedRow(NamedTuple):
    """The serialized records of one episode or document, the number of tokens in each, and a remark for the index."""

    records: list[bytes]
    tokens: list[int]
    remark: str | None = None


class ShardHeader(Protocol):
    """What all rows of a shard share. A pydantic model: it is written to JSON on its way to a worker."""

    kind: Any
    """The ``DatasetPlan.kind``."""
    dataset: str
    settings: ShardSettings

    def source_files(self) -> Sequence[Any]:
        """The shard's source files, ready to be read."""

    def identity(self) -> dict[str, Any]:
        """What the shard's bytes depend on besides settings and rows."""

    def model_dump_json(self) -> str:
        """The header as JSON."""


class ShardBuilder(Protocol):
    """Turns the rows of a shard task into records. Each kind of dataset has one; it is made from the task's header and
    the vocabulary."""

    out_of_range: OutOfRange

    def tokenize(
        self, columns: dict[str, list[Any]], rows: list[int]
    ) -> Iterator[tuple[int, TokenizedRow | RejectedError]]:
        """Yields each of ``rows``, in order, with its records or the error that says why it has none.

        ``columns`` are those of the task. Raises DataError if the source changed since the scan.
        """
