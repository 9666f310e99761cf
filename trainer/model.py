"""The whole network: hidden states of windows, logits, and decoding with a memory of keys and values.

Legend: B rows, L tokens of a window, D width, V rows of the embedding table, M positions of memory, T new tokens,
N layers, H heads, K head size.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gatokit.schemas.run import ModelConfig
from gatokit.trainer import transformer
from gatokit.trainer.batch import PADDING, Batch
from gatokit.trainer.embedding import embed
from gatokit.trainer.parameters import Tree


def hidden(
    parameters: Tree,
    batch: Batch,
    config: ModelConfig,
    *,
    dtype: Any,
    remat: Literal["none", "dots", "full"] = "none",
    key: jax.Array | None = None,
    rows: jax.Array | None = None,
    hide: bool = False,
) -> jax.Array:
    """The final hidden states (B, L, D) of ``dtype``, normed; those of padding mean nothing.

    ``key``, folded with seed and step, makes it a training pass; ``rows``, int32 (B,), are the rows' numbers in the
    global batch, by default 0, 1, …. ``hide`` obeys ``batch.private``; without it all are taken for 0.
    """
    vectors = embed(parameters, batch, config, dtype=dtype)
    private = jnp.asarray(batch.private)
    vectors = transformer.stack(
        vectors,
        parameters["layers"],
        config,
        visible=_visible(private, private) if hide else None,
        remat=remat,
        key=key,
        rows=jnp.arange(vectors.shape[0]) if rows is None else rows,
    )
    return transformer.norm(vectors, parameters["norm"])


def _visible(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """bool (B, T, S): a private key is seen only by queries of the same number."""
    return (keys[:, None] == 0) | (keys[:, None] == queries[:, :, None])


def logits(parameters: Tree, hidden: jax.Array, vocabulary_size: int) -> jax.Array:
    """float32 logits (…, V) of hidden states (…, D), by the embedding table, the only parameter that is read; −∞ for
    rows that only pad the table."""
    table = parameters["embedding"]["token"]
    values = jnp.einsum("...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return jnp.where(jnp.arange(table.shape[0]) < vocabulary_size, values, -jnp.inf)


class Cache(NamedTuple):
    """What decoding remembers of each row: its last M tokens, the newest in the last place.

    Keys are kept without positions, which are relative to the query, so the oldest tokens simply fall out, as in
    Transformer-XL's memory, with which Gato is deployed.
    """

    keys: jax.Array
    """(N, B, M, H, K)"""
    values: jax.Array
    """(N, B, M, H, K)"""
    private: jax.Array
    """int32 (B, M): ``Batch.private`` of the tokens."""
    length: jax.Array
    """int32 (B,): tokens remembered, at most M."""


def empty_cache(config: ModelConfig, rows: int, memory: int, dtype: Any) -> Cache:
    """A cache for ``rows`` rows that remembers ``memory`` tokens of each; a query sees that many, itself included."""
    shape = (config.layers, rows, memory, config.heads, config.head_size)
    return Cache(
        jnp.zeros(shape, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros((rows, memory), jnp.int32),
        jnp.zeros(rows, jnp.int32),
    )


def all_distances(parameters: Tree, config: ModelConfig, keys: int, dtype: Any) -> jax.Array | None:
    """Every layer's keys (N, S, H, K) of ``keys`` distances, for ``extend``; None of a model without relative ones."""
    if config.positions != "relative":
        return None
    layers = parameters["layers"]["attention"]
    return jax.vmap(lambda layer: transformer.project_distances(layer, keys, config.width, dtype))(layers)


def extend(
    parameters: Tree,
    batch: Batch,
    config: ModelConfig,
    cache: Cache,
    *,
    dtype: Any,
    distances: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """The final hidden states (B, T, D) of new tokens behind those remembered, and the cache that has them.

    ``batch`` holds the new tokens, fewer in some rows than in others where padding stands at a row's end. They equal
    those of a full pass, whatever parts the tokens come in, in which a query sees M tokens, itself included.
    ``batch.private`` is obeyed: a number n > 0 must not come back in a row while tokens of n are remembered.
    ``distances`` are ``all_distances`` of M + T or more, computed anew where they are not given.
    """
    memory, new = cache.private.shape[1], batch.kinds.shape[1]
    counts = (jnp.asarray(batch.kinds) != PADDING).sum(1, dtype=jnp.int32)
    private = jnp.concatenate([cache.private, jnp.asarray(batch.private, jnp.int32)], axis=1)
    places, queries = jnp.arange(memory + new), jnp.arange(new)[:, None]
    remembered = places >= memory - cache.length[:, None]
    visible = remembered[:, None] & (places > queries) & _visible(private[:, memory:], private)

    def slide(row: jax.Array, count: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(row, count, memory)

    def body(vectors: jax.Array, layer: tuple[Tree, jax.Array, jax.Array, jax.Array | None]) -> tuple[jax.Array, Any]:
        parameters, keys, values, far = layer

        def attend_memory(inputs: jax.Array, parameters: Tree) -> tuple[jax.Array, Any]:
            added, *kept = transformer.attention(
                inputs, parameters, config, visible=visible, memory=(keys, values), distances=far
            )
            return added, [
                jax.vmap(slide)(jnp.concatenate([old, fresh], axis=1), counts)
                for old, fresh in zip((keys, values), kept, strict=True)
            ]

        return transformer.block(vectors, parameters, attend_memory)

    vectors = embed(parameters, batch, config, dtype=dtype)
    vectors, (keys, values) = jax.lax.scan(body, vectors, (parameters["layers"], cache.keys, cache.values, distances))
    length = jnp.minimum(memory, cache.length + counts)
    return transformer.norm(vectors, parameters["norm"]), Cache(keys, values, jax.vmap(slide)(private, counts), length)
