"""Small recordings and corpora with every awkward case, built and scanned, and ways to damage what was built."""

import io
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sealing
import webdataset
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from mixed_build import write_rlds
from PIL import Image
from shared import shared

from gatokit.inspection import open_directory
from gatokit.tokenizers.image_codec import encode

CONFIG = """
vocabulary: {vocabulary}
chunk_tokens: 64
shard_bytes: 150000
holdout: 0.2
datasets:
  - name: arm
    kind: episodes
    last_step: padding
    source: data/arm/*
    agent: {{metadata: agent_id}}
    order: {{metadata: index}}
    hz: 10
  - name: grid
    kind: episodes
    last_step: padding
    source: data/grid
    keep: {{all: true}}
    fields: {{observation: {{as: discrete}}}}
  - name: against_random
    kind: episodes
    last_step: padding
    source: data/arm/push
    keep: {{min_return: 0.5, random_return: -40}}
"""


@dataclass(frozen=True)
class Small:
    """A build and a scan of the same recordings, and the recorded episodes of each task in source order."""

    built: Path
    scanned: Path
    recorded: dict[str, list[dict[str, Any]]]


def _arm_step(random: np.random.Generator, step: int, reward: float) -> dict[str, Any]:
    return {
        "observation": {
            "image": random.integers(0, 256, (32, 48, 3), dtype=np.uint8),
            "state": random.normal(size=3).astype(np.float32),
            "mission": "reach the red ball" if step % 2 else "reach",
        },
        "action": random.uniform(-1, 1, 2).astype(np.float32),
        "reward": np.float32(reward),
        "discount": np.float32(1),
    }


def _arm_episodes(seed: int, best: float) -> list[dict[str, Any]]:
    """Fifteen episodes of two agents with returns up to ``best``; one has a NaN reward, one a NaN state, and one of
    the positive task has no action."""
    random = np.random.default_rng(seed)
    episodes = []
    for number in range(15):
        steps = 1 if number == 5 and best > 0 else int(random.integers(6, 15))
        total = best - abs(best) * (0.0, 0.1, 0.15, 0.6, 1.2)[number % 5]
        shares = random.uniform(0, 1, steps)
        # The last step has no action and its reward is padding.
        rewards = total * shares / max(shares[:-1].sum(), 1e-9)
        written = [_arm_step(random, step, rewards[step]) for step in range(steps)]
        if number == 7:
            written[0]["reward"] = np.float32("nan")
        if number == 11:
            written[2]["observation"]["state"][1] = np.nan
        episodes.append({"steps": written, "agent_id": "ab"[number % 2], "index": 100 - number})
    return episodes


def _grid_episodes() -> list[dict[str, Any]]:
    random = np.random.default_rng(3)
    return [
        {
            "steps": [
                {
                    "observation": random.integers(0, 1024, 5),
                    "action": {"force": random.uniform(-1, 1, (2, 2)), "move": int(random.integers(0, 4))},
                    "is_terminal": step == 8,
                }
                for step in range(9)
            ]
        }
        for _ in range(4)
    ]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Small:
    """Three datasets: images, text, states, dropped and damaged episodes; bare and nested fields; a random return."""
    import tensorflow_datasets as tfds

    from gatokit.pipelines.run import build, scan

    recorded = {"reach": _arm_episodes(1, 10.0), "push": _arm_episodes(2, -10.0), "grid": _grid_episodes()}
    observation = {
        "image": tfds.features.Image(shape=(32, 48, 3)),
        "state": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        "mission": tfds.features.Text(),
    }
    action = tfds.features.Tensor(shape=(2,), dtype=np.float32)
    metadata = {"agent_id": tfds.features.Text(), "index": np.int64}
    arm = {"observation": observation, "action": action, "discount": np.float32}
    force = tfds.features.Tensor(shape=(2, 2), dtype=np.float64)
    grid = {
        "observation": tfds.features.Tensor(shape=(5,), dtype=np.int64),
        "action": {"force": force, "move": np.int64},
    }

    def fill(root: Path) -> None:
        for task in ("reach", "push"):
            write_rlds(root / "data" / "arm" / task, arm, metadata, recorded[task])
        write_rlds(root / "data" / "grid", grid, {}, recorded["grid"])
        config = root / "small.yaml"
        config.write_text(CONFIG.format(vocabulary=vocabulary))
        build(config, root / "built")
        scan(config, root / "scanned")

    root = shared(tmp_path_factory, "small", fill)
    return Small(root / "built", root / "scanned", recorded)


LONG_NOTE = "The quick brown fox jumps over the lazy dog and reads the language reference. " * 12
CORPORA = """
vocabulary: {vocabulary}
chunk_tokens: 64
holdout: 0.2
datasets:
  - name: notes
    kind: text
    source: notes.jsonl
  - name: captions
    kind: image_text
    format: webdataset
    source: captions.tar
    images: {{max_patches: 16}}
  - name: pages
    kind: interleaved
    format: mmc4
    source: pages.jsonl
    image_dir: images
    bad_images: skip
    end_of_document: false
  - name: questions
    kind: image_question_answer
    questions: questions.json
    annotations: annotations.json
    image_dir: images
    image_name: "{{image_id}}.png"
    images: {{size: [32, 32], codec: jpeg}}
    drop_duplicates: false
"""


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Pixels of a smooth coloured picture."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 3 + seed, columns * 2, rows + columns], axis=2).astype(np.uint8)


