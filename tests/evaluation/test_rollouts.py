"""Rollouts by number: who plays what where, the log that makes them resumable, processes, and films."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gatokit.environments import Action, Adapter, Observation, Transition, make
from gatokit.environments.agents import Actor
from gatokit.evaluation.rollouts import Rollout, RolloutJob, RolloutLog, Scripted, play, play_jobs, play_missing
from gatokit.evaluation.videos import Videos, has_video
from gatokit.schemas.errors import ConfigError, DataError, MalformedError
from gatokit.schemas.manifest import FieldSpec

FIRST = 1 << 30
ROLLOUT = Rollout(number=0, seed=FIRST, episode_return=1.5, steps=3, seconds=0.25)


class Counter(Adapter):
    """Observes the seed and the step; episode ``seed`` has two steps more than the seed is above ``FIRST``, and every
    step's reward is a tenth of its action."""

    def __init__(self) -> None:
        super().__init__(
            "test/counter",
            [FieldSpec(path="observation/place", kind="discrete", dtype="int64", shape=(2,))],
            FieldSpec(path="action", kind="discrete", dtype="int64", num=10),
            time_limit=100,
            longest=100,
        )
        self.place = (0, 0)

    def _begin(self, seed: int) -> Observation:
        self.place = (seed - FIRST, 0)
        return {"place": np.array(self.place)}

    def _advance(self, action: Action) -> Transition:
        number, step = self.place
        self.place = (number, step + 1)
        return Transition({"place": np.array(self.place)}, float(action) / 10, step + 1 == number + 2, False)

    def _expert(self) -> int:
        return 3

    def render(self) -> np.ndarray:
        return np.full((32, 48, 3), 20 * self.place[1], np.uint8)

    def close(self) -> None:
        pass


