"""A build reads each source once, whatever it holds out and however many shards a file becomes."""

import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
import zstandard

from gatokit.inspection.verify.directory import verify
from gatokit.pipelines import stages
from gatokit.pipelines.run import build, scan
from gatokit.pipelines.shards import writer
from gatokit.storage import files

ROWS, SHARDS = 60, 5


def documents() -> list[str]:
    """Texts of some 20 kB that do not compress well, so that a source is far larger than a vocabulary."""
    random = np.random.default_rng(0)
    return ["".join(random.choice(list("abcdefghijklmnop \n"), 20_000)) for _ in range(ROWS)]


def parquet(folder: Path) -> str:
    pq.write_table(pa.table({"text": documents()}), folder / "a.parquet", row_group_size=10, compression="none")
    return "{name: d, kind: text, source: src/*}"


def one_row_group(folder: Path) -> str:
    pq.write_table(pa.table({"text": documents()}), folder / "a.parquet", compression="none")
    return "{name: d, kind: text, source: src/*}"


def lines() -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents())


def plain(folder: Path) -> str:
    (folder / "a.jsonl").write_bytes(lines())
    return "{name: d, kind: text, source: src/*}"


def gzipped(folder: Path) -> str:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines(), 1))
    return "{name: d, kind: text, source: src/*}"


def zstd(folder: Path) -> str:
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines(), 1))
    return "{name: d, kind: text, source: src/*}"


def episodes(file_format: str) -> Callable[..., str]:
    def write(folder: Path, write_tfds: Callable[..., Path]) -> str:
        feature = tfds.features
        flags = {name: feature.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")}
        steps = {
            "observation": feature.Tensor(shape=(500,), dtype=np.float32),
            "action": feature.Tensor(shape=(1,), dtype=np.float32),
            "reward": np.float32,
            **flags,
        }
        random = np.random.default_rng(0)
        rows = [
            {
                "steps": [
                    {
                        "observation": random.normal(size=500).astype(np.float32),
                        "action": np.zeros(1, np.float32),
                        "reward": 0.0,
                        "is_first": step == 0,
                        "is_last": step == 9,
                        "is_terminal": step == 9,
                    }
                    for step in range(10)
                ]
            }
            for _ in range(ROWS)
        ]
        write_tfds(folder / "t", steps, rows, metadata=None, max_examples_per_shard=1000, file_format=file_format)
        return "{name: d, kind: episodes, source: src/*, keep: {all: true}}"

    return write


SOURCES: dict[str, Any] = {
    "parquet": parquet,
    "one row group": one_row_group,
    "lines": plain,
    "gzip": gzipped,
    "zstd": zstd,
    "tfrecord": episodes("tfrecord"),
    "array_record": episodes("array_record"),
}


def bytes_read(call: Callable[[], Any]) -> int:
    """Bytes that this process reads from files, as the kernel counts them."""

    def now() -> int:
        return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text()).group(1))  # type: ignore[union-attr]

    before = now()
    call()
    return now() - before


