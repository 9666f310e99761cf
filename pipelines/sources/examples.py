"""Episodes stored as ``tf.train.Example`` messages, in TFRecord or ArrayRecord files.

Legend: N recorded steps, the last one included.
"""

import contextlib
import math
import os
import zlib
from collections.abc import Iterable, Iterator

import google_crc32c
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from gatokit.pipelines import example, tfrecord
from gatokit.pipelines.sources.source import (
    EpisodeFile,
    Place,
    RawEpisode,
    SourceFeatures,
    SourceField,
    Stored,
    Values,
)
from gatokit.schemas.errors import DataError, RejectedError

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


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


def _parsed(place: Place, data: bytes) -> Stored:
    try:
        return Stored(place, ExampleEpisode(data))
    except ValueError as error:
        return Stored(place, None, "corrupt_record", f"no tf.train.Example: {error}")


def too_large(place: Place, max_bytes: int) -> Stored:
    """The rejection of an episode above ``max_bytes``."""
    return Stored(place, None, "too_large", f"{place.length} bytes are above max_episode_bytes {max_bytes}")


class TfRecordFile(EpisodeFile):
    """A TFRecord file of Examples."""

    def read_all(self, features: SourceFeatures, max_bytes: int) -> Iterator[Stored]:
        """See ``EpisodeFile``."""
        position = 0
        with _opened(self.path) as (read, size):
            try:
                for frame in tfrecord.frames(read, size, max_bytes):
                    place = Place(position, frame.offset, frame.length, frame.crc)
                    if frame.data is None:
                        yield too_large(place, max_bytes)
                    elif not frame.sound:
                        yield Stored(place, None, "corrupt_record", "the payload does not match its checksum")
                    else:
                        yield _parsed(place, frame.data)
                    position += 1
            except tfrecord.DamagedLengthError as error:
                lost = max(1, (self.episodes or 0) - position)
                yield Stored(
                    Place(position, error.offset, size - error.offset, 0), None, "corrupt_length", str(error), lost
                )
                return
        if self.episodes is not None and position < self.episodes:
            detail = f"the file ends after {position} of the {self.episodes} episodes that its dataset states"
            yield Stored(Place(position, size, 0, 0), None, "corrupt_length", detail, self.episodes - position)

    def read_some(self, features: SourceFeatures, places: Iterable[Place]) -> Iterator[RawEpisode]:
        """See ``EpisodeFile``."""
        with _opened(self.path) as (read, _):
            for place in places:
                data, crc = tfrecord.read_frame(read, place.offset, place.length)
                if crc != place.crc or tfrecord.masked_crc(data) != crc:
                    raise changed(self, place)
                yield ExampleEpisode(data)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[tfrecord.ReadAt, int]]:
    """A function that reads (offset, length) of a file, and the file's size in bytes."""
    with open(path, "rb", buffering=0) as file:
        number = file.fileno()
        yield lambda offset, length: os.pread(number, length, offset), os.fstat(number).st_size


class ArrayRecordFile(EpisodeFile):
    """An ArrayRecord file of Examples."""

    def read_all(self, features: SourceFeatures, max_bytes: int) -> Iterator[Stored]:
        """See ``EpisodeFile``."""
        with _array_record(self.path) as reader:
            records = reader.num_records() if reader.ok() else 0
            for position in range(records):
                try:
                    data = reader.read(position, position + 1)[0]
                except Exception as error:
                    # The native reader raises many types; each means that this record cannot be had.
                    detail = _first_line(error).replace(self.path, self.name)
                    yield Stored(Place(position, 0, 0, 0), None, "corrupt_record", detail)
                    continue
                place = Place(position, 0, len(data), google_crc32c.value(data))
                yield too_large(place, max_bytes) if len(data) > max_bytes else _parsed(place, data)
        if records < (1 if self.episodes is None else self.episodes):
            lost = max(1, (self.episodes or 0) - records)
            detail = f"the file holds {records} of the {lost + records} episodes that its dataset states"
            yield Stored(Place(records, 0, 0, 0), None, "corrupt_length", detail, lost)

    def read_some(self, features: SourceFeatures, places: Iterable[Place]) -> Iterator[RawEpisode]:
        """See ``EpisodeFile``."""
        with _array_record(self.path) as reader:
            for place in places:
                try:
                    data = reader.read(place.position, place.position + 1)[0]
                except Exception:
                    raise changed(self, place) from None
                if len(data) != place.length or google_crc32c.value(data) != place.crc:
                    raise changed(self, place)
                yield ExampleEpisode(data)


@contextlib.contextmanager
def _array_record(path: str) -> Iterator[ArrayRecordReader]:
    reader = ArrayRecordReader(path, _READER_OPTIONS)
    try:
        yield reader
    finally:
        # Closing a damaged file raises again what was wrong with it.
        with contextlib.suppress(RuntimeError):
            reader.close()


def changed(file: EpisodeFile, place: Place) -> DataError:
    """The error of a file that no longer holds what a scan found at ``place``."""
    return DataError(f"{file.name}: episode {place.position} changed between scan and build. Run the build again")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
