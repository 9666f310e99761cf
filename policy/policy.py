"""Deployment (Gato, section 2.4): a checkpoint that plays the tasks it was trained on.

The policy first reads a demonstration. Then, one time step at a time, the observation is tokenized as the build did it,
and the action's tokens are chosen one by one and decoded. With a cache of keys and values a step costs only its own
tokens.

Legend: B rows (episodes side by side), A action tokens of a step, M tokens of context, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gatokit.environments.adapter import Action, Observation
from gatokit.policy.cache import Cache, distance_keys, empty_cache
from gatokit.policy.decode import Rule, act, read
from gatokit.policy.spans import Span, concatenate, make_batch, private_number, read_prompt
from gatokit.policy.step_codec import StepCodec, Task, check_same_spec
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import VOCABULARY, EpisodeSpec, digest
from gatokit.schemas.policy import PROMPTS, PolicyFile
from gatokit.schemas.run import RunConfig
from gatokit.storage.folder import read_policy, regular_file
from gatokit.storage.run_directory import policy_folder
from gatokit.tokenizers.text import TextTokenizer
from gatokit.trainer.attention import Tree
from gatokit.trainer.export import abstract, load_weights
from gatokit.trainer.model import check_positions, parameter_table

_TOKENS_PER_READ = 128
"""Tokens of a prompt or a text that one call of the model reads."""
_MULTIPLE = 8
"""Lengths of batches are multiples of it, or powers of two from it on, so that few programs are compiled."""


@dataclass(frozen=True)
class Decoding:
    """How a policy acts."""

    rule: Rule = "median"
    """How an id is chosen. ``median`` takes the first bin of a continuous action at which the cumulative probability
    reaches one half, and samples discrete actions; ``greedy`` takes the likeliest of both; ``sample``, as in the paper,
    samples both."""
    temperature: float = 1.0
    """Logits are divided by it, except with ``greedy``."""
    mask: bool = True
    """Only ids of the action's spec are chosen. Without the mask, any other id is replaced by the nearest valid one."""
    memory: Literal["memory", "window"] = "memory"
    """``memory`` caches keys and values of the last M tokens; ``window`` reads the last whole steps that fit into M
    again for every action."""
    prompt_tokens: int | None = None
    """Most tokens of the demonstration, which is cut at its last whole step; None: half of the context."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"the temperature is above 0, not {self.temperature}; for the likeliest, decode greedily")
        if self.prompt_tokens is not None and self.prompt_tokens < 0:
            raise ConfigError(f"a prompt has 0 tokens or more, not {self.prompt_tokens}")


@dataclass(frozen=True)
class Policy:
    """Parameters, and everything else that a policy needs to act; made by ``load_policy``."""

    path: Path
    file: PolicyFile
    params: Tree
    text: TextTokenizer | None
    """None if the policy was trained on data without text."""
    demonstrations: Path
    """The file that prompts are read from."""

    @property
    def config(self) -> RunConfig:
        """The config of the run."""
        return self.file.config

    @cached_property
    def model(self) -> dict[str, Any]:
        """The keyword arguments that the functions of ``policy.decode`` share: the model's config, the dtype of matrix
        products, and the relative positions of a full cache.

        The dtype is the run's, except on CPUs, where bfloat16 is slower than float32.
        """
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.dtype(self.config.precision)
        of_distances = jax.jit(distance_keys, static_argnums=(1, 2, 3))
        distances = of_distances(self.params, self.config.model, self.config.context, dtype)
        return {"config": self.config.model, "dtype": dtype, "distances": distances}

    def read(self, span: Span) -> tuple[jax.Array | None, Cache]:
        """The hidden state (1, D) of a span's last token (None if it has no tokens), and a cache of one row that has
        read it."""
        cache, state = self.empty_cache(1), None
        slots = _TOKENS_PER_READ if len(span.patches.token) else 0
        for begin in range(0, span.size, _TOKENS_PER_READ):
            part = span.part(begin, min(begin + _TOKENS_PER_READ, span.size))
            batch = make_batch([part], _TOKENS_PER_READ, slots)
            check_positions(batch)
            state, cache = read(self.params, batch, cache, **self.model)
        return state, cache

    def empty_cache(self, rows: int) -> Cache:
        """A cache of M tokens for ``rows`` rows."""
        return empty_cache(self.config.model, rows, self.config.context, self.model["dtype"])

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks of the policy; DataError if the spec of one is missing."""
        tasks = []
        for dataset, described in self.file.datasets.items():
            for name, task in described.tasks.items():
                if task.spec not in described.specs:
                    raise DataError(
                        f"{self.path}: policy.json has no spec {task.spec} of the task {dataset}/{name}: export the "
                        "weights again from the run that trained them"
                    )
                tasks.append(Task(dataset, name, described.specs[task.spec], task.expert_return, task.prompt))
        return tuple(tasks)

    def find(self, name: str) -> Task:
        """The task of an environment's name ``family/task``, or of ``dataset/task``; ConfigError lists the tasks."""
        short = name.partition("/")[2]
        matching = [task for task in self.tasks if name in (task.name, task.full_name)]
        matching = matching or [task for task in self.tasks if task.name == short]
        if len(matching) == 1:
            return matching[0]
        if matching:
            several = ", ".join(task.full_name for task in matching)
            raise ConfigError(f"{self.path} was trained on several tasks {short}: name one of {several}")
        known = ", ".join(task.full_name for task in self.tasks) or "no task that acts"
        raise ConfigError(f"{self.path} was not trained on {name}; it was on {known}")

    def player(self, task: Task, spec: EpisodeSpec, rows: int, decoding: Decoding | None = None) -> "Player":
        """A player of ``rows`` episodes of a task, side by side, in environments of ``spec``.

        Raises ConfigError if the environment's spec is not that of the data.
        """
        check_same_spec(task, spec)
        return Player(self, task, rows, decoding or Decoding())


