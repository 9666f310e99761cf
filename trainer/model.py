"""The whole network, top to bottom (Gato, section 2.2 and appendix C): parameters, embedding, patches, layers, logits.

Legend: B rows, L tokens of a row, D width, N layers, H heads, K head size, F half of the feed-forward width, V rows of
the embedding table, G groups of rows, P patch slots of a group, C patch channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as Spec

from gatokit.loader.batch import PADDING, Batch
from gatokit.schemas.errors import DataError
from gatokit.schemas.run import ModelConfig
from gatokit.schemas.tokens import NO_POSITION, OBSERVATION_POSITIONS, PATCH, TokenKind
from gatokit.tokenizers.patches import POSITION_INTERVALS
from gatokit.trainer.attention import PROJECTED, Tree, self_attention
from gatokit.trainer.mesh import ROWS
from gatokit.trainer.relative_kernel import ATTENDED

UNDIVIDED = Spec()
ROW_MULTIPLE = 256  # the embedding table is padded to a multiple of it, so that mesh axes divide its rows
POOLED = 4  # a patch's features are averaged over a grid of 4×4 cells before the last projection
NORM_GROUPS = 32  # of the patch block's norms (appendix C.2)
EPSILON = 1e-6  # added to the variance in norms
ATTENTION, FEED_FORWARD, DROPOUT = 0, 1, 2  # random streams of a layer: its sub-layers; their dropout adds DROPOUT


@dataclass(frozen=True)
class Parameter:
    """One array of parameters, before it exists."""

    shape: tuple[int, ...]
    spec: Spec = UNDIVIDED  # the mesh axis that divides each dimension; dimensions behind the last are not divided
    std: float = 0.0  # of the normal initial values; 0 for norms and biases, on which weight decay does not act
    mean: float = 0.0
    padding: int = 0  # rows at the end that never take part; their initial values are zeros


def parameter_table(config: ModelConfig, vocabulary_size: int) -> dict[str, Any]:
    """Every parameter of the model, float32, as a nested dict of ``Parameter``; layers are stacked on a leading axis.
    Token, position and masked-action vectors have deviation 1/√D and are multiplied by √D in ``embed``; a matrix keeps
    the variance of its inputs, and what adds to the residual stream is divided by the root of its 2N additions."""
    width, layers, heads, size = config.width, config.layers, config.heads, config.head_size
    half, channels = config.hidden // 2, config.patch_channels
    pooled = POOLED * POOLED * channels // 2
    residual = (2 * layers) ** -0.5
    padding = -vocabulary_size % ROW_MULTIPLE

    def vectors(*rows: int) -> Parameter:
        return Parameter((*rows, width), std=width**-0.5)

    def norm(*shape: int) -> dict[str, Parameter]:
        return {"scale": Parameter(shape, mean=1.0), "bias": Parameter(shape)}

    projection = Parameter((layers, width, heads, size), Spec(None, "fsdp", "tensor"), std=width**-0.5)
    head_bias = Parameter((layers, heads, size), Spec(None, "tensor"))
    convolution = Parameter((3, 3, channels, channels), std=(9 * channels) ** -0.5)
    out_std = residual * (heads * size) ** -0.5
    attention = dict.fromkeys(("query", "key", "value"), projection)
    attention["out"] = Parameter((layers, heads, size, width), Spec(None, "tensor", None, "fsdp"), std=out_std)
    if config.positions == "relative":
        attention |= {"relative": projection, "content_bias": head_bias, "position_bias": head_bias}
    rows = vocabulary_size + padding
    return {
        "embedding": {
            "token": Parameter((rows, width), Spec("tensor", "fsdp"), std=width**-0.5, padding=padding),
            "observation_position": vectors(OBSERVATION_POSITIONS),
            "action_position": vectors(),
            "hidden_action": vectors(),
        },
        "patches": {
            "stem": Parameter((3, channels), std=4 * 3**-0.5),
            "stem_bias": Parameter((channels,)),
            "norm_1": norm(channels),
            "convolution_1": convolution,
            "norm_2": norm(channels),
            "convolution_2": convolution,
            "reduce": Parameter((channels, channels // 2), std=channels**-0.5),
            "out": Parameter((pooled, width), Spec(None, "fsdp"), std=pooled**-0.5),
            "row": vectors(POSITION_INTERVALS),
            "column": vectors(POSITION_INTERVALS),
        },
        "layers": {
            "attention_norm": norm(layers, width),
            "attention": attention,
            "feed_forward_norm": norm(layers, width),
            "feed_forward": {
                "in": Parameter((layers, width, 2, half), Spec(None, "fsdp", None, "tensor"), std=width**-0.5),
                "out": Parameter((layers, half, width), Spec(None, "tensor", "fsdp"), std=residual * half**-0.5),
            },
        },
        "norm": norm(width),
    }


def count(table: Tree) -> int:
    """The number of parameters; rows that only pad the embedding table are not counted."""
    return sum(prod((leaf.shape[0] - leaf.padding, *leaf.shape[1:])) for leaf in jax.tree.leaves(table))


def initialize(table: Tree, seed: int) -> Any:
    """The initial parameters, float32. An element's value follows from the seed, its array's path and its place in the
    array alone, so that neither the mesh nor other parameters change it."""

    def initial(path: Any, parameter: Parameter) -> jax.Array:
        shape = parameter.shape
        if parameter.std == 0.0:
            return jnp.full(shape, parameter.mean, jnp.float32)
        # Each draw is a hash of the path and its place; JAX's own draws take eight times as long to compile on CPUs.
        bits = jnp.zeros(shape, jnp.uint32)
        for axis in range(len(shape)):
            bits += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(prod(shape[axis + 1 :]))
        name = f"{seed} {jax.tree_util.keystr(path, simple=True, separator='/')}"
        for word in np.frombuffer(blake2b(name.encode(), digest_size=8).digest(), "<u4"):
            # A bijection of 32 bits in which each bit changes all others about half the time (Wellons' lowbias32).
            bits = bits ^ word
            bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
            bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
            bits = bits ^ (bits >> 16)
        # 2^23 values between -1 and 1, exact in float32: one bit more would round the last to 1, an infinite normal.
        uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0
        values = parameter.mean + parameter.std * (jax.lax.erf_inv(uniform) * np.float32(2**0.5))
        real = shape[0] - parameter.padding
        return jnp.where(jax.lax.broadcasted_iota(jnp.int32, shape, 0) < real, values, 0.0)

    return jax.tree_util.tree_map_with_path(initial, table)


def check_positions(batch: Batch) -> None:
    """Raises DataError if a token's position in its observation lies beyond the table of positions."""
    positions = np.asarray(batch.positions)
    last = int(positions.max(initial=0, where=positions != NO_POSITION))
    if last >= OBSERVATION_POSITIONS:
        raise DataError(
            f"a time step's observation has at least {last + 1} tokens, and the model has {OBSERVATION_POSITIONS} "
            "positions: build the data with smaller images (images.size) or fewer fields"
        )


