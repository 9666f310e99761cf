"""Objects as files: listings, ranged reads, uploads and locks, with what a service may do in between."""

import glob
import io
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatokit.schemas.errors import ConfigError, DataError, MalformedError
from gatokit.storage import files, gcs
from gatokit.storage.gcs import describe
from gatokit.storage.lock import hold
from tests.google.fixtures import Bucket

DATA = bytes(range(251)) * 4000


def test_a_path_may_have_lost_a_slash() -> None:
    assert gcs.canonical(Path("gs://bucket/a") / "b c") == "gs://bucket/a/b c"
    assert [files.is_remote(path) for path in ("gs://b/x", Path("gs://b/x"), "/gs:/b", "gs", "s3://b/x")] == [
        *(True, True),
        *(False, False, False),
    ]
    with pytest.raises(ConfigError, match="gs:///x: names no bucket; write gs://BUCKET/NAME"):
        gcs.canonical("gs:///x")


def test_what_was_written_is_read(bucket: Bucket, tmp_path: Path) -> None:
    files.write_atomically("gs://bucket/a/b.txt", b"whole")
    assert bucket.get("a/b.txt") == b"whole"
    assert files.read_bytes(Path("gs://bucket/a/b.txt")) == b"whole"
    assert files.size("gs://bucket/a/b.txt") == 5
    assert files.version("gs://bucket/a/b.txt") == bucket.blob("a/b.txt").generation
    assert files.exists("gs://bucket/a/b.txt")
    assert not files.exists("gs://bucket/a")
    assert files.is_file("gs://bucket/a/b.txt")
    assert files.is_directory("gs://bucket/a")
    with files.local_copy("gs://bucket/a/b.txt") as copy:
        assert (Path(copy).name, Path(copy).read_bytes()) == ("b.txt", b"whole")
    assert not Path(copy).exists()
    files.append_line("gs://bucket/log", "one")
    files.append_line("gs://bucket/log", "zwei ö")
    assert bucket.get("log") == "one\nzwei ö\n".encode()
    files.remove("gs://bucket/log")
    files.remove("gs://bucket/log")
    assert bucket.names() == ["a/b.txt"]
    with pytest.raises(FileNotFoundError, match=r"^gs://bucket/log: does not exist$"):
        files.read_bytes("gs://bucket/log")


def test_a_large_file_goes_up_in_parts_and_the_local_one_is_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "_PART_BYTES", 256 * 1024)
    temporary = files.temporary_beside("gs://bucket/out/shard")
    Path(temporary).write_bytes(DATA * 10)
    files.commit(temporary, "gs://bucket/out/shard")
    assert bucket.get("out/shard") == DATA * 10
    assert not Path(temporary).exists()
    assert bucket.server.open_uploads == 0


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(DATA) + 9), st.integers(0, 200_000)), min_size=1, max_size=12))
def test_ranges_are_those_of_the_content(bucket: Bucket, reads: list[tuple[int, int]]) -> None:
    bucket.put("data", DATA)
    with files.ranges("gs://bucket/data") as file:
        assert file.size == len(DATA)
        for offset, length in reads:
            assert file.read_at(offset, length) == DATA[offset : offset + length]


def test_reading_on_takes_few_requests(bucket: Bucket) -> None:
    bucket.put("data", DATA)
    with io.BufferedReader(files.stream("gs://bucket/data"), 1 << 12) as file:  # type: ignore[type-var]
        assert file.read(10) == DATA[:10]
        before = len(bucket.server.requests())
        assert file.read() == DATA[10:]
        assert len(bucket.server.requests()) - before < 8
        assert file.seek(-5, io.SEEK_END) == len(DATA) - 5
        assert file.read() == DATA[-5:]


def test_an_object_that_was_replaced_is_not_read_on(bucket: Bucket) -> None:
    bucket.put("data", DATA)
    with files.ranges("gs://bucket/data") as file:
        assert file.read_at(0, 10) == DATA[:10]
        bucket.put("data", DATA)
        with pytest.raises(OSError, match=r"^gs://bucket/data: "):
            file.read_at(500_000, 10)


