"""A record of a shard as views of its bytes: what a window needs of it, and nothing copied.

``schemas.record`` reads the same message through protobuf, which copies every array; this walks the wire.

Legend: T tokens, S time steps.
"""

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from gatokit.schemas.record import RECORD_VERSION, read_varint
from gatokit.schemas.record_pb2 import Image as ImageMessage
from gatokit.schemas.record_pb2 import Record as RecordMessage

_VERSION = RecordMessage.VERSION_FIELD_NUMBER
_OWNER = RecordMessage.OWNER_FIELD_NUMBER
_CHUNK = RecordMessage.CHUNK_FIELD_NUMBER
_CHUNKS = RecordMessage.CHUNKS_FIELD_NUMBER
_TOKENS = RecordMessage.TOKENS_FIELD_NUMBER
_KINDS = RecordMessage.KINDS_FIELD_NUMBER
_POSITIONS = RecordMessage.POSITIONS_FIELD_NUMBER
_STEP_BEGIN = RecordMessage.STEP_BEGIN_FIELD_NUMBER
_IMAGES = RecordMessage.IMAGES_FIELD_NUMBER
_DATA = ImageMessage.DATA_FIELD_NUMBER
_HEIGHT = ImageMessage.HEIGHT_FIELD_NUMBER
_WIDTH = ImageMessage.WIDTH_FIELD_NUMBER
_TOKEN = ImageMessage.TOKEN_FIELD_NUMBER
_FIELDS = 16
_BYTES = 2
_U1, _U2, _U4 = np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4")
_Place = tuple[int, int]


class Picture(NamedTuple):
    """An image of a record: its encoded bytes, its pixels, and the index of its first patch among the tokens."""

    data: bytes
    height: int
    width: int
    token: int


class Chunk:
    """The views of one record; ValueError where the bytes are no record or of a newer version."""

    __slots__ = ("_data", "_images", "_owner", "_step_begin", "chunk", "chunks", "kinds", "positions", "tokens")

    tokens: np.ndarray
    """uint16 (T,)."""
    kinds: np.ndarray
    """uint8 (T,)."""
    positions: np.ndarray
    """uint16 (T,)."""
    chunk: int
    """Ordinal of this record among its owner's."""
    chunks: int
    """Number of its owner's records."""

    def __init__(self, data: bytes) -> None:
        numbers = [0] * _FIELDS
        places: list[_Place] = [(0, 0)] * _FIELDS
        self._images: list[_Place] = []
        try:
            at, size = 0, len(data)
            while at < size:
                tag = data[at]
                value = data[at + 1]
                at += 2
                if value > 0x7F:
                    value, at = read_varint(data, at - 1)
                wire = tag & 7
                if tag > 0x7F or wire not in (0, _BYTES):
                    raise ValueError("the record is no Gatokit record message")
                if wire:
                    if tag >> 3 == _IMAGES:
                        self._images.append((at, value))
                    places[tag >> 3] = at, value
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
        self._owner = places[_OWNER]
        self._step_begin = places[_STEP_BEGIN]
        self.chunk, self.chunks = numbers[_CHUNK], numbers[_CHUNKS]
        self.tokens = np.frombuffer(data, _U2, places[_TOKENS][1] >> 1, places[_TOKENS][0])
        count = len(self.tokens)
        if not count or (places[_TOKENS][1], places[_KINDS][1], places[_POSITIONS][1]) != (2 * count, count, 2 * count):
            raise ValueError("the record's tokens, kinds and positions differ in length or are empty")
        if self.chunk >= self.chunks:
            raise ValueError(f"the record says it is chunk {self.chunk} of {self.chunks}")
        self.kinds = np.frombuffer(data, _U1, count, places[_KINDS][0])
        self.positions = np.frombuffer(data, _U2, count, places[_POSITIONS][0])

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

    def pictures(self, begin: int, end: int) -> list[Picture]:
        """The images with a patch among the tokens [begin, end), in order."""
        found = []
        for place in self._images[bisect_right(self._images, begin, key=self._end) :]:
            picture = self._picture(place)
            if picture.token >= end:
                break
            found.append(picture)
        return found

    def _end(self, place: _Place) -> int:
        """The token behind an image."""
        picture = self._picture(place)
        return picture.token + (picture.height >> 4) * (picture.width >> 4)

    def _picture(self, place: _Place) -> Picture:
        at, end = place[0], place[0] + place[1]
        numbers, where = [0] * _FIELDS, (0, 0)
        try:
            while at < end:
                tag = self._data[at]
                value, at = read_varint(self._data, at + 1)
                if tag == _DATA << 3 | _BYTES:
                    where = at, value
                    at += value
                elif tag in (_HEIGHT << 3, _WIDTH << 3, _TOKEN << 3):
                    numbers[tag >> 3] = value
                else:
                    raise IndexError
        except IndexError:
            at = -1
        if at != end:
            raise ValueError("the record has an image that is no Gatokit image message")
        data = self._data[where[0] : where[0] + where[1]]
        return Picture(data, numbers[_HEIGHT], numbers[_WIDTH], numbers[_TOKEN])
