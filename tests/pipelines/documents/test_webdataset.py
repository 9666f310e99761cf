import gzip
import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
import webdataset
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.reader import ScannedDocument, content_digest
from gatokit.pipelines.documents.webdataset import WebDatasetFile
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError

LARGE = 1 << 30
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip() != "")


def opened(path: Path, **options: Any) -> WebDatasetFile:
    return WebDatasetFile(path=os.fspath(path), name=path.name, size=path.stat().st_size, **options)


def img2dataset(path: Path, samples: Iterable[tuple[str, dict[str, Any]]]) -> Path:
    """Writes what img2dataset's WebDatasetSampleWriter writes: a sample a picture, its metadata as indented JSON."""
    with webdataset.TarWriter(os.fspath(path)) as writer:
        for key, members in samples:
            members = {
                name: json.dumps(value, indent=4) if name == "json" else value for name, value in members.items()
            }
            writer.write({"__key__": key, **members})
    return path


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def rows(file: WebDatasetFile, max_bytes: int = LARGE) -> list[tuple[str, str | None]]:
    return [(found.key, found.reason) for found in file.scan(max_bytes)]


def kept(file: WebDatasetFile) -> list[ByteRange]:
    return [found.byte_range for found in file.scan(LARGE) if found.reason is None]


def sample(key: str, image: bytes = b"image", text: bytes = b"a text") -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image), (f"{key}.txt", text)]


def test_a_shard_of_img2dataset_in_full(tmp_path: Path) -> None:
    meta = {"caption": "of the JSON", "url": "http://a", "key": "000000000", "status": "success"}
    file = opened(
        img2dataset(
            tmp_path / "00000.tar",
            [
                ("000000000", {"jpg": b"\xff\xd8first", "txt": "two dogs — à table", "json": meta}),
                ("000000001", {"webp": b"RIFFsecond", "json": meta}),
            ],
        )
    )
    first, second = file.scan(LARGE)
    text = "two dogs — à table".encode()
    assert first._replace(pictures=None, text=None) == ScannedDocument(
        ByteRange(0, 0, 7 + len(text), google_crc32c.value(b"\xff\xd8first" + text), "1536 7 5632 21 txt"),
        "000000000",
        content_digest([b"\xff\xd8first", "two dogs — à table"]),
    )
    stored = json.dumps(meta, indent=4).encode()
    assert second._replace(pictures=None, text=None) == ScannedDocument(
        ByteRange(1, 6144, 10 + len(stored), google_crc32c.value(b"RIFFsecond" + stored), second.byte_range.payload),
        "000000001",
        content_digest([b"RIFFsecond", "of the JSON"]),
    )
    assert list(file.read([first.byte_range, second.byte_range])) == [
        [b"\xff\xd8first", "two dogs — à table"],
        [b"RIFFsecond", "of the JSON"],
    ]


def test_the_json_key_that_the_config_names(tmp_path: Path) -> None:
    path = img2dataset(tmp_path / "a.tar", [("0", {"png": b"x", "txt": "no", "json": {"alt": "yes", "caption": "no"}})])
    file = opened(path, text_field="alt")
    assert list(file.read(kept(file))) == [[b"x", "yes"]]
    assert [found.detail for found in opened(path, text_field="title").scan(LARGE)] == ["the JSON has no 'title'"]


@settings(max_examples=60)
@given(
    samples=st.lists(
        st.tuples(st.sampled_from(["jpg", "jpeg", "png", "webp", "gif"]), st.binary(min_size=1, max_size=1500), TEXT),
        max_size=8,
    ),
    data=st.data(),
)
def test_any_samples_come_back_in_any_selection(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[str, bytes, str]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.tar"
    file = opened(
        img2dataset(
            path,
            [
                (f"folder/{i:05}", {kind: image, "txt": text, "json": {"i": i}})
                for i, (kind, image, text) in enumerate(samples)
            ],
        )
    )
    places = kept(file)
    expected = [[image, text] for _, image, text in samples]
    assert list(file.read(places)) == expected
    chosen = [at for at in range(len(places)) if data.draw(st.booleans())]
    assert list(file.read(places[at] for at in chosen)) == [expected[at] for at in chosen]


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    names = ["a.jpg", "a.txt", "a.seg.png", "b/a.jpg", "b/a.txt", "c.d/e.jpg", "c.d/e.json", "c.d/e.txt", "./f.g.h.jpg"]
    names += ["./f.txt", "README", "__meta__/x.txt", "__index__", "i.JPG", "i.TXT"]
    path = tar(tmp_path / "a.tar", [(name, f"{{}} {name}".encode()) for name in names])
    theirs = [
        (each["__key__"], each["jpg"], each["txt"].decode())
        for each in webdataset.WebDataset(os.fspath(path), shardshuffle=False, empty_check=False)
        if "jpg" in each
    ]
    file = opened(path)
    found = list(file.scan(LARGE))
    ours = [
        (one.key, *parts) for one, parts in zip((f for f in found if not f.reason), file.read(kept(file)), strict=True)
    ]
    assert ours == theirs
    assert [(one.key, one.detail) for one in found if one.reason] == [("./f", "has no picture, only .g.h.jpg, .txt")]


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "a.tar.gz": gzip.compress,
    "a.tgz": gzip.compress,
    "a.tar.zst": zstandard.compress,
}


