"""``gatokit evaluate`` on the command line: what it shows and refuses, and a run that is killed."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gatokit.cli.console import Output
from gatokit.cli.evaluate import show_scores
from gatokit.cli.main import main
from gatokit.evaluation.scores import Anchors, Results, Returns, Score, TaskScores

GRID, POLE = "babyai/GoToLocal-v0", "dm_control/pendulum-swingup"


def ceiling(out: Path, *words: str) -> list[str]:
    return ["evaluate", "--ceiling", "--env", GRID, "--out", str(out), *words]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--all"], 2, "--checkpoint is needed: a run's directory, one of its checkpoints, or an export"),
        (["--ceiling", "--all"], 2, "--checkpoint is needed"),
        (["--checkpoint", "run"], 2, "give --env NAME, once or several times, or --all"),
        (["--checkpoint", "run", "--all", "--env", GRID], 2, "give --env NAME, once or several times, or --all"),
        (["--checkpoint", "run", "--env", GRID], 2, "there is no run"),
        (["--checkpoint", ".", "--env", GRID], 1, ". holds no checkpoint: give a run's directory"),
        (["--ceiling", "--env", "GoToLocal-v0"], 2, "'GoToLocal-v0' is no environment: write family/task"),
        (["--ceiling", "--env", "chess/mate"], 2, "there is no environment family 'chess'; there are atari, babyai"),
        (["--ceiling", "--env", "babyai/Chess"], 2, "babyai has no task 'Chess'"),
        (["--ceiling", "--env", GRID, "--rollouts", "1"], 2, "--rollouts is 2 or more, not 1"),
        (["--ceiling", "--env", GRID, "--time-limit", "atari"], 2, "--time-limit atari: write NAME=STEPS"),
        (["--ceiling", "--env", GRID, "--time-limit", "babyai=600"], 2, "time_limit is from 1 to 512 steps, not 600"),
        (["--checkpoint", "run", "--env", GRID, "--temperature", "warm"], 2, "invalid float value: 'warm'"),
        (["--checkpoint", "run", "--env", GRID, "--rule", "best"], 2, "invalid choice: 'best'"),
    ],
)
def test_wrong_arguments(
    words: list[str],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words, "--out", "scores"]) == status
    shown = capsys.readouterr()
    assert said in " ".join(shown.err.split())
    assert shown.out == ""
    assert not (tmp_path / "scores").exists()


def test_the_ceiling_as_a_table_and_as_an_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = ceiling(tmp_path / "out", "--rollouts", "3", "--workers", "1", "--time-limit", f"{GRID}=64")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if GRID in line).replace("│", " ").split()
    assert row[:3] == [GRID, "discrete", "0"]
    assert row[3:] == [row[3], row[3], "0", "0", "reads", "the", "state", "–", "–"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"][0]["actions"] == {
        "mean_return": pytest.approx(0.9, abs=0.1),
        "loss": 0.0,
        "standard_error": 0.0,
    }
    assert main([*words[:-1], f"{GRID}=60"]) == 2
    assert 'whose time limits is {"babyai/GoToLocal-v0": 64}, not' in " ".join(capsys.readouterr().err.split())


def results() -> Results:
    anchors = Anchors(Returns(50, 29.0, 1.0), Returns(50, 809.0, 4.0))
    data = Anchors(Returns(50, 0.1, 0.01), Returns(0, 0.9, 0.0), "data")
    flat = Anchors(Returns(50, 5.0, 1.0), Returns(50, 6.0, 1.0))

    def scores(scale: Anchors, *means: float) -> dict[str, Score]:
        names = ("median/memory", "median/window", "sample/memory")
        return {name: Score.of(Returns(50, mean, 2.0), scale) for name, mean in zip(names, means, strict=True)}

    scored = [
        TaskScores("dm_control/cartpole-swingup", anchors, scores(anchors, 614.0, 419.0, 185.0)),
        TaskScores(GRID, data, scores(data, 0.82, 0.74, 0.5)),
    ]
    names = ("median/memory", "median/window", "sample/memory")
    return Results("median", "median/memory", names, scored, {"atari/Pong": flat})


def test_the_table_of_scores(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show_scores(Output(as_json=False), results(), Path("scores"))
    shown = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in shown.out.splitlines()]
    assert "scores by median, memory, % of expert" in shown.out
    header = ["task", "rollouts", "random", "expert", "return", "score", "±", "median, window", "sample, memory"]
    assert header in rows
    assert ["dm_control/cartpole-swingup", "50", "29", "809", "614", "75", "0.5", "50", "20"] in rows
    assert [GRID, "50", "0.1", "0.9 (data)", "0.82", "90", "250", "80", "50"] in rows
    assert ["babyai", "1", "90", "250", "80", "50"] in rows
    assert ["all domains", "2", "82.5", "125", "65", "35"] in rows
    assert "atari/Pong has no score: the expert's 6 and chance's 5 are 1 apart" in " ".join(shown.err.split())


def lines(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_evaluation_goes_on_without_playing_a_rollout_twice(tmp_path: Path) -> None:
    more = ("--env", POLE, "--rollouts", "5", "--time-limit", f"{POLE}=400")
    words = ceiling(tmp_path / "killed", *more)
    process = subprocess.Popen([sys.executable, "-m", "gatokit.cli.main", *words], stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "rollouts.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 17):
        assert process.poll() is None
    orphans = [os.pidfd_open(child) for child in children(process.pid)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = log.read_text()
    assert 17 <= before.count("\n") < 30
    for orphan in orphans:
        assert select.select([orphan], [], [], 30)[0], "a worker outlives the command"
        os.close(orphan)
    assert main([*words, "--workers", "1"]) == 0
    assert log.read_text().startswith(before[: before.rfind("\n") + 1])
    assert main(ceiling(tmp_path / "whole", *more, "--workers", "1")) == 0
    killed, whole = (
        sorted(lines(tmp_path / name), key=lambda line: (line["task"], line["agent"], line["number"]))
        for name in ("killed", "whole")
    )
    assert len(whole) == 30
    assert killed == whole
    assert (tmp_path / "killed" / "ceiling.json").read_bytes() == (tmp_path / "whole" / "ceiling.json").read_bytes()


@pytest.mark.slow
def test_a_trained_policy(
    tmp_path: Path, built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "model": {"size": "tiny", "layers": 1},
        "context": 352,
        "batch": 8,
        "steps": 2,
        "precision": "float32",
        "remat": "none",
        "optimizer": {"warmup_steps": 1},
        "evaluation": {"batches": 1},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    run = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "run.yaml"), "--data", str(built), "--out", run]) == 0
    words = ["evaluate", "--checkpoint", run, "--all", "--rollouts", "3", "--memory", "memory", "--json"]
    words += ["--out", str(tmp_path / "out"), "--time-limit", "metaworld=60", "--time-limit", "atari=60"]
    words += ["--time-limit", "dm_control=100"]
    capsys.readouterr()
    assert main(words) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    names = {item["task"] for item in (*found["tasks"], *found["refused"])}
    assert names == {
        "metaworld/button-press-topdown-v3",
        "babyai/GoToLocal-v0",
        "babyai/PickupLoc-v0",
        "dm_control/cartpole-swingup",
        "atari/Breakout",
    }
    assert "Breakout is left out: " in " ".join(shown.err.split())
    assert {"metaworld", "babyai"} <= {item["domain"] for item in found["domains"]}
    assert (found["rule"], found["rollouts"], list(found["others"])) == ("median", 3, ["sample/memory"])
    log = (tmp_path / "out" / "rollouts.jsonl").read_bytes()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert (tmp_path / "out" / "rollouts.jsonl").read_bytes() == log
    assert main([*words, "--temperature", "0.5"]) == 2
    assert "holds rollouts whose temperature is 1.0, not 0.5: give another --out" in capsys.readouterr().err
