"""Builds and scans of format 1, whose indexes hold expert returns and thresholds, open as they did.

``helpers/format1.tar.gz`` holds a build and a scan that gatokit wrote when that was its format, their config and
sources.
"""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.loader.mixture import open_mixture
from gatokit.pipelines.run import build
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.index import INDEX, ROW_COLUMNS
from gatokit.schemas.manifest import Manifest
from gatokit.storage.folder import read_manifest

ARCHIVE = Path(__file__).parent.parent / "helpers" / "format1.tar.gz"
DATA_DIGEST = "3bb4e2efc9c2ceb3e91d0a5dbe1bec4ab80b36192fe081ca398e4564e34268c2"
"""That a run on the build recorded."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_it_verifies_and_its_manifest_is_written_as_it_was(old: Path) -> None:
    for name in ("built", "scanned"):
        assert verify(old / name) == []
        manifest = read_manifest(old / name)
        assert (manifest.version, manifest.provenance, manifest.data_digest) == (1, {}, "")
        assert manifest.to_bytes() == (old / name / "manifest.json").read_bytes()


def test_its_rows_have_the_values_of_their_tasks(old: Path) -> None:
    dataset = open_directory(old / "built").datasets["arm"]
    [split] = dataset.totals.splits
    stored = pq.read_table(dataset.path / split.index)
    assert stored.column_names[: len(ROW_COLUMNS)] == ROW_COLUMNS
    names = ["episode_id", "expert_return", "threshold"]
    assert dataset.index(names).to_pylist() == stored.select(names).to_pylist()
    rows = [(row.episode_id, row.expert_return, row.threshold) for row in dataset.rows()]
    assert rows == [tuple(row.values()) for row in stored.select(names).to_pylist()]
    assert {row.expert_return for row in dataset.rows_at([0, 15])} == {4.0, 10.0}
    assert len(list(dataset.read(dataset.rows(kept=True)))) == dataset.totals.kept == 6


def test_a_wrong_value_of_a_task_is_named(old: Path) -> None:
    for column, says in (("expert_return", "another expert return"), ("threshold", "another threshold")):
        copy = old / column
        shutil.copytree(old / "built", copy)
        for name in ("arm", "notes"):
            [path] = (copy / name).glob("*.index.parquet")
            table = pq.read_table(path)
            place = table.column_names.index(column)
            wrong = pa.array([7.5] * len(table), pa.float64())
            pq.write_table(table.set_column(place, table.schema.field(place), wrong), path)
        _seal(copy, json.loads((copy / "manifest.json").read_bytes()))
        found = [(fault.file.partition("/")[0], fault.fault) for fault in verify(copy)]
        assert any(name == "arm" and says in fault for name, fault in found), found
        assert any(name == "notes" and "documents have none" in fault for name, fault in found), found


def _seal(directory: Path, manifest: dict[str, Any]) -> None:
    from gatokit.schemas.manifest import digest, indented_json, json_digest

    for entry in manifest["files"]:
        data = (directory / entry["path"]).read_bytes()
        entry["size"], entry["blake2b"] = len(data), digest(data)
    del manifest["digest"]
    manifest["digest"] = json_digest(manifest)
    (directory / "manifest.json").write_bytes(indented_json(manifest))


def test_a_run_on_it_resumes(old: Path) -> None:
    mixture = open_mixture([old / "built"])
    assert mixture.data_digest == DATA_DIGEST
    best = mixture.datasets[0].best_episodes(1)
    assert {task: (row["return"], row["expert_return"]) for task, [row] in best.items()} == {
        "push": (4.0, 4.0),
        "reach": (10.0, 10.0),
    }


def test_an_update_gives_it_the_new_format(old: Path) -> None:
    before = (old / "built" / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match="holds a finished build of format 1, whose files have other names; --update"):
        build(old / "build.yaml", old / "built")
    assert (old / "built" / "manifest.json").read_bytes() == before
    digests = {part.blake2b for item in Manifest.parse(before, "old").datasets for s in item.splits for part in s.parts}
    result = build(old / "build.yaml", old / "built", update=True)
    assert (result.built, result.removed) == (2, 2)
    parts = [part for item in result.manifest.datasets for split in item.splits for part in split.parts]
    assert {part.blake2b for part in parts} == digests
    assert verify(old / "built") == []
    for item in result.manifest.datasets:
        assert pq.read_schema(old / "built" / item.name / item.splits[0].index).names[: len(INDEX)] == INDEX.names
    build(old / "build.yaml", old / "fresh")
    names = [sorted(path.name for path in (old / name).rglob("*") if path.is_file()) for name in ("built", "fresh")]
    assert names[0] == names[1]
