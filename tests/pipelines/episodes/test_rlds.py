import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.episodes.reader import (
    EpisodeFile,
    RawEpisode,
    SourceDirectory,
    SourceField,
    StoredEpisode,
    Values,
)
from gatokit.pipelines.episodes.rlds import ExampleEpisode, RldsFile
from gatokit.pipelines.formats import tfrecord
from gatokit.schemas.errors import ConfigError, DataError, RejectedError

LARGE = 1 << 30
LENGTHS = (3, 1, 5, 4, 2)
FORMATS = ("tfrecord", "array_record")


def rich_features() -> tuple[dict[str, Any], dict[str, Any]]:
    import tensorflow_datasets as tfds

    features = tfds.features
    flags = dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_)
    steps = {
        "observation": {
            "state": features.Tensor(shape=(5,), dtype=np.float64),
            "image": features.Image(shape=(16, 24, 3)),
            "jpeg": features.Image(shape=(16, 16, 3), encoding_format="jpeg"),
            "compressed": features.Tensor(shape=(2, 3), dtype=np.float32, encoding="zlib"),
            "mask": features.Tensor(shape=(2,), dtype=np.bool_, encoding="bytes"),
            "mission": features.Text(),
            "payload": features.Tensor(shape=(), dtype=np.object_),
            "grid": features.Tensor(shape=(3, 3, 2), dtype=np.uint8),
            "matrix": features.Tensor(shape=(2, 2), dtype=np.float32),
            "count": features.Scalar(dtype=np.int32),
            "huge": features.Scalar(dtype=np.int64),
            "door": features.ClassLabel(num_classes=4),
            "open": np.bool_,
            "arm": {"left": {"angle": np.float32}, "right": {"angle": np.float32}},
            "ragged": features.Sequence(features.Tensor(shape=(2,), dtype=np.float32)),
            "unknown_size": features.Tensor(shape=(None,), dtype=np.float32, encoding="zlib"),
            "words": features.Sequence(features.Text()),
        },
        "action": {
            "gripper": features.ClassLabel(num_classes=2),
            "move": features.Tensor(shape=(3,), dtype=np.float32),
        },
        "reward": np.float64,
        "discount": np.float32,
        **flags,
    }
    metadata = {
        "agent_id": features.Text(),
        "goal": features.Image(shape=(4, 4, 3)),
        "numbers": features.Sequence(np.float32),
        "pose": features.Tensor(shape=(2, 3), dtype=np.float32),
        "episode_metadata": {"index": np.int64, "score": np.float32, "success": np.bool_},
    }
    return steps, metadata


def rich_episodes() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)

    def step(ordinal: int, count: int) -> dict[str, Any]:
        return {
            "observation": {
                "state": rng.normal(size=5) * 1e3,
                "image": rng.integers(0, 256, (16, 24, 3), dtype=np.uint8),
                "jpeg": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
                "compressed": rng.normal(size=(2, 3)).astype(np.float32),
                "mask": rng.integers(0, 2, 2).astype(bool),
                "mission": f"go to door {ordinal} ü",
                "payload": bytes(rng.integers(0, 256, ordinal, dtype=np.uint8)),
                "grid": rng.integers(0, 256, (3, 3, 2), dtype=np.uint8),
                "matrix": rng.normal(size=(2, 2)).astype(np.float32),
                "count": -3 - ordinal,
                "huge": int(rng.integers(-(2**63), 2**63 - 1)),
                "door": ordinal % 4,
                "open": bool(ordinal % 2),
                "arm": {"left": {"angle": 0.25 * ordinal}, "right": {"angle": -ordinal}},
                "ragged": np.ones((ordinal + 1, 2), np.float32),
                "unknown_size": np.ones(ordinal, np.float32),
                "words": ["a"] * ordinal,
            },
            "action": {"gripper": ordinal % 2, "move": rng.normal(size=3).astype(np.float32)},
            "reward": float(np.float32(rng.normal())),
            "discount": 1.0,
            "is_first": ordinal == 0,
            "is_last": ordinal == count - 1,
            "is_terminal": False,
        }

    return [
        {
            "steps": [step(ordinal, count) for ordinal in range(count)],
            "agent_id": f"agent {index}",
            "goal": np.full((4, 4, 3), index, np.uint8),
            "numbers": np.arange(index + 1, dtype=np.float32),
            "pose": np.arange(6.0, dtype=np.float32).reshape(2, 3) + index,
            "episode_metadata": {"index": index - 2, "score": index / 2, "success": index % 2 == 0},
        }
        for index, count in enumerate(LENGTHS)
    ]


