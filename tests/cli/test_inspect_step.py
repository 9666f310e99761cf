"""``gatokit inspect --step``: the records behind a step, of a run and of a build with a config."""

import json

import pytest

from gatokit.inspection import open_directory
from gatokit.loader.mixture import open_mixture
from gatokit.loader.windows import Windows
from gatokit.schemas.run_directory import RunFile

CONFIG = """
model: tiny
context: 400
batch: 16
steps: 100
optimizer: {warmup_steps: 10}
input: {weights: {metaworld: 1, babyai: 1}, prompt: {share: 0.5}}
"""


@pytest.fixture
def run(tmp_path, built):
    """The directory of a run that has just begun."""
    from gatokit.schemas.run import read_run_config

    (tmp_path / "run.yaml").write_text(CONFIG)
    config = read_run_config(tmp_path / "run.yaml")
    mixture = open_mixture([built], config.input.weights)
    (tmp_path / "run").mkdir()
    run = RunFile(config=config, data=[str(built)], data_digest=mixture.data_digest)
    (tmp_path / "run" / "run.json").write_bytes(run.to_bytes())
    return tmp_path / "run"


def test_rows_name_the_records_that_a_step_was_made_of(gatokit, built, run):
    result = gatokit("inspect", run, "--step", 3, "--json")
    assert (result.status, result.err) == (0, "")
    rows = result.json["rows"]
    assert [row["row"] for row in rows] == list(range(16))
    assert [row["sample"] for row in rows] == list(range(32, 48))
    config = RunFile(**json.loads((run / "run.json").read_text())).config
    batch = Windows(open_mixture([built], config.input.weights), config).batch(2, range(16))
    directory = open_directory(built)
    for row, tokens, kinds in zip(rows, batch.tokens, batch.kinds, strict=True):
        parts = [row["prompt"]] if row["prompt"] else []
        at = 0
        for part in [*parts, *row["segments"]]:
            episode = directory.datasets[row["dataset"]].episode(part["owner"])
            assert (episode.row.task, episode.row.agent) == (row["task"], row["agent"])
            assert part["shard"].endswith(episode.row.shard)
            before = part["first_record"] - episode.row.first_record
            begin = sum(episode.row.record_tokens[:before]) + part["begin"]
            count = part["end"] - part["begin"]
            assert tokens[at : at + count].tolist() == episode.sequence.tokens[begin : begin + count].tolist()
            at += count
        assert at == row["tokens"] == (kinds > 0).sum()
    assert sum(row["prompt"] is not None for row in rows) > 2


def test_the_table_is_for_people_and_filters_by_dataset_and_task(gatokit, built, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    whole = gatokit("inspect", run, "--step", 1)
    assert whole.status == 0
    assert whole.out.startswith("step 1: windows of 400 tokens, patch slots 8")
    assert "button-press-topdown-v3" in whole.out
    of_build = gatokit("inspect", built, "--step", 1, "--run", run.parent / "run.yaml")
    assert of_build.out == whole.out
    assert gatokit("inspect", built, "--step", 1, "--run", run).out == whole.out
    one = gatokit("inspect", run, "--step", 1, "--task", "GoToLocal-v0", "--json").json["rows"]
    assert one
    assert {row["task"] for row in one} == {"GoToLocal-v0"}
    assert gatokit("inspect", run, "--step", 1, "--dataset", "atari", "--json").json["rows"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "0"], "--step 0: the first step of a run is 1"),
        (["--step", "1", "--at", "0.5"], "--step and --at exclude each other"),
        (["--run", "tiny"], "--run belongs to --step"),
        (["--step", "1", "--run", "nothing"], "nothing is no file and no preset"),
    ],
)
def test_mistakes_are_explained(gatokit, run, words, message):
    result = gatokit("inspect", run, *words)
    assert (result.status, result.out) == (2, "")
    assert message in result.err


def test_a_build_is_no_run_and_other_data_are_not_those_of_the_run(gatokit, built, run):
    result = gatokit("inspect", built, "--step", 1)
    assert result.status == 2
    assert f"{built} holds no run.json; give the directory of a run, or a build with --run CONFIG" in result.err
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"data_digest": "0"}))
    result = gatokit("inspect", run, "--step", 1)
    assert result.status == 2
    assert "was trained on other data than" in result.err
