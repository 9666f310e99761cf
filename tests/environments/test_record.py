"""What is on disk after a recording, and after one that did not end."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from packages import ENVLOGGER

from gatokit.environments import Adapter, make
from gatokit.environments.agents import Actor, Mix, episode_seed
from gatokit.environments.record import MARKER, Job, read_recording, record, record_tasks
from gatokit.schemas.errors import ConfigError

pytestmark = pytest.mark.usefixtures("native_envlogger")

MIX = Mix(expert=2, noisy=1, random=1)


def played(adapter: Adapter, mix: Mix, seed: int) -> list[dict[str, Any]]:
    """The episodes that a recording has to hold, played without any recorder."""
    episodes = []
    for index, agent in enumerate(mix.order()):
        episode = episode_seed(adapter.name, seed, index)
        actor = Actor(adapter, agent, episode)
        steps: list[dict[str, Any]] = []
        observation, over, terminated = adapter.reset(episode), False, False
        while not over:
            action = actor.act()
            following, reward, terminated, truncated = adapter.step(action)
            over = terminated or truncated
            steps.append({"observation": observation, "action": action, "reward": np.float32(reward)})
            steps[-1] |= {"discount": 0.0 if terminated else 1.0, "is_last": False, "is_terminal": False}
            observation = following
        zero = np.zeros(adapter.action.shape, adapter.action.dtype)
        steps.append({"observation": observation, "action": zero, "reward": 0.0, "discount": 0.0})
        steps[-1] |= {"is_last": True, "is_terminal": terminated}
        for position, step in enumerate(steps):
            step["is_first"] = position == 0
        metadata = {"agent_id": agent, "env_id": adapter.name, "episode_index": index, "seed": episode}
        metadata["time_limit"] = adapter.time_limit
        if adapter.action.kind == "discrete":
            metadata["num_actions"] = adapter.action.num
        else:
            metadata |= {"action_low": adapter.action_low, "action_high": adapter.action_high}
        episodes.append({"steps": steps, **metadata})
    return episodes


def stored(directory: Path) -> list[dict[str, Any]]:
    """The episodes of a recording as TFDS reads them, in the order of the files."""
    [features] = directory.rglob("features.json")
    builder = tfds.builder_from_directory(features.parent)
    if builder.info.file_format.value == "array_record":
        data = builder.as_data_source(split="train")
    else:
        one_by_one = tfds.ReadConfig(interleave_cycle_length=1)
        data = tfds.as_numpy(builder.as_dataset(split="train", read_config=one_by_one))
    return [episode | {"steps": list(episode["steps"])} for episode in data]


def decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize(
    ("name", "limit", "writer", "files"),
    [
        pytest.param(
            "metaworld/door-open-v3", 40, "envlogger", "metaworld_door_open_v3-train.tfrecord-00000", marks=ENVLOGGER
        ),
        pytest.param(
            "babyai/PickupLoc-v0", 30, "envlogger", "babyai_pickuploc_v0-train.tfrecord-00000", marks=ENVLOGGER
        ),
        ("babyai/PickupLoc-v0", 30, "array_record-shuffled", "babyai_pickuploc_v0-train.array_record-00000-of-00001"),
        ("dm_control/reacher-easy", 40, "tfrecord-shuffled", "dm_control_reacher_easy-train.tfrecord-00000-of-00001"),
        ("dm_control/reacher-easy", 40, "tfrecord", "dm_control_reacher_easy-train.tfrecord-00000"),
        ("atari/Breakout", 30, "array_record", "atari_breakout-train.array_record-00000"),
        pytest.param("atari/Breakout", 30, "envlogger", "atari_breakout-train.tfrecord-00000", marks=ENVLOGGER),
    ],
)
def test_a_recording_read_back_is_the_rollout(name: str, limit: int, writer: str, files: str, tmp_path: Path) -> None:
    adapter = make(name, time_limit=limit)
    recording = record(adapter, tmp_path, MIX, seed=5, writer=writer)
    assert recording.directory == tmp_path / name
    assert [path.name for path in recording.directory.rglob("*-train*")] == [files]
    episodes = decoded(stored(recording.directory))
    if writer.endswith("shuffled"):
        episodes.sort(key=lambda episode: episode["episode_index"])
    expected = played(adapter, MIX, seed=5)
    np.testing.assert_equal(episodes, expected)
    returns = [sum(float(step["reward"]) for step in episode["steps"]) for episode in expected]
    shown = {agent: iter(values) for agent, values in recording.returns.items()}
    np.testing.assert_allclose([next(shown[agent]) for agent in MIX.order()], returns, rtol=1e-12)
    assert recording.steps == sum(len(episode["steps"]) - 1 for episode in expected)
    assert read_recording(recording.directory) == recording


def test_shuffled_files_are_not_in_collection_order(tmp_path: Path) -> None:
    adapter = make("babyai/GoToLocal-v0", time_limit=5)
    recording = record(adapter, tmp_path, Mix(expert=12), writer="tfrecord-shuffled")
    order = [int(episode["episode_index"]) for episode in stored(recording.directory)]
    assert sorted(order) == list(range(12))
    assert order != sorted(order)


@pytest.mark.parametrize("writer", [pytest.param("envlogger", marks=ENVLOGGER), "array_record"])
def test_more_episodes_than_a_file_holds(writer: str, tmp_path: Path) -> None:
    adapter = make("babyai/GoToLocal-v0", time_limit=2)
    recording = record(adapter, tmp_path, Mix(random=103, expert=0), writer=writer)
    shards = [path.name[-5:] for path in sorted(recording.directory.rglob("*-train*"))]
    assert shards == ["00000", "00001", "00002"]
    assert [int(episode["episode_index"]) for episode in stored(recording.directory)] == list(range(103))


@ENVLOGGER
def test_a_killed_recording_leaves_nothing_to_mistake_and_the_next_begins_anew(tmp_path: Path) -> None:
    code = (
        "import sys; from gatokit.environments import make; from gatokit.environments.agents import Mix\n"
        "from gatokit.environments.record import record\n"
        "record(make('babyai/GoToLocal-v0'), sys.argv[1], Mix.of(100000), writer='envlogger',"
        " progress=lambda *report: print(report[1], flush=True))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert any(line == "60\n" for line in child.stdout)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    [left] = [path.name for path in (tmp_path / "babyai").iterdir()]
    assert re.fullmatch(r"\.tmp-[0-9a-f]{32}-GoToLocal-v0", left)
    adapter = make("babyai/GoToLocal-v0")
    again = record(adapter, tmp_path, Mix.of(8), writer="envlogger").directory
    undisturbed = record(make("babyai/GoToLocal-v0"), tmp_path / "other", Mix.of(8), writer="envlogger").directory
    np.testing.assert_equal(stored(again), stored(undisturbed))
    assert (again / MARKER).read_bytes() == (undisturbed / MARKER).read_bytes()
    assert [path.name for path in (tmp_path / "babyai").iterdir()] == ["GoToLocal-v0"]


@pytest.mark.parametrize("writer", [pytest.param("envlogger", marks=ENVLOGGER), "array_record", "tfrecord-shuffled"])
def test_a_recording_that_fails_removes_its_files(writer: str, tmp_path: Path) -> None:
    def stop(task: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    adapter = make("babyai/GoToLocal-v0")
    with pytest.raises(KeyboardInterrupt):
        record(adapter, tmp_path, MIX, writer=writer, progress=stop)
    assert list((tmp_path / "babyai").iterdir()) == []
    record(adapter, tmp_path, MIX, writer=writer)
    assert len(stored(tmp_path / "babyai" / "GoToLocal-v0")) == MIX.total


def test_a_recording_replaces_and_removes_nothing(tmp_path: Path) -> None:
    adapter, folder = make("babyai/GoToLocal-v0"), tmp_path / "babyai"
    (folder / ".GoToLocal-v0.partial").mkdir(parents=True)
    (folder / ".GoToLocal-v0.partial" / "notes").write_text("mine")
    (folder / "GoToLocal-v0").symlink_to("nothing")
    with pytest.raises(ConfigError):
        record(adapter, tmp_path, MIX)
    (folder / "GoToLocal-v0").unlink()
    (folder / "GoToLocal-v0").mkdir()
    (folder / "GoToLocal-v0" / "recording.json").write_text("mine")
    with pytest.raises(ConfigError):
        record(adapter, tmp_path, MIX)
    assert (folder / "GoToLocal-v0" / "recording.json").read_text() == "mine"
    shutil.rmtree(folder / "GoToLocal-v0")
    record(adapter, tmp_path, MIX)
    assert (folder / ".GoToLocal-v0.partial" / "notes").read_text() == "mine"


def test_a_finished_recording_is_kept_and_other_settings_are_refused(tmp_path: Path) -> None:
    adapter = make("babyai/GoToLocal-v0")
    first = record(adapter, tmp_path, MIX)
    before = {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")}
    reports: list[Any] = []
    assert record(adapter, tmp_path, MIX, progress=lambda *report: reports.append(report)) == first
    assert {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")} == before
    assert reports == [(adapter.name, 4, 4)]
    for changes, part in (({"seed": 1}, "seed 0, not 1"), ({"writer": "tfrecord"}, "writer array_record-shuffled")):
        with pytest.raises(ConfigError, match=part):
            record(adapter, tmp_path, MIX, **changes)
    (first.directory / MARKER).unlink()
    with pytest.raises(ConfigError, match="not a finished recording"):
        record(adapter, tmp_path, MIX)


def test_an_unknown_writer_and_a_task_named_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no writer 'riegeli'"):
        record(make("babyai/GoToLocal-v0"), tmp_path, MIX, writer="riegeli")
    assert list((tmp_path / "babyai").iterdir()) == []
    job = Job("babyai/GoToLocal-v0", MIX)
    with pytest.raises(ConfigError, match="named twice"):
        record_tasks([job, job], tmp_path)


def test_two_processes_record_what_one_does(tmp_path: Path) -> None:
    work = [Job("babyai/GoToLocal-v0", MIX), Job("babyai/PickupLoc-v0", MIX)]
    reports: list[tuple[str, int, int]] = []
    together = record_tasks(work, tmp_path / "two", 2, lambda *report: reports.append(report))
    alone = record_tasks(work, tmp_path / "one")
    assert [recording.env_id for recording in together] == [job.name for job in work]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_equal(stored(one.directory), stored(other.directory))
        assert (one.returns, one.steps) == (other.returns, other.steps)
    assert sorted(reports) == [(job.name, done, 4) for job in work for done in (1, 2, 3, 4)]


def test_a_failing_job_names_its_error_and_the_finished_ones_stay(tmp_path: Path) -> None:
    work = [Job("babyai/GoToLocal-v0", MIX), Job("babyai/NoSuchLevel-v0", MIX)]
    with pytest.raises(ConfigError, match="no task 'NoSuchLevel-v0'"):
        record_tasks(work, tmp_path)
    assert json.loads((tmp_path / "babyai" / "GoToLocal-v0" / MARKER).read_text())["episodes"] == 4
