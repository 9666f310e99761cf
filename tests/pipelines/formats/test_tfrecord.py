from pathlib import Path

import pytest

from gatokit.pipelines.formats import tfrecord
from gatokit.pipelines.formats.records import Stored

PAYLOADS = [b"first", b"", b"the third record", bytes(range(256))]
OFFSETS = [0, 21, 37, 69]
SIZE = 341


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    import tensorflow as tf

    path: Path = tmp_path_factory.mktemp("tfrecord") / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in PAYLOADS:
            writer.write(payload)
    return path.read_bytes()


def reading(data: bytes) -> tfrecord.ReadAt:
    return lambda offset, length: data[offset : offset + length]


def read(data: bytes, max_bytes: int = 1 << 20) -> tuple[list[Stored[bytes]], tfrecord.DamagedLengthError | None]:
    found: list[Stored[bytes]] = []
    try:
        for record in tfrecord.records(reading(data), len(data), max_bytes):
            found.append(record)
    except tfrecord.DamagedLengthError as error:
        return found, error
    return found, None


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def test_records_are_those_of_tensorflow(written: bytes) -> None:
    found, error = read(written)
    assert error is None
    assert len(written) == SIZE
    assert [(*record.byte_range[:3], record.value, record.reason) for record in found] == [
        (position, offset, len(payload), payload, None)
        for position, (offset, payload) in enumerate(zip(OFFSETS, PAYLOADS, strict=True))
    ]


def test_a_record_is_read_alone_while_it_is_what_the_scan_found(written: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(written)
    file = tfrecord.TfRecordFile(str(tmp_path / "f"), "f", None, "records")
    stored = list(file.read_all(1 << 20))
    with file.opened() as read_one:
        assert [read_one(item.byte_range) for item in stored] == [item.value for item in stored] == PAYLOADS
        for changed in ({"crc": 1}, {"offset": 1}, {"length": 4}):
            assert read_one(stored[0].byte_range._replace(**changed)) is None


@pytest.mark.parametrize("at", range(SIZE))
def test_a_flipped_bit_costs_one_record_or_the_rest_of_the_file(written: bytes, at: int) -> None:
    hit = max(ordinal for ordinal, offset in enumerate(OFFSETS) if offset <= at)
    in_length = at - OFFSETS[hit] < tfrecord.HEADER
    found, error = read(flipped(written, at))
    if in_length:
        assert error is not None
        assert error.offset == OFFSETS[hit]
        assert str(error) == f"the record's length does not match its checksum at byte {OFFSETS[hit]}"
        assert [record.value for record in found] == PAYLOADS[:hit]
    else:
        assert error is None
        assert [record.value for record in found] == [
            None if ordinal == hit else payload for ordinal, payload in enumerate(PAYLOADS)
        ]
        assert found[hit].reason == "corrupt_record"


@pytest.mark.parametrize("size", range(SIZE))
def test_a_truncated_file_keeps_its_whole_records(written: bytes, size: int) -> None:
    whole = sum(end <= size for end in [*OFFSETS[1:], SIZE])
    found, error = read(written[:size])
    assert [record.value for record in found] == PAYLOADS[:whole]
    if size in (*OFFSETS, SIZE):
        assert error is None
    else:
        assert error is not None
        assert error.offset == OFFSETS[whole]


def test_a_file_that_shrinks_while_it_is_read_is_damaged(written: bytes) -> None:
    with pytest.raises(tfrecord.DamagedLengthError, match="the file ends inside the record at byte 69"):
        list(tfrecord.records(reading(written[:-5]), len(written), 1 << 20))


def test_a_record_above_the_limit_is_stepped_over(written: bytes) -> None:
    found, error = read(written, max_bytes=16)
    assert error is None
    assert [record.value for record in found] == [*PAYLOADS[:3], None]
    assert [record.byte_range.length for record in found] == [5, 0, 16, 256]
    assert found[3].reason == "too_large"
