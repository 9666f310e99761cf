"""Damage to archives, and to streams and records where a reader could stop, go on too early or read too much."""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.reader import DocumentFile, DocumentUnit
from gatokit.pipelines.documents.text import TextLinesFile
from gatokit.pipelines.documents.webdataset import WebDatasetFile
from gatokit.pipelines.formats import tfrecord
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import CONTAINER_REASONS
from gatokit.storage.files import ranges

BOUND = 1 << 20
TEXTS = [f"text {number} " + chr(97 + number % 26) * (number * 7 % 60) for number in range(90)]
LINES = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
Harm = Callable[[bytes], bytes]


@st.composite
def harms(draw: st.DrawFn, size: int) -> tuple[int, int, Harm]:
    """A harm to a file of ``size`` bytes: the part of it that is touched, from and to, and what does it."""
    begin = draw(st.integers(0, size - 1))
    end = draw(st.integers(begin + 1, min(size, begin + draw(st.sampled_from([1, 8, 300])))))
    kind = draw(st.sampled_from(["flip", "zero", "cut", "duplicate", "remove", "swap"]))
    if kind == "flip":
        mask = draw(st.integers(1, 255))
        return begin, end, lambda data: data[:begin] + bytes([data[begin] ^ mask]) + data[begin + 1 :]
    if kind == "zero":
        return begin, end, lambda data: data[:begin] + bytes(end - begin) + data[end:]
    if kind == "cut":
        return begin, size, lambda data: data[:begin]
    if kind == "duplicate":
        return begin, end, lambda data: data[:end] + data[begin:]
    if kind == "remove":
        return begin, end, lambda data: data[:begin] + data[end:]
    middle = (begin + end) // 2
    return begin, end, lambda data: data[:begin] + data[middle:end] + data[begin:middle] + data[end:]


def scanned(file: DocumentFile) -> list[dict[str, Any]]:
    """The rows of a scan, without those that are taken back."""
    unit = DocumentUnit(dataset="d", max_bytes=BOUND, ordinals=(0,), files=(file.model_dump(mode="json"),), keys=("",))
    return unit.scan().to_pylist()


def tried(file: DocumentFile, begin: int, header: int) -> list[dict[str, Any]] | None:
    """The rows of a file that is harmed from ``begin`` on; None if its first ``header`` bytes are and say that it is of
    another format."""
    if begin >= header:
        return scanned(file)
    try:
        return scanned(file)
    except DataError:
        return None


def kept_texts(file: DocumentFile) -> list[str]:
    """The texts of the sound rows, as a build reads them."""
    places: list[ByteRange | None] = []
    for found in file.scan(BOUND):
        del places[len(places) - found.takes_back :]
        places.append(found.byte_range if found.reason is None else None)
    return [str(parts[-1]) for parts in file.read([place for place in places if place is not None])]


def lines_file(path: Path) -> TextLinesFile:
    kind = "lines" if path.suffix == ".jsonl" else "compressed_lines"
    return TextLinesFile(path=str(path), name=path.name, size=path.stat().st_size, field="text", type=kind)


def untouched(parts: list[Any], sizes: list[int], begin: int, end: int) -> list[Any]:
    """The parts whose bytes, and the byte before and behind them, are not touched."""
    left, at = [], 0
    for part, size in zip(parts, sizes, strict=True):
        if at + size < begin or at > end:
            left.append(part)
        at += size
    return left


@pytest.mark.parametrize("cut", [0.05, 0.5, 0.99])
def test_a_cut_stream_gives_the_lines_that_zlib_gives(tmp_path: Path, cut: float) -> None:
    whole = gzip.compress(b"".join(LINES) * 40, mtime=0)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[: int(cut * len(whole))])
    rows = scanned(lines_file(path))
    lines = zlib.decompressobj(31).decompress(path.read_bytes()).count(b"\n")
    assert ([row["reason"] for row in rows], rows[-1]["lost"]) == ([None] * lines + ["ends_early"], 1)


