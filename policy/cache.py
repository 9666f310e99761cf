"""The network with a KV cache, as a policy runs it: new tokens only, behind those that were read before.

The cache holds keys without their positions, because these are relative to the query (as in Transformer-XL's memory,
with which Gato is deployed; section 2.4). A token's slot in the cache is its ordinal modulo M, so nothing ever moves:
a new token replaces the one M before it.

Legend: N layers, B rows, M tokens of the cache, T new tokens, H heads, K head size, D width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gatokit.loader.batch import PADDING, Batch
from gatokit.schemas.run import ModelConfig
from gatokit.trainer import attention, model
from gatokit.trainer.attention import CacheView, Tree


class Cache(NamedTuple):
    """The last M tokens of each row."""

    keys: jax.Array
    """(N, B, H, M, K)"""
    values: jax.Array
    """(N, B, H, M, K)"""
    private: jax.Array
    """int32 (B, M): ``Batch.private`` of the tokens."""
    length: jax.Array
    """int32 (B,): tokens read so far, of which the last M are in the cache."""


def empty_cache(config: ModelConfig, rows: int, memory: int, dtype: Any) -> Cache:
    """A cache of ``memory`` tokens for each of ``rows`` rows; a query sees that many tokens, itself included."""
    shape = (config.layers, rows, config.heads, memory, config.head_size)
    no_tokens = jnp.zeros((rows, memory), jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), no_tokens, jnp.zeros(rows, jnp.int32))


def distance_keys(parameters: Tree, config: ModelConfig, memory: int, dtype: Any) -> jax.Array | None:
    """Every layer's keys (N, M, H, K) of the distances M − 1, …, 0; None for a model with rotary positions."""
    if config.positions != "relative":
        return None

    def of_layer(layer: Tree) -> jax.Array:
        return attention.distance_keys(layer, memory, config.width, dtype)

    return jax.vmap(of_layer)(parameters["layers"]["attention"])


def extend(
    parameters: Tree, batch: Batch, config: ModelConfig, cache: Cache, *, dtype: Any, distances: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
    """The final states (B, T, D) of new tokens behind those in the cache, and the cache that also has them.

    ``batch`` holds the new tokens; rows may have fewer than others and end in padding. The states equal those of a
    full pass in which a query sees M tokens, itself included, however the tokens are cut into calls.
    ``batch.private`` is obeyed: a number n > 0 must not return in a row while tokens of number n are in the cache.
    ``distances`` are ``distance_keys``, computed anew if not given.
    """
    memory, new = cache.private.shape[1], batch.kinds.shape[1]
    if distances is None:
        distances = distance_keys(parameters, config, memory, dtype)
    counts = (jnp.asarray(batch.kinds) != PADDING).sum(1, dtype=jnp.int32)
    length, columns = cache.length[:, None], jnp.arange(new, dtype=jnp.int32)
    # A slot holds the last token that was read whose ordinal has this remainder.
    old = memory - 1 - (length - 1 - jnp.arange(memory, dtype=jnp.int32)) % memory
    fresh = jnp.broadcast_to(memory + columns, (len(counts), new))
    distance = fresh[:, :, None] - jnp.concatenate([old, fresh], axis=1)[:, None]
    was_read = jnp.concatenate([old >= memory - length, jnp.ones(fresh.shape, bool)], axis=1)
    private = jnp.asarray(batch.private, jnp.int32)
    allowed = attention.sees(private, jnp.concatenate([cache.private, private], axis=1))
    visible = was_read[:, None] & allowed & (distance >= 0) & (distance < memory)
    view = CacheView(old, fresh, visible, jnp.clip(distance, 0, memory - 1))

    def attend(inputs: jax.Array, parameters: Tree, own: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, Any]:
        keys, values, distances = own
        added, *new = attention.cached_attention(inputs, parameters, keys, values, view, distances)
        return added, new

    vectors = model.embed(parameters, batch, config, dtype=dtype)
    of_layers = cache.keys, cache.values, distances
    vectors, added = model.apply_layers(vectors, parameters["layers"], config, attend, of_layers)
    # Written in place when all layers have read: within the scan each layer would copy the whole cache.
    kept = (columns < counts[:, None]) & (columns >= counts[:, None] - memory)
    slot = jnp.where(kept, (length + columns) % memory, memory)  # M, beyond the cache, for a token that is not kept
    rows = jnp.arange(len(counts))[:, None]
    keys, values = (
        old.at[:, rows, :, slot].set(jnp.moveaxis(fresh, 0, 2), mode="drop")
        for old, fresh in zip((cache.keys, cache.values), added, strict=True)
    )
    private = cache.private.at[rows, slot].set(private, mode="drop")
    return model.norm(vectors, parameters["norm"]), Cache(keys, values, private, cache.length + counts)
