"""``gatokit vocab`` as a user meets it."""

import json
import random
from pathlib import Path

import pytest

from gatokit.pipelines.vocabulary import SAMPLE_BYTES
from gatokit.schemas.manifest import digest
from gatokit.tokenizers.text import TextTokenizer

CONFIG = """
vocabulary: text.model
holdout: 0.2
datasets:
  - {name: prose, kind: text, source: prose.jsonl}
  - {name: notes, kind: text, source: "*.txt"}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    random_ = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "ten", "dogs", "run", "by\n", "in", "the", "rain"]
    texts = [" ".join(random_.choices(words, k=30)) for _ in range(60)]
    (tmp_path / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "note.txt").write_text("one note\n")
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    return path


def test_a_small_corpus_warns_and_gives_fewer_pieces(gatokit, config, tmp_path):
    out = tmp_path / "text.model"
    ran = gatokit("vocab", config, "--out", out, "--json")
    assert ran.status == 0, ran.err
    assert ran.out.count("\n") == 1
    result = ran.json
    text = TextTokenizer.load(out)
    assert 262 < text.pieces < 1000
    assert (result["file"], result["pieces"]) == (str(out), text.pieces)
    assert result["blake2b"] == text.digest == digest(out.read_bytes())
    assert [(item["name"], item["documents"], item["of"]) for item in result["datasets"]] == [
        ("prose", result["sentences"] - 1, result["sentences"] - 1),
        ("notes", 1, 1),
    ]
    assert result["datasets"][1]["bytes"] == 9
    assert sum(item["bytes"] for item in result["datasets"]) == result["bytes"]
    assert 30 < result["sentences"] < 60
    assert result["characters_per_token"] > 2
    assert result["held_out_characters_per_token"] > 2
    (warning,) = result["warnings"]
    assert warning.startswith(f"the text gives {text.pieces} pieces instead of 32,000: ")
    assert warning in ran.err
    assert text.decode(text.encode(" the  cat\n")) == " the  cat\n"


def test_people_read_a_table_and_a_sentence(gatokit, config, tmp_path):
    ran = gatokit(
        "vocab", config, "--out", tmp_path / "new" / "other.model", "--pieces", 290, "--normalization", "nfkc"
    )
    assert ran.status == 0, ran.err
    assert "names another vocabulary, text.model; builds use that one" in ran.err
    assert "instead of" not in ran.err
    for said in ("in the sample", "prose", "notes", "290 pieces (nfkc) from", "in held-out documents", "BLAKE2b "):
        assert said in ran.out
    assert TextTokenizer.load(tmp_path / "new" / "other.model").pieces == 290


def test_the_same_text_gives_the_same_model(gatokit, config, tmp_path):
    (tmp_path / "moved").mkdir()
    for name in ("c.yaml", "prose.jsonl", "note.txt"):
        (tmp_path / "moved" / name).write_bytes((tmp_path / name).read_bytes())
    for folder in (tmp_path, tmp_path / "moved"):
        assert gatokit("vocab", folder / "c.yaml", "--out", folder / "text.model").status == 0
    assert (tmp_path / "text.model").read_bytes() == (tmp_path / "moved" / "text.model").read_bytes()


def test_a_build_takes_the_model(gatokit, config, tmp_path):
    made = gatokit("vocab", config, "--out", tmp_path / "text.model", "--json").json
    assert gatokit("build", config, "--out", tmp_path / "built").status == 0
    manifest = json.loads((tmp_path / "built" / "manifest.json").read_text())
    assert manifest["vocabulary"]["blake2b"] == made["blake2b"]


BAD = {
    "too many pieces": (["--pieces", 32001], 2, "--pieces 32001: must be between 260 and 32000"),
    "too few pieces": (["--pieces", 259], 2, "--pieces 259: must be between 260 and 32000"),
    "fewer pieces than characters": (
        ["--pieces", 262],
        2,
        "--pieces 262: the characters of the sample alone need 278",
    ),
    "no number": (["--pieces", "many"], 2, "'many' is no positive integer"),
    "a tiny sample": (["--sample-bytes", 1000], 2, "--sample-bytes 1000: must be at least 1000000"),
    "a normalization": (["--normalization", "nfd"], 2, "invalid choice: 'nfd'"),
    "a Beam option": (["--runner", "DirectRunner"], 2, "unknown argument '--runner'"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments_end_in_a_sentence(name, gatokit, config, tmp_path):
    words, status, said = BAD[name]
    ran = gatokit("vocab", config, "--out", tmp_path / "text.model", *words)
    assert ran.status == status
    (error,) = [line for line in ran.err.splitlines() if line.startswith("gatokit: ")]
    assert said in error
    assert "Traceback" not in ran.err
    assert not (tmp_path / "text.model").exists()


def test_out_is_checked_before_anything_is_read(gatokit, config, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for out, said in (
        (config, "is there and is no SentencePiece model; choose another file"),
        (tmp_path, "is a directory; name a file in it"),
        (tmp_path / "file" / "text.model", "cannot be written"),
        ("gs://bucket/text.model", "no local path"),
    ):
        ran = gatokit("vocab", config, "--out", out)
        assert ran.status == 2
        assert f"--out {out}: {said}" in ran.err
    assert config.read_text() == CONFIG
    assert gatokit("vocab", config).status == 2


def test_damaged_data_is_no_mistake_in_the_config(gatokit, config, tmp_path):
    (tmp_path / "prose.jsonl").write_text("no JSON\n" * 30)
    ran = gatokit("vocab", config, "--out", tmp_path / "text.model")
    assert ran.status == 1
    assert "prose: 30 of 30 documents are bad" in ran.err


def test_help_names_the_exception(gatokit, capsys):
    with pytest.raises(SystemExit) as raised:
        gatokit("vocab", "--help")
    assert raised.value.code == 0
    said = capsys.readouterr().out
    assert "example:\n  gatokit vocab corpora.yaml --out text.model" in said
    assert "U+2581" in said
    assert f"(default: {SAMPLE_BYTES})" in " ".join(said.split())
