"""``build --update`` and ``gatokit gc`` on ``gs://``: what changed is built, the rest keeps its generation, and an
update that is cut off leaves the build that was there."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gatokit.cli.main import main
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build
from gatokit.pipelines.shards.ownership import collect
from gatokit.schemas.errors import ConfigError, DataError
from tests.google.fixtures import Bucket
from tests.google.server import Request, Response
from tests.pipelines.conftest import exact_vocabulary

__all__ = ["exact_vocabulary"]
OUT = "gs://bucket/out"
TEXT = "  - {name: text, kind: text, source: 'text/*.jsonl'}\n"
MORE = "  - {name: more, kind: text, source: 'more.jsonl'}\n"
TEMPORARY = f".tmp-{'0' * 32}-"


def lines(name: str, count: int = 3) -> bytes:
    return b"".join(json.dumps({"text": f"{name} {line} " * 50}).encode() + b"\n" for line in range(count))


@pytest.fixture
def sources(bucket: Bucket, exact_vocabulary: Path) -> Bucket:
    """Texts in four files that make a shard each, another file, and a built directory of the first."""
    bucket.put("in/text.model", exact_vocabulary.read_bytes())
    for number in range(4):
        bucket.put(f"in/text/{number}.jsonl", lines(f"text {number}"))
    bucket.put("in/more.jsonl", lines("more"))
    configure(bucket, TEXT)
    build("gs://bucket/in/c.yaml", OUT)
    return bucket


def configure(bucket: Bucket, *datasets: str) -> None:
    config = f"vocabulary: text.model\nshard_bytes: 1500\ndatasets:\n{''.join(datasets)}"
    bucket.put("in/c.yaml", config.encode())


def generations(bucket: Bucket) -> dict[str, int]:
    """Of every shard."""
    names = [name for name in bucket.names("out/") if name.endswith(".arrayrecord")]
    return {name: bucket.blob(name).generation for name in names}


def digests(bucket: Bucket, prefix: str) -> dict[str, str]:
    """Of every object but the log."""
    names = [name for name in bucket.names(prefix) if not name.endswith("build.log.jsonl") and "/.scan/" not in name]
    return {name.removeprefix(prefix): hashlib.sha256(bucket.get(name)).hexdigest() for name in names}


def is_fresh(bucket: Bucket) -> bool:
    """Whether the directory has the bytes of a build that began with nothing."""
    build("gs://bucket/in/c.yaml", "gs://bucket/fresh")
    return digests(bucket, "out/") == digests(bucket, "fresh/")


def downloaded(bucket: Bucket, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    for name in bucket.names("out/"):
        path = to / name.removeprefix("out/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.get(name))
    return to


def test_what_changed_is_built_and_the_rest_is_not_touched(sources: Bucket, tmp_path: Path) -> None:
    before = generations(sources)
    assert len(before) == 4
    sources.put("in/text/3.jsonl", lines("next 3"))
    with pytest.raises(ConfigError, match="holds a finished build of other source files; --update builds what changed"):
        build("gs://bucket/in/c.yaml", OUT)
    sources.put("in/text/4.jsonl", lines("text 4"))
    configure(sources, TEXT, MORE)
    result = build("gs://bucket/in/c.yaml", OUT, update=True)
    assert (result.built, result.reused, result.removed) == (3, 3, 1)
    after = generations(sources)
    assert len(before.items() & after.items()) == 3
    assert len(after) == 6
    assert is_fresh(sources)
    assert verify(downloaded(sources, tmp_path / "out")) == []


@pytest.mark.parametrize(
    "upload",
    [
        pytest.param(".arrayrecord", marks=pytest.mark.slow),
        pytest.param(".index.parquet", marks=pytest.mark.slow),
        "manifest.json",
    ],
)
def test_an_update_that_is_cut_off_leaves_the_build_that_was_there(
    sources: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upload: str
) -> None:
    manifest, before = sources.get("out/manifest.json"), generations(sources)
    sources.put("in/text/1.jsonl", lines("next 9"))
    answer = sources.server.answer

    def fails(request: Request) -> Response:
        """An outage for uploads of this name, which stands in their body."""
        is_upload = "uploadType" in request.query and f'{upload}"'.encode() in request.body
        return Response.error(503, "injected") if is_upload else answer(request)

    with monkeypatch.context() as context:
        context.setattr(sources.server, "answer", fails)
        with pytest.raises(DataError, match=rf"^gs://bucket/out/\S*{upload}: "):
            build("gs://bucket/in/c.yaml", OUT, update=True)
    assert sources.get("out/manifest.json") == manifest
    assert before.items() <= generations(sources).items()
    assert "out/.lock" not in sources.names("out/")
    whole = downloaded(sources, tmp_path / "out")
    shutil.rmtree(whole / ".work", ignore_errors=True)
    collect(whole)
    assert verify(whole) == []
    build("gs://bucket/in/c.yaml", OUT, update=True)
    assert is_fresh(sources)


def test_gc_removes_what_dead_attempts_left(sources: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    sound = digests(sources, "out/")
    stem = "text-0123456789abcdef"
    left = {
        f"{TEMPORARY}manifest.json": 3,
        f"text/{stem}.arrayrecord": 7,
        f"text/{stem}.index.parquet": 9,
        "gone/gone-0123456789abcdef.index.parquet": 1,
        "gone/dataset.json": 4,
    }
    for path, size in left.items():
        sources.put(f"out/{path}", bytes(size))
    began = json.dumps({"event": "build started", "datasets": ["text", "gone"]}).encode() + b"\n"
    sources.put("out/build.log.jsonl", sources.get("out/build.log.jsonl") + began)
    sources.put("out/.work/scan/u.arrow", bytes(11))
    sources.put("out/notes/mine.txt", b"mine")
    mine = {".work/scan/u.arrow", "notes/mine.txt"}
    for words, found, stays in (
        (["--dry-run"], left, mine | left.keys()),
        ([], left, mine),
        (["--all"], {".work/scan/u.arrow": 11}, {"notes/mine.txt"}),
        (["--all"], {}, {"notes/mine.txt"}),
    ):
        capsys.readouterr()
        assert main(["gc", OUT, "--json", *words]) == 0
        said = json.loads(capsys.readouterr().out)
        named = {file["path"]: file["bytes"] for file in said["files"]}
        assert {path: size for path, size in named.items() if not path.startswith(".scan/")} == found
        after = digests(sources, "out/")
        assert after.keys() == sound.keys() | stays
        assert {name: after[name] for name in sound} == sound
    with pytest.raises(ConfigError, match=r"^gs://bucket/in is no directory of a build or scan"):
        collect("gs://bucket/in")


KILLED = """
import os, signal
from gatokit.storage import gcs
from gatokit.pipelines.run import build
real = gcs.upload
def upload(local, path):
    real(local, path)
    if str(path).endswith(".arrayrecord"):
        os.kill(os.getpid(), signal.SIGKILL)
gcs.upload = upload
build("gs://bucket/in/c.yaml", "gs://bucket/out", update=True)
"""


def test_after_a_killed_update_the_same_machine_goes_on(sources: Bucket, tmp_path: Path) -> None:
    """Killed between the upload of a shard and that of its index."""
    manifest = sources.get("out/manifest.json")
    sources.put("in/text/2.jsonl", lines("next 9"))
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "out/.lock" in sources.names("out/")
    assert sources.get("out/manifest.json") == manifest
    assert len(generations(sources)) == 5
    assert main(["gc", OUT, "--all"]) == 0
    assert len(generations(sources)) == 4
    build("gs://bucket/in/c.yaml", OUT, update=True)
    assert is_fresh(sources)
