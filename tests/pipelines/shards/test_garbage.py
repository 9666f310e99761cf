"""``gatokit gc`` and the exclusion of builds: leftovers go, nothing that a manifest names ever does."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gatokit.cli.main import main
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build, scan
from gatokit.pipelines.shards.ownership import collect
from gatokit.schemas.errors import ConfigError, DataError

TEMPORARY = f".tmp-{'0' * 32}-"


@pytest.fixture
def config(tmp_path: Path, exact_vocabulary: Path) -> Path:
    for name in ("one", "two"):
        lines = "".join(json.dumps({"text": f"{name} {line}"}) + "\n" for line in range(5))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    path = tmp_path / "c.yaml"
    sets = "".join(f"  - {{name: {name}, kind: text, source: {name}.jsonl}}\n" for name in ("one", "two"))
    path.write_text(f"vocabulary: {exact_vocabulary}\ndatasets:\n{sets}")
    return path


@pytest.fixture
def out(tmp_path: Path, config: Path) -> Path:
    build(config, tmp_path / "out", scan_cache=tmp_path / "cache")
    return tmp_path / "out"


def listed(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def littered(out: Path) -> dict[str, int]:
    """Adds what attempts leave; path and size. The last one, which did not end, had another dataset."""
    with open(out / "build.log.jsonl", "a") as log:
        log.write(json.dumps({"event": "build started", "datasets": ["one", "two", "gone"]}) + "\n")
    stem = "one-0123456789abcdef"
    left = {
        f"{TEMPORARY}manifest.json": 3,
        f"one/{TEMPORARY}{stem}.arrayrecord": 5,
        f"one/{stem}.arrayrecord": 7,
        f"one/{stem}-001.arrayrecord": 8,
        f"one/{stem}.index.parquet": 9,
        "one/dataset-0123456789abcdef.json": 2,
        "gone/gone-0123456789abcdef.index.parquet": 1,
        "gone/dataset.json": 4,
        f".work/scan/{TEMPORARY}x.arrow": 6,
    }
    for path, size in left.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(bytes(size))
    return left


def test_leftovers_go_and_what_the_manifest_names_stays(out):
    sound = listed(out)
    left = littered(out)
    (out / ".work" / "scan" / "u.arrow").write_bytes(bytes(11))
    assert {item.path: item.bytes for item in collect(out, dry_run=True)} == left
    assert listed(out) == sound | left.keys() | {".work/scan/u.arrow"}
    assert {item.path: item.bytes for item in collect(out)} == left
    assert listed(out) == sound | {".work/scan/u.arrow"}
    assert not (out / "gone").exists()
    assert [(item.path, item.bytes) for item in collect(out, work=True)] == [(".work/scan/u.arrow", 11)]
    assert verify(out) == []
    assert collect(out, work=True) == []


def test_kept_rows_of_a_scan_go_if_everything_may(out, config):
    build(config, out)
    tables = {path.relative_to(out).as_posix() for path in (out / ".scan").iterdir()}
    assert len(tables) == 2
    (out / ".scan" / f"{TEMPORARY}x").write_bytes(bytes(3))
    assert [item.path for item in collect(out)] == [f".scan/{TEMPORARY}x"]
    assert {item.path for item in collect(out, work=True)} == tables
    assert not (out / ".scan").exists()
    assert verify(out) == []


def test_what_others_put_there_stays(out, tmp_path):
    notes = (
        "notes/dataset.json",
        "one/mine.arrayrecord",
        "one/one-0123.arrayrecord",
        ".tmp-mine",
        "one/two-0123456789abcdef.arrayrecord",
    )
    for path in notes:
        (out / path).parent.mkdir(exist_ok=True)
        (out / path).write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked-0123456789abcdef.index.parquet").touch()
    (out / "linked").symlink_to(tmp_path / "elsewhere")
    before = listed(out)
    assert collect(out, work=True) == []
    assert listed(out) == before


def test_without_a_manifest_shards_stay(out):
    (out / "manifest.json").unlink()
    shards = {path for path in listed(out) if path.endswith((".arrayrecord", ".parquet", ".json"))}
    left = littered(out)
    gone = {path for path in left if TEMPORARY in path}
    assert {item.path for item in collect(out)} == gone
    assert listed(out) >= shards | (left.keys() - gone)


def test_a_scan_is_cleaned_too(config, tmp_path):
    scan(config, tmp_path / "scanned")
    sound = listed(tmp_path / "scanned")
    left = littered(tmp_path / "scanned")
    assert {item.path for item in collect(tmp_path / "scanned")} == left.keys()
    assert listed(tmp_path / "scanned") == sound


@pytest.mark.parametrize("make", [False, True])
def test_other_directories_are_refused_and_none_is_made(make, tmp_path):
    there = tmp_path / "there"
    if make:
        there.mkdir()
        (there / f"{TEMPORARY}x").touch()
    with pytest.raises(ConfigError, match=f"^{re.escape(str(there))} is no directory of a build or scan"):
        collect(there)
    assert there.exists() == make
    assert not make or (there / f"{TEMPORARY}x").exists()


HOLDER = """
import sys
from gatokit.pipelines import run
from gatokit.pipelines.beam import jobs
real = jobs.run
def waits(*arguments):
    print("holds", flush=True)
    sys.stdin.read()
    return real(*arguments)
jobs.run = waits
run.build(sys.argv[1], sys.argv[2])
"""


@contextmanager
def building(config: Path, out: Path) -> Iterator[Callable[[], int]]:
    """A real build in another process that is in the middle of its work; a function that lets it end."""
    command = [sys.executable, "-c", HOLDER, str(config), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"

        def end() -> int:
            process.communicate("")
            return process.returncode

        yield end


def test_two_builds_exclude_each_other_and_gc_waits_for_neither(config, tmp_path):
    out = tmp_path / "out"
    with building(config, out) as end:
        before = listed(out)
        for busy in (lambda: build(config, out), lambda: build(config, out, update=True), lambda: collect(out)):
            with pytest.raises(DataError, match=f"^{re.escape(str(out))} is in use by another gatokit"):
                busy()
        assert listed(out) == before
        assert end() == 0
    assert verify(out) == []


def test_the_command(out, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    left = littered(out)
    assert main(["gc", str(out), "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {item["path"]: item["bytes"] for item in said["files"]} == left
    assert (said["bytes"], said["removed"]) == (sum(left.values()), False)
    assert main(["gc", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(path in printed for path in left)
    assert f"removed {len(left)} files, {sum(left.values())} B" in printed
    assert main(["gc", str(out)]) == 0
    assert capsys.readouterr().out == "there is nothing to remove\n"
    assert main(["gc", str(out / "one")]) == 2
