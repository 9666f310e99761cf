"""All that a report shows. Each index is read once, and once more for every two million rows of tasks.

Legend: K stops of the threshold slider.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import numpy as np

from gatokit.inspection.card import Card, card
from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.inspection.report.drops import IndexCounts, count_index
from gatokit.inspection.report.excerpts import Budget, DocumentExcerpt, Film, document_excerpt, film
from gatokit.inspection.report.stops import STEPS
from gatokit.inspection.report.tasks import TaskFacts, facts
from gatokit.inspection.tables.summary import Effort, contents
from gatokit.schemas.index import REASONS
from gatokit.schemas.progress import Progress
from gatokit.schemas.tokens import TokenKind

_EFFORT = Effort(records=5_000, bytes=64 << 20)
_EXCERPT_BYTES = 3_000_000
"""The bytes of all films and excerpts of a page."""
_MOST_FILMED = 60
"""Tasks whose episodes are shown: those that keep the most."""
_MOST_DRAWN = 2_000
"""Tasks whose returns are drawn: the largest of the directory."""
_LEAST_POINTS, _MOST_POINTS, _ALL_POINTS = 40, 400, 150_000
"""Points of one task, and of all tasks together, about."""
_DOCUMENTS = 6
"""Documents of a dataset that are quoted."""
_DEFAULT_FRACTION = 0.8


@dataclass(frozen=True)
class Shares:
    """A dataset's share of the weights of a run (``asked``), and of the windows that the run draws."""

    asked: float
    drawn: float


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset.

    ``kinds`` counts the tokens of what is kept; a scan estimates them from steps. ``images`` are (height, width,
    count), the most frequent size first, counted in ``counted`` of ``records`` if these are not None. ``fraction`` is
    the configured ``min_return``.
    """

    name: str
    kind: str
    holds_documents: bool
    hz: float | None
    weight: float
    of_run: Shares | None
    counts: IndexCounts
    tokens: int | None
    kinds: dict[str, int]
    kinds_estimated: bool
    images: tuple[tuple[int, int, int], ...]
    counted: int | None
    records: int | None
    excerpts: tuple[DocumentExcerpt, ...]
    fraction: float | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The facts with the counts of the index among them."""
        values = dict(vars(self))
        counts = values.pop("counts")
        drops = [
            {
                "reason": reason or "unknown",
                "meaning": REASONS.get(reason or "", "a reason that this gatokit does not know"),
                "count": count,
                "examples": counts.examples.get(reason, []),
            }
            for reason, count in counts.reasons()
        ]
        sizes = sorted(counts.sizes.items())
        return values | {"found": counts.found, "kept": counts.kept, "sizes": sizes, "drops": drops}


