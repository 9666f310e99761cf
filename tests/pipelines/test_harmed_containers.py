"""One property of every container: harmed at random places, it gives what the format's own reader finds in the same
bytes, and rows and lost bytes account for all of the file.

Its own reader is json, zlib, zstandard, tarfile, pyarrow, or ArrayRecord's; for TFRecord, which no reader of TensorFlow
reads behind damage, a search byte by byte.
"""

import dataclasses
import io
import json
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.image_folder import CocoFile
from gatokit.pipelines.documents.parquet import TextRowsFile
from gatokit.pipelines.documents.reader import DocumentFile
from gatokit.pipelines.documents.text import TextLinesFile
from gatokit.pipelines.formats.array_record import ArrayRecordFile
from gatokit.pipelines.formats.tfrecord import TfRecordFile
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import CONTAINER_REASONS

BOUND = 1 << 20
TEXTS = [f"text {number} " + chr(97 + number % 26) * (number * 7 % 60) for number in range(60)]
LINES = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
PART = 10
GROUPS = [LINES[begin : begin + PART] for begin in range(0, len(LINES), PART)]


@dataclasses.dataclass(frozen=True)
class Found:
    """The texts of a file, the number of its rows that are rejected alone or lost, and its bytes that are in neither a
    row nor a loss."""

    texts: list[str]
    rejected: int
    lost: int
    unaccounted: int


@dataclasses.dataclass(frozen=True)
class Container:
    """A file of ``parts``, and how the product and the format's own reader see it. Bytes from ``fixed`` on, a footer
    without checksum, are only cut off."""

    name: str
    parts: list[bytes]
    ours: Callable[[Path], Found]
    theirs: Callable[[Path], list[str]]
    fixed: int | None = None


class Containers(dict[str, Container]):
    """Containers by name; a failure does not print their bytes."""

    def __repr__(self) -> str:
        return f"Containers({list(self)})"


def read_documents(file: DocumentFile, places: Callable[[bytes, list[Any]], int]) -> Found:
    """What a scan of a file and a build of its sound rows give; ``places`` counts the bytes that no row covers."""
    rows: list[Any] = []
    for found in file.scan(BOUND):
        del rows[len(rows) - found.takes_back :]
        rows.append(found)
    sound = [row.byte_range for row in rows if row.reason is None]
    texts = [str(parts[-1]) for parts in file.read(sound)]
    assert len(texts) == len(sound)
    lost = [row for row in rows if row.reason in CONTAINER_REASONS]
    assert all(row.reason in CONTAINER_REASONS for row in rows if row.lost_bytes)
    stored = Path(file.path).read_bytes()
    return Found(texts, len(rows) - len(sound) - len(lost), sum(row.lost for row in lost), places(stored, rows))


def text_of(line: bytes) -> Iterator[str]:
    """The text of a line, if it holds one."""
    try:
        value = json.loads(line)
    except ValueError:
        return
    if isinstance(value, dict) and isinstance(value.get("text"), str) and value["text"].strip():
        yield value["text"]


def texts_of(data: bytes) -> list[str]:
    return [text for line in data.split(b"\n") for text in text_of(line)]


# --- lines, plain and compressed -----------------------------------------------------------------------------------


def lines_file(path: Path) -> TextLinesFile:
    kind = "lines" if path.suffix == ".jsonl" else "compressed_lines"
    return TextLinesFile(path=str(path), name=path.name, size=path.stat().st_size, field="text", type=kind)


def between_lines(stored: bytes, rows: list[Any]) -> int:
    left, at = 0, 0
    for row in rows:
        assert row.byte_range.offset >= at
        left += len(stored[at : row.byte_range.offset].strip())
        at = row.byte_range.offset + row.byte_range.length
    return left + len(stored[at:].strip())


