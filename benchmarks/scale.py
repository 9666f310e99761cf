"""What must hold at Gato's scale: the parts of a build that see every episode or every split, at three sizes, and time
and memory of whole builds over a hundredfold range of input.

The simulation makes sources of header-only data: directories whose files have a size and no content, the rows that a
scan of them would have left, and for each split an index as long as a real one beside a shard without tokens. The real
code lists, judges, plans, finishes, reads and draws from them, each stage in a process of its own. Peak memory is that
process's while the stage runs, with all that it imported and, before ``finish``, what the verdicts hold.

    python benchmarks/scale.py                         # the simulation: about six minutes on two cores
    python benchmarks/scale.py --episodes 100000 1000000
    python benchmarks/scale.py --part throughput       # 0.18 to 18 GB, one process and two: about seven minutes
"""

import argparse
import json
import math
import multiprocessing
import os
import pickle
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from episodes import count_steps, prepare, vocabulary
from harness import machine

SIZES = (100_000, 1_000_000, 10_000_000)
EPISODES_A_FILE = 2_000
FILES_A_TASK = 8
RECORDS = 6.25
"""Of an episode at the paper's mix: 1.61T tokens, 62.8M episodes, 4,096 tokens a record."""
STEP_TOKENS = 44
FULL = 4096 // STEP_TOKENS * STEP_TOKENS
"""Tokens of a record that is no episode's last."""
AGENTS = ("first", "second")
NAME = "simulated"
BATCH = 512
PROCESSES = 2

# --- header-only data ----------------------------------------------------------------------------------------


def source_length() -> int:
    """Stored bytes of an episode, so that a file makes a split."""
    from gatokit.schemas.config import BuildConfig

    return int(BuildConfig.model_fields["shard_bytes"].default) // EPISODES_A_FILE


def features() -> str:
    """``features.json`` of states, with what the filter asks for."""
    import tensorflow_datasets as tfds

    float32, flag = np.float32, np.bool_
    steps = {
        "observation": tfds.features.FeaturesDict({"state": tfds.features.Tensor(shape=(39,), dtype=float32)}),
        "action": tfds.features.Tensor(shape=(4,), dtype=float32),
        "reward": float32,
        **dict.fromkeys(("is_first", "is_last", "is_terminal"), flag),
    }
    metadata = {"agent_id": tfds.features.Text(), "episode_index": np.int64}
    described = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps), **metadata})
    return json.dumps(described.to_json())


def write_source(work: Path, episodes: int) -> Path:
    """Directories of TFRecord files that are only as long as they say; the config over them."""
    files, described = episodes // EPISODES_A_FILE, features()
    for task in range(-(-files // FILES_A_TASK)):
        here = min(FILES_A_TASK, files - task * FILES_A_TASK)
        folder = work / "source" / f"task-{task:04d}" / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "features.json").write_text(described)
        split = {
            "name": "train",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "numBytes": str(here * EPISODES_A_FILE * source_length()),
            "shardLengths": [str(EPISODES_A_FILE)] * here,
        }
        info = {"fileFormat": "tfrecord", "name": "simulated", "version": "1.0.0", "splits": [split]}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        for file in range(here):
            with open(folder / f"simulated-train.tfrecord-{file:05d}-of-{here:05d}", "wb") as empty:
                empty.truncate(EPISODES_A_FILE * (source_length() + 16))
    config = work / "build.yaml"
    config.write_text(
        f"vocabulary: {vocabulary(work)}\n"
        f"datasets: [{{name: {NAME}, kind: episodes, source: source/*, agent: {{metadata: agent_id}}, "
        "order: {metadata: episode_index}, keep: {min_return: 0.8}}]\n"
    )
    return config


def write_scanned(job: tuple[str, list[tuple[str, list[tuple[int, str]]]]]) -> None:
    """The rows that scans of units would have left: (file, task) of the files of each."""
    import pyarrow as pa

    from gatokit.pipelines.episodes.scan import SCANNED
    from gatokit.storage.files import write_rows

    folder, units = job
    count, length = EPISODES_A_FILE, source_length()
    for fingerprint, files in units:
        tables = []
        for file, task in files:
            random = np.random.default_rng(file)
            position = np.arange(count)
            returns = random.normal(100, 15, count)
            damaged = random.random(count) < 1e-3
            returns[damaged] = np.nan
            reason = np.where(damaged, "not_finite", None)
            columns = {
                "file": np.full(count, file),
                "position": position,
                "offset": position * (length + 16),
                "length": np.full(count, length),
                "crc": random.integers(0, 1 << 32, count),
                "task": pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([task])),
                "agent": pa.DictionaryArray.from_arrays(
                    random.integers(0, len(AGENTS), count, np.int32), pa.array(AGENTS)
                ),
                "order": random.permutation(count) + float(file * count),
                "steps": np.full(count, 500),
                "return": returns,
                "reason": pa.array(reason, pa.string()).dictionary_encode(),
                "detail": pa.array(np.where(damaged, "reward is nan at step 7", None), pa.string()),
                "lost": np.ones(count, np.int64),
            }
            nothing = pa.nulls(count)
            arrays = [pa.array(columns.get(field.name, nothing)).cast(field.type) for field in SCANNED]
            tables.append(pa.table(arrays, schema=SCANNED))
        write_rows(f"{folder}/{fingerprint}.arrow", pa.concat_tables(tables))


