"""Rows of Parquet files that pyarrow wrote; documents/test_text_rows.py damages such files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gatokit.pipelines.formats.parquet import DamagedRows, Row, open_file, read_rows


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
