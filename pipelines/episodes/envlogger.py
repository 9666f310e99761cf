"""EnvLogger logs of its Riegeli backend: ``metadata.riegeli`` beside one directory a shard, named by its time.

EnvLogger's TFDS backend writes TFDS directories, which ``rlds.py`` reads. Steps are stored in dm_env order and given in
RLDS order. A stored step is (timestep, action, custom data), its timestep (step type, reward, discount, observation):
an observation with the action and reward that led to it. RLDS puts the action that answers an observation, and the
reward that follows, beside it. Legend: N recorded steps, the last one included.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import google_crc32c
import numpy as np

from gatokit.pipelines.episodes.reader import (
    EpisodeFile,
    RawEpisode,
    SourceDirectory,
    SourceFeatures,
    SourceField,
    StoredEpisode,
    Values,
)
from gatokit.pipelines.formats.records import ByteRange, Stored, too_large
from gatokit.schemas.config_episodes import Splits
from gatokit.schemas.errors import ConfigError, DataError, RejectedError, install_hint
from gatokit.storage.files import is_remote

_MARKER = "metadata.riegeli"
_STEPS = "steps.riegeli"
_FIRST, _LAST = 0, 2
_STEP_TYPE, _REWARD, _DISCOUNT, _OBSERVATION = range(4)
_SAMPLED_FILES = 4
"""Files of a log of which an episode is read for the dtypes."""
_EPISODE_METADATA = "episode_metadata"
_FLAGS = ("is_first", "is_last", "is_terminal")


class EnvLoggerFile(EpisodeFile):
    """A shard of a log: ``path`` is that of its steps, beside which its indexes lie."""

    marker: ClassVar[str] = _MARKER
    format: Literal["envlogger"] = "envlogger"
    episodes: int | None = None

    @staticmethod
    def read_directory(
        path: str, name: str, below: str, splits: Splits | None, is_partial: bool = False
    ) -> SourceDirectory:
        """See ``EpisodeFile``. The fields are those of the first episode that can be read; for their dtypes others are
        read too, because a recorder may write 0 in one step and 0.5 in another.

        Also raises ConfigError if the log is on ``gs://`` or EnvLogger's reader does not load.
        """
        if is_remote(path):
            raise ConfigError(f"{path}: EnvLogger's own reader reads disks alone; mount the bucket, or copy the log")
        with _opened(path, None) as (_, fault):
            if fault:
                raise DataError(f"{os.path.join(path, _MARKER)}: EnvLogger cannot read it: {fault}")
        if splits is not None:
            names = ", ".join((*splits.train, *(splits.held_out or ())))
            raise ConfigError(f"{path}: an EnvLogger log has no splits; leave out `splits` ({names})")
        steps = (os.path.join(path, shard, _STEPS) for shard in sorted(os.listdir(path)))
        files = tuple(
            EnvLoggerFile(path=file, name=os.path.relpath(file, below), size=os.path.getsize(file))
            for file in steps
            if os.path.isfile(file)
        )
        sample = _sample(files)
        if not sample:
            raise DataError(f"{path}: holds no episode that can be read. Record it again, or leave it out of `source`")
        return SourceDirectory(path, name, sample[0].features(sample), files, in_order=True)

    def read_all(self, max_bytes: int) -> Iterator[StoredEpisode]:
        """See ``EpisodeFile``."""
        with self._shard() as (shard, fault):
            reader = shard.reader
            if fault or not reader.num_steps:
                detail = f"the shard cannot be opened, so its recording was killed or it is damaged: {fault or 'empty'}"
                yield Stored(ByteRange(0, 0, 0, 0), None, "corrupt_length", detail, lost_bytes=self.size)
                return
            first = reader.episode(0) if reader.num_episodes else None
            begin = first.start if first else reader.num_steps
            if begin:
                detail = f"the first {begin} steps belong to no episode, so the shard's index is damaged"
                lost = lost_bytes = 0
                for ordinal in range(begin):
                    size, step = shard.step(ordinal)
                    lost += step is not None and shard.is_first(step)
                    lost_bytes += size
                place = ByteRange(reader.num_episodes, 0, 0, 0)
                yield Stored(place, None, "corrupt_length", detail, max(1, lost), min(self.size, lost_bytes))
            for position in range(reader.num_episodes):
                yield shard.read(position, max_bytes)

    def read_some(self, byte_ranges: Iterable[ByteRange]) -> Iterator[RawEpisode]:
        """See ``EpisodeFile``."""
        with self._shard() as (shard, _):
            for byte_range in byte_ranges:
                stored = shard.read(byte_range.position, byte_range.length)
                if stored.value is None or stored.byte_range != byte_range:
                    raise self.changed(byte_range)
                yield stored.value

    def sound(self, backwards: bool = False) -> "EnvLoggerEpisode | None":
        """The first sound episode with an action, or with ``backwards`` the last; None if there is none."""
        with self._shard() as (shard, _):
            positions = range(shard.reader.num_episodes)
            for position in reversed(positions) if backwards else positions:
                info = shard.reader.episode(position)
                episode = shard.read(position, 1 << 62).value if info and info.num_steps > 1 else None
                if episode is not None:
                    return episode
        return None

    def _shard(self) -> contextlib.AbstractContextManager[tuple["_Shard", str | None]]:
        directory = os.path.dirname(os.path.abspath(self.path))
        return _opened(os.path.dirname(directory), os.path.basename(directory))


def _sample(files: tuple[EnvLoggerFile, ...]) -> list["EnvLoggerEpisode"]:
    """The first sound episode of a log, and the last ones of files that lie evenly in it; empty if none is sound."""
    first = next(filter(None, (file.sound() for file in files)), None)
    if first is None:
        return []
    chosen = sorted({round(at) for at in np.linspace(0, len(files) - 1, _SAMPLED_FILES)})
    return [first, *filter(None, (files[number].sound(backwards=True) for number in chosen))]


# --- a shard -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    """EnvLogger's reader of a shard, its protobuf message ``Data``, and its decoder of such messages to Python and
    NumPy values."""

    reader: Any
    data: Any
    decode: Callable[[Any], Any]

    def read(self, position: int, max_bytes: int) -> Stored["EnvLoggerEpisode"]:
        """An episode, or its rejection."""
        unknown = ByteRange(position, 0, 0, 0)
        info = self.reader.episode(position, True) if position < self.reader.num_episodes else None
        if info is None:
            return Stored(unknown, None, "corrupt_record", "its index entry cannot be read")
        steps: list[Any] = []
        length = crc = 0
        for ordinal in range(info.start, info.start + info.num_steps):
            size, step = self.step(ordinal)
            length += size
            if length > max_bytes:
                return too_large(ByteRange(position, 0, length, 0), max_bytes)
            if step is None:
                return Stored(unknown, None, "corrupt_record", f"step {ordinal - info.start} cannot be read")
            steps.append(step)
        firsts = [ordinal for ordinal, step in enumerate(steps) if self.is_first(step)]
        if len(firsts) > 1:
            # EnvLogger joins an episode whose index entry is damaged to the one before it.
            detail = f"the shard's index is damaged: it joins {len(firsts)} episodes"
            return Stored(unknown, None, "malformed_steps", detail, len(firsts))
        if firsts != [0]:
            return Stored(unknown, None, "malformed_steps", "the first step is not marked as an episode's first")
        episode, log = self._python_message(info.metadata), self._python_message(self.reader.metadata())
        for message in (*steps, episode, log):
            # The reader's own bytes are in another order of keys every time.
            crc = google_crc32c.extend(crc, message.SerializeToString(deterministic=True))
        return Stored(ByteRange(position, 0, length, crc), EnvLoggerEpisode(steps, episode, log, self.decode))

    def step(self, ordinal: int) -> tuple[int, Any]:
        """A step's size and message; the message is None if the step is damaged."""
        data = self.reader.serialized_step(ordinal)
        if data is None:
            return 0, None
        try:
            step = self.data.FromString(data)
        except Exception:
            # Protobuf's implementations raise different types; each means that this is no step.
            return len(data), None
        is_step = len(step.tuple.values) == 3 and len(step.tuple.values[0].tuple.values) == 4
        return len(data), step if is_step else None

    def is_first(self, step: Any) -> bool:
        """Whether an episode begins with this step."""
        return bool(self.decode(_timestep(step, _STEP_TYPE)) == _FIRST)

    def _python_message(self, message: Any) -> Any:
        """A message of the native reader as one of Python's protobuf; empty if there is none."""
        return self.data() if message is None else self.data.FromString(message.SerializeToString())


