"""TFDS directories of captioned pictures: Examples with an image and a text, or a list of texts, in TFRecord or
ArrayRecord files. Metadata is read by TFDS itself, which needs no TensorFlow for it."""

import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from gatokit.pipelines import example, tfrecord
from gatokit.pipelines.sources.captions import captioned, decoded, rejected, too_large
from gatokit.pipelines.sources.corpus import CorpusFile, DocumentPlace, FoundDocument, Part, changed
from gatokit.schemas.errors import DataError, RejectedError

TEXT_FIELDS = ("caption", "text", "captions", "captions/text")
"""Features that are taken for captions where the config names none; the first that is there."""

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


@dataclass(frozen=True)
class _Record:
    """A stored Example, or why it cannot be had; ``lost`` Examples stand behind it."""

    place: DocumentPlace
    data: bytes = b""
    why: RejectedError | None = None
    lost: int = 1


class TfdsPicturesFile(CorpusFile):
    """A file of Examples, ``examples`` by the dataset's own count. ``listed`` says whether the feature
    ``text_field`` is a list of captions, each of which is a document."""

    examples: int
    image_field: str
    text_field: str
    listed: bool

    def scan(self, max_bytes: int) -> Iterator[FoundDocument]:
        """See ``CorpusFile``."""
        for record in self._records(max_bytes):
            key, place = str(record.place.position), record.place
            try:
                if record.why is not None:
                    raise record.why
                image, texts = self._image(record.data), self._texts(record.data)
            except RejectedError as error:
                yield FoundDocument(place, key, None, None, error.reason, error.detail, record.lost)
                continue
            group = f"{self.name}#{key}" if self.listed else None
            for ordinal, text in enumerate(texts):
                if self.listed:
                    key = f"{place.position}.{ordinal}"
                    place = DocumentPlace(place.position, place.offset, place.length, place.crc, str(ordinal))
                try:
                    yield captioned(place, key, image, decoded(text, repr(self.text_field)), group=group)
                except RejectedError as error:
                    yield rejected(place, key, error, group)

    def read(self, places: Iterable[DocumentPlace]) -> Iterator[list[Part]]:
        """See ``CorpusFile``."""
        position, data = -1, b""
        with self._reader() as read:
            for place in places:
                if place.position != position:
                    data = read(place)
                    position = place.position
                yield [self._image(data), decoded(self._texts(data)[int(place.payload or 0)], self.text_field)]

    @abstractmethod
    def _records(self, max_bytes: int) -> Iterator[_Record]:
        """Every Example in file order."""

    @abstractmethod
    def _reader(self) -> contextlib.AbstractContextManager[Callable[[DocumentPlace], bytes]]:
        """A function that reads the Example at a place. DataError where it is no longer there."""

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

    def _records(self, max_bytes: int) -> Iterator[_Record]:
        position = 0
        with self._opened() as (read, size):
            end = size
            try:
                for frame in tfrecord.frames(read, size, max_bytes):
                    place = DocumentPlace(position, frame.offset, frame.length, frame.crc)
                    if frame.data is None:
                        yield _Record(place, why=too_large(frame.length, max_bytes))
                    elif not frame.sound:
                        detail = "the payload does not match its checksum"
                        yield _Record(place, why=RejectedError("corrupt_record", detail))
                    else:
                        yield _Record(place, frame.data)
                    position += 1
                why = f"the file ends after {position} of the {self.examples} Examples that its dataset states"
            except tfrecord.DamagedLengthError as error:
                end, why = error.offset, str(error)
            if position < self.examples or end < size:
                place = DocumentPlace(position, end, size - end, 0)
                lost = max(1, self.examples - position)
                yield _Record(place, why=RejectedError("corrupt_length", why), lost=lost)

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Callable[[DocumentPlace], bytes]]:
        with self._opened() as (read, _):

            def at(place: DocumentPlace) -> bytes:
                data, crc = tfrecord.read_frame(read, place.offset, place.length)
                if crc != place.crc or tfrecord.masked_crc(data) != crc:
                    raise changed(self, place)
                return data

            yield at

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[tfrecord.ReadAt, int]]:
        with open(self.path, "rb", buffering=0) as file:
            number = file.fileno()
            yield lambda offset, length: os.pread(number, length, offset), os.fstat(number).st_size


