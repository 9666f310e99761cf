"""Pieces of work: how finished ones are counted, that they are not done again, and how a job lists them."""

import json
from pathlib import Path
from typing import Any

import pytest

from gatokit.pipelines import run as job
from gatokit.pipelines.beam import jobs
from gatokit.pipelines.beam.progress import Watch, note
from gatokit.pipelines.documents.text import TextLinesFile
from gatokit.pipelines.run import build
from gatokit.storage import files


@pytest.fixture
def config(tmp_path: Path, vocabulary: Path) -> Path:
    """Twelve files, of which each becomes a shard; two lines have no text."""
    (tmp_path / "s").mkdir()
    for number in range(12):
        texts = [{"text": f"{number} {line} " + "word " * 50} for line in range(10)]
        texts += [{"text": " "}, {}] if number == 3 else []
        (tmp_path / "s" / f"{number:02}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    path = tmp_path / "c.yaml"
    path.write_text(
        f"vocabulary: {vocabulary}\nshard_bytes: 2500\ndatasets:\n  - {{name: d, kind: text, source: 's/*'}}\n"
    )
    return path


def events(out: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "build.log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def test_progress_says_pieces_rows_and_bytes(tmp_path, config):
    said: list[tuple[Any, ...]] = []
    build(
        config,
        tmp_path / "out",
        progress=lambda *step, rows, size, total_size: said.append((*step, rows, size, total_size)),
    )
    source = sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    ends = {step[0]: step for step in said}
    assert ends["scan"] == ("scan", 1, 1, 122, source, source)
    stage, done, total, rows, size, total_size = ends["build"]
    assert (stage, done, rows, size) == ("build", total, 122, total_size)
    assert total >= 10
    assert 0 < source - total_size < 1000  # newlines and what has no text
    steps = [(done, rows, size) for stage, done, _, rows, size, _ in said if stage == "build"]
    assert steps == sorted(steps)


def test_counters_are_by_dataset_and_reason(tmp_path, config):
    build(config, tmp_path / "out")
    scan, made = events(tmp_path / "out", "metrics")
    assert scan.items() >= {"scanned": 122, "d.empty": 1, "d.missing_field": 1}.items()
    assert made.items() >= {"documents": 122, "kept": 120, "d.empty": 1, "d.missing_field": 1}.items()


def test_a_look_reads_what_was_added_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "existing", lambda paths: pytest.fail("looks at results"))
    results = {f"p{number}": tmp_path / f"{number}.arrow" for number in range(100_000)}
    sizes = dict.fromkeys(results.values(), 10)
    said: list[tuple[Any, ...]] = []
    watch = Watch("scan", results, sizes, tmp_path, lambda *step, **more: said.append((*step, *more.values())))
    watch.finished({tmp_path / "7.arrow", tmp_path / "8.arrow"})
    watch.look()
    note(tmp_path, "p9", 5)
    note(tmp_path, "p8", 5)  # was finished before
    note(tmp_path, "p10", 6)
    watch.look()
    note(tmp_path, "p9", 5)  # a runner may call twice
    with open(tmp_path / "finished.txt", "a") as file:
        file.write("7 p1")  # a line that is not whole yet
    watch.look()
    with open(tmp_path / "finished.txt", "a") as file:
        file.write("1\n")
    watch.look()
    assert said == [
        ("scan", 2, 100_000, 0, 20, 1_000_000),
        ("scan", 2, 100_000, 0, 20, 1_000_000),
        ("scan", 4, 100_000, 11, 40, 1_000_000),
        ("scan", 4, 100_000, 11, 40, 1_000_000),
        ("scan", 5, 100_000, 18, 50, 1_000_000),
    ]


def test_listings_take_at_most_a_hundredth_of_the_time(monkeypatch):
    now, listings = 100.0, list[float]()

    def existing(paths: set[Path]) -> set[Path]:
        nonlocal now
        listings.append(now)
        now += 2.0
        return {path for path in paths if path.stem == str(len(listings))}

    monkeypatch.setattr(files, "existing", existing)
    results = {f"p{number}": Path(f"gs://bucket/out/{number}.arrow") for number in range(5)}
    said: list[int] = []
    work = Path("gs://bucket/out/.work")
    watch = Watch("scan", results, {}, work, lambda stage, done, *_, **more: said.append(done), lambda: now)
    for second in range(100, 700):
        now = max(now, float(second))
        watch.look()
    assert listings == [100.0, 302.0, 504.0]
    assert said[-1] == 3


def test_a_finished_piece_is_not_done_again(tmp_path, config, monkeypatch):
    calls: list[tuple[Any, str]] = []
    real = jobs.run

    def twice(pieces: Any, call: Any, stage: str, *rest: Any) -> dict[str, int]:
        counts = real(pieces, call, stage, *rest)
        again = [call(piece) for piece in pieces]
        calls.extend((piece, stage) for piece in pieces)
        sums = {name: sum(item.get(name, 0) for item in again) for name in counts}
        assert sums == counts
        return counts

    built, scans = list[str](), list[str]()
    build_shard, scan = jobs.build_shard, TextLinesFile.scan
    monkeypatch.setattr(jobs, "run", twice)
    monkeypatch.setattr(jobs, "build_shard", lambda task, *more: built.append(task.stem) or build_shard(task, *more))
    monkeypatch.setattr(TextLinesFile, "scan", lambda self, most: scans.append(self.name) or scan(self, most))
    result = build(config, tmp_path / "out")
    assert {stage for _, stage in calls} == {"scan", "build"}
    assert len(built) == len(set(built)) == result.built
    assert len(scans) == len(set(scans)) == 12


def test_a_shard_without_one_of_its_files_is_not_finished(tmp_path, config, monkeypatch):
    kept: list[Any] = []
    monkeypatch.setattr(job, "finish_dataset", lambda root, plan, *more: kept.append(plan) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(config, tmp_path / "out")
    from gatokit.pipelines.planning import ShardTask
    from gatokit.pipelines.shards.writer import finished_shard

    [plan] = kept
    task = ShardTask.read(plan.shards[0].path)
    before = finished_shard(task, tmp_path / "out" / "d")
    assert before is not None
    assert before.shards == 1
    [part] = (tmp_path / "out" / "d").glob(f"{task.stem}*.arrayrecord")
    part.write_bytes(part.read_bytes()[:-1])
    assert finished_shard(task, tmp_path / "out" / "d") is None
    part.unlink()
    assert finished_shard(task, tmp_path / "out" / "d") is None


def test_the_graph_of_a_job_does_not_hold_its_pieces(tmp_path, monkeypatch):
    """Dataflow takes graphs up to some megabytes."""
    pieces = [
        (f"gs://bucket/built/.work/shards/pairs-{number:016x}.arrow", "gs://bucket/built/pairs")
        for number in range(100_000)
    ]
    path, blocks = jobs._listed(pieces, "build", tmp_path)
    assert len(json.dumps(blocks)) < 20_000
    read = [piece for block in blocks for piece in jobs._read_block(block, str(path))]
    assert read == pieces
    assert jobs._listed(pieces[:1], "build", tmp_path)[0] != path
