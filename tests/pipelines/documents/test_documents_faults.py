"""Corpora with a bad document of every sort: one row with a reason each, and the good ones are exact."""

import gzip
import io
import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import zstandard
from PIL import Image, ImageOps

from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build, scan
from gatokit.schemas.errors import DataError
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.image_codec import encode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

Go = Callable[..., Any]


@pytest.fixture
def configured(tmp_path: Path, exact_vocabulary: Path) -> Callable[..., Path]:
    """Writes a config of one dataset ``d``."""

    def write(dataset: str, config: str = "") -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(f"vocabulary: {exact_vocabulary}\n{config}\ndatasets:\n  - {{name: d, {dataset}}}\n")
        return path

    return write


@pytest.fixture
def go(tmp_path: Path, configured: Callable[..., Path], read_documents: Callable[..., Any]) -> Go:
    """Builds and verifies one dataset, and reads it back."""

    def built(dataset: str, config: str = "") -> Any:
        build(configured(dataset, config), tmp_path / "out")
        assert verify(tmp_path / "out") == []
        return read_documents(tmp_path / "out", "d")

    return built


def counts(built: Any) -> dict[str | None, int]:
    return dict(Counter(row["reason"] for row in built.rows))


def photo(height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(colours, (width, height), interpolation=cv2.INTER_LINEAR)


def pillow(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, kind, **options)
    return out.getvalue()


def animated(kind: str, **options: Any) -> bytes:
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(2)]
    return pillow(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# --- texts -------------------------------------------------------------------------------------------------


def test_texts_with_every_fault(tmp_path, go):
    folder = tmp_path / "text"
    folder.mkdir()
    lines = [
        b'\xef\xbb\xbf{"text": "one"}\r',
        b'{"text": "broken"',
        b'["a list"]',
        b'{"other": "no such key"}',
        b'{"text": null}',
        b'{"text": 3}',
        b'{"text": "half \\ud83d"}',
        b'{"text": "latin \xe9"}',
        b'{"text": " \\n\\u2003"}',
        b'{"text": "' + b"x" * 2000 + b'"}',
        '{"text": "zwei\\u00f6\\ud83d\\ude42 \'ö\'"}'.encode(),
        b"",
        b'{"text": "one"}',
        b'{"text": "\\u0000 and </s>"}',
    ]
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    members = [b'{"text": "gz 0"}\n{"text": "gz 1"}\n', b'{"text": "lost"}\n']
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(members[0]) + gzip.compress(members[1])[:12])
    frames = [b'{"text": "zst 0"}\n', b'{"text": "lost"}\n']
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(frames[0]) + zstandard.compress(frames[1])[:8])
    values = [b"row 0", None, b"\xff", b" ", b"y" * 2001, b"row 5"]
    pq.write_table(pa.table({"text": pa.array(values, pa.binary())}), folder / "d.parquet")
    (folder / "e.parquet").write_bytes((folder / "d.parquet").read_bytes()[:-3])
    (folder / "f.txt").write_bytes(b"caf\xe9")
    (folder / "g.md").write_bytes(b"")
    (folder / "h.rst").write_bytes(b"whole\r\n\tfile\n")
    (folder / "i.txt").write_bytes(b"z" * 2001)
    (folder / "j.txt.gz").write_bytes(gzip.compress(os.urandom(50))[:30])
    built = go("kind: text, source: text/*", "max_episode_bytes: 2000\nmax_bad_fraction: 0.9\nmax_lost_bytes: 1")
    assert built.reasons() == {
        "a.jsonl#0": None,
        "a.jsonl#1": "corrupt_record",
        "a.jsonl#2": "corrupt_record",
        "a.jsonl#3": "missing_field",
        "a.jsonl#4": "missing_field",
        "a.jsonl#5": "wrong_shape",
        "a.jsonl#6": "not_utf8",
        "a.jsonl#7": "not_utf8",
        "a.jsonl#8": "empty",
        "a.jsonl#9": "too_large",
        "a.jsonl#10": None,
        "a.jsonl#12": "duplicate",
        "a.jsonl#13": None,
        "b.jsonl.gz#0": None,
        "b.jsonl.gz#1": None,
        "b.jsonl.gz#2": "ends_early",
        "c.jsonl.zst#0": None,
        "c.jsonl.zst#1": "ends_early",
        "d.parquet#0": None,
        "d.parquet#1": "missing_field",
        "d.parquet#2": "not_utf8",
        "d.parquet#3": "empty",
        "d.parquet#4": "too_large",
        "d.parquet#5": None,
        "e.parquet#0": "corrupt_length",
        "f.txt#0": "not_utf8",
        "g.md#0": "empty",
        "h.rst#0": None,
        "i.txt#0": "too_large",
        "j.txt.gz#0": "ends_early",
    }
    assert counts(built) == {
        None: 9,
        "corrupt_record": 2,
        "missing_field": 3,
        "wrong_shape": 1,
        "not_utf8": 4,
        "empty": 3,
        "too_large": 3,
        "duplicate": 1,
        "corrupt_length": 1,
        "ends_early": 3,
    }
    assert built.parts == {
        "a.jsonl#0": ["one"],
        "a.jsonl#10": ["zweiö🙂 'ö'"],
        "a.jsonl#13": ["\0 and </s>"],
        "b.jsonl.gz#0": ["gz 0"],
        "b.jsonl.gz#1": ["gz 1"],
        "c.jsonl.zst#0": ["zst 0"],
        "d.parquet#0": ["row 0"],
        "d.parquet#5": ["row 5"],
        "h.rst#0": ["whole\r\n\tfile\n"],
    }
    assert all(row["detail"] for row in built.rows if row["reason"] not in (None, "duplicate"))
    tasks = pq.read_table(tmp_path / "out" / "d" / "tasks.parquet").to_pylist()
    assert [(row["episodes"], row["kept"], row["dropped"]) for row in tasks] == [(10, 9, 21)]


