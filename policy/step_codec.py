"""Observations → tokens, and tokens → actions, as the build made them.

Legend: B rows (episodes side by side), A action tokens of a step.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gatokit.environments.adapter import Observation
from gatokit.policy.decode import ActionSpace
from gatokit.policy.spans import Span
from gatokit.schemas.errors import ConfigError, DataError, RejectedError
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec, TokenizerSettings
from gatokit.schemas.policy import Prompt
from gatokit.schemas.tokens import BINS, CONTINUOUS_OFFSET, DISCRETE_VALUES, TokenKind
from gatokit.tokenizers.episode import EpisodeTokenizer, FieldValues
from gatokit.tokenizers.frames import store_frame
from gatokit.tokenizers.tensors import TensorTokenizer
from gatokit.tokenizers.text import TextTokenizer, text_of_codes


class Task(NamedTuple):
    """A task that a policy was trained on."""

    dataset: str
    name: str
    spec: EpisodeSpec
    expert_return: float | None
    prompt: Prompt

    @property
    def full_name(self) -> str:
        """``dataset/task``."""
        return f"{self.dataset}/{self.name}"


class StepCodec:
    """Tokenizes the observations of one task and decodes its actions, with the tokenizers that made the shards."""

    def __init__(self, task: Task, settings: TokenizerSettings, text: TextTokenizer | None) -> None:
        """Raises ConfigError if the task does not have exactly one action field."""
        if len(task.spec.action) != 1:
            raise ConfigError(f"{task.full_name} has {len(task.spec.action)} action fields, and a policy plays one")
        self._task = task
        self._action = task.spec.action[0]
        self._observations = EpisodeTokenizer(task.spec, settings, text, actions=False)
        self._actions = TensorTokenizer(self._action, settings.discrete_offset)
        self.tokens = self._actions.components
        """A."""
        continuous = self._action.kind == "continuous"
        kind = TokenKind.CONTINUOUS_ACTION if continuous else TokenKind.DISCRETE_ACTION
        number = BINS if continuous else self._action.num or DISCRETE_VALUES
        self.space = ActionSpace(
            lowest=np.full(self.tokens, CONTINUOUS_OFFSET if continuous else settings.discrete_offset, np.int32),
            number=np.full(self.tokens, number, np.int32),
            continuous=np.full(self.tokens, continuous),
            kinds=np.full(self.tokens, kind, np.uint8),
        )
        self.patches = sum(field.tokens or 0 for field in task.spec.observation if field.kind == "image")
        """Image patches of a step."""

    def encode(self, observations: Sequence[Observation], is_first: Sequence[bool]) -> list[Span]:
        """The tokens of each observation and the separator behind it.

        ``is_first`` marks those that begin an episode, in which alone some texts stand. Raises DataError that names a
        field which cannot be tokenized.
        """
        try:
            values = {field.path: _values(field, observations, is_first) for field in self._task.spec.observation}
            sequence = self._observations.encode(values, len(observations))
        except RejectedError as error:
            raise DataError(f"{self._task.full_name}: an observation's {error.detail}") from None
        begins = sequence.step_begin.tolist()
        return [
            Span.of(sequence, begin, end)
            for begin, end in zip(begins, [*begins[1:], len(sequence.tokens)], strict=True)
        ]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """The actions (B, *shape) of ids (B, A), in the data's units and dtype."""
        return self._actions.decode(ids).astype(np.dtype(self._action.dtype))


def _values(field: FieldSpec, observations: Sequence[Observation], is_first: Sequence[bool]) -> FieldValues:
    """A field of all observations, as the tokenizer takes it."""
    name = field.path.removeprefix("observation/")
    values = [observation[name] for observation in observations]
    if field.kind == "text":
        try:
            texts = [value if isinstance(value, str) else text_of_codes(np.asarray(value)) for value in values]
        except ValueError:
            raise RejectedError("not_utf8", f"field {field.path} holds no codes of a text") from None
        return [text if first or field.every == "step" else "" for text, first in zip(texts, is_first, strict=True)]
    if field.image is not None:
        return [store_frame(value if isinstance(value, bytes) else np.asarray(value), field)[0] for value in values]
    if field.max_length is not None:
        return np.stack([_filled(np.asarray(value), field) for value in values])
    return np.stack([np.asarray(value) for value in values])


def _filled(values: np.ndarray, field: FieldSpec) -> np.ndarray:
    """Values filled up with zeros to ``max_length``."""
    if len(values) > field.shape[0]:
        raise RejectedError("wrong_shape", f"field {field.path} has {len(values)} values, not {field.shape[0]} at most")
    filled = np.zeros((field.shape[0], *values.shape[1:]), values.dtype)
    filled[: len(values)] = values
    return filled


def check_same_spec(task: Task, spec: EpisodeSpec) -> None:
    """Raises ConfigError if an environment lacks a field of the task's data, or has it with another kind, shape, number
    of actions or range of actions."""
    fields = {field.path: field for field in spec.fields}
    for ours in task.spec.fields:
        theirs = fields.get(ours.path)
        if theirs is None:
            raise ConfigError(
                f"{task.full_name}: the data has the field {ours.path}, and the environment has not; it has "
                f"{', '.join(fields)}"
            )
        compared: list[tuple[str, Any, Any]] = [("kind", ours.kind, theirs.kind), ("shape", ours.shape, theirs.shape)]
        if ours.is_action and ours.kind == "discrete":
            compared += [("num", ours.num, theirs.num), ("offset", ours.offset, theirs.offset)]
        elif ours.is_action:
            compared.append(("range", _ranges(ours), _ranges(theirs)))
        for name, in_data, found in compared:
            if in_data != found:
                raise ConfigError(
                    f"{task.full_name}: {ours.path} has {name} {in_data} in the data and {found} in the environment: "
                    "the policy plays only what it was trained on"
                )


def _ranges(field: FieldSpec) -> list[tuple[float, float]]:
    """The range of each component."""
    pairs = [(float(low), float(high)) for low, high in field.range or ((-1.0, 1.0),)]
    return pairs * (math.prod(field.shape) if len(pairs) == 1 else 1)
