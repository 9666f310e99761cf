"""The second pass: one work task becomes one shard and its index."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from gatokit.pipelines.planning.shard_task import ShardTask
from gatokit.pipelines.shards.index import INDEX_SUFFIX, write_index
from gatokit.pipelines.shards.writer import ShardWriter
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.index import HELD_OUT, INDEX, TRAIN
from gatokit.tokenizers.text import TextTokenizer

CRASHED = "crashed_decoder"
_NONE: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True)
class Built:
    """What one call of ``build_shard`` wrote: rows of the index (``episodes`` or ``documents``), those kept, tokens,
    shard files and their bytes."""

    kind: str
    rows: int
    kept: int
    tokens: int
    shards: int
    bytes: int


def build_shard(
    task: ShardTask, directory: str | Path, text: TextTokenizer, crashed: Mapping[int, str] = _NONE
) -> Built:
    """Reads, tokenizes and writes the kept episodes or documents of a split, then the index that marks it as done.

    Those of training come first in the shard, held-out ones last, both in source order. One that cannot become
    tokens is dropped with a reason; rows in ``crashed`` are not even read, because that would end the process in the
    way that it says. DataError where the source changed since the scan.
    """
    columns = {name: task.rows[name].to_pylist() for name in task.rows.column_names}
    for row, detail in crashed.items():
        columns["kept"][row], columns["split"][row] = False, None
        columns["reason"][row], columns["detail"][row] = CRASHED, detail
    result: dict[str, list[Any]] = {
        name: [None] * task.rows.num_rows for name in ("tokens", "part", "first_record", "record_tokens")
    }
    builder = task.builder(text)
    with ShardWriter(directory, task.stem) as writer:
        for split in (TRAIN, HELD_OUT):
            rows = [row for row, value in enumerate(columns["split"]) if value == split]
            for row, made in builder.tokenize(columns, rows):
                if isinstance(made, RejectedError):
                    columns["kept"][row], columns["split"][row] = False, None
                    columns["reason"][row], columns["detail"][row] = made.reason, made.detail
                    continue
                part, first = writer.add(made.records, made.tokens, held_out=split == HELD_OUT)
                result["tokens"][row], result["part"][row] = sum(made.tokens), part
                result["first_record"][row], result["record_tokens"][row] = first, made.tokens
                if made.remark is not None:
                    columns["detail"][row] = "; ".join(filter(None, (columns["detail"][row], made.remark)))
        writer.finish()
        result["tokens"] = [0 if tokens is None else tokens for tokens in result["tokens"]]
        index = pa.table({**columns, **result}).select(INDEX.names).cast(INDEX)
        write_index(Path(directory) / (task.stem + INDEX_SUFFIX), index, writer.parts, builder.out_of_range)
    return Built(
        kind=task.header.kind,
        rows=len(columns["kept"]),
        kept=sum(columns["kept"]),
        tokens=sum(part.tokens for part in writer.parts),
        shards=len(writer.parts),
        bytes=sum(part.size for part in writer.parts),
    )