def embed(parameters: Tree, batch: Batch, config: ModelConfig, *, dtype: Any) -> jax.Array:
    """The vectors of a batch's tokens (B, L, D) of ``dtype``; zeros for padding.

    Kinds decide, never ids: an image token's vector comes from its patch slot, any other token's from the table, and
    a masked action's is the learned one. Observation tokens, patches included, add the vector of their position
    within the observation; action tokens add one vector that they share (appendix C.3).
    """
    tables = parameters["embedding"]
    kinds, positions, masked = jnp.asarray(batch.kinds), jnp.asarray(batch.positions), jnp.asarray(batch.hidden)

    def where(mask: jax.Array, vectors: jax.Array) -> jax.Array:
        return jnp.where(mask[..., None], vectors, 0.0)

    in_table = (kinds != PADDING) & (kinds != TokenKind.IMAGE) & ~masked
    vectors = where(in_table, by_rows(tables["token"][batch.tokens]))
    vectors += where(masked, tables["hidden_action"])
    is_action = (kinds == TokenKind.DISCRETE_ACTION) | (kinds == TokenKind.CONTINUOUS_ACTION)
    vectors += where(is_action, tables["action_position"])
    observed = (positions != NO_POSITION) & (kinds != PADDING)
    vectors += where(observed, tables["observation_position"][jnp.where(observed, positions, 0)])
    vectors = by_rows((vectors * config.width**0.5).astype(dtype))
    if batch.patches.shape[1] == 0:
        return vectors
    patches = by_rows(patch_vectors(parameters["patches"], batch, config, dtype=dtype))
    groups, slots = batch.patch_token.shape
    grouped = vectors.reshape(groups, -1, config.width)
    # Unused slots point beyond the end, each elsewhere, so that all indices are distinct and ascending.
    tokens = jnp.asarray(batch.patch_token)
    tokens = jnp.where(tokens < 0, grouped.shape[1] + jnp.arange(slots), tokens)

    def add(vectors: jax.Array, index: jax.Array, patches: jax.Array) -> jax.Array:
        return vectors.at[index].add(patches, mode="drop", unique_indices=True, indices_are_sorted=True)

    return by_rows(jax.vmap(add)(grouped, tokens, patches).reshape(vectors.shape))


