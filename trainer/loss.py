"""Cross entropy at the targets only, at a cost that follows their number.

Each device gathers the states at the targets of its rows into blocks. A loop over the blocks, as many as the device
with the most targets needs, makes their logits and, in training, their gradients at once. So no array of rows ×
tokens × vocabulary exists, and a batch of few targets is cheap.

Legend: B rows, L tokens, K targets of a block, D width, V rows of the embedding table, E datasets.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gatokit.loader.batch import NO_TOKEN, PADDING, Batch
from gatokit.schemas.tokens import TokenKind
from gatokit.trainer.mesh import ROWS, row_parts

# Targets whose logits exist at a time: 270 MB of float32 at 33,025 ids. Each block adds to the gradient of the whole
# table, so that small ones are bound by memory. On a CPU the last block, which is seldom full, costs more.
BLOCK, CPU_BLOCK = 2048, 256
Logits = Callable[[Any, jax.Array], jax.Array]  # from its parameters and states (K, D) to float32 logits (K, V)


class Sums(NamedTuple):
    """Sums over targets, float32 and in nats, and counts, int32; a mean is their quotient, taken after everything has
    been added up.

    ``loss`` () is weighted as ``loss_weight`` says, and ``weight`` () is what it is divided by: the targets, or the
    rows that have any. All other losses are unweighted: by dataset (E,), by ``TokenKind`` of the target (8,), and of
    the first action of each row, before which no other was seen (). Of ``dataset_positions`` (E,) the
    ``dataset_tokens`` (E,) are not padding. ``redraws`` (E,) counts the windows of a dataset that were replaced because
    the patch slots were full, ``unusable`` () those that were because a record of theirs could not be used.
    """

    loss: jax.Array
    weight: jax.Array
    dataset_loss: jax.Array
    dataset_targets: jax.Array
    kind_loss: jax.Array
    kind_targets: jax.Array
    first_action_loss: jax.Array
    first_action_targets: jax.Array
    dataset_tokens: jax.Array
    dataset_positions: jax.Array
    patches: jax.Array
    redraws: jax.Array
    unusable: jax.Array


def weights(batch: Batch, loss_weight: str) -> jax.Array:
    """Weight of each position's target in the loss, float32 (B, L): 1 for each (``token``), or one over the number of
    its row's targets (``sequence``). The paper states a plain sum over text and actions (section 2.3)."""
    is_target = (batch.target_kinds != PADDING).astype(jnp.float32)
    if loss_weight == "token":
        return is_target
    return is_target / jnp.maximum(1, is_target.sum(axis=1, keepdims=True))


