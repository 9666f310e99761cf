"""What other keep rules would keep, answered from the index without a rebuild.

Legend: R rows of the index, N sound episodes of one task.
"""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import TaskCodes, among, where_column, where_columns
from gatokit.schemas.config_episodes import Keep, Success
from gatokit.schemas.episode_list import EpisodeList
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.filter import Candidates, apply_rules, float32_rounding, min_return_threshold, sample_hash
from gatokit.schemas.index import BAD_REASONS, OF_TASK
from gatokit.schemas.where import Where, unknown_column

Rule = float | Keep
"""A fraction means the rule ``{min_return: fraction}`` with the streams and the random return of the dataset."""


@dataclass(frozen=True)
class TaskPreview:
    """A task as it is and under another rule.

    The rule would keep the ``added`` ones, which are dropped now, and would drop the ``removed`` ones. ``dropped_at``
    counts all that it would drop, damaged episodes included. ``task`` is None for episodes that are too damaged to name
    theirs. ``threshold_at`` is None if the rule has no threshold.
    """

    task: str | None
    expert_return: float | None
    threshold: float | None
    threshold_at: float | None
    kept: int
    kept_at: int
    added: int
    removed: int
    dropped_at: int


@dataclass(frozen=True)
class Replayed:
    """The rows of an index under a rule. ``task`` is int32 (R,), the index in ``names``, -1 for a row without a task;
    ``kept`` and ``kept_at`` are bool (R,), as the directory is and by the rule; ``steps`` is int64 (R,), ``episodes``
    too: how many of the source a row counts. ``thresholds`` has that of each task, if the rule has one."""

    names: list[str]
    task: np.ndarray
    kept: np.ndarray
    kept_at: np.ndarray
    steps: np.ndarray
    episodes: np.ndarray
    thresholds: dict[str, float | None]

    def count(self, mask: np.ndarray | None = None, weights: np.ndarray | None = None) -> list[int]:
        """Rows without a task, then those of each task, or the sums of their weights."""
        task = self.task if mask is None else self.task[mask]
        counts: list[int] = np.bincount(task + 1, weights, len(self.names) + 1).astype(np.int64).tolist()
        return counts


def preview(dataset: DatasetReader, rule: Rule) -> list[TaskPreview]:
    """What a rule would keep of every task, by the same rules as a build. The rule of the directory does not matter.

    Expert returns are those of the tasks, over all sound episodes. Episodes that are damaged, were rejected for their
    content or have no step with an action are never kept. A scan has not looked at content, nor has a build at that of
    episodes that it dropped by a rule. Raises ConfigError as ``replay`` does.
    """
    rows = replay(dataset, rule)
    expert_returns, thresholds = dataset.expert_returns, dataset.thresholds
    counts = zip(
        [None, *rows.names],
        rows.count(weights=rows.episodes),
        rows.count(rows.kept),
        rows.count(rows.kept_at),
        rows.count(rows.kept_at & ~rows.kept),
        rows.count(rows.kept & ~rows.kept_at),
        strict=True,
    )
    tasks = [
        TaskPreview(
            task=task,
            expert_return=expert_returns.get(task or ""),
            threshold=thresholds.get(task or ""),
            threshold_at=rows.thresholds.get(task or ""),
            kept=kept,
            kept_at=kept_at,
            added=added,
            removed=removed,
            dropped_at=episodes - kept_at,
        )
        for task, episodes, kept, kept_at, added, removed in counts
        if episodes
    ]
    return sorted(tasks, key=lambda row: (row.task is None, row.task or ""))


