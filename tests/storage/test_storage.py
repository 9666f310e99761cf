"""Files that appear whole or not at all, and directories that one process holds."""

import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gatokit.schemas.errors import ConfigError, DataError
from gatokit.storage.files import commit, file_digest, out_directory, temporary_beside, write_atomically
from gatokit.storage.lock import hold


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_written_with_its_directories(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["c.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fails(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_data_is_synced_before_the_name_and_the_directory_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert target.is_dir() or target.read_bytes() == b"data"
        events.append("sync directory" if target.is_dir() else "sync file")
        fsync(descriptor)

    def replaced(source: str, target: str) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_atomically(tmp_path / "file", b"data")
    assert events == ["sync file", "rename", "sync directory"]


def test_temporary_names_are_hidden_unique_and_beside(tmp_path: Path) -> None:
    found = {temporary_beside(tmp_path / "x" / "file") for _ in range(20)}
    assert len(found) == 20
    assert all(re.fullmatch(rf"{re.escape(str(tmp_path))}/x/\.tmp-[0-9a-f]{{32}}-file", name) for name in found)


def test_commit_renames(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    commit(tmp_path / "one", tmp_path / "two")
    assert names(tmp_path) == ["two"]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_digest_of_a_file(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == (size, hashlib.blake2b(data, digest_size=32).hexdigest())


HOLDER = """
import sys
from gatokit.storage.lock import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    directory = tmp_path / "out"
    said = f"{directory} is in use by another gatokit; wait for it or choose another --out"
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=f"^{re.escape(said)}$"), hold(directory):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert names(directory) == [".lock"]
    with hold(directory):
        assert names(directory) == [".lock"]
    assert names(directory) == []


def test_a_failed_build_frees_its_directory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the build"), hold(tmp_path):
        raise RuntimeError("the build")
    entered = False
    with hold(tmp_path):
        entered = True
    assert entered


def test_a_lock_whose_file_was_taken_away_in_between_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def ended_in_between(file: Any, operation: int) -> None:
        """The former holder ends, and its file with it, after this process opened it."""
        (tmp_path / ".lock").unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", ended_in_between)
    with pytest.raises(DataError, match="is in use by another gatokit"), hold(tmp_path):
        pass
    monkeypatch.undo()
    with hold(tmp_path):
        assert names(tmp_path) == [".lock"]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory, reason in [(tmp_path / "file" / "out", "Not a directory"), (tmp_path / "file", "File exists")]:
        said = f"--out {directory}: cannot be written: {reason}; choose another directory"
        with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"), hold(directory):
            pass


def test_another_object_storage_says_what_to_do() -> None:
    said = r"^--out s3://bucket/out: is neither a local path nor one on gs://; choose another directory$"
    with pytest.raises(ConfigError, match=said):
        out_directory("s3://bucket/out")
    assert out_directory("a:b/out") == Path("a:b/out")
    assert str(out_directory("gs://bucket/out") / "x") == "gs:/bucket/out/x"
