"""Rows of Parquet files that pyarrow wrote; documents/test_text_rows.py damages such files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.formats.parquet import DamagedRows, Row, holds_text, is_list, open_file, read_rows


def test_rows_of_some_groups_with_nested_values(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table(
        {
            "image": [
                {"bytes": b"\xff\0", "path": "ü.png"},
                None,
                {"bytes": None, "path": "b"},
                {"bytes": b"", "path": None},
            ],
            "names": [["a", None], [], None, ["ü"]],
            "class": pa.array(["x", None, "x", "y"]).dictionary_encode(),
            "number": [1, 2, None, 4],
        }
    )
    pq.write_table(table, path, row_group_size=2)
    with open_file(str(path), "a") as file:
        rows = list(read_rows(file, ["image", "names", "class", "number"]))
        some = list(read_rows(file, ["number"], [1]))
    assert [(row.position, row.group) for row in rows] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert [row.values for row in rows if isinstance(row, Row)] == [
        {"image": {"bytes": b"\xff\0", "path": "ü.png".encode()}, "names": [b"a", None], "class": b"x", "number": 1},
        {"image": None, "names": [], "class": None, "number": 2},
        {"image": {"bytes": None, "path": b"b"}, "names": None, "class": b"x", "number": None},
        {"image": {"bytes": b"", "path": None}, "names": ["ü".encode()], "class": b"y", "number": 4},
    ]
    assert some == [Row(2, 1, {"number": None}), Row(3, 1, {"number": 4})]
    assert not any(isinstance(row, DamagedRows) for row in rows)


TEXTS = st.one_of(st.none(), st.text(max_size=5))
TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.null())
LIST_TYPES = (pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda type_: pa.list_(type_, 2))


def as_bytes(value: Any) -> Any:
    return [as_bytes(each) for each in value] if isinstance(value, list) else value if value is None else value.encode()


@settings(max_examples=80, deadline=None)
@given(data=st.data(), type_=st.sampled_from(TEXT_TYPES), list_type=st.sampled_from((None, *LIST_TYPES)))
def test_any_type_of_texts_and_of_lists_of_them(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, type_: pa.DataType, list_type: Any
) -> None:
    path = tmp_path_factory.mktemp("types") / "a.parquet"
    texts = st.none() if type_ == pa.null() else TEXTS
    lists = st.lists(texts, min_size=2, max_size=2)
    # Arrow does not read a null back that it wrote in place of a list of a fixed size.
    is_fixed = list_type is LIST_TYPES[-1]
    value = texts if list_type is None else lists if is_fixed else st.one_of(st.none(), lists)
    values = data.draw(st.lists(value, max_size=7))
    column = pa.array(values, type_ if list_type is None else list_type(type_))
    pq.write_table(pa.table({"c": column}), path, row_group_size=data.draw(st.integers(1, 4)))
    with open_file(str(path), "a.parquet") as file:
        assert file.schema_arrow.field("c").type == column.type
        assert (holds_text(column.type), is_list(column.type)) == (list_type is None, list_type is not None)
        read = [row.values["c"] for row in read_rows(file, ["c"]) if isinstance(row, Row)]
    assert read == [as_bytes(value) for value in values]


def test_columns_of_extension_types_and_of_runs(tmp_path: Path) -> None:
    """Arrow's own JSON type; runs cannot be written to Parquet by pyarrow, so their type alone is asked."""
    path = tmp_path / "a.parquet"
    storage = pa.array(['{"a": 1}', None])
    pq.write_table(pa.table({"c": pa.ExtensionArray.from_storage(pa.json_(pa.string()), storage)}), path)
    with open_file(str(path), "a.parquet") as file:
        assert str(file.schema_arrow.field("c").type) == "extension<arrow.json>"
        assert [row.values["c"] for row in read_rows(file, ["c"]) if isinstance(row, Row)] == [b'{"a": 1}', None]
    assert holds_text(pa.json_(pa.string()))
    assert holds_text(pa.run_end_encoded(pa.int32(), pa.string_view()))
    assert not holds_text(pa.run_end_encoded(pa.int32(), pa.int64()))
