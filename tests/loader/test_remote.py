"""Training from a bucket through a cache: what comes when, what goes, and what a service may do in between."""

import fcntl
import os
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from gatokit.cli.main import main
from gatokit.loader import records
from gatokit.loader.mixture import Mixture, open_mixture
from gatokit.loader.records import OpenShards
from gatokit.loader.windows import Windows
from gatokit.schemas.errors import ConfigError, DataError, MalformedError
from gatokit.schemas.run import RunConfig
from gatokit.storage.cache import CacheFullError, open_remote
from tests.google.fixtures import Bucket, bucket, impatient, private_key

__all__ = ["bucket", "impatient", "private_key"]
URL = "gs://bucket/a/built"


@pytest.fixture
def uploaded(bucket: Bucket, mixed: Path) -> Bucket:
    """The bucket with a build below ``a/built``."""
    for path in sorted(mixed.rglob("*")):
        if path.is_file():
            bucket.put(f"a/built/{path.relative_to(mixed)}", path.read_bytes())
    return bucket


def opened(cache: Path, most_bytes: int | None = None) -> Mixture:
    return open_mixture([open_remote(URL, cache, most_bytes)])


def shards_of(mixture: Mixture, limit: int = 100) -> OpenShards:
    return OpenShards([shard for dataset in mixture.datasets for shard in dataset.shards], limit)


def cached(cache: Path) -> dict[str, int]:
    """Size of each shard that is in the cache, by name."""
    return {path.name: path.stat().st_size for path in cache.rglob("*.arrayrecord")}


def downloads(bucket: Bucket, pattern: str = r"arrayrecord\?.*alt=media") -> int:
    return len(bucket.server.requests("GET", pattern))


def whole(directory: Path) -> list[list[bytes]]:
    """The records of every shard, in the order of a mixture."""
    shards = [shard for dataset in open_mixture([directory]).datasets for shard in dataset.shards]
    return [ArrayRecordReader(shard.path).read_all() for shard in shards]


def check(shards: OpenShards, shard: int, expected: list[list[bytes]]) -> None:
    assert shards.read_bytes(shard, 0, len(expected[shard])) == expected[shard]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (URL, True),
        (f"new={URL}/", True),
        ("gs://bucket/", True),
        ("gs://bucket", True),
        ("built", False),
        ("new=built", False),
        ("gs:/bucket/x", False),
        ("s3://bucket/x", False),
    ],
)
def test_directories_on_objects_are_known(item: str, expected: bool) -> None:
    if expected:
        with pytest.raises(ConfigError, match=rf"^--data {item}: give --cache DIR"):
            open_remote(item, None)
    else:
        assert open_remote(item, None) == item


def test_the_start_brings_everything_but_shards(uploaded: Bucket, mixed: Path, tmp_path: Path) -> None:
    local = Path(open_remote(URL, tmp_path))
    there = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}
    known = {
        str(path.relative_to(mixed)) for path in mixed.rglob("*") if path.is_file() and path.parent.name != ".scan"
    }
    assert there == {path for path in known if not path.endswith((".arrayrecord", ".jsonl"))} | {"remote.json"}
    assert all((local / path).read_bytes() == (mixed / path).read_bytes() for path in there - {"remote.json"})
    assert downloads(uploaded) == 0
    requests = len(uploaded.server.log)
    assert open_remote(f"new={URL}/", tmp_path) == f"new={local}"
    assert len(uploaded.server.log) == requests + 2  # the size of the manifest, and the manifest


def test_windows_are_those_of_a_local_directory(uploaded: Bucket, mixed: Path, tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {"model": "tiny", "context": 96, "batch": 8, "steps": 3, "optimizer": {"warmup_steps": 1}}
    )
    ours, theirs = Windows(opened(tmp_path), config), Windows(open_mixture([mixed]), config)
    for step in range(8):
        one, other = ours.batch(step, range(8)), theirs.batch(step, range(8))
        for found, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(found, expected)
    assert opened(tmp_path).data_digest == open_mixture([mixed]).data_digest


def test_a_shard_comes_once_for_all_and_after_a_restart_not_again(
    uploaded: Bucket, mixed: Path, tmp_path: Path
) -> None:
    expected = whole(mixed)
    one = shards_of(opened(tmp_path))
    together = [one, pickle.loads(pickle.dumps(one)), shards_of(opened(tmp_path))]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda number: check(together[number % 3], 1, expected), range(12)))
    assert downloads(uploaded) == 1
    check(shards_of(opened(tmp_path)), 1, expected)
    assert downloads(uploaded) == 1