@pytest.mark.parametrize("source", SOURCES)
def test_held_out_rows_are_made_in_the_same_reading(source, tmp_path, vocabulary, write_tfds):
    """Of the build alone, without the scan: what it reads of the source does not depend on what it holds out."""
    folder = tmp_path / "src"
    folder.mkdir()
    dataset = SOURCES[source](folder, write_tfds) if "record" in source else SOURCES[source](folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size > 500_000

    def read(holdout: float, shard_bytes: int, run: int) -> tuple[int, Any]:
        out = tmp_path / f"{holdout}-{shard_bytes}-{run}"
        config = tmp_path / "c.yaml"
        top = f"vocabulary: {vocabulary}\nholdout: {holdout}\nshard_bytes: {shard_bytes}\n"
        config.write_text(f"{top}datasets:\n  - {dataset}\n")
        scanned = bytes_read(lambda: scan(config, tmp_path / f"scan-{holdout}-{shard_bytes}-{run}"))
        both = bytes_read(lambda: build(config, out))
        assert verify(out) == []
        manifest = json.loads((out / "manifest.json").read_text())["datasets"][0]
        # Shards are read back twice: by their digest and by the check of their records.
        return both - scanned - 2 * manifest["bytes"], manifest

    read(0.0, 1 << 28, 0)  # imports are read once
    nothing_held, _ = read(0.0, 1 << 28, 1)
    half_held, manifest = read(0.5, 1 << 28, 1)
    assert manifest["held_out"] > 10
    assert manifest["training"] > 10
    assert abs(half_held - nothing_held) < size // 10
    _, manifest = read(0.5, size // SHARDS, 1)
    assert (manifest["shards"] == 1) == (source in ("one row group", "gzip", "zstd"))


@pytest.mark.parametrize(("groups", "shards"), [(6, 5), (12, 4), (12, 1)])
def test_each_byte_of_a_row_group_is_read_once_by_a_scan_and_once_by_a_build(
    groups: int, shards: int, tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the source alone, by ranges: neither from the file's start for each shard, nor a group for two shards."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": documents()}), path, row_group_size=ROWS // groups, compression="none")
    metadata = pq.ParquetFile(path).metadata
    reads: list[tuple[int, int]] = []

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            begin = self.tell()
            count = super().readinto(buffer)
            reads.append((begin, begin + (count or 0)))
            return count or 0

        def read(self, size: int = -1) -> bytes:
            begin = self.tell()
            data = super().read(size)
            reads.append((begin, begin + len(data)))
            return data

    whole = files.arrow_file

    @contextmanager
    def counted(name: str | Path) -> Iterator[pa.NativeFile]:
        with pa.PythonFile(Counting(name), "r") if str(name) == str(path) else whole(name) as file:
            yield file

    monkeypatch.setattr(files, "arrow_file", counted)
    config = tmp_path / "c.yaml"
    shard_bytes = metadata.row_group(0).total_byte_size * groups // shards
    config.write_text(
        f"vocabulary: {vocabulary}\nshard_bytes: {shard_bytes}\nholdout: 0.3\n"
        f"datasets: [{{name: d, kind: text, source: {path}}}]\n"
    )
    for run, expected in ((scan, 1), (build, 2)):  # a build scans first
        reads.clear()
        run(config, tmp_path / run.__name__)
        times = np.zeros(path.stat().st_size, int)
        for begin, end in reads:
            times[begin:end] += 1
        # Behind the first four bytes, and before the last ones, which every opening reads for the footer.
        assert set(times[4 : -(1 << 16)].tolist()) == {expected}, run
    found = json.loads((tmp_path / "build" / "manifest.json").read_text())["datasets"][0]
    assert abs(len(found["splits"]) - shards) <= 1


@pytest.mark.parametrize("bound", [0, 5000, 1 << 24])
def test_records_that_wait_come_back_in_order_and_shards_stay_the_same(bound, tmp_path, vocabulary, monkeypatch):
    (tmp_path / "src").mkdir()
    plain(tmp_path / "src")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"vocabulary: {vocabulary}\nholdout: 0.4\nchunk_tokens: 100\ndatasets:\n"
        "  - {name: d, kind: text, source: src/*}\n"
    )
    build(config, tmp_path / "memory")
    spilled: list[bool] = []
    real = writer._HeldBack.__exit__

    def leave(self: Any, *exception: object) -> None:
        spilled.append(self._file._rolled)
        real(self, *exception)

    monkeypatch.setattr(writer._HeldBack, "__exit__", leave)
    monkeypatch.setattr(writer, "_HELD_BYTES", bound)
    build(config, tmp_path / "out")
    assert spilled == [0 < bound < 1 << 24]
    for path in (tmp_path / "memory" / "d").iterdir():
        assert (tmp_path / "out" / "d" / path.name).read_bytes() == path.read_bytes()
    assert list(tmp_path.rglob(".tmp-*")) == []


@pytest.mark.parametrize("source", ["lines", "tfrecord"])
def test_shards_do_not_depend_on_how_many_rows_are_taken_at_a_time(
    source, tmp_path, vocabulary, write_tfds, monkeypatch
):
    folder = tmp_path / "src"
    folder.mkdir()
    dataset = SOURCES[source](folder, write_tfds) if "record" in source else SOURCES[source](folder)
    config = tmp_path / "c.yaml"
    config.write_text(f"vocabulary: {vocabulary}\nholdout: 0.3\nshard_bytes: 100000\ndatasets:\n  - {dataset}\n")
    contents = []
    for rows in (1 << 15, 7, 1):
        monkeypatch.setattr(stages, "MOST_ROWS", rows)
        build(config, tmp_path / str(rows))
        found = sorted((tmp_path / str(rows) / "d").rglob("*"))
        contents.append({path.name: path.read_bytes() for path in found if path.is_file()})
    assert len(contents[0]) > 6
    assert contents[0] == contents[1] == contents[2]
