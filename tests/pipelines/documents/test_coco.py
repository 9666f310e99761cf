import json
import os
from pathlib import Path
from typing import Any

import cv2
import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.image_folder import CocoFile
from gatokit.pipelines.documents.reader import ScannedDocument, content_digest
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError

LARGE = 1 << 30
Images = list[dict[str, Any]]


def picture(shade: int) -> bytes:
    return cv2.imencode(".jpg", np.full((16, 16, 3), shade, np.uint8))[1].tobytes()


def coco(folder: Path, images: Images, annotations: list[Any], **more: Any) -> CocoFile:
    """A captions JSON as COCO's are, and a folder with a picture for each of ``images``."""
    (folder / "images").mkdir(exist_ok=True)
    for image in images:
        path = folder / "images" / str(image.get("file_name"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(int(image["id"])))
    path = folder / "captions.json"
    info = {"info": {"description": "a test", "year": 2014}, "licenses": [], "type": "captions"}
    path.write_text(json.dumps({**info, "images": images, "annotations": annotations, **more}))
    return opened(folder)


def opened(folder: Path) -> CocoFile:
    path = folder / "captions.json"
    return CocoFile(
        path=os.fspath(path), name="captions.json", size=path.stat().st_size, image_dir=os.fspath(folder / "images")
    )


def image(id: int, name: str | None = None) -> dict[str, Any]:
    return {"id": id, "file_name": name or f"{id:012d}.jpg", "width": 16, "height": 16}


def caption(id: int, image_id: int, text: str) -> dict[str, Any]:
    return {"id": id, "image_id": image_id, "caption": text}


def rows(file: CocoFile, max_bytes: int = LARGE) -> list[tuple[str, str | None]]:
    return [(found.key, found.reason) for found in file.scan(max_bytes)]


def kept(file: CocoFile) -> list[ByteRange]:
    return [found.byte_range for found in file.scan(LARGE) if found.reason is None]


def test_captions_in_full(tmp_path: Path) -> None:
    file = coco(tmp_path, [image(7), image(5)], [caption(10, 5, "a"), caption(11, 7, "zwei ö"), caption(9, 5, "c")])
    crc = google_crc32c.value(picture(7) + "zwei ö".encode())
    size = len(picture(7)) + 7
    found = list(file.scan(LARGE))
    assert found[0]._replace(pictures=None, text=None) == ScannedDocument(
        ByteRange(0, 0, size, crc, '["000000000007.jpg","zwei \\u00f6"]'),
        "11",
        content_digest([picture(7), "zwei ö"]),
        "000000000007.jpg",
    )
    assert [(one.key, one.group, one.byte_range.position) for one in found[1:]] == [
        ("10", "000000000005.jpg", 1),
        ("9", "000000000005.jpg", 2),
    ]
    assert list(file.read(one.byte_range for one in found)) == [
        [picture(7), "zwei ö"],
        [picture(5), "a"],
        [picture(5), "c"],
    ]


@settings(max_examples=40)
@given(
    texts=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip() != ""),
        ),
        max_size=12,
    ),
    images_last=st.booleans(),
    data=st.data(),
)
def test_captions_are_those_of_pycocotools(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[int, str]], images_last: bool, data: st.DataObject
) -> None:
    from pycocotools.coco import COCO

    folder = tmp_path_factory.mktemp("coco")
    annotations = [caption(100 + at, id, text) for at, (id, text) in enumerate(texts)]
    file = coco(folder, [image(id) for id in (2, 0, 3, 1)], annotations)
    if images_last:
        content = json.loads((folder / "captions.json").read_text())
        content["images"] = content.pop("images")
        (folder / "captions.json").write_text(json.dumps(content, indent=1))
    peer = COCO(os.fspath(folder / "captions.json"))
    expected = {
        str(one["id"]): [
            (folder / "images" / peer.loadImgs(one["image_id"])[0]["file_name"]).read_bytes(),
            one["caption"],
        ]
        for one in peer.loadAnns(peer.getAnnIds())
    }
    found = list(file.scan(LARGE))
    assert dict(zip([one.key for one in found], file.read(one.byte_range for one in found), strict=True)) == expected
    chosen = [one for one in found if data.draw(st.booleans())]
    assert list(file.read(one.byte_range for one in chosen)) == [expected[one.key] for one in chosen]


