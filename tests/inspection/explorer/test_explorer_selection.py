"""Selections of the explorer: what is ticked, and that the list is the one ``keep: {episodes: FILE}`` takes."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.inspection import open_directory, preview
from gatokit.inspection.explorer.query import Filter, Selection, config_lines, find
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.episode_list import EpisodeList, csv_text

HOSTILE = ['<b>"x"</b>', "a,b", "line\nbreak", "two\r\nlines", " spaces ", "=1+1", "ünï", "'quoted'"]


@pytest.fixture
def picked(small):
    return Selection(open_directory(small.built).datasets)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(["arm", "grid"]), st.booleans(), st.lists(st.integers(0, 3), max_size=4)), max_size=12
    )
)
def test_ticks_are_a_set(small, changes):
    picked = Selection(open_directory(small.built).datasets)
    expected = {"arm": set(), "grid": set()}
    for name, on, ordinals in changes:
        (picked.add if on else picked.remove)(name, ordinals)
        expected[name] = expected[name] | set(ordinals) if on else expected[name] - set(ordinals)
    assert picked.counts() == {name: len(own) for name, own in expected.items() if own}
    for name, own in expected.items():
        assert picked.holds(name, range(4)) == [ordinal in own for ordinal in range(4)]


def test_all_that_match_across_datasets_and_clear(small, picked):
    datasets = open_directory(small.built).datasets
    picked.add("arm", find(datasets["arm"], Filter(task="reach", kept=True)).ordinals)
    picked.add("grid", find(datasets["grid"], Filter()).ordinals)
    picked.add("arm", [0])
    reach = sum(1 for _ in datasets["arm"].rows(task="reach", kept=True))
    first = next(datasets["arm"].rows())
    assert picked.counts() == {"arm": reach + (not (first.task == "reach" and first.kept)), "grid": 4}
    kept = picked.copy()
    picked.remove("grid", find(datasets["grid"], Filter(where="order < 1")).ordinals)
    assert picked.counts()["grid"] == 3
    picked.clear()
    assert (picked.counts(), kept.counts()["grid"]) == ({}, 4)
    assert b"".join(picked.csv()) == b"episode_id,dataset,task\n"


def test_the_list_is_what_a_selection_reads(small, picked):
    datasets = open_directory(small.built).datasets
    chosen = {"arm": [1, 4, 20, 29], "against_random": [2]}
    for name, ordinals in chosen.items():
        picked.add(name, np.array(ordinals))
    data = b"".join(picked.csv())
    for name, ordinals in chosen.items():
        rows = list(datasets[name].rows())
        selection = EpisodeList(data, "episodes.csv", name)
        listed = selection.find([row.episode_id for row in rows], [row.task for row in rows])
        assert np.flatnonzero(listed).tolist() == ordinals
        selection.check_found(name)


def test_a_preview_keeps_the_list(small, picked, tmp_path):
    dataset = open_directory(small.built).datasets["arm"]
    rows = list(dataset.rows())
    wanted = [ordinal for ordinal, row in enumerate(rows) if row.kept][::2]
    picked.add("arm", wanted)
    file = tmp_path / "episodes.csv"
    file.write_bytes(b"".join(picked.csv()))
    found = preview(dataset, Keep.model_validate({"episodes": str(file)}))
    expected = {task: sum(rows[ordinal].task == task for ordinal in wanted) for task in dataset.task_names}
    assert {row.task: row.kept_at for row in found} == expected


def test_ids_with_marks_of_csv_and_html_come_through(small, tmp_path, seal):
    path = Path(shutil.copytree(small.built, tmp_path / "hostile"))
    for file in path.glob("arm/*.index.parquet"):
        table = pq.read_table(file)
        ids = [f"{HOSTILE[at % len(HOSTILE)]}{file.name}{at}" for at in range(table.num_rows)]
        ids[0] = None
        table = table.set_column(0, "episode_id", pa.array(ids, pa.string()))
        pq.write_table(table, file)
    seal(path)
    dataset = open_directory(path).datasets["arm"]
    picked = Selection({"arm": dataset})
    rows = list(dataset.rows())
    picked.add("arm", range(len(rows)))
    data = b"".join(picked.csv())
    known = [row for row in rows if row.episode_id is not None]
    cells = [line["episode_id"] for line in csv.DictReader(io.StringIO(data.decode(), newline=""))]
    assert list(map(csv_text, cells)) == [row.episode_id for row in known]
    assert data.count(b"\n") == 1 + len(known)
    selection = EpisodeList(data, "episodes.csv", "arm")
    assert selection.find([row.episode_id for row in known], [row.task for row in known]).all()


def test_the_lines_to_paste_are_a_config():
    lines = config_lines({"arm": 3, "grid": 1}, "episodes.csv")
    assert yaml.safe_load(lines) == {
        "datasets": [
            {"name": "arm", "keep": {"episodes": "episodes.csv"}},
            {"name": "grid", "keep": {"episodes": "episodes.csv"}},
        ]
    }
    assert config_lines({}, "episodes.csv") == ""