@pytest.mark.parametrize("name", PACKED)
def test_a_compressed_archive_holds_what_the_plain_one_holds(tmp_path: Path, name: str) -> None:
    samples = [
        (f"{i:05}", {"jpg": os.urandom(100 * i + 1), "txt": f"text {i}", "json": {"i": i}, "seg.png": b"x" * 700})
        for i in range(40)
    ]
    plain = img2dataset(tmp_path / "a.tar", samples)
    (tmp_path / name).write_bytes(PACKED[name](plain.read_bytes()))
    packed = opened(tmp_path / name, type="compressed_webdataset")
    assert list(packed.scan(LARGE)) == list(opened(plain).scan(LARGE))
    places = kept(packed)
    assert list(packed.read(places[::3])) == [[one["jpg"], one["txt"]] for _, one in samples[::3]]
    assert packed.divides is False


@pytest.mark.parametrize("name", PACKED)
def test_a_damaged_compressed_archive_keeps_what_is_before(tmp_path: Path, name: str) -> None:
    samples = [(f"{i:05}", {"jpg": os.urandom(9_000), "txt": f"text {i}"}) for i in range(60)]
    whole = PACKED[name](img2dataset(tmp_path / "b.tar", samples).read_bytes())
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    found = list(opened(tmp_path / name, type="compressed_webdataset").scan(LARGE))
    assert [one.key for one in found[:-1]] == [key for key, _ in samples[: len(found) - 1]]
    assert 10 < len(found) < 50
    assert (found[-1].reason, found[-1].detail) == (
        "ends_early",
        "the compressed stream ends early, inside what begins at its byte 0",
    )
    assert 0 < found[-1].lost_bytes < 9_000


