"""The demo's captions and prose: what is in them, and that the same bytes come again."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from gatokit.environments.demo import make_captions, make_text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpora")
    assert make_captions(out) == out / "00000.tar"
    assert make_text(out) == out / "text.jsonl"
    assert sorted(path.name for path in out.iterdir()) == ["00000.tar", "text.jsonl"]
    return out


@pytest.fixture(scope="module")
def members(made: Path) -> dict[str, bytes]:
    with tarfile.open(made / "00000.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_a_picture_has_a_jpeg_a_record_and_a_caption(members: dict[str, bytes]) -> None:
    names = list(members)
    assert len(names) == 3 * 1444
    assert names[:4] == ["000000000.jpg", "000000000.json", "000000000.txt", "000000001.jpg"]
    assert members["000000500.txt"].decode() == "hotel"
    row = json.loads(members["000000500.json"])
    digest = row.pop("sha256")
    assert row == {
        "caption": "hotel",
        "url": "openmoji/1F3E8.svg",
        "key": "000000500",
        "status": "success",
        "error_message": None,
        "width": 90,
        "height": 120,
        "original_width": 90,
        "original_height": 120,
        "exif": "{}",
    }
    assert len(digest) == 64


def test_captions_are_names(members: dict[str, bytes]) -> None:
    captions = {data.decode() for name, data in members.items() if name.endswith(".txt")}
    assert {"dog face", "slice of pizza", "volcano", "umbrella with rain drops", "black chess pawn"} <= captions
    assert len(captions) == 1444


def test_pictures_have_the_sizes_that_their_records_say(members: dict[str, bytes]) -> None:
    sizes: Counter[tuple[int, int]] = Counter()
    for name, data in members.items():
        if name.endswith(".jpg"):
            height, width, channels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape
            row = json.loads(members[name.replace(".jpg", ".json")])
            assert (channels, width, height) == (3, row["width"], row["height"])
            sizes[width, height] += 1
    assert sizes == {(64, 64): 241, (96, 72): 241, (90, 120): 241, (100, 100): 241, (150, 150): 240, (200, 150): 240}


def test_a_picture_is_drawn_in_its_colors_on_white(members: dict[str, bytes]) -> None:
    key = next(name.removesuffix(".txt") for name, data in members.items() if data == b"yellow heart")
    pixels = cv2.imdecode(np.frombuffer(members[f"{key}.jpg"], np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)
    height, width, _ = pixels.shape
    assert pixels[0, 0].min() > 250
    assert np.abs(pixels[height // 2, width // 2] - [252, 234, 43]).max() < 12


def test_text_is_prose_of_the_reference_and_the_library(made: Path) -> None:
    documents = {row["id"]: row["text"] for row in map(json.loads, (made / "text.jsonl").open(encoding="utf-8"))}
    paragraphs = [paragraph for text in documents.values() for paragraph in text.split("\n\n")]
    assert 1_000_000 < sum(map(len, documents.values())) < 2_000_000
    assert len(documents) > 250
    assert documents["topics/with"].startswith(
        'The "with" statement is used to wrap the execution of a block with methods defined by a context manager (see '
        'section With Statement Context Managers). This allows common "try"…"except"…"finally" usage patterns to be '
        "encapsulated for convenient reuse.\n\n"
    )
    assert "with_stmt" not in documents["topics/with"]
    assert documents["library/heapq.py"].split("\n\n")[2] == (
        "- We use 0-based indexing. This makes the relationship between the index for a node and the indexes for its "
        "children slightly less obvious, but is more suitable since Python uses 0-based indexing."
    )
    assert min(len(paragraph.split()) for paragraph in paragraphs) == 6
    assert not any(">>>" in paragraph or " = " in paragraph for paragraph in paragraphs)
    assert min(map(len, documents.values())) >= 500


def test_the_same_bytes_come_again(made: Path, tmp_path: Path) -> None:
    for make, name in ((make_captions, "00000.tar"), (make_text, "text.jsonl")):
        assert make(tmp_path).read_bytes() == (made / name).read_bytes()


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    for make, name in ((make_captions, "00000.tar"), (make_text, "text.jsonl")):
        (tmp_path / name).write_bytes(b"there")
        assert make(tmp_path).read_bytes() == b"there"