def target_losses(
    logits: Logits, params: Any, states: jax.Array, batch: Batch, loss_weight: str, datasets: int, mesh: Mesh
) -> tuple[jax.Array, Sums]:
    """The weighted sum of a batch's losses, which has a gradient, and all sums, which have none, for the final states
    (B, L, D); ``params`` is what ``logits`` takes and nothing more."""
    is_target, weight = batch.target_kinds != PADDING, weights(batch, loss_weight)
    targets = jnp.asarray(batch.targets, jnp.int32), is_target, weight
    loss, losses = _weighted_loss(logits, mesh, params, states, targets)
    losses = jax.lax.stop_gradient(losses)
    of_dataset = batch.dataset[:, None] == jnp.arange(datasets)
    of_kind = [is_target & (batch.target_kinds == kind) for kind in range(len(TokenKind) + 1)]  # 0: none
    row_loss, row_targets = losses.sum(axis=1), is_target.sum(axis=1, dtype=jnp.int32)
    row_tokens = (batch.kinds != PADDING).sum(axis=1, dtype=jnp.int32)
    first = is_target & batch.first_action
    return loss, Sums(
        loss=jax.lax.stop_gradient(loss),
        weight=weight.sum(),
        dataset_loss=jnp.where(of_dataset, row_loss[:, None], 0).sum(axis=0),
        dataset_targets=jnp.where(of_dataset, row_targets[:, None], 0).sum(axis=0),
        kind_loss=jnp.stack([jnp.where(kind, losses, 0).sum() for kind in of_kind]),
        kind_targets=jnp.stack([kind.sum(dtype=jnp.int32) for kind in of_kind]),
        first_action_loss=jnp.where(first, losses, 0).sum(),
        first_action_targets=first.sum(dtype=jnp.int32),
        dataset_tokens=jnp.where(of_dataset, row_tokens[:, None], 0).sum(axis=0),
        dataset_positions=of_dataset.sum(axis=0, dtype=jnp.int32) * batch.kinds.shape[1],
        patches=(batch.patch_token != NO_TOKEN).sum(dtype=jnp.int32),
        redraws=(batch.redrawn[:, None] == jnp.arange(datasets)).sum(axis=0, dtype=jnp.int32),
        unusable=jnp.asarray(batch.unusable).sum(),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted_loss(logits: Logits, mesh: Mesh, params: Any, states: jax.Array, targets: Any) -> Any:
    return _losses(logits, mesh, params, states, targets, training=False)[0]


def _losses(
    logits: Logits, mesh: Mesh, params: Any, states: jax.Array, targets: Any, training: bool = True
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """The weighted sum () and each position's loss (B, L), 0 without a target; in training also the sum's gradients
    for ``params`` and ``states``. ``targets`` are ids int32, whether the position has one, and weights float32, (B, L)
    each. Every device has its rows; along ``tensor`` the compiler divides the logits."""
    _, mask, weight = targets
    most = mask.reshape(row_parts(mesh), -1).sum(axis=1, dtype=jnp.int32).max()
    block_size = CPU_BLOCK if mesh.devices.flat[0].platform == "cpu" else BLOCK

    def on_device(params: Any, most: jax.Array, states: jax.Array, targets: Any) -> tuple[jax.Array, Any]:
        ids, mask, weight = (array.reshape(-1) for array in targets)
        vectors, count = states.reshape(-1, states.shape[-1]), ids.size
        size = min(block_size, count)
        padded = count + -count % size
        indices = jnp.nonzero(mask, size=padded, fill_value=padded)[0]
        indices = jnp.where(indices < count, indices, count + jnp.arange(padded))  # unique, and sorted

        def block(number: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            losses, gradients = carry
            index = jax.lax.dynamic_slice(indices, (number * size,), (size,))

            def take(array: jax.Array) -> jax.Array:
                return array.at[index].get(mode="fill", fill_value=0)

            def put(array: jax.Array, values: jax.Array) -> jax.Array:
                return array.at[index].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)

            scores, pull = jax.vjp(logits, params, take(vectors))
            is_answer = jnp.arange(scores.shape[1]) == take(ids)[:, None]
            total = jax.nn.logsumexp(scores, axis=1)
            losses = put(losses, total - jnp.where(is_answer, scores, 0).sum(axis=1))
            if training:
                wrong = (jnp.exp(scores - total[:, None]) - is_answer) * take(weight)[:, None]
                more, back = pull(wrong)
                gradients = jax.tree.map(jnp.add, gradients[0], more), put(gradients[1], back)
            return losses, gradients

        zeros = (jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(vectors)) if training else None
        start = jnp.zeros(count, jnp.float32), zeros
        # Devices that ran different numbers of rounds would wait for each other's collectives forever.
        losses, gradients = jax.lax.fori_loop(0, (most + size - 1) // size, block, start)
        if training:
            gradients = jax.tree.map(lambda leaf: leaf[None], gradients[0]), gradients[1].reshape(states.shape)
        return losses.reshape(states.shape[:2]), gradients

    rows, everywhere = PartitionSpec(ROWS), PartitionSpec()
    in_specs, out_specs = (everywhere, everywhere, rows, rows), (rows, rows)
    losses, gradients = jax.shard_map(
        on_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=set(ROWS), check_vma=False
    )(params, most, states, targets)
    if training:
        gradients = jax.tree.map(lambda of_devices: of_devices.sum(axis=0), gradients[0]), gradients[1]
    return ((weight * losses).sum(), losses), gradients


def _backward(logits: Logits, mesh: Mesh, gradients: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    return *jax.tree.map(lambda gradient: (gradient * cotangents[0]).astype(gradient.dtype), gradients), None


_weighted_loss.defvjp(_losses, _backward)
