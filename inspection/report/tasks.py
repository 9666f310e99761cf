"""What a report says of each task: returns in collection order, their distribution, and what each threshold keeps.

Rows are held for as many tasks at a time as fit, so memory does not grow with the index.

Legend: R rows of some tasks, N sound episodes of one task, B bins, K stops of the page's threshold slider.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import among
from gatokit.schemas.filter import TOLERANCE, return_threshold
from gatokit.schemas.index import BAD_REASONS
from gatokit.schemas.where import coded

STEPS = 200
"""Steps of the slider between the fractions 0 and 1."""
FRACTIONS = tuple(stop / STEPS for stop in range(STEPS + 1))
"""The fractions of the expert return at the K stops."""
MOST_ROWS = 1 << 21
"""Rows that are held at a time, of about 50 bytes each; all rows of a task with more."""
_BINS = 30
_MOST_AGENTS = 6
_COLUMNS = ["task", "agent", "order", "steps", "return", "kept", "reason", "tokens"]


@dataclass(frozen=True)
class Stops:
    """Sums over the rows of a task that ``keep: {min_return: F}`` keeps, each int64 (K,), for K fractions F.

    ``episodes`` and ``steps`` are sums over all of them, ``tokens`` over those whose tokens are stored, and
    ``unstored_steps`` over the others.
    """

    episodes: np.ndarray
    steps: np.ndarray
    tokens: np.ndarray
    unstored_steps: np.ndarray


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
class Curve:
    """Means of ``window`` consecutive returns of an agent; ``place`` is the number of the window's last episode."""

    agent: str
    window: int
    place: np.ndarray
    mean: np.ndarray


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
    has the ordinals of the kept rows to show, by label. Only tasks that are drawn have points, curves and bins.
    """

    name: str
    agents: int
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
    chosen: dict[str, int]
    points: Points | None
    curves: list[Curve]
    returns: Bins | None
    lengths: Bins | None


def facts(
    dataset: DatasetReader, points: int, drawn: frozenset[str], most_rows: int = MOST_ROWS
) -> Iterator[TaskFacts]:
    """Yields the tasks of a dataset of episodes in order of name; those of ``drawn`` with at most ``points`` points.

    Reads the index once for every ``most_rows`` rows. Raises DataError if it cannot be read.
    """
    totals = {task.task: task for task in dataset.task_totals}
    windows: dict[str, dict[str, int | None]] = {}
    for row in dataset.tasks:
        windows.setdefault(row.task, {})[row.agent] = row.window
    groups: list[list[str]] = []
    held = most_rows
    for task in totals.values():
        if held + task.found > most_rows:
            groups.append([])
            held = 0
        groups[-1].append(task.task)
        held += task.found
    for group in groups:
        rows_of_task, agents = _read_rows(dataset, group)
        for name, rows in zip(group, rows_of_task, strict=True):
            sound, kept = np.flatnonzero(np.isfinite(rows["value"])), rows["kept"]
            expert_return = totals[name].expert_return
            stored = kept & (rows["tokens"] >= 0)
            tokens, stored_steps = int(rows["tokens"][stored].sum()), int(rows["steps"][stored].sum())
            fixed = _fixed_tokens(dataset, name)
            measured = tokens / stored_steps if stored_steps else None
            is_drawn = points > 0 and name in drawn
            by_agent = _by_agent(rows, sound) if is_drawn else []
            yield TaskFacts(
                name=name,
                agents=len(np.unique(rows["agent"])),
                sound=len(sound) if expert_return is not None else int((~rows["bad"]).sum()),
                kept=int(kept.sum()),
                steps=int(rows["steps"][kept].sum()),
                tokens=tokens if stored.any() or not kept.any() else None,
                expert_return=expert_return,
                threshold=totals[name].threshold,
                random=_random_return(dataset, name),
                tokens_a_step=measured if fixed is None else fixed,
                is_exact=fixed is not None,
                stops=_stops(dataset, name, rows, sound, expert_return),
                chosen=_chosen(rows),
                points=_points(rows, by_agent, agents, points) if by_agent else None,
                curves=_curves(rows, by_agent, agents, windows[name], points),
                returns=_bins(rows["value"][sound], kept[sound]) if by_agent else None,
                lengths=_bins(rows["steps"], kept) if is_drawn and len(kept) else None,
            )


_ROW = np.dtype([
    ("task", np.int32), ("ordinal", np.int64), ("agent", np.int32), ("order", float), ("steps", np.int64),
    ("value", float), ("tokens", np.int64), ("kept", bool), ("bad", bool),
])  # fmt: skip
"""A row of the index: codes of task and agent, its ordinal, and ``value``, its return; -1 tokens if none are stored."""


def _read_rows(dataset: DatasetReader, tasks: Sequence[str]) -> tuple[list[np.ndarray], list[str]]:
    """The rows of each task in source order, arrays of ``_ROW`` (R,), and the names of all agents."""
    agents: dict[str, int] = {}
    codes = {task: code for code, task in enumerate(tasks)}
    parts = [np.empty(0, _ROW)]
    first = 0
    for batch in dataset.batches(_COLUMNS):
        task_of_row, names = coded(batch["task"])
        # A row without a task has the index -1, which is the last code.
        task = np.array([*(codes.get(name, -1) for name in names), -1], np.int32)[task_of_row]
        selected = np.flatnonzero(task >= 0)
        if len(selected):
            of_tasks, part = batch.take(pa.array(selected)), np.empty(len(selected), _ROW)
            agent_of_row, names = coded(of_tasks["agent"])
            agent_codes = [agents.setdefault(name, len(agents)) for name in (*names, "")]
            part["task"] = task[selected]
            part["ordinal"] = first + selected
            part["agent"] = np.array(agent_codes, np.int32)[agent_of_row]
            part["order"] = pc.fill_null(of_tasks["order"], np.nan)
            part["steps"] = pc.fill_null(of_tasks["steps"], 0)
            part["value"] = pc.fill_null(of_tasks["return"], np.nan)
            part["kept"] = pc.fill_null(of_tasks["kept"], False)
            part["tokens"] = np.where(part["kept"], pc.fill_null(of_tasks["tokens"], -1), -1)
            part["bad"] = among(of_tasks["reason"], BAD_REASONS)
            parts.append(part)
        first += batch.num_rows
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows["task"], kind="stable")]
    return np.split(rows, np.searchsorted(rows["task"], np.arange(1, len(tasks)))), list(agents)


def _fixed_tokens(dataset: DatasetReader, task: str) -> int | None:
    """Tokens of a step with its separator; None if the task has text, whose length varies."""
    entry = dataset.described.tasks.get(task)
    spec = None if entry is None else dataset.described.specs.get(entry.spec)
    if spec is None:
        return None
    widths = [item.tokens for item in spec.fields]
    return None if None in widths else 1 + sum(width or 0 for width in widths)


def _chosen(rows: np.ndarray) -> dict[str, int]:
    """Ordinals of the kept rows with the best, the median and the lowest return; each row once."""
    kept = np.flatnonzero(rows["kept"])
    if not len(kept):
        return {}
    ascending = rows["ordinal"][kept[np.argsort(rows["value"][kept], kind="stable")]].tolist()
    chosen: dict[str, int] = {}
    median = ascending[(len(ascending) - 1) // 2]
    for label, ordinal in (("best kept", ascending[-1]), ("median kept", median), ("lowest kept", ascending[0])):
        if ordinal not in chosen.values():
            chosen[label] = ordinal
    return chosen


# --- thresholds -------------------------------------------------------------------------------------------------


def _random_return(dataset: DatasetReader, task: str) -> float | None:
    random = None if dataset.keep is None else dataset.keep.random_return
    return random.get(task) if isinstance(random, dict) else random


def _stops(
    dataset: DatasetReader, task: str, rows: np.ndarray, sound: np.ndarray, expert: float | None
) -> Stops | None:
    """As ``inspection.preview`` judges: damaged episodes, and those without a step with an action, are never kept."""
    random, keep = _random_return(dataset, task), dataset.keep
    if expert is None or keep is None or (random is None and isinstance(keep.random_return, dict)):
        return None
    limits = np.array([return_threshold(expert, fraction, random) for fraction in FRACTIONS])
    able = sound[(rows["steps"][sound] > 0) & ~rows["bad"][sound]]
    return stops(limits - TOLERANCE * np.abs(limits), rows["value"][able], rows["steps"][able], rows["tokens"][able])


def stops(lowest: np.ndarray, returns: np.ndarray, steps: np.ndarray, tokens: np.ndarray) -> Stops:
    """The sums at each bound of ``lowest``, float64 (K,), over rows that may be kept.

    ``returns`` are float64 (R,), ``steps`` and ``tokens`` int64 (R,); -1 tokens if none are stored.
    """
    order = np.argsort(lowest, kind="stable")
    # A row that reaches n bounds is kept by the n lowest.
    reached = np.searchsorted(lowest[order], returns, side="right")

    def sums(amounts: np.ndarray) -> np.ndarray:
        of_reached = np.zeros(len(order) + 1, np.int64)
        np.add.at(of_reached, reached, amounts)
        by_stop = np.empty(len(order), np.int64)
        by_stop[order] = of_reached[::-1].cumsum()[::-1][1:]
        return by_stop

    is_stored = tokens >= 0
    return Stops(
        episodes=sums(np.ones(len(reached), np.int64)),
        steps=sums(steps),
        tokens=sums(np.where(is_stored, tokens, 0)),
        unstored_steps=sums(np.where(is_stored, 0, steps)),
    )


# --- what is drawn ----------------------------------------------------------------------------------------------


def _by_agent(rows: np.ndarray, sound: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(agent, its N sound rows in collection order), the agent with the most first."""
    by_agent = []
    for agent in np.unique(rows["agent"][sound]).tolist():
        episodes = sound[rows["agent"][sound] == agent]
        by_agent.append((agent, episodes[np.argsort(rows["order"][episodes], kind="stable")]))
    return sorted(by_agent, key=lambda item: -len(item[1]))


