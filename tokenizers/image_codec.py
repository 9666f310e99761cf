"""Image files ↔ pixels, by OpenCV; and the form of an image file, read from its first bytes without decoding it.

A build reads the header of every image, so that ``probe`` looks at a few dozen bytes and makes no copies.

Legend: H, W pixels of an image.
"""

import contextlib
import functools
import re
import struct
import zlib
from typing import Literal, NamedTuple

import cv2
import numpy as np

from gatokit.schemas.errors import RejectedError
from gatokit.schemas.manifest import ImageSpec
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.image_structure import (
    JPEG_SIGNATURE,
    MOST_SHARED,
    PNG_SIGNATURE,
    jpeg_is_whole,
    png_chunks,
    png_is_whole,
)

MAX_PIXELS = 64_000_000
"""Larger images are rejected by their header, before anything is decoded."""
_BAND_PIXELS = 1 << 20
"""Pixels that are composited at a time, so that memory holds few copies of a large image."""
JPEG_END = b"\xff\xd9"

_PNG_IHDR, _PNG_END = b"\x00\x00\x00\x0dIHDR", b"\x00\x00\x00\x00IEND\xae\x42\x60\x82"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PNG_PALETTE = 3
_JPEG_STANDALONE = frozenset([0x01, *range(0xD0, 0xD8)])
_JPEG_FRAMES = frozenset([*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)])
_JPEG_HUFFMAN_DCT = frozenset([0xC0, 0xC1, 0xC2])
_JPEG_SCAN = b"\xff\xda"
_EXIF, _EXIF_ORIENTATION = b"Exif\0\0", 0x0112
_TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_EXIF_INTEGERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I"}
"""Types of a tag's value that is an orientation, as ``struct`` names them."""
_JPEG_XMP, _PNG_XMP, _PNG_RAW_EXIF = b"http://ns.adobe.com/xap/1.0/\0", b"XML:com.adobe.xmp", b"Raw profile type exif"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_PNG_NOTES = frozenset((b"eXIf", b"iTXt", b"tEXt", b"zTXt"))
_MOST_NOTE = 1 << 16
"""Bytes that are inflated at most of a PNG's text."""
_WEBP_ANIMATION, _WEBP_NOTES, _WEBP_ALPHA = 0x02, 0x0C, 0x10
# All options are given, so that the bytes do not depend on OpenCV's defaults.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
_JPEG_OPTIONS = [
    *(cv2.IMWRITE_JPEG_PROGRESSIVE, 0, cv2.IMWRITE_JPEG_OPTIMIZE, 0),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
]


# --- headers ---------------------------------------------------------------------------------------------------


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
        is_special = self.palette or self.alpha or self.animated or self.orientation != 1
        return self.bit_depth == 8 and self.channels in (1, 3) and not is_special


class WebpHeader(NamedTuple):
    """The form of a WebP. ``lossy`` is about its colours; ``orientation`` is EXIF's, 1 if there is none."""

    height: int
    width: int
    lossy: bool
    alpha: bool = False
    animated: bool = False
    orientation: int = 1


def probe(data: bytes) -> ImageHeader:
    """The header of a PNG or JPEG. Raises RejectedError ``bad_image`` if it is neither, or ends inside its header."""
    try:
        if data[:8] == PNG_SIGNATURE:
            return _png_header(data)
        if data[:3] == JPEG_SIGNATURE:
            scan = data.find(_JPEG_SCAN)
            if 0 < scan < MOST_SHARED:
                # The files of one encoder and size begin alike, unless this is the scan of a thumbnail.
                with contextlib.suppress(RejectedError, struct.error):
                    return _jpeg_header_once(data[: scan + 4])
            return _jpeg_header(data)
    except struct.error as error:
        raise RejectedError("bad_image", "the image breaks off in its header") from error
    if not data:
        raise RejectedError("bad_image", "the image is empty")
    raise RejectedError("bad_image", f"the image is neither PNG nor JPEG: it begins with {data[:8]!r}")


