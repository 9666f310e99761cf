"""Reading ranges of records."""

from pathlib import Path

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from gatokit.storage.array_record import ArrayRecordError, ArrayRecordFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.arrayrecord"
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for number in range(10):
        writer.write(bytes([number]) * 20_000)
    writer.close()
    return path


def test_ranges(file: Path):
    with ArrayRecordFile(file) as reader:
        assert (reader.is_whole, reader.records) == (True, 10)
        assert [record[0] for record in reader.read(3, 6)] == [3, 4, 5]
        with pytest.raises(ArrayRecordError, match=r"x\.arrayrecord: records \[9, 12\) cannot be read: ."):
            reader.read(9, 12)


def test_damage(file: Path):
    data = bytearray(file.read_bytes())
    file.write_bytes(data[: len(data) // 2])
    with ArrayRecordFile(file) as reader:
        assert (reader.is_whole, reader.records) == (False, 0)
    begin = data.index(bytes([3]) * 1000)
    data[begin : begin + 1000] = bytes(1000)
    file.write_bytes(data)
    with ArrayRecordFile(file) as reader:
        assert len(reader.read(0, 3)) == 3
        with pytest.raises(ArrayRecordError, match=r"records \[3, 4\) cannot be read"):
            reader.read(3, 4)
    with ArrayRecordFile(file.parent / "missing") as reader:
        assert (reader.is_whole, reader.records) == (False, 0)
