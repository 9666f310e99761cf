"""Small files that hold much: what is read of them has a bound, and says its name."""

import gzip
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.parquet import ImageRowsFile, TextRowsFile
from gatokit.pipelines.documents.reader import DocumentFile, ScannedDocument, plan_documents
from gatokit.pipelines.documents.text import PlainTextFile, TextLinesFile
from gatokit.pipelines.documents.webdataset import WebDatasetFile
from gatokit.pipelines.formats import compressed
from gatokit.pipelines.formats.compressed import DecompressedStream
from gatokit.schemas.config import TextConfig
from gatokit.storage import files

MIB = 1 << 20
EPISODE = 1 << 30


def scanned(file: DocumentFile) -> tuple[list[ScannedDocument], int]:
    """The rows, and the bytes of memory that the scan took at most."""
    tracemalloc.start()
    try:
        rows = list(file.scan(EPISODE))
        return rows, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def at(path: Path) -> dict[str, object]:
    return {"path": str(path), "name": path.name, "size": path.stat().st_size}


# --- texts ---------------------------------------------------------------------------------------------------------


def test_texts_have_a_bound_of_their_own_in_every_format(tmp_path: Path) -> None:
    """Ten letters are allowed: nine are read, eleven are named."""
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text":"' + "a" * 9 + '"}\n{"text":"' + "b" * 100 + '"}\n')
    table = pa.table({"text": ["a" * 9, "b" * 11], "image": [b"x", b"y"]})
    pq.write_table(table, tmp_path / "a.parquet")
    short, long = tmp_path / "a.txt", tmp_path / "b.txt"
    short.write_text("a" * 9)
    long.write_text("b" * 11)
    found = {
        "lines": list(TextLinesFile(**at(lines), field="text", max_text_bytes=25).scan(EPISODE)),
        "rows": list(TextRowsFile(**at(tmp_path / "a.parquet"), field="text", max_text_bytes=10).scan(EPISODE)),
        "captions": list(ImageRowsFile(**at(tmp_path / "a.parquet"), image_field="image", max_text_bytes=10).scan(99)),
        "plain": [row for path in (short, long) for row in PlainTextFile(**at(path), max_text_bytes=10).scan(EPISODE)],
    }
    for rows in found.values():
        assert [row.reason for row in rows] == [None, "too_large"]
    assert [rows[1].detail for rows in found.values()] == [
        "the document is above max_text_bytes 25",
        "the document is above max_text_bytes 10",
        "the caption is above max_text_bytes 10",
        "the document is above max_text_bytes 10",
    ]


def test_the_lower_bound_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("b" * 11)
    [row] = PlainTextFile(**at(path)).scan(10)
    assert (row.reason, row.detail) == ("too_large", "the document is above max_episode_bytes 10")


def test_a_config_sets_the_bounds_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text":"x"}\n')
    config = TextConfig(name="d", kind="text", source="*.jsonl", max_text_bytes=5, max_unpacked=3)
    [file] = plan_documents(config, "datasets[0]", tmp_path).files
    [usual] = plan_documents(TextConfig(name="d", kind="text", source="*.jsonl"), "datasets[0]", tmp_path).files
    assert (file.max_text_bytes, file.max_unpacked) == (5, 3)
    assert (usual.max_text_bytes, usual.max_unpacked) == (64 * MIB, 200)
    assert file.identity() == usual.identity() == {"name": "a.jsonl", "size": 13, "field": "text"}


@pytest.mark.parametrize("junk", [b"[],", b"{},", b"[[]],"])
def test_a_line_of_very_many_lists_is_not_parsed(junk: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    line = b'{"text":"x","junk":[' + junk * (4 * MIB + 1) + b"0]}\n"
    path.write_bytes(gzip.compress(b'{"text":"one"}\n' + line + b'{"text":"two"}\n', 1))
    rows, memory = scanned(TextLinesFile(**at(path), type="compressed_lines", field="text", max_unpacked=10_000))
    assert [row.reason for row in rows] == [None, "too_large", None]
    assert rows[1].detail == "the line holds more than 4,194,304 lists and objects"
    assert memory < 6 * len(line)


# --- what unpacks --------------------------------------------------------------------------------------------------


def gz(data: bytes) -> bytes:
    return gzip.compress(data, 9)


def zst(data: bytes) -> bytes:
    return zstandard.compress(data)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gz), (".zst", zst)])
