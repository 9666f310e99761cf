"""The commands as a user meets them: exit status, sentences, and nothing but JSON with ``--json``."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gatokit.cli.main import main

GOOD = """
vocabulary: {vocabulary}
datasets:
  - name: d
    kind: episodes
    source: {data}/babyai/*
    fields: {{observation/grid: {{as: discrete}}, action: {{num: 7}}}}
"""


@pytest.fixture
def config(tmp_path: Path, recorded: Path, vocabulary: Path) -> Callable[..., Path]:
    """Writes GOOD with a text replaced by another."""

    def write(old: str = "", new: str = "") -> Path:
        text = GOOD.format(vocabulary=vocabulary, data=recorded)
        assert old in text
        path = tmp_path / "c.yaml"
        path.write_text(text.replace(old, new) if old else text)
        return path

    return write


BAD = {
    "unknown key": ("    fields:", "    feilds:", 2, "datasets[0].feilds: unknown key"),
    "unknown top key": ("vocabulary:", "seeds: 1\nvocabulary:", 2, "seeds: unknown key"),
    "empty glob": ("/babyai/*", "/baby/*", 2, "datasets[0].source: "),
    "a glob without sources": ("/babyai/*", "/babyai/*/*/*.json", 2, "holds a source of episodes"),
    "wrong kind": ("kind: episodes", "kind: epsiodes", 2, "datasets[0].kind: "),
    "missing kind": ("    kind: episodes\n", "", 2, "datasets[0].kind: "),
    "a field that does not exist": (
        "observation/grid",
        "observation/gird",
        2,
        "the source has no field 'observation/gird'",
    ),
    "an image size": (
        "num: 7}}",
        "num: 7}}\n    images: {size: [60, 80]}",
        2,
        "images.size: height and width must be multiples of 16",
    ),
    "a 7x7 image": ("observation/grid: {as: discrete}, ", "", 2, "observation/grid has frames of 7x7"),
    "a range of a discrete action": ("num: 7", "range: [0, 1]", 2, "field action is no continuous action"),
    "num too small": ("num: 7", "num: 1", 1, "out_of_range"),
    "a metadata key": (
        "    fields:",
        "    order: {metadata: index}\n    fields:",
        2,
        "order asks for the metadata key 'index'",
    ),
    "a metadata key of the wrong type": (
        "    fields:",
        "    order: {metadata: agent_id}\n    fields:",
        2,
        "order needs a number",
    ),
    "a split": ("    fields:", "    splits: [test]\n    fields:", 2, "has no split 'test', only train"),
    "one task twice": ("    fields:", "    task: {constant: t}\n    fields:", 2, "both give the task 't'"),
    "a task that keeps nothing": (
        "    fields:",
        "    keep: {min_return: 0.9, random_return: 1000}\n    fields:",
        1,
        "keeps none of its 32 episodes",
    ),
    "a random return that is missing": (
        "    fields:",
        "    keep: {min_return: 0.9, random_return: {x: 1}}\n    fields:",
        2,
        "keep.random_return names no return for task",
    ),
    "an action that is skipped": ("action: {num: 7}", "action: {as: skip}", 2, "no action field is left"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_config_ends_in_a_sentence(name, config, tmp_path, capfd):
    old, new, status, said = BAD[name]
    assert main(["build", str(config(old, new)), "--out", str(tmp_path / "out")]) == status
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("gatokit: ")]
    assert len(error) == 1
    assert said in error[0]
    assert "Traceback" not in error[0]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_vocabulary_that_is_no_model(config, tmp_path, capfd, vocabulary):
    bad = tmp_path / "bad.model"
    bad.write_bytes(b"no model")
    for path, said in ((bad, "bad.model"), (tmp_path / "gone.model", "gone.model does not exist")):
        assert main(["build", str(config(str(vocabulary), str(path))), "--out", str(tmp_path / "out")]) == 2
        assert said in capfd.readouterr().err
    assert main(["scan", str(config(str(vocabulary), str(bad))), "--out", str(tmp_path / "scan")]) == 0


def test_wrong_arguments(config, tmp_path, capfd):
    good, out = str(config()), str(tmp_path / "out")
    for words, said in (
        (["build", good, "--out", out, "--wrokers", "2"], "unknown option '--wrokers'"),
        (["build", good, "--out", out, "--workers", "0"], "'0' is no positive integer"),
        (["build", good], "--out"),
        (["build", str(tmp_path / "no.yaml"), "--out", out], "no.yaml: cannot read the config"),
        (["build", good, "--out", out, "--only", "x"], "--only x"),
        (["build", good, "--out", str(Path(good) / "out")], "cannot be written"),
        (["bild"], "invalid choice: 'bild'"),
        ([], "COMMAND"),
    ):
        assert main(words) == 2, words
        assert said in capfd.readouterr().err, words
    assert not (tmp_path / "out").exists()


def test_json_is_all_that_scan_and_build_print(config, tmp_path, recorded):
    def run(*words: object) -> dict:
        done = subprocess.run(
            [Path(sys.executable).parent / "gatokit", *map(str, words), "--json"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "scan" in done.stderr
        assert done.stdout.count("\n") == 1
        return json.loads(done.stdout)

    scanned = run("scan", config(), "--out", tmp_path / "scan")
    assert [
        (row["dataset"], row["task"], row["agent"], row["episodes"], row["window"]) for row in scanned["tasks"]
    ] == [
        ("d", "GoToLocal-v0", "", 32, 3),
        ("d", "PickupLoc-v0", "", 32, 3),
    ]
    assert all(row["threshold"] == pytest.approx(0.8 * row["expert_return"]) for row in scanned["tasks"])
    assert all(row["kept"] + row["dropped"] == 32 for row in scanned["tasks"])
    built = run("build", config(), "--out", tmp_path / "out", "--workers", 2, "--direct_num_workers=2")
    assert set(built["datasets"][0]) == {"name", "episodes", "kept", "tokens", "records", "shards", "bytes"}
    assert built["datasets"][0]["kept"] == sum(row["kept"] for row in scanned["tasks"])
    assert built["seconds"] > 0


@pytest.mark.parametrize("verb", ["scan", "build", "vocab", "inspect", "verify", "demo"])
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as raised:
        main([verb, "--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  gatokit {verb} " in text
    assert "--json" in text
