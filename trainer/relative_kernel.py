"""Fused causal attention with Transformer-XL's relative positions, or without: Pallas kernels for TPUs and GPUs.

Scores exist one tile at a time, in the memory of a core. The position score of query t and key s is (q + v)·r of
distance t − s, so a tile of them needs a band of distances: the products of its queries with two neighbouring blocks of
r, *far* and *near*, each row moved by its own number (the skew). The backward pass computes each tile again from the
logsumexp of its rows, and undoes the skew to collect the gradients of r.

Legend: B rows, H heads, N blocks of ``side`` tokens, S = N × side tokens, K head size. Block m of distances holds
m × side, …, (m + 1) × side − 1; they fall along the array, so it is the block N − 1 − m there.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton

SIDES = {"tpu": 256, "gpu": 64}  # tokens of a tile's side
VMEM = 64 << 20  # bytes of a TPU core's memory that a kernel may take, of 64 MiB (v5p) or 128 MiB
ATTENDED = "attended"  # the name of attended values among what a checkpointed layer may keep
HIDDEN = -1e30  # a score that nothing sees; finite, so that a tile without a visible key gives no NaN


class Arrays(NamedTuple):
    """What the kernels read, each (B, H, S, K) but for the last two; the last three may be None."""

    content: Any  # queries of keys: q + u, or rotated queries
    keys: Any
    values: Any
    position: Any  # queries of distances: q + v
    distances: Any  # (H, S, K): r of the distances S − 1, …, 0
    private: Any  # int32 (B, N, 1, side): numbers as in ``attention.sees``


@dataclass(frozen=True)
class Kernel:
    """How the kernels run."""

    target: str  # tpu or gpu
    side: int
    interpret: bool

    def call(self, function: Any, arguments: Any, grid: Any, in_specs: Any, out: Any, scratch: Any = ()) -> Any:
        """The results of a kernel; ``out`` pairs their shapes and their block specs."""
        shapes, specs = zip(*out, strict=True)
        parameters: Any = triton.CompilerParams(num_warps=4, num_stages=1)
        if self.target == "tpu":
            order: Any = "parallel", "arbitrary", "arbitrary"
            parameters = pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=VMEM)
        options: Any = {"compiler_params": parameters, "interpret": self.interpret, "scratch_shapes": scratch}
        own = partial(function, self)
        return pl.pallas_call(own, shapes, grid=grid, in_specs=in_specs, out_specs=specs, **options)(*arguments)

    def at(self, block: Any) -> Any:
        """The slice of a block of tokens."""
        return pl.ds(pl.multiple_of(block * self.side, self.side), self.side)

    def skew(self, tile: jax.Array, *, undo: bool = False) -> jax.Array:
        """Moves row i of a float32 tile (side, side) right by i + 1, round the end; ``undo`` moves it back."""
        side, (row, column) = self.side, _indices(self.side)
        bits = range(side.bit_length() - 1)
        if self.target == "tpu" and not undo:
            return pltpu.roll(tile, 1, 1, stride=1, stride_axis=0)
        if self.target == "tpu":  # A TPU rotates rows further and further to the right only.
            for bit in bits:
                moved = pltpu.roll(tile, side - (1 << bit), 1)
                tile = jnp.where((((row + 1) >> bit) & 1) == 1, moved, tile)
            return tile
        # Triton has no rotation. Adding i + 1 to a column bit by bit, with carries, swaps pairs of columns: a sum of
        # integers less one of a pair is the other, to the bit.
        tile = jax.lax.bitcast_convert_type(tile, jnp.int32)
        for bit in reversed(bits) if undo else bits:
            pairs = tile.reshape(side, side >> (bit + 1), 2, 1 << bit)
            swapped = (pairs.sum(2, dtype=jnp.int32)[:, :, None] - pairs).reshape(side, side)
            low = (1 << bit) - 1
            carry = ((column & low) < ((row + 1) & low)).astype(jnp.int32)
            tile = jnp.where((((row + 1) >> bit) & 1) != carry, swapped, tile)
        return jax.lax.bitcast_convert_type(tile, jnp.float32)

    def bands(self, distances: Any, offset: Any) -> tuple[Any, Any]:
        """The slices of the blocks far and near for the tile whose queries lie ``offset`` blocks behind its keys. On
        the diagonal, near means nothing: it is of keys behind their query."""
        blocks = distances.shape[0] // self.side
        return self.at(blocks - 1 - offset), self.at(jnp.minimum(blocks - offset, blocks - 1))

    def scores(self, blocks: Arrays, offset: Any, bands: Any, own: Any) -> jax.Array:
        """float32 scores (side, side) of blocks of queries and keys; ``own`` (1, side) are the queries' private
        numbers, ``blocks.private`` the keys'."""
        row, column = _indices(self.side)
        scores = _dot(blocks.content, blocks.keys, 1, 1)
        if bands is not None:
            far, near = (_dot(blocks.position, band, 1, 1) for band in bands)
            scores += self.skew(jnp.where(row + column >= self.side - 1, far, near))
        visible = offset * self.side + row >= column
        if own is not None:
            visible &= (blocks.private == 0) | (blocks.private == own.reshape(self.side, 1))
        return jnp.where(visible, scores * blocks.content.shape[-1] ** -0.5, HIDDEN)


