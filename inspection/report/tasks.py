"""What a report says of each task of a dataset: returns in collection order, how they are distributed, every threshold.

Rows are held task by task, as many tasks at a time as fit, so memory does not grow with the index.

Legend: R rows of some tasks, N sound episodes of one task, B bins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.columns import among, coded
from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.rows import TaskRow
from gatokit.inspection.report.stops import Stops, bounds, random_return, stops
from gatokit.schemas.index import BAD_REASONS

MOST_ROWS = 1 << 21
"""Rows that are held at a time, at about 50 bytes each, or those of one task where it has more."""
_BINS = 30
_MOST_AGENTS = 6
_COLUMNS = ["task", "agent", "order", "steps", "return", "kept", "reason", "tokens"]


@dataclass(frozen=True)
class Curve:
    """Means of ``window`` consecutive returns of an agent, at the last episode of each window, numbered from 0."""

    agent: str
    window: int
    place: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class Points:
    """Episodes in collection order, all or evenly spaced ones: the agent's ordinal among ``agents``, the place in the
    agent's order, the return, whether it is kept."""

    agents: tuple[str, ...]
    agent: np.ndarray
    place: np.ndarray
    value: np.ndarray
    kept: np.ndarray


@dataclass(frozen=True)
class Bins:
    """Counts in [edge, next edge), the last bin with its end: float64 (B + 1,), int64 (B,) twice."""

    edges: np.ndarray
    kept: np.ndarray
    dropped: np.ndarray


@dataclass(frozen=True)
class TaskFacts:
    """A task. ``sound`` episodes have a return; ``tokens_a_step`` is exact where ``is_exact``, else measured where it
    can be, or None; ``random`` is the return that fractions count from, where one is configured. ``stops`` is None
    where no threshold can be worked out. ``chosen`` has ordinals of kept rows by what they stand for. What is drawn
    is there for the largest tasks alone.
    """

    name: str
    agents: int
    rows: int
    sound: int
    kept: int
    steps: int
    tokens: int | None
    expert_return: float | None
    threshold: float | None
    random: float | None
    tokens_a_step: float | None
    is_exact: bool
    stops: Stops | None
    chosen: dict[str, int] = field(default_factory=dict)
    points: Points | None = None
    curves: tuple[Curve, ...] = ()
    returns: Bins | None = None
    lengths: Bins | None = None


def facts(
    dataset: DatasetReader, points: int, drawn: frozenset[str], most_rows: int = MOST_ROWS
) -> Iterator[TaskFacts]:
    """The tasks of a dataset of episodes in order of name; those of ``drawn`` with at most so many points.

    The index is read once for every ``most_rows`` rows. DataError where it cannot be read.
    """
    streams: dict[str, list[TaskRow]] = {}
    for row in dataset.tasks:
        streams.setdefault(row.task, []).append(row)
    group: list[str] = []
    held = 0
    for task, rows in streams.items():
        more = sum((row.kept or 0) + (row.dropped or 0) for row in rows)
        if group and held + more > most_rows:
            yield from _group(dataset, group, streams, points, drawn)
            group, held = [], 0
        group.append(task)
        held += more
    if group:
        yield from _group(dataset, group, streams, points, drawn)


def _group(
    dataset: DatasetReader, tasks: list[str], streams: dict[str, list[TaskRow]], points: int, drawn: frozenset[str]
) -> Iterator[TaskFacts]:
    held = _Held(dataset, tasks)
    for code, task in enumerate(tasks):
        rows = held.rows(code)
        yield _facts(dataset, task, rows, held.agents, streams[task], points if task in drawn else 0)


@dataclass(frozen=True)
class _Rows:
    """Rows of one task in source order: arrays (R,). ``tokens`` is -1 where none are stored."""

    ordinal: np.ndarray
    agent: np.ndarray
    order: np.ndarray
    steps: np.ndarray
    value: np.ndarray
    tokens: np.ndarray
    kept: np.ndarray
    bad: np.ndarray


