"""What becomes of every field: tokens a step and shares, constant components, and why a field has no tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gatokit.cli import main as cli
from gatokit.inspection import open_directory
from gatokit.pipelines.episodes.fields import ConstantComponents, join_constants
from gatokit.pipelines.run import build, scan
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, StepField

VECTOR = EpisodeSpec(fields=(FieldSpec(path="observation", kind="continuous", dtype="float32", shape=(3,)),))
EPISODES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=st.sampled_from([0.0, 1.0, 2.5])
)


@given(st.lists(st.lists(EPISODES, min_size=1, max_size=3), min_size=1, max_size=3))
def test_constant_is_what_numpy_finds_constant(shards: list[list[np.ndarray]]) -> None:
    joined: dict[str, frozenset[tuple[int, float]]] = {}
    for episodes in shards:
        counter = ConstantComponents()
        for values in episodes:
            counter.add(VECTOR, "spec", {"observation": values})
        joined = join_constants(joined, json.loads(json.dumps(counter.constants())))
    values = np.concatenate([values for episodes in shards for values in episodes])
    found = {(at, float(values[0, at])) for at in range(3) if np.ptp(values[:, at]) == 0}
    assert joined == {"observation": frozenset(found)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, write_tfds: Callable[..., Path]) -> Path:
    """Two episodes of three and two steps with an action: a picture, a vector whose last component is constant, a text
    and a code; beside them a vector that is no observation."""
    import tensorflow_datasets as tfds

    steps = {
        "observation": {
            "camera": tfds.features.Image(shape=(16, 32, 3)),
            "state": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "words": tfds.features.Text(),
        },
        "action": tfds.features.ClassLabel(num_classes=4),
        "latent": tfds.features.Tensor(shape=(5,), dtype=np.float32),
        "reward": np.float32,
        "is_first": np.bool_,
        "is_last": np.bool_,
    }

    def episode(length: int) -> dict[str, Any]:
        written = [
            {
                "observation": {
                    "camera": np.full((16, 32, 3), step, np.uint8),
                    "state": np.array([step, 7], np.float32),
                    "words": "go",
                },
                "action": 0 if step == length else step % 2,
                "latent": np.ones(5, np.float32),
                "reward": float(step == length - 1),
                "is_first": step == 0,
                "is_last": step == length,
            }
            for step in range(length + 1)
        ]
        return {"steps": written, "seed": length}

    folder = tmp_path_factory.mktemp("fields") / "task"
    splits = {"train": [episode(3), episode(2)], "val": [episode(1)]}
    return write_tfds(folder, steps, splits, metadata={"seed": np.int64})


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def config(source: Path, folder: Path, vocabulary: Path) -> Path:
    dataset = {
        "name": "arm",
        "kind": "episodes",
        "source": str(source),
        "last_step": "padding",
        "keep": {"all": True},
        "fields": {"observation/camera": {"images": {"size": [16, 16]}}},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"vocabulary": str(vocabulary), "holdout": 0, "datasets": [dataset]}))
    return path


def test_a_build_says_what_a_step_is_made_of(
    source: Path, tmp_path: Path, exact_vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = build(config(source, tmp_path, exact_vocabulary), tmp_path / "built")
    [reader] = open_directory(tmp_path / "built").datasets.values()
    step = reader.described.step
    assert step is not None
    assert result.steps == {"arm": step}
    words = len(open_directory(tmp_path / "built").text.encode("go"))
    assert (step.tokens, step.text) == (1 + 2 + words + 1 + 1, words)
    assert reader.totals.tokens == 5 * step.tokens
    assert [field for field in step.fields if field.becomes] == [
        StepField(path="observation/camera", becomes="image 16x16", tokens=1),
        StepField(path="observation/state", becomes="continuous", tokens=2, components=2, constant=1),
        StepField(path="observation/words", becomes="text"),
        StepField(path="action", becomes="one of 4", tokens=1, components=1, constant=0),
    ]
    others = {field.path: field.why for field in step.fields if not field.becomes}
    assert set(others) == {"latent", "reward", "is_first", "is_last", "seed"}
    assert (others["latent"], others["seed"]) == ("neither observation nor action", "a column of the index")
    assert (step.splits, step.left_out, step.cut) == ({"train": 2}, {"val": 1}, 2)
    assert cli.main(["inspect", str(tmp_path / "built"), "--card", str(tmp_path / "card.md")]) == 0
    assert "| arm | observation/state | continuous | 2 |" in (tmp_path / "card.md").read_text()
    assert cli.main(["inspect", str(tmp_path / "built"), "--dataset", "arm"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 components constant" in shown
    assert "reads train (2); leaves out val (1)" in shown


def test_a_scan_knows_everything_but_texts_and_constants(source: Path, tmp_path: Path, exact_vocabulary: Path) -> None:
    step = scan(config(source, tmp_path, exact_vocabulary), tmp_path / "scanned").steps["arm"]
    assert (step.tokens, step.text) == (None, None)
    assert [(field.path, field.tokens, field.constant) for field in step.fields if field.becomes] == [
        ("observation/camera", 1, None),
        ("observation/state", 2, None),
        ("observation/words", None, None),
        ("action", 1, None),
    ]


def test_the_command_prints_one_table_and_json_holds_it(
    source: Path, tmp_path: Path, exact_vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(config(source, tmp_path, exact_vocabulary))
    assert cli.main(["build", path, "--out", str(tmp_path / "shown")]) == 0
    shown = capsys.readouterr().out
    assert "what becomes of every field" in shown
    assert "reads train (2); leaves out val (1)" in shown
    assert cli.main(["scan", path, "--out", str(tmp_path / "scanned"), "--json"]) == 0
    assert [field["path"] for field in json.loads(capsys.readouterr().out)["steps"]["arm"]["fields"]][:2] == [
        "observation/camera",
        "observation/state",
    ]
