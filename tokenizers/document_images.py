"""An image file of a document → the image that a build stores: copied if it fits, else decoded, resized and encoded.

OpenCV decodes PNG, three-channel and gray JPEG, and WebP. GIF, BMP, TIFF and CMYK JPEG are rare: Pillow decodes them,
and is imported when the first of them comes. Whatever the bytes are, no other error than RejectedError is raised.

Legend: H, W pixels of an image. Pixels are uint8, gray (H, W, 1) or blue, green, red (H, W, 3): OpenCV's order, so
that no pixel is moved between its decoder and its encoder.
"""

import bisect
import functools
import io
import re
import zlib
from typing import Literal

import cv2
import numpy as np

from gatokit.schemas.document import ImageRule
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import PATCH, EncodedImage
from gatokit.tokenizers.image_codec import (
    JPEG_END,
    MAX_PIXELS,
    decode_by_opencv,
    encode,
    over_white,
    png_chunks,
    resize,
)
from gatokit.tokenizers.image_header import PNG_SIGNATURE, ImageHeader, describe, exif_orientation, probe, probe_webp

_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""The markers that cannot occur inside a scan."""
_MOST_SCANS = 100
"""Decoding takes time in proportion to scans times pixels; encoders write about ten scans."""
_MOST_BESIDES_PIXELS = 1 << 16
"""Bytes by which a copied file may exceed its pixels: enough for profiles and comments, not for a hidden gigabyte."""
_UNCHECKED_DEFLATE = 1 << 21
"""Compressed bytes of a PNG that are decoded without a check; at most 2 GiB can come out of them."""
_BY_PILLOW = {"a GIF": "GIF", "a BMP": "BMP", "a TIFF": "TIFF"}


def target_size(height: int, width: int, rule: ImageRule) -> tuple[int, int]:
    """Height and width of a stored image, multiples of 16, from those of the upright source.

    With ``max_patches`` each side becomes the nearest multiple of 16, if these have no more patches. A larger image
    gets the largest grid that keeps its shape: of the grids with the best number of columns for their rows, or of rows
    for their columns, the one with the most patches.
    """
    if rule.size is not None:
        return rule.size
    assert rule.max_patches is not None
    return _grid(height, width, rule.max_patches)


def prepare(data: bytes, rule: ImageRule) -> EncodedImage:
    """An image file, stored as ``rule`` says.

    A JPEG or PNG of the right size and codec, 8 bits deep, gray or RGB, upright and complete, is copied (the same
    object; the checksums of a PNG are checked, the body of a JPEG is not decoded). Everything else is decoded, turned
    upright, composited over white, resized and encoded. Raises RejectedError ``image_too_large``,
    ``image_animated`` or ``bad_image``.
    """
    if data[:3] == b"\xff\xd8\xff" or data[:8] == PNG_SIGNATURE:
        header = probe(data)
        _check_size(header.height, header.width, header.codec.upper())
        if _fits(header, rule) and _is_complete(data, header):
            return EncodedImage(data, header.height, header.width)
        pixels = _jpeg(data, header) if header.codec == "jpeg" else _png(data, header)
        codec: Literal["png", "jpeg"] = header.codec
    elif (kind := describe(data)) == "a WebP":
        pixels, codec = _webp(data)
    elif kind in _BY_PILLOW:
        pixels, codec = _by_pillow(data, _BY_PILLOW[kind]), "png"
    else:
        raise RejectedError("bad_image", f"the file is {kind}")
    height, width = target_size(pixels.shape[0], pixels.shape[1], rule)
    pixels = _resize(pixels, height, width)
    # ``encode`` takes RGB and reverses it: the view costs nothing, and neither does reversing it again.
    colours = pixels[..., ::-1] if pixels.shape[2] == 3 else pixels
    return EncodedImage(encode(colours, rule.codec or codec, rule.quality), height, width)


def is_copied(data: bytes, rule: ImageRule) -> bool:
    """Whether ``prepare`` copies the file."""
    try:
        header = probe(data)
        return _fits(header, rule) and _is_complete(data, header)
    except RejectedError:
        return False


def _fits(header: ImageHeader, rule: ImageRule) -> bool:
    size = header.height, header.width
    return header.plain and rule.codec in (None, header.codec) and target_size(*size, rule) == size


@functools.lru_cache(maxsize=4096)
def _grid(height: int, width: int, patches: int) -> tuple[int, int]:
    rows, columns = max(1, (height + PATCH // 2) // PATCH), max(1, (width + PATCH // 2) // PATCH)
    if rows * columns > patches:
        by_rows = _largest_grid(height, width, rows, columns, patches)
        by_columns = _largest_grid(width, height, columns, rows, patches)[::-1]
        rows, columns = max(by_rows, by_columns, key=lambda grid: (grid[0] * grid[1], grid[0]))
    return PATCH * rows, PATCH * columns


def _largest_grid(side: int, other: int, most: int, most_other: int, patches: int) -> tuple[int, int]:
    """The largest number of patches along ``side``, with the nearest number along ``other``; (0, 0) if none fits."""

    def nearest(number: int) -> int:
        # Nearest in ratio: n + 1 instead of n above √(n (n + 1)), which is irrational, so that there are no ties.
        exact, n = number * other, number * other // side
        n += exact * exact > n * (n + 1) * side * side
        return min(max(n, 1), most_other)

    # Both numbers grow together, and so does their product.
    number = bisect.bisect_right(range(1, min(most, patches) + 1), patches, key=lambda n: n * nearest(n))
    return (number, nearest(number)) if number else (0, 0)


def _check_size(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise RejectedError(
            "image_too_large", f"the {name} has {height:,} x {width:,} pixels, more than {MAX_PIXELS:,}"
        )


def _is_complete(data: bytes, header: ImageHeader) -> bool:
    """Whether a file of the right form is complete, with nothing behind its end; RejectedError if a PNG is damaged."""
    if len(data) > header.height * header.width * header.channels + _MOST_BESIDES_PIXELS:
        return False
    if header.codec == "jpeg":
        # An end marker never occurs inside a scan, so a truncated file does not end with one.
        return data.endswith(JPEG_END)
    chunks = png_chunks(data)
    return chunks[-1][2] == len(data) and _orientation(data, chunks) == 1


def _jpeg(data: bytes, header: ImageHeader) -> np.ndarray:
    if header.channels not in (1, 3, 4) or header.bit_depth != 8:
        raise RejectedError("bad_image", f"the JPEG has {header.channels} channels of {header.bit_depth} bits")
    _check_scans(data)
    # A block of 64 pixels takes at least one bit. libjpeg invents missing blocks.
    if header.height * header.width > 8 * 64 * len(data):
        raise RejectedError(
            "bad_image", f"the JPEG cannot hold {header.height:,} x {header.width:,} pixels in {len(data):,} bytes"
        )
    if header.channels == 4:
        pixels = _by_pillow(data, "JPEG")
    else:
        mode = cv2.IMREAD_GRAYSCALE if header.channels == 1 else cv2.IMREAD_COLOR
        pixels = decode_by_opencv(data, mode, (header.height, header.width), "JPEG")
    return _upright(pixels, header.orientation)


def _check_scans(data: bytes) -> None:
    """Walks a JPEG's markers up to its own end; a thumbnail, or a video behind the image, has end markers too."""
    scans, at = 0, 2
    while match := _JPEG_MARKER.search(data, at):
        marker, at = data[match.end() - 1], match.end()
        if marker == 0xD9:
            return
        scans += marker == 0xDA
        if scans > _MOST_SCANS:
            raise RejectedError("bad_image", f"the JPEG has more than {_MOST_SCANS} scans")
        at += int.from_bytes(data[at : at + 2], "big")
    raise RejectedError("bad_image", "the JPEG is truncated: it has no end marker")


