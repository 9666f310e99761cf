"""Nothing is written through a link, and nothing replaces or removes what is not a regular file of this program."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from gatokit.schemas.errors import ConfigError, DataError, MalformedError
from gatokit.storage import files
from gatokit.storage.lock import hold
from gatokit.storage.ownership import check_folders, check_own


def make_link(path: Path) -> None:
    (path.parent / "victim").write_text("mine")
    path.symlink_to("victim")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nothing")


FOREIGN: list[Callable[[Path], None]] = [make_link, make_dangling_link, Path.mkdir, os.mkfifo]
WRITERS: list[Callable[[Path], None]] = [
    lambda path: files.write_atomically(path, b"new"),
    lambda path: files.write_rows(path, pa.table({"x": [1]})),
    lambda path: files.append_line(path, "new"),
    lambda path: files.open_appending(path).close(),
    files.remove,
]


@pytest.mark.parametrize("writer", range(len(WRITERS)))
@pytest.mark.parametrize("foreign", FOREIGN)
def test_only_regular_files_are_written_and_removed(
    tmp_path: Path, foreign: Callable[[Path], None], writer: int
) -> None:
    foreign(tmp_path / "file")
    before = {path.name: path.lstat()[:7] for path in tmp_path.iterdir()}
    with pytest.raises(MalformedError, match=f"^{tmp_path}/file is .*, and a file is to be there; remove it or"):
        WRITERS[writer](tmp_path / "file")
    assert {path.name: path.lstat()[:7] for path in tmp_path.iterdir()} == before
    if foreign is make_link:
        assert (tmp_path / "victim").read_text() == "mine"


def test_a_temporary_file_that_becomes_a_link_is_not_moved_over_one(tmp_path: Path) -> None:
    make_link(tmp_path / "file")
    temporary = files.temporary_beside(tmp_path / "file")
    Path(temporary).write_text("new")
    with pytest.raises(MalformedError):
        files.commit(temporary, tmp_path / "file")
    assert (os.readlink(tmp_path / "file"), (tmp_path / "victim").read_text()) == ("victim", "mine")


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    files.write_new(tmp_path / "file", b"one")
    (tmp_path / "link").symlink_to("nothing")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            files.write_new(tmp_path / name, b"two")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_what_is_appended_reaches_one_name_of_a_file_alone(tmp_path: Path) -> None:
    files.append_line(tmp_path / "log", "one")
    os.link(tmp_path / "log", tmp_path / "backup")
    files.append_line(tmp_path / "log", "two")
    files.append_line(tmp_path / "log", "three")
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"
    assert (tmp_path / "backup").read_text() == "one\n"


def test_a_link_among_folders_is_found(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/link").symlink_to("b")
    (tmp_path / "root").symlink_to("a")
    check_folders(tmp_path / "root", tmp_path / "root/b/c")
    check_folders(tmp_path / "root", tmp_path / "root/new")
    with pytest.raises(MalformedError, match="a/link is a link, and a directory is to be there"):
        check_folders(tmp_path, tmp_path / "a/link/c")


KILLED = """
import os, signal, sys
from pathlib import Path
from gatokit.storage.files import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_is_whole_and_what_the_killed_left_goes(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -9
    [left] = tmp_path.iterdir()
    assert (left / "half").exists()
    mine = [f".tmp-{'0' * 32}-other", ".tmp-1-weights", ".weights.tmp", ".tmp-x"]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "victim").mkdir()
    link = tmp_path / f".tmp-{'1' * 32}-weights"
    link.symlink_to("victim")
    with files.whole_folder(path) as first:
        (first / "one").touch()
        # Another process that writes the same folder leaves alone what is still written.
        with files.whole_folder(path) as second:
            (second / "two").touch()
            assert (first / "one").exists()
        shutil.rmtree(path)
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, "victim", link.name, "weights"])
    assert os.listdir(path) == ["one"]


@pytest.mark.parametrize("content", ["mine", '{"lock": "mine"}', "[]", "{}"])
def test_a_lock_of_something_else_stays(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    with (
        pytest.raises(ConfigError, match=r"holds \.lock, which no gatokit made; choose another directory"),
        hold(tmp_path),
    ):
        pass
    assert (tmp_path / ".lock").read_text() == content


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    make_link(tmp_path / ".lock")
    with pytest.raises(MalformedError, match=r"\.lock is a link"), hold(tmp_path):
        pass
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / ".lock").is_symlink()


def test_locks_of_the_dead_are_taken_over_also_those_of_earlier_versions(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with hold(tmp_path), pytest.raises(DataError, match="in use"), hold(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_in_which_a_command_goes_on_is_its_own(tmp_path: Path) -> None:
    check_own(tmp_path / "missing", "run.json", ["policy"])
    (tmp_path / "notes.txt").touch()
    check_own(tmp_path, "run.json", ["policy"], others=["manifest.json"])
    (tmp_path / "manifest.json").touch()
    with pytest.raises(ConfigError, match=r"holds manifest\.json and no run\.json, so that it may be somebody's own"):
        check_own(tmp_path, "run.json", ["policy"], others=["manifest.json"])
    (tmp_path / "run.json").touch()
    (tmp_path / "policy").mkdir()
    check_own(tmp_path, "run.json", ["policy"], others=["manifest.json"])
    (tmp_path / "policy").rmdir()
    (tmp_path / "policy").symlink_to(".")
    with pytest.raises(MalformedError, match="policy is a link"):
        check_own(tmp_path, "run.json", ["policy"])
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.json").symlink_to("notes.txt")
    with pytest.raises(MalformedError, match=r"run\.json is a link"):
        check_own(tmp_path, "run.json", [])