@contextlib.contextmanager
def _opened(log: str, shard: str | None) -> Iterator[tuple[_Shard, str | None]]:
    """Opens one shard of a log, or with None its metadata alone. Gives the reader and what the reader could not open.

    EnvLogger opens whole logs and fails if any shard is damaged, so it gets a directory with links to this shard alone.
    """
    try:
        from envlogger.backends.python.riegeli_dataset_reader import RiegeliDatasetReader
        from envlogger.converters.codec import decode
        from envlogger.proto.storage_pb2 import Data
    except ImportError as error:
        problem = f"EnvLogger's native reader does not load ({error}); it needs libgmpxx.so.4, on Debian and Ubuntu: "
        problem += "apt-get install libgmpxx4ldbl"
        if isinstance(error, ModuleNotFoundError):
            problem = f"EnvLogger is not installed ({error}); {install_hint('envlogger')}"
        raise ConfigError(f"{log}: is an EnvLogger log, and {problem}") from None
    reader = RiegeliDatasetReader()
    with tempfile.TemporaryDirectory(prefix="gatokit-") as linked:
        for part in (_MARKER, shard):
            if part is not None:
                os.symlink(os.path.join(os.path.abspath(log), part), os.path.join(linked, part))
        fault = None
        try:
            reader.init(linked)
        except RuntimeError as error:
            fault = str(error).replace(linked + os.sep, "")
        try:
            yield _Shard(reader, Data, decode), fault
        finally:
            reader.close()


