"""What other keep rules would keep, answered from the index without a rebuild.

Legend: R rows of the index, N sound episodes of one task.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import TaskCodes, among, named
from gatokit.schemas.config import Keep
from gatokit.schemas.episode_list import EpisodeList
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.filter import Candidates, apply_rules, min_return_threshold, sample_hash
from gatokit.schemas.index import BAD_REASONS
from gatokit.schemas.where import Where

Rule = float | Keep
"""A fraction stands for ``min_return``, with all else as the dataset has it."""


@dataclass(frozen=True)
class TaskPreview:
    """A task under another rule beside what it is now.

    ``added`` are kept then and not now, ``removed`` the other way round. ``dropped_at`` counts every episode that
    would not be kept, damaged ones included. ``task`` is None for episodes that are too damaged to name theirs.
    ``threshold_at`` is None if the rule has none.
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
    """The rows of an index under a rule. ``task`` is int32 (R,), the index in ``names``, or -1; ``kept`` and
    ``kept_at`` are bool (R,), now and then; ``episodes`` is int64 (R,), how many of the source a row stands for;
    ``thresholds`` has that of each task, if there is one."""

    names: list[str]
    task: np.ndarray
    kept: np.ndarray
    kept_at: np.ndarray
    episodes: np.ndarray
    thresholds: dict[str, float | None]

    def count(self, mask: np.ndarray | None = None, weights: np.ndarray | None = None) -> list[int]:
        """Rows without a task, then those of each task, or the sums of their weights."""
        task = self.task if mask is None else self.task[mask]
        counts: list[int] = np.bincount(task + 1, weights, len(self.names) + 1).astype(np.int64).tolist()
        return counts


def preview(dataset: DatasetReader, rule: Rule) -> list[TaskPreview]:
    """What a rule would keep of every task, judged as a build judges, whatever rule the directory was made with.

    Expert returns are those of the tasks, over all sound episodes. Episodes that are damaged, were rejected for their
    content or have no step with an action are never kept. A scan has not looked at content, nor has a build at that of
    episodes that it dropped by a rule. Raises ConfigError as ``replay``.
    """
    rows = replay(dataset, rule)
    expert = {row.task: row.expert_return for row in dataset.tasks}
    threshold = {row.task: row.threshold for row in dataset.tasks}
    tasks = [
        TaskPreview(
            task=name,
            expert_return=None if name is None else expert.get(name),
            threshold=None if name is None else threshold.get(name),
            threshold_at=None if name is None else rows.thresholds.get(name),
            kept=kept,
            kept_at=kept_at,
            added=added,
            removed=removed,
            dropped_at=episodes - kept_at,
        )
        for name, episodes, kept, kept_at, added, removed in zip(
            [None, *rows.names],
            rows.count(None, rows.episodes),
            rows.count(rows.kept),
            rows.count(rows.kept_at),
            rows.count(rows.kept_at & ~rows.kept),
            rows.count(rows.kept & ~rows.kept_at),
            strict=True,
        )
        if episodes
    ]
    return sorted(tasks, key=lambda row: (row.task is None, row.task or ""))


def replay(dataset: DatasetReader, rule: Rule) -> Replayed:
    """Every row of the index under a rule; about forty bytes a row are held.

    Raises ConfigError for documents, for a fraction outside of [0, 1], and if the rule asks for what the index does
    not hold: marks of success, or expert returns of other streams than the directory's.
    """
    keep = _full_rule(dataset, rule)
    expert = dataset.expert_returns
    names, columns = _read_columns(dataset, keep, expert)
    task, returns, playable = columns.pop("task"), columns.pop("return"), columns.pop("playable")
    kept, bad, episodes = columns.pop("kept"), columns.pop("bad"), columns.pop("lost")
    kept_at = np.zeros(len(task), bool)
    thresholds: dict[str, float | None] = {}
    by_task = np.argsort(task, kind="stable")
    codes, starts = np.unique(task[by_task], return_index=True)
    for code, members in zip(codes.tolist(), np.split(by_task, starts[1:]) if len(codes) else [], strict=True):
        sound = members[np.isfinite(returns[members])]
        name = names[code] if code >= 0 else ""
        if not len(sound) or name not in expert:
            continue
        if isinstance(keep.random_return, dict) and name not in keep.random_return:
            raise ConfigError(f"{dataset.name}: random_return names no return for task {name!r}; add it")
        marks = {key: column[sound] for key, column in columns.items()}
        verdict = apply_rules(keep, Candidates(name, returns[sound], expert[name], playable[sound], **marks))
        kept_at[sound] = verdict.kept & playable[sound] & ~bad[sound]
        thresholds[name] = min_return_threshold(keep, name, expert[name])
    return Replayed(names, task, kept, kept_at, episodes, thresholds)