class _Held:
    """The rows of some tasks, sorted by task."""

    def __init__(self, dataset: DatasetReader, tasks: Sequence[str]) -> None:
        self.agents: list[str] = []
        known: dict[str, int] = {}
        codes = {task: code for code, task in enumerate(tasks)}
        parts: list[tuple[np.ndarray, ...]] = []
        first = 0
        for batch in dataset.batches(_COLUMNS):
            own, names = coded(batch["task"])
            task = np.array([*(codes.get(name, -1) for name in names), -1])[own]
            place = np.flatnonzero(task >= 0)
            if len(place):
                parts.append(
                    (task[place].astype(np.int32), *self._columns(batch.take(pa.array(place)), place + first, known))
                )
            first += batch.num_rows
        if not parts:
            kinds = (np.int32, np.int64, np.int32, float, np.int64, float, np.int64, bool, bool)
            parts.append(tuple(np.empty(0, kind) for kind in kinds))
        joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
        by_task = np.argsort(joined[0], kind="stable")
        self._begin = np.searchsorted(joined[0][by_task], np.arange(len(tasks) + 1))
        self._columns_held = [column[by_task] for column in joined[1:]]

    def rows(self, code: int) -> _Rows:
        """Those of one task."""
        begin, end = self._begin[code], self._begin[code + 1]
        return _Rows(*(column[begin:end] for column in self._columns_held))

    def _columns(self, batch: pa.RecordBatch, ordinals: np.ndarray, known: dict[str, int]) -> tuple[np.ndarray, ...]:
        own, names = coded(batch["agent"])
        # The last one stands for no agent: -1 picks it.
        codes = [known.setdefault(name, len(known)) for name in (*names, "")]
        self.agents = list(known)
        kept = pc.fill_null(batch["kept"], False).to_numpy(zero_copy_only=False)
        tokens = pc.fill_null(batch["tokens"], -1).to_numpy()
        return (
            ordinals.astype(np.int64),
            np.array(codes, np.int32)[own],
            pc.fill_null(batch["order"], np.nan).to_numpy(),
            pc.fill_null(batch["steps"], 0).to_numpy(),
            pc.fill_null(batch["return"], np.nan).to_numpy(),
            np.where(kept, tokens, -1),
            kept,
            among(batch["reason"], BAD_REASONS),
        )


def _facts(
    dataset: DatasetReader, task: str, rows: _Rows, agents: list[str], streams: list[TaskRow], points: int
) -> TaskFacts:
    sound = np.flatnonzero(np.isfinite(rows.value))
    expert = next((row.expert_return for row in streams if row.expert_return is not None), None)
    stored = rows.kept & (rows.tokens >= 0)
    steps, tokens = int(rows.steps[rows.kept].sum()), int(rows.tokens[stored].sum())
    fixed = fixed_tokens(dataset, task)
    measured = tokens / int(rows.steps[stored].sum()) if rows.steps[stored].sum() else None
    return TaskFacts(
        name=task,
        agents=len(np.unique(rows.agent)),
        rows=len(rows.kept),
        sound=len(sound),
        kept=int(rows.kept.sum()),
        steps=steps,
        tokens=tokens if stored.any() or not rows.kept.any() else None,
        expert_return=expert,
        threshold=next((row.threshold for row in streams if row.threshold is not None), None),
        random=None if dataset.keep is None else random_return(dataset.keep, task),
        tokens_a_step=fixed if fixed is not None else measured,
        is_exact=fixed is not None,
        stops=_stops(dataset, task, rows, sound, expert),
        chosen=_chosen(rows),
        points=_points(rows, sound, agents, points) if points and len(sound) else None,
        curves=_curves(rows, sound, agents, streams, points) if points else (),
        returns=_bins(rows.value[sound], rows.kept[sound]) if points and len(sound) else None,
        lengths=_bins(rows.steps, rows.kept) if points and len(rows.steps) else None,
    )


