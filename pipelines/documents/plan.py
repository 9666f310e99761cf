"""The plan of a dataset of documents: its files, duplicates, what is held out, its orders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from gatokit.pipelines.dataset import (
    DOCUMENT_TASK_ROWS,
    SCAN_UNIT_BYTES,
    GrowingArray,
    Losses,
    ShardSettings,
    Stream,
    Task,
    check_budget,
    row_hash,
)
from gatokit.pipelines.documents.reader import DocumentFile, ScannedDocument, file_from_json, find_documents
from gatokit.pipelines.documents.tokenize import DocumentShardHeader
from gatokit.pipelines.episodes.filter import held_out
from gatokit.pipelines.planning.plan import DatasetPlan, Judged
from gatokit.schemas.config import BuildConfig, CorpusConfig, TextConfig
from gatokit.schemas.digests import json_digest
from gatokit.schemas.document import DocumentRules
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import HELD_OUT, TRAIN
from gatokit.schemas.manifest import DatasetFile, TaskEntry
from gatokit.storage.files import read_rows
from gatokit.storage.prefetch import prefetch

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
"""Rows of a scan on their way between the two passes."""
_BATCH_ROWS = 8192


class DocumentUnit(BaseModel):
    """Files of a dataset that are scanned in one go, as plain values; ``ordinals`` counts them in the dataset."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    max_bytes: int
    ordinals: tuple[int, ...]
    files: tuple[dict[str, Any], ...]
    versions: tuple[tuple[int, ...], ...]
    """Modification times in nanoseconds: a file that changed is scanned again."""

    @property
    def fingerprint(self) -> str:
        """Names the unit's result, so that an interrupted scan goes on where it stopped."""
        return json_digest(self.model_dump(mode="json"), 8)

    def scan(self, most_bytes: int | None = None) -> pa.Table:
        """The rows of the unit's documents (schema ``FOUND``); see ``plan.Unit``."""
        batches, lines, size = [], [], 0
        for ordinal, found in self._found():
            place = found.byte_range
            lines.append(
                (
                    *(ordinal, found.key, place.position, place.offset, place.length, place.crc, place.payload),
                    *(found.content, found.group, found.reason, found.detail, found.lost),
                )
            )
            size += place.length
            if len(lines) == _BATCH_ROWS:
                batches.append(_batch(lines))
                lines = []
            if most_bytes is not None and size >= most_bytes:
                break
        return pa.Table.from_batches([*batches, _batch(lines)], FOUND)

    def _found(self) -> Iterator[tuple[int, ScannedDocument]]:
        for ordinal, file in zip(self.ordinals, self.files, strict=True):
            for found in file_from_json(file).scan(self.max_bytes):
                yield ordinal, found


def _batch(lines: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*lines, strict=True) if lines else [()] * len(FOUND)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, FOUND, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=FOUND)


@dataclass(frozen=True)
class DocumentsPlan(DatasetPlan):
    """See ``DatasetPlan``."""

    config: CorpusConfig
    field: str
    files: tuple[DocumentFile, ...]
    what: ClassVar[str] = "documents"

    @cached_property
    def rules(self) -> DocumentRules:
        """What a build does with the documents."""
        pictures = None if isinstance(self.config, TextConfig) else self.config.images.rule()
        return DocumentRules(
            pictures=pictures,
            end_of_document=self.config.end_of_document,
            bad_images=getattr(self.config, "bad_images", "reject"),
        )

    def sources(self) -> tuple[DocumentFile, ...]:
        """See ``DatasetPlan``."""
        return self.files

    def units(self, max_bytes: int, unit_bytes: int = SCAN_UNIT_BYTES) -> list[DocumentUnit]:
        """See ``DatasetPlan``."""
        groups: list[list[int]] = []
        size = 0
        for ordinal, file in enumerate(self.files):
            if not groups or size + file.size > unit_bytes:
                groups.append([])
                size = 0
            groups[-1].append(ordinal)
            size += file.size
        return [
            DocumentUnit(
                dataset=self.config.name,
                max_bytes=max_bytes,
                ordinals=tuple(group),
                files=tuple(self.files[ordinal].model_dump(mode="json") for ordinal in group),
                versions=tuple(self.files[ordinal].versions() for ordinal in group),
            )
            for group in groups
        ]

    def judge(self, results: Sequence[Path], config: BuildConfig, limit: int | None) -> "JudgedDocuments":
        """See ``DatasetPlan``; the dataset is one task with one stream."""
        scanned = _Scanned(self, results, limit)
        losses, lost = Losses(), 0
        hashes, contents, sound = GrowingArray(np.uint64), GrowingArray(np.uint64, 2), GrowingArray(bool)
        for table in scanned:
            ids = scanned.ids(table)
            if table["reason"].null_count < len(table):
                bad = table.filter(pc.is_valid(table["reason"]))
                reasons, counts, details = (bad[name].to_pylist() for name in ("reason", "lost", "detail"))
                losses.add(reasons, counts, scanned.ids(bad), details)
            lost += pc.sum(table["lost"]).as_py() or 0
            groups = table["group"].to_pylist()
            keys = [id_ if group is None else f"group\0{group}" for id_, group in zip(ids, groups, strict=True)]
            hashes.add(np.array([row_hash(config.seed, key) for key in keys], np.uint64))
            sound.add(pc.is_null(table["reason"]).to_numpy())
            if self.config.drop_duplicates:
                contents.add(_numbers(table["content"]))
        check_budget(losses, lost, config.max_bad_fraction, self.config.name, self.what)
        whole = sound.joined()
        repeats = _repeats(contents.joined(), whole) if self.config.drop_duplicates else np.zeros_like(whole)
        kept = whole & ~repeats
        if not kept.any():
            raise DataError(
                f"{self.config.name}: the source holds {lost} documents, of which none is sound: "
                + (", ".join(f"{count} {reason}" for reason, count in losses.counts.items()) or "its files are empty")
            )
        apart = held_out(hashes.joined(), kept, np.zeros(len(kept), np.int64), config.holdout)
        return JudgedDocuments(self, scanned, kept, repeats, apart)


