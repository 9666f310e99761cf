"""Reading records by range, with a bound on open shards, and damage."""

import pickle
import shutil
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.loader.mixture import open_mixture
from gatokit.loader.records import OpenShards, RecordView
from gatokit.loader.windows import Windows
from gatokit.schemas.errors import DataError
from gatokit.schemas.record import Record
from gatokit.schemas.record_pb2 import Record as RecordMessage
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import EncodedImage, PlacedImage, TokenSequence
from gatokit.storage.array_record import ArrayRecordFile


def all_records(directory: Path) -> list[list[bytes]]:
    """The records of every shard of every dataset."""
    shards = [shard for dataset in open_mixture([directory]).datasets for shard in dataset.shards]
    return [ArrayRecordReader(shard.path).read_all() for shard in shards]


def test_views_of_a_record_are_what_protobuf_reads(mixed: Path) -> None:
    images = 0
    for data in (data for shard in all_records(mixed) for data in shard):
        record, view = Record.from_bytes(data), RecordView(data)
        sequence = record.sequence
        for name in ("tokens", "kinds", "positions", "step_begin"):
            found, expected = getattr(view, name), getattr(sequence, name)
            assert found.dtype == expected.dtype
            assert found.tolist() == expected.tolist()
        assert (view.owner, view.chunk, view.chunks) == (record.owner, record.chunk, record.chunks)
        found_images = view.images(0, len(view.tokens))
        assert [(each.token, each.data, each.height, each.width) for each in found_images] == [
            (placed.token, *placed.image) for placed in sequence.images
        ]
        images += len(found_images)
        if found_images:
            first = found_images[0]
            behind = first.token + first.height * first.width // 256
            assert view.images(behind - 1, behind) == found_images[:1]
            assert first not in view.images(behind, len(view.tokens) + 1)
            assert view.images(0, first.token) == []
            assert view.images(0, first.token + 1) == found_images[:1]
    assert images > 300


def test_bytes_that_are_no_record_are_refused(mixed: Path) -> None:
    data = all_records(mixed)[0][0]
    for damaged in (data[:-1], data[:40], b"\xff" + data, b"\x12" + data, b""):
        with pytest.raises(ValueError, match="the record"):
            RecordView(damaged)
    with pytest.raises(ValueError, match="format version 9 and this gatokit reads up to 1"):
        RecordView(data.replace(b"\x08\x01", b"\x08\x09", 1))


