"""Is an image file whole? What its format says of that is read without decoding it: a build copies most images.

A PNG has a checksum for each chunk, so any damaged byte of it is found. A JPEG has none: its segments have lengths and
tables that must agree with each other, and its scans reach up to an end marker, so a cut and a damaged header are
found, and a damaged byte inside a scan is not. A file that is whole by these rules decodes.
"""

import functools
import re
import struct
import zlib

from gatokit.schemas.errors import RejectedError

PNG_SIGNATURE, JPEG_SIGNATURE = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""The markers that cannot occur inside a scan."""
JPEG_SEGMENT = re.compile(rb"\xff[^\x00\xff]")
"""A marker between scans; decoders skip what lies before it."""
MOST_SHARED = 2048
"""Bytes of a JPEG before its scan that are worth remembering: the files of one encoder begin alike."""

_PNG_FIRST_DATA = 33
"""Where the data of a PNG begins whose header is followed by nothing else."""
_PNG_LAST = b"\x00\x00\x00\x00IEND\xae\x42\x60\x82"
_JPEG_SCAN = b"\xff\xda"
_MOST_BLOCKS = 10
"""Blocks of a JPEG that may be interleaved."""
_SOF, _DHT, _EOI, _SOS, _DQT, _DRI, _APPS_AND_COMMENT = (
    (0xC0, 0xC1, 0xC2),
    0xC4,
    0xD9,
    0xDA,
    0xDB,
    0xDD,
    (*range(0xE0, 0xF0), 0xFE),
)
_PROGRESSIVE = 0xC2


# --- PNG -------------------------------------------------------------------------------------------------------


def png_is_whole(data: bytes) -> bool:
    """Whether a PNG without palette has its chunks in the right order, and pixels that begin as a zlib stream does.

    False leaves it to a decoder. Raises RejectedError ``bad_image`` as ``png_chunks`` does.
    """
    if data[37:41] == b"IDAT" and data.endswith(_PNG_LAST):
        length = int.from_bytes(data[33:37])
        if len(data) == _PNG_FIRST_DATA + 12 + length + len(_PNG_LAST):
            # Header, data and end: one checksum is left, because files of one size share their header.
            _check_png_header(data[:_PNG_FIRST_DATA])
            if zlib.crc32(memoryview(data)[37:-16]) != int.from_bytes(data[-16:-12]):
                raise RejectedError("bad_image", "the PNG's IDAT chunk does not match its checksum")
            return _begins_zlib(data[41:43])
    return chunks_agree(data, png_chunks(data))


def chunks_agree(data: bytes, chunks: list[tuple[bytes, int, int]]) -> bool:
    """See ``png_is_whole``; ``chunks`` are the file's."""
    kinds = [kind for kind, _, _ in chunks]
    pixels = kinds.count(b"IDAT")
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") > 1 or not pixels:
        return False
    first = kinds.index(b"IDAT")
    critical = {kind for kind in kinds if not kind[0] & 0x20}
    return (
        kinds[first : first + pixels] == [b"IDAT"] * pixels
        and critical == {b"IHDR", b"IDAT", b"IEND"}
        and chunks[first][2] - chunks[first][1] >= 14
        and _begins_zlib(data[chunks[first][1] + 8 :][:2])
    )


@functools.lru_cache(maxsize=256)
def _check_png_header(beginning: bytes) -> None:
    if zlib.crc32(beginning[12:29]) != int.from_bytes(beginning[29:33]):
        raise RejectedError("bad_image", "the PNG's IHDR chunk does not match its checksum")


def _begins_zlib(data: bytes) -> bool:
    """Whether two bytes are the header of a zlib stream: deflate, a window of 32 KiB at most, no dictionary."""
    number = int.from_bytes(data)
    return number % 31 == 0 and number >> 8 & 0x8F == 8 and not number & 0x20


