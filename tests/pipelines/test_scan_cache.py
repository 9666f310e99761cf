"""What was read is kept: bytes that are read of the sources, what a scan table says of its files, and what is never
taken again."""

import gzip
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines import scan_cache
from gatokit.pipelines.run import Result, build, scan
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.storage import files

STEPS = {
    "observation": {"state": tfds.features.Tensor(shape=(1000,), dtype=np.float32)},
    "action": tfds.features.Tensor(shape=(1,), dtype=np.float32),
    "reward": np.float32,
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_terminal": np.bool_,
}
TEXT = "kind: text, source: 'text/*.jsonl'"
EPISODES = "kind: episodes, source: 'episodes/*', last_step: padding, hz: 10, keep: {min_return: 0.5}"


def write_lines(path: Path, number: int, lines: int = 12) -> None:
    path.parent.mkdir(exist_ok=True)
    texts = [f"text {number} {line} " * 300 for line in range(lines)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def episode(total: float) -> dict[str, Any]:
    step = {"observation": {"state": np.full(1000, total, np.float32)}, "action": np.zeros(1, np.float32)}
    flags = {"is_first": False, "is_terminal": False}
    rewards = (total, 0.0)
    return {"steps": [{**step, **flags, "reward": value, "is_last": at == 1} for at, value in enumerate(rewards)]}


@pytest.fixture
def sources(tmp_path: Path, write_tfds: Callable[..., Path]) -> Path:
    """Four files of texts, and twelve episodes of returns 1 to 12 in three files of equal size."""
    for number in range(4):
        write_lines(tmp_path / "text" / f"{number}.jsonl", number)
    episodes = [episode(float(total)) for total in range(1, 13)]
    write_tfds(tmp_path / "episodes" / "reach", STEPS, episodes, max_examples_per_shard=4)
    return tmp_path


@pytest.fixture
def configured(tmp_path: Path, exact_vocabulary: Path) -> Callable[..., Path]:
    def write(*datasets: str) -> Path:
        lines = "".join(f"  - {{name: {dataset.split()[1].rstrip(',')}s, {dataset}}}\n" for dataset in datasets)
        path = tmp_path / "c.yaml"
        path.write_text(f"vocabulary: {exact_vocabulary}\nshard_bytes: 33300\nholdout: 0\ndatasets:\n{lines}")
        return path

    return write


class Counted:
    """Bytes read of each data file below a folder, and the files that were opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.bytes: Counter[str] = Counter()

    def add(self, path: str, size: int) -> None:
        below = os.path.relpath(path, self._folder)
        if below.startswith("text/") or ".tfrecord-" in below:
            self.bytes[below] += size


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, sources: Path) -> Callable[[], Any]:
    """A context in which every read of the sources is counted where it reaches the system."""

    @contextmanager
    def counted() -> Iterator[Counted]:
        counts, real = Counted(sources), os.pread

        def pread(number: int, length: int, offset: int) -> bytes:
            data = real(number, length, offset)
            counts.add(os.readlink(f"/proc/self/fd/{number}"), len(data))
            return data

        class File(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                size = super().readinto(buffer)
                counts.add(str(self.name), size)
                return size

            def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
                data = super().read(-1 if size is None else size)
                counts.add(str(self.name), len(data))
                return data

        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", pread)
            patch.setattr(files, "stream", File)
            yield counts

    return counted


def sizes(folder: Path) -> dict[str, int]:
    paths = [*folder.glob("text/*.jsonl"), *folder.glob("episodes/*/*.tfrecord-*")]
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths}


def once(count: Counter[str], expected: dict[str, float]) -> None:
    assert count.keys() == expected.keys()
    for name, size in expected.items():
        assert 0.97 * size <= count[name] <= 1.05 * size + 200, (name, count[name], size)


def test_the_sequence_of_a_day_reads_every_byte_once(sources, configured, counting):
    """A scan, a build, the same again, another weight, another threshold, one more file."""
    cache, out = sources / "cache", sources / "out"

    def measured(*datasets: str, job: Callable[..., Result] = build, **options: Any) -> tuple[Result, Counter[str]]:
        config = configured(*datasets)
        with counting() as counts:
            where = sources / "scanned" if job is scan else out
            result = job(config, where, scan_cache=cache, **options)
        return result, counts.bytes

    whole = sizes(sources)
    _, read = measured(EPISODES, TEXT, job=scan)
    once(read, dict(whole))
    # Of the episodes those of returns 6 to 12 are kept: 3 of the second file, 4 of the third.
    shares = {name: 1.0 for name in whole if name.startswith("text")}
    shares |= {name: share for name, share in zip(sorted(whole.keys() - shares), (0, 3 / 4, 1), strict=True) if share}
    result, read = measured(EPISODES, TEXT)
    assert result.manifest.datasets[0].kept == 7
    once(read, {name: share * whole[name] for name, share in shares.items()})
    assert measured(EPISODES, TEXT)[1] == {}
    assert measured(EPISODES, TEXT, job=scan)[1] == {}
    heavy = EPISODES.replace("hz: 10", "hz: 20, weight: 3, license: MIT")
    assert measured(heavy, f"{TEXT}, weight: 2", update=True)[1] == {}
    higher, text = heavy.replace("0.5", "0.7"), f"{TEXT}, weight: 2"
    result, read = measured(higher, text, update=True)
    assert result.manifest.datasets[0].kept == 4  # 9 to 12: those of the third file, whose shard stays
    assert read == {}
    result, read = measured(heavy.replace("0.5", "0.6"), text, update=True)  # 8 too, the last of the second file
    assert (result.built, result.manifest.datasets[0].kept) == (1, 5)
    [second] = [name for name, share in shares.items() if share == 3 / 4]
    once(read, {second: whole[second] / 4})
    write_lines(sources / "text" / "9.jsonl", 9)
    result, read = measured(heavy.replace("0.5", "0.6"), text, update=True)
    assert result.built == 1
    once(read, {"text/9.jsonl": 2 * sizes(sources)["text/9.jsonl"]})
    assert verify(out) == []
    shutil.rmtree(cache)
    build(configured(heavy.replace("0.5", "0.6"), text), sources / "fresh")
    assert contents(out) == contents(sources / "fresh")


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".scan" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != "build.log.jsonl"}


def test_the_tables_in_out_are_those_that_are_used(sources, configured, counting):
    out, config = sources / "out", configured(TEXT)
    build(config, out)
    [before] = (out / ".scan").iterdir()
    with counting() as counts:
        build(config, out)
    assert counts.bytes == {}
    write_lines(sources / "text" / "0.jsonl", 99)
    build(config, out, update=True)
    assert len(list((out / ".scan").iterdir())) == 2
    for number in range(4):
        write_lines(sources / "text" / f"{number}.jsonl", 50 + number)
    build(config, out, update=True)
    [after] = (out / ".scan").iterdir()
    assert after != before
    assert verify(out) == []
    after.write_bytes(after.read_bytes()[:-40])  # a table that cannot be read is made again
    with counting() as counts:
        build(config, out)
    once(counts.bytes, {name: size for name, size in sizes(sources).items() if name.startswith("text/")})


def test_a_file_that_lost_something_is_read_again(sources, configured, counting):
    """Also where the budget allows the loss; the files beside it are not."""
    damaged = sources / "text" / "3.jsonl"
    packed = gzip.compress(damaged.read_bytes(), 0)
    damaged.unlink()
    (sources / "text" / "3.jsonl.gz").write_bytes(packed[:-2000])
    config = configured(TEXT.replace("*.jsonl", "*.jsonl*"))
    config.write_text("max_lost_bytes: 0.5\n" + config.read_text())
    with counting() as counts:
        result = build(config, sources / "out")
    assert result.rejected == {"texts": {"ends_early": 1}}
    assert len(counts.bytes) == 4
    found = scan_cache.find(scan_cache.tables(sources / "out" / ".scan")).values()
    assert sorted((item.ordinal, item.is_whole) for item in found) == [(0, True), (1, True), (2, True), (3, False)]
    for _ in range(2):
        with counting() as counts:
            build(config, sources / "out")
        assert counts.bytes.keys() == {"text/3.jsonl.gz"}


def test_a_failed_scan_leaves_nothing(sources, configured):
    (sources / "text" / "2.jsonl").write_bytes(b"PK\x03\x04" + bytes(400))
    with pytest.raises(DataError):
        build(configured(TEXT), sources / "out", scan_cache=sources / "cache")
    assert scan_cache.tables(sources / "cache") == []


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with ten pictures of twelve, and pages that name them."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    pages = []
    for number in range(12):
        if number < 10:
            Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "images" / "a" / f"{number}.png")
        info = [{"image_name": f"a/{number}.png", "matched_text_index": 0}]
        pages.append(json.dumps({"text_list": [f"page {number}"], "image_info": info}))
    (tmp_path / "pages.jsonl").write_text("\n".join(pages) + "\n")
    return tmp_path


def test_pictures_that_come_or_change_are_seen(pictures, exact_vocabulary):
    config = pictures / "c.yaml"
    config.write_text(
        f"vocabulary: {exact_vocabulary}\nholdout: 0\ndatasets:\n"
        "  - {name: pages, kind: interleaved, format: mmc4, source: pages.jsonl, image_dir: images}\n"
    )
    cache = pictures / "cache"

    def found(name: str) -> tuple[list[str], bool]:
        before = {path: path.stat().st_mtime_ns for path in scan_cache.tables(cache)}
        scan(config, pictures / name, scan_cache=cache)
        rows = open_directory(pictures / name).datasets["pages"].rows()
        missing = [row.episode_id for row in rows if row.reason is not None]
        return missing, before == {path: path.stat().st_mtime_ns for path in scan_cache.tables(cache)}

    both = ["pages.jsonl#10", "pages.jsonl#11"]
    assert found("1") == (both, False)
    assert found("2") == (both, True)  # nothing came, so the rows stand, also those of what is missing
    Image.new("RGB", (16, 16)).save(pictures / "images" / "other.png")
    assert found("3") == (both, True)
    Image.new("RGB", (16, 16)).save(pictures / "images" / "a" / "10.png")
    assert found("4") == (both[1:], False)
    (pictures / "images" / "a" / "3.png").write_bytes(b"")
    assert found("5") == (both[1:], False)  # only the build decodes
    (pictures / "images" / "a" / "4.png").unlink()
    assert found("6") == (["pages.jsonl#4", *both[1:]], False)
    assert found("7")[1]


def test_a_limit_stops_reading(sources, configured, counting):
    whole = sizes(sources)
    config = configured(EPISODES.replace("min_return: 0.5", "all: true"), TEXT)
    with counting() as counts:
        result = scan(config, sources / "some", limit=2)
    assert [item.episodes for item in result.manifest.datasets] == [2, 2]
    first = sorted(name for name in whole if "tfrecord" in name)[0]
    assert counts.bytes.keys() == {first, "text/0.jsonl"}
    assert counts.bytes["text/0.jsonl"] <= whole["text/0.jsonl"]
    with counting() as counts:
        scan(config, sources / "some", limit=2)
    assert counts.bytes == {}
    with counting() as counts:
        result = scan(config, sources / "more", limit=6, scan_cache=sources / "some" / ".scan")
    assert [item.episodes for item in result.manifest.datasets] == [6, 6]
    with counting() as counts:
        scan(config, sources / "all", scan_cache=sources / "some" / ".scan")
    assert counts.bytes.keys() == whole.keys()


def test_tasks_that_episodes_name_are_read_completely(tmp_path, write_tfds, exact_vocabulary):
    episodes = [{**episode(1.0), "kind": "ab"[number % 2]} for number in range(8)]
    write_tfds(tmp_path / "e", STEPS, episodes, metadata={"kind": tfds.features.Text()}, max_examples_per_shard=3)
    config = tmp_path / "c.yaml"
    rest = "task: {metadata: kind}, last_step: padding, keep: {all: true}"
    config.write_text(f"datasets:\n  - {{name: d, kind: episodes, source: e, {rest}}}\n")
    scan(config, tmp_path / "out", limit=3)
    rows = list(open_directory(tmp_path / "out").datasets["d"].rows())
    assert sorted(row.task or "" for row in rows) == ["a"] * 3 + ["b"] * 3


def test_a_source_that_changed_without_a_new_time_is_scanned_again(sources, configured, monkeypatch):
    out, config, path = sources / "out", configured(TEXT), sources / "text" / "1.jsonl"
    scan(config, sources / "scanned", scan_cache=sources / "cache")
    times = path.stat()
    path.write_text(path.read_text().replace("text 1", "TEXT 1"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=r"1\.jsonl: document \d+ changed between scan and build"):
        build(config, out, scan_cache=sources / "cache")
    assert scan_cache.tables(sources / "cache") == []
    assert build(config, out, scan_cache=sources / "cache").manifest.datasets[0].kept == 48


def test_a_cache_elsewhere_is_refused_by_name(sources, configured):
    with pytest.raises(ConfigError, match=r"--scan-cache s3://bucket/x: is neither a local path nor one on gs://"):
        build(configured(TEXT), sources / "out", scan_cache="s3://bucket/x")


# --- tables ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(data=st.data())
def test_segments_give_the_rows_of_files_in_their_new_order(tmp_path_factory, data):
    """Files with any number of rows, in any tables, that come back in any order among other files."""
    folder = tmp_path_factory.mktemp("tables")
    counts = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=8))
    tables = data.draw(st.lists(st.integers(0, 2), min_size=len(counts), max_size=len(counts)))
    rows_of = {number: [f"{number}.{row}" for row in range(count)] for number, count in enumerate(counts)}
    for table in set(tables):
        members = [number for number in rows_of if tables[number] == table]
        rows = [(number, row) for number in members for row in rows_of[number]]
        columns = {
            "file": pa.array([number for number, _ in rows], pa.int32()),
            "reason": pa.nulls(len(rows), pa.string()),
            "id": pa.array([row for _, row in rows], pa.string()),
        }
        path = scan_cache.table_path(folder, f"t{table}")
        scan_cache.write(path, [f"key {number}" for number in members], members, [pa.table(columns)])
    found = scan_cache.find(scan_cache.tables(folder))
    assert found.keys() == {f"key {number}" for number in rows_of}
    wanted = data.draw(st.permutations(list(rows_of)).map(lambda order: order[: max(1, len(order) - 1)]))
    read = [segment.read() for segment in scan_cache.segments([found[f"key {number}"] for number in wanted])]
    rows = [pair for table in read for pair in zip(table["file"].to_pylist(), table["id"].to_pylist(), strict=True)]
    assert rows == [(place, row) for place, number in enumerate(wanted) for row in rows_of[number]]


def test_a_file_that_is_no_table_has_no_files(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"no table")
    files.write_rows(tmp_path / "y.arrow", pa.table({"a": [1]}))
    (tmp_path / "z.txt").write_text("")
    assert scan_cache.find(scan_cache.tables(tmp_path)) == {}