def by_rows(array: jax.Array) -> jax.Array:
    """An array (rows or groups of rows, …), divided as a batch's rows are on the mesh in use."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    # Without this the compiler may divide the width as the parameters are, and hold every row everywhere.
    return jax.lax.with_sharding_constraint(array, Spec(ROWS))


def patch_vectors(parameters: Tree, batch: Batch, config: ModelConfig, *, dtype: Any) -> jax.Array:
    """A vector for each patch slot (G, P, D) of ``dtype``; those of unused slots mean nothing. One residual block with
    norms first and GELU (appendix C.2), plus the vectors of the patch's row and column (appendix C.3). The uint8
    pixels are scaled to [-1, 1] and by 1/√16 (section 2.1)."""
    groups, slots = batch.patch_row.shape
    pixels = jnp.asarray(batch.patches).reshape(groups * slots, PATCH, PATCH, 3)
    scaled = (pixels.astype(jnp.float32) / 127.5 - 1.0) / 4.0
    features = scaled.astype(dtype) @ parameters["stem"].astype(dtype) + parameters["stem_bias"].astype(dtype)
    branch = features
    for number, stride in ((1, config.patch_stride), (2, 1)):
        branch = _norm_and_gelu(branch, parameters[f"norm_{number}"])
        # 3×3, zeros beyond the border; output cell (0, 0) is centred on input cell (0, 0).
        kernel, layout = parameters[f"convolution_{number}"].astype(dtype), ("NHWC", "HWIO", "NHWC")
        strides, padding = (stride, stride), [(1, 1), (1, 1)]
        branch = jax.lax.conv_general_dilated(branch, kernel, strides, padding, dimension_numbers=layout)
    features = _average(features, PATCH // config.patch_stride) + branch
    cells = _average(features, POOLED) @ parameters["reduce"].astype(dtype)
    vectors = cells.reshape(groups, slots, -1) @ parameters["out"].astype(dtype)
    positions = parameters["row"][batch.patch_row] + parameters["column"][batch.patch_column]
    return vectors + (positions * config.width**0.5).astype(dtype)


def _norm_and_gelu(features: jax.Array, norm: Tree) -> jax.Array:
    """GELU of the group-normalised features (patches, side, side, C), computed in float32."""
    patches, _, _, channels = features.shape

    def group_means(values: jax.Array) -> jax.Array:
        # Over cells first and a group's channels last: eight times as fast on CPUs as all at once.
        means = values.mean((1, 2)).reshape(patches, NORM_GROUPS, -1).mean(-1)
        return jnp.repeat(means, channels // NORM_GROUPS, axis=-1)[:, None, None]

    centred = features.astype(jnp.float32)
    centred = centred - group_means(centred)
    scale = jax.lax.rsqrt(group_means(jnp.square(centred)) + EPSILON) * norm["scale"]
    return jax.nn.gelu(centred * scale + norm["bias"]).astype(features.dtype)


def _average(features: jax.Array, side: int) -> jax.Array:
    """Means over equal cells: (patches, n, n, C) → (patches, side, side, C)."""
    patches, before, _, channels = features.shape
    if before == side:
        return features
    cells = features.reshape(patches, side, before // side, side, before // side, channels)
    return cells.mean((2, 4), dtype=jnp.float32).astype(features.dtype)


def norm(vectors: jax.Array, parameters: Tree) -> jax.Array:
    """Layer norm over the last axis, computed in float32, in the dtype of its input."""
    values = vectors.astype(jnp.float32)
    values = values - values.mean(-1, keepdims=True)
    values = values * jax.lax.rsqrt(jnp.square(values).mean(-1, keepdims=True) + EPSILON)
    return (values * parameters["scale"] + parameters["bias"]).astype(vectors.dtype)


def apply_layers(
    vectors: jax.Array,
    layers: Tree,
    config: ModelConfig,
    attention: Callable[[jax.Array, Tree, Any], tuple[jax.Array, Any]],
    own: Any = None,
    *,
    remat: str = "none",
    key: jax.Array | None = None,
    rows: Any = None,
) -> tuple[jax.Array, Any]:
    """All layers over (B, L, D), by a scan: what a sub-layer computes from its normed input, regularized, is added to
    the input. ``attention`` takes normed inputs, its parameters and the layer's part of ``own``, and returns what it
    adds and anything else, which comes back stacked. The other arguments are those of ``forward``."""

    def body(vectors: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
        parameters, number, own = layer
        regularize = partial(_regularize, None if key is None else jax.random.fold_in(key, number), rows, config)
        added, extra = attention(norm(vectors, parameters["attention_norm"]), parameters["attention"], own)
        vectors = by_rows(vectors + regularize(added, ATTENTION))
        # GEGLU: gate and values each take half of the feed-forward width.
        inputs, matrices = norm(vectors, parameters["feed_forward_norm"]), parameters["feed_forward"]
        both = jnp.einsum("bld,dcf->bclf", inputs, matrices["in"].astype(inputs.dtype))
        added = (jax.nn.gelu(both[:, 0]) * both[:, 1]) @ matrices["out"].astype(inputs.dtype)
        return by_rows(vectors + regularize(added, FEED_FORWARD)), extra

    if remat != "none":
        policies = {
            "attention": jax.checkpoint_policies.save_only_these_names(PROJECTED, ATTENDED),
            "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        }
        body = jax.checkpoint(body, prevent_cse=False, policy=policies.get(remat))
    return jax.lax.scan(body, vectors, (layers, jnp.arange(config.layers), own))


def _regularize(layer_key: Any, rows: Any, config: ModelConfig, added: jax.Array, sub_layer: int) -> jax.Array:
    """Stochastic depth (appendix C) and dropout (appendix E) of what a sub-layer adds, both with inverted scaling. A
    row's draws follow from the layer's key, the sub-layer and the row's number alone, whatever mesh or microbatch."""
    dropout = config.dropout, sub_layer + DROPOUT, added.shape[1:]
    stochastic_depth = config.stochastic_depth, sub_layer, (1, 1)
    for chance, stream, shape in (dropout, stochastic_depth):
        if chance > 0 and layer_key is not None:
            row_keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(layer_key, stream)))(rows)
            kept = jax.vmap(partial(jax.random.bernoulli, p=1 - chance, shape=shape))(row_keys)
            added = jnp.where(kept, added / (1 - chance), 0)
    return added


