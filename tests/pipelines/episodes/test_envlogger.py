import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packages import ENVLOGGER

from gatokit.pipelines.episodes.envlogger import EnvLoggerFile
from gatokit.pipelines.episodes.reader import RawEpisode, SourceDirectory, SourceField, StoredEpisode
from gatokit.pipelines.episodes.rlds import RldsFile
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.config_episodes import Splits
from gatokit.schemas.errors import ConfigError, DataError, RejectedError, install_hint

dm_env = pytest.importorskip("dm_env", reason="it comes with EnvLogger and dm-control, which have no wheels here")

LARGE = 1 << 30
LENGTHS = (4, 2, 6, 3, 5)

Episode = tuple[list[Any], dict[str, Any] | None]


def observation(rng: np.random.Generator, at: int) -> dict[str, Any]:
    return {
        "frame": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8),
        "state": rng.normal(size=5).astype(np.float32),
        "precise": rng.normal(size=(2, 2)),
        "mission": f"go to {at} ü",
        "open": np.bool_(at % 2),
        "arm": {"left": np.int32(-at), "right": np.array([at, -at], np.int64)},
    }


def recorded(lengths: Sequence[int] = LENGTHS, seed: int = 0, last: bool = True) -> list[Episode]:
    """Episodes in dm_env order, as EnvLogger records them."""
    from envlogger.step_data import StepData

    rng = np.random.default_rng(seed)
    episodes: list[Episode] = []
    for index, length in enumerate(lengths):
        steps = []
        for at in range(length):
            ends = last and at == length - 1
            kind = dm_env.StepType.FIRST if at == 0 else dm_env.StepType.LAST if ends else dm_env.StepType.MID
            reward, discount = (None, None) if at == 0 else (10.0 * index + at, float(not ends or index % 2))
            action = None if at == 0 else {"move": rng.normal(size=2).astype(np.float32), "grip": np.int64(at % 3)}
            timestep = dm_env.TimeStep(kind, reward, discount, observation(rng, at))
            steps.append(StepData(timestep, action, {"stamp": at * 7}))
        episodes.append((steps, {"agent_id": f"agent {index}", "index": np.int64(index), "success": index > 1}))
    return episodes


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, write_riegeli: Callable) -> Path:
    from envlogger.converters import spec_codec

    array = dm_env.specs.Array((), np.float64)
    action = {"grip": dm_env.specs.DiscreteArray(3, np.int64), "move": dm_env.specs.Array((2,), np.float32)}
    specs = {name: spec_codec.encode(array) for name in ("observation_spec", "reward_spec", "discount_spec")}
    specs["action_spec"] = spec_codec.encode(action)
    metadata = {"recorder": "a test", "seed": 7, "agent_id": "of the log", "environment_specs": specs}
    return write_riegeli(tmp_path_factory.mktemp("riegeli") / "log", recorded(), metadata=metadata)