# --- pictures ----------------------------------------------------------------------------------------------

RGB = photo()
RGBA = np.dstack([RGB, photo(seed=1)[..., 0]])
DEEP = np.random.default_rng(2).integers(0, 65536, (32, 48, 3), dtype=np.uint16)
TURNED = Image.Exif()
TURNED[0x0112] = 6
CMYK = Image.fromarray(RGBA, "CMYK")
JPEG, PNG = pillow(RGB, "JPEG"), pillow(RGB, "PNG")

COPIED = {
    "jpeg": JPEG,
    "png": PNG,
    "gray jpeg": pillow(RGB[..., 0], "JPEG"),
    "gray png": pillow(RGB[..., 0], "PNG"),
    "progressive": pillow(RGB, "JPEG", progressive=True),
}
TRANSFORMED = {
    "turned jpeg": pillow(RGB, "JPEG", exif=TURNED),
    "turned png": pillow(RGB, "PNG", exif=TURNED),
    "turned webp": pillow(RGB, "WEBP", exif=TURNED),
    "cmyk": pillow(CMYK, "JPEG"),
    "16 bit gray": pillow(DEEP[..., 0], "PNG"),
    "16 bit rgb": cv2.imencode(".png", DEEP[..., ::-1])[1].tobytes(),
    "palette": pillow(Image.fromarray(RGB).quantize(32), "PNG"),
    "one bit": pillow(Image.fromarray(RGB[..., 0]).convert("1"), "PNG"),
    "gray and alpha": pillow(Image.fromarray(RGBA[..., 2:], "LA"), "PNG"),
    "alpha": pillow(RGBA, "PNG"),
    "webp": pillow(RGB, "WEBP", quality=70),
    "lossless webp": pillow(RGBA, "WEBP", lossless=True),
    "gif": pillow(Image.fromarray(RGB).quantize(32), "GIF"),
    "bmp": pillow(RGB, "BMP"),
    "tiff": pillow(RGB, "TIFF"),
}
AS_JPEG = {"turned jpeg", "turned webp", "cmyk", "webp"}


def resized_header(data: bytes, at: int, layout: str, *sides: int) -> bytes:
    return data[:at] + struct.pack(layout, *sides) + data[at + struct.calcsize(layout) :]