class TfdsArrayRecordFile(TfdsPicturesFile):
    """An ArrayRecord file of Examples."""

    def _records(self, max_bytes: int) -> Iterator[_Record]:
        with self._opened() as reader:
            records = reader.num_records() if reader.ok() else 0
            for position in range(records):
                try:
                    data = reader.read(position, position + 1)[0]
                except Exception as error:
                    # The native reader raises many types; each means that this record cannot be had.
                    detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    why = RejectedError("corrupt_record", detail.replace(self.path, self.name)[:200])
                    yield _Record(DocumentPlace(position, 0, 0, 0), why=why)
                    continue
                place = DocumentPlace(position, 0, len(data), google_crc32c.value(data))
                yield _Record(place, data, too_large(len(data), max_bytes) if len(data) > max_bytes else None)
        if records < self.examples:
            detail = f"the file holds {records} of the {self.examples} Examples that its dataset states"
            why = RejectedError("corrupt_length", detail)
            yield _Record(DocumentPlace(records, 0, 0, 0), why=why, lost=self.examples - records)

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Callable[[DocumentPlace], bytes]]:
        with self._opened() as reader:

            def at(place: DocumentPlace) -> bytes:
                try:
                    data: bytes = reader.read(place.position, place.position + 1)[0]
                except Exception:
                    raise changed(self, place) from None
                if len(data) != place.length or google_crc32c.value(data) != place.crc:
                    raise changed(self, place)
                return data

            yield at

    @contextlib.contextmanager
    def _opened(self) -> Iterator[ArrayRecordReader]:
        reader = ArrayRecordReader(self.path, _READER_OPTIONS)
        try:
            yield reader
        finally:
            # Closing a damaged file raises again what was wrong with it.
            with contextlib.suppress(RuntimeError):
                reader.close()


_FILE_TYPES = {"tfrecord": TfdsTfRecordFile, "array_record": TfdsArrayRecordFile}


def read_directory(path: str, below: str, image_field: str, text_field: str | None) -> tuple[TfdsPicturesFile, ...]:
    """The files of a TFDS directory, of all its splits; their names are relative to ``below``.

    DataError where TFDS cannot read it, a feature is not there or holds something else, its writing was never
    finished, or a file is missing.
    """
    try:
        info = tfds.builder_from_directory(path).info
        file_format, splits = info.file_format.file_suffix, dict(info.splits)
    except Exception as error:
        # TFDS raises whatever its JSON, proto and feature code meets; the directory is the user's.
        raise DataError(f"{path}: TFDS cannot read this directory: {str(error).splitlines()[0][:300]}") from None
    if file_format not in _FILE_TYPES:
        raise DataError(f"{path}: its files are {file_format}; Gatokit reads {' and '.join(sorted(_FILE_TYPES))}")
    known = dict(_flat(info.features, "", False))
    if known.get(image_field) != ("image", False):
        raise DataError(_other(path, "image_field", image_field, known, [("image", False)]))
    texts = [("text", False), ("text", True)]
    if text_field is None:
        text_field = next((name for name in TEXT_FIELDS if known.get(name) in texts), TEXT_FIELDS[0])
    if known.get(text_field) not in texts:
        raise DataError(_other(path, "text_field", text_field, known, texts))
    files = []
    for split in sorted(splits):
        if not splits[split].shard_lengths:
            raise DataError(
                f"{path}: split {split!r} states no shard lengths, so its writing was never finished. Write it again"
            )
        for filename, count in zip(splits[split].filenames, splits[split].shard_lengths, strict=True):
            file_path = os.path.join(path, os.path.basename(filename))
            try:
                size = os.stat(file_path).st_size
            except OSError:
                raise DataError(f"{file_path}: is missing, though dataset_info.json lists it") from None
            files.append(
                _FILE_TYPES[file_format](
                    path=file_path,
                    name=os.path.relpath(file_path, below),
                    size=size,
                    examples=count,
                    image_field=image_field,
                    text_field=text_field,
                    listed=known[text_field][1],
                )
            )
    return tuple(files)


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
