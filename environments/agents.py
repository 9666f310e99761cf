"""The agents that act while data is recorded: the scripted expert, the expert with bursts of noise, and chance."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args
from zlib import crc32

import numpy as np

from gatokit.environments.adapter import Action, Adapter, NoExpertError
from gatokit.schemas.errors import ConfigError

Agent = Literal["expert", "noisy", "random"]
AGENTS: tuple[Agent, ...] = get_args(Agent)

RECORDING_SEEDS = 1 << 30
"""Seeds of recorded episodes are below this number; those of evaluation begin with it."""


@dataclass(frozen=True)
class Mix:
    """How many episodes each agent plays."""

    expert: int
    noisy: int = 0
    random: int = 0

    def __post_init__(self) -> None:
        if min(self.counts.values()) < 0 or self.total == 0:
            raise ConfigError(f"a mix has at least one episode and no negative number, not {self.counts}")

    @staticmethod
    def of(episodes: int) -> "Mix":
        """The usual shares of ``episodes``: half expert, a quarter noisy, the rest random."""
        expert, noisy = (episodes + 1) // 2, episodes // 4
        return Mix(expert=expert, noisy=noisy, random=episodes - expert - noisy)

    @property
    def counts(self) -> dict[Agent, int]:
        """Episodes by agent."""
        return {"expert": self.expert, "noisy": self.noisy, "random": self.random}

    @property
    def total(self) -> int:
        """Episodes of all agents."""
        return self.expert + self.noisy + self.random

    def order(self) -> list[Agent]:
        """The agent of every episode in collection order; the episodes of each agent are spread evenly."""
        keyed: Iterable[tuple[float, int, Agent]] = (
            ((index + 0.5) / count, ordinal, agent)
            for ordinal, (agent, count) in enumerate(self.counts.items())
            for index in range(count)
        )
        return [agent for _, _, agent in sorted(keyed)]


@dataclass(frozen=True)
class Bursts:
    """The noisy agent: ``gap`` expert steps, then ``length`` random steps, and so on. Both are drawn uniformly between
    two bounds (inclusive). ``hold`` repeats one random action for the whole burst.

    Between bursts the expert recovers, so that most recorded actions are good ones.
    """

    gap: tuple[int, int]
    length: tuple[int, int]
    hold: bool

    @staticmethod
    def of(adapter: Adapter) -> "Bursts":
        """Bursts that fit the family: BabyAI's episodes have a few steps, the others' hundreds, and a pole of the
        control suite takes a hundred steps to get back up."""
        if adapter.name.startswith("babyai/"):
            return Bursts(gap=(3, 10), length=(1, 2), hold=False)
        if adapter.name.startswith("dm_control/"):
            return Bursts(gap=(60, 180), length=(3, 8), hold=True)
        return Bursts(gap=(20, 60), length=(3, 8), hold=adapter.action.kind == "continuous")


class Actor:
    """One agent's decisions through one episode, reproducible from ``seed``."""

    def __init__(self, adapter: Adapter, agent: Agent, seed: int, bursts: Bursts | None = None) -> None:
        self._adapter = adapter
        self._agent = agent
        self._rng = np.random.default_rng([seed, 1])
        self._bursts = bursts or Bursts.of(adapter)
        self._wait = self._draw(self._bursts.gap)
        self._left = 0
        self._held: Action | None = None

    def act(self) -> Action:
        """The action for the adapter's current state; a random one if the expert has none."""
        if self._agent == "random" or (self._agent == "noisy" and self._in_burst()):
            return self._random()
        try:
            return self._adapter.expert_action()
        except NoExpertError:
            return self._adapter.random_action(self._rng)

    def _in_burst(self) -> bool:
        if self._left == 0 and self._wait > 0:
            self._wait -= 1
            return False
        if self._left == 0:
            self._left = self._draw(self._bursts.length)
            self._held = self._adapter.random_action(self._rng) if self._bursts.hold else None
        self._left -= 1
        if self._left == 0:
            self._wait = self._draw(self._bursts.gap)
        return True

    def _random(self) -> Action:
        if self._agent == "noisy" and self._held is not None:
            return self._held
        return self._adapter.random_action(self._rng)

    def _draw(self, bounds: tuple[int, int]) -> int:
        return int(self._rng.integers(bounds[0], bounds[1] + 1))


def episode_seed(name: str, seed: int, index: int) -> int:
    """The environment seed of episode ``index`` of a recording: below ``RECORDING_SEEDS`` and different by task."""
    return int(np.random.SeedSequence([seed, crc32(name.encode()), index]).generate_state(1)[0]) % RECORDING_SEEDS
