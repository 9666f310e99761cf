"""What the scan of a dataset says of all its episodes: how last steps are read, and columns for the filter.

The scanned rows stay in files. In memory there are about thirty bytes of each. Legend: R rows of the dataset's scan.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.pipelines.episodes.plan import EpisodesPlan
from gatokit.pipelines.holdout import row_hash
from gatokit.pipelines.stages import ScannedRows
from gatokit.schemas.config_episodes import EpisodesConfig
from gatokit.schemas.episode_list import EpisodeList
from gatokit.schemas.errors import DataError
from gatokit.schemas.filter import at_or_above, sample_hash
from gatokit.schemas.manifest import LastStep

# --- what the step that is_last marks holds: padding, as RLDS says, or an action and a reward that are real ---------


def decide(tables: Iterable[pa.Table], config: EpisodesConfig, field: str) -> tuple[LastStep, list[str]]:
    """How the dataset's last steps are read, and a notice that says why.

    ``tables`` are all scanned rows. Without ``last_step`` in the config they are real if any sound episode has a reward
    or an action there that is neither zero nor a copy.
    """
    counts: Counter[tuple[str | None, str]] = Counter()
    for table in tables:
        looks = table.select(["end_reward_look", "end_action"])
        sound = looks.filter(pc.and_(pc.is_null(table["reason"]), pc.is_valid(table["end_action"])))
        grouped = sound.group_by(["end_reward_look", "end_action"]).aggregate([([], "count_all")])
        for row in grouped.to_pylist():
            counts[row["end_reward_look"], row["end_action"]] += row["count_all"]
    marked = counts.total()
    rewards = sum(count for (reward, _), count in counts.items() if reward == "other")
    actions = sum(count for (_, action), count in counts.items() if action == "other")
    either = sum(count for looks, count in counts.items() if "other" in looks)
    asked = config.last_step or "auto"
    reading = asked if asked != "auto" else "real" if either else "padding"
    entry = LastStep(
        reading=reading,
        decided_by="data" if asked == "auto" else "config",
        episodes=marked,
        other_rewards=rewards,
        other_actions=actions,
        other=either,
    )
    if not marked or (asked == reading and (reading == "real") == bool(either)):
        return entry, []
    evidence = f"in {either} of {marked} episodes the step that is_last marks has a reward ({rewards}) or an action "
    evidence += f"({actions}) that is neither zero nor a copy of the first step's or of the one before"
    if asked == reading:
        return entry, [f"{config.name}: the config says last_step: {reading}, and {evidence}"]
    meaning = "a step like any other" if reading == "real" else "no step to learn from"
    other = "padding" if reading == "real" else "real"
    return entry, [
        f"{config.name}: the last step is taken for {reading}, so it is {meaning}: {evidence}; state it as "
        f"{field}.last_step: {reading}, or {other}"
    ]


def real_reading(table: pa.Table) -> pa.Table:
    """Scanned rows if the step that ``is_last`` marks is a step like any other."""
    end, is_marked = table["end_reward"], pc.is_valid(table["end_action"])
    is_bad = pc.and_(pc.is_null(table["reason"]), pc.invert(pc.fill_null(pc.is_finite(end), True)))
    detail = [
        f"reward is {value} at step {step}" if bad else None
        for value, step, bad in zip(end.to_pylist(), table["steps"].to_pylist(), is_bad.to_pylist(), strict=True)
    ]
    changed = {
        "steps": pc.add(table["steps"], is_marked.cast(pa.int64())),
        "return": pc.add(table["return"], pc.fill_null(end, 0.0)),
        "rounding": pc.add(table["rounding"], pc.fill_null(table["end_rounding"], 0.0)),
        "last_reward": pc.coalesce(end, table["last_reward"]),
        "last_rounding": pc.coalesce(table["end_rounding"], table["last_rounding"]),
        "reason": pc.if_else(is_bad, "not_finite", table["reason"].cast(pa.string())),
        "detail": pc.coalesce(table["detail"], pa.array(detail, pa.string())),
    }
    for name, column in changed.items():
        field = table.schema.field(name)
        if pa.types.is_dictionary(field.type):
            column = pc.dictionary_encode(column)
        table = table.set_column(table.schema.get_field_index(name), field, column.cast(field.type))
    return table


# --- columns of all rows -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Columns of a dataset's scan, (R,) each, in source order.

    ``task`` and ``agent`` are indexes into their names, -1 for none. ``returns`` is NaN if the rewards do not parse or
    the source has none. ``reason`` is an object array of str or None. ``rounding`` says how far returns may be from the
    recorder's (None: they are exact). ``is_sound`` (bool) are the episodes whose steps and rewards parse; None: those
    with a return. ``hashes``, uint64, are those of the ids (``row_hash``), and ``in_held_out``, bool, says whether the
    episode's split is held out. ``success`` and ``listed`` (bool) and ``sample`` (uint64, see ``sample_hash``) exist if
    a rule needs them, and ``directory``, the ordinal of the source's directory, if there are several and ``order``
    counts in each.
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
    rounding: np.ndarray | None = None
    is_sound: np.ndarray | None = None
    hashes: np.ndarray | None = None
    in_held_out: np.ndarray | None = None
    listed: np.ndarray | None = None
    sample: np.ndarray | None = None
    directory: np.ndarray | None = None

    def for_shards(self) -> "Rows":
        """The rows with the columns alone that ``task_rows`` needs, because the others take memory."""
        nothing, names = np.empty(0), (self.task_names, self.agent_names)
        return Rows(self.task, self.agent, self.order, nothing, self.returns, None, nothing, *names)


class RowCollector:
    """Collects ``Rows`` from the tables of a scan.

    They are held as bytes: an array for each unit would fragment the memory.
    """

    _DTYPES: ClassVar = {
        "task": np.int32,
        "agent": np.int32,
        "reason": np.int16,
        "order": np.float64,
        "steps": np.uint32,
        "returns": np.float64,
        "rounding": np.float64,
        "is_sound": np.bool_,
        "hashes": np.uint64,
        "in_held_out": np.bool_,
        "success": np.bool_,
        "listed": np.bool_,
        "sample": np.uint64,
        "directory": np.int32,
    }

    def __init__(self, plan: EpisodesPlan, seed: int, episodes: EpisodeList | None) -> None:
        """``seed`` is the build's. ``episodes`` is the list of episodes to keep, if there is one."""
        self._plan, self._seed, self._episodes = plan, seed, episodes
        self._columns = {name: bytearray() for name in self._DTYPES}
        self._numbers: dict[str, dict[str, int]] = {"task": {}, "agent": {}, "reason": {}}
        """The names in each of these columns, with their numbers."""
        self._directories: dict[int, set[int]] = {}

    @property
    def directories(self) -> dict[str, list[int]]:
        """The ordinals of the directories of each task."""
        return {name: sorted(self._directories[number]) for name, number in self._numbers["task"].items()}

    def add(self, table: pa.Table) -> None:
        """Appends the next rows."""
        plan, keep = self._plan, self._plan.config.keep
        file, ids = table["file"].to_numpy(), plan.ids(table)
        directory, returns = plan.directory_of[file], table["return"]
        is_sound = pc.if_else(pc.is_valid(returns), pc.is_finite(returns), pc.is_valid(table["steps"]))
        columns = {name: _numbered(table[name], numbers) for name, numbers in self._numbers.items()}
        columns |= {
            "order": table["order"].to_numpy(),
            "steps": table["steps"].fill_null(0).to_numpy(),
            "returns": returns.to_numpy(),
            "rounding": table["rounding"].fill_null(0.0).to_numpy(),
            "is_sound": is_sound.to_numpy(),
            "hashes": np.array([row_hash(self._seed, id_) for id_ in ids], np.uint64),
            "in_held_out": plan.held_out[file],
        }
        if keep.success is not None and keep.success.last_reward is not None:
            last, rounding = (table[column].to_numpy() for column in ("last_reward", "last_rounding"))
            columns["success"] = at_or_above(last, keep.success.last_reward, rounding)
        elif keep.success is not None:
            columns["success"] = table["success"].fill_null(False).to_numpy()
        if self._episodes is not None:
            columns["listed"] = self._episodes.find(ids, table["task"].to_pylist())
        if keep.sample is not None:
            columns["sample"] = np.array([sample_hash(keep.seed or 0, id_) for id_ in ids], np.uint64)
        if plan.config.order is not None and len(plan.directories) > 1:
            columns["directory"] = directory
        for name, column in columns.items():
            self._columns[name] += column.astype(self._DTYPES[name]).tobytes()
        for code, number in np.unique(np.stack([columns["task"], directory]), axis=1).T.tolist():
            self._directories.setdefault(code, set()).add(number)

    def rows(self) -> Rows:
        """The columns over all rows. Call it once: it releases what was collected."""
        columns: dict[str, Any] = {
            name: np.frombuffer(data, self._DTYPES[name]) for name, data in self._columns.items()
        }
        self._columns = {}
        for name in ("success", "listed", "sample", "directory"):
            columns[name] = columns[name] if len(columns[name]) else None
        tasks, agents, reasons = self._numbers.values()
        columns["reason"] = np.array([*reasons, None], object)[columns["reason"]]
        return Rows(**columns, task_names=list(tasks), agent_names=list(agents))


