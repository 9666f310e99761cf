"""Counted operations against the sum by hand of a published size, and against XLA's count of unrolled layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gatokit.loader.batch import Batch
from gatokit.schemas.run import ModelConfig
from gatokit.trainer import cost, model
from gatokit.trainer.attention import self_attention
from gatokit.trainer.model import patch_vectors


def test_the_largest_size_by_hand():
    """One row of 1,024 tokens: 24 layers of 2,048; a patch of 64 channels; 33,025 ids."""
    found = cost.forward_flops(
        ModelConfig(size="1.2b"), rows=1, context=1024, patch_slots=10, targets=300, vocabulary_size=33_025
    )
    matrix, square = 2 * 1024 * 2048 * 2048, 2 * 1024 * 1024 * 2048
    assert found["attention"] == 24 * (4 * matrix + 2 * square)
    assert found["relative"] == 24 * (matrix + square)
    assert found["feed_forward"] == 24 * 6 * matrix
    assert found["patches"] == 10 * (98_304 + 37_748_736 + 65_536 + 2_097_152)
    assert found["logits"] == 2 * 300 * 2048 * 33_025
    assert sum(found.values()) == pytest.approx(2.64e12, rel=0.01)


def test_a_step_is_three_forward_passes():
    sizes = {"rows": 8, "context": 64, "patch_slots": 16, "targets": 40, "vocabulary_size": 33_025}
    config = ModelConfig(size="tiny", positions="rotary")
    step, forward = cost.train_step_flops(config, **sizes), cost.forward_flops(config, **sizes)
    assert step == 3 * sum(forward.values())
    assert forward["relative"] == 0


def counted(function, *shapes):
    """XLA's own count of a program's operations; a loop's body would count once."""
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), tree)


@pytest.mark.parametrize("positions", ["relative", "rotary"])
@pytest.mark.parametrize("layers", [1, 2])
def test_layers_against_xla(positions, layers):
    config = ModelConfig(
        layers=layers, width=512, heads=4, head_size=128, hidden=2048, positions=positions, stochastic_depth=0
    )
    rows, context = 4, 512

    def attend(inputs, values, own):
        return self_attention(inputs, values, config, None), None

    def total(vectors, stacked):
        alone = config.model_copy(update={"layers": 1})
        for number in range(layers):
            one = jax.tree.map(lambda leaf, number=number: leaf[number : number + 1], stacked)
            vectors, _ = model.apply_layers(vectors, one, alone, attend)
        return jnp.square(vectors).sum()

    shapes = (
        jax.ShapeDtypeStruct((rows, context, 512), jnp.float32),
        abstract(model.parameter_table(config, 33_025)["layers"]),
    )
    sizes = {"rows": rows, "context": context, "patch_slots": 0, "targets": 0, "vocabulary_size": 33_025}
    assert counted(total, *shapes) == pytest.approx(sum(cost.forward_flops(config, **sizes).values()), rel=0.03)
    step = counted(jax.grad(total, (0, 1)), *shapes)
    assert step == pytest.approx(cost.train_step_flops(config, **sizes), rel=0.03)


def test_patches_against_xla():
    config = ModelConfig(size="364m")
    slots = 8
    batch = Batch(
        *[None] * len(Batch._fields[: Batch._fields.index("patches")]),
        patches=jax.ShapeDtypeStruct((1, slots, 16, 16, 3), np.uint8),
        patch_token=None,
        patch_row=jax.ShapeDtypeStruct((1, slots), np.uint8),
        patch_column=jax.ShapeDtypeStruct((1, slots), np.uint8),
    )

    def vectors(values, batch):
        return patch_vectors(values, batch, config, dtype=jnp.float32)

    found = counted(vectors, abstract(model.parameter_table(config, 33_025)["patches"]), batch)
    expected = cost.forward_flops(config, rows=0, context=0, patch_slots=slots, targets=0, vocabulary_size=0)
    assert found == pytest.approx(sum(expected.values()), rel=0.1)
