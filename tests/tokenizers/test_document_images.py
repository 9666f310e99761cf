import io
import struct
import zlib
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import ValidationError

from gatokit.schemas.config import DocumentImages
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.index import BAD_REASONS
from gatokit.schemas.manifest import ImageRule
from gatokit.tokenizers import image_codec
from gatokit.tokenizers.document import describe, prepare, target_size
from gatokit.tokenizers.image_codec import PNG_SIGNATURE, WebpHeader, probe_webp

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (32, 48, 3), dtype=np.uint8)
SMOOTH = cv2.resize(RGB[:4, :6], (48, 32), interpolation=cv2.INTER_CUBIC)
ALPHA = cv2.resize(RGB[..., 0], (48, 32))
RGBA = np.dstack([RGB, ALPHA])
SAME, SMALL = ImageRule(size=(32, 48)), ImageRule(size=(16, 32))


def pillow(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x010F] = "maker"
    tags[0x0112] = orientation
    return tags


def over_white(rgba: np.ndarray) -> np.ndarray:
    colour, alpha = rgba[..., :3].astype(int), rgba[..., 3:].astype(int)
    return np.round((colour * alpha + 255 * (255 - alpha)) / 255).astype(np.uint8)


def shown(data: bytes) -> np.ndarray:
    """What a viewer shows, by Pillow: upright, over white, 8 bits; gray stays (H, W)."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        return (np.asarray(image) >> 8).astype(np.uint8)
    if image.has_transparency_data:
        pixels = over_white(np.asarray(image.convert("RGBA")))
        # Pillow opens gray and alpha of 16 bits as RGBA.
        return pixels[..., 0] if image.mode == "LA" or data[24:26] == b"\x10\x04" else pixels
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def stored(pixels: np.ndarray, rule: ImageRule, kind: str = "png") -> bytes:
    """Pixels resized and encoded by the libraries themselves."""
    height, width = target_size(*pixels.shape[:2], rule)
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return image_codec.encode(np.ascontiguousarray(pixels), rule.codec or kind, rule.quality)


def rejected(data: bytes, rule: ImageRule = SAME) -> tuple[str, str]:
    with pytest.raises(RejectedError) as error:
        prepare(data, rule)
    assert error.value.reason in BAD_REASONS
    return error.value.reason, error.value.detail


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: np.ndarray, depth: int, colour: int, *before: bytes, size=(32, 48), interlaced=False, after=b"") -> bytes:
    """A PNG of packed scanlines, or of interlaced whole pixels (H, W, bytes)."""
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        lines = [line for y, x, dy, dx in passes for line in rows[y::dy, x::dx]]
    else:
        lines = list(rows)
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, interlaced)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    return PNG_SIGNATURE + b"".join([chunk(b"IHDR", header), *before, chunk(b"IDAT", data), after, chunk(b"IEND", b"")])


DEEP = RANDOM.integers(0, 65536, (32, 48, 4), dtype=np.uint16)
CMYK = Image.fromarray(cv2.resize(RGBA[:4, :6], (48, 32), interpolation=cv2.INTER_CUBIC), "CMYK")

PNGS = {
    "rgb": pillow(RGB, "PNG"),
    "gray": pillow(RGB[..., 0], "PNG"),
    "one bit": pillow(Image.fromarray(RGB[..., 0]).convert("1"), "PNG"),
    "palette": pillow(Image.fromarray(RGB).quantize(64), "PNG"),
    "palette of two": pillow(Image.fromarray(RGB).quantize(2), "PNG", bits=1),
    "transparent palette": pillow(Image.fromarray(RGB).quantize(64), "PNG", transparency=bytes(range(0, 256, 4))),
    "alpha": pillow(RGBA, "PNG"),
    "gray and alpha": pillow(Image.fromarray(RGBA[..., 2:], "LA"), "PNG"),
    "16 bit gray": pillow(DEEP[..., 0], "PNG"),
    "16 bit rgb": png(DEEP[..., :3].astype(">u2"), 16, 2),
    "16 bit alpha": png(DEEP.astype(">u2"), 16, 6),
    "16 bit gray and alpha": png(DEEP[..., 1:3].astype(">u2"), 16, 4),
    "interlaced rgb": png(RGB, 8, 2, interlaced=True),
    "interlaced alpha": png(RGBA, 8, 6, interlaced=True),
    "interlaced 16 bit gray": png(DEEP[..., :1].astype(">u2"), 16, 0, interlaced=True),
    "gamma, profile, text": pillow(RGB, "PNG", icc_profile=bytes(1000), dpi=(72, 72)),
}
JPEGS = {
    "rgb": pillow(SMOOTH, "JPEG", quality=90),
    "4:4:4": pillow(SMOOTH, "JPEG", subsampling=0),
    "4:2:2": pillow(SMOOTH, "JPEG", subsampling=1),
    "gray": pillow(SMOOTH[..., 0], "JPEG"),
    "progressive": pillow(SMOOTH, "JPEG", progressive=True),
    "no ycbcr": pillow(SMOOTH, "JPEG", keep_rgb=True),
    "restarts": pillow(SMOOTH, "JPEG", restart_marker_blocks=2),
    "profile": pillow(SMOOTH, "JPEG", icc_profile=bytes(90_000)),
}
WEBPS = {
    "lossy": pillow(SMOOTH, "WEBP", quality=80),
    "lossy alpha": pillow(RGBA, "WEBP", quality=80),
    "lossless": pillow(RGB, "WEBP", lossless=True),
    "lossless alpha": pillow(RGBA, "WEBP", lossless=True),
    "exif": pillow(SMOOTH, "WEBP", exif=exif(6)),
}
OTHERS = {
    "gif": pillow(Image.fromarray(RGB).quantize(64), "GIF"),
    "transparent gif": pillow(Image.fromarray(RGB).quantize(64), "GIF", transparency=3),
    "gray gif": pillow(RGB[..., 0], "GIF"),
    "bmp": pillow(RGB, "BMP"),
    "gray bmp": pillow(RGB[..., 0], "BMP"),
    "palette bmp": pillow(Image.fromarray(RGB).quantize(64), "BMP"),
    "alpha bmp": pillow(RGBA, "BMP"),
    "tiff": pillow(RGB, "TIFF"),
    "lzw tiff": pillow(RGB, "TIFF", compression="tiff_lzw"),
    "jpeg tiff": pillow(SMOOTH, "TIFF", compression="jpeg"),
    "fax tiff": pillow(Image.fromarray(RGB[..., 0]).convert("1"), "TIFF", compression="group4"),
    "alpha tiff": pillow(RGBA, "TIFF"),
    "16 bit tiff": pillow(DEEP[..., 0], "TIFF"),
}
ANIMATED = {
    kind: pillow(RGB, kind, save_all=True, append_images=[Image.fromarray(255 - RGB)])
    for kind in ("PNG", "GIF", "WEBP", "TIFF")
}


def each(*groups: dict[str, bytes]):
    files = [pytest.param(data, id=name) for group in groups for name, data in group.items()]
    return pytest.mark.parametrize("data", files)


@pytest.mark.parametrize(
    ("height", "width", "patches", "target"),
    [
        (64, 64, 64, (64, 64)),
        (128, 128, 64, (128, 128)),
        (480, 640, 64, (112, 144)),
        (640, 480, 64, (144, 112)),
        (427, 640, 64, (96, 144)),
        (3000, 3000, 64, (128, 128)),
        (3000, 3000, 63, (112, 112)),
        (177, 190, 64, (112, 128)),
        (100, 101, 64, (96, 96)),
        (1000, 10, 64, (1008, 16)),
        (2000, 10, 64, (1024, 16)),
        (10, 2000, 64, (16, 1024)),
        (1, 1, 64, (16, 16)),
        (23, 24, 64, (16, 32)),
        (500, 500, 1, (16, 16)),
    ],
)
def test_an_image_keeps_its_shape_and_is_not_enlarged(height, width, patches, target):
    assert target_size(height, width, ImageRule(max_patches=patches)) == target


def test_a_size_is_every_images_size():
    assert target_size(77, 1000, SMALL) == (16, 32)


def brute_force(height: int, width: int, patches: int) -> set[tuple[int, int]]:
    """Every grid that the rule allows, found by trying them all."""
    rows, columns = max(1, (height + 8) // 16), max(1, (width + 8) // 16)
    if rows * columns <= patches:
        return {(16 * rows, 16 * columns)}

    def distance(row: int, column: int) -> Fraction:
        shape = Fraction(row * width, column * height)
        return max(shape, 1 / shape)

    grids = {(row, min(range(1, columns + 1), key=lambda c: distance(row, c))) for row in range(1, rows + 1)}
    grids |= {(min(range(1, rows + 1), key=lambda r: distance(r, column)), column) for column in range(1, columns + 1)}
    grids = {grid for grid in grids if grid[0] * grid[1] <= patches}
    most = max(row * column for row, column in grids)
    return {(16 * row, 16 * column) for row, column in grids if row * column == most}


@settings(max_examples=150)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300))
def test_the_grid_is_the_one_that_trying_all_finds(height, width, patches):
    rule = ImageRule(max_patches=patches)
    target = target_size(height, width, rule)
    assert target in brute_force(height, width, patches)
    assert target_size(width, height, rule) == target[::-1] or height == width


@given(st.integers(1, 60_000), st.integers(1, 60_000), st.integers(1, 4096))
def test_a_grid_never_has_more_patches_or_enlarges(height, width, patches):
    rule = ImageRule(max_patches=patches)
    tall, wide = target_size(height, width, rule)
    assert tall % 16 == wide % 16 == 0
    assert tall * wide <= 256 * patches
    assert tall <= max(16, height + 8)
    assert wide <= max(16, width + 8)
    assert target_size(tall, wide, rule) == (tall, wide)


def test_a_rule_is_complete():
    assert DocumentImages().rule() == ImageRule(max_patches=64)
    assert DocumentImages(max_patches=9, codec="jpeg", quality=80).rule().model_dump(mode="json") == {
        "size": None,
        "max_patches": 9,
        "codec": "jpeg",
        "quality": 80,
        "resize": "area",
    }
    rule = DocumentImages(size=(32, 48)).rule()
    assert rule == SAME
    assert ImageRule.model_validate_json(rule.model_dump_json()) == rule


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"size": (32, 48), "max_patches": 64},
        {"size": (30, 48)},
        {"max_patches": 0},
        {"size": (16, 16), "quality": 0},
    ],
)
def test_an_unsound_rule_is_refused(values):
    with pytest.raises(ValidationError):
        ImageRule(**values)


@pytest.mark.parametrize("wanted", ["png", "jpeg", None])
@pytest.mark.parametrize("rule", [SAME, ImageRule(max_patches=6), ImageRule(max_patches=64)])
def test_what_fits_is_copied(rule, wanted):
    rule = rule.model_copy(update={"codec": wanted})
    files = [PNGS["rgb"], PNGS["gray"], PNGS["gamma, profile, text"]] if wanted != "jpeg" else []
    files += [data for name, data in JPEGS.items() if name != "profile"] if wanted != "png" else []
    for data in files:
        image = prepare(data, rule)
        assert image.data is data
        assert (image.height, image.width) == (32, 48)


@each(PNGS, JPEGS, WEBPS, OTHERS)
def test_what_is_stored_is_plain_and_fits(data):
    for rule in (SAME, SMALL, ImageRule(max_patches=64), ImageRule(max_patches=2, codec="jpeg")):
        image = prepare(data, rule)
        header = image_codec.probe(image.data)
        assert header.plain
        assert (header.height, header.width) == (image.height, image.width)
        assert rule.codec in (None, header.codec)
        assert prepare(image.data, rule).data is image.data
        assert image_codec.decode(image.data).shape == (image.height, image.width, 3)


def test_much_besides_the_pixels_is_not_copied():
    note = chunk(b"tEXt", b"note\0" + b"x" * 70_000)
    video = b"\0\0\0\x18ftypmp42" + RANDOM.bytes(200_000)
    for data, clean in [
        (PNGS["rgb"][:33] + note + PNGS["rgb"][33:], PNGS["rgb"]),
        (PNGS["rgb"] + b"behind it", PNGS["rgb"]),
        (JPEGS["rgb"] + video, JPEGS["rgb"]),
        (JPEGS["rgb"] + JPEGS["gray"][:-2], JPEGS["rgb"]),
        (JPEGS["profile"], JPEGS["profile"]),
    ]:
        image = prepare(data, SAME)
        assert image.data == stored(shown(clean), SAME, image_codec.probe(data).codec)


@each(PNGS, OTHERS)
@pytest.mark.parametrize("rule", [SMALL, ImageRule(size=(32, 48), codec="jpeg"), ImageRule(max_patches=4)])
def test_lossless_images_are_those_that_pillow_shows(data, rule):
    assert prepare(data, rule).data == stored(shown(data), rule)


@each({name: PNGS[name] for name in PNGS if name not in ("rgb", "gray", "gamma, profile, text")}, OTHERS)
def test_lossless_images_keep_every_pixel(data):
    pixels = shown(data)
    decoded = image_codec.decode(prepare(data, SAME).data)
    assert np.array_equal(decoded, np.broadcast_to(pixels.reshape(32, 48, -1), (32, 48, 3)))


@each(JPEGS, {name: WEBPS[name] for name in ("lossy", "lossy alpha", "exif")})
@pytest.mark.parametrize("rule", [SMALL, ImageRule(size=(32, 48), codec="png"), ImageRule(max_patches=4, quality=70)])
def test_lossy_images_are_those_that_pillow_shows(data, rule):
    assert prepare(data, rule).data == stored(shown(data), rule, "jpeg")


@each({name: WEBPS[name] for name in ("lossless", "lossless alpha")})
def test_lossless_webp_becomes_png(data):
    assert prepare(data, SMALL).data == stored(shown(data), SMALL)


@each({name: OTHERS[name] for name in ("gif", "gray gif", "bmp", "gray bmp", "palette bmp", "tiff", "lzw tiff")})
def test_opencv_shows_the_same_as_pillow(data):
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(image_codec.decode(prepare(data, SAME).data), pixels)


def test_ink_is_inverted_as_adobe_stores_it():
    ink = np.asarray(CMYK).astype(float)
    expected = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    plain = pillow(CMYK, "JPEG", quality=100)
    # Pillow writes no YCCK: the same four planes, luma and chroma of the inks first, under the other transform.
    luma = Image.fromarray(np.asarray(CMYK)[..., :3]).convert("YCbCr")
    planes = np.dstack([255 - np.asarray(luma), np.asarray(CMYK)[..., 3]])
    data = pillow(Image.fromarray(planes, "CMYK"), "JPEG", quality=100)
    adobe = data.index(b"Adobe") + 11
    assert data[adobe] == 0
    turned = data[:adobe] + b"\2" + data[adobe + 1 :]
    for ycck in (plain, turned):
        image = prepare(ycck, ImageRule(size=(32, 48), codec="png"))
        assert np.abs(image_codec.decode(image.data) - expected).max() < 8
        assert np.abs(image_codec.decode(image.data) - expected).mean() < 1.5
        assert image.data == stored(shown(ycck), SAME)
        assert image_codec.probe(prepare(ycck, SAME).data).codec == "jpeg"


def test_every_colour_under_every_alpha_is_rounded_right():
    colour, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgba = np.dstack([colour, 255 - colour, colour // 2, alpha])
    image = prepare(pillow(rgba, "PNG"), ImageRule(size=(256, 256)))
    assert np.array_equal(image_codec.decode(image.data), over_white(rgba))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_gray_is_white(depth):
    samples = np.arange(32 * 48).reshape(32, 48) % (1 << depth) * (97 if depth == 16 else 1)
    clear = int(samples[3, 5])
    bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1
    data = png(np.packbits(bits.reshape(32, -1), axis=1), depth, 0, chunk(b"tRNS", struct.pack(">H", clear)))
    gray = samples >> 8 if depth == 16 else samples * 255 // ((1 << depth) - 1)
    expected = np.where(samples == clear, 255, gray).astype(np.uint8)
    assert prepare(data, SAME).data == image_codec.encode(expected)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white(depth):
    samples = DEEP[..., :3] if depth == 16 else RGB
    other = samples.copy()
    # Only the whole sample counts, all of its bits and all of its channels.
    other[0, 0] = samples[3, 5]
    other[0, 1] = samples[3, 5] ^ np.array([0, 0, 1], samples.dtype)
    data = png(other.astype(f">u{depth // 8}"), depth, 2, chunk(b"tRNS", struct.pack(">3H", *samples[3, 5].tolist())))
    expected = (other >> (depth - 8)).astype(np.uint8)
    expected[3, 5] = expected[0, 0] = 255
    assert prepare(data, SAME).data == image_codec.encode(expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_stored_upright(orientation):
    behind = chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
    files = {
        "png": pillow(RGB, "PNG", exif=exif(orientation)),
        "gray png": pillow(RGB[..., 0], "PNG", exif=exif(orientation)),
        "png, behind its pixels": png(RGB, 8, 2, after=behind),
        "jpeg": pillow(SMOOTH, "JPEG", exif=exif(orientation)),
        "webp": pillow(RGB, "WEBP", lossless=True, exif=exif(orientation)),
        "tiff": pillow(RGB, "TIFF", exif=exif(orientation)),
        "cmyk": pillow(CMYK, "JPEG", exif=exif(orientation)),
    }
    rule = ImageRule(max_patches=64, codec="png")
    for name, data in files.items():
        pixels = shown(data)
        image = prepare(data, rule)
        assert pixels.shape[:2] == ((32, 48) if orientation < 5 else (48, 32)), name
        assert (image.height, image.width) == pixels.shape[:2], name
        assert (image.data is data) == (orientation == 1 and "png" in name), name
        decoded = image_codec.decode(image.data)
        assert np.array_equal(decoded, np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), decoded.shape)), name
        assert image_codec.probe(image.data).orientation == 1, name


def test_one_side_grows_without_skipping_pixels_of_the_other():
    wide = RANDOM.integers(0, 256, (10, 1000, 3), dtype=np.uint8)
    shrunk = cv2.resize(wide, (128, 10), interpolation=cv2.INTER_AREA)
    for pixels, narrow, turn in [(wide, shrunk, 0), (np.rot90(wide), np.rot90(shrunk), 1)]:
        image = prepare(pillow(np.ascontiguousarray(pixels), "PNG"), ImageRule(size=(128, 128)))
        expected = cv2.resize(np.ascontiguousarray(narrow), (128, 128), interpolation=cv2.INTER_AREA)
        assert np.array_equal(image_codec.decode(image.data), expected), turn


@each(PNGS, JPEGS, WEBPS, OTHERS)
def test_the_same_image_gives_the_same_bytes(data):
    rule = ImageRule(max_patches=4)
    assert prepare(bytes(bytearray(data)), rule).data == prepare(data, rule).data


@each(ANIMATED)
def test_an_animation_is_rejected(data):
    reason, detail = rejected(data)
    assert reason == "image_animated"
    assert detail.endswith(("is animated", "has more than one image"))


@each(PNGS, JPEGS, WEBPS)
def test_every_truncation_is_rejected(data):
    for end in range(0, len(data), max(1, len(data) // 60)):
        assert rejected(data[:end])[0] == "bad_image"
        assert rejected(data[:end], SMALL)[0] == "bad_image"
    assert rejected(data[:-1])[0] == "bad_image"


@each({**OTHERS, "cmyk": pillow(CMYK, "JPEG")})
def test_a_truncated_file_of_another_format_is_rejected(data):
    for end in (0, 1, 5, 20, len(data) // 3, len(data) // 2):
        assert rejected(data[:end])[0] == "bad_image"


def test_a_damaged_png_is_rejected_even_if_it_fits():
    for at in range(0, len(PNGS["rgb"]), 37):
        damaged = PNGS["rgb"][:at] + bytes([PNGS["rgb"][at] ^ 4]) + PNGS["rgb"][at + 1 :]
        assert rejected(damaged)[0] == "bad_image"


def jpeg_of_size(data: bytes, height: int, width: int) -> bytes:
    at = next(at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def tiff_tag(data: bytes, tag: int) -> int:
    """Where the entry of a tag with one number stands."""
    return max(data.find(struct.pack("<HHI", tag, kind, 1)) for kind in (3, 4))


def test_a_bomb_is_refused_by_its_header():
    png_header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    lossless = bytearray(WEBPS["lossless"])
    lossless[21:25] = struct.pack("<I", 16_000 | 16_000 << 14)
    bitmap = bytearray(OTHERS["bmp"])
    bitmap[18:26] = struct.pack("<ii", 30_000, 30_000)
    gif = bytearray(OTHERS["gif"])
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    tiff = bytearray(OTHERS["tiff"])
    for tag in (256, 257):
        at = tiff_tag(OTHERS["tiff"], tag)
        tiff[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 30_000)
    for data in (
        PNG_SIGNATURE + chunk(b"IHDR", png_header) + PNGS["rgb"][33:],
        jpeg_of_size(JPEGS["rgb"], 30_000, 30_000),
        jpeg_of_size(pillow(CMYK, "JPEG"), 30_000, 30_000),
        bytes(lossless),
        bytes(bitmap),
        bytes(gif),
        bytes(tiff),
    ):
        reason, detail = rejected(data)
        assert reason == "image_too_large", detail
        assert "pixels" in detail


def test_a_jpeg_cannot_claim_more_pixels_than_it_has_bits():
    assert rejected(jpeg_of_size(JPEGS["rgb"], 7_000, 8_000)) == (
        "bad_image",
        f"the JPEG cannot hold 7,000 x 8,000 pixels in {len(JPEGS['rgb']):,} bytes",
    )
    # A white image is the smallest there is.
    white = np.full((1600, 1600), 255, np.uint8)
    assert prepare(pillow(white, "JPEG", quality=1, progressive=True, optimize=True), SMALL).height == 16


def test_a_tiff_cannot_claim_more_rows_than_it_has_strips():
    tall = np.tile(RGB, (40, 10, 1))
    data = bytes(cv2.imencode(".tiff", tall[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1])
    assert len(Image.open(io.BytesIO(data)).tile) > 1
    assert prepare(data, SMALL).data == stored(tall, SMALL)
    at = tiff_tag(data, 257)
    assert rejected(data[: at + 8] + struct.pack("<I", 5000) + data[at + 12 :], SMALL) == (
        "bad_image",
        "the TIFF does not hold all of its pixels",
    )


def test_a_jpeg_of_many_scans_is_refused():
    data = JPEGS["progressive"]
    last = data.rindex(b"\xff\xda")
    assert prepare(data[:-2] + data[last:-2] * 20 + data[-2:], SMALL).height == 16
    assert rejected(data[:-2] + data[last:-2] * 200 + data[-2:], SMALL)[1] == "the JPEG has more than 100 scans"


def test_a_png_that_inflates_to_far_more_than_its_pixels_is_refused():
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    for level in (0, 9):
        body = zlib.compress(rows + RANDOM.bytes(3 << 20), level)
        data = PNGS["rgb"][:33] + chunk(b"IDAT", body) + chunk(b"IEND", b"")
        assert rejected(data)[1] == "the PNG holds far more data than its pixels"


def test_a_large_png_is_inflated_beforehand_and_is_right():
    noise = RANDOM.integers(0, 256, (800, 1000, 3), dtype=np.uint8)
    data = pillow(noise, "PNG", compress_level=1)
    assert len(data) > 1 << 21
    assert prepare(data, SMALL).data == stored(noise, SMALL)
    body = data[41:]
    damaged = PNG_SIGNATURE + data[8:33] + chunk(b"IDAT", b"\x78\x01" + body[:3_000_000]) + chunk(b"IEND", b"")
    assert rejected(damaged)[1].startswith("the PNG does not decode")


def test_comments_are_not_inflated():
    note = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(7_900_000), 9))
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1 << 24), 9))
    data = PNGS["rgb"][:33] + profile + note * 300 + PNGS["rgb"][33:]
    assert prepare(data, SMALL).data == stored(RGB, SMALL)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "the file is empty"),
        (bytes(1000), "the file is nothing but zeros"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "the file is an HTML page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "the file is an SVG"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "the file is an XML document"),
        (b"Not found", "the file is text that begins 'Not found'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "the file is a Git LFS pointer, and its content was not"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "the file is an AVIF"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "the file is a HEIF"),
        (b"II+\0\x08\0\0\0" + bytes(20), "the file is a BigTIFF"),
        (b"%PDF-1.7", "the file is a PDF"),
        (b"\xfe\xed\xfa\xce" + bytes(20), "the file is of no known kind: it begins with b'\\xfe\\xed"),
        (JPEGS["rgb"].replace(b"\xff\xc0", b"\xff\xc9", 1), "the JPEG is lossless, hierarchical or arithmetic"),
        (pillow(Image.new("F", (48, 32)), "TIFF"), "the TIFF has pixels of mode F"),
        (pillow(Image.new("LAB", (48, 32)), "TIFF"), "the TIFF has pixels of mode LAB"),
        (PNGS["rgb"][:33] + chunk(b"IDAT", b"junk") + chunk(b"IEND", b""), "the PNG does not decode"),
        (PNGS["rgb"][:33] + chunk(b"ABCD", b"") + PNGS["rgb"][33:], "the PNG does not decode"),
        (png(RGB[..., 0], 8, 0, chunk(b"tRNS", b"\0")), "the PNG's transparency is damaged"),
        (png(RGB, 8, 2, chunk(b"tRNS", b"\0\0")), "the PNG's transparency is damaged"),
        (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(24), "the WebP's header is damaged"),
        (b"RIFF\x20\0\0\0WEBPVP8L" + bytes(24), "the WebP's header is damaged"),
        (b"RIFF\xff\xff\0\0WEBPVP8 " + bytes(24), "the WebP is truncated: 40 of 65,543 bytes are there"),
        (b"BM" + bytes(60), "the BMP does not decode"),
        (b"II*\0" + bytes(60), "the TIFF's header is damaged"),
    ],
)
def test_what_is_no_image_says_what_it_is(data, detail):
    reason, said = rejected(data, SMALL)
    assert reason == "bad_image"
    assert said.startswith(detail)


def test_a_file_is_described_by_its_beginning():
    names = {"PNG": "a PNG", "JPEG": "a JPEG", "GIF": "a GIF", "BMP": "a BMP", "TIFF": "a TIFF", "WEBP": "a WebP"}
    assert {kind: describe(pillow(RGB, kind)) for kind in names} == names


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("lossy", WebpHeader(32, 48, lossy=True)),
        ("lossy alpha", WebpHeader(32, 48, lossy=True, alpha=True)),
        ("lossless", WebpHeader(32, 48, lossy=False)),
        ("lossless alpha", WebpHeader(32, 48, lossy=False, alpha=True)),
        ("exif", WebpHeader(32, 48, lossy=True, orientation=6)),
    ],
)
def test_the_header_of_a_webp(name, header):
    assert probe_webp(WEBPS[name]) == header


def test_the_header_of_an_animated_webp():
    assert probe_webp(ANIMATED["WEBP"]) == WebpHeader(32, 48, lossy=True, alpha=True, animated=True)
    with pytest.raises(RejectedError, match="the image is no WebP"):
        probe_webp(PNGS["rgb"])


FILES = [*PNGS.values(), *JPEGS.values(), *WEBPS.values(), *OTHERS.values(), *ANIMATED.values(), pillow(CMYK, "JPEG")]
LIES = [bytes(2), b"\xff\xff", bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\xff\xff\0\0"]


def with_right_checksums(data: bytes) -> bytes:
    """A damaged PNG whose chunks say that they are sound, as far as they can be told apart."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        out += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return out + data[at:]


