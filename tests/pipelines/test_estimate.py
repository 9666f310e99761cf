"""A plan's numbers against those of the build that it foretells."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gatokit.pipelines import estimate as module
from gatokit.pipelines.estimate import DatasetEstimate, estimate, spread_order
from gatokit.pipelines.run import build
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import DatasetEntry
from gatokit.storage.folder import read_manifest

COUNTS = ("splits", "episodes", "kept", "shards", "tokens", "bytes")


def facts(dataset: DatasetEntry) -> dict[str, int]:
    """What a build of a dataset gave."""
    return {name: getattr(dataset, name) for name in COUNTS[1:]} | {"splits": len(dataset.splits)}


def counts(found: DatasetEstimate) -> dict[str, int]:
    return {name: getattr(found, name) for name in COUNTS}


def manifest(out: Path) -> dict[str, DatasetEntry]:
    return {dataset.name: dataset for dataset in read_manifest(out).datasets}


def test_a_small_source_is_planned_exactly(recorded_config: Path, built: Path):
    before = sorted(built.rglob("*"))
    found = estimate(recorded_config, sample_seconds=300)
    assert sorted(built.rglob("*")) == before
    assert {item.name: counts(item) for item in found.datasets} == {
        name: facts(dataset) for name, dataset in manifest(built).items()
    }
    for item in found.datasets:
        assert item.exact == ("files", "source_bytes", *COUNTS)
        assert (item.scanned_share, item.built_share) == (1.0, 1.0)
        assert item.worker_hours == pytest.approx((item.scan_seconds + item.build_seconds) / 3600)
    assert found.total("tokens") == sum(dataset.tokens for dataset in manifest(built).values())
    source = recorded_config.parent / "data" / "metaworld"
    files = [path for path in source.rglob("*.tfrecord*") if path.is_file()]
    assert (found.datasets[0].files, found.datasets[0].source_bytes) == (
        len(files),
        sum(path.stat().st_size for path in files),
    )


STATES = """
vocabulary: {vocabulary}
shard_bytes: 300000
datasets:
  - name: states
    kind: episodes
    source: states/*
    keep: {{all: true}}
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory, recorded: Path, vocabulary: Path) -> Path:
    """A config over the recorded states under six names, a file each name."""
    folder = tmp_path_factory.mktemp("states")
    [source] = (recorded / "metaworld").iterdir()
    for copy in range(6):
        (folder / "states").mkdir(exist_ok=True)
        (folder / "states" / f"copy-{copy}").symlink_to(source)
    config = folder / "build.yaml"
    config.write_text(STATES.format(vocabulary=vocabulary))
    return config


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes a sample small: so many bytes are scanned together, and so many of an order built."""

    def hurry(scanned: int, built: int) -> None:
        monkeypatch.setattr(module, "PIECE_BYTES", scanned)
        monkeypatch.setattr(module, "_FIRST_BYTES", built)

    return hurry


def test_a_part_of_the_source_foretells_the_rest(states: Path, tmp_path: Path, hurried):
    build(states, tmp_path / "built")
    real = manifest(tmp_path / "built")["states"]
    hurried(150_000, 40_000)
    [item] = estimate(states, sample_seconds=0).datasets
    # One piece of one file was scanned, and a part of one order built.
    assert 0 < item.scanned_share < 0.2
    assert 0 < item.built_share < 0.2
    assert item.exact == ("files", "source_bytes", "episodes")
    assert (item.splits, item.episodes, item.shards) == (len(real.splits), real.episodes, real.shards)
    assert real.splits[0].rows < real.episodes / 6
    assert item.kept == real.kept
    assert abs(item.tokens - real.tokens) < 0.02 * real.tokens


def test_kept_and_splits_of_a_scanned_source_are_exact_where_the_build_was_not(recorded_config: Path, built, hurried):
    hurried(1 << 30, 20_000)
    item = estimate(recorded_config, only="metaworld", sample_seconds=0).datasets[0]
    real = manifest(built)["metaworld"]
    assert item.exact == ("files", "source_bytes", "splits", "episodes")
    assert item.built_share < 0.5
    assert (item.splits, item.episodes, item.kept, item.shards) == (
        len(real.splits),
        real.episodes,
        real.kept,
        real.shards,
    )
    assert abs(item.tokens - real.tokens) < 0.02 * real.tokens
    low, high = item.spread["tokens_per_byte"]
    assert 0 < low <= high < 1


def test_documents_by_a_part_of_one_file(tmp_path: Path, vocabulary: Path, hurried):
    lines = [
        json.dumps({"text": f"{7919 * number % 10007:05} documents stand before this one. " * 40})
        for number in range(4000)
    ]
    (tmp_path / "prose.jsonl").write_text("".join(f"{line}\n" for line in lines))
    config = tmp_path / "build.yaml"
    config.write_text(
        f"vocabulary: {vocabulary}\nshard_bytes: 1000000\n"
        "datasets: [{name: prose, kind: text, source: prose.jsonl, drop_duplicates: false}]\n"
    )
    build(config, tmp_path / "built")
    real = manifest(tmp_path / "built")["prose"]
    hurried(400_000, 100_000)
    [item] = estimate(config, sample_seconds=0).datasets
    assert item.exact == ("files", "source_bytes")
    assert item.source_bytes == os.path.getsize(tmp_path / "prose.jsonl")
    assert item.scanned_share < 0.1
    assert (item.splits, item.shards) == (len(real.splits), real.shards) == (7, 7)
    assert abs(item.episodes - real.episodes) < 0.03 * real.episodes
    assert abs(item.kept - real.kept) < 0.03 * real.kept
    assert abs(item.tokens - real.tokens) < 0.05 * real.tokens


def test_a_part_of_a_split_is_taken_from_all_of_it(tmp_path: Path, vocabulary: Path, hurried):
    texts = ["a b c d e f g h " * 60 for _ in range(500)] + ["documentation of statements " * 34 for _ in range(500)]
    lines = [json.dumps({"text": f"{number} {text}"}) for number, text in enumerate(texts)]
    (tmp_path / "mixed.jsonl").write_text("".join(f"{line}\n" for line in lines))
    config = tmp_path / "build.yaml"
    config.write_text(f"vocabulary: {vocabulary}\ndatasets: [{{name: mixed, kind: text, source: mixed.jsonl}}]\n")
    build(config, tmp_path / "built")
    real = manifest(tmp_path / "built")["mixed"]
    hurried(1 << 30, 100_000)
    [item] = estimate(config, sample_seconds=0).datasets
    assert (item.built_share, item.kept) == (pytest.approx(0.1, abs=0.02), 1000)
    assert abs(item.tokens - real.tokens) < 0.05 * real.tokens


def test_a_sample_that_keeps_nothing_is_a_notice_and_a_source_is_an_error(
    tmp_path: Path, write_tfds, vocabulary: Path, hurried
):
    import tensorflow_datasets as tfds

    steps = {"observation": tfds.features.Tensor(shape=(64,), dtype=np.float32), "action": np.float32}
    steps |= {"reward": np.float32} | dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_)

    def episode(good: bool) -> dict:
        row = {"observation": [0.5] * 64, "action": 0.0, "reward": 1.0, "is_terminal": False}
        recorded = [{**row, "is_first": not at, "is_last": at == 9} for at in range(10)]
        return {"steps": recorded, "good": good}

    episodes = [episode(number >= 4) for number in range(8)]
    write_tfds(tmp_path / "set", steps, episodes, metadata={"good": np.bool_})
    config = tmp_path / "build.yaml"
    config.write_text(
        f"vocabulary: {vocabulary}\ndatasets: [{{name: d, kind: episodes, source: set, keep: {{success: good}}}}]\n"
    )
    hurried(1000, 1000)
    found = estimate(config, sample_seconds=0)
    [item] = found.datasets
    assert (item.episodes, item.kept, item.scanned_share) == (8, 8, pytest.approx(0.125))
    assert "keeps none of its 1 episodes" in found.notices[-1]
    assert "keeps every sound episode" in found.notices[-1]
    assert estimate(config, sample_seconds=300).datasets[0].kept == 4
    write_tfds(tmp_path / "bad", steps, episodes[:4], metadata={"good": np.bool_})
    config.write_text(config.read_text().replace("source: set", "source: bad"))
    with pytest.raises(DataError, match="keeps none of its 4 episodes"):
        estimate(config, sample_seconds=300)


def test_errors_are_those_of_a_build(recorded_config: Path, tmp_path: Path):
    gone = recorded_config.parent / "gone.yaml"
    gone.write_text(recorded_config.read_text().replace("text.model", "gone.model"))
    for config, arguments in (
        (recorded_config, {"only": "x"}),
        (recorded_config, {"beam_arguments": ["--x"]}),
        (gone, {}),
    ):
        said = []
        for job in (estimate, lambda *a, **k: build(*a[:1], tmp_path / "out", **k)):
            with pytest.raises(ConfigError) as raised:
                job(config, **arguments)
            said.append(str(raised.value))
        assert said[0] == said[1]
    assert not (tmp_path / "out").exists()


def test_workers_divide_the_time(recorded_config: Path):
    few, many = (estimate(recorded_config, only="babyai", sample_seconds=300, workers=count) for count in (1, 10**6))
    [dataset] = many.datasets
    assert (few.workers, many.workers) == (1, 10**6)
    rest = many.seconds - dataset.scan_seconds / dataset.units - dataset.build_seconds / dataset.splits
    assert 0 < rest < 0.01
    service = ("--runner=DataflowRunner", "--max_num_workers=7")
    assert estimate(recorded_config, only="babyai", sample_seconds=0, beam_arguments=service).workers == 7


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64, 1000])
def test_every_beginning_of_the_order_lies_evenly(count: int):
    order = spread_order(count)
    assert sorted(order) == list(range(count))
    if count >= 64:
        for taken in (4, 8, 16):
            gaps = [b - a for a, b in zip(sorted(order[:taken]), sorted(order[:taken])[1:], strict=False)]
            assert max(gaps) <= 2 * count / taken
