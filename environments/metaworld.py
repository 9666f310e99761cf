"""Meta-World's 50 manipulation tasks with their scripted experts: 39 floats in, four out."""

import os
import warnings
from typing import Any

import numpy as np

from gatokit.environments.adapter import Action, Adapter, Observation, Transition, need
from gatokit.environments.rendering import RENDER_SIZE, rendering
from gatokit.schemas.manifest import FieldSpec

STEPS = 500
"""Meta-World's own episode length, which is also the longest."""


def tasks() -> list[str]:
    """The 50 task names, as Meta-World spells them."""
    return sorted(_policies().ENV_POLICY_MAP)


class MetaWorld(Adapter):
    """Observes ``state`` float32 (39,): hand, gripper and objects of this step and the one before, and the goal.

    The action moves the hand (three components) and closes the gripper (one), each in [-1, 1]. Object and goal
    positions are drawn anew by every seed.
    """

    expert_observes = True

    def __init__(self, task: str, time_limit: int = STEPS) -> None:
        super().__init__(
            f"metaworld/{task}",
            [FieldSpec(path="observation/state", kind="continuous", dtype="float32", shape=(39,))],
            FieldSpec(path="action", kind="continuous", dtype="float32", shape=(4,), range=((-1.0, 1.0),) * 4),
            time_limit=time_limit,
            longest=STEPS,
            hz=80.0,
        )
        self._policy = _policies().ENV_POLICY_MAP[task]()
        environments = need("metaworld.env_dict").ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
        self._env = environments[f"{task}-goal-observable"](seed=0)
        self._env.seeded_rand_vec = True
        self._env._freeze_rand_vec = False
        self._state: Any = None
        self._renderer: Any = None

    def _begin(self, seed: int) -> Observation:
        self._env.seed(seed)
        self._state, _ = self._env.reset()
        return self._observe()

    def _advance(self, action: Action) -> Transition:
        self._state, reward, terminated, truncated, _ = self._env.step(action)
        return Transition(self._observe(), float(reward), bool(terminated), bool(truncated))

    def _observe(self) -> Observation:
        return {"state": self._state.astype(np.float32)}

    def _expert(self) -> Action:
        return self._decide(self._state)

    def _expert_on(self, observation: Observation) -> Action:
        return self._decide(observation["state"].astype(np.float64))

    def _decide(self, state: np.ndarray) -> Action:
        with warnings.catch_warnings():
            # The policies warn at every step whose action leaves [-1, 1]; the adapter clips it.
            warnings.simplefilter("ignore")
            # Some of them write into their argument.
            action: Action = self._policy.get_action(state.copy())
        return action

    def render(self) -> np.ndarray:
        """The table and the arm, uint8 (240, 320, 3)."""
        with rendering(self.name):
            if self._renderer is None:
                self._renderer = need("mujoco").Renderer(self._env.model, *RENDER_SIZE)
            self._renderer.update_scene(self._env.data, camera="corner2")
            image: np.ndarray = self._renderer.render()
        # Meta-World's camera hangs upside down.
        return image[::-1, ::-1].copy()

    def close(self) -> None:
        """Closes the simulator."""
        if self._renderer is not None:
            self._renderer.close()
        super().close()


make = MetaWorld
"""The adapter of one task; ``time_limit`` up to 500 steps."""


def _policies() -> Any:
    # States alone need no OpenGL. mujoco reads this when it is first imported.
    os.environ.setdefault("MUJOCO_GL", "disabled")
    return need("metaworld.policies")
