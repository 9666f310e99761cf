"""Reads ranges of records from shards, of which a bounded number is open.

Legend: T tokens, S time steps.
"""

import threading
import time
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from gatokit.schemas.errors import DataError
from gatokit.schemas.record import RECORD_VERSION, read_varint
from gatokit.schemas.record_pb2 import Image as ImageMessage
from gatokit.schemas.record_pb2 import Record as RecordMessage
from gatokit.schemas.tokens import PATCH
from gatokit.storage.array_record import ArrayRecordError, ArrayRecordFile
from gatokit.storage.cache import CachedFile, CacheFullError, HeldFile

_FULL_SECONDS = 30.0
"""How long to wait for room if every cached shard is open in another process."""


# --- shards ------------------------------------------------------------------------------------------------------


class DamagedRecordError(DataError):
    """Records that cannot be used."""


@dataclass(frozen=True)
class Shard:
    """A shard file and the number of its records in the manifest; training records come first."""

    path: str
    training: int
    held_out: int
    remote: CachedFile | None = None
    """The object that it is a copy of, if it may have to be downloaded first."""


class OpenShards:
    """The ``shards`` of a mixture, of which at most ``limit`` are open: the one unused for longest is closed.

    Threads may share it. It is pickled without its open files.
    """

    def __init__(self, shards: Sequence[Shard], limit: int) -> None:
        self.shards = list(shards)
        self._limit = limit
        self._lock = threading.Lock()
        # With a cached file goes what keeps it on this disk as long as anybody reads it.
        self._open: OrderedDict[int, tuple[ArrayRecordFile, HeldFile | None]] = OrderedDict()
        _ALL.add(self)

    @property
    def open_count(self) -> int:
        """Number of shards that are open now."""
        return len(self._open)

    def read(self, shard: int, begin: int, end: int) -> "list[RecordView]":
        """The records [begin, end) of ``shards[shard]``. Raises DamagedRecordError, which names the file and the
        records, or DataError if the shard cannot be opened."""
        views = []
        for record, data in enumerate(self.read_bytes(shard, begin, end), begin):
            try:
                views.append(RecordView(data))
            except ValueError as error:
                raise self.damaged(shard, record, record + 1, error) from None
        return views

    def read_bytes(self, shard: int, begin: int, end: int) -> list[bytes]:
        """The serialized records; arguments and errors as for ``read``."""
        with self._lock:
            opened = self._open.get(shard)
            if opened is not None:
                self._open.move_to_end(shard)
        # The hold stays until the records are read, even if another thread closes the shard.
        file, _held = opened or self._opened(shard)
        try:
            return file.read(begin, end)
        except ArrayRecordError as error:
            raise self.damaged(shard, begin, end, error.reason) from None

    def damaged(self, shard: int, begin: int, end: int, reason: object) -> DamagedRecordError:
        """The error about the records [begin, end), which cannot be used."""
        records = f"record {begin}" if end == begin + 1 else f"records {begin} to {end - 1}"
        path = self.shards[shard].path
        return DamagedRecordError(f"{path}, {records}: {reason}. gatokit verify says what else is damaged")

    def _opened(self, number: int) -> tuple[ArrayRecordFile, HeldFile | None]:
        shard = self.shards[number]
        held = None if shard.remote is None else self._hold(shard.remote)
        file = ArrayRecordFile(shard.path)
        records = shard.training + shard.held_out
        if file.records != records:
            raise DataError(
                f"{shard.path} holds {file.records} records and the manifest says {records}; "
                "gatokit verify says what else is damaged"
            )
        with self._lock:
            # Another thread may have opened it meanwhile. A thread that still reads a shard keeps its file open.
            if number not in self._open:
                while len(self._open) >= self._limit:
                    self._open.popitem(last=False)
                self._open[number] = file, held
            return self._open[number]

    def _hold(self, remote: CachedFile) -> HeldFile:
        """Holds a shard in the cache. If the cache is full, closes cached shards that are open in this process, those
        of this object first; if there are none, waits for other processes."""
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
            oldest = next((shard for shard, (_, held) in self._open.items() if held is not None), None)
            return oldest is not None and self._open.pop(oldest) is not None

    def __reduce__(self) -> tuple[type["OpenShards"], tuple[list[Shard], int]]:
        return OpenShards, (self.shards, self._limit)


_ALL: weakref.WeakSet[OpenShards] = weakref.WeakSet()
"""All of this process: they share the caches."""


# --- records -----------------------------------------------------------------------------------------------------

_U1, _U2, _U4 = np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4")
_Place = tuple[int, int]
"""Where the bytes of a field begin in a serialized record, and how many they are."""


def _tag(name: str) -> int:
    """The byte before a field: its number, and 0 for an integer or 2 for bytes."""
    field = RecordMessage.DESCRIPTOR.fields_by_name[name]
    return field.number << 3 | (0 if field.type in (field.TYPE_UINT32, field.TYPE_UINT64) else 2)


