"""JSONL of texts, written with the json, gzip and zstandard packages."""

import gzip
import json
import random
import resource
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.reader import ScannedDocument, content_digest
from gatokit.pipelines.documents.text import TextLinesFile
from gatokit.schemas.errors import DataError

BOUND = 1 << 20


def plain(path: Path, field: str = "text") -> TextLinesFile:
    return TextLinesFile(path=str(path), name=path.name, size=path.stat().st_size, field=field)


def compressed(path: Path) -> TextLinesFile:
    return TextLinesFile(
        type="compressed_lines", path=str(path), name=path.name, size=path.stat().st_size, field="text"
    )


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def rows(found: list[ScannedDocument]) -> list[tuple[int, str | None]]:
    return [(document.byte_range.position, document.reason) for document in found]


def texts(file: TextLinesFile, max_bytes: int = BOUND) -> list[str]:
    """The texts of all sound documents, after comparing them with what the scan said of them."""
    sound = [document for document in file.scan(max_bytes) if document.reason is None]
    parts = list(file.read([document.byte_range for document in sound]))
    assert [content_digest(part) for part in parts] == [document.content for document in sound]
    assert [document.key for document in sound] == [str(document.byte_range.position) for document in sound]
    assert all(len(part) == 1 and isinstance(part[0], str) for part in parts)
    return [str(part[0]) for part in parts]


def test_places_count_lines_and_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "a b [*] ü.jsonl", b'\xef\xbb\xbf{"text":"one"}\r\n\n  \n{"text":"two","n":NaN}')
    first, second = plain(path).scan(BOUND)
    assert (first.byte_range.position, first.byte_range.offset, first.byte_range.length) == (0, 3, 15)
    assert (second.byte_range.position, second.byte_range.offset, second.byte_range.length) == (3, 23, 22)
    assert texts(plain(path)) == ["one", "two"]


def test_a_compressed_file_of_no_bytes_is_a_fault_and_a_stream_of_no_bytes_is_none(tmp_path: Path) -> None:
    for name, data in (("a.jsonl.gz", gzip.compress(b"")), ("a.jsonl.zst", zstandard.compress(b""))):
        assert list(compressed(written(tmp_path / name, data)).scan(BOUND)) == []
    for name in ("b.jsonl.gz", "b.jsonl.zst"):
        [found] = compressed(written(tmp_path / name, b"")).scan(BOUND)
        assert (found.reason, found.detail, found.lost, found.lost_bytes) == ("ends_early", "the file is empty", 1, 0)


def test_a_plain_file_of_no_bytes_is_a_row_without_text(tmp_path: Path) -> None:
    [found] = plain(written(tmp_path / "a.jsonl", b"")).scan(BOUND)
    assert (found.reason, found.detail, found.lost_bytes) == ("empty", "the file is empty", 0)


BAD_LINES = [
    (b'{"text": "cut', "corrupt_record", "the line is no JSON: "),
    (b'["text"]', "corrupt_record", "the line holds no JSON object but a list"),
    (b"3", "corrupt_record", "the line holds no JSON object but a number"),
    (b"[" * 100_000, "corrupt_record", "the line is no JSON: "),
    (b'{"n": 1, "m": 2}', "missing_field", "'text' is not among the keys 'n', 'm'"),
    (b"{}", "missing_field", "'text' is not among the keys none"),
    (b'{"text": null}', "missing_field", "'text' is null"),
    (b'{"text": ["a"]}', "wrong_shape", "'text' holds no string but a list"),
    (b'{"text": true}', "wrong_shape", "'text' holds no string but true or false"),
    (b'{"text": "\xff"}', "not_utf8", "the line is not valid UTF-8 at its byte 10"),
    (b'{"text": "\xed\xa0\x80"}', "not_utf8", "the line is not valid UTF-8 at its byte 10"),
    (b'{"text": "a\\ud800"}', "not_utf8", "a text holds '\\ud800', half a surrogate pair"),
    (b'{"text": ""}', "empty", "'text' holds nothing but white space"),
    (b'{"text": " \\n\\u3000"}', "empty", "'text' holds nothing but white space"),
]


@pytest.mark.parametrize(("line", "reason", "detail"), BAD_LINES)
def test_a_bad_line_is_one_row_with_a_reason(tmp_path: Path, line: bytes, reason: str, detail: str) -> None:
    path = written(tmp_path / "a.jsonl", b'{"text":"before"}\n' + line + b'\n{"text":"after"}\n')
    found = list(plain(path).scan(BOUND))
    assert rows(found) == [(0, None), (1, reason), (2, None)]
    assert (found[1].content, found[1].lost, found[1].byte_range.length) == (None, 1, len(line))
    assert str(found[1].detail).startswith(detail)
    assert texts(plain(path)) == ["before", "after"]


def test_whole_pairs_and_nul_are_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b'{"text":"\\ud83d\\ude00\\u0000 \\r\\n"}\n')
    assert texts(plain(path)) == ["\U0001f600\0 \r\n"]


def test_the_field_is_the_configs(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b'{"text":"a","meta.body":"b"}\n')
    assert texts(plain(path, "meta.body")) == ["b"]


