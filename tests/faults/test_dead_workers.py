"""Processes that die at the worst moment: killed while they read, write or rename, or crashed by what they decode."""

import json
import os
import select
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build
from tests.faults.conftest import HANG_SECONDS

KILLS = {
    "start": "if WORKER: os.register_at_fork(after_in_child=lambda: once() and die())",
    "scan": """
if WORKER:
    from gatokit.pipelines.documents import reader as documents
    real = documents._batch
    documents._batch = lambda rows: die() if once() else real(rows)
""",
    "read": """
if WORKER:
    from gatokit.pipelines.documents import tokenize as documents
    real = documents.DocumentShardBuilder._stored
    def stored(self, columns, rows):
        for number, item in enumerate(real(self, columns, rows)):
            if number == 5 and once():
                die()
            yield item
    documents.DocumentShardBuilder._stored = stored
""",
    "write": """
if WORKER:
    from gatokit.pipelines.shards import writer as shards
    real = shards.ShardWriter.add
    def add(self, *arguments, **options):
        where = real(self, *arguments, **options)
        if where[1] == 5 and once():
            die()
        return where
    shards.ShardWriter.add = add
""",
    "server": """
if WORKER:
    from gatokit.pipelines.shards import writer as shards
    real = shards.ShardWriter.add
    server = os.getpid()
    def add(self, *arguments, **options):
        if once():
            os.kill(server, signal.SIGKILL)
        return real(self, *arguments, **options)
    shards.ShardWriter.add = add
""",
    "rename of a shard": """
if WORKER:
    real = os.replace
    os.replace = lambda a, b: die() if str(b).endswith(".arrayrecord") and once() else real(a, b)
""",
    "rename of an index": """
if WORKER:
    real = os.replace
    os.replace = lambda a, b: die() if str(b).endswith(".index.parquet") and once() else real(a, b)
""",
}


@pytest.fixture
def fresh(tmp_path, texts, contents):
    build(texts, tmp_path / "fresh")
    return contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    "kill",
    [pytest.param(name, marks=[pytest.mark.slow] if name != "write" else []) for name in KILLS],
)
def test_a_killed_worker_costs_nothing_but_time(kill, tmp_path, texts, fresh, gatokit, contents):
    """Beam's own runner would wait for it for ever."""
    out = tmp_path / "out"
    said = gatokit("build", texts, "--out", out, "--workers", 2, "--json", fault=KILLS[kill]).json
    assert said["built"] == sum(path.endswith(".arrayrecord") for path in fresh)
    assert contents(out) == fresh
    events = [json.loads(line) for line in (out / "build.log.jsonl").read_text().splitlines()]
    assert [event["message"].split(";")[0] for event in events if event["event"] == "worker died"] == [
        f"a worker process ended with status {255 if kill == 'server' else -9}"  # multiprocessing's word for unknown
    ]


MISSING_LIBRARY = """
if WORKER:
    from apache_beam.runners.worker import sdk_worker_main
    sdk_worker_main.main = lambda _: (os.write(2, b"a library is missing"), os._exit(3))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("if WORKER: os.register_at_fork(after_in_child=die)", -9),
        (MISSING_LIBRARY, 3),
        ("if WORKER: os._exit(3)", 255),  # the server itself, of which multiprocessing knows no status
    ],
)
def test_workers_that_die_again_and_again_end_in_a_sentence(fault, status, tmp_path, texts, fresh, gatokit, contents):
    out = tmp_path / "out"
    sentence = gatokit("build", texts, "--out", out, "--workers", 2, fault=fault).sentence
    log = out / ".work" / "workers.log"
    assert sentence.startswith(f"a worker process ended with status {status}; {log} has its last words. ")
    assert (status == 3) == ("a library is missing" in log.read_text())
    assert "3 times in a row nothing got done: take fewer --workers if memory is short" in sentence
    assert not (out / "manifest.json").exists()
    build(texts, out)
    assert contents(out) == fresh


def test_nothing_outlives_a_killed_command(tmp_path, texts, command):
    """Its workers are in the middle of a shard, and know of nothing."""
    fault = """
if WORKER:
    import threading
    held = os.open({held!r}, os.O_WRONLY)
    from gatokit.pipelines.shards import writer as shards
    def add(self, *arguments, **options):
        os.write(held, b"+")
        threading.Event().wait()
    shards.ShardWriter.add = add
