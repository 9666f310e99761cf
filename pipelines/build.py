"""The second pass: one work order becomes one shard and its index."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gatokit.pipelines.chunks import records
from gatokit.pipelines.episodes import to_episode
from gatokit.pipelines.orders import Order
from gatokit.pipelines.shards import ShardWriter, write_index
from gatokit.pipelines.sources.source import EpisodeFile, Place, RawEpisode, SourceFeatures
from gatokit.schemas.episode import Episode
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.index import HELD_OUT, INDEX, TRAIN
from gatokit.schemas.spec import EpisodeSpec
from gatokit.schemas.tokens import TokenIds
from gatokit.tokenizers.continuous import count_outside
from gatokit.tokenizers.episode import EpisodeTokenizer
from gatokit.tokenizers.text import TextTokenizer

INDEX_SUFFIX = ".index.parquet"


def build_split(order: Order, directory: str | Path, text: TextTokenizer) -> None:
    """Reads, tokenizes and writes the kept episodes of a split, then the index that marks it as done.

    Training episodes come first in the shard, held-out ones last, both in source order. An episode that
    cannot become tokens is dropped with a reason. DataError where the source changed since the scan.
    """
    columns = {name: order.rows[name].to_pylist() for name in order.rows.column_names}
    result: dict[str, list[Any]] = {
        name: [None] * order.rows.num_rows for name in ("tokens", "part", "first_record", "record_tokens")
    }
    tokenizers = {
        id_: EpisodeTokenizer(spec, TokenIds(order.head.settings.discrete_offset), text)
        for id_, spec in order.head.specs.items()
    }
    outside: dict[str, dict[str, tuple[int, int]]] = {}
    with ShardWriter(directory, order.stem) as writer:
        for split in (TRAIN, HELD_OUT):
            for row, raw, features in _raw_episodes(order, columns, split):
                spec_id = columns["spec"][row]
                try:
                    episode = to_episode(raw, features, order.head.specs[spec_id], columns["episode_id"][row])
                    sequence = tokenizers[spec_id].encode(episode)
                except RejectedError as error:
                    columns["kept"][row], columns["split"][row] = False, None
                    columns["reason"][row], columns["detail"][row] = error.reason, error.detail
                    continue
                _count(outside.setdefault(columns["task"][row], {}), episode, order.head.specs[spec_id])
                packed, sizes = records(episode, sequence, spec_id, order.head.settings.chunk_tokens)
                part, first = writer.add(packed, sizes, held_out=split == HELD_OUT)
                result["tokens"][row], result["part"][row] = sum(sizes), part
                result["first_record"][row], result["record_tokens"][row] = first, sizes
        writer.finish()
        result["tokens"] = [0 if tokens is None else tokens for tokens in result["tokens"]]
        rows = pa.table({**columns, **result}).select(INDEX.names).cast(INDEX)
        write_index(Path(directory) / (order.stem + INDEX_SUFFIX), rows, writer.parts, outside)


def _raw_episodes(
    order: Order, columns: dict[str, list[Any]], split: str
) -> Iterator[tuple[int, RawEpisode, SourceFeatures]]:
    """(row, episode, features) of the kept rows of ``split``, file by file."""
    files = order.head.episode_files()
    kept = [row for row, value in enumerate(columns["split"]) if value == split]
    for ordinal, rows_of_file in groupby(kept, key=lambda row: columns["file"][row]):
        rows = list(rows_of_file)
        features = order.head.features[order.head.features_of[ordinal]]
        places = [
            Place(columns["source_position"][row], columns["offset"][row], columns["length"][row], columns["crc"][row])
            for row in rows
        ]
        file: EpisodeFile = files[ordinal]
        for row, raw in zip(rows, file.read_some(features, places), strict=True):
            yield row, raw, features


def _count(counts: dict[str, tuple[int, int]], episode: Episode, spec: EpisodeSpec) -> None:
    for field in spec.action:
        if field.range is not None:
            values = episode.values[field.path]
            assert isinstance(values, np.ndarray)
            before, total = counts.get(field.path, (0, 0))
            counts[field.path] = before + count_outside(values, field.range), total + values.size