@pytest.mark.parametrize("end", [b"", b"\n", b'\n{"text":"x"}'])
def test_bound_counts_the_line_without_its_newline(tmp_path: Path, end: bytes) -> None:
    line = b'{"text":"' + b"y" * 89 + b'"}'
    path = written(tmp_path / "a.jsonl", line + end)
    first, *_ = plain(path).scan(100)
    assert (len(line), first.reason) == (100, None)
    first, *others = plain(path).scan(99)
    assert (first.reason, first.byte_range.length) == ("too_large", 100)
    assert rows(others) == ([(1, None)] if b"x" in end else [])


def test_lines_above_the_bound_are_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(256):
            file.write(b" " * (1 << 20))
        file.write(b'\n{"text":"x"}\n')
    tracemalloc.start()
    found = list(compressed(path).model_copy(update={"max_unpacked": 1000}).scan(1 << 16))
    assert rows(found) == [(0, "too_large"), (1, None)]
    assert found[0].byte_range.length == 256 << 20
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


LINES = [{"text": f"document {number} " + "é\n" * (number % 7)} for number in range(32)]
DATA = b"".join(json.dumps(line).encode() + b"\n" for line in LINES)
CUT = DATA.index(b"document 14") + 5


def long_window(data: bytes, window_log: int) -> bytes:
    """A frame of raw blocks with a window of 2**window_log bytes and no content size, as ``zstd --long`` begins one."""
    blocks = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
    heads = [(len(block) << 3 | (at == len(blocks) - 1)).to_bytes(3, "little") for at, block in enumerate(blocks)]
    begin = b"\x28\xb5\x2f\xfd\0" + bytes([(window_log - 10) << 3])
    return begin + b"".join(head + block for head, block in zip(heads, blocks, strict=True))


