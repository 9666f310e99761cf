"""The commands of docs/robots.md run as they are written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "robots.md").read_text()


@pytest.mark.slow
def test_the_road_runs_as_written(gatokit, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    outputs = {}
    for line in re.findall(r"^\$ (.+)$", PAGE, re.M):
        program, verb, *words = shlex.split(line)
        if program == "python":
            subprocess.run([sys.executable, verb, *words], check=True, capture_output=True)
            continue
        assert program == "gatokit"
        ran = gatokit(verb, *words)
        assert ran.status == 0, f"{line}: {ran.err}"
        outputs[verb] = ran.out
    [dataset] = yaml.safe_load(Path("robot/arm.yaml").read_text())["datasets"]
    assert (dataset["last_step"], dataset["observe"]) == ("real", ["language_instruction"])
    assert dataset["keep"] == {"success": {"last_reward": 1}}
    assert dataset["splits"] == {"train": ["train"], "held_out": ["val"]}
    assert dataset["fields"]["language_embedding"] == {"as": "skip"}
    assert dataset["fields"]["observation/depth"]["as"] == "depth"
    assert set(outputs) == {"describe", "vocab", "scan", "build", "verify", "inspect"}
