"""RLDS episodes as TFDS stores them: a directory with metadata, and files with one ``tf.train.Example`` an episode.

Legend: N recorded steps, the last one included.
"""

import contextlib
import functools
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import numpy as np
from tensorflow_datasets.core.features import FeatureConnector, FeaturesDict

from gatokit.pipelines.episodes.reader import (
    EpisodeFile,
    RawEpisode,
    SourceDirectory,
    SourceFeatures,
    SourceField,
    StoredEpisode,
    Values,
)
from gatokit.pipelines.formats import tfds, tfrecord
from gatokit.pipelines.formats.records import ByteRange, RecordFile, Stored
from gatokit.schemas.config_episodes import Splits
from gatokit.schemas.errors import ConfigError, RejectedError

_READABLE = {"Tensor", "Scalar", "ClassLabel", "Text", "BBoxFeature", "LabeledImage"}
_FLAT, _COUNTS = "ragged_flat_values", "ragged_row_lengths_0"
"""Where TFDS stores a sequence of each step: the values of all steps, and how many each has."""
_ENCODINGS: dict[str, Literal["bytes", "zlib"]] = {"bytes": "bytes", "zlib": "zlib"}


class RldsFile(EpisodeFile):
    """A TFRecord or ArrayRecord file of a TFDS directory."""

    marker: ClassVar[str] = tfds.MARKER
    format: Literal["tfrecord", "array_record"]

    @staticmethod
    def read_directory(
        path: str, name: str, below: str, splits: Splits | None, is_partial: bool = False
    ) -> SourceDirectory:
        """See ``EpisodeFile``. Also raises ConfigError if the directory holds no episodes."""
        directory = tfds.read_directory(path)
        features = _source_features(directory.features)
        if features is None:
            raise ConfigError(f"{path}: no RLDS dataset, for its features have no `steps`; leave it out of `source`")
        format_ = directory.file_format
        if format_ not in tfds.RECORD_FILES:
            known = " and ".join(sorted(tfds.RECORD_FILES))
            raise ConfigError(f"{path}: its files are {format_}; Gatokit reads {known}")
        if splits is None:
            splits = Splits(train=("train",) if "train" in directory.splits else tuple(directory.splits))
        held_out = splits.held_out or ()
        slices = directory.slices((*splits.train, *held_out))
        episodes, missing, files = dict.fromkeys((*splits.train, *held_out), 0), set(), []
        for file, part in directory.files(below, slices):
            if file.size < 0:
                if not is_partial:
                    raise tfds.missing(file, "; `files: present` reads those that are there")
                missing.add(file.path)
                continue
            episodes[part.name] += file.examples
            values = {**asdict(file), "format": format_, "episodes": file.examples, "split": part.split}
            files.append(RldsFile.model_validate({**values, "held_out": part.name in held_out}))
        read = {part.split for part in slices} | episodes.keys()
        return SourceDirectory(
            path,
            name,
            features,
            tuple(files),
            splits=episodes,
            left_out={split: directory.splits[split].num_examples for split in sorted(directory.splits.keys() - read)},
            missing=len(missing),
            in_order=not directory.is_shuffled,
        )

    def read_all(self, max_bytes: int) -> Iterator[StoredEpisode]:
        """See ``EpisodeFile``."""
        for record in self._records().read_all(max_bytes):
            if record.value is None:
                yield Stored(record.byte_range, None, record.reason, record.detail, record.lost, record.lost_bytes)
                continue
            try:
                yield Stored(record.byte_range, ExampleEpisode(record.value))
            except ValueError as error:
                yield Stored(record.byte_range, None, "corrupt_record", f"no tf.train.Example: {error}")

    def read_some(self, byte_ranges: Iterable[ByteRange]) -> Iterator[RawEpisode]:
        """See ``EpisodeFile``."""
        with self._records().opened() as read:
            for byte_range in byte_ranges:
                data = read(byte_range)
                if data is None:
                    raise self.changed(byte_range)
                yield ExampleEpisode(data)

    def _records(self) -> RecordFile:
        return tfds.RECORD_FILES[self.format](self.path, self.name, self.episodes, "episodes", self.positions)