class Diary:
    """Takes action 3, and writes down what it is asked."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.asked: list[dict[int, tuple[int, ...]]] = []

    def begin(self, row: int, seed: int) -> None:
        self.begun.append((row, seed - FIRST))

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        self.asked.append({row: tuple(item["place"].tolist()) for row, item in observations.items()})
        return {row: np.array(3) for row in observations}


def outcome(rollout: Rollout) -> Rollout:
    return replace(rollout, seconds=0.0)


def test_a_row_begins_the_next_rollout_as_soon_as_its_episode_ends() -> None:
    diary = Diary()
    found = [outcome(rollout) for rollout in play([Counter(), Counter()], diary, [0, 2, 1])]
    tenth3 = float(np.float32(0.3))
    assert found == [
        Rollout(0, FIRST, 2 * tenth3, 2, 0.0),
        Rollout(2, FIRST + 2, 4 * tenth3, 4, 0.0),
        Rollout(1, FIRST + 1, 3 * tenth3, 3, 0.0),
    ]
    assert diary.begun == [(0, 0), (1, 2), (0, 1)]
    assert diary.asked == [
        {0: (0, 0), 1: (2, 0)},
        {0: (0, 1), 1: (2, 1)},
        {0: (1, 0), 1: (2, 2)},
        {0: (1, 1), 1: (2, 3)},
        {0: (1, 2)},
    ]


def test_rows_without_a_rollout_stay_idle() -> None:
    diary = Diary()
    assert [rollout.number for rollout in play([Counter() for _ in range(4)], diary, [1])] == [1]
    assert diary.asked == [{0: (1, 0)}, {0: (1, 1)}, {0: (1, 2)}]


@pytest.mark.parametrize("agent", ["expert", "random"])
def test_scripted_rollouts_are_those_of_the_actors_and_do_not_depend_on_what_is_beside_them(agent: Any) -> None:
    adapters = [make("babyai/GoToLocal-v0") for _ in range(3)]
    found = {item.number: item for item in play(adapters, Scripted(adapters, agent), range(5))}
    for number in range(5):
        actor = Actor(adapters[0], agent, FIRST + number)
        adapters[0].reset(FIRST + number)
        rewards: list[float] = []
        over = False
        while not over:
            _, reward, terminated, truncated = adapters[0].step(actor.act())
            rewards.append(reward)
            over = terminated or truncated
        assert found[number].steps == len(rewards)
        assert found[number].episode_return == float(np.float32(rewards[-1]))


def test_the_log_holds_what_is_finished(tmp_path: Path) -> None:
    with RolloutLog(tmp_path, {"temperature": 1.0}) as log:
        assert log.missing("f/t", "expert", 3) == [0, 1, 2]
        log.add("f/t", "expert", replace(ROLLOUT, number=2))
        log.add("f/t", "expert", ROLLOUT)
        log.add("f/t", "random", replace(ROLLOUT, number=1))
    text = (tmp_path / "rollouts.jsonl").read_text()
    assert text.splitlines()[1] == (
        '{"task": "f/t", "agent": "expert", "number": 0, "seed": 1073741824, '
        '"return": 1.5, "steps": 3, "seconds": 0.25}'
    )
    with RolloutLog(tmp_path, {"temperature": 1.0}) as log:
        assert log.missing("f/t", "expert", 3) == [1]
        assert log.missing("f/u", "expert", 2) == [0, 1]
        assert log.of("f/t", "expert", 3) == [ROLLOUT, replace(ROLLOUT, number=2)]
        assert log.of("f/t", "expert", 2) == [ROLLOUT]
    assert (tmp_path / "rollouts.jsonl").read_text() == text


def test_what_a_kill_left_of_a_line_is_removed(tmp_path: Path) -> None:
    with RolloutLog(tmp_path, {}) as log:
        log.add("f/t", "expert", ROLLOUT)
        log.add("f/t", "expert", replace(ROLLOUT, number=1))
    path = tmp_path / "rollouts.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        with RolloutLog(tmp_path, {}) as log:
            assert log.missing("f/t", "expert", 2) == [1]
            log.add("f/t", "expert", replace(ROLLOUT, number=1))
        assert path.read_bytes() == whole


def test_a_log_of_other_settings_in_use_or_damaged_is_refused(tmp_path: Path) -> None:
    with RolloutLog(tmp_path, {"temperature": 1.0, "mask": True}) as log:
        log.add("f/t", "expert", ROLLOUT)
        with pytest.raises(ConfigError, match="is in use by another gatokit evaluate"):
            RolloutLog(tmp_path, {"temperature": 1.0, "mask": True})
    for settings, said in (
        ({"temperature": 0.5, "mask": True}, r"holds rollouts whose temperature is 1\.0, not 0\.5: give another --out"),
        ({"temperature": 1.0}, "holds rollouts whose mask is true, not null"),
        ({"temperature": 1.0, "mask": True, "checkpoint": "a"}, 'whose checkpoint is null, not "a"'),
    ):
        with pytest.raises(ConfigError, match=said):
            RolloutLog(tmp_path, settings)
    with (tmp_path / "rollouts.jsonl").open("a") as file:
        file.write('{"task": "f/t"}\n')
    with pytest.raises(DataError, match=r"rollouts\.jsonl: line 2 is no rollout; remove the line"):
        RolloutLog(tmp_path, {"temperature": 1.0, "mask": True})
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(DataError, match=r"evaluation\.json cannot be read"):
        RolloutLog(tmp_path, {"temperature": 1.0, "mask": True})
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be read or written"):
        RolloutLog(tmp_path / "file", {})


@pytest.mark.parametrize("name", ["rollouts.jsonl", "scores.json", "scores.png", "ceiling.json", "videos"])
def test_a_log_writes_over_no_file_that_no_evaluation_wrote(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("my notes, without an end of line")
    with pytest.raises(
        ConfigError, match=rf"holds {re.escape(name)} and no evaluation\.json, so that it may be somebody"
    ):
        RolloutLog(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "my notes, without an end of line"
    (tmp_path / name).unlink()
    RolloutLog(tmp_path, {}).add("f/t", "expert", ROLLOUT)
    victim = tmp_path / "victim"
    for place in (name, "evaluation.json"):
        (tmp_path / place).unlink(missing_ok=True)
        victim.write_text("")
        (tmp_path / place).symlink_to("victim")
        with pytest.raises(MalformedError, match=rf"{re.escape(place)} is a link"):
            RolloutLog(tmp_path, {})
        assert victim.read_text() == ""


class Fatal(Scripted):
    """Ends its process when it acts."""

    def act(self, observations: Mapping[int, Observation]) -> dict[int, Action]:
        os._exit(9)


def jobs(maker: Any, numbers: Sequence[int]) -> list[RolloutJob]:
    return [
        RolloutJob(f"babyai/{task}", "expert", number, maker, {"time_limit": 40})
        for task in ("GoToLocal-v0", "PickupLoc-v0")
        for number in numbers
    ]


def test_processes_play_what_one_process_plays() -> None:
    work = jobs(partial(Scripted, agent="expert"), range(3))
    here, in_processes = (
        {(job.task, job.number): outcome(rollout) for job, rollout in play_jobs(work, workers)} for workers in (1, 2)
    )
    assert len(here) == 6
    assert here == in_processes


def test_a_dead_worker_is_a_sentence() -> None:
    with pytest.raises(DataError, match="a process that played rollouts was killed, most likely for memory"):
        list(play_jobs(jobs(partial(Fatal, agent="expert"), [0]), 2))


def test_only_what_is_missing_is_played(tmp_path: Path) -> None:
    task = "babyai/GoToLocal-v0"
    work = [
        RolloutJob(task, agent, number, partial(Scripted, agent=agent))
        for agent in ("expert", "random")
        for number in range(2)
    ]
    reports: list[tuple[str, int, int]] = []
    with RolloutLog(tmp_path, {}) as log:
        log.add(task, "expert", replace(ROLLOUT, number=1))
        play_missing(log, work, 1, lambda *report: reports.append(report))
        assert log.missing(task, "expert", 2) == log.missing(task, "random", 2) == []
    assert reports == [("expert", 1, 2), ("random", 0, 2), ("expert", 2, 2), ("random", 1, 2), ("random", 2, 2)]
    lines = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    played = [("expert", 1), ("expert", 0), ("random", 0), ("random", 1)]
    assert [(line["agent"], line["number"]) for line in lines] == played


def test_videos(tmp_path: Path) -> None:
    watch = Videos(tmp_path / "videos", "test/counter")
    for rollout in play([Counter(), Counter()], Diary(), range(3), watch):
        assert not has_video(tmp_path / "videos", "test/counter", rollout.number)
        watch.finish(rollout.number)
        assert has_video(tmp_path / "videos", "test/counter", rollout.number)
    assert sorted(os.listdir(tmp_path / "videos")) == [f"test-counter-{number}.mp4" for number in range(3)]
    film = cv2.VideoCapture(str(tmp_path / "videos" / "test-counter-2.mp4"))
    means = []
    while (frame := film.read())[0]:
        assert frame[1].shape == (32, 48, 3)
        means.append(float(frame[1].mean()))
    assert film.get(cv2.CAP_PROP_FPS) == 10
    np.testing.assert_allclose(means, [0, 20, 40, 60, 80], atol=3)


@pytest.mark.parametrize(("name", "shape"), [("atari/Breakout", (210, 160, 3)), ("babyai/GoToLocal-v0", (256, 256, 3))])
def test_rendering_changes_nothing(name: str, shape: tuple[int, ...]) -> None:
    adapter = make(name, time_limit=40)
    seen: list[np.ndarray] = []
    watched, unwatched = (
        [outcome(rollout) for rollout in play([adapter], Scripted([adapter], "random"), range(2), watch)]
        for watch in (lambda _, adapter: seen.append(adapter.render()), None)
    )
    assert watched == unwatched
    assert {(image.shape, image.dtype.name) for image in seen} == {(shape, "uint8")}
    assert len({image.tobytes() for image in seen}) > 5


DRAW = """
import sys
from gatokit.environments import make
from gatokit.environments.rendering import choose_backend
from gatokit.evaluation.rollouts import Scripted, play
choose_backend()
for name in ("metaworld/door-open-v3", "dm_control/pendulum-swingup"):
    adapter = make(name, time_limit=6)
    seen = []
    found = [
        [(r.episode_return, r.steps) for r in play([adapter], Scripted([adapter], "expert"), range(1), watch)]
        for watch in (lambda number, adapter: seen.append(adapter.render()), None)
    ]
    assert found[0] == found[1], found
    print(name, {(p.shape, p.dtype.name) for p in seen}, len({p.tobytes() for p in seen}) == 7)
    adapter.close()
