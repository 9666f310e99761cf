"""The commands as a user meets them: exit status, sentences, and nothing but JSON with ``--json``."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gatokit
from gatokit.cli.main import VERBS, main
from gatokit.cli.vocab import MOST_PIECES
from gatokit.schemas.run import presets
from gatokit.schemas.tokens import TEXT_IDS

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
    "unknown key": ("    fields:", "    feilds:", 2, "datasets[0].feilds: unknown key; did you mean 'fields'?"),
    "unknown top key": ("vocabulary:", "seeds: 1\nvocabulary:", 2, "seeds: unknown key"),
    "empty glob": ("/babyai/*", "/baby/*", 2, "datasets[0].source: "),
    "a glob without sources": ("/babyai/*", "/babyai/*/*/*.json", 2, "holds a source of episodes"),
    "wrong kind": ("kind: episodes", "kind: epsiodes", 2, "datasets[0].kind: "),
    "missing kind": ("    kind: episodes\n", "", 2, "datasets[0].kind: "),
    "a field that does not exist": (
        "observation/grid",
        "observation/gird",
        2,
        "the source has no field 'observation/gird'; did you mean 'observation/grid'?",
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
    "a split": (
        "    fields:",
        "    splits: [test]\n    fields:",
        2,
        "splits: 'test' cannot be read: Unknown split 'test'. Should be one of ['train']; the splits are train (32)",
    ),
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
    _, *messages = re.split(r"^gatokit: ", capfd.readouterr().err, flags=re.MULTILINE)
    assert len(messages) == 1
    assert said in messages[0]
    assert "Traceback" not in messages[0]
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
        (["bild"], "there is no command 'bild'; did you mean 'build'?"),
        (["zzz"], "there is no command 'zzz'; gatokit --help lists the commands"),
        (["verify", out, "--jsn"], "unknown argument '--jsn'; did you mean '--json'?"),
        (["inspect", out, "--colour"], "unknown argument '--colour'; see gatokit inspect --help"),
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


def test_an_error_with_json_is_one_object(config, tmp_path, capfd):
    path, out = config("    fields:", "    feilds:"), str(tmp_path / "out")
    assert main(["build", str(path), "--out", out, "--json"]) == 2
    captured = capfd.readouterr()
    message = f"{path}: datasets[0].feilds: unknown key"
    assert captured.out.count("\n") == 1
    assert json.loads(captured.out) == {
        "error": {"code": "config", "message": message, "way_out": "did you mean 'fields'?"}
    }
    assert captured.err.endswith(f"gatokit: {message}; did you mean 'fields'?\n")
    assert main(["verify", "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["error"]["code"] == "usage"


def test_gatokit_alone_says_what_it_can_do(capsys):
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert all(f"  {verb:10}  {does}\n" in text for verb, does in VERBS.items())
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gatokit {gatokit.__version__}\n"


def test_python_m_gatokit_is_the_command():
    done = subprocess.run([sys.executable, "-m", "gatokit", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"gatokit {gatokit.__version__}\n")


def test_help_imports_nothing_that_takes_time():
    program = """
import sys
from gatokit.cli.main import VERBS, main, verb_parser

assert main(["--help"]) == 0
for verb in VERBS:
    assert verb_parser(verb).format_help()
heavy = {"apache_beam", "cv2", "grain", "jax", "numpy", "pyarrow", "pydantic", "rich", "tensorflow_datasets", "yaml"}
sys.exit(f"imported for help: {heavy & set(sys.modules)}" if heavy & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_help_of_train_names_the_presets(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    named = re.search(r"one of the presets (.*)\. The", capsys.readouterr().out)[1]
    assert sorted(named.replace(" and ", ", ").split(", ")) == sorted(presets())


def test_the_help_of_vocab_names_the_text_ids():
    assert MOST_PIECES == TEXT_IDS


def test_an_option_that_is_gone_says_what_to_write_instead(capsys, monkeypatch):
    monkeypatch.setattr("gatokit.cli.verify.RETIRED", {"--fast": "leave it out: every check is fast"}, raising=False)
    for words in (["--fast"], ["--fast=2"]):
        assert main(["verify", "built", *words]) == 2
        error = "gatokit: --fast is no longer an option; leave it out: every check is fast\n"
        assert capsys.readouterr().err == error


@pytest.mark.parametrize("verb", ["scan", "build", "vocab", "inspect", "verify", "demo"])
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as raised:
        main([verb, "--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  gatokit {verb} " in text
    assert "--json" in text
