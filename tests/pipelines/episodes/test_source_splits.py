"""Which splits of a source are read, which of their episodes, and which files of them have to be there."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.episodes.reader import SourceDirectory
from gatokit.pipelines.episodes.rlds import RldsFile
from gatokit.pipelines.estimate import estimate
from gatokit.pipelines.run import build, scan
from gatokit.schemas.config_episodes import Splits
from gatokit.schemas.errors import ConfigError, DataError

STEPS = {"observation": np.float32, "action": np.float32, "reward": np.float32, "is_last": np.bool_}
TRAIN, VAL, TEST = 11, 4, 2
FORMATS = ("tfrecord", "array_record")


def episodes(first: int, count: int) -> list[dict[str, Any]]:
    """The return of each is its number, counted from ``first``."""
    return [
        {
            "steps": [
                {"observation": 0.5, "action": 0.0, "reward": float(number if step == 0 else 0), "is_last": step == 2}
                for step in range(3)
            ]
        }
        for number in range(first, first + count)
    ]


def write(path: Path, write_tfds: Callable[..., Path], file_format: str = "tfrecord") -> Path:
    splits = {"train": episodes(0, TRAIN), "val": episodes(100, VAL), "test": episodes(200, TEST)}
    return write_tfds(path, STEPS, splits, file_format=file_format, max_examples_per_shard=3)


@pytest.fixture(scope="module", params=FORMATS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_tfds: Callable) -> Path:
    return write(tmp_path_factory.mktemp("splits") / "push" / "1.0.0", write_tfds, request.param)


def returns(directory: SourceDirectory) -> list[float]:
    """The first reward of every episode in the order in which a scan reads them."""
    found = []
    for file in directory.files:
        positions = []
        for stored in file.read_all(1 << 20):
            assert stored.value is not None
            positions.append(stored.byte_range.position)
            reward = directory.features.step("reward")
            assert reward is not None
            found.append(float(stored.value.column(reward)[0]))
        assert positions == list(range(*(file.positions or (0, len(positions)))))
        assert len(positions) == file.episodes
    return found


def read(path: Path, train: Sequence[str], held_out: Sequence[str] | None = None) -> SourceDirectory:
    splits = Splits(train=tuple(train), held_out=held_out and tuple(held_out))
    return RldsFile.read_directory(str(path), "push", str(path.parent.parent), splits)


@pytest.mark.parametrize(
    "asked",
    [
        "train",
        "val",
        "all",
        "train[:25%]",
        "train[30%:70%]",
        "train[-40%:]",
        "train[2:3]",
        "train[1:10]",
        "train[3:6]",
        "train[-5:]",
        "train[:-2]",
        "train[1shard:3shard]",
        "train[-1shard:]",
        "train[2shard]",
        "test+val",
        "train[:50%]+val[1:]",
        "train[7:]+train[:2]",
    ],
)
def test_slices_hold_what_tfds_reads(source: Path, asked: str) -> None:
    builder = tfds.builder_from_directory(str(source))
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        truth: Any = builder.as_data_source(split=asked)
    else:
        truth = tfds.as_numpy(builder.as_dataset(split=asked))
    assert sorted(returns(read(source, [asked]))) == sorted(next(iter(item["steps"]))["reward"] for item in truth)


@given(st.lists(st.integers(-TRAIN, TRAIN), min_size=2, max_size=2, unique=True))
def test_slices_by_number_are_those_of_python(source: Path, ends: list[int]) -> None:
    found = read(source, [f"train[{ends[0]}:{ends[1]}]"])
    assert returns(found) == list(range(TRAIN))[ends[0] : ends[1]]
    assert sum(found.splits.values()) == len(returns(found))
    assert found.left_out == {"test": TEST, "val": VAL} | ({} if found.files else {"train": TRAIN})


def test_of_a_file_that_is_read_in_part_the_size_is_a_part(source: Path) -> None:
    whole, part = read(source, ["train"]).files, read(source, ["train[1:4]"]).files
    assert [file.positions for file in whole] == [None] * 4
    assert [(file.name, file.positions) for file in part] == [(whole[0].name, (1, 3)), (whole[1].name, (0, 1))]
    assert [file.size for file in part] == [-(-whole[0].size * 2 // 3), -(-whole[1].size // 3)]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("validation", "'validation' cannot be read: Unknown split 'validation'"),
        ("train[:12]", "Requested slice [:12] incompatible with 11 examples"),
        ("train[5]", "'train[5]' cannot be read: "),
        ("train[:200%]", "percent slice boundaries should be in [-100, 100]"),
        ("train[", "Unrecognized split format"),
    ],
)
def test_wrong_slices_are_named_with_the_splits(source: Path, asked: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(source, [asked])
    assert message in str(error.value)
    assert str(error.value).startswith(f"{source}: splits: ")
    assert "the splits are test (2), train (11), val (4), and a slice is written as in 'train[:25%]'" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("train", "held_out", "both"),
    [
        (["train", "train[:2]"], None, "'train[:2]' and 'train'"),
        (["train[:50%]"], ["train[5:]"], "'train[:50%]' and 'train[5:]'"),
        (["train[:3]", "train[8:]", "train[1:2]"], None, "'train[:3]' and 'train[1:2]'"),
        (["train+train"], None, "'train+train'"),
        (["all", "val"], None, "'all' and 'val'"),
    ],
)
def test_no_episode_is_read_twice(source: Path, train: list[str], held_out: list[str] | None, both: str) -> None:
    with pytest.raises(ConfigError, match="name the same episodes of") as error:
        read(source, train, held_out)
    assert f"{source}: splits: {both} name " in str(error.value)


# --- whole builds ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfrecord(tmp_path_factory: pytest.TempPathFactory, write_tfds: Callable) -> Path:
    """Not to be written to."""
    return write(tmp_path_factory.mktemp("source") / "push" / "1.0.0", write_tfds)


def config(folder: Path, vocabulary: Path, source: Path, rest: str, others: str = "holdout: 0") -> Path:
    path = folder / "c.yaml"
    rest = rest if "keep:" in rest else f"keep: {{all: true}}, {rest}"
    dataset = f"name: d, kind: episodes, source: '{source.parent.parent}', last_step: padding, {rest}".rstrip(", ")
    fields = "fields: {action: {range: [-1, 1]}}"
    path.write_text(f"vocabulary: {vocabulary}\n{others}\ndatasets: [{{{dataset}, {fields}}}]\n")
    return path


def index(out: Path) -> list[dict[str, Any]]:
    return open_directory(str(out)).datasets["d"].index().to_pylist()


@pytest.mark.parametrize(
    ("splits", "expected", "notice"),
    [
        ("", {"train": TRAIN}, "d: reads split train (11); leaves out test (2), val (4)"),
        ("splits: [train, test, val]", {"train": TRAIN + TEST + VAL}, "d: reads splits train (11), test (2), val (4)"),
        ("splits: ['train[:25%]']", {"train": 3}, "d: reads split train[:25%] (3); leaves out test (2), val (4)"),
        (
            "splits: {train: [train], held_out: [val, 'test[:1]']}",
            {"train": TRAIN, "held_out": VAL + 1},
            "d: reads splits train (11), held out val (4), held out test[:1] (1)",
        ),
        (
            "splits: {train: ['train[:-3]'], held_out: ['train[-3:]']}",
            {"train": 8, "held_out": 3},
            "d: reads splits train[:-3] (8), held out train[-3:] (3); leaves out test (2), val (4)",
        ),
    ],
)
def test_builds_read_train_or_what_splits_name(
    tfrecord: Path, vocabulary: Path, tmp_path: Path, splits: str, expected: dict[str, int], notice: str
) -> None:
    path = config(tmp_path, vocabulary, tfrecord, splits)
    result = build(path, tmp_path / "out")
    rows = index(tmp_path / "out")
    assert Counter(row["split"] for row in rows) == expected
    assert result.notices[0] == notice
    assert verify(tmp_path / "out") == []
    planned = estimate(path)
    assert (planned.datasets[0].episodes, planned.datasets[0].kept) == (len(rows), len(rows))
    assert {row["return"] for row in rows if row["split"] == "held_out"} == (
        {8, 9, 10} if "train[-3:]" in splits else {100, 101, 102, 103, 200} if "held_out" in splits else set()
    )
    scan(path, tmp_path / "scan")
    named = {row["episode_id"]: (row["return"], row["split"]) for row in rows}
    assert {row["episode_id"]: (row["return"], row["split"]) for row in index(tmp_path / "scan")} == named
    assert build(path, tmp_path / "out").built == 0


def test_holdout_does_nothing_if_splits_are_held_out(tfrecord: Path, vocabulary: Path, tmp_path: Path) -> None:
    path = config(tmp_path, vocabulary, tfrecord, "splits: {train: [train], held_out: [val]}", "holdout: 0.5")
    scan(path, tmp_path / "out")
    rows = index(tmp_path / "out")
    assert {row["split"] for row in rows if row["return"] < 100} == {"train"}
    assert {row["split"] for row in rows if row["return"] >= 100} == {"held_out"}


def test_kept_rules_and_expert_returns_look_at_both_parts(tfrecord: Path, vocabulary: Path, tmp_path: Path) -> None:
    rest = "splits: {train: [train], held_out: [val]}, keep: {min_return: 0.09}"
    result = scan(config(tmp_path, vocabulary, tfrecord, rest), tmp_path / "out")
    # The best of 15 episodes is the last of val, 103: the threshold is 9.27.
    rows = index(tmp_path / "out")
    assert {row.expert_return for row in open_directory(tmp_path / "out").datasets["d"].tasks} == {103.0}
    assert sorted(row["return"] for row in rows if row["kept"]) == [10.0, 100.0, 101.0, 102.0, 103.0]
    assert any("no collection order is configured" in notice for notice in result.notices)


def test_a_whole_split_gives_the_shards_that_its_slices_in_whole_files_give(
    tfrecord: Path, vocabulary: Path, tmp_path: Path
) -> None:
    names = []
    for number, splits in enumerate(("splits: [train]", "", "splits: ['train[:3]', 'train[3:]']")):
        result = build(config(tmp_path, vocabulary, tfrecord, splits), tmp_path / f"out{number}")
        names.append([part.blake2b for split in result.manifest.datasets[0].splits for part in split.parts])
    assert names[0] == names[1] == names[2]


def test_a_killed_build_of_slices_goes_on(tfrecord: Path, vocabulary: Path, tmp_path: Path) -> None:
    path = config(tmp_path, vocabulary, tfrecord, "splits: ['train[1:10]']", "holdout: 0\nshard_bytes: 1024")
    whole = build(path, tmp_path / "whole")
    assert whole.built == 2
    build(path, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    [last] = whole.manifest.datasets[0].splits[-1].parts
    (tmp_path / "out" / "d" / last.file).unlink()
    again = build(path, tmp_path / "out")
    assert (again.built, again.reused) == (1, whole.built - 1)
    assert again.manifest.files == whole.manifest.files


# --- files that are not there ------------------------------------------------------------------------------------


@pytest.fixture
def downloaded(tmp_path: Path, write_tfds: Callable) -> Path:
    path = write(tmp_path / "sets" / "push" / "1.0.0", write_tfds)
    for file in sorted(path.glob("*-train*"))[1:3]:
        file.unlink()
    return path


def test_a_part_of_a_download_is_read_if_the_config_says_so(downloaded: Path, vocabulary: Path, tmp_path: Path) -> None:
    first = sorted(downloaded.glob("*-train*"))[0]
    with pytest.raises(DataError, match=r"00001: is missing, though .*; `files: present` reads those that are there"):
        scan(config(tmp_path, vocabulary, downloaded, ""), tmp_path / "refused")
    path = config(tmp_path, vocabulary, downloaded, "files: present")
    result = build(path, tmp_path / "out")
    assert sorted(row["return"] for row in index(tmp_path / "out")) == [0.0, 1.0, 2.0, 9.0, 10.0]
    assert result.notices[:2] == (
        "d: reads split train (5); leaves out test (2), val (4)",
        "d: 2 of 4 files are not there and are left out, as `files` says",
    )
    assert verify(tmp_path / "out") == []
    sliced = config(tmp_path, vocabulary, downloaded, "files: present, splits: ['train[1:5]']")
    scan(sliced, tmp_path / "slice")
    assert sorted(row["return"] for row in index(tmp_path / "slice")) == [1.0, 2.0]
    for file in (first, *downloaded.glob("*-train*")):
        file.unlink(missing_ok=True)
    with pytest.raises(DataError, match="none of its 2 files is there"):
        scan(path, tmp_path / "none")


# --- sources that are sound ------------------------------------------------------------------------------------


def change(path: Path, **values: Any) -> None:
    """Changes what a directory says of its test split, or of itself."""
    described = json.loads((path / "dataset_info.json").read_text())
    [split] = [split for split in described["splits"] if split["name"] == "test"]
    (described if "disableShuffling" in values else split).update(values)
    (path / "dataset_info.json").write_text(json.dumps(described))


@pytest.mark.parametrize("lengths", [[], ["0"]])
def test_a_split_without_episodes_is_no_fault_beside_others(
    lengths: list[str], vocabulary: Path, tmp_path: Path, write_tfds: Callable
) -> None:
    path = write(tmp_path / "sets" / "push" / "1.0.0", write_tfds)
    for file in path.glob("*-test*"):
        file.unlink()
    change(path, shardLengths=lengths)
    result = scan(config(tmp_path, vocabulary, path, "splits: [train, test]"), tmp_path / "out")
    assert result.notices[0] == "d: reads splits train (11), test (0); leaves out val (4)"
    with pytest.raises(DataError, match=r"1[.]0[.]0: the splits that are read hold no episode"):
        scan(config(tmp_path, vocabulary, path, "splits: [test]"), tmp_path / "none")


def test_a_split_with_files_and_no_lengths_is_unfinished(tmp_path: Path, write_tfds: Callable) -> None:
    path = write(tmp_path / "sets" / "push" / "1.0.0", write_tfds)
    change(path, shardLengths=[])
    assert len(read(path, ["train"]).files) == 4
    with pytest.raises(DataError, match="split 'test' states no shard lengths, so its writing was never finished"):
        read(path, ["train", "test"])


def test_a_set_that_was_not_shuffled_is_in_collection_order(
    vocabulary: Path, tmp_path: Path, write_tfds: Callable
) -> None:
    path = write(tmp_path / "sets" / "push" / "1.0.0", write_tfds)
    change(path, disableShuffling=True)
    result = scan(config(tmp_path, vocabulary, path, "keep: {min_return: 0.5}"), tmp_path / "out")
    assert result.notices == ("d: reads split train (11); leaves out test (2), val (4)",)
    assert result.manifest.datasets[0].ordered


def test_steps_may_be_a_sequence(tmp_path: Path, vocabulary: Path, write_tfds: Callable) -> None:
    features = tfds.features
    steps = {
        "observation": {"state": features.Tensor(shape=(2,), dtype=np.float32), "text": features.Text()},
        "action": features.Tensor(shape=(1,), dtype=np.float32),
        "reward": np.float32,
        "is_last": np.bool_,
        "image": features.Image(shape=(16, 16, 3)),
    }
    written = [
        {
            "steps": [
                {
                    "observation": {"state": np.array([number / 8, step / 8], np.float32), "text": f"go {step}"},
                    "action": np.array([step / 4], np.float32),
                    "reward": float(number),
                    "is_last": step == number + 1,
                    "image": np.full((16, 16, 3), step, np.uint8),
                }
                for step in range(number + 2)
            ],
            "index": number,
        }
        for number in range(3)
    ]
    path = write_tfds(tmp_path / "data" / "push", features.Sequence(steps), written, metadata={"index": np.int64})
    directory = RldsFile.read_directory(str(path), "push", str(tmp_path), None)
    builder = tfds.builder_from_directory(str(path))
    truth = list(tfds.as_numpy(builder.as_dataset(split="train")))
    found = [stored.value for file in directory.files for stored in file.read_all(1 << 20)]
    assert len(found) == len(truth) == 3
    for episode, item in zip(found, truth, strict=True):
        assert episode is not None
        for field in directory.features.steps:
            value: Any = item["steps"]
            for key in field.path.split("/"):
                value = value[key]
            column = episode.column(field)
            if field.form == "string":
                assert column == list(value)
            elif field.form == "tensor":
                assert np.array_equal(column, value)
            else:
                assert len(column) == len(value)
    text = "splits: [train], last_step: padding, keep: {all: true}"
    (tmp_path / "c.yaml").write_text(
        f"vocabulary: {vocabulary}\ndatasets: [{{name: d, kind: episodes, source: data, {text}}}]"
    )
    build(tmp_path / "c.yaml", tmp_path / "out")
    assert sorted((row["steps"], row["return"]) for row in index(tmp_path / "out")) == [(1, 0.0), (2, 2.0), (3, 6.0)]