def write_built(job: tuple[str, int, str, list[tuple[str, str, str]]]) -> None:
    """The index of each order (path, stem, index), full of records, beside a shard that is as large as an empty one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from gatokit.pipelines.planning import ShardTask
    from gatokit.pipelines.shards.writer import provenance, write_index
    from gatokit.schemas.index import HELD_OUT, INDEX
    from gatokit.schemas.manifest import ShardEntry

    directory, size, digest, orders = job
    for path, stem, index in orders:
        rows = ShardTask.read(path).rows
        random = np.random.default_rng(int(stem[-8:], 16))
        kept = rows["kept"].to_numpy()
        records = np.where(kept, random.poisson(RECORDS - 1, len(kept)) + 1, 0)
        ends = np.cumsum(records)
        tokens = np.full(int(ends[-1]), FULL, np.int32)
        tokens[ends[kept] - 1] = STEP_TOKENS * random.integers(1, FULL // STEP_TOKENS, int(kept.sum()))
        held_out = rows["split"].to_numpy() == HELD_OUT
        turn = np.argsort(np.where(kept, held_out.astype(int), 2), kind="stable")
        first = np.empty(len(kept), np.int64)
        first[turn] = np.cumsum(records[turn]) - records[turn]
        lists = pa.ListArray.from_arrays(pa.array(np.append(ends - records, ends[-1]), pa.int32()), pa.array(tokens))
        dropped = pa.array(~kept)
        columns = {
            "tokens": np.diff(np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])[np.append(0, ends)]),
            "part": pa.array(np.zeros(len(kept), np.int32), mask=~kept),
            "first_record": pa.array(first, mask=~kept),
            "record_tokens": pc.if_else(dropped, None, lists),
        }
        for name, column in columns.items():
            rows = rows.append_column(name, pa.array(column) if isinstance(column, np.ndarray) else column)
        file = f"{stem}.arrayrecord"
        part = ShardEntry(
            file=file,
            size=size,
            blake2b=digest,
            training=int(records[~held_out].sum()),
            held_out=int(records[held_out].sum()),
            tokens=int(tokens.sum()),
        )
        os.link(f"{directory}/../../empty.arrayrecord", f"{directory}/{file}")
        table = rows.select(INDEX.names).cast(INDEX)
        write_index(f"{directory}/{index}", table, [part], {}, made_by=provenance("episodes"))


# --- stages: each prepares, and returns what is measured ---------------------------------------------------------


def planned(work: Path) -> tuple[Any, Any, list[Any]]:
    """Config, plan and paths of the scanned rows."""
    from gatokit.pipelines.planning import plan_datasets, scan_units
    from gatokit.pipelines.scan_cache import Segment
    from gatokit.schemas.config import read_config

    config = read_config(work / "build.yaml")
    [plan] = plan_datasets(config, work)
    units = scan_units(plan, config.max_episode_bytes)
    return config, plan, [Segment(work / "scan" / f"{unit.fingerprint}.arrow") for unit in units]


def stage_list(work: Path) -> Callable[[], Any]:
    """Sources found, their features read, files listed and grouped."""
    import gatokit.pipelines.planning  # noqa: F401

    return lambda: len(planned(work)[2])


def stage_judge(work: Path) -> Callable[[], Any]:
    """Expert returns, verdicts, what is held out."""
    config, plan, paths = planned(work)
    from gatokit.pipelines.planning import filter_dataset

    return lambda: len(filter_dataset(plan, paths, config, None).tasks)


def stage_orders(work: Path) -> Callable[[], Any]:
    """The same, and the orders of all splits."""
    from gatokit.pipelines.planning import plan_shards

    config, plan, paths = planned(work)

    def run() -> int:
        found = plan_shards(plan, paths, config, "0" * 64, None, work / "orders")
        (work / "orders.pickle").write_bytes(pickle.dumps(found.shards))
        return len(found.shards)

    return run


def stage_resume(work: Path) -> Callable[[], Any]:
    """Which of the splits are finished."""
    from gatokit.pipelines.shards.writer import finished_indexes

    orders = pickle.loads((work / "orders.pickle").read_bytes())
    wanted = {order.index for order in orders}
    return lambda: len(finished_indexes(work / "out" / NAME, wanted.__contains__))


def stage_finish(work: Path) -> Callable[[], Any]:
    """Totals over all indexes, the last checks, the tables of tasks."""
    from gatokit.pipelines.planning import Plan, filter_dataset
    from gatokit.pipelines.shards.manifest import finish_dataset

    config, dataset, paths = planned(work)
    plan = Plan(
        dataset, filter_dataset(dataset, paths, config, None), pickle.loads((work / "orders.pickle").read_bytes())
    )

    def run() -> int:
        found = finish_dataset(work / "out", plan, config, "build")
        (work / "finished.pickle").write_bytes(pickle.dumps(found))
        return found.dataset.episodes

    return run


def stage_manifest(work: Path) -> Callable[[], Any]:
    """Leftovers looked for, indexes digested, the manifest written."""
    from gatokit.pipelines.shards.manifest import write_manifest
    from gatokit.schemas.config import read_config
    from gatokit.schemas.manifest import VOCABULARY, VocabularyEntry
    from gatokit.tokenizers.text import TextTokenizer

    config = read_config(work / "build.yaml")
    shutil.copy(work / "vocabulary.model", work / "out" / VOCABULARY)
    model = VocabularyEntry(file=VOCABULARY, pieces=4000, blake2b=TextTokenizer.load(work / "out" / VOCABULARY).digest)
    described = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    finished = [pickle.loads((work / "finished.pickle").read_bytes())]
    return lambda: len(write_manifest(work / "out", config, described, finished, model, "build", None)[0].files)


def stage_read(work: Path) -> Callable[[], Any]:
    """The manifest read and checked."""
    from gatokit.storage.folder import read_manifest

    return lambda: len(read_manifest(work / "out").files)


def stage_open(work: Path) -> Callable[[], Any]:
    """The trainer's mixture: manifest, shards by size."""
    from gatokit.loader.mixture import open_mixture

    return lambda: len(open_mixture([work / "out"]).datasets[0].shards)


