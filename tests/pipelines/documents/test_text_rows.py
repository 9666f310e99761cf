"""Parquet of texts, and the scan and reading of rows that all documents in Parquet share; files written by pyarrow."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.parquet import TextRowsFile
from gatokit.pipelines.documents.reader import content_digest
from gatokit.pipelines.formats.parquet import BATCH_ROWS
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError

BOUND = 1 << 20


def stored(path: Path, column: pa.Array, name: str = "text", **options: object) -> TextRowsFile:
    pq.write_table(pa.table({"id": range(len(column)), name: column}), path, **options)
    return TextRowsFile(path=str(path), name=path.name, size=path.stat().st_size, field=name)


def texts(file: TextRowsFile) -> list[str]:
    sound = [document for document in file.scan(BOUND) if document.reason is None]
    parts = list(file.read([document.byte_range for document in sound]))
    assert [content_digest(part) for part in parts] == [document.content for document in sound]
    return [str(part) for [part] in parts]


TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int32(), pa.string()),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("store_schema", [True, False])
def test_every_kind_of_text_column_is_read(tmp_path: Path, kind: pa.DataType, store_schema: bool) -> None:
    column = pa.array(["one", "ü\0\r\n", None, "", " \n", "one", "x" * 101]).cast(kind)
    file = stored(tmp_path / "a b [*] ü.parquet", column, row_group_size=3, store_schema=store_schema)
    found = list(file.scan(100))
    assert [(document.byte_range.position, document.byte_range.offset, document.reason) for document in found] == [
        (0, 0, None),
        (1, 0, None),
        (2, 0, "missing_field"),
        (3, 1, "empty"),
        (4, 1, "empty"),
        (5, 1, None),
        (6, 2, "too_large"),
    ]
    assert [document.key for document in found] == ["0", "1", "2", "3", "4", "5", "6"]
    assert [document.byte_range.length for document in found] == [3, 5, 0, 0, 2, 3, 101]
    sound = [document.byte_range for document in found if document.reason is None]
    assert list(file.read(sound)) == [["one"], ["ü\0\r\n"], ["one"]]
    assert list(file.read(sound[1:])) == [["ü\0\r\n"], ["one"]]


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_bytes_that_are_no_utf8_are_one_row(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([b"a", b"b\xff", b"c"]).view(kind)
    file = stored(tmp_path / "a.parquet", column)
    found = list(file.scan(BOUND))
    assert [document.reason for document in found] == [None, "not_utf8", None]
    assert found[1].detail == "'text' is not valid UTF-8 at its byte 1"
    assert texts(file) == ["a", "c"]


def test_a_column_of_nulls_is_missing(tmp_path: Path) -> None:
    found = list(stored(tmp_path / "a.parquet", pa.nulls(2)).scan(BOUND))
    assert [document.reason for document in found] == ["missing_field"] * 2


def test_no_rows(tmp_path: Path) -> None:
    assert list(stored(tmp_path / "a.parquet", pa.array([], pa.string())).scan(BOUND)) == []


def test_a_file_without_the_column_is_an_error(tmp_path: Path) -> None:
    file = stored(tmp_path / "a.parquet", pa.array(["a"]), "body")
    with pytest.raises(DataError) as error:
        list(file.model_copy(update={"field": "text"}).scan(BOUND))
    assert str(error.value) == "a.parquet: has no column 'text'; set `field` to one of its columns: 'id', 'body'"
    with pytest.raises(DataError) as error:
        list(file.model_copy(update={"field": "id"}).scan(BOUND))
    assert str(error.value) == ("a.parquet: column 'id' holds int64, no text; set `field` to one that does: 'body'")
    two = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(two, tmp_path / "two.parquet")
    with pytest.raises(DataError, match="has two columns 'text'"):
        list(TextRowsFile(path=str(tmp_path / "two.parquet"), name="two", size=1, field="text").scan(BOUND))


def test_what_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b'{"text": "a"}\n')
    with pytest.raises(DataError, match=r"a\.parquet: is no Parquet file; leave it out of `source`"):
        list(TextRowsFile(path=str(path), name="a.parquet", size=1, field="text").scan(BOUND))


def test_a_truncated_file_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    stored(path, pa.array(["a", "b"]))
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        [found] = TextRowsFile(path=str(path), name="a.parquet", size=size, field="text").scan(BOUND)
        assert (found.lost, found.lost_bytes, found.byte_range.position) == (1, size, 0)
        problem = "the file's footer is damaged or missing: " if size else "the file is empty"
        assert str(found.detail).startswith(problem)


def test_a_damaged_row_group_is_one_row_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array([f"text {number} " * 50 for number in range(30)])
    file = stored(path, column, row_group_size=10, write_page_checksum=True, use_dictionary=False)
    before = list(file.scan(BOUND))
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 10] ^= 1
    path.write_bytes(data)
    found = list(file.scan(BOUND))
    assert [(document.byte_range.position, document.reason, document.lost) for document in found] == [
        *((number, None, 1) for number in range(10)),
        (10, "corrupt_length", 10),
        *((number, None, 1) for number in range(20, 30)),
    ]
    assert str(found[10].detail).startswith("row group 1 is damaged: ")
    assert texts(file) == [column[number].as_py() for number in (*range(10), *range(20, 30))]
    places = [document.byte_range for document in before]
    assert len(list(file.read(places[:10] + places[20:]))) == 20
    with pytest.raises(DataError, match=r"a\.parquet: document 15 changed between scan and build"):
        list(file.read(places[15:]))


def test_rows_before_the_damaged_page_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    count = 4 * BATCH_ROWS
    column = pa.array([f"text {number} " for number in range(count)])
    options = {"write_page_checksum": True, "use_dictionary": False, "compression": "none", "data_page_size": 1}
    file = stored(path, column, write_batch_size=BATCH_ROWS, **options)
    data = path.read_bytes()
    at = data.index(f"text {3 * BATCH_ROWS + 5} ".encode())
    path.write_bytes(data[:at] + b"T" + data[at + 1 :])
    found = list(file.scan(BOUND))
    lost = found[-1].lost
    assert (found[-1].reason, len(found) - 1 + lost) == ("corrupt_length", count)
    assert BATCH_ROWS <= lost < count
    assert texts(file) == [column[number].as_py() for number in range(count - lost)]


def test_random_damage_is_rows_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array([f"text {number} " * 9 for number in range(60)])
    file = stored(path, column, row_group_size=20, write_page_checksum=True)
    whole = path.read_bytes()
    sound = dict(enumerate(file.scan(BOUND)))
    generator = random.Random(1)
    for _ in range(300):
        data = bytearray(whole)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        try:
            found = list(file.scan(BOUND))
        except DataError:
            continue
        if len(found) == 60:
            # The bit was one that says nothing about the rows.
            assert [document.content for document in found] == [document.content for document in sound.values()]
        for document in found:
            if document.reason is None:
                assert document.content == sound[document.byte_range.position].content


@pytest.mark.parametrize(
    ("rows", "places"),
    [
        (["a", "B", "c"], None),
        (["a"], None),
        ([], None),
        (["a", None, "c"], None),
        (["a", "b", "c"], [ByteRange(1, 5, 1, 0)]),
        (["a", "b", "c"], [ByteRange(9, 0, 1, 0)]),
    ],
)
def test_a_change_after_the_scan_is_an_error(
    tmp_path: Path, rows: list[str | None], places: list[ByteRange] | None
) -> None:
    file = stored(tmp_path / "a.parquet", pa.array(["a", "b", "c"]))
    scanned = [document.byte_range for document in file.scan(BOUND)]
    stored(tmp_path / "a.parquet", pa.array(rows, pa.string()))
    with pytest.raises(DataError, match="changed between scan and build"):
        list(file.read(places or scanned[1:]))
    stored(tmp_path / "a.parquet", pa.array(["a", "b", "c"]), "other")
    with pytest.raises(DataError, match="changed between scan and build"):
        list(file.read(scanned))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="changed between scan and build"):
        list(file.read(scanned))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(max_size=40).filter(lambda text: bool(text.strip())), max_size=30),
    st.integers(1, 12),
    st.sampled_from(["none", "snappy", "zstd"]),
    st.data(),
)
def test_what_pyarrow_writes_is_read(
    tmp_path: Path, documents: list[str], group_size: int, compression: str, data: st.DataObject
) -> None:
    column = pa.array(documents, pa.string())
    file = stored(tmp_path / "a.parquet", column, row_group_size=group_size, compression=compression)
    assert texts(file) == documents
    places = [document.byte_range for document in file.scan(BOUND)]
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(places)))))) if places else []
    assert list(file.read([places[number] for number in chosen])) == [[documents[number]] for number in chosen]