def replay(dataset: DatasetReader, rule: Rule) -> Replayed:
    """Every row of the index under a rule; about fifty bytes a row are held.

    Raises ConfigError for documents, for a fraction outside of [0, 1], and if the rule needs what the index does not
    hold: marks of success, or expert returns of other streams than the directory's.
    """
    keep = _keep_rule(dataset, rule)
    expert = dataset.expert_returns
    names, rows = _read_index(dataset, keep)
    marks = [name for name in ("success", "where", "listed", "hashes", "by") if name in rows]
    task, returns = rows["task"], rows["return"]
    kept_at = np.zeros(len(task), bool)
    thresholds: dict[str, float | None] = {}
    by_task = np.argsort(task, kind="stable")
    begins = np.searchsorted(task[by_task], np.arange(len(names) + 1))
    for name, begin, end in zip(names, begins[:-1], begins[1:], strict=True):
        members = by_task[begin:end]
        sound = members[np.isfinite(returns[members])] if name in expert else members
        if not len(sound):
            continue
        if (
            name not in expert
            and (keep.min_return, keep.returns, keep.best if keep.by is None else None) != (None,) * 3
        ):
            raise ConfigError(f"{dataset.name}: the episodes of task {name!r} have no rewards, which the rule needs")
        if isinstance(keep.random_return, dict) and name not in keep.random_return:
            raise ConfigError(f"{dataset.name}: random_return names no return for task {name!r}; add it")
        playable = rows["steps"][sound] > 0
        of_sound = {mark: rows[mark][sound] for mark in marks}
        expert_return = expert.get(name, math.nan)
        rounding = float32_rounding(returns[sound])
        outcome = apply_rules(
            keep, Candidates(name, returns[sound], expert_return, playable, rounding=rounding, **of_sound)
        )
        kept_at[sound] = outcome.kept & playable & ~rows["bad"][sound]
        thresholds[name] = min_return_threshold(keep, name, expert_return)
    return Replayed(names, task, rows["kept"], kept_at, rows["steps"], rows["lost"], thresholds)


def rule_value(rule: Rule) -> Any:
    """A rule as JSON: a fraction as it is, a keep rule as a config has it."""
    return rule if isinstance(rule, float) else rule.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def rule_text(rule: Rule) -> str:
    """A rule as the text of a config."""
    if isinstance(rule, float):
        return f"{{min_return: {rule:g}}}"
    items = rule_value(rule).items()
    return "{" + ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in items) + "}"


def _keep_rule(dataset: DatasetReader, rule: Rule) -> Keep:
    """The keep rule that ``rule`` means. Raises ConfigError if the index cannot answer it."""
    now = dataset.keep
    if now is None:
        raise ConfigError(f"{dataset.name} holds documents, which have no threshold")
    if not isinstance(rule, Keep):
        if not 0 <= rule <= 1:
            raise ConfigError(f"{rule:g} is no fraction of the expert return: give a number from 0 to 1")
        random = {} if now.random_return is None else {"random_return": now.random_return}
        return Keep.model_validate({"min_return": rule, "streams": now.streams, **random})
    if rule.success is not None and rule.success != now.success and _mark_column(dataset, rule.success) is None:
        raise _no_mark(dataset, rule.success)
    where = None if rule.where is None else _expression(dataset, rule.where)
    uses_expert = rule.min_return is not None or (where is not None and "expert_return" in where.columns)
    if uses_expert and rule.streams != now.streams:
        raise ConfigError(
            f"streams: the expert returns of {dataset.name} are those of streams: {now.streams}, and the rule wants "
            f"{rule.streams}; scan with it"
        )
    return rule


def _mark_column(dataset: DatasetReader, success: Success) -> str | None:
    """The column of the index that holds a mark of success; None if it holds none, or a text without ``matches``."""
    key = success.metadata or success.key
    if key is None:
        return None
    names = [name for name in dataset.columns if name == key] or [
        name for name in dataset.columns if name.endswith(f"/{key}") or key.endswith(f"/{name}")
    ]
    is_known = len(names) == 1 and (success.matches is not None or dataset.columns[names[0]] != "string")
    return names[0] if is_known else None


def _no_mark(dataset: DatasetReader, success: Success) -> ConfigError:
    """What to do if the index does not hold a mark of success."""
    key = success.metadata or success.key
    mark = success.model_dump(mode="json", exclude_none=True)
    written = mark if isinstance(mark, str) else json.dumps(mark, ensure_ascii=False)
    way_out = f"write keep: {{success: {written}}} into the config, run gatokit scan, and inspect what that writes"
    if key is None:
        what = f"the steps' field {success.field}" if success.field is not None else "the last rewards"
        return ConfigError(
            f"success: only a scan reads {what}, and the index of {dataset.name} does not", way_out=way_out
        )
    problem = f"success: the index of {dataset.name} does not hold the mark {key!r}"
    if dataset.columns.get(key) == "string":
        problem = f"success: the column {key} of {dataset.name} is a text"
        way_out = f"say which texts are a success, such as {{success: {{metadata: {key}, matches: '^success$'}}}}"
    elif success.metadata is not None:
        way_out = f"its columns are {', '.join(sorted(dataset.columns)) or 'none'}"
    return ConfigError(problem, way_out=way_out)


