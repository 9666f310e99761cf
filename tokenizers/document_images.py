"""A corpus's picture → the picture that a build stores: copied where it fits, else decoded, resized and encoded.

OpenCV decodes PNG, three-channel and gray JPEG, and WebP. GIF, BMP, TIFF and CMYK JPEG are rare: Pillow decodes
them, and is imported when the first of them comes. Whatever the bytes are, nothing but RejectedError comes out.

Legend: H, W pixels of an image. Pixels are uint8, gray (H, W, 1) or blue, green, red (H, W, 3): OpenCV's order, so
that no pixel is moved between its decoder and its encoder.
"""

import bisect
import functools
import io
import re
import struct
import zlib
from typing import Literal

import cv2
import numpy as np

from gatokit.schemas.document import ImageRule
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import PATCH, EncodedImage
from gatokit.tokenizers.image_codec import MAX_PIXELS, encode, resize
from gatokit.tokenizers.image_header import PNG_SIGNATURE, ImageHeader, describe, exif_orientation, probe, probe_webp

__all__ = ["describe", "is_copied", "prepare", "target_size"]

_JPEG_END = b"\xff\xd9"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""The markers that do not stand inside a scan."""
_MOST_SCANS = 100
"""Decoding takes time proportional to scans times pixels; encoders write about ten."""
_MOST_BESIDES_PIXELS = 1 << 16
"""Bytes that a copied file may have more than its pixels: profiles and comments, but no hidden gigabyte."""
_UNCHECKED_DEFLATE = 1 << 21
"""Compressed bytes of a PNG that are not inflated beforehand: as much as 2 GiB could come out of them."""
_BY_PILLOW = {"a GIF": "GIF", "a BMP": "BMP", "a TIFF": "TIFF"}


def target_size(height: int, width: int, rule: ImageRule) -> tuple[int, int]:
    """Height and width of a stored picture, multiples of 16, from those of the upright source.

    With ``max_patches`` each side becomes the nearest multiple of 16, where these have no more patches. A larger
    picture gets the grid with the most patches among those that are no larger and keep its shape: whose columns are
    the nearest to it for their rows, or whose rows for their columns.
    """
    if rule.size is not None:
        return rule.size
    assert rule.max_patches is not None
    return _grid(height, width, rule.max_patches)


def prepare(data: bytes, rule: ImageRule) -> EncodedImage:
    """An image file as ``rule`` wants it stored.

    A JPEG or PNG of the right size and codec, 8 bits deep, gray or RGB, upright and whole, is passed on as it is
    (the same object; the checksums of a PNG are checked, the body of a JPEG is not decoded). Everything else is
    decoded, turned upright, laid over white, resized and encoded. Raises RejectedError ``image_too_large``,
    ``image_animated`` or ``bad_image``.
    """
    if data[:3] == b"\xff\xd8\xff" or data[:8] == PNG_SIGNATURE:
        header = probe(data)
        _check_size(header.height, header.width, header.codec.upper())
        if _fits(header, rule) and _whole(data, header):
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
    """Whether ``prepare`` passes the file on as it is."""
    try:
        header = probe(data)
        return _fits(header, rule) and _whole(data, header)
    except RejectedError:
        return False


def _fits(header: ImageHeader, rule: ImageRule) -> bool:
    size = header.height, header.width
    return header.plain and rule.codec in (None, header.codec) and target_size(*size, rule) == size


@functools.lru_cache(maxsize=4096)
def _grid(height: int, width: int, patches: int) -> tuple[int, int]:
    rows, columns = max(1, (height + PATCH // 2) // PATCH), max(1, (width + PATCH // 2) // PATCH)
    if rows * columns > patches:
        by_rows = _largest(height, width, rows, columns, patches)
        by_columns = _largest(width, height, columns, rows, patches)[::-1]
        rows, columns = max(by_rows, by_columns, key=lambda grid: (grid[0] * grid[1], grid[0]))
    return PATCH * rows, PATCH * columns


def _largest(side: int, other: int, most: int, most_other: int, patches: int) -> tuple[int, int]:
    """The largest number of patches along ``side`` with the nearest number along ``other``; (0, 0) if none fits."""

    def nearest(number: int) -> int:
        # In ratio: n + 1 and not n above √(n (n + 1)), which is no fraction, so that nothing is as near to both.
        exact, n = number * other, number * other // side
        n += exact * exact > n * (n + 1) * side * side
        return min(max(n, 1), most_other)

    # Both grow together, and so does their product.
    number = bisect.bisect_right(range(1, min(most, patches) + 1), patches, key=lambda n: n * nearest(n))
    return (number, nearest(number)) if number else (0, 0)


def _check_size(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise RejectedError(
            "image_too_large", f"the {name} has {height:,} x {width:,} pixels, more than {MAX_PIXELS:,}"
        )


def _whole(data: bytes, header: ImageHeader) -> bool:
    """Whether a file of the right form is complete and nothing else; RejectedError where a PNG is damaged."""
    if len(data) > header.height * header.width * header.channels + _MOST_BESIDES_PIXELS:
        return False
    if header.codec == "jpeg":
        # An end marker never stands inside a scan: a file that breaks off does not end with one.
        return data.endswith(_JPEG_END)
    chunks = _chunks(data)
    return chunks[-1][2] == len(data) and _orientation(data, chunks) == 1


def _jpeg(data: bytes, header: ImageHeader) -> np.ndarray:
    if header.channels not in (1, 3, 4) or header.bit_depth != 8:
        raise RejectedError("bad_image", f"the JPEG has {header.channels} channels of {header.bit_depth} bits")
    _check_scans(data)
    # A block of 64 pixels takes one bit at least. libjpeg makes up what is missing.
    if header.height * header.width > 8 * 64 * len(data):
        raise RejectedError(
            "bad_image", f"the JPEG cannot hold {header.height:,} x {header.width:,} pixels in {len(data):,} bytes"
        )
    if header.channels == 4:
        pixels = _by_pillow(data, "JPEG")
    else:
        mode = cv2.IMREAD_GRAYSCALE if header.channels == 1 else cv2.IMREAD_COLOR
        pixels = _by_opencv(data, mode, (header.height, header.width), "JPEG")
    return _upright(pixels, header.orientation)


def _check_scans(data: bytes) -> None:
    """Walks a JPEG's markers up to its own end: a thumbnail, or a film behind the picture, has others."""
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
    chunks = _chunks(data)
    _check_deflate(data, header, chunks)
    # What is neither critical nor about transparency is left out: libpng would inflate megabytes of comments.
    key = header.alpha and header.channels in (1, 3) and not header.palette
    needed = [
        (begin, end)
        for kind, begin, end in chunks
        if not kind[0] & 0x20 or (kind == b"tRNS" and header.palette and header.alpha)
    ]
    bare = data if len(needed) == len(chunks) else PNG_SIGNATURE + b"".join(data[begin:end] for begin, end in needed)
    mode = cv2.IMREAD_UNCHANGED if header.alpha else cv2.IMREAD_GRAYSCALE if header.channels == 1 else cv2.IMREAD_COLOR
    pixels = _by_opencv(bare, mode, (header.height, header.width), "PNG")
    if key:
        colour = next(data[begin + 8 : end - 4] for kind, begin, end in chunks if kind == b"tRNS")
        pixels = _white_key(pixels, colour, header.bit_depth)
    elif header.alpha:
        if pixels.shape[2] != 4:
            raise RejectedError("bad_image", "the PNG's transparency is damaged")
        pixels = _over_white(pixels)[..., : 1 if header.channels == 2 else 3]
    return _upright(np.ascontiguousarray(pixels), _orientation(data, chunks))


