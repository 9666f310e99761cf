"""A build of recorded episodes against independent readings of the same files."""

import sys
import types
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import sentencepiece

from gatokit.inspection import open_directory
from gatokit.pipelines.run import build, scan
from gatokit.tokenizers.image_codec import decode

DATASETS = {
    "metaworld": ("metaworld", 0.8, True, True),
    "babyai": ("babyai", 0.9, False, True),
    "control": ("dm_control", 0.5, True, False),
    "atari": ("atari", 0.3, False, False),
}
"""Family, fraction, streams by agent, collection order configured."""


def rlds() -> Any:
    """The rlds library; it imports reverb, whose last release needs an old TensorFlow, for one module that is not
    used here."""
    try:
        import reverb  # noqa: F401
    except ImportError:
        names = ("Config", "ReferenceStep", "Pattern", "Condition")
        writer = types.SimpleNamespace(**dict.fromkeys(names, object))
        stub = types.ModuleType("reverb")
        stub.structured_writer = writer  # type: ignore[attr-defined]
        sys.modules["reverb"] = stub
    import rlds

    return rlds


def recorded_episodes(directory: Path) -> Iterator[dict[str, Any]]:
    """Episodes as TFDS gives them, in file order, with the place of each and its undecoded frames."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(directory))
    info = builder.info.splits["train"]
    if builder.info.file_format.value == "array_record":
        source = builder.as_data_source("train")
        raw_source = (
            builder.as_data_source("train", decoders={"steps": {"observation": {"frame": tfds.decode.SkipDecoding()}}})
            if "frame" in builder.info.features["steps"]["observation"]
            else source
        )
        episodes = [source[number] for number in range(len(source))]
        raws = [raw_source[number] for number in range(len(raw_source))]
    else:
        read = tfds.ReadConfig(interleave_cycle_length=1)
        episodes = list(tfds.as_numpy(builder.as_dataset(split="train", read_config=read)))
        raws = episodes
    del tf
    number = 0
    for filename, count in zip(info.filenames, info.shard_lengths, strict=True):
        for position in range(count):
            episode, raw = episodes[number], raws[number]
            steps = list(episode["steps"])
            yield {
                **{key: value for key, value in episode.items() if key != "steps"},
                "place": (Path(filename).name, position),
                "steps": steps,
                "raw_steps": list(raw["steps"]) if raw is not episode else steps,
            }
            number += 1
    assert number == len(episodes)


@pytest.fixture(scope="module")
def sources(recorded: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Family → task → episodes."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
    for features in sorted(recorded.rglob("features.json")):
        family, task = features.parent.relative_to(recorded).parts[:2]
        found[family][task] = list(recorded_episodes(features.parent))
    assert sum(len(tasks) for tasks in found.values()) == 5
    return found


def brute_force(returns: list[float], width: int) -> float:
    return max(sum(returns[first : first + width]) / width for first in range(len(returns) - width + 1))


def rlds_return(steps: list[dict[str, Any]]) -> float:
    """rlds' own sum over the rewards in float64, the step that is_last marks left out."""
    import tensorflow as tf

    rewards = np.array([step["reward"] for step in steps], np.float64)
    last = np.array([step["is_last"] for step in steps])
    dataset = tf.data.Dataset.from_tensor_slices({"reward": np.where(last, 0.0, rewards)})
    return float(rlds().transformations.sum_dataset(dataset, lambda step: step["reward"]))


