"""What every source format of episodes offers: directories with files, and in them stored episodes.

A format is a module with a subclass of ``EpisodeFile``; ``formats.py`` lists them. Legend: N recorded steps, the last
one included.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from gatokit.pipelines.formats.records import ByteRange, Stored
from gatokit.schemas.errors import DataError

Values = np.ndarray | list[bytes]


class SourceField(BaseModel):
    """A field as the source describes it; ``dtype`` is ``str`` for strings and bytes.

    ``path`` is the key path below the step (``observation/image``) or the episode
    (``episode_metadata/agent_id``). ``form`` says how values are stored: ``unreadable`` ones can only be
    skipped, and ``type_name`` says what they are.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    dtype: str
    shape: tuple[int | None, ...] = ()
    form: Literal["tensor", "image", "string", "unreadable"] = "tensor"
    encoding: Literal["none", "bytes", "zlib"] = "none"
    num: int | None = None
    type_name: str = "Tensor"


class SourceFeatures(BaseModel):
    """The fields of a step and those of an episode."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[SourceField, ...]
    metadata: tuple[SourceField, ...]

    @functools.cached_property
    def _by_path(self) -> dict[str, SourceField]:
        return {field.path: field for field in self.steps}

    def step(self, path: str) -> SourceField | None:
        """The step field at ``path``."""
        return self._by_path.get(path)

    def step_scalar(self, path: str) -> SourceField | None:
        """The step field at ``path`` if it is one number a step."""
        field = self.step(path)
        return field if field is not None and field.form == "tensor" and field.shape == () else None

    def metadata_field(self, key: str) -> SourceField | None:
        """The metadata field with the path ``key``, or the only one whose path ends in ``key``."""
        exact = [field for field in self.metadata if field.path == key]
        last = [field for field in self.metadata if field.path.split("/")[-1] == key]
        return exact[0] if exact else last[0] if len(last) == 1 else None


class RawEpisode(Protocol):
    """One stored episode whose fields are decoded when asked for."""

    def column(self, field: SourceField) -> Values:
        """The N values of a step field: an array (N, *shape), or N byte strings for strings and images.

        Raises RejectedError if they are absent, do not parse or have another size.
        """

    def metadata(self, field: SourceField) -> str | float | int | None:
        """The value of a scalar metadata field; None if the episode has none."""


StoredEpisode = Stored[RawEpisode]


@dataclass(frozen=True)
class SourceDirectory:
    """A directory of one format: ``name`` is its path below the source without version directories."""

    path: str
    name: str
    features: SourceFeatures
    files: tuple["EpisodeFile", ...]


class EpisodeFile(BaseModel, ABC):
    """A file of a source: ``path`` opens it, ``name`` is its path below the source, ``size`` its bytes, ``episodes``
    the number that the source states. It travels to workers as JSON, in which ``format`` tells the subclasses apart."""

    model_config = ConfigDict(frozen=True)

    marker: ClassVar[str]
    """The name of the file that marks a directory of this format."""

    format: str
    path: str
    name: str
    size: int
    episodes: int | None

    divides: ClassVar[bool] = True
    """Every format of episodes can be read from the middle of a file."""

    @staticmethod
    @abstractmethod
    def read_directory(path: str, name: str, below: str, splits: tuple[str, ...] | None) -> SourceDirectory:
        """The features and files of a directory of this format.

        ``below`` is the path that file names are relative to; ``splits`` None means all of them. Raises ConfigError if
        a split does not exist, DataError if the directory cannot be read or is incomplete.
        """

    @abstractmethod
    def read_all(self, max_bytes: int) -> Iterator[StoredEpisode]:
        """Yields every episode in file order. Damaged episodes and those above ``max_bytes`` are rejections."""

    @abstractmethod
    def read_some(self, byte_ranges: Iterable[ByteRange]) -> Iterator[RawEpisode]:
        """Yields the episodes at ``byte_ranges``, in their order.

        Raises DataError (``changed``) if the file no longer holds what a scan found there.
        """


def changed(file: EpisodeFile, byte_range: ByteRange) -> DataError:
    """The error of a file that no longer holds what a scan found at ``byte_range``."""
    return DataError(f"{file.name}: episode {byte_range.position} changed between scan and build. Run the build again")
