"""EnvLogger logs of its Riegeli backend: ``metadata.riegeli`` beside one directory a shard, named by its time.

EnvLogger's TFDS backend writes TFDS directories, which ``rlds.py`` reads.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import google_crc32c

from gatokit.pipelines.episodes.envlogger_episode import Decode, EnvLoggerEpisode, is_first, is_step
from gatokit.pipelines.episodes.reader import (
    EpisodeFile,
    RawEpisode,
    SourceDirectory,
    SourceFeatures,
    StoredEpisode,
)
from gatokit.pipelines.formats.records import ByteRange, Stored, too_large
from gatokit.schemas.errors import ConfigError, DataError, install_hint
from gatokit.storage.files import is_remote

_MARKER = "metadata.riegeli"
_STEPS = "steps.riegeli"


class EnvLoggerFile(EpisodeFile):
    """A shard of a log: ``path`` is that of its steps, beside which its indexes lie."""

    marker: ClassVar[str] = _MARKER
    format: Literal["envlogger"] = "envlogger"
    episodes: int | None = None

    @staticmethod
    def read_directory(path: str, name: str, below: str, splits: tuple[str, ...] | None) -> SourceDirectory:
        """See ``EpisodeFile``. The features are those of the first episode that can be read.

        Also raises ConfigError if the log is on ``gs://`` or EnvLogger's reader does not load.
        """
        if is_remote(path):
            raise ConfigError(f"{path}: EnvLogger's own reader reads disks alone; mount the bucket, or copy the log")
        with _opened(path, None) as (_, fault):
            if fault:
                raise DataError(f"{os.path.join(path, _MARKER)}: EnvLogger cannot read it: {fault}")
        if splits:
            raise ConfigError(f"{path}: an EnvLogger log has no splits; leave out `splits: [{', '.join(splits)}]`")
        steps = (os.path.join(path, shard, _STEPS) for shard in sorted(os.listdir(path)))
        files = tuple(
            EnvLoggerFile(path=file, name=os.path.relpath(file, below), size=os.path.getsize(file))
            for file in steps
            if os.path.isfile(file)
        )
        features = next(filter(None, (file.features() for file in files)), None)
        if features is None:
            raise DataError(f"{path}: holds no episode that can be read. Record it again, or leave it out of `source`")
        return SourceDirectory(path, name, features, files)

    def read_all(self, max_bytes: int) -> Iterator[StoredEpisode]:
        """See ``EpisodeFile``."""
        with self._shard() as (shard, fault):
            episodes = shard.reader.num_episodes
            if fault or not shard.reader.num_steps:
                detail = f"the shard cannot be opened, so its recording was killed or it is damaged: {fault or 'empty'}"
                yield Stored(ByteRange(0, 0, 0, 0), None, "corrupt_length", detail)
                return
            begin = shard.first_step()
            if begin:
                detail = f"the first {begin} steps belong to no episode, so the shard's index is damaged"
                yield Stored(
                    ByteRange(episodes, 0, 0, 0), None, "corrupt_length", detail, shard.count_episodes(0, begin)
                )
            for position in range(episodes):
                yield shard.read(position, max_bytes)

    def read_some(self, byte_ranges: Iterable[ByteRange]) -> Iterator[RawEpisode]:
        """See ``EpisodeFile``."""
        with self._shard() as (shard, _):
            for byte_range in byte_ranges:
                stored = shard.read(byte_range.position, byte_range.length)
                if stored.value is None or stored.byte_range != byte_range:
                    raise self.changed(byte_range)
                yield stored.value

    def features(self) -> SourceFeatures | None:
        """The features of the first sound episode with an action; None if there is none."""
        with self._shard() as (shard, _):
            for position in range(shard.reader.num_episodes):
                info = shard.reader.episode(position)
                episode = shard.read(position, 1 << 62).value if info and info.num_steps > 1 else None
                if episode is not None:
                    return episode.features()
        return None

    def _shard(self) -> contextlib.AbstractContextManager[tuple["_Shard", str | None]]:
        directory = os.path.dirname(os.path.abspath(self.path))
        return _opened(os.path.dirname(directory), os.path.basename(directory))


@dataclass(frozen=True)
class _Shard:
    """EnvLogger's reader of a shard, its protobuf message ``Data`` and its decoder of such messages."""

    reader: Any
    data: Any
    decode: Decode

    def first_step(self) -> int:
        """The first step that belongs to an episode: 0 unless entries of the index are lost."""
        info = self.reader.episode(0) if self.reader.num_episodes else None
        return info.start if info else self.reader.num_steps

    def count_episodes(self, begin: int, end: int) -> int:
        """How many episodes begin in a range of steps, at least one."""
        steps = (self._step(ordinal)[1] for ordinal in range(begin, end))
        return max(1, sum(step is not None and is_first(step, self.decode) for step in steps))

    def read(self, position: int, max_bytes: int) -> Stored[EnvLoggerEpisode]:
        """An episode, or its rejection."""
        unknown = ByteRange(position, 0, 0, 0)
        info = self.reader.episode(position, True) if position < self.reader.num_episodes else None
        if info is None:
            return Stored(unknown, None, "corrupt_record", "its index entry cannot be read")
        steps: list[Any] = []
        length = crc = 0
        for ordinal in range(info.start, info.start + info.num_steps):
            size, step = self._step(ordinal)
            length += size
            if length > max_bytes:
                return too_large(ByteRange(position, 0, length, 0), max_bytes)
            if step is None:
                return Stored(unknown, None, "corrupt_record", f"step {ordinal - info.start} cannot be read")
            steps.append(step)
        firsts = [ordinal for ordinal, step in enumerate(steps) if is_first(step, self.decode)]
        if len(firsts) > 1:
            # EnvLogger joins an episode whose index entry is damaged to the one before it.
            detail = f"the shard's index is damaged: it joins {len(firsts)} episodes"
            return Stored(unknown, None, "corrupt_record", detail, len(firsts))
        if firsts != [0]:
            return Stored(unknown, None, "malformed_steps", "the first step is not marked as an episode's first")
        episode, log = self._python_message(info.metadata), self._python_message(self.reader.metadata())
        for message in (*steps, episode, log):
            # The reader's own bytes are in another order of keys every time.
            crc = google_crc32c.extend(crc, message.SerializeToString(deterministic=True))
        return Stored(ByteRange(position, 0, length, crc), EnvLoggerEpisode(steps, episode, log, self.decode))

    def _step(self, ordinal: int) -> tuple[int, Any]:
        """A step's size and message; the message is None if the step is damaged."""
        data = self.reader.serialized_step(ordinal)
        if data is None:
            return 0, None
        try:
            step = self.data.FromString(data)
        except Exception:
            # Protobuf's implementations raise different types; each means that this is no step.
            return len(data), None
        return len(data), step if is_step(step) else None

    def _python_message(self, message: Any) -> Any:
        """A message of the native reader as one of Python's protobuf; empty if there is none."""
        return self.data() if message is None else self.data.FromString(message.SerializeToString())