def stage_index(work: Path) -> Callable[[], Any]:
    """The trainer's index of the episodes for training."""
    from gatokit.loader.mixture import open_mixture
    from gatokit.schemas.index import TRAIN

    dataset = open_mixture([work / "out"]).datasets[0]
    return lambda: dataset.index(TRAIN).episodes


def stage_draw(work: Path) -> Callable[[], Any]:
    """What the first batch is made of."""
    from gatokit.loader.mixture import open_mixture
    from gatokit.loader.sampler import Sampler
    from gatokit.schemas.index import TRAIN
    from gatokit.schemas.run import RunConfig

    mixture = open_mixture([work / "out"])
    mixture.datasets[0].index(TRAIN)

    def run() -> int:
        sampler = Sampler(mixture, RunConfig.model_validate({"model": "tiny"}))
        return len(sampler.draw(np.arange(BATCH), np.zeros(BATCH, np.int64)))

    return run


STAGES: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "list": stage_list,
    "judge": stage_judge,
    "orders": stage_orders,
    "resume": stage_resume,
    "finish": stage_finish,
    "manifest": stage_manifest,
    "read": stage_read,
    "open": stage_open,
    "index": stage_index,
    "draw": stage_draw,
}
"""In this order: the indexes are made between ``orders`` and ``resume``."""


def run_stage(name: str, work: Path) -> None:
    """The measured process: prints a line of JSON."""
    run = STAGES[name](work)
    before = peak(reset=True)
    begin = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - begin
    print(json.dumps({"result": result, "seconds": seconds, "peak_bytes": peak(), "before_bytes": before}))


