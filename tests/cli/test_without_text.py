"""Data without text needs no vocabulary, from the build to an export; data with text says where it has some."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from runs import Silent, config
from vocabularies import train_vocabulary

from gatokit.inspection import open_directory
from gatokit.loader.mixture import open_mixture
from gatokit.pipelines.estimate import estimate
from gatokit.pipelines.run import build
from gatokit.policy.generate import generate
from gatokit.policy.policy import load_policy
from gatokit.schemas.errors import ConfigError
from gatokit.storage.folder import read_policy
from gatokit.trainer.train import train

DATASET = "kind: episodes, keep: {all: true}, last_step: padding"


def write(path: Path, steps: dict[str, Any], **more: Any) -> None:
    """Six episodes of four steps."""
    path.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="push", version=tfds.core.Version("1.0.0"), data_dir=str(path), module_name=""
    )
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)})
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, 10)
    writer.initialize_splits(["train"])
    row = {"observation": {"state": np.array([0.5, -0.5], np.float32), **more}, "action": np.zeros(1, np.float32)}
    reward = {"reward": 1.0} if "reward" in steps else {}
    episode = {"steps": [{**row, **reward, "is_last": step == 3} for step in range(4)]}
    writer.add_examples({"train": [episode] * 6})
    writer.close_all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """``plain`` has no text, and ``texts`` an instruction. ``built`` is a build of the first without a vocabulary."""
    folder = tmp_path_factory.mktemp("without")
    observation = {"state": tfds.features.Tensor(shape=(2,), dtype=np.float32)}
    steps = {"action": tfds.features.Tensor(shape=(1,), dtype=np.float32), "reward": np.float32, "is_last": np.bool_}
    write(folder / "plain" / "push", {"observation": observation, **steps})
    texts = {"observation": {**observation, "instruction": tfds.features.Text()}, **steps}
    write(folder / "texts" / "push", texts, instruction="push the red block")
    (folder / "plain.yaml").write_text(f"datasets: [{{name: plain, source: plain, {DATASET}}}]\n")
    mixed = f"[{{name: plain, source: plain, {DATASET}}}, {{name: texts, source: texts, {DATASET}}}]"
    (folder / "mixed.yaml").write_text(f"datasets: {mixed}\n")
    (folder / "texts.yaml").write_text(
        f"vocabulary: {vocabulary}\ndatasets: [{{name: texts, source: texts, {DATASET}}}]\n"
    )
    build(folder / "plain.yaml", folder / "built")
    build(folder / "texts.yaml", folder / "built-texts")
    return folder


def test_a_build_without_text_has_no_vocabulary(folder: Path, gatokit: Callable[..., Any], tmp_path: Path) -> None:
    out = folder / "built"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["vocabulary"] is None
    assert "vocabulary" not in manifest["config"]
    assert not (out / "vocabulary.model").exists()
    assert manifest["tokenizer"]["vocabulary_size"] == 33_025
    assert (manifest["datasets"][0]["kept"], manifest["datasets"][0]["tokens"]) == (6, 6 * 3 * (2 + 1 + 1))
    assert open_directory(out).text is None
    assert estimate(folder / "plain.yaml").datasets[0].tokens == 72
    assert build(folder / "plain.yaml", out).built == 0
    assert (
        build(folder / "plain.yaml", tmp_path / "two", workers=2).manifest.files == open_directory(out).manifest.files
    )
    verified = gatokit("verify", out, "--json")
    assert (verified.status, verified.json["faults"]) == (0, [])
    [row, *_] = open_directory(out).datasets["plain"].index().to_pylist()
    shown = gatokit("inspect", out, "--episode", row["episode_id"], "--json")
    assert shown.json["steps"][0]["observation"] == {"state": pytest.approx([0.5, -0.5], abs=0.02)}
    assert gatokit("inspect", out, "--html", tmp_path / "report.html").status == 0
    assert gatokit("inspect", out).status == 0


@pytest.mark.parametrize("command", ["build", "plan"])
def test_text_without_a_vocabulary_is_named(folder: Path, command: str, tmp_path: Path) -> None:
    said = r"mixed.yaml: vocabulary: is not given, and datasets\[1\] \(texts\) has text, its field observation/instr"
    with pytest.raises(ConfigError, match=said):
        build(folder / "mixed.yaml", tmp_path / "out") if command == "build" else estimate(folder / "mixed.yaml")
    (tmp_path / "books.txt").write_text("A book.\n")
    (tmp_path / "c.yaml").write_text("datasets: [{name: books, kind: text, source: books.txt}]")
    with pytest.raises(ConfigError, match=r"datasets\[0\] \(books\) has text, its documents; give a SentencePiece"):
        build(tmp_path / "c.yaml", tmp_path / "out")


def test_a_vocabulary_of_nothing_is_none(folder: Path, gatokit: Callable[..., Any], tmp_path: Path) -> None:
    said = f"{folder / 'plain.yaml'}: nothing of its data is text, so that a build needs no vocabulary"
    ran = gatokit("vocab", folder / "plain.yaml", "--out", tmp_path / "text.model")
    assert ran.status == 0
    assert said in " ".join(ran.out.split())
    ran = gatokit("vocab", folder / "plain.yaml", "--out", tmp_path / "text.model", "--json")
    assert (ran.status, ran.json["file"], ran.json["pieces"], ran.json["datasets"]) == (0, None, 0, [])
    assert said in ran.json["warnings"][0]
    assert not (tmp_path / "text.model").exists()
    ran = gatokit("vocab", folder / "mixed.yaml", "--out", tmp_path / "text.model", "--json")
    assert (ran.status, [item["name"] for item in ran.json["datasets"]]) == (0, ["texts"])
    assert any("mixed.yaml names no vocabulary; write `vocabulary: " in item for item in ran.json["warnings"])


def test_a_build_keeps_to_having_a_vocabulary_or_none(folder: Path, vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").symlink_to(folder / "plain")
    (tmp_path / "c.yaml").write_text(f"vocabulary: {vocabulary}\n{(folder / 'plain.yaml').read_text()}")
    build(tmp_path / "c.yaml", tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "c.yaml").write_text((folder / "plain.yaml").read_text())
    with pytest.raises(ConfigError, match="holds shards of another vocabulary"):
        build(tmp_path / "c.yaml", tmp_path / "out")


def test_a_policy_without_text_is_trained_and_exported(
    folder: Path, gatokit: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = {"steps": 3, "input": {"patch_group_rows": 2}}
    train(config(tmp_path, **small), [str(folder / "built")], run, Silent())
    assert read_policy(run / "policy").vocabulary_blake2b is None
    assert not (run / "policy" / "vocabulary.model").exists()
    assert gatokit("export", run, "--out", tmp_path / "weights").status == 0
    assert json.loads((tmp_path / "weights" / "config.json").read_text())["vocabulary"] is None
    policy = load_policy(tmp_path / "weights")
    task = policy.find("plain/push")
    player = policy.player(task, task.spec, 1)
    player.begin(0, seed=0)
    action = player.act({0: {"state": np.array([0.5, -0.5], np.float32)}})[0]
    assert (np.shape(action), abs(float(np.ravel(action)[0])) <= 1) == ((1,), True)
    with pytest.raises(ConfigError, match="was trained on data without text and writes none"):
        generate(policy, "go", None)


def test_data_without_rewards_is_verified_and_trained_on(
    folder: Path, gatokit: Callable[..., Any], tmp_path: Path
) -> None:
    observation = {"state": tfds.features.Tensor(shape=(2,), dtype=np.float32)}
    steps = {"observation": observation, "action": tfds.features.Tensor(shape=(1,), dtype=np.float32)}
    for task in ("push", "pull", "cartpole-swingup"):
        write(tmp_path / "data" / task, {**steps, "is_last": np.bool_})
    dataset = f"{{name: plain, source: data, {DATASET}}}"
    (tmp_path / "c.yaml").write_text(f"shard_bytes: 1024\ndatasets: [{dataset}]\n")
    build(tmp_path / "c.yaml", tmp_path / "out")
    verified = gatokit("verify", tmp_path / "out", "--json")
    assert (verified.status, verified.json["faults"]) == (0, [])
    run = tmp_path / "run"
    train(config(tmp_path, steps=3, input={"patch_group_rows": 2}), [str(tmp_path / "out")], run, Silent())
    tasks = read_policy(run / "policy").datasets["plain"].tasks
    assert {name: (task.expert_return, task.prompt.episode_return) for name, task in tasks.items()} == {
        "cartpole-swingup": (None, None),
        "pull": (None, None),
        "push": (None, None),
    }
    words = ("--checkpoint", run, "--all", "--out", tmp_path / "scores", "--rollouts", "2")
    scored = gatokit("evaluate", *words, "--expert-return", "data")
    assert (scored.status, scored.out, (tmp_path / "scores").exists()) == (2, "", False)
    assert scored.err.splitlines()[-1] == (
        "gatokit: dm_control/cartpole-swingup: its data has no rewards and so no expert return; leave out "
        "--expert-return data, and it is measured"
    )


@pytest.mark.parametrize("order", [("built", "built-texts"), ("built-texts", "built")])
def test_builds_with_and_without_a_vocabulary_are_mixed(folder: Path, vocabulary: Path, order: tuple[str, str]) -> None:
    mixture = open_mixture([str(folder / name) for name in order])
    assert mixture.vocabulary == vocabulary.read_bytes()
    assert set(mixture.names) == {"plain", "texts"}


def test_two_vocabularies_are_not_mixed_whatever_stands_between(folder: Path, tmp_path: Path) -> None:
    train_vocabulary(["push the red block, push the blue one"] * 20, tmp_path / "other.model", 280)
    (tmp_path / "texts").symlink_to(folder / "texts")
    (tmp_path / "c.yaml").write_text(
        f"vocabulary: other.model\ndatasets: [{{name: others, source: texts, {DATASET}}}]\n"
    )
    build(tmp_path / "c.yaml", tmp_path / "out")
    with pytest.raises(ConfigError, match="was built with vocabulary"):
        open_mixture([str(folder / "built-texts"), str(folder / "built"), str(tmp_path / "out")])
    with pytest.raises(ConfigError, match="was built with vocabulary"):
        open_mixture([str(folder / "built"), str(folder / "built-texts"), str(tmp_path / "out")])