def unpacked(stored: bytes, suffix: str) -> Iterator[tuple[int, int, bytes]]:
    """Begin, end and content of each member or frame that is sound, and of a member inside which the file ends."""
    at = 0
    errors = (zlib.error, zstandard.ZstdError)

    def tried(begin: int) -> tuple[int | None, bytes]:
        decoder = zlib.decompressobj(31) if suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj()
        content = decoder.decompress(stored[begin:])
        if decoder.eof:
            return len(stored) - len(decoder.unused_data), content
        # The only block of a frame counts with its checksum.
        return None, content if suffix == ".gz" else b""

    magic = b"\x1f\x8b\x08" if suffix == ".gz" else b"\x28\xb5\x2f\xfd"
    while at < len(stored):
        if suffix == ".gz" and not stored[at]:
            at += 1
            continue
        try:
            end, content = tried(at)
        except errors:
            end, content = None, None
        if end is not None:
            yield at, end, content
            at = end
            continue
        behind = at + 1
        while (behind := stored.find(magic, behind)) >= 0:
            try:
                end, given = tried(behind)
                if end is not None or len(given) >= (256 if suffix == ".gz" else 1):
                    break
            except errors:
                pass
            behind += 1
        if behind < 0:
            if content is not None:
                yield at, len(stored), content
            return
        at = behind


def between_members(path: Path) -> Callable[[bytes, list[Any]], int]:
    def count(stored: bytes, rows: list[Any]) -> int:
        sound = sum(end - begin for begin, end, _ in unpacked(stored, path.suffix))
        zeros = 0
        if path.suffix == ".gz":
            covered = bytearray(stored)
            for begin, end, _ in unpacked(stored, ".gz"):
                covered[begin:end] = b"x" * (end - begin)
            zeros = sum(len(run) for run in re.findall(rb"(?<=x)\0+(?=x|\x1f\x8b\x08|$)", bytes(covered)))
        return len(stored) - sound - zeros - sum(row.lost_bytes for row in rows)

    return count


def ours_lines(path: Path) -> Found:
    return read_documents(lines_file(path), between_lines if path.suffix == ".jsonl" else between_members(path))


def theirs_lines(path: Path) -> list[str]:
    stored = path.read_bytes()
    if path.suffix == ".jsonl":
        return texts_of(stored)
    return [text for _, _, content in unpacked(stored, path.suffix) for text in texts_of(content)]


# --- Parquet -------------------------------------------------------------------------------------------------------


def table() -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        pa.table({"text": TEXTS}),
        sink,
        row_group_size=PART,
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
    )
    return sink.getvalue()


TABLE = table()
FOOTER = len(TABLE) - 8 - int.from_bytes(TABLE[-8:-4], "little")


def groups(path: Path) -> list[list[str] | None]:
    """The texts of each row group; None where it is damaged. Raises ArrowInvalid if the footer is."""
    file, found = pq.ParquetFile(path, page_checksum_verification=True), []
    for number in range(file.num_row_groups):
        try:
            found.append(file.read_row_group(number)["text"].to_pylist())
        except (pa.ArrowException, OSError):
            found.append(None)
    return found


def between_groups(path: Path) -> Callable[[bytes, list[Any]], int]:
    def count(stored: bytes, rows: list[Any]) -> int:
        """A group has the bytes of its share; a file without its footer is lost."""
        lost = sum(row.lost_bytes for row in rows)
        try:
            found = groups(path)
        except pa.ArrowInvalid:
            return len(stored) - lost
        metadata = pq.read_metadata(path)
        sizes = [metadata.row_group(number).total_byte_size for number in range(len(found))]
        damaged = sum(size for size, texts in zip(sizes, found, strict=True) if texts is None)
        assert sum(row.lost for row in rows) == len(TEXTS)
        difference = lost - len(stored) * damaged / sum(sizes)
        return 0 if abs(difference) <= len(found) else int(difference)

    return count


def ours_table(path: Path) -> Found:
    file = TextRowsFile(path=str(path), name=path.name, size=path.stat().st_size, field="text")
    return read_documents(file, between_groups(path))


def theirs_table(path: Path) -> list[str]:
    try:
        return [text for texts in groups(path) for text in texts or ()]
    except pa.ArrowInvalid:
        return []


# --- TFRecord and ArrayRecord --------------------------------------------------------------------------------------


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF


