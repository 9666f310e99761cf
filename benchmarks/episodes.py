"""Scan and build of recorded episodes against the usual way, and the memory of a build.

The usual way to read RLDS is to iterate ``tfds.as_dataset`` step by step, and to tokenize each step with NumPy.
Both sides are single processes that stay up, warm, and take turns, so that a slow spell of the machine meets
both. Recorded files are read under several names, as many as it takes to reach the stated number of steps.

    python benchmarks/episodes.py                 # about 25 minutes on two cores
    python benchmarks/episodes.py --steps 500000 --repeats 3 --part scan --part build
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import compare, machine, memory, run_side, show, show_memory

RECORDINGS = {
    "states": [(f"metaworld/{task}", 40) for task in ("button-press-topdown-v3", "door-open-v3", "drawer-open-v3")],
    "images": [("atari/Breakout", 8), ("atari/Freeway", 8), ("atari/Pong", 8)],
}
"""Tasks and episodes an agent recorded for each kind of data."""
USUAL_SECONDS = 12.0
"""The usual way is timed over as many steps as it does in this time."""
PARTS = ("scan", "build", "memory")


# --- data --------------------------------------------------------------------------------------------------


def prepare(work: Path, kind: str, steps: int, name: str) -> Path:
    """A config over recorded files under as many names as it takes to reach ``steps`` steps."""
    from gatokit.environments.agents import Mix
    from gatokit.environments.record import Job, record_tasks

    jobs = []
    for task, episodes in RECORDINGS[kind]:
        options = {"time_limit": 500} if kind == "images" else {}
        # TFRecord for both kinds: as_dataset, the usual way, reads no ArrayRecord.
        mix = Mix(expert=2 * episodes, noisy=episodes, random=episodes)
        jobs.append(Job(task, mix, writer="tfrecord", options=options))
    recordings = record_tasks(tuple(jobs), work / "recorded", jobs=2)
    recorded = sum(recording.steps for recording in recordings)
    source = work / name
    shutil.rmtree(source, ignore_errors=True)
    for copy in range(-(-steps // recorded)):
        for recording in recordings:
            link_tree(recording.directory, source / f"copy-{copy:05d}" / recording.directory.name)
    config = work / f"{name}.yaml"
    config.write_text(
        f"vocabulary: {vocabulary(work)}\n"
        "datasets:\n"
        f"  - name: {name}\n"
        "    kind: episodes\n"
        f"    source: {name}/*/*\n"
        "    keep: {min_return: 0.8}\n"
        "    order: {metadata: episode_index}\n"
    )
    return config


def link_tree(source: Path, target: Path) -> None:
    """The files of ``source`` under new names, without copying them where the disk allows it."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        to = target / path.relative_to(source)
        if path.is_dir():
            to.mkdir(exist_ok=True)
        else:
            try:
                os.link(path, to)
            except OSError:
                shutil.copy(path, to)


def vocabulary(work: Path) -> str:
    """A small SentencePiece model, which state and image episodes need not but every build has."""
    import pydoc_data.topics

    import sentencepiece

    path = work / "vocabulary.model"
    if not path.exists():
        lines = [line for text in pydoc_data.topics.topics.values() for line in text.splitlines() if line.strip()]
        with open(path, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_writer=file, vocab_size=4000, minloglevel=2
            )
    return path.name


# --- the two sides: each function does the work once and returns (units, seconds) ----------------------------


def gatokit_scan(config: Path) -> Callable[[], tuple[int, float]]:
    """``gatokit.pipelines.run.scan``; units are steps."""
    from gatokit.pipelines.run import scan

    def once() -> tuple[int, float]:
        out = config.parent / "scanned"
        shutil.rmtree(out, ignore_errors=True)
        begin = time.perf_counter()
        result = scan(config, out)
        seconds = time.perf_counter() - begin
        import pyarrow.parquet as pq

        dataset = result.manifest.datasets[0]
        paths = [out / dataset.directory / split.index for split in dataset.splits]
        return sum(sum(pq.read_table(path, columns=["steps"])["steps"].to_pylist()) for path in paths), seconds

    return once


def gatokit_build(config: Path) -> Callable[[], tuple[int, float]]:
    """``gatokit.pipelines.run.build``, both passes; units are tokens written."""
    from gatokit.pipelines.run import build

    def once() -> tuple[int, float]:
        out = config.parent / "built"
        shutil.rmtree(out, ignore_errors=True)
        begin = time.perf_counter()
        result = build(config, out)
        return result.manifest.datasets[0].tokens, time.perf_counter() - begin

    return once


def usual_steps(config: Path) -> Iterator[dict[str, Any]]:
    """Steps of a config's sources, nested and one at a time."""
    import tensorflow_datasets as tfds

    directories = sorted(path.parent for path in (config.parent / config.stem).rglob("features.json"))
    for directory in directories:
        for episode in tfds.builder_from_directory(str(directory)).as_dataset(split="train"):
            yield from tfds.as_numpy(episode["steps"])


