"""A file that lists episodes: ``keep: {episodes: FILE}`` names one, and the explorer exports one."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import digest
from gatokit.schemas.words import ascii_json, visible

_COLUMNS = ("episode_id", "dataset", "task")
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", '"')


def csv_cell(text: str) -> str:
    """A text as a cell of a list in CSV, which ``csv_text`` reads.

    It is a JSON string if the text begins with ``=``, ``+``, ``-`` or ``@``, as a formula does that a spreadsheet would
    run, or with ``"``, or if it has characters that ``visible`` escapes. Any other text is the cell itself.
    """
    return ascii_json(text) if text.startswith(_FORMULA) or visible(text) != text else text


def csv_text(cell: str) -> str:
    """The text of a cell that ``csv_cell`` wrote; a cell that is no JSON string is the text itself."""
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        try:
            return str(json.loads(cell))
        except ValueError:
            pass
    return cell


class EpisodeList:
    """The episodes of one dataset that a list names; it remembers which of them were found.

    The file's suffix decides its format. ``.jsonl``, ``.csv`` and ``.parquet`` have a column ``episode_id``, and may
    have ``dataset`` (entries of other datasets are skipped) and ``task`` (the episode must be of this task); other
    columns are ignored. Texts of ``.csv`` are as ``csv_cell`` writes them. Any other file has one id a line.
    """

    def __init__(self, data: bytes, path: str, dataset: str) -> None:
        """``data`` is the content of the file at ``path``; ConfigError if it is not a list of episodes."""
        self.path = path
        self.digest = digest(data)
        self._numbers: dict[str, int] = {}
        self._tasks: list[str | None] = []
        for number, (id_, of_dataset, task) in enumerate(_entries(data, path), 1):
            if of_dataset not in (None, dataset):
                continue
            known = self._numbers.setdefault(id_, len(self._tasks))
            if known == len(self._tasks):
                self._tasks.append(task)
            elif self._tasks[known] != task:
                raise ConfigError(f"{path}: entry {number} names {id_!r} again with another task; remove one")
        if not self._numbers:
            raise ConfigError(
                f"{path}: lists no episode of the dataset {dataset}; list some, or give another keep rule"
            )
        self._found = np.zeros(len(self._tasks), bool)

    def find(self, ids: Sequence[str], tasks: Sequence[str | None]) -> np.ndarray:
        """Which of the episodes are listed, bool (N,)."""
        numbers = np.fromiter((self._numbers.get(id_, -1) for id_ in ids), np.int64, len(ids))
        listed = numbers >= 0
        for row in np.flatnonzero(listed).tolist():
            listed[row] = self._tasks[numbers[row]] in (None, tasks[row])
        self._found[numbers[listed]] = True
        return listed

    def check_found(self, dataset: str) -> None:
        """Raises ConfigError, naming the first, if an episode of the list was not found."""
        if self._found.all():
            return
        missing = int(np.argmin(self._found))
        id_ = next(id_ for id_, number in self._numbers.items() if number == missing)
        task = self._tasks[missing]
        more = len(self._found) - int(self._found.sum()) - 1
        raise ConfigError(
            f"{self.path}: {dataset} has no episode {id_!r}"
            + (f" of task {task!r}" if task is not None else "")
            + (f", nor {more:,} more of the list" if more else "")
            + "; list episode_id as the index holds it"
        )


_Entry = tuple[str, str | None, str | None]


def _entries(data: bytes, path: str) -> Iterator[_Entry]:
    """Id, dataset and task of each entry."""
    suffix = PurePosixPath(path).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _of_parquet(data, path)
            return
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error}; save it as UTF-8") from None
    if suffix == ".csv":
        yield from _of_csv(text, path)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _of_json(line, path, number) if suffix == ".jsonl" else (line.rstrip("\r"), None, None)


def _of_parquet(data: bytes, path: str) -> Iterator[_Entry]:
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            names = file.schema_arrow.names
            _check_columns(names, path)
            row = 0
            for batch in file.iter_batches(columns=[name for name in _COLUMNS if name in names]):
                for values in batch.to_pylist():
                    row += 1
                    yield _entry(values, path, f"row {row}")
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path}: is not a Parquet file: {error}; write the list again") from None


def _of_csv(text: str, path: str) -> Iterator[_Entry]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        _check_columns(rows.fieldnames or (), path)
        for values in rows:
            yield _entry(
                {name: csv_text(values.get(name) or "") or None for name in _COLUMNS}, path, f"line {rows.line_num}"
            )
    except csv.Error as error:
        raise ConfigError(f"{path}: line {rows.line_num} is not CSV: {error}; write the list again") from None


def _check_columns(names: Sequence[str], path: str) -> None:
    if "episode_id" not in names:
        raise ConfigError(f"{path}: has no column episode_id, only {', '.join(names) or 'none'}; name the column so")


def _of_json(line: str, path: str, number: int) -> _Entry:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: line {number} is not JSON: {error}; write one object a line") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: line {number} is not a JSON object; write one with the key episode_id")
    return _entry(value, path, f"line {number}")


def _entry(values: dict[str, Any], path: str, where: str) -> _Entry:
    id_, dataset, task = (values.get(name) for name in _COLUMNS)
    if not isinstance(id_, str) or not id_:
        raise ConfigError(f"{path}: {where}: episode_id is {id_!r}; give the id as the index holds it, a string")
    for name, value in (("dataset", dataset), ("task", task)):
        if not isinstance(value, str | None):
            raise ConfigError(f"{path}: {where}: {name} is {value!r}; give a string, or leave it out")
    return id_, dataset, task
