"""The episodes that a person has selected in all datasets, and the list that ``keep: {episodes: FILE}`` reads.

One byte a row is held, only for datasets in which something is selected.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from gatokit.inspection.read.directory import DatasetReader

HEADER = ("episode_id", "dataset", "task")
"""The columns of the list, as ``schemas.episode_list`` reads them."""


class Selection:
    """Selected rows, by their ordinals in the index."""

    def __init__(self, datasets: Mapping[str, DatasetReader]) -> None:
        self._datasets = datasets
        self._marks: dict[str, np.ndarray] = {}

    def add(self, dataset: str, ordinals: np.ndarray | range | Sequence[int]) -> None:
        """Selects some rows."""
        marks = self._marks_of(dataset)
        if isinstance(ordinals, range):
            marks[ordinals.start : ordinals.stop : ordinals.step] = True
        else:
            marks[np.asarray(ordinals, np.int64)] = True

    def remove(self, dataset: str, ordinals: np.ndarray | range | Sequence[int]) -> None:
        """Deselects some rows."""
        if dataset in self._marks:
            self._marks_of(dataset)[np.asarray(ordinals, np.int64)] = False

    def clear(self) -> None:
        """Deselects all rows."""
        self._marks.clear()

    def holds(self, dataset: str, ordinals: Iterable[int]) -> list[bool]:
        """Whether each of some rows is selected."""
        marks = self._marks.get(dataset)
        return [False if marks is None else bool(marks[ordinal]) for ordinal in ordinals]

    def counts(self) -> dict[str, int]:
        """How many rows are selected in each dataset that has any."""
        found = {name: int(np.count_nonzero(self._marks[name])) for name in self._datasets if name in self._marks}
        return {name: count for name, count in found.items() if count}

    def copy(self) -> "Selection":
        """A copy, which does not change with this selection."""
        copy = Selection(self._datasets)
        copy._marks = {name: marks.copy() for name, marks in self._marks.items()}
        return copy

    def csv(self) -> Iterator[bytes]:
        """The list, some rows at a time. Raises DataError if an index cannot be read."""
        yield (",".join(HEADER) + "\n").encode()
        for name in self.counts():
            yield from self._csv_of(self._datasets[name], self._marks[name])

    def _csv_of(self, dataset: DatasetReader, marks: np.ndarray) -> Iterator[bytes]:
        splits = dataset.totals.splits
        begins = np.cumsum([0, *(split.rows for split in splits)]).tolist()
        for split, (begin, end) in zip(splits, pairwise(begins), strict=True):
            in_split = marks[begin:end]
            if not in_split.any():
                continue
            first = 0
            for batch in dataset.batches(["episode_id", "task"], [split.index]):
                chosen = batch.filter(pa.array(in_split[first : first + batch.num_rows]))
                first += batch.num_rows
                if chosen.num_rows:
                    yield _csv_lines(chosen.filter(pc.is_valid(chosen["episode_id"])), dataset.name)

    def _marks_of(self, dataset: str) -> np.ndarray:
        if dataset not in self._marks:
            rows = sum(split.rows for split in self._datasets[dataset].totals.splits)
            self._marks[dataset] = np.zeros(rows, bool)
        return self._marks[dataset]


def config_lines(counts: Mapping[str, int], file: str) -> str:
    """The lines of a config that keep the selected episodes of each dataset."""
    lines = [f"  - name: {name}\n    keep: {{episodes: {file}}}" for name in counts]
    return "\n".join(["datasets:", *lines]) if lines else ""


def _csv_lines(rows: pa.RecordBatch, dataset: str) -> bytes:
    names = pa.array([dataset]).take(pa.array(np.zeros(rows.num_rows, np.int8)))
    columns = [rows["episode_id"], names, pc.cast(rows["task"], pa.string())]
    sink = pa.BufferOutputStream()
    table = pa.table(columns, names=list(HEADER))
    pa_csv.write_csv(table, sink, pa_csv.WriteOptions(include_header=False))
    found: bytes = sink.getvalue().to_pybytes()
    return found
