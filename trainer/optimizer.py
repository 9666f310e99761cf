"""AdamW with its schedule, as in Gato's pretraining (appendix D) and fine-tuning (appendix E)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gatokit.schemas.run import OptimizerConfig, RunConfig

WARMUP_FROM = 1e-7  # the learning rate of step 0 (appendix D)


def learning_rate(run: RunConfig) -> optax.Schedule:
    """The learning rate by step, counted from 0: a linear rise from ``WARMUP_FROM``, then a constant, or half a cosine
    that reaches ``final_learning_rate`` at ``schedule_steps``. (optax's own schedules round differently.)"""
    config, warmup, steps = run.optimizer, run.warmup_steps, run.schedule_steps
    peak, final = config.learning_rate, config.final_learning_rate

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rising = WARMUP_FROM + (peak - WARMUP_FROM) * step / max(1, warmup)
        done = jnp.clip((step - warmup) / max(1, steps - warmup), 0, 1)
        cosine = final + (peak - final) * (1 + jnp.cos(jnp.pi * done)) / 2
        return jnp.where(step < warmup, rising, peak if config.schedule == "constant" else cosine)

    return rate


def make_optimizer(config: OptimizerConfig, decayed: Any) -> optax.GradientTransformation:
    """Clipping by the global norm, Adam, and decay of the parameters that are True in the tree ``decayed``; the step
    multiplies the updates by minus the learning rate."""
    return optax.chain(
        optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, decayed),
    )
