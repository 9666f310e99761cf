"""What a source of episodes offers.

A source is directories with files, and in them stored episodes. A format is a module with a subclass of
``EpisodeFile``; ``scan.py`` lists them. Legend: N recorded steps, the last one included.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from gatokit.pipelines.formats.records import CHANGED, ByteRange, Stored
from gatokit.pipelines.inputs import SourceName, SourcePath
from gatokit.schemas.config_episodes import Splits
from gatokit.schemas.errors import DataError

Values = np.ndarray | list[bytes] | list[np.ndarray]
"""The N values of a field: an array (N, *shape), N byte strings for strings and images, or N arrays of ragged ones."""


class SourceField(BaseModel):
    """A field as the source describes it; ``dtype`` is ``str`` for strings and bytes.

    ``path`` is the key path below the step (``observation/image``) or the episode
    (``episode_metadata/agent_id``). ``form`` says how values are stored: ``ragged`` are numbers of which each step has
    its own number, the None that begins the shape; ``video`` is a sequence of images that belongs to the episode;
    ``unreadable`` ones can only be skipped, and ``type_name`` says what they are.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    dtype: str
    shape: tuple[int | None, ...] = ()
    form: Literal["tensor", "ragged", "image", "video", "string", "unreadable"] = "tensor"
    encoding: Literal["none", "bytes", "zlib"] = "none"
    num: int | None = None
    type_name: str = "Tensor"
    counted: bool = False
    """TFDS stores how many values each step has, as it does for a ``Sequence`` in a step. Left out of JSON if not."""

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if not self.counted:
            del written["counted"]
        return written

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides of the shape that are known."""
        return tuple(side for side in self.shape if side is not None)


class SourceFeatures(BaseModel):
    """The fields of a step and those of an episode."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[SourceField, ...]
    metadata: tuple[SourceField, ...]

    @property
    def stored_values(self) -> tuple[SourceField, ...]:
        """The fields of an episode but those in which EnvLogger describes the environment of the whole log."""
        return tuple(field for field in self.metadata if not field.path.startswith("environment_specs/"))

    def step(self, path: str) -> SourceField | None:
        """The step field at ``path``."""
        return next((field for field in self.steps if field.path == path), None)

    def step_scalar(self, path: str) -> SourceField | None:
        """The step field at ``path`` if it is one number a step, of shape () or (1,)."""
        field = self.step(path)
        return field if field is not None and field.form == "tensor" and field.shape in ((), (1,)) else None

    def metadata_field(self, key: str) -> SourceField | None:
        """The metadata field with the path ``key``, or the only one whose path ends in ``key``."""
        exact = [field for field in self.metadata if field.path == key]
        last = [field for field in self.metadata if field.path.split("/")[-1] == key]
        return exact[0] if exact else last[0] if len(last) == 1 else None


class RawEpisode(Protocol):
    """One stored episode whose fields are decoded when asked for."""

    def column(self, field: SourceField) -> Values:
        """The N values of a step field.

        Raises RejectedError if they are absent, do not parse or have another size.
        """

    def flags(self, field: SourceField) -> bytes:
        """The N values of a step field with one number a step, one byte each, which is 0 if the number is 0.

        Raises RejectedError as ``column`` does.
        """

    def episode_value(self, field: SourceField) -> Values:
        """The value of a field of the episode, as the column of one step, or the images of a video; raises
        RejectedError as ``column`` does."""

    def metadata(self, field: SourceField) -> str | float | int | None:
        """The value of a scalar metadata field; None if the episode has none."""


StoredEpisode = Stored[RawEpisode]


@dataclass(frozen=True)
class SourceDirectory:
    """A directory of one format: ``name`` is its path below the source without version directories.

    ``splits`` has the episodes of the files by the split, or slice of a split, that they were asked for as, and
    ``left_out`` the episodes of the splits of which nothing is read. ``missing`` is the number of files that are left
    out because they are not there. ``in_order`` is set if the files hold the episodes as they were collected.
    """

    path: str
    name: str
    features: SourceFeatures
    files: tuple["EpisodeFile", ...]
    splits: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    in_order: bool = False


class EpisodeFile(BaseModel, ABC):
    """A file of a source: ``path`` opens it, ``name`` is its path below the source, ``size`` its bytes, ``episodes``
    the number that the source states. It travels to workers as JSON, in which ``format`` tells the subclasses apart.

    If only a part of the file is read, ``positions`` are its first episode and the one behind its last, and ``size`` is
    its share of the bytes. ``split`` is that of the source, and ``held_out`` is set if the config holds it out.
    """

    model_config = ConfigDict(frozen=True)

    marker: ClassVar[str]
    """The name of the file that marks a directory of this format."""

    format: str
    path: SourcePath
    name: SourceName
    size: int
    episodes: int | None
    positions: tuple[int, int] | None = None
    split: str = ""
    held_out: bool = False

    divides: ClassVar[bool] = True
    """Every format of episodes can be read from the middle of a file."""
    divides_at_offsets: ClassVar[bool] = False
    """Every episode is stored by itself."""

    @staticmethod
    @abstractmethod
    def read_directory(
        path: str, name: str, below: str, splits: Splits | None, is_partial: bool = False
    ) -> SourceDirectory:
        """The features and files of a directory of this format.

        ``below`` is the path that file names are relative to. ``splits`` None means ``train``, or all splits if there
        is no such split. With ``is_partial`` files may be missing. Raises ConfigError if a split does not exist,
        DataError if the directory cannot be read or is incomplete.
        """

    @abstractmethod
    def read_all(self, max_bytes: int) -> Iterator[StoredEpisode]:
        """Yields the episodes of ``positions`` in file order. Damaged ones and those above ``max_bytes`` are
        rejections."""

    @abstractmethod
    def read_some(self, byte_ranges: Iterable[ByteRange]) -> Iterator[RawEpisode]:
        """Yields the episodes at ``byte_ranges``, in their order.

        Raises DataError (``changed``) if the file no longer holds what a scan found there.
        """

    def changed(self, byte_range: ByteRange) -> DataError:
        """The error of a file that no longer holds what a scan found at ``byte_range``."""
        return DataError(f"{self.name}: episode {byte_range.position} {CHANGED}. Run the build again")
