"""``gatokit train`` and ``gatokit export`` on the command line."""

import json
from pathlib import Path

import pytest
from runs import write_config

from gatokit.cli.main import main


def test_train_and_export_print_one_object(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, weights = str(tmp_path / "run"), str(tmp_path / "weights")
    words = ["train", str(write_config(tmp_path)), "--data", str(mixed), "--out", run, "--steps", "2"]
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    line = json.loads(printed.out)
    assert (line["step"], line["out"], line["mfu"], line["held_out"]) == (2, run, "unknown peak", None)
    assert "parameters, float32, on 1 × cpu (one device)" in printed.err
    assert "step 1 of 2: loss " in printed.err
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "step 2 is done already; nothing to do" in printed.err
    assert "loss by kind, nats" in printed.out
    assert main(["export", run, "--out", weights, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": weights, "parameters": line_parameters(printed.err)}


def line_parameters(said: str) -> int:
    """The number of parameters that the run printed."""
    return int(next(line for line in said.splitlines() if " parameters, " in line).split()[1].replace(",", ""))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny", "--out", "run"], "--data and --out are needed: a finished build, and the directory of the run"),
        (["tiny", "--data", "d", "--out", "gs://b/run"], "--out gs://b/run: a run needs a directory; mount the bucket"),
        (["huge", "--data", "d", "--out", "run"], "huge is no file and no preset; presets are 1.2b, 364m, 79m, tiny"),
        (["tiny", "--data", "nowhere", "--out", "run"], "there is no directory nowhere"),
        (
            ["tiny", "--overfit-one-batch"],
            "--overfit-one-batch is no longer an option; to see the loss near zero, train on",
        ),
        (["tiny", "--plan", "--device", "H100"], "--plan is no longer an option; gatokit train CONFIG --compile-only"),
        (["tiny", "--device=H100"], "--device is no longer an option; gatokit train CONFIG --compile-only shows"),
        (["tiny", "--topology", "v3:16x16"], "--topology belongs to --compile-only: give both or none"),
        (["tiny", "--data", "d", "--out", "run", "--steps", "0"], "argument --steps: '0' is no positive integer"),
        (
            ["tiny", "--data", "d", "--out", "run", "--process", "1"],
            "--coordinator, --processes and --process go together: give all three or none",
        ),
        (
            ["tiny", "--data", "d", "--out", "r", "--coordinator", "h:1", "--processes", "2", "--process", "2"],
            "--process 2 must be in 0 … 1, since --processes is 2",
        ),
    ],
)
def test_wrong_arguments(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err


def test_help_shows_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["train", "--help"])
    assert done.value.code == 0
    assert "model: tiny" in capsys.readouterr().out
