"""A build from ``gs://`` to ``gs://``: every format of source, and the bytes of a build on a disk."""

import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatokit.pipelines.run import build, scan
from gatokit.schemas.errors import ConfigError, DataError
from tests.google.fixtures import Bucket
from tests.pipelines.conftest import exact_vocabulary
from tests.pipelines.documents.test_documents_kinds import config, out, source

__all__ = ["config", "exact_vocabulary", "out", "source"]
LOG = "build.log.jsonl"


@pytest.fixture
def sources(bucket: Bucket, config: Path) -> Bucket:
    """The bucket with everything that the config reads, and the config, below ``in/``."""
    root = config.parent
    for directory, _, names in os.walk(root, followlinks=True):
        for name in names:
            path = Path(directory, name)
            bucket.put(f"in/{path.relative_to(root)}", path.read_bytes())
    return bucket


def known(name: str, data: bytes) -> object:
    """The bytes of a file; of indexes and manifests all that they say but the generations of objects."""
    if name.endswith(".index.parquet"):
        table = pq.read_table(pa.BufferReader(data))
        metadata = {key: value for key, value in table.schema.metadata.items() if key != b"gatokit.generations"}
        return table.to_pylist(), metadata
    if name.endswith("manifest.json"):
        content = json.loads(data)
        del content["digest"]
        for item in content["datasets"]:
            for split in item["splits"]:
                split.pop("generations", None)
        content["files"] = [file if "index" not in file["path"] else file["path"] for file in content["files"]]
        return content
    return hashlib.sha256(data).hexdigest()


def stored(bucket: Bucket, prefix: str) -> dict[str, object]:
    """What every object holds but the log and kept rows of scans."""
    names = [name for name in bucket.names(prefix) if not name.endswith(LOG) and "/.scan/" not in name]
    return {name.removeprefix(prefix): known(name, bucket.get(name)) for name in names}


def contents(out: Path) -> dict[str, object]:
    """The same of files."""
    paths = [path for path in out.rglob("*") if path.is_file() and path.name != LOG and ".scan" not in path.parts]
    return {path.relative_to(out).as_posix(): known(path.name, path.read_bytes()) for path in paths}


def test_an_index_names_the_generations_that_were_read(sources: Bucket) -> None:
    build("gs://bucket/in/build.yaml", "gs://bucket/out", only="notes")
    manifest = json.loads(sources.get("out/manifest.json"))
    expected = {"notes.jsonl": sources.blob("in/text/notes.jsonl").generation}
    splits = manifest["datasets"][0]["splits"]
    assert len(splits) > 1
    for split in splits:
        assert split["generations"] == expected
        metadata = pq.read_schema(pa.BufferReader(sources.get(f"out/notes/{split['index']}"))).metadata
        assert json.loads(metadata[b"gatokit.generations"]) == expected


def test_a_build_on_objects_has_the_bytes_of_one_on_a_disk(sources: Bucket, out: Path) -> None:
    moved: list[tuple[str, int, int]] = []
    result = build("gs://bucket/in/build.yaml", "gs://bucket/out", progress=lambda *step, **_: moved.append(step))
    assert stored(sources, "out/") == contents(out)
    assert len(stored(sources, "out/")) > 30
    assert sum(dataset.kept for dataset in result.manifest.datasets) > 100
    assert moved[-1][0] == "build"
    assert moved[-1][1] == moved[-1][2]
    assert b'"event": "build finished"' in sources.get(f"out/{LOG}")

    before = {name: sources.blob(name).generation for name in sources.names("out/") if name.endswith("record")}
    assert before
    build("gs://bucket/in/build.yaml", "gs://bucket/out")
    assert {name: sources.blob(name).generation for name in before} == before
    with pytest.raises(ConfigError, match="holds a finished build; choose another directory"):
        scan("gs://bucket/in/build.yaml", "gs://bucket/out")


