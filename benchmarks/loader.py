"""Training input: record reads against the official data source, windows against the reads they are made of, memory.

Shards of 50,000 records of recorded Meta-World episodes (4,096 tokens each), and of as many short records, are built by
a real build. Rates are of one process; the sides of a ratio take turns in it, so that a slow spell meets both.

    python benchmarks/loader.py                   # about six minutes on two cores
    python benchmarks/loader.py --part windows --repeats 3
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from episodes import prepare, vocabulary
from harness import machine

PARTS = ("records", "windows", "memory", "index")
RECORDS = 50_000
CONTEXT = 1024
ROWS = 256
"""Windows of a batch."""
GATO_RECORDS = 6.25
"""Records an episode at the paper's mix: 1.61T tokens, 62.8M episodes, 4,096 tokens a record."""

Once = Callable[[], float]


# --- data --------------------------------------------------------------------------------------------------


def build_states(work: Path) -> Path:
    """A build with one shard of at least ``RECORDS`` records of Meta-World, made once."""
    from gatokit.pipelines.run import build

    out = work / "loader-states"
    if not (out / "manifest.json").exists():
        config = prepare(work, "states", 6_800_000, "loader")
        config.write_text(config.read_text().replace("datasets:", "shard_bytes: 100000000000\ndatasets:"))
        build(config, out)
        shutil.rmtree(work / "loader")
    return out


