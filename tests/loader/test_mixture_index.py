"""The index in memory against the rows that it was loaded from."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.loader.mixture import EpisodeIndex, IndexFile, load_index
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import INDEX
from gatokit.schemas.manifest import ShardEntry, SplitEntry

ROW = st.fixed_dictionaries(
    {
        "task": st.sampled_from(["push", "reach", "grasp"]),
        "agent": st.sampled_from(["", "a", "b"]),
        "split": st.sampled_from(["train", "train", "held_out", None]),
        "part": st.sampled_from([0, 0, 1]),
        "record_tokens": st.lists(st.integers(1, 9), min_size=1, max_size=4),
    }
)


def write(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Writes an index; the rows with the records that follow each other in every part."""
    records = {0: 0, 1: 0}
    written = []
    for row in rows:
        kept = row["split"] is not None
        row = row | {"kept": kept, "first_record": records[row["part"]], "steps": len(row["record_tokens"]) + 1}
        if kept:
            records[row["part"]] += len(row["record_tokens"])
        else:
            row |= {"part": None, "first_record": None, "record_tokens": None}
        written.append(row)
    table = pa.Table.from_pylist([dict.fromkeys(INDEX.names) | row for row in written], INDEX)
    pq.write_table(table, path)
    return written


def of_file(path: Path, first_shard: int, rows: int) -> IndexFile:
    """An index of two shards that hold all records of ``write``."""
    parts = [
        ShardEntry(file=f"{part}.arrayrecord", size=0, blake2b="", training=20_000, held_out=0, tokens=0)
        for part in range(2)
    ]
    split = SplitEntry(fingerprint="", index="a.parquet", rows=rows, kept=rows, parts=parts)
    return IndexFile(path, first_shard, split)


@settings(max_examples=60)
@given(files=st.lists(st.lists(ROW, max_size=12), min_size=1, max_size=3), split=st.sampled_from(["train", "held_out"]))
def test_episodes_are_ranges_by_task_agent_and_shard(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[dict[str, Any]]], split: str
) -> None:
    folder = tmp_path_factory.mktemp("index")
    paths = [folder / f"{number}.parquet" for number in range(len(files))]
    rows = []
    for number, (path, given_rows) in enumerate(zip(paths, files, strict=True)):
        rows += [row | {"shard": 2 * number + (row["part"] or 0)} for row in write(path, given_rows)]
    rows = [row for row in rows if row["split"] == split]
    rows.sort(key=lambda row: (row["task"], row["agent"], row["shard"], row["first_record"]))
    index = load_index(
        [of_file(path, 2 * number, len(of)) for number, (path, of) in enumerate(zip(paths, files, strict=True))], split
    )

    assert index.episodes == len(rows)
    assert index.tasks == tuple(sorted({row["task"] for row in rows}))
    assert index.first_record.tolist() == [row["first_record"] for row in rows]
    assert index.steps.tolist() == [row["steps"] for row in rows]
    episodes = np.arange(len(rows))
    assert index.tokens(episodes).tolist() == [sum(row["record_tokens"]) for row in rows]
    assert index.run_shard[index.run_of(episodes)].tolist() == [row["shard"] for row in rows]
    groups = index.group_of(episodes).tolist()
    assert [(index.task_of(group), index.agents[group]) for group in groups] == [
        (row["task"], row["agent"]) for row in rows
    ]
    for begins in (index.task_begin, index.group_begin, index.run_begin):
        assert (begins[0], begins[-1]) == (0, len(rows))
        assert np.all(np.diff(begins) > 0)
    check_ranges(index, rows)


def check_ranges(index: EpisodeIndex, rows: list[dict[str, Any]]) -> None:
    """Every range of tokens of every episode is found in the right records."""
    for episode, row in enumerate(rows):
        record = np.repeat(np.arange(len(row["record_tokens"])), row["record_tokens"])
        begins = np.cumsum([0, *row["record_tokens"]])
        wanted = [(begin, end) for begin in range(len(record)) for end in range(begin + 1, len(record) + 1)]
        begin, end = np.array(wanted).T
        found = index.record_ranges(np.full(len(wanted), episode), begin, end)
        assert np.all(found["shard"] == row["shard"])
        assert np.array_equal(found["first"], row["first_record"] + record[begin])
        assert np.array_equal(found["stop"], row["first_record"] + record[end - 1] + 1)
        assert np.array_equal(found["skip"], begin - begins[record[begin]])


def test_an_episode_of_gatos_mix_costs_less_than_a_hundred_bytes(tmp_path: Path) -> None:
    """62.8 million episodes of 1.61T tokens are 6.26 records of 4,096 tokens each."""
    row = {"task": "push", "agent": "a", "split": "train", "part": 0}
    write(tmp_path / "a.parquet", [row | {"record_tokens": [4096] * (6 + (at % 4 == 0))} for at in range(2000)])
    index = load_index([of_file(tmp_path / "a.parquet", 0, 2000)], "train")
    nbytes = sum(value.nbytes for value in vars(index).values() if isinstance(value, np.ndarray))
    assert 40 < nbytes / index.episodes < 70


def test_an_index_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    schema = INDEX.with_metadata({"gatokit.index": "7"})
    pq.write_table(schema.empty_table(), tmp_path / "new.parquet")
    with pytest.raises(DataError, match=r"new\.parquet has index version 7 and this gatokit reads up to 2"):
        load_index([of_file(tmp_path / "new.parquet", 0, 0)], "train")