def _png_header(data: bytes) -> ImageHeader:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if data[8:16] != _PNG_IHDR or colour not in _PNG_CHANNELS or not (width and height):
        raise RejectedError("bad_image", "the PNG's header is damaged")
    alpha, animated, at = colour in (4, 6), False, 33
    notes: dict[str, bytes] = {}
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IDAT", b"IEND"):
            break
        alpha |= kind == b"tRNS"
        animated |= kind == b"acTL"
        if kind in _PNG_NOTES:
            notes |= png_note(kind, data[at + 8 : at + 8 + length])
        at += 12 + length
    palette = colour == _PNG_PALETTE
    orientation = orientation_of(notes) if notes else 1
    return ImageHeader("png", height, width, _PNG_CHANNELS[colour], depth, palette, alpha, animated, orientation)


def png_note(kind: bytes, content: bytes) -> dict[str, bytes]:
    """What the content of a PNG's chunk says of its orientation, for ``orientation_of``."""
    if kind == b"eXIf":
        return {"exif": content}
    key, _, rest = content.partition(b"\0")
    try:
        if kind == b"iTXt" and key == _PNG_XMP:
            text = rest[2:].split(b"\0", 2)[2]  # behind two flags, a language and a translated key
            return {"xmp": zlib.decompressobj().decompress(text, _MOST_NOTE) if rest[:1] == b"\1" else text}
        if kind in (b"tEXt", b"zTXt") and key == _PNG_RAW_EXIF:
            text = zlib.decompressobj().decompress(rest[1:], _MOST_NOTE) if kind == b"zTXt" else rest
            return {"raw_exif": bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))}
    except (zlib.error, IndexError, ValueError):
        pass
    return {}


def _jpeg_header(data: bytes) -> ImageHeader:
    at, header = 2, None
    notes: dict[str, bytes] = {}
    while True:
        if header is not None and at + 4 > len(data):
            return header  # what decodes it says that it is truncated
        mark, marker, length = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF or marker == 0:
            at = data.find(b"\xff", at + 1)  # every decoder passes over what is no marker
            if at < 0:
                raise RejectedError("bad_image", "the JPEG's header is damaged")
        elif marker == 0xFF:
            at += 1
        elif marker in _JPEG_STANDALONE:
            at += 2
        elif marker == 0xD9 or (marker == 0xDA and header is None):
            raise RejectedError("bad_image", "the JPEG's header is damaged")
        elif marker == 0xDA:
            assert header is not None
            return header._replace(orientation=orientation_of(notes)) if notes else header
        else:
            if marker in _JPEG_FRAMES and header is None:
                depth, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
                if marker not in _JPEG_HUFFMAN_DCT:
                    problem = f"the JPEG is lossless, hierarchical or arithmetic (SOF {marker:#x})"
                    raise RejectedError("bad_image", problem)
                if not (height and width):
                    raise RejectedError("bad_image", "the JPEG's header gives no size")
                header = ImageHeader("jpeg", height, width, channels, depth)
            elif marker == 0xE1:
                if data.startswith(_EXIF, at + 4):
                    notes["exif"] = notes.get("exif", b"") + data[at + 10 : at + 2 + length]
                elif data.startswith(_JPEG_XMP, at + 4):
                    notes["xmp"] = data[at + 4 + len(_JPEG_XMP) : at + 2 + length]
            at += 2 + length


@functools.lru_cache(maxsize=256)
def _jpeg_header_once(beginning: bytes) -> ImageHeader:
    """The header of a JPEG up to its first scan."""
    return _jpeg_header(beginning)


def probe_webp(data: bytes) -> WebpHeader:
    """The header of a WebP. Raises RejectedError ``bad_image`` if ``data`` is no WebP, is damaged or is truncated."""
    try:
        return _webp_header(data)
    except struct.error as error:
        raise RejectedError("bad_image", "the WebP breaks off in its header") from error