def test_a_compressed_file_ends_early_where_it_unpacks_to_too_much(
    suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "FREE_BYTES", 1000)
    lines = [json.dumps({"text": f"{number:05}" + "a" * 100_000}).encode() + b"\n" for number in range(40)]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"".join(map(pack, lines)))
    file = TextLinesFile(**at(path), type="compressed_lines", field="text")
    rows, _ = scanned(file)
    most = 200 * path.stat().st_size
    assert 1 < len(rows) < 40
    assert [row.reason for row in rows] == [None] * (len(rows) - 1) + ["ends_early"]
    assert rows[-1].detail == f"unpacks to more than {most:,} bytes; max_unpacked of the dataset allows more"
    assert most - len(lines[0]) < sum(len(line) for line in lines[: len(rows) - 1]) <= most
    assert [row.reason for row in scanned(file.model_copy(update={"max_unpacked": 10_000}))[0]] == [None] * 40


@settings(max_examples=60)
@given(
    parts=st.lists(st.tuples(st.binary(min_size=1, max_size=3), st.integers(1, 2000)), min_size=1, max_size=6),
    suffix=st.sampled_from([".gz", ".zst"]),
    most=st.integers(1, 40),
)
def test_a_stream_gives_no_more_than_its_bound(parts: list[tuple[bytes, int]], suffix: str, most: int) -> None:
    content = b"".join(data * count for data, count in parts)
    packed = (gz if suffix == ".gz" else zst)(content)
    source = files.Ranges(lambda offset, length: packed[offset : offset + length], len(packed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "FREE_BYTES", 0)
        stream = DecompressedStream(source, suffix, most)
        given_ = io.BufferedReader(stream).read()
    bound = most * len(packed)
    is_cut = len(content) > bound
    assert content.startswith(given_)
    assert len(given_) == min(len(content), bound)
    assert any(getattr(event, "ends_early", False) for event in stream.events) == is_cut


@pytest.mark.parametrize("stored", ["plain", "dictionary"])
def test_a_row_group_of_parquet_is_damaged_where_it_unpacks_to_too_much(stored: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pa.array(["a" * 10_000]).dictionary_encode()
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), text.dictionary)
    if stored == "plain":
        column = column.cast(pa.string())
    pq.write_table(pa.table({"text": column}), path, row_group_size=15_000, compression="zstd")
    assert path.stat().st_size < 10_000
    rows, memory = scanned(TextRowsFile(**at(path), field="text"))
    assert [row.reason for row in rows if row.reason] == ["corrupt_length"] * 2
    assert rows[-1].detail == (
        "row group 1 is damaged: unpacks to more than 67,108,864 bytes; max_unpacked of the dataset allows more"
    )
    sound = [row for row in rows if row.reason is None]
    assert 6000 < len(sound) <= 67_108_864 // 10_000
    assert sum(row.lost for row in rows if row.reason) == 20_000 - len(sound)
    assert memory < 100 * MIB
    assert len(list(TextRowsFile(**at(path), field="text", max_unpacked=1 << 20).scan(EPISODE))) == 20_000


def test_a_compressed_archive_ends_early_where_it_unpacks_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "FREE_BYTES", 1000)
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(40):
            for suffix, data in (("png", bytes(50_000)), ("txt", b"caption %d" % number)):
                member = tarfile.TarInfo(f"{number:02}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    rows, _ = scanned(WebDatasetFile(**at(path), type="compressed_webdataset"))
    assert 1 < len(rows) < 40
    assert [row.reason for row in rows] == [None] * (len(rows) - 1) + ["ends_early"]
    assert "max_unpacked of the dataset allows more" in str(rows[-1].detail)
