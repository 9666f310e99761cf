"""An adapter seen as a ``dm_env.Environment``, which is what EnvLogger wraps."""

from typing import Any

import dm_env
import numpy as np
from dm_env import specs

from gatokit.environments.adapter import Action, Adapter, Transition
from gatokit.schemas.manifest import FieldSpec


class DmEnvView(dm_env.Environment):
    """``seed`` is that of the next ``reset``; ``transition`` is the result of the last step."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.seed = 0
        self.transition: Transition | None = None

    def reset(self) -> dm_env.TimeStep:
        """Begins the episode of ``seed``."""
        return dm_env.restart(self._adapter.reset(self.seed))

    def step(self, action: Action) -> dm_env.TimeStep:
        """One step; a terminal state has discount 0, a time limit discount 1."""
        self.transition = self._adapter.step(action)
        observation, reward, terminated, truncated = self.transition
        return dm_env.TimeStep(
            dm_env.StepType.LAST if terminated or truncated else dm_env.StepType.MID,
            np.float32(reward),
            np.float32(0 if terminated else 1),
            observation,
        )

    def observation_spec(self) -> dict[str, Any]:
        """One spec per observation field."""
        return {field.components[-1]: _array(field) for field in self._adapter.spec.observation}

    def action_spec(self) -> Any:
        """Discrete, or bounded by the declared range."""
        field = self._adapter.action
        if field.kind == "discrete":
            return specs.DiscreteArray(field.num, np.int64, field.path)
        low, high = self._adapter.action_low, self._adapter.action_high
        return specs.BoundedArray(field.shape, np.float32, low, high, field.path)

    def reward_spec(self) -> Any:
        """A float32 scalar."""
        return specs.Array((), np.float32, "reward")

    def discount_spec(self) -> Any:
        """A float32 in [0, 1]."""
        return specs.BoundedArray((), np.float32, 0, 1, "discount")

    def close(self) -> None:
        """Leaves the adapter open, which belongs to the caller."""


def _array(field: FieldSpec) -> Any:
    if field.kind == "text":
        return specs.StringArray((), str, field.path)
    return specs.Array(field.shape, np.dtype(field.dtype), field.path)
