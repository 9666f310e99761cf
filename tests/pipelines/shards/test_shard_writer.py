"""Shards appear whole and checked, or not at all."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from gatokit.pipelines.shards import writer as shards
from gatokit.pipelines.shards.writer import ShardWriter, read_out_of_range, read_parts, read_provenance, write_index
from gatokit.schemas.manifest import Provenance, ShardEntry


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def stored(path: Path) -> list[bytes]:
    reader = ArrayRecordReader(str(path))
    assert reader.ok()
    records = reader.read(0, reader.num_records())
    reader.close()
    return records


def part_of(path: Path, training: int, held_out: int, tokens: int) -> ShardEntry:
    """What a writer has to say of this file."""
    data = path.read_bytes()
    digest = hashlib.blake2b(data, digest_size=32).hexdigest()
    return ShardEntry(
        file=path.name, size=len(data), blake2b=digest, training=training, held_out=held_out, tokens=tokens
    )


def test_records_come_back_in_order_and_are_counted(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "demo-1") as writer:
        places = [
            writer.add([b"a0", b"a1"], [3, 4], held_out=False),
            writer.add([b"b0"], [5], held_out=False),
            writer.add([b"c0", b"c1", b"c2"], [6, 7, 8], held_out=True),
        ]
        writer.finish()
    path = tmp_path / "demo-1.arrayrecord"
    assert places == [(0, 0), (0, 2), (0, 3)]
    assert stored(path) == [b"a0", b"a1", b"b0", b"c0", b"c1", b"c2"]
    assert writer.parts == [part_of(path, 3, 3, 33)]
    assert names(tmp_path) == ["demo-1.arrayrecord"]


def test_the_file_is_one_record_a_group_and_compressed(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "demo-1") as writer:
        writer.add([bytes(1_000_000)], [1], held_out=False)
        writer.add([bytes(1_000_000)], [1], held_out=False)
        writer.finish()
    reader = ArrayRecordReader(str(tmp_path / "demo-1.arrayrecord"))
    options = reader.writer_options_string()
    reader.close()
    assert "group_size:1," in options
    assert "zstd:-1," in options
    assert writer.parts[0].size < 200_000


def test_a_split_that_keeps_nothing_has_no_shard(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "demo-1") as writer:
        writer.finish()
    assert (writer.parts, names(tmp_path)) == ([], [])


def test_full_parts_go_on_in_the_next_and_owners_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_RECORDS", 4)
    owners = {"a": 3, "b": 1, "c": 3, "d": 2, "e": 9, "f": 1}
    places = {}
    with ShardWriter(tmp_path, "demo-1") as writer:
        for owner, count in owners.items():
            records = [f"{owner}{number}".encode() for number in range(count)]
            places[owner] = writer.add(records, [1] * count, held_out=owner in "def")
        writer.finish()
    assert places == {"a": (0, 0), "b": (0, 3), "c": (1, 0), "d": (2, 0), "e": (3, 0), "f": (4, 0)}
    files = ["demo-1.arrayrecord", *(f"demo-1-00{number}.arrayrecord" for number in range(1, 5))]
    assert names(tmp_path) == sorted(files)
    assert [stored(tmp_path / file) for file in files] == [
        [b"a0", b"a1", b"a2", b"b0"],
        [b"c0", b"c1", b"c2"],
        [b"d0", b"d1"],
        [f"e{number}".encode() for number in range(9)],
        [b"f0"],
    ]
    counts = [(4, 0, 4), (3, 0, 3), (0, 2, 2), (0, 9, 9), (0, 1, 1)]
    assert writer.parts == [part_of(tmp_path / file, *count) for file, count in zip(files, counts, strict=True)]


def write_random(directory: Path) -> bytes:
    generator = np.random.default_rng(0)
    with ShardWriter(directory, "demo-1") as writer:
        for _ in range(300):
            writer.add([generator.bytes(generator.integers(1, 2000))], [1], held_out=False)
        writer.finish()
    return (directory / "demo-1.arrayrecord").read_bytes()


def test_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = write_random(tmp_path / "one"), write_random(tmp_path / "somewhere" / "else")
    assert len(first) > 100_000
    assert first == second


def test_an_exception_leaves_committed_parts_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_RECORDS", 1)

    def write() -> None:
        with ShardWriter(tmp_path, "demo-1") as writer:
            writer.add([b"a"], [1], held_out=False)
            writer.add([b"b"], [1], held_out=False)
            assert len(names(tmp_path)) == 2
            raise LookupError("the source went away")

    with pytest.raises(LookupError, match="the source went away"):
        write()
    assert names(tmp_path) == ["demo-1.arrayrecord"]
    assert stored(tmp_path / "demo-1.arrayrecord") == [b"a"]


def test_leaving_without_finish_commits_nothing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "demo-1") as writer:
        writer.add([b"a"], [1], held_out=False)
    assert names(tmp_path) == []


def write(directory: Path, records: list[bytes]) -> None:
    with ShardWriter(directory, "demo-1") as writer:
        writer.add(records, [1] * len(records), held_out=False)
        writer.finish()


def flip(data: bytearray) -> bytearray:
    """One bit within the first record's compressed payload."""
    place = data.index(PAYLOAD[:16])
    data[place + 8] ^= 1
    return data


