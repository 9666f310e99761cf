"""TFDS and RLDS directories: ``features.json`` and ``dataset_info.json`` beside TFRecord or ArrayRecord files.

Metadata is read by TFDS itself, which needs no TensorFlow for it; its parts are called one by one, because a builder
takes much longer and there may be thousands of directories.
"""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_info, naming
from tensorflow_datasets.core.splits import SplitDict, SplitInfo

from gatokit.pipelines.episodes.examples import ArrayRecordFile, TfRecordFile
from gatokit.pipelines.episodes.reader import EpisodeFile, SourceDirectory, SourceFeatures, SourceField
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.storage import files

MARKER = "features.json"
INFO = "dataset_info.json"

_FORMATS: dict[str, type[EpisodeFile]] = {"tfrecord": TfRecordFile, "array_record": ArrayRecordFile}
_ENCODINGS: dict[str, Literal["bytes", "zlib"]] = {"bytes": "bytes", "zlib": "zlib"}


def read_directory(path: str, name: str, below: str, splits: tuple[str, ...] | None) -> SourceDirectory:
    """The features and files of a TFDS directory.

    ``below`` is the path to which file names are relative; ``splits`` None means all of them. ConfigError
    where a split does not exist or the directory holds no episodes; DataError where its writing was never
    finished or a file is missing.
    """
    try:
        with files.local_descriptions(path) as local:
            info = dataset_info.read_from_json(epath.Path(local) / INFO)
            features = _features(Path(local, MARKER).read_bytes())
        template = naming.ShardedFileTemplate(
            data_dir=epath.Path(path), dataset_name=info.name, filetype_suffix=info.file_format or "tfrecord"
        )
        split_infos = SplitDict.from_proto(info.splits, template)
    except Exception as error:
        # TFDS raises whatever its JSON, proto and feature code meets; the directory is the user's.
        raise DataError(f"{path}: TFDS cannot read this directory: {str(error).splitlines()[0][:300]}") from None
    if features is None:
        raise ConfigError(f"{path}: no RLDS dataset, for its features have no `steps`; leave it out of `source`")
    unknown = sorted(set(splits or ()) - set(split_infos))
    if unknown:
        raise ConfigError(f"{path}: has no split {unknown[0]!r}, only {', '.join(sorted(split_infos))}")
    file_type = _FORMATS.get(template.filetype_suffix)
    if file_type is None:
        raise ConfigError(
            f"{path}: its files are {template.filetype_suffix}; Gatokit reads {' and '.join(sorted(_FORMATS))}"
        )
    sources = tuple(
        file_type(**place, episodes=episodes)
        for split in sorted(splits or split_infos)
        for place, episodes in shards(path, below, split_infos[split])
    )
    return SourceDirectory(path, name, features, sources)


def shards(path: str, below: str, split: SplitInfo) -> Iterator[tuple[dict[str, Any], int]]:
    """Path, name below ``below`` and size of each file of a split of the directory ``path``, and its Examples.

    DataError where its writing was never finished or a file is missing.
    """
    if not split.shard_lengths:
        raise DataError(
            f"{path}: split {split.name!r} states no shard lengths, so its writing was never finished. "
            "Write it again, or leave it out of `source`"
        )
    sizes = files.sizes(path)
    for filename, examples in zip(split.filenames, split.shard_lengths, strict=True):
        name = os.path.basename(filename)
        file = os.path.join(path, name)
        if name not in sizes:
            raise DataError(f"{file}: is missing, though dataset_info.json lists it")
        yield {"path": file, "name": os.path.relpath(file, below), "size": sizes[name]}, examples


@functools.lru_cache(maxsize=256)
def _features(content: bytes) -> SourceFeatures | None:
    """The fields that a ``features.json`` describes; None where there are no steps. Tasks often share one."""
    features = tfds.features.FeatureConnector.from_json(json.loads(content))
    if "steps" not in features or type(features["steps"]).__name__ != "Dataset":
        return None
    steps = _flatten(features["steps"].feature, "")
    metadata = [field for key in sorted(features) if key != "steps" for field in _flatten(features[key], key)]
    return SourceFeatures(steps=tuple(steps), metadata=tuple(metadata))


def _flatten(feature: Any, path: str) -> list[SourceField]:
    if isinstance(feature, tfds.features.FeaturesDict):
        return [field for key in sorted(feature) for field in _flatten(feature[key], f"{path}/{key}" if path else key)]
    return [_field(feature, path)]


def _field(feature: Any, path: str) -> SourceField:
    kind = type(feature).__name__
    if kind == "Image":
        return SourceField(
            path=path, dtype=np.dtype(feature.np_dtype).name, shape=feature.shape, form="image", type_name=kind
        )
    if kind in ("Tensor", "Scalar", "ClassLabel", "Text", "BBoxFeature", "LabeledImage"):
        is_string = feature.np_dtype in (object, str, bytes)
        shape = tuple(feature.shape)
        if is_string:
            return SourceField(path=path, dtype="str", shape=shape, form="string", type_name=kind)
        encoding = getattr(getattr(feature, "_encoding", None), "value", "none")
        return SourceField(
            path=path,
            dtype=np.dtype(feature.np_dtype).name,
            shape=shape,
            form="unreadable" if None in shape else "tensor",
            encoding=_ENCODINGS.get(encoding, "none"),
            num=getattr(feature, "num_classes", None),
            type_name=kind if None not in shape else f"{kind} of shape {shape}",
        )
    return SourceField(path=path, dtype="", form="unreadable", type_name=kind)