def _png(data: bytes, header: ImageHeader) -> np.ndarray:
    if header.animated:
        raise RejectedError("image_animated", "the PNG is animated")
    chunks = png_chunks(data)
    _check_deflate(data, header, chunks)
    # Only critical chunks and transparency are decoded: libpng would inflate megabytes of comments.
    key = header.alpha and header.channels in (1, 3) and not header.palette
    needed = [
        (begin, end)
        for kind, begin, end in chunks
        if not kind[0] & 0x20 or (kind == b"tRNS" and header.palette and header.alpha)
    ]
    bare = data if len(needed) == len(chunks) else PNG_SIGNATURE + b"".join(data[begin:end] for begin, end in needed)
    mode = cv2.IMREAD_UNCHANGED if header.alpha else cv2.IMREAD_GRAYSCALE if header.channels == 1 else cv2.IMREAD_COLOR
    pixels = decode_by_opencv(bare, mode, (header.height, header.width), "PNG")
    if key:
        colour = next(data[begin + 8 : end - 4] for kind, begin, end in chunks if kind == b"tRNS")
        pixels = _white_key(pixels, colour, header.bit_depth)
    elif header.alpha:
        if pixels.shape[2] != 4:
            raise RejectedError("bad_image", "the PNG's transparency is damaged")
        pixels = over_white(pixels)[..., : 1 if header.channels == 2 else 3]
    return _upright(np.ascontiguousarray(pixels), _orientation(data, chunks))


