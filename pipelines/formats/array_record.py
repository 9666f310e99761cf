"""The records of TFRecord and ArrayRecord files: where each is stored, its bytes, and what damage costs."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import google_crc32c
from array_record.python.array_record_module import ArrayRecordReader

from gatokit.pipelines.formats import tfrecord
from gatokit.pipelines.formats.records import ByteRange
from gatokit.storage import files

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


@dataclass(frozen=True)
class Record:
    """A record, or why it cannot be had; ``lost`` records stand behind it."""

    place: ByteRange
    data: bytes | None
    reason: str | None = None
    detail: str | None = None
    lost: int = 1


@dataclass(frozen=True)
class Records(ABC):
    """The records of the file at ``path``, of which its dataset states ``stated``; ``name`` and ``what`` name the
    file and its records in messages."""

    path: str
    name: str
    stated: int | None
    what: str

    @abstractmethod
    def read_all(self, max_bytes: int) -> Iterator[Record]:
        """Every record in file order; what is damaged or above ``max_bytes`` comes without its bytes."""

    @abstractmethod
    def opened(self) -> contextlib.AbstractContextManager[Callable[[ByteRange], bytes | None]]:
        """A function that reads the record at a place; None where that is no longer what a scan found there."""


class TfRecords(Records):
    """Those of a TFRecord file."""

    def read_all(self, max_bytes: int) -> Iterator[Record]:
        """See ``Records``."""
        position = 0
        with self._file() as (read, size):
            end = size
            try:
                for frame in tfrecord.frames(read, size, max_bytes):
                    place = ByteRange(position, frame.offset, frame.length, frame.crc)
                    if frame.data is None:
                        yield _too_large(place, max_bytes)
                    elif not frame.sound:
                        yield Record(place, None, "corrupt_record", "the payload does not match its checksum")
                    else:
                        yield Record(place, frame.data)
                    position += 1
                detail = f"the file ends after {position} of the {self.stated} {self.what} that its dataset states"
            except tfrecord.DamagedLengthError as error:
                end, detail = error.offset, str(error)
        lost = (self.stated or 0) - position
        if lost > 0 or end < size:
            yield Record(ByteRange(position, end, size - end, 0), None, "corrupt_length", detail, max(1, lost))

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[ByteRange], bytes | None]]:
        """See ``Records``."""
        with self._file() as (read, _):

            def at(place: ByteRange) -> bytes | None:
                data, crc = tfrecord.read_frame(read, place.offset, place.length)
                return data if crc == place.crc == tfrecord.masked_crc(data) else None

            yield at

    @contextlib.contextmanager
    def _file(self) -> Iterator[files.Ranges]:
        with files.ranges(self.path) as file:
            yield file


class ArrayRecords(Records):
    """Those of an ArrayRecord file."""

    def read_all(self, max_bytes: int) -> Iterator[Record]:
        """See ``Records``."""
        with self._file() as reader:
            records = reader.num_records() if reader.ok() else 0
            for position in range(records):
                try:
                    data = reader.read(position, position + 1)[0]
                except Exception as error:
                    # The native reader raises many types; each means that this record cannot be had.
                    detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    detail = detail.replace(self.path, self.name)[:200]
                    yield Record(ByteRange(position, 0, 0, 0), None, "corrupt_record", detail)
                    continue
                place = ByteRange(position, 0, len(data), google_crc32c.value(data))
                yield _too_large(place, max_bytes) if len(data) > max_bytes else Record(place, data)
        # A file of which nobody states the number should have one.
        stated = 1 if self.stated is None else self.stated
        if records < stated:
            detail = f"the file holds {records} of the {stated} {self.what} that its dataset states"
            yield Record(ByteRange(records, 0, 0, 0), None, "corrupt_length", detail, stated - records)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[ByteRange], bytes | None]]:
        """See ``Records``."""
        with self._file() as reader:

            def at(place: ByteRange) -> bytes | None:
                try:
                    data: bytes = reader.read(place.position, place.position + 1)[0]
                except (RuntimeError, ValueError, IndexError):
                    return None
                return data if len(data) == place.length and google_crc32c.value(data) == place.crc else None

            yield at

    @contextlib.contextmanager
    def _file(self) -> Iterator[ArrayRecordReader]:
        # The library's own reader of gs:// waits for ever where it reaches no server.
        with files.local_copy(self.path) as path:
            reader = ArrayRecordReader(path, _READER_OPTIONS)
            try:
                yield reader
            finally:
                # Closing a damaged file raises again what was wrong with it.
                with contextlib.suppress(RuntimeError):
                    reader.close()


def _too_large(place: ByteRange, max_bytes: int) -> Record:
    return Record(place, None, "too_large", f"{place.length} bytes are above max_episode_bytes {max_bytes}")
