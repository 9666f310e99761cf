import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gatokit.pipelines.documents.reader import ScannedDocument, content_digest
from gatokit.pipelines.documents.tfds_images import TfdsImagesFile, read_directory
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError

LARGE = 1 << 30
FORMATS = ("tfrecord", "array_record")
Examples = list[dict[str, Any]]


@pytest.fixture(params=FORMATS)
def file_format(request: pytest.FixtureRequest) -> str:
    return request.param


def pixels(shade: int) -> np.ndarray:
    return np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3) + np.uint8(shade)


def write(
    path: Path,
    features: dict[str, Any],
    examples: Examples,
    file_format: str,
    *,
    split: str = "train",
    done: bool = True,
) -> Path:
    """A TFDS directory by TFDS's own writer, two Examples a file."""
    import tensorflow_datasets as tfds

    path.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="captions", version=tfds.core.Version("1.0.0"), data_dir=os.fspath(path), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, description="a test", features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, 2, file_format=file_format)
    writer.initialize_splits(["train"])
    if done:
        writer.add_examples({"train": examples})
        writer.close_all()
    return path


def image_and(**more: Any) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    return {"image": tfds.features.Image(encoding_format="png"), **more}


def text() -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.Text()


def several(inner: Any) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.Sequence(inner)


def files(path: Path, image_field: str = "image", text_field: str | None = None) -> tuple[TfdsImagesFile, ...]:
    return read_directory(os.fspath(path), os.fspath(path.parent), image_field, text_field)


def found(path: Path, max_bytes: int = LARGE, **options: Any) -> Iterator[tuple[TfdsImagesFile, ScannedDocument]]:
    for file in files(path, **options):
        for document in file.scan(max_bytes):
            yield file, document