def said(data: bytes, rule: ImageRule) -> str:
    try:
        image = prepare(data, rule)
    except RejectedError as error:
        return str(error)
    header = image_codec.probe(image.data)
    assert header.plain
    assert (header.height, header.width) == (image.height, image.width)
    return "an image"


@settings(max_examples=400)
@given(st.data())
def test_nothing_but_a_rejection_comes_out_of_a_damaged_file(draw):
    data = bytearray(draw.draw(st.sampled_from(FILES)))
    begin = st.integers(0, min(len(data), 120) - 1) | st.integers(0, len(data) - 1)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(begin)
        match draw.draw(st.sampled_from(["flip", "lie", "cut", "remove", "repeat", "insert"])):
            case "flip":
                data[at] ^= 1 << draw.draw(st.integers(0, 7))
            case "lie":
                lie = draw.draw(st.sampled_from(LIES))
                data[at : at + len(lie)] = lie
            case "cut":
                del data[max(at, 20) :]
            case "remove":
                del data[at : at + draw.draw(st.integers(1, 64))]
            case "repeat":
                data[at:at] = data[at : at + draw.draw(st.integers(1, 256))]
            case "insert":
                data[at:at] = draw.draw(st.binary(max_size=16))
        if not data:
            break
        begin = st.integers(0, len(data) - 1)
    damaged = bytes(data)
    if damaged[:8] == PNG_SIGNATURE and draw.draw(st.booleans()):
        damaged = with_right_checksums(damaged)
    rule = draw.draw(st.sampled_from([SAME, SMALL, ImageRule(max_patches=64)]))
    outcome = said(damaged, rule)
    # Nothing in a message differs from run to run.
    assert " at 0x" not in outcome
    assert outcome == said(damaged, rule)


