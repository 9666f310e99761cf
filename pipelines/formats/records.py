"""What every format gives of a file: where each record or document is stored, what it holds, or why it is rejected."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

_Value = TypeVar("_Value", covariant=True)
CHANGED = "changed between scan and build"
"""What the error of a source says that no longer holds what its scan found."""


class ByteRange(NamedTuple):
    """The bytes of a stored episode or document, and the checksum that identifies them.

    ``position`` is the ordinal in the file. ``offset`` is where the bytes begin: 0 in formats that are read by ordinal,
    the row group in Parquet. ``length`` also counts the images of a document that are files of their own. ``crc`` is
    the CRC-32C of the content as stored. ``payload`` is what else a format of documents needs to read this one.
    """

    position: int
    offset: int
    length: int
    crc: int
    payload: str | None = None


class Stored(NamedTuple, Generic[_Value]):
    """A record or an episode of a file. If it is rejected, ``value`` is None, ``reason`` is one of the index's reasons,
    and ``lost`` is the number of records that cannot be read because of it. ``lost_bytes`` are the bytes of the file in
    which such records lie; it is 0 if one record is rejected alone."""

    byte_range: ByteRange
    value: _Value | None
    reason: str | None = None
    detail: str | None = None
    lost: int = 1
    lost_bytes: int = 0


def too_large(byte_range: ByteRange, max_bytes: int) -> Stored[Any]:
    """The rejection of a record of more than ``max_bytes``."""
    detail = f"{byte_range.length} bytes are above max_episode_bytes {max_bytes}"
    return Stored(byte_range, None, "too_large", detail)


@dataclass(frozen=True)
class RecordFile(ABC):
    """A file of records at ``path``.

    ``declared`` is the number of records that the metadata of the dataset gives, if any. Messages call the file
    ``name`` and its records ``noun``. ``positions`` are the first record that is read and the one behind the last;
    None: all.
    """

    path: str
    name: str
    declared: int | None
    noun: str
    positions: tuple[int, int] | None = None

    @abstractmethod
    def read_all(self, max_bytes: int) -> Iterator[Stored[bytes]]:
        """Yields the records of ``positions`` in file order. Damaged ones and those above ``max_bytes`` are
        rejections."""

    @abstractmethod
    def opened(self) -> contextlib.AbstractContextManager[Callable[[ByteRange], bytes | None]]:
        """Opens the file. Gives a function that reads one record, or returns None if it has changed since the scan."""
