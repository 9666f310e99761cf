"""Sums of steps, the lines of the file and how it is cut back."""

import json
from pathlib import Path

import numpy as np
import pytest

from gatokit.schemas.errors import MalformedError
from gatokit.storage.run_directory import read_metrics
from gatokit.trainer.cost import peak
from gatokit.trainer.loss import Sums
from gatokit.trainer.metrics import Interval, MetricsFile, float64, losses


def sums(scale: float = 1.0) -> Sums:
    """Two datasets; four targets of text and one of each kind of action."""
    kinds = np.zeros((2, 8))
    kinds[:, 1], kinds[:, 6], kinds[:, 7] = (8.0, 4), (3.0, 1), (1.0, 1)
    found = Sums(
        loss=12.0, weight=6.0, dataset_loss=[9.0, 3.0], dataset_targets=[4, 2], kind_loss=kinds[0],
        kind_targets=kinds[1], first_action_loss=3.0, first_action_targets=1, dataset_tokens=[30, 10],
        dataset_positions=[40, 40], patches=2, redraws=[1, 0], unusable=0,
    )  # fmt: skip
    return float64([np.asarray(value) * scale for value in found])


def test_means_over_an_interval_go_through_a_checkpoint_unchanged() -> None:
    whole, part = Interval(), Interval()
    for interval in (whole, part):
        interval.add(2.0, 0.1, sums())
    assert Interval().saved() == {}
    part = Interval.restored(json.loads(json.dumps(part.saved())))
    for interval in (whole, part):
        interval.add(1.0, 0.2, sums(3.0))
    assert whole.saved() == part.saved()
    line = whole.line(["control", "text"])
    assert (
        line.items()
        >= {
            "loss": 1.5,
            "gradient_norm": (0.1 + 0.2) / 2,
            "datasets": {
                "control": {"share": 16 / 24, "loss": 36 / 16, "fill": 0.75},
                "text": {"share": 8 / 24, "loss": 12 / 8, "fill": 0.25},
            },
            "kinds": {"text": 2.0, "discrete_action": 3.0, "continuous_action": 1.0},
            "action_loss": 2.0,
            "first_action_loss": 3.0,
            "redraws": {"control": 4},
        }.items()
    )


def test_sums_of_another_version_are_not_gone_on_with() -> None:
    interval = Interval()
    interval.add(2.0, 0.1, sums())
    saved = interval.saved()
    assert Interval.restored(saved | {"sums": saved["sums"][:-1]}) == Interval()
    assert Interval.restored({}) == Interval()


def test_nothing_is_the_mean_of_no_targets() -> None:
    line = losses(sums(0.0), ["control", "text"])
    assert line["datasets"]["control"] == {"share": None, "loss": None, "fill": None}
    assert (line["kinds"], line["action_loss"], line["first_action_loss"]) == ({}, None, None)


def test_the_file_is_cut_back_to_a_step(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, 0)
    for step in (1, 2, 3):
        file.write({"step": step, "loss": 1 / step})
    file.close()
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    file = MetricsFile(tmp_path, 2)
    file.write({"step": 3, "loss": 7.0})
    file.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 7.0}]


@pytest.mark.parametrize(
    "line", [b"[1]", b"7", b"{}", b'{"step": "1"}', b'{"step": true}', b'{"step"', b"", b"\xff", b"[" * 100_000]
)
def test_a_line_that_is_no_metrics_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(MalformedError, match=r"metrics\.jsonl: line 2 is no metrics of a step; remove the line"):
        read_metrics(tmp_path)


def test_lines_of_an_early_stop_do_not_stay(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, 0)
    file.write({"step": 5, "loss": 1.0})
    file.write({"step": 7, "loss": 1.0, "partial": True})
    file.close()
    MetricsFile(tmp_path, 7).close()
    assert read_metrics(tmp_path) == [{"step": 5, "loss": 1.0}]


def test_tensorboard_gets_the_numbers_of_a_line_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("tensorboardX.SummaryWriter.add_scalar", lambda board, *scalar: shown.append(scalar))
    file = MetricsFile(tmp_path, 0)
    line = {"step": 3, "loss": 1.5, "mfu": "unknown peak", "kinds": {"text": 2.0}, "datasets": {"a": {"loss": None}}}
    file.write(line)
    file.close()
    assert shown == [("loss", 1.5, 3), ("kinds/text", 2.0, 3)]


@pytest.mark.parametrize(
    ("device", "precision", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("TPU v3", "bfloat16", 61.5e12),
        ("NVIDIA H100 80GB HBM3", "float32", None),
        ("cpu", "bfloat16", None),
    ],
)
def test_peaks(device: str, precision: str, found: float | None) -> None:
    assert peak(device, precision) == found
