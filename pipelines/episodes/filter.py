"""Decides which episodes are kept: returns, windows, thresholds and verdicts of one dataset (Gato, section 3.2).

Legend: R rows of the dataset's scan.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from gatokit.pipelines.episodes.plan import EpisodesPlan, task_specs
from gatokit.pipelines.episodes.ranges import Measurements, check_values
from gatokit.pipelines.episodes.rows import RowCollector, Rows, check_ids, decide, real_reading, rows_at
from gatokit.pipelines.episodes.spec import field_notices
from gatokit.pipelines.episodes.values import name_notices
from gatokit.pipelines.holdout import held_out
from gatokit.pipelines.losses import Losses, SourceLosses
from gatokit.pipelines.scan_cache import Segment
from gatokit.pipelines.stages import METADATA, TASK_ROWS, FilterResult, ScannedRows, Stream, Task
from gatokit.schemas.config import BuildConfig
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.episode_list import EpisodeList
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.filter import FILTER_REASONS, Candidates, apply_rules
from gatokit.schemas.index import HELD_OUT, TRAIN
from gatokit.schemas.manifest import LastStep
from gatokit.schemas.where import Column, Rounded, Strings, Where, arrow_column
from gatokit.storage.files import read_bytes

LONGEST_WINDOW = 1000
_MOST_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class EpisodeFilterResult(FilterResult):
    """Adds what only episodes have. ``reason`` is a dictionary array of R strings."""

    rows: Rows
    reason: pa.DictionaryArray
    last_step: LastStep


def filter_episodes(
    plan: EpisodesPlan,
    segments: Sequence[Segment],
    config: BuildConfig,
    limit: int | None,
    held_out_before: np.ndarray | None = None,
) -> FilterResult:
    """Windows, thresholds and verdicts over the rows of the scanned units.

    ``limit`` takes only the first episodes of each task. Raises DataError or ConfigError if the error budget is
    exceeded, two episodes have the same id, specs of one task differ, or nothing is kept.
    """
    keep, name = plan.config.keep, plan.config.name
    # --- 1. what the scan found ----------------------------------------------------------------------------------
    episodes = None if plan.list_path is None else read_episode_list(keep, plan.list_path, name)
    last_step, last_step_notices = decide(ScannedRows(segments, None).tables(), plan.config, plan.field)
    read = real_reading if last_step.reading == "real" else None
    measured = Measurements([item.scan_fields.measured for item in plan.directories], last_step.reading == "real")
    for table in ScannedRows(segments, None, read).tables():
        measured.add(table, plan.directory_of[table["file"].to_numpy()])
    scanned, collected = ScannedRows(segments, limit, read), RowCollector(plan, config.seed, episodes)
    losses, bytes_lost = Losses(), SourceLosses(plan.files)
    for table in scanned.tables():
        losses.add(table, plan.ids)
        bytes_lost.add(table)
        collected.add(table)
        del table  # the last one would keep its unit
    rows = collected.rows()
    assert rows.hashes is not None
    # --- 2. whether it can be used -------------------------------------------------------------------------------
    if plan.config.id is not None:
        check_ids(plan, scanned, rows.hashes)
    bytes_lost.check_budget(config, name)
    losses.check_budget(config, name)
    if episodes is not None and limit is None and not plan.is_partial:
        episodes.check_found(name)
    # --- 3. what is kept -----------------------------------------------------------------------------------------
    where = None if keep.where is None else Where(keep.where, None)
    named = name_notices(plan.config, plan.field, plan.columns, rows.task, rows.agent, scanned.tables)
    try:
        tasks, kept, reason = filter_rows(rows, keep, name, partial(_evaluated, plan, scanned, rows, where))
    except DataError as error:
        # A key that gives every episode a task of its own is the first thing to mend.
        raise DataError(". ".join([str(error), *named])) from None
    specs, spec_notices = task_specs(plan, collected.directories, measured)
    splits = plan.config.splits
    if splits is not None and splits.held_out is not None:
        in_held_out = kept & rows.in_held_out
    else:
        known = None if held_out_before is None else np.isin(rows.hashes, held_out_before)
        in_held_out = held_out(rows.hashes, kept, rows.task, config.holdout, known)
    needs_order = keep.min_return is not None or (where is not None and "expert_return" in where.columns)
    return EpisodeFilterResult(
        scanned=scanned,
        tasks=tuple(tasks),
        notices=(
            *plan.notices,
            *last_step_notices,
            *spec_notices,
            *field_notices([item.directory for item in plan.directories], plan.config),
            *check_values(measured, plan.config, plan.field, losses.allowed(config)),
            *_return_notices(rows, tasks, keep, name),
            *named,
            *_order_notices(plan, scanned, rows, needs_order),
            *_left_out_notices(tasks, name),
        ),
        specs=specs,
        kept=kept,
        held_out=in_held_out,
        rows=rows.for_shards(),
        source_loss=bytes_lost.entry(),
        reason=pa.array(reason, pa.string()).dictionary_encode(),
        last_step=last_step,
    )


def read_episode_list(keep: Keep, path: str, dataset: str) -> EpisodeList:
    """The dataset's episodes of the list at ``path``. Raises ConfigError if it changed since the config was read."""
    selection = EpisodeList(read_bytes(path), path, dataset)
    if keep.digest is not None and selection.digest != keep.digest:
        raise ConfigError(f"{path}: the list changed since the config was read; run the command again")
    return selection


