"""TFDS directories of captioned images: Examples with an image and a text, or a list of texts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tensorflow_datasets import features as tfds_features

from gatokit.pipelines.documents.reader import DocumentFile, Loaded, ScannedDocument, caption, decode, rejected
from gatokit.pipelines.formats import tfds, tfrecord
from gatokit.pipelines.formats.records import ByteRange, RecordFile
from gatokit.pipelines.inputs import find_directories, fixed_part, local_pattern
from gatokit.schemas.config import ImageTextConfig
from gatokit.schemas.errors import DataError, RejectedError

TEXT_FIELDS = ("caption", "text", "captions", "captions/text")
"""The first of these features that exists holds the captions, if the config names none."""


def find(config: ImageTextConfig, field: str, base: Path) -> list["TfdsImagesFile"]:
    """See ``reader.plan_documents``."""
    field = f"{field}.source"
    pattern = local_pattern(config.source, base, field)
    directories = find_directories(pattern, (tfds.MARKER,), field, "a TFDS dataset")
    return [
        file
        for directory in directories
        for file in read_directory(directory.path, fixed_part(pattern), config.image_field, config.text_field)
    ]


class TfdsImagesFile(DocumentFile):
    """A TFRecord or ArrayRecord file of Examples, ``examples`` by the dataset's own count.

    ``listed`` says whether the feature ``text_field`` is a list of captions, each of which is a document.
    """

    examples: int
    image_field: str
    text_field: str
    listed: bool

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        for record in self._records().read_all(max_bytes):
            byte_range, group = record.byte_range, None
            key = position = str(byte_range.position)
            if record.value is None:
                rejection = record.reason, record.detail, record.lost, record.lost_bytes
                yield ScannedDocument(byte_range, key, None, None, *rejection)
                continue
            try:
                image = _strings(record.value, self.image_field)[0]
                texts = _strings(record.value, self.text_field)
            except RejectedError as error:
                yield rejected(byte_range, key, error)
                continue
            for ordinal, text in enumerate(texts):
                if self.listed:
                    key, group = f"{position}.{ordinal}", f"{self.name}#{position}"
                    byte_range = byte_range._replace(payload=str(ordinal))
                try:
                    decoded = decode(text, f"{self.text_field!r} is not valid UTF-8 at byte")
                    yield caption(byte_range, key, image, decoded, group)
                except RejectedError as error:
                    yield rejected(byte_range, key, error, group)

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        position, data = -1, None
        with self._records().opened() as read:
            for byte_range in byte_ranges:
                if byte_range.position != position:
                    position, data = byte_range.position, read(byte_range)
                if data is None:
                    raise RejectedError("corrupt_record", "the record changed")
                text = _strings(data, self.text_field)[int(byte_range.payload or 0)]
                decoded = decode(text, f"{self.text_field} is not valid UTF-8 at byte")
                yield byte_range.crc, [_strings(data, self.image_field)[0], decoded]

    def _records(self) -> RecordFile:
        file_type = tfds.RECORD_FILES[self.type.removeprefix("tfds_")]
        return file_type(self.path, self.name, self.examples, "Examples")


def _strings(data: bytes, field: str) -> list[bytes]:
    """The strings of a feature, at least one. Raises RejectedError if the Example has none."""
    try:
        data, spans = tfrecord.walk_example(data)
        strings = tfrecord.byte_strings(data, spans[field]) if field in spans else []
    except ValueError as error:
        raise RejectedError("corrupt_record", f"no tf.train.Example: {error}") from None
    if not strings:
        raise RejectedError("missing_field", f"{field!r} is absent from the Example")
    return strings


def read_directory(path: str, below: str, image_field: str, text_field: str | None) -> list[TfdsImagesFile]:
    """The files of a TFDS directory, of all its splits; their names are relative to ``below``.

    Raises DataError if TFDS cannot read it, a feature is not there or holds something else, its writing was never
    finished, or a file is missing.
    """
    directory = tfds.read_directory(path)
    if directory.file_format not in tfds.RECORD_FILES:
        known_formats = " and ".join(sorted(tfds.RECORD_FILES))
        raise DataError(f"{path}: its files are {directory.file_format}; Gatokit reads {known_formats}")
    known = dict(_kinds(directory.features, "", False))
    texts = ("text", "list of text")
    if text_field is None:
        text_field = next((name for name in TEXT_FIELDS if known.get(name) in texts), TEXT_FIELDS[0])
    for option, field, wanted in (("image_field", image_field, ("image",)), ("text_field", text_field, texts)):
        if known.get(field) not in wanted:
            fitting = ", ".join(repr(name) for name, kind in known.items() if kind in wanted) or "none"
            problem = f"its feature {field!r} is no {wanted[0]}" if field in known else f"has no feature {field!r}"
            raise DataError(f"{path}: {problem}; set `{option}` to one of: {fitting}")
    files = []
    for file, _ in directory.files(below, directory.slices(directory.splits)):
        if file.size < 0:
            raise tfds.missing(file)
        files.append(
            TfdsImagesFile(
                path=file.path,
                name=file.name,
                size=file.size,
                examples=file.examples,
                type=f"tfds_{directory.file_format}",
                image_field=image_field,
                text_field=text_field,
                listed=known[text_field] == "list of text",
            )
        )
    return files


def _kinds(feature: Any, path: str, is_list: bool) -> Iterator[tuple[str, str]]:
    """The path of every feature, and what it holds: ``image``, ``text``, ``list of text`` or something else."""
    prefix = "list of " if is_list else ""
    if isinstance(feature, tfds_features.FeaturesDict):
        for key, inner in feature.items():
            yield from _kinds(inner, f"{path}/{key}" if path else key, is_list)
    elif isinstance(feature, tfds_features.Sequence) and not is_list:
        yield from _kinds(feature.feature, path, True)
    elif isinstance(feature, tfds_features.Image):
        yield path, f"{prefix}image"
    elif isinstance(feature, tfds_features.Tensor) and feature.np_dtype in (object, str, bytes):
        dimensions = len(feature.shape) + is_list
        yield path, ("text", "list of text")[dimensions] if dimensions < 2 else "lists of texts"
    else:
        yield path, type(feature).__name__
