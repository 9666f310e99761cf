"""Reads ranges of records from a shard file."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from gatokit.schemas.errors import DataError

# Without these a reader starts threads and reads ahead of what was asked for.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class ShardReader:
    """An open shard file; ``records`` is their number."""

    def __init__(self, reader: ArrayRecordReader, path: Path) -> None:
        """Takes an open reader; ``open_shard`` makes one."""
        self._reader = reader
        self._path = path
        self.records: int = reader.num_records()

    def read(self, begin: int, end: int) -> list[bytes]:
        """The records [begin, end); DataError where one cannot be read."""
        if not 0 <= begin < end <= self.records:
            raise DataError(f"{self._path} has {self.records} records and [{begin}, {end}) was asked for")
        try:
            # read([i]) takes time proportional to the records of the shard; a range does not.
            found: list[bytes] = self._reader.read(begin, end)
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"{self._path}: records [{begin}, {end}) cannot be read: {_first_line(error)}") from None
        if len(found) != end - begin:
            raise DataError(f"{self._path}: records [{begin}, {end}) cannot be read; gatokit verify says more")
        return found


@contextmanager
def open_shard(path: str | Path) -> Iterator[ShardReader]:
    """A reader of a shard file, closed at the end; DataError where the file is no whole ArrayRecord file."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is missing")
    try:
        reader = ArrayRecordReader(str(path), _OPTIONS)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path} cannot be opened as an ArrayRecord file: {_first_line(error)}") from None
    try:
        if not reader.ok():
            raise DataError(f"{path} is no whole ArrayRecord file")
        yield ShardReader(reader, path)
    finally:
        # A reader that met damage says so once more when it is closed.
        with suppress(RuntimeError):
            reader.close()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
