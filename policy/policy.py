"""Deployment (Gato, section 2.4): a checkpoint that plays the tasks it was trained on.

A demonstration is read first; then, a time step at a time, the observation is tokenized as the build did it, the
action's tokens are chosen one by one and decoded. A memory of keys and values makes a step cost its own tokens only.

Legend: B rows (episodes side by side), A action tokens of a step, M tokens of context.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gatokit.environments.adapter import Action, Observation
from gatokit.loader.records import OpenShards, Shard
from gatokit.policy.decode import Choice, Rule, decide, read
from gatokit.policy.history import PRIVATE_NUMBERS, Span, batch_of, joined, shown_pictures
from gatokit.policy.step_codec import Senses, Task, check_same_spec
from gatokit.schemas.digests import digest
from gatokit.schemas.episode import EpisodeSpec
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import VOCABULARY
from gatokit.schemas.policy import PROMPTS, PolicyFile
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import EncodedImage, TokenIds
from gatokit.tokenizers.text import TextTokenizer
from gatokit.trainer.attention import Tree
from gatokit.trainer.decoding import Cache, distance_keys, empty_cache
from gatokit.trainer.export import abstract, load_weights, policy_folder
from gatokit.trainer.model import check_positions, parameter_table

_PIECE = 128
"""Tokens that are read at a time."""
_MULTIPLE = 8
"""Of the lengths of batches, and the least power of two that windows take, so that few programs are compiled."""


@dataclass(frozen=True)
class Decoding:
    """How a policy acts."""

    rule: Rule = "median"
    """Of continuous actions: ``median`` is the first bin at which the cumulative probability reaches one half, with
    which discrete actions are sampled; ``greedy`` takes the likeliest of both; ``sample``, the paper's, draws both."""
    temperature: float = 1.0
    """Logits are divided by it, but for the largest."""
    mask: bool = True
    """Only ids of the action's spec are chosen. Without, others are taken for the nearest that is one."""
    memory: Literal["memory", "window"] = "memory"
    """Keys and values of the last M tokens are kept, or the last whole steps that fit into M are read anew."""
    prompt_tokens: int | None = None
    """Tokens of the demonstration, cut at the last whole step; None: half of the context."""
    hide_actions: bool | None = None
    """Past actions are hidden; None: where they were in training."""
    pin_prompt: bool = False
    """In window mode the prompt stays when the oldest steps fall out."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"the temperature is above 0, not {self.temperature}; for the largest, decode greedily")
        if self.prompt_tokens is not None and self.prompt_tokens < 0:
            raise ConfigError(f"a prompt has 0 tokens or more, not {self.prompt_tokens}")


@dataclass(frozen=True)
class Policy:
    """Parameters and all that is needed to act with them; made by ``load_policy``."""

    path: Path
    file: PolicyFile
    params: Tree
    text: TextTokenizer
    demonstrations: Path
    """The file that prompts are read from."""

    @property
    def config(self) -> RunConfig:
        """The run's."""
        return self.file.config

    @property
    def ids(self) -> TokenIds:
        """The id ranges of the build."""
        return TokenIds(self.file.tokenizer.discrete_offset)

    @property
    def dtype(self) -> Any:
        """Of matrix products: the run's, but float32 on CPUs, where bfloat16 is slower."""
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.dtype(self.config.precision)

    @cached_property
    def distances(self) -> jax.Array | None:
        """``distance_keys`` of the memory."""
        make = jax.jit(distance_keys, static_argnums=(1, 2, 3))
        return make(self.params, self.config.model, self.config.context, self.dtype)

    def read(self, span: Span) -> tuple[jax.Array | None, Cache]:
        """A cache of one row that has read a span, and the hidden state (1, D) of its last token; None of no tokens."""
        cache, state = self.empty_cache(1), None
        slots = _PIECE if len(span.shown.token) else 0
        for begin in range(0, span.size, _PIECE):
            batch = batch_of([span.part(begin, min(begin + _PIECE, span.size))], _PIECE, slots)
            check_positions(batch)
            state, cache = read(
                self.params, batch, cache, config=self.config.model, dtype=self.dtype, distances=self.distances
            )
        return state, cache

    def empty_cache(self, rows: int) -> Cache:
        """A memory of the context's length for ``rows`` rows."""
        return empty_cache(self.config.model, rows, self.config.context, self.dtype)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """All of them; DataError where one lacks its spec."""
        found = []
        for dataset, described in self.file.datasets.items():
            for name, task in described.tasks.items():
                if task.spec not in described.specs:
                    raise DataError(
                        f"{self.path}: policy.json has no spec {task.spec} of the task {dataset}/{name}: export the "
                        "weights again from the run that trained them"
                    )
                found.append(Task(dataset, name, described.specs[task.spec], task.expert_return, task.prompt))
        return tuple(found)

    def find(self, name: str) -> Task:
        """The task of an environment's name ``family/task``, or of ``dataset/task``; ConfigError lists the tasks."""
        short = name.partition("/")[2]
        found = [task for task in self.tasks if name in (task.name, f"{task.dataset}/{task.name}")]
        found = found or [task for task in self.tasks if task.name == short]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(f"{task.dataset}/{task.name}" for task in found)
            raise ConfigError(f"{self.path} was trained on several tasks {short}: name one of {several}")
        known = ", ".join(f"{task.dataset}/{task.name}" for task in self.tasks) or "no task that acts"
        raise ConfigError(f"{self.path} was not trained on {name}; it was on {known}")

    def player(self, task: Task, spec: EpisodeSpec, rows: int, decoding: Decoding | None = None) -> "Player":
        """Plays ``rows`` episodes of a task side by side in environments of ``spec``.

        ConfigError where the environment's spec is not the one of the data, or a step does not fit into the context.
        """
        check_same_spec(task, spec)
        return Player(self, task, rows, decoding or Decoding())


