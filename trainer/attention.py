"""Causal attention with relative or rotary positions, over whole windows and over a cache of earlier tokens.

Legend: B rows, T queries, S keys (the last T of them are the queries' own tokens), M tokens of a cache, H heads, K head
size, D width.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from gatokit.schemas.run import ModelConfig
from gatokit.trainer import relative_kernel

Tree = Mapping[str, Any]
"""Nested mappings of names to arrays: the model's parameters, or anything shaped like them."""
PROJECTED = "projected"  # the name of queries, keys and values among what a checkpointed layer may keep
KERNEL_HEADS = (16, 32, 64, 128)
KERNEL_LENGTH = 4096  # the longest context whose keys, values and gradients a TPU core holds
SPLASH_MULTIPLE = 128  # splash attention takes lengths that are multiples of this
WAVELENGTH = 10_000.0  # the longest of sinusoidal and rotary positions, divided by 2π

_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


class CacheView(NamedTuple):
    """How T new tokens relate to the M slots of a cache; the same for every layer."""

    old: jax.Array  # int32 (B, M): age order of the token in each slot: 0 is the oldest that the cache can hold
    new: jax.Array  # int32 (B, T): the same count for the new tokens
    visible: jax.Array  # bool (B, T, M + T): what each new token sees
    distance: jax.Array  # int32 (B, T, M + T): from a new token back to what it sees, within [0, M)


def self_attention(inputs: jax.Array, parameters: Tree, config: ModelConfig, private: jax.Array | None) -> jax.Array:
    """What attention adds (B, T, D) for normed inputs (B, T, D); ``private`` (B, T) as in ``attend``."""
    queries, keys, values = (checkpoint_name(array, PROJECTED) for array in _project(inputs, parameters))
    of_positions = distances = None
    if config.positions == "relative":
        distances = distance_keys(parameters, keys.shape[1], config.width, inputs.dtype)
        of_positions = queries + parameters["position_bias"].astype(inputs.dtype)
        queries = queries + parameters["content_bias"].astype(inputs.dtype)
    else:
        order = jnp.arange(keys.shape[1])
        queries, keys = rotate(queries, order), rotate(keys, order)
    attended = attend(queries, keys, values, of_positions, distances, private, config.attention)
    return jnp.einsum("blhk,hkd->bld", attended, parameters["out"].astype(inputs.dtype))


def cached_attention(
    inputs: jax.Array, parameters: Tree, keys: jax.Array, values: jax.Array, view: CacheView, distances: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What attention adds (B, T, D) for normed inputs of new tokens, and their keys (without positions) and values
    (B, T, H, K). ``keys`` and ``values`` (B, H, M, K) are the cache's; ``distances`` (M, H, K) are ``distance_keys``
    or, for rotary positions, None."""
    queries, unturned, new_values = _project(inputs, parameters)
    memory = keys.shape[2]
    if distances is None:
        content, new_keys = rotate(queries, view.new), rotate(unturned, view.new)
        keys = rotate(keys.swapaxes(1, 2), view.old).swapaxes(1, 2)
    else:
        content, new_keys = queries + parameters["content_bias"].astype(inputs.dtype), unturned
    # Old and new keys stay apart: joining them would copy the whole cache.
    old_scores, new_scores = _dot("bthk,bhmk->bhtm", content, keys), _dot("bthk,bshk->bhts", content, new_keys)
    scores = jnp.concatenate([old_scores, new_scores], axis=-1)
    if distances is not None:
        of_positions = queries + parameters["position_bias"].astype(inputs.dtype)
        by_distance = _dot("bthk,shk->bhts", of_positions, distances)
        scores += jnp.take_along_axis(by_distance, memory - 1 - view.distance[:, None], axis=-1)
    weights = _masked_softmax(scores, view.visible[:, None], queries.shape[3]).astype(new_values.dtype)
    attended = jnp.einsum("bhtm,bhmk->bthk", weights[..., :memory], values)
    attended += jnp.einsum("bhts,bshk->bthk", weights[..., memory:], new_values)
    added = jnp.einsum("bthk,hkd->btd", attended, parameters["out"].astype(inputs.dtype))
    return added, unturned, new_values


def _project(inputs: jax.Array, parameters: Tree) -> list[jax.Array]:
    """Queries, keys and values (B, T, H, K) of normed inputs (B, T, D)."""
    matrices = [parameters[name].astype(inputs.dtype) for name in ("query", "key", "value")]
    return [jnp.einsum("bld,dhk->blhk", inputs, matrix) for matrix in matrices]


def distance_keys(parameters: Tree, count: int, width: int, dtype: Any) -> jax.Array:
    """A layer's keys (S, H, K) of the distances count − 1, …, 1, 0 between a query and an earlier token: its projection
    of their sines and cosines (Transformer-XL, Dai et al. 2019, section 3.3)."""
    angles = jnp.arange(count - 1, -1, -1, dtype=jnp.float32)[:, None] * _frequencies(width)
    sinusoids = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width]
    return jnp.einsum("sd,dhk->shk", sinusoids.astype(dtype), parameters["relative"].astype(dtype))


def _frequencies(size: int) -> jax.Array:
    return WAVELENGTH ** -(jnp.arange(0, size, 2, dtype=jnp.float32) / size)


def rotate(vectors: jax.Array, positions: jax.Array) -> jax.Array:
    """Turns queries or keys (B, T, H, K) by their positions, int (T,) or (B, T): rotary positions. K is even, and
    element i and element i + K/2 make a pair."""
    angles = positions.astype(jnp.float32)[..., None, None] * _frequencies(vectors.shape[-1])
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    left, right = jnp.split(vectors.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cosine - right * sine, left * sine + right * cosine], axis=-1)
    return turned.astype(vectors.dtype)


def shift(scores: jax.Array) -> jax.Array:
    """Turns scores by distance (…, T, S), distances falling from S − 1 to 0, into scores by key (…, T, S). Query t is
    the token of key S − T + t. Entries of keys behind their query hold other entries' scores: mask them."""
    *rest, queries, keys = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (len(rest) + 1) + [(1, 0)])
    return padded.reshape(*rest, keys + 1, queries)[..., 1:, :].reshape(scores.shape)