def _has_mark(column: pa.Array, success: Success) -> np.ndarray:
    """Which rows a column (R,) marks as a success, bool (R,)."""
    if success.matches is None:
        marked = pc.not_equal(pc.cast(column, pa.float64()), 0.0)
    else:
        marked = pc.match_substring_regex(pc.cast(column, pa.string()), success.matches)
    return np.asarray(pc.fill_null(marked, False).to_numpy(zero_copy_only=False))


def _expression(dataset: DatasetReader, text: str) -> Where:
    """The expression ``text``. Raises ConfigError if the index does not have a column that it names."""
    try:
        return Where(text, dataset.column_types)
    except ValueError as error:
        raise ConfigError(f"{dataset.name}: where: {error}") from None


def _by_column(dataset: DatasetReader, name: str) -> str:
    """The column of numbers that ``best`` goes by. Raises ConfigError if the index has none of this name."""
    numbers = [column for column, type_ in dataset.column_types.items() if type_ == "number"]
    if name not in numbers:
        raise ConfigError(f"{dataset.name}: by: {unknown_column(name, numbers)}")
    return name


def _read_index(dataset: DatasetReader, keep: Keep) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of tasks, and what the rule needs of the rows, (R,) each. The index is read some rows at a time.

    What only some rules need has the names of the fields of ``Candidates``.
    """
    where = None if keep.where is None else _expression(dataset, keep.where)
    listed = None
    if keep.episodes is not None:
        try:
            data = Path(keep.episodes).expanduser().read_bytes()
        except OSError as error:
            raise ConfigError(
                f"episodes: cannot read {keep.episodes}: {error.strerror}; give a list of episode ids"
            ) from None
        listed = EpisodeList(data, keep.episodes, dataset.name)
    columns = {"task", "return", "steps", "kept", "reason", "lost"} | (set() if where is None else where.columns)
    mark = None
    if keep.success is not None and dataset.keep is not None and keep.success != dataset.keep.success:
        mark = _mark_column(dataset, keep.success)
        columns |= {mark} if mark is not None else set()
    if keep.by is not None:
        columns.add(_by_column(dataset, keep.by))
    if listed is not None or keep.sample is not None:
        columns.add("episode_id")
    tasks = TaskCodes()
    types = {"task": np.int32, "return": float, "steps": np.int64, "kept": bool, "bad": bool, "lost": np.int64}
    rows = defaultdict(list, {name: [np.empty(0, type_)] for name, type_ in types.items()})
    for batch in dataset.batches(sorted(columns - {*OF_TASK})):
        rows["task"].append(tasks.codes(batch["task"]))
        rows["return"].append(batch["return"].to_numpy(zero_copy_only=False))
        rows["steps"].append(pc.fill_null(batch["steps"], 0).to_numpy())
        rows["kept"].append(batch["kept"].to_numpy(zero_copy_only=False))
        rows["bad"].append(among(batch["reason"], BAD_REASONS))
        rows["lost"].append(batch["lost"].to_numpy())
        if mark is not None and keep.success is not None:
            rows["success"].append(_has_mark(batch[mark], keep.success))
        elif keep.success is not None:
            rows["success"].append(~among(batch["reason"], {"not_success"}))
        if keep.by is not None:
            rows["by"].append(np.asarray(where_column(batch, keep.by, dataset.of_tasks)))
        if listed is not None:
            names = pc.cast(batch["task"], pa.string()).to_pylist()
            rows["listed"].append(listed.find(batch["episode_id"].to_pylist(), names))
        if keep.sample is not None:
            hashes = [sample_hash(keep.seed or 0, id_) for id_ in batch["episode_id"].to_pylist()]
            rows["hashes"].append(np.array(hashes, np.uint64))
        if where is not None:
            values = where_columns(batch, where.columns, dataset.of_tasks)
            rows["where"].append(where.passes(values, batch.num_rows).copy())
    if listed is not None:
        listed.check_found(dataset.name)
    return list(tasks.of_name), {name: np.concatenate(parts) for name, parts in rows.items()}
