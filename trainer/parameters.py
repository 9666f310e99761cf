"""The model's parameters: one table of shapes, mesh axes and initial values; their arrays, count and sharding.

Legend: V rows of the embedding table, D width, N layers, H heads, K head size, F feed-forward units, C patch channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gatokit.schemas.run import ModelConfig
from gatokit.tokenizers.patches import POSITION_INTERVALS

ROW_MULTIPLE = 256
"""The embedding table is padded to a multiple of this many rows, so that mesh axes divide it."""
POOLED = 4
"""A patch's features are averaged over a grid of 4×4 cells before the last projection."""

Tree = Mapping[str, Any]
"""Nested mappings of names to arrays (or to ``Parameter``s): the parameters, or anything shaped like them."""


@dataclass(frozen=True)
class Parameter:
    """One array of parameters, before it exists."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...] = ()
    """The mesh axis that divides each dimension; dimensions behind the last are not divided."""
    std: float = 0.0
    """Standard deviation of the normal initial values."""
    mean: float = 0.0
    padding: int = 0
    """Rows at the end that never take part; their initial values are zeros."""


def table(config: ModelConfig, vocabulary_size: int) -> dict[str, Any]:
    """Every parameter of the model, float32, as a nested dict; layers are stacked on a leading axis.

    The sizes are those of Gato, table 5; ``vocabulary_size`` is the number of token ids. Token, position and
    hidden-action vectors have deviation 1/√D and enter the first layer times √D (``embedding``); a matrix keeps the
    variance of its inputs, and what adds to the residual stream is divided by the root of its 2N additions.
    """
    width, layers, heads, size = config.width, config.layers, config.heads, config.head_size
    half, channels = config.hidden // 2, config.patch_channels
    residual = (2 * layers) ** -0.5
    padded = -(-vocabulary_size // ROW_MULTIPLE) * ROW_MULTIPLE

    def vectors(rows: int) -> Parameter:
        return Parameter((rows, width), std=width**-0.5)

    def norm(*shape: int) -> dict[str, Parameter]:
        return {"scale": Parameter(shape, mean=1.0), "bias": Parameter(shape)}

    def convolution() -> Parameter:
        return Parameter((3, 3, channels, channels), std=(9 * channels) ** -0.5)

    def heads_in() -> Parameter:
        return Parameter((layers, width, heads, size), (None, "fsdp", "tensor"), std=width**-0.5)

    attention = {
        "query": heads_in(),
        "key": heads_in(),
        "value": heads_in(),
        "out": Parameter(
            (layers, heads, size, width), (None, "tensor", None, "fsdp"), std=residual * (heads * size) ** -0.5
        ),
    }
    if config.positions == "relative":
        attention["relative"] = heads_in()
        attention["content_bias"] = Parameter((layers, heads, size), (None, "tensor"))
        attention["position_bias"] = Parameter((layers, heads, size), (None, "tensor"))
    tokens = {
        "token": Parameter((padded, width), ("tensor", "fsdp"), std=width**-0.5, padding=padded - vocabulary_size),
        "observation_position": vectors(config.observation_positions),
        "hidden_action": Parameter((width,), std=width**-0.5),
    }
    if config.action_position:
        tokens["action_position"] = Parameter((width,), std=width**-0.5)
    pooled = POOLED * POOLED * channels // 2
    return {
        "embedding": tokens,
        "patches": {
            "stem": Parameter((3, channels), std=4 * 3**-0.5),
            "stem_bias": Parameter((channels,)),
            "norm_1": norm(channels),
            "convolution_1": convolution(),
            "norm_2": norm(channels),
            "convolution_2": convolution(),
            "reduce": Parameter((channels, channels // 2), std=channels**-0.5),
            "out": Parameter((pooled, width), (None, "fsdp"), std=pooled**-0.5),
            "row": vectors(POSITION_INTERVALS),
            "column": vectors(POSITION_INTERVALS),
        },
        "layers": {
            "attention_norm": norm(layers, width),
            "attention": attention,
            "feed_forward_norm": norm(layers, width),
            "feed_forward": {
                "in": Parameter((layers, width, 2, half), (None, "fsdp", None, "tensor"), std=width**-0.5),
                "out": Parameter((layers, half, width), (None, "tensor", "fsdp"), std=residual * half**-0.5),
            },
        },
        "norm": norm(width),
    }


def over_paths(function: Callable[[str, Any], Any], tree: Tree) -> dict[str, Any]:
    """The same nested dict with ``function(path, leaf)`` for each leaf; paths look like ``layers/attention/query``."""

    def walk(prefix: str, node: Tree) -> dict[str, Any]:
        return {
            name: walk(f"{prefix}{name}/", value) if isinstance(value, Mapping) else function(prefix + name, value)
            for name, value in node.items()
        }

    return walk("", tree)


def initialize(table: Tree, seed: int) -> dict[str, Any]:
    """The initial parameters, float32. An element's value follows from the seed, its array's path and its place in
    the array alone, so that neither the mesh nor other parameters change it; may be called inside ``jax.jit``."""

    def initial(path: str, parameter: Parameter) -> jax.Array:
        if parameter.std == 0.0:
            return jnp.full(parameter.shape, parameter.mean, jnp.float32)
        values = parameter.mean + parameter.std * _normal(f"{seed} {path}", parameter.shape)
        real = parameter.shape[0] - parameter.padding
        return jnp.where(jax.lax.broadcasted_iota(jnp.int32, parameter.shape, 0) < real, values, 0.0)

    return over_paths(initial, table)


def _normal(name: str, shape: tuple[int, ...]) -> jax.Array:
    """Normal draws, each a hash of the name and its place; on CPUs JAX's own take eight times as long to compile."""
    digest = blake2b(name.encode(), digest_size=8).digest()
    first, second = (np.uint32(int.from_bytes(part, "little")) for part in (digest[:4], digest[4:]))
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        place += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(prod(shape[axis + 1 :]))
    bits = _mix(_mix(place ^ first) ^ second)
    # 2^23 values between -1 and 1, each exact in float32: with one bit more, adding the half would round the last to 1,
    # whose normal is infinite.
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0
    return jax.lax.erf_inv(uniform) * np.float32(2**0.5)


def _mix(bits: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which each changes all others about half the time (Wellons' lowbias32)."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def count(table: Tree) -> int:
    """The number of parameters; rows that only pad the embedding table are not counted."""
    return sum(
        prod((parameter.shape[0] - parameter.padding, *parameter.shape[1:])) for parameter in jax.tree.leaves(table)
    )


def specs(table: Tree) -> dict[str, Any]:
    """The same tree of ``PartitionSpec``s."""
    return over_paths(lambda path, parameter: PartitionSpec(*parameter.axes), table)


def decayed(table: Tree) -> dict[str, Any]:
    """The same tree of bools: whether weight decay pulls on a parameter, which it does on all but norms and biases."""
    return over_paths(lambda path, parameter: parameter.std > 0, table)
