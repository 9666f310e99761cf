"""What a policy sees and does in an environment: observations as tokens and tokens as actions, as the build made them.

Legend: B rows (episodes side by side), A action tokens of a step.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gatokit.environments.adapter import Observation
from gatokit.policy.decode import Head
from gatokit.policy.history import Span, shown_pictures
from gatokit.schemas.episode import Episode, EpisodeSpec, FieldSpec
from gatokit.schemas.errors import ConfigError, DataError, RejectedError
from gatokit.schemas.policy import Prompt
from gatokit.schemas.tokens import BINS, CONTINUOUS_OFFSET, DISCRETE_VALUES, TokenIds, TokenKind
from gatokit.tokenizers.episode import EpisodeTokenizer, FieldValues
from gatokit.tokenizers.image_codec import fit
from gatokit.tokenizers.tensors import TensorTokenizer
from gatokit.tokenizers.text import TextTokenizer


class Task(NamedTuple):
    """A task that a policy was trained on."""

    dataset: str
    name: str
    spec: EpisodeSpec
    expert_return: float
    prompt: Prompt


class Senses:
    """Observations → tokens, and tokens → actions, of one task: by the tokenizers that made the shards."""

    def __init__(self, task: Task, ids: TokenIds, text: TextTokenizer) -> None:
        """ConfigError for a spec with another number of actions than one."""
        if len(task.spec.action) != 1:
            raise ConfigError(
                f"{task.dataset}/{task.name} has {len(task.spec.action)} action fields, and a policy plays one"
            )
        self._task = task
        self._tokenizer = EpisodeTokenizer(task.spec, ids, text)
        self._action = task.spec.action[0]
        self._tensor = TensorTokenizer(self._action, ids.discrete_offset)
        continuous = self._action.kind == "continuous"
        lowest = CONTINUOUS_OFFSET if continuous else ids.discrete_offset
        number = BINS if continuous else self._action.num or DISCRETE_VALUES
        self.tokens = self._tensor.components
        """A."""
        self.head = Head(
            lowest=np.full(self.tokens, lowest, np.int32),
            number=np.full(self.tokens, number, np.int32),
            continuous=np.full(self.tokens, continuous),
            kinds=np.full(
                self.tokens, TokenKind.CONTINUOUS_ACTION if continuous else TokenKind.DISCRETE_ACTION, np.uint8
            ),
        )
        patches = [item.tokens or 0 for item in task.spec.observation if item.kind == "image"]
        self.patches = sum(patches)
        """Image patches of a step."""

    def observe(self, observations: Sequence[Observation]) -> list[Span]:
        """The tokens of each observation, and the separator; DataError names a field that cannot be tokenized."""
        steps = len(observations)
        try:
            values: dict[str, FieldValues] = {
                item.path: self._values(item, observations) for item in self._task.spec.observation
            }
            values[self._action.path] = np.zeros((steps, *self._action.shape), np.dtype(self._action.dtype))
            nothing = np.zeros(steps)
            sequence = self._tokenizer.encode(Episode("", values, nothing, None, np.zeros(steps, np.uint8)))
        except RejectedError as error:
            raise DataError(f"{self._task.dataset}/{self._task.name}: an observation's {error.detail}") from None
        begins = sequence.step_begin.astype(np.int64)
        ends = np.append(begins[1:], len(sequence.tokens)) - self.tokens
        pictures = [(placed.token, placed.image) for placed in sequence.images]
        return [
            Span.of(
                sequence.tokens[begin:end],
                sequence.kinds[begin:end],
                sequence.positions[begin:end],
                shown_pictures([(token - begin, image) for token, image in pictures if begin <= token < end]),
            )
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        ]

    def actions(self, ids: np.ndarray) -> np.ndarray:
        """The actions (B, *shape) of ids (B, A), in the data's units and dtype."""
        return self._tensor.decode(ids).astype(np.dtype(self._action.dtype))

    @staticmethod
    def _values(item: FieldSpec, observations: Sequence[Observation]) -> FieldValues:
        name = item.path.removeprefix("observation/")
        values = [observation[name] for observation in observations]
        if item.kind == "text":
            return values
        if item.image is not None:
            rule = item.image
            return [fit(np.asarray(value), rule) for value in values]
        return np.stack([np.asarray(value) for value in values])


def check_same_spec(task: Task, spec: EpisodeSpec) -> None:
    """ConfigError where an environment lacks a field of the task's data, or has it of another kind, shape or range."""
    there = {item.path: item for item in spec.fields}
    for wanted in task.spec.fields:
        found = there.get(wanted.path)
        if found is None:
            raise ConfigError(
                f"{task.dataset}/{task.name}: the data has the field {wanted.path}, and the environment has not; it "
                f"has {', '.join(there)}"
            )
        for name, ours, theirs in _compared(wanted, found):
            if ours != theirs:
                raise ConfigError(
                    f"{task.dataset}/{task.name}: {wanted.path} has {name} {ours} in the data and {theirs} in the "
                    "environment: the policy plays only what it was trained on"
                )


def _compared(ours: FieldSpec, theirs: FieldSpec) -> list[tuple[str, Any, Any]]:
    compared: list[tuple[str, Any, Any]] = [("kind", ours.kind, theirs.kind), ("shape", ours.shape, theirs.shape)]
    if ours.is_action and ours.kind == theirs.kind == "discrete":
        compared.append(("num", ours.num, theirs.num))
    if ours.is_action and ours.kind == theirs.kind == "continuous":
        compared.append(("range", _ranges(ours), _ranges(theirs)))
    return compared


def _ranges(field: FieldSpec) -> list[tuple[float, float]]:
    pairs = [(float(low), float(high)) for low, high in field.range or ((-1.0, 1.0),)]
    return pairs * (math.prod(field.shape) if len(pairs) == 1 else 1)