def written(tokens: int, images: int, image_bytes: int = 3) -> bytes:
    """A record of one episode with images of one patch each."""
    numbers = np.arange(tokens, dtype=np.uint16)
    sequence = TokenSequence(
        tokens=numbers,
        kinds=numbers.astype(np.uint8),
        positions=numbers[::-1],
        step_begin=np.array([0, tokens // 2], np.uint32),
        images=[PlacedImage(1 + n, EncodedImage(bytes(image_bytes), 16, 16)) for n in range(images)],
        text_tokens=None,
    )
    return Record("é/1", 2, 300, 5, "spec", sequence, np.ones(2), None, np.zeros(2, np.uint8)).to_bytes()


def check_against_protobuf(data: bytes) -> bool:
    """A view accepts what protobuf accepts, with the same values, and refuses everything else. Returns whether it is
    accepted."""
    try:
        message = RecordMessage.FromString(data)
    except DecodeError:
        message = RecordMessage()
    message.DiscardUnknownFields()
    lengths = len(message.tokens), len(message.positions)
    if message.version != 1 or not message.kinds or lengths != (2 * len(message.kinds),) * 2:
        accepted = False
    else:
        accepted = message.chunk < message.chunks
    if not accepted:
        with pytest.raises(ValueError, match="the record"):
            RecordView(data).images(0, 1 << 32)
        return False
    view = RecordView(data)
    for name in ("tokens", "kinds", "positions"):
        assert getattr(view, name).tobytes() == getattr(message, name)
    assert view.step_begin.tobytes() == message.step_begin[: len(message.step_begin) // 4 * 4]
    assert (view.owner, view.chunk, view.chunks) == (message.owner, message.chunk, message.chunks)
    ends = [image.token + image.height // 16 * (image.width // 16) for image in message.images]
    for begin in (0, 2):
        images = view.images(begin, 1 << 32)
        for image in images:
            image.DiscardUnknownFields()
        assert images == list(message.images)[bisect_right(ends, begin) :]
    return True


def test_a_view_of_a_record_with_any_byte_replaced_or_cut_off_agrees_with_protobuf() -> None:
    data = written(tokens=6, images=2)
    assert check_against_protobuf(data)
    for end in range(len(data)):
        check_against_protobuf(data[:end])
    found = {
        check_against_protobuf(data[:at] + bytes([value]) + data[at + 1 :])
        for at in range(len(data))
        for value in range(256)
    }
    assert found == {False, True}


NUMBERS_ON_THE_WIRE = [
    b"\x81\x80\x00",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\x81" * 9 + b"\x7f",
    b"\xff" * 11,
]
PARTS = st.sampled_from(
    [
        b"",
        b"\x08",
        b"\x12\x01\xff",
        b"\x32\x01\xff",
        b"\x78\x01",
        b"\x82\x01\x01a",
        b"\x7b\x7c",
        b"\x00\x00",
        *NUMBERS_ON_THE_WIRE,
    ]
)


@given(
    st.sampled_from([written(6, 2), written(100, 0), written(70, 3, 200), written(9000, 1, 20_000)]),
    st.lists(
        st.tuples(st.integers(0, 400) | st.integers(0), st.integers(0, 3), PARTS | st.binary(max_size=4)), max_size=2
    ),
)
@settings(max_examples=1000, deadline=None)
def test_a_view_of_damaged_bytes_agrees_with_protobuf(data: bytes, damages: list[tuple[int, int, bytes]]) -> None:
    for place, cut, put in damages:
        at = place % (len(data) + 1)
        data = data[:at] + put + data[at + cut :]
    check_against_protobuf(data)


def test_threads_share_readers_of_which_few_are_open(mixed: Path) -> None:
    shards = [shard for dataset in open_mixture([mixed]).datasets for shard in dataset.shards]
    expected = all_records(mixed)
    open_shards: OpenShards = pickle.loads(pickle.dumps(OpenShards(shards, 3)))

    def read(number: int) -> bool:
        shard = number * 7 % len(shards)
        first = number % len(expected[shard])
        found = open_shards.read_bytes(shard, first, first + 1)
        return found == expected[shard][first : first + 1] and open_shards.open_count <= 3

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(400)))
    assert open_shards.open_count == 3


def test_a_shard_that_two_threads_open_at_once_closes_no_other(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [shard for dataset in open_mixture([mixed]).datasets for shard in dataset.shards]
    open_shards = OpenShards(shards, 2)
    open_shards.read_bytes(0, 0, 1)
    opened = []

    def another_opens_it_first(path: str) -> ArrayRecordFile:
        opened.append(path)
        if len(opened) == 1:
            open_shards.read_bytes(1, 0, 1)
        return ArrayRecordFile(path)

    monkeypatch.setattr("gatokit.loader.records.ArrayRecordFile", another_opens_it_first)
    assert open_shards.read_bytes(1, 0, 1) == [ArrayRecordReader(shards[1].path).read(0, 1)[0]]
    assert opened == [shards[1].path] * 2
    assert open_shards.open_count == 2
    open_shards.read_bytes(0, 0, 1)
    assert len(opened) == 2


def damaged(mixed: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the build, and the one shard of its texts."""
    copy = Path(shutil.copytree(mixed, tmp_path / "copy"))
    return copy, next((copy / "books").glob("*.arrayrecord"))


def windows(directory: Path) -> Windows:
    config = RunConfig.model_validate({"model": "tiny", "context": 64, "batch": 400})
    return Windows(open_mixture([directory], {"books": 1}), config)


def refuse(*_: Any) -> None:
    raise ValueError("damaged")


def test_a_damaged_record_is_left_out_and_counted_and_named_if_there_is_no_other(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, shard = damaged(mixed, tmp_path)
    content = bytearray(shard.read_bytes())
    content[len(content) // 50] ^= 1
    shard.write_bytes(content)
    batch = windows(copy).batch(0, range(400))
    assert 0 < np.count_nonzero(batch.unusable) < 400
    assert np.all((batch.kinds > 0).sum(axis=1) > 40)
    again = windows(copy).trace(0, range(400))
    assert [sample.redraws for sample in again] == batch.unusable.tolist()
    with monkeypatch.context() as patched:
        patched.setattr(RecordView, "__init__", refuse)
        with pytest.raises(DataError, match=r"\.arrayrecord, record \d+: damaged. gatokit verify says what else is"):
            windows(copy).batch(0, range(400))


def test_a_truncated_shard_of_the_right_size_is_found_when_it_is_opened(mixed: Path, tmp_path: Path) -> None:
    copy, shard = damaged(mixed, tmp_path)
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(DataError, match=rf"{shard} (holds 0 records and the manifest says|cannot be opened)"):
        windows(copy).batch(0, range(400))