def test_the_cache_keeps_to_its_bound_and_what_was_used_last(uploaded: Bucket, mixed: Path, tmp_path: Path) -> None:
    expected, mixture = whole(mixed), open_mixture([mixed])
    paths = [Path(shard.path) for dataset in mixture.datasets for shard in dataset.shards]
    sizes = [path.stat().st_size for path in paths]
    most = sum(sorted(sizes)[-3:])
    one = shards_of(opened(tmp_path, most), limit=1)
    for number in range(len(paths)):
        check(one, number, expected)
        found = cached(tmp_path)
        assert sum(found.values()) <= most
        # The oldest have gone, and no newer one than needed.
        kept = [path.name in found for path in paths[: number + 1]]
        assert kept == sorted(kept)
        first = kept.index(True)
        assert first == 0 or sum(sizes[first - 1 : number + 1]) > most
    assert not cached(tmp_path).keys() >= {path.name for path in paths}


def test_what_is_open_stays(uploaded: Bucket, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_FULL_SECONDS", 0.0)
    expected, mixture = whole(mixed), open_mixture([mixed])
    sizes = [Path(shard.path).stat().st_size for dataset in mixture.datasets for shard in dataset.shards]
    other = 1 + int(np.argmax(sizes[1:]))
    most = max(sizes[0], sizes[other])
    mixture = opened(tmp_path, most)
    first = mixture.datasets[0].shards[0].remote
    assert first is not None
    held = first.hold()
    said = rf"^--cache-bytes {most}: all that is in {re.escape(str(tmp_path))} is open, and there is no room for gs://b"
    with pytest.raises(CacheFullError, match=said):
        check(shards_of(mixture), other, expected)
    assert list(cached(tmp_path).values()) == [sizes[0]]
    del held
    # One process closes its open shards for its others.
    one, two = shards_of(mixture), shards_of(mixture)
    for each in (one, two, two, one):
        check(each, 0, expected)
        check(each, other, expected)
        assert len(cached(tmp_path)) == 1
    assert (one.open_count, two.open_count) == (1, 0)


def test_leftovers_of_a_killed_download_go_and_those_of_a_live_one_stay(
    uploaded: Bucket, mixed: Path, tmp_path: Path
) -> None:
    expected = whole(mixed)
    mixture = opened(tmp_path, max(Path(p).stat().st_size for p in mixed.rglob("*.arrayrecord")) + 100)
    folder = Path(mixture.datasets[0].shards[0].path).parent
    dead, alive = (folder / f".tmp-{number:032x}-x.arrayrecord" for number in range(2))
    dead.write_bytes(bytes(5000))
    alive.write_bytes(bytes(100))
    foreign = [tmp_path / "built" / "x.arrayrecord", folder / "mine.arrayrecord", folder / ".tmp-mine.arrayrecord"]
    foreign[0].parent.mkdir()
    for path in foreign:
        path.write_bytes(bytes(5000))
        os.utime(path, (1, 1))
    with open(alive, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for number in range(len(expected)):
            check(shards_of(mixture), number, expected)
    assert alive.exists()
    assert not dead.exists()
    # What no cached build names is not the cache's.
    assert [path.stat().st_size for path in foreign] == [5000] * 3


def test_links_in_a_cache_lead_to_nothing_that_is_removed_or_written(uploaded: Bucket, tmp_path: Path) -> None:
    """Another user of a shared cache puts a link to somebody's folder, or file, in the place of one of its own."""
    mixture = opened(tmp_path / "cache")
    shard = Path(mixture.datasets[0].shards[0].path)
    shards_of(mixture).read_bytes(0, 0, 1)
    victim = tmp_path / "victim"
    shard.parent.rename(victim)
    shard.parent.symlink_to(victim)
    before = {path.name: path.read_bytes() for path in victim.iterdir()}
    other = next(
        item for dataset in mixture.datasets for item in dataset.shards if Path(item.path).parent != shard.parent
    )
    assert other.remote is not None
    replace(other.remote, most_bytes=other.remote.size).hold()
    with pytest.raises(MalformedError, match="is a link, and a directory is to be there"):
        shards_of(mixture).read_bytes(0, 0, 1)
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == before
    with pytest.raises(MalformedError, match="is a link, and a directory is to be there"):
        opened(tmp_path / "cache")
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == before


def test_a_shard_larger_than_the_bound_is_an_error(uploaded: Bucket, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--cache-bytes 10: gs://bucket/a/built/\S+ has \d+ bytes; give room for"):
        shards_of(opened(tmp_path, 10)).read(0, 0, 1)


FAULTS: dict[str, Callable[[Bucket], object]] = {
    "busy": lambda bucket: bucket.server.fail(2, status=503, pattern="alt=media"),
    "too many": lambda bucket: bucket.server.fail(2, status=429, pattern="alt=media"),
    "cut off": lambda bucket: bucket.server.truncate(2, keep=700),
    "slow": lambda bucket: bucket.server.trickle(piece=4000),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_day_of_the_service_shows_nowhere(uploaded: Bucket, mixed: Path, tmp_path: Path, fault: str) -> None:
    expected = whole(mixed)
    FAULTS[fault](uploaded)
    mixture = opened(tmp_path)
    uploaded.server.heal()
    FAULTS[fault](uploaded)
    check(shards_of(mixture), 0, expected)
    assert list(tmp_path.rglob(".tmp-*")) == []


def test_what_is_not_what_the_manifest_says_is_never_taken(uploaded: Bucket, mixed: Path, tmp_path: Path) -> None:
    expected, mixture = whole(mixed), opened(tmp_path)
    name = f"a/built/{Path(mixture.datasets[0].shards[0].path).relative_to(mixture.directories[0])}"
    right = uploaded.get(name)
    for wrong, said in (
        (right[:-1] + bytes([right[-1] ^ 1]), "what came has another digest than the manifest says, 3 times"),
        (right[:-1], f"{len(right) - 1} bytes came and the manifest says {len(right)}, 3 times"),
    ):
        uploaded.put(name, wrong)
        with pytest.raises(DataError, match=f"^gs://bucket/{name}: {said}"):
            check(shards_of(mixture), 0, expected)
        assert cached(tmp_path) == {}
    uploaded.remove(name)
    with pytest.raises(DataError, match=f"^gs://bucket/{name}: does not exist"):
        check(shards_of(mixture), 0, expected)
    uploaded.server.fail(1_000_000)
    with pytest.raises(DataError, match=f"^gs://bucket/{name}: "):
        check(shards_of(mixture), 0, expected)
    uploaded.server.heal()
    uploaded.put(name, right)
    check(shards_of(mixture), 0, expected)
    # What was cut off in the cache comes again.
    os.truncate(mixture.datasets[0].shards[0].path, 100)
    check(shards_of(mixture), 0, expected)


def test_an_updated_build_has_a_directory_of_its_own(uploaded: Bucket, mixed: Path, tmp_path: Path) -> None:
    before = open_remote(URL, tmp_path)
    text = uploaded.get("a/built/manifest.json")
    uploaded.put("a/built/manifest.json", text.replace(b'"weight": 3', b'"weight": 4'))
    with pytest.raises(DataError, match=r"^gs://bucket/a/built/manifest.json"):
        open_remote(URL, tmp_path)
    uploaded.put("a/built/manifest.json", text)
    assert open_remote(URL, tmp_path) == before
    for name in uploaded.names("a/built/"):
        uploaded.put(f"b/{name.removeprefix('a/built/')}", uploaded.get(name))
    assert open_remote("gs://bucket/b", tmp_path) != before


def test_the_command_asks_for_a_cache(
    uploaded: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "tiny", "--data", URL, "--out", str(tmp_path / "run")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"--data {URL}: give --cache DIR, a directory for copies of its shards, or mount the bucket" in said
    words = ["--data", "gs://bucket/none", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]
    assert main(["train", "tiny", *words]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "gs://bucket/none/manifest.json does not exist: give a finished build" in said


@pytest.mark.slow
def test_a_run_on_a_bucket_is_the_run_on_a_disk(uploaded: Bucket, mixed: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {layers: 1, width: 16, heads: 2, head_size: 8, hidden: 32}\n"
        "context: 96\nbatch: 2\nsteps: 3\nprecision: float32\nlog_every: 1\ninput: {patch_group_rows: 1}\n"
        "optimizer: {warmup_steps: 1}\nevaluation: {every: 3, batches: 1}\ncheckpoint: {every: 2}\n"
    )
    most = sum(path.stat().st_size for path in mixed.rglob("*.arrayrecord")) * 3 // 4
    runs = {"bucket": [URL, "--cache", str(tmp_path / "cache"), "--cache-bytes", str(most)], "disk": [str(mixed)]}
    for name, words in runs.items():
        assert main(["train", str(config), "--data", *words, "--out", str(tmp_path / name)]) == 0
    found = [re.findall(r'"loss": ([\d.]+)', (tmp_path / name / "metrics.jsonl").read_text()) for name in runs]
    assert found[0] == found[1]
    assert len(found[0]) > 3
    shutil.rmtree(tmp_path / "cache")
