"""Builds and scans that a signal ends: one sentence, the signal's exit status, no lock, no process, and the same
command goes on."""

import fcntl
import itertools
import os
import pty
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from gatokit.pipelines.run import build, scan
from tests.faults.conftest import HANG_SECONDS, ONCE

MOMENTS = {
    "start": "gatokit.pipelines.run.plan_datasets",
    "scan": "gatokit.pipelines.documents.reader._batch",
    "plan": "gatokit.pipelines.run.plan_shards",
    "shards": "gatokit.pipelines.shards.writer.ShardWriter.add",
    "finish": "gatokit.pipelines.run.finish_dataset",
}
FAULT = """
if not CHILD:
    import pkgutil
    owner = pkgutil.resolve_name({owner!r})
    real = owner.{name}
    def first(*arguments, **options):
        if once():
            {act}
        return real(*arguments, **options)
    owner.{name} = first
"""
CELLS = list(itertools.product(MOMENTS, ("kill", "killpg"), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), (1, 2)))
SAID = "gatokit: interrupted; run the same command again to go on"


def fault(moment: str, act: str) -> str:
    owner, _, name = MOMENTS[moment].rpartition(".")
    return FAULT.format(owner=owner, name=name, act=act)


def processes_of(session: int) -> list[str]:
    """Command lines of the processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, *_, of = path.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(path.with_name("cmdline").read_text())
    return found


@pytest.mark.parametrize(
    ("moment", "kill", "number", "workers"),
    [
        pytest.param(*cell, marks=[] if cell == ("shards", "killpg", signal.SIGINT, 2) else [pytest.mark.slow])
        for cell in CELLS
    ],
)
def test_a_signal_at_any_moment_of_a_build(moment, kill, number, workers, tmp_path, texts, command, contents):
    out = tmp_path / "out"
    act = f"os.{kill}(os.getsid(0), {int(number)})"
    with command("build", texts, "--out", out, "--workers", workers, fault=fault(moment, act)) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
        assert processes_of(process.pid) == []
    assert process.returncode == 128 + number, said
    assert said.splitlines()[-1] == SAID
    assert "Traceback" not in said
    assert not (out / ".lock").exists()
    assert not (out / "manifest.json").exists()
    build(texts, out)
    build(texts, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "scan", "plan", "finish"])
def test_a_signal_at_any_moment_of_a_scan(moment, tmp_path, texts, command, contents):
    out = tmp_path / "out"
    act = f"os.kill(os.getsid(0), {int(signal.SIGTERM)})"
    with command("scan", texts, "--out", out, fault=fault(moment, act)) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
        assert processes_of(process.pid) == []
    assert (process.returncode, said.splitlines()[-1]) == (128 + signal.SIGTERM, SAID)
    assert not (out / ".lock").exists()
    scan(texts, out)
    scan(texts, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["scan"])
def test_ctrl_c_on_a_terminal(moment, tmp_path, texts, contents):
    out, told, go = tmp_path / "out", tmp_path / "told", tmp_path / "go"
    os.mkfifo(told)
    os.mkfifo(go)
    act = f"open({str(told)!r}, 'w').close(); open({str(go)!r}).read(1)"
    (tmp_path / "sitecustomize.py").write_text(ONCE.format(mark=str(tmp_path / "mark")) + fault(moment, act))
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [Path(sys.executable).parent / "gatokit", "build", texts, "--out", out, "--workers", "2"],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "120"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inside)
    said = b""
    try:
        with open(told):  # until the moment has come
            pass
        os.write(terminal, b"\x03")
        on = os.open(go, os.O_RDWR)
        os.write(on, b" ")
        with suppress(OSError):  # at the end
            while data := os.read(terminal, 1 << 16):
                said += data
        assert process.wait(HANG_SECONDS) == 130, said
        assert processes_of(process.pid) == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(terminal)
    os.close(on)
    assert said.decode(errors="replace").splitlines()[-1] == SAID
    assert b"Traceback" not in said
    assert not (out / ".lock").exists()
    build(texts, out)
    build(texts, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