def shown(parts: list[Any]) -> tuple[int, str]:
    """The first value of the picture, and the text."""
    image = cv2.imdecode(np.frombuffer(parts[0], np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    assert image.shape == (16, 24, 3)
    return int(image[0, 0, 0]), parts[1]


def test_captions_in_full(tmp_path: Path, file_format: str) -> None:
    texts = ["one", "zwei ö", "three"]
    path = write(
        tmp_path / "1.0.0",
        image_and(caption=text(), label=np.int64),
        [{"image": pixels(at), "caption": each, "label": at} for at, each in enumerate(texts)],
        file_format,
    )
    everything = list(found(path))
    assert [(file.name, one.key, one.group) for file, one in everything] == [
        (f"1.0.0/captions-train.{file_format}-00000", "0", None),
        (f"1.0.0/captions-train.{file_format}-00000", "1", None),
        (f"1.0.0/captions-train.{file_format}-00001", "0", None),
    ]
    for at, (file, one) in enumerate(everything):
        (parts,) = file.read([one.byte_range])
        assert shown(parts) == (at, texts[at])
        assert one.content == content_digest(parts)


@pytest.mark.parametrize("field", ["captions/text", "captions", "words"])
def test_every_caption_of_a_list_is_a_document(tmp_path: Path, file_format: str, field: str) -> None:
    import tensorflow_datasets as tfds

    texts = [["a", "b"], ["c"], ["d", "e", "f"]]
    kinds: dict[str, Any] = {
        "captions/text": ("captions", {"id": np.int64, "text": text()}),
        "captions": ("captions", text()),
    }
    if field == "words":
        features = image_and(words=tfds.features.Tensor(shape=(None,), dtype=np.object_))
        examples = [{"image": pixels(at), "words": np.array(each, object)} for at, each in enumerate(texts)]
    else:
        name, inner = kinds[field]
        features = image_and(**{name: several(inner)})
        nested = isinstance(inner, dict)
        examples = [
            {"image": pixels(at), name: [{"id": 0, "text": one} for one in each] if nested else each}
            for at, each in enumerate(texts)
        ]
    path = write(tmp_path / "1.0.0", features, examples, file_format)
    everything = list(found(path, text_field=field))
    first, second = files(path, text_field=field)
    assert [(one.key, one.group) for _, one in everything] == [
        ("0.0", f"{first.name}#0"),
        ("0.1", f"{first.name}#0"),
        ("1.0", f"{first.name}#1"),
        ("0.0", f"{second.name}#0"),
        ("0.1", f"{second.name}#0"),
        ("0.2", f"{second.name}#0"),
    ]
    places = [one.byte_range for file, one in everything if file == first]
    assert list(map(shown, first.read(places))) == [(0, "a"), (0, "b"), (1, "c")]
    assert list(map(shown, first.read(places[1:]))) == [(0, "b"), (1, "c")]
    places = [one.byte_range for file, one in everything if file == second]
    assert list(map(shown, second.read([places[0], places[2]]))) == [(2, "d"), (2, "f")]


def test_images_are_copied_as_they_are_stored(tmp_path: Path, file_format: str) -> None:
    import tensorflow_datasets as tfds

    (tmp_path / "x.jpg").write_bytes(data := cv2.imencode(".jpg", pixels(3))[1].tobytes())
    features = {"photo": {"jpeg": tfds.features.Image(encoding_format="jpeg")}, "text": text()}
    examples = [{"photo": {"jpeg": os.fspath(tmp_path / "x.jpg")}, "text": "x"}]
    path = write(tmp_path / "1.0.0", features, examples, file_format)
    ((file, one),) = found(path, image_field="photo/jpeg")
    assert list(file.read([one.byte_range])) == [[data, "x"]]


def test_each_fault_has_its_reason(tmp_path: Path, file_format: str) -> None:
    examples = [
        {"image": pixels(0), "captions": ["good", b"caf\xe9", " "]},
        {"image": pixels(1), "captions": []},
        {"image": np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "captions": ["large"]},
    ]
    path = write(tmp_path / "1.0.0", image_and(captions=several(text())), examples, file_format)
    assert [(one.key, one.reason) for _, one in found(path, 5000)] == [
        ("0.0", None),
        ("0.1", "not_utf8"),
        ("0.2", "empty"),
        ("1", "missing_field"),
        ("0", "too_large"),
    ]


def test_a_damaged_payload_costs_its_example_and_a_damaged_end_the_rest(tmp_path: Path) -> None:
    examples = [{"image": pixels(at), "text": "x"} for at in range(2)]
    path = write(tmp_path / "1.0.0", image_and(text=text()), examples, "tfrecord")
    (file,) = files(path)
    first, second = (one.byte_range for one in file.scan(LARGE))
    whole = Path(file.path).read_bytes()
    data = bytearray(whole)
    data[first.offset + 40] ^= 1
    Path(file.path).write_bytes(data)
    assert [(one.key, one.reason, one.byte_range) for one in file.scan(LARGE)] == [
        ("0", "corrupt_record", first),
        ("1", None, second),
    ]
    with pytest.raises(DataError, match=r"document 0 changed between scan and build"):
        list(file.read([first]))
    Path(file.path).write_bytes(whole[: second.offset + 9])
    assert [(one.key, one.reason, one.lost) for one in file.scan(LARGE)] == [("0", None, 1), ("1", "ends_early", 1)]
    Path(file.path).write_bytes(whole[: second.offset])
    rest = list(file.scan(LARGE))[1]
    assert (rest.reason, rest.byte_range) == ("ends_early", ByteRange(1, second.offset, 0, 0))


def test_damaged_array_records(tmp_path: Path) -> None:
    examples = [{"image": pixels(at), "text": "x"} for at in range(2)]
    path = write(tmp_path / "1.0.0", image_and(text=text()), examples, "array_record")
    (file,) = files(path)
    places = [one.byte_range for one in file.scan(LARGE)]
    Path(file.path).write_bytes(Path(file.path).read_bytes()[:-70000])
    assert [(one.key, one.reason, one.lost) for one in file.scan(LARGE)] == [("0", "corrupt_length", 2)]
    with pytest.raises(DataError, match=r"document 0 changed between scan and build"):
        list(file.read(places))


def test_directories_that_cannot_be_read(tmp_path: Path) -> None:
    example = {"image": pixels(0), "title": "x"}
    path = write(tmp_path / "a" / "1.0.0", image_and(title=text()), [example], "tfrecord")
    unfinished = write(tmp_path / "b" / "1.0.0", image_and(text=text()), [], "tfrecord", done=False)
    sentences = []
    for arguments in [
        (path, "picture", "title"),
        (path, "title", "title"),
        (path, "image", None),
        (path, "image", "image"),
    ]:
        with pytest.raises(DataError) as caught:
            files(*arguments)
        sentences.append(str(caught.value).removeprefix(f"{path}: "))
    assert sentences == [
        "has no feature 'picture'; set `image_field` to one of: 'image'",
        "its feature 'title' is no image; set `image_field` to one of: 'image'",
        "has no feature 'caption'; set `text_field` to one of: 'title'",
        "its feature 'image' is no text; set `text_field` to one of: 'title'",
    ]
    with pytest.raises(DataError, match="its writing was never finished"):
        files(unfinished)
    with pytest.raises(DataError, match="TFDS cannot read this directory"):
        files(tmp_path)
    next(path.glob("*.tfrecord*")).unlink()
    with pytest.raises(DataError, match=r"is missing, though dataset_info\.json lists it"):
        files(path, text_field="title")
