"""``gatokit inspect``: what it prints, the shape of its JSON, and what it says of a mistake."""

import hashlib
import io
import time

import numpy as np
import pytest
from PIL import Image

from gatokit.inspection import open_directory


def first_kept(directory, name):
    return next(open_directory(directory).datasets[name].episodes(kept=True))


def test_overview_counts_what_the_index_holds(gatokit, built):
    result = gatokit("inspect", built, "--json")
    assert (result.status, result.err) == (0, "")
    directory = open_directory(built)
    assert result.json["content"] == "build"
    assert [line["name"] for line in result.json["datasets"]] == list(directory.datasets)
    for line in result.json["datasets"]:
        rows = list(directory.datasets[line["name"]].episodes())
        assert line["episodes"] == sum(row.lost for row in rows)
        assert line["kept"] == sum(row.kept for row in rows)
        assert line["held_out"] == sum(row.split == "held_out" for row in rows)
        assert line["tokens"] == sum(row.tokens for row in rows)
    for task in result.json["tasks"]:
        rows = [
            row for row in directory.datasets[task["dataset"]].episodes(task=task["task"]) if row.agent == task["agent"]
        ]
        assert task["kept"] == sum(row.kept for row in rows)
        assert task["dropped"] == sum(not row.kept for row in rows)
    assert {drop["reason"] for drop in result.json["drops"]} == {"below_threshold"}
    assert set(result.json["drops"][0]) == {"dataset", "reason", "episodes", "meaning", "example"}


def test_overview_is_for_people_too(gatokit, built):
    text = gatokit("inspect", built).out
    for word in (
        "a finished build",
        "metaworld",
        "button-press-topdown-v3",
        "GoToLocal-v0",
        "below_threshold",
        "such as",
    ):
        assert word in text
    one = gatokit("inspect", built, "--dataset", "babyai").out
    assert "GoToLocal-v0" in one
    assert "button-press" not in one


def test_a_scan_is_shown_without_tokens(gatokit, scanned):
    result = gatokit("inspect", scanned, "--json").json
    assert result["content"] == "scan"
    assert all(line["tokens"] is None and line["bytes"] is None for line in result["datasets"])
    assert "tokens" not in gatokit("inspect", scanned).out


