"""What the first bytes of a PNG or JPEG say about the image, read without decoding it.

This runs for every frame of a build, so it touches a few dozen bytes and makes no copies.
"""

import struct
from typing import Literal, NamedTuple

from gatokit.schemas.errors import RejectedError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_IHDR = b"\x00\x00\x00\x0dIHDR"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PNG_PALETTE = 3
_JPEG_STANDALONE = frozenset([0x01, *range(0xD0, 0xD8)])
_JPEG_FRAMES = frozenset([*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)])
_JPEG_HUFFMAN_DCT = frozenset([0xC0, 0xC1, 0xC2])
_EXIF_ORIENTATION = 0x0112


class ImageHeader(NamedTuple):
    """An encoded image's form. ``channels`` counts what decoding gives: 3 for a PNG with a palette.

    ``alpha`` is set for an alpha channel or a transparent colour; ``orientation`` is EXIF's, 1 where none.
    """

    codec: Literal["png", "jpeg"]
    height: int
    width: int
    channels: int
    bit_depth: int
    palette: bool = False
    alpha: bool = False
    animated: bool = False
    orientation: int = 1

    @property
    def plain(self) -> bool:
        """Whether it is 8-bit gray or RGB and nothing else, upright."""
        return (
            self.bit_depth == 8
            and self.channels in (1, 3)
            and not (self.palette or self.alpha or self.animated)
            and self.orientation == 1
        )


def probe(data: bytes) -> ImageHeader:
    """The header of a PNG or JPEG; RejectedError ``bad_image`` where ``data`` is neither or breaks off in it."""
    try:
        if data[:8] == PNG_SIGNATURE:
            return _png(data)
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data)
    except struct.error as error:
        raise RejectedError("bad_image", "the image breaks off in its header") from error
    if not data:
        raise RejectedError("bad_image", "the image is empty")
    raise RejectedError("bad_image", f"the image is neither PNG nor JPEG: it begins with {data[:8]!r}")


def _png(data: bytes) -> ImageHeader:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if data[8:16] != _PNG_IHDR or colour not in _PNG_CHANNELS or not (width and height):
        raise RejectedError("bad_image", "the PNG's header is damaged")
    if data[37:41] == b"IDAT" and colour in (0, 2):
        return ImageHeader("png", height, width, _PNG_CHANNELS[colour], depth)
    alpha, animated, orientation, at = colour in (4, 6), False, 1, 33
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IDAT", b"IEND"):
            break
        alpha |= kind == b"tRNS"
        animated |= kind == b"acTL"
        if kind == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        at += 12 + length
    return ImageHeader(
        "png", height, width, _PNG_CHANNELS[colour], depth, colour == _PNG_PALETTE, alpha, animated, orientation
    )


def _jpeg(data: bytes) -> ImageHeader:
    orientation, at = 1, 2
    while True:
        mark, marker, length = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF or marker in (0xD9, 0xDA):
            raise RejectedError("bad_image", "the JPEG's header is damaged")
        if marker == 0xFF:
            at += 1
        elif marker in _JPEG_STANDALONE:
            at += 2
        elif marker in _JPEG_FRAMES:
            depth, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            if marker not in _JPEG_HUFFMAN_DCT:
                raise RejectedError("bad_image", f"the JPEG is lossless, hierarchical or arithmetic (SOF {marker:#x})")
            if not (height and width):
                raise RejectedError("bad_image", "the JPEG's header gives no size")
            return ImageHeader("jpeg", height, width, channels, depth, orientation=orientation)
        else:
            if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                orientation = _orientation(data[at + 10 : at + 2 + length])
            at += 2 + length


def _orientation(exif: bytes) -> int:
    """The orientation of a TIFF block's first directory; 1 where it has none or is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, at + 2 + 12 * entry)
            if tag == _EXIF_ORIENTATION:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
