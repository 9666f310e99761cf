"""Sources that change under a build, odd clocks, odd names, odd sizes."""

import json
import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines import run as job
from gatokit.pipelines.run import build
from gatokit.schemas.errors import ConfigError, DataError


def write_episodes(
    path: Path, lengths: list[int], file_format: str = "tfrecord", large: tuple[Any, Any] | None = None
) -> Path:
    """A task whose episodes have these many steps, and so other returns; ``large`` is another feature and its value."""
    steps = {
        "observation": {
            "state": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            **({"large": large[0]} if large else {}),
        },
        "action": tfds.features.Tensor(shape=(1,), dtype=np.float32),
        "reward": np.float32,
        "is_first": np.bool_,
        "is_last": np.bool_,
        "is_terminal": np.bool_,
    }
    path.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="recorded", version=tfds.core.Version("1.0.0"), data_dir=os.fspath(path), module_name=""
    )
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)})
    info = tfds.core.DatasetInfo(builder=identity, description="a test", features=features)
    writer = tfds.core.SequentialWriter(info, 2, file_format=file_format)
    writer.initialize_splits(["train"])
    for length in lengths:
        made = [
            {
                "observation": {
                    "state": np.full(2, number / (length + 1), np.float32),
                    **({"large": large[1]} if large else {}),
                },
                "action": np.zeros(1, np.float32),
                "reward": 1.0,
                "is_first": number == 0,
                "is_last": number == length,
                "is_terminal": False,
            }
            for number in range(length + 1)
        ]
        writer.add_examples({"train": [{"steps": made}]})
    writer.close_all()
    return path


def written_config(tmp_path: Path, vocabulary: Path, dataset: str, config: str = "") -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(f"vocabulary: {vocabulary}\n{config}\ndatasets:\n  - {{name: d, {dataset}}}\n")
    return path


