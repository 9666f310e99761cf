"""Causal attention with relative or rotary positions; ``attend`` is the one function that knows the backends.

Legend: B rows, T queries, S keys (the last T of them are the queries' own tokens), H heads, K head size, D width.
"""

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gatokit.schemas.run import ModelConfig

Tree = Mapping[str, Any]
"""Nested mappings of names to arrays: the model's parameters, or anything shaped like them."""
Backend = Literal["xla", "cudnn", "splash"]
SPLASH_MULTIPLE = 128
"""Splash attention takes lengths that are multiples of this."""
WAVELENGTH = 10_000.0
"""Longest wavelength of sinusoidal and rotary positions, divided by 2π."""


class Relative(NamedTuple):
    """One layer's relative positions (Transformer-XL, Dai et al. 2019, section 3.3)."""

    distances: jax.Array
    """(S, H, K): a key for each distance S − 1, …, 1, 0 between a query and an earlier token."""
    content_bias: jax.Array
    """(H, K): u, added to the queries that meet keys."""
    position_bias: jax.Array
    """(H, K): v, added to the queries that meet distances."""


def project(inputs: jax.Array, parameters: Tree) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values (B, T, H, K) of normed inputs (B, T, D)."""
    queries, keys, values = (
        jnp.einsum("bld,dhk->blhk", inputs, parameters[name].astype(inputs.dtype)) for name in ("query", "key", "value")
    )
    return queries, keys, values


def relative_positions(parameters: Tree, keys: int, width: int, dtype: Any) -> Relative:
    """A layer's relative positions for ``keys`` keys: its projection of sinusoids of the distances."""
    distances = jnp.einsum("sd,dhk->shk", sinusoids(keys, width).astype(dtype), parameters["relative"].astype(dtype))
    return Relative(distances, parameters["content_bias"].astype(dtype), parameters["position_bias"].astype(dtype))


def self_attention(inputs: jax.Array, parameters: Tree, config: ModelConfig, visible: jax.Array | None) -> jax.Array:
    """What attention adds (B, T, D) for normed inputs (B, T, D); ``visible`` (B, T, T) as in ``attend``."""
    queries, keys, values = project(inputs, parameters)
    relative = None
    if config.positions == "relative":
        relative = relative_positions(parameters, keys.shape[1], config.width, inputs.dtype)
    else:
        order = jnp.arange(keys.shape[1])
        queries, keys = rotate(queries, order), rotate(keys, order)
    attended = attend(queries, keys, values, relative=relative, visible=visible, backend=config.attention)
    return jnp.einsum("blhk,hkd->bld", attended, parameters["out"].astype(inputs.dtype))


def sees(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """bool (B, T, S) from private numbers (B, T) and (B, S): only queries of the same number see a private key."""
    return (keys[:, None] == 0) | (keys[:, None] == queries[:, :, None])


def sinusoids(count: int, width: int) -> jax.Array:
    """Features (S, D) float32 of the distances count − 1, …, 1, 0: sines, then cosines."""
    frequencies = WAVELENGTH ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = jnp.arange(count - 1, -1, -1, dtype=jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width]


def rotate(vectors: jax.Array, positions: jax.Array) -> jax.Array:
    """Turns queries or keys (B, T, H, K) by their positions, int (T,) or (B, T): rotary positions. K is even.

    Element i and element i + K/2 make a pair.
    """
    size = vectors.shape[-1]
    frequencies = WAVELENGTH ** -(jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    left, right = jnp.split(vectors.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cosine - right * sine, left * sine + right * cosine], axis=-1)
    return turned.astype(vectors.dtype)


def shift(scores: jax.Array) -> jax.Array:
    """Turns scores by distance (…, T, S), distances falling from S − 1 to 0, into scores by key (…, T, S).

    Query t is the token of key S − T + t. Entries of keys behind their query hold other entries' scores: mask them.
    """
    *rest, queries, keys = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (len(rest) + 1) + [(1, 0)])
    return padded.reshape(*rest, keys + 1, queries)[..., 1:, :].reshape(scores.shape)


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    relative: Relative | None = None,
    visible: jax.Array | None = None,
    backend: Literal["auto", "xla", "cudnn", "splash"] = "auto",
) -> jax.Array:
    """Causal attention: values (B, T, H, K) for queries (B, T, H, K) from keys and values (B, S, H, K).

    Scores are divided by √K. ``visible``, bool (B, T, S), further restricts what a query sees; each sees itself.
    With ``relative`` a score is ((q + u)·k + (q + v)·r) / √K, where r is the key of the distance. The softmax is
    float32. ``auto`` takes cuDNN on GPUs and splash attention on TPUs that compile it, both only for rotary positions
    without ``visible``, and XLA elsewhere. A named backend that cannot serve the call is replaced by XLA, with one
    warning that says why. On a mesh, call it under ``jax.sharding.use_abstract_mesh``, which also tells the platform.
    """
    chosen = choose(
        backend,
        platform=_platform(),
        queries=queries.shape[1],
        keys=keys.shape[1],
        head_size=queries.shape[3],
        dtype=np.dtype(queries.dtype).name,
        relative=relative is not None,
        restricted=visible is not None,
    )
    if chosen == "splash":
        return _splash(queries, keys, values)
    if chosen == "cudnn":
        return _cudnn(queries, keys, values, relative, visible)
    return _xla(queries, keys, values, relative, visible)