# --- notices -------------------------------------------------------------------------------------------------


def _left_out_notices(tasks: Sequence[Task], dataset: str) -> list[str]:
    """A notice if ``keep`` leaves no episode of some tasks."""
    left_out = [task.name for task in tasks if task.is_left_out]
    if not left_out:
        return []
    return [f"{dataset}: keep leaves no episode of {len(left_out)} of {len(tasks)} tasks: {_first(left_out)}"]


def _order_notices(plan: EpisodesPlan, scanned: ScannedRows, rows: Rows, is_needed: bool) -> list[str]:
    """A notice if the collection order is needed and unknown, or if two episodes of one agent on a task have the same
    number of ``order``."""
    name = plan.config.name
    if plan.config.order is None:
        if not is_needed or plan.in_order:
            return []
        return [
            f"{name}: no collection order is configured ({plan.field}.order), so expert returns run "
            "over the order of the files, which TFDS shuffles"
        ]
    known = np.flatnonzero(np.isfinite(rows.order) & (rows.task >= 0) & (rows.agent >= 0))
    known = known[np.lexsort((rows.order[known], rows.agent[known], rows.task[known]))]
    same = np.ones(max(0, len(known) - 1), bool)
    for column in (rows.task, rows.agent, rows.order):
        same &= column[known[1:]] == column[known[:-1]]
    if not same.any():
        return []
    first = int(np.argmax(same))
    pair, number = np.sort(known[first : first + 2]), float(rows.order[known[first]])
    ids = [id_ for table in rows_at(scanned, pair) for id_ in plan.ids(table)]
    text = f"{name}: numbers of order repeat within a task and agent, {np.count_nonzero(same)} times: "
    text += f"{ids[0]} and {ids[1]} have {number:g}; "
    if rows.directory is None or rows.directory[pair[0]] == rows.directory[pair[1]]:
        return [f"{text}equal numbers are taken by position; choose another {plan.field}.order if that is wrong"]
    return [
        f"{text}directories are taken one after the other, in the order of their names; if their episodes are of "
        f"different agents, write {plan.field}.agent: {{from: directory}}"
    ]


def _return_notices(rows: Rows, tasks: Sequence[Task], keep: Keep, dataset: str) -> list[str]:
    """Notices about tasks in which a rule over returns decides nothing."""
    if keep.min_return is None and (keep.best is None or keep.by is not None):
        return []
    codes = {name: code for code, name in enumerate(rows.task_names)}
    members = _groups(rows.task)
    alike: dict[float, list[str]] = {}
    for task in tasks:
        returns = rows.returns[members[codes[task.name]]]
        returns = returns[np.isfinite(returns)]
        if len(returns) > 1 and (returns == returns[0]).all():
            alike.setdefault(float(returns[0]), []).append(task.name)
    notices = [
        f"{dataset}: every return is {value:g} in {_listed(names)}, so that keep by returns decides nothing there"
        for value, names in sorted(alike.items())
    ]
    known = {name for names in alike.values() for name in names}
    zero = [task.name for task in tasks if task.expert_return == 0 and task.name not in known]
    if keep.min_return is not None and keep.random_return is None and zero:
        text = "keep.min_return keeps every episode whose return is not negative"
        notices.append(f"{dataset}: the expert return is 0 in {_listed(zero)}, so that {text}")
    return notices


def _listed(names: Sequence[str]) -> str:
    """The task, or the number of tasks and the first of them."""
    return f"task {names[0]!r}" if len(names) == 1 else f"{len(names)} tasks ({_first(names)})"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")