def simple_steps() -> dict[str, Any]:
    return {"observation": np.float32, "action": np.int64, "reward": np.float32, "is_last": np.bool_}


def simple_episodes(lengths: tuple[int, ...] = LENGTHS) -> list[dict[str, Any]]:
    return [
        {
            "steps": [
                {"observation": 10.0 * index + at, "action": at, "reward": at + 0.5, "is_last": at == count - 1}
                for at in range(count)
            ]
        }
        for index, count in enumerate(lengths)
    ]


@pytest.fixture(scope="module", params=FORMATS)
def rich(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_tfds: Callable) -> Path:
    steps, metadata = rich_features()
    path = tmp_path_factory.mktemp("rich") / "task" / "1.0.0"
    return write_tfds(path, steps, rich_episodes(), metadata=metadata, file_format=request.param)


@pytest.fixture(params=FORMATS)
def simple(request: pytest.FixtureRequest, tmp_path: Path, write_tfds: Callable) -> Path:
    return write_tfds(tmp_path / "simple", simple_steps(), simple_episodes(), file_format=request.param)


def read(path: Path) -> SourceDirectory:
    return RldsFile.read_directory(str(path), "task", str(path.parent), None)


def stored(directory: SourceDirectory, max_bytes: int = LARGE) -> Iterator[tuple[EpisodeFile, StoredEpisode]]:
    for file in directory.files:
        for found in file.read_all(max_bytes):
            yield file, found


def oracle(path: Path, split: str = "train") -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Metadata and steps of every episode in file order, as TFDS reads them."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(path))
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        dataset = builder.as_data_source(split=split)
    else:
        in_order = tfds.ReadConfig(interleave_cycle_length=1)
        dataset = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False, read_config=in_order))
    return [({k: v for k, v in episode.items() if k != "steps"}, list(episode["steps"])) for episode in dataset]


def at(value: Any, path: str) -> Any:
    for key in path.split("/"):
        value = value[key]
    return value


