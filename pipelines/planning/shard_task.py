"""What travels to a worker. A shard task has the rows and the header of one shard: they determine its bytes, and its
fingerprint names them.

The planning stage writes tasks to files. A worker, on any machine and at any time, reads a task and writes the shard.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from gatokit.pipelines.dataset import ScanUnit, ShardBuilder, ShardHeader
from gatokit.pipelines.planning.kinds import KINDS
from gatokit.schemas.index import INDEX_VERSION
from gatokit.schemas.manifest import digest, json_digest
from gatokit.schemas.record import RECORD_VERSION
from gatokit.storage.files import read_rows, write_rows
from gatokit.tokenizers.text import TextTokenizer

_METADATA_KEY = b"gatokit.shard_task"


@dataclass(frozen=True)
class ShardTask:
    """A shard's header and rows (schema ``TASK_ROWS`` or ``DOCUMENT_TASK_ROWS``)."""

    header: ShardHeader
    rows: pa.Table

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over exactly what the shard's bytes depend on.

        These are the source files by name and size, the rows with the checksums of their content, their verdicts, the
        expert returns and thresholds of their tasks, specs, rules and settings. Paths, weights, runner and workers do
        not matter.
        """
        header = {
            "record_version": RECORD_VERSION,
            "index_version": INDEX_VERSION,
            "settings": self.header.settings.model_dump(mode="json"),
            **self.header.identity(),
        }
        columns = [digest(_column_bytes(self.rows[name])) for name in self.rows.column_names]
        return json_digest([header, columns], 8)

    @property
    def stem(self) -> str:
        """The name of the shard and of its index, without suffixes."""
        return f"{self.header.dataset}-{self.fingerprint}"

    def write(self, path: str | Path) -> None:
        """Writes the task to a file."""
        write_rows(path, self.rows.replace_schema_metadata({_METADATA_KEY: self.header.model_dump_json().encode()}))

    @staticmethod
    def read(path: str | Path) -> "ShardTask":
        """Reads a task that ``write`` wrote."""
        rows = read_rows(path)
        fields = json.loads(rows.schema.metadata[_METADATA_KEY])
        return ShardTask(KINDS[fields["kind"]].header.model_validate(fields), rows)

    def builder(self, text: TextTokenizer) -> ShardBuilder:
        """Makes the records of the task's rows with this vocabulary."""
        return KINDS[self.header.kind].builder(self.header, text)


def _column_bytes(column: pa.ChunkedArray) -> bytes:
    """Bytes that depend on the values alone, not on how Arrow lays them out."""
    return repr(column.to_pylist()).encode()


def unit_from_json(text: str | bytes) -> ScanUnit:
    """Reads a unit that was written with ``model_dump_json``."""
    fields = json.loads(text)
    unit: ScanUnit = KINDS[fields["kind"]].unit.model_validate(fields)
    return unit
