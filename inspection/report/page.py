"""A finished build or scan as one HTML file that opens without a network: data, script, styles and Vega inside.

Each index is read once, and once more for every two million rows of tasks.
"""

import base64
import gzip
import html
import importlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from importlib import resources
from typing import Any

import numpy as np

from gatokit.inspection.card import card
from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.inspection.report.datasets import Shares, count_index, dataset_facts
from gatokit.inspection.report.excerpts import Budget, film
from gatokit.inspection.report.tasks import STEPS, TaskFacts, facts
from gatokit.schemas.progress import Progress
from gatokit.schemas.words import visible_texts

_EXCERPT_BYTES = 3_000_000
"""The bytes of all films and excerpts of a page."""
_MOST_FILMED = 60
"""Tasks whose episodes are shown: those that keep the most."""
_MOST_DRAWN = 2_000
"""Tasks whose returns are drawn: the largest of the directory."""
_LEAST_POINTS, _MOST_POINTS, _ALL_POINTS = 40, 400, 150_000
"""Points of one task, and of all tasks together, about."""
_DEFAULT_FRACTION = 0.8

_Tasks = list[tuple[int, TaskFacts]]
"""Tasks, each with the index of its dataset."""


def report(
    directory: Directory,
    datasets: Sequence[DatasetReader],
    of_run: Mapping[str, Shares] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What the page's script reads of some datasets, as JSON without NaN; tasks name their dataset by its index.

    ``of_run`` has the shares of a run by dataset. Raises DataError if an index or a shard cannot be read.
    """
    budget = Budget(_EXCERPT_BYTES)
    sizes: Counter[tuple[int, str]] = Counter()
    for number, dataset in enumerate(datasets):
        if not dataset.holds_documents:
            sizes.update({(number, task.task): task.found for task in dataset.task_totals})
    drawn = [key for key, _ in sizes.most_common(_MOST_DRAWN)]
    points = min(max(_ALL_POINTS // max(len(drawn), 1), _LEAST_POINTS), _MOST_POINTS)
    counts = [count_index(dataset) for dataset in datasets]
    described: list[dict[str, Any]] = []
    tasks: _Tasks = []
    for number, dataset in enumerate(datasets):
        own: list[TaskFacts] = []
        if not dataset.holds_documents:
            names = len(dataset.task_names)
            for task in facts(dataset, points, frozenset(name for at, name in drawn if at == number)):
                own.append(task)
                if progress is not None:
                    progress(f"tasks of {dataset.name}", len(own), names)
        tasks += [(number, task) for task in own]
        shares = None if of_run is None else of_run.get(dataset.name, Shares(0.0, 0.0))
        described.append(dataset_facts(dataset, counts[number], own, shares, budget))
    sound = [(number, task) for number, task in tasks if datasets[number].totals.shards and not counts[number].missing]
    films = _films(sound, directory, datasets, budget)
    reasons = [item.reasons_by_task() for item in counts]
    lines = []
    for number, task in tasks:
        line = vars(task) | {"dataset": number, "films": films.get((number, task.name), [])}
        line["reasons"] = reasons[number].get(task.name, [])
        line["found"] = task.kept + sum(count for _, count in line["reasons"])
        del line["chosen"]
        if task.stops is not None:
            # Differences of the sums have fewer digits.
            line["stops"] = {name: np.diff(sums, prepend=0) for name, sums in vars(task.stops).items()}
        lines.append(line)
    fractions = {item["fraction"] for item in described if not item["holds_documents"]}
    # The slider begins at the directory's own fraction if all its datasets share one.
    common = fractions.pop() if len(fractions) == 1 else None
    content = {
        "content": directory.manifest.content,
        "card": card(directory, datasets),
        "start": round((_DEFAULT_FRACTION if common is None else common) * STEPS),
        "steps": STEPS,
        "datasets": described,
        "tasks": lines,
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def _films(
    tasks: _Tasks, directory: Directory, datasets: Sequence[DatasetReader], budget: Budget
) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Films of the chosen episodes of the tasks that keep the most, while the budget lasts."""
    filmed = sorted((item for item in tasks if item[1].chosen), key=lambda item: -item[1].kept)[:_MOST_FILMED]
    rows = {}
    for number, dataset in enumerate(datasets):
        ordinals = sorted({ordinal for at, task in filmed if at == number for ordinal in task.chosen.values()})
        rows.update({(number, row[0]): row[1] for row in zip(ordinals, dataset.rows_at(ordinals), strict=True)})
    films: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for number, task in filmed:
        for label, ordinal in task.chosen.items():
            row = rows[number, ordinal]
            if row.shard is not None and budget.left > 0:
                [episode] = datasets[number].read([row])
                films.setdefault((number, task.name), []).append(film(episode, label, directory.text, budget))
    return films


def _plain(value: Any) -> Any:
    """JSON's own types; floats have six digits, those that are not finite are null, and texts are visible."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            return value.astype(np.int64).tolist()
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return visible_texts(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def page(content: Mapping[str, Any], library: str) -> str:
    """The HTML of a report; ``library`` is the JavaScript that defines ``vegaEmbed``."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    parts = {
        "title": html.escape(f"{content['card']['title']}: a finished {content['content']}"),
        "style": _file("page.css"),
        "library": library.replace("</script", "<\\/script"),
        # Without a time in the header the same directory gives the same page.
        "data": base64.b64encode(gzip.compress(data, mtime=0)).decode(),
        "script": _file("page.js"),
    }
    filled = _file("page.html")
    for name, part in parts.items():
        filled = filled.replace(f"<!--{name}-->", part, 1)
    return filled


def library() -> str:
    """Vega, Vega-Lite and vega-embed as one script. Raises ModuleNotFoundError without vl-convert-python."""
    script: str = importlib.import_module("vl_convert").javascript_bundle()
    return script


def _file(name: str) -> str:
    return (resources.files("gatokit.inspection.report") / name).read_text(encoding="utf-8")
