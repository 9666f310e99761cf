"""Opening a finished directory: rows, episodes joined from their records, decoded values, errors."""

import io
import pydoc_data.topics
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from gatokit.inspection import open_directory
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.index import ROW_COLUMNS
from gatokit.schemas.record import Record
from gatokit.tokenizers.image_codec import decode
from tests.helpers.vocabularies import train_vocabulary


def positions(recorded, dataset, row):
    """The recorded episode of an index row: files hold several episodes in their order."""
    files = sorted({other.source_file for other in dataset.episodes(task=row.task)})
    before = dict.fromkeys(files, 0)
    for other in dataset.episodes(task=row.task):
        before[other.source_file] += 1
    start = sum(before[file] for file in files[: files.index(row.source_file)])
    return recorded[row.task][start + row.source_position]


def test_ten_lines_walk_everything(small):
    seen = []
    for dataset in open_directory(small.built).datasets.values():
        for task in dataset.task_names:
            for episode in dataset.read(dataset.episodes(task=task, kept=True)):
                values = episode.decode()
                frames = [decode(placed.image.data).shape for placed in episode.sequence.images]
                seen.append((dataset.name, task, len(episode.sequence.tokens), len(values), len(frames)))
    assert {(name, task) for name, task, *_ in seen} == {
        ("arm", "push"),
        ("arm", "reach"),
        ("grid", "grid"),
        ("against_random", "push"),
    }
    assert sum(tokens for _, _, tokens, _, _ in seen) == sum(
        dataset.tokens for dataset in open_directory(small.built).manifest.datasets
    )
    assert all(frames > 0 for name, _, _, _, frames in seen if name != "grid")


def test_index_joins_all_splits_and_selects_columns(small):
    dataset = open_directory(small.built).datasets["arm"]
    assert len(dataset.totals.splits) > 1
    table = dataset.index()
    assert dataset.columns == {"agent_id": "string", "index": "int64"}
    assert table.column_names == [*ROW_COLUMNS, "agent_id", "index"]
    assert table["agent_id"].to_pylist() == table["agent"].to_pylist()
    assert table.num_rows == 30
    for name, of_tasks in (("expert_return", dataset.expert_returns), ("threshold", dataset.thresholds)):
        expected = [of_tasks[task] for task in table["task"].to_pylist()]
        assert table[name].to_pylist() == dataset.index([name])[name].to_pylist() == expected
    some = dataset.index(["episode_id", "steps"], pc.field("kept"))
    assert some.column_names == ["episode_id", "steps"]
    assert some.num_rows == dataset.totals.kept
    assert [row.episode_id for row in dataset.episodes()] == table["episode_id"].to_pylist()


def test_rows_are_filtered_and_complete(small):
    dataset = open_directory(small.built).datasets["arm"]
    kept = list(dataset.episodes(task="reach", kept=True))
    assert kept
    assert all(row.kept and row.task == "reach" and row.shard for row in kept)
    held_out = list(dataset.episodes(split="held_out"))
    assert len(held_out) == sum(task.held_out for task in dataset.tasks) > 0
    dropped = {row.reason for row in dataset.episodes(kept=False)}
    assert dropped == {"below_threshold", "too_short", "not_finite"}
    row = kept[0]
    assert dataset.row(row.episode_id) == row
    assert dataset.row("no such id") is None
    assert list(row.columns()) == [*ROW_COLUMNS, "agent_id", "index", "shard"]
    assert row.metadata == {"agent_id": row.agent, "index": row.order}
    assert row.columns()["return"] == row.episode_return


def test_joined_records_are_the_whole_episode(small):
    dataset = open_directory(small.built).datasets["arm"]
    row = max(dataset.episodes(kept=True), key=lambda row: len(row.record_tokens))
    assert len(row.record_tokens) > 1
    reader = ArrayRecordReader(str(dataset.path / row.shard))
    data = reader.read(row.first_record, row.first_record + len(row.record_tokens))
    reader.close()
    records = [Record.from_bytes(item) for item in data]
    episode = dataset.episode(row.episode_id)
    np.testing.assert_array_equal(episode.sequence.tokens, np.concatenate([r.sequence.tokens for r in records]))
    np.testing.assert_array_equal(episode.reward, np.concatenate([r.reward for r in records]))
    assert len(episode.sequence.tokens) == row.tokens
    assert episode.steps == row.steps == len(episode.sequence.step_begin)
    assert episode.spec == dataset.spec(row.task)
    for placed in episode.sequence.images:
        rows, columns = placed.grid
        assert set(episode.sequence.kinds[placed.token : placed.token + rows * columns].tolist()) == {2}