NAMES = ["a/1.tar", "a/2.tar", "a/.3.tar", "a/b/4.tar", "a/b/c/5.tar", "a/.h/6.tar", "x[1]/7.tar", "x1/8.tar", "z.tar"]


@pytest.mark.parametrize(
    "pattern",
    [
        *("a/*.tar", "a/*", "*", "**/*.tar", "a/**", "a/**/*.tar", "a/?.tar", "a/[12].tar", "a/[!1].tar", "a/.*"),
        *("x[[]1]/*", "a/1.tar", "a", "a/b/", "no*", "nothing", "*/b", "a/*/c/*", "a/**/c/**", "**"),
    ],
)
def test_patterns_match_as_on_a_disk(bucket: Bucket, tmp_path: Path, pattern: str) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        bucket.put(f"root/{name}", b"x")
    here = {str(Path(path).relative_to(tmp_path)) for path in glob.glob(f"{tmp_path}/{pattern}", recursive=True)}
    there = {
        path.removeprefix("gs://bucket/root").strip("/") or "."
        for path in files.matching(f"gs://bucket/root/{pattern}")
    }
    assert there == here


def test_thousands_of_objects_come_in_pages(bucket: Bucket) -> None:
    for number in range(3210):
        bucket.put(f"many/{number:05d}", b"x" * (number % 7))
    bucket.put("many-more", b"")
    found = list(gcs.below("gs://bucket/many"))
    assert [item.path for item in found] == [f"gs://bucket/many/{number:05d}" for number in range(3210)]
    assert [item.size for item in found] == [number % 7 for number in range(3210)]
    assert files.names("gs://bucket") == ["many", "many-more"]
    wanted = {Path(f"gs://bucket/many/{number:05d}") for number in (1, 3209, 3210)}
    assert files.existing(wanted) == {Path("gs://bucket/many/00001"), Path("gs://bucket/many/03209")}


@pytest.mark.parametrize("name", ["../x", "a/../x", "a/..", "./x", "a/./x", "a/x\n", "\x1b[31m", "a\x9b"])
def test_a_name_that_is_no_path_is_not_listed(bucket: Bucket, name: str) -> None:
    bucket.put("in/a.jsonl", b"")
    bucket.put(f"in/{name}", b"")
    for listed in (lambda: list(gcs.below("gs://bucket/in")), lambda: gcs.matching("gs://bucket/in/**/*.jsonl")):
        with pytest.raises(
            MalformedError, match=re.escape(f"an object with the name {f'in/{name}'!r}, which is no path")
        ):
            listed()


def test_a_name_with_dots_and_strange_letters_is_listed(bucket: Bucket) -> None:
    names = sorted(["in/.hidden", "in/..x", "in/a..", "in/a b/語\u202e", "in//empty", "in/..."])
    for name in names:
        bucket.put(name, b"")
    assert [item.path for item in gcs.below("gs://bucket/in")] == [f"gs://bucket/{name}" for name in names]


def test_one_holds_a_directory_at_a_time(bucket: Bucket) -> None:
    with hold("gs://bucket/out"):
        with (
            pytest.raises(
                DataError,
                match=rf"^gs://bucket/out is in use by process {os.getpid()} on {socket.gethostname()} since "
                r"20\S+Z; wait for it or, where that one is dead, remove its lock: "
                r"gcloud storage rm gs://bucket/out/\.lock$",
            ),
            hold("gs://bucket/out"),
        ):
            raise AssertionError
        assert bucket.names() == ["out/.lock"]
    assert bucket.names() == []
    with hold(Path("gs://bucket/out")):
        pass


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its end."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def lock_of(process: int, **changed: str) -> bytes:
    """The lock of another process of this machine."""
    made = describe(process) | {"token": "0", "since": "2026-11-23T00:00:00Z"}
    return json.dumps(made | changed).encode()