def _webp_header(data: bytes) -> WebpHeader:
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise RejectedError("bad_image", f"the image is no WebP: it begins with {data[:12]!r}")
    if end > len(data):
        raise RejectedError("bad_image", f"the WebP is truncated: {len(data):,} of {end:,} bytes are there")
    flags, vp8x_size, at = 0, None, 12
    if data[12:16] == b"VP8X":
        flags, wide, low_height, high_height = struct.unpack_from("<B3x3sBH", data, 20)
        vp8x_size = 1 + low_height + (high_height << 8), 1 + int.from_bytes(wide, "little")
        if flags & _WEBP_ANIMATION:
            return WebpHeader(*vp8x_size, lossy=True, alpha=True, animated=True)
    size: tuple[int, int] | None = None
    lossy, alpha = True, bool(flags & _WEBP_ALPHA)
    notes: dict[str, bytes] = {}
    while size is None or (flags & _WEBP_NOTES and at + 8 <= end):
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
        elif kind in (b"EXIF", b"XMP "):
            notes["exif" if kind == b"EXIF" else "xmp"] = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    if 0 in size or size != (vp8x_size or size):
        raise RejectedError("bad_image", "the WebP's header is damaged")
    return WebpHeader(*size, lossy, alpha, orientation=orientation_of(notes))


def orientation_of(notes: dict[str, bytes]) -> int:
    """The orientation of an image, 1 to 8, by its ``exif``, else its ``raw_exif``, as ImageMagick writes it, else its
    ``xmp``, in Pillow's order; 1 if none says another."""
    found = _exif_orientation(notes.get("exif", notes.get("raw_exif", b"")))
    if found is None and "xmp" in notes:
        match = _XMP_ORIENTATION.search(notes["xmp"])
        found = int(match[1]) if match else None
    return found if found is not None and 1 <= found <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation in a block of EXIF, with or without its ``Exif`` prefix; None if it has none or is damaged."""
    while exif.startswith(_EXIF):
        exif = exif[len(_EXIF) :]
    orientation: int | None = None
    order = _TIFF_ORDERS.get(exif[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, type_, values, where = struct.unpack_from(order + "HHII", exif, entry)
            if tag == _EXIF_ORIENTATION and values:
                value = 1
                if type_ in _EXIF_INTEGERS:
                    format_ = order + _EXIF_INTEGERS[type_]
                    size = values * struct.calcsize(format_)
                    # Values that do not fit the four bytes of an entry lie elsewhere.
                    begin = entry + 8 if size <= 4 else where
                    if begin + size > len(exif):
                        break
                    (value,) = struct.unpack_from(format_, exif, begin)
                orientation = int(value)
    except struct.error:
        pass
    return orientation


# --- pixels ----------------------------------------------------------------------------------------------------


def decode(data: bytes) -> np.ndarray:
    """The pixels of a PNG or JPEG as uint8 RGB (H, W, 3).

    Gray is replicated, a palette is looked up, 16 bits are cut to the upper 8, transparency is composited over white,
    and EXIF orientation is ignored. JPEG is decoded by libjpeg-turbo's accurate integer DCT. Raises RejectedError
    ``bad_image`` for anything damaged, truncated, animated, gray with a transparent colour, CMYK or above 64 million
    pixels.
    """
    pixels = _pixels(data, probe(data))
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def encode(array: np.ndarray, codec: Literal["png", "jpeg"] = "png", quality: int = 95) -> bytes:
    """The bytes of uint8 pixels (H, W), (H, W, 1) or RGB (H, W, 3).

    The same pixels and the same version of OpenCV give the same bytes. PNG is exact; JPEG has ``quality`` from 0 to 100
    and 4:2:0 chroma. Raises ValueError for another shape or dtype.
    """
    if not _are_pixels(array):
        raise ValueError(f"pixels are uint8 (H, W), (H, W, 1) or (H, W, 3), not {array.dtype} {array.shape}")
    return _encode(cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if array.shape[2:] == (3,) else array, codec, quality)


def _encode(array: np.ndarray, codec: Literal["png", "jpeg"], quality: int) -> bytes:
    """``encode`` of gray pixels, or of blue, green and red ones."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, *_JPEG_OPTIONS] if codec == "jpeg" else _PNG_OPTIONS
    done, data = cv2.imencode(".jpg" if codec == "jpeg" else ".png", np.ascontiguousarray(array), options)
    if not done:
        raise ValueError(f"pixels of shape {array.shape} cannot be encoded as {codec}")
    return bytes(data)