def pixels(field: SourceField, data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    assert image.shape == field.shape
    return image


def assert_same(field: SourceField, ours: Any, theirs: list[Any]) -> None:
    if field.path == "observation/jpeg":
        assert len(ours) == len(theirs)  # decoders of JPEG differ
        assert all(data[:2] == b"\xff\xd8" for data in ours)
    elif field.form == "image":
        assert np.array_equal([pixels(field, data) for data in ours], theirs)
    elif field.form == "string":
        assert ours == theirs
    elif field.form == "ragged":
        assert_equal(ours, [np.reshape(value, (-1, *field.sides)) for value in theirs])
    else:
        assert ours.shape == (len(theirs), *field.shape)
        assert np.array_equal(ours, np.array(theirs))


def assert_equal(left: Values, right: Values) -> None:
    assert len(left) == len(right)
    assert all(map(np.array_equal, left, right))


def test_every_value_is_that_of_tfds(rich: Path) -> None:
    directory = read(rich)
    episodes = [found.value for _, found in stored(directory)]
    truth = oracle(rich)
    assert [len(steps) for _, steps in truth] == list(LENGTHS)
    assert len(episodes) == len(truth)
    readable = [field for field in directory.features.steps if field.form != "unreadable"]
    for episode, (metadata, steps) in zip(episodes, truth, strict=True):
        assert episode is not None
        for field in readable:
            assert_same(field, episode.column(field), [at(step, field.path) for step in steps])
        for field in directory.features.metadata:
            value = at(metadata, field.path)
            if not field.shape:
                assert episode.metadata(field) == (value.decode() if isinstance(value, bytes) else value)
            assert_same(field, episode.episode_value(field), [value])


def test_features_say_what_the_source_states(rich: Path) -> None:
    features = read(rich).features
    described = {field.path: (field.dtype, field.shape, field.form, field.encoding) for field in features.steps}
    assert described == {
        "action/gripper": ("int64", (), "tensor", "none"),
        "action/move": ("float32", (3,), "tensor", "none"),
        "discount": ("float32", (), "tensor", "none"),
        "is_first": ("bool", (), "tensor", "none"),
        "is_last": ("bool", (), "tensor", "none"),
        "is_terminal": ("bool", (), "tensor", "none"),
        "observation/arm/left/angle": ("float32", (), "tensor", "none"),
        "observation/arm/right/angle": ("float32", (), "tensor", "none"),
        "observation/compressed": ("float32", (2, 3), "tensor", "zlib"),
        "observation/count": ("int32", (), "tensor", "none"),
        "observation/door": ("int64", (), "tensor", "none"),
        "observation/grid": ("uint8", (3, 3, 2), "tensor", "none"),
        "observation/huge": ("int64", (), "tensor", "none"),
        "observation/image": ("uint8", (16, 24, 3), "image", "none"),
        "observation/jpeg": ("uint8", (16, 16, 3), "image", "none"),
        "observation/mask": ("bool", (2,), "tensor", "bytes"),
        "observation/matrix": ("float32", (2, 2), "tensor", "none"),
        "observation/mission": ("str", (), "string", "none"),
        "observation/open": ("bool", (), "tensor", "none"),
        "observation/payload": ("str", (), "string", "none"),
        "observation/ragged": ("float32", (None, 2), "ragged", "none"),
        "observation/state": ("float64", (5,), "tensor", "none"),
        "observation/unknown_size": ("float32", (None,), "ragged", "zlib"),
        "observation/words": ("", (), "unreadable", "none"),
        "reward": ("float64", (), "tensor", "none"),
    }
    assert {field.path: field.num for field in features.steps if field.num} == {
        "action/gripper": 2,
        "observation/door": 4,
    }
    assert [field.path for field in features.metadata] == [
        "agent_id",
        "episode_metadata/index",
        "episode_metadata/score",
        "episode_metadata/success",
        "goal",
        "numbers",
        "pose",
    ]
    assert features.metadata_field("index") == features.metadata_field("episode_metadata/index")


def test_a_sequence_of_one_length_is_a_vector(tmp_path: Path, write_tfds: Callable) -> None:
    import tensorflow_datasets as tfds

    # TFDS writes such a sequence in a step and cannot read it, so the values are compared with those written.
    kind = tfds.features.Sequence(tfds.features.Tensor(shape=(2,), dtype=np.int32), length=3)
    values = np.arange(24, dtype=np.int32).reshape(4, 3, 2) - 5
    steps = [{"observation": value, "action": 0, "reward": 0.0, "is_last": False} for value in values]
    directory = read(write_tfds(tmp_path / "a", {**simple_steps(), "observation": kind}, [{"steps": steps}]))
    field = directory.features.step("observation")
    assert field is not None
    assert (field.form, field.shape) == ("tensor", (3, 2))
    [(_, found)] = stored(directory)
    assert found.value is not None
    assert np.array_equal(found.value.column(field), values)
    assert np.array_equal(found.value.column(field.model_copy(update={"shape": (None, 2), "form": "ragged"})), values)
    for shape, form, problem in (
        ((2, 2), "tensor", "steps/observation has 3 values at step 0, not 2"),
        ((None, 5), "ragged", "steps/observation holds 24 values, no multiple of its 5 a step"),
    ):
        with pytest.raises(RejectedError, match=problem) as caught:
            found.value.column(field.model_copy(update={"shape": shape, "form": form}))
        assert caught.value.reason == "wrong_shape"


def test_bare_tensors_are_observation_and_action(simple: Path) -> None:
    directory = read(simple)
    assert [field.path for field in directory.features.steps] == ["action", "is_last", "observation", "reward"]
    for (_, found), (_, steps) in zip(stored(directory), oracle(simple), strict=True):
        assert found.value is not None
        for field in directory.features.steps:
            assert_same(field, found.value.column(field), [step[field.path] for step in steps])


def test_files_are_named_below_the_source_and_counted(simple: Path) -> None:
    directory = read(simple)
    suffix = "tfrecord" if "tfrecord" in directory.files[0].name else "array_record"
    assert [(file.name, file.episodes, file.size) for file in directory.files] == [
        (f"simple/recorded-train.{suffix}-0000{i}", n, (simple / f"recorded-train.{suffix}-0000{i}").stat().st_size)
        for i, n in enumerate((2, 2, 1))
    ]
    assert [found.byte_range.position for _, found in stored(directory)] == [0, 1, 0, 1, 0]


def test_read_some_gives_what_read_all_found(rich: Path) -> None:
    directory = read(rich)
    fields = [field for field in directory.features.steps if field.form != "unreadable"]
    for file in directory.files:
        whole = list(file.read_all(LARGE))
        again = list(file.read_some([found.byte_range for found in reversed(whole)]))
        assert len(again) == len(whole)
        for first, second in zip(reversed(whole), again, strict=True):
            assert first.value is not None
            for field in fields:
                assert_equal(first.value.column(field), second.column(field))


def test_places_identify_content(tmp_path: Path, write_tfds: Callable) -> None:
    one, two = (
        write_tfds(tmp_path / name, simple_steps(), simple_episodes(lengths))
        for name, lengths in (("one", (3, 4)), ("two", (3, 5)))
    )
    first, second = ([found.byte_range for _, found in stored(read(path))] for path in (one, two))
    assert first[0] == second[0]
    assert first[1].crc != second[1].crc


def test_numbers_are_read_whatever_list_a_recorder_chose() -> None:
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

    example = Example()
    lists = example.features.feature
    lists["steps/reward"].int64_list.value[:] = [0, 1, 3]
    lists["steps/observation/open"].float_list.value[:] = [0.0, 1.0, 1.0]
    lists["steps/observation/count"].float_list.value[:] = [4.0, -2.0, 0.5]
    lists["steps/observation/name"].bytes_list.value[:] = [b"a", b"b", b"c"]
    episode = ExampleEpisode(example.SerializeToString())
    reward = episode.column(SourceField(path="reward", dtype="float32"))
    assert isinstance(reward, np.ndarray)
    assert (reward.dtype, reward.tolist()) == (np.float32, [0.0, 1.0, 3.0])
    assert list(episode.column(SourceField(path="observation/open", dtype="bool"))) == [False, True, True]
    with pytest.raises(RejectedError, match="observation/count: holds a value that is no int32"):
        episode.column(SourceField(path="observation/count", dtype="int32"))
    with pytest.raises(RejectedError, match="observation/name: the feature holds a list of another type"):
        episode.column(SourceField(path="observation/name", dtype="float32"))


@settings(max_examples=80)
@given(
    st.lists(st.sampled_from([0, 1, 2, 127, 128, 300, -1]), max_size=300),
    st.booleans(),
    st.sampled_from(["bool", "int32"]),
)
def test_flags_are_the_values_that_are_not_0(numbers: list[int], as_floats: bool, dtype: str) -> None:
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

    example = Example()
    feature = example.features.feature["steps/is_last"]
    (feature.float_list if as_floats else feature.int64_list).value.extend(numbers)
    episode = ExampleEpisode(example.SerializeToString())
    flags = episode.flags(SourceField(path="is_last", dtype=dtype))
    assert [flag != 0 for flag in flags] == [number != 0 for number in numbers]
    with pytest.raises(RejectedError, match="steps/is_first is absent from the episode"):
        episode.flags(SourceField(path="is_first", dtype=dtype))


def test_an_episode_above_the_limit_is_rejected_unread(simple: Path) -> None:
    limit = sorted(found.byte_range.length for _, found in stored(read(simple)))[-2]
    rejected = [found for _, found in stored(read(simple), limit) if found.value is None]
    assert [(found.reason, found.byte_range.position, found.lost) for found in rejected] == [("too_large", 0, 1)]
    assert rejected[0].detail == f"{rejected[0].byte_range.length} bytes are above max_episode_bytes {limit}"


@pytest.mark.parametrize("change", ["payload", "shorter", "another"])
def test_a_file_changed_after_the_scan_is_an_error(simple: Path, change: str) -> None:
    directory = read(simple)
    file = directory.files[0]
    places = [found.byte_range for found in file.read_all(LARGE)]
    data = bytearray(Path(file.path).read_bytes())
    if change == "payload":
        data[places[1].offset + 20 if places[1].offset else data.rindex(b"reward") + 12] ^= 1
    elif change == "shorter":
        del data[len(data) * 2 // 3 if places[1].offset else len(data) // 3 :]
    else:
        data = bytearray(Path(directory.files[1].path).read_bytes())
    Path(file.path).write_bytes(bytes(data))
    with pytest.raises(DataError, match=rf"^{file.name}: episode \d changed between scan and build"):
        list(file.read_some(places))


def test_a_missing_shard_is_named(simple: Path) -> None:
    missing = Path(read(simple).files[1].path)
    missing.unlink()
    with pytest.raises(DataError, match=rf"{missing.name}: is missing, though dataset_info.json lists it"):
        read(simple)


def test_an_unfinished_recording_is_named(tmp_path: Path, write_tfds: Callable) -> None:
    path = write_tfds(tmp_path / "killed", simple_steps(), simple_episodes(), finished=False)
    with pytest.raises(DataError, match=r"killed: split 'train' states no shard lengths, so its writing was never"):
        read(path)


def test_an_unsupported_file_format_is_named(simple: Path) -> None:
    edit(simple / "dataset_info.json", fileFormat="riegeli")
    with pytest.raises(ConfigError, match="its files are riegeli; Gatokit reads array_record and tfrecord"):
        read(simple)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"pythonClassName": "no.such.Class"}', "\0\xff"])
def test_corrupt_features_are_named(simple: Path, text: str) -> None:
    (simple / "features.json").write_text(text)
    with pytest.raises(DataError, match=r"^/.*simple: TFDS cannot read this directory: "):
        read(simple)


def test_missing_dataset_info_is_named(simple: Path) -> None:
    (simple / "dataset_info.json").unlink()
    with pytest.raises(DataError, match=r"^/.*simple: TFDS cannot read this directory: "):
        read(simple)


def test_a_dataset_without_episodes_is_named(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 3))})
    identity = tfds.core.DatasetIdentity(
        name="plain", version=tfds.core.Version("1.0.0"), data_dir=str(tmp_path), module_name=""
    )
    tfds.core.DatasetInfo(builder=identity, features=features).write_to_directory(tmp_path)
    with pytest.raises(ConfigError, match="no RLDS dataset, for its features have no `steps`; leave it out"):
        read(tmp_path)