@dataclass
class Report:
    """A finished directory as a page shows it. Tasks and films name their dataset by its index in ``datasets``."""

    path: str
    content: str
    card: Card
    datasets: list[DatasetFacts] = field(default_factory=list)
    tasks: list[tuple[int, TaskFacts]] = field(default_factory=list)
    films: dict[tuple[int, str], list[Film]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What the page's script reads: plain values, no NaN, and sums of stops as differences."""
        fractions = {item.fraction for item in self.datasets if not item.holds_documents}
        # The slider begins at the directory's own fraction if all its datasets share one.
        common = fractions.pop() if len(fractions) == 1 else None
        reasons = [item.counts.reasons_by_task() for item in self.datasets]
        content: dict[str, Any] = {
            "path": self.path,
            "content": self.content,
            "card": self.card,
            "start": round((_DEFAULT_FRACTION if common is None else common) * STEPS),
            "steps": STEPS,
            "datasets": [item.to_json() for item in self.datasets],
            "tasks": [self._task_json(number, task, reasons[number].get(task.name, [])) for number, task in self.tasks],
        }
        return {key: _plain(value) for key, value in content.items()}

    def _task_json(self, number: int, task: TaskFacts, reasons: list[tuple[str | None, int]]) -> dict[str, Any]:
        values = dict(vars(task))
        del values["chosen"]
        if task.stops is not None:
            values["stops"] = {name: np.diff(sums, prepend=0) for name, sums in vars(task.stops).items()}
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
    progress: Progress | None = None,
) -> Report:
    """Reads some datasets of a finished build or scan; ``of_run`` has the shares of a run by dataset.

    Raises DataError if an index or a shard cannot be read.
    """
    found = Report(str(directory.path), directory.manifest.content, card(directory, datasets))
    budget = Budget(_EXCERPT_BYTES)
    drawn = _largest_tasks(datasets)
    points = min(max(_ALL_POINTS // max(len(drawn), 1), _LEAST_POINTS), _MOST_POINTS)
    for number, dataset in enumerate(datasets):
        counts = count_index(dataset, _DOCUMENTS if dataset.holds_documents else 0)
        tasks: list[TaskFacts] = []
        if not dataset.holds_documents:
            for task in facts(dataset, points, frozenset(name for index, name in drawn if index == number)):
                tasks.append(task)
                if progress is not None:
                    progress(f"tasks of {dataset.name}", len(tasks), len(dataset.task_names))
        found.tasks += [(number, task) for task in tasks]
        shares = None if of_run is None else of_run.get(dataset.name, Shares(0.0, 0.0))
        found.datasets.append(_dataset_facts(dataset, counts, tasks, shares, budget))
    _add_films(found, directory, datasets, budget)
    return found


def _largest_tasks(datasets: Sequence[DatasetReader]) -> list[tuple[int, str]]:
    sizes: Counter[tuple[int, str]] = Counter()
    for number, dataset in enumerate(datasets):
        for task in dataset.task_totals if not dataset.holds_documents else ():
            sizes[number, task.task] += task.found
    return [key for key, _ in sizes.most_common(_MOST_DRAWN)]


def _add_films(found: Report, directory: Directory, datasets: Sequence[DatasetReader], budget: Budget) -> None:
    """Adds films of the chosen episodes of the tasks that keep the most, while the budget lasts."""
    filmed = [
        (number, task)
        for number, task in found.tasks
        if task.chosen and datasets[number].totals.shards and not found.datasets[number].counts.missing
    ]
    filmed = sorted(filmed, key=lambda item: -item[1].kept)[:_MOST_FILMED]
    ordinals: dict[int, set[int]] = {}
    for number, task in filmed:
        ordinals.setdefault(number, set()).update(task.chosen.values())
    rows = {
        (number, ordinal): row
        for number, chosen in ordinals.items()
        for ordinal, row in zip(sorted(chosen), datasets[number].rows_at(sorted(chosen)), strict=True)
    }
    for number, task in filmed:
        films = []
        for label, ordinal in task.chosen.items():
            row = rows[number, ordinal]
            if row.shard is not None and budget.left > 0:
                [episode] = datasets[number].read([row])
                films.append(film(episode, label, directory.text, budget))
        if films:
            found.films[number, task.name] = films


def _dataset_facts(
    dataset: DatasetReader, counts: IndexCounts, tasks: Sequence[TaskFacts], of_run: Shares | None, budget: Budget
) -> DatasetFacts:
    totals = dataset.totals
    is_stored = totals.shards > 0
    sample = contents(dataset, _EFFORT) if dataset.holds_documents and is_stored else None
    excerpts: tuple[DocumentExcerpt, ...] = ()
    if sample is not None:
        rows = dataset.rows_at([] if counts.missing else counts.first_kept)
        excerpts = tuple(document_excerpt(item, budget) for item in dataset.read_documents(rows))
        image_tokens, seen = sample.image_tokens, sample.text_tokens + sample.image_tokens
        if seen not in (0, totals.tokens):
            image_tokens = round(image_tokens * totals.tokens / seen)
        kinds = {TokenKind.TEXT: totals.tokens - image_tokens, TokenKind.IMAGE: image_tokens}
        images = tuple((size.height, size.width, size.images) for size in sample.sizes)
    else:
        kinds, images = _episode_tokens_and_images(dataset, tasks)
    return DatasetFacts(
        name=dataset.name,
        kind=totals.kind,
        holds_documents=dataset.holds_documents,
        hz=totals.hz,
        weight=totals.weight,
        of_run=of_run,
        counts=counts,
        tokens=totals.tokens if is_stored else None,
        kinds={kind.name.lower().replace("_", " "): kinds[kind] for kind in TokenKind if kinds.get(kind)},
        kinds_estimated=not is_stored or (sample is not None and not sample.is_complete),
        images=images,
        counted=None if sample is None else sample.counted,
        records=None if sample is None else sample.records,
        excerpts=excerpts,
        fraction=None if dataset.keep is None else dataset.keep.min_return,
        notes=tuple(_notes(dataset, counts, tasks)),
    )


def _notes(dataset: DatasetReader, counts: IndexCounts, tasks: Sequence[TaskFacts]) -> Iterator[str]:
    if counts.missing:
        yield f"the index lacks {', '.join(counts.missing)}: what rests on them is left out"
    if not dataset.totals.ordered and not dataset.holds_documents:
        yield "no collection order is configured: returns are in the order of the files"
    lost = [task.name for task in tasks if task.stops is None]
    if lost:
        yield f"no threshold can be worked out for {len(lost):,} of {len(tasks):,} tasks, such as {lost[0]}"


def _episode_tokens_and_images(
    dataset: DatasetReader, tasks: Sequence[TaskFacts]
) -> tuple[Counter[TokenKind], tuple[tuple[int, int, int], ...]]:
    """Tokens of each kind, and images of each size: steps times what a step has. The other tokens are text."""
    kinds: Counter[TokenKind] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for task in tasks:
        if task.name not in dataset.described.tasks:
            continue
        of_step: Counter[TokenKind] = Counter({TokenKind.SEPARATOR: 1})
        for item in dataset.spec(task.name).fields:
            of_step[TokenKind[f"{item.kind.upper()}{'_ACTION' * item.is_action}"]] += item.tokens or 0
            if item.image is not None and task.steps:
                sizes[item.image.height, item.image.width] += task.steps
        kinds.update({kind: count * task.steps for kind, count in of_step.items()})
        if task.tokens is not None:
            kinds[TokenKind.TEXT] += task.tokens - of_step.total() * task.steps
    return kinds, tuple((height, width, count) for (height, width), count in sizes.most_common())


def _plain(value: Any) -> Any:
    """JSON's own types; floats have six digits, and those that are not finite are null."""
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
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
