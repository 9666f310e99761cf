"""A small build with a dataset of every kind that the input draws in its own way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from shared import shared

from gatokit.tokenizers.image_codec import encode

CONFIG = """
vocabulary: {vocabulary}
chunk_tokens: 64
shard_bytes: 40000
holdout: 0.2
datasets:
  - name: arm
    kind: episodes
    last_step: padding
    source: arm/*
    agent: {{metadata: agent_id}}
    order: {{metadata: index}}
    keep: {{all: true}}
    weight: 3
  - name: grid
    kind: episodes
    last_step: padding
    source: grid
    keep: {{all: true}}
    fields: {{observation: {{as: discrete}}}}
    weight: 2
  - {{name: books, kind: text, source: books.jsonl, weight: 1.5}}
  - {{name: captions, kind: image_text, format: webdataset, source: captions.tar, images: {{max_patches: 6}}}}
  - name: questions
    kind: image_question_answer
    questions: questions.json
    annotations: annotations.json
    image_dir: images
    image_name: "{{image_id}}.png"
    images: {{size: [32, 48]}}
  - {{name: pages, kind: interleaved, format: mmc4, source: pages.jsonl, image_dir: images, images: {{max_patches: 6}}}}
"""


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sentence(seed: int, words: int) -> str:
    known = "the robot reaches a red ball and then goes back to its place behind the blue door".split()  # noqa: SIM905
    return " ".join(np.random.default_rng(seed).choice(known, words))


def write_rlds(path: Path, steps: dict[str, Any], metadata: dict[str, Any], episodes: list[dict[str, Any]]) -> None:
    """``episodes`` as TFDS writes them, five a file; steps without flags and a reward get them."""
    import tensorflow_datasets as tfds

    for episode in episodes:
        last = len(episode["steps"]) - 1
        for at, step in enumerate(episode["steps"]):
            marks = {"reward": np.float32(1), "is_first": at == 0, "is_last": at == last, "is_terminal": False}
            episode["steps"][at] = marks | step
    path.mkdir(parents=True)
    flags = dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_)
    features = tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset({**steps, "reward": np.float32, **flags}), **metadata}
    )
    identity = tfds.core.DatasetIdentity(
        name="recorded", version=tfds.core.Version("1.0.0"), data_dir=str(path), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, description="a test", features=features)
    writer = tfds.core.SequentialWriter(info, 5)
    writer.initialize_splits(["train"])
    writer.add_examples({"train": episodes})
    writer.close_all()


def _write_arm(path: Path, seed: int) -> None:
    """Thirteen episodes of 3 to 19 steps of an image, a text and a state; agent "c" has one alone."""
    import tensorflow_datasets as tfds

    random = np.random.default_rng(seed)
    episodes = []
    for number in range(13):
        steps = [
            {
                "observation": {
                    "image": picture(32, 48, 1000 * seed + 50 * number + step),
                    "mission": sentence(step, 1 + step % 3),
                    "state": random.normal(size=3).astype(np.float32),
                },
                "action": random.uniform(-1, 1, 2).astype(np.float32),
            }
            for step in range(random.integers(4, 21))
        ]
        episodes.append({"steps": steps, "agent_id": "c" if number == 12 else "ab"[number % 2], "index": number})
    observation = {
        "image": tfds.features.Image(shape=(32, 48, 3)),
        "mission": tfds.features.Text(),
        "state": tfds.features.Tensor(shape=(3,), dtype=np.float32),
    }
    action = tfds.features.Tensor(shape=(2,), dtype=np.float32)
    metadata = {"agent_id": tfds.features.Text(), "index": np.int64}
    write_rlds(path, {"observation": observation, "action": action}, metadata, episodes)


def _write_grid(path: Path) -> None:
    """Nine episodes of bare discrete observations, and actions that are both discrete and continuous."""
    import tensorflow_datasets as tfds

    random = np.random.default_rng(7)
    episodes = [
        {
            "steps": [
                {
                    "observation": random.integers(0, 1024, 5),
                    "action": {"force": random.uniform(-1, 1, 2), "move": int(random.integers(0, 4))},
                }
                for _ in range(steps)
            ]
        }
        for steps in (2, 3, 5, 9, 30, 30, 30, 41, 60)
    ]
    features = {
        "observation": tfds.features.Tensor(shape=(5,), dtype=np.int64),
        "action": {"force": tfds.features.Tensor(shape=(2,), dtype=np.float64), "move": np.int64},
    }
    write_rlds(path, features, {}, episodes)


def _write_corpora(root: Path) -> None:
    lines = [json.dumps({"text": sentence(number, 5 + 37 * (number % 7))}) for number in range(40)]
    (root / "books.jsonl").write_text("\n".join(lines) + "\n")
    with webdataset.TarWriter(str(root / "captions.tar")) as writer:
        for number in range(25):
            size = [(32, 48), (64, 16), (16, 16)][number % 3]
            codec, suffix = ("jpeg", "jpg") if number % 2 else ("png", "png")
            data = encode(picture(*size, number), codec)
            writer.write({"__key__": f"{number:03}", suffix: data, "txt": sentence(number, 4)})
    (root / "images").mkdir()
    for number in range(4):
        (root / "images" / f"{number}.png").write_bytes(encode(picture(32, 48, 70 + number)))
    ids = [{"question_id": number, "image_id": number % 4} for number in range(11)]
    asked = [each | {"question": sentence(number, 1 + number)} for number, each in enumerate(ids)]
    answers = [each | {"multiple_choice_answer": "yes", "answers": []} for each in ids]
    (root / "questions.json").write_text(json.dumps({"questions": asked, "data_subtype": "val"}))
    (root / "annotations.json").write_text(json.dumps({"annotations": answers, "data_subtype": "val"}))
    pages = [
        {
            "text_list": [sentence(10 * number + at, 9) for at in range(4)],
            "image_info": [{"image_name": f"{at}.png", "matched_text_index": at} for at in range(number % 4)],
        }
        for number in range(12)
    ]
    (root / "pages.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))


@pytest.fixture(scope="session")
def mixed_config(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """The config of ``mixed`` beside its sources."""

    def fill(root: Path) -> None:
        _write_arm(root / "arm" / "reach", 1)
        _write_arm(root / "arm" / "push", 2)
        _write_grid(root / "grid")
        _write_corpora(root)
        (root / "mixed.yaml").write_text(CONFIG.format(vocabulary=vocabulary))

    return shared(tmp_path_factory, "mixed", fill) / "mixed.yaml"


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory, mixed_config: Path) -> Path:
    """A build of episodes with images, texts and states, episodes of discrete values, texts, captions, questions and
    pages, in small shards and records. Not to be written to."""
    from gatokit.pipelines.run import build

    return shared(tmp_path_factory, "mixed-build", lambda folder: build(mixed_config, folder / "built")) / "built"