def test_each_fault_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(picture(0))
    images = [image(number) for number in range(6)]
    annotations: list[Any] = [
        caption(1, 0, "good"),
        caption(2, 1, "its picture is gone"),
        caption(3, 2, "leads out"),
        caption(4, 3, "links out"),
        caption(5, 4, "is a folder"),
        caption(6, 5, "x" * 2000),
        caption(7, 99, "no such picture"),
        caption(1, 0, "an id that is taken"),
        caption(8, 0, " "),
        {"id": 9, "image_id": 0},
        {"image_id": 0, "caption": "no id"},
        {"id": 10, "caption": "no image_id"},
        {"id": 11, "image_id": 0, "caption": 3},
        {"id": [12], "image_id": 0, "caption": "a list for an id"},
        "no object",
        caption(13, 0, "half \ud83d"),
        caption(14, 6, "has an image without a name"),
    ]
    file = coco(tmp_path, images, annotations)
    pictures = tmp_path / "images"
    content = json.loads((tmp_path / "captions.json").read_text())
    (pictures / images[1]["file_name"]).unlink()
    content["images"][2]["file_name"] = "../outside.jpg"
    (pictures / images[3]["file_name"]).unlink()
    (pictures / images[3]["file_name"]).symlink_to("../outside.jpg")
    (pictures / images[4]["file_name"]).unlink()
    (pictures / images[4]["file_name"]).mkdir()
    content["images"].append({"id": 6})
    (tmp_path / "captions.json").write_text(json.dumps(content))
    found = {one.key: (one.reason, one.detail) for one in file.scan(1500)}
    assert found == {
        "1": ("duplicate_id", "the id '1' comes a second time"),
        "8": ("empty", "the text is empty"),
        "13": ("not_utf8", "the text holds half of a surrogate pair"),
        "2": ("missing_image", "'000000000001.jpg' is not in image_dir: No such file or directory"),
        "3": ("missing_image", "'../outside.jpg' leads out of image_dir"),
        "4": (
            "missing_image",
            "'000000000003.jpg' is a link out of image_dir; set `follow_links: true` to read it",
        ),
        "5": ("missing_image", "'000000000004.jpg' is no file"),
        "6": ("too_large", f"{2000 + len(picture(5))} bytes are above max_episode_bytes 1500"),
        "7": ("missing_field", "`images` has no entry with id 99 and a file_name"),
        "14": ("missing_field", "`images` has no entry with id 6 and a file_name"),
        "9": ("missing_field", "the JSON has no 'caption'"),
        "annotations[10]": ("missing_field", "the JSON has no 'id'"),
        "10": ("missing_field", "the JSON has no 'image_id'"),
        "11": ("wrong_shape", "'caption' holds no string"),
        "annotations[13]": ("wrong_shape", "'id' holds neither a whole number nor a string"),
        "annotations[14]": ("missing_field", "the JSON has no 'id'"),
    }
    assert [one for one in rows(file, 1500) if one[0] == "1"] == [("1", None), ("1", "duplicate_id")]


def test_an_id_of_two_pictures_costs_their_captions(tmp_path: Path) -> None:
    """Two files merged without new ids; an entry that is there twice contradicts nothing."""
    images = [image(1, "a/1.jpg"), image(2, "a/2.jpg"), image(1, "b/1.jpg"), image(2, "a/2.jpg")]
    annotations = [caption(1, 1, "a red square"), caption(2, 2, "a blue square"), caption(3, 1, "a green square")]
    found = list(coco(tmp_path, images, annotations).scan(LARGE))
    why = ("contradiction", "`images` has two pictures with id 1: 'a/1.jpg' and 'b/1.jpg'")
    assert [(one.key, one.reason, one.detail) for one in found] == [("1", *why), ("3", *why), ("2", None, None)]


@pytest.mark.parametrize("name", ["/etc/hostname", "a/../../x.jpg", "..", "a\0b", "x" * 300, "pipe", "\udcff.jpg"])
def test_names_that_are_no_images(tmp_path: Path, name: str) -> None:
    file = coco(tmp_path, [image(0)], [caption(1, 0, "x")])
    os.mkfifo(tmp_path / "images" / "pipe")
    content = json.loads((tmp_path / "captions.json").read_text())
    content["images"][0]["file_name"] = name
    (tmp_path / "captions.json").write_text(json.dumps(content))
    assert rows(file) == [("1", "missing_image")]


def test_images_in_folders_below_and_by_links_inside(tmp_path: Path) -> None:
    file = coco(tmp_path, [image(3, "train/a.jpg"), image(4)], [caption(1, 3, "x"), caption(2, 4, "y")])
    (tmp_path / "images" / image(4)["file_name"]).unlink()
    (tmp_path / "images" / image(4)["file_name"]).symlink_to("train/a.jpg")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "images").symlink_to("elsewhere")
    assert list(file.read(kept(file))) == [[picture(3), "x"], [picture(3), "y"]]


