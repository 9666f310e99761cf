"""Filters, orders and pages of the explorer against a loop over the rows."""

import functools
import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatokit.inspection import open_directory
from gatokit.inspection.explorer.browse import TASK_COLUMNS, arranged
from gatokit.inspection.explorer.query import COLUMNS, Filter, Match, Order, find, page, value_of
from gatokit.inspection.read.index import TaskTotals
from gatokit.schemas.errors import ConfigError

DATASETS = ["arm", "grid", "against_random"]
FILTERS = st.builds(
    Filter,
    task=st.sampled_from([None, "reach", "push", "none of this name"]),
    kept=st.sampled_from([None, True, False]),
    split=st.sampled_from([None, "train", "held_out"]),
    reason=st.sampled_from([None, "below_threshold", "not_finite", "too_short"]),
    text=st.sampled_from(["", "#1", "PUSH", ".", "\\", "%"]),
)
ORDERS = st.none() | st.builds(Order, st.sampled_from(list(COLUMNS)), st.booleans())


def looped(rows, asked):
    """Ordinals of the rows that a filter asks for, one row at a time."""
    return [
        ordinal
        for ordinal, row in enumerate(rows)
        if all(
            wanted is None or getattr(row, name) == wanted
            for name, wanted in (("task", asked.task), ("split", asked.split), ("reason", asked.reason))
        )
        and (asked.kept is None or row.kept is asked.kept)
        and asked.text.lower() in row.episode_id.lower()
    ]


def compare(order, left, right):
    """Before (-1), level (0) or behind (1): what is unknown comes last either way."""
    left, right = value_of(left, order.column), value_of(right, order.column)
    if left is None or right is None:
        return (left is None) - (right is None)
    return ((left > right) - (left < right)) * (-1 if order.descending else 1)


@functools.cache
def rows_in(path: Path, name: str):
    return list(open_directory(path).datasets[name].rows())


@pytest.mark.parametrize("where", ["built", "scanned"])
@pytest.mark.parametrize("name", DATASETS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=FILTERS, order=ORDERS)
def test_rows_are_found_and_sorted_as_a_loop_does(small, where, name, asked, order):
    dataset = open_directory(getattr(small, where)).datasets[name]
    rows = rows_in(getattr(small, where), name)
    expected = looped(rows, asked)
    if order is not None:
        expected.sort(key=functools.cmp_to_key(lambda left, right: compare(order, rows[left], rows[right])))
    found = find(dataset, asked, order)
    assert list(found.ordinals) == expected
    kept = [rows[ordinal] for ordinal in expected if rows[ordinal].kept]
    assert found.rows == len(expected)
    assert found.kept == len(kept)
    assert found.steps == sum(rows[ordinal].steps or 0 for ordinal in expected)
    assert found.tokens == sum(row.tokens or 0 for row in kept)
    assert page(dataset, found, 0, 1000) == [rows[ordinal] for ordinal in expected]
    assert page(dataset, found, 3, 5) == [rows[ordinal] for ordinal in expected][3:5]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_sorts_without_another(small, column, descending):
    for where in (small.built, small.scanned):
        rows, order = rows_in(where, "arm"), Order(column, descending)
        by = functools.cmp_to_key(lambda left, right: compare(order, rows[left], rows[right]))  # noqa: B023
        found = find(open_directory(where).datasets["arm"], Filter(), order)
        assert list(found.ordinals) == sorted(range(len(rows)), key=by)


