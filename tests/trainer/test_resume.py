"""A run that is stopped or killed goes on as if it had not been."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import killed_train
import pytest
from runs import ENVIRONMENT, Silent, config, lines, start, until, write_config

from gatokit.trainer.train import train


def test_stopped_and_killed_runs_go_on_bit_for_bit(mixed: Path, tmp_path: Path) -> None:
    changes = {"evaluation": {"every": 8, "batches": 1}, "log_every": 3, "checkpoint": {"every": 5, "keep_last": 2}}
    path, out = write_config(tmp_path, **changes), tmp_path / "run"
    words = (path, "--data", mixed, "--out", out)

    process = start(*words)
    until(process, "step 3 of 1000")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    stopped = max(int(item.name) for item in (out / "checkpoints").iterdir())
    assert f"SIGTERM after step {stopped}, which is saved: run the same command to go on" in said

    process = start(*words)
    until(process, f"step {(stopped + 6) // 3 * 3} of 1000")
    process.kill()
    process.communicate()
    newest = max(int(item.name) for item in (out / "checkpoints").iterdir() if item.name.isdigit())

    last = newest + 4
    report = Silent()
    found = train(config(tmp_path, **changes), [str(mixed)], out, report, steps=last)
    assert f"goes on from step {newest}" in report.lines
    assert (found.step, found.stopped) == (last, False)

    whole = tmp_path / "whole"
    train(config(tmp_path, **changes), [str(mixed)], whole, Silent(), steps=last)
    assert lines(out) == lines(whole)
    assert [line["step"] for line in lines(whole) if "loss" in line] == [
        *range(3, last + 1, 3),
        *([last] if last % 3 else []),
    ]
    assert [line["step"] for line in lines(whole) if "held_out" in line] == list(range(8, last + 1, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "count", "kept"),
    [
        ("compiling", 1, []),
        ("drawing", 8, [3]),
        ("evaluating", 2, [3]),
        ("evaluating", 4, [3, 6]),
        ("saving", 2, [3]),
        ("saved", 2, [3]),
    ],
)
def test_a_kill_at_any_moment_loses_the_steps_since_the_last_checkpoint_alone(
    mixed: Path, tmp_path: Path, moment: str, count: int, kept: list[int]
) -> None:
    changes = {"evaluation": {"every": 3, "batches": 1}, "checkpoint": {"every": 3}}
    words = (write_config(tmp_path, **changes), "--data", mixed, "--out", tmp_path / "run", "--steps", 8)
    command = [sys.executable, killed_train.__file__, moment, str(count), *map(str, words)]
    ended = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    checkpoints = tmp_path / "run" / "checkpoints"
    found = sorted(int(item.name) for item in checkpoints.glob("*") if item.name.isdigit())
    assert found[: len(kept)] == kept  # one that was being written may be complete
    report = Silent()
    train(config(tmp_path, **changes), [str(mixed)], tmp_path / "run", report, steps=8)
    assert (
        (f"goes on from step {found[-1]}" in report.lines)
        if found
        else not any("goes on" in line for line in report.lines)
    )
    train(config(tmp_path, **changes), [str(mixed)], tmp_path / "whole", Silent(), steps=8)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "whole") if "held_out" in line] == [3, 6]