def _chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """Kind, begin and end of a PNG's chunks up to IEND, each of which matches its checksum."""
    view, at, chunks = memoryview(data), len(PNG_SIGNATURE), []
    while True:
        try:
            length, kind = struct.unpack_from(">I4s", data, at)
            end = at + 12 + length
            (checksum,) = struct.unpack_from(">I", data, end - 4)
        except struct.error as error:
            raise RejectedError("bad_image", "the PNG is truncated") from error
        if zlib.crc32(view[at + 4 : end - 4]) != checksum:
            raise RejectedError("bad_image", f"the PNG's {kind.decode('latin-1')!r} chunk does not match its checksum")
        chunks.append((kind, at, end))
        if kind == b"IEND":
            return chunks
        at = end


def _orientation(data: bytes, chunks: list[tuple[bytes, int, int]]) -> int:
    """EXIF's orientation, which may stand behind the pixels."""
    return next((exif_orientation(data[begin + 8 : end - 4]) for kind, begin, end in chunks if kind == b"eXIf"), 1)


def _check_deflate(data: bytes, header: ImageHeader, chunks: list[tuple[bytes, int, int]]) -> None:
    """Refuses a large PNG whose data inflates to far more than its pixels: libpng would inflate it all."""
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
    """Gray or RGB pixels cut to 8 bits, and white where they have the transparent colour of a tRNS chunk."""
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
    pixels = _by_opencv(data, mode, (header.height, header.width), "WebP")
    if pixels.shape[2] == 4:
        pixels = _over_white(pixels)
    return _upright(pixels, header.orientation), "jpeg" if header.lossy else "png"