@pytest.mark.parametrize(("name", "task"), [("arm", "reach"), ("arm", "push"), ("against_random", "push")])
def test_arm_decodes_to_what_was_recorded(small, name, task):
    dataset = open_directory(small.built).datasets[name]
    text = open_directory(small.built).text
    for episode in dataset.read(dataset.episodes(task=task, kept=True)):
        source = positions(small.recorded, dataset, episode.row)["steps"][:-1]
        values = episode.decode()
        assert list(values) == ["observation/image", "observation/mission", "observation/state", "action"]
        for step, (recorded, image) in enumerate(zip(source, values["observation/image"], strict=True)):
            np.testing.assert_array_equal(decode(image.data), recorded["observation"]["image"])
            mission = recorded["observation"]["mission"]
            assert values["observation/mission"][step] == text.decode(text.encode(mission))
        action = np.stack([step["action"] for step in source])
        assert np.abs(values["action"] - action).max() <= 1 / 1024
        rewards = np.array([step["reward"] for step in source], np.float64)
        np.testing.assert_array_equal(episode.reward, rewards)
        assert rewards.sum() == pytest.approx(episode.row.episode_return, rel=1e-12)
        np.testing.assert_array_equal(episode.discount, 1)


def test_bare_and_nested_fields_decode(small):
    dataset = open_directory(small.built).datasets["grid"]
    for episode in dataset.read(dataset.episodes()):
        source = positions(small.recorded, dataset, episode.row)["steps"][:-1]
        assert episode.discount is None
        steps = list(episode.decoded_steps())
        assert [step.step for step in steps] == list(range(8))
        for step, recorded in zip(steps, source, strict=True):
            np.testing.assert_array_equal(step.observation, recorded["observation"])
            assert set(step.action) == {"force", "move"}
            assert step.action["move"] == recorded["action"]["move"]
            assert step.action["force"].shape == (2, 2)
            assert np.abs(step.action["force"] - recorded["action"]["force"]).max() <= 1 / 1024
            assert step.reward == 1
        assert [step.step for step in episode.decoded_steps(2, 4)] == [2, 3]
        assert (steps[0].flags, steps[-1].flags) == (1, 6)


def test_recorded_environments_open_too(built):
    for dataset in open_directory(built).datasets.values():
        row = next(dataset.episodes(kept=True))
        episode = dataset.episode(row)
        assert set(episode.decode()) == {field.path for field in dataset.spec(row.task).fields}
        for placed in episode.sequence.images[:1]:
            image = Image.open(io.BytesIO(placed.image.data)).convert("RGB")
            np.testing.assert_array_equal(decode(placed.image.data), np.asarray(image))


def test_nothing_is_stored_of_a_dropped_episode(small):
    dataset = open_directory(small.built).datasets["arm"]
    row = next(dataset.episodes(kept=False))
    with pytest.raises(DataError, match="it was dropped"):
        dataset.episode(row)


def test_a_scan_has_rows_and_no_episodes(small):
    dataset = open_directory(small.scanned).datasets["arm"]
    row = next(dataset.episodes(kept=True))
    assert row.tokens is None
    with pytest.raises(DataError, match="a scan, which stores no tokens"):
        dataset.episode(row)
    with pytest.raises(DataError, match="holds no vocabulary"):
        _ = open_directory(small.scanned).text


def test_an_unknown_episode_is_named(small):
    with pytest.raises(DataError, match="arm has no episode 'nobody'"):
        open_directory(small.built).datasets["arm"].episode("nobody")


def test_a_shard_of_another_build_is_refused(damaged, shard, seal, rewrite):
    rewrite(shard, lambda records: records[::-1])
    seal(damaged)
    dataset = open_directory(damaged).datasets["arm"]
    row = next(row for row in dataset.episodes(kept=True) if row.shard == shard.name)
    with pytest.raises(DataError, match="index and shard are not of one build"):
        dataset.episode(row)


def test_a_missing_chunk_is_named(damaged, shard, seal, rewrite):
    rewrite(shard, lambda records: records[:-1])
    seal(damaged)
    dataset = open_directory(damaged).datasets["arm"]
    rows = [row for row in dataset.episodes(kept=True) if row.shard == shard.name]
    with pytest.raises(DataError, match=r"records and \[\d+, \d+\) was asked for"):
        dataset.episode(max(rows, key=lambda row: row.first_record))


def test_a_missing_shard_and_a_broken_one_are_named(damaged, shard):
    dataset = open_directory(damaged).datasets["arm"]
    row = next(row for row in dataset.episodes(kept=True) if row.shard == shard.name)
    shard.write_bytes(b"no array record" * 10_000)
    with pytest.raises(DataError, match=shard.name):
        dataset.episode(row)
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        dataset.episode(row)


def test_another_vocabulary_is_refused(damaged, seal, tmp_path):
    lines = [line for text in pydoc_data.topics.topics.values() for line in text.splitlines() if line]
    train_vocabulary(lines, tmp_path / "other.model", 600)
    shutil.copy(tmp_path / "other.model", damaged / "vocabulary.model")
    seal(damaged)
    with pytest.raises(DataError, match="is not the model that the tokens were made with"):
        _ = open_directory(damaged).text


def test_what_is_no_finished_directory_is_said(tmp_path: Path, damaged: Path):
    with pytest.raises(ConfigError, match="there is no directory"):
        open_directory(tmp_path / "absent")
    with pytest.raises(ConfigError, match="is no directory"):
        open_directory(damaged / "manifest.json")
    (damaged / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"has no manifest.json"):
        open_directory(damaged)
