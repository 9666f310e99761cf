"""Reads ranges of records from shards, of which a bounded number is open, and views a record without copying it.

Legend: T tokens, S time steps.
"""

import threading
import time
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gatokit.loader.remote import RemoteShard
from gatokit.schemas.errors import DataError
from gatokit.schemas.record import RECORD_VERSION, read_varint
from gatokit.schemas.record_pb2 import Image as ImageMessage
from gatokit.schemas.record_pb2 import Record as RecordMessage
from gatokit.storage.array_record import ArrayRecordError, ArrayRecordFile
from gatokit.storage.cache import CacheFullError, HeldFile

_FULL_SECONDS = 30.0
"""How long to wait for room if every cached shard is open in another process."""


# --- shards ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A shard file and the number of its records in the manifest; training records come first."""

    path: str
    training: int
    held_out: int
    remote: RemoteShard | None = None
    """Where it comes from, if it may have to be downloaded first."""

    @property
    def records(self) -> int:
        """Number of records, training and held out."""
        return self.training + self.held_out


class _Opened(NamedTuple):
    """An open file, and the hold that keeps a cached file on this disk as long as anybody reads it."""

    file: ArrayRecordFile
    held: HeldFile | None


class OpenShards:
    """The ``shards`` of a mixture, of which at most ``limit`` are open: the one unused for longest is closed.

    Threads may share it. It is pickled without its open files.
    """

    def __init__(self, shards: Sequence[Shard], limit: int) -> None:
        self.shards = list(shards)
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Opened] = OrderedDict()
        _ALL.add(self)

    @property
    def open_count(self) -> int:
        """Number of shards that are open now."""
        return len(self._open)

    def read(self, shard: int, begin: int, end: int) -> "list[RecordView]":
        """The records [begin, end) of ``shards[shard]``. Raises DataError, which names the file and the records."""
        return [self.view(data, shard, record) for record, data in enumerate(self.read_bytes(shard, begin, end), begin)]

    def read_bytes(self, shard: int, begin: int, end: int) -> list[bytes]:
        """The serialized records; arguments and errors as for ``read``."""
        with self._lock:
            opened = self._open.get(shard)
            if opened is not None:
                self._open.move_to_end(shard)
        if opened is None:
            opened = self._opened(shard)
        try:
            return opened.file.read(begin, end)
        except ArrayRecordError as error:
            records = f"record {begin}" if end == begin + 1 else f"records {begin} to {end - 1}"
            raise self._damage(shard, records, error.reason) from None

    def view(self, data: bytes, shard: int, record: int) -> "RecordView":
        """A view of a record that was read. Raises DataError if it is damaged."""
        try:
            return RecordView(data)
        except ValueError as error:
            raise self.damaged_record(shard, record, error) from None

    def damaged_record(self, shard: int, record: int, reason: Exception) -> DataError:
        """The error about a record that cannot be used."""
        return self._damage(shard, f"record {record}", str(reason))

    def _damage(self, shard: int, records: str, reason: str) -> DataError:
        return DataError(f"{self.shards[shard].path}, {records}: {reason}. gatokit verify says what else is damaged")

    def _opened(self, number: int) -> _Opened:
        shard = self.shards[number]
        held = None if shard.remote is None else self._hold(shard.remote)
        file = ArrayRecordFile(shard.path)
        if file.records != shard.records:
            raise DataError(
                f"{shard.path} holds {file.records} records and the manifest says {shard.records}; "
                "gatokit verify says what else is damaged"
            )
        with self._lock:
            # Another thread may have opened it meanwhile. A thread that still reads a shard keeps its file open.
            if number not in self._open:
                while len(self._open) >= self._limit:
                    self._open.popitem(last=False)
                self._open[number] = _Opened(file, held)
            return self._open[number]

    def _hold(self, remote: RemoteShard) -> HeldFile:
        """Holds a remote shard in the cache.

        If the cache is full, cached shards that are open in this process are closed: those of this object first. If
        there are none, the call waits for other processes.
        """
        end = time.monotonic() + _FULL_SECONDS
        while True:
            try:
                return remote.hold()
            except CacheFullError:
                if not (self._close_oldest() or any(shards._close_oldest() for shards in list(_ALL))):
                    if time.monotonic() > end:
                        raise
                    time.sleep(_FULL_SECONDS / 100)

    def _close_oldest(self) -> bool:
        """Closes the cached shard that is unused for longest. Returns False if none is open."""
        with self._lock:
            oldest = next((shard for shard, opened in self._open.items() if opened.held is not None), None)
            return oldest is not None and self._open.pop(oldest) is not None

    def __reduce__(self) -> tuple[type["OpenShards"], tuple[list[Shard], int]]:
        return OpenShards, (self.shards, self._limit)


_ALL: weakref.WeakSet[OpenShards] = weakref.WeakSet()
"""All of this process: they share the caches."""


# --- records -----------------------------------------------------------------------------------------------------

