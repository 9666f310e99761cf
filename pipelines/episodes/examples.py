"""Episodes stored as ``tf.train.Example`` messages, in TFRecord or ArrayRecord files.

Legend: N recorded steps, the last one included.
"""

import math
import zlib
from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np

from gatokit.pipelines.episodes.reader import (
    EpisodeFile,
    RawEpisode,
    SourceFeatures,
    SourceField,
    Stored,
    Values,
    changed,
)
from gatokit.pipelines.formats import tf_example as example
from gatokit.pipelines.formats.array_record import ArrayRecords, Records, TfRecords
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import RejectedError


class ExampleEpisode:
    """An Example whose features are decoded when asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._spans = example.walk(data)

    def column(self, field: SourceField) -> Values:
        """See ``RawEpisode``."""
        span = self._spans.get(f"steps/{field.path}")
        if span is None:
            raise RejectedError("missing_field", f"steps/{field.path} is absent from the episode")
        try:
            if field.form == "tensor" and field.encoding == "none":
                return self._tensor(field, span)
            strings = example.byte_strings(self._data, span)
            return _unpacked(field, strings) if field.form == "tensor" else strings
        except (ValueError, zlib.error) as error:
            raise RejectedError("corrupt_record", f"steps/{field.path}: {error}") from None

    def metadata(self, field: SourceField) -> str | float | int | None:
        """See ``RawEpisode``."""
        span = self._spans.get(field.path)
        if span is None:
            return None
        try:
            if field.form == "string":
                strings = example.byte_strings(self._data, span)
                return str(strings[0], "utf-8") if strings else None
            is_float = np.dtype(field.dtype).kind == "f"
            numbers = (example.floats if is_float else example.integers)(self._data, span)
            return numbers[0].item() if len(numbers) else None
        except UnicodeDecodeError:
            raise RejectedError("not_utf8", f"{field.path} is not valid UTF-8") from None
        except ValueError as error:
            raise RejectedError("corrupt_record", f"{field.path}: {error}") from None

    def _tensor(self, field: SourceField, span: example.Span) -> np.ndarray:
        dtype = np.dtype(field.dtype)
        flat = (example.floats if dtype.kind == "f" else example.integers)(self._data, span)
        if dtype.kind == "b":
            flat = flat.astype(bool)
        elif dtype.kind in "iu" and dtype != flat.dtype:
            wide, flat = flat, flat.astype(dtype)
            if not np.array_equal(wide, flat):
                raise ValueError(f"holds a value that is no {dtype.name}")
        return _per_step(field, flat)


def _per_step(field: SourceField, flat: np.ndarray) -> np.ndarray:
    if not field.shape:
        return flat
    shape = [side for side in field.shape if side is not None]
    size = math.prod(shape)
    if size == 0 or len(flat) % size:
        raise RejectedError(
            "wrong_shape", f"steps/{field.path} holds {len(flat)} values, no multiple of its {size} a step"
        )
    return flat.reshape(-1, *shape)


def _unpacked(field: SourceField, strings: list[bytes]) -> np.ndarray:
    """Tensors that TFDS stored as raw or zlib-compressed bytes, one string a step."""
    if field.encoding == "zlib":
        strings = [zlib.decompress(string) for string in strings]
    shape = [side for side in field.shape if side is not None]
    dtype = np.dtype(field.dtype)
    size = math.prod(shape) * dtype.itemsize
    if any(len(string) != size for string in strings):
        raise RejectedError("wrong_shape", f"steps/{field.path} holds tensors of another size than {shape}")
    return np.frombuffer(b"".join(strings), dtype).reshape(len(strings), *shape)


def _parsed(place: ByteRange, data: bytes) -> Stored:
    try:
        return Stored(place, ExampleEpisode(data))
    except ValueError as error:
        return Stored(place, None, "corrupt_record", f"no tf.train.Example: {error}")


class ExamplesFile(EpisodeFile):
    """A file of Examples."""

    records: ClassVar[type[Records]]

    def read_all(self, features: SourceFeatures, max_bytes: int) -> Iterator[Stored]:
        """See ``EpisodeFile``."""
        for record in self._records().read_all(max_bytes):
            if record.data is None:
                yield Stored(record.place, None, record.reason, record.detail, record.lost)
            else:
                yield _parsed(record.place, record.data)

    def read_some(self, features: SourceFeatures, places: Iterable[ByteRange]) -> Iterator[RawEpisode]:
        """See ``EpisodeFile``."""
        with self._records().opened() as read:
            for place in places:
                data = read(place)
                if data is None:
                    raise changed(self, place)
                yield ExampleEpisode(data)

    def _records(self) -> Records:
        return self.records(self.path, self.name, self.episodes, "episodes")


class TfRecordFile(ExamplesFile):
    """A TFRecord file of Examples."""

    records: ClassVar[type[Records]] = TfRecords


class ArrayRecordFile(ExamplesFile):
    """An ArrayRecord file of Examples."""

    records: ClassVar[type[Records]] = ArrayRecords
