"""Training and inspecting in an environment that has neither Beam nor TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
model: {layers: 1, width: 16, heads: 2, head_size: 8, hidden: 32}
context: 96
batch: 2
steps: 3
precision: float32
remat: none
log_every: 1
input: {weights: {metaworld: 1, control: 1}, patch_group_rows: 1}
optimizer: {learning_rate: 3e-3, warmup_steps: 1}
evaluation: {every: 3, batches: 1}
checkpoint: {every: 2}
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with ``gatokit[train]`` at the locked versions."""
    folder = tmp_path_factory.mktemp("alone") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    options = ["--python", str(folder / "bin" / "python"), "-c", str(ROOT / "requirements.lock")]
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", *options, f"{ROOT}[train]"]
    subprocess.run(command, check=True, cwd=folder)
    return folder / "bin"


def ran(alone: Path, *words: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    command = [str(alone / "gatokit"), *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment | {"JAX_PLATFORMS": "cpu"})
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
def test_training_and_inspecting_need_neither_beam_nor_tensorflow(alone: Path, built: Path, tmp_path: Path) -> None:
    for package in ("apache_beam", "tensorflow", "tensorflow_datasets"):
        missing = subprocess.run([alone / "python", "-c", f"import {package}"], capture_output=True, text=True)
        assert f"No module named '{package}'" in missing.stderr
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG)
    assert json.loads(ran(alone, "verify", built, "--json"))["ok"]
    assert "metaworld" in ran(alone, "inspect", built)
    line = json.loads(ran(alone, "train", config, "--data", built, "--out", tmp_path / "run", "--json"))
    assert line["step"] == 3
    assert set(line["held_out"]["datasets"]) == {"metaworld", "control"}
    shown = json.loads(ran(alone, "inspect", tmp_path / "run", "--step", 2, "--json"))
    assert len(shown["rows"]) == 2
    exported = json.loads(ran(alone, "export", tmp_path / "run", "--out", tmp_path / "weights", "--json"))
    assert exported["parameters"] > 0
    refused = subprocess.run([alone / "gatokit", "build", "x.yaml", "--out", "y"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "is not installed; run in a checkout of gatokit: pip install '.[build]'" in refused.stderr
