import json
import os
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.parquet import ImageRowsFile
from gatokit.pipelines.documents.reader import ScannedDocument, content_digest
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError

LARGE = 1 << 30
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LISTS = pa.list_(pa.string())
TEXT = st.text().filter(lambda text: text.strip() != "")


def write(path: Path, rows: list[dict[str, Any]], row_group: int = 2, **columns: pa.DataType) -> Path:
    """Parquet as ``datasets`` leaves it: features in the schema's metadata, row groups of few rows."""
    kinds = {
        "image": {"_type": "Image"},
        "captions": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    }
    features = {name: kinds.get(name, {"dtype": "string", "_type": "Value"}) for name in columns}
    schema = pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=row_group)
    return path


def opened(path: Path, **options: Any) -> ImageRowsFile:
    options = {"image_field": "image", **options}
    return ImageRowsFile(path=os.fspath(path), name=path.name, size=path.stat().st_size, **options)


def row(data: bytes | None, path: str | None = None, **more: Any) -> dict[str, Any]:
    return {"image": {"bytes": data, "path": path}, **more}


def kept(file: ImageRowsFile) -> list[ByteRange]:
    return [found.byte_range for found in file.scan(LARGE) if found.reason is None]


def test_rows_in_full(tmp_path: Path) -> None:
    rows = [row(b"one", "1.png", caption="ä"), row(b"two", caption="b"), row(b"three", caption="c")]
    file = opened(write(tmp_path / "a.parquet", rows, image=IMAGE, caption=pa.string()))
    found = list(file.scan(LARGE))
    assert found[0]._replace(pictures=None, text=None) == ScannedDocument(
        ByteRange(0, 0, 5, google_crc32c.value(b"one\xc3\xa4")), "0", content_digest([b"one", "ä"])
    )
    assert [(one.key, one.byte_range.position, one.byte_range.offset) for one in found[1:]] == [
        ("1", 1, 0),
        ("2", 2, 1),
    ]
    assert list(file.read(kept(file))) == [[b"one", "ä"], [b"two", "b"], [b"three", "c"]]


def test_lists_of_captions_in_full(tmp_path: Path) -> None:
    rows = [row(b"one", captions=["a", "b"]), row(b"two", captions=["c"]), row(b"three", captions=["d", "e", "f"])]
    file = opened(write(tmp_path / "a.parquet", rows, image=IMAGE, captions=LISTS), text_field="captions")
    found = list(file.scan(LARGE))
    assert [(one.key, one.group, one.byte_range.payload) for one in found] == [
        ("0.0", "a.parquet#0", "0"),
        ("0.1", "a.parquet#0", "1"),
        ("1.0", "a.parquet#1", "0"),
        ("2.0", "a.parquet#2", "0"),
        ("2.1", "a.parquet#2", "1"),
        ("2.2", "a.parquet#2", "2"),
    ]
    places = [one.byte_range for one in found]
    parts = [[b"one", "a"], [b"one", "b"], [b"two", "c"], [b"three", "d"], [b"three", "e"], [b"three", "f"]]
    assert list(file.read(places)) == parts
    assert list(file.read(places[at] for at in (1, 3, 5))) == [parts[at] for at in (1, 3, 5)]


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            st.binary(min_size=1), st.lists(st.text().filter(lambda text: text.strip() != ""), min_size=1, max_size=4)
        ),
        max_size=9,
    ),
    row_group=st.integers(1, 4),
    embedded=st.booleans(),
    data=st.data(),
)
def test_any_rows_come_back_in_any_selection(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[bytes, list[str]]],
    row_group: int,
    embedded: bool,
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    records = [{"image": {"bytes": image} if embedded else image, "captions": texts} for image, texts in rows]
    kind = IMAGE if embedded else pa.large_binary()
    write(path, records, row_group, image=kind, captions=pa.large_list(pa.large_string()))
    file = opened(path, text_field="captions")
    expected = [[image, text] for image, texts in rows for text in texts]
    places = kept(file)
    assert list(file.read(places)) == expected
    chosen = [at for at in range(len(places)) if data.draw(st.booleans())]
    assert list(file.read(places[at] for at in chosen)) == [expected[at] for at in chosen]


def test_the_columns_of_img2dataset(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"jpg": b"x", "txt": "y"}], jpg=pa.binary(), txt=pa.string())
    file = opened(path, image_field="jpg", text_field="txt")
    assert list(file.read(kept(file))) == [[b"x", "y"]]


@pytest.mark.parametrize(("names", "taken"), [(["text", "caption"], "caption"), (["other", "text"], "text")])
def test_caption_comes_before_text(tmp_path: Path, names: list[str], taken: str) -> None:
    columns = {name: pa.string() for name in names}
    path = write(tmp_path / "a.parquet", [row(b"x", **{name: name for name in names})], image=IMAGE, **columns)
    assert list(opened(path).read(kept(opened(path)))) == [[b"x", taken]]