def forward(
    parameters: Tree,
    batch: Batch,
    config: ModelConfig,
    *,
    dtype: Any,
    remat: str = "none",
    key: jax.Array | None = None,
    rows: jax.Array | None = None,
    hide: bool = False,
) -> jax.Array:
    """The final states (B, L, D) of ``dtype``, normed; those of padding mean nothing. ``remat`` says what the backward
    pass computes again: nothing (``none``), all but the products with parameters (``dots``), all but queries, keys,
    values and attended values (``attention``), or whole layers (``full``). ``key``, folded with seed and step, makes it
    a training pass; ``rows``, int32 (B,), are the rows' numbers in the global batch, by default 0, 1, …. ``hide``
    obeys ``batch.private``."""
    vectors = embed(parameters, batch, config, dtype=dtype)
    private = jnp.asarray(batch.private) if hide else None
    rows = jnp.arange(vectors.shape[0]) if rows is None else rows

    def attention(inputs: jax.Array, parameters: Tree, own: None) -> tuple[jax.Array, None]:
        return self_attention(inputs, parameters, config, private), None

    vectors, _ = apply_layers(vectors, parameters["layers"], config, attention, remat=remat, key=key, rows=rows)
    return norm(vectors, parameters["norm"])


def logits(parameters: Tree, states: jax.Array, vocabulary_size: int) -> jax.Array:
    """float32 logits (…, V) of states (…, D), by the embedding table, the only parameter that is read; −∞ for rows
    that only pad the table."""
    table = parameters["embedding"]["token"]
    values = jnp.einsum("...d,vd->...v", states, table.astype(states.dtype), preferred_element_type=jnp.float32)
    return jnp.where(jnp.arange(table.shape[0]) < vocabulary_size, values, -jnp.inf)
