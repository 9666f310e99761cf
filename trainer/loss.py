"""Cross entropy at the targets only, at a cost that follows how many there are.

A shard gathers the hidden vectors at its targets into blocks; a loop over the blocks that are needed, as many as the
fullest shard has, makes their logits and, when training, their gradients at once. So no array of rows × tokens ×
vocabulary exists, and a batch of few targets is cheap.

Legend: B rows, L tokens, N = B L positions of a shard, K targets of a block, D width, V rows of the vocabulary's
table, E datasets.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gatokit.loader.batch import NO_TOKEN, PADDING, Batch
from gatokit.schemas.tokens import TokenKind
from gatokit.trainer.mesh import ROWS, shards

BLOCK = 2048
"""Targets whose logits exist at a time: 270 MB of float32 at 33,025 ids. Each block adds to the gradient of the whole
table, so that small ones are bound by memory."""
CPU_BLOCK = 256
"""The same on a CPU, where the last block, which is seldom full, costs more."""
KINDS = len(TokenKind) + 1
"""Kinds are counted by their number; 0 is never a target."""

Logits = Callable[[Any, jax.Array], jax.Array]
"""From its parameters and hidden vectors (K, D) to float32 logits (K, V)."""


class Sums(NamedTuple):
    """Sums over targets, float32, and their counts, int32; a mean is their quotient, taken once, after everything
    has been added up. Losses are in nats."""

    loss: jax.Array
    """(): weighted as ``loss_weight`` says."""
    weight: jax.Array
    """float32 (): what ``loss`` is divided by: the targets, or the rows that have any."""
    dataset_loss: jax.Array
    """(E,): unweighted, as the others below."""
    dataset_targets: jax.Array
    """(E,)"""
    kind_loss: jax.Array
    """(8,): by ``TokenKind`` of the target."""
    kind_targets: jax.Array
    """(8,)"""
    first_action_loss: jax.Array
    """(): of the first action of a row that has any, before which no other was seen."""
    first_action_targets: jax.Array
    """()"""
    tokens: jax.Array
    """(): positions that are not padding."""
    patches: jax.Array
    """(): image patches."""
    redraws: jax.Array
    """(E,): windows of the dataset that gave way to others, the patch slots being full."""


def weights(batch: Batch, loss_weight: str) -> jax.Array:
    """Weight of each position's target in the loss, float32 (B, L): 1 for each (``token``), or one over the number of
    its row's targets (``sequence``); 0 where there is no target.

    Dividing by the number of targets is ours; the paper states a plain sum over text and actions (section 2.3).
    """
    is_target = (batch.target_kinds != PADDING).astype(jnp.float32)
    if loss_weight == "token":
        return is_target
    return is_target / jnp.maximum(1, is_target.sum(axis=1, keepdims=True))


def target_losses(
    logits: Logits, params: Any, hidden: jax.Array, batch: Batch, loss_weight: str, datasets: int, mesh: Mesh
) -> tuple[jax.Array, Sums]:
    """The weighted sum of a batch's losses, which has a gradient, and all sums, which have none.

    ``hidden`` (B, L, D) is the vector at each position; ``params`` is what ``logits`` takes and nothing more.
    """
    weight = weights(batch, loss_weight)
    is_target = batch.target_kinds != PADDING
    loss, losses = _weighted_loss(logits, mesh, params, hidden, batch.targets.astype(jnp.int32), is_target, weight)
    return loss, _sums(batch, weight, jax.lax.stop_gradient(loss), jax.lax.stop_gradient(losses), datasets)


def _sums(batch: Batch, weight: jax.Array, loss: jax.Array, losses: jax.Array, datasets: int) -> Sums:
    is_target = batch.target_kinds != PADDING
    of_dataset = batch.dataset[:, None] == jnp.arange(datasets)
    of_kind = [is_target & (batch.target_kinds == kind) for kind in range(KINDS)]
    row_loss, row_targets = losses.sum(axis=1), is_target.sum(axis=1, dtype=jnp.int32)
    first = is_target & batch.first_action
    return Sums(
        loss=loss,
        weight=weight.sum(),
        dataset_loss=jnp.where(of_dataset, row_loss[:, None], 0).sum(axis=0),
        dataset_targets=jnp.where(of_dataset, row_targets[:, None], 0).sum(axis=0),
        kind_loss=jnp.stack([jnp.where(kind, losses, 0).sum() for kind in of_kind]),
        kind_targets=jnp.stack([kind.sum(dtype=jnp.int32) for kind in of_kind]),
        first_action_loss=jnp.where(first, losses, 0).sum(),
        first_action_targets=first.sum(dtype=jnp.int32),
        tokens=(batch.kinds != PADDING).sum(dtype=jnp.int32),
        patches=(batch.patch_token != NO_TOKEN).sum(dtype=jnp.int32),
        redraws=(batch.redrawn[:, None] == jnp.arange(datasets)).sum(axis=0, dtype=jnp.int32),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted_loss(
    logits: Logits,
    mesh: Mesh,
    params: Any,
    hidden: jax.Array,
    targets: jax.Array,
    is_target: jax.Array,
    weight: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    losses, _, _ = _over_shards(logits, mesh, False, params, hidden, targets, is_target, weight)
    return (weight * losses).sum(), losses


def _forward(
    logits: Logits,
    mesh: Mesh,
    params: Any,
    hidden: jax.Array,
    targets: jax.Array,
    is_target: jax.Array,
    weight: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, jax.Array | None]]:
    losses, of_params, of_hidden = _over_shards(logits, mesh, True, params, hidden, targets, is_target, weight)
    return ((weight * losses).sum(), losses), (of_params, of_hidden)


def _backward(
    logits: Logits, mesh: Mesh, saved: tuple[Any, jax.Array], given: tuple[jax.Array, jax.Array]
) -> tuple[Any, jax.Array, None, None, None]:
    scale = given[0]
    of_params, of_hidden = jax.tree.map(lambda gradient: (gradient * scale).astype(gradient.dtype), saved)
    return of_params, of_hidden, None, None, None


_weighted_loss.defvjp(_forward, _backward)


def _over_shards(
    logits: Logits,
    mesh: Mesh,
    training: bool,
    params: Any,
    hidden: jax.Array,
    targets: jax.Array,
    is_target: jax.Array,
    weight: jax.Array,
) -> tuple[jax.Array, Any, jax.Array | None]:
    """``_blocks`` on every shard by itself; along ``tensor`` the compiler divides the logits."""
    rows, everywhere = PartitionSpec(ROWS), PartitionSpec()
    size = CPU_BLOCK if mesh.devices.flat[0].platform == "cpu" else BLOCK
    most = is_target.reshape(shards(mesh), -1).sum(axis=1, dtype=jnp.int32).max()
    losses, of_params, of_hidden = jax.shard_map(
        partial(_blocks, logits, training, size),
        mesh=mesh,
        in_specs=(everywhere, everywhere, rows, rows, rows, rows),
        out_specs=(rows, rows, rows),
        axis_names=set(ROWS),
        check_vma=False,
    )(params, most, hidden, targets, is_target, weight)
    return losses, jax.tree.map(lambda of_shards: of_shards.sum(axis=0), of_params), of_hidden


def _blocks(
    logits: Logits,
    training: bool,
    size: int,
    params: Any,
    most: jax.Array,
    hidden: jax.Array,
    targets: jax.Array,
    is_target: jax.Array,
    weight: jax.Array,
) -> tuple[jax.Array, Any, jax.Array | None]:
    """A shard's losses (B, L), 0 where there is no target, and in training the gradients of their weighted sum, those
    of ``params`` with an axis of shards in front.

    ``size``: targets of a block. ``most``: targets of the fullest shard, so that all go the same number of rounds: a
    program of many devices must not part ways before a collective.
    """
    size = min(size, targets.size)
    padded = targets.size + -targets.size % size
    places = jnp.nonzero(is_target.reshape(-1), size=padded, fill_value=padded)[0]
    places = jnp.where(places < targets.size, places, targets.size + jnp.arange(padded))  # unique, and sorted
    vectors, ids, share = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), weight.reshape(-1)

    def block(number: jax.Array, found: tuple[jax.Array, Any, jax.Array | None]) -> tuple[jax.Array, Any, Any]:
        losses, of_params, of_hidden = found
        at = jax.lax.dynamic_slice(places, (number * size,), (size,))

        def take(array: jax.Array) -> jax.Array:
            return array.at[at].get(mode="fill", fill_value=0)

        scores, pull = jax.vjp(logits, params, take(vectors))
        is_answer = jnp.arange(scores.shape[1]) == take(ids)[:, None]
        total = jax.nn.logsumexp(scores, axis=1)
        answers = jnp.where(is_answer, scores, 0).sum(axis=1)
        losses = losses.at[at].set(total - answers, mode="drop", unique_indices=True, indices_are_sorted=True)
        if training:
            wrong = (jnp.exp(scores - total[:, None]) - is_answer) * take(share)[:, None]
            more, back = pull(wrong)
            of_params = jax.tree.map(jnp.add, of_params, more)
            assert of_hidden is not None
            of_hidden = of_hidden.at[at].set(back, mode="drop", unique_indices=True, indices_are_sorted=True)
        return losses, of_params, of_hidden

    start = (
        jnp.zeros(targets.size, jnp.float32),
        jax.tree.map(jnp.zeros_like, params) if training else None,
        jnp.zeros_like(vectors) if training else None,
    )
    losses, of_params, of_hidden = jax.lax.fori_loop(0, (most + size - 1) // size, block, start)
    if of_hidden is not None:
        of_params, of_hidden = jax.tree.map(lambda leaf: leaf[None], of_params), of_hidden.reshape(hidden.shape)
    return losses.reshape(targets.shape), of_params, of_hidden
