"""A bundle that is tried twice at once, as services do with slow ones: both finish, one shard, right bytes."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.beam import crash_isolation as isolated
from gatokit.pipelines.beam import jobs
from gatokit.pipelines.planning import ShardTask
from gatokit.pipelines.run import build
from gatokit.pipelines.shards import writer as shard_writer
from gatokit.pipelines.shards.writer import Built, build_shard
from gatokit.tokenizers.text import TextTokenizer

Attempt = Callable[[str, str], Built]


def twice(attempt: Attempt, pieces: Sequence[Any]) -> list[tuple[Built, Built]]:
    """Does every piece in two threads that begin together."""
    with ThreadPoolExecutor(2) as pool:
        return [tuple(pool.map(lambda _, piece=piece: attempt(*piece), range(2))) for piece in pieces]  # type: ignore


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Attempt], list[Any]]:
    """Puts a function in the place of the job that builds; what its attempts gave comes into the list."""

    def install(attempt: Attempt) -> list[Any]:
        found: list[Any] = []
        real = jobs.run

        def run(pieces: Sequence[Any], call: Any, stage: str, *rest: Any) -> dict[str, int]:
            if stage == "scan":
                return real(pieces, call, stage, *rest)
            found.extend(twice(attempt, pieces))
            return {}

        monkeypatch.setattr(jobs, "run", run)
        return found

    return install


def together(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Two threads always reach a function of the writer before either goes on."""
    barrier, real = threading.Barrier(2), getattr(shard_writer, name)

    def waits(*arguments: Any, **options: Any) -> Any:
        barrier.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr(shard_writer, name, waits)


@pytest.mark.parametrize("name", ["commit", "write_index"])
def test_two_threads(name, tmp_path, texts, vocabulary, contents, doubled, monkeypatch):
    build(texts, tmp_path / "fresh")
    text = TextTokenizer.load(vocabulary)
    together(monkeypatch, name)
    found = doubled(lambda path, directory, _: build_shard(ShardTask.read(path), directory, text))
    build(texts, tmp_path / "out")
    assert found
    assert all(one == other for one, other in found)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_two_processes(tmp_path, texts, vocabulary, contents, doubled):
    text = texts.read_text()
    texts.write_text(text.replace("texts/*.jsonl", "texts/[0-2].jsonl"))
    build(texts, tmp_path / "fresh")
    found = doubled(lambda path, directory, _: isolated.build(path, directory, vocabulary))
    build(texts, tmp_path / "out")
    assert found
    assert all(one == other for one, other in found)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert verify(tmp_path / "out") == []


def test_a_note_of_an_attempt_that_still_runs_gives_the_same_shard(tmp_path, texts, contents, monkeypatch):
    """Whoever finds one takes the first attempt for dead, and works in a process of its own."""
    texts.write_text(texts.read_text().replace("texts/*.jsonl", "texts/[01].jsonl"))
    build(texts, tmp_path / "fresh")
    real, isolates = isolated.build, []

    def counted(*arguments: Any) -> Built:
        isolates.append(arguments)
        return real(*arguments)

    def noted(note: Path) -> Any:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
        return attempt(note)

    attempt = jobs.marked
    monkeypatch.setattr(isolated, "build", counted)
    monkeypatch.setattr(jobs, "marked", noted)
    result = build(texts, tmp_path / "out")
    assert len(isolates) == result.built
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
