"""The loss curves of a run as an image, drawn by Vega-Lite from its ``metrics.jsonl``."""

from collections.abc import Callable
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
    if not trained:
        return None
    held_out = [line["held_out"] | {"step": line["step"]} for line in lines if "held_out" in line]
    entropy = [{"step": line["step"], "datasets": {}, "kinds": entropies or {}} for line in (trained[0], trained[-1])]
    series = {"training": trained, "held out": held_out, "unigram entropy": entropy}

    def by_dataset(line: Line) -> Line:
        of_all = {"all": line["loss"]} if "learning_rate" in line else {}
        return of_all | {name: part["loss"] for name, part in line["datasets"].items()}

    panels = [
        _panel("loss by dataset, nats", 340, series, by_dataset),
        _panel("loss by kind, nats", 340, series, lambda line: line["kinds"]),
        _panel("learning rate", 110, {"training": trained}, lambda line: {"all": line["learning_rate"]}),
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


def _panel(title: str, height: int, series: dict[str, list[Line]], curves: Callable[[Line], Line]) -> dict[str, Any]:
    """One plot over steps; ``curves`` gives the value of each curve at a line of a series."""
    points = []
    for name, lines in series.items():
        size = -(-len(lines) // MOST_POINTS)
        for begin in range(0, len(lines), max(1, size)):
            group = lines[begin : begin + size]
            values = [curves(line) for line in group]
            for curve in sorted({curve for each in values for curve in each}):
                known = [each[curve] for each in values if each.get(curve) is not None]
                if known:
                    point = {"step": group[-1]["step"], "value": sum(known) / len(known)}
                    points.append(point | {"curve": curve.replace("_", " "), "series": name})
    dashes = {"domain": list(DASHES), "range": list(DASHES.values())}
    return {
        "data": {"values": points},
        "mark": {"type": "line", "clip": True, "point": {"size": 12}},
        "width": 620,
        "height": height,
        "encoding": {
            "x": {"field": "step", "type": "quantitative"},
            "y": {"field": "value", "type": "quantitative", "title": title},
            "color": {"field": "curve", "type": "nominal"},
            "strokeDash": {"field": "series", "type": "nominal", "scale": dashes, "legend": None},
        },
    }
