"""Pages as MMC4 publishes them: JSON lines, and pictures in a folder."""

import gzip
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.interleaved import Mmc4File
from gatokit.pipelines.documents.reader import Part, ScannedDocument, content_digest
from gatokit.schemas.errors import DataError

BOUND = 1 << 20


def image(name: Any, index: Any) -> dict[str, Any]:
    return {
        "image_name": name,
        "raw_url": f"http://example.org/{name}",
        "matched_text_index": index,
        "matched_sim": 0.27694183588027954,
        "face_detections": None,
    }


def page(sentences: Any, *images: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_list": sentences,
        "url": "http://example.org/",
        "image_info": list(images),
        "similarity_matrix": [[0.25] * 3 for _ in images],
        "could_have_url_duplicate": 0,
    }


def stored(path: Path, *pages: Any, skip_bad: bool = False) -> Mmc4File:
    """A file of ``pages`` with the pictures a.jpg, b.png and the like in a folder beside it."""
    pictures = path.parent / "pic tures"
    (pictures / "below").mkdir(parents=True, exist_ok=True)
    for name in ("a.jpg", "b.png", "ü [*].webp", "below/c.jpg"):
        (pictures / name).write_bytes(b"bytes of " + name.encode())
    data = "".join(json.dumps(content) + "\n" for content in pages).encode()
    store = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(store(data))
    return Mmc4File(
        type="mmc4" if path.suffix == ".jsonl" else "compressed_mmc4",
        path=str(path),
        name=path.name,
        size=path.stat().st_size,
        image_dir=str(pictures),
        skip_bad=skip_bad,
    )


def parts(file: Mmc4File) -> list[list[Part]]:
    sound = [document for document in file.scan(BOUND) if document.reason is None]
    read = list(file.read([document.byte_range for document in sound]))
    assert [content_digest(part) for part in read] == [document.content for document in sound]
    return read


def only(file: Mmc4File, max_bytes: int = BOUND) -> ScannedDocument:
    [found] = file.scan(max_bytes)
    return found


A, B, C, U = b"bytes of a.jpg", b"bytes of b.png", b"bytes of below/c.jpg", "bytes of ü [*].webp".encode()


