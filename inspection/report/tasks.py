"""What a report says of each task: returns in collection order, their distribution, and what every threshold keeps.

Rows are held for as many tasks at a time as fit, so memory does not grow with the index.

Legend: R rows of some tasks, N sound episodes of one task, B bins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import TaskRow, among, coded
from gatokit.inspection.report.stops import Stops, bounds, random_return, stops
from gatokit.schemas.index import BAD_REASONS

MOST_ROWS = 1 << 21
"""Rows that are held at a time, of about 50 bytes each; all rows of a task with more."""
_BINS = 30
_MOST_AGENTS = 6
_COLUMNS = ["task", "agent", "order", "steps", "return", "kept", "reason", "tokens"]
_ROW_TYPES = (np.int32, np.int64, np.int32, float, np.int64, float, np.int64, bool, bool)


@dataclass(frozen=True)
class Curve:
    """Means of ``window`` consecutive returns of an agent; ``place`` is the number of the window's last episode."""

    agent: str
    window: int
    place: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class Points:
    """Episodes in collection order, all of them or evenly spaced ones: index of the agent in ``agents``, place in the
    agent's order, return, and whether the episode is kept."""

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
    """A task. ``sound`` counts the episodes that have a return.

    ``tokens_a_step`` is exact if ``is_exact``, else measured, or None if nothing is stored. ``random`` is the return
    that fractions count from, if one is configured. ``stops`` is None if no threshold can be worked out. ``chosen``
    has the ordinals of the kept rows to show, by label. Points, curves and bins are only there for the tasks that are
    drawn.
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
    """Yields the tasks of a dataset of episodes in order of name; those of ``drawn`` with at most ``points`` points.

    Reads the index once for every ``most_rows`` rows. Raises DataError if it cannot be read.
    """
    streams: dict[str, list[TaskRow]] = {}
    for row in dataset.tasks:
        streams.setdefault(row.task, []).append(row)
    groups: list[list[str]] = []
    held = most_rows
    for task, rows in streams.items():
        count = sum((row.kept or 0) + (row.dropped or 0) for row in rows)
        if held + count > most_rows:
            groups.append([])
            held = 0
        groups[-1].append(task)
        held += count
    for group in groups:
        rows_of_task, agents = _read_rows(dataset, group)
        for task, task_rows in zip(group, rows_of_task, strict=True):
            yield _facts(dataset, task, task_rows, agents, streams[task], points if task in drawn else 0)


@dataclass(frozen=True)
class _Rows:
    """Rows of one task in source order, arrays (R,). ``tokens`` is -1 if none are stored; ``agent`` indexes names."""

    ordinal: np.ndarray
    agent: np.ndarray
    order: np.ndarray
    steps: np.ndarray
    value: np.ndarray
    tokens: np.ndarray
    kept: np.ndarray
    bad: np.ndarray


def _read_rows(dataset: DatasetReader, tasks: Sequence[str]) -> tuple[Iterator[_Rows], list[str]]:
    """The rows of each task, and the names of all agents."""
    agents: dict[str, int] = {}
    codes = {task: code for code, task in enumerate(tasks)}
    parts: list[tuple[np.ndarray, ...]] = [tuple(np.empty(0, type_) for type_ in _ROW_TYPES)]
    first = 0
    for batch in dataset.batches(_COLUMNS):
        task_of_row, names = coded(batch["task"])
        # The last code stands for rows without a task, whose index is -1.
        task = np.array([*(codes.get(name, -1) for name in names), -1], np.int32)[task_of_row]
        selected = np.flatnonzero(task >= 0)
        if len(selected):
            parts.append((task[selected], first + selected, *_row_columns(batch.take(pa.array(selected)), agents)))
        first += batch.num_rows
    task, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    by_task = np.argsort(task, kind="stable")
    begins = np.searchsorted(task[by_task], np.arange(len(tasks) + 1)).tolist()
    columns = [column[by_task] for column in columns]
    slices = (slice(*begins[code : code + 2]) for code in range(len(tasks)))
    return (_Rows(*(column[rows] for column in columns)) for rows in slices), list(agents)


def _row_columns(batch: pa.RecordBatch, agents: dict[str, int]) -> tuple[np.ndarray, ...]:
    """The columns of ``_Rows`` but the ordinals; adds new agents to ``agents``."""
    agent_of_row, names = coded(batch["agent"])
    # The last name stands for rows without an agent, whose index is -1.
    agent_codes = [agents.setdefault(name, len(agents)) for name in (*names, "")]
    kept = pc.fill_null(batch["kept"], False).to_numpy(zero_copy_only=False)
    return (
        np.array(agent_codes, np.int32)[agent_of_row],
        pc.fill_null(batch["order"], np.nan).to_numpy(),
        pc.fill_null(batch["steps"], 0).to_numpy(),
        pc.fill_null(batch["return"], np.nan).to_numpy(),
        np.where(kept, pc.fill_null(batch["tokens"], -1).to_numpy(), -1),
        kept,
        among(batch["reason"], BAD_REASONS),
    )


def _facts(
    dataset: DatasetReader, task: str, rows: _Rows, agents: list[str], streams: list[TaskRow], points: int
) -> TaskFacts:
    sound = np.flatnonzero(np.isfinite(rows.value))
    expert = next((row.expert_return for row in streams if row.expert_return is not None), None)
    stored = rows.kept & (rows.tokens >= 0)
    tokens, stored_steps = int(rows.tokens[stored].sum()), int(rows.steps[stored].sum())
    fixed = fixed_tokens(dataset, task)
    measured = tokens / stored_steps if stored_steps else None
    by_agent = _by_agent(rows, sound)
    return TaskFacts(
        name=task,
        agents=len(np.unique(rows.agent)),
        rows=len(rows.kept),
        sound=len(sound),
        kept=int(rows.kept.sum()),
        steps=int(rows.steps[rows.kept].sum()),
        tokens=tokens if stored.any() or not rows.kept.any() else None,
        expert_return=expert,
        threshold=next((row.threshold for row in streams if row.threshold is not None), None),
        random=None if dataset.keep is None else random_return(dataset.keep, task),
        tokens_a_step=fixed if fixed is not None else measured,
        is_exact=fixed is not None,
        stops=_stops(dataset, task, rows, sound, expert),
        chosen=_chosen(rows),
        points=_points(rows, by_agent, agents, points) if points and len(sound) else None,
        curves=_curves(rows, by_agent, agents, streams, points) if points else (),
        returns=_bins(rows.value[sound], rows.kept[sound]) if points and len(sound) else None,
        lengths=_bins(rows.steps, rows.kept) if points and len(rows.steps) else None,
    )


def fixed_tokens(dataset: DatasetReader, task: str) -> int | None:
    """Tokens of a step with its separator; None if the task has text, whose length varies."""
    entry = dataset.described.tasks.get(task)
    spec = None if entry is None else dataset.described.specs.get(entry.spec)
    if spec is None:
        return None
    widths = [item.tokens for item in spec.fields]
    return None if None in widths else 1 + sum(width or 0 for width in widths)


def _stops(dataset: DatasetReader, task: str, rows: _Rows, sound: np.ndarray, expert: float | None) -> Stops | None:
    """As ``inspection.preview`` judges: damaged episodes, and those without a step with an action, are never kept."""
    lowest = None if expert is None or dataset.keep is None else bounds(dataset.keep, task, expert)
    if lowest is None:
        return None
    able = sound[(rows.steps[sound] > 0) & ~rows.bad[sound]]
    return stops(lowest, rows.value[able], rows.steps[able], rows.tokens[able])


def _chosen(rows: _Rows) -> dict[str, int]:
    """Ordinals of the kept rows with the best, the median and the lowest return; each row once."""
    kept = np.flatnonzero(rows.kept)
    if not len(kept):
        return {}
    ascending = rows.ordinal[kept[np.argsort(rows.value[kept], kind="stable")]].tolist()
    chosen: dict[str, int] = {}
    median = ascending[(len(ascending) - 1) // 2]
    for label, ordinal in (("best kept", ascending[-1]), ("median kept", median), ("lowest kept", ascending[0])):
        if ordinal not in chosen.values():
            chosen[label] = ordinal
    return chosen


def _by_agent(rows: _Rows, sound: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(agent, its N sound rows in collection order), the agent with the most first."""
    codes, inverse = np.unique(rows.agent[sound], return_inverse=True)
    members = [sound[inverse == number] for number in range(len(codes))]
    ordered = [item[np.argsort(rows.order[item], kind="stable")] for item in members]
    return sorted(zip(codes.tolist(), ordered, strict=True), key=lambda item: -len(item[1]))