@pytest.mark.parametrize("reaped", [False, True])
def test_the_lock_of_a_dead_process_of_this_machine_goes(
    bucket: Bucket, sleeper: subprocess.Popen[bytes], reaped: bool
) -> None:
    bucket.put("out/.lock", lock_of(sleeper.pid))
    with pytest.raises(DataError, match=f"in use by process {sleeper.pid} on "), hold("gs://bucket/out"):
        raise AssertionError
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
    with hold("gs://bucket/out"):
        assert json.loads(bucket.get("out/.lock"))["process"] == os.getpid()
    assert bucket.names() == []


def test_the_lock_of_a_process_whose_number_another_has_now_goes(
    bucket: Bucket, sleeper: subprocess.Popen[bytes]
) -> None:
    bucket.put("out/.lock", lock_of(sleeper.pid, started="1"))
    with hold("gs://bucket/out"):
        pass
    assert bucket.names() == []


@pytest.mark.parametrize("lock", [{"machine": "another"}, {"machine": ""}, None])
def test_other_locks_stay(bucket: Bucket, sleeper: subprocess.Popen[bytes], lock: dict[str, str] | None) -> None:
    content = b"{}" if lock is None else lock_of(sleeper.pid, **lock)
    bucket.put("out/.lock", content)
    sleeper.kill()
    sleeper.wait()
    who = "another gatokit" if lock is None else f"process {sleeper.pid} on {socket.gethostname()} since 2026-11-23T"
    said = f"^gs://bucket/out is in use by {who}.*; wait for it or, .*: gcloud storage rm gs://bucket/out/.lock$"
    with pytest.raises(DataError, match=said), hold("gs://bucket/out"):
        raise AssertionError
    assert bucket.get("out/.lock") == content