def test_links_out_of_the_folder_are_followed_if_the_config_says_so(tmp_path: Path) -> None:
    """A snapshot of the Hugging Face hub: every file is a link to a folder beside. Names lead nowhere all the same."""
    names = ["1.jpg", "below/2.jpg", "../outside.jpg", "/etc/hostname", "3.jpg", "linked/4.jpg"]
    file = coco(tmp_path, [image(at) for at in range(6)], [caption(at, at, f"text {at}") for at in range(6)])
    content = json.loads((tmp_path / "captions.json").read_text())
    for entry, name in zip(content["images"], names, strict=True):
        entry["file_name"] = name
    (tmp_path / "captions.json").write_text(json.dumps(content))
    (tmp_path / "outside.jpg").write_bytes(b"outside")
    blobs, folder = tmp_path / "blobs", tmp_path / "images"
    for at, name in ((1, "1.jpg"), (2, "below/2.jpg"), (3, "3.jpg")):
        (blobs / "b").mkdir(parents=True, exist_ok=True)
        (blobs / str(at)).write_bytes(picture(at))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(f"{'../' * (1 + name.count('/'))}blobs/{at}")
    (blobs / "3").unlink()
    (blobs / "b" / "4.jpg").write_bytes(picture(4))
    (folder / "linked").symlink_to("../blobs/b")
    assert [one.reason for one in file.scan(LARGE)] == ["missing_image"] * 6
    linked = file.model_copy(update={"follow_links": True})
    assert linked.identity() == file.identity()
    found = {one.key: (one.reason, one.detail) for one in linked.scan(LARGE)}
    assert found == {
        "0": (None, None),
        "1": (None, None),
        "2": ("missing_image", "'../outside.jpg' leads out of image_dir"),
        "3": ("missing_image", "'/etc/hostname' leads out of image_dir"),
        "4": ("missing_image", "'3.jpg' is not in image_dir: No such file or directory"),
        "5": (None, None),
    }
    assert [parts[0] for parts in linked.read(kept(linked))] == [picture(1), picture(2), picture(4)]


def test_each_image_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    os_open = os.open
    file = coco(tmp_path, [image(0), image(1)], [caption(at, at % 2, f"text {at}") for at in range(10)])
    monkeypatch.setattr(os, "open", lambda path, *more: names.append(os.path.basename(path)) or os_open(path, *more))
    places = kept(file)
    assert names == ["000000000000.jpg", "000000000001.jpg"]
    assert [text for _, text in file.read(places)] == [f"text {at}" for at in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]
    assert len(names) == 4


@pytest.mark.parametrize("fault", ["other", "longer", "gone"])
def test_a_changed_image_is_noticed(tmp_path: Path, fault: str) -> None:
    file = coco(tmp_path, [image(0)], [caption(1, 0, "x")])
    places = kept(file)
    path = tmp_path / "images" / "000000000000.jpg"
    path.unlink()
    if fault != "gone":
        path.write_bytes(picture(9) if fault == "other" else picture(0) + bytes(99))
    with pytest.raises(DataError, match=r"captions\.json: document 0 changed between scan and build"):
        list(file.read(places))


HINT = "give a captions JSON of COCO, such as captions_train2017.json (test sets have no captions)"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"images": []}', f"captions.json: has no list 'annotations'; {HINT}"),
        ("\x89PNG", f"captions.json: is damaged at character 0: Expecting value; {HINT}"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    coco(tmp_path, [], [])
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(DataError) as caught:
        list(opened(tmp_path).scan(LARGE))
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("text", "reason", "problem"),
    [
        ('{"images": [], "annotations": [{"id": 1', "ends_early", "at character 39: the text ends early"),
        ('{"images": [], "annotations": [{"caption": "a', "ends_early", "at character 43: Unterminated string"),
        ('{"images": [], "annotations": [1 2]}', "corrupt_length", "at character 33: Expecting ',' delimiter"),
    ],
)
def test_a_damaged_file_is_lost_whole(tmp_path: Path, text: str, reason: str, problem: str) -> None:
    coco(tmp_path, [], [])
    (tmp_path / "captions.json").write_text(text)
    [found] = opened(tmp_path).scan(LARGE)
    assert (found.key, found.reason, found.lost_bytes, found.lost) == ("0", reason, len(text), 1)
    assert str(found.detail).startswith(f"captions.json: is damaged {problem}")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    file = coco(tmp_path, [], []).model_copy(update={"image_dir": "/no/such"})
    with pytest.raises(DataError, match="/no/such: is no folder; set `image_dir` to the folder of the images"):
        list(file.scan(LARGE))


def test_a_bad_byte_in_the_json_costs_one_caption(tmp_path: Path) -> None:
    file = coco(tmp_path, [image(0)], [caption(1, 0, "one"), caption(2, 0, "two")])
    path = tmp_path / "captions.json"
    path.write_bytes(path.read_bytes().replace(b"one", b"o\xffe"))
    assert rows(file) == [("1", "not_utf8"), ("2", None)]