# --- verdicts ------------------------------------------------------------------------------------------------


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
    rows: Rows, keep: Keep, dataset: str, evaluate: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
) -> tuple[list[Task], np.ndarray, np.ndarray]:
    """The tasks by name with their expert returns, kept (R,) bool, and reason (R,) of str or None.

    ``evaluate`` gives, from the expert return of each task in the order of ``task_names``, what the rules ``where`` and
    ``best`` need of all rows, (R,) each: those fields of ``Candidates``. N, W and the expert return count every episode
    whose rewards parse and are finite, also one that is bad otherwise and cannot be kept.

    Raises DataError if a task has no such episode, or if all episodes of a task are dropped; the rule ``where`` and a
    list of episodes may leave tasks out, but not all of them. Raises ConfigError if ``random_return`` lacks a task.
    """
    names = rows.task_names
    if not names:
        count = len(rows.reason)
        counts = f"{count} episodes, of which none is sound: {_summary(rows.reason)}" if count else "no episode"
        raise DataError(f"{dataset}: the source holds {counts}. Record it again, or leave it out of source")
    if isinstance(keep.random_return, dict) and set(names) - set(keep.random_return):
        missing = min(set(names) - set(keep.random_return))
        raise ConfigError(f"{dataset}: keep.random_return names no return for task {missing!r}; add it")
    members_of = _groups(rows.task)
    is_sound = np.isfinite(rows.returns) if rows.is_sound is None else rows.is_sound
    by_name = sorted(range(len(names)), key=names.__getitem__)
    sound_rows, streams, experts = {}, {}, np.full(len(names), np.nan)
    for code in by_name:
        members = members_of.get(code, np.empty(0, np.int64))
        sound = sound_rows[code] = members[is_sound[members]]
        if not len(sound):
            counts = f"no sound episode among {len(members)}: {_summary(rows.reason[members])}"
            raise DataError(f"{dataset}: task {names[code]!r} has {counts}")
        streams[code], experts[code] = _streams(rows, sound, keep)
    of_rows = {"success": rows.success, "listed": rows.listed, "hashes": rows.sample, "rounding": rows.rounding}
    of_rows |= {} if evaluate is None else evaluate(experts)
    kept, reason = np.zeros(len(rows.task), bool), rows.reason.copy()
    reasons = np.array([*FILTER_REASONS, None], object)
    can_leave_out = keep.where is not None or keep.episodes is not None
    tasks = []
    for code in by_name:
        sound, name, expert = sound_rows[code], names[code], float(experts[code])
        of_sound = {key: None if column is None else column[sound] for key, column in of_rows.items()}
        empty, bad = rows.steps[sound] == 0, np.array([item is not None for item in rows.reason[sound]], bool)
        verdict = apply_rules(keep, Candidates(name, rows.returns[sound], expert, ~empty, **of_sound))
        fails = ~verdict.kept & ~bad
        reason[sound[fails]] = reasons[verdict.failed[fails]]
        reason[sound[empty & ~bad]] = "too_short"
        kept[sound] = verdict.kept & ~empty & ~bad
        is_left_out = not kept[sound].any()
        has_no_success = of_sound["success"] is not None and not of_sound["success"].any() and len(names) > 1
        if is_left_out and not can_leave_out and not has_no_success:
            limit = "" if math.isnan(expert) else f"; expert return {expert:g}"
            limit += "" if verdict.threshold is None else f", threshold {verdict.threshold:g}"
            change = "Change keep" if keep.min_return is None else "Lower keep.min_return, choose another keep rule"
            raise DataError(
                f"{dataset}: task {name!r} keeps none of its {len(members_of[code])} episodes "
                f"({_summary(reason[members_of[code]])}{limit}). "
                f"{change}, or leave the task out of source"
            )
        expert_return = None if math.isnan(expert) else expert
        tasks.append(Task(name, expert_return, verdict.threshold, tuple(streams[code]), is_left_out))
    if not kept.any():
        raise DataError(
            f"{dataset}: keep leaves none of {len(reason)} episodes ({_summary(reason)}). "
            "Change keep, or leave the dataset out of the config"
        )
    return tasks, kept, reason


def _streams(rows: Rows, sound: np.ndarray, keep: Keep) -> tuple[list[Stream], float]:
    """The streams of a task's sound episodes, each in collection order, and the task's expert return: NaN if the source
    has no rewards."""
    keys = [rows.order[sound]] if rows.directory is None else [rows.order[sound], rows.directory[sound]]
    in_order = sound[np.lexsort(keys)]
    by_agent = _groups(rows.agent[in_order])
    streams = []
    for code in sorted(by_agent, key=rows.agent_names.__getitem__):
        returns = rows.returns[in_order[by_agent[code]]]
        best = None if np.isnan(returns).any() else expert_return(returns)
        streams.append(Stream(rows.agent_names[code], len(returns), window(len(returns)), best))
    if any(stream.stream_return is None for stream in streams):
        return streams, math.nan
    if keep.streams == "task":
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