def test_a_corrupt_payload_costs_one_row(tmp_path: Path, write_tfds: Callable) -> None:
    path = write_tfds(tmp_path / "a", simple_steps(), simple_episodes(), max_examples_per_shard=5)
    directory = read(path)
    places = [found.byte_range for _, found in stored(directory)]
    flip(Path(directory.files[0].path), places[2].offset + tfrecord.HEADER + 30)
    rows = [found for _, found in stored(directory)]
    assert [row.reason for row in rows] == [None, None, "corrupt_record", None, None]
    assert rows[2].detail == "the payload does not match its checksum"
    assert [row.byte_range.position for row in rows] == [0, 1, 2, 3, 4]


def test_a_corrupt_length_costs_its_record(tmp_path: Path, write_tfds: Callable) -> None:
    path = write_tfds(tmp_path / "a", simple_steps(), simple_episodes(), max_examples_per_shard=5)
    directory = read(path)
    places = [found.byte_range for _, found in stored(directory)]
    flip(Path(directory.files[0].path), places[2].offset)
    rows = [found for _, found in stored(directory)]
    assert [row.byte_range for row in rows if row.reason is None] == places[:2] + places[3:]
    size = places[3].offset - places[2].offset
    assert (rows[2].reason, rows[2].lost, rows[2].lost_bytes) == ("corrupt_length", 1, size)
    assert rows[2].detail == f"the record's length does not match its checksum at byte {places[2].offset}"


