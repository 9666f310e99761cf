import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from gatokit.schemas.errors import RejectedError
from gatokit.schemas.manifest import ImageSpec
from gatokit.tokenizers import image_codec
from gatokit.tokenizers.image_codec import ImageHeader

RGB = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
SMOOTH = cv2.resize(RGB[:4, :6], (48, 32), interpolation=cv2.INTER_CUBIC)
SPEC = ImageSpec(height=32, width=48)


def pillow(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, kind, **options)
    return out.getvalue()


def pillow_rgb(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def over_white(data: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    return (colour * alpha + 255 * (255 - alpha) + 127) // 255


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x010F] = "maker"
    tags[0x0112] = orientation
    return tags


def rejected(data, spec: ImageSpec | None = None) -> str:
    with pytest.raises(RejectedError) as error:
        image_codec.decode(data) if spec is None else image_codec.fit(data, spec)
    assert error.value.reason in ("bad_image", "wrong_shape")
    return error.value.detail


PNG, JPEG = pillow(RGB, "PNG"), pillow(SMOOTH, "JPEG", quality=90)


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (PNG, ImageHeader("png", 32, 48, 3, 8)),
        (pillow(RGB[..., 0], "PNG"), ImageHeader("png", 32, 48, 1, 8)),
        (pillow(Image.fromarray(RGB[..., 0]).convert("1"), "PNG"), ImageHeader("png", 32, 48, 1, 1)),
        (pillow(Image.fromarray(RGB).quantize(64), "PNG"), ImageHeader("png", 32, 48, 3, 8, palette=True)),
        (pillow(RGB[..., 0].astype(np.uint16), "PNG"), ImageHeader("png", 32, 48, 1, 16)),
        (pillow(np.dstack([RGB, RGB[..., 0]]), "PNG"), ImageHeader("png", 32, 48, 4, 8, alpha=True)),
        (pillow(RGB, "PNG", exif=exif(3)), ImageHeader("png", 32, 48, 3, 8, orientation=3)),
        (JPEG, ImageHeader("jpeg", 32, 48, 3, 8)),
        (pillow(SMOOTH, "JPEG", progressive=True), ImageHeader("jpeg", 32, 48, 3, 8)),
        (pillow(SMOOTH[..., 0], "JPEG"), ImageHeader("jpeg", 32, 48, 1, 8)),
        (pillow(SMOOTH, "JPEG", exif=exif(6)), ImageHeader("jpeg", 32, 48, 3, 8, orientation=6)),
        (pillow(SMOOTH, "JPEG", exif=exif(1)), ImageHeader("jpeg", 32, 48, 3, 8)),
    ],
)
def test_a_header_is_read_without_decoding(data, header):
    assert image_codec.probe(data) == header
    assert image_codec.probe(data[: max(data.find(b"IDAT"), data.find(b"\xff\xda")) + 10]) == header


@pytest.mark.parametrize(
    "data",
    [
        pillow(RGB, "PNG"),
        pillow(RGB[..., 0], "PNG"),
        pillow(Image.fromarray(RGB[..., 0]).convert("1"), "PNG"),
        pillow(Image.fromarray(RGB).quantize(64), "PNG"),
        *[pillow(SMOOTH, "JPEG", quality=90, subsampling=mode) for mode in (0, 1, 2)],
        pillow(SMOOTH, "JPEG", progressive=True),
        pillow(SMOOTH[..., 0], "JPEG"),
    ],
)
def test_pixels_are_those_that_pillow_decodes(data):
    pixels = image_codec.decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, pillow_rgb(data))


@pytest.mark.parametrize(
    "data",
    [
        pillow(Image.fromarray(RGB[..., :2], "LA"), "PNG"),
        pillow(np.dstack([RGB, RGB[..., 0]]), "PNG"),
        pillow(Image.fromarray(RGB).quantize(64), "PNG", transparency=3),
        pillow(RGB, "PNG", transparency=tuple(RGB[0, 0].tolist())),
    ],
)
def test_transparency_is_over_white(data):
    assert np.array_equal(image_codec.decode(data), over_white(data))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_cut_to_the_upper_eight(channels):
    deep = np.random.default_rng(1).integers(0, 65536, (32, 48, channels), dtype=np.uint16)
    data = bytes(cv2.imencode(".png", deep[..., ::-1])[1])
    assert np.array_equal(image_codec.decode(data), np.broadcast_to(deep >> 8, (32, 48, 3)))


def test_orientation_is_ignored_by_decode_and_does_not_fit():
    for data in (pillow(SMOOTH, "JPEG", exif=exif(6)), pillow(SMOOTH, "PNG", exif=exif(6))):
        assert image_codec.decode(data).shape == (32, 48, 3)
        assert rejected(data, SPEC) == "the image has EXIF orientation 6: rotate it when it is recorded"


@pytest.mark.parametrize("data", [PNG, JPEG])
def test_a_truncated_image_is_rejected(data):
    for end in range(0, len(data), 7):
        assert rejected(data[:end])
        assert rejected(data[:end], SPEC)


def test_a_thumbnail_does_not_hide_a_truncated_jpeg():
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(JPEG)) + JPEG
    whole = JPEG[:2] + thumbnail + JPEG[2:]
    assert np.array_equal(image_codec.decode(whole), pillow_rgb(JPEG))
    assert rejected(whole[:-40]) == "the JPEG is truncated: it has no end marker"


