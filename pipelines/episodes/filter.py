"""Decides which episodes are kept: returns, windows, thresholds and verdicts of one dataset (Gato, section 3.2).

Legend: R rows of the dataset's scan.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gatokit.pipelines.stages import Stream, Task
from gatokit.schemas.config import Keep
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.filter import FILTER_REASONS, Candidates, apply_rules

LONGEST_WINDOW = 1000


@dataclass(frozen=True)
class Rows:
    """Columns of a dataset's scan, (R,) each, in source order.

    ``task`` and ``agent`` are indexes into their names, -1 for none. ``returns`` is NaN if the rewards do not parse.
    ``reason`` is an object array of str or None. ``listed`` (bool) and ``sample`` (uint64, see ``sample_hash``) exist
    if a rule needs them.
    """

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
"""From the expert return of each task, in the order of ``task_names``, to the rows for which ``where`` is true, bool
(R,)."""


def window(episodes: int) -> int:
    """W for N collected episodes: min(1000, N // 10), at least 1 (Gato, section 3.2: W = min(1000, 0.1 N))."""
    return max(1, min(LONGEST_WINDOW, episodes // 10))


def expert_return(returns: np.ndarray) -> float:
    """The largest mean of W consecutive returns, float64 (N,) in collection order, N > 0.

    Sums of windows are built by doubling, so that their error does not grow with N.
    """
    width = window(len(returns))
    size, sums, done = 1, returns.astype(np.float64), 0
    total = np.zeros(len(returns) - width + 1)
    while size <= width:
        if width & size:
            total = total + sums[done : done + len(total)]
            done += size
        if 2 * size <= width:
            sums = sums[:-size] + sums[size:]
        size *= 2
    return float(total.max() / width)


def filter_rows(
    rows: Rows, keep: Keep, dataset: str, where: Passes | None = None
) -> tuple[list[Task], np.ndarray, np.ndarray]:
    """The tasks by name with their expert returns, kept (R,) bool, and reason (R,) of str or None.

    N, W and the expert return count every episode whose rewards parse and are finite, also one that is bad otherwise
    and cannot be kept. Raises DataError if a task has no such episode, or if all episodes of a task are dropped. The
    rule ``where`` and a list of episodes may leave tasks out, but not all of them.
    """
    _check_names(rows, keep, dataset)
    by_task = _groups(rows.task)
    by_name = sorted(range(len(rows.task_names)), key=lambda code: rows.task_names[code])
    sound_rows, streams, experts = {}, {}, np.full(len(rows.task_names), np.nan)
    for code in by_name:
        members, name = by_task.get(code, np.empty(0, np.int64)), rows.task_names[code]
        sound = sound_rows[code] = members[np.isfinite(rows.returns[members])]
        if not len(sound):
            raise DataError(
                f"{dataset}: task {name!r} has no sound episode among {len(members)}: {_summary(rows.reason[members])}"
            )
        streams[code], experts[code] = _streams(rows, sound, keep, name)
    passes = None if where is None else where(experts)
    kept, reason = np.zeros(len(rows.task), bool), rows.reason.copy()
    reasons = np.array([*FILTER_REASONS, None], object)
    tasks = []
    for code in by_name:
        sound, name, expert = sound_rows[code], rows.task_names[code], float(experts[code])
        columns = {"success": rows.success, "listed": rows.listed, "hashes": rows.sample, "where": passes}
        marks = {key: None if column is None else column[sound] for key, column in columns.items()}
        empty, bad = rows.steps[sound] == 0, np.array([item is not None for item in rows.reason[sound]], bool)
        verdict = apply_rules(keep, Candidates(name, rows.returns[sound], expert, ~empty, **marks))
        fails = ~verdict.kept & ~bad
        reason[sound[fails]] = reasons[verdict.failed[fails]]
        reason[sound[empty & ~bad]] = "too_short"
        kept[sound] = verdict.kept & ~empty & ~bad
        is_left_out = not kept[sound].any()
        if is_left_out and keep.where is None and keep.episodes is None:
            limit = "" if verdict.threshold is None else f", threshold {verdict.threshold:g}"
            members = by_task[code]
            raise DataError(
                f"{dataset}: task {name!r} keeps none of its {len(members)} episodes "
                f"({_summary(reason[members])}; expert return {expert:g}{limit}). {_way_out(keep)}"
            )
        tasks.append(Task(name, expert, verdict.threshold, tuple(streams[code]), is_left_out))
    if not kept.any():
        raise DataError(f"{dataset}: keep leaves none of {len(reason)} episodes ({_summary(reason)}). {_way_out(keep)}")
    return tasks, kept, reason


def _check_names(rows: Rows, keep: Keep, dataset: str) -> None:
    """Raises DataError if no episode names its task, ConfigError if ``random_return`` lacks a task."""
    if not rows.task_names:
        count = len(rows.reason)
        counts = f"{count} episodes, of which none is sound: {_summary(rows.reason)}" if count else "no episode"
        raise DataError(f"{dataset}: the source holds {counts}. Record it again, or leave it out of source")
    if isinstance(keep.random_return, dict):
        missing = sorted(set(rows.task_names) - set(keep.random_return))
        if missing:
            raise ConfigError(f"{dataset}: keep.random_return names no return for task {missing[0]!r}; add it")


def _way_out(keep: Keep) -> str:
    if keep.where is not None or keep.episodes is not None:
        return "Change keep, or leave the dataset out of the config"
    lower = "Lower keep.min_return, choose another keep rule" if keep.min_return is not None else "Change keep"
    return f"{lower}, or leave the task out of source"


def _streams(rows: Rows, sound: np.ndarray, keep: Keep, name: str) -> tuple[list[Stream], float]:
    """The streams of a task's sound episodes, each in collection order, and the task's expert return."""
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
        in_order = sound[np.argsort(rows.order[sound], kind="stable")]
        return streams, expert_return(rows.returns[in_order])
    return streams, max(stream.stream_return for stream in streams if stream.stream_return is not None)


def _groups(codes: np.ndarray) -> dict[int, np.ndarray]:
    """The ascending indexes of each code except -1."""
    by_code = np.argsort(codes, kind="stable")
    values, starts = np.unique(codes[by_code], return_index=True)
    parts = np.split(by_code, starts[1:]) if len(values) else []
    return {int(value): part for value, part in zip(values, parts, strict=True) if value >= 0}


def _summary(reasons: np.ndarray) -> str:
    counts = Counter(str(reason) for reason in reasons if reason is not None)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
