"""Pictures of a training run and of an evaluation, drawn by Vega-Lite."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gatokit.storage.files import write_atomically, writing
from gatokit.storage.run_directory import read_metrics

LOSS_CHART = "loss.png"
SCORES_CHART = "scores.png"
DASHES = {"training": [1, 0], "held out": [6, 3], "unigram entropy": [2, 2]}
"""Lengths of dashes and gaps, by series."""
MOST_POINTS = 400
"""Of a curve; a longer run is drawn as means over equal numbers of lines."""

Row = dict[str, Any]


def draw_losses(out: Path, entropies: Mapping[str, float] | None = None) -> None:
    """Draws ``loss.png`` from the metrics of the run in ``out``: training and held-out loss per dataset and per kind,
    and the learning rate. ``entropies`` (nats by kind) become horizontal lines beside the losses by kind.

    Draws nothing if no step was logged. Raises DataError if the file cannot be written.
    """
    lines = read_metrics(out)
    trained = [line for line in lines if "loss" in line]
    if not trained:
        return
    held_out = [line["held_out"] | {"step": line["step"]} for line in lines if "held_out" in line]
    entropy = [{"step": line["step"], "datasets": {}, "kinds": entropies or {}} for line in (trained[0], trained[-1])]
    series = {"training": trained, "held out": held_out, "unigram entropy": entropy}

    def by_dataset(line: Row) -> Row:
        of_all = {"all": line["loss"]} if "learning_rate" in line else {}
        return of_all | {name: part["loss"] for name, part in line["datasets"].items()}

    panels = [
        _loss_panel("loss by dataset, nats", 340, series, by_dataset),
        _loss_panel("loss by kind, nats", 340, series, lambda line: line["kinds"]),
        _loss_panel("learning rate", 110, {"training": trained}, lambda line: {"all": line["learning_rate"]}),
    ]
    title = {"text": "solid: training · dashed: held out · dotted: unigram entropy", "anchor": "start"}
    _draw(out / LOSS_CHART, panels, title=title)


def draw_scores(out: Path, title: str, curves: list[Row], tasks: list[Row]) -> None:
    """Draws ``scores.png``: curves of the ``tasks`` at or above each ``share`` of expert by ``rule/memory`` (Gato,
    figure 5), and bars of the ``score`` of each ``task`` by ``domain``, with lines from ``low`` to ``high``.

    Raises DataError if the file cannot be written.
    """
    scores = [task["score"] for task in tasks]
    domain = [max(-50, min(0, *scores)), min(150, max(110, *scores))]
    x_title = "score: 0 is chance, 100 the expert; lines are standard errors"
    x = {"type": "quantitative", "scale": {"domain": domain, "nice": False}, "title": x_title}
    curve_panel = {
        "data": {"values": curves},
        "mark": {"type": "line", "interpolate": "step-before", "clip": True},
        "encoding": {
            "x": {"field": "share", "type": "quantitative", "title": "% of expert"},
            "y": {"field": "tasks", "type": "quantitative", "title": "tasks at or above", "axis": {"tickMinStep": 1}},
            "color": {"field": "rule/memory", "sort": None},
        },
    }
    bars = {
        "mark": {"type": "bar", "clip": True},
        "encoding": {"x": x | {"field": "score"}, "color": {"field": "domain"}},
    }
    errors = {"mark": {"type": "rule", "clip": True}, "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}}}
    task_panel = {
        "data": {"values": tasks},
        "title": "tasks, with the mean returns of random, policy and expert",
        "encoding": {"y": {"field": "task", "sort": "-x", "title": None}},
        "layer": [bars, errors],
    }
    config = {"axis": {"labelLimit": 400}, "view": {"continuousWidth": 500}}
    _draw(out / SCORES_CHART, [curve_panel, task_panel], title=title, config=config)


def _loss_panel(title: str, height: int, series: dict[str, list[Row]], curves: Callable[[Row], Row]) -> Row:
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


def _draw(path: Path, panels: list[Row], **chart: Any) -> None:
    """Draws panels below each other, each with colours of its own."""
    import vl_convert

    chart |= {"vconcat": panels, "resolve": {"scale": {"color": "independent"}}, "background": "white"}
    with writing(path):
        write_atomically(path, vl_convert.vegalite_to_png(chart, scale=1.5))