class ExampleEpisode:
    """An Example whose features are decoded when asked for. Raises ValueError if the bytes are no Example."""

    def __init__(self, data: bytes) -> None:
        self._data, self._spans = tfrecord.walk_example(data)

    def column(self, field: SourceField) -> Values:
        """See ``RawEpisode``."""
        values = self._values(field, f"steps/{field.path}")
        if field.form == "ragged" and isinstance(values, np.ndarray):  # every step has as many
            flags = self._spans.get("steps/is_last")
            steps = 0 if flags is None else len(tfrecord.integers(self._data, flags))
            if not steps or len(values) % steps:
                raise RejectedError("wrong_shape", f"steps/{field.path} holds {len(values)} values for {steps} steps")
            values = np.split(values, steps)
        return values

    def flags(self, field: SourceField) -> bytes:
        """See ``RawEpisode``."""
        span = self._spans.get(f"steps/{field.path}")
        if span is not None and field.encoding == "none" and not field.counted:
            packed = tfrecord.one_byte_integers(self._data, span)
            if packed is not None:
                return packed
        return np.asarray(self.column(field)).astype(bool).tobytes()

    def episode_value(self, field: SourceField) -> Values:
        """See ``RawEpisode``."""
        values = self._values(field, field.path)
        if field.form == "ragged" and isinstance(values, np.ndarray):
            values = [values]
        if len(values) != 1 and field.form != "video":
            raise RejectedError("wrong_shape", f"{field.path} has {len(values)} values in the episode")
        return values

    def _values(self, field: SourceField, key: str) -> Values:
        """The values of a field under its ``key`` in the Example."""
        counts = self._spans.get(f"{key}/{_COUNTS}") if field.counted else None
        span = self._spans.get(f"{key}/{_FLAT}" if field.counted else key)
        if span is None or (field.counted and counts is None):
            raise RejectedError("missing_field", f"{key} is absent from the episode")
        try:
            if field.form in ("tensor", "ragged") and field.encoding == "none":
                values = _tensor(field, key, self._numbers(field, span))
                return values if counts is None else _by_step(field, key, values, tfrecord.integers(self._data, counts))
            strings = tfrecord.byte_strings(self._data, span)
            return strings if field.form in ("image", "video", "string") else _unpacked(field, key, strings)
        except (ValueError, zlib.error) as error:
            raise RejectedError("corrupt_record", f"{key}: {error}") from None

    def metadata(self, field: SourceField) -> str | float | int | None:
        """See ``RawEpisode``."""
        span = self._spans.get(field.path)
        if span is None:
            return None
        try:
            if field.form == "string":
                strings = tfrecord.byte_strings(self._data, span)
                return str(strings[0], "utf-8") if strings else None
            if "int" in field.dtype:
                try:
                    return tfrecord.first_integer(self._data, span)
                except ValueError:
                    pass  # a list of another type, or a damaged one
            numbers = self._numbers(field, span)
            return numbers[0].item() if len(numbers) else None
        except UnicodeDecodeError:
            raise RejectedError("not_utf8", f"{field.path} is not valid UTF-8") from None
        except ValueError as error:
            raise RejectedError("corrupt_record", f"{field.path}: {error}") from None

    def _numbers(self, field: SourceField, span: tfrecord.Span) -> np.ndarray:
        is_float = np.dtype(field.dtype).kind == "f"
        read, other = (tfrecord.floats, tfrecord.integers) if is_float else (tfrecord.integers, tfrecord.floats)
        try:
            return read(self._data, span)
        except ValueError:
            # Some recorders write whole numbers and truth values into a float field, or the reverse.
            with contextlib.suppress(ValueError):
                numbers = other(self._data, span)
                return numbers.astype(field.dtype) if is_float else numbers
            raise


def _tensor(field: SourceField, key: str, flat: np.ndarray) -> np.ndarray:
    """The values of all steps in the field's dtype and shape, (N, *shape); of a counted field, one after the other."""
    dtype = np.dtype(field.dtype)
    if dtype.kind == "b":
        flat = flat.astype(bool)
    elif dtype.kind in "iu" and dtype != flat.dtype:
        with np.errstate(invalid="ignore"):
            wide, flat = flat, flat.astype(dtype)
        if not np.array_equal(wide, flat):
            raise ValueError(f"holds a value that is no {dtype.name}")
    if not field.shape:
        return flat
    size, shape = _item(field.shape[1:] if field.counted or field.form == "ragged" else field.shape)
    if size == 0 or len(flat) % size:
        raise RejectedError("wrong_shape", f"{key} holds {len(flat)} values, no multiple of its {size} a step")
    return flat.reshape(shape)


@functools.cache
def _item(sides: tuple[int | None, ...]) -> tuple[int, tuple[int, ...]]:
    """The number of values of an item with these sides, and the shape of an array of such items."""
    known = [side or 0 for side in sides]
    return math.prod(known), (-1, *known)