def fixed_tokens(dataset: DatasetReader, task: str) -> int | None:
    """Tokens of a step, the separator among them; None where the task has text, whose length varies."""
    entry = dataset.described.tasks.get(task)
    spec = None if entry is None else dataset.described.specs.get(entry.spec)
    if spec is None:
        return None
    widths = [item.tokens for item in spec.fields]
    return None if None in widths else 1 + sum(width or 0 for width in widths)


def _stops(dataset: DatasetReader, task: str, rows: _Rows, sound: np.ndarray, expert: float | None) -> Stops | None:
    """As ``inspection.preview`` judges: what is damaged or has no step with an action is never kept."""
    lowest = None if expert is None or dataset.keep is None else bounds(dataset.keep, task, expert)
    if lowest is None:
        return None
    able = sound[(rows.steps[sound] > 0) & ~rows.bad[sound]]
    return stops(lowest, rows.value[able], rows.steps[able], rows.tokens[able])


def _chosen(rows: _Rows) -> dict[str, int]:
    """Ordinals of kept rows: the best return, the median one, the lowest."""
    kept = np.flatnonzero(rows.kept)
    if not len(kept):
        return {}
    ascending = kept[np.argsort(rows.value[kept], kind="stable")]
    places = {
        "best kept": ascending[-1],
        "median kept": ascending[(len(ascending) - 1) // 2],
        "lowest kept": ascending[0],
    }
    found: dict[str, int] = {}
    for name, place in places.items():
        ordinal = int(rows.ordinal[place])
        if ordinal not in found.values():
            found[name] = ordinal
    return found


def _streams(rows: _Rows, sound: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The sound rows of each agent in collection order, the agent with the most first."""
    codes, inverse = np.unique(rows.agent[sound], return_inverse=True)
    found = []
    for number, code in enumerate(codes.tolist()):
        own = sound[inverse == number]
        found.append((code, own[np.argsort(rows.order[own], kind="stable")]))
    return sorted(found, key=lambda item: -len(item[1]))


def _points(rows: _Rows, sound: np.ndarray, agents: list[str], most: int) -> Points:
    streams = _streams(rows, sound)
    members = np.concatenate([own for _, own in streams])
    agent = np.concatenate([np.full(len(own), number) for number, (_, own) in enumerate(streams)])
    place = np.concatenate([np.arange(len(own)) for _, own in streams])
    count = min(len(members), most)
    some = np.arange(count) * len(members) // count
    return Points(
        agents=tuple(agents[code] for code, _ in streams),
        agent=agent[some],
        place=place[some],
        value=rows.value[members[some]],
        kept=rows.kept[members[some]],
    )


def _curves(rows: _Rows, sound: np.ndarray, agents: list[str], streams: list[TaskRow], most: int) -> tuple[Curve, ...]:
    windows = {row.agent: row.window for row in streams}
    curves = []
    for code, own in _streams(rows, sound)[:_MOST_AGENTS]:
        width = windows.get(agents[code]) or 1
        if width > len(own):
            continue
        sums = np.cumsum(np.append(0.0, rows.value[own]))
        means = (sums[width:] - sums[:-width]) / width
        count = min(len(means), max(2, most // 2))
        some = np.unique(np.append(np.arange(count) * len(means) // count, [means.argmax(), len(means) - 1]))
        curves.append(Curve(agents[code], width, some + width - 1, means[some]))
    return tuple(curves)


def _bins(values: np.ndarray, kept: np.ndarray) -> Bins:
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "i":
        width = max(1, -(-int(high - low + 1) // _BINS))
        edges = np.arange(low, high + width + 1, width)
    elif high - low > abs(high) * 1e-12:
        edges = np.linspace(low, high, _BINS + 1)
    else:
        edges = np.array([low - 0.5, high + 0.5])
    counts = [np.histogram(values[which], edges)[0] for which in (kept, ~kept)]
    return Bins(edges, *counts)