def test_a_flipped_bit_in_a_png_is_rejected():
    for at in range(0, len(PNG), 31):
        assert rejected(PNG[:at] + bytes([PNG[at] ^ 4]) + PNG[at + 1 :])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_bomb_is_refused_by_its_header():
    bomb = PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)) + PNG[33:]
    assert rejected(bomb) == "the image has 100000 x 100000 pixels, more than 64,000,000"
    assert rejected(bomb, SPEC) == "the image has 100000 x 100000 pixels, more than 64,000,000"


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "the image is empty"),
        (b"GIF89a" + bytes(20), "the image is neither PNG nor JPEG: it begins with b'GIF89a\\x00\\x00'"),
        (PNG[:20], "the image breaks off in its header"),
        (JPEG[:30], "the image breaks off in its header"),
        (PNG[:33] + chunk(b"acTL", bytes(8)) + PNG[33:], "the PNG is animated"),
        (pillow(RGB[..., 0], "PNG", transparency=7), "the PNG is gray with a transparent colour"),
        (pillow(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "the JPEG has 4 channels of 8 bits"),
        (JPEG.replace(b"\xff\xc0", b"\xff\xc9", 1), "the JPEG is lossless, hierarchical or arithmetic (SOF 0xc9)"),
        (PNG[:33] + chunk(b"IDAT", b"junk") + chunk(b"IEND", b""), "the PNG does not decode"),
    ],
)
def test_what_cannot_be_decoded_says_why(data, detail):
    assert rejected(data).startswith(detail)


@pytest.mark.parametrize("shape", [(32, 48), (32, 48, 1), (32, 48, 3)])
def test_png_is_exact(shape):
    pixels = RGB.reshape(-1)[: np.prod(shape)].reshape(shape)
    data = image_codec.encode(pixels)
    assert image_codec.probe(data) == ImageHeader("png", 32, 48, 3 if shape[-1] == 3 else 1, 8)
    assert np.array_equal(image_codec.decode(data), np.broadcast_to(pixels.reshape(32, 48, -1), (32, 48, 3)))
    assert image_codec.encode(pixels) == data


def test_jpeg_is_as_good_as_its_quality():
    coarse, fine = image_codec.encode(SMOOTH, "jpeg", 20), image_codec.encode(SMOOTH, "jpeg", 95)
    assert image_codec.probe(fine) == ImageHeader("jpeg", 32, 48, 3, 8)
    assert len(coarse) < len(fine)
    assert np.abs(image_codec.decode(fine).astype(int) - SMOOTH).mean() < 3
    assert image_codec.encode(SMOOTH, "jpeg", 95) == fine


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.uint8([1, 2])])
def test_other_arrays_are_no_pixels(pixels):
    with pytest.raises(ValueError, match="pixels are uint8"):
        image_codec.encode(pixels)
    assert rejected(pixels, SPEC).startswith("the frame is ")


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (PNG, None),
        (PNG, "png"),
        (JPEG, None),
        (JPEG, "jpeg"),
        (pillow(RGB[..., 0], "PNG"), None),
        (pillow(SMOOTH[..., 0], "JPEG"), "jpeg"),
    ],
)
def test_what_fits_is_copied(data, wanted):
    fitted = image_codec.fit(data, ImageSpec(height=32, width=48, codec=wanted))
    assert fitted.data is data
    assert (fitted.height, fitted.width) == (32, 48)


@pytest.mark.parametrize(
    "frame",
    [
        pillow(RGB[..., 0].astype(np.uint16) * 257, "PNG"),
        pillow(Image.fromarray(RGB).quantize(64), "PNG"),
        pillow(np.dstack([RGB, RGB[..., 0]]), "PNG"),
        PNG + b"trailing",
        RGB,
        RGB[..., :1],
        RGB[..., 0],
    ],
)
def test_what_does_not_fit_becomes_a_plain_png(frame):
    fitted = image_codec.fit(frame, SPEC)
    header = image_codec.probe(fitted.data)
    assert header.plain
    assert (header.codec, header.height, header.width) == ("png", 32, 48)
    pixels = (
        image_codec.decode(frame) if isinstance(frame, bytes) else np.broadcast_to(frame.reshape(32, 48, -1), RGB.shape)
    )
    assert np.array_equal(image_codec.decode(fitted.data), pixels)


@pytest.mark.parametrize("frame", [PNG, JPEG, RGB, RGB[..., 0], pillow(RGB[..., 0], "PNG")])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 32), (64, 80)])
def test_another_size_is_resized_by_area(frame, height, width):
    pixels = image_codec.decode(frame) if isinstance(frame, bytes) else frame
    expected = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
    fitted = image_codec.fit(frame, ImageSpec(height=height, width=width))
    assert (fitted.height, fitted.width) == (height, width)
    assert np.array_equal(image_codec.decode(fitted.data), np.broadcast_to(expected, (height, width, 3)))
    assert image_codec.fit(frame, ImageSpec(height=height, width=width)).data == fitted.data


def test_another_codec_is_encoded_anew():
    assert np.array_equal(
        image_codec.decode(image_codec.fit(JPEG, ImageSpec(height=32, width=48, codec="png")).data),
        image_codec.decode(JPEG),
    )
    fitted = image_codec.fit(PNG, ImageSpec(height=32, width=48, codec="jpeg", quality=80))
    assert fitted.data == image_codec.encode(RGB, "jpeg", 80)
