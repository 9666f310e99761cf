"""A document ↔ its token sequence: images as patches, text as ids, in reading order (Gato, section 2.1).

An image file is stored as the dataset's ``ImageRule`` says: it is copied if it fits, else decoded, resized and encoded.
OpenCV decodes PNG, three-channel and gray JPEG, and WebP. GIF, BMP, TIFF and CMYK JPEG are rare: Pillow decodes them,
and is imported when the first of them comes. Whatever the bytes are, no other error than RejectedError is raised.

Legend: T tokens of one document; H, W pixels of an image. Pixels are uint8, gray (H, W, 1) or blue, green, red
(H, W, 3): OpenCV's order, so that no pixel is moved between its decoder and its encoder.
"""

import bisect
import functools
import io
import re
import zlib
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from gatokit.schemas.errors import RejectedError
from gatokit.schemas.manifest import ImageRule
from gatokit.schemas.tokens import (
    IMAGE_ID,
    NO_POSITION,
    PATCH,
    Document,
    EncodedImage,
    PlacedImage,
    TokenKind,
    TokenSequence,
)
from gatokit.tokenizers import image_codec
from gatokit.tokenizers.image_codec import ImageHeader
from gatokit.tokenizers.image_structure import JPEG_MARKER, JPEG_SIGNATURE, PNG_SIGNATURE, chunks_agree, png_chunks
from gatokit.tokenizers.text import TextTokenizer