@pytest.mark.parametrize("name", ["a b [1].jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_images_stand_before_their_sentences(tmp_path: Path, name: str) -> None:
    file = stored(
        tmp_path / name,
        page(["One.", "Two.", "Three."], image("a.jpg", 2), image("b.png", 1), image("below/c.jpg", 2)),
        page(["One.", "", " ", "Two."]),
        page(["One."], image("ü [*].webp", 0)),
        page(["", "Two."], image("a.jpg", 0), image("a.jpg", 1)),
        page([""], image("a.jpg", 0)),
    )
    expected: list[list[Part]] = [
        ["One.", B, "Two.", A, C, "Three."],
        ["One. Two."],
        [U, "One."],
        [A, A, "Two."],
        [A],
    ]
    assert parts(file) == expected
    found = list(file.scan(BOUND))
    assert [document.key for document in found] == ["0", "1", "2", "3", "4"]
    assert [document.byte_range for document in found[1:3]] == [found[1].byte_range, found[2].byte_range]
    assert list(file.read([found[0].byte_range, found[3].byte_range])) == [expected[0], expected[3]]
    assert {document.detail for document in found} == {None}
    lines = [len(json.dumps(content)) for content in (page(["One."], image("ü [*].webp", 0)),)]
    assert found[2].byte_range.length == lines[0] + len(U)


def test_compressed_files_do_not_divide(tmp_path: Path) -> None:
    assert [stored(tmp_path / name).divides for name in ("a.jsonl", "a.jsonl.gz")] == [True, False]


BAD_PAGES = [
    ({"image_info": []}, "missing_field", "'text_list' is not among the keys 'image_info'"),
    ({"text_list": ["a"]}, "missing_field", "'image_info' is not among the keys 'text_list'"),
    (page("a"), "wrong_shape", "'text_list' is no list of strings"),
    (page(["a", None]), "wrong_shape", "'text_list' is no list of strings"),
    ({**page(["a"]), "image_info": ["a.jpg"]}, "wrong_shape", "'image_info' is no list of objects"),
    (page(["a"], image(7, 0)), "wrong_shape", "image_info[0]: 'image_name' is 7, no string"),
    (
        page(["a"], image("a.jpg", 0), image("a.jpg", 1)),
        "corrupt_record",
        "image_info[1]: 'matched_text_index' is 1, no sentence of 1",
    ),
    (page(["a"], image("a.jpg", -1)), "corrupt_record", "image_info[0]: 'matched_text_index' is -1, no sentence of 1"),
    (
        page(["a"], image("a.jpg", 0.0)),
        "corrupt_record",
        "image_info[0]: 'matched_text_index' is 0.0, no sentence of 1",
    ),
    (
        page(["a"], image("a.jpg", None)),
        "corrupt_record",
        "image_info[0]: 'matched_text_index' is None, no sentence of 1",
    ),
    (page([], image("a.jpg", 0)), "corrupt_record", "image_info[0]: 'matched_text_index' is 0, no sentence of 0"),
    (page(["a\ud800"]), "not_utf8", "a text holds '\\ud800', half a surrogate pair"),
    (page([" "]), "empty", "the page holds neither text nor pictures"),
    (page([]), "empty", "the page holds neither text nor pictures"),
    (["a"], "corrupt_record", "the line holds no JSON object but a list"),
]


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize(("content", "reason", "detail"), BAD_PAGES)
def test_a_bad_page_is_one_row(tmp_path: Path, content: Any, reason: str, detail: str, skip_bad: bool) -> None:
    file = stored(tmp_path / "a.jsonl", page(["before"]), content, page(["after"]), skip_bad=skip_bad)
    found = list(file.scan(BOUND))
    assert [document.reason for document in found] == [None, reason, None]
    assert (found[1].detail, found[1].content) == (detail, None)
    assert parts(file) == [["before"], ["after"]]


OUTWARD_LINK = "is a link out of image_dir; set `follow_links: true` to read it"
MISSING = [
    ("no.jpg", "image_info[0]: 'no.jpg' is not in image_dir: No such file or directory"),
    ("a.jpg/b.jpg", "image_info[0]: 'a.jpg/b.jpg' is not in image_dir: Not a directory"),
    ("x" * 300, f"image_info[0]: '{'x' * 199} is not in image_dir: File name too long"),
    ("below", "image_info[0]: 'below' is no file"),
    ("pipe", "image_info[0]: 'pipe' is no file"),
    ("../secret.jpg", "image_info[0]: '../secret.jpg' leads out of image_dir"),
    ("below/../a.jpg", "image_info[0]: 'below/../a.jpg' leads out of image_dir"),
    ("/etc/hostname", "image_info[0]: '/etc/hostname' leads out of image_dir"),
    ("out.jpg", f"image_info[0]: 'out.jpg' {OUTWARD_LINK}"),
    ("out/secret.jpg", f"image_info[0]: 'out/secret.jpg' {OUTWARD_LINK}"),
    (".", "image_info[0]: '.' is no file"),
    ("..", "image_info[0]: '..' is no file"),
    ("socket", "image_info[0]: 'socket' is no file"),
    ("loop", "image_info[0]: 'loop' is not in image_dir: Too many levels of symbolic links"),
    ("a\0.jpg", "image_info[0]: 'a\\x00.jpg' is no name of a file"),
    ("\ud800", "image_info[0]: '\\ud800' is no name of a file"),
    ("http://example.org/a.jpg", "image_info[0]: 'http://example.org/a.jpg' is a URL; pictures come from files"),
    ("", "image_info[0] has no name"),
    (None, "image_info[0] has no name"),
]


@pytest.mark.parametrize(("name", "detail"), MISSING)
def test_a_missing_image_drops_the_page_or_is_left_out(tmp_path: Path, name: str | None, detail: str) -> None:
    content = page(["One.", "Two.", "Three."], image(name, 1), image("b.png", 2))
    file = stored(tmp_path / "a.jsonl", content, page(["Two."], image(name, 0)), page([""], image(name, 0)))
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    pictures = Path(file.image_dir)
    (pictures / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (pictures / "out").symlink_to(tmp_path)
    (pictures / "loop").symlink_to("loop")
    os.mkfifo(pictures / "pipe")
    os.mknod(pictures / "socket", stat.S_IFSOCK)
    found = list(file.scan(BOUND))
    assert [(document.reason, document.detail) for document in found] == [("missing_image", detail)] * 3
    file = file.model_copy(update={"skip_bad": True})
    note = f"without 1 of its pictures: {detail}"
    assert parts(file) == [["One. Two.", B, "Three."], ["Two."]]
    found = list(file.scan(BOUND))
    assert [(document.reason, document.detail) for document in found] == [(None, note), (None, note), ("empty", note)]


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    file = stored(tmp_path / "a.jsonl", page(["One."], image("link.jpg", 0)))
    (Path(file.image_dir) / "link.jpg").symlink_to("below/c.jpg")
    (tmp_path / "folder").symlink_to(file.image_dir)
    assert parts(file) == [[C, "One."]]
    assert parts(file.model_copy(update={"image_dir": str(tmp_path / "folder") + "/"})) == [[C, "One."]]


def test_what_the_scan_left_out_stays_out(tmp_path: Path) -> None:
    file = stored(tmp_path / "a.jsonl", page(["One."], image("late.jpg", 0), image("a.jpg", 0)), skip_bad=True)
    place = only(file).byte_range
    (Path(file.image_dir) / "late.jpg").write_bytes(b"late")
    assert list(file.read([place])) == [[A, "One."]]
    assert parts(file) == [[b"late", A, "One."]]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_images_count_into_the_bound(tmp_path: Path, skip_bad: bool) -> None:
    content = page(["One."], image("a.jpg", 0), image("b.png", 0))
    file = stored(tmp_path / "a.jsonl", content, skip_bad=skip_bad)
    size = len(json.dumps(content)) + len(A) + len(B)
    assert (only(file, size).reason, only(file, size).byte_range.length) == (None, size)
    for bound in (size - 1, size - len(B), size - len(B) - 1):
        assert (only(file, bound).reason, only(file, bound).content) == ("too_large", None)
    assert only(file, len(json.dumps(content)) - 1).detail == (
        f"the document is above max_episode_bytes {len(json.dumps(content)) - 1}"
    )


@pytest.mark.parametrize("data", [b"bytes of A.jpg", b"bytes of a.jp", b"bytes of a.jpgs", b"", None])
def test_a_changed_image_is_an_error(tmp_path: Path, data: bytes | None) -> None:
    file = stored(tmp_path / "a.jsonl", page(["One."], image("a.jpg", 0)), page(["Two."]))
    places = [document.byte_range for document in file.scan(BOUND)]
    picture = Path(file.image_dir) / "a.jpg"
    picture.write_bytes(data) if data is not None else picture.unlink()
    assert list(file.read(places[1:])) == [["Two."]]
    with pytest.raises(DataError, match=r"a\.jsonl: document 0 changed between scan and build"):
        list(file.read(places))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_changed_line_is_an_error(tmp_path: Path, name: str) -> None:
    file = stored(tmp_path / name, page(["One."], image("a.jpg", 0)))
    places = [only(file).byte_range]
    for content in (page(["Two."], image("a.jpg", 0)), page(["One."], image("b.png", 0)), page(["One"]), {}):
        stored(tmp_path / name, content)
        with pytest.raises(DataError, match="changed between scan and build"):
            list(file.read(places))


def test_archives_and_folders_that_are_none_are_errors(tmp_path: Path) -> None:
    file = stored(tmp_path / "a.jsonl", page(["One."], image("a.jpg", 0)))
    with pytest.raises(DataError, match="set `image_dir` to the folder of the images"):
        list(file.model_copy(update={"image_dir": str(tmp_path / "none")}).scan(BOUND))
    (tmp_path / "a.jsonl").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match=r"a\.jsonl: is a zip archive; unpack it"):
        list(file.scan(BOUND))


SENTENCES = st.text(max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.tuples(SENTENCES, st.lists(st.sampled_from(["a.jpg", "b.png", "no.jpg"]), max_size=3)))),
    st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"]),
    st.data(),
)
def test_pages_come_back_in_reading_order(tmp_path: Path, pages: list, name: str, data: st.DataObject) -> None:
    """Each page is drawn as sentences with the pictures before them, and written in MMC4's own order."""
    contents, expected = [], []
    for drawn in pages:
        images = [(file, index) for index, (_, files) in enumerate(drawn) for file in files]
        order = sorted(range(len(images)), key=lambda number: number % 2)
        reading: list[Part] = []
        for index, (sentence, _) in enumerate(drawn):
            names = [images[number][0] for number in order if images[number][1] == index]
            reading += [{"a.jpg": A, "b.png": B}[file] for file in names if file != "no.jpg"]
            if sentence.strip() and reading and isinstance(reading[-1], str):
                reading[-1] += " " + sentence
            elif sentence.strip():
                reading.append(sentence)
        contents.append(page([sentence for sentence, _ in drawn], *(image(*images[number]) for number in order)))
        expected.append(reading)
    file = stored(tmp_path / name, *contents, skip_bad=True)
    found = list(file.scan(BOUND))
    reasons = [None if reading else "empty" for reading in expected] if pages or name != "a.jsonl" else ["empty"]
    assert [document.reason for document in found] == reasons
    sound = [number for number, reading in enumerate(expected) if reading]
    assert parts(file) == [expected[number] for number in sound]
    chosen = sorted(data.draw(st.sets(st.sampled_from(sound)))) if sound else []
    assert list(file.read([found[number].byte_range for number in chosen])) == [expected[number] for number in chosen]