# --- files that change between scan and build ------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    written = [at for at, byte in enumerate(data) if byte]  # an ArrayRecord file is padded
    data[written[len(written) * 2 // 3]] ^= 1
    path.write_bytes(data)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [Path.unlink, cut, emptied, flipped, a_folder])
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_file_that_changes_under_a_build_is_named_and_nothing_is_taken_for_whole(
    file_format, harm, tmp_path, vocabulary, contents, monkeypatch
):
    source = write_episodes(tmp_path / "data" / "t", [3, 4, 5, 6], file_format=file_format)
    config = written_config(tmp_path, vocabulary, "kind: episodes, source: data/*, keep: {all: true}")
    build(config, tmp_path / "fresh")
    path = source / f"recorded-train.{file_format}-00001"
    whole, times, real = path.read_bytes(), path.stat(), job._build

    def harmed(*arguments: Any) -> Any:
        harm(path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns)) if path.exists() else None
        return real(*arguments)

    monkeypatch.setattr(job, "_build", harmed)
    with pytest.raises(DataError, match=path.name):
        build(config, tmp_path / "out")
    assert [fault.file for fault in verify(tmp_path / "out")] == ["manifest.json"]
    monkeypatch.undo()
    if path.is_dir():
        path.rmdir()
    path.write_bytes(whole)
    build(config, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


# --- clocks ------------------------------------------------------------------------------------------------------


def test_nothing_depends_on_the_clock(tmp_path, texts, contents, monkeypatch):
    build(texts, tmp_path / "fresh")
    now, real = [4e9], time.gmtime

    def backwards() -> float:
        now[0] -= 86_400.0
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(time, "time_ns", lambda: int(backwards() * 1e9))
    monkeypatch.setattr(time, "gmtime", lambda seconds=None: real(backwards()))
    for number, path in enumerate(sorted((tmp_path / "texts").iterdir())):
        os.utime(path, (now[0] * (number % 3), -1e9 * (number % 2)))
    result = build(texts, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert all(0 <= seconds <= result.seconds for seconds in result.stages.values())
    assert result.tokens_per_second is not None


# --- names -------------------------------------------------------------------------------------------------------


def test_names_of_every_kind(tmp_path, vocabulary):
    """Ids are the names below the source, whatever they are; links are followed, also to directories."""
    names = [
        "with some spaces.jsonl",
        unicodedata.normalize("NFC", "é.jsonl"),
        unicodedata.normalize("NFD", "é.jsonl"),
        "数据 🤖.jsonl",
        "..two dots.jsonl",
        "quote'\"%20&#$(x).jsonl",
        "-dash.jsonl",
        "line\nend.jsonl",
        "below/deeper/x.jsonl",
        "linked/y.jsonl",
        "link.jsonl",
    ]
    data = tmp_path / "a folder" / "data"
    (tmp_path / "elsewhere").mkdir()
    (data / "below" / "deeper").mkdir(parents=True)
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "link.jsonl").symlink_to(tmp_path / "target")
    for number, name in enumerate(names):
        (data / name).write_text(json.dumps({"text": f"file {number}"}) + "\n")
    dataset = "kind: text, source: '../a folder/down/../data/**/*.jsonl'"
    (tmp_path / "a folder" / "down").mkdir()
    (tmp_path / "config folder").mkdir()
    out = tmp_path / "out folder é"
    config = written_config(tmp_path / "config folder", vocabulary, dataset, "holdout: 0")
    build(config, tmp_path / "config folder" / ".." / out.name)
    assert verify(out) == []
    documents = {item.id: str(item.parts[0]) for item in open_directory(out).datasets["d"].documents()}
    expected = {f"{name}#0": f"file {number}" for number, name in enumerate(names) if not name.startswith(".")}
    assert documents == expected


def test_names_that_are_no_utf8(tmp_path, vocabulary):
    """As from an old zip: in names of files of every kind of reader, and of the folder of the config."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.makedirs(folder + b"/text")
    for name in (b"/text/\xc9tude.txt", b"/text/other.txt", b"/text/\xe9.jsonl"):
        with open(folder + name, "wb") as file:
            file.write(b'{"text": "a study"}' if name.endswith(b"l") else b"of " + name[-9:-4].hex().encode())
    table = pa.table({"text": ["a row"]})
    pq.write_table(table, tmp_path / "row.parquet")
    os.rename(os.fsencode(tmp_path) + b"/row.parquet", folder + b"/text/\xf6.parquet")
    config = written_config(tmp_path, vocabulary, "kind: text, source: text/*", "holdout: 0")
    path = os.fsdecode(folder + b"/c.yaml")
    os.rename(config, path)
    build(path, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    documents = {item.id: item.parts for item in open_directory(tmp_path / "out").datasets["d"].documents()}
    assert documents == {
        "\\xc9tude.txt#0": ["of c974756465"],
        "\\xe9.jsonl#0": ["a study"],
        "\\xf6.parquet#0": ["a row"],
        "other.txt#0": ["of 6f74686572"],
    }
    with pytest.raises(ConfigError, match=r"^--out b'.*out\\xe9': the name is not valid UTF-8; choose another"):
        build(path, os.fsdecode(os.fsencode(tmp_path) + b"/out\xe9"))


def test_two_names_that_are_written_alike(tmp_path, vocabulary):
    (tmp_path / "text").mkdir()
    for name in (b"\xe9.txt", b"\\xe9.txt"):
        with open(os.fsencode(tmp_path) + b"/text/" + name, "wb") as file:
            file.write(name)
    config = written_config(tmp_path, vocabulary, "kind: text, source: text/*")
    with pytest.raises(ConfigError, match=r"datasets\[0\]: documents of .* could have the same ids; rename one of"):
        build(config, tmp_path / "out")
    (tmp_path / "text" / "\\xe9.txt").rename(tmp_path / "text" / "a.txt")
    (tmp_path / "text" / "a.txt#0.txt").write_text("its id begins as that of another")
    with pytest.raises(ConfigError, match=r"documents of .*a\.txt#0\.txt and .*a\.txt could have the same ids"):
        build(config, tmp_path / "out")


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_episodes_below_names_that_are_no_utf8(file_format, tmp_path, vocabulary):
    write_episodes(tmp_path / "task" / "1.0.0", [3, 4], file_format)
    os.rename(tmp_path / "task", os.fsencode(tmp_path) + b"/t\xe4sk")
    dataset = "kind: episodes, last_step: padding, keep: {all: true}, source: t*"
    build(written_config(tmp_path, vocabulary, dataset), tmp_path / "out")
    assert verify(tmp_path / "out") == []
    [index] = (tmp_path / "out" / "d").glob("*.index.parquet")
    rows = pq.read_table(index, columns=["task", "kept"]).to_pylist()
    assert rows == [{"task": "t\\xe4sk", "kept": True}] * 2


# --- sizes -------------------------------------------------------------------------------------------------------


def test_a_task_with_one_episode(tmp_path, vocabulary):
    write_episodes(tmp_path / "data" / "alone", [4])
    write_episodes(tmp_path / "data" / "others", [4, 4, 4])
    config = written_config(tmp_path, vocabulary, "kind: episodes, source: data/*, keep: {min_return: 0.8}")
    result = build(config, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    tasks = {row.task: row for row in open_directory(tmp_path / "out").datasets["d"].tasks}
    assert (tasks["alone"].episodes, tasks["alone"].window, tasks["alone"].kept, tasks["alone"].held_out) == (
        1,
        1,
        1,
        0,
    )
    assert tasks["alone"].expert_return == 4.0
    assert result.manifest.datasets[0].kept == 4


def many_files(tmp_path: Path, vocabulary: Path, count: int) -> None:
    """Files of two rewards each, as small as they can be."""
    (tmp_path / "data").mkdir()
    for number in range(count):
        (tmp_path / "data" / f"{number:06}.jsonl").write_text(json.dumps({"text": str(number)}) + "\n")
    config = written_config(tmp_path, vocabulary, "kind: text, source: 'data/*.jsonl'", "shard_bytes: 65536")
    result = build(config, tmp_path / "out")
    [dataset] = result.manifest.datasets
    assert (dataset.episodes, dataset.kept) == (count, count)
    # Small files share shards.
    assert dataset.shards <= max(4, count * 20 / 65536 * 4)
    rows = [pq.read_table(tmp_path / "out" / "d" / split.index, columns=["episode_id"]) for split in dataset.splits]
    ids = {id_ for table in rows for id_ in table["episode_id"].to_pylist()}
    assert ids == {f"{number:06}.jsonl#0" for number in range(count)}
    assert verify(tmp_path / "out") == []


def test_three_thousand_tiny_files(tmp_path, vocabulary):
    many_files(tmp_path, vocabulary, 3000)


@pytest.mark.slow
def test_a_hundred_thousand_tiny_files(tmp_path, vocabulary):
    many_files(tmp_path, vocabulary, 100_000)


PEAK = """
import resource, sys
from gatokit.pipelines.run import build
build(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


LARGE = {
    "a tensor that is left out": (
        (tfds.features.Tensor(shape=(25_000_000,), dtype=np.float32), np.zeros(25_000_000, np.float32)),
        ", fields: {observation/large: {as: skip}}",
        None,
        2600,
    ),
    "a text": ((tfds.features.Text(), "many words " * 9_000_000), "", "step_too_long", 4800),
}
"""Feature and value, what the config says of it, why its episode is dropped, and the MiB that a build may take."""


@pytest.mark.slow
@pytest.mark.parametrize("what", LARGE)
def test_a_step_of_100_megabytes_takes_a_few_times_its_size(what, tmp_path, vocabulary):
    """Every step of its episode has it, of which there are three."""
    large, fields, reason, limit = LARGE[what]
    write_episodes(tmp_path / "data" / "t", [2], large=large)
    write_episodes(tmp_path / "data" / "u", [1], large=(large[0], "short" if reason else large[1]))
    dataset = f"kind: episodes, source: data/*, task: {{constant: t}}, merge: true, keep: {{all: true}}{fields}"
    config = written_config(tmp_path, vocabulary, dataset)
    done = subprocess.run([sys.executable, "-c", PEAK, config, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "out") == []
    rows = [row.reason for row in open_directory(tmp_path / "out").datasets["d"].episodes()]
    assert rows == [reason, None]
    assert int(done.stdout) < limit
