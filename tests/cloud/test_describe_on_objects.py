"""``describe`` and scans of sources on ``gs://`` read little of them, and find what they find on a disk."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
import yaml
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatokit.cli.main import main
from gatokit.pipelines.describe.source import describe
from gatokit.pipelines.formats.array_record import ArrayRecordFile
from gatokit.schemas.errors import DataError
from tests.google.fixtures import Bucket
from tests.google.storage import Blob
from tests.pipelines.conftest import write_tfds

__all__ = ["write_tfds"]
F = tfds.features
STEPS = {
    "observation": F.FeaturesDict({"state": F.Tensor(shape=(3,), dtype=np.float32), "blob": F.Text()}),
    "action": F.Tensor(shape=(2,), dtype=np.float32),
    **{name: F.Scalar(dtype=np.bool_) for name in ("is_first", "is_last")},
    "reward": F.Scalar(dtype=np.float32),
}
EPISODE_BYTES = 300_000
FILES, EPISODES = 3, 12


def episode(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    rows = []
    for step in range(5):
        observation = {"state": rng.normal(size=3).astype(np.float32), "blob": rng.bytes(EPISODE_BYTES // 5)}
        flags = {"is_first": step == 0, "is_last": step == 4, "reward": np.float32(step == 4)}
        rows.append({"observation": observation, "action": rng.uniform(-1, 1, 2).astype(np.float32), **flags})
    return {"steps": rows}


def upload(bucket: Bucket, root: Path, below: str) -> int:
    """Puts a directory into the bucket; the bytes of its data."""
    for path in root.iterdir():
        bucket.put(f"{below}/{path.name}", path.read_bytes())
    return sum(path.stat().st_size for path in root.iterdir() if path.suffix != ".json")


def bytes_read(bucket: Bucket) -> dict[str, int]:
    """The bytes of contents that were asked for, by object."""
    read: dict[str, int] = {}
    for request in bucket.server.requests("GET", "alt=media"):
        name = re.sub(r".*/o/", "", request.name)
        blob: Blob = bucket.blob(name)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", f"bytes=0-{len(blob.data) - 1}"))
        assert asked is not None
        read[name] = read.get(name, 0) + min(int(asked[2]) + 1, len(blob.data)) - int(asked[1])
    return read


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_describe_reads_the_first_episodes_of_files(
    bucket: Bucket, tmp_path: Path, write_tfds: Callable[..., Path], file_format: str
) -> None:
    episodes = [episode(number) for number in range(FILES * EPISODES)]
    write_tfds(tmp_path / "set", STEPS, episodes, file_format=file_format, max_examples_per_shard=EPISODES)
    stored = upload(bucket, tmp_path / "set", "sets/set")
    assert stored > FILES * EPISODES * EPISODE_BYTES
    assert main(["describe", "gs://bucket/sets/set", "--episodes", "6", "--write", "gs://bucket/c.yaml"]) == 0
    read = bytes_read(bucket)
    data = {name: count for name, count in read.items() if not name.endswith(".json")}
    assert len(data) == FILES
    assert all(2 * EPISODE_BYTES < count < 5 * EPISODE_BYTES for count in data.values())
    assert sum(read.values()) < stored / 2

    here = describe("set", base=tmp_path, episodes=6)
    there = describe("gs://bucket/sets/set", episodes=6)
    assert there.seen == 6
    assert replace(there, source="set") == here
    [dataset] = yaml.safe_load(bucket.get("c.yaml"))["datasets"]
    assert (dataset["source"], dataset["keep"]) == ("gs://bucket/sets/set", {"all": True})


def test_a_scan_of_array_records_reads_them_once(
    bucket: Bucket, tmp_path: Path, write_tfds: Callable[..., Path]
) -> None:
    episodes = [episode(number) for number in range(EPISODES)]
    write_tfds(tmp_path / "set", STEPS, episodes, file_format="array_record", max_examples_per_shard=EPISODES)
    stored = upload(bucket, tmp_path / "set", "set")
    assert main(["describe", "gs://bucket/set", "--all", "--json"]) == 0
    [count] = [count for name, count in bytes_read(bucket).items() if not name.endswith(".json")]
    assert stored * 0.99 < count <= stored


# --- array records ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of 40 records of up to 70 kB, several in a chunk."""
    path = tmp_path_factory.mktemp("records") / "records"
    writer = ArrayRecordWriter(str(path), "group_size:3,uncompressed")
    rng = np.random.default_rng(1)
    for number in range(40):
        writer.write(rng.bytes(number * 1749))
    writer.close()
    return path.read_bytes()


def read(path: str, declared: int = 40, positions: tuple[int, int] | None = None) -> list[Any]:
    """What a file gives, or its error. Of damage the library says where it lies in its buffers, which differ."""
    file = ArrayRecordFile(path, "records", declared, "episodes", positions)
    try:
        return [(item.byte_range, item.value, item.reason, item.lost) for item in file.read_all(1 << 30)]
    except DataError as error:
        return [type(error)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_what_they_give_on_a_disk(
    bucket: Bucket, tmp_path: Path, records: bytes, data: st.DataObject
) -> None:
    content = bytearray(records)
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3), "damaged bytes"):
        content[at] ^= 0xFF
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))), "length")
    begin = data.draw(st.integers(0, 39), "first position")
    positions = data.draw(st.sampled_from([None, (begin, 40)]), "positions")
    local = tmp_path / "records"
    local.write_bytes(content[:cut])
    bucket.put("records", bytes(content[:cut]))
    here = read(str(local), positions=positions)
    assert here
    assert read("gs://bucket/records", positions=positions) == here


def test_records_in_order_are_fetched_when_they_are_read(bucket: Bucket, records: bytes) -> None:
    bucket.put("records", records)
    found = ArrayRecordFile("gs://bucket/records", "records", 40, "episodes").read_all(1 << 30)
    assert next(found).value == b""
    early = bytes_read(bucket)["records"]
    assert early <= 2 * 256 << 10
    assert sum(item.value is not None for item in found) == 39
    assert early < bytes_read(bucket)["records"] == len(records)