def load_policy(path: Path) -> Policy:
    """The policy of a run's directory (its newest checkpoint), of a checkpoint or of an export.

    Raises ConfigError if ``path`` does not exist, and DataError if a part of the policy is missing or damaged.
    """
    if not path.exists():
        raise ConfigError(f"there is no {path}: give a run's directory, one of its checkpoints or an export")
    folder = policy_folder(path)
    file = read_policy(folder)
    text = None if file.vocabulary_blake2b is None else TextTokenizer.load(_file(folder, VOCABULARY))
    if text is not None and digest(text.model) != file.vocabulary_blake2b:
        raise DataError(f"{folder / VOCABULARY} is not the vocabulary that policy.json names: it was replaced")
    table = parameter_table(file.config.model, file.tokenizer.vocabulary_size)
    return Policy(path, file, load_weights(path, abstract(table)), text, _file(folder, PROMPTS))


def _file(folder: Path, name: str) -> Path:
    """The path of a regular file of a policy. Raises DataError if it is missing."""
    try:
        return regular_file(folder, name)
    except OSError as error:
        raise DataError(f"{folder / name} cannot be read: {error.strerror}; export the weights again") from None


@dataclass
class _Row:
    """One episode that is being played."""

    key: np.ndarray
    before: list[Span]
    """With memory what the cache has not read yet, with windows a span for each step so far."""
    steps: int = 0


