"""TFDS directories: ``features.json`` and ``dataset_info.json`` beside TFRecord or ArrayRecord files of Examples.

TFDS itself reads the metadata, and needs no TensorFlow for it. Its parts are called one by one, because a TFDS builder
takes much longer and there may be thousands of directories.
"""

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from etils import epath
from tensorflow_datasets.core import dataset_info, naming
from tensorflow_datasets.core.features import FeatureConnector
from tensorflow_datasets.core.splits import SplitDict, SplitInfo

from gatokit.pipelines.formats.array_record import ArrayRecordFile
from gatokit.pipelines.formats.records import RecordFile
from gatokit.pipelines.formats.tfrecord import TfRecordFile
from gatokit.schemas.errors import ConfigError, DataError, first_line
from gatokit.storage.files import local_descriptions, sizes

MARKER = "features.json"
"""The file that marks a TFDS directory."""
RECORD_FILES: dict[str, type[RecordFile]] = {"tfrecord": TfRecordFile, "array_record": ArrayRecordFile}
"""The readers of a directory's files by ``TfdsDirectory.file_format``."""


@dataclass(frozen=True)
class TfdsFile:
    """A file of a split: its path, its name below the source, its size in bytes and the number of its Examples."""

    path: str
    name: str
    size: int
    examples: int


@dataclass(frozen=True)
class TfdsDirectory:
    """The description of a directory: the features of its Examples (equal ones are one object), the format of its
    files, and the splits that are read."""

    path: str
    features: FeatureConnector
    file_format: str
    splits: tuple[SplitInfo, ...]

    def files(self, below: str) -> Iterator[TfdsFile]:
        """The files of the splits, named by their path from ``below``.

        Raises DataError if a split is unfinished or a file is missing.
        """
        size_of = sizes(self.path)
        for split in self.splits:
            if not split.shard_lengths:
                raise DataError(
                    f"{self.path}: split {split.name!r} states no shard lengths, so its writing was never finished. "
                    "Write it again, or leave it out of `source`"
                )
            for filename, examples in zip(split.filenames, split.shard_lengths, strict=True):
                name = os.path.basename(filename)
                file = os.path.join(self.path, name)
                if name not in size_of:
                    raise DataError(f"{file}: is missing, though dataset_info.json lists it")
                yield TfdsFile(file, os.path.relpath(file, below), size_of[name], examples)


def read_directory(path: str, splits: tuple[str, ...] | None = None) -> TfdsDirectory:
    """Reads the description of a TFDS directory, of which ``splits`` (None: all) are wanted.

    Raises ConfigError if a split does not exist, DataError if TFDS cannot read the description.
    """
    try:
        with local_descriptions(path) as local:
            info = dataset_info.read_from_json(epath.Path(local) / "dataset_info.json")
            features = _features(Path(local, MARKER).read_bytes())
        template = naming.ShardedFileTemplate(
            data_dir=epath.Path(path), dataset_name=info.name, filetype_suffix=info.file_format or "tfrecord"
        )
        known = SplitDict.from_proto(info.splits, template)
    except Exception as error:
        # TFDS raises whatever its code for JSON, protos and features meets; the directory belongs to the user.
        raise DataError(f"{path}: TFDS cannot read this directory: {first_line(error)[:300]}") from None
    unknown = sorted(set(splits or ()) - set(known))
    if unknown:
        raise ConfigError(f"{path}: has no split {unknown[0]!r}, only {', '.join(sorted(known))}")
    chosen = tuple(known[split] for split in sorted(splits or known))
    return TfdsDirectory(path, features, template.filetype_suffix, chosen)


@functools.lru_cache(maxsize=256)
def _features(content: bytes) -> FeatureConnector:
    return FeatureConnector.from_json(json.loads(content))