BOMB_HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
BAD = {
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "bad_image", "the JPEG is truncated: it has no end marker"),
    "jpeg of a header": (JPEG[:20], "bad_image", None),
    "truncated png": (PNG[: len(PNG) // 2], "bad_image", "the PNG is truncated"),
    "damaged png": (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "bad_image", "does not match its checksum"),
    "truncated webp": (TRANSFORMED["webp"][:-40], "bad_image", None),
    "truncated gif": (TRANSFORMED["gif"][:500], "bad_image", None),
    "png bomb": (PNG[:8] + BOMB_HEADER + PNG[33:], "image_too_large", "30,000 x 30,000 pixels"),
    "jpeg bomb": (
        resized_header(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 65_500, 65_500),
        "image_too_large",
        "65,500 x 65,500 pixels",
    ),
    "gif bomb": (resized_header(TRANSFORMED["gif"], 6, "<HH", 65_535, 65_535), "image_too_large", "too many pixels"),
    "animated gif": (animated("GIF"), "image_animated", "the GIF has more than one image"),
    "animated png": (animated("PNG"), "image_animated", "the PNG is animated"),
    "animated webp": (animated("WEBP"), "image_animated", "the WebP is animated"),
    "pages": (animated("TIFF"), "image_animated", "the TIFF has more than one image"),
    "a web page": (b"<!DOCTYPE html><html><body>404</body></html>", "bad_image", "HTML"),
    "a drawing": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "bad_image", "SVG"),
    "noise": (b"\x00\x01\x02\x03" * 20, "bad_image", None),
    "nothing": (b"", "bad_image", "the picture has no bytes"),
}


