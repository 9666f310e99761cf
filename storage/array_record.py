"""Reads ranges of records from ArrayRecord files on a disk, and records in order from those on ``gs://``.

Always by range: ``reader.read([i])`` of the library takes time proportional to the records of the file on every call,
``reader.read(i, i + 1)`` does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from gatokit.schemas.errors import DataError, first_line
from gatokit.storage.files import PartialCopy, is_failure, is_remote, local_copy, named_error, partial_copy

_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
"""No threads, and nothing is read ahead of what was asked for."""


class ArrayRecordError(DataError):
    """A file or its records cannot be read; ``reason`` is one line of the library about it."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ArrayRecordFile:
    """An open file with ``records`` records. Threads may share one.

    ``is_whole`` is False for a truncated file: the library opens it without an error, and it has no records.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the file at ``path``. Raises ArrayRecordError if that fails, OSError if the disk does."""
        self.path = path
        try:
            self._reader = ArrayRecordReader(str(path), _OPTIONS)
        except (RuntimeError, ValueError) as error:
            reason = first_line(error)
            _raise_failure(path, reason)
            raise ArrayRecordError(f"{path} cannot be opened as an ArrayRecord file: {reason}", reason) from None
        self.is_whole: bool = self._reader.ok()
        self.records: int = self._reader.num_records() if self.is_whole else 0

    def read(self, begin: int, end: int) -> list[bytes]:
        """The records [begin, end). Raises ArrayRecordError if they cannot be read, OSError if the disk fails."""
        try:
            found: list[bytes] = self._reader.read(begin, end)
        except Exception as error:  # the library raises many types, and each means the same
            reason = first_line(error)
            _raise_failure(self.path, reason)
        else:
            if len(found) == end - begin:
                return found
            reason = "the file ends before"
        raise ArrayRecordError(f"{self.path}: records [{begin}, {end}) cannot be read: {reason}", reason)

    def close(self) -> None:
        """Closes the file."""
        # A reader that met damage raises the same error again when it is closed.
        with suppress(RuntimeError):
            self._reader.close()

    def __enter__(self) -> "ArrayRecordFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _raise_failure(path: str | Path, reason: str) -> None:
    """Raises OSError if the system failed to read, so that the file itself may be sound."""
    error = named_error(path, reason)
    if is_failure(error):
        raise error


class _GrowingFile(ArrayRecordFile):
    """A partial copy of a file, of which more is fetched when the library cannot read what was asked for."""

    def __init__(self, copy: PartialCopy) -> None:
        self._copy = copy
        while copy.extend_end():
            with suppress(ArrayRecordError):
                super().__init__(copy.path)
                if self.is_whole:
                    return
                self.close()
        super().__init__(copy.path)

    def read(self, begin: int, end: int) -> list[bytes]:
        """See ``ArrayRecordFile``."""
        while True:
            try:
                return super().read(begin, end)
            except ArrayRecordError:
                if not self._copy.extend_beginning():
                    raise
            self.close()
            super().__init__(self._copy.path)


@contextmanager
def open_in_order(path: str | Path) -> Iterator[ArrayRecordFile]:
    """Opens a file whose records are read one after the other. Of one on ``gs://`` little more is fetched than is read;
    a record that is damaged is known to be only when all of the file is there. Raises ArrayRecordError."""
    if is_remote(path):
        with partial_copy(path) as copy, _GrowingFile(copy) as file:
            yield file
    else:
        with local_copy(path) as local, ArrayRecordFile(local) as file:
            yield file