def fit(frame: bytes | np.ndarray, spec: ImageSpec) -> EncodedImage:
    """A frame of an episode, stored as ``spec`` says.

    Encoded bytes of the right codec and size, 8 bits deep, gray or RGB, are copied (the same object) if ``check_whole``
    finds no damage. Any other PNG or JPEG, and pixels uint8 (H, W), (H, W, 1) or (H, W, 3),
    are decoded, resized if the size differs, and encoded. Raises RejectedError ``bad_image`` (as ``decode``, and for an
    EXIF orientation other than upright, which would store the frame lying on its side) or ``wrong_shape``; the caller
    adds the field and the step.
    """
    if isinstance(frame, bytes):
        # If a PNG's data follows its header at once, the header says everything, and all frames of a field share it.
        header = _probe_once(frame[:33]) if frame[37:41] == b"IDAT" else probe(frame)
        has_size = (header.height, header.width) == (spec.height, spec.width)
        fits = has_size and spec.codec in (None, header.codec) and header.plain
        if fits and frame.endswith(JPEG_END if header.codec == "jpeg" else _PNG_END):
            check_whole(frame, header)
            return EncodedImage(frame, spec.height, spec.width)
        _check_upright(header)
        pixels = resize(_decoded(frame, header), spec.height, spec.width)
        return EncodedImage(_encode(pixels, spec.codec or "png", spec.quality), spec.height, spec.width)
    if not _are_pixels(frame):
        raise RejectedError(
            "wrong_shape",
            f"the frame is {frame.dtype} {frame.shape}, not uint8 of shape (H, W), (H, W, 1) or (H, W, 3)",
        )
    pixels = resize(frame.reshape(*frame.shape[:2], -1), spec.height, spec.width)
    return EncodedImage(encode(pixels, spec.codec or "png", spec.quality), spec.height, spec.width)


@functools.lru_cache(maxsize=256)
def _probe_once(beginning: bytes) -> ImageHeader:
    """The header of a PNG whose data follows its ``beginning``."""
    return probe(beginning + b"\0\0\0\0IDAT")


def check_whole(data: bytes, header: ImageHeader) -> None:
    """Raises RejectedError ``bad_image`` if a PNG or JPEG is damaged, as far as that shows without decoding it.

    A file whose structure is unusual is decoded.
    """
    if not (jpeg_is_whole(data) if header.codec == "jpeg" else png_is_whole(data)):
        _decoded(data, header)


