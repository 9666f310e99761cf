"""The whole network: hidden states of windows, logits, and decoding with a memory of keys and values.

Legend: B rows, L tokens of a window, S keys, D width, V rows of the embedding table, M tokens of memory, T new tokens.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from gatokit.loader.batch import Batch
from gatokit.schemas.run import ModelConfig
from gatokit.trainer import memory, transformer
from gatokit.trainer.embedding import embed
from gatokit.trainer.memory import Cache
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
    ``distances`` are ``memory.all_distances``, computed anew where they are not given.
    """
    stand, counts = memory.places(batch, cache)
    if distances is None:
        distances = memory.all_distances(parameters, config, cache.private.shape[1], dtype)

    def body(vectors: jax.Array, layer: tuple[Tree, jax.Array, jax.Array, jax.Array | None]) -> tuple[jax.Array, Any]:
        parameters, keys, values, far = layer

        def attend_memory(inputs: jax.Array, parameters: Tree) -> tuple[jax.Array, Any]:
            added, *new = memory.attention(inputs, parameters, config, keys, values, stand, far)
            return added, new

        return transformer.block(vectors, parameters, attend_memory)

    vectors = embed(parameters, batch, config, dtype=dtype)
    vectors, new = jax.lax.scan(body, vectors, (parameters["layers"], cache.keys, cache.values, distances))
    # Written when all layers have read, and in place: within the scan each layer would copy the whole memory.
    rows = jnp.arange(len(counts))[:, None]
    keys, values = (
        old.at[:, rows, :, stand.slot].set(jnp.moveaxis(fresh, 0, 2), mode="drop")
        for old, fresh in zip((cache.keys, cache.values), new, strict=True)
    )
    private = cache.private.at[rows, stand.slot].set(jnp.asarray(batch.private, jnp.int32), mode="drop")
    return transformer.norm(vectors, parameters["norm"]), Cache(keys, values, private, cache.length + counts)