def test_each_fault_has_its_reason(tmp_path: Path) -> None:
    rows = [
        row(b"good", captions=["a"]),
        row(None, "elsewhere.png", captions=["a", "b"]),
        row(None, captions=["a"]),
        {"image": None, "captions": ["a"]},
        row(b"", captions=["a"]),
        row(b"x", captions=[]),
        row(b"x", captions=None),
        row(b"x", captions=[None, "b", " \t"]),
        row(bytes(900), captions=["a", "b" * 200]),
    ]
    file = opened(write(tmp_path / "a.parquet", rows, image=IMAGE, captions=LISTS), text_field="captions")
    assert [(found.key, found.reason, found.detail) for found in file.scan(1000)] == [
        ("0.0", None, None),
        ("1.0", "missing_image", "'image' has no bytes, only the path 'elsewhere.png'"),
        ("1.1", "missing_image", "'image' has no bytes, only the path 'elsewhere.png'"),
        ("2.0", "missing_field", "'image' is null"),
        ("3.0", "missing_field", "'image' is null"),
        ("4.0", "bad_image", "the picture has no bytes"),
        ("5", "missing_field", "'captions' is null or empty"),
        ("6", "missing_field", "'captions' is null or empty"),
        ("7.0", "missing_field", "'captions' is null or empty"),
        ("7.1", None, None),
        ("7.2", "empty", "the text is empty"),
        ("8.0", None, None),
        ("8.1", "too_large", "1100 bytes are above max_episode_bytes 1000"),
    ]


def test_a_text_that_is_no_utf8(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"caf\xe9", b"last"]).view(pa.string())
    images = pa.array([{"bytes": b"x"}] * 3, IMAGE)
    pq.write_table(pa.table({"image": images, "text": texts}), tmp_path / "a.parquet")
    found = list(opened(tmp_path / "a.parquet").scan(LARGE))
    assert [(one.key, one.reason) for one in found] == [("0", None), ("1", "not_utf8"), ("2", None)]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"picture": IMAGE, "text": pa.string()},
            "has no column 'image'; set `image_field` to one of its columns: 'picture', 'text'",
        ),
        (
            {"image": IMAGE, "label": pa.int64()},
            "has no column 'caption'; set `text_field` to one of its columns: 'image', 'label'",
        ),
        (
            {"image": IMAGE, "text": pa.int64()},
            "column 'text' holds int64; set `text_field` to a column of strings or of lists of strings",
        ),
        (
            {"image": pa.string(), "text": pa.string()},
            "column 'image' holds string; set `image_field` to a column of bytes or of structs with `bytes`",
        ),
    ],
)
def test_columns_that_hold_something_else(tmp_path: Path, columns: dict[str, pa.DataType], sentence: str) -> None:
    path = write(tmp_path / "a.parquet", [], **columns)
    with pytest.raises(DataError) as caught:
        list(opened(path).scan(LARGE))
    assert str(caught.value) == f"a.parquet: {sentence}"


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [row(b"x" * 50, text="a")] * 4, image=IMAGE, text=pa.string())
    places = kept(opened(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert [(one.key, one.reason) for one in opened(path).scan(LARGE)] == [("0", "corrupt_length")]
    with pytest.raises(DataError, match=r"^a\.parquet: .*Run the build again"):
        list(opened(path).read(places))
    path.write_bytes(b"no Parquet")
    with pytest.raises(DataError, match=r"a\.parquet: is no Parquet file; leave it out of `source`"):
        list(opened(path).scan(LARGE))


@pytest.mark.parametrize(
    "rows", [[row(b"x", captions=["b"])], [row(b"y", captions=["a"])], [row(b"x", captions=[])], []]
)
def test_changed_content_is_noticed(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "a.parquet", [row(b"x", captions=["a"])], image=IMAGE, captions=LISTS)
    places = kept(opened(path, text_field="captions"))
    write(path, rows, image=IMAGE, captions=LISTS)
    with pytest.raises(DataError, match=r"a\.parquet: document 0 changed between scan and build"):
        list(opened(path, text_field="captions").read(places))


FIXED = pa.list_(pa.string(), 3)


@pytest.mark.parametrize("captions", [FIXED, pa.large_list(pa.large_string()), pa.list_view(pa.string_view())], ids=str)
@pytest.mark.parametrize("data", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_pictures_and_captions_of_every_type_that_datasets_writes(
    tmp_path: Path, data: pa.DataType, captions: pa.DataType
) -> None:
    """Five captions a picture are `List(Value("string"), length=5)`, which is a list of a fixed size."""
    image = pa.struct([("bytes", data), ("path", pa.string())])
    rows = [row(b"one", captions=["a", "b", "c"]), row(b"two", captions=["d", "ü", None])]
    file = opened(write(tmp_path / "a.parquet", rows, image=image, captions=captions), text_field="captions")
    assert pq.read_schema(file.path).field("captions").type.equals(captions)
    assert [(one.key, one.reason) for one in file.scan(LARGE) if one.reason] == [("1.2", "missing_field")]
    assert list(file.read(kept(file))) == [[b"one", "a"], [b"one", "b"], [b"one", "c"], [b"two", "d"], [b"two", "ü"]]


def test_pictures_in_a_dictionary(tmp_path: Path) -> None:
    column = pa.array([b"one", b"two", b"one"]).dictionary_encode()
    pq.write_table(pa.table({"image": column, "caption": ["a", "b", "c"]}), tmp_path / "a.parquet")
    file = opened(tmp_path / "a.parquet")
    assert list(file.read(kept(file))) == [[b"one", "a"], [b"two", "b"], [b"one", "c"]]