def build_short(work: Path) -> Path:
    """A build with one shard of ``RECORDS`` lines of Python's reference, a record each, made once."""
    import pydoc_data.topics

    from gatokit.pipelines.run import build

    out = work / "loader-short"
    if not (out / "manifest.json").exists():
        lines = [line for text in pydoc_data.topics.topics.values() for line in text.splitlines() if line.strip()]
        texts = (f"{number} {lines[number % len(lines)]}" for number in range(RECORDS))
        (work / "loader.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        config = work / "loader.yaml"
        config.write_text(
            f"vocabulary: {vocabulary(work)}\nshard_bytes: 100000000000\n"
            "datasets: [{name: short, kind: text, source: loader.jsonl}]\n"
        )
        build(config, out)
    return out


def write_indexes(work: Path, episodes: int) -> list[Any]:
    """``IndexFile``s of ``episodes`` episodes of 600 tasks, 20,000 a file, of about ``GATO_RECORDS`` records each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gatokit.loader.mixture import IndexFile
    from gatokit.schemas.index import INDEX
    from gatokit.schemas.manifest import ShardEntry, SplitEntry

    folder = work / "loader-index"
    folder.mkdir(exist_ok=True)
    random, rows, paths = np.random.default_rng(0), 20_000, []
    for file in range(-(-episodes // rows)):
        path = folder / f"{file:05}.index.parquet"
        paths.append(path)
        if path.exists():
            continue
        records = random.poisson(GATO_RECORDS - 1, rows) + 1
        ends = np.concatenate([[0], np.cumsum(records)]).astype(np.int32)
        sizes = random.integers(1, 4097, ends[-1]).astype(np.int32)
        tasks = np.sort(random.integers(0, 4, rows)) + file * 600 // (episodes // rows)
        columns: dict[str, Any] = {name: pa.nulls(rows, INDEX.field(name).type) for name in INDEX.names}
        columns |= {
            "episode_id": pa.array([f"task/{file}#{row}" for row in range(rows)]),
            "task": pa.array([f"task-{task:04}" for task in tasks]),
            "agent": pa.array(["agent"] * rows),
            "split": pa.array(np.where(random.uniform(size=rows) < 0.99, "train", "held_out")),
            "steps": pa.array(records * 90),
            "kept": pa.array([True] * rows),
            "part": pa.array(ends[:-1] // 60_000, pa.int32()),
            "first_record": pa.array(ends[:-1] % 60_000, pa.int64()),
            "record_tokens": pa.ListArray.from_arrays(ends, sizes),
        }
        pq.write_table(pa.table(columns, schema=INDEX), path, compression="zstd")
    part = ShardEntry(file="x.arrayrecord", size=0, blake2b="", training=70_000, held_out=0, tokens=0)
    split = SplitEntry(fingerprint="", index="x.parquet", rows=rows, kept=rows, parts=[part] * 3)
    return [IndexFile(path, 3 * number, split) for number, path in enumerate(paths)]


# --- sides: each function returns one that does its work once and returns seconds a unit -----------------------


def windows_of(built: Path, **input: Any) -> Any:
    """The windows of a build: ``ROWS`` of ``CONTEXT`` tokens a batch."""
    from gatokit.loader.mixture import open_mixture
    from gatokit.loader.windows import Windows
    from gatokit.schemas.run import RunConfig

    config = RunConfig.model_validate({"model": "tiny", "context": CONTEXT, "batch": ROWS, "input": input})
    return Windows(open_mixture([built]), config)


def our_reads(path: str, records: int, count: int) -> Once:
    """Single records at random places, as the windows read them."""
    from gatokit.loader.records import OpenShards, Shard

    shards = OpenShards([Shard(path, records, 0)], 1)
    places = np.random.default_rng(0).integers(0, records, count).tolist()
    shards.read_bytes(0, 0, 1)

    def once() -> float:
        begin = time.perf_counter()
        for place in places:
            shards.read_bytes(0, place, place + 1)
        return (time.perf_counter() - begin) / count

    return once


def official_reads(path: str, records: int, count: int) -> Once:
    """The same of ``ArrayRecordDataSource``."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    source = ArrayRecordDataSource([path])
    places = np.random.default_rng(0).integers(0, records, count).tolist()
    source[0]

    def once() -> float:
        begin = time.perf_counter()
        for place in places:
            source[place]
        return (time.perf_counter() - begin) / count

    return once


def batches_of(windows: Any, count: int) -> Once:
    """Whole batches of windows."""
    windows.batch(0, range(ROWS))
    step = 0

    def once() -> float:
        nonlocal step
        begin = time.perf_counter()
        for _ in range(count):
            windows.batch(step, range(ROWS))
            step += 1
        return (time.perf_counter() - begin) / (count * ROWS)

    return once


def reads_of_batches(windows: Any, count: int) -> Once:
    """The ranges that the same batches read, and nothing but reading and decoding their records, as windows do."""
    ranges, step = [], 0
    shards = windows._shards
    read = type(shards).read

    def noted(self: Any, shard: int, begin: int, end: int) -> Any:
        ranges.append((shard, begin, end))
        return read(self, shard, begin, end)

    def once() -> float:
        nonlocal step
        ranges.clear()
        type(shards).read = noted
        for _ in range(count):
            windows.batch(step, range(ROWS))
            step += 1
        type(shards).read = read
        begin = time.perf_counter()
        for shard, first, stop in ranges:
            shards.read(shard, first, stop)
        return (time.perf_counter() - begin) / (count * ROWS)

    return once


def ratio(ours: Once, other: Once, repeats: int) -> tuple[float, float, float]:
    """Median seconds a unit of both, and the median of how many times longer the other takes."""
    runs = [(ours(), other()) for _ in range(repeats)]
    return (
        statistics.median(run[0] for run in runs),
        statistics.median(run[1] for run in runs),
        statistics.median(run[1] / run[0] for run in runs),
    )


# --- measurements --------------------------------------------------------------------------------------------


def show(what: str, expected: str, got: str) -> None:
    """A line of the table."""
    print(f"{what:58} {expected:>14}   {got}", flush=True)


def shard_of(built: Path) -> tuple[str, int]:
    """The first shard of a build and its number of records."""
    from gatokit.storage.folder import read_manifest

    dataset = read_manifest(built).datasets[0]
    part = dataset.splits[0].parts[0]
    return str(built / dataset.directory / part.file), part.records


def measure_records(work: Path, repeats: int) -> dict[str, Any]:
    """Single reads against the official data source."""
    found = {}
    for name, built in (("short", build_short(work)), ("states", build_states(work))):
        path, records = shard_of(built)
        ours, official, times = ratio(our_reads(path, records, 20_000), official_reads(path, records, 500), repeats)
        found[name] = {"ours": 1 / ours, "official": 1 / official, "ratio": times, "records": records}
        show(
            f"reads of {records:,} {name} records, times the official",
            "20" if name == "short" else "",
            f"{times:.1f}  ({1 / ours:,.0f}/s, official {1 / official:,.0f}/s)",
        )
    return found


def measure_windows(work: Path, repeats: int) -> dict[str, Any]:
    """Windows against the reads and the decoding of the same records, and tokens a second."""
    windows = windows_of(build_states(work))
    ours, _, share = ratio(batches_of(windows, 8), reads_of_batches(windows, 8), repeats)
    show("windows, of reading and decoding the same records", "0.5", f"{share:.2f}  ({1 / ours:,.0f} windows/s)")
    show("tokens a second and core", "8 M", f"{CONTEXT / ours / 1e6:.1f} M")
    aligned = batches_of(windows_of(build_states(work), align="step", hide_actions=0.5), 8)
    stepped = statistics.median(aligned() for _ in range(repeats))
    show("  aligned to steps, half with hidden actions", "", f"{CONTEXT / stepped / 1e6:.1f} M")
    return {"window_seconds": ours, "share": share, "tokens": CONTEXT / ours, "aligned_tokens": CONTEXT / stepped}


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_memory(work: Path, batches: int) -> dict[str, Any]:
    """Resident memory after 200 batches and after many, through the loader."""
    from gatokit.loader.loader import batches_ahead

    windows = windows_of(build_states(work))
    sizes = {}
    with batches_ahead(windows, 0, batches, range(8)) as ready:
        for number, _ in enumerate(ready, 1):
            if number in (200, batches):
                sizes[number] = resident()
    times = sizes[batches] / sizes[200]
    show(f"memory after {batches:,} batches, of that after 200", "1.05", f"{times:.3f}  ({sizes[200] / 2**20:.0f} MiB)")
    return {"sizes": sizes, "ratio": times}


def measure_index(work: Path, episodes: int) -> dict[str, Any]:
    """Loading an index."""
    from gatokit.loader.mixture import load_index

    files = write_indexes(work, episodes)
    for file in files:
        file.path.read_bytes()
    before, begin = resident(), time.perf_counter()
    index = load_index(files, "train")
    seconds = time.perf_counter() - begin
    nbytes = sum(value.nbytes for value in vars(index).values() if isinstance(value, np.ndarray))
    size = nbytes / index.episodes
    show(f"seconds to load {index.episodes:,} episodes", "seconds", f"{seconds:.1f}")
    show("bytes an episode of the index", "100", f"{size:.1f}")
    grown = (resident() - before) / index.episodes
    show("  resident memory, bytes an episode", "", f"{grown:.1f}")
    return {"seconds": seconds, "bytes": size, "resident": grown}


def main() -> None:
    """Runs the parts and prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/benchmark"), help="recordings, builds and indexes")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, default=20_000, help="of the memory part")
    parser.add_argument("--episodes", type=int, default=10_000_000, help="of the index part")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    parts = arguments.part or PARTS
    result: dict[str, Any] = {"machine": machine() | {"load": os.getloadavg()[0]}}
    print(f"{'':58} {'expected':>14}   got")
    if "records" in parts:
        result["records"] = measure_records(work, arguments.repeats)
    if "windows" in parts:
        result["windows"] = measure_windows(work, arguments.repeats)
    if "memory" in parts:
        result["memory"] = measure_memory(work, arguments.batches)
    if "index" in parts:
        result["index"] = measure_index(work, arguments.episodes)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