def sees(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """bool (B, T, S) from private numbers (B, T) and (B, S): only queries of the same number see a private key."""
    return (keys[:, None] == 0) | (keys[:, None] == queries[:, :, None])


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    of_positions: jax.Array | None = None,
    distances: jax.Array | None = None,
    private: jax.Array | None = None,
    backend: Literal["auto", "xla", "cudnn", "splash", "kernel"] = "auto",
) -> jax.Array:
    """Causal attention: values (B, T, H, K) for queries (B, T, H, K) from keys and values (B, T, H, K).

    A score is q·k / √K, with relative positions (q·k + p·r) / √K, where p of ``of_positions`` (B, T, H, K) is a query
    of positions, and r of ``distances`` (T, H, K) the key of the distance, from T − 1 to 0. The softmax is float32.
    ``private`` (B, T) further restricts what a query sees, as ``sees`` says. ``auto`` takes, where they serve the call,
    cuDNN on GPUs and splash attention on TPUs for rotary positions without ``private``, ``relative_kernel`` on TPUs for
    all else, and XLA elsewhere. A named backend that cannot serve the call is replaced by XLA, with one warning
    that says why. On a mesh, call it under ``jax.sharding.use_abstract_mesh``, which also tells the platform.
    """
    length, size, platform = keys.shape[1], queries.shape[3], _platform()
    chosen = choose(backend, platform, queries, relative=distances is not None, restricted=private is not None)
    if chosen == "kernel":
        target = "gpu" if platform == "gpu" else "tpu"
        on_device = partial(relative_kernel.attend, target=target)
        return _by_device(on_device, queries, keys, values, of_positions, distances, private)
    if chosen == "splash":
        return checkpoint_name(_splash(queries, keys, values), relative_kernel.ATTENDED)
    position_scores = None
    if distances is not None:
        # Repeated for each row, the distances make a product like that with the keys: a third faster on CPUs. By key,
        # p·r takes the memory of the scores, not K times theirs.
        repeated = jnp.broadcast_to(distances, (len(queries), *distances.shape))
        position_scores = shift(jnp.einsum("bthk,bshk->bhts", of_positions, repeated))
    visible = None if private is None else sees(private, private)
    if chosen == "cudnn":
        bias = None if position_scores is None else position_scores * size**-0.5
        mask = None if visible is None else visible[:, None]
        attended = jax.nn.dot_product_attention(
            queries, keys, values, bias, mask, is_causal=True, implementation="cudnn"
        )
        return checkpoint_name(attended, relative_kernel.ATTENDED)
    scores = _scores(queries, keys)
    if position_scores is not None:
        scores += position_scores
    mask = jnp.tri(length, dtype=bool)  # (T, T): a key at the query or before it
    if visible is not None:
        mask = mask & visible[:, None]
    weights = _masked_softmax(scores, mask, size)
    attended = jnp.einsum("bhts,bshk->bthk", weights.astype(values.dtype), values)
    return checkpoint_name(attended, relative_kernel.ATTENDED)


@jax.custom_vjp
def _scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """float32 products (B, H, T, S) of queries and keys. Their gradients are products of the inputs' dtype."""
    return _dot("bthk,bshk->bhts", queries, keys)


def _scores_backward(saved: tuple[jax.Array, jax.Array], pull: jax.Array) -> tuple[jax.Array, jax.Array]:
    queries, keys = saved
    pull = pull.astype(queries.dtype)
    return jnp.einsum("bhts,bshk->bthk", pull, keys), jnp.einsum("bhts,bthk->bshk", pull, queries)


_scores.defvjp(lambda queries, keys: (_scores(queries, keys), (queries, keys)), _scores_backward)


