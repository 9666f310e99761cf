"""The whole network: hidden states of windows, logits, and decoding with a memory of keys and values.

Legend: B rows, L tokens of a window, D width, V rows of the embedding table, M positions of memory, T new tokens,
N layers, H heads, K head size.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from gatokit.schemas.run import ModelConfig
from gatokit.trainer import transformer
from gatokit.trainer.batch import Batch
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