# --- an episode ----------------------------------------------------------------------------------------------


class EnvLoggerEpisode:
    """N stored steps, and the metadata of their episode and of their log.

    The last step's action, reward and discount are placeholders: zeros or empty strings.
    """

    def __init__(self, steps: list[Any], episode: Any, log: Any, decode: Callable[[Any], Any]) -> None:
        self._steps = steps
        if not episode.ByteSize() and steps:
            # Early versions of EnvLogger kept the episode's metadata in the first step.
            episode = _leaf(steps[0].tuple.values[2], _EPISODE_METADATA) or episode
        self._metadata = (episode, log)
        self._decode = decode

    def column(self, field: SourceField) -> Values:
        """See ``RawEpisode``."""
        if field.path in _FLAGS:
            flags = np.zeros(len(self._steps), bool)
            if field.path == "is_first":
                flags[0] = True
            elif field.path == "is_last":
                flags[:] = [self._decode(_timestep(step, _STEP_TYPE)) == _LAST for step in self._steps]
                # Also if the log ends before the environment's last step: that step has no action.
                flags[-1] = True
            else:
                last, discount = (self._decode(_timestep(self._steps[-1], part)) for part in (_STEP_TYPE, _DISCOUNT))
                flags[-1] = last == _LAST and discount is not None and np.all(np.asarray(discount) == 0)
            return flags
        try:
            values = [None if leaf is None else self._decode(leaf) for leaf in self._column(field.path)]
        except (ValueError, TypeError) as error:
            raise RejectedError("corrupt_record", f"steps/{field.path}: {error}") from None
        if any(value is None for value in values):
            raise RejectedError("missing_field", f"steps/{field.path} is absent from a step of the episode")
        if field.form == "string":
            return [_string(field, value) for value in values] + [b""] * (len(self._steps) - len(values))
        out = np.zeros((len(self._steps), *field.sides), field.dtype)
        for step, value in enumerate(values):
            array = np.asarray(value)
            if not _put(array, out[step : step + 1]):
                shown = f" ({array.item()})" if array.size == 1 else ""
                has = f"{array.dtype.name} of shape {array.shape}{shown}, not {field.dtype} {field.shape}"
                raise RejectedError("wrong_shape", f"steps/{field.path} holds {has}, at step {step}")
        return out

    def flags(self, field: SourceField) -> bytes:
        """See ``RawEpisode``."""
        return np.asarray(self.column(field)).astype(bool).tobytes()

    def episode_value(self, field: SourceField) -> Values:
        """See ``RawEpisode``."""
        value = self.metadata(field)
        if value is None:
            raise RejectedError("missing_field", f"{field.path} is absent from the episode")
        return [value.encode()] if isinstance(value, str) else np.array([value], field.dtype)

    def metadata(self, field: SourceField) -> str | float | int | None:
        """See ``RawEpisode``."""
        for message in self._metadata:
            leaf = _leaf(message, field.path)
            value = None if leaf is None else self._decode(leaf)
            if value is None:
                continue
            if field.form == "string":
                try:
                    return str(_string(field, value), "utf-8")
                except UnicodeDecodeError:
                    raise RejectedError("not_utf8", f"{field.path} is not valid UTF-8") from None
            number = np.asarray(value)
            if number.shape or number.dtype == object:
                raise RejectedError("wrong_shape", f"{field.path} is no number in this episode")
            return int(number) if number.dtype == bool else number.item()
        return None

    def features(self, sample: "Sequence[EnvLoggerEpisode]") -> SourceFeatures:
        """The fields of the episode, which has at least two steps, in dtypes that hold the values of all of
        ``sample``."""
        timestep, _, custom = self._decode(self._steps[0])
        following, action, _ = self._decode(self._steps[1])
        episode, log = (_dict(self._decode(message)) for message in self._metadata)
        parts = {key: value for key, value in _dict(custom).items() if key != _EPISODE_METADATA}
        parts |= {"observation": timestep[_OBSERVATION], "action": action}
        parts |= {"reward": following[_REWARD], "discount": following[_DISCOUNT]}
        specs = _dict(log.get("environment_specs"))
        steps = {}
        for path, value in _leaves(parts):
            spec = _spec(specs, path)
            steps[path] = _field(path, value, spec.get("num_values"))
            arrays = [array for item in sample for array in item._arrays(path)]
            if steps[path].form == "tensor" and arrays:
                steps[path] = steps[path].model_copy(update=_type(path, arrays, spec))
        steps |= {flag: SourceField(path=flag, dtype="bool") for flag in _FLAGS}
        metadata = {path: _field(path, value, None) for part in (log, episode) for path, value in _leaves(part)}
        scalars = [field for field in metadata.values() if field.form != "unreadable" and not field.shape]
        return SourceFeatures(
            steps=tuple(steps[path] for path in sorted(steps)),
            metadata=tuple(sorted(scalars, key=lambda field: field.path)),
        )

    def _arrays(self, path: str) -> list[np.ndarray]:
        """The numbers of a field at every step."""
        try:
            arrays = [np.asarray(self._decode(leaf)) for leaf in self._column(path) if leaf is not None]
        except (ValueError, TypeError):
            return []
        return [array for array in arrays if array.dtype.kind in "biuf"]

    def _column(self, path: str) -> list[Any]:
        """The messages of a field: N of them, or N - 1 if the last step has none."""
        head, _, rest = path.partition("/")
        if head == "observation":
            return [_leaf(_timestep(step, _OBSERVATION), rest) for step in self._steps]
        if head == "action":
            return [_leaf(step.tuple.values[1], rest) for step in self._steps[1:]]
        if head == "reward":
            return [_leaf(_timestep(step, _REWARD), rest) for step in self._steps[1:]]
        if head == "discount":
            return [_leaf(_timestep(step, _DISCOUNT), rest) for step in self._steps[1:]]
        return [_leaf(step.tuple.values[2], path) for step in self._steps]


