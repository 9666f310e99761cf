"""Compiling for a TPU slice on a machine without one; with libtpu installed, for real."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from gatokit.schemas.errors import ConfigError
from gatokit.schemas.run import RunConfig
from gatokit.trainer.compile import compile_only, compiled_text

CONFIG = RunConfig(model="tiny", context=256, batch=64, steps=20_000)

PROGRAM = """
import json
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.run import RunConfig
from gatokit.trainer.compile import compile_only
config = RunConfig(model="tiny", context=256, batch=64, steps=20_000, mesh={"fsdp": 2, "tensor": 2})
try:
    compile_only(config, "v5e:3x5")
except ConfigError as error:
    print(json.dumps(str(error)))
print(json.dumps(compile_only(config, "v3:2x2")))
"""


@pytest.mark.parametrize("topology", ["", "h100", "v3:", "v3:16", "tpu v3:2x2"])
def test_no_slice(topology: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a TPU slice such as v3:16x16"):
        compile_only(CONFIG, topology)


def test_without_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs libtpu, with or without a TPU; .*pip install '\.\[tpu\]'"):
        compile_only(CONFIG, "v3:2x2")


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
