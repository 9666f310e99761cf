"""``scores.png``: how many tasks reach which share of expert, and every task's score between chance and expert."""

from pathlib import Path

import vl_convert

from gatokit.evaluation.scores import Results, curve, overall
from gatokit.schemas.errors import DataError

CHART = "scores.png"
_SHARES = [float(share) for share in range(101)]


def draw_scores(results: Results, out: Path) -> None:
    """Draws the curve of each variant (Gato, figure 5), and a bar a task with its three mean returns."""
    curves = [
        {"share": share, "tasks": count, "rule/memory": variant}
        for variant in (results.variant, *results.others)
        for share, count in zip(_SHARES, curve(results.scored, variant, _SHARES), strict=True)
    ]
    bars = []
    for task in results.scored:
        score, anchors = task.scores[results.variant], task.anchors
        returns = ", ".join(f"{mean:.4g}" for mean in (anchors.random.mean, score.returns.mean, anchors.expert.mean))
        ends = {"low": score.normalized - score.error, "high": score.normalized + score.error}
        bars.append({"task": f"{task.task} ({returns})", "domain": task.domain, "score": score.normalized} | ends)
    scores = [task.scores[results.variant].normalized for task in results.scored]
    domain = [max(-50, min(0, *scores)), min(150, max(110, *scores))]
    x_title = "score: 0 is chance, 100 the expert; lines are standard errors"
    x = {"type": "quantitative", "scale": {"domain": domain, "nice": False}, "title": x_title}
    curve_chart = {
        "data": {"values": curves},
        "mark": {"type": "line", "interpolate": "step-before", "clip": True},
        "encoding": {
            "x": {"field": "share", "type": "quantitative", "title": "% of expert"},
            "y": {"field": "tasks", "type": "quantitative", "title": "tasks at or above", "axis": {"tickMinStep": 1}},
            "color": {"field": "rule/memory", "sort": None},
        },
    }
    bar_chart = {
        "data": {"values": bars},
        "title": "tasks, with the mean returns of random, policy and expert",
        "encoding": {"y": {"field": "task", "sort": "-x", "title": None}},
        "layer": [
            {
                "mark": {"type": "bar", "clip": True},
                "encoding": {"x": x | {"field": "score"}, "color": {"field": "domain"}},
            },
            {"mark": {"type": "rule", "clip": True}, "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}}},
        ],
    }
    chart = {
        "title": f"{results.variant}: {overall(results.scored, results.variant).normalized:.1f} % of expert",
        "background": "white",
        "config": {"axis": {"labelLimit": 400}, "view": {"continuousWidth": 500}},
        "resolve": {"scale": {"color": "independent"}},
        "vconcat": [curve_chart, bar_chart],
    }
    path = out / CHART
    temporary = path.with_name(f".{CHART}")
    try:
        temporary.write_bytes(vl_convert.vegalite_to_png(chart, scale=1.5))
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