def record(text: str) -> bytes:
    length, data = struct.pack("<Q", len(text)), text.encode()
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def ours_tfrecord(path: Path) -> Found:
    stored, texts, rejected, lost, at = (
        list(TfRecordFile(str(path), "a", len(TEXTS), "texts").read_all(BOUND)),
        [],
        0,
        0,
        0,
    )
    for row in stored:
        assert row.byte_range.offset == at
        if row.reason in CONTAINER_REASONS:
            lost += row.lost
            at += row.lost_bytes
            continue
        at += row.byte_range.length + 16
        if row.value is None:
            rejected += 1
        else:
            texts.append(row.value.decode())
    positions = [row.byte_range.position for row in stored]
    assert positions == sorted(set(positions))
    assert len(texts) + rejected + lost >= len(TEXTS)
    return Found(texts, rejected, lost, path.stat().st_size - at)


def theirs_tfrecord(path: Path) -> list[str]:
    stored, texts, at = path.read_bytes(), [], 0

    def length(begin: int) -> int | None:
        header = stored[begin : begin + 12]
        if len(header) < 12 or masked(header[:8]) != struct.unpack("<I", header[8:])[0]:
            return None
        size = struct.unpack("<Q", header[:8])[0]
        return size if begin + 16 + size <= len(stored) else None

    while at < len(stored):
        size = length(at)
        if size is None:
            at += 1
            continue
        data, end = stored[at + 12 : at + 12 + size], at + 16 + size
        if masked(data) == struct.unpack("<I", stored[end - 4 : end])[0]:
            texts.append(data.decode())
        elif end < len(stored) and length(end) is None:
            at += 1
            continue
        at = end
    return texts


def array_records(folder: Path) -> bytes:
    writer = ArrayRecordWriter(str(folder / "written"), "group_size:1")
    for text in TEXTS:
        writer.write(text.encode())
    writer.close()
    return (folder / "written").read_bytes()


def ours_array_record(path: Path) -> Found:
    """Records have ordinals and no places: all of these are given, or all of the file is lost."""
    rows = list(ArrayRecordFile(str(path), "a", len(TEXTS), "texts").read_all(BOUND))
    size, at = path.stat().st_size, 0
    for row in rows:
        assert row.byte_range.position == at
        at += row.lost
    assert at == len(TEXTS)
    texts = [row.value.decode() for row in rows if row.value is not None]
    lost = [row for row in rows if row.reason in CONTAINER_REASONS]
    assert [row.lost_bytes for row in lost] in ([], [size])
    return Found(texts, len(rows) - len(texts) - len(lost), sum(row.lost for row in lost), 0)


def theirs_array_record(path: Path) -> list[str]:
    reader, texts = ArrayRecordReader(str(path)), []
    for ordinal in range(reader.num_records() if reader.ok() else 0):
        reader = ArrayRecordReader(str(path))
        try:
            texts.append(reader.read(ordinal, ordinal + 1)[0].decode())
        except (RuntimeError, ValueError, IndexError):
            continue
    return texts


# --- a JSON object with lists --------------------------------------------------------------------------------------

CAPTIONS = {
    "images": [{"id": number, "file_name": "a.jpg"} for number in range(5)],
    "annotations": [{"id": at, "image_id": at % 5, "caption": text} for at, text in enumerate(TEXTS)],
}
PICTURE = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()


def captions(path: Path) -> list[Any] | None:
    """The annotations of a file; None if it is damaged. Raises LookupError if it holds something else."""
    try:
        content = json.loads(str(path.read_bytes(), "utf-8-sig", "surrogateescape"))
    except json.JSONDecodeError as error:
        if not error.pos and path.stat().st_size:
            raise LookupError from None
        return None
    except ValueError:
        return None
    if not isinstance(content["images"], list) or not isinstance(content["annotations"], list):
        raise LookupError
    return content["annotations"]


def ours_captions(path: Path) -> Found:
    (path.parent / "images").mkdir(exist_ok=True)
    (path.parent / "images" / "a.jpg").write_bytes(PICTURE)
    size = path.stat().st_size
    file = CocoFile(path=str(path), name=path.name, size=size, image_dir=os.fspath(path.parent / "images"))

    def places(stored: bytes, rows: list[Any]) -> int:
        annotations = captions(path)
        if annotations is None:
            return len(stored) - sum(row.lost_bytes for row in rows)
        assert len(rows) == len(annotations)
        return sum(row.lost_bytes for row in rows)

    return read_documents(file, places)