@pytest.mark.parametrize("name", DATASETS)
def test_windows_thresholds_and_kept_sets_are_those_of_brute_force(name, sources, built):
    family, fraction, by_agent, ordered = DATASETS[name]
    tasks = {(row["task"], row["agent"]): row for row in pq.read_table(built / name / "tasks.parquet").to_pylist()}
    index = [
        row
        for split in open_directory(built).datasets[name].totals.splits
        for row in pq.read_table(built / name / split.index).to_pylist()
    ]
    rows = {(row["task"], Path(row["source_file"]).name, row["source_position"]): row for row in index}
    assert len(rows) == len(index) == sum(len(episodes) for episodes in sources[family].values())
    dropped = 0
    for task, episodes in sources[family].items():
        streams = defaultdict(list)
        for number, episode in enumerate(episodes):
            agent = str(episode["agent_id"], "utf-8") if by_agent else ""
            order = int(episode["episode_index"]) if ordered else number
            streams[agent].append((order, rlds_return(episode["steps"]), episode))
        best = -np.inf
        for agent, stream in streams.items():
            stream.sort(key=lambda item: item[0])
            width = max(1, min(1000, len(stream) // 10))
            value = brute_force([item[1] for item in stream], width)
            row = tasks[task, agent]
            assert (row["episodes"], row["window"]) == (len(stream), width)
            assert row["stream_return"] == pytest.approx(value, rel=1e-12)
            best = max(best, value)
        threshold = best - (1 - fraction) * abs(best)
        for agent, stream in streams.items():
            assert tasks[task, agent]["expert_return"] == pytest.approx(best, rel=1e-12)
            assert tasks[task, agent]["threshold"] == pytest.approx(threshold, rel=1e-12)
            for order, value, episode in stream:
                row = rows[(task, *episode["place"])]
                assert row["return"] == pytest.approx(value, rel=1e-12)
                assert row["steps"] == len(episode["steps"]) - 1
                assert row["kept"] == (value >= threshold - 1e-9 * abs(threshold))
                assert row["reason"] == (None if row["kept"] else "below_threshold")
                assert row["order"] == (order if ordered else episode["place"][1])
                dropped += not row["kept"]
    assert dropped > 0


def test_every_kept_episode_decodes_to_what_was_recorded(sources, built, vocabulary):
    model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))

    def companded(values: np.ndarray) -> np.ndarray:
        return np.sign(values) * np.log(np.abs(values) * 100 + 1) / np.log(25601.0)

    directory = open_directory(built)
    compared = dict.fromkeys(DATASETS, 0)
    for name, (family, *_) in DATASETS.items():
        places = {
            (task, *episode["place"]): episode for task, episodes in sources[family].items() for episode in episodes
        }
        reader = directory.datasets[name]
        for row in reader.episodes(kept=True):
            stored = reader.episode(row)
            episode = places[row.task, Path(row.source_file).name, row.source_position]
            steps = episode["steps"][:-1]
            values = stored.decode()
            assert stored.reward.tolist() == [float(step["reward"]) for step in steps]
            assert stored.discount.tolist() == [float(step["discount"]) for step in steps]
            assert stored.flags[0] & 1 == 1
            assert stored.flags[-1] == (1 if len(steps) == 1 else 0) | 2 | 4 * int(episode["steps"][-1]["is_terminal"])
            wanted = {
                f"observation/{key}": [step["observation"][key] for step in steps] for key in steps[0]["observation"]
            }
            wanted["action"] = [step["action"] for step in steps]
            assert list(values) == [*sorted(wanted.keys() - {"action"}), "action"]
            for path, expected in wanted.items():
                if path == "observation/mission":
                    assert values[path] == [model.decode(model.encode(text.decode())) for text in expected]
                elif path == "observation/frame":
                    raw = [step["observation"]["frame"] for step in episode["raw_steps"][:-1]]
                    assert [image.data for image in values[path]] == raw
                    pixels = [decode(image.data) for image in values[path]]
                    assert np.array_equal(np.stack(pixels), np.stack(expected))
                elif np.asarray(expected).dtype.kind in "iu":
                    assert np.array_equal(values[path], np.stack(expected))
                elif path == "action":
                    off = np.abs(values[path] - np.clip(np.stack(expected).astype(np.float64), -1, 1))
                    assert off.max() <= 1 / 1024 + 1e-12
                else:
                    off = np.abs(companded(values[path]) - companded(np.stack(expected).astype(np.float64)).clip(-1, 1))
                    assert off.max() <= 1 / 1024 + 1e-12
            compared[name] += 1
    assert all(compared.values()), compared


def test_resized_frames_are_the_declared_resize_of_the_recorded_ones(sources, built):
    reader = open_directory(built).datasets["atari-small"]
    frames = 0
    places = {episode["place"]: episode for episode in sources["atari"]["Breakout"]}
    for row in reader.episodes(kept=True):
        episode = places[Path(row.source_file).name, row.source_position]
        images = reader.episode(row).decode()["observation/frame"]
        for image, step in zip(images, episode["steps"][:-1], strict=True):
            expected = cv2.resize(step["observation"]["frame"], (48, 64), interpolation=cv2.INTER_AREA)
            assert np.array_equal(decode(image.data), expected)
            frames += 1
    assert frames == sum(len(episode["steps"]) - 1 for episode in sources["atari"]["Breakout"])


def test_a_scan_says_what_the_build_keeps(tmp_path, recorded_config, built):
    scan(recorded_config, tmp_path / "scan")
    null = ("tokens", "part", "first_record", "record_tokens")
    compared = 0
    for dataset in open_directory(tmp_path / "scan").manifest.datasets:
        rows = [
            row
            for split in dataset.splits
            for row in pq.read_table(tmp_path / "scan" / dataset.name / split.index).to_pylist()
        ]
        of_build = [
            row
            for split in next(d for d in open_directory(built).manifest.datasets if d.name == dataset.name).splits
            for row in pq.read_table(built / dataset.name / split.index).to_pylist()
        ]
        assert all(row[name] is None for row in rows for name in null)
        assert [{k: v for k, v in row.items() if k not in null} for row in rows] == [
            {k: v for k, v in row.items() if k not in null} for row in of_build
        ]
        compared += len(rows)
    assert compared == 24 + 64 + 8 + 8 + 8
    assert not list((tmp_path / "scan").rglob("*.arrayrecord"))


def test_limit_looks_at_the_first_episodes_of_each_task_alone(tmp_path, recorded_config):
    manifest = build(recorded_config, tmp_path / "out", only="babyai", limit=10).manifest
    assert [(item.name, item.episodes) for item in manifest.datasets] == [("babyai", 20)]
    assert manifest.config["limit"] == 10
