"""What a token's vector is made of: kinds decide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import CA, DA, RELATIVE, VOCABULARY, C, D, N, P, S, T, batch_of

from gatokit.schemas.errors import DataError
from gatokit.tokenizers.patches import scale
from gatokit.trainer import embedding, parameters
from gatokit.trainer.patches import patch_vectors

WIDTH = RELATIVE.width
TABLE = parameters.table(RELATIVE, VOCABULARY)
VALUES = jax.tree.map(
    lambda leaf: np.random.default_rng(leaf.shape[0]).normal(leaf.mean, 0.1, leaf.shape).astype(np.float32), TABLE
)
TOKENS = VALUES["embedding"]


def embed(rows, **options):
    batch = batch_of(rows, 6, groups=1, slots=options.pop("slots", 0))
    config = RELATIVE.model_copy(update=options)
    return batch, np.asarray(embedding.embed(VALUES, batch, config, dtype=jnp.float32))


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


def test_actions_without_a_position():
    _, found = embed([[(DA, 3, N, 0, 0), (DA, 0, N, 1, 0)]], action_position=False)
    expected = np.sqrt(WIDTH) * np.array([TOKENS["token"][3], TOKENS["hidden_action"]])
    np.testing.assert_allclose(found[0, :2], expected, rtol=1e-5, atol=1e-6)


def test_patches_go_to_their_tokens():
    batch, found = embed([[(T, 1, N, 0, 0), (P, 9, 2, 0, 0)], [(P, 9, N, 0, 0)]], slots=4)
    assert batch.patch_token.tolist() == [[1, 6, -1, -1]]
    vectors = np.asarray(patch_vectors(VALUES["patches"], batch, RELATIVE, dtype=jnp.float32))[0]
    np.testing.assert_allclose(found[0, 0], np.sqrt(WIDTH) * TOKENS["token"][1], rtol=1e-5)
    located = vectors[0] + np.sqrt(WIDTH) * TOKENS["observation_position"][2]
    np.testing.assert_allclose(found[0, 1], located, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1, 0], vectors[1], rtol=1e-5, atol=1e-6)
    assert (found[:, 2:] == 0).all()


def test_pixels_are_scaled_as_the_tokenizer_says():
    """A stem that passes red on, and no branch: what comes out is the red of a patch, averaged over cells."""
    channels = RELATIVE.patch_channels
    values = jax.tree.map(np.zeros_like, VALUES["patches"])
    values["stem"][0, 0] = values["reduce"][0, 0] = 1
    values["out"][:: channels // 2][np.arange(16), np.arange(16)] = 1
    batch = batch_of([[(P, 0, N, 0, 0)]], 6, groups=1, slots=1)
    found = np.asarray(patch_vectors(values, batch, RELATIVE, dtype=jnp.float32))[0, 0]
    red = scale(batch.patches[0, 0])[..., 0].reshape(4, 4, 4, 4).mean((1, 3)).reshape(-1)
    np.testing.assert_allclose(found[:16], red, atol=1e-6)
    assert (found[16:] == 0).all()


def test_positions_beyond_the_table_are_the_datas_fault():
    embedding.check_positions(batch_of([[(T, 0, 7, 0, 0), (S, 0, N, 0, 0)]], groups=1), RELATIVE)
    with pytest.raises(DataError, match=r"has at least 41 tokens, .* is 8: make it 41 or more"):
        embedding.check_positions(batch_of([[(T, 0, 8, 0, 0)], [(T, 0, 40, 0, 0)]], groups=1), RELATIVE)