def _numbered(column: pa.ChunkedArray, numbers: dict[str, int]) -> np.ndarray:
    """The numbers of the names in a dictionary column, int32, -1 for null. A new name gets the next number."""
    parts = [np.empty(0, np.int32)]
    for chunk in column.chunks:
        known = [numbers.setdefault(name, len(numbers)) for name in chunk.dictionary.to_pylist()]
        parts.append(np.array([*known, -1], np.int32)[chunk.indices.fill_null(-1).to_numpy()])
    return np.concatenate(parts)


def check_ids(plan: EpisodesPlan, scanned: ScannedRows, hashes: np.ndarray) -> None:
    """Raises DataError if two episodes have the same id. Only ids with equal ``hashes`` are compared."""
    values, counts = np.unique(hashes, return_counts=True)
    seen: dict[str, str] = {}
    for table in rows_at(scanned, np.flatnonzero(np.isin(hashes, values[counts > 1]))):
        for id_, address in zip(plan.ids(table), plan.addresses(table), strict=True):
            if id_ in seen:
                raise DataError(
                    f"{plan.config.name}: {seen[id_]} and {address} have the same episode id {id_!r}; "
                    "choose another metadata key for id, or leave id out"
                )
            seen[id_] = address


def rows_at(scanned: ScannedRows, numbers: np.ndarray) -> Iterator[pa.Table]:
    """Yields the scanned rows with these ascending ``numbers``, in one table for each unit that has any."""
    begin = 0
    for table in scanned.tables() if len(numbers) else ():
        here = numbers[(numbers >= begin) & (numbers < begin + len(table))] - begin
        begin += len(table)
        if len(here):
            yield table.take(pa.array(here))