PAYLOAD = np.random.default_rng(1).bytes(5000)
"""Does not compress, so it stands in the file as it is."""


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: bytearray(),
        lambda data: data[: 1 << 16] + bytes(len(data) - (1 << 16)),
    ],
)
def test_what_the_disk_did_not_keep_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytearray], bytearray]
) -> None:
    check = shards._check

    def check_after_damage(path: str, checksums: list[int]) -> None:
        """The disk loses or changes bytes between the writer's close and the reading back."""
        data = bytearray(Path(path).read_bytes())
        damaged = damage(bytearray(data))
        assert damaged != data
        Path(path).write_bytes(damaged)
        check(path, checksums)

    monkeypatch.setattr(shards, "_check", check_after_damage)
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        write(tmp_path, [PAYLOAD] * 40)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "written",
    [[b"one", b"other"], [b"one", b"two", b"three"], [b"one"], [b"two", b"one"]],
)
def test_another_shard_in_its_place_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[bytes]
) -> None:
    write(tmp_path / "other", written)
    check = shards._check

    def check_after_swap(path: str, checksums: list[int]) -> None:
        os.replace(tmp_path / "other" / "demo-1.arrayrecord", path)
        check(path, checksums)

    monkeypatch.setattr(shards, "_check", check_after_swap)
    with pytest.raises(OSError, match="does not read back"):
        write(tmp_path / "out", [b"one", b"two"])
    assert names(tmp_path / "out") == []


FULL_DISK = """
import resource, signal, sys
import numpy as np
from gatokit.pipelines.shards.writer import ShardWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    with ShardWriter(sys.argv[1], "demo-1") as writer:
        for number in range(100):
            writer.add([np.random.default_rng(number).bytes(10_000)], [1], held_out=False)
        writer.finish()
    print("finished")
except Exception as error:
    print(type(error).__name__)
"""


def test_a_disk_that_takes_no_more_commits_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "OSError\n"
    assert names(tmp_path) == []


@pytest.mark.parametrize("failing", range(6))
def test_a_sync_that_fails_at_any_point_fails_the_shard(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system reports an error of the disk once: the next sync of the same file succeeds."""
    monkeypatch.setattr(shards, "_HASH_BYTES", 10_000)
    fsync, calls = os.fsync, 0

    def fails_once(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_once)

    def write() -> None:
        with ShardWriter(tmp_path, "demo-1") as writer:
            for _ in range(4):
                writer.add([PAYLOAD * 3], [1], held_out=False)
            writer.finish()

    with pytest.raises(OSError, match="Input/output error"):
        write()
    assert [name for name in names(tmp_path) if failing < 5 or not name.endswith(".arrayrecord")] == []


def test_an_index_holds_rows_parts_and_counts(tmp_path: Path) -> None:
    rows = pa.table({"a": [1, 2]}).replace_schema_metadata({"gatokit.index": "1"})
    part = ShardEntry(file="demo-1.arrayrecord", size=9, blake2b="d", training=1, held_out=2, tokens=3)
    outside = {"b": {"action": (1, 20)}, "a": {"action/x": (0, 4)}}
    path = tmp_path / "demo" / "demo-1.index.parquet"
    made_by = Provenance(packages={"numpy": "2"}, code="c0de")
    write_index(path, rows, [part], outside, made_by=made_by, generations={"f": 17})
    table = pq.read_table(path)
    metadata = table.schema.metadata
    assert table.to_pydict() == {"a": [1, 2]}
    assert metadata[b"gatokit.index"] == b"1"
    assert read_parts(metadata) == [part]
    assert read_out_of_range(metadata) == {"a": {"action/x": [0, 4]}, "b": {"action": [1, 20]}}
    assert read_provenance(metadata) == (made_by, {"f": 17})
    before = path.read_bytes()
    write_index(path, rows, [part], dict(reversed(outside.items())), made_by=made_by, generations={"f": 17})
    assert path.read_bytes() == before
    assert names(tmp_path / "demo") == ["demo-1.index.parquet"]
