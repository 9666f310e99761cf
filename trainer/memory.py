"""What decoding remembers of each row, and attention that sees it.

Keys are kept without their positions, which are relative to the query, as in Transformer-XL's memory, with which Gato
is deployed (section 2.4). A token's place in the memory is its ordinal modulo M, so that nothing ever moves: a new
token takes the place of the one M before it.

Legend: N layers, B rows, M tokens of memory, T new tokens, H heads, K head size, D width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gatokit.loader.batch import PADDING, Batch
from gatokit.schemas.run import ModelConfig
from gatokit.trainer import transformer
from gatokit.trainer.attention import rotate
from gatokit.trainer.parameters import Tree


class Cache(NamedTuple):
    """The last M tokens of each row."""

    keys: jax.Array
    """(N, B, H, M, K)"""
    values: jax.Array
    """(N, B, H, M, K)"""
    private: jax.Array
    """int32 (B, M): ``Batch.private`` of the tokens."""
    length: jax.Array
    """int32 (B,): tokens read, of which the last M are remembered."""


def empty_cache(config: ModelConfig, rows: int, memory: int, dtype: Any) -> Cache:
    """A cache for ``rows`` rows that remembers ``memory`` tokens of each; a query sees that many, itself included."""
    shape = (config.layers, rows, config.heads, memory, config.head_size)
    return Cache(
        jnp.zeros(shape, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros((rows, memory), jnp.int32),
        jnp.zeros(rows, jnp.int32),
    )


def all_distances(parameters: Tree, config: ModelConfig, memory: int, dtype: Any) -> jax.Array | None:
    """Every layer's keys (N, M, H, K) of the distances M − 1, …, 0; None of a model without relative positions."""
    if config.positions != "relative":
        return None

    def of(layer: Tree) -> jax.Array:
        return transformer.locate(layer, memory, config.width, dtype).distances

    return jax.vmap(of)(parameters["layers"]["attention"])


class Places(NamedTuple):
    """Where the tokens of one call stand; the same for every layer."""

    old: jax.Array
    """int32 (B, M): how many tokens the remembered one in each place stands behind the oldest that could be."""
    new: jax.Array
    """int32 (B, T): the same of the new tokens."""
    visible: jax.Array
    """bool (B, T, M + T): what each new token sees."""
    distance: jax.Array
    """int32 (B, T, M + T): from a new token back to what it sees, within [0, M)."""
    slot: jax.Array
    """int32 (B, T): the place that a new token takes; M for those that take none."""


def places(batch: Batch, cache: Cache) -> tuple[Places, jax.Array]:
    """Where new tokens stand behind those remembered, and how many each row has, int32 (B,)."""
    memory, new = cache.private.shape[1], batch.kinds.shape[1]
    counts = (jnp.asarray(batch.kinds) != PADDING).sum(1, dtype=jnp.int32)
    length, columns = cache.length[:, None], jnp.arange(new, dtype=jnp.int32)
    # The newest token in a place is the last one read whose ordinal has this remainder.
    old = memory - 1 - (length - 1 - jnp.arange(memory, dtype=jnp.int32)) % memory
    fresh = jnp.broadcast_to(memory + columns, (len(counts), new))
    distance = fresh[:, :, None] - jnp.concatenate([old, fresh], axis=1)[:, None]
    read = jnp.concatenate([old >= memory - length, jnp.ones(fresh.shape, bool)], axis=1)
    here = jnp.asarray(batch.private, jnp.int32)
    private = jnp.concatenate([cache.private, here], axis=1)[:, None]
    seen = (private == 0) | (private == here[:, :, None])
    visible = read[:, None] & seen & (distance >= 0) & (distance < memory)
    kept = (columns < counts[:, None]) & (columns >= counts[:, None] - memory)
    slot = jnp.where(kept, (length + columns) % memory, memory)
    return Places(old, fresh, visible, jnp.clip(distance, 0, memory - 1), slot), counts


def attention(
    inputs: jax.Array,
    parameters: Tree,
    config: ModelConfig,
    keys: jax.Array,
    values: jax.Array,
    places: Places,
    distances: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What attention adds (B, T, D) for the normed inputs of new tokens, and their keys and values (B, T, H, K).

    ``keys`` and ``values`` (B, H, M, K) and ``distances`` (M, H, K) are one layer's.
    """
    queries, new_keys, new_values = transformer.project(inputs, parameters)
    memory, kept = keys.shape[2], new_keys
    content = queries
    if distances is None:
        content, new_keys = rotate(queries, places.new), rotate(new_keys, places.new)
        keys = rotate(keys.swapaxes(1, 2), places.old).swapaxes(1, 2)
    else:
        content = queries + parameters["content_bias"].astype(queries.dtype)
    exact = {"preferred_element_type": jnp.float32}
    old_scores = jnp.einsum("bthk,bhmk->bhtm", content, keys, **exact)
    new_scores = jnp.einsum("bthk,bshk->bhts", content, new_keys, **exact)
    scores = jnp.concatenate([old_scores, new_scores], axis=-1)
    if distances is not None:
        located = queries + parameters["position_bias"].astype(queries.dtype)
        by_distance = jnp.einsum("bthk,mhk->bhtm", located, distances, **exact)
        scores += jnp.take_along_axis(by_distance, memory - 1 - places.distance[:, None], axis=-1)
    scores = jnp.where(places.visible[:, None], scores * queries.shape[3] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(new_values.dtype)
    taken = jnp.einsum("bhtm,bhmk->bthk", weights[..., :memory], values)
    taken += jnp.einsum("bhts,bshk->bthk", weights[..., memory:], new_values)
    added = jnp.einsum("bthk,hkd->btd", taken, parameters["out"].astype(inputs.dtype))
    return added, kept, new_values