def _orientation(data: bytes, chunks: list[tuple[bytes, int, int]]) -> int:
    """EXIF's orientation, which may come after the pixels."""
    return next((exif_orientation(data[begin + 8 : end - 4]) for kind, begin, end in chunks if kind == b"eXIf"), 1)


def _check_deflate(data: bytes, header: ImageHeader, chunks: list[tuple[bytes, int, int]]) -> None:
    """Rejects a large PNG whose data inflates to far more than its pixels: libpng would inflate all of it."""
    parts = [(begin + 8, end - 4) for kind, begin, end in chunks if kind == b"IDAT"]
    if sum(end - begin for begin, end in parts) <= _UNCHECKED_DEFLATE:
        return
    left = 2 * header.height * (1 + (header.width * header.channels * header.bit_depth + 7) // 8) + (1 << 16)
    inflater, view = zlib.decompressobj(), memoryview(data)
    try:
        for begin, end in parts:
            piece: bytes | memoryview = view[begin:end]
            while len(piece):
                left -= len(inflater.decompress(piece, 1 << 20))
                piece = inflater.unconsumed_tail
                if left < 0:
                    raise RejectedError("bad_image", "the PNG holds far more data than its pixels")
    except zlib.error as error:
        raise RejectedError("bad_image", f"the PNG does not decode: {error}") from error


def _white_key(pixels: np.ndarray, transparent: bytes, depth: int) -> np.ndarray:
    """Gray or RGB pixels cut to 8 bits, white where they have the transparent colour of a tRNS chunk."""
    if len(transparent) != 2 * pixels.shape[2]:
        raise RejectedError("bad_image", "the PNG's transparency is damaged")
    colour = np.frombuffer(transparent, ">u2")[::-1] & ((1 << depth) - 1)
    if depth < 8:
        colour = colour * (255 // ((1 << depth) - 1))
    clear = (pixels == colour.astype(pixels.dtype)).all(axis=2)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    pixels[clear] = 255
    return pixels


def _webp(data: bytes) -> tuple[np.ndarray, Literal["png", "jpeg"]]:
    header = probe_webp(data)
    if header.animated:
        raise RejectedError("image_animated", "the WebP is animated")
    _check_size(header.height, header.width, "WebP")
    mode = cv2.IMREAD_UNCHANGED if header.alpha else cv2.IMREAD_COLOR
    pixels = decode_by_opencv(data, mode, (header.height, header.width), "WebP")
    if pixels.shape[2] == 4:
        pixels = over_white(pixels)
    return _upright(pixels, header.orientation), "jpeg" if header.lossy else "png"


def _by_pillow(data: bytes, name: str) -> np.ndarray:
    """Pixels as Pillow decodes them, a TIFF turned upright."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=[name]) as image:
            _check_size(image.height, image.width, name)
            if name != "JPEG" and getattr(image, "is_animated", False):
                raise RejectedError("image_animated", f"the {name} has more than one image")
            # Strips that are missing in a TIFF would become black.
            boxes = [tile.extents or (0, 0, 0, 0) for tile in image.tile]
            covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
            if name == "TIFF" and covered < image.width * image.height:
                raise RejectedError("bad_image", "the TIFF does not hold all of its pixels")
            image.load()
            if image.mode.startswith("I;16"):
                pixels = (np.asarray(image) >> 8).astype(np.uint8)
            elif image.mode in ("F", "I", "LAB", "HSV"):
                raise RejectedError("bad_image", f"the {name} has pixels of mode {image.mode}")
            elif image.has_transparency_data:
                pixels = over_white(np.asarray(image.convert("RGBA")))
            else:
                pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except RejectedError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedError("image_too_large", f"the {name} has too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        # Its message holds an address in memory, which differs from run to run.
        raise RejectedError("bad_image", f"the {name}'s header is damaged") from error
    except Exception as error:
        # A damaged file can make a parser raise anything.
        raise RejectedError("bad_image", f"the {name} does not decode: {error}") from error
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels[..., None]


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels turned as EXIF's ``orientation`` says."""
    if orientation == 1:
        return pixels
    channels = pixels.shape[2]
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    # -1 flips both axes, 1 exchanges left and right, 0 exchanges top and bottom.
    axes = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
    if orientation in axes:
        pixels = cv2.flip(pixels, axes[orientation])
    return pixels.reshape(*pixels.shape[:2], channels)


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """``image_codec.resize``, in two steps if one side grows and the other shrinks to less than half.

    INTER_AREA interpolates between neighbours as soon as one side grows, and would skip the pixels between them.
    """
    tall, wide = pixels.shape[:2]
    if height > tall and 2 * width < wide:
        pixels = resize(pixels, tall, width)
    elif width > wide and 2 * height < tall:
        pixels = resize(pixels, height, wide)
    return resize(pixels, height, width)
