"""Scan and build of a set in DROID's layout, three cameras of 180×320, against what no reader can do without.

The set is made here: 20 episodes of 100 steps, 133 MB, that are read under several names. A scan is compared with
reading the same records and checking their CRC-32C, a build that makes the frames smaller (96×160) with OpenCV's own
decoding, resizing and encoding of the same frames. Every side is one process, stays up, is warm, and takes turns with
its peer, so that a slow spell of the machine meets both. Rates are of processor seconds, of all threads of a side
together: what a core does.

    python benchmarks/robots.py                   # about six minutes
    python benchmarks/robots.py --repeats 3 --copies 2
"""

import argparse
import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from episodes import link_tree, vocabulary
from harness import compare, machine, memory, run_side, show_memory

EPISODES, STEPS, CAMERAS = 20, 100, ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
DISTINCT = 60
"""Frames that are made; the steps of all cameras show them in turn."""
QUALITY, SIZE = 95, (96, 160)


# --- data --------------------------------------------------------------------------------------------------


def frames(work: Path) -> list[bytes]:
    """JPEGs of coarse shapes and fine noise, about as large as those of a camera in a room."""
    path = work / "frames.npz"
    if not path.exists():
        rng = np.random.default_rng(0)
        made = []
        for _ in range(DISTINCT):
            coarse = cv2.resize(rng.integers(0, 255, (12, 20, 3), np.uint8), (320, 180), interpolation=cv2.INTER_CUBIC)
            noisy = np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)
            made.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])
        np.savez(path, *made)
    with np.load(path) as stored:
        return [stored[name].tobytes() for name in stored.files]


def recording(work: Path) -> Path:
    """The TFDS directory of the set."""
    import tensorflow_datasets as tfds

    directory = work / "recorded" / "droid" / "1.0.0"
    if (directory / "dataset_info.json").exists():
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    vector = {size: tfds.features.Tensor(shape=(size,), dtype=np.float64) for size in (6, 7)}
    image = tfds.features.Image(shape=(180, 320, 3), encoding_format="jpeg")
    features = {
        "observation": tfds.features.FeaturesDict(
            {**dict.fromkeys(CAMERAS, image), "cartesian_position": vector[6], "joint_position": vector[7]}
        ),
        "action": vector[7],
        "language_instruction": tfds.features.Text(),
        "reward": tfds.features.Scalar(dtype=np.float32),
        "discount": tfds.features.Scalar(dtype=np.float32),
        **{name: tfds.features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
    }
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="droid", version=tfds.core.Version("1.0.0"), data_dir=str(directory), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="made up",
        features=tfds.features.FeaturesDict({"steps": tfds.features.Dataset(features)}),
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=5, file_format="tfrecord")
    writer.initialize_splits(["train"])
    shown = frames(work)
    writer.add_examples({"train": [{"steps": episode(shown, number)} for number in range(EPISODES)]})
    writer.close_all()
    return directory


def episode(shown: list[bytes], number: int) -> list[dict[str, Any]]:
    """The steps of one made-up episode: one reward, in the last step, where a real action is too."""
    rng = np.random.default_rng(number)
    steps = []
    for step in range(STEPS):
        cameras = {
            name: io.BytesIO(shown[(number * (1 + place) + step) % DISTINCT]) for place, name in enumerate(CAMERAS)
        }
        ends = {"is_first": step == 0, "is_last": step == STEPS - 1, "is_terminal": step == STEPS - 1}
        steps.append(
            {
                "observation": {
                    **cameras,
                    "cartesian_position": rng.normal(size=6),
                    "joint_position": rng.normal(size=7),
                },
                "action": rng.uniform(-1, 1, 7),
                "language_instruction": "put the marker into the cup",
                "reward": np.float32(step == STEPS - 1),
                "discount": np.float32(1),
                **ends,
            }
        )
    return steps


def prepare(work: Path, name: str, copies: int) -> Path:
    """A config over the set under ``copies`` names."""
    source = work / name
    shutil.rmtree(source, ignore_errors=True)
    for copy in range(copies):
        link_tree(recording(work), source / f"copy-{copy:03d}" / "1.0.0")
    config = work / f"{name}.yaml"
    config.write_text(
        f"vocabulary: {vocabulary(work)}\n"
        "datasets:\n"
        f"  - name: {name}\n"
        "    kind: episodes\n"
        f"    source: {name}/*\n"
        "    observe: [language_instruction]\n"
        "    last_step: real\n"
        "    keep: {all: true}\n"
        f"    images: {{size: {list(SIZE)}, codec: jpeg, quality: {QUALITY}}}\n"
    )
    return config


