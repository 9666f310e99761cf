"""BabyAI's levels: a small partial view of a grid world, a mission in words, and the BabyAI bot as expert."""

import contextlib
import io
from typing import Any

import numpy as np

from gatokit.environments.adapter import Action, Adapter, NoExpertError, Observation, Transition, need
from gatokit.schemas.manifest import FieldSpec

STEPS = 512
"""Steps after which an episode is cut, unless the level has a lower bound of its own."""

SEARCHES = 400
"""Most breadth-first searches of the bot for one action. After random actions it could search for minutes."""

_PREFIX = "BabyAI-"


def tasks() -> list[str]:
    """Level names without prefix (``GoToLocal-v0``), except those on which the bot may not end."""
    need("minigrid")
    ids = need("gymnasium").registry
    return sorted(name.removeprefix(_PREFIX) for name in ids if name.startswith(_PREFIX) and "ImpUnlock" not in name)


class BabyAI(Adapter):
    """Observes ``direction`` int64 below 4, ``grid`` uint8 (7, 7, 3) and ``mission`` as text; seven actions.

    ``grid`` holds object, colour and state codes of the 7×7 cells before the agent. The reward is zero until the
    mission is done, then 1 - 0.9 * steps / (the level's own bound). Doing something irreparable, such as
    breaking the order of a mission, ends the episode with zero. ``searches`` bounds the bot's work on an action.
    """

    def __init__(self, task: str, time_limit: int = STEPS) -> None:
        super().__init__(
            f"babyai/{task}",
            [
                FieldSpec(path="observation/direction", kind="discrete", dtype="int64", num=4),
                FieldSpec(path="observation/grid", kind="discrete", dtype="uint8", shape=(7, 7, 3)),
                FieldSpec(path="observation/mission", kind="text", dtype="str"),
            ],
            FieldSpec(path="action", kind="discrete", dtype="int64", num=7),
            time_limit=time_limit,
            longest=STEPS,
        )
        need("minigrid")
        self._env = need("gymnasium").make(_PREFIX + task)
        self.searches = SEARCHES
        self._bot: Any = None
        self._advice: int | None = None

    def _begin(self, seed: int) -> Observation:
        # minigrid prints a line for every room that it draws anew.
        with contextlib.redirect_stdout(io.StringIO()):
            observation, _ = self._env.reset(seed=seed)
        self._bot = None
        return self._observe(observation)

    def _advance(self, action: Action) -> Transition:
        observation, reward, terminated, truncated, _ = self._env.step(int(action))
        if self._bot is not None and not (terminated or truncated):
            self._ask(int(action))
        return Transition(self._observe(observation), float(reward), bool(terminated), bool(truncated))

    @staticmethod
    def _observe(observation: dict[str, Any]) -> Observation:
        return {
            "direction": np.array(observation["direction"], np.int64),
            "grid": observation["image"].astype(np.uint8),
            "mission": observation["mission"],
        }

    def _expert(self) -> int:
        if self._bot is None:
            self._bot = _bounded_bot()(self._env)
            self._ask(None)
        if self._advice is None:
            raise NoExpertError(f"{self.name}: the bot finds no way from here")
        return self._advice

    def _ask(self, taken: int | None) -> None:
        """Tells the bot the action that was taken and asks for its next one. A bot that fails is dropped; the next
        call starts another one from the state of that time."""
        self._bot.budget = self.searches
        try:
            self._advice = int(self._bot.replan(taken))
        except Exception:
            self._bot = self._advice = None

    def render(self) -> np.ndarray:
        """The whole grid, 32 pixels a cell, with the visible cells highlighted."""
        image: np.ndarray = self._env.unwrapped.get_frame(highlight=True, tile_size=32)
        return image


make = BabyAI
"""The adapter of one level. Its own step bound applies if it is below ``time_limit``."""


def _bounded_bot() -> Any:
    """A class of BabyAIBot that gives up on an action after ``budget`` searches."""
    bot: Any = need("minigrid.utils.baby_ai_bot").BabyAIBot

    class Bounded(bot):
        budget = 0

        def _breadth_first_search(self, *args: Any, **kwargs: Any) -> Any:
            self.budget -= 1
            if self.budget < 0:
                raise NoExpertError("out of searches")
            return super()._breadth_first_search(*args, **kwargs)

    return Bounded