def usual_scan(config: Path) -> Callable[[], tuple[int, float]]:
    """Sums rewards step by step."""

    def once() -> tuple[int, float]:
        begin, count, total = time.perf_counter(), 0, 0.0
        for count, step in enumerate(usual_steps(config), 1):
            total += 0.0 if step["is_last"] else float(step["reward"])
            if count % 256 == 0 and time.perf_counter() - begin > USUAL_SECONDS:
                break
        return count, time.perf_counter() - begin

    return once


def usual_build(config: Path) -> Callable[[], tuple[int, float]]:
    """Tokenizes step by step with NumPy: ids, kinds and positions, as a build makes them, but nothing is written."""

    def once() -> tuple[int, float]:
        begin, tokens = time.perf_counter(), 0
        sequence: list[tuple[np.ndarray, ...]] = []
        for count, step in enumerate(usual_steps(config), 1):
            sequence.append(tokenize_step(step))
            tokens += len(sequence[-1][0])
            if step["is_last"]:
                [np.concatenate(arrays) for arrays in zip(*sequence, strict=True)]
                sequence.clear()
            if count % 256 == 0 and time.perf_counter() - begin > USUAL_SECONDS:
                break
        return tokens, time.perf_counter() - begin

    return once


def tokenize_step(step: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step's ids, kinds and local positions, the way they are usually made."""
    parts, kinds = [], []
    for key in sorted(step["observation"]):
        value = step["observation"][key]
        if value.dtype == np.uint8:
            height, width, _ = value.shape
            patches = value.reshape(height // 16, 16, width // 16, 16, 3).swapaxes(1, 2).reshape(-1, 16, 16, 3)
            parts.append(np.full(len(patches), 65535))
            kinds.append(np.full(len(patches), 2))
        else:
            companded = np.sign(value) * np.log(np.abs(value) * 100 + 1.0) / np.log(100 * 256 + 1.0)
            parts.append(np.clip((np.clip(companded, -1, 1) + 1) * 512, 0, 1023).astype(np.int64).ravel() + 32000)
            kinds.append(np.full(len(parts[-1]), 4))
    observed = sum(map(len, parts))
    parts.append(np.array([33024]))
    kinds.append(np.array([5]))
    action = np.atleast_1d(step["action"])
    if action.dtype.kind == "f":
        parts.append(np.clip((np.clip(action, -1, 1) + 1) * 512, 0, 1023).astype(np.int64) + 32000)
        kinds.append(np.full(len(action), 7))
    else:
        parts.append(action)
        kinds.append(np.full(len(action), 6))
    positions = np.concatenate([np.arange(observed), np.full(1 + len(action), 65535)])
    return np.concatenate(parts), np.concatenate(kinds), positions


SIDES = {
    "gatokit_scan": gatokit_scan,
    "usual_scan": usual_scan,
    "gatokit_build": gatokit_build,
    "usual_build": usual_build,
}


# --- measurements --------------------------------------------------------------------------------------------


def main() -> None:
    """Runs the parts and prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/benchmark"), help="recordings, names and outputs")
    parser.add_argument("--steps", type=int, default=9_500_000, help="steps that each side's data has at least")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--bytes", type=int, default=4_000_000_000, help="of the larger build in the memory part")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        name, config, warm = arguments.side
        run_side(SIDES, name, Path(config), Path(warm))
        return
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    parts = arguments.part or PARTS
    result: dict[str, Any] = {"machine": machine()}
    for kind in RECORDINGS:
        warm = prepare(work, kind, 1, f"{kind}-warm")
        if "scan" in parts or "build" in parts:
            config = prepare(work, kind, arguments.steps, kind)
            for part in ("scan", "build"):
                if part in parts:
                    result[f"{part} {kind}"] = compare(
                        f"gatokit_{part}", f"usual_{part}", config, warm, arguments.repeats
                    )
                    show(f"{part} {kind}", result[f"{part} {kind}"], "steps" if part == "scan" else "tokens")
    if "memory" in parts:
        warm = prepare(work, "states", 1, "states-warm")
        recorded = sum(path.stat().st_size for path in (work / "states-warm").rglob("*.tfrecord*"))
        per_copy = count_steps(work, "states")
        configs = {}
        for name, size in (("large", arguments.bytes), ("small", arguments.bytes // 10)):
            configs[f"{size / 1e9:g} GB"] = prepare(work, "states", per_copy * max(1, size // recorded), name)
        result["memory"] = memory("gatokit_build", configs, warm)
        show_memory(result["memory"], "episodes")
    print(json.dumps(result))


def count_steps(work: Path, kind: str) -> int:
    """Steps of the recordings of a kind."""
    from gatokit.environments.record import read_recording

    return sum(read_recording(work / "recorded" / task).steps for task, _ in RECORDINGS[kind])


if __name__ == "__main__":
    main()