@pytest.fixture
def copied(log: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", os.fspath(log), os.fspath(tmp_path / "log")], check=True)
    return tmp_path / "log"


def read(path: Path) -> SourceDirectory:
    return EnvLoggerFile.read_directory(str(path), "log", str(path.parent), None)


def rows(directory: SourceDirectory, max_bytes: int = LARGE) -> list[StoredEpisode]:
    return [row for file in directory.files for row in file.read_all(max_bytes)]


def episode_of(row: StoredEpisode) -> RawEpisode:
    assert row.value is not None, row.detail
    return row.value


def at(value: Any, path: str) -> Any:
    for key in path.split("/"):
        value = value[key]
    return value


def same(ours: Any, theirs: Sequence[Any]) -> bool:
    if isinstance(ours, list):
        return ours == [value.encode() if isinstance(value, str) else value for value in theirs]
    return bool(np.array_equal(ours, np.array(theirs)))


def lists(directory: SourceDirectory, row: StoredEpisode) -> dict[str, list[Any]]:
    """Every field's values."""
    return {field.path: list(episode_of(row).column(field)) for field in directory.features.steps}


def test_every_value_is_that_of_envlogger_in_the_order_of_tfds(log: Path) -> None:
    import envlogger
    from tensorflow_datasets.rlds import envlogger_reader

    directory = read(log)
    found = [episode_of(row) for row in rows(directory)]
    with envlogger.Reader(str(log)) as reader:
        truth = list(envlogger_reader.generate_episodes(reader))
        assert len(found) == len(truth) == len(LENGTHS)
        for ours, theirs in zip(found, truth, strict=True):
            for field in directory.features.steps:
                placeholder = field.path.split("/")[0] in ("action", "reward", "discount")
                column, steps = ours.column(field), list(at(theirs["steps"], field.path))
                assert same(column[:-1], steps[:-1])
                assert placeholder or same(column, steps)
                assert not placeholder or not np.any(column[-1])


def test_both_backends_give_the_same_episodes(log: Path, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds
    from envlogger.backends.tfds_backend_writer import TFDSBackendWriter

    features = tfds.features
    path = tmp_path / "tfds" / "0.0.1"
    path.mkdir(parents=True)
    config = tfds.rlds.rlds_base.DatasetConfig(
        name="recorded",
        observation_info={
            "frame": features.Tensor(shape=(8, 8, 3), dtype=np.uint8),
            "state": features.Tensor(shape=(5,), dtype=np.float32),
            "precise": features.Tensor(shape=(2, 2), dtype=np.float64),
            "mission": features.Text(),
            "open": np.bool_,
            "arm": {"left": np.int32, "right": features.Tensor(shape=(2,), dtype=np.int64)},
        },
        action_info={"move": features.Tensor(shape=(2,), dtype=np.float32), "grip": features.ClassLabel(num_classes=3)},
        reward_info=np.float64,
        discount_info=np.float64,
        step_metadata_info={"stamp": np.int64},
        episode_metadata_info={"agent_id": features.Text(), "index": np.int64, "success": np.bool_},
    )
    writer = TFDSBackendWriter(data_directory=str(path), ds_config=config, max_episodes_per_file=2)
    for steps, metadata in recorded():
        for ordinal, step in enumerate(steps):
            writer.record_step(step, is_new_episode=ordinal == 0)
        writer.set_episode_metadata(metadata or {})
    writer.close()

    ours, theirs = read(log), RldsFile.read_directory(str(path), "tfds", str(tmp_path), None)
    assert [file.name for file in theirs.files] == [f"tfds/0.0.1/recorded-train.tfrecord-0000{i}" for i in range(3)]
    assert [file.episodes for file in theirs.files] == [2, 2, 1]
    described = [(field.path, field.dtype, field.shape, field.form, field.num) for field in ours.features.steps]
    assert described == [(f.path, f.dtype, f.shape, f.form, f.num) for f in theirs.features.steps]
    for one, other in zip(rows(ours), rows(theirs), strict=True):
        for field in ours.features.steps:
            column = episode_of(one).column(field)
            if field.path == "observation/precise":  # TFDS stores it as float32
                column = np.asarray(column).astype(np.float32)
            assert same(column, list(episode_of(other).column(field)))
        for field in theirs.features.metadata:
            assert episode_of(one).metadata(field) == episode_of(other).metadata(field)


def test_metadata_is_of_the_episode_then_of_the_log(log: Path) -> None:
    directory = read(log)
    metadata = {field.path: episode_of(rows(directory)[3]).metadata(field) for field in directory.features.metadata}
    assert {key: value for key, value in metadata.items() if not key.startswith("environment_specs/")} == {
        "agent_id": "agent 3",
        "index": 3,
        "recorder": "a test",
        "seed": 7,
        "success": 1,
    }
    assert metadata["environment_specs/action_spec/grip/num_values"] == 3
    assert metadata["environment_specs/action_spec/move/dtype"] == "float32"
    assert episode_of(rows(directory)[0]).metadata(SourceField(path="absent", dtype="int64")) is None


@ENVLOGGER
def test_a_log_of_the_environment_wrapper(native_envlogger: Path, tmp_path: Path) -> None:
    import envlogger
    from envlogger.testing.catch_env import Catch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "unicode_", np.str_, raising=False)
        environment = envlogger.EnvLogger(Catch(), data_directory=str(tmp_path))
        for action in (0, 1, 2):
            timestep = environment.reset()
            while not timestep.last():
                timestep = environment.step(action)
        environment.close()
    directory = read(tmp_path)
    assert [(f.path, f.dtype, f.shape, f.num) for f in directory.features.steps] == [
        ("action", "int64", (), 3),
        ("discount", "float64", (), None),
        ("is_first", "bool", (), None),
        ("is_last", "bool", (), None),
        ("is_terminal", "bool", (), None),
        ("observation", "float32", (10, 5), None),
        ("reward", "float64", (), None),
    ]
    for action, row in enumerate(rows(directory)):
        columns = lists(directory, row)
        assert columns["action"] == [action] * 9 + [0]
        assert columns["is_first"] == [True] + [False] * 9
        assert columns["is_last"] == columns["is_terminal"] == [False] * 9 + [True]
        assert np.abs(columns["reward"]).tolist() == [0.0] * 8 + [1.0, 0.0]


def test_a_shard_is_a_file(log: Path) -> None:
    directory = read(log)
    assert [len(list(file.read_all(LARGE))) for file in directory.files] == [2, 2, 1]
    for file in directory.files:
        assert file.name == os.path.relpath(file.path, log.parent)
        assert file.size == os.path.getsize(file.path)
        assert file.episodes is None


def test_read_some_gives_what_read_all_found(log: Path) -> None:
    directory = read(log)
    file = directory.files[0]
    whole = list(file.read_all(LARGE))
    again = list(file.read_some([row.byte_range for row in reversed(whole)]))
    for row, episode in zip(reversed(whole), again, strict=True):
        for field in directory.features.steps:
            assert same(episode.column(field), list(episode_of(row).column(field)))


def test_places_identify_content(log: Path, tmp_path: Path, write_riegeli: Callable) -> None:
    one, two, other = (
        [row.byte_range for row in rows(read(write_riegeli(tmp_path / name, recorded((4, 2), seed=seed))))]
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert one == two
    assert {place.crc for place in one}.isdisjoint({place.crc for place in other})
    episodes = recorded((4, 2))
    metadata = episodes[0][1]
    assert metadata is not None
    metadata["agent_id"] = "another"
    relabelled = [row.byte_range for row in rows(read(write_riegeli(tmp_path / "relabelled", episodes)))]
    assert (relabelled[0] != one[0], relabelled[1] == one[1]) == (True, True)


def test_a_file_changed_after_the_scan_is_an_error(copied: Path) -> None:
    directory = read(copied)
    file = directory.files[1]
    place = next(iter(file.read_all(LARGE))).byte_range
    assert isinstance(file, EnvLoggerFile)
    for changed in (
        ByteRange(place.position, 0, place.length, place.crc ^ 1),
        ByteRange(place.position, 0, place.length - 1, place.crc),
        ByteRange(9, 0, place.length, place.crc),
    ):
        with pytest.raises(DataError, match=rf"^{file.name}: episode \d changed between scan and build"):
            list(file.read_some([changed]))
    Path(file.path).write_bytes(b"")
    with pytest.raises(DataError, match=rf"^{file.name}: episode 0 changed between scan and build"):
        list(file.read_some([place]))


def test_a_killed_recording_is_one_row(copied: Path) -> None:
    directory = read(copied)
    shard = Path(directory.files[-1].path).parent
    for part in shard.iterdir():
        part.write_bytes(b"")
    found = rows(read(copied))
    assert [(row.reason, row.lost) for row in found] == [(None, 1)] * 4 + [("corrupt_length", 1)]
    assert found[-1].detail == (
        "the shard cannot be opened, so its recording was killed or it is damaged: "
        f"NOT_FOUND: Empty steps in {shard.name}/step_offsets.riegeli"
    )


@pytest.mark.parametrize("part", ["steps", "step_offsets", "episode_index", "episode_metadata"])
def test_a_damaged_shard_loses_its_own_episodes_and_says_so(copied: Path, part: str) -> None:
    directory = read(copied)
    sound = rows(directory)
    damaged = Path(directory.files[0].path).parent / f"{part}.riegeli"
    data = damaged.read_bytes()
    for offset in range(0, len(data), max(1, len(data) // 40)):
        damaged.write_bytes(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
        found = rows(directory)
        assert [row.byte_range for row in found[-3:]] == [row.byte_range for row in sound[-3:]]
        bad = [row for row in found if row.value is None]
        if part == "episode_metadata":
            assert [row.byte_range.position for row in found[:-3]] == [0, 1]
            assert [row.byte_range for row in found] != [row.byte_range for row in sound]
        else:
            assert bad
            assert sum(row.lost for row in bad) in (1, 2)
            good = [row.byte_range for row in found[:-3] if row.value is not None]
            assert {place.crc for place in good} <= {row.byte_range.crc for row in sound}
            assert sum(row.lost for row in found[:-3]) in (1, 2)
            assert all(str(copied) not in (row.detail or "") for row in bad)


def test_an_episode_above_the_limit_is_rejected(log: Path) -> None:
    directory = read(log)
    lengths = [row.byte_range.length for row in rows(directory)]
    found = rows(directory, max_bytes=sorted(lengths)[-2])
    assert [row.reason for row in found] == [None, None, "too_large", None, None]


def test_an_interrupted_episode_ends_with_its_last_observation(tmp_path: Path, write_riegeli: Callable) -> None:
    directory = read(write_riegeli(tmp_path / "log", recorded((3, 1), last=False)))
    cut, reset = (lists(directory, row) for row in rows(directory))
    assert cut["is_last"] == [False, False, True]
    assert cut["is_terminal"] == [False, False, False]
    assert cut["reward"] == [1.0, 2.0, 0.0]
    assert reset["is_last"] == reset["is_first"] == [True]
    assert reset["reward"] == [0.0]
    assert np.array_equal(reset["action/move"], [[0.0, 0.0]])


def test_steps_that_differ_from_the_first_are_rejections(tmp_path: Path, write_riegeli: Callable) -> None:
    episodes = recorded((3, 3))
    observations = [step.timestep.observation for step in episodes[1][0]]
    observations[1]["state"] = np.zeros(4, np.float32)
    observations[1]["mission"] = np.float32(1)
    observations[2]["open"] = np.zeros(2, bool)
    del observations[2]["frame"]
    directory = read(write_riegeli(tmp_path / "log", episodes))
    episode = episode_of(rows(directory)[1])
    reasons = {}
    for field in directory.features.steps:
        try:
            episode.column(field)
        except RejectedError as error:
            reasons[field.path] = str(error)
    assert reasons == {
        "observation/frame": "missing_field: steps/observation/frame is absent from a step of the episode",
        "observation/mission": "wrong_shape: observation/mission holds float32, no string",
        "observation/open": "wrong_shape: steps/observation/open holds bool of shape (2,), not bool (), at step 2",
        "observation/state": "wrong_shape: steps/observation/state holds float32 of shape (4,), not float32 (5,), "
        "at step 1",
    }


def test_lists_and_arrays_of_strings_are_unreadable(tmp_path: Path, write_riegeli: Callable) -> None:
    episodes = recorded((2,))
    for step in episodes[0][0]:
        step.timestep.observation["parts"] = [np.float32(1), np.float32(2)]
        step.timestep.observation["words"] = np.array(["a", "b"])
    features = read(write_riegeli(tmp_path / "log", episodes)).features
    assert {field.path: field.type_name for field in features.steps if field.form == "unreadable"} == {
        "observation/parts": "list",
        "observation/words": "object array",
    }


def test_metadata_of_early_versions_is_in_the_first_step(tmp_path: Path, write_riegeli: Callable) -> None:
    [(steps, _)] = recorded((2,))
    steps[0] = steps[0]._replace(custom_data={"episode_metadata": {"agent_id": "early"}, "stamp": 0})
    directory = read(write_riegeli(tmp_path / "log", [(steps, None)]))
    [field] = directory.features.metadata
    assert (field.path, episode_of(rows(directory)[0]).metadata(field)) == ("agent_id", "early")


# --- values as recorders write them --------------------------------------------------------------------------------


def written(values: Sequence[dict[str, Any]]) -> list[Any]:
    """An episode from the observation, action and reward of each step in dm_env order."""
    from envlogger.step_data import StepData

    steps = []
    for at, value in enumerate(values):
        kind = dm_env.StepType.FIRST if at == 0 else dm_env.StepType.LAST if at == len(values) - 1 else 1
        timestep = dm_env.TimeStep(kind, value.get("reward"), None if at == 0 else 1.0, value["observation"])
        steps.append(StepData(timestep, value.get("action"), None))
    return steps


def walk(observations: Sequence[Any], rewards: Sequence[Any]) -> list[Any]:
    rewarded = [{"observation": observations[0]}]
    for observation, reward in zip(observations[1:], rewards, strict=True):
        rewarded.append({"observation": observation, "action": np.int64(1), "reward": reward})
    return written(rewarded)


def encoded(**specs: Any) -> dict[str, Any]:
    from envlogger.converters import spec_codec

    return {"environment_specs": {f"{name}_spec": spec_codec.encode(spec) for name, spec in specs.items()}}


@pytest.mark.parametrize("has_specs", [False, True])
def test_a_reward_that_begins_as_an_integer_is_a_float(
    has_specs: bool, tmp_path: Path, write_riegeli: Callable
) -> None:
    floats = dm_env.specs.Array((), float)
    failure, success = walk([0, 1, 2], [0, 0]), walk([0, 1, 2], [0, 0.955])
    metadata = encoded(reward=floats, discount=floats, observation=floats) if has_specs else {}
    episodes = [(item, None) for item in [failure, success] * 9 + [failure] * 2]
    log = write_riegeli(tmp_path / "log", episodes, metadata=metadata)
    directory = read(log)
    reward, observation = directory.features.step("reward"), directory.features.step("observation")
    assert reward is not None
    assert observation is not None
    assert (reward.dtype, observation.dtype) == ("float64", "float64" if has_specs else "int64")
    totals = [float(episode_of(row).column(reward).sum()) for row in rows(directory)]
    assert totals == [0.0, 0.955] * 9 + [0.0] * 2


def test_the_successes_of_such_a_log_are_kept(tmp_path: Path, vocabulary: Path, write_riegeli: Callable) -> None:
    from gatokit.inspection import open_directory
    from gatokit.pipelines.run import build

    failure, success = walk([0.0, 0.1, 0.2], [0, 0]), walk([0.0, 0.1, 0.2], [0, 0.955])
    write_riegeli(tmp_path / "log", [(item, None) for item in [failure, success, failure, success]])
    (tmp_path / "c.yaml").write_text(
        f"vocabulary: {vocabulary}\ndatasets: [{{name: d, kind: episodes, source: log, keep: {{min_return: 0.8}}}}]"
    )
    result = build(tmp_path / "c.yaml", tmp_path / "out")
    found = open_directory(str(tmp_path / "out")).datasets["d"].index().to_pylist()
    assert [(row["return"], row["kept"], row["reason"]) for row in found] == [
        (0.0, False, "below_threshold"),
        (0.955, True, None),
    ] * 2
    # A log is in collection order, and EnvLogger marks the last step.
    assert not any("order" in notice for notice in result.notices)


def test_an_end_in_the_middle_and_joined_episodes_are_malformed(tmp_path: Path, write_riegeli: Callable) -> None:
    from gatokit.inspection import open_directory
    from gatokit.pipelines.run import scan

    sound = walk([0.0, 0.1, 0.2, 0.3], [0, 0, 1])
    over = list(sound)
    over[1] = over[1]._replace(timestep=over[1].timestep._replace(step_type=dm_env.StepType.LAST))
    headless = sound[1:]
    episodes = [sound, over, [*sound, *sound], headless, sound]
    write_riegeli(tmp_path / "log", [(item, None) for item in episodes], max_episodes_per_file=9)
    (tmp_path / "c.yaml").write_text("datasets: [{name: d, kind: episodes, source: log, keep: {all: true}}]")
    result = scan(tmp_path / "c.yaml", tmp_path / "out")
    assert result.rejected == {"d": {"malformed_steps": 4}}
    found = open_directory(str(tmp_path / "out")).datasets["d"].index().to_pylist()
    assert [(row["source_position"], row["reason"], row["detail"], row["lost"]) for row in found] == [
        (0, None, None, 1),
        (1, "malformed_steps", "steps follow step 1, which is_last marks", 1),
        (2, "malformed_steps", "the shard's index is damaged: it joins 2 episodes", 2),
        (3, "malformed_steps", "the first step is not marked as an episode's first", 1),
        (4, None, None, 1),
    ]


def test_describe_shows_a_log_and_writes_its_config(log: Path, tmp_path: Path, vocabulary: Path) -> None:
    from gatokit.pipelines.describe.config_text import config_text
    from gatokit.pipelines.describe.proposal import propose
    from gatokit.pipelines.describe.source import describe
    from gatokit.pipelines.run import scan

    found = describe(str(log))
    assert (found.format, found.seen, found.bad, found.lengths) == ("envlogger", 5, 0, (2, 4.0, 6))
    fields = {field.path: field for field in found.fields}
    assert {path: (field.belongs_to, field.source.dtype, field.source.shape) for path, field in fields.items()} == {
        "action/grip": ("step", "int64", ()),
        "action/move": ("step", "float32", (2,)),
        "discount": ("step", "float64", ()),
        **dict.fromkeys(("is_first", "is_last", "is_terminal"), ("step", "bool", ())),
        "observation/arm/left": ("step", "int32", ()),
        "observation/arm/right": ("step", "int64", (2,)),
        "observation/frame": ("step", "uint8", (8, 8, 3)),
        "observation/mission": ("step", "str", ()),
        "observation/open": ("step", "bool", ()),
        "observation/precise": ("step", "float64", (2, 2)),
        "observation/state": ("step", "float32", (5,)),
        "reward": ("step", "float64", ()),
        "stamp": ("step", "int64", ()),
        "agent_id": ("episode", "str", ()),
        "index": ("episode", "int64", ()),
        "recorder": ("episode", "str", ()),
        "seed": ("episode", "int64", ()),
        "success": ("episode", "bool", ()),
    }
    assert fields["observation/mission"].statistics.examples[0] == "go to 0 ü"
    assert (fields["stamp"].statistics.min, fields["stamp"].statistics.max) == (0, 35)
    proposal = propose(found, "log", str(log))
    (tmp_path / "c.yaml").write_text(config_text(found, proposal, str(vocabulary), "c.yaml"))
    result = scan(tmp_path / "c.yaml", tmp_path / "out")
    assert [(item.episodes, item.kept) for item in result.manifest.datasets] == [(5, 3)]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([np.float64(0.1), np.float32(0.5), np.float32(0.25)], "float64"),
        ([np.float32(0.5), np.float64(0.1), np.float64(0.1)], "float64"),
        ([0, np.float32(0.5), True], "float64"),
        ([np.zeros(2, np.float32), np.ones(2, np.uint8), np.array([True, False])], "float32"),
        ([np.uint8(3), np.int16(-4), np.uint8(200)], "int16"),
        ([False, 1, np.uint8(7)], "int64"),
        ([np.zeros((1, 2), np.float32), np.ones(2, np.float32), np.ones((2, 1), np.float32)], "float32"),
    ],
)
def test_a_field_holds_what_reset_and_step_give(
    values: list[Any], dtype: str, tmp_path: Path, write_riegeli: Callable
) -> None:
    directory = read(write_riegeli(tmp_path / "log", [(walk(values, [0.0, 1.0]), None)]))
    field = directory.features.step("observation")
    assert field is not None
    assert (field.dtype, field.shape) == (dtype, np.shape(values[0]))
    column = episode_of(rows(directory)[0]).column(field)
    assert np.array_equal(column, np.stack([np.reshape(value, field.shape) for value in values]))


def test_what_does_not_fit_is_a_rejected_row_with_its_value(tmp_path: Path, write_riegeli: Callable) -> None:
    pixels, wide = [np.uint8(value) for value in (1, 2, 3)], [np.uint8(1), np.int64(200), np.int64(300)]
    shapes = [np.uint8(1), np.zeros((2, 3)), np.uint8(1)]
    episodes = [pixels, pixels, pixels, [np.uint8(1), 0.5, 0.5], wide, shapes, pixels]
    log = write_riegeli(tmp_path / "log", [(walk(item, [0, 1]), None) for item in episodes], max_episodes_per_file=7)
    directory = read(log)
    field = directory.features.step("observation")
    assert field is not None
    assert field.dtype == "uint8"
    found = rows(directory)
    for row in (*found[:3], found[6]):
        assert episode_of(row).column(field).tolist() == [1, 2, 3]
    for row, said in zip(
        found[3:6],
        (
            "steps/observation holds float64 of shape () (0.5), not uint8 (), at step 1",
            "steps/observation holds int64 of shape () (300), not uint8 (), at step 2",
            "steps/observation holds float64 of shape (2, 3), not uint8 (), at step 1",
        ),
        strict=True,
    ):
        with pytest.raises(RejectedError) as error:
            episode_of(row).column(field)
        assert (error.value.reason, error.value.detail) == ("wrong_shape", said)


def test_a_log_has_no_splits(log: Path) -> None:
    with pytest.raises(ConfigError, match=r"log: an EnvLogger log has no splits; leave out `splits` \(train\)$"):
        EnvLoggerFile.read_directory(str(log), "log", str(log.parent), Splits(train=("train",)))


def test_a_log_without_episodes_is_an_error(copied: Path) -> None:
    for file in read(copied).files:
        Path(file.path).unlink()
    with pytest.raises(DataError, match="log: holds no episode that can be read"):
        read(copied)


def test_corrupt_metadata_of_a_log_is_an_error(copied: Path) -> None:
    (copied / EnvLoggerFile.marker).write_bytes(b"no Riegeli file")
    with pytest.raises(DataError, match=r"log/metadata.riegeli: EnvLogger cannot read it: "):
        read(copied)


READ = """
import sys
from gatokit.pipelines.episodes.envlogger import EnvLoggerFile
try:
    print(len(EnvLoggerFile.read_directory(sys.argv[1], "log", ".", None).files))
except Exception as error:
    print(type(error).__name__, error)
"""


def run(code: str, *arguments: Path, **environment: str) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=True)
    return done.stdout.strip()


def test_without_envlogger_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    printed = run("import sys; sys.modules['envlogger'] = None\n" + READ, tmp_path)
    assert printed.startswith(f"ConfigError {tmp_path}: is an EnvLogger log, and EnvLogger is not installed (")
    assert printed.endswith(f"; {install_hint('envlogger')}")
    assert len(printed.splitlines()) == 1


@ENVLOGGER
def test_a_broken_native_library_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "libgmpxx.so.4").write_bytes(b"no library")
    printed = run(READ, tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert printed.startswith(f"ConfigError {tmp_path}: is an EnvLogger log, and EnvLogger's native reader does not")
    assert printed.endswith("it needs libgmpxx.so.4, on Debian and Ubuntu: apt-get install libgmpxx4ldbl")
    assert len(printed.splitlines()) == 1


def test_the_stand_in_for_libgmpxx_is_enough(log: Path, native_envlogger: Path) -> None:
    load = "import ctypes, sys; ctypes.CDLL(sys.argv[2])\n"
    mapped = "print({line.split()[-1] for line in open('/proc/self/maps') if 'libgmpxx' in line} == {sys.argv[2]})"
    assert run(load + READ + mapped, log, native_envlogger) == "3\nTrue"