def theirs_captions(path: Path) -> list[str]:
    return [entry["caption"] for entry in captions(path) or () if isinstance(entry, dict) and "caption" in entry]


# --- the property --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Containers:
    joined = [b"".join(lines) for lines in GROUPS]
    members = [zlib_member(part) for part in joined]
    frames = [zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in joined]
    all_ = [
        Container("a.jsonl", LINES, ours_lines, theirs_lines),
        Container("a.jsonl.gz", members, ours_lines, theirs_lines),
        Container("a.jsonl.zst", frames, ours_lines, theirs_lines),
        Container("a.parquet", [TABLE], ours_table, theirs_table, FOOTER),
        Container("a.tfrecord", [record(text) for text in TEXTS], ours_tfrecord, theirs_tfrecord),
        Container(
            "a.array_record",
            [array_records(tmp_path_factory.mktemp("written"))],
            ours_array_record,
            theirs_array_record,
        ),
        Container("a.json", [json.dumps(CAPTIONS).encode()], ours_captions, theirs_captions),
    ]
    return Containers((container.name, container) for container in all_)


def zlib_member(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(data) + compressor.flush()


NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.tfrecord", "a.array_record", "a.json"]
OF_BYTES = ["flip", "zero", "cut", "insert", "remove", "repeat", "swap"]
OF_PARTS = ["empty", "duplicate", "reorder", "drop"]


@st.composite
def harmed(draw: st.DrawFn, container: Container) -> bytes:
    """The bytes of a container behind one harm."""
    whole, kind = b"".join(container.parts), draw(st.sampled_from(OF_BYTES + OF_PARTS))
    event(kind)
    parts = list(container.parts)
    if kind == "empty":
        return b""
    if kind in OF_PARTS:
        at, other = (draw(st.integers(0, len(parts) - 1)) for _ in range(2))
        if kind == "duplicate":
            parts.insert(other, parts[at])
        elif kind == "reorder":
            parts[at], parts[other] = parts[other], parts[at]
        elif len(parts) > 1:
            del parts[at]
        return b"".join(parts)
    last = len(whole) if kind == "cut" or container.fixed is None else container.fixed
    begin = draw(st.integers(0, last - 1))
    end = draw(st.integers(begin + 1, min(last, begin + draw(st.sampled_from([1, 8, 300])))))
    middle = (begin + end) // 2
    behind = whole[end:]
    if kind == "flip":
        return whole[:begin] + bytes([whole[begin] ^ draw(st.integers(1, 255))]) + whole[begin + 1 :]
    if kind == "insert":
        return whole[:begin] + draw(st.binary(min_size=1, max_size=40)) + whole[begin:]
    return {
        "cut": whole[:begin],
        "zero": whole[:begin] + bytes(end - begin) + behind,
        "remove": whole[:begin] + behind,
        "repeat": whole[:end] + whole[begin:],
        "swap": whole[:begin] + whole[middle:end] + whole[begin:middle] + behind,
    }[kind]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_rows_and_lost_bytes_account_for_every_byte(
    tmp_path: Path, containers: Containers, name: str, data: st.DataObject
) -> None:
    container = containers[name]
    whole = b"".join(container.parts)
    stored = data.draw(harmed(container))
    path = tmp_path / name
    path.write_bytes(stored)
    try:
        found = container.ours(path)
    except DataError:
        # Its beginning says that it is of another format.
        if name == "a.json":
            with pytest.raises(LookupError):
                captions(path)
        else:
            assert stored[:4] != whole[:4]
        return
    assert found.unaccounted == 0
    theirs = container.theirs(path)
    if name == "a.json":  # ordered by image; captions of an image that is not there are rejected
        assert not Counter(found.texts) - Counter(theirs)
    else:
        assert found.texts == theirs
    if stored == whole:
        assert (sorted(found.texts), found.rejected, found.lost) == (sorted(TEXTS), 0, 0)