def test_a_file_cut_between_records_tells_what_is_lost(tmp_path: Path, write_tfds: Callable) -> None:
    path = write_tfds(tmp_path / "a", simple_steps(), simple_episodes(), max_examples_per_shard=5)
    directory = read(path)
    places = [found.byte_range for _, found in stored(directory)]
    os.truncate(directory.files[0].path, places[1].offset)
    rows = [found for _, found in stored(directory)]
    assert [(row.reason, row.lost, row.lost_bytes) for row in rows] == [(None, 1, 0), ("ends_early", 4, 0)]
    assert rows[1].detail == "the file ends after 1 of the 5 episodes that its dataset states"


@pytest.mark.parametrize("size", [0, 100, 0.5, 0.99])
def test_a_truncated_array_record_file_is_one_row(tmp_path: Path, write_tfds: Callable, size: float) -> None:
    path = write_tfds(
        tmp_path / "a", simple_steps(), simple_episodes(), max_examples_per_shard=5, file_format="array_record"
    )
    directory = read(path)
    file = directory.files[0]
    os.truncate(file.path, int(size if size >= 1 else size * file.size))
    rows = [found for _, found in stored(directory)]
    assert [(row.reason, row.lost, row.byte_range.position) for row in rows] == [
        ("corrupt_length" if size else "ends_early", 5, 0)
    ]
    assert rows[0].lost_bytes == os.path.getsize(file.path)
    assert rows[0].detail == "the file holds 0 of the 5 episodes that its dataset states"