def peak(reset: bool = False) -> int:
    """The most resident bytes of this process since the last reset; with ``reset`` those that it has now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


# --- the simulation ----------------------------------------------------------------------------------------------


def child(*words: object) -> dict[str, Any]:
    """What this script prints with ``words`` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def spread(work: Callable[[Any], None], items: list[Any], job: Callable[[list[Any]], Any]) -> float:
    """Does ``work`` on ``job(part)`` for parts of the items in processes; seconds."""
    begin = time.perf_counter()
    parts = [job(items[number : number + 50]) for number in range(0, len(items), 50)]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(work, parts, chunksize=1)
    return time.perf_counter() - begin


def simulate(work: Path, episodes: int) -> dict[str, Any]:
    """All stages at one size; what is on disk afterwards is deleted."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    begin = time.perf_counter()
    write_source(work, episodes)
    _, plan, paths = planned(work)
    units = [
        (path.stem, [(file.ordinal, file.task) for file in unit.files])
        for path, unit in zip(paths, plan.units(1 << 30), strict=True)
    ]
    spread(write_scanned, units, lambda part: (str(work / "scan"), part))
    result: dict[str, Any] = {"episodes": episodes, "files": episodes // EPISODES_A_FILE, "stages": {}}
    for name in STAGES:
        if name == "resume":
            result["simulated_build_seconds"] = build_all(work)
            result["bytes"] = {part: size_of(work / part) for part in ("scan", "orders", "out")}
            shutil.rmtree(work / "orders")
        result["stages"][name] = child("--stage", name, work)
    out = work / "out"
    result["bytes"] |= {"index": size_of(out, "*.index.parquet"), "manifest": (out / "manifest.json").stat().st_size}
    shutil.rmtree(work)
    return result | {"seconds": time.perf_counter() - begin}


def build_all(work: Path) -> float:
    """Indexes and empty shards of all orders; seconds."""
    from gatokit.pipelines.shards.writer import ShardWriter

    with ShardWriter(str(work), "empty") as writer:
        writer.add([b""], [0], held_out=False)
        writer.finish()
    [part] = writer.parts
    directory = work / "out" / NAME
    directory.mkdir(parents=True)
    orders = [
        (str(order.path), order.stem, order.index) for order in pickle.loads((work / "orders.pickle").read_bytes())
    ]
    return spread(write_built, orders, lambda some: (str(directory), part.size, part.blake2b, some))


def size_of(folder: Path, pattern: str = "*") -> int:
    """Bytes on disk."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def exponent(sizes: list[int], values: list[float]) -> float:
    """k of the least-squares fit value = c · size^k; 0 is flat, 1 linear."""
    x, y = np.log(sizes), np.log(np.maximum(values, 1e-9))
    return float(np.polyfit(x, y, 1)[0]) if len(sizes) > 1 else math.nan


def show_simulation(results: list[dict[str, Any]]) -> dict[str, Any]:
    """A row a stage: seconds and memory at each size, how they grow, and what an episode more takes."""
    sizes = [result["episodes"] for result in results]
    titles = "".join(f"{size:>12,}" for size in sizes)
    print(f"{'seconds at':10}{titles}    grows as{'':6}{'peak MiB at':11}{titles}    grows as  bytes an episode")
    fits = {}
    for name in STAGES:
        rows = [result["stages"][name] for result in results]
        seconds, peaks = [row["seconds"] for row in rows], [row["peak_bytes"] for row in rows]
        slope = (peaks[-1] - peaks[0]) / max(1, sizes[-1] - sizes[0])
        fits[name] = {"seconds": exponent(sizes, seconds), "bytes": exponent(sizes, peaks), "bytes_an_episode": slope}
        print(
            f"{name:10}{''.join(f'{value:12.3f}' for value in seconds)}{'n^':>8}{fits[name]['seconds']:<4.2f}{'':17}"
            f"{''.join(f'{value / 2**20:12.0f}' for value in peaks)}{'n^':>8}{fits[name]['bytes']:<4.2f}{slope:18.1f}"
        )
    for result in results:
        parts = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in result["bytes"].items())
        splits, total = result["stages"]["orders"]["result"], result["seconds"]
        print(f"{result['episodes']:,} episodes, {splits:,} splits: {parts}; all of it {total:.0f} s")
    return fits