def _timestep(step: Any, part: int) -> Any:
    return step.tuple.values[0].tuple.values[part]


def _leaf(data: Any, path: str) -> Any:
    """The message at a key path; None if there is none."""
    while path:
        values = data.dict.values
        key, _, rest = (path, "", "") if path in values else path.partition("/")
        if key not in values:
            return None
        data, path = values[key], rest
    return data


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{path}/{key}" if path else str(key))
    elif value is not None:
        yield path, value


def _field(path: str, value: Any, num: int | None) -> SourceField:
    if isinstance(value, (list, tuple)):
        return SourceField(path=path, dtype="", form="unreadable", type_name=type(value).__name__)
    array = np.asarray(value)
    if array.dtype.kind in "OUS" and not array.shape and isinstance(array.item(), (str, bytes)):
        return SourceField(path=path, dtype="str", form="string", type_name="string")
    if array.dtype.kind not in "fiub":
        return SourceField(path=path, dtype="", form="unreadable", type_name=f"{array.dtype.name} array")
    return SourceField(path=path, dtype=array.dtype.name, shape=array.shape, num=num)


def _type(path: str, arrays: list[np.ndarray], spec: dict[Any, Any]) -> dict[str, Any]:
    """dtype and shape of a field from its values and its dm_env spec, which may be empty.

    The dtype holds all values. Python's own numbers say little: a reward is 0 until it is 0.5. So if the values are
    such, the dtype also holds what the spec states, and a reward or discount is a float.
    """
    dtype = np.result_type(*{array.dtype for array in arrays})
    if dtype in (np.bool_, np.int64):
        stated = np.dtype(spec.get("dtype", dtype))
        dtype = np.result_type(dtype, stated) if stated.kind in "biuf" else dtype
    if path in ("reward", "discount") and dtype.kind != "f":
        dtype = np.dtype(np.float64)
    shapes = [array.shape for array in arrays]
    sides = spec.get("shape")  # None if there is none
    stated_shape = () if sides is None else tuple(map(int, np.ravel(sides)))
    return {"dtype": dtype.name, "shape": stated_shape if spec and stated_shape in shapes else shapes[0]}