def shown(data: bytes) -> np.ndarray:
    """What a viewer shows, by Pillow: upright, over white, 8 bits; gray stays (H, W)."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        return (np.asarray(image) >> 8).astype(np.uint8)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA")).astype(int)
        pixels = np.round((rgba[..., :3] * rgba[..., 3:] + 255 * (255 - rgba[..., 3:])) / 255).astype(np.uint8)
        return pixels[..., 0] if image.mode == "LA" else pixels
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def suffix_of(data: bytes) -> str:
    known = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp", b"II": "tif"}
    return known.get(data[:2], "jpg")


def test_images_with_every_fault(tmp_path, go):
    """A tar with each picture that must come out right, each that must not, and each way to lose a sample."""
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for name, data in {**COPIED, **TRANSFORMED}.items():
            writer.write({"__key__": name, suffix_of(data): data, "txt": f"good {name}"})
        for name, (data, _, _) in BAD.items():
            writer.write({"__key__": name, suffix_of(data): data, "txt": f"bad {name}"})
        writer.write({"__key__": "textless", "jpg": JPEG})
        writer.write({"__key__": "imageless", "txt": "no picture"})
        writer.write({"__key__": "number", "jpg": JPEG, "json": {"caption": 3}})
        writer.write({"__key__": "keyless", "jpg": JPEG, "json": {"title": "x"}})
        writer.write({"__key__": "broken", "jpg": JPEG, "json": b'{"caption": '})
        writer.write({"__key__": "latin", "jpg": JPEG, "txt": b"caf\xe9"})
        writer.write({"__key__": "half", "jpg": JPEG, "json": b'{"caption": "\\udc00"}'})
        writer.write({"__key__": "blank", "jpg": JPEG, "txt": " \n"})
        writer.write({"__key__": "large", "jpg": JPEG + bytes(1 << 17), "txt": "too large"})
        writer.write({"__key__": "jpeg", "jpg": JPEG, "txt": "a key that is taken"})
        writer.write({"__key__": "again", "jpg": JPEG, "txt": "good jpeg"})
    with webdataset.TarWriter(str(tmp_path / "b.tar")) as writer:
        for key in ("whole", "cut"):
            writer.write({"__key__": key, "png": PNG, "txt": f"a {key} sample"})
    data = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(data[: data.rindex(b"a cut sample") + 4])
    built = go(
        "kind: image_text, format: webdataset, source: '*.tar'",
        "max_episode_bytes: 100000\nmax_bad_fraction: 0.9\nmax_lost_bytes: 1",
    )
    good = {f"a.tar#{name}" for name in (*COPIED, *TRANSFORMED)} | {"b.tar#whole"}
    assert built.parts.keys() == good
    for name, data in COPIED.items():
        assert built.parts[f"a.tar#{name}"] == [EncodedImage(data, 32, 48), f"good {name}"]
    for name, data in TRANSFORMED.items():
        pixels = shown(data)
        assert pixels.shape[:2] == ((48, 32) if name.startswith("turned") else (32, 48))
        stored = encode(pixels, "jpeg" if name in AS_JPEG else "png")
        assert built.parts[f"a.tar#{name}"] == [EncodedImage(stored, *pixels.shape[:2]), f"good {name}"], name
    assert (shown(built.parts["a.tar#16 bit rgb"][0].data) == DEEP >> 8).all()
    assert built.reasons()["a.tar#jpeg"] is None
    rows = {row["episode_id"]: row for row in built.rows}
    for name, (_, reason, detail) in BAD.items():
        row = rows[f"a.tar#{name}"]
        assert (row["reason"], row["kept"], row["split"], row["tokens"]) == (reason, False, None, 0), name
        assert (detail or "").lower() in row["detail"].lower(), name
        assert row["detail"]
    assert counts(built) == {
        None: 21,
        "bad_image": 10,
        "image_too_large": 3,
        "image_animated": 4,
        "missing_field": 3,
        "wrong_shape": 1,
        "corrupt_record": 1,
        "not_utf8": 2,
        "empty": 1,
        "too_large": 1,
        "duplicate_id": 1,
        "duplicate": 1,
        "ends_early": 1,
    }
    assert rows["a.tar#again"]["reason"] == "duplicate"


def test_images_of_a_folder_with_every_fault(tmp_path, go):
    """COCO: names that are not there or lead out, and a damaged picture that costs each of its captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(PNG)
    for name, data in {"good.png": PNG, "cut.png": PNG[:99], "film.png": BAD["animated png"][0]}.items():
        (folder / name).write_bytes(data)
    (folder / "link.png").symlink_to("../outside.png")
    names = ["good.png", "cut.png", "film.png", "link.png", "../outside.png", "none.png", f"{tmp_path}/outside.png"]
    images = [{"id": at, "file_name": name} for at, name in enumerate(names)]
    wanted = [(at, f"of {name}") for at, name in enumerate(names)]
    wanted += [(1, "another of cut.png"), (99, "no picture"), (0, " "), (0, "of good.png"), (0, "more of good.png")]
    annotations: list[Any] = [{"id": id_, "image_id": at, "caption": text} for id_, (at, text) in enumerate(wanted)]
    annotations += [{"id": 20, "image_id": 0}, {"id": 11, "image_id": 0, "caption": "again"}, 7]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    built = go(
        "kind: image_text, format: coco, source: c.json, image_dir: images, images: {size: [32, 48]}",
        "max_bad_fraction: 0.9\nmax_lost_bytes: 1",
    )
    assert built.reasons() == {
        "c.json#0": None,
        "c.json#1": "bad_image",
        "c.json#2": "image_animated",
        "c.json#3": "missing_image",
        "c.json#4": "missing_image",
        "c.json#5": "missing_image",
        "c.json#6": "missing_image",
        "c.json#7": "bad_image",
        "c.json#8": "missing_field",
        "c.json#9": "empty",
        "c.json#10": "duplicate",
        "c.json#11": None,
        "c.json#20": "missing_field",
        "c.json#11@13": "duplicate_id",
        "c.json#annotations[14]": "missing_field",
    }
    picture = EncodedImage(PNG, 32, 48)
    assert built.parts == {"c.json#0": [picture, "of good.png"], "c.json#11": [picture, "more of good.png"]}


