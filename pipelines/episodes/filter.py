"""Between the passes: expert returns, verdicts, held-out episodes and the error budget of one dataset.

Legend: R rows of the dataset's scan.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gatokit.pipelines.dataset import Stream, Task
from gatokit.pipelines.episodes.returns import expert_return, window
from gatokit.schemas.config import Keep
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.filter import FILTER_REASONS, Candidates, apply_rules


@dataclass(frozen=True)
class Rows:
    """Columns of a dataset's scan, (R,), in source order. ``task`` and ``agent`` index their names, -1 for
    none; ``returns`` is NaN where the rewards do not parse; ``reason`` is an object array of str or None. ``listed``
    (bool) and ``sample`` (uint64, see ``sample_hash``) are there where a rule asks for them."""

    task: np.ndarray
    agent: np.ndarray
    order: np.ndarray
    steps: np.ndarray
    returns: np.ndarray
    success: np.ndarray | None
    reason: np.ndarray
    task_names: list[str]
    agent_names: list[str]
    listed: np.ndarray | None = None
    sample: np.ndarray | None = None


Passes = Callable[[np.ndarray], np.ndarray]
"""Given the expert return of each task, in the order of ``task_names``, which rows the rule ``where`` is true for."""


def judge_rows(
    rows: Rows, keep: Keep, dataset: str, where: Passes | None = None
) -> tuple[list[Task], np.ndarray, np.ndarray]:
    """Expert return and verdict of every task: (tasks by name, kept (R,) bool, reason (R,) of str or None).

    N, W and E count every episode whose rewards parse and are finite, also one that is bad otherwise and
    cannot be kept. DataError names a task that has none, or whose episodes all drop where ``keep`` names no episodes
    by ``where`` or a list; these may leave tasks out, but not all.
    """
    kept = np.zeros(len(rows.task), bool)
    reason = rows.reason.copy()
    by_task = _groups(rows.task)
    if not rows.task_names:
        counts = f"{len(reason)} episodes, of which none is sound: {_summary(reason)}" if len(reason) else "no episode"
        raise DataError(f"{dataset}: the source holds {counts}. Record it again, or leave it out of source")
    if isinstance(keep.random_return, dict):
        missing = sorted(set(rows.task_names) - set(keep.random_return))
        if missing:
            raise ConfigError(f"{dataset}: keep.random_return names no return for task {missing[0]!r}; add it")
    nobody = np.empty(0, np.int64)
    sound_of, streams_of, best = {}, {}, np.full(len(rows.task_names), np.nan)
    ordered = sorted(range(len(rows.task_names)), key=lambda code: rows.task_names[code])
    for code in ordered:
        members = by_task.get(code, nobody)
        finite = np.isfinite(rows.returns[members])
        sound = sound_of[code] = members if finite.all() else members[finite]
        if not len(sound):
            name = rows.task_names[code]
            raise DataError(
                f"{dataset}: task {name!r} has no sound episode among {len(members)}: {_summary(reason[members])}"
            )
        streams_of[code], best[code] = _streams(rows, sound, keep, rows.task_names[code])
    passes = None if where is None else where(best)
    names = np.array([*FILTER_REASONS, None], object)
    tasks = []
    for code in ordered:
        sound, name, expert = sound_of[code], rows.task_names[code], float(best[code])
        columns = {"success": rows.success, "listed": rows.listed, "hashes": rows.sample, "where": passes}
        marks = {key: None if column is None else column[sound] for key, column in columns.items()}
        empty, bad = rows.steps[sound] == 0, np.array([item is not None for item in rows.reason[sound]], bool)
        verdict = apply_rules(keep, Candidates(name, rows.returns[sound], expert, ~empty, **marks))
        fails = ~verdict.kept & ~bad
        reason[sound[fails]] = names[verdict.failed[fails]]
        reason[sound[empty & ~bad]] = "too_short"
        kept[sound] = verdict.kept & ~empty & ~bad
        leaves_out = not kept[sound].any()
        if leaves_out and keep.where is None and keep.episodes is None:
            limit = "" if verdict.threshold is None else f", threshold {verdict.threshold:g}"
            members = by_task[code]
            raise DataError(
                f"{dataset}: task {name!r} keeps none of its {len(members)} episodes "
                f"({_summary(reason[members])}; expert return {expert:g}{limit}). {_way_out(keep)}"
            )
        tasks.append(Task(name, expert, verdict.threshold, tuple(streams_of[code]), leaves_out))
    if not kept.any():
        raise DataError(f"{dataset}: keep leaves none of {len(reason)} episodes ({_summary(reason)}). {_way_out(keep)}")
    return tasks, kept, reason


def _way_out(keep: Keep) -> str:
    if keep.where is not None or keep.episodes is not None:
        return "Change keep, or leave the dataset out of the config"
    lower = "Lower keep.min_return, choose another keep rule" if keep.min_return is not None else "Change keep"
    return f"{lower}, or leave the task out of source"


def held_out(hashes: np.ndarray, kept: np.ndarray, task: np.ndarray, share: float) -> np.ndarray:
    """Which kept rows are set apart, bool (R,): those whose hash (``row_hash``) falls below ``share`` of its range.

    At least one and never all of every task that keeps two or more; no other row decides about one, so that new
    ones elsewhere move none. Rows of the same hash stay together, unless a task has no other.
    """
    apart = np.zeros(len(kept), bool)
    if share == 0:
        return apart
    below = hashes < np.uint64(share * 2.0**64)
    for members in _groups(np.where(kept, task, -1)).values():
        if len(members) < 2:
            continue
        own = hashes[members]
        lowest, highest = own.min(), own.max()
        chosen = below[members]
        if lowest == highest:
            chosen = np.arange(len(members)) == 0
        elif not chosen.any():
            chosen = own == lowest
        elif chosen.all():
            chosen = own != highest
        apart[members[chosen]] = True
    return apart


def _streams(rows: Rows, sound: np.ndarray, keep: Keep, name: str) -> tuple[list[Stream], float]:
    """The streams of a task's sound episodes, each in collection order, and the best of their windows."""
    by_agent = _groups(rows.agent[sound])
    ordered = {
        code: sound[members][np.argsort(rows.order[sound[members]], kind="stable")]
        for code, members in by_agent.items()
    }
    streams = []
    for code in sorted(ordered, key=lambda code: rows.agent_names[code]):
        returns = rows.returns[ordered[code]]
        streams.append(Stream(name, rows.agent_names[code], len(returns), window(len(returns)), expert_return(returns)))
    if keep.streams == "task":
        one = sound[np.argsort(rows.order[sound], kind="stable")]
        return streams, expert_return(rows.returns[one])
    return streams, max(stream.stream_return for stream in streams if stream.stream_return is not None)


def _groups(codes: np.ndarray) -> dict[int, np.ndarray]:
    """Indices of each code but -1, ascending."""
    by_code = np.argsort(codes, kind="stable")
    values, starts = np.unique(codes[by_code], return_index=True)
    parts = np.split(by_code, starts[1:]) if len(values) else []
    return {int(value): part for value, part in zip(values, parts, strict=True) if value >= 0}


def _summary(reasons: np.ndarray) -> str:
    counts = Counter(str(reason) for reason in reasons if reason is not None)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