@settings(max_examples=100)
@given(st.sampled_from([b"", *[data[:12] for data in FILES]]), st.binary(max_size=200))
def test_nothing_but_a_rejection_comes_out_of_noise(beginning, noise):
    assert rejected(beginning + noise)[0] in ("bad_image", "image_animated", "image_too_large")


XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def exif_of_type(orientation: int, kind: str, order: str) -> bytes:
    """A block of EXIF with one tag, whose value is a byte, or 16 or 32 bits wide."""
    number, value = {"byte": (1, "B3x"), "short": (3, "H2x"), "long": (4, "I")}[kind]
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return head + struct.pack(order + "HHHI" + value + "I", 1, 0x0112, number, 1, orientation, 0)


def jpeg_segment(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


ORIENTED = {
    **{
        f"{kind} {order}": lambda jpeg, kind=kind, order=order: (
            jpeg[:2] + jpeg_segment(b"Exif\0\0" + exif_of_type(6, kind, order)) + jpeg[2:]
        )
        for kind in ("byte", "short", "long")
        for order in "<>"
    },
    "xmp": lambda jpeg: jpeg[:2] + jpeg_segment(b"http://ns.adobe.com/xap/1.0/\0" + XMP.format(8).encode()) + jpeg[2:],
    "exif before xmp": lambda jpeg: (
        jpeg[:2]
        + jpeg_segment(b"http://ns.adobe.com/xap/1.0/\0" + XMP.format(8).encode())
        + jpeg_segment(b"Exif\0\0" + exif_of_type(3, "short", ">"))
        + jpeg[2:]
    ),
    "behind the frame": lambda jpeg: jpeg.replace(
        b"\xff\xda", jpeg_segment(b"Exif\0\0" + exif_of_type(5, "short", ">")) + b"\xff\xda", 1
    ),
    "no orientation": lambda jpeg: jpeg[:2] + jpeg_segment(b"Exif\0\0" + exif_of_type(9, "short", ">")) + jpeg[2:],
}


@pytest.mark.parametrize("name", ORIENTED)
def test_jpegs_are_upright_where_pillow_turns_them(name):
    data = ORIENTED[name](pillow(SMOOTH, "JPEG", quality=95))
    with Image.open(io.BytesIO(data)) as opened:
        turned = np.asarray(ImageOps.exif_transpose(opened))
    image = prepare(data, ImageRule(size=turned.shape[:2], codec="png"))
    assert (image_codec.decode(image.data) == turned).all()
    assert (turned.shape != SMOOTH.shape) == (name not in ("byte <", "byte >", "exif before xmp", "no orientation"))


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("note", ["iTXt", "zipped iTXt", "tEXt", "zTXt"])
def test_pngs_are_upright_where_pillow_turns_them(note, place):
    """By XMP, and by EXIF as ImageMagick writes it: in hexadecimal digits, in a text."""
    raw = b"\nexif\n      26\n" + exif_of_type(6, "short", "<").hex().encode() + b"\n"
    xmp = XMP.format(6).encode()
    written = {
        "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "zipped iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        "tEXt": chunk(b"tEXt", b"Raw profile type exif\0" + raw),
        "zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
    }[note]
    png = pillow(RGB, "PNG")
    data = png[:33] + written + png[33:] if place == "before" else png[:-12] + written + png[-12:]
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        turned = np.asarray(ImageOps.exif_transpose(opened))
    assert turned.shape == (48, 32, 3)
    image = prepare(data, ImageRule(size=(48, 32)))
    assert (image_codec.decode(image.data) == turned).all()


def test_webp_is_upright_by_xmp():
    data = pillow(RGB, "WEBP", lossless=True, xmp=XMP.format(8).encode())
    with Image.open(io.BytesIO(data)) as opened:
        turned = np.asarray(ImageOps.exif_transpose(opened))
    assert turned.shape == (48, 32, 3)
    assert (image_codec.decode(prepare(data, ImageRule(size=(48, 32))).data) == turned).all()


@pytest.mark.parametrize("between", [b"\x01\x02", b"\0", b"\xff\0", b"\xff\xff\xff", b"\n" * 300])
def test_what_stands_between_two_segments_of_a_jpeg_is_passed_over(between):
    plain = pillow(SMOOTH, "JPEG", quality=95)
    for mark in (b"\xff\xdb", b"\xff\xc0", b"\xff\xc4"):
        at = plain.index(mark)
        data = plain[:at] + between + plain[at:]
        with Image.open(io.BytesIO(data)) as opened:
            pixels = np.asarray(opened)
        image = prepare(data, ImageRule(size=SMOOTH.shape[:2], codec="png"))
        assert (image_codec.decode(image.data) == pixels).all()