_NUMBERS = {name: field.number for name, field in RecordMessage.DESCRIPTOR.fields_by_name.items()}
_VERSION, _OWNER, _CHUNK, _CHUNKS = (_NUMBERS[name] for name in ("version", "owner", "chunk", "chunks"))
_TOKENS, _KINDS, _POSITIONS = (_NUMBERS[name] for name in ("tokens", "kinds", "positions"))
_STEP_BEGIN, _IMAGES = _NUMBERS["step_begin"], _NUMBERS["images"]
_IMAGE_NUMBERS = {name: field.number for name, field in ImageMessage.DESCRIPTOR.fields_by_name.items()}
_DATA, _HEIGHT, _WIDTH, _TOKEN = (_IMAGE_NUMBERS[name] for name in ("data", "height", "width", "token"))
_FIELDS = 16
"""Field numbers are below this, so that a tag takes one byte."""
_BYTES = 2
"""Protobuf's wire type of bytes and messages; that of numbers is 0."""
_U1, _U2, _U4 = np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4")
_ByteRange = tuple[int, int]
"""Offset and size in the record."""


class ImageView(NamedTuple):
    """An image of a record: its encoded bytes, its size in pixels, and the token of its first patch."""

    data: bytes
    height: int
    width: int
    token: int


class RecordView:
    """The arrays of one serialized record, as views of its bytes.

    ``schemas.record`` reads the same message through protobuf, which copies every array; this walks the wire format.
    """

    __slots__ = ("_data", "_images", "_owner", "_step_begin", "chunk", "chunks", "kinds", "positions", "tokens")

    tokens: np.ndarray
    """uint16 (T,)."""
    kinds: np.ndarray
    """uint8 (T,)."""
    positions: np.ndarray
    """uint16 (T,)."""
    chunk: int
    """Ordinal of this record among those of its episode or document."""
    chunks: int
    """Number of records of its episode or document."""

    def __init__(self, data: bytes) -> None:
        """Raises ValueError if ``data`` is not a record or has a newer version."""
        numbers = [0] * _FIELDS
        ranges: list[_ByteRange] = [(0, 0)] * _FIELDS
        self._images: list[_ByteRange] = []
        try:
            at, size = 0, len(data)
            while at < size:
                tag = data[at]
                value = data[at + 1]
                at += 2
                if value > 0x7F:
                    value, at = read_varint(data, at - 1)
                wire_type = tag & 7
                if tag > 0x7F or wire_type not in (0, _BYTES):
                    raise ValueError("the record is no Gatokit record message")
                if wire_type:
                    if tag >> 3 == _IMAGES:
                        self._images.append((at, value))
                    ranges[tag >> 3] = at, value
                    at += value
                else:
                    numbers[tag >> 3] = value
        except IndexError:
            at = -1
        if at != size:
            raise ValueError("the record is no Gatokit record message")
        if not 0 < numbers[_VERSION] <= RECORD_VERSION:
            raise ValueError(
                f"the record has format version {numbers[_VERSION]} and this gatokit reads up to {RECORD_VERSION}: "
                "install a newer gatokit"
            )
        self._data = data
        self._owner = ranges[_OWNER]
        self._step_begin = ranges[_STEP_BEGIN]
        self.chunk, self.chunks = numbers[_CHUNK], numbers[_CHUNKS]
        self.tokens = np.frombuffer(data, _U2, ranges[_TOKENS][1] >> 1, ranges[_TOKENS][0])
        count = len(self.tokens)
        if not count or (ranges[_TOKENS][1], ranges[_KINDS][1], ranges[_POSITIONS][1]) != (2 * count, count, 2 * count):
            raise ValueError("the record's tokens, kinds and positions differ in length or are empty")
        if self.chunk >= self.chunks:
            raise ValueError(f"the record says it is chunk {self.chunk} of {self.chunks}")
        self.kinds = np.frombuffer(data, _U1, count, ranges[_KINDS][0])
        self.positions = np.frombuffer(data, _U2, count, ranges[_POSITIONS][0])

    @property
    def owner(self) -> str:
        """Id of the episode or document."""
        begin, size = self._owner
        return self._data[begin : begin + size].decode()

    @property
    def step_begin(self) -> np.ndarray:
        """uint32 (S,): index of the token at which each time step begins; empty for documents."""
        begin, size = self._step_begin
        return np.frombuffer(self._data, _U4, size >> 2, begin)

    def images(self, begin: int, end: int) -> list[ImageView]:
        """The images with a patch among the tokens [begin, end), in order. Raises ValueError if one is damaged."""
        found = []
        for byte_range in self._images[bisect_right(self._images, begin, key=self._image_end) :]:
            image = self._image(byte_range)
            if image.token >= end:
                break
            found.append(image)
        return found

    def _image_end(self, byte_range: _ByteRange) -> int:
        """Index of the token behind an image."""
        image = self._image(byte_range)
        return image.token + (image.height >> 4) * (image.width >> 4)

    def _image(self, byte_range: _ByteRange) -> ImageView:
        at, end = byte_range[0], byte_range[0] + byte_range[1]
        numbers, data = [0] * _FIELDS, (0, 0)
        try:
            while at < end:
                tag = self._data[at]
                value, at = read_varint(self._data, at + 1)
                if tag == _DATA << 3 | _BYTES:
                    data = at, value
                    at += value
                elif tag in (_HEIGHT << 3, _WIDTH << 3, _TOKEN << 3):
                    numbers[tag >> 3] = value
                else:
                    raise IndexError
        except IndexError:
            at = -1
        if at != end:
            raise ValueError("the record has an image that is no Gatokit image message")
        content = self._data[data[0] : data[0] + data[1]]
        return ImageView(content, numbers[_HEIGHT], numbers[_WIDTH], numbers[_TOKEN])


class Span(NamedTuple):
    """Tokens [skip, skip + take) of a record, which stand in a window from ``column`` on."""

    column: int
    skip: int
    take: int
    shard: int
    record: int
    view: RecordView