EXPRESSIONS = [
    ("kept and steps > 8", lambda row: row.kept and row.steps > 8),
    ("not kept", lambda row: not row.kept),
    ("reason == 'below_threshold' or split == 'held_out'",
     lambda row: row.reason == "below_threshold" or row.split == "held_out"),
    ("return >= 0.5 * expert_return and expert_return > 0",
     lambda row: (row.episode_return or -math.inf) >= 5 and row.task == "reach"),
    ("records > 2", lambda row: len(row.record_tokens or ()) > 2),
    ("tokens % 2 == 0 and kept", lambda row: row.kept and row.tokens % 2 == 0),
    ("part == 0 and first_record > 2", lambda row: row.part == 0 and row.first_record > 2),
    ("detail != ''", lambda row: bool(row.detail)),
    ("lost == 1 and agent in ('a', 'z')", lambda row: row.lost == 1 and row.agent == "a"),
    ("threshold < 0 and order > 95", lambda row: row.threshold is not None and row.threshold < 0 and row.order > 95),
]  # fmt: skip


@pytest.mark.parametrize(("text", "holds"), EXPRESSIONS)
def test_expressions_name_every_column_of_the_index(small, text, holds):
    dataset = open_directory(small.built).datasets["arm"]
    rows = rows_in(small.built, "arm")
    expected = [ordinal for ordinal, row in enumerate(rows) if holds(row)]
    assert 0 < len(expected) < len(rows) or text == "return >= 0.5 * expert_return and expert_return > 0"
    assert list(find(dataset, Filter(where=text)).ordinals) == expected


def test_the_shard_of_a_row_is_a_column(small):
    dataset = open_directory(small.built).datasets["arm"]
    rows = rows_in(small.built, "arm")
    shards = sorted({row.shard for row in rows if row.shard})
    assert len(shards) > 1
    for shard in shards:
        found = find(dataset, Filter(where=f"shard == '{shard}'"))
        assert list(found.ordinals) == [ordinal for ordinal, row in enumerate(rows) if row.shard == shard]


def test_every_column_of_a_config_is_one_of_the_explorer():
    from gatokit.schemas import where
    from gatokit.schemas.index import INDEX

    assert where.COLUMNS.items() <= {name: column.kind for name, column in COLUMNS.items()}.items()
    assert set(INDEX.names) - set(COLUMNS) == {"record_tokens"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "speed > 3",
            r"^the expression 'speed' is no column; did you mean 'spec'\? the columns are episode_id, task, ",
        ),
        ("kept == 1", r"^the expression compares kept, a truth, with 1, a number, by ==; write == true or == false$"),
        ("steps >", r"^the expression is no expression: "),
        ("reason", r"^the expression reason is a string, and the whole needs a comparison$"),
        ("__import__('os')", r"^the expression holds "),
    ],
)
def test_a_wrong_expression_is_a_sentence(small, text, sentence):
    dataset = open_directory(small.built).datasets["arm"]
    with pytest.raises(ConfigError, match=sentence):
        find(dataset, Filter(where=text))


def test_documents_are_found_likewise(corpora):
    dataset = open_directory(corpora.built).datasets["notes"]
    rows = list(dataset.rows())
    found = find(dataset, Filter(where="records > 1"), Order("tokens", True))
    expected = [ordinal for ordinal, row in enumerate(rows) if len(row.record_tokens or ()) > 1]
    assert list(found.ordinals) == sorted(expected, key=lambda ordinal: -rows[ordinal].tokens)
    assert found.tokens == sum(rows[ordinal].tokens for ordinal in expected) > 0


def test_giving_up_stops_the_reading(small):
    class Enough(Exception):
        pass

    def moved(_):
        raise Enough

    with pytest.raises(Enough):
        find(open_directory(small.built).datasets["arm"], Filter(), None, moved)