def test_the_lock_of_a_lost_process_of_the_same_owner_goes(
    bucket: Bucket, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = lock_of(sleeper.pid, machine="another", owner="job 1")
    bucket.put("out/.lock", lost)
    for owner in ("", "job 2"):
        monkeypatch.setenv("GATOKIT_LOCK_OWNER", owner)
        with pytest.raises(DataError, match="in use by process"), hold("gs://bucket/out"):
            raise AssertionError
    assert bucket.get("out/.lock") == lost
    monkeypatch.setenv("GATOKIT_LOCK_OWNER", "job 1")
    with hold("gs://bucket/out"):
        assert json.loads(bucket.get("out/.lock"))["process"] == os.getpid()
    assert bucket.names() == []


def test_of_two_that_see_a_dead_one_one_gets_its_lock(bucket: Bucket, sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    for _ in range(5):
        bucket.put("out/.lock", lock_of(sleeper.pid, started="1"))
        together, held, refused = threading.Barrier(2, timeout=30), [], []

        def work(together: threading.Barrier, held: list[int], refused: list[str]) -> None:
            together.wait()
            try:
                with hold("gs://bucket/out"):
                    held.append(1)
                    assert len(held) == 1
                    together.wait()
            except DataError as error:
                refused.append(str(error))
                together.wait()

        threads = [threading.Thread(target=work, args=(together, held, refused)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(held), len(refused)) == (1, 1)
        assert bucket.names() == []


def test_an_answer_that_was_lost_is_asked_for_again(bucket: Bucket) -> None:
    fault = bucket.server.lose_answer(pattern="uploadType=multipart")
    with hold("gs://bucket/out"):
        assert fault.hits == 1
        assert bucket.names() == ["out/.lock"]
    assert bucket.names() == []


def test_a_lock_that_was_taken_away_is_not_deleted_from_its_new_owner(bucket: Bucket) -> None:
    with hold("gs://bucket/out"):
        bucket.put("out/.lock", b"another")
    assert bucket.get("out/.lock") == b"another"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_service_is_asked_again(bucket: Bucket, tmp_path: Path, status: int) -> None:
    bucket.put("data", DATA)
    server = bucket.server
    for work in (
        lambda: files.read_bytes("gs://bucket/data") == DATA,
        lambda: [item.size for item in gcs.below("gs://bucket")] == [len(DATA)],
        lambda: gcs.ObjectFile("gs://bucket/data").read_at(5, 7) == DATA[5:12],
        lambda: files.write_atomically("gs://bucket/other", b"x") is None and bucket.get("other") == b"x",
        lambda: files.remove("gs://bucket/other") is None and bucket.names() == ["data"],
    ):
        fault = server.fail(2, status=status)
        assert work()
        assert fault.hits == 2


def test_a_body_that_ends_early_is_fetched_again(bucket: Bucket) -> None:
    bucket.put("data", DATA)
    for work in (
        lambda: gcs.ObjectFile("gs://bucket/data").read_at(100, 300_000) == DATA[100:300_100],
        lambda: files.read_bytes("gs://bucket/data") == DATA,
    ):
        fault = bucket.server.truncate(2, keep=1000)
        assert work()
        assert fault.times == 0


def test_slow_answers_are_waited_for(bucket: Bucket) -> None:
    bucket.put("data", DATA[:5000])
    bucket.server.trickle()
    assert files.read_bytes("gs://bucket/data") == DATA[:5000]
    assert gcs.ObjectFile("gs://bucket/data").read_at(9, 4000) == DATA[9:4009]


def test_an_upload_that_breaks_off_goes_on(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "_PART_BYTES", 256 * 1024)
    (tmp_path / "shard").write_bytes(DATA * 10)
    fault = bucket.server.drop(2, after=100_000)
    gcs.upload(tmp_path / "shard", "gs://bucket/shard")
    assert fault.times == 0
    assert bucket.get("shard") == DATA * 10


@pytest.mark.parametrize("trusting", [False, True])
def test_bytes_that_change_on_their_way_are_never_taken(bucket: Bucket, tmp_path: Path, trusting: bool) -> None:
    bucket.server.trusting = trusting
    (tmp_path / "shard").write_bytes(DATA)
    for work in (
        lambda: gcs.upload(tmp_path / "shard", "gs://bucket/shard"),
        lambda: files.write_atomically("gs://bucket/shard", DATA),
    ):
        bucket.server.flip(at=1000)
        with pytest.raises(OSError, match="gs://bucket/shard: "):
            work()
        bucket.server.heal()
        assert bucket.names() == []
        work()
        assert bucket.get("shard") == DATA
        bucket.remove("shard")


def test_an_outage_without_end_is_an_error_that_names_the_object(bucket: Bucket) -> None:
    bucket.put("data", DATA)
    bucket.server.fail(1_000_000)
    with pytest.raises(OSError, match=r"^gs://bucket/data: "):
        files.read_bytes("gs://bucket/data")


def test_what_may_not_be_read_says_so(bucket: Bucket) -> None:
    bucket.put("data", DATA)
    bucket.server.fail(status=403, pattern="alt=media")
    with pytest.raises(DataError, match=r"^gs://bucket/data: access denied: "):
        files.read_bytes("gs://bucket/data")


def test_work_on_objects_goes_side_by_side_and_an_error_comes_out(bucket: Bucket, tmp_path: Path) -> None:
    together = threading.Barrier(8, timeout=30)
    for number in range(50):
        bucket.put(f"out/{number}", b"")
    with files.side_by_side("gs://bucket/out") as do:
        for _ in range(16):
            do(lambda: together.wait() and None)
    files.remove_tree("gs://bucket/out")
    assert bucket.names() == []
    with pytest.raises(DataError, match="gs://bucket/no: does not exist"), files.side_by_side("gs://bucket") as do:
        do(lambda: files.read_bytes("gs://bucket/no") and None)
    done: list[int] = []
    with files.side_by_side(tmp_path) as do:
        for number in range(50):
            do(lambda number=number: done.append(number))  # type: ignore[misc]
    assert sorted(done) == list(range(50))