def _points(rows: np.ndarray, by_agent: list[tuple[int, np.ndarray]], agents: list[str], most: int) -> Points:
    episodes = np.concatenate([own for _, own in by_agent])
    agent = np.repeat(np.arange(len(by_agent)), [len(own) for _, own in by_agent])
    place = np.concatenate([np.arange(len(own)) for _, own in by_agent])
    shown = _evenly_spaced(len(episodes), most)
    return Points(
        agents=tuple(agents[code] for code, _ in by_agent),
        agent=agent[shown],
        place=place[shown],
        value=rows["value"][episodes[shown]],
        kept=rows["kept"][episodes[shown]],
    )


def _curves(
    rows: np.ndarray,
    by_agent: list[tuple[int, np.ndarray]],
    agents: list[str],
    windows: dict[str, int | None],
    most: int,
) -> list[Curve]:
    curves = []
    for code, episodes in by_agent[:_MOST_AGENTS]:
        width = windows.get(agents[code]) or 1
        if width > len(episodes):
            continue
        sums = np.cumsum(np.append(0.0, rows["value"][episodes]))
        means = (sums[width:] - sums[:-width]) / width
        shown = np.unique(np.append(_evenly_spaced(len(means), max(2, most // 2)), [means.argmax(), len(means) - 1]))
        curves.append(Curve(agents[code], width, shown + width - 1, means[shown]))
    return curves


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