_TEXT, _IMAGE = int(TokenKind.TEXT), int(TokenKind.IMAGE)
_SHARED_LENGTH = 1 << 12
"""Constant arrays up to this length are views of these; making new ones would double the time of a caption."""
_IMAGE_IDS = np.full(_SHARED_LENGTH, IMAGE_ID, np.uint16)
_IMAGE_KINDS, _TEXT_KINDS = np.full(_SHARED_LENGTH, _IMAGE, np.uint8), np.full(_SHARED_LENGTH, _TEXT, np.uint8)
_NO_POSITIONS = np.full(_SHARED_LENGTH, NO_POSITION, np.uint16)
_NO_POSITIONS.flags.writeable = False
_NO_STEPS = np.empty(0, np.uint32)
_MOST_SCANS = 100
"""Decoding takes time in proportion to scans times pixels; encoders write about ten scans."""
_MOST_BESIDES_PIXELS = 1 << 16
"""Bytes by which a copied file may exceed its pixels: enough for profiles and comments, not for a hidden gigabyte."""
_UNCHECKED_DEFLATE = 1 << 21
"""Compressed bytes of a PNG that are decoded without a check; at most 2 GiB can come out of them."""
END_MARKERS = re.compile(r"<\|endoftext\|>|END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED")
"""Where a document ends, as public corpora write it in a text of several: GPT-2's marker, and that of OBELICS."""
_BY_PILLOW = {"a GIF": "GIF", "a BMP": "BMP", "a TIFF": "TIFF"}
_BEGINNINGS = {
    PNG_SIGNATURE: "a PNG",
    JPEG_SIGNATURE: "a JPEG",
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


# --- tokens ----------------------------------------------------------------------------------------------------


class DocumentTokenizer:
    """Turns documents into tokens and back. These have no separators, no steps and no local positions."""

    def __init__(self, text: TextTokenizer, end_of_document: bool) -> None:
        """With ``end_of_document`` the vocabulary's end piece, if it has one, ends each document, and replaces each
        of ``END_MARKERS``."""
        self._text = text
        self._end = np.array([text.end_id], np.uint16) if end_of_document and text.end_id is not None else None

    def encode(self, documents: Sequence[Document]) -> list[TokenSequence | RejectedError]:
        """The tokens of each document, or why it has none: ``empty`` if nothing is left of it, ``too_large`` as in
        ``TextTokenizer.encode``.

        All texts go to SentencePiece in one call. Raises UnicodeEncodeError if a text holds lone surrogates.
        """
        divided = [self._divided(document) for document in documents]
        texts = [part for document in divided for part in document if isinstance(part, str)]
        try:
            ids = iter(self._text.encode_batch(texts))
        except RejectedError as error:
            return [error] if len(documents) == 1 else [self.encode([document])[0] for document in documents]
        return [
            self._sequence([next(ids) if isinstance(part, str) else part for part in document]) for document in divided
        ]

    def _divided(self, document: Document) -> "list[str | EncodedImage | np.ndarray]":
        """The parts of a document, its texts divided at markers, with an end piece in place of each."""
        parts: list[str | EncodedImage | np.ndarray] = []
        for part in document:
            if self._end is None or not isinstance(part, str) or not END_MARKERS.search(part):
                parts.append(part)
                continue
            for number, section in enumerate(END_MARKERS.split(part)):
                if number and parts and parts[-1] is not self._end:
                    parts.append(self._end)
                if section.strip():
                    parts.append(section)
        return parts

    def _sequence(self, parts: list[np.ndarray | EncodedImage]) -> TokenSequence | RejectedError:
        sizes = [patch_count(part) if isinstance(part, EncodedImage) else len(part) for part in parts]
        if not any(size for part, size in zip(parts, sizes, strict=True) if part is not self._end):
            return RejectedError("empty", "the vocabulary's normalisation leaves nothing of its text")
        if self._end is not None and parts[-1] is not self._end:
            parts.append(self._end)
            sizes.append(1)
        begin, images, tokens, kinds = 0, [], [], []
        for part, size in zip(parts, sizes, strict=True):
            if isinstance(part, EncodedImage):
                images.append(PlacedImage(begin, part))
                tokens.append(_filled(_IMAGE_IDS, size))
                kinds.append(_filled(_IMAGE_KINDS, size))
            else:
                tokens.append(part)
                kinds.append(_filled(_TEXT_KINDS, size))
            begin += size
        positions = _filled(_NO_POSITIONS, begin)
        return TokenSequence(np.concatenate(tokens), np.concatenate(kinds), positions, _NO_STEPS, images)

    def decode(self, sequence: TokenSequence) -> list[str | EncodedImage]:
        """The texts and images of a document, or of consecutive records of it; end pieces divide texts.

        Raises ValueError if kinds, ids and images contradict each other.
        """
        tokens, kinds = sequence.tokens, sequence.kinds
        if not np.isin(kinds, (_TEXT, _IMAGE)).all():
            raise ValueError("the sequence of a document has tokens that are neither text nor image")
        parts: list[str | EncodedImage] = []
        at = 0
        for token, image in (*sequence.images, (len(tokens), None)):
            if token > at:
                if (kinds[at:token] != _TEXT).any():
                    raise ValueError("the sequence has patches of no image")
                parts += self._texts(tokens[at:token])
            if image is not None:
                before, at = at, token + patch_count(image)
                fits = before <= token and at <= len(tokens)
                if not fits or (kinds[token:at] != _IMAGE).any() or (tokens[token:at] != IMAGE_ID).any():
                    raise ValueError(f"the image at token {token} has other tokens than its patches")
                parts.append(image)
        return [part for part in parts if part != ""]

    def _texts(self, ids: np.ndarray) -> list[str]:
        """The texts between end pieces."""
        ends = np.flatnonzero(ids == self._text.end_id) if self._text.end_id is not None else ()
        begins = [0, *(end + 1 for end in ends)]
        return [self._text.decode(ids[begin:end]) for begin, end in zip(begins, [*ends, len(ids)], strict=True)]


def _filled(shared: np.ndarray, length: int) -> np.ndarray:
    """An array (length,) of the value that ``shared`` holds; not to be written to."""
    return shared[:length] if length <= len(shared) else np.full(length, shared[0])


def patch_count(image: EncodedImage) -> int:
    """Tokens of an image."""
    return image.height // PATCH * (image.width // PATCH)


# --- images ----------------------------------------------------------------------------------------------------


def prepare(data: bytes, rule: ImageRule) -> EncodedImage:
    """An image file, stored as ``rule`` says.

    A JPEG or PNG of the right size and codec, 8 bits deep, gray or RGB, upright and complete, is copied (the same
    object) if nothing in its structure is damaged (see ``image_structure``). Everything else is decoded, turned
    upright, composited over white, resized and encoded. Raises RejectedError ``image_too_large``,
    ``image_animated`` or ``bad_image``.
    """
    codec: Literal["png", "jpeg"]
    if data[:3] == JPEG_SIGNATURE or data[:8] == PNG_SIGNATURE:
        header = image_codec.probe(data)
        _check_size(header.height, header.width, header.codec.upper())
        if _fits(header, rule) and _is_complete(data, header):
            return EncodedImage(data, header.height, header.width)
        pixels = _jpeg(data, header) if header.codec == "jpeg" else _png(data, header)
        codec = header.codec
    elif (kind := describe(data)) == "a WebP":
        pixels, codec = _webp(data)
    elif kind in _BY_PILLOW:
        pixels, codec = _by_pillow(data, _BY_PILLOW[kind]), "png"
    else:
        raise RejectedError("bad_image", f"the file is {kind}")
    tall, wide = pixels.shape[:2]
    height, width = target_size(tall, wide, rule)
    # If one side grows, INTER_AREA interpolates between neighbours and skips the pixels between them: a side that
    # shrinks to less than half does so first.
    if height > tall and 2 * width < wide:
        pixels = image_codec.resize(pixels, tall, width)
    elif width > wide and 2 * height < tall:
        pixels = image_codec.resize(pixels, height, wide)
    pixels = image_codec.resize(pixels, height, width)
    # ``encode`` takes RGB and reverses it: the view costs nothing, and neither does reversing it again.
    colours = pixels[..., ::-1] if pixels.shape[2] == 3 else pixels
    return EncodedImage(image_codec.encode(colours, rule.codec or codec, rule.quality), height, width)


def is_copied(data: bytes, rule: ImageRule) -> bool:
    """Whether ``prepare`` copies the file if it is complete."""
    try:
        return _fits(image_codec.probe(data), rule)
    except RejectedError:
        return False


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
    text = data[:40].decode("latin-1")
    if text.isascii() and all(character.isprintable() or character in "\t\r\n" for character in text):
        return f"text that begins {text!r}"
    return f"of no known kind: it begins with {data[:12]!r}"


def _check_size(height: int, width: int, name: str) -> None:
    if height * width > image_codec.MAX_PIXELS:
        raise RejectedError(
            "image_too_large", f"the {name} has {height:,} x {width:,} pixels, more than {image_codec.MAX_PIXELS:,}"
        )


def _fits(header: ImageHeader, rule: ImageRule) -> bool:
    size = header.height, header.width
    return header.plain and rule.codec in (None, header.codec) and target_size(*size, rule) == size


def _is_complete(data: bytes, header: ImageHeader) -> bool:
    """Whether a file of the right form is complete, with nothing behind its end; RejectedError if it is damaged."""
    if len(data) > header.height * header.width * header.channels + _MOST_BESIDES_PIXELS:
        return False
    if header.codec == "jpeg":
        if not data.endswith(image_codec.JPEG_END):
            return False
        image_codec.check_whole(data, header)
        return True
    chunks = png_chunks(data)
    if chunks[-1][2] != len(data) or _orientation(data, chunks) != 1:
        return False
    if not chunks_agree(data, chunks):
        image_codec.decode(data)  # raises if no decoder reads it
    return True


def _jpeg(data: bytes, header: ImageHeader) -> np.ndarray:
    image_codec.check_channels(header, (1, 3, 4))
    # The markers up to the image's own end: a thumbnail, or a video behind the image, has end markers too.
    scans, at, marker = 0, 2, 0
    while marker != 0xD9:
        match = JPEG_MARKER.search(data, at)
        if match is None:
            raise RejectedError("bad_image", "the JPEG is truncated: it has no end marker")
        marker, at = data[match.end() - 1], match.end()
        scans += marker == 0xDA
        if scans > _MOST_SCANS:
            raise RejectedError("bad_image", f"the JPEG has more than {_MOST_SCANS} scans")
        at += int.from_bytes(data[at : at + 2], "big")
    # A block of 64 pixels takes at least one bit. libjpeg invents missing blocks.
    if header.height * header.width > 8 * 64 * len(data):
        raise RejectedError(
            "bad_image", f"the JPEG cannot hold {header.height:,} x {header.width:,} pixels in {len(data):,} bytes"
        )
    pixels = _by_pillow(data, "JPEG") if header.channels == 4 else image_codec.decode_by_opencv(data, header)
    return _upright(pixels, header.orientation)


def _png(data: bytes, header: ImageHeader) -> np.ndarray:
    if header.animated:
        raise RejectedError("image_animated", "the PNG is animated")
    chunks = png_chunks(data)
    _check_deflate(data, header, chunks)
    # Only critical chunks and transparency are decoded: libpng would inflate megabytes of comments.
    needed = [
        data[begin:end]
        for kind, begin, end in chunks
        if not kind[0] & 0x20 or (kind == b"tRNS" and header.palette and header.alpha)
    ]
    pixels = image_codec.decode_by_opencv(PNG_SIGNATURE + b"".join(needed), header)
    if header.alpha and header.channels in (1, 3) and not header.palette:
        colour = next(data[begin + 8 : end - 4] for kind, begin, end in chunks if kind == b"tRNS")
        pixels = _white_key(pixels, colour, header.bit_depth)
    elif header.alpha:
        if pixels.shape[2] != 4:
            raise RejectedError("bad_image", "the PNG's transparency is damaged")
        pixels = image_codec.over_white(pixels)[..., : 1 if header.channels == 2 else 3]
    return _upright(np.ascontiguousarray(pixels), _orientation(data, chunks))


def _orientation(data: bytes, chunks: list[tuple[bytes, int, int]]) -> int:
    """The orientation by EXIF or XMP, which may come after the pixels."""
    notes: dict[str, bytes] = {}
    for kind, begin, end in chunks:
        notes |= image_codec.png_note(kind, data[begin + 8 : end - 4]) if kind != b"IDAT" else {}
    return image_codec.orientation_of(notes)


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
    header = image_codec.probe_webp(data)
    if header.animated:
        raise RejectedError("image_animated", "the WebP is animated")
    _check_size(header.height, header.width, "WebP")
    pixels = image_codec.decode_by_opencv(data, header)
    if pixels.shape[2] == 4:
        pixels = image_codec.over_white(pixels)
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
                pixels = image_codec.over_white(np.asarray(image.convert("RGBA")))
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