def _skippable(data: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


CONTAINERS = {
    "one.gz": gzip.compress(DATA),
    "members.gz": gzip.compress(DATA[:CUT]) + gzip.compress(b"") + gzip.compress(DATA[CUT:]),
    "padded.gz": gzip.compress(DATA) + bytes(512),
    "one.zst": zstandard.compress(DATA),
    "frames.zst": zstandard.compress(DATA[:CUT]) + zstandard.compress(b"") + zstandard.compress(DATA[CUT:]),
    "pzstd.zst": _skippable(b"1234")
    + zstandard.compress(DATA[:CUT])
    + _skippable(b"")
    + zstandard.compress(DATA[CUT:]),
    "long=28.zst": long_window(DATA, 28),
    "long=31.zst": long_window(DATA, 31),
    "unsized.zst": zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(DATA),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_compressed_files_are_read_to_their_end(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, CONTAINERS[name])
    assert texts(compressed(path)) == [line["text"] for line in LINES]
    there = [document.byte_range for document in plain(written(tmp_path / "a.jsonl", DATA)).scan(BOUND)]
    places = [document.byte_range for document in compressed(path).scan(BOUND)]
    assert places == there
    assert list(compressed(path).read(places[7::9])) == [[line["text"]] for line in LINES[7::9]]


def test_windows_are_those_that_the_frames_state() -> None:
    sizes = [zstandard.get_frame_parameters(CONTAINERS[f"long={log}.zst"]).window_size for log in (28, 31)]
    assert sizes == [1 << 28, 1 << 31]


def test_a_long_window_takes_no_more_memory_than_its_content(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(3):
        path = written(tmp_path / f"{number}.zst", CONTAINERS["long=31.zst"])
        assert len(texts(compressed(path))) == len(LINES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_marks_begin_lines_and_texts(tmp_path: Path) -> None:
    """Files with a byte order mark that were joined, blank parts too, and a text that begins with one in its JSON."""
    part = b"\xef\xbb\xbf" + b'{"text": "a"}\n{"text": "\\ufeffb \\ufeff c"}\r\n'
    file = plain(written(tmp_path / "a.jsonl", part + b"\xef\xbb\xbf\n" + part + b"\xef\xbb\xbf"))
    assert texts(file) == ["a", "b \ufeff c", "a", "b \ufeff c"]
    assert [place.byte_range[:3] for place in file.scan(BOUND)] == [(0, 3, 13), (1, 17, 29), (3, 54, 13), (4, 68, 29)]


def test_long_compressed_streams(tmp_path: Path) -> None:
    generator = random.Random(0)
    lines = [{"text": "".join(generator.choices("abcdef \n", k=generator.randrange(1, 9000)))} for _ in range(600)]
    lines = [line for line in lines if line["text"].strip()]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    for name, content in (("a.gz", gzip.compress(data)), ("a.zst", zstandard.compress(data))):
        assert texts(compressed(written(tmp_path / name, content))) == [line["text"] for line in lines]


@pytest.mark.parametrize("name", ["members.gz", "frames.zst"])
def test_truncated_streams_keep_what_is_before(tmp_path: Path, name: str) -> None:
    whole = CONTAINERS[name]
    expected = [line["text"] for line in LINES]
    ends = []
    for size in range(1, len(whole)):
        file = compressed(written(tmp_path / name, whole[:size]))
        found = list(file.scan(BOUND))
        sound = [document for document in found if document.reason is None]
        assert [document.reason for document in found[len(sound) :]] == ["ends_early"]
        assert (found[-1].lost, found[-1].takes_back) == (1, 0)
        assert found[-1].byte_range.position == len(sound)
        if not str(found[-1].detail).startswith("the compressed stream ends early, inside what begins at its byte "):
            # Where a member or frame ends, the cut line says that there was more.
            assert str(found[-1].detail).startswith("the file ends inside a line: the line is no JSON: ")
            ends.append(size)
        assert texts(file) == expected[: len(sound)]
    cut = DATA[:CUT].count(b"\n")
    assert len(ends) == 2
    for size in ends:
        file = compressed(written(tmp_path / name, whole[:size]))
        assert rows(list(file.scan(BOUND)))[cut - 1 :] == [(cut - 1, None), (cut, "ends_early")]


@pytest.mark.parametrize("name", ["one.gz", "unsized.zst"])
def test_flipped_bits_of_streams_are_noticed(tmp_path: Path, name: str) -> None:
    whole = CONTAINERS[name]
    harmless = tried = 0
    for position in range(8 * 10, 8 * len(whole), 5):
        tried += 1
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        try:
            found = list(compressed(written(tmp_path / name, bytes(data))).scan(BOUND))
        except DataError:
            continue
        if all(document.reason is None for document in found):
            harmless += 1
            assert [document.content for document in found] == [content_digest([line["text"]]) for line in LINES]
        else:
            assert found[-1].reason in ("corrupt_length", "ends_early")
    assert harmless < tried / 50  # both formats have bits that mean nothing


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.jsonl", gzip.compress(DATA), "a.jsonl: is compressed; give it a name that ends in .gz"),
        ("a.jsonl", zstandard.compress(DATA), "a.jsonl: is compressed; give it a name that ends in .zst"),
        ("a.gz", DATA, "a.gz: is not compressed as .gz files are; give it its right name"),
        ("a.zst", gzip.compress(DATA), "a.zst: is not compressed as .zst files are; give it its right name"),
        ("a.jsonl", b"PK\x03\x04....", "a.jsonl: is a zip archive; unpack it"),
    ],
)
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        list(plain(written(tmp_path / name, data)).scan(BOUND))
    assert str(error.value) == sentence


@pytest.mark.parametrize("name", ["a.jsonl", "one.gz", "one.zst"])
def test_a_change_after_the_scan_is_an_error(tmp_path: Path, name: str) -> None:
    def stored(data: bytes) -> bytes:
        return {"l": data, "z": gzip.compress(data), "t": zstandard.compress(data)}[name[-1]]

    path = written(tmp_path / name, stored(DATA))
    file = plain(path)
    places = [document.byte_range for document in file.scan(BOUND)]
    written(path, stored(DATA.replace(b"document 30", b"document 3O")))
    assert list(file.read(places[:30])) == [[line["text"]] for line in LINES[:30]]
    with pytest.raises(DataError, match=f"{name}: document 30 changed between scan and build. Run the build again"):
        list(file.read(places[29:]))
    written(path, stored(DATA)[:-40])
    with pytest.raises(DataError, match="changed between scan and build"):
        list(file.read(places))


def _has_tokens(text: str) -> bool:
    return bool(text.strip())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text().filter(_has_tokens), max_size=12),
    st.booleans(),
    st.sampled_from([("a.jsonl", bytes), ("a.gz", gzip.compress), ("a.zst", zstandard.compress)]),
    st.data(),
)
def test_what_json_writes_is_read(
    tmp_path: Path, documents: list[str], ascii: bool, form: tuple, data: st.DataObject
) -> None:
    name, store = form
    stored = "".join(json.dumps({"id": 1, "text": text}, ensure_ascii=ascii) + "\n" for text in documents).encode()
    file = (plain if name == "a.jsonl" else compressed)(written(tmp_path / name, store(stored)))
    assert texts(file) == documents
    places = [document.byte_range for document in file.scan(BOUND) if document.reason is None]
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(places)))))) if places else []
    assert list(file.read([places[number] for number in chosen])) == [[documents[number]] for number in chosen]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 8 * len(DATA) - 1))
def test_a_flipped_bit_costs_only_the_lines_it_touches(tmp_path: Path, bit: int) -> None:
    path = written(tmp_path / "a.jsonl", DATA)
    file = plain(path)
    before = list(file.scan(BOUND))
    data = bytearray(DATA)
    data[bit // 8] ^= 1 << bit % 8
    written(path, bytes(data))
    after = {document.byte_range for document in file.scan(BOUND) if document.reason is None}
    for document, line in zip(before, LINES, strict=True):
        begin = document.byte_range.offset
        if begin <= bit // 8 < begin + document.byte_range.length:
            with pytest.raises(DataError):
                list(file.read([document.byte_range]))
        else:
            assert list(file.read([document.byte_range])) == [[line["text"]]]
    lost = {document.byte_range.offset for document in before} - {place.offset for place in after}
    assert len(lost) <= 2
