"""The loss at the targets against float64 over all positions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gatokit.loader.batch import Batch
from gatokit.schemas.run import MeshConfig
from gatokit.trainer import loss
from gatokit.trainer.loss import Sums, target_losses, weights
from gatokit.trainer.mesh import make_mesh

ROWS, TOKENS, WIDTH, IDS, PADDED = 4, 10, 6, 23, 24


def batch_of(target_kinds: np.ndarray, targets: np.ndarray, first_action: np.ndarray | None = None) -> Batch:
    """A batch of which only what the loss looks at is filled in; every position holds a token."""
    rows, tokens = target_kinds.shape
    nothing = np.zeros((rows, tokens), np.uint16)
    return Batch(
        tokens=nothing,
        kinds=np.full((rows, tokens), 3, np.uint8),
        positions=nothing,
        hidden=nothing.astype(bool),
        private=nothing,
        targets=targets.astype(np.uint16),
        target_kinds=target_kinds.astype(np.uint8),
        first_action=nothing.astype(bool) if first_action is None else first_action,
        dataset=np.arange(rows, dtype=np.int32) % 3,
        redrawn=np.where(np.arange(rows) < 2, 1, -1).astype(np.int32),
        unusable=np.arange(rows, dtype=np.int32),
        patches=np.zeros((1, 8, 16, 16, 3), np.uint8),
        patch_token=np.array([[0, 3, 7, -1, -1, -1, -1, -1]], np.int32),
        patch_row=np.zeros((1, 8), np.uint8),
        patch_column=np.zeros((1, 8), np.uint8),
    )


def logits(table: jax.Array, hidden: jax.Array) -> jax.Array:
    scores = hidden @ table.T
    return jnp.where(jnp.arange(len(table)) < IDS, scores, -jnp.inf)


def oracle(
    table: np.ndarray, hidden: np.ndarray, batch: Batch, loss_weight: str
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """The weighted sum, each position's loss, and the sum's gradients by table and hidden vectors; in float64."""
    table, hidden = table[:IDS].astype(np.float64), hidden.astype(np.float64)
    losses = np.zeros(batch.targets.shape)
    of_table, of_hidden = np.zeros((PADDED, WIDTH)), np.zeros(hidden.shape)
    total = 0.0
    for row, column in zip(*np.nonzero(batch.target_kinds), strict=True):
        share = 1.0 if loss_weight == "token" else 1 / np.count_nonzero(batch.target_kinds[row])
        scores = table @ hidden[row, column]
        chances = np.exp(scores) / np.exp(scores).sum()
        target = batch.targets[row, column]
        losses[row, column] = -np.log(chances[target])
        total += share * losses[row, column]
        wrong = chances.copy()
        wrong[target] -= 1
        of_hidden[row, column] = share * wrong @ table
        of_table[:IDS] += share * np.outer(wrong, hidden[row, column])
    return total, losses, of_table, of_hidden


def draw_batch(draw: np.random.Generator, share: float) -> Batch:
    is_target = draw.random((ROWS, TOKENS)) < share
    return batch_of(
        is_target * draw.choice([1, 6, 7], (ROWS, TOKENS)),
        is_target * draw.integers(0, IDS, (ROWS, TOKENS)),
        is_target & (draw.random((ROWS, TOKENS)) < 0.3),
    )


@pytest.mark.parametrize(("loss_weight", "block"), [("token", 7), ("sequence", 512)])
def test_equals_float64(monkeypatch: pytest.MonkeyPatch, loss_weight: str, block: int) -> None:
    monkeypatch.setattr(loss, "CPU_BLOCK", block)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def run(table: Any, hidden: Any, batch: Batch) -> Any:
        return target_losses(logits, table, hidden, batch, loss_weight, 3, mesh)

    evaluate, differentiate = jax.jit(run), jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))
    draw = np.random.default_rng(5)
    table = draw.normal(size=(PADDED, WIDTH)).astype(np.float32)
    hidden = draw.normal(size=(ROWS, TOKENS, WIDTH)).astype(np.float32)
    for share in (0.0, 0.1, 0.5, 1.0):
        batch = draw_batch(draw, share)
        (total, sums), (of_table, of_hidden) = differentiate(table, hidden, batch)
        jax.tree.map(np.testing.assert_array_equal, evaluate(table, hidden, batch), (total, sums))
        true_total, losses, true_table, true_hidden = oracle(table, hidden, batch, loss_weight)
        np.testing.assert_allclose(total, true_total, rtol=1e-5)
        np.testing.assert_allclose(of_table, true_table, atol=1e-5)
        np.testing.assert_allclose(of_hidden, true_hidden, atol=1e-5)
        check_sums(sums, losses, batch, loss_weight)


def check_sums(sums: Sums, losses: np.ndarray, batch: Batch, loss_weight: str) -> None:
    is_target = batch.target_kinds > 0
    by_dataset = [losses[batch.dataset == number].sum() for number in range(3)]
    by_kind = [0, *(losses[batch.target_kinds == kind].sum() for kind in range(1, 8))]
    np.testing.assert_allclose(sums.dataset_loss, by_dataset, rtol=1e-5)
    np.testing.assert_allclose(sums.kind_loss, by_kind, rtol=1e-5)
    np.testing.assert_allclose(sums.first_action_loss, losses[batch.first_action].sum(), rtol=1e-5)
    assert sums.dataset_targets.tolist() == [is_target[batch.dataset == number].sum() for number in range(3)]
    assert sums.kind_targets.tolist() == [0, *((batch.target_kinds == kind).sum() for kind in range(1, 8))]
    assert int(sums.first_action_targets) == batch.first_action.sum()
    rows = np.count_nonzero(is_target.any(axis=1))
    assert float(sums.weight) == pytest.approx(is_target.sum() if loss_weight == "token" else rows)
    assert int(sums.patches) == 3
    positions = [TOKENS * np.count_nonzero(batch.dataset == number) for number in range(3)]
    assert sums.dataset_positions.tolist() == positions
    assert sums.dataset_tokens.tolist() == [np.count_nonzero(batch.kinds[batch.dataset == n]) for n in range(3)]
    assert sums.redraws.tolist() == [0, 2, 0]
    assert int(sums.unusable) == 0 + 1 + 2 + 3


def test_weights() -> None:
    kinds = np.array([[1, 0, 6, 7], [0, 0, 0, 0], [0, 6, 0, 0]])
    batch = batch_of(kinds, kinds)
    assert weights(batch, "token").tolist() == [[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    third = np.float32(1) / np.float32(3)
    assert weights(batch, "sequence").tolist() == [[third, 0, third, third], [0, 0, 0, 0], [0, 1, 0, 0]]
