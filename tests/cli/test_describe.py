"""``gatokit describe`` as a user meets it."""

from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="module")
def babyai(recorded: Path) -> Path:
    return recorded / "babyai"


def test_people_read_a_table(gatokit, babyai, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    ran = gatokit("describe", babyai)
    assert ran.status == 0, ran.err
    assert f"{babyai}: " in ran.out
    assert "2 directories" in ran.out
    assert "looked at 64 of 64 episodes" in ran.out
    assert "splits: train 64" in ran.out
    assert "last actions: 64 zero; last rewards: 64 zero" in ran.out
    lines = [line.replace("│", "|") for line in ran.out.splitlines()]
    for field in ("action", "discount", "is_last", "observation/grid", "observation/mission", "reward", "agent_id"):
        assert any(line.startswith(f"| {field} ") for line in lines), field
    assert "values of an episode:" in ran.out
    assert f"next: gatokit describe {babyai} --write config.yaml" in ran.out


def test_programs_read_all_of_it(gatokit, babyai):
    ran = gatokit("describe", babyai / "GoToLocal-v0", "--json", "--episodes", "20")
    assert ran.out.count("\n") == 1
    result = ran.json
    assert (result["directories"], result["episodes"]) == (["GoToLocal-v0"], 32)
    assert result["seen"] == 20
    fields = {field["path"]: field for field in result["fields"]}
    grid = fields["observation/grid"]
    assert (grid["dtype"], grid["shape"], grid["becomes"], grid["tokens"]) == ("uint8", [7, 7, 3], "discrete", 147)
    assert grid["rule"] == {"as": "discrete"}
    assert fields["agent_id"]["belongs_to"] == "episode"
    assert result["candidates"]["agent"][0]["value"] == {"metadata": "agent_id"}
    assert yaml.safe_load(result["config"])["datasets"][0]["name"] == "GoToLocal-v0"
    assert result["written"] is None


def test_the_config_builds_as_it_is(gatokit, babyai, vocabulary, tmp_path):
    config = tmp_path / "deep" / "babyai.yaml"
    words = ("describe", f"{babyai}/*", "--write", config, "--vocabulary", vocabulary)
    ran = gatokit(*words)
    assert ran.status == 0, ran.err
    assert f"wrote {config}; next: gatokit scan {config} --out scanned" in ran.out
    assert gatokit("build", config, "--out", tmp_path / "built").status == 0
    assert gatokit("verify", tmp_path / "built").status == 0
    again = gatokit(*words)
    assert again.status == 2
    assert f"--write {config}: the file exists already; remove it or choose another name" in again.err


def test_paths_start_at_the_config(gatokit, babyai, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(babyai)
    monkeypatch.chdir(tmp_path)
    ran = gatokit("describe", "data/GoToLocal-v0", "--write", "configs/a.yaml")
    assert "next: gatokit vocab configs/a.yaml --out configs/vocabulary.model; gatokit scan" in ran.out
    content = yaml.safe_load(Path("configs/a.yaml").read_text())
    assert (content["vocabulary"], content["datasets"][0]["source"]) == ("vocabulary.model", "../data/GoToLocal-v0")


WRONG = {
    "nothing there": (["nowhere"], "nowhere: there is no such directory; give one of RLDS or EnvLogger data"),
    "no source": (["."], "no directory below"),
    "no such split": (["DATA", "--splits", "test"], "test"),
    "no number": (["DATA", "--episodes", "0"], "is no positive integer"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said(words, message, gatokit, babyai, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = gatokit("describe", *(babyai if word == "DATA" else word for word in words), "--json")
    assert ran.status == 2
    assert message in ran.json["error"]["message"] + "; " + str(ran.json["error"]["way_out"])
