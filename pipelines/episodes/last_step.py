"""What the step that ``is_last`` marks holds: padding, as RLDS says, or an action and a reward that are real.

Environments' loggers put a final observation there, beside zeros or a copy of another step. Robot data has its last
action and often its only reward there. A scan reads an episode both ways; the data of the whole dataset decides.
Legend: N recorded steps of an episode, R rows of a scan.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.schemas.config_episodes import EpisodesConfig
from gatokit.schemas.manifest import LastStep

Look = Literal["zero", "copy", "other"]


def look(columns: Sequence[np.ndarray]) -> Look:
    """What the last of N > 0 steps holds in these fields together, each (N, …): only zeros or values that are not
    finite, a copy of the first step or of the one before, or something else. Fields of no step are zeros."""
    steps = len(columns[0]) if columns else 1
    parts = [column.reshape(steps, math.prod(column.shape[1:])).T for column in columns]
    found: Look = looks(parts, np.array([0]), np.array([steps])).item()
    return found


def looks(columns: Sequence[np.ndarray], begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """``look`` of E episodes, str (E,). The values of each field follow each other in a column (C, …); the steps of an
    episode go from ``begins`` to ``ends``, int (E,)."""
    is_zero = np.ones(len(begins), bool)
    is_first = is_before = ends - begins > 1
    for column in columns:
        last = column[:, ends - 1]
        is_zero = is_zero & ~(last.astype(bool) & np.isfinite(last)).any(axis=0)
        is_first = is_first & (last == column[:, begins]).all(axis=0)
        is_before = is_before & (last == column[:, np.maximum(ends - 2, begins)]).all(axis=0)
    return np.select([is_zero, is_first | is_before], ["zero", "copy"], "other")


def decide(tables: Iterable[pa.Table], config: EpisodesConfig, field: str) -> tuple[LastStep, list[str]]:
    """How the dataset's last steps are read, and a notice that says why.

    ``tables`` are all scanned rows. Without ``last_step`` in the config they are real if any sound episode has a reward
    or an action there that is neither zero nor a copy.
    """
    counts: Counter[tuple[str | None, str]] = Counter()
    for table in tables:
        sound = table.filter(pc.and_(pc.is_null(table["reason"]), pc.is_valid(table["end_action"])))
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