"""
    held = tmp_path / "held"
    os.mkfifo(held)
    words = ("build", texts, "--out", tmp_path / "out", "--workers", 2)
    with command(*words, fault=fault.format(held=str(held))) as process, open(held, "rb", buffering=0) as file:
        assert read(file) + read(file) == b"++"
        os.kill(process.pid, signal.SIGKILL)
        assert read(file) == b""


def read(file):
    """A byte, or none when nobody holds the other end any more."""
    assert select.select([file], [], [], HANG_SECONDS)[0]
    return file.read(1)


# --- decoders that crash -------------------------------------------------------------------------------------

POISON = """
import cv2, ctypes
real = cv2.imdecode
def imdecode(data, *arguments):
    found = real(data, *arguments)
    if found is not None and found.shape[:2] == (40, 50) and found[0, 0].max() in {poisonous!r}:
        {crash}
    return found
cv2.imdecode = imdecode
"""
CRASH = "ctypes.string_at(0)"


def dropped(out: Path) -> dict[str, tuple[str, str]]:
    rows = [row for path in sorted(out.rglob("*.index.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 24
    return {row["episode_id"]: (row["reason"], row["detail"]) for row in rows if not row["kept"]}


def test_a_picture_that_crashes_its_decoder_is_a_row(tmp_path, captions, gatokit):
    """The build goes on by itself."""
    fault = POISON.format(poisonous={7, 19}, crash=CRASH)
    said = gatokit("build", captions, "--out", tmp_path / "out", "--workers", 2, "--json", fault=fault).json
    assert said["rejected"] == {"c": {"crashed_decoder": 2}}
    detail = ("crashed_decoder", "its decoder ended in SIGSEGV")
    assert dropped(tmp_path / "out") == {f"captions.json#{number}": detail for number in (7, 19)}
    assert verify(tmp_path / "out") == []


@pytest.mark.slow
def test_without_workers_the_next_run_isolates_the_shard(tmp_path, captions, gatokit, contents):
    fault = POISON.format(poisonous={7, 19}, crash=CRASH)
    assert gatokit("build", captions, "--out", tmp_path / "out", "--workers", 2, fault=fault).status == 0
    runs = 0
    while (done := gatokit("build", captions, "--out", tmp_path / "alone", fault=fault)).status < 0:
        assert done.status == -11
        runs += 1
    assert done.status == 0, done.err
    assert 1 <= runs <= 2
    assert contents(tmp_path / "alone") == contents(tmp_path / "out")


@pytest.mark.slow
def test_crashes_count_against_the_error_budget(tmp_path, captions, gatokit):
    fault = POISON.format(poisonous=set(range(3, 15)), crash=CRASH)
    sentence = gatokit("build", captions, "--out", tmp_path / "out", "--workers", 2, fault=fault).sentence
    assert sentence.startswith(
        "c: 12 of 24 documents are bad, more than the 10 that max_bad_fraction 0.01 allows: 12 crash"
    )
    assert "its decoder ended in SIGSEGV" in sentence
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_a_picture_that_exhausts_memory_is_named(tmp_path, captions, gatokit):
    """The kernel kills whoever takes too much: that is no property of the picture, so it is no row."""
    fault = POISON.format(poisonous={7}, crash="die()")
    sentence = gatokit("build", captions, "--out", tmp_path / "out", "--workers", 2, fault=fault).sentence
    assert sentence == (
        "c: captions.json#7 (in captions.json) was ended by SIGKILL while it was made, probably for lack of memory: "
        "take fewer --workers or a machine with more, or leave it out of the source"
    )


@pytest.mark.slow
def test_a_crash_of_no_single_row_is_named_by_its_shard(tmp_path, captions, gatokit):
    fault = """
if WORKER or CHILD:
    from gatokit.pipelines.shards import writer as shards
    shards.ShardWriter.finish = lambda self: die(signal.SIGABRT)
"""
    sentence = gatokit("build", captions, "--out", tmp_path / "out", "--workers", 2, fault=fault).sentence
    assert sentence.startswith("c: making the shard c-")
    assert sentence.endswith(" of captions.json ends in SIGABRT, no single row does")


def test_a_file_that_crashes_its_scan_is_named(tmp_path, texts, gatokit, fresh, contents):
    fault = """
if WORKER or CHILD:
    from gatokit.pipelines.documents import text as lines
    real = lines.LinesFile.scan
    def scan(self, max_bytes):
        if self.name.endswith("6.jsonl"):
            die(signal.SIGSEGV)
        return real(self, max_bytes)
    lines.LinesFile.scan = scan
"""
    out = tmp_path / "out"
    sentence = gatokit("build", texts, "--out", out, "--workers", 2, fault=fault).sentence
    assert sentence == (
        "t: scanning 6.jsonl ends in SIGSEGV: it crashes the library that reads it. Mend the file or leave it out of "
        "the source"
    )
    build(texts, out)
    assert contents(out) == fresh