def choose(
    backend: str,
    *,
    platform: str,
    queries: int,
    keys: int,
    head_size: int,
    dtype: str,
    relative: bool,
    restricted: bool,
) -> Backend:
    """The backend that ``attend`` takes for these shapes and features. ``platform`` is ``cpu``, ``gpu``, or a TPU's
    kind, such as ``TPU v5 lite``. ``auto`` never warns."""
    new_tpu = platform.startswith("TPU") and not platform.startswith(("TPU v2", "TPU v3"))
    obstacles: dict[Backend, list[tuple[bool, str]]] = {
        "xla": [],
        "cudnn": [
            (platform != "gpu", f"it needs a GPU, and this is {platform}"),
            (dtype != "bfloat16", f"it needs precision bfloat16, not {dtype}"),
            (head_size % 8 > 0 or head_size > 128, f"it needs heads of a multiple of 8 up to 128, not {head_size}"),
            (queries != keys, "it does not support decoding with a cache"),
            ((relative or restricted) and keys % 2 > 0, f"it needs an even context, not {keys}"),
        ],
        "splash": [
            (not new_tpu, f"it needs a TPU of generation 4 or later, and this is {platform}"),
            (relative, "it needs rotary positions"),
            (restricted, "it cannot hide actions"),
            (queries != keys, "it does not support decoding with a cache"),
            (keys % SPLASH_MULTIPLE > 0, f"it needs a context of a multiple of {SPLASH_MULTIPLE}, not {keys}"),
        ],
    }
    first = {name: next((why for holds, why in pairs if holds), None) for name, pairs in obstacles.items()}
    wanted: tuple[Backend, ...] = ("cudnn", "splash") if backend == "auto" and not (relative or restricted) else ()
    for name, reason in first.items():
        if name == backend and reason is not None:
            _warn(backend, reason)
        elif reason is None and (name == backend or name in wanted):
            return name
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


def _xla(
    queries: jax.Array, keys: jax.Array, values: jax.Array, relative: Relative | None, visible: jax.Array | None
) -> jax.Array:
    count, total = queries.shape[1], keys.shape[1]
    scores = dot("bthk,bshk->bhts", content_queries(queries, relative), keys)
    if relative is not None:
        scores += _position_scores(queries, relative)
    mask = jnp.arange(total) <= jnp.arange(total - count, total)[:, None]  # (T, S): a key at the query or before it
    if visible is not None:
        mask = mask & visible[:, None]
    weights = masked_softmax(scores, mask, queries.shape[3])
    return jnp.einsum("bhts,bshk->bthk", weights.astype(values.dtype), values)


def dot(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """``jnp.einsum`` with float32 sums."""
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def content_queries(queries: jax.Array, relative: Relative | None) -> jax.Array:
    """The queries (B, T, H, K) that meet keys."""
    return queries if relative is None else queries + relative.content_bias


def distance_scores(queries: jax.Array, relative: Relative) -> jax.Array:
    """(q + v)·r by distance, float32 (B, H, T, S); the distances may also be repeated for each row, (B, S, H, K)."""
    equation = "bthk,shk->bhts" if relative.distances.ndim == 3 else "bthk,bshk->bhts"
    return dot(equation, queries + relative.position_bias, relative.distances)


def _position_scores(queries: jax.Array, relative: Relative) -> jax.Array:
    """(q + v)·r by key, float32 (B, H, T, S); the memory is that of the scores, not K times theirs."""
    # Repeated for each row, the distances make a product like that with the keys: a third faster on CPUs.
    repeated = jnp.broadcast_to(relative.distances, (len(queries), *relative.distances.shape))
    return shift(distance_scores(queries, relative._replace(distances=repeated)))


def masked_softmax(scores: jax.Array, mask: jax.Array, head_size: int) -> jax.Array:
    """float32 weights (B, H, T, S) of scores before their division by √K; zeros where ``mask`` is false."""
    return jax.nn.softmax(jnp.where(mask, scores * head_size**-0.5, -jnp.inf), axis=-1)


def _cudnn(
    queries: jax.Array, keys: jax.Array, values: jax.Array, relative: Relative | None, visible: jax.Array | None
) -> jax.Array:
    bias: Any = None
    if relative is not None:
        bias = (_position_scores(queries, relative) * queries.shape[3] ** -0.5).astype(queries.dtype)
    mask = None if visible is None else visible[:, None]
    content = content_queries(queries, relative)
    return jax.nn.dot_product_attention(content, keys, values, bias, mask, is_causal=True, implementation="cudnn")


def _splash(queries: jax.Array, keys: jax.Array, values: jax.Array, *, interpret: bool = False) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention

    def on_device(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        _, length, heads, size = queries.shape
        side = next(side for side in (512, 256, SPLASH_MULTIPLE) if length % side == 0)
        forward: dict[str, Any] = dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), side)
        for_keys: dict[str, Any] = dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"), side)
        kernel = splash_attention.make_splash_mha_single_device(
            splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads),
            block_sizes=splash_attention.BlockSizes(**forward, **for_keys, block_q_dq=side, block_kv_dq=side),
            interpret=interpret,
        )
        by_head = [array.swapaxes(1, 2) for array in (queries * size**-0.5, keys, values)]
        return jax.vmap(kernel)(*by_head).swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return on_device(queries, keys, values)
    # The compiler cannot divide a kernel: each device runs it on its own rows and heads.
    spec = PartitionSpec(("data", "fsdp"), None, "tensor", None)
    return jax.shard_map(on_device, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(queries, keys, values)