@dataclass(frozen=True)
class Corpora:
    """A build and a scan of the same corpora, and the folder of their sources."""

    built: Path
    scanned: Path
    source: Path


def _write_notes(path: Path) -> None:
    notes = ["A short note.", LONG_NOTE, "A short note.", " ", "Notes :copyright: are [bold]kept[/bold].", "The end."]
    lines = [json.dumps({"text": note}) for note in notes]
    path.write_text("\n".join([*lines[:4], "no JSON", *lines[4:]]) + "\n")


def _write_captions(path: Path) -> None:
    frames = [Image.fromarray(picture(32, 32, seed)) for seed in (0, 90)]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    samples: list[tuple[str, str, bytes, str]] = [
        ("0", "png", encode(picture(32, 48)), "a ramp of colours"),
        ("1", "jpg", encode(picture(128, 64, 9), "jpeg"), "a tall ramp"),
        ("2", "gif", animation.getvalue(), "a film"),
        ("3", "png", b"<!DOCTYPE html><p>not found", "a page that was not found"),
        ("4", "png", encode(picture(32, 48)), "a ramp of colours"),
        ("5", "png", encode(picture(32, 48, 40)), "another ramp"),
    ]
    with webdataset.TarWriter(str(path)) as writer:
        for key, suffix, data, text in samples:
            writer.write({"__key__": key, suffix: data, "txt": text})


def _write_pages(path: Path, images: Path) -> None:
    for number in range(5):
        (images / f"{number}.png").write_bytes(encode(picture(64, 64, 20 * number)))
    (images / "broken.png").write_bytes(encode(picture(64, 64))[:200])
    pages: list[tuple[list[str], list[tuple[str, int]]]] = [
        (["First a ramp.", "Then nothing more."], [("0.png", 0), ("1.png", 1)]),
        (["A page with a broken picture."], [("broken.png", 0)]),
        (["Five pictures."], [(f"{number}.png", 0) for number in range(5)]),
        (["No picture here."], []),
    ]
    lines = [
        {"text_list": texts, "image_info": [{"image_name": name, "matched_text_index": at} for name, at in pictures]}
        for texts, pictures in pages
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_questions(folder: Path) -> None:
    asked = [(10, 0, "What is it?"), (11, 0, "Is it red?"), (12, 1, "Is it blue?")]
    questions = [{"question_id": id_, "image_id": image, "question": text} for id_, image, text in asked]
    annotations = [
        {"question_id": id_, "image_id": image, "multiple_choice_answer": "a ramp", "answers": []}
        for id_, image, _ in asked
    ]
    (folder / "questions.json").write_text(json.dumps({"questions": questions, "data_subtype": "val"}))
    (folder / "annotations.json").write_text(json.dumps({"annotations": annotations, "data_subtype": "val"}))


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Corpora:
    """A dataset of each kind of documents: long ones, duplicates, damaged ones, pictures that fit and that do not."""
    from gatokit.pipelines.run import build, scan

    def fill(root: Path) -> None:
        (root / "images").mkdir()
        _write_notes(root / "notes.jsonl")
        _write_captions(root / "captions.tar")
        _write_pages(root / "pages.jsonl", root / "images")
        _write_questions(root)
        config = root / "corpora.yaml"
        config.write_text(CORPORA.format(vocabulary=vocabulary))
        build(config, root / "built")
        scan(config, root / "scanned")

    root = shared(tmp_path_factory, "corpora", fill)
    return Corpora(root / "built", root / "scanned", root)


@pytest.fixture
def damaged(small: Small, tmp_path: Path) -> Path:
    """A copy of the small build, to be damaged."""
    return Path(shutil.copytree(small.built, tmp_path / "damaged"))


@pytest.fixture
def shard(damaged: Path) -> Path:
    """The first shard of ``arm`` in the copy."""
    dataset = open_directory(damaged).datasets["arm"]
    return dataset.path / dataset.totals.splits[0].parts[0].file


@pytest.fixture
def seal() -> Callable[[Path], None]:
    """``seal(root)`` makes the manifest's digests those of the files again, whatever they hold."""
    return sealing.seal


@pytest.fixture
def edit_manifest() -> Callable[[Path, Callable[[dict[str, Any]], Any]], None]:
    """``edit_manifest(root, edit)`` changes the manifest's content and gives it a right digest."""

    def edited(root: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
        content = json.loads((root / "manifest.json").read_bytes())
        edit(content)
        sealing.write_manifest(root, content)

    return edited


@pytest.fixture
def rewrite() -> Callable[[Path, Callable[[list[bytes]], Iterable[bytes]]], None]:
    """``rewrite(shard, change)`` writes a shard anew with other records."""

    def rewritten(path: Path, change: Callable[[list[bytes]], Iterable[bytes]]) -> None:
        reader = ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
        writer = ArrayRecordWriter(str(path), "group_size:1,zstd:1")
        for record in change(records):
            writer.write(record)
        writer.close()

    return rewritten
