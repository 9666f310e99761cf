"""Compiling the step for this machine, and for a TPU slice without one; with libtpu installed, for real."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from runs import config, write_config

from gatokit.cli.main import main
from gatokit.cli.train import compiled_text, tpu_slice
from gatokit.schemas.errors import ConfigError
from gatokit.trainer.mesh import make_mesh
from gatokit.trainer.model import count
from gatokit.trainer.step import Trainer

PROGRAM = """
import json
from gatokit.cli.train import tpu_slice
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.run import RunConfig
from gatokit.trainer.cost import compile_only
config = RunConfig(model="tiny", context=256, batch=64, steps=20_000, mesh={"fsdp": 2, "tensor": 2})
try:
    tpu_slice("v5e:3x5")
except ConfigError as error:
    print(json.dumps(str(error)))
print(json.dumps(compile_only(config, tpu_slice("v3:2x2")[1])))
"""


def test_for_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_config(tmp_path))
    assert main(["train", path, "--compile-only", "--json"]) == 0
    compiled = json.loads(capsys.readouterr().out)
    places = [compiled[name] for name in ("topology", "device", "devices", "hosts", "device_bytes")]
    assert places == [None, "cpu", 1, 1, None]
    assert compiled["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    shape = [compiled[name] for name in ("batch", "context", "microbatches", "remat", "patch_slots", "vocabulary_size")]
    assert shape == [4, 48, 1, "none", 24, 33_025]
    settings = config(tmp_path)
    trainer = Trainer(settings, 33_025, 1, 24, make_mesh(settings.mesh, jax.devices()))
    held = trainer.abstract_state, trainer.abstract_batch
    # The compiler pads some arrays, and leaves out those that the step does not read.
    of_arguments = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held))
    assert compiled["argument_bytes"] == pytest.approx(of_arguments, rel=0.01)
    assert compiled["parameters"] == count(trainer.table)
    assert compiled["output_bytes"] == pytest.approx(12 * (compiled["parameters"] + 255 * 16), rel=0.01)
    assert compiled["temporary_bytes"] > 0
    assert compiled["flops"] > 6 * 4 * 48 * 33_025 * 16
    assert main(["train", path, "--compile-only"]) == 0
    assert capsys.readouterr().out.startswith("this machine: 1 device (cpu) on 1 host; mesh data 1, fsdp 1, tensor 1\n")


def test_a_mesh_that_this_machine_does_not_fill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(write_config(tmp_path, mesh={"tensor": 2})), "--compile-only"]) == 2
    assert "does not fill 1 device: their product must be that number" in capsys.readouterr().err


@pytest.mark.parametrize("topology", ["", "h100", "v3:", "v3:16", "tpu v3:2x2"])
def test_no_slice(topology: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a TPU slice such as v3:16x16"):
        tpu_slice(topology)


def test_without_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs libtpu, with or without a TPU; .*pip install '\.\[tpu\]'"):
        tpu_slice("v3:2x2")


def test_what_people_read() -> None:
    compiled = {
        "topology": "v3:16x16", "device": "TPU v3", "devices": 512, "hosts": 64,
        "mesh": {"data": 32, "fsdp": 16, "tensor": 1},
        "batch": 512, "context": 1024, "microbatches": 1, "remat": "full", "patch_slots": 256,
        "vocabulary_size": 33_025,
        "parameters": 1_177_932_288, "argument_bytes": 3 << 28, "temporary_bytes": 3 << 29, "output_bytes": 3 << 28,
        "device_bytes": 16 << 30, "flops": 3.8707e15, "seconds": 73.6,
    }  # fmt: skip
    assert compiled_text(compiled).splitlines() == [
        "v3:16x16: 512 devices (TPU v3) on 64 hosts; mesh data 32, fsdp 16, tensor 1",
        "batch 512 x 1024 tokens, microbatches 1, remat full, 256 patch slots a group, 33025 ids",
        "1,177,932,288 parameters",
        "2.25 GiB of 16.0 GiB a device: arguments 0.75 GiB, temporaries 1.50 GiB, output 0.75 GiB in the arguments' "
        "place",
        "3,870.7 TFLOP a step, 7.56 a device",
        "compiled in 74 s",
    ]


@pytest.mark.tpu
def test_a_small_slice() -> None:
    """In a process of its own: libtpu reads its environment once."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=dict(os.environ), capture_output=True, text=True, check=True
    )
    refused, compiled = map(json.loads, run.stdout.splitlines())
    assert refused.startswith("topology v5e:3x5: ")
    assert (compiled["devices"], compiled["hosts"], compiled["mesh"]) == (8, 1, {"data": 2, "fsdp": 2, "tensor": 2})
    assert compiled["parameters"] == 5_101_952
    # Parameters and two moments in float32, divided over fsdp and tensor but for what is small.
    assert 12 * 5_101_952 / 4 < compiled["argument_bytes"] < 0.5 * 12 * 5_101_952
    assert compiled["temporary_bytes"] > 0