def _are_pixels(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.size > 0 and array.ndim in (2, 3) and array.shape[2:] in ((), (1,), (3,))


def _pixels(data: bytes, header: ImageHeader) -> np.ndarray:
    """uint8 pixels: (H, W, 1) of a gray image, else RGB (H, W, 3)."""
    pixels = _decoded(data, header)
    return pixels if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _decoded(data: bytes, header: ImageHeader) -> np.ndarray:
    """uint8 pixels: (H, W, 1) of a gray image, else blue, green and red (H, W, 3)."""
    _check_whole(data, header)
    pixels = decode_by_opencv(data, header)
    if header.alpha:
        if pixels.shape[2] != 4:
            raise RejectedError("bad_image", "the PNG is gray with a transparent colour")
        return over_white(pixels)
    return pixels


def decode_unchanged(data: bytes) -> np.ndarray:
    """The values of a PNG or JPEG as they are, uint8 or uint16: (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4).

    Raises RejectedError ``bad_image`` as ``fit`` does.
    """
    header = probe(data)
    _check_upright(header)
    _check_whole(data, header)
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.shape[:2] != (header.height, header.width):
        raise RejectedError("bad_image", f"the {header.codec.upper()} does not decode")
    if values.ndim == 2:
        return values[..., None]
    return cv2.cvtColor(values, cv2.COLOR_BGRA2RGBA if values.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _check_upright(header: ImageHeader) -> None:
    if header.orientation != 1:
        raise RejectedError(
            "bad_image", f"the image has EXIF orientation {header.orientation}: rotate it when it is recorded"
        )


def _check_whole(data: bytes, header: ImageHeader) -> None:
    """Raises RejectedError ``bad_image`` for an image that is too large, animated, truncated or of strange channels."""
    if header.height * header.width > MAX_PIXELS:
        raise RejectedError(
            "bad_image", f"the image has {header.height} x {header.width} pixels, more than {MAX_PIXELS:,}"
        )
    if header.animated:
        raise RejectedError("bad_image", "the PNG is animated")
    if header.codec == "jpeg":
        check_channels(header)
        # OpenCV fills the missing part of a truncated JPEG with gray, without an error. Neither marker can occur inside
        # a scan; before the last scan there may be a thumbnail with its own end marker.
        # The first scan is found sooner than the last, and will do if the end marker is at the end.
        is_whole = _JPEG_SCAN in data if data.endswith(JPEG_END) else data.find(JPEG_END, data.rfind(_JPEG_SCAN)) >= 0
        if not is_whole:
            raise RejectedError("bad_image", "the JPEG is truncated: it has no end marker")
    else:
        png_chunks(data)


def decode_by_opencv(data: bytes, header: ImageHeader | WebpHeader) -> np.ndarray:
    """Pixels (H, W, C) as OpenCV decodes them: gray, or blue, green, red (and alpha), not turned upright.

    Raises RejectedError ``bad_image`` if the file does not decode to the size of its header.
    """
    name, channels = (header.codec.upper(), header.channels) if isinstance(header, ImageHeader) else ("WebP", 3)
    mode = cv2.IMREAD_UNCHANGED if header.alpha else cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise RejectedError("bad_image", f"the {name} does not decode: {error.err}") from error
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        raise RejectedError("bad_image", f"the {name} does not decode")
    return pixels.reshape(header.height, header.width, -1)


def check_channels(header: ImageHeader, known: tuple[int, ...] = (1, 3)) -> None:
    """Raises RejectedError ``bad_image`` if a JPEG has another number of channels, or not 8 bits."""
    if header.channels not in known or header.bit_depth != 8:
        raise RejectedError("bad_image", f"the JPEG has {header.channels} channels of {header.bit_depth} bits")


def over_white(pixels: np.ndarray) -> np.ndarray:
    """Three colours of 8 bits from three colours and alpha of 8 or 16 bits, composited over white and rounded."""
    height, width = pixels.shape[:2]
    result, rows = np.empty((height, width, 3), np.uint8), max(1, _BAND_PIXELS // width)
    for begin in range(0, height, rows):
        band = pixels[begin : begin + rows]
        if band.dtype == np.uint16:
            band = (band >> 8).astype(np.uint8)
        alpha = cv2.merge([cv2.extractChannel(band, 3)] * 3)
        darkness = cv2.bitwise_not(cv2.cvtColor(band, cv2.COLOR_BGRA2BGR))
        # No multiple of 1 / 255 is near a half, so this rounds right in float32 on any machine.
        result[begin : begin + rows] = cv2.bitwise_not(cv2.multiply(darkness, alpha, scale=1 / 255))
    return result


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels (H, W, C) at another size by OpenCV's INTER_AREA; the same array if the size is the same."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return resized.reshape(height, width, pixels.shape[2])
