"""The index of a split: one row per episode or document. Its presence marks the split as finished."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.pipelines.stages import Losses, OutOfRange
from gatokit.schemas.index import HELD_OUT
from gatokit.schemas.manifest import ShardEntry
from gatokit.storage.files import arrow_file, is_directory, sizes, write_atomically
from gatokit.storage.prefetch import prefetch

INDEX_SUFFIX = ".index.parquet"
COUNTED_COLUMNS = ["task", "agent", "kept", "split", "steps", "tokens", "lost", "reason", "detail", "episode_id"]
"""The columns that ``IndexTotals`` needs."""
_PARTS = b"gatokit.parts"
_OUT_OF_RANGE = b"gatokit.outside"
_FOOTER_BYTES = 1 << 16


def write_index(path: str | Path, rows: pa.Table, parts: list[ShardEntry], out_of_range: OutOfRange) -> None:
    """Writes the index of a split, with its parts and the counts of actions out of their range as metadata."""
    sink = pa.BufferOutputStream()
    metadata = {
        **(rows.schema.metadata or {}),
        _PARTS: json.dumps([part.model_dump() for part in parts]).encode(),
        _OUT_OF_RANGE: json.dumps(out_of_range, sort_keys=True).encode(),
    }
    pq.write_table(rows.replace_schema_metadata(metadata), sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def read_parts(metadata: dict[bytes, bytes]) -> list[ShardEntry]:
    """The parts that an index names in its metadata."""
    return [ShardEntry(**part) for part in json.loads(metadata[_PARTS])]


def read_out_of_range(metadata: dict[bytes, bytes]) -> OutOfRange:
    """The counts of out-of-range action values that an index holds in its metadata."""
    return json.loads(metadata[_OUT_OF_RANGE])


def finished_shards(directory: Path, stems: Sequence[str]) -> dict[str, list[ShardEntry]]:
    """The parts of each split that is finished: its index exists, and so does every part that it names, with its size.

    ``stems`` are the names of the splits.
    """
    there = sizes(directory) if is_directory(directory) else {}
    begun = [stem for stem in stems if stem + INDEX_SUFFIX in there]
    found = prefetch([directory / (stem + INDEX_SUFFIX) for stem in begun], _parts, lambda _: _FOOTER_BYTES)
    return {
        stem: parts
        for stem, parts in zip(begun, found, strict=True)
        if parts is not None and all(there.get(part.file) == part.size for part in parts)
    }


def _parts(index: Path) -> list[ShardEntry] | None:
    """The parts that an index names; None if it cannot be read."""
    try:
        with arrow_file(index) as file:
            return read_parts(pq.read_schema(file).metadata)
    except (OSError, KeyError, ValueError, pa.ArrowInvalid):
        return None


class IndexTotals:
    """Sums over the indexes of a dataset."""

    def __init__(self) -> None:
        self.streams: dict[tuple[str | None, str | None], Counter[str]] = {}
        """By task and agent: rows lost or not, and episodes, steps and tokens of those kept."""
        self.losses = Losses()
        self.outside, self.values = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        """By task and action: values outside of the range, and all."""

    def add(self, rows: pa.Table) -> None:
        """Takes the next index."""
        kept = rows.filter(rows["kept"])
        self._count(rows, [("lost", "sum")])
        self._count(kept, [("kept", "count"), ("steps", "sum"), ("tokens", "sum")])
        self._count(kept.filter(pc.equal(kept["split"], HELD_OUT)), [("split", "count")])
        self.losses.add(rows, lambda dropped: dropped["episode_id"].to_pylist())
        for task, fields in read_out_of_range(rows.schema.metadata).items():
            for field, (beyond, total) in fields.items():
                self.outside[task, field] += beyond
                self.values[task, field] += total

    def of(self, task: str, agent: str | None) -> Counter[str]:
        """The sums of one stream."""
        return self.streams.get((task, agent), Counter())

    def kept(self, task: str) -> int:
        """Kept episodes of a task."""
        return sum(total["kept"] for (name, _), total in self.streams.items() if name == task)

    def _count(self, rows: pa.Table, sums: list[tuple[str, str]]) -> None:
        grouped = rows.group_by(["task", "agent"], use_threads=False).aggregate(sums)
        for row in grouped.to_pylist():
            total = self.streams.setdefault((row["task"], row["agent"]), Counter())
            for column, function in sums:
                total[column] += row[f"{column}_{function}"] or 0
