"""Encoded images ↔ pixels: the one place that knows OpenCV.

Legend: H, W pixels of an image.
"""

import functools
import struct
import zlib
from typing import Literal

import cv2
import numpy as np

from gatokit.schemas.episode import ImageSpec
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.image_header import PNG_SIGNATURE, ImageHeader, probe

__all__ = ["MAX_PIXELS", "ImageHeader", "decode", "encode", "fit", "probe"]

MAX_PIXELS = 64_000_000
"""Larger images are refused by their header, before anything is decoded."""

_PNG_END = b"\x00\x00\x00\x00IEND\xae\x42\x60\x82"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
# Spelt out, so that the bytes do not depend on OpenCV's defaults.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
_JPEG_OPTIONS = [
    cv2.IMWRITE_JPEG_PROGRESSIVE,
    0,
    cv2.IMWRITE_JPEG_OPTIMIZE,
    0,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
]


def decode(data: bytes) -> np.ndarray:
    """The pixels of a PNG or JPEG as uint8 RGB (H, W, 3).

    Gray is replicated, a palette looked up, 16 bits cut to the upper 8, transparency composited over white, and
    EXIF orientation ignored. JPEG is decoded by libjpeg-turbo's accurate integer DCT. Raises RejectedError
    ``bad_image`` for anything damaged, truncated, animated, gray with a transparent colour, CMYK or above 64 million
    pixels.
    """
    pixels = _pixels(data, probe(data))
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def encode(array: np.ndarray, codec: Literal["png", "jpeg"] = "png", quality: int = 95) -> bytes:
    """The bytes of uint8 pixels (H, W), (H, W, 1) or RGB (H, W, 3); the same for the same pixels and OpenCV.

    PNG is exact; JPEG has ``quality`` from 0 to 100 and 4:2:0 chroma. ValueError for another shape or dtype.
    """
    channels = _channels(array)
    if channels is None:
        raise ValueError(f"pixels are uint8 (H, W), (H, W, 1) or (H, W, 3), not {array.dtype} {array.shape}")
    ordered = array[..., ::-1] if channels == 3 else array
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, *_JPEG_OPTIONS] if codec == "jpeg" else _PNG_OPTIONS
    done, data = cv2.imencode(".jpg" if codec == "jpeg" else ".png", np.ascontiguousarray(ordered), options)
    if not done:
        raise ValueError(f"pixels of shape {array.shape} cannot be encoded as {codec}")
    return bytes(data)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels (H, W, C) at another size by OpenCV's INTER_AREA; the same array where the size is the same."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return resized.reshape(height, width, pixels.shape[2])


def fit(frame: bytes | np.ndarray, spec: ImageSpec) -> EncodedImage:
    """A frame as ``spec`` wants it stored.

    Encoded bytes of the right codec and size, 8 bits deep, gray or RGB, are passed on as they are (the same
    object, not decoded, so damage inside them is not seen). Any other PNG or JPEG, and pixels uint8 (H, W),
    (H, W, 1) or (H, W, 3), are decoded, resized where the size differs, and encoded. Raises RejectedError
    ``bad_image`` (as ``decode``, and for an EXIF orientation other than upright, which would make the stored
    frame lie on its side) or ``wrong_shape``; the caller knows the field and step and adds them.
    """
    if isinstance(frame, bytes):
        height, width, codec = spec.height, spec.width, spec.codec
        # Of a PNG whose data follows its header at once, the header alone says everything, and frames share it.
        if frame[37:41] == b"IDAT" and _plain_png(frame[:33], height, width, codec) and frame.endswith(_PNG_END):
            return EncodedImage(frame, height, width)
        header = probe(frame)
        if _is_wanted(header, height, width, codec) and frame.endswith(
            _PNG_END if header.codec == "png" else _JPEG_END
        ):
            return EncodedImage(frame, height, width)
        if header.orientation != 1:
            raise RejectedError(
                "bad_image", f"the image has EXIF orientation {header.orientation}: rotate it when it is recorded"
            )
        pixels = _pixels(frame, header)
    else:
        channels = _channels(frame)
        if channels is None:
            raise RejectedError(
                "wrong_shape",
                f"the frame is {frame.dtype} {frame.shape}, not uint8 of shape (H, W), (H, W, 1) or (H, W, 3)",
            )
        pixels = frame.reshape(*frame.shape[:2], channels)
    pixels = resize(pixels, spec.height, spec.width)
    return EncodedImage(encode(pixels, spec.codec or "png", spec.quality), spec.height, spec.width)


@functools.lru_cache(maxsize=256)
def _plain_png(header: bytes, height: int, width: int, codec: str | None) -> bool:
    return _is_wanted(probe(header + b"\0\0\0\0IDAT"), height, width, codec)


def _is_wanted(header: ImageHeader, height: int, width: int, codec: str | None) -> bool:
    """Whether an image is stored as it is."""
    return (header.height, header.width) == (height, width) and codec in (None, header.codec) and header.plain


def _channels(array: np.ndarray) -> int | None:
    """1 or 3 for an array of pixels, None for anything else."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        return None
    channels = 1 if array.ndim == 2 else array.shape[2]
    return channels if channels in (1, 3) else None


def _pixels(data: bytes, header: ImageHeader) -> np.ndarray:
    """uint8 (H, W, 1) of a gray image, else RGB (H, W, 3)."""
    if header.height * header.width > MAX_PIXELS:
        raise RejectedError(
            "bad_image", f"the image has {header.height} x {header.width} pixels, more than {MAX_PIXELS:,}"
        )
    if header.animated:
        raise RejectedError("bad_image", "the PNG is animated")
    if header.codec == "jpeg":
        if header.channels not in (1, 3) or header.bit_depth != 8:
            raise RejectedError("bad_image", f"the JPEG has {header.channels} channels of {header.bit_depth} bits")
        # OpenCV fills the missing part of a truncated JPEG with gray and says nothing. Neither marker can stand
        # inside a scan; before the last one there may be a thumbnail with an end of its own.
        if data.find(_JPEG_END, data.rfind(_JPEG_SCAN)) < 0:
            raise RejectedError("bad_image", "the JPEG is truncated: it has no end marker")
    else:
        _check_png(data)
    gray = header.channels == 1 and not header.alpha
    mode = cv2.IMREAD_UNCHANGED if header.alpha else cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise RejectedError("bad_image", f"the {header.codec.upper()} does not decode: {error.err}") from error
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        raise RejectedError("bad_image", f"the {header.codec.upper()} does not decode")
    if gray:
        return pixels.reshape(header.height, header.width, 1)
    if header.alpha:
        if pixels.ndim != 3 or pixels.shape[2] != 4:
            raise RejectedError("bad_image", "the PNG is gray with a transparent colour")
        return _over_white(pixels)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """RGB of blue, green, red, alpha (H, W, 4), composited over white."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    colour, alpha = pixels[..., 2::-1].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _check_png(data: bytes) -> None:
    """Walks a PNG's chunks: OpenCV returns what it could read of a truncated or damaged one."""
    at = len(PNG_SIGNATURE)
    while True:
        try:
            length, kind = struct.unpack_from(">I4s", data, at)
            (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        except struct.error as error:
            raise RejectedError("bad_image", "the PNG is truncated") from error
        if zlib.crc32(data[at + 4 : at + 8 + length]) != checksum:
            raise RejectedError("bad_image", f"the PNG's {kind.decode('latin-1')} chunk does not match its checksum")
        if kind == b"IEND":
            return
        at += 12 + length