def record_files(config: Path) -> list[Path]:
    """The TFRecord files of a config's source."""
    return sorted((config.parent / config.stem).rglob("*.tfrecord*"))


# --- the sides: each function does the work once and returns (units, processor seconds) ----------------------


def gatokit_scan(config: Path) -> Callable[[], tuple[int, float]]:
    """``gatokit.pipelines.run.scan``; units are bytes of the source."""
    from gatokit.pipelines.run import scan

    size = sum(path.stat().st_size for path in record_files(config))

    def once() -> tuple[int, float]:
        out = config.parent / "scanned"
        shutil.rmtree(out, ignore_errors=True)
        begin = time.process_time()
        scan(config, out)
        return size, time.process_time() - begin

    return once


def checksums(config: Path) -> Callable[[], tuple[int, float]]:
    """Reads every record and checks it; units are bytes of the source."""
    from gatokit.pipelines.formats.tfrecord import TfRecordFile

    paths = record_files(config)

    def once() -> tuple[int, float]:
        begin = time.process_time()
        for path in paths:
            for record in TfRecordFile(str(path), path.name, None, "episodes").read_all(1 << 30):
                assert record.value is not None
        return sum(path.stat().st_size for path in paths), time.process_time() - begin

    return once


def gatokit_build(config: Path) -> Callable[[], tuple[int, float]]:
    """``gatokit.pipelines.run.build``, its scan included; units are frames."""
    from gatokit.pipelines.run import build

    copies = len(record_files(config)) * 5 // EPISODES

    def once() -> tuple[int, float]:
        out = config.parent / "built"
        shutil.rmtree(out, ignore_errors=True)
        begin = time.process_time()
        result = build(config, out)
        assert result.manifest.datasets[0].kept == copies * EPISODES
        return copies * EPISODES * STEPS * len(CAMERAS), time.process_time() - begin

    return once


def opencv(config: Path) -> Callable[[], tuple[int, float]]:
    """Decodes, resizes and encodes the same frames, as the build does; nothing is read or written."""
    shown = frames(config.parent)
    rounds = len(record_files(config)) * 5 * STEPS * len(CAMERAS) // DISTINCT
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]

    def once() -> tuple[int, float]:
        begin = time.process_time()
        for _ in range(rounds):
            for data in shown:
                pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
                pixels = cv2.resize(pixels, SIZE[::-1], interpolation=cv2.INTER_AREA)
                cv2.imencode(".jpg", pixels, options)
        return rounds * DISTINCT, time.process_time() - begin

    return once


SIDES = {"gatokit_scan": gatokit_scan, "checksums": checksums, "gatokit_build": gatokit_build, "opencv": opencv}


# --- measurements --------------------------------------------------------------------------------------------


def main() -> None:
    """Runs both comparisons and prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/benchmark-robots"), help="set, names and outputs")
    parser.add_argument("--copies", type=int, default=4, help="names of the set that a build reads; a scan, ten times")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        name, config, warm = arguments.side
        cv2.setNumThreads(1)
        run_side(SIDES, name, Path(config), Path(warm))
        return
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    warm = prepare(work, "warm", 1)
    small, large = prepare(work, "small", arguments.copies), prepare(work, "large", 10 * arguments.copies)
    result: dict[str, Any] = {"machine": machine()}
    print("| | Gatokit | alone | ratio |\n|---|---|---|---|", flush=True)
    for name, ours, peer, config, unit, scale in (
        ("scan against reading and checksums", "gatokit_scan", "checksums", large, "MB", 1e6),
        ("build against OpenCV's decode, resize and encode", "gatokit_build", "opencv", small, "frames", 1),
    ):
        row = result[ours] = compare(ours, peer, config, warm, arguments.repeats)
        rates = f"{row['rate'] / scale:,.0f} {unit}/s | {row['usual'] / scale:,.0f} {unit}/s"
        print(f"| {name} ({row['units'] / scale:,.0f} {unit}) | {rates} | {row['ratio']:.2f} |", flush=True)
    for ours, config in (("gatokit_scan", large), ("gatokit_build", small)):
        sizes = {size_text(one): one for one in (config, warm)}
        result[f"memory {ours}"] = memory(ours, sizes, warm)
        show_memory(result[f"memory {ours}"], f"episodes, {ours}")
    print(json.dumps(result))


def size_text(config: Path) -> str:
    """The bytes of a config's source, for people."""
    return f"{sum(path.stat().st_size for path in record_files(config)) / 1e9:.2g} GB"


if __name__ == "__main__":
    main()
