"""The second pass: one work order becomes one shard and its index."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import pyarrow as pa

from gatokit.pipelines.documents.tokenize import DocumentsMaker
from gatokit.pipelines.episodes.tokenize import EpisodesMaker
from gatokit.pipelines.planning.shard_task import DocumentsHead, Order
from gatokit.pipelines.shards.writer import Made, Outside, ShardWriter, write_index
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.index import HELD_OUT, INDEX, TRAIN
from gatokit.tokenizers.text import TextTokenizer

INDEX_SUFFIX = ".index.parquet"
CRASHED = "crashed_decoder"
_NONE: Mapping[int, str] = MappingProxyType({})


class Maker(Protocol):
    """Turns the rows of an order into records; one for each kind of head."""

    outside: Outside
    """Values of continuous actions outside of their range, and all, by task and field."""

    def make(self, columns: dict[str, list[Any]], rows: list[int]) -> Iterator[tuple[int, Made | RejectedError]]:
        """The records of each of ``rows``, in order, or why it has none. ``columns`` are those of the order.

        DataError where the source changed since the scan.
        """


@dataclass(frozen=True)
class Built:
    """What one call of ``build_split`` wrote: rows of the index (``episodes`` or ``documents``), those kept, tokens,
    shard files and their bytes."""

    what: str
    rows: int
    kept: int
    tokens: int
    shards: int
    bytes: int


def build_split(order: Order, directory: str | Path, text: TextTokenizer, crashed: Mapping[int, str] = _NONE) -> Built:
    """Reads, tokenizes and writes the kept episodes or documents of a split, then the index that marks it as done.

    Those of training come first in the shard, held-out ones last, both in source order. One that cannot become
    tokens is dropped with a reason; rows in ``crashed`` are not even read, because that would end the process in the
    way that it says. DataError where the source changed since the scan.
    """
    columns = {name: order.rows[name].to_pylist() for name in order.rows.column_names}
    for row, detail in crashed.items():
        columns["kept"][row], columns["split"][row] = False, None
        columns["reason"][row], columns["detail"][row] = CRASHED, detail
    result: dict[str, list[Any]] = {
        name: [None] * order.rows.num_rows for name in ("tokens", "part", "first_record", "record_tokens")
    }
    maker = make_maker(order, text)
    with ShardWriter(directory, order.stem) as writer:
        for split in (TRAIN, HELD_OUT):
            rows = [row for row, value in enumerate(columns["split"]) if value == split]
            for row, made in maker.make(columns, rows):
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
        write_index(Path(directory) / (order.stem + INDEX_SUFFIX), index, writer.parts, maker.outside)
    return Built(
        what=order.head.kind,
        rows=len(columns["kept"]),
        kept=sum(columns["kept"]),
        tokens=sum(part.tokens for part in writer.parts),
        shards=len(writer.parts),
        bytes=sum(part.size for part in writer.parts),
    )


def make_maker(order: Order, text: TextTokenizer) -> Maker:
    """The maker for an order's kind of rows."""
    return DocumentsMaker(order, text) if isinstance(order.head, DocumentsHead) else EpisodesMaker(order, text)
