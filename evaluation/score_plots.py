"""``scores.png``: how many tasks reach which share of expert, and every task's score between chance and expert."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gatokit.evaluation.scores import Results, TaskScores, overall
from gatokit.schemas.errors import DataError

PLOT = "scores.png"

_COLOURS = colormaps["tab10"].colors  # type: ignore[attr-defined]
_LEAST = -50.0
"""Percent of expert below which a bar is cut."""
_MOST = 150.0


def draw_scores(results: Results, out: Path) -> Path:
    """Draws the file: the curve (Gato, figure 5) with its other variants pale, and a bar a task."""
    tasks = sorted(results.scored, key=lambda task: task.scores[results.variant].normalized)
    height = 3.2 + 0.8 + 0.3 * len(tasks)
    figure = Figure(figsize=(9, height), layout="constrained")
    above, bars = figure.subplots(2, 1, height_ratios=(3.2, height - 3.2))
    mean = overall(results.scored, results.variant)
    figure.suptitle(f"{_called(results.variant)}: {mean.normalized:.1f} % of expert, mean over domains", fontsize=11)
    _draw_curve(above, results)
    _draw_bars(bars, tasks, results)
    path = out / PLOT
    temporary = path.with_name(f".{PLOT}")
    try:
        figure.savefig(temporary, dpi=110, facecolor="white", format="png")
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _draw_curve(axes: Axes, results: Results) -> None:
    for variant in (*results.others, results.variant):
        values = sorted(task.scores[variant].normalized for task in results.scored)
        shares = [0.0, *(min(max(value, 0.0), 100.0) for value in values), 100.0]
        counts = [len([value for value in values if value >= share]) for share in shares]
        chosen = variant == results.variant
        axes.step(
            shares,
            counts,
            where="pre",
            color=_COLOURS[0] if chosen else _COLOURS[1 + results.others.index(variant)],
            linewidth=2.0 if chosen else 1.0,
            alpha=1.0 if chosen else 0.6,
            label=_called(variant),
            clip_on=False,
        )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, len(results.scored) * 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("% of expert")
    axes.set_ylabel("tasks at or above")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, reverse=True)


def _draw_bars(axes: Axes, tasks: list[TaskScores], results: Results) -> None:
    domains = sorted({task.domain for task in tasks})
    colours: dict[str, Any] = dict(zip(domains, _COLOURS * (1 + len(domains) // len(_COLOURS)), strict=False))
    scores = [task.scores[results.variant] for task in tasks]
    for domain in domains:
        rows = [row for row, task in enumerate(tasks) if task.domain == domain]
        axes.barh(
            rows,
            [scores[row].normalized for row in rows],
            xerr=[scores[row].error for row in rows],
            color=colours[domain],
            ecolor="0.25",
            error_kw={"linewidth": 1},
            height=0.7,
            label=domain,
        )
    axes.axvline(0, color="0.3", linewidth=1)
    axes.axvline(100, color="0.3", linewidth=1, linestyle="--")
    values = [score.normalized for score in scores]
    right = min(_MOST, max(110.0, *values) + 5)
    axes.set_xlim(max(_LEAST, min(0.0, *values) - 5 * (min(values) < 0)), right)
    _beside(axes, len(tasks) - 0.3, ("random", "policy", "expert"), "0.35")
    for row, (task, score) in enumerate(zip(tasks, scores, strict=True)):
        means = (task.anchors.random.mean, score.returns.mean, task.anchors.expert.mean)
        _beside(axes, row, [f"{mean:.4g}" for mean in means], "black")
    axes.set_ylim(-0.6, len(tasks) - 0.4)
    axes.set_yticks(range(len(tasks)), [task.task for task in tasks], fontsize=8)
    axes.set_xlabel("score: 0 is chance, 100 the expert; whiskers are standard errors")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _beside(axes: Axes, row: float, texts: Sequence[str], colour: str) -> None:
    """Three columns to the right of a row."""
    for column, text in enumerate(texts):
        axes.annotate(
            text,
            (1, row),
            xycoords=axes.get_yaxis_transform(),
            xytext=(45 + 45 * column, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color=colour,
            annotation_clip=False,
        )


def _called(variant: str) -> str:
    rule, _, memory = variant.partition("/")
    return f"{rule}, {memory}"