"""


@pytest.mark.slow
def test_rendering_of_mujoco_change_nothing() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run([sys.executable, "-c", DRAW], env=environment, capture_output=True, text=True, check=False)
    if "apt-get install" in done.stderr:
        pytest.skip("no OpenGL here")
    assert (done.stderr, done.returncode) == ("", 0)
    shown = "{((240, 320, 3), 'uint8')} True"
    assert done.stdout == f"metaworld/door-open-v3 {shown}\ndm_control/pendulum-swingup {shown}\n"


@pytest.mark.parametrize("name", ["metaworld/door-open-v3", "dm_control/pendulum-swingup"])
def test_without_opengl_a_sentence_says_what_to_install(name: str) -> None:
    code = f"from gatokit.environments import make; a = make({name!r}); a.reset(0); a.render()"
    environment = os.environ | {"MUJOCO_GL": "disabled"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert f"ConfigError: {name} cannot be rendered with MUJOCO_GL=disabled" in done.stderr
    assert "apt-get install libegl1 and set MUJOCO_GL=egl" in done.stderr


def test_an_expert_that_observes_acts_on_the_observation_that_it_is_given() -> None:
    adapter = make("metaworld/door-open-v3")
    observations = [adapter.reset(FIRST)]
    actions = []
    for _ in range(40):
        actions.append(adapter.expert_action())
        np.testing.assert_array_equal(adapter.expert_action(), actions[-1])
        np.testing.assert_allclose(adapter.expert_action_on(observations[-1]), actions[-1], atol=1e-5)
        observations.append(adapter.step(actions[-1]).observation)
    assert np.abs(adapter.expert_action_on(observations[0]) - adapter.expert_action()).max() > 0.1
    for name in ("babyai/GoToLocal-v0", "dm_control/pendulum-swingup", "atari/Pong"):
        other = make(name)
        assert not other.expert_observes
        with pytest.raises(NotImplementedError, match="does not act on observations"):
            other.expert_action_on(other.reset(0))
