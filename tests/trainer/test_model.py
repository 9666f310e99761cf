"""The whole network against its definitions in float64, what may see what, and decoding with a memory."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import RELATIVE, ROTARY, ROWS, VOCABULARY, batch_of

from gatokit.loader.batch import Batch
from gatokit.policy import cache as policy_cache
from gatokit.trainer import model

SCHEMES = pytest.mark.parametrize("config", [RELATIVE, ROTARY], ids=["relative", "rotary"])


@cache
def values(config):
    """Parameters none of which is zero, so that each shows."""
    random = np.random.default_rng(5)

    def draw(leaf):
        return (leaf.mean + random.normal(0, leaf.std + 0.1, leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, model.parameter_table(config, VOCABULARY))


@cache
def jitted(config, hide=True, dtype=jnp.float32):
    return jax.jit(partial(model.forward, config=config, dtype=dtype, hide=hide))


def real(batch):
    return np.asarray(batch.kinds) != 0


@SCHEMES
def test_hidden_states_are_those_of_the_definitions(config):
    batch = batch_of(ROWS)
    float64 = jax.tree.map(lambda leaf: leaf.astype(np.float64), values(config))
    expected = reference.hidden(float64, batch, config, hide=True)
    found = np.asarray(jitted(config)(values(config), batch))
    np.testing.assert_allclose(found[real(batch)], expected[real(batch)], atol=2e-5)


def test_without_hiding_private_numbers_mean_nothing():
    batch = batch_of(ROWS)
    float64 = jax.tree.map(lambda leaf: leaf.astype(np.float64), values(RELATIVE))
    expected = reference.hidden(float64, batch, RELATIVE, hide=False)
    found = np.asarray(jitted(RELATIVE, hide=False)(values(RELATIVE), batch))
    np.testing.assert_allclose(found[real(batch)], expected[real(batch)], atol=2e-5)


def changed(batch: Batch, row: int, place: int) -> Batch:
    """The batch with another id, or other pixels, at one place of one row."""
    tokens, patches = batch.tokens.copy(), batch.patches.copy()
    tokens[row, place] += 1
    group, inner = divmod(row, 2)
    patches[group, batch.patch_token[group] == inner * batch.tokens.shape[1] + place] ^= 255
    return batch._replace(tokens=tokens, patches=patches)


@SCHEMES
@pytest.mark.parametrize(("row", "place"), [(0, 1), (0, 3), (0, 12), (1, 4), (2, 6)])
def test_a_token_changes_nothing_before_it_and_no_other_row(config, row, place):
    batch = batch_of(ROWS)
    before = np.asarray(jitted(config)(values(config), batch))
    after = np.asarray(jitted(config)(values(config), changed(batch, row, place)))
    differs = (before != after).any(-1) & real(batch)
    expected = np.zeros_like(differs)
    expected[row, place:] = real(batch)[row, place:]
    np.testing.assert_array_equal(differs, expected)


@SCHEMES
def test_hidden_actions_are_seen_within_their_step_only(config):
    batch = batch_of(ROWS)
    before = np.asarray(jitted(config)(values(config), batch))
    after = np.asarray(jitted(config)(values(config), changed(batch, 0, 5)))
    assert np.flatnonzero((before != after).any(-1)[0]).tolist() == [5, 6]


def test_gradients_flow_to_a_tokens_own_past_only():
    config, batch = ROTARY, batch_of(ROWS)

    @jax.jit
    @jax.grad
    def of_query(positions):
        tables = values(config)["embedding"] | {"observation_position": positions}
        states = model.forward(values(config) | {"embedding": tables}, batch, config, dtype=jnp.float32, hide=True)
        return states[2, 5].sum()

    gradient = np.asarray(of_query(values(config)["embedding"]["observation_position"]))
    # Before place 5 of its row stand positions 0, 1 and 2; 3 stands in row 0 only, 7 behind the query.
    assert np.flatnonzero(np.abs(gradient).sum(1)).tolist() == [0, 1, 2]


def test_rows_that_pad_the_table_have_no_chance():
    states = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    found = np.asarray(model.logits(values(RELATIVE), states, VOCABULARY))
    assert found.shape == (3, 33_280)
    assert found.dtype == np.float32
    assert (found[:, VOCABULARY:] == -np.inf).all()
    table = values(RELATIVE)["embedding"]["token"].astype(np.float64)
    np.testing.assert_allclose(found[:, :VOCABULARY], states @ table[:VOCABULARY].T, atol=1e-5)


def test_bfloat16_is_close():
    batch = batch_of(ROWS)
    exact = np.asarray(jitted(RELATIVE)(values(RELATIVE), batch))[real(batch)]
    found = jitted(RELATIVE, dtype=jnp.bfloat16)(values(RELATIVE), batch)
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.asarray(found, np.float32)[real(batch)] - exact)
    assert error.mean() < 0.02 * np.abs(exact).mean()


def parts_of(batch: Batch, cuts: list[int]) -> list[Batch]:
    """The batch in pieces of time, one group of rows each: the slots go where their tokens go."""
    length = batch.tokens.shape[1]
    found = []
    for begin, end in zip([0, *cuts], [*cuts, length], strict=True):
        piece = {
            name: value[:, begin:end] for name, value in batch._asdict().items() if value.shape == batch.tokens.shape
        }
        rows, places = np.divmod(batch.patch_token, length)
        used = (batch.patch_token >= 0) & (places >= begin) & (places < end)
        moved = np.where(used, rows * (end - begin) + places - begin, -1)
        order = np.argsort(~used, axis=1, kind="stable")
        take = partial(np.take_along_axis, indices=order, axis=1)
        found.append(
            Batch(
                **piece,
                dataset=batch.dataset,
                redrawn=batch.redrawn,
                unusable=batch.unusable,
                patches=np.stack([group[index] for group, index in zip(batch.patches, order, strict=True)]),
                patch_token=take(moved),
                patch_row=take(batch.patch_row),
                patch_column=take(batch.patch_column),
            )
        )
    return found


@cache
def jitted_extend(config):
    return jax.jit(partial(policy_cache.extend, config=config, dtype=jnp.float32))


def decoded(config, batch, cuts, memory):
    kept = policy_cache.empty_cache(config, len(batch.tokens), memory, jnp.float32)
    found = []
    for part in parts_of(batch, cuts):
        states, kept = jitted_extend(config)(values(config), part, cache=kept)
        found.append(np.asarray(states))
    return np.concatenate(found, axis=1), kept


@SCHEMES
def test_decoding_in_parts_is_the_full_pass(config):
    batch = batch_of(ROWS)
    full = np.asarray(jitted(config)(values(config), batch))
    found, kept = decoded(config, batch, [6, 7, 8, 9, 10, 11, 12], memory=20)
    np.testing.assert_allclose(found[real(batch)], full[real(batch)], atol=1e-5)
    assert kept.length.tolist() == [18, 6, 10, 2]


def test_rows_of_unequal_parts_go_on_where_they_ended():
    """A prompt of its own length in each row, then a part that all have."""
    counts = [6, 2, 0, 5]
    tokens = [(token[0], token[1], reference.N, 0, 0) for token in reference.EPISODE]
    prompts = batch_of([tokens[:count] for count in counts], 6)
    more = batch_of([tokens[count : count + 4] for count in counts], 6)
    kept = policy_cache.empty_cache(RELATIVE, 4, 20, jnp.float32)
    _, kept = jitted_extend(RELATIVE)(values(RELATIVE), prompts, cache=kept)
    found, kept = jitted_extend(RELATIVE)(values(RELATIVE), more, cache=kept)
    assert kept.length.tolist() == [10, 6, 4, 9]
    full = jitted(RELATIVE)(values(RELATIVE), batch_of([tokens[: count + 4] for count in counts]))
    for row, count in enumerate(counts):
        np.testing.assert_allclose(found[row, :4], full[row, count : count + 4], atol=1e-5)


def test_a_full_memory_loses_its_oldest_tokens_whatever_the_parts():
    config, batch = RELATIVE, batch_of(ROWS)
    found = [decoded(config, batch, cuts, memory=5)[0] for cuts in ([6, 12], [6, 7, 8, 9, 10, 11, 12])]
    np.testing.assert_allclose(found[0][real(batch)], found[1][real(batch)], atol=1e-5)
    full = np.asarray(jitted(config)(values(config), batch))
    np.testing.assert_allclose(found[0][:, :5][real(batch)[:, :5]], full[:, :5][real(batch)[:, :5]], atol=1e-5)
    assert np.abs(found[0][0, 5:] - full[0, 5:]).max() > 1e-3