def png_chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """Kind, begin and end of a PNG's chunks up to IEND.

    Raises RejectedError ``bad_image`` if the PNG is truncated or a chunk does not match its checksum: OpenCV would
    return what it could read.
    """
    view, at, chunks = memoryview(data), len(PNG_SIGNATURE), []
    while True:
        try:
            length, kind = struct.unpack_from(">I4s", data, at)
            end = at + 12 + length
            (checksum,) = struct.unpack_from(">I", data, end - 4)
        except struct.error as error:
            raise RejectedError("bad_image", "the PNG is truncated") from error
        if zlib.crc32(view[at + 4 : end - 4]) != checksum:
            raise RejectedError("bad_image", f"the PNG's {kind.decode('latin-1')} chunk does not match its checksum")
        chunks.append((kind, at, end))
        if kind == b"IEND":
            return chunks
        at = end


# --- JPEG ------------------------------------------------------------------------------------------------------


def jpeg_is_whole(data: bytes) -> bool:
    """Whether the segments of a Huffman-coded JPEG of 8 bits follow each other without a gap, agree with each other,
    and have an end marker behind the last scan.

    False leaves it to a decoder. Raises RejectedError ``bad_image`` if it is truncated, or for damage behind which a
    decoder would go on: a scan is missing, or is preceded by what is no segment, or needs a Huffman table that is
    missing although others are there (libjpeg would take a standard one).
    """
    scan = data.find(_JPEG_SCAN) + 14
    if scan < MOST_SHARED and (begin := _one_scan(data[:scan])):
        match = JPEG_MARKER.search(data, begin)
        if match is not None and data[match.start() + 1] == _EOI:
            return True
    return _Segments().are_whole(data)


@functools.lru_cache(maxsize=256)
def _one_scan(beginning: bytes) -> int:
    """Where the scan begins of a JPEG with this ``beginning``, if it has one scan of all components; else 0."""
    segments = _Segments()
    try:
        # An end marker in place of the scan.
        is_whole = segments.are_whole(beginning + b"\xff\xd9")
    except RejectedError:
        return 0
    is_one = is_whole and segments.scans == 1 and segments.scanned == segments.components.keys()
    return segments.scan_begin if is_one and not segments.is_progressive else 0


