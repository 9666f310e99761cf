"""What the explorer's views say of odd rows and indexes, without a browser."""

import asyncio
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gatokit.inspection import open_directory
from gatokit.inspection.explorer.browse import Browse
from gatokit.inspection.explorer.episode import Opened
from gatokit.inspection.explorer.query import Selection
from gatokit.schemas.index import REASONS


def browsed(path: Path, *names: str) -> Browse:
    """The widgets of a session, after they have found all rows."""
    datasets = open_directory(path).datasets
    browse = Browse([datasets[name] for name in names], Selection(datasets), lambda *_: None, lambda: None)
    asyncio.run(browse.refresh())
    return browse


def test_a_shard_that_is_missing_is_a_sentence_beside_the_row(small, tmp_path):
    path = Path(shutil.copytree(small.built, tmp_path / "torn"))
    directory = open_directory(path)
    row = next(directory.datasets["arm"].rows(kept=True))
    opened = Opened(directory)
    opened.show(directory.datasets["arm"], row)
    assert not opened._fault.visible
    assert opened._player.data["steps"] == row.steps
    (path / "arm" / row.shard).unlink()
    opened.show(directory.datasets["arm"], row)
    assert opened._fault.data["lines"] == [f"{path / 'arm' / row.shard} is missing"]
    assert (opened._player.visible, opened._token_table.visible, opened._row.visible) == (False, False, True)
    assert ["episode_id", row.episode_id] in [line[:2] for line in opened._row.data["rows"]]


@pytest.mark.parametrize("reason", ["below_threshold", "not_finite", "too_short"])
def test_a_dropped_row_says_why(small, reason):
    directory = open_directory(small.built)
    row = next(row for row in directory.datasets["arm"].rows(kept=False) if row.reason == reason)
    opened = Opened(directory)
    opened.show(directory.datasets["arm"], row)
    [said] = opened._fault.data["lines"]
    assert said.startswith(f"dropped: {reason}")
    assert said.endswith(f": {REASONS[reason]}")
    assert row.detail is None or row.detail in said


def test_a_document_is_shown_whole(corpora):
    directory = open_directory(corpora.built)
    dataset = directory.datasets["pages"]
    document = next(document for document in dataset.documents() if len(document.images) == 5)
    opened = Opened(directory)
    opened.show(dataset, document.row)
    parts = opened._parts.data["parts"]
    assert [part["text"] for part in parts if "text" in part] == ["Five pictures."]
    assert sum(part["url"].startswith("data:image/") for part in parts if "url" in part) == 5
    assert (opened._parts.visible, opened._player.visible) == (True, False)
    opened._view.value = "tokens"
    assert opened._token_table.data["total"] == document.tokens
    # Another one keeps the view that was chosen.
    opened.show(dataset, next(dataset.rows(kept=True)))
    assert opened._token_table.visible


def test_what_an_index_lacks_is_said(small, tmp_path, seal):
    path = Path(shutil.copytree(small.built, tmp_path / "less"))
    for file in path.glob("*/*.index.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.drop_columns(["return", "detail"]).replace_schema_metadata(table.schema.metadata), file)
    seal(path)
    browse = browsed(path, "arm")
    rows = list(open_directory(path).datasets["arm"].rows())
    counts, lacks = browse.counts.data["lines"]
    assert counts.startswith(f"{len(rows)} rows match, ")
    assert lacks == "The index lacks return, detail: what depends on them is unknown."
    assert [line[0] for line in browse.rows.data["rows"]] == [row.episode_id for row in rows[:20]]
    assert {line[3] for line in browse.rows.data["rows"]} == {"–"}


def test_an_index_that_cannot_be_read_is_a_sentence(small, tmp_path):
    path = Path(shutil.copytree(small.built, tmp_path / "torn"))
    browse = browsed(path, "arm")
    before = browse.rows.data
    for file in path.glob("arm/*.index.parquet"):
        file.write_bytes(b"PAR1".ljust(file.stat().st_size))
    asyncio.run(browse.refresh())
    assert browse.wrong.visible
    assert browse.wrong.data["lines"][0].startswith(f"the index of {path / 'arm'} cannot be read: ")
    assert browse.rows.data == before


def test_documents_are_not_selected(corpora):
    browse = browsed(corpora.built, "notes", "captions")
    assert browse.rows.data["ticked"] is None
    assert not browse._all.visible


def test_a_sort_goes_up_then_down_then_away(small):
    browse = browsed(small.built, "grid")
    orders = []
    for _ in range(4):
        browse._sort("order")
        orders.append(None if browse._order is None else browse._order.descending)
    assert orders == [False, True, None, False]
