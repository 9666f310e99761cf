"""How agents share a recording, and what the noisy one does."""

from collections import Counter

import numpy as np
import pytest

from gatokit.environments import make
from gatokit.environments.agents import RECORDING_SEEDS, Actor, Bursts, Mix, episode_seed
from gatokit.schemas.errors import ConfigError


def test_a_mix_spreads_its_agents_evenly() -> None:
    assert Mix(expert=4, noisy=2, random=1).order() == [
        "expert", "noisy", "expert", "random", "expert", "noisy", "expert",
    ]  # fmt: skip
    order = Mix(expert=60, noisy=30, random=30).order()
    assert Counter(order) == {"expert": 60, "noisy": 30, "random": 30}
    assert Counter(order[:40]) == {"expert": 20, "noisy": 10, "random": 10}


def test_usual_shares() -> None:
    assert Mix.of(100) == Mix(expert=50, noisy=25, random=25)
    assert Mix.of(1) == Mix(expert=1)
    assert [Mix.of(n).total for n in range(1, 20)] == list(range(1, 20))
    with pytest.raises(ConfigError, match="at least one episode"):
        Mix.of(0)
    with pytest.raises(ConfigError, match="negative"):
        Mix(expert=3, random=-1)


def test_noise_comes_in_held_bursts_between_clean_expert_steps() -> None:
    adapter = make("metaworld/drawer-open-v3")
    bursts = Bursts(gap=(20, 60), length=(3, 8), hold=True)
    adapter.reset(0)
    actor = Actor(adapter, "noisy", 0, bursts)
    noise = []
    held = []
    for _ in range(500):
        expert, action = adapter.expert_action(), actor.act()
        noise.append(not np.array_equal(expert, action))
        if noise[-1]:
            held.append(tuple(action))
        adapter.step(action)
    runs = "".join("x" if noisy else "." for noisy in noise).split(".")
    lengths = [len(run) for run in runs if run]
    assert len(lengths) >= 500 // 68
    assert all(3 <= length <= 8 for length in lengths[:-1])
    assert len(set(held)) == len(lengths)
    assert 0.05 < np.mean(noise) < 0.3


def test_episode_seeds_differ_by_task_seed_and_index_and_stay_below_evaluation() -> None:
    seeds = {episode_seed(name, seed, index) for name in ("a/b", "a/c") for seed in (0, 1) for index in range(500)}
    assert len(seeds) == 2000
    assert max(seeds) < RECORDING_SEEDS
    assert episode_seed("metaworld/door-open-v3", 0, 0) == episode_seed("metaworld/door-open-v3", 0, 0)
