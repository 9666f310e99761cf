"""RLDS episodes as TFDS stores them: a directory with metadata, and files with one ``tf.train.Example`` an episode.

Legend: N recorded steps, the last one included.
"""

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
                yield Stored(record.byte_range, None, record.reason, record.detail, record.lost)
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
        span = self._spans.get(f"steps/{field.path}")
        if span is None:
            raise RejectedError("missing_field", f"steps/{field.path} is absent from the episode")
        try:
            if field.form == "tensor" and field.encoding == "none":
                return _tensor(field, self._numbers(field, span))
            strings = tfrecord.byte_strings(self._data, span)
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
                strings = tfrecord.byte_strings(self._data, span)
                return str(strings[0], "utf-8") if strings else None
            numbers = self._numbers(field, span)
            return numbers[0].item() if len(numbers) else None
        except UnicodeDecodeError:
            raise RejectedError("not_utf8", f"{field.path} is not valid UTF-8") from None
        except ValueError as error:
            raise RejectedError("corrupt_record", f"{field.path}: {error}") from None

    def _numbers(self, field: SourceField, span: tfrecord.Span) -> np.ndarray:
        read = tfrecord.floats if np.dtype(field.dtype).kind == "f" else tfrecord.integers
        return read(self._data, span)


def _tensor(field: SourceField, flat: np.ndarray) -> np.ndarray:
    """The values of all steps in the field's dtype and shape, (N, *shape)."""
    dtype = np.dtype(field.dtype)
    if dtype.kind == "b":
        flat = flat.astype(bool)
    elif dtype.kind in "iu" and dtype != flat.dtype:
        wide, flat = flat, flat.astype(dtype)
        if not np.array_equal(wide, flat):
            raise ValueError(f"holds a value that is no {dtype.name}")
    size = math.prod(field.sides)
    if size == 0 or len(flat) % size:
        raise RejectedError(
            "wrong_shape", f"steps/{field.path} holds {len(flat)} values, no multiple of its {size} a step"
        )
    return flat.reshape(-1, *field.sides)


def _unpacked(field: SourceField, strings: list[bytes]) -> np.ndarray:
    """Tensors that TFDS stored as raw or zlib-compressed bytes, one string a step."""
    if field.encoding == "zlib":
        strings = [zlib.decompress(string) for string in strings]
    dtype = np.dtype(field.dtype)
    size = math.prod(field.sides) * dtype.itemsize
    if any(len(string) != size for string in strings):
        raise RejectedError("wrong_shape", f"steps/{field.path} holds tensors of another size than {list(field.sides)}")
    return np.frombuffer(b"".join(strings), dtype).reshape(len(strings), *field.sides)


@functools.lru_cache(maxsize=256)
def _source_features(features: FeatureConnector) -> SourceFeatures | None:
    """The fields of the steps and of the episode; None if there are no steps. Many tasks share one object."""
    steps: Any = features["steps"] if isinstance(features, FeaturesDict) and "steps" in features else None
    if type(steps).__name__ not in ("Dataset", "Sequence") or not isinstance(steps.feature, FeaturesDict):
        return None
    metadata = [field for key in sorted(features) if key != "steps" for field in _fields(features[key], key)]
    return SourceFeatures(steps=tuple(_fields(steps.feature, "")), metadata=tuple(metadata))


def _fields(feature: Any, path: str) -> Iterator[SourceField]:
    """The fields of a feature, sorted by path."""
    type_name = type(feature).__name__
    if isinstance(feature, FeaturesDict):
        for key in sorted(feature):
            yield from _fields(feature[key], f"{path}/{key}" if path else key)
    elif type_name == "Image":
        dtype = np.dtype(feature.np_dtype).name
        yield SourceField(path=path, dtype=dtype, shape=feature.shape, form="image", type_name=type_name)
    elif type_name not in _READABLE:
        yield SourceField(path=path, dtype="", form="unreadable", type_name=type_name)
    elif feature.np_dtype in (object, str, bytes):
        yield SourceField(path=path, dtype="str", shape=tuple(feature.shape), form="string", type_name=type_name)
    else:
        shape = tuple(feature.shape)
        is_fixed = None not in shape
        encoding = getattr(getattr(feature, "_encoding", None), "value", "none")
        yield SourceField(
            path=path,
            dtype=np.dtype(feature.np_dtype).name,
            shape=shape,
            form="tensor" if is_fixed else "unreadable",
            encoding=_ENCODINGS.get(encoding, "none"),
            num=getattr(feature, "num_classes", None),
            type_name=type_name if is_fixed else f"{type_name} of shape {shape}",
        )