@pytest.mark.parametrize("column", ["agent", "return", "kept", "reason", "tokens", "steps", "task", "record_tokens"])
def test_an_index_without_a_column_is_searched(small, tmp_path, seal, column):
    path = Path(shutil.copytree(small.built, tmp_path / "less"))
    for file in path.glob("*/*.index.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.drop_columns([column]).replace_schema_metadata(table.schema.metadata), file)
    seal(path)
    dataset = open_directory(path).datasets["arm"]
    total = find(dataset, Filter())
    assert total.rows == len(rows_in(small.built, "arm"))
    name = "records" if column == "record_tokens" else column
    assert list(find(dataset, Filter(), Order(name, True)).ordinals) == list(range(total.rows))
    assert find(dataset, Filter(where="episode_id != ''")).rows == total.rows
    assert [value_of(row, name) for row in page(dataset, total, 0, 2)] == [None, None]


def test_an_empty_index_matches_nothing(small, tmp_path, seal, edit_manifest):
    path = Path(shutil.copytree(small.built, tmp_path / "empty"))
    for file in path.glob("*/*.index.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.slice(0, 0).replace_schema_metadata(table.schema.metadata), file)
    seal(path)
    edit_manifest(
        path, lambda content: [split.update(rows=0) for item in content["datasets"] for split in item["splits"]]
    )
    dataset = open_directory(path).datasets["arm"]
    for asked in (Filter(), Filter(kept=True)):
        found = find(dataset, asked, Order("return"))
        assert (found.rows, found.kept, found.steps, found.tokens) == (0, 0, 0, 0)
        assert page(dataset, found, 0, 20) == []


def test_rows_come_in_the_order_that_is_asked_for(small):
    dataset = open_directory(small.built).datasets["arm"]
    rows = rows_in(small.built, "arm")
    assert dataset.rows_at([7, 0, 29, 3]) == [rows[7], rows[0], rows[29], rows[3]]
    assert dataset.rows_at([]) == []
    assert page(dataset, Match(range(30), 0, 0, 0), 28, 40) == rows[28:]


def test_strings_sort_by_code_point_and_unknown_ones_come_last(small, tmp_path, seal):
    path = Path(shutil.copytree(small.built, tmp_path / "named"))
    names = ["b", "é", "a", "Z", "a#10", "a#9", "\U0001f600", "\uffff", "", None]
    for file in path.glob("grid/*.index.parquet"):
        table = pq.read_table(file)
        ids = pa.array((names * 4)[: table.num_rows], pa.string())
        table = table.set_column(table.schema.get_field_index("episode_id"), "episode_id", ids)
        pq.write_table(table, file)
    seal(path)
    dataset = open_directory(path).datasets["grid"]
    ids = [row.episode_id for row in dataset.rows()]
    for descending in (False, True):
        found = [ids[ordinal] for ordinal in find(dataset, Filter(), Order("episode_id", descending)).ordinals]
        known = [id_ for id_ in ids if id_ is not None]
        assert found == sorted(known, reverse=descending) + [None] * (len(ids) - len(known))


LINES = [
    TaskTotals("lift", 10, 4, 2.0, 1.0, 40),
    TaskTotals("Lift-2", 20, 4, None, None, 10),
    TaskTotals("push", 5, 5, -3.0, -4.0, 70),
]


@pytest.mark.parametrize(
    ("text", "column", "descending", "expected"),
    [
        ("", "task", False, ["Lift-2", "lift", "push"]),
        ("LIFT", "found", True, ["Lift-2", "lift"]),
        ("", "kept", False, ["lift", "Lift-2", "push"]),
        ("", "kept", True, ["push", "lift", "Lift-2"]),
        ("", "expert_return", False, ["push", "lift", "Lift-2"]),
        ("", "expert_return", True, ["lift", "push", "Lift-2"]),
        ("slide", "task", False, []),
    ],
)
def test_tasks_are_found_by_name_and_sorted(text, column, descending, expected):
    assert [line.task for line in arranged(LINES, text, column, descending)] == expected


def test_tasks_are_counted_over_their_agents(small):
    dataset = open_directory(small.built).datasets["arm"]
    rows = rows_in(small.built, "arm")
    assert set(TASK_COLUMNS) == {"task", "found", "kept", "expert_return", "threshold", "steps"}
    for line in dataset.task_totals:
        own = [row for row in rows if row.task == line.task]
        kept = [row for row in own if row.kept]
        assert (line.found, line.kept) == (len(own), len(kept))
        assert line.steps == sum(row.steps for row in kept)
        assert {line.threshold} == {row.threshold for row in kept}
