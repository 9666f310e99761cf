"""Causal attention with relative or rotary positions; ``attend`` is the one function that knows the backends.

Legend: B rows, T queries, S keys (the last T of them stand where the queries stand), H heads, K head size, D width.
"""

import warnings
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

Backend = Literal["xla", "cudnn", "splash"]
SPLASH_BLOCK = 128
"""Splash attention takes lengths that are multiples of this."""
WAVELENGTH = 10_000.0
"""Longest wavelength of sinusoidal and rotary positions, over 2π."""


class Relative(NamedTuple):
    """What Transformer-XL's attention adds to keys (Dai et al. 2019, section 3.3), per layer."""

    distances: jax.Array
    """(S, H, K): keys of the distances S − 1, …, 1, 0 between a query and an earlier token."""
    content_bias: jax.Array
    """(H, K): u, added to the queries that meet keys."""
    position_bias: jax.Array
    """(H, K): v, added to the queries that meet distances."""


def sinusoids(count: int, width: int) -> jax.Array:
    """Features (S, D) float32 of the distances count − 1, …, 1, 0: sines, then cosines."""
    frequencies = WAVELENGTH ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = jnp.arange(count - 1, -1, -1, dtype=jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width]


def rotate(vectors: jax.Array, positions: jax.Array) -> jax.Array:
    """Queries or keys (B, T, H, K) turned by their positions int (T,) or (B, T) (rotary positions; K is even).

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
    """Scores by distance (…, T, S), distances falling from S − 1 to 0, as scores by key (…, T, S).

    Query t stands at key S − T + t. Entries of keys behind their query hold other entries' scores: mask them.
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
    """Values (B, T, H, K) that queries (B, T, H, K) take from keys and values (B, S, H, K), causally.

    Scores are divided by √K. ``visible``, bool (B, T, S), further restricts what a query sees; each sees itself.
    With ``relative`` a score is ((q + u)·k + (q + v)·r) / √K, r that of the distance. The softmax is float32.
    ``auto`` takes cuDNN on GPUs and splash attention on TPUs that compile it, both for rotary positions and without
    ``visible``, and XLA elsewhere; a backend that is asked for and cannot be had gives way to XLA with one warning
    that says why. On a mesh, call it under ``jax.sharding.use_abstract_mesh``, which also tells the platform.
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
    """The backend that ``attend`` takes for these shapes and features on a platform: ``cpu``, ``gpu``, or a TPU's
    kind, such as ``TPU v5 lite``. ``auto`` never warns."""
    if backend == "xla":
        return "xla"
    against: dict[Backend, dict[str, bool]] = {
        "cudnn": {
            f"it needs a GPU, and this is {platform}": platform != "gpu",
            f"it needs precision bfloat16, not {dtype}": dtype != "bfloat16",
            f"it needs heads of a multiple of 8 and at most 128, not {head_size}": head_size % 8 > 0 or head_size > 128,
            "it serves no cached decoding": queries != keys,
            f"it needs an even context, not {keys}": (relative or restricted) and keys % 2 > 0,
        },
        "splash": {
            f"it needs a TPU of generation 4 or later, and this is {platform}": not platform.startswith("TPU")
            or platform.startswith(("TPU v2", "TPU v3")),
            "it needs rotary positions": relative,
            "it cannot hide actions": restricted,
            "it serves no cached decoding": queries != keys,
            f"it needs a context of a multiple of {SPLASH_BLOCK}, not {keys}": keys % SPLASH_BLOCK > 0,
        },
    }
    reasons = {
        name: next((reason for reason, holds in these.items() if holds), None) for name, these in against.items()
    }
    if backend == "auto":
        plain = not relative and not restricted
        return next((name for name, reason in reasons.items() if reason is None and plain), "xla")
    for name, reason in reasons.items():
        if name == backend:
            if reason is None:
                return name
            _warn(backend, reason)
    return "xla"


@cache
def _warn(backend: str, reason: str) -> None:
    warnings.warn(f"attention {backend} gives way to xla: {reason}", stacklevel=2)


def _platform() -> str:
    """``cpu``, ``gpu`` or a TPU's kind: of the mesh in use, which need not be of this machine, else of this machine."""
    mesh = jax.sharding.get_abstract_mesh()
    device = jax.devices()[0] if mesh.empty or mesh.abstract_device is None else mesh.abstract_device
    kind: str = device.device_kind
    return kind if kind == "cpu" or kind.startswith("TPU") else "gpu"


def _xla(
    queries: jax.Array, keys: jax.Array, values: jax.Array, relative: Relative | None, visible: jax.Array | None
) -> jax.Array:
    count, total, size = queries.shape[1], keys.shape[1], queries.shape[3]
    content = queries if relative is None else queries + relative.content_bias
    scores = jnp.einsum("bthk,bshk->bhts", content, keys, preferred_element_type=jnp.float32)
    if relative is not None:
        scores += _position_scores(queries, relative)
    scores *= size**-0.5
    mask = _causal(count, total)
    if visible is not None:
        mask = mask & visible[:, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights.astype(values.dtype), values)


def _position_scores(queries: jax.Array, relative: Relative) -> jax.Array:
    """(q + v)·r by key, float32 (B, H, T, S); the memory is that of the scores, not theirs times K."""
    # The same distances for each row, written out, make a product like that with the keys: a third faster on CPUs.
    distances = jnp.broadcast_to(relative.distances, (queries.shape[0], *relative.distances.shape))
    located = queries + relative.position_bias
    return shift(jnp.einsum("bthk,bshk->bhts", located, distances, preferred_element_type=jnp.float32))


def _causal(count: int, total: int) -> jax.Array:
    """bool (T, S): the key stands at the query or before it."""
    return jnp.arange(total) <= jnp.arange(total - count, total)[:, None]


def _cudnn(
    queries: jax.Array, keys: jax.Array, values: jax.Array, relative: Relative | None, visible: jax.Array | None
) -> jax.Array:
    bias: Any = None
    if relative is not None:
        bias = (_position_scores(queries, relative) * queries.shape[3] ** -0.5).astype(queries.dtype)
        queries = queries + relative.content_bias
    return jax.nn.dot_product_attention(
        queries,
        keys,
        values,
        bias,
        None if visible is None else visible[:, None],
        is_causal=True,
        implementation="cudnn",
    )


def _splash(queries: jax.Array, keys: jax.Array, values: jax.Array, *, interpret: bool = False) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention

    def of_shard(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        _, length, heads, size = queries.shape
        block = next(block for block in (512, 256, SPLASH_BLOCK) if length % block == 0)
        kernel = splash_attention.make_splash_mha_single_device(
            splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads),
            block_sizes=splash_attention.BlockSizes(
                block_q=block,
                block_kv=block,
                block_kv_compute=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                block_kv_dkv_compute=block,
                block_q_dq=block,
                block_kv_dq=block,
            ),
            interpret=interpret,
        )
        by_head = [array.swapaxes(1, 2) for array in (queries * size**-0.5, keys, values)]
        return jax.vmap(kernel)(*by_head).swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return of_shard(queries, keys, values)
    # A kernel is opaque to the partitioner: each device runs it on its own rows and heads.
    spec = PartitionSpec(("data", "fsdp"), None, "tensor", None)
    return jax.shard_map(of_shard, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(queries, keys, values)