def _points(rows: _Rows, by_agent: list[tuple[int, np.ndarray]], agents: list[str], most: int) -> Points:
    members = np.concatenate([episodes for _, episodes in by_agent])
    agent = np.concatenate([np.full(len(episodes), number) for number, (_, episodes) in enumerate(by_agent)])
    place = np.concatenate([np.arange(len(episodes)) for _, episodes in by_agent])
    shown = _evenly_spaced(len(members), most)
    return Points(
        agents=tuple(agents[code] for code, _ in by_agent),
        agent=agent[shown],
        place=place[shown],
        value=rows.value[members[shown]],
        kept=rows.kept[members[shown]],
    )


def _curves(
    rows: _Rows, by_agent: list[tuple[int, np.ndarray]], agents: list[str], streams: list[TaskRow], most: int
) -> tuple[Curve, ...]:
    windows = {row.agent: row.window for row in streams}
    curves = []
    for code, episodes in by_agent[:_MOST_AGENTS]:
        width = windows.get(agents[code]) or 1
        if width > len(episodes):
            continue
        sums = np.cumsum(np.append(0.0, rows.value[episodes]))
        means = (sums[width:] - sums[:-width]) / width
        shown = np.unique(np.append(_evenly_spaced(len(means), max(2, most // 2)), [means.argmax(), len(means) - 1]))
        curves.append(Curve(agents[code], width, shown + width - 1, means[shown]))
    return tuple(curves)


def _evenly_spaced(length: int, most: int) -> np.ndarray:
    count = min(length, most)
    return np.arange(count) * length // max(count, 1)


def _bins(values: np.ndarray, kept: np.ndarray) -> Bins:
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "i":
        width = max(1, -(-int(high - low + 1) // _BINS))
        edges = np.arange(low, high + width + 1, width)
    elif high - low > abs(high) * 1e-12:
        edges = np.linspace(low, high, _BINS + 1)
    else:
        edges = np.array([low - 0.5, high + 0.5])
    return Bins(edges, *(np.histogram(values[rows], edges)[0] for rows in (kept, ~kept)))