@pytest.mark.parametrize("columns", ["60", "80", "100", "200"])
def test_no_line_is_wider_than_the_terminal(gatokit, built, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for words in ([], ["--at", "0.9"], ["--dataset", "metaworld"]):
        lines = gatokit("inspect", built, *words).out.splitlines()
        tables = [line for line in lines if line.startswith(("│", "┃", "┏"))]
        assert tables
        assert max(map(len, tables)) <= int(columns)
        fields = lines.index("what becomes of every field") if "what becomes of every field" in lines else len(lines)
        rows = [line for line in lines[:fields] if line.startswith("│")]
        folded = any(line.split("│")[2].strip() == "" for line in rows)
        assert not folded or int(columns) < 100


def test_a_task_shows_its_fields_returns_and_episodes(gatokit, built):
    text = gatokit("inspect", built, "--task", "PickupLoc-v0").out
    for word in ("observation/mission", "varies", "7 x 7 x 3", "█", "░", "◂", "first episodes"):
        assert word in text
    (result,) = gatokit("inspect", built, "--task", "PickupLoc-v0", "--json").json["tasks"]
    rows = list(open_directory(built).datasets["babyai"].episodes(task="PickupLoc-v0"))
    assert [row["episode_id"] for row in result["episodes"]] == [row.episode_id for row in rows]
    assert [row["return"] for row in result["episodes"]] == [row.episode_return for row in rows]
    assert sum(item["kept"] for item in result["returns"]) == sum(row.kept for row in rows)
    assert [field["path"] for field in result["fields"]][-1] == "action"


def test_a_task_of_two_datasets_is_shown_for_both(gatokit, built):
    result = gatokit("inspect", built, "--task", "Breakout", "--json").json
    assert [item["dataset"] for item in result["tasks"]] == ["atari", "atari-small"]


def test_an_episode_is_decoded_step_by_step(gatokit, built):
    row = first_kept(built, "babyai")
    result = gatokit("inspect", built, "--episode", row.episode_id, "--json").json
    assert result["dataset"] == "babyai"
    assert result["episode"] == {**row.columns(), "record_tokens": list(row.record_tokens)}
    steps = result["steps"]
    assert len(steps) == row.steps
    assert set(steps[0]) == {"step", "observation", "action", "reward", "discount", "flags"}
    assert set(steps[0]["observation"]) == {"direction", "grid", "mission"}
    assert isinstance(steps[0]["observation"]["mission"], str)
    assert np.array(steps[0]["observation"]["grid"]).shape == (7, 7, 3)
    assert isinstance(steps[0]["action"], int)
    assert sum(step["reward"] for step in steps) == pytest.approx(row.episode_return, rel=1e-12)
    assert steps[0]["flags"][0] == "first"
    assert "last" in steps[-1]["flags"]


def test_images_are_given_by_the_hash_of_their_pixels(gatokit, built):
    row = first_kept(built, "atari-small")
    words = ["inspect", built, "--dataset", "atari-small", "--episode", row.episode_id, "--json"]
    steps = gatokit(*words).json["steps"]
    episode = open_directory(built).datasets["atari-small"].episode(row)
    assert len(steps) == episode.steps
    for step, placed in zip(steps, episode.sequence.images, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(placed.image.data)).convert("RGB"))
        assert step["observation"]["frame"] == {
            "height": 64,
            "width": 48,
            "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        }
    assert [step["step"] for step in gatokit(*words, "--steps", "3:5").json["steps"]] == [3, 4]


def test_first_steps_are_printed_and_others_on_demand(gatokit, built):
    row = first_kept(built, "control")
    text = gatokit("inspect", built, "--episode", row.episode_id).out
    assert f"steps 0 to 4 of {row.steps}; --steps A:B shows others\n" in text
    assert "velocity" in text
    last = gatokit("inspect", built, "--episode", row.episode_id, "--steps", f"{row.steps - 1}:").out
    assert f"steps {row.steps - 1} to {row.steps - 1} of {row.steps}; --steps A:B shows others\n" in last
    assert "last" in last
    whole = gatokit("inspect", built, "--episode", row.episode_id, "--steps", "0:").out
    assert f"\nsteps 0 to {row.steps - 1} of {row.steps}\n" in whole


def test_many_fields_in_a_narrow_terminal_stand_below_each_other(gatokit, built, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = gatokit("inspect", built, "--episode", first_kept(built, "babyai").episode_id).out
    assert "field" in text
    assert "value" in text


def test_a_dropped_episode_says_why(gatokit, built, scanned):
    row = next(open_directory(built).datasets["metaworld"].episodes(kept=False))
    result = gatokit("inspect", built, "--episode", row.episode_id)
    assert result.status == 0
    assert "dropped: below_threshold" in result.out
    assert gatokit("inspect", built, "--episode", row.episode_id, "--json").json["steps"] is None
    kept = first_kept(scanned, "metaworld")
    assert "a scan stores no tokens" in gatokit("inspect", scanned, "--episode", kept.episode_id).out


def test_another_threshold_is_answered_in_no_time(gatokit, built):
    begin = time.monotonic()
    result = gatokit("inspect", built, "--at", "0.9", "--json").json
    assert time.monotonic() - begin < 0.9
    assert result["at"] == 0.9
    assert {row["dataset"] for row in result["tasks"]} == set(open_directory(built).datasets)
    for row in result["tasks"]:
        assert row["difference"] == row["kept_at"] - row["kept"]
        rows = list(open_directory(built).datasets[row["dataset"]].episodes(task=row["task"]))
        limit = row["threshold_at"]
        reach = [item for item in rows if item.episode_return >= limit - 1e-9 * abs(limit) and item.steps]
        assert row["kept_at"] == len(reach)
        assert row["dropped_at"] == len(rows) - len(reach)
    one = gatokit("inspect", built, "--at", "0.9", "--task", "GoToLocal-v0", "--json").json
    assert [row["task"] for row in one["tasks"]] == ["GoToLocal-v0"]
    assert "would be at 0.9" in gatokit("inspect", built, "--at", "0.9").out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dataset", "babyay"], "did you mean 'babyai'?"),
        (["--task", "GoToLokal-v0"], "did you mean 'GoToLocal-v0'"),
        (["--dataset", "babyai", "--task", "Breakout"], "babyai has no such name, only GoToLocal-v0, PickupLoc-v0"),
        (["--episode", "nothing like it"], "no such name"),
        (["--at", "1.5"], "give a number from 0 to 1"),
        (["--at", "much"], "invalid float value: 'much'"),
        (["--at", "0.9", "--episode", "x"], "give one of them"),
        (["--steps", "1:2"], "--steps belongs to --episode"),
        (["--steps", "5:2", "--episode", "x"], "is no range of steps"),
        (["--pdf"], "unknown argument '--pdf'"),
    ],
)
def test_a_mistake_ends_in_a_sentence(gatokit, built, words, says):
    result = gatokit("inspect", built, *words)
    assert (result.status, result.out) == (2, "")
    assert says in result.err
    assert len(result.err.splitlines()) == 1


def test_a_near_episode_is_suggested(gatokit, built):
    id_ = first_kept(built, "control").episode_id
    assert f"did you mean {id_!r}" in gatokit("inspect", built, "--episode", id_.replace("cartpole", "cratpole")).err


def test_an_episode_of_two_datasets_has_to_be_told_apart(gatokit, built):
    id_ = first_kept(built, "atari").episode_id
    result = gatokit("inspect", built, "--episode", id_)
    assert result.status == 2
    assert "atari, atari-small each have this id; name one with --dataset" in result.err
    assert gatokit("inspect", built, "--dataset", "atari", "--episode", id_).status == 0


def test_steps_behind_the_end_are_an_error(gatokit, built):
    row = first_kept(built, "control")
    result = gatokit("inspect", built, "--episode", row.episode_id, "--steps", "9999:10000")
    assert result.status == 2
    assert f"the episode has {row.steps} steps" in result.err