def _by_opencv(data: bytes, mode: int, size: tuple[int, int], name: str) -> np.ndarray:
    """Pixels (H, W, C) as OpenCV decodes them, not turned."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise RejectedError("bad_image", f"the {name} does not decode: {error.err}") from error
    if pixels is None or pixels.shape[:2] != size:
        raise RejectedError("bad_image", f"the {name} does not decode")
    return pixels.reshape(*size, -1)


def _by_pillow(data: bytes, name: str) -> np.ndarray:
    """Pixels as Pillow decodes them, a TIFF turned upright."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=[name]) as image:
            _check_size(image.height, image.width, name)
            if name != "JPEG" and getattr(image, "is_animated", False):
                raise RejectedError("image_animated", f"the {name} has more than one image")
            # Strips that a TIFF leaves out would be black.
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
                pixels = _over_white(np.asarray(image.convert("RGBA")))
            else:
                pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except RejectedError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedError("image_too_large", f"the {name} has too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        # Its message holds an address in memory, which no two runs have in common.
        raise RejectedError("bad_image", f"the {name}'s header is damaged") from error
    except Exception as error:
        # A damaged file can make a parser raise anything.
        raise RejectedError("bad_image", f"the {name} does not decode: {error}") from error
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels[..., None]


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """Three colours of 8 bits from three colours and alpha of 8 or 16 bits, composited over white and rounded."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    alpha = cv2.merge([cv2.extractChannel(pixels, 3)] * 3)
    darkness = cv2.bitwise_not(cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR))
    # No multiple of 1 / 255 is near a half, so this rounds right in float32 on any machine.
    return cv2.bitwise_not(cv2.multiply(darkness, alpha, scale=1 / 255))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as EXIF's ``orientation`` wants them shown."""
    if orientation == 1:
        return pixels
    channels = pixels.shape[2]
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    # Around both axes, the vertical one (left and right change places), or the horizontal one.
    axes = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
    if orientation in axes:
        pixels = cv2.flip(pixels, axes[orientation])
    return pixels.reshape(*pixels.shape[:2], channels)


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """``codec.resize``, in two steps where one side grows and the other shrinks to less than half.

    INTER_AREA interpolates between neighbours as soon as one side grows, and would skip the pixels between.
    """
    tall, wide = pixels.shape[:2]
    if height > tall and 2 * width < wide:
        pixels = resize(pixels, tall, width)
    elif width > wide and 2 * height < tall:
        pixels = resize(pixels, height, wide)
    return resize(pixels, height, width)