def _indices(side: int) -> list[jax.Array]:
    return [jax.lax.broadcasted_iota(jnp.int32, (side, side), axis) for axis in (0, 1)]


def _dot(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """The float32 product of two blocks over an axis of each."""
    axes = ((left_axis,), (right_axis,)), ((), ())
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


def _load(kernel: Kernel, arrays: Arrays, query: Any, key: Any) -> tuple[Arrays, Any, Any]:
    """The blocks of a tile, its bands of distances (far, near), and its queries' private numbers."""
    queries, keys = kernel.at(query), kernel.at(key)
    bands = own = None
    if arrays.distances is not None:
        bands = tuple(arrays.distances[band, :] for band in kernel.bands(arrays.distances, query - key))
    if arrays.private is not None:
        own = arrays.private[query]
    position = None if arrays.position is None else arrays.position[queries, :]
    private = None if arrays.private is None else arrays.private[key]
    blocks = arrays.content[queries, :], arrays.keys[keys, :], arrays.values[keys, :]
    return Arrays(*blocks, position, None, private), bands, own


def _forward(kernel: Kernel, arrays: Arrays, out: Any, logsumexp: Any) -> None:
    """A block of queries against all blocks of keys up to its own: their attended values, and logsumexp (1, side)."""
    query, side = pl.program_id(2), kernel.side

    def add(key: Any, carry: Any) -> Any:
        total, weight, highest = carry
        blocks, bands, own = _load(kernel, arrays, query, key)
        scores = kernel.scores(blocks, query - key, bands, own)
        new = jnp.maximum(highest, scores.max(1, keepdims=True))
        weights, decay = jnp.exp(scores - new), jnp.exp(highest - new)
        total = total * decay + _dot(weights.astype(blocks.values.dtype), blocks.values, 1, 0)
        return total, weight * decay + weights.sum(1, keepdims=True), new

    column = jnp.zeros((side, 1), jnp.float32)
    carry = jnp.zeros(out.shape, jnp.float32), column, column + HIDDEN
    total, weight, highest = jax.lax.fori_loop(0, query + 1, add, carry)
    out[...] = (total / weight).astype(out.dtype)
    logsumexp[...] = (highest + jnp.log(weight)).reshape(1, side)


def _tile(kernel: Kernel, arrays: Arrays, pull: Any, rows: Any, query: Any, key: Any) -> tuple[Any, ...]:
    """The blocks of a tile, its bands, its weights, and the gradients of its scores and of its position scores by
    distance, far and near, all of the inputs' dtype. ``rows`` are the logsumexp of the scores and the products of
    ``pull`` with the result, float32 (N, 1, side) each."""
    blocks, bands, own = _load(kernel, arrays, query, key)
    logsumexp, product = (of_rows[query].reshape(kernel.side, 1) for of_rows in rows)
    weights = jnp.exp(kernel.scores(blocks, query - key, bands, own) - logsumexp)
    of_weights = _dot(pull[kernel.at(query), :], blocks.values, 1, 1)
    gradient = weights * (of_weights - product) * blocks.content.shape[-1] ** -0.5
    dtype, by_distance = blocks.content.dtype, tuple[Any, ...]()
    if bands is not None:
        row, column = _indices(kernel.side)
        moved, is_far = kernel.skew(gradient, undo=True), row + column >= kernel.side - 1
        by_distance = tuple(jnp.where(holds, moved, 0).astype(dtype) for holds in (is_far, ~is_far))
    return blocks, bands, weights.astype(dtype), gradient.astype(dtype), by_distance


def _set(out: Any, value: Any) -> None:
    """Fills a block with a number, or with another block."""
    out[...] = jnp.full(out.shape, value, out.dtype) if isinstance(value, float) else value[...].astype(out.dtype)


def _of_keys(kernel: Kernel, arrays: Arrays, pull: Any, rows: Any, keys: Any, values: Any, *others: Any) -> None:
    """The gradients of a block of keys and of its values. On TPUs, whose programs run one after another, also all
    others: ``others`` are those of content, position and distances, (S, K), and float32 sums of the first two."""
    key, blocks = pl.program_id(2), pull.shape[0] // kernel.side
    relative, first = arrays.distances is not None, (key == 0) & (pl.program_id(1) == 0)
    of_queries, of_distances = others[: 1 + relative], others[1 + relative : 1 + 2 * relative]
    sums = others[1 + 2 * relative :]

    for total, begins in (*((total, key == 0) for total in sums), *((total, first) for total in of_distances)):
        pl.when(begins)(partial(_set, total, 0.0))

    def add(query: Any, carry: Any) -> Any:
        own, bands, weights, gradient, by_distance = _tile(kernel, arrays, pull, rows, query, key)
        at = kernel.at(query)
        if others:
            sums[0][at, :] += _dot(gradient, own.keys, 1, 0)
        if others and relative:
            for part, band, place in zip(by_distance, bands, kernel.bands(arrays.distances, query - key), strict=True):
                sums[1][at, :] += _dot(part, band, 1, 0)
                of_distances[0][place, :] += _dot(part, own.position, 0, 0)
        return carry[0] + _dot(gradient, own.content, 0, 0), carry[1] + _dot(weights, pull[at, :], 0, 0)

    zeros = jnp.zeros(keys.shape, jnp.float32)
    of_keys, of_values = jax.lax.fori_loop(key, blocks, add, (zeros, zeros))
    keys[...], values[...] = of_keys.astype(keys.dtype), of_values.astype(values.dtype)
    for out, total in zip(of_queries, sums, strict=True):
        # The last block of keys is the last that adds to any query.
        pl.when(key == blocks - 1)(partial(_set, out, total))


def _of_queries(kernel: Kernel, arrays: Arrays, pull: Any, rows: Any, content: Any, *position: Any) -> None:
    """The gradients of a block of content's and of position's queries."""
    query = pl.program_id(2)

    def add(key: Any, carry: Any) -> Any:
        own, bands, _, gradient, by_distance = _tile(kernel, arrays, pull, rows, query, key)
        of_content, of_position = carry
        for part, band in zip(by_distance, bands or (), strict=True):
            of_position += _dot(part, band, 1, 0)
        return of_content + _dot(gradient, own.keys, 1, 0), of_position

    zeros = jnp.zeros(content.shape, jnp.float32)
    of_content, of_position = jax.lax.fori_loop(0, query + 1, add, (zeros, zeros))
    content[...] = of_content.astype(content.dtype)
    for out in position:
        out[...] = of_position.astype(out.dtype)


def _of_distances(kernel: Kernel, arrays: Arrays, pull: Any, rows: Any, far: Any, near: Any) -> None:
    """The gradients of the blocks far and near of the tiles at one offset, of one row of the batch."""
    offset, blocks = pl.program_id(2), pull.shape[0] // kernel.side

    def add(query: Any, carry: Any) -> Any:
        own, _, _, _, by_distance = _tile(kernel, arrays, pull, rows, query, query - offset)
        return tuple(total + _dot(part, own.position, 0, 0) for total, part in zip(carry, by_distance, strict=True))

    zeros = jnp.zeros(far.shape, jnp.float32)
    far[...], near[...] = jax.lax.fori_loop(offset, blocks, add, (zeros, zeros))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(kernel: Kernel, arrays: Arrays) -> jax.Array:
    """The attended values (B, H, S, K)."""
    return _attend_forward(kernel, arrays)[0]


def _layout(kernel: Kernel, arrays: Arrays) -> tuple[tuple[int, int, int], Arrays, Any, Any, Any, Any]:
    """The grid of heads, rows and blocks; the block specs of ``arrays``, whole; those of a block of tokens and of all;
    and those of one and of all rows of numbers (1, side)."""
    rows, heads, tokens, size = arrays.content.shape
    blocks, side = tokens // kernel.side, kernel.side
    tile = pl.BlockSpec((None, None, side, size), lambda h, b, i: (b, h, i, 0))
    whole = pl.BlockSpec((None, None, tokens, size), lambda h, b, i: (b, h, 0, 0))
    row = pl.BlockSpec((None, None, None, 1, side), lambda h, b, i: (b, h, i, 0, 0))
    all_rows = pl.BlockSpec((None, None, blocks, 1, side), lambda h, b, i: (b, h, 0, 0, 0))
    distances = pl.BlockSpec((None, tokens, size), lambda h, b, i: (h, 0, 0))
    private = pl.BlockSpec((None, blocks, 1, side), lambda h, b, i: (b, 0, 0, 0))
    given = Arrays(whole, whole, whole, whole, distances, private)
    specs = Arrays(*(None if array is None else spec for array, spec in zip(arrays, given, strict=True)))
    return (heads, rows, blocks), specs, tile, whole, row, all_rows


def _attend_forward(kernel: Kernel, arrays: Arrays) -> tuple[jax.Array, Any]:
    grid, specs, tile, _, row, _ = _layout(kernel, arrays)
    heads, rows, blocks = grid
    of_rows = jax.ShapeDtypeStruct((rows, heads, blocks, 1, kernel.side), jnp.float32)
    out = (jax.ShapeDtypeStruct(arrays.content.shape, arrays.content.dtype), tile), (of_rows, row)
    found, logsumexp = kernel.call(_forward, (arrays,), grid, (specs,), out)
    found, logsumexp = checkpoint_name(found, ATTENDED), checkpoint_name(logsumexp, ATTENDED)
    return found, (arrays, found, logsumexp)


def _attend_backward(kernel: Kernel, saved: Any, pull: jax.Array) -> tuple[Arrays]:
    arrays, found, logsumexp = saved
    grid, specs, tile, whole, _, all_rows = _layout(kernel, arrays)
    product = (pull.astype(jnp.float32) * found.astype(jnp.float32)).sum(-1).reshape(logsumexp.shape)
    run = partial(kernel.call, arguments=(arrays, pull, (logsumexp, product)), grid=grid)
    run = partial(run, in_specs=(specs, whole, (all_rows, all_rows)))
    tokens, sums = (jax.ShapeDtypeStruct(pull.shape, dtype) for dtype in (pull.dtype, jnp.float32))
    relative = arrays.distances is not None
    position = distances = None
    if kernel.target == "tpu":
        out = [(tokens, tile), (tokens, tile), *[(tokens, whole)] * (1 + relative)]
        if relative:
            out += [(jax.ShapeDtypeStruct(arrays.distances.shape, jnp.float32), specs.distances)]
        scratch = [pltpu.VMEM(pull.shape[2:], jnp.float32)] * (1 + relative)
        keys, values, content, *others = run(_of_keys, out=out, scratch=scratch)
        position, distances = others or (None, None)
    else:
        keys, values = run(_of_keys, out=[(tokens, tile)] * 2)
        content, *others = run(_of_queries, out=[(tokens, tile)] * (1 + relative))
        if relative:
            (position,) = others
            by_distance = pl.BlockSpec(tile.block_shape, lambda h, b, m: (b, h, grid[2] - 1 - m, 0))
            far, near = (part.sum(0) for part in run(_of_distances, out=[(sums, by_distance)] * 2))
            # What the tiles at offset m call near is the block m - 1.
            distances = far + jnp.pad(near, ((0, 0), (kernel.side, 0), (0, 0)))[:, : near.shape[1]]
    gradients = Arrays(content, keys, values, position, distances, None)
    return (Arrays(*(a if a is None else a.astype(b.dtype) for a, b in zip(gradients, arrays, strict=True))),)


_attend.defvjp(_attend_forward, _attend_backward)


def attend(
    content: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array | None,
    distances: jax.Array | None,
    private: jax.Array | None,
    *,
    target: str,
    side: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """The attended values (B, T, H, K) of ``content``, ``keys``, ``values`` and ``position`` (B, T, H, K), of the keys
    ``distances`` (T, H, K) of the distances T − 1, …, 0, and of ``private``, integers (B, T) as in ``attention.sees``.
    ``position`` and ``distances`` are None for rotary positions, ``private`` if all later tokens see a token.
    ``target`` is ``tpu`` or ``gpu``; ``side`` is a power of two."""
    kernel = Kernel(target, side or SIDES[target], interpret)
    length = keys.shape[1]
    behind = -length % kernel.side  # no query sees the padding behind it, and no distance in front is one of theirs

    def by_head(array: jax.Array | None) -> jax.Array | None:
        return None if array is None else jnp.pad(array, ((0, 0), (0, behind), (0, 0), (0, 0))).swapaxes(1, 2)

    if distances is not None:
        distances = jnp.pad(distances, ((behind, 0), (0, 0), (0, 0))).swapaxes(0, 1)
    if private is not None:
        numbers = jnp.pad(private.astype(jnp.int32), ((0, 0), (0, behind)))
        private = numbers.reshape(len(numbers), -1, 1, kernel.side)
    arrays = Arrays(by_head(content), by_head(keys), by_head(values), by_head(position), distances, private)
    return _attend(kernel, arrays).swapaxes(1, 2)[:, :length]