# --- throughput --------------------------------------------------------------------------------------------------


def throughput(work: Path, sizes: list[int], repeats: int) -> dict[str, Any]:
    """Whole builds of recorded states under many names, with one process and with two."""
    warm = prepare(work, "states", 1, "scale-warm")
    recorded = sum(path.stat().st_size for path in (work / warm.stem).rglob("*.tfrecord*"))
    per_copy = count_steps(work, "states")
    found = []
    for size in sizes:
        config = prepare(work, "states", per_copy * max(1, size // recorded), f"scale-{size}")
        # Splits of 64 MB, so that there are some for each process.
        config.write_text(config.read_text().replace("datasets:", "shard_bytes: 67108864\ndatasets:"))
        real = sum(path.stat().st_size for path in (work / config.stem).rglob("*.tfrecord*"))
        runs = [child("--build", config, warm, workers) for _ in range(repeats) for workers in (1, PROCESSES)]
        rows = {
            workers: {
                "seconds": statistics.median(run["seconds"] for run in runs if run["workers"] == workers),
                "peak_bytes": max(run["peak_bytes"] for run in runs if run["workers"] == workers),
            }
            for workers in (1, PROCESSES)
        }
        found.append({"bytes": real, "tokens": runs[0]["tokens"], "workers": rows})
        shutil.rmtree(work / config.stem)
    titles = ("MB", "tokens", "seconds", "MB/s", "MiB", "with two", "MB/s", "MiB", "times")
    print("".join(f"{title:>{width}}" for title, width in zip(titles, (8, 16, 10, 8, 8, 10, 8, 8, 8), strict=True)))
    for row in found:
        megabytes, one, two = row["bytes"] / 1e6, row["workers"][1], row["workers"][PROCESSES]
        print(
            f"{megabytes:8.0f}{row['tokens']:16,}{one['seconds']:10.2f}{megabytes / one['seconds']:8.0f}"
            f"{one['peak_bytes'] / 2**20:8.0f}{two['seconds']:10.2f}{megabytes / two['seconds']:8.0f}"
            f"{two['peak_bytes'] / 2**20:8.0f}{one['seconds'] / two['seconds']:8.2f}"
        )
    all_bytes = [row["bytes"] for row in found]
    fits = {name: exponent(all_bytes, [row["workers"][1][name] for row in found]) for name in ("seconds", "peak_bytes")}
    print(f"exponents: seconds {fits['seconds']:.2f}, peak memory {fits['peak_bytes']:.2f}")
    return {"sizes": found, "exponents": fits}


def run_build(config: Path, warm: Path, workers: int) -> None:
    """The measured build: prints a line of JSON; memory is the largest process's."""
    from gatokit.pipelines.run import build

    out = config.parent / "scale-built"
    shutil.rmtree(out, ignore_errors=True)
    build(warm, out)
    shutil.rmtree(out)
    begin = time.perf_counter()
    result = build(config, out, workers=workers)
    seconds = time.perf_counter() - begin
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    most = 1024 * max(resource.getrusage(kind).ru_maxrss for kind in kinds)
    tokens = sum(dataset.tokens for dataset in result.manifest.datasets)
    shutil.rmtree(out)
    print(json.dumps({"workers": workers, "seconds": seconds, "peak_bytes": most, "tokens": tokens}))


def main() -> None:
    """Runs the parts and prints tables and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/benchmark"), help="recordings and what is simulated")
    parser.add_argument("--part", choices=("simulation", "throughput"), default="simulation")
    parser.add_argument("--episodes", type=int, nargs="+", default=list(SIZES), help="of the simulation")
    parser.add_argument("--bytes", type=int, nargs="+", default=[180_000_000, 1_800_000_000, 18_000_000_000])
    parser.add_argument("--repeats", type=int, default=2, help="of the throughput")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--build", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.stage[0], Path(arguments.stage[1]))
        return
    if arguments.build:
        run_build(*map(Path, arguments.build[:2]), int(arguments.build[2]))
        return
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine() | {"load": os.getloadavg()[0]}}
    if arguments.part == "throughput":
        result["throughput"] = throughput(work, arguments.bytes, arguments.repeats)
    else:
        runs = [simulate(work / "scale", episodes) for episodes in arguments.episodes]
        result["simulation"] = {"sizes": runs, "exponents": show_simulation(runs)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