def _masked_softmax(scores: jax.Array, mask: jax.Array, head_size: int) -> jax.Array:
    """float32 weights (B, H, T, S) of scores before their division by √K; zeros where ``mask`` is false."""
    return jax.nn.softmax(jnp.where(mask, scores * head_size**-0.5, -jnp.inf), axis=-1)


def choose(backend: str, platform: str, queries: jax.Array, *, relative: bool, restricted: bool) -> str:
    """``xla``, ``cudnn``, ``splash`` or ``kernel``: what ``attend`` takes for these shapes and features. ``platform``
    is ``cpu``, ``gpu``, or a TPU's kind, such as ``TPU v5 lite``. ``auto`` never warns."""
    _, length, _, head_size = queries.shape
    dtype, plain = np.dtype(queries.dtype).name, not relative and not restricted
    new_tpu = platform.startswith("TPU") and not platform.startswith(("TPU v2", "TPU v3"))
    kernel_tpu = new_tpu and not platform.startswith("TPU v4")  # earlier ones cannot rotate rows by their numbers
    obstacles = {
        "cudnn": [
            (platform != "gpu", f"it needs a GPU, and this is {platform}"),
            (dtype != "bfloat16", f"it needs precision bfloat16, not {dtype}"),
            (head_size % 8 > 0 or head_size > 128, f"it needs heads of a multiple of 8 up to 128, not {head_size}"),
            (not plain and length % 2 > 0, f"it needs an even context, not {length}"),
        ],
        "splash": [
            (not new_tpu, f"it needs a TPU of generation 4 or later, and this is {platform}"),
            (relative, "it needs rotary positions"),
            (restricted, "it cannot hide actions or pack documents"),
            (length % SPLASH_MULTIPLE > 0, f"it needs a context of a multiple of {SPLASH_MULTIPLE}, not {length}"),
        ],
        "kernel": [
            (not kernel_tpu and platform != "gpu", f"it needs a GPU or a TPU of generation 5 or later, not {platform}"),
            (head_size not in KERNEL_HEADS, f"it needs heads of 16, 32, 64 or 128, not {head_size}"),
            (platform == "gpu" and dtype != "bfloat16", f"it needs precision bfloat16 on GPUs, not {dtype}"),
            (kernel_tpu and length > KERNEL_LENGTH, f"it needs a context up to {KERNEL_LENGTH} on TPUs, not {length}"),
        ],
    }
    for name, pairs in obstacles.items():
        reason = next((why for holds, why in pairs if holds), None)
        taken = backend == name or (backend == "auto" and (kernel_tpu and not plain if name == "kernel" else plain))
        if reason is None and taken:
            return name
        if reason is not None and backend == name:
            _warn(backend, reason)
    return "xla"


@cache
def _warn(backend: str, reason: str) -> None:
    warnings.warn(f"attention {backend} is replaced by xla: {reason}", stacklevel=2)


def _platform() -> str:
    """``cpu``, ``gpu`` or a TPU's kind: that of the mesh in use, which may be of another machine, else of this one."""
    mesh = jax.sharding.get_abstract_mesh()
    device = jax.devices()[0] if mesh.empty or mesh.abstract_device is None else mesh.abstract_device
    kind: str = device.device_kind
    return kind if kind == "cpu" or kind.startswith("TPU") else "gpu"


def _splash(queries: jax.Array, keys: jax.Array, values: jax.Array, *, interpret: bool = False) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention

    def on_device(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        _, length, heads, size = queries.shape
        side = next(side for side in (512, 256, SPLASH_MULTIPLE) if length % side == 0)
        names = splash_attention.BlockSizes.__dataclass_fields__
        blocks: dict[str, Any] = {name: side for name in names if name.startswith("block_")}
        kernel = splash_attention.make_splash_mha_single_device(
            splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads),
            block_sizes=splash_attention.BlockSizes(**blocks),
            interpret=interpret,
        )
        by_head = [array.swapaxes(1, 2) for array in (queries * size**-0.5, keys, values)]
        return jax.vmap(kernel)(*by_head).swapaxes(1, 2)

    return _by_device(on_device, queries, keys, values)


def _by_device(function: Callable[..., jax.Array], *arrays: jax.Array | None) -> jax.Array:
    """A kernel's result (B, T, H, K) for arrays of rows, (B, T, H, K) or (B, T), and of distances (T, H, K). The
    compiler cannot divide a kernel: each device of the mesh runs it on its own rows and heads."""
    if jax.sharding.get_abstract_mesh().empty:
        return function(*arrays)
    rows = ("data", "fsdp")
    by_rank = {4: PartitionSpec(rows, None, "tensor"), 3: PartitionSpec(None, "tensor"), 2: PartitionSpec(rows)}
    specs = tuple(None if array is None else by_rank[array.ndim] for array in arrays)
    return jax.shard_map(function, in_specs=specs, out_specs=by_rank[4], check_vma=False)(*arrays)
