"""TFDS directories of captioned pictures: Examples with an image and a text, or a list of texts, in TFRecord or
ArrayRecord files. Metadata is read by TFDS itself, which needs no TensorFlow for it."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from gatokit.pipelines.documents.captions import captioned, decoded, rejected
from gatokit.pipelines.documents.reader import CorpusFile, FoundDocument, Part, changed
from gatokit.pipelines.formats import tf_example as example
from gatokit.pipelines.formats.array_record import ArrayRecordFile
from gatokit.pipelines.formats.records import ByteRange, RecordFile
from gatokit.pipelines.formats.tfds import read_directory as read_tfds_directory
from gatokit.pipelines.formats.tfrecord import TfRecordFile
from gatokit.schemas.errors import DataError, RejectedError

TEXT_FIELDS = ("caption", "text", "captions", "captions/text")
"""Features that are taken for captions where the config names none; the first that is there."""


class TfdsPicturesFile(CorpusFile):
    """A file of Examples, ``examples`` by the dataset's own count. ``listed`` says whether the feature
    ``text_field`` is a list of captions, each of which is a document."""

    records: ClassVar[type[RecordFile]]

    examples: int
    image_field: str
    text_field: str
    listed: bool

    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """See ``CorpusFile``."""
        for record in self._records().read_all(max_bytes):
            place = record.byte_range
            key = str(place.position)
            if record.value is None:
                yield FoundDocument(place, key, None, None, record.reason, record.detail, record.lost)
                continue
            try:
                image, texts = self._image(record.value), self._texts(record.value)
            except RejectedError as error:
                yield rejected(place, key, error)
                continue
            group = f"{self.name}#{key}" if self.listed else None
            for ordinal, text in enumerate(texts):
                if self.listed:
                    key = f"{place.position}.{ordinal}"
                    place = place._replace(payload=str(ordinal))
                try:
                    yield captioned(place, key, image, decoded(text, repr(self.text_field)), group=group)
                except RejectedError as error:
                    yield rejected(place, key, error, group)

    def read(self, places: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``CorpusFile``."""
        position, data = -1, None
        with self._records().opened() as read:
            for place in places:
                if place.position != position:
                    position, data = place.position, read(place)
                if data is None:
                    raise changed(self, place)
                yield [self._image(data), decoded(self._texts(data)[int(place.payload or 0)], self.text_field)]

    def _records(self) -> RecordFile:
        return self.records(self.path, self.name, self.examples, "Examples")

    def _image(self, data: bytes) -> bytes:
        return self._strings(data, self.image_field)[0]

    def _texts(self, data: bytes) -> list[bytes]:
        return self._strings(data, self.text_field)

    def _strings(self, data: bytes, field: str) -> list[bytes]:
        try:
            span = example.walk(data).get(field)
            strings = [] if span is None else example.byte_strings(data, span)
        except ValueError as error:
            raise RejectedError("corrupt_record", f"no tf.train.Example: {error}") from None
        if not strings:
            raise RejectedError("missing_field", f"{field!r} is absent from the Example")
        return strings


class TfdsTfRecordFile(TfdsPicturesFile):
    """A TFRecord file of Examples."""

    records: ClassVar[type[RecordFile]] = TfRecordFile


class TfdsArrayRecordFile(TfdsPicturesFile):
    """An ArrayRecord file of Examples."""

    records: ClassVar[type[RecordFile]] = ArrayRecordFile


_FILE_TYPES: dict[str, type[TfdsPicturesFile]] = {"tfrecord": TfdsTfRecordFile, "array_record": TfdsArrayRecordFile}


def read_directory(path: str, below: str, image_field: str, text_field: str | None) -> tuple[TfdsPicturesFile, ...]:
    """The files of a TFDS directory, of all its splits; their names are relative to ``below``.

    DataError where TFDS cannot read it, a feature is not there or holds something else, its writing was never
    finished, or a file is missing.
    """
    directory = read_tfds_directory(path)
    file_format = directory.file_format
    if file_format not in _FILE_TYPES:
        raise DataError(f"{path}: its files are {file_format}; Gatokit reads {' and '.join(sorted(_FILE_TYPES))}")
    known = dict(_flat(directory.features, "", False))
    if known.get(image_field) != ("image", False):
        raise DataError(_other(path, "image_field", image_field, known, [("image", False)]))
    texts = [("text", False), ("text", True)]
    if text_field is None:
        text_field = next((name for name in TEXT_FIELDS if known.get(name) in texts), TEXT_FIELDS[0])
    if known.get(text_field) not in texts:
        raise DataError(_other(path, "text_field", text_field, known, texts))
    fields: dict[str, Any] = {"image_field": image_field, "text_field": text_field, "listed": known[text_field][1]}
    return tuple(_FILE_TYPES[file_format](**asdict(file), **fields) for file in directory.files(below))


def _flat(feature: Any, path: str, listed: bool) -> Iterator[tuple[str, tuple[str, bool]]]:
    """(path, (``image``, ``text`` or another kind, whether it is a list)) of every feature."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for key, inner in feature.items():
            yield from _flat(inner, f"{path}/{key}" if path else key, listed)
    elif isinstance(feature, tfds.features.Sequence) and not listed:
        yield from _flat(feature.feature, path, True)
    elif isinstance(feature, tfds.features.Image):
        yield path, ("image", listed)
    elif isinstance(feature, tfds.features.Tensor) and feature.np_dtype in (object, str, bytes):
        kind = "text" if len(feature.shape) + listed < 2 else "texts in lists"
        yield path, (kind, listed or len(feature.shape) == 1)
    else:
        yield path, (type(feature).__name__, listed)


def _other(
    path: str, option: str, field: str, known: dict[str, tuple[str, bool]], wanted: list[tuple[str, bool]]
) -> str:
    """The sentence about a feature that is not there or holds something else."""
    fit = ", ".join(repr(name) for name, kind in known.items() if kind in wanted) or "none"
    has = f"its feature {field!r} is no {wanted[0][0]}" if field in known else f"has no feature {field!r}"
    return f"{path}: {has}; set `{option}` to one of: {fit}"
