"""A run that is stopped or killed goes on as if it had not been."""

import signal
from pathlib import Path

from runs import Silent, config, lines, start, until, write_config

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
