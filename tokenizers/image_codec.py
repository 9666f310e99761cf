"""Encoded images ↔ pixels, by OpenCV.

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

MAX_PIXELS = 64_000_000
"""Larger images are rejected by their header, before anything is decoded."""

_PNG_END = b"\x00\x00\x00\x00IEND\xae\x42\x60\x82"
_JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"
# All options are given, so that the bytes do not depend on OpenCV's defaults.
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
    and 4:2:0 chroma. ValueError for another shape or dtype.
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
    """Pixels (H, W, C) at another size by OpenCV's INTER_AREA; the same array if the size is the same."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return resized.reshape(height, width, pixels.shape[2])


def fit(frame: bytes | np.ndarray, spec: ImageSpec) -> EncodedImage:
    """A frame of an episode, stored as ``spec`` says.

    Encoded bytes of the right codec and size, 8 bits deep, gray or RGB, are copied (the same object, which is not
    decoded, so damage inside it is not seen). Any other PNG or JPEG, and pixels uint8 (H, W), (H, W, 1) or (H, W, 3),
    are decoded, resized if the size differs, and encoded. Raises RejectedError ``bad_image`` (as ``decode``, and for an
    EXIF orientation other than upright, which would store the frame lying on its side) or ``wrong_shape``; the caller
    adds the field and the step.
    """
    if isinstance(frame, bytes):
        height, width, codec = spec.height, spec.width, spec.codec
        # If a PNG's data follows its header at once, the header says everything, and all frames of a field share it.
        if frame[37:41] == b"IDAT" and _plain_png(frame[:33], height, width, codec) and frame.endswith(_PNG_END):
            return EncodedImage(frame, height, width)
        header = probe(frame)
        if _is_wanted(header, height, width, codec) and frame.endswith(_PNG_END if header.codec == "png" else JPEG_END):
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
    """Whether an image is copied as it is."""
    return (header.height, header.width) == (height, width) and codec in (None, header.codec) and header.plain


def _channels(array: np.ndarray) -> int | None:
    """1 or 3 for an array of pixels, else None."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        return None
    channels = 1 if array.ndim == 2 else array.shape[2]
    return channels if channels in (1, 3) else None


def _pixels(data: bytes, header: ImageHeader) -> np.ndarray:
    """uint8 pixels: (H, W, 1) of a gray image, else RGB (H, W, 3)."""
    if header.height * header.width > MAX_PIXELS:
        raise RejectedError(
            "bad_image", f"the image has {header.height} x {header.width} pixels, more than {MAX_PIXELS:,}"
        )
    if header.animated:
        raise RejectedError("bad_image", "the PNG is animated")
    if header.codec == "jpeg":
        if header.channels not in (1, 3) or header.bit_depth != 8:
            raise RejectedError("bad_image", f"the JPEG has {header.channels} channels of {header.bit_depth} bits")
        # OpenCV fills the missing part of a truncated JPEG with gray, without an error. Neither marker can occur inside
        # a scan; before the last scan there may be a thumbnail with its own end marker.
        if data.find(JPEG_END, data.rfind(_JPEG_SCAN)) < 0:
            raise RejectedError("bad_image", "the JPEG is truncated: it has no end marker")
    else:
        png_chunks(data)
    gray = header.channels == 1 and not header.alpha
    mode = cv2.IMREAD_UNCHANGED if header.alpha else cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    pixels = decode_by_opencv(data, mode, (header.height, header.width), header.codec.upper())
    if gray:
        return pixels
    if header.alpha:
        if pixels.shape[2] != 4:
            raise RejectedError("bad_image", "the PNG is gray with a transparent colour")
        pixels = over_white(pixels)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def decode_by_opencv(data: bytes, mode: int, size: tuple[int, int], name: str) -> np.ndarray:
    """Pixels (H, W, C) as OpenCV decodes them: blue, green, red, not turned upright.

    Raises RejectedError ``bad_image`` if the ``name``, such as PNG, does not decode to ``size`` (H, W).
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise RejectedError("bad_image", f"the {name} does not decode: {error.err}") from error
    if pixels is None or pixels.shape[:2] != size:
        raise RejectedError("bad_image", f"the {name} does not decode")
    return pixels.reshape(*size, -1)


def over_white(pixels: np.ndarray) -> np.ndarray:
    """Three colours of 8 bits from three colours and alpha of 8 or 16 bits, composited over white and rounded."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    alpha = cv2.merge([cv2.extractChannel(pixels, 3)] * 3)
    darkness = cv2.bitwise_not(cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR))
    # No multiple of 1 / 255 is near a half, so this rounds right in float32 on any machine.
    return cv2.bitwise_not(cv2.multiply(darkness, alpha, scale=1 / 255))


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
