"""Tokens and patches → the vectors that enter the first layer (Gato, section 2.2 and appendix C).

Legend: B rows, L tokens of a row, D width, G groups of rows, P patch slots of a group.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gatokit.loader.batch import PADDING, Batch
from gatokit.schemas.errors import DataError
from gatokit.schemas.run import ModelConfig
from gatokit.schemas.tokens import NO_POSITION, TokenKind
from gatokit.trainer.parameters import Tree
from gatokit.trainer.patches import patch_vectors
from gatokit.trainer.sharding import by_rows


def check_positions(batch: Batch, config: ModelConfig) -> None:
    """DataError where a token's place in its observation lies beyond the table of observation positions."""
    positions = np.asarray(batch.positions)
    beyond = (positions >= config.observation_positions) & (positions != NO_POSITION)
    if beyond.any():
        longest = int(positions[beyond].max()) + 1
        raise DataError(
            f"a time step's observation has at least {longest} tokens, and model.observation_positions is "
            f"{config.observation_positions}: make it {longest} or more"
        )


def embed(parameters: Tree, batch: Batch, config: ModelConfig, *, dtype: Any) -> jax.Array:
    """The vectors of a batch's tokens (B, L, D) of ``dtype``; zeros for padding.

    Kinds decide, never ids: an image token's vector comes from its patch slot, any other's from the table, a hidden
    action's is the learned one instead. Observation tokens, patches included, add the vector of their position
    within the observation; action tokens add one vector that they share (appendix C.3; ``action_position``);
    separators and documents add none. Looked-up vectors are multiplied by √D. The cost of patches follows the
    number of slots.
    """
    tokens = parameters["embedding"]
    kinds, positions, hidden = jnp.asarray(batch.kinds), jnp.asarray(batch.positions), jnp.asarray(batch.hidden)
    action = (kinds == TokenKind.DISCRETE_ACTION) | (kinds == TokenKind.CONTINUOUS_ACTION)
    looked_up = (kinds != PADDING) & (kinds != TokenKind.IMAGE) & ~hidden
    vectors = _where(looked_up, by_rows(tokens["token"][batch.tokens]))
    vectors += _where(hidden, tokens["hidden_action"])
    if config.action_position:
        vectors += _where(action, tokens["action_position"])
    placed = (positions != NO_POSITION) & (kinds != PADDING)
    vectors += _where(placed, tokens["observation_position"][jnp.where(placed, positions, 0)])
    vectors = by_rows((vectors * config.width**0.5).astype(dtype))
    if batch.patches.shape[1] == 0:
        return vectors
    patches = patch_vectors(parameters["patches"], batch, config, dtype=dtype)
    return by_rows(_scatter(vectors, by_rows(patches), jnp.asarray(batch.patch_token)))


def _where(mask: jax.Array, vectors: jax.Array) -> jax.Array:
    return jnp.where(mask[..., None], vectors, 0.0)


def _scatter(vectors: jax.Array, patches: jax.Array, places: jax.Array) -> jax.Array:
    """``vectors`` (B, L, D) plus ``patches`` (G, P, D) at ``places`` (G, P) in their groups; unused slots drop out."""
    groups, slots = places.shape
    grouped = vectors.reshape(groups, -1, vectors.shape[-1])
    # Unused slots get places of their own beyond the end, so that all are distinct and ascending.
    distinct = jnp.where(places < 0, grouped.shape[1] + jnp.arange(slots), places)

    def add(rows: jax.Array, place: jax.Array, update: jax.Array) -> jax.Array:
        return rows.at[place].add(update, mode="drop", unique_indices=True, indices_are_sorted=True)

    return jax.vmap(add)(grouped, distinct, patches).reshape(vectors.shape)
