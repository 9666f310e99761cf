"""Damaged and hostile input: one row with a reason, or one sentence; never a silent loss."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build, scan
from gatokit.schemas.errors import ConfigError, DataError

F = tfds.features
STEPS = {
    "observation": {"state": F.Tensor(shape=(2,), dtype=np.float32), "code": F.Scalar(dtype=np.int64)},
    "action": F.Tensor(shape=(1,), dtype=np.float32),
    "reward": F.Scalar(dtype=np.float32),
    "is_first": F.Scalar(dtype=np.bool_),
    "is_last": F.Scalar(dtype=np.bool_),
    "is_terminal": F.Scalar(dtype=np.bool_),
}
FRAME = 12 + 4
"""Bytes of a TFRecord around its payload."""


def step(*, last: bool = False, **changed: Any) -> dict[str, Any]:
    made = {
        "observation": {"state": np.zeros(2, np.float32), "code": 3},
        "action": np.zeros(1, np.float32),
        "reward": 0.0 if last else 1.0,
        "is_first": False,
        "is_last": last,
        "is_terminal": last,
    }
    for key, value in changed.items():
        if key in ("state", "code"):
            made["observation"] = {**made["observation"], key: value}  # type: ignore[dict-item]
        else:
            made[key] = value
    return made


def episode(*changes: dict[str, Any]) -> dict[str, Any]:
    """One step per change, and the last one, which has no action."""
    return {"steps": [*(step(**change) for change in changes), step(last=True)]}


GOOD = episode({}, {}, {})
Write = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, write_tfds: Write, vocabulary: Path) -> Callable[..., list[dict[str, Any]]]:
    """Writes episodes as the task ``t``, harms the files, builds and verifies; the index rows."""

    def go(
        episodes: Sequence[dict[str, Any]],
        *,
        harm: Callable[[Path], None] = lambda path: None,
        config: str = "",
        dataset: str = "",
        stage: Any = build,
        steps: Any = STEPS,
        metadata: Any = None,
        per_file: int = 100,
        file_format: str = "tfrecord",
    ) -> list[dict[str, Any]]:
        source = write_tfds(
            tmp_path / "data" / "t",
            steps,
            episodes,
            metadata=metadata,
            max_examples_per_shard=per_file,
            file_format=file_format,
        )
        harm(source)
        path = tmp_path / "c.yaml"
        path.write_text(
            f"vocabulary: {vocabulary}\n{config}\ndatasets:\n"
            f"  - {{name: d, kind: episodes, source: data/*, keep: {{all: true}}, {dataset}}}\n"
        )
        stage(path, tmp_path / "out")
        assert verify(tmp_path / "out") == []
        splits = open_directory(tmp_path / "out").manifest.datasets[0].splits
        return [row for split in splits for row in pq.read_table(tmp_path / "out" / "d" / split.index).to_pylist()]

    return go


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def only_file(source: Path) -> Path:
    return next(iter(source.glob("recorded-*")))


def reasons(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["reason"] for row in rows]


def test_a_corrupt_payload_costs_one_row(run):
    def harm(source: Path) -> None:
        path = only_file(source)
        flip(path, path.stat().st_size // 2)

    rows = run([GOOD] * 5, harm=harm)
    assert reasons(rows) == [None, None, "corrupt_record", None, None]
    assert rows[2]["detail"] == "the payload does not match its checksum"
    assert (rows[2]["episode_id"], rows[2]["kept"], rows[2]["lost"]) == ("t/recorded-train.tfrecord-00000#2", False, 1)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_damage_between_records_costs_as_little_as_it_can(file_format, run):
    def harm(source: Path) -> None:
        path = source / f"recorded-train.{file_format}-00001"
        size = path.stat().st_size
        if file_format == "tfrecord":
            flip(path, size // 4 * 1 + 1)  # the second of four equal records begins with its length
        else:
            path.write_bytes(path.read_bytes()[: size // 2])

    rows = run([GOOD] * 12, harm=harm, per_file=4, file_format=file_format, config="max_lost_bytes: 1")
    if file_format == "tfrecord":
        assert reasons(rows) == [None] * 5 + ["corrupt_length"] + [None] * 6
        assert [row["lost"] for row in rows] == [1] * 12
        assert rows[5]["detail"].startswith("the record's length does not match its checksum at byte ")
    else:
        assert reasons(rows) == [None] * 4 + ["corrupt_length"] + [None] * 4
        assert [row["lost"] for row in rows] == [1] * 4 + [4] + [1] * 4
    assert sum(row["lost"] for row in rows) == 12


def test_a_truncated_file_says_how_many_are_lost(run):
    def harm(source: Path) -> None:
        path = only_file(source)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 3])

    rows = run([GOOD] * 6, harm=harm, config="max_lost_bytes: 1")
    assert reasons(rows) == [None, None, None, "ends_early"]
    assert rows[3]["lost"] == 3
    assert rows[3]["detail"].startswith("the file ends inside the record at byte ")


def test_a_record_that_is_no_example(run):
    def harm(source: Path) -> None:
        import tensorflow as tf

        path = only_file(source)
        records = [bytes(item.numpy()) for item in tf.data.TFRecordDataset(str(path))]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for number, record in enumerate(records):
                writer.write(b"\x0a\xff\xff\xff\x7f" + record if number == 1 else record)

    rows = run([GOOD] * 3, harm=harm)
    assert reasons(rows) == [None, "corrupt_record", None]
    assert rows[1]["detail"].startswith("no tf.train.Example: ")


def test_values_that_cannot_become_tokens_are_named(run):
    nan, inf = np.array([0, np.nan], np.float32), np.array([np.inf], np.float32)
    rows = run(
        [
            GOOD,
            episode({}, {"state": nan}),
            episode({"action": inf}),
            episode({}, {}, {"code": 1024}),
            episode({"code": -1}),
            episode({"reward": np.nan}),
            episode(),
            {"steps": [step(), step(last=True), step()]},
            {"steps": [step(), step(reward=np.nan, last=True)]},
        ]
    )
    assert [(row["reason"], row["detail"]) for row in rows] == [
        (None, None),
        ("not_finite", "field observation/state is NaN at step 1"),
        ("not_finite", "field action is inf at step 0"),
        ("out_of_range", "field observation/code is 1024 at step 2, outside 0 to 1023"),
        ("out_of_range", "field observation/code is -1 at step 0, outside 0 to 1023"),
        ("not_finite", "reward is nan at step 0"),
        ("too_short", None),
        ("malformed_steps", "steps follow step 1, which is_last marks"),
        (None, None),
    ]
    assert [row["return"] for row in rows] == [3.0, 2.0, 1.0, 3.0, 1.0, None, 0.0, None, 1.0]


def test_an_episode_rejected_for_its_content_stays_in_n_and_e(tmp_path, run):
    best = episode({"reward": 100.0, "state": np.array([np.nan, 0], np.float32)})
    rows = run([GOOD, best, GOOD])
    assert reasons(rows) == [None, "not_finite", None]
    tasks = pq.read_table(tmp_path / "out" / "d" / "tasks.parquet").to_pylist()
    assert [(row["episodes"], row["expert_return"], row["kept"], row["dropped"]) for row in tasks] == [(3, 100.0, 2, 1)]


def test_an_episode_above_the_bound_is_not_read(run):
    rows = run([GOOD, episode(*[{}] * 400), GOOD], config="max_episode_bytes: 4096")
    assert reasons(rows) == [None, "too_large", None]
    assert rows[1]["detail"].endswith(" bytes are above max_episode_bytes 4096")


def test_the_error_budget_is_never_less_than_ten_rows(run):
    bad = [episode({"reward": np.nan})]
    assert reasons(run([GOOD] * 5 + bad * 10)).count("not_finite") == 10


@pytest.mark.parametrize("stage", [scan, build])
def test_rotten_input_stops_with_a_summary(stage, tmp_path, run):
    with pytest.raises(DataError) as raised:
        run([GOOD] * 5 + [episode({"reward": np.nan})] * 11, stage=stage)
    assert str(raised.value) == (
        "d: 11 of 16 episodes are bad, more than the 10 that max_bad_fraction 0.01 allows: 11 not_finite "
        "(first t/recorded-train.tfrecord-00000#5: reward is nan at step 0). Mend the source or raise max_bad_fraction"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_rot_that_only_tokenizing_shows_stops_before_the_manifest_and_keeps_the_shards(tmp_path, run):
    bad = episode({"state": np.array([np.nan, 0], np.float32)})
    with pytest.raises(DataError, match=r"11 of 31 episodes are bad.*11 not_finite"):
        run([GOOD] * 20 + [bad] * 11)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert [fault.file for fault in verify(tmp_path / "out")] == ["manifest.json"]
    shards = list((tmp_path / "out" / "d").glob("*.arrayrecord"))
    assert shards
    times = [path.stat().st_mtime_ns for path in shards]
    config = tmp_path / "c.yaml"
    config.write_text(config.read_text() + "max_bad_fraction: 0.5\n")
    assert build(config, tmp_path / "out").manifest.datasets[0].kept == 20
    assert [path.stat().st_mtime_ns for path in shards] == times


def test_a_task_that_loses_everything_while_tokenizing_is_named(run):
    with pytest.raises(DataError, match="every kept episode of task 't' was rejected while tokenizing: 2 not_finite"):
        run([episode({"state": np.array([np.nan, 0], np.float32)})] * 2)


def test_an_action_range_that_is_wrong_is_named(run):
    wide = episode({"action": np.array([1.5], np.float32)})
    with pytest.raises(DataError) as raised:
        run([GOOD, wide])
    assert str(raised.value) == (
        "d: values of action lie outside of its range [[-1.0, 1.0]] (component 0: 1 of 4); give "
        "datasets[0].fields.action: {as: continuous, range: data} or {as: continuous, range: [[0.0, 1.5]]}, "
        "or clip: true"
    )


def test_an_action_range_that_is_right_is_kept(tmp_path, run):
    run([GOOD, episode({"action": np.array([1.5], np.float32)})], dataset="fields: {action: {range: [-2, 2]}}")
    reader = open_directory(tmp_path / "out").datasets["d"]
    decoded = [reader.episode(row).decode()["action"] for row in reader.episodes(kept=True)]
    assert [item.shape for item in decoded] == [(3, 1), (1, 1)]
    assert abs(decoded[1][0, 0] - 1.5) <= 2 / 1024


def test_two_episodes_of_one_id_are_both_named(run):
    named = [{**GOOD, "key": key} for key in ("a", "b", "a")]
    with pytest.raises(DataError) as raised:
        run(named, metadata={"key": F.Text()}, dataset="id: {metadata: key}")
    assert str(raised.value) == (
        "d: t/recorded-train.tfrecord-00000#0 and t/recorded-train.tfrecord-00000#2 have the same episode id 'a'; "
        "choose another metadata key for id, or leave id out"
    )


def test_a_source_that_changes_between_scan_and_build(tmp_path, run, monkeypatch):
    from gatokit.pipelines import run as job

    real = job._build

    def harmed(*arguments: Any) -> None:
        path = only_file(tmp_path / "data" / "t")
        data = path.read_bytes()
        size = len(data) // 3
        path.write_bytes(data[:size] + data[2 * size :] + data[size : 2 * size])
        real(*arguments)

    monkeypatch.setattr(job, "_build", harmed)
    with pytest.raises(DataError, match=r"recorded-train.tfrecord-00000: episode [12] changed between scan and build"):
        run([GOOD, episode({"reward": 2.0}, {}, {}), episode({"reward": 3.0}, {}, {})])
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_success_marks_and_metadata_tasks(tmp_path, run):
    episodes = [
        {**GOOD, "won": won, "name": name, "place": place}
        for won, name, place in [(True, "x", 3), (False, "x", 1), (True, "y", 2), (True, "y", 1)]
    ]
    rows = run(
        episodes,
        metadata={"won": np.bool_, "name": F.Text(), "place": np.int64},
        dataset="task: {metadata: name}, order: {metadata: place}",
        config="",
        stage=build,
    )
    assert [(row["task"], row["order"]) for row in rows] == [("x", 3.0), ("x", 1.0), ("y", 2.0), ("y", 1.0)]
    config = tmp_path / "c.yaml"
    config.write_text(config.read_text().replace("{all: true}", "{success: won}"))
    shutil.rmtree(tmp_path / "out")
    build(config, tmp_path / "out")
    reader = open_directory(tmp_path / "out").datasets["d"]
    assert [(row.kept, row.reason) for row in reader.episodes()] == [
        (True, None),
        (False, "not_success"),
        (True, None),
        (True, None),
    ]


def test_a_finished_directory_of_another_config_is_not_touched(tmp_path, run):
    run([GOOD] * 3)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    config = tmp_path / "c.yaml"
    config.write_text(config.read_text() + "chunk_tokens: 5\n")
    with pytest.raises(ConfigError, match="holds a finished build of another config"):
        build(config, tmp_path / "out")
    with pytest.raises(ConfigError, match="holds a finished build; choose another directory"):
        scan(config, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert json.loads(before)["datasets"][0]["kept"] == 3
