"""An episode of an EnvLogger log. Its steps are stored in dm_env order and given in RLDS order.

A stored step is (timestep, action, custom data), its timestep (step type, reward, discount, observation): an
observation with the action and reward that led to it. RLDS puts the action that answers an observation, and the
reward that follows, beside it. Legend: N recorded steps, the last one included.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gatokit.pipelines.episodes.reader import SourceFeatures, SourceField, Values
from gatokit.schemas.errors import RejectedError

Decode = Callable[[Any], Any]
"""EnvLogger's decoder of a message to Python and NumPy values."""

_FIRST, _LAST = 0, 2
_STEP_TYPE, _REWARD, _DISCOUNT, _OBSERVATION = range(4)
_EPISODE_METADATA = "episode_metadata"
_FLAGS = ("is_first", "is_last", "is_terminal")


class EnvLoggerEpisode:
    """N stored steps, and the metadata of their episode and of their log.

    The last step's action, reward and discount are placeholders: zeros or empty strings.
    """

    def __init__(self, steps: list[Any], episode: Any, log: Any, decode: Decode) -> None:
        self._steps = steps
        if not episode.ByteSize() and steps:
            # Early versions of EnvLogger kept the episode's metadata in the first step.
            episode = _leaf(steps[0].tuple.values[2], _EPISODE_METADATA) or episode
        self._metadata = (episode, log)
        self._decode = decode

    def column(self, field: SourceField) -> Values:
        """See ``RawEpisode``."""
        if field.path in _FLAGS:
            return self._flag(field.path)
        try:
            values = [None if leaf is None else self._decode(leaf) for leaf in self._column(field.path)]
        except (ValueError, TypeError) as error:
            raise RejectedError("corrupt_record", f"steps/{field.path}: {error}") from None
        if any(value is None for value in values):
            raise RejectedError("missing_field", f"steps/{field.path} is absent from a step of the episode")
        if field.form == "string":
            return [_string(field, value) for value in values] + [b""] * (len(self._steps) - len(values))
        out = np.zeros((len(self._steps), *(side for side in field.shape if side is not None)), field.dtype)
        for step, value in enumerate(values):
            out[step] = _checked(field, value, out)
        return out

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

    def features(self) -> SourceFeatures:
        """The fields of the episode, which has at least two steps."""
        timestep, _, custom = self._decode(self._steps[0])
        following, action, _ = self._decode(self._steps[1])
        episode, log = (_dict(self._decode(message)) for message in self._metadata)
        parts = {key: value for key, value in _dict(custom).items() if key != _EPISODE_METADATA}
        parts |= {"observation": timestep[_OBSERVATION], "action": action}
        parts |= {"reward": following[_REWARD], "discount": following[_DISCOUNT]}
        specs = _dict(log.get("environment_specs"))
        steps = {path: _field(path, value, _num(specs, path)) for path, value in _leaves(parts)}
        steps |= {flag: SourceField(path=flag, dtype="bool") for flag in _FLAGS}
        metadata = {path: _field(path, value, None) for part in (log, episode) for path, value in _leaves(part)}
        return SourceFeatures(
            steps=tuple(steps[path] for path in sorted(steps)),
            metadata=tuple(
                metadata[path]
                for path in sorted(metadata)
                if metadata[path].form != "unreadable" and not metadata[path].shape
            ),
        )

    def _column(self, path: str) -> list[Any]:
        """The messages of a field: N of them, or N - 1 if the last step has none."""
        head, _, rest = path.partition("/")
        if head == "observation":
            return [_leaf(_timestep(step, _OBSERVATION), rest) for step in self._steps]
        if head == "action":
            return [_leaf(step.tuple.values[1], rest) for step in self._steps[1:]]
        if head in ("reward", "discount"):
            part = _REWARD if head == "reward" else _DISCOUNT
            return [_leaf(_timestep(step, part), rest) for step in self._steps[1:]]
        return [_leaf(step.tuple.values[2], path) for step in self._steps]

    def _flag(self, name: str) -> np.ndarray:
        out = np.zeros(len(self._steps), bool)
        if name == "is_first":
            out[0] = True
        elif name == "is_last":
            # Also if the log ends before the environment's last step: that step has no action.
            out[-1] = True
        else:
            last, discount = (self._decode(_timestep(self._steps[-1], part)) for part in (_STEP_TYPE, _DISCOUNT))
            out[-1] = last == _LAST and discount is not None and np.all(np.asarray(discount) == 0)
        return out


def is_step(step: Any) -> bool:
    """Whether a message has the parts of a step."""
    return len(step.tuple.values) == 3 and len(step.tuple.values[0].tuple.values) == 4


def is_first(step: Any, decode: Decode) -> bool:
    """Whether an episode begins with this step."""
    return bool(decode(_timestep(step, _STEP_TYPE)) == _FIRST)


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


def _num(specs: dict[Any, Any], path: str) -> int | None:
    """The number of values of a field, if its dm_env spec is a ``DiscreteArray``."""
    head, *rest = path.split("/")
    spec: Any = specs.get(f"{head}_spec")
    for key in rest:
        spec = _dict(spec).get(key)
    num = _dict(spec).get("num_values")
    return None if num is None else int(num)


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _string(field: SourceField, value: Any) -> bytes:
    value = value.item() if isinstance(value, np.ndarray) and not value.shape else value
    if not isinstance(value, (str, bytes)):
        raise RejectedError("wrong_shape", f"{field.path} holds {type(value).__name__}, no string")
    return value.encode() if isinstance(value, str) else value


def _checked(field: SourceField, value: Any, out: np.ndarray) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != out.shape[1:] or not np.can_cast(array.dtype, out.dtype, "same_kind"):
        raise RejectedError(
            "wrong_shape",
            f"steps/{field.path} holds {array.dtype.name} of shape {array.shape}, not {field.dtype} {field.shape}",
        )
    return array
