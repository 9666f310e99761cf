"""Pages as OBELICS publishes them, in the layouts in which Hugging Face's datasets store pictures."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.interleaved import ObelicsFile
from gatokit.pipelines.documents.reader import Part, ScannedDocument, content_digest
from gatokit.schemas.errors import DataError

BOUND = 1 << 20
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
FEATURES = {
    "images": {"feature": {"_type": "Image"}, "_type": "Sequence"},
    "texts": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
}
Entry = tuple[Any, Any]


def stored(
    path: Path, pages: list[list[Entry] | None], kind: pa.DataType = STRUCT, *, folder: bool = False, **options: Any
) -> ObelicsFile:
    """A file of pages, each a list of (image, text)."""
    images = [None if page is None else [image for image, _ in page] for page in pages]
    texts = [None if page is None else [text for _, text in page] for page in pages]
    table = pa.table(
        {
            "images": pa.array(images, pa.list_(kind)),
            "metadata": ["[]"] * len(pages),
            "general_metadata": ["{}"] * len(pages),
            "texts": pa.array(texts, pa.list_(pa.string())),
        }
    )
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)
    pictures = path.parent / "pictures" / "below"
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "ü.png").write_bytes(b"in a file")
    image_dir = str(path.parent / "pictures") if folder else None
    return ObelicsFile(path=str(path), name=path.name, size=path.stat().st_size, image_dir=image_dir, **options)


def parts(file: ObelicsFile) -> list[list[Part]]:
    sound = [document for document in file.scan(BOUND) if document.reason is None]
    read = list(file.read([document.byte_range for document in sound]))
    assert [content_digest(part) for part in read] == [document.content for document in sound]
    return read


def only(file: ObelicsFile, max_bytes: int = BOUND) -> ScannedDocument:
    [found] = file.scan(max_bytes)
    return found


def embedded(data: bytes, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def linked(path: str) -> dict[str, Any]:
    return {"bytes": None, "path": path}


def test_embedded_images_in_reading_order(tmp_path: Path) -> None:
    file = stored(
        tmp_path / "a b [1] ü.parquet",
        [
            [(None, "One.\n\n1"), (None, "Two."), (embedded(b"a", "a.png"), None), (embedded(b"b"), None), (None, "3")],
            [(None, "One."), (None, " "), (None, "Two.")],
            [(embedded(b"c"), None)],
        ],
    )
    expected: list[list[Part]] = [["One.\n\n1\n\nTwo.", b"a", b"b", "3"], ["One.\n\nTwo."], [b"c"]]
    assert parts(file) == expected
    found = list(file.scan(BOUND))
    assert [(document.byte_range.position, document.byte_range.offset, document.key) for document in found] == [
        (0, 0, "0"),
        (1, 0, "1"),
        (2, 1, "2"),
    ]
    assert [document.byte_range.length for document in found] == [len("One.\n\n1\n\nTwo.") + 3, 10, 1]
    assert list(file.read([found[1].byte_range, found[2].byte_range])) == expected[1:]


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        (pa.binary(), b"a"),
        (pa.large_binary(), b"a"),
        (pa.struct({"bytes": pa.binary()}), {"bytes": b"a"}),
        (pa.struct({"bytes": pa.binary(), "path": pa.null()}), {"bytes": b"a", "path": None}),
    ],
    ids=str,
)
def test_other_columns_of_bytes(tmp_path: Path, kind: pa.DataType, image: Any) -> None:
    assert parts(stored(tmp_path / "a.parquet", [[(image, None), (None, "One.")]], kind)) == [[b"a", "One."]]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), STRUCT, pa.struct({"path": pa.string()})], ids=str)
def test_names_of_files(tmp_path: Path, kind: pa.DataType) -> None:
    def named(name: str) -> Any:
        return {"path": name} if pa.types.is_struct(kind) else name

    pages: list[list[Entry] | None] = [[(None, "One."), (named("below/ü.png"), None), (None, "Two.")]]
    assert parts(stored(tmp_path / "a.parquet", pages, kind, folder=True)) == [["One.", b"in a file", "Two."]]
    found = only(stored(tmp_path / "a.parquet", pages, kind))
    assert (found.reason, found.detail) == ("missing_image", "images[1]: 'below/ü.png' is a file; set `image_dir`")
    file = stored(tmp_path / "a.parquet", pages, kind, skip_bad=True)
    assert parts(file) == [["One.\n\nTwo."]]
    assert only(file).detail == "without 1 of its pictures: images[1]: 'below/ü.png' is a file; set `image_dir`"


def test_embedded_and_linked_images_of_one_page(tmp_path: Path) -> None:
    pages: list[list[Entry] | None] = [[(embedded(b"a", "x.png"), None), (linked("below/ü.png"), None)]]
    assert parts(stored(tmp_path / "a.parquet", pages, folder=True)) == [[b"a", b"in a file"]]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("https://example.org/below/ü.png", "is a URL; pictures come from files"),
        ("../pictures/below/ü.png", "leads out of image_dir"),
        ("no.png", "is not in image_dir: No such file or directory"),
    ],
)
def test_missing_images(tmp_path: Path, name: str, what: str) -> None:
    pages: list[list[Entry] | None] = [[(None, "One."), (name, None), (None, "Two.")], [(name, None)]]
    file = stored(tmp_path / "a.parquet", pages, pa.string(), folder=True)
    found = list(file.scan(BOUND))
    assert [document.reason for document in found] == ["missing_image", "missing_image"]
    assert found[0].detail == f"images[1]: {name!r} {what}"
    file = stored(tmp_path / "a.parquet", pages, pa.string(), folder=True, skip_bad=True)
    found = list(file.scan(BOUND))
    assert [document.reason for document in found] == [None, "empty"]
    assert found[0].detail == f"without 1 of its pictures: images[1]: {name!r} {what}"
    assert parts(file) == [["One.\n\nTwo."]]


def test_bad_pages_are_rows(tmp_path: Path) -> None:
    pages: list[list[Entry] | None] = [
        [(None, "One.")],
        [(embedded(b"a"), "One.")],
        [(None, "One."), (None, None)],
        [({"bytes": None, "path": None}, None)],
        [({"bytes": None, "path": None}, "Two.")],
        None,
        [],
        [(None, " ")],
        [(None, "Last.")],
    ]
    file = stored(tmp_path / "a.parquet", pages)
    assert [(document.reason, document.detail) for document in file.scan(BOUND)] == [
        (None, None),
        ("corrupt_record", "entry 0 has both of image and text"),
        ("corrupt_record", "entry 1 has neither of image and text"),
        ("corrupt_record", "entry 0 has neither of image and text"),
        (None, None),
        ("missing_field", "'images' is null"),
        ("empty", "the page holds neither text nor pictures"),
        ("empty", "the page holds neither text nor pictures"),
        (None, None),
    ]
    assert parts(file) == [["One."], ["Two."], ["Last."]]


def test_lists_of_different_lengths_and_texts_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.array([["a", "b"], None, ["c"]], pa.list_(pa.string()))
    pq.write_table(pa.table({"images": pa.array([[None], [None], [None]], pa.list_(STRUCT)), "texts": texts}), path)
    file = ObelicsFile(path=str(path), name="a", size=1)
    assert [(document.reason, document.detail) for document in file.scan(BOUND)] == [
        ("wrong_shape", "'images' has 1 entries and 'texts' 2"),
        ("missing_field", "'texts' is null"),
        (None, None),
    ]
    bad = pa.ListArray.from_arrays([0, 1], pa.array([b"\xff"]).view(pa.string()))
    pq.write_table(pa.table({"images": pa.array([[None]], pa.list_(STRUCT)), "texts": bad}), path)
    assert only(file).detail == "texts[0] is not valid UTF-8 at its byte 0"
    pq.write_table(pa.table({"images": bad, "texts": pa.array([[None]], pa.list_(pa.string()))}), path)
    assert (only(file).reason, only(file).detail) == ("not_utf8", "images[0] is not valid UTF-8 at its byte 0")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"images": [["a"]]}, "needs one column 'texts'; its columns are: 'images'"),
        ({"text": ["a"], "texts": [["a"]]}, "needs one column 'images'; its columns are: 'text', 'texts'"),
        ({"images": [["a"]], "texts": ["a"]}, "column 'texts' must hold lists of strings, not string"),
        ({"images": [["a"]], "texts": [[1]]}, "column 'texts' must hold lists of strings, not list<element: int64>"),
        (
            {"images": [[1]], "texts": [["a"]]},
            "column 'images' must hold lists of structs of `bytes` and `path`, of bytes, or of names of files, "
            "not list<element: int64>",
        ),
        (
            {"images": [[{"bytes": [1], "path": "a"}]], "texts": [["a"]]},
            "column 'images' must hold lists of structs of `bytes` and `path`, of bytes, or of names of files, "
            "not list<element: struct<bytes: list<element: int64>, path: string>>",
        ),
    ],
)
def test_other_columns_are_an_error(tmp_path: Path, table: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(DataError) as error:
        list(ObelicsFile(path=str(path), name="a.parquet", size=1).scan(BOUND))
    assert str(error.value) == f"a.parquet: {sentence}"


def test_images_count_into_the_bound(tmp_path: Path) -> None:
    pages: list[list[Entry] | None] = [
        [(None, "One."), (embedded(b"12345"), None), (None, "Two."), (None, "3"), (linked("below/ü.png"), None)]
    ]
    file = stored(tmp_path / "a.parquet", pages, folder=True)
    size = len("One.") + 5 + len("Two.\n\n3") + len(b"in a file")
    assert (only(file).reason, only(file).byte_range.length) == (None, size)
    # Separators are not in the source, so they do not count.
    assert only(file, size - 2).reason is None
    for bound in (size - 3, 8, 0):
        assert only(file, bound).reason == "too_large"


def test_a_truncated_file_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    file = stored(path, [[(None, "One.")]])
    path.write_bytes(path.read_bytes()[:-3])
    assert (only(file).reason, only(file).lost) == ("corrupt_length", 1)


@pytest.mark.parametrize(
    "page", [[(embedded(b"A"), None)], [(embedded(b"aa"), None)], [(None, "a")], [(None, None)], [], None]
)
def test_a_changed_page_is_an_error(tmp_path: Path, page: list[Entry] | None) -> None:
    file = stored(tmp_path / "a.parquet", [[(embedded(b"a"), None)], [(None, "Two.")]])
    places = [document.byte_range for document in file.scan(BOUND)]
    stored(tmp_path / "a.parquet", [page, [(None, "Two.")]])
    assert list(file.read(places[1:])) == [["Two."]]
    with pytest.raises(DataError, match=r"a\.parquet: document 0 changed between scan and build"):
        list(file.read(places))


def test_a_changed_image_of_the_folder_is_an_error(tmp_path: Path) -> None:
    file = stored(tmp_path / "a.parquet", [[(linked("below/ü.png"), None)]], folder=True)
    places = [only(file).byte_range]
    for data in (b"in A file", b"in a file!", b""):
        (tmp_path / "pictures" / "below" / "ü.png").write_bytes(data)
        with pytest.raises(DataError, match="changed between scan and build"):
            list(file.read(places))


PIECES = st.one_of(st.text(max_size=8), st.binary(max_size=8), st.just(None))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(PIECES, max_size=6), max_size=8), st.data())
def test_pages_come_back_in_reading_order(tmp_path: Path, drawn: list, data: st.DataObject) -> None:
    """Each page is drawn as texts, pictures, and pictures that are missing (None)."""
    pages: list[list[Entry] | None] = []
    expected = []
    for pieces in drawn:
        reading: list[Part] = []
        for piece in pieces:
            if isinstance(piece, str) and piece.strip() and reading and isinstance(reading[-1], str):
                reading[-1] += "\n\n" + piece
            elif isinstance(piece, bytes) or (piece is not None and piece.strip()):
                reading.append(piece)
        expected.append(reading)
        pages.append(
            [
                (None, piece) if isinstance(piece, str) else (linked("no") if piece is None else embedded(piece), None)
                for piece in pieces
            ]
        )
    file = stored(tmp_path / "a.parquet", pages, folder=True, skip_bad=True)
    found = list(file.scan(BOUND))
    assert [document.reason for document in found] == [None if reading else "empty" for reading in expected]
    sound = [number for number, reading in enumerate(expected) if reading]
    assert parts(file) == [expected[number] for number in sound]
    chosen = sorted(data.draw(st.sets(st.sampled_from(sound)))) if sound else []
    assert list(file.read([found[number].byte_range for number in chosen])) == [expected[number] for number in chosen]


@pytest.mark.parametrize("list_type", [lambda type_: pa.list_(type_, 2), pa.large_list, pa.list_view])
@pytest.mark.parametrize("text", [pa.string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_pages_in_lists_of_every_type(tmp_path: Path, list_type: Any, text: pa.DataType) -> None:
    images = pa.array([[{"bytes": b"png", "path": None}, None], [None, None]], list_type(STRUCT))
    texts = pa.array([[None, "a text"], ["b", "c"]], list_type(text))
    pq.write_table(pa.table({"images": images, "texts": texts}), tmp_path / "a.parquet")
    file = ObelicsFile(path=str(tmp_path / "a.parquet"), name="a.parquet", size=1)
    assert parts(file) == [[b"png", "a text"], ["b\n\nc"]]
