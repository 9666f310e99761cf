"""Size and form of an image, read from its first bytes without decoding it.

This runs for every image of a build, so it reads a few dozen bytes and makes no copies.
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
_WEBP_ANIMATION, _WEBP_EXIF, _WEBP_ALPHA = 0x02, 0x08, 0x10
_BEGINNINGS = {
    PNG_SIGNATURE: "a PNG",
    b"\xff\xd8\xff": "a JPEG",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a BigTIFF",
    b"MM\0+": "a BigTIFF",
    b"\0\0\x01\0": "an icon",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a ZIP archive",
    b"version https://git-lfs": "a Git LFS pointer, and its content was not fetched",
}


class ImageHeader(NamedTuple):
    """The form of a PNG or JPEG. ``channels`` is the number after decoding: 3 for a PNG with a palette.

    ``alpha`` is set for an alpha channel or a transparent colour; ``orientation`` is EXIF's, 1 if there is none.
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
        """Whether it is upright 8-bit gray or RGB, without palette, alpha or animation."""
        return (
            self.bit_depth == 8
            and self.channels in (1, 3)
            and not (self.palette or self.alpha or self.animated)
            and self.orientation == 1
        )


class WebpHeader(NamedTuple):
    """The form of a WebP. ``lossy`` is about its colours; ``orientation`` is EXIF's, 1 if there is none."""

    height: int
    width: int
    lossy: bool
    alpha: bool = False
    animated: bool = False
    orientation: int = 1


def probe(data: bytes) -> ImageHeader:
    """The header of a PNG or JPEG; RejectedError ``bad_image`` if ``data`` is neither or ends inside its header."""
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


def probe_webp(data: bytes) -> WebpHeader:
    """The header of a WebP; RejectedError ``bad_image`` if ``data`` is no WebP, is damaged or is truncated."""
    try:
        (size,) = struct.unpack_from("<I", data, 4)
        if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
            raise RejectedError("bad_image", f"the image is no WebP: it begins with {data[:12]!r}")
        if size + 8 > len(data):
            raise RejectedError("bad_image", f"the WebP is truncated: {len(data):,} of {size + 8:,} bytes are there")
        return _webp(data, size + 8)
    except struct.error as error:
        raise RejectedError("bad_image", "the WebP breaks off in its header") from error


def describe(data: bytes) -> str:
    """What kind of file ``data`` seems to be, with an article: ``a GIF``, ``an HTML page``, ``text that begins …``."""
    for beginning, name in _BEGINNINGS.items():
        if data.startswith(beginning):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP"
    if data[4:8] == b"ftyp":
        return "an AVIF" if data[8:11] == b"avi" else "a HEIF" if data[8:11] in (b"hei", b"hev", b"mif") else "a video"
    if not data:
        return "empty"
    start = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if start.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")):
        return "an SVG" if b"<svg" in start or b"doctype svg" in start else "an XML document"
    if not start.strip(b"\0"):
        return "nothing but zeros"
    try:
        text = data[:40].decode("ascii")
    except UnicodeDecodeError:
        text = ""
    if text and all(character.isprintable() or character in "\t\r\n" for character in text):
        return f"text that begins {text!r}"
    return f"of no known kind: it begins with {data[:12]!r}"


def exif_orientation(exif: bytes) -> int:
    """The orientation in a block of EXIF, with or without its ``Exif`` prefix; 1 if it has none or is damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
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


def _webp(data: bytes, end: int) -> WebpHeader:
    flags, vp8x_size, at = 0, None, 12
    if data[12:16] == b"VP8X":
        flags, wide, low_height, high_height = struct.unpack_from("<B3x3sBH", data, 20)
        vp8x_size = 1 + low_height + (high_height << 8), 1 + int.from_bytes(wide, "little")
        if flags & _WEBP_ANIMATION:
            return WebpHeader(*vp8x_size, lossy=True, alpha=True, animated=True)
    size: tuple[int, int] | None = None
    lossy, alpha, orientation = True, bool(flags & _WEBP_ALPHA), 1
    while size is None or (flags & _WEBP_EXIF and at + 8 <= end):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"VP8 " and size is None:
            mark, width, height = struct.unpack_from("<3sHH", data, at + 11)
            if mark != b"\x9d\x01\x2a":
                raise RejectedError("bad_image", "the WebP's header is damaged")
            size = height & 0x3FFF, width & 0x3FFF
        elif kind == b"VP8L" and size is None:
            mark, bits = struct.unpack_from("<BI", data, at + 8)
            if mark != 0x2F:
                raise RejectedError("bad_image", "the WebP's header is damaged")
            size, lossy = (1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)), False
            alpha |= bool(bits >> 28 & 1)
        elif kind == b"EXIF":
            orientation = exif_orientation(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    if 0 in size or size != (vp8x_size or size):
        raise RejectedError("bad_image", "the WebP's header is damaged")
    return WebpHeader(*size, lossy, alpha, orientation=orientation)


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
            orientation = exif_orientation(data[at + 8 : at + 8 + length])
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
                orientation = exif_orientation(data[at + 10 : at + 2 + length])
            at += 2 + length
