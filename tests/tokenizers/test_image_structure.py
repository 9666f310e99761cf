import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from gatokit.schemas.errors import RejectedError
from gatokit.schemas.manifest import ImageRule, ImageSpec
from gatokit.tokenizers import image_codec
from gatokit.tokenizers.document import prepare
from gatokit.tokenizers.image_codec import orientation_of
from gatokit.tokenizers.image_structure import JPEG_MARKER, jpeg_is_whole, png_is_whole

RGB = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
SMOOTH = cv2.resize(RGB[:4, :6], (48, 32), interpolation=cv2.INTER_CUBIC)
SPEC, RULE = ImageSpec(height=32, width=48), ImageRule(size=(32, 48))


def pillow(pixels: np.ndarray, kind: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def opencv(extension: str, *options: int) -> bytes:
    return bytes(cv2.imencode(extension, SMOOTH[..., ::-1], options)[1])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


PNG = pillow(SMOOTH, "PNG")
BODY = PNG[41:-16]
PNGS = {
    "one data chunk": PNG,
    "gray PNG": pillow(SMOOTH[..., 0], "PNG"),
    "by OpenCV": opencv(".png"),
    "with a text": pillow(SMOOTH, "PNG", dpi=(72, 72)),
    "several data chunks": PNG[:33] + chunk(b"IDAT", BODY[:100]) + chunk(b"IDAT", BODY[100:]) + PNG[-12:],
}
JPEGS = {
    "baseline": pillow(SMOOTH, "JPEG", quality=90),
    "progressive": pillow(SMOOTH, "JPEG", progressive=True),
    "gray": pillow(SMOOTH[..., 0], "JPEG"),
    "gray and progressive": pillow(SMOOTH[..., 0], "JPEG", progressive=True),
    "own tables": pillow(SMOOTH, "JPEG", optimize=True),
    "full colours": pillow(SMOOTH, "JPEG", subsampling=0),
    "restart markers": opencv(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    "a long comment": pillow(SMOOTH, "JPEG", comment=b"\xff\xda" * 2000),
}


def stored(data: bytes) -> list[bytes | str]:
    """What a frame and a picture become, or why they do not."""
    found: list[bytes | str] = []
    for store in (lambda: image_codec.fit(data, SPEC), lambda: prepare(data, RULE)):
        try:
            found.append(store().data)
        except RejectedError as error:
            found.append(error.detail)
    return found


def segments(data: bytes) -> list[tuple[int, int]]:
    """Begin and end of the segments of a JPEG, each scan by its header."""
    found, at = [], 2
    while data[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        found.append((at, end))
        at = end if data[at + 1] != 0xDA else JPEG_MARKER.search(data, end).start()
    return found


@pytest.mark.parametrize("name", [*PNGS, *JPEGS])
def test_a_whole_file_is_copied(name):
    data = {**PNGS, **JPEGS}[name]
    assert (png_is_whole if name in PNGS else jpeg_is_whole)(data)
    assert all(copy is data for copy in stored(data))
    assert np.array_equal(image_codec.decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@settings(max_examples=200)
@given(st.sampled_from(sorted(PNGS)), st.data())
def test_every_damaged_byte_of_a_png_is_found(name, draw):
    data = PNGS[name]
    at = draw.draw(st.integers(0, len(data) - 1))
    damaged = data[:at] + bytes([data[at] ^ draw.draw(st.integers(1, 255))]) + data[at + 1 :]
    assert not any(isinstance(copy, bytes) for copy in stored(damaged))


@settings(max_examples=200)
@given(st.sampled_from(sorted({**PNGS, **JPEGS})), st.data())
def test_every_cut_is_found(name, draw):
    data = {**PNGS, **JPEGS}[name]
    end = draw.draw(st.integers(0, len(data) - 1))
    assert not any(isinstance(copy, bytes) for copy in stored(data[:end]))
    begin = draw.draw(st.integers(0, end))
    if name in PNGS and begin < end:
        assert not any(isinstance(copy, bytes) for copy in stored(data[:begin] + data[end:]))


@settings(max_examples=200)
@given(st.sampled_from(sorted(JPEGS)), st.data())
def test_a_damaged_segment_of_a_jpeg_is_found_or_harms_nothing(name, draw):
    data = JPEGS[name]
    begin, _ = draw.draw(st.sampled_from(segments(data)))
    # Behind a scan a damaged marker reads as data of the scan, or as a segment that is passed over.
    at = begin + draw.draw(st.integers(2 if begin > data.index(b"\xff\xda") else 0, 3))
    damaged = data[:at] + bytes([data[at] ^ draw.draw(st.integers(1, 255))]) + data[at + 1 :]
    # Without its restart interval a JPEG is another one.
    assume(data[begin + 1] != 0xDD)
    for copy in stored(damaged):
        if isinstance(copy, bytes):
            assert np.array_equal(image_codec.decode(copy), image_codec.decode(data))


@settings(max_examples=300)
@given(st.sampled_from(sorted({**PNGS, **JPEGS})), st.data())
def test_what_passes_decodes(name, draw):
    data = bytearray({**PNGS, **JPEGS}[name])
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(2, min(len(data), 700) - 1))
        match draw.draw(st.sampled_from(["flip", "marker", "remove", "repeat"])):
            case "flip":
                data[at] ^= 1 << draw.draw(st.integers(0, 7))
            case "marker":
                data[at : at + 2] = bytes([0xFF, draw.draw(st.integers(0xC0, 0xFF))])
            case "remove":
                del data[at : at + draw.draw(st.integers(1, 40))]
            case "repeat":
                data[at:at] = data[at : at + draw.draw(st.integers(1, 40))]
        if len(data) < 10:
            break
    for copy in stored(bytes(data)):
        if isinstance(copy, bytes):
            assert image_codec.decode(copy).shape == (32, 48, 3)


def with_segment(data: bytes, at: int, segment: bytes) -> bytes:
    """A JPEG with more bytes before its segment number ``at``."""
    begin = segments(data)[at][0]
    return data[:begin] + segment + data[begin:]


JPEG = JPEGS["baseline"]
MISSING = "the JPEG is damaged: a scan needs a Huffman table that is missing"


def without_table(data: bytes, number: int) -> bytes:
    """A JPEG without one of its segments of Huffman tables."""
    begin, end = [(begin, end) for begin, end in segments(data) if data[begin + 1] == 0xC4][number]
    return data[:begin] + data[end:]


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (PNG[:33] + chunk(b"IDAT", b"\x78\x9d" + BODY[2:]) + PNG[-12:], "the PNG does not decode"),
        (PNG[:33] + PNG[-12:], "the PNG does not decode"),
        (PNG[:50] + bytes([PNG[50] ^ 1]) + PNG[51:], "the PNG's IDAT chunk does not match its checksum"),
        (PNG[:28] + b"\1" + PNG[29:], "the PNG's IHDR chunk does not match its checksum"),
        (without_table(JPEG, 0), MISSING),
        (without_table(JPEG, 3), MISSING),
        (JPEG[:-2], "the JPEG is truncated: it has no end marker"),
        (JPEG[: segments(JPEG)[-1][0]] + b"\xff\xd9", "the JPEG is damaged: it lacks a scan"),
    ],
)
def test_damage_says_what_it_is(data, detail):
    assert stored(data) == [detail, detail]


@pytest.mark.parametrize(
    ("data", "is_copied"),
    [
        (with_segment(JPEG, 1, b"junk\0\xff\0more"), True),
        (with_segment(JPEG, 2, b"\xff\xff\xff"), True),
        (with_segment(JPEG, 1, b"\xff\xe5\0\4ab\xff\xe5\0\4cd\xff\xed\0\2"), True),
        (JPEG + b"trailing", False),
        (JPEG + JPEG, True),
        (JPEGS["progressive"] + b"\0\0", False),
        (JPEGS["restart markers"] + b"\0", False),
    ],
)
def test_what_libjpeg_and_pillow_read_is_read(data, is_copied):
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    picture = prepare(data, ImageRule(size=(32, 48), codec=None if is_copied else "png"))
    assert (picture.data is data) == is_copied
    assert np.array_equal(image_codec.decode(picture.data), expected)
    assert np.array_equal(image_codec.decode(image_codec.fit(data, SPEC).data), expected)


# --- EXIF ------------------------------------------------------------------------------------------------------


def exif(order: str, *entries: tuple[int, int, int, bytes], behind: bytes = b"", count: int | None = None) -> bytes:
    """A block of EXIF with entries (tag, type, number of values, four bytes)."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    number = struct.pack(order + "H", len(entries) if count is None else count)
    return mark + struct.pack(order + "I", 8) + number + body + bytes(4) + behind


def jpeg_with(*blocks: bytes) -> bytes:
    """A JPEG with blocks of EXIF in segments of their own."""
    return (
        JPEG[:20]
        + b"".join(b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block for block in blocks)
        + JPEG[20:]
    )


def by_pillow(data: bytes) -> np.ndarray | None:
    """The upright pixels; None if Pillow refuses the EXIF, which viewers then ignore."""
    try:
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    except SyntaxError:
        return None


def orders() -> st.SearchStrategy[str]:
    return st.sampled_from("<>")


@st.composite
def entries(draw) -> tuple[str, list[tuple[int, int, int, bytes]]]:
    order = draw(orders())
    found = []
    for _ in range(draw(st.integers(0, 4))):
        kind, format_ = draw(st.sampled_from([(1, "B3x"), (3, "H2x"), (4, "I"), (6, "b3x"), (8, "h2x"), (9, "i")]))
        value = struct.pack(order + format_, draw(st.integers(0, 9)))
        found.append((draw(st.sampled_from([0x0112, 0x0112, 0x010F])), kind, draw(st.integers(0, 2)), value))
    return order, found


@pytest.mark.filterwarnings("ignore:.*")
@settings(max_examples=150)
@given(entries(), st.binary(max_size=12), st.none() | st.integers(0, 6))
def test_orientations_are_those_that_pillow_reads(block, behind, count):
    order, found = block
    # A maker's name is text.
    found = [(tag, 2, 4, b"abc\0") if tag == 0x010F else (tag, *rest) for tag, *rest in found]
    data = jpeg_with(exif(order, *found, behind=behind, count=count))
    expected = by_pillow(data)
    picture = prepare(data, ImageRule(max_patches=64, codec="png"))
    assert np.array_equal(image_codec.decode(picture.data), expected)


SIDE = exif("<", (0x0112, 3, 1, b"\6\0\0\0"))


@pytest.mark.parametrize(
    ("blocks", "orientation"),
    [
        ([SIDE], 6),
        ([exif(">", (0x0112, 4, 1, b"\0\0\0\6"))], 6),
        ([exif(">", (0x0112, 1, 1, b"\6\0\0\0"))], 1),
        ([b"II*\0\x08\0\0\0\1\0"], 1),
        ([b"II*\0\xff\xff\xff\xff" + SIDE[8:]], 1),
        ([b"Exif\0\0" + SIDE], 6),
        ([SIDE[:20], SIDE[20:]], 6),
        ([SIDE, exif("<", (0x0112, 3, 1, b"\3\0\0\0"))], 6),
        ([exif("<", (0x0112, 3, 1, b"\3\0\0\0"), (0x0112, 3, 1, b"\6\0\0\0"))], 6),
        ([exif("<", (0x0112, 3, 3, struct.pack("<I", 26)), behind=struct.pack("<HHH", 8, 1, 1))], 8),
        ([exif("<", (0x0112, 3, 1, b"\x09\0\0\0"))], 1),
        ([b"junk" + SIDE], 1),
        ([b""], 1),
    ],
)
@pytest.mark.filterwarnings("ignore:.*")
def test_exif_of_odd_form(blocks, orientation):
    data = jpeg_with(*blocks)
    assert image_codec.probe(data).orientation == orientation
    assert orientation_of({"exif": b"".join(blocks)}) == orientation
    expected = by_pillow(data)
    if expected is not None:
        assert expected.shape[:2] == ((48, 32) if orientation >= 5 else (32, 48))