def _evaluated(
    plan: EpisodesPlan, scanned: ScannedRows, rows: Rows, where: Where | None, experts: np.ndarray
) -> dict[str, np.ndarray]:
    """Which rows an expression is true for, bool (R,), and the column that ``best`` goes by, float64 (R,); each if
    there is one. They are evaluated one unit at a time."""
    by, begin = plan.config.keep.by, 0
    found: dict[str, np.ndarray] = {} if where is None else {"where": np.zeros(len(rows.task), bool)}
    found |= {} if by is None else {"by": np.zeros(len(rows.task))}
    names = (set() if where is None else where.columns) | (set() if by is None else {by})
    experts = np.append(experts, np.nan)  # for rows without a task
    for table in scanned.tables(names) if found else ():
        part = slice(begin, begin + len(table))
        columns = {name: _column(name, plan, table, rows, part, experts) for name in names}
        if where is not None:
            found["where"][part] = where.passes(columns, len(table))
        if by is not None:
            column = columns[by]
            found["by"][part] = column.values if isinstance(column, Rounded) else column
        begin = part.stop
    return found


def _column(name: str, plan: EpisodesPlan, table: pa.Table, rows: Rows, part: slice, experts: np.ndarray) -> Column:
    """A column of ``table``, which is ``part`` of the dataset, as an index will hold it."""
    numbers: np.ndarray
    match name:
        case "episode_id":
            return Strings(np.arange(len(table)), plan.ids(table))
        case "source_file":
            return Strings(table["file"].to_numpy(), [file.name for file in plan.files])
        case "task":
            return Strings(rows.task[part], rows.task_names)
        case "agent":
            return Strings(rows.agent[part], rows.agent_names)
        case "steps":
            numbers = rows.steps[part]
        case "return":
            return Rounded(rows.returns[part], np.zeros(len(table)) if rows.rounding is None else rows.rounding[part])
        case "expert_return":
            numbers = experts[rows.task[part]]
        case "source_position":
            numbers = table["position"].to_numpy()
        case "order":
            numbers = _order(rows.order[part], table["position"].to_numpy())
        case _:
            return arrow_column(table[METADATA + name])
    return numbers.astype(np.float64)


def _order(order: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The collection order, float64 (R,): the configured one, else the position in the file."""
    return np.where(np.isfinite(order), order, positions.astype(np.float64))


# --- the rows of a shard task --------------------------------------------------------------------------------


def task_rows(plan: EpisodesPlan, result: EpisodeFilterResult, scanned: pa.Table, part: slice) -> pa.Table:
    """Scanned rows, which are ``part`` of the dataset's, as a shard task holds them (schema ``TASK_ROWS``).

    ``file`` is an index into the plan's files.
    """
    rows, names = result.rows, result.rows.task_names
    positions = scanned["position"].to_numpy()
    file, task = scanned["file"].to_numpy(), rows.task[part]
    kept, held_out = result.kept[part], result.held_out[part]
    columns = {
        "episode_id": plan.ids(scanned),
        "task": _named(task, names),
        "agent": _named(rows.agent[part], rows.agent_names),
        "spec": _named(task, [result.specs[name].id for name in names]),
        "order": _order(rows.order[part], positions),
        "split": _named(np.where(kept, held_out.astype(np.int8), -1), [TRAIN, HELD_OUT]),
        "return": pa.array(rows.returns[part], from_pandas=True),
        "kept": kept,
        "reason": result.reason[part].cast(pa.string()),
        "source_file": _named(file, [file.name for file in plan.files]),
        "source_position": positions,
        "file": file,
        **{name: scanned[name] for name in ("steps", "detail", "lost", "offset", "length", "crc")},
    }
    table = pa.table(columns).select(TASK_ROWS.names).cast(TASK_ROWS)
    for name in scanned.column_names:
        if name.startswith(METADATA):
            table = table.append_column(name, scanned[name])
    return table


def _named(codes: np.ndarray, names: Sequence[object]) -> pa.Array:
    """The names of codes, null for -1."""
    return pa.array([*names, None]).take(pa.array(np.where(codes < 0, len(names), codes)))
