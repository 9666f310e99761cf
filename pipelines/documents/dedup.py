"""Decides which documents are kept: those that are sound and do not repeat an earlier one.

The rows of the scan stay in files. In memory there are three bytes of each, and while duplicates are looked for, 24
more. Legend: R rows of the scan.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.pipelines.documents.scan import DocumentsPlan
from gatokit.pipelines.documents.tokenize import DocumentShardHeader
from gatokit.pipelines.stages import TASK_ROWS, FilterResult, Losses, ShardSettings, Stream, Task, row_hash
from gatokit.schemas.config import BuildConfig, document_rules
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import HELD_OUT, TRAIN
from gatokit.storage.files import prefetch, read_rows

DOCUMENT_TASK_ROWS = pa.schema([*TASK_ROWS, pa.field("payload", pa.string())])
"""The rows of a shard task; ``payload`` is that of ``ByteRange``."""


@dataclass(frozen=True)
class DocumentFilterResult(FilterResult):
    """Adds which sound rows repeat an earlier one, bool (R,)."""

    repeats: np.ndarray


def filter_documents(
    plan: DocumentsPlan, paths: Sequence[Path], config: BuildConfig, limit: int | None
) -> DocumentFilterResult:
    """Verdicts over the rows of the scanned units. The dataset is one task with one stream.

    ``limit`` takes only the first documents. Raises DataError if the error budget is exceeded or nothing is kept.
    """
    name = plan.config.name
    scanned = _Scanned(paths, limit)
    losses, hashes, contents, soundness = Losses(), bytearray(), bytearray(), bytearray()
    for table in scanned:
        losses.add(table, plan.ids)
        groups = table["group"].to_pylist()
        keys = [id_ if group is None else f"group\0{group}" for id_, group in zip(plan.ids(table), groups, strict=True)]
        hashes += np.array([row_hash(config.seed, key) for key in keys], np.uint64).tobytes()
        soundness += pc.is_null(table["reason"]).to_numpy().tobytes()
        if plan.config.drop_duplicates:
            contents += b"".join(value or bytes(16) for value in table["content"].to_pylist())
    losses.check_budget(config.max_bad_fraction, name, plan.kind)
    sound = np.frombuffer(soundness, bool)
    repeats = np.zeros(len(sound), bool)
    if plan.config.drop_duplicates:
        repeats = _repeats(np.frombuffer(contents, np.uint64).reshape(-1, 2), sound)
    kept = sound & ~repeats
    if not kept.any():
        raise DataError(
            f"{name}: the source holds {losses.rows} documents, of which none is sound: "
            + (", ".join(f"{count} {reason}" for reason, count in losses.counts.items()) or "its files are empty")
        )
    stream = Stream(name, "", int(np.count_nonzero(sound)), None, None)
    return DocumentFilterResult(
        scanned=scanned,
        tasks=(Task(name, None, None, (stream,)),),
        notices=(),
        specs={},
        task=np.zeros(len(kept), np.int8),
        hashes=np.frombuffer(hashes, np.uint64),
        kept=kept,
        held_out=np.empty(0),
        repeats=repeats,
    )


def task_rows(plan: DocumentsPlan, result: DocumentFilterResult, scanned: pa.Table, part: slice) -> pa.Table:
    """Scanned rows, which are ``part`` of the dataset's, as a shard task holds them (schema ``DOCUMENT_TASK_ROWS``)."""
    rows = scanned.num_rows
    kept, repeats, held_out = result.kept[part], result.repeats[part], result.held_out[part]
    columns = {
        "episode_id": plan.ids(scanned),
        "task": pa.repeat(plan.config.name, rows),
        "agent": pa.repeat("", rows),
        "order": scanned["position"].to_numpy().astype(np.float64),
        "split": pc.if_else(pa.array(kept), pc.if_else(pa.array(held_out), HELD_OUT, TRAIN), None),
        "kept": kept,
        "reason": pc.if_else(pa.array(repeats), "duplicate", scanned["reason"]),
        "source_file": pa.array([file.name for file in plan.files]).take(scanned["file"]),
        "source_position": scanned["position"],
        **{name: scanned[name] for name in ("detail", "lost", "file", "offset", "length", "crc", "payload")},
    }
    nothing = pa.nulls(rows)
    table = pa.table({name: columns.get(name, nothing) for name in DOCUMENT_TASK_ROWS.names})
    return table.cast(DOCUMENT_TASK_ROWS)


def shard_header(
    plan: DocumentsPlan, result: FilterResult, files: list[int], rows: pa.Table, settings: ShardSettings
) -> DocumentShardHeader:
    """The header of a shard task whose rows lie in these of the plan's files."""
    return DocumentShardHeader(
        dataset=plan.config.name,
        settings=settings,
        rules=document_rules(plan.config),
        files=[plan.files[number].model_dump(mode="json") for number in files],
    )


class _Scanned:
    """The scanned rows of a dataset in source order, one table per unit, cut to the first ``limit``."""

    def __init__(self, paths: Sequence[Path], limit: int | None) -> None:
        self._paths, self._limit = paths, limit

    def __iter__(self) -> Iterator[pa.Table]:
        left = self._limit
        for table in prefetch(self._paths, read_rows, lambda read: int(read.nbytes)):
            if left is not None:
                table = table.slice(0, left)
                left -= table.num_rows
            yield table


def _repeats(contents: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Which sound rows have the content of an earlier one, bool (R,)."""
    rows = np.flatnonzero(sound)
    # The sort is stable, so the first of equal ones comes first.
    rows = rows[np.lexsort(contents[rows].T)]
    same = (contents[rows[1:]] == contents[rows[:-1]]).all(axis=1)
    repeats = np.zeros(len(sound), bool)
    repeats[rows[1:][same]] = True
    return repeats
