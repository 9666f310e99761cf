"""One run on several processes: the same batches, the same losses to rounding, one way to stop."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_process import STEPS, digest
from runs import ENVIRONMENT, Silent, config, lines, start, until, write_config

from gatokit.loader.mixture import open_mixture
from gatokit.loader.windows import Windows
from gatokit.trainer.distributed import blame
from gatokit.trainer.train import train

BATCH = 8
"""Rows: two for each of four processes."""


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def of_processes(count: int, folder: Path, data: Path, out: Path, last: int) -> dict[str, Any]:
    """What the first of ``count`` processes says that train together."""
    at, path = free_port(), write_config(folder, batch=BATCH)
    script = Path(__file__).with_name("one_process.py")
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, (script, at, count, number, path, data, out, last))],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * count, said[0][1][-3000:] + said[-1][1][-3000:]
    return json.loads(said[0][0].splitlines()[-1])


def test_two_processes_make_the_same_batches_as_one(mixed: Path, tmp_path: Path) -> None:
    run = config(tmp_path, batch=BATCH)
    windows = Windows(open_mixture([str(mixed)], run.input.weights), run)
    together = of_processes(2, tmp_path, mixed, tmp_path / "together", 0)
    assert (together["processes"], together["rows"]) == (2, 4)
    assert together["digests"] == [digest(windows.batch(step, range(BATCH))) for step in STEPS]


@pytest.mark.slow
def test_two_processes_then_four_then_one_train_as_one(mixed: Path, tmp_path: Path) -> None:
    run, out = config(tmp_path, batch=BATCH), tmp_path / "together"
    windows = Windows(open_mixture([str(mixed)], run.input.weights), run)
    train(run, [str(mixed)], tmp_path / "alone", Silent(), steps=9)
    of_processes(2, tmp_path, mixed, out, 3)
    together = of_processes(4, tmp_path, mixed, out, 6)
    assert (together["processes"], together["rows"]) == (4, 2)
    assert together["digests"] == [digest(windows.batch(step, range(BATCH))) for step in STEPS]
    train(run, [str(mixed)], out, Silent(), steps=9)
    found = lines(tmp_path / "alone"), lines(out)
    assert [len(each) for each in found] == [9, 9]
    for one, other in zip(*found, strict=True):
        assert (one["step"], one["redraws"]) == (other["step"], other["redraws"])
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
        shares = [{name: item["share"] for name, item in line["datasets"].items()} for line in (one, other)]
        assert shares[0] == shares[1]


@pytest.mark.slow
def test_sigterm_on_one_host_saves_on_all(mixed: Path, tmp_path: Path) -> None:
    at, path = free_port(), write_config(tmp_path, batch=BATCH)
    words = (path, "--data", mixed, "--out", tmp_path / "run", "--coordinator", at, "--processes", 2, "--process")
    first, second = (start(*words, number) for number in range(2))
    until(first, "step 3 of 1000")
    second.send_signal(signal.SIGTERM)
    said = [process.communicate()[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [128 + signal.SIGTERM] * 2
    newest = max(int(item.name) for item in (tmp_path / "run" / "checkpoints").iterdir())
    assert f"SIGTERM after step {newest}, which is saved" in said[0]
    report = Silent()
    train(config(tmp_path, batch=BATCH), [str(mixed)], tmp_path / "run", report, steps=newest + 1)
    assert f"goes on from step {newest}" in report.lines


@pytest.mark.slow
def test_the_host_that_hangs_is_named(mixed: Path, tmp_path: Path) -> None:
    at, path = free_port(), write_config(tmp_path, batch=BATCH)
    words = (path, "--data", mixed, "--out", tmp_path / "run", "--timeout", 40, "--coordinator", at, "--processes", 2)
    first, second = (start(*words, "--process", number) for number in range(2))
    until(first, "step 3 of 1000")
    second.send_signal(signal.SIGSTOP)
    try:
        _, said = first.communicate()
        assert first.returncode == 1
        [sentence] = [line for line in said.splitlines() if line.startswith("gatokit: ")]
        assert sentence.startswith("gatokit: no step ended for 40 s; behind the others, with ")
        assert f" steps begun: process 1 on {socket.gethostname()}, waiting for " in sentence
    finally:
        second.kill()
        second.communicate()


@pytest.mark.slow
def test_a_host_that_fails_ends_the_others_with_its_sentence(mixed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(mixed, broken)
    next((broken / "books").glob("*.arrayrecord")).unlink()
    at, path = free_port(), write_config(tmp_path, batch=BATCH)
    words = (path, "--out", tmp_path / "run", "--coordinator", at, "--processes", 2, "--process")
    first = start(*words, 0, "--data", mixed)
    second = start(*words, 1, "--data", broken)
    said = [process.communicate()[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [1, 1]
    assert said[1].startswith("gatokit: the shard ")
    assert "gatokit: process 1 ended the run: the shard " in said[0]


def test_who_is_blamed() -> None:
    ahead = {"host": "a", "begun": 7, "doing": "waiting for step 7"}
    behind = {"host": "b", "begun": 5, "doing": "waiting for the input of step 6"}
    assert blame({0: ahead, 1: behind, 2: ahead}, 3, 60) == (
        "no step ended for 60 s; behind the others, with 5 steps begun: process 1 on b, waiting for the input of step 6"
    )
    assert blame({0: ahead, 2: behind}, 3, 60) == "no step ended for 60 s: process 1 never began"
    assert blame({0: ahead, 1: ahead}, 2, 60) == "no step ended for 60 s, and no process is behind: all began 7 steps"