class Player:
    """Plays B episodes of one task side by side; made by ``Policy.player``."""

    def __init__(self, policy: Policy, task: Task, rows: int, decoding: Decoding) -> None:
        config = policy.config
        self._policy, self._decoding = policy, decoding
        self._task, self._codec = task, StepCodec(task, policy.file.tokenizer, policy.text)
        self._context, self._in_windows = config.context, decoding.memory == "window"
        self._hide = config.input.hide_actions > 0
        tokens = config.context // 2 if decoding.prompt_tokens is None else decoding.prompt_tokens
        self._prompt = read_prompt(policy.demonstrations, task.prompt, tokens, self._codec.tokens, self._hide)
        self._rows: list[_Row | None] = [None] * rows
        self._cache = policy.empty_cache(rows)
        self._prompt_cache: Cache | None = None
        self.invalid = 0
        """Chosen ids that were not valid for the action; only without a mask."""

    @property
    def rows(self) -> int:
        """B."""
        return len(self._rows)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the demonstration that are read."""
        return sum(span.size for span in self._prompt)

    def begin(self, row: int, seed: int) -> None:
        """Starts a new episode in a row: forgets the old one and reads the prompt.

        ``seed`` decides the row's draws; they do not depend on the other rows.
        """
        key = np.asarray(jax.random.key_data(jax.random.key(seed)))
        self._rows[row] = _Row(key, list(self._prompt) if self._in_windows else [])
        if not self._in_windows:
            if self._prompt_cache is None:
                _, self._prompt_cache = self._policy.read(concatenate(self._prompt))
            self._cache = _copy_row(self._cache, self._prompt_cache, row)

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        """The actions of the rows that have an observation, by one call of the model; the other rows do not move.

        Raises RuntimeError for a row that was not begun, and DataError for an observation that cannot be tokenized or
        is longer than the context.
        """
        policy, codec, order = self._policy, self._codec, sorted(observations)
        states = [self._rows[row] for row in order]
        is_first = [state is not None and state.steps == 0 for state in states]
        observed = codec.encode([observations[row] for row in order], is_first)
        spans: list[Span | None] = [None] * self.rows
        private = np.zeros(self.rows, np.int32)
        steps = np.zeros(self.rows, np.int32)
        keys = np.zeros((self.rows, 2), np.uint32)
        for row, span in zip(order, observed, strict=True):
            state = self._rows[row]
            if state is None:
                raise RuntimeError(f"row {row} was not begun")
            left = self._context - span.size - (codec.tokens - 1)
            if left < 0:
                raise DataError(
                    f"{self._task.full_name}: a time step has {span.size + codec.tokens} tokens, more than the "
                    f"policy's context of {self._context}"
                )
            if self._in_windows:
                # The newest whole steps that fit into the context together with the observation and the action.
                first = len(state.before)
                while first > 0 and state.before[first - 1].size <= left:
                    first -= 1
                    left -= state.before[first].size
                del state.before[:first]
            spans[row] = concatenate([*state.before, span])
            private[row] = private_number(len(self._prompt) + state.steps) if self._hide else 0
            steps[row], keys[row] = state.steps, state.key

        longest = max((span.size for span in spans if span is not None), default=1)
        if self._in_windows:
            patches = max((len(span.patches.token) for span in spans if span is not None), default=0)
            length, slots = min(_power(longest), self._context), _power(patches)
            cache = policy.empty_cache(self.rows)
        else:
            length, slots = -(-longest // _MULTIPLE) * _MULTIPLE, codec.patches
            cache = self._cache
        batch = make_batch(spans, length, slots)
        check_positions(batch)
        chosen, cache = act(
            policy.params,
            batch,
            cache,
            codec.space,
            private,
            keys,
            steps,
            jnp.float32(self._decoding.temperature),
            rule=self._decoding.rule,
            mask=self._decoding.mask,
            vocabulary_size=policy.file.tokenizer.vocabulary_size,
            **policy.model,
        )
        if not self._in_windows:
            self._cache = cache

        ids = np.asarray(chosen)[order]
        valid = np.clip(ids, codec.space.lowest, codec.space.lowest + codec.space.number - 1)
        self.invalid += int(np.count_nonzero(valid != ids))
        for row, span, action_ids in zip(order, observed, valid, strict=True):
            state = self._rows[row]
            assert state is not None
            action = Span.of_actions(action_ids, codec.space.kinds, int(private[row]))
            if self._in_windows:
                state.before.append(concatenate([span, action]))
            else:
                state.before = [action.part(action.size - 1, action.size)]
            state.steps += 1
        return dict(zip(order, codec.decode(valid.astype(np.uint16)), strict=True))


@partial(jax.jit, donate_argnums=0)
def _copy_row(cache: Cache, one: Cache, row: int) -> Cache:
    """``cache`` with the only row of ``one`` as its row ``row``."""
    return Cache(
        cache.keys.at[:, row].set(one.keys[:, 0]),
        cache.values.at[:, row].set(one.values[:, 0]),
        cache.private.at[row].set(one.private[0]),
        cache.length.at[row].set(one.length[0]),
    )


def _power(count: int) -> int:
    """The least power of two that is ``count`` or more, and at least ``_MULTIPLE``; 0 for 0."""
    return max(_MULTIPLE, 1 << (count - 1).bit_length()) if count else 0
