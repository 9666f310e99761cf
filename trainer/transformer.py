"""The stack of pre-norm blocks: attention, GEGLU, stochastic depth (Gato, section 2.2 and appendix C).

Legend: B rows, L tokens of a row, D width, N layers, H heads, K head size, F half of the feed-forward width.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gatokit.schemas.run import ModelConfig
from gatokit.trainer.attention import Relative, attend, rotate, sinusoids
from gatokit.trainer.parameters import Tree
from gatokit.trainer.sharding import by_rows

EPSILON = 1e-6
ATTENTION, FEED_FORWARD = 0, 1
"""The sub-layers of a block, as random keys count them."""
DROPOUT = 2
"""Added to a sub-layer's number for the key of its dropout."""

Attention = Callable[[jax.Array, Tree], tuple[jax.Array, Any]]
"""Normed inputs (B, L, D) and a layer's attention parameters → what attention adds (B, L, D), and what is to be
kept of it."""


def norm(vectors: jax.Array, parameters: Tree) -> jax.Array:
    """Layer norm over the last axis, computed in float32, in the dtype of its input."""
    values = vectors.astype(jnp.float32)
    values = values - values.mean(-1, keepdims=True)
    values = values * jax.lax.rsqrt(jnp.square(values).mean(-1, keepdims=True) + EPSILON)
    return (values * parameters["scale"] + parameters["bias"]).astype(vectors.dtype)


def project(vectors: jax.Array, parameters: Tree) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values (B, L, H, K) of normed inputs (B, L, D)."""
    queries, keys, values = (
        jnp.einsum("bld,dhk->blhk", vectors, parameters[name].astype(vectors.dtype))
        for name in ("query", "key", "value")
    )
    return queries, keys, values


def locate(parameters: Tree, keys: int, width: int, dtype: Any) -> Relative:
    """A layer's relative positions for ``keys`` keys: sinusoids of distances through its projection."""
    distances = jnp.einsum("sd,dhk->shk", sinusoids(keys, width).astype(dtype), parameters["relative"].astype(dtype))
    return Relative(distances, parameters["content_bias"].astype(dtype), parameters["position_bias"].astype(dtype))


def attention(vectors: jax.Array, parameters: Tree, config: ModelConfig, *, visible: jax.Array | None) -> jax.Array:
    """What attention adds (B, L, D) for normed inputs; ``visible`` (B, L, L) is ``attend``'s."""
    queries, keys, values = project(vectors, parameters)
    relative = None
    if config.positions == "relative":
        relative = locate(parameters, keys.shape[1], config.width, vectors.dtype)
    else:
        standing = jnp.arange(keys.shape[1])
        queries, keys = rotate(queries, standing), rotate(keys, standing)
    taken = attend(queries, keys, values, relative=relative, visible=visible, backend=config.attention)
    return jnp.einsum("blhk,hkd->bld", taken, parameters["out"].astype(vectors.dtype))


def feed_forward(vectors: jax.Array, parameters: Tree) -> jax.Array:
    """What the feed-forward sub-layer adds (B, L, D): GEGLU, whose gate and values are the halves of the stated
    width."""
    both = jnp.einsum("bld,dcf->bclf", vectors, parameters["in"].astype(vectors.dtype))
    return (jax.nn.gelu(both[:, 0]) * both[:, 1]) @ parameters["out"].astype(vectors.dtype)


def block(
    vectors: jax.Array,
    parameters: Tree,
    attention: Attention,
    regularize: Callable[[jax.Array, int], jax.Array] = lambda added, sub_layer: added,
) -> tuple[jax.Array, Any]:
    """One block over (B, L, D): what each sub-layer makes of its normed input, regularised, is added to the input.
    Second comes what ``attention`` keeps."""
    added, kept = attention(norm(vectors, parameters["attention_norm"]), parameters["attention"])
    vectors = by_rows(vectors + regularize(added, ATTENTION))
    added = feed_forward(norm(vectors, parameters["feed_forward_norm"]), parameters["feed_forward"])
    return by_rows(vectors + regularize(added, FEED_FORWARD)), kept


def stack(
    vectors: jax.Array,
    layers: Tree,
    config: ModelConfig,
    *,
    visible: jax.Array | None,
    remat: Literal["none", "dots", "full"],
    key: jax.Array | None,
    rows: jax.Array,
) -> jax.Array:
    """All blocks over (B, L, D), by a scan over the layers.

    ``remat`` says what the backward pass computes again: nothing, all but the products with parameters, or whole
    blocks. ``key`` None is evaluation: nothing is skipped or dropped.
    """

    def body(vectors: jax.Array, layer: tuple[Tree, jax.Array]) -> tuple[jax.Array, None]:
        parameters, number = layer

        def regularize(added: jax.Array, sub_layer: int) -> jax.Array:
            return added if key is None else _regularize(added, key, number, sub_layer, rows, config)

        def attend_all(inputs: jax.Array, parameters: Tree) -> tuple[jax.Array, None]:
            return attention(inputs, parameters, config, visible=visible), None

        return block(vectors, parameters, attend_all, regularize)

    if remat == "dots":
        body = jax.checkpoint(body, prevent_cse=False, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    elif remat == "full":
        body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, vectors, (layers, jnp.arange(config.layers)))[0]


def _regularize(
    added: jax.Array, key: jax.Array, layer: jax.Array, sub_layer: int, rows: jax.Array, config: ModelConfig
) -> jax.Array:
    """Stochastic depth (appendix C) and dropout (appendix E) of what a sub-layer adds, both with inverted scaling.

    A row's draws follow from the key, the layer, the sub-layer and the row's global number alone, so that a mesh or
    microbatches change nothing.
    """

    def keys(stream: int) -> jax.Array:
        of_stream = jax.random.fold_in(jax.random.fold_in(key, layer), stream)
        return jax.vmap(lambda row: jax.random.fold_in(of_stream, row))(rows)

    if config.dropout > 0:
        keep = 1 - config.dropout
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, added.shape[1:]))(keys(sub_layer + DROPOUT))
        added = jnp.where(kept, added / keep, 0)
    if config.stochastic_depth > 0:
        keep = 1 - config.stochastic_depth
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep))(keys(sub_layer))
        added = jnp.where(kept[:, None, None], added / keep, 0)
    return added