@contextlib.contextmanager
def _opened(log: str, shard: str | None) -> Iterator[tuple[_Shard, str | None]]:
    """Opens one shard of a log, or with None its metadata alone. Gives the reader and what the reader could not open.

    EnvLogger opens whole logs and fails if any shard is damaged, so it gets a directory with links to this shard alone.
    """
    opened = _load(log)
    with tempfile.TemporaryDirectory(prefix="gatokit-") as linked:
        for part in (_MARKER, shard):
            if part is not None:
                os.symlink(os.path.join(os.path.abspath(log), part), os.path.join(linked, part))
        fault = None
        try:
            opened.reader.init(linked)
        except RuntimeError as error:
            fault = str(error).replace(linked + os.sep, "")
        try:
            yield opened, fault
        finally:
            opened.reader.close()


def _load(log: str) -> _Shard:
    try:
        from envlogger.backends.python.riegeli_dataset_reader import RiegeliDatasetReader
        from envlogger.converters.codec import decode
        from envlogger.proto.storage_pb2 import Data
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{log}: is an EnvLogger log, and EnvLogger is not installed ({error}); {install_hint('envlogger')}"
        ) from None
    except ImportError as error:
        raise ConfigError(
            f"{log}: is an EnvLogger log, and EnvLogger's native reader does not load ({error}); "
            "it needs libgmpxx.so.4, on Debian and Ubuntu: apt-get install libgmpxx4ldbl"
        ) from None
    return _Shard(RiegeliDatasetReader(), Data, decode)