class _Segments:
    """What the segments of a JPEG have defined so far."""

    def __init__(self) -> None:
        self.quantization: set[int] = set()
        self.huffman: set[tuple[int, int]] = set()  # class (0 of DC, 1 of AC) and number
        self.components: dict[int, tuple[int, int]] = {}  # blocks in each unit, and quantization table, by id
        self.is_progressive = False
        self.scans, self.scan_begin, self.scanned = 0, 0, set[int]()

    def are_whole(self, data: bytes) -> bool:
        """See ``jpeg_is_whole``."""
        at, is_whole = 2, True
        while True:
            match = JPEG_SEGMENT.search(data, at)
            if match is None:
                raise RejectedError("bad_image", "the JPEG is truncated: it has no end marker")
            if data[at : match.start()].strip(b"\xff"):
                if self.scans:
                    raise RejectedError("bad_image", "the JPEG is damaged between its scans")
                is_whole = False
            marker, at = data[match.start() + 1], match.end()
            if marker == _EOI:
                if self.scanned != self.components.keys():
                    raise RejectedError("bad_image", "the JPEG is damaged: it lacks a scan")
                return is_whole and self.scans > 0
            if marker == 0x01 or 0xD0 <= marker <= 0xD8:
                is_whole = False
                continue
            length = int.from_bytes(data[at : at + 2])
            if length < 2 or at + length > len(data):
                is_whole = False
                continue
            is_whole &= self._is_right(marker, data[at + 2 : at + length])
            at += length
            if marker == _SOS:
                self.scan_begin = at
                match = JPEG_MARKER.search(data, at)
                at = len(data) if match is None else match.start()

    def _is_right(self, marker: int, segment: bytes) -> bool:
        """Takes the content of a segment; whether a decoder takes it too."""
        if marker in _APPS_AND_COMMENT:
            return True
        if marker == _DQT:
            quantization = _quantization_tables(segment)
            self.quantization |= quantization
            return bool(quantization)
        if marker == _DHT:
            huffman = _huffman_tables(segment)
            self.huffman |= huffman
            return bool(huffman)
        if marker == _DRI:
            return len(segment) == 2
        if marker in _SOF:
            return self._is_frame(marker, segment)
        return marker == _SOS and self._is_scan(segment)

    def _is_frame(self, marker: int, segment: bytes) -> bool:
        number = segment[5] if len(segment) > 5 else 0
        if self.components or number not in (1, 3) or len(segment) != 6 + 3 * number:
            return False
        self.is_progressive = marker == _PROGRESSIVE
        sides = []
        for at in range(6, len(segment), 3):
            across, down = segment[at + 1] >> 4, segment[at + 1] & 15
            sides.append((across, down))
            self.components[segment[at]] = across * down, segment[at + 2]
        widest, tallest = max(across for across, _ in sides), max(down for _, down in sides)
        return len(self.components) == number and all(
            1 <= across <= 4 and 1 <= down <= 4 and widest % across == 0 and tallest % down == 0
            for across, down in sides
        )

    def _is_scan(self, segment: bytes) -> bool:
        number = segment[0] if segment else 0
        if len(segment) != 4 + 2 * number:
            return False
        begin, end, high, low = segment[-3], segment[-2], segment[-1] >> 4, segment[-1] & 15
        ids, tables = segment[1:-3:2], segment[2:-3:2]
        self.scans += 1
        if len(set(ids)) != number or not all(id_ in self.components for id_ in ids):
            return False
        if begin == high == 0:
            self.scanned.update(ids)
        blocks = sum(self.components[id_][0] for id_ in ids)
        if (number > 1 and blocks > _MOST_BLOCKS) or any(
            self.components[id_][1] not in self.quantization for id_ in ids
        ):
            return False
        needs_dc, needs_ac = True, True
        if self.is_progressive:
            if (begin == 0) != (end == 0) or end < begin or end > 63 or low > 13 or high not in (0, low + 1):
                return False
            if begin and number > 1:
                return False
            needs_dc, needs_ac = begin == 0 and high == 0, begin > 0
        elif (begin, end, high, low) != (0, 63, 0, 0):
            return False
        needed = {(0, table >> 4) for table in tables if needs_dc} | {(1, table & 15) for table in tables if needs_ac}
        missing = needed - self.huffman
        if missing and self.huffman:
            raise RejectedError("bad_image", "the JPEG is damaged: a scan needs a Huffman table that is missing")
        return not missing


@functools.lru_cache(maxsize=256)
def _quantization_tables(segment: bytes) -> frozenset[int]:
    """The numbers of the tables in the content of a segment; none if it is damaged."""
    numbers, at = set(), 0
    while at < len(segment):
        precision, number = segment[at] >> 4, segment[at] & 15
        at += 1 + 64 * (1 + precision)
        if precision > 1 or number > 3:
            return frozenset()
        numbers.add(number)
    return frozenset(numbers) if at == len(segment) else frozenset()


@functools.lru_cache(maxsize=256)
def _huffman_tables(segment: bytes) -> frozenset[tuple[int, int]]:
    """Class and number of the tables in the content of a segment; none if it is damaged."""
    found, at = set(), 0
    while at < len(segment):
        kind, number = segment[at] >> 4, segment[at] & 15
        counts = segment[at + 1 : at + 17]
        symbols = segment[at + 17 : at + 17 + sum(counts)]
        at += 17 + sum(counts)
        code = 0
        for length, count in enumerate(counts, 1):
            # Codes of one length are consecutive numbers, and fit that length.
            code = 2 * code + count
            if code > 1 << length:
                return frozenset()
        if kind > 1 or number > 3 or sum(counts) > 256 or (kind == 0 and any(symbol > 15 for symbol in symbols)):
            return frozenset()
        found.add((kind, number))
    return frozenset(found) if at == len(segment) else frozenset()