def test_questions_with_every_fault(tmp_path, go):
    (tmp_path / "images").mkdir()
    for name, data in {"1.png": PNG, "2.png": PNG[:80], "4.webp": TRANSFORMED["webp"]}.items():
        (tmp_path / "images" / name).write_bytes(data)
    asked = [(10, 1, "good?"), (11, 2, "damaged?"), (12, 3, "missing?"), (13, 1, "unanswered?"), (14, 1, " ")]
    asked += [(15, 4, "of a WebP?"), (10, 1, "again?"), (16, 1, "{question} {0}?")]
    questions = [{"question_id": id_, "image_id": image, "question": text} for id_, image, text in asked]
    answered = {id_: image for id_, image, _ in asked if id_ != 13}
    annotations = [
        {"question_id": id_, "image_id": image, "multiple_choice_answer": "a {answer}"}
        for id_, image in answered.items()
    ]
    annotations.append({"question_id": 99, "image_id": 1, "multiple_choice_answer": "unasked"})
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
    built = go(
        "kind: image_question_answer, questions: q.json, annotations: a.json, image_dir: images, "
        "image_name: '{image_id}.jpg', template: 'Frage: {question}\\nAntwort: {answer}'",
    )
    assert built.reasons() == {
        "q.json#10": None,
        "q.json#10@7": "duplicate_id",
        "q.json#11": "bad_image",
        "q.json#12": "missing_image",
        "q.json#13": "missing_field",
        "q.json#14": "empty",
        "q.json#15": None,
        "q.json#16": None,
        "q.json#99": "missing_field",
    }
    picture = EncodedImage(PNG, 32, 48)
    assert built.parts["q.json#10"] == [picture, r"Frage: good?\nAntwort: a {answer}"]
    assert built.parts["q.json#16"] == [picture, r"Frage: {question} {0}?\nAntwort: a {answer}"]
    webp = EncodedImage(encode(shown(TRANSFORMED["webp"]), "jpeg"), 32, 48)
    assert built.parts["q.json#15"] == [webp, r"Frage: of a WebP?\nAntwort: a {answer}"]


# --- pages -------------------------------------------------------------------------------------------------


def mmc4_page(sentences: Any, *pictures: tuple[Any, Any]) -> dict[str, Any]:
    infos = [{"image_name": name, "matched_text_index": at} for name, at in pictures]
    return {"text_list": sentences, "image_info": infos}


PAGES: list[Any] = [
    mmc4_page(["One.", "Two."], ("good.png", 1)),
    mmc4_page(["One.", "Two."], ("none.png", 1)),
    mmc4_page(["One.", "Two."], ("../good.png", 1)),
    mmc4_page(["One.", "Two."], ("cut.png", 1)),
    mmc4_page(["One.", "Two."], ("good.png", 0), ("film.gif", 1), ("page.jpg", 1)),
    mmc4_page([" "], ("cut.png", 0)),
    mmc4_page([" "], ("none.png", 0)),
    mmc4_page(["One.", "Two."], ("none.png", 0), ("cut.png", 1), ("good.png", 1)),
    mmc4_page(["One."], ("good.png", 1)),
    mmc4_page(["One."], (7, 0)),
    mmc4_page("One."),
    {"text_list": ["One."]},
    mmc4_page(["half \ud83d"]),
    mmc4_page([""]),
    mmc4_page(["x" * 30000]),
]


