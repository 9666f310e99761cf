"""The report over many index rows: seconds, peak memory, bytes of the page.

A scan without sources is written: an index of random returns and lengths, a thousand tasks of two agents, four splits a
million rows. Films and pictures are not in it; their number is bounded whatever the rows.

    python benchmarks/report.py --rows 1000000 10000000     # about two minutes on two cores
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import machine
from scale import peak

from gatokit.inspection import open_directory
from gatokit.inspection.report import library, page, report
from gatokit.schemas.index import INDEX, TASKS
from gatokit.schemas.manifest import (
    MANIFEST,
    DatasetEntry,
    DatasetFile,
    EpisodeSpec,
    FieldSpec,
    Manifest,
    SplitEntry,
    TaskEntry,
    TokenizerSettings,
)

SPLIT_ROWS = 250_000
AGENTS = ("one", "two")
EXPERT, THRESHOLD = 1000.0, 800.0


def write_scan(root: Path, rows: int, tasks: int) -> None:
    """A finished scan of one dataset; each split has the rows of some tasks one after the other."""
    folder = root / "simulated"
    folder.mkdir(parents=True)
    spec = EpisodeSpec.ordered(
        [
            FieldSpec(path="observation", kind="continuous", dtype="float32", shape=(39,)),
            FieldSpec(path="action", kind="continuous", dtype="float32", shape=(4,), range=((-1.0, 1.0),)),
        ]
    )
    names = [f"task-{number:04d}" for number in range(tasks)]
    splits, kept_of = [], np.zeros((tasks, len(AGENTS), 2), np.int64)
    for number, begin in enumerate(range(0, rows, SPLIT_ROWS)):
        count = min(SPLIT_ROWS, rows - begin)
        random = np.random.default_rng(number)
        task = np.arange(begin, begin + count) * tasks // rows
        agent = random.integers(0, len(AGENTS), count)
        value = random.normal(800, 200, count)
        kept = value >= THRESHOLD
        np.add.at(kept_of, (task, agent, kept.astype(int)), 1)
        columns: dict[str, Any] = {
            "episode_id": [f"{names[code]}/1.0.0/simulated-train.tfrecord-00000#{at}" for at, code in enumerate(task)],
            "task": pa.DictionaryArray.from_arrays(pa.array(task, pa.int32()), names),
            "agent": pa.DictionaryArray.from_arrays(pa.array(agent, pa.int32()), list(AGENTS)),
            "order": random.permutation(count).astype(float),
            "steps": random.integers(50, 500, count),
            "return": value,
            "kept": kept,
            "reason": np.where(kept, None, "below_threshold"),
            "lost": np.ones(count, np.int64),
        }
        nothing = pa.nulls(count)
        arrays = [pa.array(columns.get(field.name, nothing)).cast(field.type) for field in INDEX]
        name = f"simulated-{number:016x}.index.parquet"
        pq.write_table(pa.table(arrays, schema=INDEX), folder / name)
        splits.append(SplitEntry(fingerprint=f"{number:016x}", index=name, rows=count, kept=int(kept.sum()), parts=[]))
    lines = [
        dict.fromkeys(TASKS.names, 0)
        | {
            "task": name,
            "agent": agent,
            "episodes": int(sum(found)),
            "window": max(1, min(1000, int(sum(found)) // 10)),
        }
        | {"expert_return": EXPERT, "threshold": THRESHOLD}
        | {"kept": int(found[1]), "dropped": int(found[0])}
        for name, agents in zip(names, kept_of, strict=True)
        for agent, found in zip(AGENTS, agents, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(lines, TASKS), folder / "tasks.parquet")
    entries = {name: TaskEntry(spec=spec.id, ordered=True) for name in names}
    kept_rows = sum(split.kept for split in splits)
    described = DatasetFile(
        name="simulated", kind="episodes", specs={spec.id: spec}, tasks=entries, episodes=rows, kept=kept_rows
    )
    (folder / "dataset.json").write_bytes(described.to_bytes())
    totals = dict.fromkeys(("tokens", "training", "held_out", "shards", "bytes"), 0)
    dataset = DatasetEntry(
        name="simulated", kind="episodes", directory="simulated", weight=1.0, license=None, hz=20.0, ordered=True,
        episodes=rows, kept=kept_rows, splits=splits, **totals,
    )  # fmt: skip
    manifest = Manifest(
        content="scan",
        packages={},
        config={"datasets": [{"name": "simulated", "keep": {"min_return": 0.8}}]},
        config_digest="",
        tokenizer=TokenizerSettings(discrete_offset=0, separator=33024, vocabulary_size=33025, chunk_tokens=4096),
        vocabulary=None,
        datasets=[dataset],
        files=[],
    )
    (root / MANIFEST).write_bytes(manifest.to_bytes())


def measure(root: Path) -> dict[str, Any]:
    """One report in this process."""
    script = library()
    directory = open_directory(root)
    before = peak(reset=True)
    begin = time.perf_counter()
    text = page(report(directory, list(directory.datasets.values())), script)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_bytes": peak(), "before_bytes": before, "page_bytes": len(text.encode())}


def scans(
    about: str | None, script: str, measured: Callable[[Path], dict[str, Any]], work: str
) -> Iterator[dict[str, Any]]:
    """What ``measured`` says of simulated scans of several sizes, each in a process of its own of ``script``."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(work), help="the scans that are made")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.measure)))
        sys.exit()
    for rows in arguments.rows:
        root = arguments.work / str(rows)
        shutil.rmtree(root, ignore_errors=True)
        write_scan(root, rows, arguments.tasks)
        done = subprocess.run([sys.executable, script, "--measure", str(root)], stdout=subprocess.PIPE, check=True)
        shutil.rmtree(root)
        yield {"rows": rows, "tasks": arguments.tasks, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """Prints a line a size and one JSON line."""
    results = []
    for found in scans(__doc__, __file__, measure, "data/benchmark/report"):
        print(
            f"{found['rows']:12,} rows, {found['tasks']:,} tasks: {found['seconds']:.1f} s, peak "
            f"{found['peak_bytes'] / 2**20:,.0f} MiB ({found['before_bytes'] / 2**20:,.0f} before), page "
            f"{found['page_bytes'] / 1e6:.1f} MB",
            flush=True,
        )
        results.append(found)
    print(json.dumps({"machine": machine(), "report": results}))


if __name__ == "__main__":
    main()
