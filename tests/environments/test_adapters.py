"""The contract, on one task of every family and on the things that families do differently."""

import subprocess
import sys

import numpy as np
import pytest

from gatokit.environments import Adapter, NoExpertError, Observation, families, make, tasks
from gatokit.environments.adapter import need
from gatokit.environments.agents import AGENTS, Actor, Agent
from gatokit.environments.babyai import BabyAI
from gatokit.schemas.errors import ConfigError

ONE_OF_EACH = ("metaworld/door-open-v3", "babyai/PickupLoc-v0", "dm_control/reacher-easy", "atari/Breakout")


def rollout(
    adapter: Adapter, seed: int, agent: Agent, steps: int
) -> tuple[list[Observation], list[np.ndarray], list[float]]:
    actor = Actor(adapter, agent, seed)
    observations, actions, rewards = [adapter.reset(seed)], [], []
    for _ in range(steps):
        actions.append(actor.act())
        observation, reward, terminated, truncated = adapter.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            break
    return observations, actions, rewards


def episode_return(adapter: Adapter, seed: int, agent: Agent) -> float:
    return sum(rollout(adapter, seed, agent, adapter.time_limit)[2])


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_same_seed_gives_the_same_rollout_in_a_used_and_in_a_new_adapter(name: str) -> None:
    adapter = make(name)
    first = rollout(adapter, 7, "noisy", 60)
    other = rollout(adapter, 8, "noisy", 60)
    for again in (rollout(adapter, 7, "noisy", 60), rollout(make(name), 7, "noisy", 60)):
        assert again[2] == first[2]
        np.testing.assert_equal(again[1], first[1])
        np.testing.assert_equal(again[0], first[0])
    with pytest.raises(AssertionError):
        np.testing.assert_equal(other[:2], first[:2])


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("agent", AGENTS)
def test_every_observation_and_action_is_what_the_spec_declares(name: str, agent: Agent) -> None:
    adapter = make(name)
    fields = {field.components[1]: field for field in adapter.spec.observation}
    observations, actions, rewards = rollout(adapter, 3, agent, 100)
    for observation in observations:
        assert observation.keys() == fields.keys()
        for key, value in observation.items():
            field = fields[key]
            if field.kind == "text":
                assert isinstance(value, str)
                assert value
                continue
            assert (value.dtype, value.shape) == (np.dtype(field.dtype), field.shape)
            assert field.num is None or value < field.num
    assert all(isinstance(reward, float) for reward in rewards)
    for action in actions:
        assert (action.dtype, action.shape) == (np.dtype(adapter.action.dtype), adapter.action.shape)
        if adapter.action.kind == "discrete":
            assert 0 <= action < adapter.action.num
        else:
            assert (adapter.action_low <= action).all()
            assert (action <= adapter.action_high).all()


def test_specs_of_the_families() -> None:
    shown = {
        name: [(f.path, f.kind, f.dtype, f.shape, f.num, f.range) for f in make(name).spec.fields]
        for name in ONE_OF_EACH
    }
    unit = (-1.0, 1.0)
    assert shown == {
        "metaworld/door-open-v3": [
            ("observation/state", "continuous", "float32", (39,), None, None),
            ("action", "continuous", "float32", (4,), None, (unit,) * 4),
        ],
        "babyai/PickupLoc-v0": [
            ("observation/direction", "discrete", "int64", (), 4, None),
            ("observation/grid", "discrete", "uint8", (7, 7, 3), None, None),
            ("observation/mission", "text", "str", (), None, None),
            ("action", "discrete", "int64", (), 7, None),
        ],
        "dm_control/reacher-easy": [
            ("observation/position", "continuous", "float32", (2,), None, None),
            ("observation/to_target", "continuous", "float32", (2,), None, None),
            ("observation/velocity", "continuous", "float32", (2,), None, None),
            ("action", "continuous", "float32", (2,), None, (unit,) * 2),
        ],
        "atari/Breakout": [
            ("observation/frame", "image", "uint8", (96, 80, 3), None, None),
            ("action", "discrete", "int64", (), 4, None),
        ],
    }