@pytest.fixture
def pages(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    pictures = {"good.png": PNG, "cut.png": PNG[:99], "film.gif": BAD["animated gif"][0], "page.jpg": b"<html></html>"}
    for name, data in pictures.items():
        (tmp_path / "images" / name).write_bytes(data)
    (tmp_path / "good.png").write_bytes(PNG)
    lines = [json.dumps(page) for page in PAGES]
    (tmp_path / "p.jsonl").write_text("\n".join([*lines, '{"text_list": ["broken']) + "\n")


MMC4 = "kind: interleaved, format: mmc4, source: p.jsonl, image_dir: images, drop_duplicates: false"
BOUND = "max_episode_bytes: 30000\nmax_bad_fraction: 0.9\nmax_lost_bytes: 1"
MALFORMED = {
    8: "corrupt_record",
    9: "wrong_shape",
    10: "wrong_shape",
    11: "missing_field",
    12: "not_utf8",
    13: "empty",
    14: "too_large",
    15: "corrupt_record",
}


@pytest.mark.usefixtures("pages")
def test_pages_with_every_fault(go):
    built = go(MMC4, BOUND)
    assert [row["reason"] for row in built.rows[:8]] == [
        None,
        "missing_image",
        "missing_image",
        "bad_image",
        "image_animated",
        "bad_image",
        "missing_image",
        "missing_image",
    ]
    assert {at: row["reason"] for at, row in enumerate(built.rows) if at > 7} == MALFORMED
    assert built.parts == {"p.jsonl#0": ["One.", EncodedImage(PNG, 32, 48), "Two."]}


@pytest.mark.usefixtures("pages")
def test_pages_that_stay_without_their_bad_images(go):
    built = go(f"{MMC4}, bad_images: skip", f"{BOUND}\nmax_bad_images: 0.9")
    picture = EncodedImage(PNG, 32, 48)
    assert built.parts == {
        "p.jsonl#0": ["One.", picture, "Two."],
        "p.jsonl#1": ["One. Two."],
        "p.jsonl#2": ["One. Two."],
        "p.jsonl#3": ["One. Two."],
        "p.jsonl#4": [picture, "One. Two."],
        "p.jsonl#7": ["One.", picture, "Two."],
    }
    missing, cut = "'none.png' is not in image_dir: No such file or directory", "bad_image: the PNG is truncated"
    assert {at: (row["reason"], row["detail"]) for at, row in enumerate(built.rows[:8])} == {
        0: (None, None),
        1: (None, f"without 1 of its pictures: image_info[0]: {missing}"),
        2: (None, "without 1 of its pictures: image_info[0]: '../good.png' leads out of image_dir"),
        3: (None, f"1 picture left out: {cut}"),
        4: (None, "2 pictures left out: image_animated: the GIF has more than one image"),
        5: ("empty", "nothing is left of the page without its damaged pictures"),
        6: ("empty", f"without 1 of its pictures: image_info[0]: {missing}"),
        7: (None, f"without 1 of its pictures: image_info[0]: {missing}; 1 picture left out: {cut}"),
    }
    assert {at: row["reason"] for at, row in enumerate(built.rows) if at > 7} == MALFORMED
    assert built.described.documents.bad_images == "skip"


@pytest.mark.parametrize("skip", [False, True])
def test_embedded_pages_with_bad_images(skip, tmp_path, go):
    def page(*parts: str | bytes | None) -> dict[str, Any]:
        images = [{"bytes": part, "path": None} if isinstance(part, bytes) else None for part in parts]
        return {"images": images, "texts": [part if isinstance(part, str) else None for part in parts]}

    rows = [
        page("One.", PNG, "Two."),
        page("One.", PNG[:99], "Two.\n\nThree."),
        page("One.", None, "Two."),
        page(BAD["png bomb"][0]),
        page(PNG[:99], PNG, PNG[:90], "Two."),
        {"images": None, "texts": ["x"]},
        page("same"),
        page("same"),
    ]
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"images": pa.list_(image), "texts": pa.list_(pa.string())})
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "p.parquet", row_group_size=3)
    built = go(f"kind: interleaved, format: obelics, source: p.parquet, bad_images: {'skip' if skip else 'reject'}")
    reasons = [row["reason"] for row in built.rows]
    picture = EncodedImage(PNG, 32, 48)
    good = {"p.parquet#0": ["One.", picture, "Two."], "p.parquet#6": ["same"]}
    if skip:
        assert reasons == [None, None, "corrupt_record", "empty", None, "missing_field", None, "duplicate"]
        good |= {"p.parquet#1": ["One.\n\nTwo.\n\nThree."], "p.parquet#4": [picture, "Two."]}
        assert built.rows[4]["detail"] == "2 pictures left out: bad_image: the PNG is truncated"
    else:
        bad = ["bad_image", "corrupt_record", "image_too_large", "bad_image", "missing_field"]
        assert reasons == [None, *bad, None, "duplicate"]
    assert built.parts == good


