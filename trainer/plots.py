"""The curves of a run, drawn from its ``metrics.jsonl``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatokit.schemas.errors import DataError
from gatokit.trainer.metrics import Line, read_metrics

LOSS_PLOT = "loss.png"

_COLOURS = [*colormaps["tab10"].colors, *colormaps["tab20b"].colors]  # type: ignore[attr-defined]
_SMOOTHED_OVER = 40
"""A curve of more points than twice this is drawn pale, with its running mean over it."""


def draw_losses(out: Path, entropies: dict[str, float] | None = None) -> Path | None:
    """Draws ``loss.png``: training and held-out loss per dataset and per kind, and the learning rate.

    ``entropies`` (nats by kind) are drawn as lines beside the losses by kind. None where nothing was logged yet.
    """
    lines = read_metrics(out)
    trained = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "held_out" in line]
    if not trained:
        return None
    figure = Figure(figsize=(10, 11), layout="constrained")
    by_dataset, by_kind, rate = figure.subplots(3, 1, height_ratios=(4, 4, 1.4), sharex=True)
    datasets = sorted({name for line in trained for name in line["datasets"]})
    kinds = sorted({name for line in trained for name in line["kinds"]})
    _curve(by_dataset, trained, "all", "0.35", lambda line: line["loss"])
    for name, colour in zip(datasets, _COLOURS, strict=False):
        _curve(by_dataset, trained, name, colour, lambda line, name=name: line["datasets"].get(name, {}).get("loss"))
        _points(by_dataset, held_out, colour, lambda line, name=name: line["datasets"].get(name, {}).get("loss"))
    for name, colour in zip(kinds, _COLOURS, strict=False):
        _curve(by_kind, trained, name.replace("_", " "), colour, lambda line, name=name: line["kinds"].get(name))
        _points(by_kind, held_out, colour, lambda line, name=name: line["kinds"].get(name))
        if entropies and name in entropies:
            by_kind.axhline(entropies[name], color=colour, linestyle=(0, (1, 3)), linewidth=1)
    _curve(rate, trained, "learning rate", "0.2", lambda line: line["learning_rate"])
    _label(by_dataset, "loss by dataset, nats", held_out=bool(held_out), entropies=False)
    _label(by_kind, "loss by kind, nats", held_out=bool(held_out), entropies=bool(entropies))
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.grid(color="0.9")
    rate.spines[["top", "right"]].set_visible(False)
    rate.set_xlim(left=0)
    path = out / LOSS_PLOT
    try:
        figure.savefig(path, dpi=110, facecolor="white")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _values(lines: Sequence[Line], value: Any) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that have one."""
    found = [(line["step"], value(line)) for line in lines]
    known = [(step, number) for step, number in found if number is not None]
    return [step for step, _ in known], [number for _, number in known]


def _curve(axes: Axes, lines: Sequence[Line], name: str, colour: Any, value: Any) -> None:
    steps, values = _values(lines, value)
    if len(values) < 2 * _SMOOTHED_OVER:
        axes.plot(steps, values, color=colour, linewidth=1.4, label=name)
        return
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    width = max(2, len(values) // _SMOOTHED_OVER)
    smooth = [sum(part) / len(part) for at in range(len(values)) for part in [values[max(0, at - width + 1) : at + 1]]]
    axes.plot(steps, smooth, color=colour, linewidth=1.4, label=name)


def _points(axes: Axes, lines: Sequence[Line], colour: Any, value: Any) -> None:
    steps, values = _values([{"step": line["step"], **line["held_out"]} for line in lines], value)
    axes.plot(steps, values, color=colour, linestyle="--", linewidth=0.9, marker="o", markersize=4)


def _label(axes: Axes, title: str, *, held_out: bool, entropies: bool) -> None:
    axes.set_ylabel(title)
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if held_out:
        axes.plot([], [], color="0.35", linestyle="--", linewidth=0.9, marker="o", markersize=4, label="held out")
    if entropies:
        axes.plot([], [], color="0.35", linestyle=(0, (1, 3)), linewidth=1, label="unigram entropy")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
