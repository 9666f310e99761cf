"""Plans and scans a dataset of documents: its files, the units of its scan, and a row for each document."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from gatokit.pipelines.documents.reader import DocumentFile, ScannedDocument, file_from_json, find_documents
from gatokit.schemas.config import CorpusConfig
from gatokit.schemas.manifest import json_digest

FOUND = pa.schema(
    [
        pa.field("file", pa.int32()),  # ordinal among the dataset's files
        pa.field("key", pa.string()),
        pa.field("position", pa.int64()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("crc", pa.uint32()),
        pa.field("payload", pa.string()),
        pa.field("content", pa.binary(16)),  # null where the document is rejected
        pa.field("group", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("lost", pa.int64()),
    ]
)
"""The rows of a scan."""
_BATCH_ROWS = 8192


@dataclass(frozen=True)
class DocumentsPlan:
    """A dataset of documents before its scan; messages call its config ``field``."""

    config: CorpusConfig
    field: str
    files: tuple[DocumentFile, ...]
    kind: ClassVar = "documents"

    def ids(self, scanned: pa.Table) -> list[str]:
        """The id of each scanned row: its file and its key there. If an earlier document of the file has the same key,
        the position follows."""
        ordinals, keys = scanned["file"].to_pylist(), scanned["key"].to_pylist()
        ids = [f"{self.files[file].name}#{key}" for file, key in zip(ordinals, keys, strict=True)]
        for row in np.flatnonzero(pc.equal(scanned["reason"], "duplicate_id").fill_null(False)).tolist():
            ids[row] += f"@{scanned['position'][row]}"
        return ids


def plan_documents(dataset: CorpusConfig, field: str, base: Path) -> DocumentsPlan:
    """Finds the files of a dataset. Relative paths start at ``base``. Raises ConfigError if there are none."""
    return DocumentsPlan(dataset, field, tuple(find_documents(dataset, field, base)))


def scan_units(plan: DocumentsPlan, max_bytes: int, unit_bytes: int) -> "list[DocumentUnit]":
    """Groups the files, in order, into units of about ``unit_bytes``. Documents above ``max_bytes`` are rejected."""
    groups: list[list[int]] = []
    size = 0
    for ordinal, file in enumerate(plan.files):
        if not groups or size + file.size > unit_bytes:
            groups.append([])
            size = 0
        groups[-1].append(ordinal)
        size += file.size
    return [
        DocumentUnit(
            dataset=plan.config.name,
            max_bytes=max_bytes,
            ordinals=tuple(group),
            files=tuple(plan.files[ordinal].model_dump(mode="json") for ordinal in group),
            versions=tuple(plan.files[ordinal].versions() for ordinal in group),
        )
        for group in groups
    ]


class DocumentUnit(BaseModel):
    """Consecutive files of a dataset that are scanned together, as plain values. ``ordinals`` are their indexes in the
    dataset."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["documents"] = "documents"
    dataset: str
    max_bytes: int
    ordinals: tuple[int, ...]
    files: tuple[dict[str, Any], ...]
    versions: tuple[tuple[int, ...], ...]
    """What ``files.version`` says of the files: a file that changed is scanned again."""

    @property
    def fingerprint(self) -> str:
        """Names the file with the unit's rows, so that an interrupted scan continues where it stopped."""
        return json_digest(self.model_dump(mode="json"), 8)

    def scan(self, most_bytes: int | None = None) -> pa.Table:
        """The rows of the unit's documents (schema ``FOUND``).

        ``most_bytes`` ends the scan with the row that brings the sum of the rows' lengths to it.
        """
        batches, rows, size = [], [], 0
        for ordinal, found in self._found():
            stored = found.byte_range
            rows.append(
                (
                    *(ordinal, found.key, stored.position, stored.offset, stored.length, stored.crc, stored.payload),
                    *(found.content, found.group, found.reason, found.detail, found.lost),
                )
            )
            size += stored.length
            if len(rows) == _BATCH_ROWS:
                batches.append(_batch(rows))
                rows = []
            if most_bytes is not None and size >= most_bytes:
                break
        return pa.Table.from_batches([*batches, _batch(rows)], FOUND)

    def _found(self) -> Iterator[tuple[int, ScannedDocument]]:
        for ordinal, file in zip(self.ordinals, self.files, strict=True):
            for found in file_from_json(file).scan(self.max_bytes):
                yield ordinal, found


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(FOUND)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, FOUND, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=FOUND)