_VERSION, _OWNER, _CHUNK, _CHUNKS = map(_tag, ("version", "owner", "chunk", "chunks"))
_TOKENS, _KINDS, _POSITIONS, _STEP_BEGIN = map(_tag, ("tokens", "kinds", "positions", "step_begin"))
_IMAGES, _TEXTS = _tag("images"), (_OWNER, _tag("spec"))
_EMPTY = {_tag(name): (0, 0) for name in RecordMessage.DESCRIPTOR.fields_by_name}


class RecordView:
    """The parts of a serialized record that windows need; ``schemas.record`` checks and converts all of them.

    The arrays are views of the bytes, and an image is parsed when it is asked for: protobuf would copy all of them.
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
        try:
            fields, images = _walk(data)
        except (IndexError, ValueError):
            # The record is damaged, or it has fields that this version does not know: protobuf decides.
            try:
                message = RecordMessage.FromString(data)
            except DecodeError:
                raise ValueError("the record is no Gatokit record message") from None
            message.DiscardUnknownFields()
            data = message.SerializeToString()
            fields, images = _walk(data)
        self._data, self._images, self._owner, self._step_begin = data, images, fields[_OWNER], fields[_STEP_BEGIN]
        version = fields[_VERSION][1]
        if not 0 < version <= RECORD_VERSION:
            raise ValueError(
                f"the record has format version {version} and this gatokit reads up to {RECORD_VERSION}: "
                "install a newer gatokit"
            )
        tokens, token_bytes = fields[_TOKENS]
        kinds, count = fields[_KINDS]
        positions, position_bytes = fields[_POSITIONS]
        if not count or not token_bytes == position_bytes == 2 * count:
            raise ValueError("the record's tokens, kinds and positions differ in length or are empty")
        self.chunk, self.chunks = fields[_CHUNK][1], fields[_CHUNKS][1]
        if self.chunk >= self.chunks:
            raise ValueError(f"the record says it is chunk {self.chunk} of {self.chunks}")
        self.tokens = np.frombuffer(data, _U2, count, tokens)
        self.kinds = np.frombuffer(data, _U1, count, kinds)
        self.positions = np.frombuffer(data, _U2, count, positions)

    @property
    def owner(self) -> str:
        """Id of the episode or document."""
        begin, size = self._owner
        return self._data[begin : begin + size].decode()

    @property
    def step_begin(self) -> np.ndarray:
        """uint32 (S,): index of the token at which each time step begins; empty for documents."""
        begin, size = self._step_begin
        return np.frombuffer(self._data, _U4, size // 4, begin)

    def images(self, begin: int, end: int) -> list[ImageMessage]:
        """The images with a patch among the tokens [begin, end), in order. Raises ValueError if one is damaged."""
        first = bisect_right(self._images, begin, key=self._image_end)
        images = map(self._image, self._images[first:])
        return list(takewhile(lambda image: image.token < end, images))

    def _image_end(self, place: _Place) -> int:
        """Index of the token behind an image."""
        image = self._image(place)
        return image.token + (image.height // PATCH) * (image.width // PATCH)

    def _image(self, place: _Place) -> ImageMessage:
        begin, size = place
        try:
            return ImageMessage.FromString(self._data[begin : begin + size])
        except DecodeError:
            raise ValueError("the record has an image that is no Gatokit image message") from None


def _walk(data: bytes) -> tuple[dict[int, _Place], list[_Place]]:
    """The place of each field by its tag, with the value of an integer for a size, and the places of the images.

    Images are not looked into. Raises IndexError or ValueError if the data are no record or have unknown fields.
    """
    fields, images = _EMPTY.copy(), []
    at, end = 0, len(data)
    while at < end:
        tag, value = data[at], data[at + 1]
        at += 2
        if value > 0x7F:
            if data[at] < 0x80:  # most lengths have two bytes
                value += (data[at] << 7) - 0x80
                at += 1
            else:
                value, at = read_varint(data, at - 1)
                if not tag & 7:
                    value &= 0xFFFFFFFF  # as protobuf does; all integers that windows need have 32 bits
        fields[tag] = at, value
        if tag & 7:
            if tag == _IMAGES:
                images.append((at, value))
            elif tag in _TEXTS:
                data[at : at + value].decode()  # raises a ValueError if it is not UTF-8
            at += value
    if at != end or len(fields) > len(_EMPTY):
        raise ValueError("the data end inside a field, or a field is unknown")
    return fields, images


class RecordSpan(NamedTuple):
    """Tokens [skip, skip + take) of a record, which stand in a window from ``column`` on. ``document`` is the ordinal
    of a packed document in its row, from 1; 0 for anything else."""

    column: int
    skip: int
    take: int
    shard: int
    record: int
    view: RecordView
    document: int = 0
