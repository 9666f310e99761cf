"""The index of a dataset: its rows and those of the table of tasks as objects, its columns as NumPy arrays.

Legend: R rows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa

from gatokit.schemas.errors import MalformedError
from gatokit.schemas.filter import float32_rounding
from gatokit.schemas.index import HELD_OUT, REASONS, ROW_COLUMNS, TASKS
from gatokit.schemas.manifest import ShardEntry
from gatokit.schemas.untrusted import quoted
from gatokit.schemas.where import Column, Rounded, arrow_column, coded
from gatokit.schemas.words import counted

_NAMES = frozenset(ROW_COLUMNS)


@dataclass(frozen=True)
class EpisodeRow:
    """One episode or document of a dataset, kept or dropped: ``schemas.index.ROW_COLUMNS`` under the same names, except
    that ``return``, a keyword of Python, is ``episode_return``. ``metadata`` has the other columns: the values that the
    source stores with the episode.

    ``shard`` is the file below the dataset's directory that holds it, None if nothing is stored. ``task``, ``agent``
    and ``episode_return`` are None if the episode is too damaged to say; ``tokens`` in a scan; ``part``,
    ``first_record`` and ``record_tokens`` if nothing is stored; ``spec``, ``steps`` and all returns for a document.
    """

    episode_id: str
    task: str | None
    agent: str | None
    spec: str | None
    order: float | None
    split: str | None
    steps: int | None
    episode_return: float | None
    expert_return: float | None
    threshold: float | None
    kept: bool
    reason: str | None
    detail: str | None
    lost: int
    tokens: int | None
    part: int | None
    first_record: int | None
    record_tokens: tuple[int, ...] | None
    source_file: str
    source_position: int
    shard: str | None
    metadata: Mapping[str, str | bool | int | float | None] = field(default_factory=dict, hash=False)

    @property
    def verdict(self) -> str | None:
        """``kept``, ``held out``, or the reason why it was dropped."""
        return ("held out" if self.split == HELD_OUT else "kept") if self.kept else self.reason

    @property
    def why_unstored(self) -> str:
        """Why no tokens of it are stored."""
        if self.kept:
            return "kept; a scan stores no tokens, build to see them"
        if self.reason is None:
            return "dropped; the index does not say why"
        detail = "" if self.detail is None else f" ({self.detail})"
        return f"dropped: {self.reason}{detail}: {reason_meaning(self.reason)}"

    @staticmethod
    def from_columns(columns: Mapping[str, Any], parts: Sequence[ShardEntry]) -> "EpisodeRow":
        """The row with these values by column name, of a split that has these shards. Raises MalformedError if it names
        another shard."""
        values = {name: columns[name] for name in ROW_COLUMNS if name != "return"}
        sizes, part = values["record_tokens"], values["part"]
        values["record_tokens"] = None if sizes is None else tuple(sizes)
        if part is not None and part >= len(parts):
            problem = f"has part {part}, and its split has {counted(len(parts), 'shard')}"
            raise MalformedError(f"the index row of {quoted(columns['episode_id'])} {problem}")
        shard = None if part is None else parts[part].file
        metadata = {name: value for name, value in columns.items() if name not in _NAMES}
        return EpisodeRow(episode_return=columns["return"], shard=shard, metadata=metadata, **values)

    def columns(self) -> dict[str, Any]:
        """The values by column name, in the index's order, and the shard."""
        values = {name: getattr(self, "episode_return" if name == "return" else name) for name in ROW_COLUMNS}
        return values | dict(self.metadata) | {"shard": self.shard}


@dataclass(frozen=True)
class TaskRow:
    """One agent's stream of a task: the columns of ``schemas.index.TASKS`` under the same names.

    A dataset of documents has one row. It has the dataset's name and neither a window nor returns; its ``episodes``
    counts the documents that the scan found sound.
    """

    task: str
    agent: str
    episodes: int
    window: int | None
    stream_return: float | None
    expert_return: float | None
    threshold: float | None
    kept: int
    dropped: int
    held_out: int
    steps: int
    tokens: int | None


assert [item.name for item in fields(TaskRow)] == TASKS.names


@dataclass(frozen=True)
class TaskTotals:
    """The streams of a task's agents added up; ``found`` counts kept and dropped episodes, ``steps`` those of kept
    ones."""

    task: str
    found: int
    kept: int
    expert_return: float | None
    threshold: float | None
    steps: int


def reason_meaning(reason: str | None) -> str:
    """What a reason to drop an episode or document means."""
    return REASONS.get(reason or "", "a reason that this gatokit does not know")


class TaskCodes:
    """Codes of task names; a name has the same code in every batch of an index."""

    def __init__(self) -> None:
        self.of_name: dict[str, int] = {}

    def codes(self, column: pa.Array) -> np.ndarray:
        """The code of each row, int32 (R,), -1 for null."""
        local, names = coded(column)
        # The last code is that of null, whose index is -1; so it is in all such arrays below.
        return np.array([*(self.of_name.setdefault(name, len(self.of_name)) for name in names), -1], np.int32)[local]


def among(column: pa.Array, words: Collection[str]) -> np.ndarray:
    """Whether each row of a column of strings is one of some words, bool (R,)."""
    codes, names = coded(column)
    return np.array([*(name in words for name in names), False], bool)[codes]


OfTasks = Mapping[str, Mapping[str, float]]
"""The values of each column of ``schemas.index.OF_TASK`` by task."""


def where_column(rows: pa.RecordBatch | pa.Table, name: str, of_tasks: OfTasks) -> Column:
    """A column of an index; those of ``schemas.index.OF_TASK`` are taken from ``of_tasks``."""
    if name in of_tasks:
        codes, tasks = coded(rows["task"])
        return np.array([*(of_tasks[name].get(task, np.nan) for task in tasks), np.nan])[codes]
    return arrow_column(rows[name])


def where_columns(rows: pa.RecordBatch | pa.Table, names: Collection[str], of_tasks: OfTasks) -> dict[str, Column]:
    """The columns that an expression names; returns are rounded as float32 rounds rewards."""
    columns = {name: where_column(rows, name, of_tasks) for name in names}
    returns = columns.get("return")
    if isinstance(returns, np.ndarray):
        columns["return"] = Rounded(returns, float32_rounding(returns))
    return columns
