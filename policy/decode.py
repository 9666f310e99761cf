"""One step of decoding on the device: read new tokens, then choose the action's tokens one by one.

Legend: B rows, T new tokens, A action tokens, V ids, W ids that an action token may take, D width.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gatokit.loader.batch import PADDING, Batch, empty_batch
from gatokit.policy.cache import Cache, extend
from gatokit.schemas.run import ModelConfig
from gatokit.schemas.tokens import DISCRETE_VALUES, TokenKind
from gatokit.trainer import model
from gatokit.trainer.attention import Tree

Rule = Literal["sample", "greedy", "median"]

_IDS = DISCRETE_VALUES
"""W: a field has at most 1,024 discrete values or bins (Gato, section 2.1)."""


class ActionSpace(NamedTuple):
    """The ids that each action token of a task may take: arrays (A,)."""

    lowest: Any
    """int32: its lowest id."""
    number: Any
    """int32: how many ids it may take."""
    continuous: Any
    """bool: its ids are bins."""
    kinds: Any
    """uint8: ``TokenKind``."""


def pick(logits: jax.Array, keys: jax.Array, temperature: jax.Array, rule: Rule, continuous: jax.Array) -> jax.Array:
    """One index int32 (B,) of logits (B, W); an index with −∞ is never taken.

    ``sample`` draws with one key a row. ``greedy`` takes the largest. ``median`` takes, for a ``continuous`` token, the
    first index at which the cumulative probability reaches one half, and draws otherwise.
    """
    if rule == "greedy":
        return logits.argmax(-1)
    scaled = logits / temperature
    drawn = jax.vmap(jax.random.categorical)(keys, scaled)
    if rule == "sample":
        return drawn
    reached = jnp.cumsum(jax.nn.softmax(scaled), axis=-1) >= 0.5
    # By rounding no sum may reach one half, but only if all probability is in one id, which is then the largest.
    median = jnp.where(reached.any(-1), reached.argmax(-1), logits.argmax(-1))
    return jnp.where(continuous, median, drawn)


@partial(jax.jit, static_argnames=("config", "dtype"), donate_argnames=("cache",))
def read(
    parameters: Tree, batch: Batch, cache: Cache, *, config: ModelConfig, dtype: Any, distances: jax.Array | None
) -> tuple[jax.Array, Cache]:
    """The hidden state (B, D) of each row's last new token, and the cache that includes all new tokens."""
    states, cache = extend(parameters, batch, config, cache, dtype=dtype, distances=distances)
    last = (jnp.asarray(batch.kinds) != PADDING).sum(1) - 1
    return jnp.take_along_axis(states, jnp.maximum(last, 0)[:, None, None], axis=1)[:, 0], cache


@partial(jax.jit, static_argnames=("config", "dtype", "rule", "mask", "vocabulary_size"), donate_argnames=("cache",))
def act(
    parameters: Tree,
    batch: Batch,
    cache: Cache,
    space: ActionSpace,
    private: jax.Array,
    keys: jax.Array,
    steps: jax.Array,
    temperature: jax.Array,
    *,
    config: ModelConfig,
    dtype: Any,
    rule: Rule,
    mask: bool,
    vocabulary_size: int,
    distances: jax.Array | None,
) -> tuple[jax.Array, Cache]:
    """Reads the new tokens of rows, which end with a separator, and chooses the A tokens of the action.

    Returns ids int32 (B, A), and the cache that includes all but the last of them: that one is read with the next
    observation. ``keys`` (B, 2) belong to the rows and are folded here with their int32 ``steps`` (B,), so that a row's
    draws do not depend on the other rows of the batch. ``private`` int32 (B,) is the number of each row's hidden
    actions, 0 if they are visible. With ``mask`` only ids of the action space are chosen. Rows of padding get
    meaningless ids.
    """
    state, cache = read(parameters, batch, cache, config=config, dtype=dtype, distances=distances)
    active = jnp.asarray(batch.kinds)[:, 0] != PADDING
    keys = jax.vmap(jax.random.fold_in)(jax.vmap(jax.random.wrap_key_data)(keys), steps)
    table = parameters["embedding"]

    def choose(state: jax.Array, token: ActionSpace, ordinal: jax.Array) -> jax.Array:
        token_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, ordinal)
        if mask or rule == "median":
            rows = jax.lax.dynamic_slice_in_dim(table["token"], token.lowest, _IDS)
            values = model.logits({"embedding": {"token": rows}}, state, _IDS)
            values = jnp.where(jnp.arange(_IDS) < token.number, values, -jnp.inf)
            return pick(values, token_keys, temperature, rule, token.continuous) + token.lowest
        values = model.logits(parameters, state, vocabulary_size)
        return pick(values, token_keys, temperature, rule, token.continuous)

    def choose_and_read(carry: Any, token: tuple[ActionSpace, jax.Array]) -> tuple[Any, jax.Array]:
        state, cache = carry
        ids = choose(state, *token)
        one = _one_token(ids, jnp.where(active, token[0].kinds, PADDING), private)
        states, cache = extend(parameters, one, config, cache, dtype=dtype, distances=distances)
        return (states[:, 0], cache), ids

    tokens = (ActionSpace(*map(jnp.asarray, space)), jnp.arange(len(space.lowest)))
    first, last = (jax.tree.map(lambda array, at=at: array[at], tokens) for at in (slice(-1), -1))
    (state, cache), ids = jax.lax.scan(choose_and_read, (state, cache), first)
    return jnp.concatenate([ids.T, choose(state, *last)[:, None]], axis=1), cache


@partial(jax.jit, static_argnames=("config", "dtype", "rule", "pieces"), donate_argnames=("cache",))
def write(
    parameters: Tree,
    state: jax.Array,
    cache: Cache,
    key: jax.Array,
    temperature: jax.Array,
    *,
    config: ModelConfig,
    dtype: Any,
    rule: Rule,
    pieces: int,
    distances: jax.Array | None,
) -> tuple[jax.Array, jax.Array, Cache]:
    """The text id (B,), one of the vocabulary's ``pieces``, that follows a hidden state (B, D), and the state and the
    cache after reading it."""
    rows = parameters["embedding"]["token"][:pieces]
    values = model.logits({"embedding": {"token": rows}}, state, pieces)
    ids = pick(values, jax.random.split(key, len(state)), temperature, rule, jnp.array(False))
    one = _one_token(ids, jnp.full(ids.shape, TokenKind.TEXT), jnp.zeros_like(ids))
    states, cache = extend(parameters, one, config, cache, dtype=dtype, distances=distances)
    return ids, states[:, 0], cache


def _one_token(ids: jax.Array, kinds: jax.Array, private: jax.Array) -> Batch:
    """A batch (B, 1) of one text or action token a row."""
    columns: dict[str, Any] = {"tokens": ids[:, None], "kinds": kinds[:, None], "private": private[:, None]}
    return empty_batch(len(ids), 1, len(ids), 0)._replace(**columns)
