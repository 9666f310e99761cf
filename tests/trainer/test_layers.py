"""The stack of blocks: what remat may not change, and what stochastic depth and dropout do."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import RELATIVE, VOCABULARY

from gatokit.trainer import model
from gatokit.trainer.attention import self_attention

ROWS, LENGTH = 6, 5
INPUTS = np.random.default_rng(0).normal(size=(ROWS, LENGTH, RELATIVE.width)).astype(np.float32)


@cache
def layers():
    random = np.random.default_rng(1)
    table = model.parameter_table(RELATIVE, VOCABULARY)["layers"]
    return jax.tree.map(lambda leaf: random.normal(leaf.mean, 0.2, leaf.shape).astype(np.float32), table)


def stack(vectors, layers, *, remat="none", key=None, rows=None, **options):
    rows = np.arange(len(vectors)) if rows is None else rows
    config = RELATIVE.model_copy(update=options)

    def attention(inputs, parameters, own):
        return self_attention(inputs, parameters, config, None), None

    return model.apply_layers(vectors, layers, config, attention, remat=remat, key=key, rows=rows)[0]


@cache
def gradients(remat):
    """Of the inputs and of one parameter, in a training pass."""

    def total(vectors, projection):
        with_projection = layers() | {"feed_forward": layers()["feed_forward"] | {"out": projection}}
        found = stack(vectors, with_projection, remat=remat, key=jax.random.key(3), stochastic_depth=0.3)
        return jnp.square(found).sum()

    return jax.jit(jax.grad(total, (0, 1)))(INPUTS, layers()["feed_forward"]["out"])


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("dots", "attention")]


@pytest.mark.parametrize("remat", ["full", *SLOW])
def test_remat_changes_no_gradient(remat):
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4),
        gradients(remat),
        gradients("none"),
    )


def test_draws_follow_a_rows_global_number():
    """Rows in another order, or a part of them alone, as in a microbatch: each row keeps its own."""
    key, options = jax.random.key(9), {"stochastic_depth": 0.4, "dropout": 0.2}
    run = jax.jit(lambda vectors, rows, key: stack(vectors, layers(), key=key, rows=rows, **options))
    whole = np.asarray(run(INPUTS, np.arange(ROWS), key))
    order = np.array([4, 2, 0, 5, 1, 3])
    np.testing.assert_allclose(run(INPUTS[order], order, key), whole[order], atol=1e-5)
    assert (np.asarray(run(INPUTS, np.arange(ROWS), jax.random.key(8))) != whole).any((1, 2)).all()
    assert (np.asarray(run(INPUTS[order], np.arange(ROWS), key)) != whole[order]).any()


def regularized(ones, *, layer=0, sub_layer=0, key=0, **options):
    config = RELATIVE.model_copy(update=options)
    layer_key = jax.random.fold_in(jax.random.key(key), layer)
    return np.asarray(model._regularize(layer_key, np.arange(len(ones)), config, ones, sub_layer))


def test_stochastic_depth_skips_whole_rows_and_scales_the_others():
    ones = jnp.ones((4000, 2, 3))
    found = regularized(ones, stochastic_depth=0.1)
    assert (found == found[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.9], rtol=1e-6)
    assert (found[:, 0, 0] == 0).mean() == pytest.approx(0.1, abs=0.02)


def test_sub_layers_and_layers_draw_apart():
    ones = jnp.ones((200, 1, 1))
    draws = {
        regularized(ones, layer=layer, sub_layer=sub_layer, key=key, stochastic_depth=0.5).tobytes()
        for layer in range(3)
        for sub_layer in range(2)
        for key in range(2)
    }
    assert len(draws) == 12


def test_dropout_drops_elements_and_scales_the_others():
    found = regularized(jnp.ones((20, 30, 40)), stochastic_depth=0, dropout=0.1)
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.9], rtol=1e-6)
    assert (found == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert len(np.unique(found, axis=0)) == 20
