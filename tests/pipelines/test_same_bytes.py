"""The same input gives the same files: whatever the workers, the order on disk, the path, and the kills between."""

import hashlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build
from gatokit.schemas.errors import DataError


def contents(directory: Path) -> dict[str, str]:
    """Digest of every file but the log."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "build.log.jsonl" and ".scan" not in path.parts
    }


def test_two_processes_give_the_bytes_of_one(tmp_path, recorded_config, built):
    build(recorded_config, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(built)
    assert sum(path.endswith(".arrayrecord") for path in contents(built)) > 12


def test_neither_path_nor_order_on_disk_matters(tmp_path, recorded, recorded_config, vocabulary, built):
    folder = tmp_path / "another place"
    for path in sorted((p for p in recorded.rglob("*") if p.is_file()), reverse=True):
        target = folder / "data" / path.relative_to(recorded)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(vocabulary, folder / "text.model")
    shutil.copy(recorded_config, folder / "other-name.yaml")
    build(folder / "other-name.yaml", folder / "out")
    assert contents(folder / "out") == contents(built)


def test_nothing_names_a_path(recorded, recorded_config, built):
    forbidden = [
        str(recorded),
        str(recorded_config.parent),
        str(built),
        "/tmp/",
        "/home/",
        "/root/",
    ]
    for path in built.rglob("*"):
        if path.is_file() and path.name != "build.log.jsonl":
            data = path.read_bytes()
            assert not [word for word in forbidden if word.encode() in data], path


def test_a_build_that_is_run_again_changes_nothing(tmp_path, recorded_config, built):
    shutil.copytree(built, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.arrayrecord")}
    build(recorded_config, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(built)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.arrayrecord")} == before


KILLED = """
import os, signal, sys
from gatokit.pipelines import run
from gatokit.storage import files
config, out, kill_at, when = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
real, count = os.replace, 0
def replace(source, target):
    global count
    count += 1
    if count == kill_at and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    if count == kill_at and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
if __name__ == "__main__":
    run.build(config, out)
    print("not killed after", count)
"""


@pytest.mark.parametrize(
    ("kill_at", "when"),
    [
        (30, "before"),
        (54, "after"),
        *(
            pytest.param(*kill, marks=pytest.mark.slow)
            for kill in ((1, "before"), (3, "after"), (47, "after"), (48, "before"), (56, "before"))
        ),
    ],
)
def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(kill_at, when, tmp_path, recorded_config, built):
    """Every file of a build appears by a rename, so each kill falls just before or just after one of them."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, script, recorded_config, out, str(kill_at), when], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert not (out / "manifest.json").exists()
    assert [fault.file for fault in verify(out)] == ["manifest.json"]
    indexed = {path.name.rpartition("-")[0] for path in out.rglob("*.index.parquet")}
    finished = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*.arrayrecord")
        if not path.name.startswith(".") and path.stem in indexed
    }
    build(recorded_config, out)
    assert contents(out) == contents(built)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert verify(out) == []


def test_an_index_without_its_shard_is_not_taken_for_done(tmp_path, recorded_config, built):
    shutil.copytree(built, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    lost, cut = sorted((tmp_path / "out").rglob("*.arrayrecord"))[:2]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-100])
    build(recorded_config, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(built)


def test_one_build_at_a_time_holds_a_directory(tmp_path, recorded_config):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom gatokit.storage.lock import hold\n"
            "with hold(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()",
            tmp_path / "out",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DataError, match="is in use by another gatokit"):
        build(recorded_config, tmp_path / "out")
    holder.communicate("")
    assert build(recorded_config, tmp_path / "out", only="control").manifest.datasets[0].kept > 0