def test_texts_with_byte_order_marks(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    archive = [
        ("0.jpg", b"x"),
        ("0.txt", mark + b"a blue square"),
        ("1.jpg", b"x"),
        ("1.json", mark + b'{"caption": "a green square"}'),
        ("2.jpg", b"x"),
        ("2.json", json.dumps({"caption": "\ufeffa black square"}).encode("utf-16")),
        ("3.jpg", b"x"),
        ("3.txt", "ein rotes Rechteck, größer".encode("utf-16")),
    ]
    path = tar(tmp_path / "a.tar", archive)
    file = opened(path)
    captions = ["a blue square", "a green square", "a black square", "ein rotes Rechteck, größer"]
    assert list(file.read(kept(file))) == [[b"x", caption] for caption in captions]


def test_each_fault_has_its_reason(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        [
            *sample("good"),
            ("textless.jpg", b"x"),
            ("imageless.txt", b"x"),
            *sample("latin", text=b"caf\xe9"),
            *sample("empty", text=b" \n"),
            *sample("blank", image=b""),
            *sample("large", image=bytes(2000)),
            *sample("good", text=b"again"),
            ("number.jpg", b"x"),
            ("number.json", b'{"caption": 3}'),
            ("null.jpg", b"x"),
            ("null.json", b'{"caption": null}'),
            ("broken.jpg", b"x"),
            ("broken.json", b'{"caption": '),
            ("half.jpg", b"x"),
            ("half.json", b'{"caption": "\\ud83d"}'),
            *sample("last"),
        ],
    )
    assert rows(opened(path), max_bytes=1000) == [
        ("good", None),
        ("textless", "missing_field"),
        ("imageless", "missing_field"),
        ("latin", "not_utf8"),
        ("empty", "empty"),
        ("blank", "bad_image"),
        ("large", "too_large"),
        ("good", "duplicate_id"),
        ("number", "wrong_shape"),
        ("null", "missing_field"),
        ("broken", "corrupt_record"),
        ("half", "not_utf8"),
        ("last", None),
    ]


def test_what_is_no_sample_is_passed_over(tmp_path: Path) -> None:
    path, long = tmp_path / "a.tar", "Ü" * 200
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        folder = tarfile.TarInfo("x.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        link = tarfile.TarInfo("y.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name in [
            "._a.jpg",
            "__MACOSX/a.jpg",
            "d/__MACOSX/a.jpg",
            "d/._a.jpg",
            ".hidden.jpg",
            f"{long}.jpg",
            f"{long}.txt",
        ]:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 1, {"comment": "x"}
            archive.addfile(info, io.BytesIO(b"x"))
    assert rows(opened(path)) == [(long, None)]


def test_names_that_are_no_paths_or_no_utf8_are_keys_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name in ["../../etc/x.jpg", "../../etc/x.txt", "/abs.jpg", "/abs.txt", "é.jpg", "é.txt"]:
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    assert rows(opened(path)) == [("../../etc/x", None), ("/abs", None), ("\\xe9", None)]


def test_a_sample_of_two_images_is_rejected(tmp_path: Path) -> None:
    file = opened(tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.jpg", b"2"), ("a.txt", b"t"), *sample("b")]))
    assert [(found.key, found.reason, found.detail) for found in file.scan(LARGE)] == [
        ("a", "wrong_shape", "has 2 pictures, .png, .jpg; leave one of a key"),
        ("b", None, None),
    ]


def test_keys_with_dots_count_as_what_they_hide(tmp_path: Path) -> None:
    names = [f"v1.0_{number}.{suffix}" for number in range(200) for suffix in ("jpg", "txt")]
    [found] = opened(tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])).scan(LARGE)
    assert (found.key, found.reason, found.lost, found.lost_bytes) == ("v1", "missing_field", 200, 0)
    assert found.detail == (
        "has no picture, only .0_0.jpg, .0_0.txt, .0_1.jpg, .0_1.txt, .0_2.jpg, .0_2.txt and 394 more: a key ends at "
        "the first dot of a name, so leave no dot in keys"
    )


def test_a_suffix_that_comes_again_begins_a_sample(tmp_path: Path) -> None:
    assert rows(opened(tar(tmp_path / "a.tar", sample("a") + sample("a")))) == [("a", None), ("a", "duplicate_id")]


def test_a_truncated_archive_keeps_what_is_before(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", sample("a") + sample("b") + sample("c"))
    whole = path.read_bytes()
    for end, before in [
        (512, ""),
        (1536 + 3, ""),
        (2048, "a"),
        (2048 + 513, "a"),
        (3072 + 10, "a"),
        (6144, "abc"),
    ]:
        path.write_bytes(whole[:end])
        found = list(opened(path).scan(LARGE))
        assert ["".join(one.key for one in found[:-1]), found[-1].reason] == [before, "ends_early"], end
        assert found[-1].lost_bytes == end - 2048 * len(before)
        assert found[-1].byte_range == ByteRange(len(before), 2048 * len(before), end - 2048 * len(before), 0)
        file = opened(path)
        assert list(file.read(kept(file))) == [[b"image", "a text"]] * len(before)


def test_a_damaged_header_costs_its_sample(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", sample("a") + sample("b") + sample("c"))
    data = bytearray(path.read_bytes())
    for at in (2048, 3072):  # of the picture, and of the text
        harmed = bytearray(data)
        harmed[at + 10] ^= 4
        path.write_bytes(harmed)
        found = list(opened(path).scan(LARGE))
        assert [(one.key, one.reason, one.detail) for one in found] == [
            ("a", None, None),
            ("byte 2048", "corrupt_length", f"a header does not match its checksum at byte {at}"),
            ("c", None, None),
        ]
        assert (found[1].byte_range, found[1].lost_bytes) == (ByteRange(1, 2048, 2048, 0), 2048)
        assert len(list(opened(path).read(kept(opened(path))))) == 2


def test_a_sample_that_the_archive_ends_in_is_lost_with_the_rest(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("a.json", b'{"caption": "other"}'), ("a.txt", b"text")])
    path.write_bytes(path.read_bytes()[: 5 * 512 + 2])
    assert [(one.reason, one.byte_range.offset) for one in opened(path).scan(LARGE)] == [("ends_early", 0)]


def test_an_empty_archive_has_no_samples_and_an_empty_file_is_damaged(tmp_path: Path) -> None:
    assert rows(opened(tar(tmp_path / "a.tar", []))) == []
    (tmp_path / "b.tar").touch()
    assert rows(opened(tmp_path / "b.tar")) == [("byte 0", "ends_early")]


@pytest.mark.parametrize(
    ("begin", "sentence"),
    [
        (b"\x1f\x8b\x08", "a.tar: is compressed with gzip; unpack it and give the .tar in `source`"),
        (b"PAR1", "a.tar: is no tar archive; leave it out of `source`"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, begin: bytes, sentence: str) -> None:
    (tmp_path / "a.tar").write_bytes(begin.ljust(2000, b"x"))
    with pytest.raises(DataError) as caught:
        list(opened(tmp_path / "a.tar").scan(LARGE))
    assert str(caught.value) == sentence


def test_any_change_of_the_content_is_noticed(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", sample("a", bytes(range(256)) * 4) + sample("b"))
    places = kept(opened(path))
    whole = path.read_bytes()
    flipped = random.Random(0).sample([*range(512, 1536), *range(2048, 2054)], 60)
    for at in flipped:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"a\.tar: document 0 changed between scan and build"):
            list(opened(path).read(places))
        assert list(opened(path).read(places[1:])) == [[b"image", "a text"]]
    path.write_bytes(whole[:600])
    with pytest.raises(DataError, match="document 1 changed"):
        list(opened(path).read(places[1:]))
    path.write_bytes(whole)
    assert len(list(opened(path).read(places))) == 2
