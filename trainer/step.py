"""The training step: loss, gradients and update in one jitted function over the mesh."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gatokit.loader.batch import Batch, empty_batch
from gatokit.schemas.run import RunConfig
from gatokit.trainer import model
from gatokit.trainer.loss import Sums, target_losses
from gatokit.trainer.mesh import check_mesh, row_sharding, split
from gatokit.trainer.optimizer import learning_rate, make_optimizer


class State(NamedTuple):
    """What a step changes and a checkpoint holds: the number of steps done, int32 (); the parameters, float32; the
    optimizer's state. (A ``State`` may also hold their shapes or shardings.)"""

    step: Any
    params: Any
    optimizer: Any


class Metrics(NamedTuple):
    """The metrics of a step, () each; reading a value waits for the step to end. ``loss`` is the mean in nats, weighted
    as ``loss_weight`` says. A step that was not ``taken`` changed only its own count: the loss or the gradient's norm
    (before clipping) is not finite, or the norm is too large."""

    loss: jax.Array
    gradient_norm: jax.Array
    taken: jax.Array
    learning_rate: jax.Array
    sums: Sums


class Trainer:
    """The training step for one config, vocabulary and mesh: ``step(state, batch, most_norm)`` gives the next state and
    the metrics, ``evaluate(params, batch)`` the sums of the losses. ``shardings``, ``abstract_state`` and
    ``abstract_batch`` say how their arguments are placed."""

    def __init__(
        self,
        config: RunConfig,
        vocabulary_size: int,
        datasets: int,
        patch_slots: int,
        mesh: Mesh,
        *,
        restricted: bool = True,
    ) -> None:
        """Rows come from ``datasets`` datasets; a group of rows has ``patch_slots`` slots; without ``restricted`` no
        token is ``private``. Raises ConfigError if the mesh does not divide the model or the rows."""
        check_mesh(mesh, config)
        self.config, self.mesh, self.restricted = config, mesh, restricted
        self.vocabulary_size, self.datasets, self.patch_slots = vocabulary_size, datasets, patch_slots
        self.dtype = jnp.dtype(config.precision)
        self.table = model.parameter_table(config.model, vocabulary_size)
        self.rate = learning_rate(config)
        self.optimizer = make_optimizer(config.optimizer, jax.tree.map(lambda parameter: parameter.std > 0, self.table))
        rows, everywhere = row_sharding(mesh), NamedSharding(mesh, PartitionSpec())
        of_params = jax.tree.map(lambda parameter: NamedSharding(mesh, parameter.spec), self.table)
        shapes = jax.eval_shape(self._initial)
        of_optimizer = optax.tree_utils.tree_map_params(
            self.optimizer, lambda _, own: own, shapes.optimizer, of_params, transform_non_params=lambda _: everywhere
        )
        self.shardings = State(everywhere, of_params, of_optimizer)
        groups = config.batch // config.patch_group_rows
        batch = jax.eval_shape(lambda: empty_batch(config.batch, config.context, groups, patch_slots))
        self.abstract_state: State = jax.tree.map(lambda leaf, own: leaf.update(sharding=own), shapes, self.shardings)
        self.abstract_batch: Batch = jax.tree.map(lambda leaf: leaf.update(sharding=rows), batch)
        ends = self.shardings, everywhere
        arguments = self.shardings, rows, everywhere
        self._jitted = jax.jit(self._step, in_shardings=arguments, out_shardings=ends, donate_argnums=0)
        self.evaluate = jax.jit(self._evaluate, in_shardings=(of_params, rows), out_shardings=everywhere)

    def step(self, state: State, batch: Batch, most_norm: float = math.inf) -> tuple[State, Metrics]:
        """The state after a step, in the place of ``state``, and its metrics. A step whose gradient's norm is above
        ``most_norm`` is not taken."""
        return self._jitted(state, batch, np.float32(most_norm))

    def lower(self) -> Any:
        """The step before it is compiled."""
        most_norm = jax.ShapeDtypeStruct((), np.float32, sharding=self.shardings.step)
        return self._jitted.lower(self.abstract_state, self.abstract_batch, most_norm)

    def init(self, params: Any = None) -> State:
        """The state before the first step: a function of the config's seed, whatever the mesh, or of given parameters,
        which are placed as ``shardings`` says and given away."""
        if params is None:
            return jax.jit(self._initial, out_shardings=self.shardings)()
        given = (self.shardings.params,)
        return jax.jit(self._begin, in_shardings=given, out_shardings=self.shardings, donate_argnums=0)(params)

    def _initial(self) -> State:
        return self._begin(model.initialize(self.table, self.config.seed))

    def _begin(self, params: Any) -> State:
        return State(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))

    def _loss(self, params: Any, batch: Batch, rows: jax.Array | None, key: jax.Array | None) -> tuple[jax.Array, Sums]:
        config = self.config
        # Gathered over fsdp once, for its lookups as well as for the logits.
        ids = NamedSharding(self.mesh, PartitionSpec("tensor"))
        token = jax.lax.with_sharding_constraint(params["embedding"]["token"], ids)
        params = {**params, "embedding": {**params["embedding"], "token": token}}
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            passed = partial(model.forward, remat=config.remat, key=key, rows=rows, hide=self.restricted)
            states = passed(params, batch, config.model, dtype=self.dtype)
        states = jax.lax.with_sharding_constraint(states, row_sharding(self.mesh))
        logits = partial(model.logits, vocabulary_size=self.vocabulary_size)
        output = {"embedding": {"token": token}}
        return target_losses(logits, output, states, batch, config.loss_weight, self.datasets, self.mesh)

    def _evaluate(self, params: Any, batch: Batch) -> Sums:
        return self._loss(params, batch, None, None)[1]

    def _step(self, state: State, batch: Batch, most_norm: jax.Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(np.uint32(self.config.seed)), state.step)
        gradients, sums = self._accumulate(state.params, batch, key)
        weight = jnp.maximum(sums.weight, 1)
        loss = sums.loss / weight
        gradients = jax.tree.map(lambda gradient: gradient / weight, gradients)
        norm = optax.global_norm(gradients)
        taken = jnp.isfinite(loss) & jnp.isfinite(norm) & (norm <= most_norm)
        rate = self.rate(state.step)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.params)
        params = jax.tree.map(lambda old, update: old - rate * update, state.params, updates)
        before = state.params, state.optimizer
        params, optimizer = jax.tree.map(partial(jnp.where, taken), (params, optimizer), before)
        return State(state.step + 1, params, optimizer), Metrics(loss, norm, taken, rate, sums)

    def _accumulate(self, params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Sums]:
        """Gradients of the sum of the losses, and the sums, over all microbatches."""
        count = self.config.microbatches
        rows = jax.lax.iota(jnp.int32, self.config.batch)
        gradient = jax.grad(self._loss, has_aux=True)
        if count == 1:
            return gradient(params, batch, rows, key)
        parts = split((batch, rows), count, self.mesh)
        _, shapes = jax.eval_shape(self._loss, params, *jax.tree.map(lambda part: part[0], parts), key)
        sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        gradients = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, params), self.shardings.params)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *part, key)), None

        return jax.lax.scan(add, (gradients, sums), parts)[0]