class JudgedDocuments(Judged):
    """See ``Judged``. Of a row it holds three bytes."""

    notices = ()
    scanned: "_Scanned"

    def __init__(
        self, plan: DocumentsPlan, scanned: "_Scanned", kept: np.ndarray, repeats: np.ndarray, apart: np.ndarray
    ) -> None:
        name, episodes = plan.config.name, int(np.count_nonzero(kept | repeats))
        self.tasks = (Task(name, None, None, (Stream(name, "", episodes, None, None),)),)
        self.scanned, self.names = scanned, scanned.names
        self.whole = {ordinal for ordinal, file in enumerate(plan.files) if not file.divides}
        self._plan, self._kept, self._repeats, self._apart = plan, kept, repeats, apart

    def head(self, files: list[int], rows: pa.Table, settings: ShardSettings) -> DocumentShardHeader:
        """See ``Judged``."""
        return DocumentShardHeader(
            dataset=self._plan.config.name,
            settings=settings,
            rules=self._plan.rules,
            files=[self._plan.files[number].model_dump(mode="json") for number in files],
        )

    def describe(self, episodes: int, kept: int) -> DatasetFile:
        """See ``Judged``."""
        config = self._plan.config
        return DatasetFile(
            name=config.name,
            kind=config.kind,
            specs={},
            tasks={config.name: TaskEntry(spec="", ordered=False)},
            documents=self._plan.rules,
            episodes=episodes,
            kept=kept,
        )

    def table(self, scanned: pa.Table, part: slice) -> pa.Table:
        """See ``Judged``."""
        rows = scanned.num_rows
        kept, repeats, apart = self._kept[part], self._repeats[part], self._apart[part]
        reason = pc.if_else(pa.array(repeats), "duplicate", scanned["reason"])
        columns = {
            "episode_id": self.scanned.ids(scanned),
            "task": pa.repeat(self._plan.config.name, rows),
            "agent": pa.repeat("", rows),
            "order": scanned["position"].to_numpy().astype(np.float64),
            "split": pc.if_else(pa.array(kept), pc.if_else(pa.array(apart), HELD_OUT, TRAIN), None),
            "kept": kept,
            "reason": reason,
            "detail": scanned["detail"],
            "lost": scanned["lost"],
            "source_file": pa.array(self.names).take(scanned["file"]),
            "source_position": scanned["position"],
            "file": scanned["file"],
            "offset": scanned["offset"],
            "length": scanned["length"],
            "crc": scanned["crc"],
            "payload": scanned["payload"],
        }
        nothing = pa.nulls(rows)
        table = pa.table({name: columns.get(name, nothing) for name in DOCUMENT_TASK_ROWS.names})
        return table.cast(DOCUMENT_TASK_ROWS)


def plan_documents(dataset: CorpusConfig, field: str, base: Path) -> DocumentsPlan:
    """Finds the files of a dataset; ConfigError where there are none. Relative paths start at ``base``."""
    return DocumentsPlan(dataset, field, tuple(find_documents(dataset, field, base)))


class _Scanned:
    """The scanned rows of a dataset in source order, a unit at a time, cut to the first ``limit``."""

    def __init__(self, plan: DocumentsPlan, results: Sequence[Path], limit: int | None) -> None:
        self._results, self._limit = results, limit
        self.names = [file.name for file in plan.files]

    def __iter__(self) -> Iterator[pa.Table]:
        left = self._limit
        for table in prefetch(self._results, read_rows, lambda read: int(read.nbytes)):
            if left is not None:
                table = table.slice(0, left)
                left -= table.num_rows
            yield table

    def ids(self, table: pa.Table) -> list[str]:
        """Each row's id: its file and its key there, and where an earlier document has that key its position too."""
        files, keys = table["file"].to_pylist(), table["key"].to_pylist()
        ids = [f"{self.names[file]}#{key}" for file, key in zip(files, keys, strict=True)]
        for row in np.flatnonzero(pc.equal(table["reason"], "duplicate_id").fill_null(False)).tolist():
            ids[row] += f"@{table['position'][row]}"
        return ids


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """16-byte values as uint64 (R, 2), zeros for null."""
    joined = b"".join(value or bytes(16) for value in column.to_pylist())
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def _repeats(contents: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Which sound rows have the content of an earlier one, bool (R,)."""
    rows = np.flatnonzero(sound)
    # The sort is stable, so the first of equal ones comes first.
    rows = rows[np.lexsort(contents[rows].T)]
    same = (contents[rows[1:]] == contents[rows[:-1]]).all(axis=1)
    repeats = np.zeros(len(sound), bool)
    repeats[rows[1:][same]] = True
    return repeats
