"""The picture of a run's losses."""

import json
from pathlib import Path

import cv2

from gatokit.inspection.report.charts import draw_losses


def test_losses_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    draw_losses(tmp_path)
    assert not path.exists()
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
    lines.append({"step": 119, "held_out": held_out})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_losses(tmp_path, {"text": 2.0})
    picture = cv2.imread(str(path))
    assert picture is not None
    assert min(picture.shape[:2]) > 900
    assert (picture == 255).all(axis=2).mean() > 0.7