def _by_step(field: SourceField, key: str, values: np.ndarray, counts: np.ndarray) -> Values:
    """Values that follow each other, divided into those of each step."""
    if counts.min(initial=0) < 0 or counts.sum() != len(values):
        raise RejectedError("wrong_shape", f"{key} holds {len(values)} values and counts {counts.sum()}")
    if field.form == "ragged":
        return np.split(values, np.cumsum(counts)[:-1]) if len(counts) else []
    length = field.shape[0] or 0
    if (counts != length).any():
        step = int(np.argmax(counts != length))
        raise RejectedError("wrong_shape", f"{key} has {counts[step]} values at step {step}, not {length}")
    return values.reshape(len(counts), *field.sides)


def _unpacked(field: SourceField, key: str, strings: list[bytes]) -> Values:
    """Tensors that TFDS stored as raw or zlib-compressed bytes, one string a step."""
    if field.encoding == "zlib":
        strings = [zlib.decompress(string) for string in strings]
    dtype = np.dtype(field.dtype)
    size = math.prod(field.sides) * dtype.itemsize
    if field.form == "ragged":
        if any(len(string) % size for string in strings):
            raise RejectedError("wrong_shape", f"{key} holds tensors of another size than {list(field.shape)}")
        return [np.frombuffer(string, dtype).reshape(-1, *field.sides) for string in strings]
    if any(len(string) != size for string in strings):
        raise RejectedError("wrong_shape", f"{key} holds tensors of another size than {list(field.sides)}")
    return np.frombuffer(b"".join(strings), dtype).reshape(len(strings), *field.sides)


@functools.lru_cache(maxsize=256)
def _source_features(features: FeatureConnector) -> SourceFeatures | None:
    """The fields of the steps and of the episode; None if there are no steps. Many tasks share one object."""
    steps: Any = features["steps"] if isinstance(features, FeaturesDict) and "steps" in features else None
    if type(steps).__name__ not in ("Dataset", "Sequence") or not isinstance(steps.feature, FeaturesDict):
        return None
    metadata = [field for key in sorted(features) if key != "steps" for field in _fields(features[key], key, False)]
    return SourceFeatures(steps=tuple(_fields(steps.feature, "", True)), metadata=tuple(metadata))


def _fields(feature: Any, path: str, in_steps: bool) -> Iterator[SourceField]:
    """The fields of a feature of a step or of the episode, sorted by path."""
    type_name = type(feature).__name__
    if isinstance(feature, FeaturesDict):
        for key in sorted(feature):
            yield from _fields(feature[key], f"{path}/{key}" if path else key, in_steps)
    elif type_name in ("Sequence", "Video"):
        for part in _fields(feature.feature, path, in_steps):
            yield _sequence(part, feature._length, in_steps, type_name)
    elif type_name == "Image":
        dtype = np.dtype(feature.np_dtype).name
        yield SourceField(path=path, dtype=dtype, shape=feature.shape, form="image", type_name=type_name)
    elif type_name not in _READABLE:
        yield SourceField(path=path, dtype="", form="unreadable", type_name=type_name)
    elif feature.np_dtype in (object, str, bytes):
        yield SourceField(path=path, dtype="str", shape=tuple(feature.shape), form="string", type_name=type_name)
    else:
        shape = tuple(feature.shape)
        form: Literal["tensor", "ragged", "unreadable"] = "tensor"
        if None in shape:
            form = "unreadable" if None in shape[1:] else "ragged"
        encoding = getattr(getattr(feature, "_encoding", None), "value", "none")
        yield SourceField(
            path=path,
            dtype=np.dtype(feature.np_dtype).name,
            shape=shape,
            form=form,
            encoding=_ENCODINGS.get(encoding, "none"),
            num=getattr(feature, "num_classes", None),
            type_name=f"{type_name} of shape {shape}" if form == "unreadable" else type_name,
        )


def _sequence(part: SourceField, length: int | None, in_steps: bool, type_name: str) -> SourceField:
    """The field of a sequence of ``part``; ``length`` None if it varies."""
    if part.form == "image" and not in_steps:
        return part.model_copy(update={"form": "video", "shape": (length, *part.shape), "type_name": type_name})
    if part.form != "tensor" or part.encoding != "none" or part.counted:
        name = type_name if type_name == "Video" else f"Sequence of {part.type_name}"
        return SourceField(path=part.path, dtype="", form="unreadable", type_name=name)
    form: Literal["tensor", "ragged"] = "ragged" if length is None else "tensor"
    update = {"form": form, "shape": (length, *part.shape), "counted": in_steps, "type_name": "Sequence"}
    return part.model_copy(update=update)
