"""A disk that is full: one sentence, nothing half-written, and the same command goes on when there is room."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build
from gatokit.schemas.errors import DataError

FULL = "the disk is full; make room and run the build again: finished shards stay"


@pytest.fixture
def fresh(tmp_path, texts, contents):
    build(texts, tmp_path / "fresh")
    return contents(tmp_path / "fresh")


def incomplete(out: Path) -> None:
    """There is no manifest, and no index without its whole shard."""
    assert [fault.file for fault in verify(out)] == ["manifest.json"]
    for index in out.rglob("*.index.parquet"):
        assert index.with_name(f"{index.name.rpartition('-')[0]}.arrayrecord").exists()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_file_may_become_as_large_as_a_shard(workers, tmp_path, texts, fresh, vocabulary, gatokit, contents):
    """The kernel lets no file grow beyond a limit, so the native writer itself fails."""
    fault = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
"""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(vocabulary, out / "vocabulary.model")  # which is larger than the shards
    sentence = gatokit("build", texts, "--out", out, "--workers", workers, fault=fault).sentence
    assert "no file may become as large: the file system or `ulimit -f` forbids it; choose another disk or" in sentence
    assert ".arrayrecord" in sentence
    incomplete(out)
    build(texts, out)
    assert contents(out) == fresh


def fails_at(monkeypatch: pytest.MonkeyPatch, suffix: str, passes: int) -> None:
    """Syncing the files of a suffix fails once ``passes`` of them are through, and everything after it."""
    fsync, left = os.fsync, passes

    def full(descriptor: int) -> None:
        nonlocal left
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(suffix):
            left -= 1
        if left < 0:
            raise OSError(28, "No space left on device", suffix)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize(
    ("suffix", "passes"),
    [(".index.parquet", 0), (".index.parquet", 3), ("dataset.json", 0), ("tasks.parquet", 0), ("manifest.json", 0)],
)
def test_no_room_for_what_describes_the_shards(suffix, passes, tmp_path, texts, fresh, monkeypatch, contents):
    """Many file systems say so only when a file is synced."""
    out = tmp_path / "out"
    fails_at(monkeypatch, suffix, passes)
    with pytest.raises(DataError, match=f"^{FULL}"):
        build(texts, out)
    monkeypatch.undo()
    incomplete(out)
    assert len(list(out.rglob("*.index.parquet"))) == (
        passes if suffix == ".index.parquet" else len(fresh_shards(fresh))
    )
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.arrayrecord")}
    result = build(texts, out)
    assert contents(out) == fresh
    if suffix != ".index.parquet":
        assert result.built == 0
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*.arrayrecord")} == before


def fresh_shards(files: dict[str, Any]) -> list[str]:
    return [path for path in files if path.endswith(".arrayrecord")]


def test_no_room_in_an_update_leaves_the_old_build(tmp_path, texts, monkeypatch, contents):
    out = tmp_path / "out"
    build(texts, out)
    before = contents(out)
    texts.write_text(texts.read_text().replace("'texts/*.jsonl'", "'texts/[0-7].jsonl'"))
    for suffix in ("manifest.json", "dataset.json", "tasks.parquet"):
        with monkeypatch.context() as patch:
            fails_at(patch, suffix, 0)
            if suffix == "manifest.json":
                with pytest.raises(DataError, match=f"^{FULL}"):
                    build(texts, out, update=True)
                assert before.items() <= contents(out).items()
            else:
                with pytest.raises(DataError, match=f"^{FULL}"):
                    build(texts, out, update=True)
        assert all(
            fault.fault.startswith(("no file of the manifest", "the lock", "work of a build")) for fault in verify(out)
        )
    build(texts, out, update=True)
    build(texts, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