def test_no_directory_and_no_finished_one(gatokit, tmp_path):
    assert gatokit("inspect", tmp_path / "absent").status == 2
    unfinished = gatokit("inspect", tmp_path)
    assert unfinished.status == 1
    assert "has no manifest.json" in unfinished.err


def test_help_has_an_example(gatokit, capsys):
    with pytest.raises(SystemExit) as stopped:
        gatokit("inspect", "--help")
    assert stopped.value.code == 0
    assert "gatokit inspect built --at 0.9" in capsys.readouterr().out


def test_a_keep_rule_is_answered_without_a_build(gatokit, built, scanned):
    rule = "{best: 3, where: \"agent != 'random' and return > 0\"}"
    for directory in (built, scanned):
        result = gatokit("inspect", directory, "--keep", rule, "--dataset", "metaworld", "--json").json
        assert result["keep"] == {"best": 3, "where": "agent != 'random' and return > 0"}
        (row,) = result["tasks"]
        rows = list(open_directory(directory).datasets["metaworld"].episodes(task=row["task"]))
        left = [item for item in rows if item.agent != "random" and item.episode_return > 0]
        now = {item.episode_id for item in rows if item.kept}
        then = {item.episode_id for item in sorted(left, key=lambda item: -item.episode_return)[:3]}
        assert (row["kept"], row["kept_at"], row["threshold_at"]) == (len(now), 3, None)
        assert (row["added"], row["removed"]) == (len(then - now), len(now - then))
    text = gatokit("inspect", built, "--keep", rule).out
    assert "keep: {where: \"agent != 'random' and return > 0\", best: 3}" in text
    assert "threshold then" not in text
    assert "would be then (-" in text


def test_what_changed_between_a_build_and_its_scan(gatokit, built, scanned, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = gatokit("inspect", built, "--against", scanned, "--json").json
    assert result["changed"]
    assert (result["config"], result["tasks"]) == ([], [])
    assert [item["field"] for item in result["made_with"]] == [
        "content",
        "data",
        "manifest",
        "vocabulary",
        "vocabulary pieces",
    ]
    for item in result["datasets"]:
        assert item["left"]["kept"] == item["right"]["kept"]
        assert (item["right"]["tokens"], item["moves"]["gained"], item["moves"]["changed"]) == (None, 0, 0)
    text = gatokit("inspect", built, "--against", scanned).out
    for word in (f"from {built} to {scanned}", "content", "build", "scan", "metaworld"):
        assert word in text
    assert "nothing changed" in gatokit("inspect", built, "--against", built, "--dataset", "atari").out


def test_what_changes_between_two_thresholds(gatokit, built, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = gatokit("inspect", built, "--at", "0.3", "--against", "0.95", "--json").json
    assert (result["from"], result["to"]) == ("{min_return: 0.3}", "{min_return: 0.95}")
    rows = [gatokit("inspect", built, "--at", at, "--json").json["tasks"] for at in ("0.3", "0.95")]
    kept = {row["task"]: [row["kept_at"]] for row in rows[0] if row["dataset"] == "babyai"}
    for row in rows[1]:
        kept.get(row["task"], []).append(row["kept_at"])
    assert {item["task"]: item["kept"] for item in result["tasks"] if item["dataset"] == "babyai"} == kept
    text = gatokit("inspect", built, "--against", "{all: true}", "--dataset", "babyai").out
    for word in (f"from {built} as it is to {{all: true}}", "gained of babyai: ", "such as", "GoToLocal-v0"):
        assert word in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--keep", "{best: 0}"], "--keep: best: must be at least 1 episode a task (got 0)"),
        (["--keep", "best"], "--keep: must be a mapping with keys of a config's keep, such as '{best: 100}'"),
        (["--keep", "{best"], "--keep, line 1: this is not valid YAML"),
        (["--keep", "{where: tokens > 3}"], "metaworld: where: 'tokens' is no column; the columns are agent, "),
        (["--keep", "{success: done}"], "success: the index of metaworld does not hold the mark 'done'"),
        (["--keep", "{all: true}", "--at", "0.9"], "--at and --keep exclude each other: give one of them"),
        (["--keep", "{all: true}", "--episode", "x"], "--episode and --keep exclude each other: give one of them"),
        (["--against", "nowhere"], "--against nowhere: no directory, no fraction and no keep rule"),
        (["--against", "{best: x}"], "--against: best: must be a whole number of episodes a task"),
        (["--against", "1.5"], "1.5 is no fraction of the expert return"),
        (["--against", "0.9", "--task", "Breakout"], "--against compares whole datasets; give --dataset"),
        (["--against", "."], ". has no manifest.json: it is no finished build or scan"),
        (["--against", ".", "--at", "0.9"], "--against .: --at and --keep are of one directory; leave them out"),
        (["--against", "0.5", "--dataset", "babyay"], "did you mean 'babyai'?"),
    ],
)
def test_a_mistaken_rule_ends_in_a_sentence(gatokit, built, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    result = gatokit("inspect", built, *words)
    assert result.status == (1 if words == ["--against", "."] else 2)
    assert (result.out, len(result.err.splitlines())) == ("", 1)
    assert says in result.err