def test_files_of_no_bytes_are_named(tmp_path, go):
    """A plain file of lines, and a compressed one that holds no line, are whole."""
    (tmp_path / "data").mkdir()
    empty = ("c.jsonl.gz", "e.jsonl.zst", "f.parquet")
    for name in ("a.jsonl", *empty):
        (tmp_path / "data" / name).write_bytes(b"")
    write_lines(tmp_path / "data" / "b.jsonl", ["one"])
    (tmp_path / "data" / "d.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataError) as error:
        go("kind: text, source: data/*")
    assert str(error.value).startswith(
        "d: 3 of 6 files end early, 0 % of the bytes (first c.jsonl.gz: the file is empty)"
    )
    built = go("kind: text, source: data/*", "max_lost_bytes: 0.001")
    early = {f"{name}#0": "ends_early" for name in empty}
    assert built.reasons() == {"a.jsonl#0": "empty", "b.jsonl#0": None, **early}


# --- the error budget --------------------------------------------------------------------------------------


def write_lines(path: Path, texts: list[str | None]) -> None:
    path.write_text("".join(("no JSON" if text is None else json.dumps({"text": text})) + "\n" for text in texts))


def test_ten_bad_documents_are_in_the_budget_of_any_corpus(tmp_path, go):
    write_lines(tmp_path / "t.jsonl", ["a", "b", *[None] * 10, " ", " "])
    assert counts(go("kind: text, source: t.jsonl")) == {None: 2, "corrupt_record": 10, "empty": 2}


@pytest.mark.parametrize("stage", [scan, build])
def test_a_rotten_corpus_stops_with_a_summary(stage, tmp_path, configured):
    write_lines(tmp_path / "t.jsonl", ["a", *[None] * 9, "b", " ", "a"])
    (tmp_path / "u.jsonl").write_bytes(b'{"text": "latin \xe9"}\n' * 2)
    path = configured("kind: text, source: '*.jsonl'")
    with pytest.raises(DataError) as raised:
        stage(path, tmp_path / "out")
    assert raised.value.exit_status == 1
    assert str(raised.value) == (
        "d: 11 of 15 documents are bad, more than the 10 that max_bad_fraction 0.01 allows: 9 corrupt_record "
        "(first t.jsonl#1: the line is no JSON: Expecting value: line 1 column 1 (char 0)); 2 not_utf8 "
        "(first u.jsonl#0: the line is not valid UTF-8 at its byte 16). Mend the source or raise max_bad_fraction"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()
    path = configured("kind: text, source: '*.jsonl'", "max_bad_fraction: 0.8")
    manifest = stage(path, tmp_path / "out").manifest
    assert [(dataset.episodes, dataset.kept) for dataset in manifest.datasets] == [(15, 2)]


def test_rot_that_only_decoding_shows_stops_before_the_manifest_and_keeps_the_shards(tmp_path, configured):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(25):
            data = PNG[:80] if number % 2 and number < 23 else PNG
            writer.write({"__key__": str(number), "png": data, "txt": f"text {number}"})
    dataset = "kind: image_text, format: webdataset, source: a.tar"
    with pytest.raises(DataError) as raised:
        build(configured(dataset), tmp_path / "out")
    assert str(raised.value) == (
        "d: 11 of 25 documents are bad, more than the 10 that max_bad_fraction 0.01 allows: 11 bad_image "
        "(first a.tar#1: the PNG is truncated). Mend the source or raise max_bad_fraction"
    )
    assert [fault.file for fault in verify(tmp_path / "out")] == ["manifest.json"]
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "d").glob("*.arrayrecord")}
    assert shards
    result = build(configured(dataset, "max_bad_fraction: 0.5"), tmp_path / "out")
    assert result.manifest.datasets[0].kept == 14
    assert {path: path.stat().st_mtime_ns for path in shards} == shards