def rule_value(rule: Rule) -> Any:
    """A rule as JSON: a fraction as it is, a keep rule as a config has it."""
    return rule if isinstance(rule, float) else rule.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def rule_text(rule: Rule) -> str:
    """A rule as the text of a config."""
    if isinstance(rule, float):
        return f"{{min_return: {rule:g}}}"
    items = rule_value(rule).items()
    return "{" + ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in items) + "}"


def _full_rule(dataset: DatasetReader, rule: Rule) -> Keep:
    """The keep rule that ``rule`` stands for. Raises ConfigError if the index cannot answer it."""
    now = dataset.keep
    if now is None:
        raise ConfigError(f"{dataset.name} holds documents, which have no threshold")
    if not isinstance(rule, Keep):
        if not 0 <= rule <= 1:
            raise ConfigError(f"{rule:g} is no fraction of the expert return: give a number from 0 to 1")
        random = {} if now.random_return is None else {"random_return": now.random_return}
        return Keep.model_validate({"min_return": rule, "streams": now.streams, **random})
    if rule.success is not None and rule.success != now.success:
        raise ConfigError(
            f"success: the index of {dataset.name} does not hold the mark {rule.success!r}; scan with "
            f"keep: {{success: {rule.success}}}"
        )
    uses_expert = rule.min_return is not None or (rule.where and "expert_return" in Where(rule.where).columns)
    if uses_expert and rule.streams != now.streams:
        raise ConfigError(
            f"streams: the expert returns of {dataset.name} are those of streams: {now.streams}, and the rule wants "
            f"{rule.streams}; scan with it"
        )
    return rule


def _read_columns(
    dataset: DatasetReader, keep: Keep, expert: dict[str, float]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of tasks, and what verdicts need of every row, (R,) each, read a batch at a time. The columns that only
    some rules need have the names of the fields of ``Candidates``."""
    where = None if keep.where is None else Where(keep.where)
    selection = _selection(keep, dataset)
    wanted = {"task", "return", "steps", "kept", "reason", "lost"} | (set() if where is None else where.columns)
    if selection is not None or keep.sample is not None:
        wanted.add("episode_id")
    tasks = TaskCodes()
    kinds = {"task": np.int32, "return": float, "playable": bool, "kept": bool, "bad": bool, "lost": np.int64}
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0, kind)] for name, kind in kinds.items()}
    for batch in dataset.batches(sorted(wanted)):
        rows = {
            "task": tasks.codes(batch["task"]),
            "return": batch["return"].to_numpy(zero_copy_only=False),
            "playable": pc.fill_null(batch["steps"], 0).to_numpy() > 0,
            "kept": batch["kept"].to_numpy(zero_copy_only=False),
            "bad": among(batch["reason"], BAD_REASONS),
            "lost": batch["lost"].to_numpy(),
        }
        if keep.success is not None:
            rows["success"] = ~among(batch["reason"], {"not_success"})
        if selection is not None:
            names = pc.cast(batch["task"], pa.string()).to_pylist()
            rows["listed"] = selection.find(batch["episode_id"].to_pylist(), names)
        if keep.sample is not None:
            hashes = [sample_hash(keep.seed or 0, id_) for id_ in batch["episode_id"].to_pylist()]
            rows["hashes"] = np.array(hashes, np.uint64)
        if where is not None:
            values = {name: named(batch, name, expert) for name in where.columns}
            rows["where"] = where.passes(values, batch.num_rows).copy()
        for name, column in rows.items():
            parts.setdefault(name, []).append(column)
    if selection is not None:
        selection.check_found(dataset.name)
    return list(tasks.of_name), {name: np.concatenate(columns) for name, columns in parts.items()}


def _selection(keep: Keep, dataset: DatasetReader) -> EpisodeList | None:
    if keep.episodes is None:
        return None
    try:
        data = Path(keep.episodes).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(
            f"episodes: cannot read {keep.episodes}: {error.strerror}; give a list of episode ids"
        ) from None
    return EpisodeList(data, keep.episodes, dataset.name)