def load_policy(path: Path) -> Policy:
    """The policy of a run's directory (its newest checkpoint), of a checkpoint or of an export.

    ConfigError where ``path`` is not there; DataError where something of it is missing or damaged.
    """
    if not path.exists():
        raise ConfigError(f"there is no {path}: give a run's directory, one of its checkpoints or an export")
    folder = policy_folder(path)
    file = PolicyFile.read(folder)
    text = TextTokenizer.load(folder / VOCABULARY)
    if digest(text.model) != file.vocabulary_blake2b:
        raise DataError(f"{folder / VOCABULARY} is not the vocabulary that policy.json names: it was replaced")
    table = parameter_table(file.config.model, file.tokenizer.vocabulary_size)
    return Policy(path, file, load_weights(path, abstract(table)), text, folder / PROMPTS)


def demonstration(policy: Policy, task: Task, senses: Senses, tokens: int, hide: bool) -> list[Span]:
    """The first whole steps of the task's demonstration, of at most ``tokens`` tokens (Gato, section 2.4), one span
    each; ``hide`` as in ``Span.actions``.

    DataError where the demonstration is missing or damaged.
    """
    spans: list[Span] = []
    if not tokens:
        return spans
    path, prompt = policy.demonstrations, task.prompt
    if not path.exists():
        raise DataError(
            f"{path} is missing, which holds the demonstrations: take the policy's folder of the run, or play without "
            "a prompt"
        )
    records = sum(task.prompt.records for task in policy.tasks)
    shards = OpenShards([Shard(str(path), records, 0)], 1)
    left = tokens
    for ordinal in range(prompt.first_record, prompt.first_record + prompt.records):
        [chunk] = shards.read(0, ordinal, ordinal + 1)
        try:
            pictures = [
                (picture.token, EncodedImage(picture.data, picture.height, picture.width))
                for picture in chunk.images(0, len(chunk.tokens))
            ]
        except ValueError as error:
            raise shards.damaged_record(0, ordinal, error) from None
        begins = chunk.step_begin.astype(np.int64).tolist()
        for begin, end in zip(begins, [*begins[1:], len(chunk.tokens)], strict=True):
            if end - begin > left:
                return spans
            left -= end - begin
            shown = shown_pictures([(token - begin, image) for token, image in pictures if begin <= token < end])
            acts = end - senses.tokens
            seen = Span.of(chunk.tokens[begin:acts], chunk.kinds[begin:acts], chunk.positions[begin:acts], shown)
            number = _private(len(spans)) if hide else 0
            spans.append(joined([seen, Span.actions(chunk.tokens[acts:end], chunk.kinds[acts:end], number)]))
    return spans


@dataclass
class _Row:
    """One episode under way: ``history`` holds a span for each step in window mode, ``pending`` what memory lacks."""

    key: np.ndarray
    steps: int = 0
    pending: Span = field(default_factory=Span.none)
    history: list[Span] = field(default_factory=list)


