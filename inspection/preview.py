"""What other rules would keep, answered from the index without a rebuild.

Legend: R rows of the index, N sound episodes of one task.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.columns import among, coded, named
from gatokit.inspection.read.dataset import DatasetReader
from gatokit.schemas.config import Keep
from gatokit.schemas.episode_list import EpisodeList
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.filter import Candidates, apply_rules, min_return_threshold, sample_hash
from gatokit.schemas.index import BAD_REASONS
from gatokit.schemas.where import Where

Rule = float | Keep
"""A fraction stands for ``min_return`` with all else as the dataset has it."""


@dataclass(frozen=True)
class TaskPreview:
    """A task under another rule beside what it is now.

    ``added`` are kept then and not now, ``removed`` the other way round. ``dropped_at`` counts every episode
    that would not be kept, damaged ones included. ``task`` is None for episodes too damaged to name theirs.
    ``threshold_at`` is None where the rule has none.
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
    """The rows of an index under a rule: ``task``, int32 (R,), indexes ``names``, -1 for none; ``kept`` and ``kept_at``
    are bool (R,), now and then; ``lost`` is int64 (R,); ``limits`` has the threshold of each task, if there is one."""

    names: list[str]
    task: np.ndarray
    kept: np.ndarray
    kept_at: np.ndarray
    lost: np.ndarray
    limits: dict[str, float | None]

    def count(self, which: np.ndarray | None = None, weights: np.ndarray | None = None) -> list[int]:
        """Rows without a task, and of each task, or the sums of their weights."""
        task = self.task if which is None else self.task[which]
        counts: list[int] = np.bincount(task + 1, weights, len(self.names) + 1).astype(np.int64).tolist()
        return counts


def preview(dataset: DatasetReader, rule: Rule) -> list[TaskPreview]:
    """What a rule would keep of every task, judged as a build judges, whatever rule the directory was made with.

    Expert returns are those of the tasks, over all sound episodes. Episodes that are damaged, were rejected
    for their content or have no step with an action are never kept; in a scan, and for episodes that the build
    dropped by a rule, content has not been looked at. ConfigError as ``replay``.
    """
    found = replay(dataset, rule)
    expert = {row.task: row.expert_return for row in dataset.tasks}
    now = {row.task: row.threshold for row in dataset.tasks}
    rows = [
        TaskPreview(
            task=name,
            expert_return=None if name is None else expert.get(name),
            threshold=None if name is None else now.get(name),
            threshold_at=None if name is None else found.limits.get(name),
            kept=kept,
            kept_at=kept_at,
            added=added,
            removed=removed,
            dropped_at=lost - kept_at,
        )
        for name, lost, kept, kept_at, added, removed in zip(
            [None, *found.names],
            found.count(None, found.lost),
            found.count(found.kept),
            found.count(found.kept_at),
            found.count(found.kept_at & ~found.kept),
            found.count(found.kept & ~found.kept_at),
            strict=True,
        )
        if lost
    ]
    return sorted(rows, key=lambda row: (row.task is None, row.task or ""))


def replay(dataset: DatasetReader, rule: Rule) -> Replayed:
    """Every row of the index under a rule; some forty bytes a row are held.

    ConfigError for documents, for a fraction outside of [0, 1], and where the rule asks for what the index does not
    hold: marks of success, or expert returns of other streams than the directory's.
    """
    keep = _keep(dataset, rule)
    expert = {row.task: row.expert_return for row in dataset.tasks if row.expert_return is not None}
    rows = _Rows(dataset, keep, expert)
    kept_at = np.zeros(len(rows.task), bool)
    limits: dict[str, float | None] = {}
    by_task = np.argsort(rows.task, kind="stable")
    codes, starts = np.unique(rows.task[by_task], return_index=True)
    for code, members in zip(codes.tolist(), np.split(by_task, starts[1:]) if len(codes) else [], strict=True):
        sound = members[np.isfinite(rows.returns[members])]
        if code < 0 or not len(sound):
            continue
        name = rows.names[code]
        if name not in expert:
            continue
        if isinstance(keep.random_return, dict) and name not in keep.random_return:
            raise ConfigError(f"{dataset.name}: random_return names no return for task {name!r}; add it")
        marks = {key: None if column is None else column[sound] for key, column in rows.marks.items()}
        verdict = apply_rules(keep, Candidates(name, rows.returns[sound], expert[name], rows.playable[sound], **marks))
        kept_at[sound] = verdict.kept & rows.playable[sound] & ~rows.bad[sound]
        limits[name] = min_return_threshold(keep, name, expert[name])
    return Replayed(rows.names, rows.task, rows.kept, kept_at, rows.lost, limits)