def test_a_corpus_of_which_nothing_is_left(tmp_path, configured):
    write_lines(tmp_path / "t.jsonl", [" ", None, None])
    with pytest.raises(DataError) as raised:
        build(configured("kind: text, source: t.jsonl"), tmp_path / "out")
    assert str(raised.value) == ("d: the source holds 3 documents, of which none is sound: 1 empty, 2 corrupt_record")
    (tmp_path / "t.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="d: the source holds 0 documents, of which none is sound: its files are empty"):
        build(configured("kind: text, source: t.jsonl"), tmp_path / "out")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "0", "jpg": b"<html>", "txt": "text"})
    with pytest.raises(DataError, match="every kept document of task 'd' was rejected while tokenizing: 1 bad_image"):
        build(configured("kind: image_text, format: webdataset, source: a.tar"), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


# --- sources that change -----------------------------------------------------------------------------------


def lines_source(folder: Path) -> tuple[str, Path, bytes, bytes]:
    write_lines(folder / "t.jsonl", ["one", "two", "three"])
    return "kind: text, source: t.jsonl", folder / "t.jsonl", b"two", b"TWO"


def gzip_source(folder: Path) -> tuple[str, Path, bytes, bytes]:
    stored = gzip.compress(b'{"text": "one"}\n{"text": "two"}\n', compresslevel=0)
    (folder / "t.jsonl.gz").write_bytes(stored)
    checksum, other = (
        struct.pack("<I", zlib.crc32(b'{"text": "one"}\n{"text": "%s"}\n' % word)) for word in (b"two", b"TWO")
    )
    head = stored[stored.index(b"two") : stored.index(checksum) + 4]
    return "kind: text, source: t.jsonl.gz", folder / "t.jsonl.gz", head, b"TWO" + head[3:-4] + other


def tar_source(folder: Path) -> tuple[str, Path, bytes, bytes]:
    with webdataset.TarWriter(str(folder / "t.tar")) as writer:
        for number in range(2):
            writer.write({"__key__": str(number), "png": PNG, "txt": ("one", "two")[number]})
    return "kind: image_text, format: webdataset, source: t.tar", folder / "t.tar", b"two", b"TWO"


def picture_source(folder: Path) -> tuple[str, Path, bytes, bytes]:
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").write_bytes(JPEG)
    (folder / "t.jsonl").write_text(json.dumps(mmc4_page(["one two"], ("a.jpg", 0))))
    at = JPEG.rindex(b"\xff\xd9") - 8
    old = JPEG[at:]
    return (
        "kind: interleaved, format: mmc4, source: t.jsonl, image_dir: images",
        folder / "images" / "a.jpg",
        old,
        bytes([old[0] ^ 1]) + old[1:],
    )


def answers_source(folder: Path) -> tuple[str, Path, bytes, bytes]:
    (folder / "images").mkdir()
    (folder / "images" / "1.png").write_bytes(PNG)
    (folder / "q.json").write_text(json.dumps({"questions": [{"question_id": 1, "image_id": 1, "question": "?"}]}))
    annotation = {"question_id": 1, "multiple_choice_answer": "two"}
    (folder / "a.json").write_text(json.dumps({"annotations": [annotation]}))
    dataset = "kind: image_question_answer, questions: q.json, annotations: a.json, image_dir: images"
    return f"{dataset}, image_name: '{{image_id}}.png'", folder / "images" / "1.png", PNG, COPIED["gray png"]


@pytest.mark.parametrize("source", [lines_source, gzip_source, tar_source, picture_source, answers_source])
def test_a_source_that_changes_between_scan_and_build(source, tmp_path, configured, read_documents, monkeypatch):
    """The change keeps the file's times, so that nothing but the checksums can tell; the next run scans again."""
    from gatokit.pipelines import run as job

    dataset, path, old, new = source(tmp_path)
    config = configured(dataset)
    real = job._build

    def harmed(*arguments: Any) -> None:
        about, data = path.stat(), path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        real(*arguments)

    monkeypatch.setattr(job, "_build", harmed)
    with pytest.raises(DataError, match=r": document \d changed between scan and build\. Run the build again$"):
        build(config, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(job, "_build", real)
    build(config, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    parts = [part for document in read_documents(tmp_path / "out", "d").parts.values() for part in document]
    stored = [part if isinstance(part, str) else part.data for part in parts]
    assert "TWO" in stored or path.read_bytes() in stored


def test_a_source_that_vanishes_between_scan_and_build(tmp_path, configured, monkeypatch):
    from gatokit.pipelines import run as job

    dataset, path, _, _ = lines_source(tmp_path)
    config, real = configured(dataset), job._build

    def harmed(*arguments: Any) -> None:
        path.unlink()
        real(*arguments)

    monkeypatch.setattr(job, "_build", harmed)
    with pytest.raises(DataError, match=r"t\.jsonl"):
        build(config, tmp_path / "out")
    monkeypatch.setattr(job, "_build", real)
    write_lines(path, ["one", "two"])
    assert build(config, tmp_path / "out").manifest.datasets[0].kept == 2


def test_a_source_that_changed_after_a_build_is_not_built_over(tmp_path, configured, go):
    from gatokit.schemas.errors import ConfigError

    write_lines(tmp_path / "t.jsonl", ["one", "two"])
    go("kind: text, source: t.jsonl")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    write_lines(tmp_path / "t.jsonl", ["one", "TWO"])
    with pytest.raises(ConfigError, match="holds a finished build of other source files"):
        build(configured("kind: text, source: t.jsonl"), tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
