"""Meshes over eight virtual devices compute what one device computes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import ENVIRONMENT

FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)


def run(*meshes: str) -> dict[str, Any]:
    """What ``eight_devices`` printed; virtual devices must be asked for before JAX starts."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.trainer.eight_devices", *meshes],
        env=os.environ | ENVIRONMENT | {"XLA_FLAGS": FLAGS},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return run("all")


def test_a_mesh_of_all_axes_changes_nothing_but_rounding(found: dict[str, Any]) -> None:
    check_same(found, "all", 8)


@pytest.mark.slow
def test_other_meshes_change_nothing_but_rounding() -> None:
    devices = {"data": 8, "fsdp": 8, "tensor": 4, "microbatches": 1}
    found = run(*devices)
    for mesh, count in devices.items():
        check_same(found, mesh, count)


def check_same(found: dict[str, Any], mesh: str, devices: int) -> None:
    """Both steps' losses, and the parameters and moments after them, are those of one device and one microbatch."""
    assert found[mesh]["devices"] == devices
    for step in ("first", "second"):
        one, other = found["one device"][step], found[mesh][step]
        assert other["taken"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-5)
        assert other["learning_rate"] == one["learning_rate"]
        for name, value in one["sums"].items():
            assert other["sums"][name] == pytest.approx(value, rel=1e-5), name
    assert {name for name, far in found[mesh]["far"].items() if far > 1e-5} == set()


def test_stochastic_depth_is_only_for_training(found: dict[str, Any]) -> None:
    assert found["evaluated"]["loss"] != pytest.approx(found["one device"]["first"]["sums"]["loss"], rel=1e-4)
    assert found["evaluated"]["kind_targets"] == found["one device"]["first"]["sums"]["kind_targets"]


def test_initial_parameters_do_not_depend_on_the_mesh(found: dict[str, Any]) -> None:
    assert {name for name, far in found["initialized"].items() if far > 1e-6} == set()


def test_a_repeated_step_gives_the_same_bits(found: dict[str, Any]) -> None:
    assert found["repeated"]


def test_nothing_changes_when_the_loss_is_no_number(found: dict[str, Any]) -> None:
    assert found["broken"] == {"taken": False, "step": 1, "unchanged": True}
