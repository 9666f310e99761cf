"""Builds that a signal ends: one sentence, the signal's exit status, no lock, and the same command goes on."""

import itertools
import signal

import pytest

from gatokit.pipelines.run import build
from tests.faults.conftest import HANG_SECONDS

FAULT = """
if not CHILD:
    from gatokit.pipelines.shards import writer as shards
    real = shards.ShardWriter.add
    def add(self, *arguments, **options):
        if once():
            os.{kill}(os.getsid(0), {number})
        return real(self, *arguments, **options)
    shards.ShardWriter.add = add
"""
CELLS = list(itertools.product(("kill", "killpg"), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), (1, 2)))
DEFAULT = (("killpg", signal.SIGINT, 2), ("kill", signal.SIGTERM, 1))


@pytest.mark.parametrize(
    ("kill", "number", "workers"),
    [pytest.param(*cell, marks=[] if cell in DEFAULT else [pytest.mark.slow]) for cell in CELLS],
)
def test_a_signal_while_shards_are_written(kill, number, workers, tmp_path, texts, command, contents):
    out = tmp_path / "out"
    fault = FAULT.format(kill=kill, number=int(number))
    with command("build", texts, "--out", out, "--workers", workers, fault=fault) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 128 + number, said
    assert said.splitlines()[-1] == "gatokit: interrupted; run the same command again to go on"
    assert "Traceback" not in said
    assert not (out / ".lock").exists()
    assert not (out / "manifest.json").exists()
    build(texts, out)
    build(texts, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
