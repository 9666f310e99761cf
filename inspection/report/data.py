"""All that a report shows, aggregated first: one reading of each index, one more for every two million rows of tasks.

Legend: K stops of the slider.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gatokit.inspection.card import Card, card
from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.directory import Directory
from gatokit.inspection.read.rows import EpisodeRow
from gatokit.inspection.report.films import Budget, Excerpt, Film, excerpt, film
from gatokit.inspection.report.rows import Overview, overview
from gatokit.inspection.report.stops import STEPS
from gatokit.inspection.report.tasks import TaskFacts, facts
from gatokit.inspection.tables.contents import Contents, Effort, contents
from gatokit.schemas.index import REASONS
from gatokit.schemas.tokens import TokenKind

_EFFORT = Effort(records=5_000, bytes=64 << 20)
_FILM_BYTES = 3_000_000
"""Of all films of a page, as data URLs."""
_MOST_FILMED = 60
"""Tasks whose episodes are shown."""
_MOST_DRAWN = 2_000
"""Tasks whose returns are drawn: the largest of the directory."""
_POINTS = (40, 400)
"""Of a task, at least and at most; all tasks together have about ``_ALL_POINTS``."""
_ALL_POINTS = 150_000
_EXCERPTS = 6
_DEFAULT_STOP = 0.8

Moved = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Shares:
    """A dataset's share of the weights of a run, and of the windows that the run draws."""

    asked: float
    drawn: float


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset. ``kinds`` counts tokens of what is kept; in a scan they are estimated from steps. ``pictures`` are
    (height, width, how many), the most frequent first, counted in ``counted`` of ``records`` where these are given."""

    name: str
    kind: str
    holds_documents: bool
    hz: float | None
    weight: float
    of_run: Shares | None
    overview: Overview
    tokens: int | None
    kinds: dict[str, int]
    kinds_estimated: bool
    pictures: tuple[tuple[int, int, int], ...]
    counted: int | None
    records: int | None
    excerpts: tuple[Excerpt, ...]
    fraction: float | None
    notes: tuple[str, ...]


@dataclass
class Report:
    """A finished directory as a page shows it; tasks name their dataset by its place."""

    path: str
    content: str
    card: Card
    datasets: list[DatasetFacts] = field(default_factory=list)
    tasks: list[tuple[int, TaskFacts]] = field(default_factory=list)
    films: dict[tuple[int, str], list[Film]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What the page's script reads: plain values, no NaN, counts of stops as differences."""
        reasons = [item.overview.reasons_by_task() for item in self.datasets]
        content = {
            "path": self.path,
            "content": self.content,
            "card": dataclasses.asdict(self.card),
            "start": self._start(),
            "steps": STEPS,
            "datasets": [_dataset_json(item) for item in self.datasets],
            "tasks": [self._task_json(number, task, reasons[number].get(task.name, [])) for number, task in self.tasks],
        }
        return {key: _plain(value) for key, value in content.items()}

    def _start(self) -> int:
        """The stop that the slider begins at: the directory's own fraction where all its datasets share one."""
        fractions = {item.fraction for item in self.datasets if not item.holds_documents}
        only = fractions.pop() if len(fractions) == 1 else None
        return round((_DEFAULT_STOP if only is None else only) * STEPS)

    def _task_json(self, number: int, task: TaskFacts, reasons: list[tuple[str | None, int]]) -> dict[str, Any]:
        values = {item.name: getattr(task, item.name) for item in dataclasses.fields(task)}
        del values["chosen"]
        if task.stops is not None:
            stops = {item.name: getattr(task.stops, item.name) for item in dataclasses.fields(task.stops)}
            values["stops"] = {name: np.diff(sums, prepend=0) for name, sums in stops.items()}
        return values | {
            "dataset": number,
            "found": task.kept + sum(count for _, count in reasons),
            "reasons": reasons,
            "films": self.films.get((number, task.name), []),
        }