def test_a_build_on_objects_survives_a_bad_day(sources: Bucket, out: Path) -> None:
    busy = sources.server.fail(2, status=503, pattern="in/build")
    slower = sources.server.fail(2, status=429, pattern="out/.work")
    truncated = sources.server.truncate(3, keep=100, pattern="tar.*alt=media")
    dropped = sources.server.drop(2, after=50)
    build("gs://bucket/in/build.yaml", "gs://bucket/out", only="captions")
    assert [fault.hits for fault in (busy, slower, truncated, dropped)] == [2, 2, 3, 2]
    expected = contents(out)
    found = stored(sources, "out/captions/")
    assert found == {name.removeprefix("captions/"): digest for name, digest in expected.items() if "captions/" in name}
    assert len(found) >= 4


def test_an_outage_is_one_error_and_the_build_goes_on_afterwards(sources: Bucket, out: Path) -> None:
    outage = sources.server.fail(1_000_000, pattern="uploadType=resumable")
    with pytest.raises(DataError, match=r"gs://bucket/out/captions/captions-\w+\.arrayrecord: "):
        build("gs://bucket/in/build.yaml", "gs://bucket/out", only="captions")
    assert outage.hits > 1
    assert "out/manifest.json" not in sources.names("out/")
    assert "out/.lock" not in sources.names("out/")
    sources.server.heal()
    build("gs://bucket/in/build.yaml", "gs://bucket/out", only="captions")
    assert {name: digest for name, digest in contents(out).items() if name.startswith("captions/")} == {
        f"captions/{name}": digest for name, digest in stored(sources, "out/captions/").items()
    }


def test_disk_and_objects_mix(sources: Bucket, config: Path, out: Path, tmp_path: Path) -> None:
    text = config.read_text().replace("text/notes.jsonl", "gs://bucket/in/text/notes.jsonl")
    mixed = config.with_name("mixed.yaml")
    mixed.write_text(text.replace("vocabulary: text.model", "vocabulary: gs://bucket/in/text.model"))
    build(mixed, tmp_path / "here", only="notes")
    here = {name: digest for name, digest in contents(tmp_path / "here").items() if name.startswith("notes/")}
    assert here == {name: digest for name, digest in contents(out).items() if name.startswith("notes/")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("text/notes.jsonl", "gs://bucket/in/nothing/*"), "gs://bucket/in/nothing/\\* matches nothing"),
        (("coco/images", "gs://bucket/in/nothing"), "gs://bucket/in/nothing does not exist; give the folder"),
        (("text.model", "gs://bucket/in/no.model"), "vocabulary: gs:/+bucket/in/no.model does not exist"),
        (("recorded/babyai/*", "gs://bucket/in/text"), "no directory below gs://bucket/in/text holds a source"),
    ],
)
def test_what_is_not_there_is_named(
    sources: Bucket, config: Path, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    path = config.with_name("changed.yaml")
    path.write_text(config.read_text().replace(*change))
    with pytest.raises(ConfigError, match=said):
        build(path, "gs://bucket/out")
    assert sources.names("out/") == []


def test_a_log_of_envlogger_is_read_from_a_disk(sources: Bucket, config: Path) -> None:
    sources.put("in/log/metadata.riegeli", b"")
    path = config.with_name("changed.yaml")
    path.write_text(config.read_text().replace("recorded/babyai/*", "gs://bucket/in/log"))
    with pytest.raises(ConfigError, match=r"^gs://bucket/in/log: EnvLogger's own reader reads disks alone; mount"):
        build(path, "gs://bucket/out")


def test_workers_elsewhere_need_what_they_can_reach(sources: Bucket, config: Path, tmp_path: Path) -> None:
    beam = ["--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://bucket/tmp"]
    here = tmp_path / "out"
    with pytest.raises(ConfigError, match=f"^--out {here}: lies on this machine, where .* give a gs:// path$"):
        build("gs://bucket/in/build.yaml", here, beam_arguments=beam)
    with pytest.raises(ConfigError, match=rf"^datasets\[0\]: {config.parent}/text/notes.jsonl lies on this machine"):
        build(config, "gs://bucket/out", beam_arguments=beam)
    assert sources.names("out/") == []
    assert not here.exists()
