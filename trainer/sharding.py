"""How the model's activations lie on a mesh: divided by rows, whole along everything else."""

import jax
from jax.sharding import PartitionSpec

from gatokit.trainer.mesh import ROWS


def by_rows(array: jax.Array) -> jax.Array:
    """The array, whose first dimension counts rows or groups of rows, divided as a batch's rows are on the mesh in use
    (``jax.sharding.use_abstract_mesh``); without one, itself.

    Left to itself the compiler may divide the width as the parameters are, and hold every row everywhere.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec(ROWS))
