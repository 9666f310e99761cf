"""Reads ranges of records from many shards, with a bounded number of them open."""

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordReader

from gatokit.loader.remote import CacheFullError, Held, Remote
from gatokit.schemas.errors import DataError

# Without these a reader starts threads and reads ahead of what was asked for.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_FULL_SECONDS = 30.0
"""How long a cache may be full of shards that are open elsewhere."""
_ALL: "weakref.WeakSet[Readers]" = weakref.WeakSet()
"""Of this process: they share the caches."""


@dataclass(frozen=True)
class Shard:
    """A shard file and the number of its records that the manifest says."""

    path: str
    training: int
    held_out: int
    remote: Remote | None = None
    """Where it comes from, if it may have to be downloaded."""

    @property
    def records(self) -> int:
        """All of them; training records come first."""
        return self.training + self.held_out


class _Opened(NamedTuple):
    """A reader, and what keeps its file here as long as somebody reads."""

    reader: ArrayRecordReader
    held: Held | None


class Readers:
    """Open readers of ``shards``, at most ``limit`` of them: the one unused for longest is closed.

    Threads may share one. It travels to another process without its readers.
    """

    def __init__(self, shards: Sequence[Shard], limit: int) -> None:
        self._shards = list(shards)
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Opened] = OrderedDict()
        _ALL.add(self)

    @property
    def open(self) -> int:
        """Readers that are open now."""
        return len(self._open)

    def read(self, shard: int, begin: int, end: int) -> list[bytes]:
        """The records [begin, end) of the shard of that ordinal; DataError names the file and the records."""
        with self._lock:
            opened = self._open.get(shard)
            if opened is not None:
                self._open.move_to_end(shard)
        if opened is None:
            opened = self._opened(shard)
        try:
            # read([i]) takes time proportional to the records of the shard; a range does not.
            found: list[bytes] = opened.reader.read(begin, end)
        except (RuntimeError, ValueError, IndexError) as error:
            raise self.damage(shard, begin, end, _first_line(error)) from None
        if len(found) != end - begin:
            raise self.damage(shard, begin, end, "they cannot be read")
        return found

    def damage(self, shard: int, begin: int, end: int, why: str) -> DataError:
        """The error of records that cannot be used."""
        records = f"record {begin}" if end == begin + 1 else f"records {begin} to {end - 1}"
        return DataError(f"{self._shards[shard].path}, {records}: {why}. gatokit verify says what else is damaged")

    def _opened(self, shard: int) -> "_Opened":
        known = self._shards[shard]
        held = None if known.remote is None else self._held(known.remote)
        try:
            reader = ArrayRecordReader(known.path, _OPTIONS)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{known.path} cannot be opened: {_first_line(error)}; gatokit verify says more") from None
        # A truncated file has no records and raises nothing.
        if not reader.ok() or reader.num_records() != known.records:
            raise DataError(
                f"{known.path} holds {reader.num_records()} records and the manifest says {known.records}; "
                "gatokit verify says what else is damaged"
            )
        with self._lock:
            # Another thread may have opened it meanwhile. A closed reader still in use lives until that is done.
            if shard not in self._open:
                while len(self._open) >= self._limit:
                    self._open.popitem(last=False)
                self._open[shard] = _Opened(reader, held)
            return self._open[shard]

    def _held(self, remote: Remote) -> Held:
        """Keeps a remote shard here. Where the cache has no room, shards are closed in its place: those of these
        readers first; and what is being read now is waited for."""
        end = time.monotonic() + _FULL_SECONDS
        while True:
            try:
                return remote.hold()
            except CacheFullError:
                if not (self._close_oldest() or any(readers._close_oldest() for readers in list(_ALL))):
                    if time.monotonic() > end:
                        raise
                    time.sleep(_FULL_SECONDS / 100)

    def _close_oldest(self) -> bool:
        """Closes the remote shard that is unused for longest; whether there was one."""
        with self._lock:
            oldest = next((shard for shard, opened in self._open.items() if opened.held is not None), None)
            return oldest is not None and self._open.pop(oldest) is not None

    def __getstate__(self) -> tuple[list[Shard], int]:
        return self._shards, self._limit

    def __setstate__(self, state: tuple[list[Shard], int]) -> None:
        self.__init__(*state)  # type: ignore[misc]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