def test_a_member_with_a_wrong_checksum_is_taken_back(tmp_path: Path) -> None:
    members = [gzip.compress(b"".join(LINES) * 200, mtime=0) for _ in range(3)]
    harmed = bytearray(members[1])
    harmed[-6] ^= 1  # in the checksum, behind 18,000 lines that were given
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(members[0] + harmed + members[2])
    rows = scanned(lines_file(path))
    lines = 200 * len(LINES)
    assert len(rows) == 2 * lines + 1
    [lost] = [row for row in rows if row["reason"] is not None]
    assert (lost["reason"], lost["lost"], lost["lost_bytes"]) == ("corrupt_length", lines, len(members[1]))
    assert lost["detail"] == (
        f"the compressed stream is damaged in what begins at its byte {len(members[0])}: incorrect data check"
    )


# --- tar -----------------------------------------------------------------------------------------------------------

SAMPLES = [(f"{number:03}", bytes([number]) * (number * 37 % 1500 + 1), TEXTS[number]) for number in range(12)]


def archive() -> tuple[bytes, list[int]]:
    """A tar of samples, and the bytes of each."""
    file, sizes = io.BytesIO(), []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, image, text in SAMPLES:
            for name, content in ((f"{key}.jpg", image), (f"{key}.txt", text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            sizes.append(tar.offset - sum(sizes))
    return file.getvalue(), sizes


ARCHIVE, SIZES = archive()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(harms(len(ARCHIVE)))
def test_archives(tmp_path: Path, harmed: tuple[int, int, Harm]) -> None:
    begin, end, harm = harmed
    path = tmp_path / "a.tar"
    path.write_bytes(harm(ARCHIVE))
    stored = path.read_bytes()
    file = WebDatasetFile(path=str(path), name=path.name, size=len(stored))
    rows = tried(file, begin, 512)
    if rows is None:
        return
    keys = {row["key"] for row in rows if row["reason"] is None}
    assert {key for key, _, _ in untouched(SAMPLES, SIZES, begin, end)} <= keys
    # What is neither a member of a sample nor lost is the end marker and its padding.
    covered = bytearray(stored)
    for row in rows:
        assert (row["reason"] in CONTAINER_REASONS) == (row["lost_bytes"] > 0 or row["reason"] == "ends_early")
        if row["lost_bytes"]:
            covered[row["offset"] : row["offset"] + row["lost_bytes"]] = bytes(row["lost_bytes"])
        elif row["reason"] is None:
            image_begin, image_size, text_begin, text_size = map(int, row["payload"].split()[:4])
            for place, size in ((image_begin - 512, image_size), (text_begin - 512, text_size)):
                length = 512 + size - size % -512
                covered[place : place + length] = bytes(length)
    rejected = [row for row in rows if row["reason"] is not None and row["reason"] not in CONTAINER_REASONS]
    assert rejected or not covered.strip(b"\0")


@pytest.mark.parametrize("at", range(0, sum(SIZES), 512))
def test_a_damaged_header_loses_what_pythons_tarfile_loses(tmp_path: Path, at: int) -> None:
    """With ``ignore_zeros`` it goes on behind a damaged header, too."""
    path = tmp_path / "a.tar"
    path.write_bytes(ARCHIVE[: at + 3] + bytes([ARCHIVE[at + 3] ^ 1]) + ARCHIVE[at + 4 :])
    with tarfile.open(path, ignore_zeros=True) as tar:
        names = tar.getnames()
    whole = {name[:3] for name in names if f"{name[:3]}.jpg" in names and f"{name[:3]}.txt" in names}
    rows = scanned(WebDatasetFile(path=str(path), name=path.name, size=path.stat().st_size))
    assert {row["key"] for row in rows if row["reason"] is None} == whole
    assert len(rows) == len(SAMPLES)


def test_a_sound_archive_gives_the_samples_of_webdataset(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(ARCHIVE)
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    rows = scanned(WebDatasetFile(path=str(path), name=path.name, size=len(ARCHIVE)))
    assert [(row["key"], row["reason"]) for row in rows] == [(key, None) for key in theirs]
    assert len(rows) == len(SAMPLES)


# --- TFRecord ----------------------------------------------------------------------------------------------------

RECORDS = [text.encode() * 3 for text in TEXTS[:20]]


def record_file() -> bytes:
    stored = b""
    for record in RECORDS:
        length = len(record).to_bytes(8, "little")
        stored += length + tfrecord.masked_crc(length).to_bytes(4, "little")
        stored += record + tfrecord.masked_crc(record).to_bytes(4, "little")
    return stored


RECORD_FILE = record_file()


def test_records_behind_damage_are_those_that_tensorflow_reads_there(tmp_path: Path) -> None:
    import tensorflow as tf

    path = tmp_path / "a.tfrecord"
    offset = sum(len(record) + 16 for record in RECORDS[:7])
    path.write_bytes(RECORD_FILE[:offset] + b"\xff" + RECORD_FILE[offset + 1 :])
    with pytest.raises(tf.errors.DataLossError):
        list(tf.data.TFRecordDataset(str(path)))
    rows = list(tfrecord.TfRecordFile(str(path), "a.tfrecord", len(RECORDS), "Examples").read_all(BOUND))
    assert [row.reason for row in rows] == [None] * 7 + ["corrupt_length"] + [None] * 12
    behind = tmp_path / "b.tfrecord"
    behind.write_bytes(RECORD_FILE[rows[8].byte_range.offset :])
    assert [item.numpy() for item in tf.data.TFRecordDataset(str(behind))] == [row.value for row in rows[8:]]


def test_a_search_for_the_next_record_reads_the_rest_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"\xff" * 12 + bytes(3 << 20) + RECORD_FILE)
    with ranges(path) as (read, size):
        seen = []
        found = tfrecord.next_record(lambda at, length: seen.append(length) or read(at, length), size, 1)
    assert (found, sum(seen)) == (12 + (3 << 20), 4 * ((1 << 20) + 12))


PACKED = {"a.tar.gz": gzip.compress, "a.tar.zst": zstandard.ZstdCompressor(write_checksum=True).compress}
BLOCKS = [ARCHIVE[at : at + 3000] for at in range(0, len(ARCHIVE), 3000)]
"""What each member or frame of a compressed tar holds; none ends where a sample does."""


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(PACKED)), st.integers(1, len(BLOCKS) - 1), st.data())
def test_compressed_archives(tmp_path: Path, name: str, block: int, data: st.DataObject) -> None:
    packed = [PACKED[name](part) for part in BLOCKS]
    at = data.draw(st.integers(0, len(packed[block]) - 1))
    mask = data.draw(st.integers(1, 255))
    harmed = packed[block][:at] + bytes([packed[block][at] ^ mask]) + packed[block][at + 1 :]
    path = tmp_path / name
    path.write_bytes(b"".join([*packed[:block], harmed, *packed[block + 1 :]]))
    size = path.stat().st_size
    file = WebDatasetFile(path=str(path), name=name, size=size, type="compressed_webdataset")
    rows = scanned(file)
    sound = {row["key"] for row in rows if row["reason"] is None}
    assert {key for key, _, _ in untouched(SAMPLES, SIZES, 3000 * block, 3000 * (block + 1))} <= sound
    texts = {key: text for key, _, text in SAMPLES}
    if not any(row["reason"] == "ends_early" for row in rows):
        assert set(kept_texts(file)) == {texts[key] for key in sound}
    lost = [row for row in rows if row["reason"] is not None]
    assert sum(row["lost_bytes"] for row in lost) <= size
    # A header of gzip has bits that mean nothing.
    assert lost or len(rows) == len(SAMPLES)