def _keep(dataset: DatasetReader, rule: Rule) -> Keep:
    """The rule in full; ConfigError where the index cannot answer it."""
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
    uses_expert = rule.min_return is not None or "expert_return" in _where(rule)
    if uses_expert and rule.streams != now.streams:
        raise ConfigError(
            f"streams: the expert returns of {dataset.name} are those of streams: {now.streams}, and the rule wants "
            f"{rule.streams}; scan with it"
        )
    return rule


def _where(keep: Keep) -> frozenset[str]:
    return frozenset() if keep.where is None else Where(keep.where).columns


class _Rows:
    """The columns of an index that verdicts need, read a batch at a time."""

    def __init__(self, dataset: DatasetReader, keep: Keep, expert: dict[str, float]) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        where = None if keep.where is None else Where(keep.where)
        selection = _selection(keep, dataset)
        wanted = {"task", "return", "steps", "kept", "reason", "lost"} | _where(keep)
        if selection is not None or keep.sample is not None:
            wanted.add("episode_id")
        parts: dict[str, list[np.ndarray]] = {}
        for batch in dataset.batches(sorted(wanted)):
            rows = self._batch(batch)
            if keep.success is not None:
                rows["success"] = ~among(batch["reason"], {"not_success"})
            if selection is not None:
                tasks = pc.cast(batch["task"], pa.string()).to_pylist()
                rows["listed"] = selection.find(batch["episode_id"].to_pylist(), tasks)
            if keep.sample is not None:
                hashes = [sample_hash(keep.seed or 0, id_) for id_ in batch["episode_id"].to_pylist()]
                rows["hashes"] = np.array(hashes, np.uint64)
            if where is not None:
                columns = {name: named(batch, name, expert) for name in where.columns}
                rows["where"] = where.passes(columns, batch.num_rows).copy()
            for name, values in rows.items():
                parts.setdefault(name, []).append(values)
        if selection is not None:
            selection.check_found(dataset.name)
        columns_of = {name: np.concatenate(values) for name, values in parts.items()}
        empty = np.empty(0)
        self.task = columns_of.pop("task", empty.astype(np.int32))
        self.returns = columns_of.pop("return", empty)
        self.playable = columns_of.pop("playable", empty.astype(bool))
        self.kept = columns_of.pop("kept", empty.astype(bool))
        self.bad = columns_of.pop("bad", empty.astype(bool))
        self.lost = columns_of.pop("lost", empty.astype(np.int64))
        self.marks = columns_of

    def _batch(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        codes, names = coded(batch["task"])
        known = [self._codes.setdefault(name, len(self._codes)) for name in names]
        self.names += list(self._codes)[len(self.names) :]
        return {
            "task": np.array([*known, -1], np.int32)[codes],
            "return": batch["return"].to_numpy(zero_copy_only=False),
            "playable": pc.fill_null(batch["steps"], 0).to_numpy() > 0,
            "kept": batch["kept"].to_numpy(zero_copy_only=False),
            "bad": among(batch["reason"], BAD_REASONS),
            "lost": batch["lost"].to_numpy(),
        }


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
