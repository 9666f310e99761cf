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
from gatokit.trainer import model
from gatokit.trainer.attention import (
    Relative,
    Tree,
    content_queries,
    distance_scores,
    dot,
    masked_softmax,
    project,
    relative_positions,
    rotate,
    sees,
)


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


class CacheView(NamedTuple):
    """How the new tokens of one call relate to the cache; the same for every layer."""

    old: jax.Array
    """int32 (B, M): age order of the token in each slot: 0 is the oldest that the cache can hold."""
    new: jax.Array
    """int32 (B, T): the same count for the new tokens."""
    visible: jax.Array
    """bool (B, T, M + T): what each new token sees."""
    distance: jax.Array
    """int32 (B, T, M + T): from a new token back to what it sees, within [0, M)."""
    slot: jax.Array
    """int32 (B, T): the slot that a new token takes; M for a token that is not kept."""
    counts: jax.Array
    """int32 (B,): new tokens of each row."""


def empty_cache(config: ModelConfig, rows: int, memory: int, dtype: Any) -> Cache:
    """A cache of ``memory`` tokens for each of ``rows`` rows; a query sees that many tokens, itself included."""
    shape = (config.layers, rows, config.heads, memory, config.head_size)
    no_tokens = jnp.zeros((rows, memory), jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), no_tokens, jnp.zeros(rows, jnp.int32))


def view_cache(batch: Batch, cache: Cache) -> CacheView:
    """How the new tokens of ``batch`` (B, T), padding at the ends of rows, relate to the tokens in the cache."""
    memory, new = cache.private.shape[1], batch.kinds.shape[1]
    counts = (jnp.asarray(batch.kinds) != PADDING).sum(1, dtype=jnp.int32)
    length, columns = cache.length[:, None], jnp.arange(new, dtype=jnp.int32)
    # A slot holds the last token that was read whose ordinal has this remainder.
    old = memory - 1 - (length - 1 - jnp.arange(memory, dtype=jnp.int32)) % memory
    fresh = jnp.broadcast_to(memory + columns, (len(counts), new))
    distance = fresh[:, :, None] - jnp.concatenate([old, fresh], axis=1)[:, None]
    was_read = jnp.concatenate([old >= memory - length, jnp.ones(fresh.shape, bool)], axis=1)
    private = jnp.asarray(batch.private, jnp.int32)
    allowed = sees(private, jnp.concatenate([cache.private, private], axis=1))
    visible = was_read[:, None] & allowed & (distance >= 0) & (distance < memory)
    kept = (columns < counts[:, None]) & (columns >= counts[:, None] - memory)
    slot = jnp.where(kept, (length + columns) % memory, memory)
    return CacheView(old, fresh, visible, jnp.clip(distance, 0, memory - 1), slot, counts)


def distance_keys(parameters: Tree, config: ModelConfig, memory: int, dtype: Any) -> jax.Array | None:
    """Every layer's keys (N, M, H, K) of the distances M − 1, …, 0; None for a model with rotary positions."""
    if config.positions != "relative":
        return None

    def of_layer(layer: Tree) -> jax.Array:
        return relative_positions(layer, memory, config.width, dtype).distances

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
    view = view_cache(batch, cache)
    if distances is None:
        distances = distance_keys(parameters, config, cache.private.shape[1], dtype)

    def body(vectors: jax.Array, layer: tuple[Tree, jax.Array, jax.Array, jax.Array | None]) -> tuple[jax.Array, Any]:
        parameters, keys, values, distances = layer

        def attention(inputs: jax.Array, parameters: Tree) -> tuple[jax.Array, Any]:
            added, *new = cached_attention(inputs, parameters, keys, values, view, distances)
            return added, new

        return model.apply_layer(vectors, parameters, attention)

    vectors = model.embed(parameters, batch, config, dtype=dtype)
    vectors, new = jax.lax.scan(body, vectors, (parameters["layers"], cache.keys, cache.values, distances))
    # Written in place when all layers have read: within the scan each layer would copy the whole cache.
    rows = jnp.arange(len(view.counts))[:, None]
    keys, values = (
        old.at[:, rows, :, view.slot].set(jnp.moveaxis(fresh, 0, 2), mode="drop")
        for old, fresh in zip((cache.keys, cache.values), new, strict=True)
    )
    private = cache.private.at[rows, view.slot].set(jnp.asarray(batch.private, jnp.int32), mode="drop")
    return model.norm(vectors, parameters["norm"]), Cache(keys, values, private, cache.length + view.counts)


def cached_attention(
    inputs: jax.Array, parameters: Tree, keys: jax.Array, values: jax.Array, view: CacheView, distances: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What attention adds (B, T, D) for the normed inputs of new tokens, and their keys and values (B, T, H, K).

    ``keys`` and ``values`` (B, H, M, K) and ``distances`` (M, H, K) are one layer's; ``distances`` is None for rotary
    positions.
    """
    queries, new_keys, new_values = project(inputs, parameters)
    memory, unturned = keys.shape[2], new_keys
    relative = None
    if distances is None:
        queries, new_keys = rotate(queries, view.new), rotate(new_keys, view.new)
        keys = rotate(keys.swapaxes(1, 2), view.old).swapaxes(1, 2)
    else:
        biases = (parameters[name].astype(queries.dtype) for name in ("content_bias", "position_bias"))
        relative = Relative(distances, *biases)
    content = content_queries(queries, relative)
    # Old and new keys stay apart: joining them would copy the whole cache.
    old_scores, new_scores = dot("bthk,bhmk->bhtm", content, keys), dot("bthk,bshk->bhts", content, new_keys)
    scores = jnp.concatenate([old_scores, new_scores], axis=-1)
    if relative is not None:
        by_distance = distance_scores(queries, relative)
        scores += jnp.take_along_axis(by_distance, memory - 1 - view.distance[:, None], axis=-1)
    weights = masked_softmax(scores, view.visible[:, None], queries.shape[3]).astype(new_values.dtype)
    attended = jnp.einsum("bhtm,bhmk->bthk", weights[..., :memory], values)
    attended += jnp.einsum("bhts,bshk->bthk", weights[..., memory:], new_values)
    added = jnp.einsum("bthk,hkd->btd", attended, parameters["out"].astype(inputs.dtype))
    return added, unturned, new_values
