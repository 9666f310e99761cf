"""Errors that may pass are tried again, as often as is said; those that do not are listed, and nothing is lost."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatokit.cli.main import main
from gatokit.pipelines.beam import jobs
from gatokit.pipelines.formats import parquet
from gatokit.pipelines.run import build
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.storage import files
from gatokit.storage.array_record import ArrayRecordFile


@pytest.fixture
def fresh(tmp_path, texts, contents):
    build(texts, tmp_path / "fresh")
    return contents(tmp_path / "fresh")


def stems(fresh: dict[str, str]) -> list[str]:
    return sorted(Path(path).stem for path in fresh if path.endswith(".arrayrecord"))


def fails(monkeypatch: pytest.MonkeyPatch, error: Callable[[str], OSError | None]) -> list[str]:
    """``error`` says what each attempt at a shard, named by its stem, raises. Returns the stems of all attempts."""
    real, begun = jobs.build_shard, list[str]()

    def build_shard(task: Any, *arguments: Any) -> Any:
        begun.append(task.stem)
        raised = error(task.stem)
        if raised is not None:
            raise raised
        return real(task, *arguments)

    monkeypatch.setattr(jobs, "build_shard", build_shard)
    return begun


def events(out: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "build.log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENETUNREACH, errno.ESTALE, errno.ETIMEDOUT])
def test_an_error_that_passes_costs_one_attempt(number, tmp_path, texts, fresh, monkeypatch, contents):
    victim, out = stems(fresh)[3], tmp_path / "out"
    begun = fails(
        monkeypatch,
        lambda stem: OSError(number, os.strerror(number)) if begun.count(victim) == 1 == (stem == victim) else None,
    )
    result = build(texts, out)
    assert sorted(begun) == sorted([*stems(fresh), victim])
    assert (result.built, contents(out)) == (len(stems(fresh)), fresh)
    assert [line["may_pass"] for line in events(out, "piece failed")] == [True]
    assert [line["pieces"] for line in events(out, "tried again")] == [1]


def test_an_error_that_stays_is_tried_three_times(tmp_path, texts, fresh, monkeypatch, contents):
    victims, out = stems(fresh)[2:6], tmp_path / "out"
    begun = fails(monkeypatch, lambda stem: OSError(5, "Input/output error", stem) if stem in victims else None)
    with pytest.raises(jobs.PiecesFailedError) as raised:
        build(texts, out)
    assert str(raised.value) in [
        f"4 pieces of work failed: OSError: [Errno 5] Input/output error: '{victim}' (and 3 more of this kind) "
        "(tried 3 times); mend that and run the command again to go on"
        for victim in victims
    ]
    assert sorted(begun) == sorted(stems(fresh) + 2 * victims)
    monkeypatch.undo()
    begun = fails(monkeypatch, lambda stem: None)
    build(texts, out)
    assert sorted(begun) == victims
    assert contents(out) == fresh


def test_what_a_person_has_to_mend_is_listed_by_kind_and_not_tried_again(tmp_path, texts, fresh, monkeypatch):
    first, second, third, *others = stems(fresh)
    raised = {
        first: PermissionError(13, "Permission denied", "/a/1"),
        second: PermissionError(13, "Permission denied", "/b/2"),
        third: OSError(30, "Read-only file system", "/c"),
        others[0]: OSError(5, "Input/output error", "/d"),
    }
    begun = fails(monkeypatch, raised.get)
    with pytest.raises(DataError) as error:
        build(texts, tmp_path / "out")
    text = str(error.value)
    assert text.startswith("3 pieces of work failed: PermissionError: [Errno 13] Permission denied: '/")
    assert text.endswith("' (and 1 more of this kind) | OSError: [Errno 30] Read-only file system: '/c'")
    assert sorted(begun) == stems(fresh)
    logged = events(tmp_path / "out", "piece failed")
    assert sorted((line["message"], line["may_pass"]) for line in logged) == [
        ("OSError: [Errno 30] Read-only file system: '/c'", False),
        ("OSError: [Errno 5] Input/output error: '/d'", True),
        ("PermissionError: [Errno 13] Permission denied: '/a/1'", False),
        ("PermissionError: [Errno 13] Permission denied: '/b/2'", False),
    ]


def test_a_runner_that_tries_again_gets_the_error(tmp_path, texts, fresh, monkeypatch):
    fails(monkeypatch, lambda stem: OSError(28, "No space left on device"))
    with pytest.raises(DataError, match="pieces of work failed: the disk is full; make room and run"):
        build(texts, tmp_path / "out")  # the disk of this machine, which no second try empties
    work = tmp_path / "out" / ".work"
    task = next((work / "shards").iterdir())
    for folder in ("errors", "attempts"):
        files.remove_tree(work / folder)
    with pytest.raises(OSError, match="No space left on device"):
        jobs.build_piece((str(task), str(tmp_path / "out" / "t"), None), None, str(work), is_retried=True)
    assert not (work / "errors").exists()
    assert list((work / "attempts").iterdir()) == []
    fails(monkeypatch, lambda stem: OSError(13, "Permission denied"))
    assert jobs.build_piece((str(task), str(tmp_path / "out" / "t"), None), None, str(work), is_retried=True) == {}
    assert len(list((work / "errors").iterdir())) == 1


def test_a_sync_that_fails_anywhere_leaves_a_build_that_goes_on(tmp_path, vocabulary, monkeypatch, contents):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"line {number}"}) + "\n" for number in range(9)))
    config = tmp_path / "c.yaml"
    config.write_text(f"vocabulary: {vocabulary}\ndatasets:\n  - {{name: t, kind: text, source: a.jsonl}}\n")
    build(config, tmp_path / "fresh")
    fsync, failing, synced = os.fsync, -1, list[str]()

    def fails_once(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if len(synced) == failing + 1:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_once)
    build(config, tmp_path / "counted")
    total, said = len(synced), list[str]()
    assert total > 12
    for failing in range(total):
        out = tmp_path / f"out{failing}"
        synced.clear()
        try:
            build(config, out)
        except DataError as error:
            said.append(str(error))
            build(config, out)
        assert contents(out) == contents(tmp_path / "fresh"), synced[failing]
    assert 0 < len(said) < total
    assert all("Input/output error" in sentence for sentence in said)


# --- what the errors say ---------------------------------------------------------------------------------------


def test_a_file_system_without_locks_says_so(tmp_path, texts, monkeypatch):
    def flock(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with pytest.raises(ConfigError) as raised:
        build(texts, tmp_path / "out")
    assert str(raised.value) == (
        f"--out {tmp_path / 'out'}: its file system locks no files (No locks available); choose another disk, or mount "
        "this one with locks"
    )


@pytest.mark.parametrize("runner", ["NonsenseRunner", "no.such.module.Runner", "gatokit.schemas.NoRunner"])
def test_a_runner_that_is_not_there_says_so(runner, tmp_path, texts, capsys):
    assert main(["build", str(texts), "--out", str(tmp_path / "out"), f"--runner={runner}"]) == 2
    assert f"gatokit: --runner {runner}: is no runner that is installed here: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_whose_name_is_no_utf_8_says_so(tmp_path, texts, capsys):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert main(["build", str(texts), "--json", "--out", out]) == 2
    said = capsys.readouterr()
    assert "caf\\xe9': the name is not valid UTF-8; choose another directory" in said.err
    assert json.loads(said.out)["error"]["way_out"] == "choose another directory"


def test_a_disk_that_fails_is_no_damage_of_a_parquet_file(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["word " * 50_000] * 20}), path, compression="none", use_dictionary=False)

    class Failing(files.io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            if 1_000_000 < self.tell() < 4_000_000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(-1 if size is None else size) or b""

    with parquet.open_file(str(path), "a") as file:
        assert len(list(parquet.read_rows(file, ["text"]))) == 20
    monkeypatch.setattr(files, "arrow_file", lambda path: pa.PythonFile(Failing(path), "r"))
    with (
        pytest.raises(OSError, match="Input/output error"),
        parquet.open_file(str(path), "a") as file,
    ):
        list(parquet.read_rows(file, ["text"]))


def test_a_disk_that_fails_is_no_damage_of_an_array_record_file(tmp_path, texts, monkeypatch):
    build(texts, tmp_path / "out")
    path = next((tmp_path / "out").rglob("*.arrayrecord"))
    with ArrayRecordFile(path) as reader:
        assert len(reader.read(0, 1)) == 1

        class Broken:
            ok, num_records, close = reader._reader.ok, reader._reader.num_records, reader._reader.close

            def read(self, *_: int) -> None:
                raise RuntimeError(f"{os.strerror(errno.EIO)}: pread() failed reading from {path}")

        monkeypatch.setattr(reader, "_reader", Broken())
        with pytest.raises(OSError, match="Input/output error"):
            reader.read(0, 1)