@pytest.mark.parametrize(
    ("name", "limit", "margin"),
    [
        ("metaworld/button-press-topdown-v3", 500, 3000),
        ("babyai/GoToLocal-v0", 512, 0.3),
        ("babyai/UnlockLocal-v0", 512, 0.5),
        ("dm_control/cartpole-swingup", 1000, 600),
        ("dm_control/pendulum-swingup", 1000, 400),
        ("dm_control/point_mass-easy", 1000, 600),
        ("dm_control/reacher-hard", 1000, 600),
        ("atari/Breakout", 300, 3),
        ("atari/Freeway", 300, 2),
    ],
)
def test_the_expert_beats_chance(name: str, limit: int, margin: float) -> None:
    adapter = make(name, time_limit=limit)
    expert = np.mean([episode_return(adapter, seed, "expert") for seed in range(3)])
    chance = np.mean([episode_return(adapter, seed, "random") for seed in range(3)])
    assert expert - chance > margin


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_time_limit_truncates(name: str) -> None:
    adapter = make(name, time_limit=2)
    action = np.zeros(adapter.action.shape, adapter.action.dtype)
    adapter.reset(0)
    assert adapter.step(action)[2:] == (False, False)
    assert adapter.step(action)[2:] == (False, True)
    with pytest.raises(RuntimeError, match="call reset"):
        adapter.step(action)


def test_a_finished_mission_terminates_with_its_reward() -> None:
    adapter = make("babyai/GoToLocal-v0")
    adapter.reset(0)
    while True:
        _, reward, terminated, truncated = adapter.step(adapter.expert_action())
        if terminated or truncated:
            break
    assert (terminated, truncated) == (True, False)
    assert 0.5 < reward < 1


def test_actions_outside_the_space() -> None:
    arm = make("metaworld/door-open-v3")
    np.testing.assert_array_equal(arm.checked(np.array([2, -3, 0.5, 0])), np.array([1, -1, 0.5, 0], np.float32))
    for action in (np.zeros(3), np.array([0, 0, 0, np.nan])):
        with pytest.raises(ValueError, match="4,"):
            arm.checked(action)
    for number in (np.array(7), np.array(-1), np.array(1.0), np.zeros(1, int)):
        with pytest.raises(ValueError, match="7 discrete actions"):
            make("babyai/GoToLocal-v0").checked(number)


def test_frames_have_the_configured_size() -> None:
    observation = make("atari/Breakout", size=(208, 160)).reset(0)
    assert observation["frame"].shape == (208, 160, 3)
    with pytest.raises(ConfigError, match="multiples of 16"):
        make("atari/Breakout", size=(210, 160))


def test_a_bot_out_of_searches_raises_and_plans_anew() -> None:
    adapter = BabyAI("GoToLocal-v0")
    adapter.reset(0)
    adapter.searches = 0
    with pytest.raises(NoExpertError, match="no way"):
        adapter.expert_action()
    adapter.searches = 400
    assert 0 <= adapter.expert_action() < 7


def test_names() -> None:
    assert families() == ("atari", "babyai", "dm_control", "metaworld")
    assert len(tasks("metaworld")) == 50
    levels = tasks("babyai")
    assert len(levels) > 90
    assert not [name for name in levels if "ImpUnlock" in name]
    assert tasks("atari") == ["Breakout", "Freeway", "Pong"]
    for name, part in (
        ("door-open-v3", "family/task"),
        ("mujoco/ant", "no environment family 'mujoco'"),
        ("metaworld/door", "no task 'door'"),
        ("babyai/GoToImpUnlock-v0", "no task"),
        ("dm_control/humanoid-run", "no task"),
        ("atari/Tetris", "no task"),
    ):
        with pytest.raises(ConfigError, match=part):
            make(name)
    with pytest.raises(ConfigError, match="from 1 to 500 steps, not 501"):
        make("metaworld/door-open-v3", time_limit=501)


def test_the_package_imports_without_any_environment() -> None:
    heavy = "{'metaworld', 'mujoco', 'minigrid', 'gymnasium', 'dm_control', 'ale_py', 'tensorflow', 'envlogger'}"
    code = f"import sys, gatokit.environments.demo; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_missing_package_says_which_extra_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install '\.\[environments\]'"):
        need("a_package_that_is_not_there")