def report(
    directory: Directory,
    datasets: Sequence[DatasetReader],
    of_run: Mapping[str, Shares] | None = None,
    moved: Moved | None = None,
) -> Report:
    """Reads some datasets of a finished build or scan; ``of_run`` has what a run draws by dataset.

    DataError where an index or a shard cannot be read.
    """
    found = Report(str(directory.path), directory.manifest.content, card(directory, datasets))
    budget = Budget(_FILM_BYTES)
    largest = _largest(datasets)
    points = min(max(_ALL_POINTS // max(len(largest), 1), _POINTS[0]), _POINTS[1])
    for number, dataset in enumerate(datasets):
        seen = overview(dataset, _EXCERPTS if dataset.holds_documents else 0)
        drawn_here = frozenset(task for place, task in largest if place == number)
        tasks: list[TaskFacts] = []
        if not dataset.holds_documents:
            for task in facts(dataset, points, drawn_here):
                tasks.append(task)
                if moved is not None:
                    moved(f"tasks of {dataset.name}", len(tasks), len(dataset.task_names))
        found.tasks += [(number, task) for task in tasks]
        share = None if of_run is None else of_run.get(dataset.name, Shares(0.0, 0.0))
        found.datasets.append(_dataset(directory, dataset, seen, tasks, share, budget))
    filmed = [
        (number, task)
        for number, task in found.tasks
        if task.chosen and datasets[number].totals.shards and not found.datasets[number].overview.missing
    ]
    filmed = sorted(filmed, key=lambda item: -item[1].kept)[:_MOST_FILMED]
    rows = {number: _chosen_rows(datasets[number], filmed, number) for number in {number for number, _ in filmed}}
    for number, task in filmed:
        films = _films(directory, datasets[number], task, rows[number], budget)
        if films:
            found.films[number, task.name] = films
    return found


def _largest(datasets: Sequence[DatasetReader]) -> list[tuple[int, str]]:
    sizes: Counter[tuple[int, str]] = Counter()
    for number, dataset in enumerate(datasets):
        for task in dataset.task_totals if not dataset.holds_documents else ():
            sizes[number, task.task] += task.found
    return [key for key, _ in sizes.most_common(_MOST_DRAWN)]


def _dataset(
    directory: Directory,
    dataset: DatasetReader,
    seen: Overview,
    tasks: Sequence[TaskFacts],
    of_run: Shares | None,
    budget: Budget,
) -> DatasetFacts:
    totals = dataset.totals
    notes = []
    if seen.missing:
        notes.append(f"the index lacks {', '.join(seen.missing)}: what rests on them is left out")
    if not totals.ordered and not dataset.holds_documents:
        notes.append("no collection order is configured: returns are in the order of the files")
    lost = [task.name for task in tasks if task.stops is None]
    if lost:
        notes.append(f"no threshold can be worked out for {len(lost):,} of {len(tasks):,} tasks, such as {lost[0]}")
    stored = totals.shards > 0
    counted: Contents | None = None
    excerpts: tuple[Excerpt, ...] = ()
    if dataset.holds_documents:
        if stored:
            counted = contents(dataset, _EFFORT)
            rows = dataset.rows_at([] if seen.missing else seen.first_kept)
            excerpts = tuple(excerpt(item, budget) for item in dataset.read_documents(rows))
        kinds = {} if counted is None else _document_kinds(counted, totals.tokens)
        pictures = () if counted is None else tuple((size.height, size.width, size.images) for size in counted.sizes)
    else:
        kinds, pictures = _episode_kinds(dataset, tasks), _episode_pictures(dataset, tasks)
    return DatasetFacts(
        name=dataset.name,
        kind=totals.kind,
        holds_documents=dataset.holds_documents,
        hz=totals.hz,
        weight=totals.weight,
        of_run=of_run,
        overview=seen,
        tokens=totals.tokens if stored else None,
        kinds=kinds,
        kinds_estimated=not stored or (counted is not None and not counted.is_complete),
        pictures=pictures,
        counted=None if counted is None else counted.counted,
        records=None if counted is None else counted.records,
        excerpts=excerpts,
        fraction=None if dataset.keep is None else dataset.keep.min_return,
        notes=tuple(notes),
    )


def _document_kinds(counted: Contents, tokens: int) -> dict[str, int]:
    seen = counted.text_tokens + counted.image_tokens
    image = counted.image_tokens if seen == tokens else round(counted.image_tokens * tokens / seen) if seen else 0
    return _named({TokenKind.TEXT: tokens - image, TokenKind.IMAGE: image})


def _episode_kinds(dataset: DatasetReader, tasks: Sequence[TaskFacts]) -> dict[str, int]:
    """Steps times what each has of a kind; what is left of the tokens is text."""
    found: Counter[TokenKind] = Counter()
    for task in tasks:
        if task.name not in dataset.described.tasks:
            continue
        fixed: Counter[TokenKind] = Counter({TokenKind.SEPARATOR: 1})
        for item in dataset.spec(task.name).fields:
            fixed[TokenKind[f"{item.kind.upper()}{'_ACTION' * item.is_action}"]] += item.tokens or 0
        found.update({kind: count * task.steps for kind, count in fixed.items()})
        if task.tokens is not None:
            found[TokenKind.TEXT] += task.tokens - fixed.total() * task.steps
    return _named(found)


def _named(counts: Mapping[TokenKind, int]) -> dict[str, int]:
    return {kind.name.lower().replace("_", " "): counts[kind] for kind in TokenKind if counts.get(kind)}


def _episode_pictures(dataset: DatasetReader, tasks: Sequence[TaskFacts]) -> tuple[tuple[int, int, int], ...]:
    found: Counter[tuple[int, int]] = Counter()
    for task in tasks:
        if task.name in dataset.described.tasks and task.steps:
            for item in dataset.spec(task.name).fields:
                if item.image is not None:
                    found[item.image.height, item.image.width] += task.steps
    return tuple((height, width, count) for (height, width), count in found.most_common())


def _chosen_rows(dataset: DatasetReader, filmed: Sequence[tuple[int, TaskFacts]], number: int) -> dict[int, EpisodeRow]:
    """The rows of a dataset that films are made of, by ordinal."""
    ordinals = sorted(ordinal for place, task in filmed if place == number for ordinal in task.chosen.values())
    return dict(zip(ordinals, dataset.rows_at(ordinals), strict=True))


def _films(
    directory: Directory, dataset: DatasetReader, task: TaskFacts, rows: Mapping[int, EpisodeRow], budget: Budget
) -> list[Film]:
    films = []
    for label, ordinal in task.chosen.items():
        row = rows[ordinal]
        if row.shard is None or budget.left <= 0:
            continue
        [episode] = dataset.read([row])
        films.append(film(episode, label, directory.text, budget))
    return films


def _dataset_json(item: DatasetFacts) -> dict[str, Any]:
    values = {name.name: getattr(item, name.name) for name in dataclasses.fields(item)}
    seen: Overview = values.pop("overview")
    return values | {
        "found": seen.found,
        "kept": seen.kept,
        "sizes": sorted(seen.sizes.items()),
        "drops": [
            {
                "reason": reason or "unknown",
                "meaning": REASONS.get(reason or "", "a reason that this gatokit does not know"),
                "count": count,
                "examples": seen.examples.get(reason, []),
            }
            for reason, count in seen.reasons()
        ],
    }


def _plain(value: Any) -> Any:
    """JSON's own types; six digits of a float, null for what is not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | Iterator):
        return [_plain(item) for item in value]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
