"""The unigram entropy of targets, and the picture of the losses."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from runs import config

from gatokit.loader.mixture import open_mixture
from gatokit.loader.windows import Windows
from gatokit.schemas.tokens import TokenKind
from gatokit.trainer.loss_chart import draw_losses
from gatokit.trainer.metrics import unigram_entropies


def test_entropy_is_that_of_counted_targets(mixed: Path, tmp_path: Path) -> None:
    run = config(tmp_path)
    windows = Windows(open_mixture([str(mixed)], run.input.weights), run)
    counts: dict[str, dict[int, int]] = {}
    for step in range(3):
        batch = windows.batch(step, range(run.batch))
        for kind, target in zip(batch.target_kinds.ravel().tolist(), batch.targets.ravel().tolist(), strict=True):
            if kind:
                of_kind = counts.setdefault(TokenKind(kind).name.lower(), {})
                of_kind[target] = of_kind.get(target, 0) + 1
    expected = {}
    for name, of_kind in counts.items():
        total = sum(of_kind.values())
        expected[name] = sum(-count / total * np.log(count / total) for count in of_kind.values())
    assert set(expected) == {"text", "discrete_action", "continuous_action"}
    assert unigram_entropies(windows, run, 3) == pytest.approx(expected)


def test_losses_are_drawn(tmp_path: Path) -> None:
    assert draw_losses(tmp_path) is None
    lines = [
        {
            "step": step,
            "loss": 5 / step,
            "learning_rate": 1e-3,
            "datasets": {"a": {"share": 1.0, "loss": 5 / step}, "b": {"share": None, "loss": None}},
            "kinds": {"text": 5 / step},
        }
        for step in range(1, 120)
    ]
    held_out = {"loss": 1.0, "datasets": {"a": {"loss": 1.0, "kinds": {"text": 1.0}}}, "kinds": {"text": 1.0}}
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 119, "held_out": held_out}])
    )
    path = draw_losses(tmp_path, {"text": 2.0})
    assert path is not None
    picture = cv2.imread(str(path))
    assert picture is not None
    assert min(picture.shape[:2]) > 900
    assert (picture == 255).all(axis=2).mean() > 0.7
