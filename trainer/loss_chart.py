"""The loss curves of a run as an image, drawn by Vega-Lite from its ``metrics.jsonl``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatokit.schemas.errors import DataError
from gatokit.trainer.metrics import Line, read_metrics

LOSS_CHART = "loss.png"
DASHES = {"training": [1, 0], "held out": [6, 3], "unigram entropy": [2, 2]}
"""Lengths of dashes and gaps, by series."""
MOST_POINTS = 400
"""Of a curve; a longer run is drawn as means over equal numbers of lines."""


def draw_losses(out: Path, entropies: dict[str, float] | None = None) -> Path | None:
    """Draws ``loss.png``: training and held-out loss per dataset and per kind, and the learning rate.

    ``entropies`` (nats by kind) become horizontal lines beside the losses by kind. Returns None if nothing was logged
    yet. Raises DataError if the file cannot be written.
    """
    import vl_convert

    lines = read_metrics(out)
    trained = [line for line in lines if "loss" in line]
    held_out = [line["held_out"] | {"step": line["step"]} for line in lines if "held_out" in line]
    if not trained:
        return None
    datasets, kinds, rates = _means([(line["step"], {"all": line["loss"]}) for line in trained], "training"), [], []
    for series, logged in (("training", trained), ("held out", held_out)):
        by_dataset = [
            (line["step"], {name: part["loss"] for name, part in line["datasets"].items()}) for line in logged
        ]
        datasets += _means(by_dataset, series)
        kinds += _means([(line["step"], line["kinds"]) for line in logged], series)
    for name, entropy in (entropies or {}).items():
        ends = [(line["step"], {name: entropy}) for line in (trained[0], trained[-1])]
        kinds += _means(ends, "unigram entropy")
    rates = _means([(line["step"], {"all": line["learning_rate"]}) for line in trained], "training")
    panels = [
        _panel("loss by dataset, nats", datasets, 340),
        _panel("loss by kind, nats", kinds, 340),
        _panel("learning rate", rates, 110),
    ]
    chart = {
        "title": {"text": "solid: training · dashed: held out · dotted: unigram entropy", "anchor": "start"},
        "vconcat": panels,
        "resolve": {"scale": {"color": "independent"}},
        "background": "white",
    }
    path = out / LOSS_CHART
    try:
        path.write_bytes(vl_convert.vegalite_to_png(chart, scale=1.5))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _means(lines: Sequence[tuple[int, Line]], series: str) -> list[Line]:
    """The points of one series: (step, value by curve) of each line, or of the means of several consecutive lines."""
    points = []
    size = -(-len(lines) // MOST_POINTS)
    for begin in range(0, len(lines), max(1, size)):
        group = lines[begin : begin + size]
        for curve in sorted({name for _, values in group for name in values}):
            known = [values[curve] for _, values in group if values.get(curve) is not None]
            if known:
                name = curve.replace("_", " ")
                points.append({"step": group[-1][0], "value": sum(known) / len(known), "curve": name, "series": series})
    return points


def _panel(title: str, points: list[Line], height: int) -> dict[str, Any]:
    return {
        "data": {"values": points},
        "mark": {"type": "line", "clip": True, "point": {"size": 12}},
        "width": 620,
        "height": height,
        "encoding": {
            "x": {"field": "step", "type": "quantitative"},
            "y": {"field": "value", "type": "quantitative", "title": title},
            "color": {"field": "curve", "type": "nominal"},
            "strokeDash": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": list(DASHES), "range": list(DASHES.values())},
                "legend": None,
            },
        },
    }