def test_a_flipped_bit_of_an_array_record_file_costs_one_row_or_the_file(tmp_path: Path, write_tfds: Callable) -> None:
    path = write_tfds(
        tmp_path / "a", simple_steps(), simple_episodes((9, 1, 4)), max_examples_per_shard=5, file_format="array_record"
    )
    directory = read(path)
    file = Path(directory.files[0].path)
    sound = [found.byte_range for _, found in stored(directory)]
    written = file.read_bytes()
    seen = set()
    for offset in np.flatnonzero(np.frombuffer(written, np.uint8))[::9]:
        flip(file, int(offset))
        rows = [found for _, found in stored(directory)]
        bad = [row for row in rows if row.value is None]
        assert str(tmp_path) not in str([row.detail for row in bad])
        seen.add(tuple((row.reason, row.lost) for row in bad))
        if not bad or bad[0].reason == "corrupt_record":
            assert [row.byte_range.position for row in rows] == [0, 1, 2]
            assert all(row.byte_range == sound[row.byte_range.position] for row in rows if row.value is not None)
        file.write_bytes(written)
    assert seen == {(), (("corrupt_record", 1),), (("corrupt_length", 3),)}


def test_bytes_that_are_no_example_are_one_row(tmp_path: Path, write_tfds: Callable) -> None:
    import tensorflow as tf

    path = write_tfds(tmp_path / "a", simple_steps(), simple_episodes((2,)))
    directory = read(path)
    with tf.io.TFRecordWriter(directory.files[0].path) as writer:
        writer.write(b"\x0a\xff\x01no example")
    rows = [found for _, found in stored(directory)]
    assert [(row.reason, row.detail) for row in rows] == [
        ("corrupt_record", "no tf.train.Example: a field reaches outside of its message")
    ]


@pytest.mark.parametrize(
    ("field", "reason", "detail"),
    [
        (SourceField(path="absent", dtype="float32"), "missing_field", "steps/absent is absent from the episode"),
        (SourceField(path="reward", dtype="int64"), "corrupt_record", "steps/reward: holds a value that is no int64"),
        (
            SourceField(path="reward", dtype="float32", shape=(2,)),
            "wrong_shape",
            "steps/reward holds 3 values, no multiple of its 2 a step",
        ),
        (SourceField(path="action", dtype="str", form="string"), "corrupt_record", "a list of another type"),
    ],
)
def test_a_field_that_is_not_what_the_features_say_is_a_rejection(
    simple: Path, field: SourceField, reason: str, detail: str
) -> None:
    episode = first(simple)
    with pytest.raises(RejectedError) as rejected:
        episode.column(field)
    assert rejected.value.reason == reason
    assert detail in rejected.value.detail


def test_a_compressed_tensor_of_another_size_is_a_rejection(rich: Path) -> None:
    episode = first(rich)
    wrong = SourceField(path="observation/compressed", dtype="float64", shape=(2, 3), encoding="zlib")
    with pytest.raises(RejectedError, match="wrong_shape: steps/observation/compressed holds tensors of another size"):
        episode.column(wrong)
    no_zlib = SourceField(path="observation/mask", dtype="bool", shape=(2,), encoding="zlib")
    with pytest.raises(RejectedError, match="corrupt_record: steps/observation/mask: "):
        episode.column(no_zlib)


def test_metadata_that_an_episode_lacks_is_none(simple: Path) -> None:
    assert first(simple).metadata(SourceField(path="agent_id", dtype="str", form="string")) is None


def test_metadata_that_is_no_text_is_a_rejection(tmp_path: Path, write_tfds: Callable) -> None:
    import tensorflow_datasets as tfds

    episodes = [{**simple_episodes((2,))[0], "agent_id": b"\xff\xfe"}]
    path = write_tfds(tmp_path / "a", simple_steps(), episodes, metadata={"agent_id": tfds.features.Text()})
    directory = read(path)
    with pytest.raises(RejectedError, match="not_utf8: agent_id is not valid UTF-8"):
        first(path).metadata(directory.features.metadata[0])


def first(path: Path) -> RawEpisode:
    episode = next(found.value for _, found in stored(read(path)))
    assert episode is not None
    return episode


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(bytes(data))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
