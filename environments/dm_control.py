"""Tasks of the DeepMind Control Suite with short hand-written controllers as experts."""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from gatokit.environments.adapter import Action, Adapter, Observation, Transition, need
from gatokit.environments.rendering import RENDER_SIZE, rendering
from gatokit.schemas.manifest import FieldSpec

STEPS = 1000
"""The suite's own episode length: with rewards in [0, 1], returns are at most 1000."""


def tasks() -> list[str]:
    """``domain-task`` names."""
    return sorted(_CONTROLLERS)


class DmControl(Adapter):
    """Observes the suite's own keys as float32; the action has the range of the task's action spec."""

    def __init__(self, task: str, time_limit: int = STEPS) -> None:
        # States alone need no OpenGL. mujoco reads this when it is first imported.
        os.environ.setdefault("MUJOCO_GL", "disabled")
        domain, name = task.split("-")
        self._env = need("dm_control.suite").load(domain, name, task_kwargs={"random": 0})
        bounds = self._env.action_spec()
        low, high = (np.broadcast_to(side, bounds.shape).astype(float) for side in (bounds.minimum, bounds.maximum))
        super().__init__(
            f"dm_control/{task}",
            [
                FieldSpec(path=f"observation/{key}", kind="continuous", dtype="float32", shape=field.shape)
                for key, field in self._env.observation_spec().items()
            ],
            FieldSpec(
                path="action",
                kind="continuous",
                dtype="float32",
                shape=bounds.shape,
                range=tuple(zip(low.tolist(), high.tolist(), strict=True)),
            ),
            time_limit=time_limit,
            longest=STEPS,
            hz=1 / self._env.control_timestep(),
        )
        self._controller = _CONTROLLERS[task]

    def _begin(self, seed: int) -> Observation:
        self._env.task._random = np.random.RandomState(seed)
        return self._observe(self._env.reset().observation)

    def _advance(self, action: Action) -> Transition:
        step = self._env.step(action)
        terminated = step.last() and step.discount == 0
        return Transition(self._observe(step.observation), float(step.reward), terminated, step.last())

    @staticmethod
    def _observe(observation: dict[str, Any]) -> Observation:
        return {key: np.asarray(value, np.float32) for key, value in observation.items()}

    def _expert(self) -> Action:
        return np.array(self._controller(self._env.physics), np.float32)

    def render(self) -> np.ndarray:
        """The view of the task's first camera, uint8 (240, 320, 3)."""
        height, width = RENDER_SIZE
        with rendering(self.name):
            image: np.ndarray = self._env.physics.render(height, width, camera_id=0)
        return image


make = DmControl
"""The adapter of one task; ``time_limit`` up to 1000 steps."""


def _pendulum(physics: Any) -> list[float]:
    """Pumps energy until the pole passes slowly over the top, then holds it there."""
    cosine, sine = physics.pole_orientation()
    velocity = float(physics.angular_velocity()[0])
    angle = math.atan2(sine, cosine)
    weight, inertia = 9.81 * 0.5, 0.25
    hold = -20.0 * angle - 4.0 * velocity
    if abs(angle) < 0.6 and abs(hold + weight * math.sin(angle)) < 4:
        return [hold]
    lacking = weight * (1 - cosine) - 0.5 * inertia * velocity**2
    return [math.copysign(1.0, velocity) * (1.0 if lacking > 0 else -1.0)]


def _cartpole(physics: Any) -> list[float]:
    """Pumps energy into the pole with the cart near the middle, then balances by state feedback."""
    cart, cosine, sine = physics.bounded_position()
    speed, spin = physics.velocity()
    angle = math.atan2(sine, cosine)
    if abs(angle) < 0.35 and abs(angle + 0.25 * spin) < 0.35:
        return [0.05 * cart + 0.2 * speed + 1.8 * angle + 0.4 * spin]
    weight, inertia = 0.1 * 9.81 * 0.5, 0.1 / 3
    energy = 0.5 * inertia * spin**2 + weight * (cosine - 1)
    # The root lends weight to slow swings: the pole begins almost at rest.
    return [1.5 * energy * math.copysign(abs(spin) ** 0.75, spin) * cosine - 0.15 * cart - 0.2 * speed]


def _point_mass(physics: Any) -> list[float]:
    """Moves straight to the target, which is at the origin."""
    return list(-40.0 * physics.position() - 10.0 * physics.velocity())


def _reacher(physics: Any) -> list[float]:
    """Solves the two-link arm for the target and moves both joints there, the wrist to the nearer of its two
    solutions."""
    shoulder, wrist = physics.position()
    x, y = physics.named.data.geom_xpos["target", :2]
    link = 0.12
    bend = math.acos(min(1.0, max(-1.0, (x * x + y * y) / (2 * link * link) - 1)))
    bend = math.copysign(bend, wrist)
    turn = math.atan2(y, x) - bend / 2
    error = np.array([(turn - shoulder + math.pi) % (2 * math.pi) - math.pi, bend - wrist])
    return list(6.0 * error - 0.6 * physics.velocity())


_CONTROLLERS: dict[str, Callable[[Any], list[float]]] = {
    "cartpole-balance": _cartpole,
    "cartpole-swingup": _cartpole,
    "pendulum-swingup": _pendulum,
    "point_mass-easy": _point_mass,
    "reacher-easy": _reacher,
    "reacher-hard": _reacher,
}