def _spec(specs: dict[Any, Any], path: str) -> dict[Any, Any]:
    """The dm_env spec of a field as EnvLogger stores it; empty if there is none."""
    head, *rest = path.split("/")
    spec: Any = specs.get(f"{head}_spec")
    for key in rest:
        spec = _dict(spec).get(key)
    return _dict(spec) if isinstance(_dict(spec).get("dtype"), str) else {}


def _put(array: np.ndarray, out: np.ndarray) -> bool:
    """Writes the value of a step into ``out``, (1, *shape), if it fits.

    It fits if shapes differ in axes of length 1 at most and no number changes, but for the rounding of a float.
    """
    if array.dtype.kind not in "biuf" or array.size != out.size or _long(array) != _long(out):
        return False
    with np.errstate(all="ignore"):
        out[...] = array.reshape(out.shape).astype(out.dtype)
    return out.dtype.kind == "f" or array.dtype == out.dtype or np.array_equal(out, array.reshape(out.shape))


def _long(array: np.ndarray) -> list[int]:
    """The sides longer than 1."""
    return [side for side in array.shape if side != 1]


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _string(field: SourceField, value: Any) -> bytes:
    value = value.item() if isinstance(value, np.ndarray) and not value.shape else value
    if not isinstance(value, (str, bytes)):
        raise RejectedError("wrong_shape", f"{field.path} holds {type(value).__name__}, no string")
    return value.encode() if isinstance(value, str) else value
