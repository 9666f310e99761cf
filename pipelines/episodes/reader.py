"""What every source format of episodes offers: directories with files, and in them stored episodes.

A format is a module with a function that recognises its directories (``find.py`` asks each) and a subclass of
``EpisodeFile`` that reads its files. Legend: N recorded steps, the last one included.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from gatokit.pipelines.formats.records import ByteRange
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

    def metadata_field(self, key: str) -> SourceField | None:
        """The metadata field whose path, or whose path's last component where that is unique, is ``key``."""
        exact = [field for field in self.metadata if field.path == key]
        last = [field for field in self.metadata if field.path.split("/")[-1] == key]
        return exact[0] if exact else last[0] if len(last) == 1 else None


class RawEpisode(Protocol):
    """One stored episode whose fields are decoded when asked for."""

    def column(self, field: SourceField) -> Values:
        """The N values of a step field: an array (N, *shape), or N byte strings for strings and images.

        RejectedError where they are absent, do not parse or have another size.
        """

    def metadata(self, field: SourceField) -> str | float | int | None:
        """The value of a scalar metadata field; None where the episode has none."""


@dataclass(frozen=True)
class Stored:
    """An episode found in a file: readable, or rejected with ``reason`` and ``detail``, standing for ``lost``
    episodes."""

    place: ByteRange
    episode: RawEpisode | None
    reason: str | None = None
    detail: str | None = None
    lost: int = 1


class EpisodeFile(BaseModel, ABC):
    """A file of a source: ``path`` opens it, ``name`` is its path below the source, ``episodes`` the number
    that the source states."""

    model_config = ConfigDict(frozen=True)

    path: str
    name: str
    size: int
    episodes: int | None

    @abstractmethod
    def read_all(self, features: SourceFeatures, max_bytes: int) -> Iterator[Stored]:
        """Every episode in file order; what is damaged or above ``max_bytes`` comes as a rejection."""

    @abstractmethod
    def read_some(self, features: SourceFeatures, places: Iterable[ByteRange]) -> Iterator[RawEpisode]:
        """The episodes at ``places``, in their order.

        DataError where the file no longer holds what a scan found there.
        """


def too_large(place: ByteRange, max_bytes: int) -> Stored:
    """The rejection of an episode above ``max_bytes``."""
    return Stored(place, None, "too_large", f"{place.length} bytes are above max_episode_bytes {max_bytes}")


def changed(file: EpisodeFile, place: ByteRange) -> DataError:
    """The error of a file that no longer holds what a scan found at ``place``."""
    return DataError(f"{file.name}: episode {place.position} changed between scan and build. Run the build again")


@dataclass(frozen=True)
class SourceDirectory:
    """A directory of one format: ``name`` is its path below the source without version directories."""

    path: str
    name: str
    features: SourceFeatures
    files: tuple[EpisodeFile, ...]