class Player:
    """Plays B episodes of one task side by side; ``Policy.player`` makes it."""

    def __init__(self, policy: Policy, task: Task, rows: int, decoding: Decoding) -> None:
        config = policy.config
        self._policy, self._decoding = policy, decoding
        self._senses = senses = Senses(task, policy.ids, policy.text)
        self._context = config.context
        hide = decoding.hide_actions
        self._hide = config.input.hide_actions > 0 if hide is None else hide
        tokens = config.context // 2 if decoding.prompt_tokens is None else decoding.prompt_tokens
        if decoding.pin_prompt:
            tokens = min(tokens, config.context // 2)
        self._prompt = demonstration(policy, task, senses, tokens, self._hide)
        self._rows: list[_Row | None] = [None] * rows
        self._where = f"{task.dataset}/{task.name}"
        self._cache = policy.empty_cache(rows)
        self._read: Cache | None = None
        self.invalid = 0
        """Ids chosen without a mask that are no action's."""

    @property
    def rows(self) -> int:
        """B."""
        return len(self._rows)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the demonstration that are read."""
        return sum(span.size for span in self._prompt)

    def begin(self, row: int, seed: int) -> None:
        """Forgets a row's episode and reads the prompt. ``seed`` decides the row's draws, whatever is beside it."""
        key = np.asarray(jax.random.key_data(jax.random.key(seed)))
        self._rows[row] = _Row(key=key, history=list(self._prompt) if self._windows else [])
        if not self._windows:
            if self._read is None:
                _, self._read = self._policy.read(joined(self._prompt))
            self._cache = _put(self._cache, self._read, row)

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        """The actions of the rows that have an observation, by one call of the model; the others do not move.

        RuntimeError for a row that was not begun; DataError for an observation that cannot be tokenized or is longer
        than the context.
        """
        order = sorted(observations)
        spans: list[Span | None] = [None] * self.rows
        private = np.zeros(self.rows, np.int32)
        steps = np.zeros(self.rows, np.int32)
        keys = np.zeros((self.rows, 2), np.uint32)
        seen = self._senses.observe([observations[row] for row in order])
        for row, span in zip(order, seen, strict=True):
            state = self._state(row)
            if span.size + self._senses.tokens - 1 > self._context:
                raise DataError(
                    f"{self._where}: a time step has {span.size + self._senses.tokens} tokens, more than the policy's "
                    f"context of {self._context}"
                )
            spans[row] = self._window(state, span) if self._windows else joined([state.pending, span])
            private[row], steps[row], keys[row] = self._number(state), state.steps, state.key
        ids = self._decide(spans, private, keys, steps)
        head = self._senses.head
        inside = np.clip(ids, head.lowest, head.lowest + head.number - 1)
        self.invalid += int(np.count_nonzero(inside[order] != ids[order]))
        for row, span in zip(order, seen, strict=True):
            self._remember(self._state(row), span, inside[row])
        return dict(zip(order, self._senses.actions(inside[order].astype(np.uint16)), strict=True))

    @property
    def _windows(self) -> bool:
        return self._decoding.memory == "window"

    def _state(self, row: int) -> _Row:
        state = self._rows[row]
        if state is None:
            raise RuntimeError(f"row {row} was not begun")
        return state

    def _number(self, state: _Row) -> int:
        return _private(len(self._prompt) + state.steps) if self._hide else 0

    def _window(self, state: _Row, span: Span) -> Span:
        """The newest whole steps that fit into the context with the observation and the action."""
        left = self._context - span.size - (self._senses.tokens - 1)
        pinned = self._prompt if self._decoding.pin_prompt else []
        left -= sum(item.size for item in pinned)
        begin = len(state.history)
        while begin > len(pinned) and state.history[begin - 1].size <= left:
            begin -= 1
            left -= state.history[begin].size
        state.history = [*pinned, *state.history[begin:]]
        return joined([*state.history, span])

    def _remember(self, state: _Row, span: Span, ids: np.ndarray) -> None:
        action = Span.actions(ids, self._senses.head.kinds, self._number(state))
        if self._windows:
            state.history.append(joined([span, action]))
        else:
            state.pending = action.part(action.size - 1, action.size)
        state.steps += 1

    def _decide(
        self, spans: Sequence[Span | None], private: np.ndarray, keys: np.ndarray, steps: np.ndarray
    ) -> np.ndarray:
        longest = max((span.size for span in spans if span is not None), default=1)
        shown = max((len(span.shown.token) for span in spans if span is not None), default=0)
        if self._windows:
            length, slots = min(_power(longest), self._context), _power(shown)
        else:
            length, slots = -(-longest // _MULTIPLE) * _MULTIPLE, self._senses.patches
        batch = batch_of(spans, length, slots)
        check_positions(batch)
        ids, cache = decide(
            self._policy.params,
            batch,
            self._policy.empty_cache(self.rows) if self._windows else self._cache,
            self._senses.head,
            private,
            keys,
            steps,
            jnp.float32(self._decoding.temperature),
            config=self._policy.config.model,
            dtype=self._policy.dtype,
            choice=Choice(self._decoding.rule, self._decoding.mask),
            vocabulary_size=self._policy.file.tokenizer.vocabulary_size,
            distances=self._policy.distances,
        )
        if not self._windows:
            self._cache = cache
        return np.asarray(ids)


@partial(jax.jit, donate_argnums=0)
def _put(cache: Cache, one: Cache, row: int) -> Cache:
    """``cache`` whose row is the only row of ``one``."""
    return Cache(
        cache.keys.at[:, row].set(one.keys[:, 0]),
        cache.values.at[:, row].set(one.values[:, 0]),
        cache.private.at[row].set(one.private[0]),
        cache.length.at[row].set(one.length[0]),
    )


def _private(step: int) -> int:
    """The number of a step's private tokens."""
    return step % PRIVATE_NUMBERS + 1


def _power(count: int) -> int:
    """The least power of two that is ``count`` or more, and no less than ``_MULTIPLE``; 0 of 0."""
    return max(_MULTIPLE, 1 << (count - 1).bit_length()) if count else 0
