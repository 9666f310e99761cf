"""The contract between Gatokit and an environment. Recorders and evaluation use the same adapters."""

import abc
import importlib
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gatokit.schemas.errors import ConfigError, install_hint
from gatokit.schemas.manifest import EpisodeSpec, FieldSpec

Observation = dict[str, Any]
"""Field name to value: an array of the declared dtype and shape, or ``str``."""

Action = np.ndarray
"""float32 (A,) within the declared range, or an int64 scalar array below the declared ``num``."""


class Transition(NamedTuple):
    """The result of a step: the next observation, the reward, and whether the episode ended.

    ``terminated``: it ended in a terminal state; ``truncated``: the time limit ended it.
    """

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool


class NoExpertError(Exception):
    """The scripted expert has no action for the current state; a recorder then takes a random one."""


class Adapter(abc.ABC):
    """One task of one family: reset, step, what a time step looks like, and a scripted expert.

    ``name`` is ``family/task``. ``spec`` declares every observation field (``observation/<name>``) and the one
    action field (``action``): discrete with ``num``, or continuous with a ``range`` per component.
    ``time_limit`` counts steps; the step that reaches it is truncated. ``hz`` is the control rate, None if time has no
    meaning. Everything after ``reset(seed)`` is a function of the seed and the actions.

    A family implements ``_begin``, ``_advance``, ``_expert`` and ``render``, and ``_expert_on`` if its expert
    ``expert_observes``. ``_env`` is its environment.
    """

    _env: Any

    expert_observes = False
    """Whether the expert acts on an observation alone; otherwise it reads the simulator's state."""

    def __init__(
        self,
        name: str,
        observation: list[FieldSpec],
        action: FieldSpec,
        *,
        time_limit: int,
        longest: int,
        hz: float | None = None,
    ) -> None:
        if not 1 <= time_limit <= longest:
            raise ConfigError(f"{name}: time_limit is from 1 to {longest} steps, not {time_limit}")
        self.name = name
        self.spec = EpisodeSpec.ordered([*observation, action])
        self.time_limit = time_limit
        self.hz = hz
        self.action = action
        """The action field of ``spec``."""
        self._steps: int | None = None

    @property
    def action_low(self) -> np.ndarray:
        """float32 (A,): the lowest action of a continuous space."""
        return np.array([low for low, _ in self.action.range or ()], np.float32)

    @property
    def action_high(self) -> np.ndarray:
        """float32 (A,): the highest action of a continuous space."""
        return np.array([high for _, high in self.action.range or ()], np.float32)

    def reset(self, seed: int) -> Observation:
        """Begins the episode of ``seed`` and returns its first observation."""
        self._steps = 0
        return self._begin(seed)

    def step(self, action: Action | int) -> Transition:
        """Takes one step. Continuous actions are clipped to the declared range.

        Raises ValueError for a discrete action outside the range, RuntimeError after the end of the episode.
        """
        if self._steps is None:
            raise RuntimeError(f"{self.name}: the episode has ended or not begun; call reset(seed)")
        observation, reward, terminated, truncated = self._advance(self.checked(action))
        self._steps += 1
        truncated = not terminated and (truncated or self._steps >= self.time_limit)
        if terminated or truncated:
            self._steps = None
        return Transition(observation, reward, terminated, truncated)

    def expert_action(self) -> Action:
        """The scripted expert's action in the current state, within the declared range; the state does not change.

        Raises NoExpertError if the expert has no action here.
        """
        return self.checked(self._expert())

    def expert_action_on(self, observation: Observation) -> Action:
        """The expert's action on this observation; only if ``expert_observes``."""
        return self.checked(self._expert_on(observation))

    def random_action(self, rng: np.random.Generator) -> Action:
        """An action drawn uniformly from the action space."""
        if self.action.kind == "discrete":
            return np.array(rng.integers(self.action.num or 1), np.int64)
        return rng.uniform(self.action_low, self.action_high).astype(np.float32)

    def checked(self, action: Action | int) -> Action:
        """``action`` in the declared dtype, shape and range. Raises ValueError if that is impossible."""
        if self.action.kind == "discrete":
            number = np.asarray(action)
            if number.shape != () or number.dtype.kind not in "iu" or not 0 <= number < (self.action.num or 0):
                raise ValueError(f"{self.name}: {action!r} is not one of the {self.action.num} discrete actions")
            return number.astype(np.int64)
        values = np.asarray(action, np.float32)
        if values.shape != self.action.shape or not np.isfinite(values).all():
            raise ValueError(f"{self.name}: an action is {self.action.shape} finite floats, not {action!r}")
        return np.clip(values, self.action_low, self.action_high)

    @abc.abstractmethod
    def render(self) -> np.ndarray:
        """An image of the current state for people, uint8 (height, width, 3); the state does not change.

        Raises ConfigError if the machine cannot render it.
        """

    def close(self) -> None:
        """Frees the environment's resources."""
        self._env.close()

    @abc.abstractmethod
    def _begin(self, seed: int) -> Observation: ...

    @abc.abstractmethod
    def _advance(self, action: Action) -> Transition: ...

    @abc.abstractmethod
    def _expert(self) -> Action | int: ...

    def _expert_on(self, observation: Observation) -> Action | int:
        raise NotImplementedError(f"{self.name}: the expert does not act on observations")


def need(module: str) -> ModuleType:
    """Imports a package that only environments need. Raises ConfigError, which says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        extra = {"envlogger": "envlogger", "tensorflow_datasets": "record"}.get(package, "environments")
        raise ConfigError(f"{module} cannot be imported ({error})", way_out=install_hint(extra, package)) from None
