"""TFDS directories: ``features.json`` and ``dataset_info.json`` beside TFRecord or ArrayRecord files of Examples.

TFDS itself reads the metadata, and needs no TensorFlow for it. Its parts are called one by one, because a TFDS builder
takes much longer and there may be thousands of directories.
"""

import functools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from etils import epath
from tensorflow_datasets.core import dataset_info, naming
from tensorflow_datasets.core.features import FeatureConnector
from tensorflow_datasets.core.splits import ReadInstruction, SplitDict
from tensorflow_datasets.core.utils.shard_utils import get_file_instructions

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
    """A file of a split: its path, its name below the source, and what is read of it.

    ``examples`` are read, which are all or, with ``positions``, those from the first position up to the second.
    ``size`` is the size in bytes, or the same part of it.
    """

    path: str
    name: str
    size: int
    examples: int
    positions: tuple[int, int] | None = None


@dataclass(frozen=True, order=True)
class SplitSlice:
    """The Examples of a split from the position ``begin`` up to ``end``; ``name`` is what the user asked for."""

    split: str
    begin: int
    end: int
    name: str

    @property
    def examples(self) -> int:
        """How many they are."""
        return max(0, self.end - self.begin)


@dataclass(frozen=True)
class TfdsDirectory:
    """The description of a directory: the features of its Examples (equal ones are one object), the format of its
    files, its splits, and whether the writer shuffled the Examples."""

    path: str
    features: FeatureConnector
    file_format: str
    splits: SplitDict
    is_shuffled: bool

    def slices(self, names: Iterable[str]) -> list[SplitSlice]:
        """The splits and slices of splits that ``names`` ask for, such as ``train[:25%]`` or ``train+val``, in the
        order of the files. Those without Examples are left out.

        Raises ConfigError if a split does not exist or a slice does not fit it, DataError if a split is unfinished.
        """
        found = []
        for name in names:
            if name in self.splits:
                found.append(SplitSlice(name, 0, self.splits[name].num_examples, name))
                continue
            try:
                for part in ReadInstruction.from_spec(name).to_absolute(self.splits):
                    end = self.splits[part.splitname].num_examples if part.to is None else part.to
                    found.append(SplitSlice(part.splitname, part.from_ or 0, end, name))
            except Exception as error:
                # TFDS raises several types if it cannot read what the user wrote. The last line says why.
                reason = (str(error).splitlines() or [""])[-1][:300].rstrip(".")
                raise ConfigError(
                    f"{self.path}: splits: {name!r} cannot be read: {reason}; the splits "
                    f"are {self._counts()}, and a slice is written as in 'train[:25%]'"
                ) from None
        self._check_finished({part.split for part in found})
        found = sorted(part for part in found if part.examples)
        for one, other in pairwise(found):
            if one.split == other.split and other.begin < one.end:
                both = " and ".join(dict.fromkeys(repr(item.name) for item in (one, other)))
                raise ConfigError(f"{self.path}: splits: {both} name the same episodes of {one.split}; name them once")
        return found

    def files(self, below: str, slices: Iterable[SplitSlice]) -> Iterator[tuple[TfdsFile, SplitSlice]]:
        """The files of each slice, named by their path from ``below``. The size of a missing file is -1."""
        size_of = sizes(self.path)
        for part in slices:
            split = self.splits[part.split]
            for item in get_file_instructions(part.begin, part.end, split.filenames, split.shard_lengths):
                name = os.path.basename(item.filename)
                file, size, positions = os.path.join(self.path, name), size_of.get(name, -1), None
                if item.take < item.examples_in_shard:
                    positions = (item.skip, item.skip + item.take)
                    size = -(-size * item.take // item.examples_in_shard) if size >= 0 else -1
                yield TfdsFile(file, os.path.relpath(file, below), size, item.take, positions), part

    def _check_finished(self, splits: Iterable[str]) -> None:
        """Raises DataError if one of the splits states no shard lengths, though it has files or there is no other."""
        for name in splits:
            template = self.splits[name].filename_template
            if self.splits[name].shard_lengths or template is None:
                continue
            prefix = f"{template.dataset_name}-{name}.{template.filetype_suffix}-"
            if len(self.splits) == 1 or any(file.startswith(prefix) for file in sizes(self.path)):
                raise DataError(
                    f"{self.path}: split {name!r} states no shard lengths, so its writing was never finished. "
                    "Write it again, or leave it out of `source`"
                )

    def _counts(self) -> str:
        return ", ".join(f"{name} ({self.splits[name].num_examples})" for name in sorted(self.splits)) or "none"


def missing(file: TfdsFile, way_out: str = "") -> DataError:
    """The error of a file that is not there."""
    return DataError(f"{file.path}: is missing, though dataset_info.json lists it{way_out}")


def read_directory(path: str) -> TfdsDirectory:
    """Reads the description of a TFDS directory. Raises DataError if TFDS cannot read it."""
    try:
        with local_descriptions(path) as local:
            info = dataset_info.read_from_json(epath.Path(local) / "dataset_info.json")
            features = _features(Path(local, MARKER).read_bytes())
        template = naming.ShardedFileTemplate(
            data_dir=epath.Path(path), dataset_name=info.name, filetype_suffix=info.file_format or "tfrecord"
        )
        splits = SplitDict.from_proto(info.splits, template)
    except Exception as error:
        # TFDS raises whatever its code for JSON, protos and features meets; the directory belongs to the user.
        raise DataError(f"{path}: TFDS cannot read this directory: {first_line(error)[:300]}") from None
    return TfdsDirectory(path, features, template.filetype_suffix, splits, not info.disable_shuffling)


@functools.lru_cache(maxsize=256)
def _features(content: bytes) -> FeatureConnector:
    return FeatureConnector.from_json(json.loads(content))
