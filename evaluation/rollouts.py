"""Numbered rollouts: one task, played by one agent on several adapters side by side."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from gatokit.environments.adapter import Action, Adapter, Observation
from gatokit.environments.agents import RECORDING_SEEDS, Actor


@dataclass(frozen=True)
class Rollout:
    """One finished episode. ``episode_return`` is the float64 sum of float32 rewards, as recorders sum them;
    ``seconds`` passed between its beginning and its end, those of the episodes beside it included."""

    number: int
    seed: int
    episode_return: float
    steps: int
    seconds: float


class RowAgent(Protocol):
    """Who plays: some rows of one task, each an episode of its own."""

    def begin(self, row: int, seed: int) -> None:
        """A new episode begins in ``row``; what is random in the agent follows from ``seed``."""

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        """One action for every row that is given with its observation."""


AgentMaker = Callable[[Sequence[Adapter]], RowAgent]
"""Makes the agent that plays on these adapters, row by row."""

Watch = Callable[[int, Adapter], None]
"""Called with a rollout's number and its adapter after the reset and after every step."""


def rollout_seed(number: int) -> int:
    """The environment's seed in rollout ``number``: the same for every agent, and none of a recording's."""
    return RECORDING_SEEDS + number


class Scripted:
    """The scripted expert (random where it has no action, as in recordings) or chance, acting on the simulators."""

    def __init__(self, adapters: Sequence[Adapter], agent: Literal["expert", "random"]) -> None:
        self._adapters = adapters
        self._agent = agent
        self._actors: dict[int, Actor] = {}

    def begin(self, row: int, seed: int) -> None:
        """A new actor."""
        self._actors[row] = Actor(self._adapters[row], self._agent, seed)

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        """What each row's actor does in the current state."""
        return {row: self._actors[row].act() for row in observations}


@dataclass
class _Game:
    """A rollout under way."""

    number: int
    observation: Observation
    rewards: list[float] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def rollout(self) -> Rollout:
        total = float(np.sum(np.array(self.rewards, np.float32), dtype=np.float64))
        seconds = time.monotonic() - self.begun
        return Rollout(self.number, rollout_seed(self.number), total, len(self.rewards), seconds)


def play(
    adapters: Sequence[Adapter], agent: RowAgent, numbers: Iterable[int], watch: Watch | None = None
) -> Iterator[Rollout]:
    """Plays the rollouts ``numbers`` and yields each when it ends; its row begins the next one at once.

    Row i plays on ``adapters[i]``; rows beyond the rollouts that are left stay idle.
    """
    waiting = iter(numbers)
    games: dict[int, _Game] = {}

    def begin(row: int) -> None:
        games.pop(row, None)
        number = next(waiting, None)
        if number is None:
            return
        seed = rollout_seed(number)
        games[row] = _Game(number, adapters[row].reset(seed))
        agent.begin(row, seed)
        if watch:
            watch(number, adapters[row])

    for row in range(len(adapters)):
        begin(row)
    while games:
        actions = agent.act({row: game.observation for row, game in games.items()})
        for row, game in list(games.items()):
            game.observation, reward, terminated, truncated = adapters[row].step(actions[row])
            game.rewards.append(reward)
            if watch:
                watch(game.number, adapters[row])
            if terminated or truncated:
                yield game.rollout()
                begin(row)
