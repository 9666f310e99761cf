"""What a token's vector is made of: kinds decide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import CA, DA, RELATIVE, VOCABULARY, C, D, N, P, S, T, batch_of

from gatokit.schemas.errors import DataError
from gatokit.schemas.run import ModelConfig, patch_block
from gatokit.trainer import model
from gatokit.trainer.model import patch_vectors

WIDTH = RELATIVE.width
TABLE = model.parameter_table(RELATIVE, VOCABULARY)
VALUES = jax.tree.map(
    lambda leaf: np.random.default_rng(leaf.shape[0]).normal(leaf.mean, 0.1, leaf.shape).astype(np.float32), TABLE
)
TOKENS = VALUES["embedding"]


def embed(rows, slots=0):
    batch = batch_of(rows, 6, groups=1, slots=slots)
    return batch, np.asarray(model.embed(VALUES, batch, RELATIVE, dtype=jnp.float32))


def test_kinds_decide_and_not_ids():
    _, found = embed([[(kind, 7, N, 0, 0) for kind in (T, D, C, S, DA, CA)]])
    plain = TOKENS["token"][7]
    action = plain + TOKENS["action_position"]
    expected = np.sqrt(WIDTH) * np.array([plain, plain, plain, plain, action, action])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)


def test_positions_of_observations():
    _, found = embed([[(T, 0, 0, 0, 0), (D, 0, 7, 0, 0), (C, 0, 1, 0, 0), (T, 0, N, 0, 0)]])
    positions = TOKENS["observation_position"]
    expected = TOKENS["token"][0] + np.array([positions[0], positions[7], positions[1], positions[0] * 0])
    np.testing.assert_allclose(found[0, :4], np.sqrt(WIDTH) * expected, rtol=1e-5, atol=1e-6)
    assert (found[0, 4:] == 0).all()


def test_a_hidden_action_shows_its_place_only():
    _, found = embed([[(CA, 33_000, N, 1, 0), (DA, 3, N, 1, 0)]])
    expected = np.sqrt(WIDTH) * (TOKENS["hidden_action"] + TOKENS["action_position"])
    np.testing.assert_allclose(found[0, :2], [expected, expected], rtol=1e-5, atol=1e-6)


def test_patches_go_to_their_tokens():
    batch, found = embed([[(T, 1, N, 0, 0), (P, 9, 2, 0, 0)], [(P, 9, N, 0, 0)]], slots=4)
    assert batch.patch_token.tolist() == [[1, 6, -1, -1]]
    vectors = np.asarray(patch_vectors(VALUES["patches"], batch, RELATIVE, dtype=jnp.float32))[0]
    np.testing.assert_allclose(found[0, 0], np.sqrt(WIDTH) * TOKENS["token"][1], rtol=1e-5)
    located = vectors[0] + np.sqrt(WIDTH) * TOKENS["observation_position"][2]
    np.testing.assert_allclose(found[0, 1], located, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1, 0], vectors[1], rtol=1e-5, atol=1e-6)
    assert (found[:, 2:] == 0).all()


def test_pixels_are_scaled_to_a_quarter():
    """A stem that passes red on, and no branch: what comes out is the red of a patch, averaged over cells."""
    channels = RELATIVE.patch_channels
    values = jax.tree.map(np.zeros_like, VALUES["patches"])
    values["stem"][0, 0] = values["reduce"][0, 0] = 1
    values["out"][:: channels // 2][np.arange(16), np.arange(16)] = 1
    batch = batch_of([[(P, 0, N, 0, 0)]], 6, groups=1, slots=1)
    found = np.asarray(patch_vectors(values, batch, RELATIVE, dtype=jnp.float32))[0, 0]
    scaled = (batch.patches[0, 0].astype(np.float64) / 127.5 - 1) / 4
    red = scaled[..., 0].reshape(4, 4, 4, 4).mean((1, 3)).reshape(-1)
    np.testing.assert_allclose(found[:16], red, atol=1e-6)
    assert (found[16:] == 0).all()


def test_positions_beyond_the_table_are_the_datas_fault():
    model.check_positions(batch_of([[(T, 0, 511, 0, 0), (S, 0, N, 0, 0)]], groups=1))
    with pytest.raises(DataError, match=r"has at least 541 tokens, .* has 512 positions: build .* smaller images"):
        model.check_positions(batch_of([[(T, 0, 512, 0, 0)], [(T, 0, 540, 0, 0)]], groups=1))


def test_the_patch_block_of_a_large_model_is_that_of_the_definitions():
    """64 channels at full resolution, against float64 NumPy; the small blocks are part of ``test_model``."""
    config = ModelConfig(layers=1, width=256, heads=1, head_size=8, hidden=8)
    table = model.parameter_table(config, VOCABULARY)["patches"]
    random = np.random.default_rng(3)
    values = jax.tree.map(lambda leaf: random.normal(leaf.mean, leaf.std + 0.1, leaf.shape).astype(np.float32), table)
    batch = batch_of([[(P, 0, N, 0, 0)] * 3], 6, groups=1, slots=3)
    found = np.asarray(patch_vectors(values, batch, config, dtype=jnp.float32))[0]
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), values)
    expected = [
        reference.patch_vector(exact, pixels, row, column, stride=1)
        for pixels, row, column in zip(batch.patches[0], batch.patch_row[0], batch.patch_column[0], strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_the_patch_block_follows_from_the_width():
    blocks = [patch_block(width) for width in (16, 63, 64, 128, 255, 256, 2048)]
    assert blocks == [(32, 4), (32, 4), (32, 2), (32, 2), (32, 2), (64, 1), (64, 1)]
