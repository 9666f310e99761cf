"""``build --update``: only what changed is built, the end is a fresh build to the byte, no kill leaves a mixture."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from gatokit.inspection import open_directory
from gatokit.inspection.preview import preview
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import Result, build, scan
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.storage.folder import read_manifest

LEFTOVER = ("no file of the manifest", "a temporary file of a build", "work of a build", "the lock of a build")
STEPS = {
    "observation": {"state": tfds.features.Tensor(shape=(2,), dtype=np.float32)},
    "action": tfds.features.Tensor(shape=(1,), dtype=np.float32),
    "reward": np.float32,
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_terminal": np.bool_,
}
TEXT = "kind: text, source: 'text/*.jsonl'"
EPISODES = "kind: episodes, source: 'episodes/*', keep: {min_return: 0.5}"


def contents(directory: Path) -> dict[str, str]:
    """Digest of every file but the log and the lock that a refused build leaves."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("build.log.jsonl", ".lock") and ".scan" not in path.parts
    }


def write_lines(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def episode(total: float) -> dict[str, Any]:
    def step(reward: float, last: bool) -> dict[str, Any]:
        return {
            "observation": {"state": np.zeros(2, np.float32)},
            "action": np.zeros(1, np.float32),
            "reward": reward,
            "is_first": False,
            "is_last": last,
            "is_terminal": last,
        }

    return {"steps": [step(total / 2, False), step(total / 2, False), step(0.0, True)]}


@pytest.fixture
def configured(tmp_path: Path, exact_vocabulary: Path) -> Callable[..., Path]:
    def write(*datasets: tuple[str, str], config: str = "") -> Path:
        lines = "".join(f"  - {{name: {name}, {dataset}}}\n" for name, dataset in datasets)
        path = tmp_path / "c.yaml"
        path.write_text(f"vocabulary: {exact_vocabulary}\nshard_bytes: 1024\n{config}\ndatasets:\n{lines}")
        return path

    return write


@pytest.fixture
def sources(tmp_path: Path, write_tfds: Callable[..., Path]) -> Path:
    """Texts in four files, and a task of twelve episodes in three, of which a changed filter keeps other ones."""
    for number in range(4):
        write_lines(tmp_path / "text" / f"{number}.jsonl", [f"text {number} {line} " * 30 for line in range(3)])
    write_lines(tmp_path / "more" / "x.jsonl", ["another dataset"] + ["and a line"] * 2)
    episodes = [episode(float(total)) for total in range(1, 13)]
    write_tfds(tmp_path / "episodes" / "reach", STEPS, episodes, max_examples_per_shard=4)
    return tmp_path


def updated(config: Path, out: Path) -> Result:
    """Updates, and compares with a fresh build."""
    result = build(config, out, update=True)
    fresh = out.with_name("fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    build(config, fresh)
    assert contents(out) == contents(fresh)
    assert verify(out) == []
    shards = sum(item.shards for item in result.manifest.datasets)
    assert result.built + result.reused == shards
    return result


def counts(result: Result) -> tuple[int, int, int]:
    return result.built, result.reused, result.removed


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.rglob("*.arrayrecord")}


def test_a_new_dataset_is_built_and_the_others_stay(sources, configured):
    out = sources / "out"
    first = build(configured(("text", TEXT)), out)
    before = times(out)
    result = updated(configured(("text", TEXT), ("more", "kind: text, source: more/x.jsonl")), out)
    assert counts(result) == (1, first.built, 0)
    assert before.items() <= times(out).items()


def test_a_removed_dataset_goes_with_its_folder(sources, configured):
    out = sources / "out"
    more = "kind: text, source: more/x.jsonl"
    first = build(configured(("text", TEXT), ("more", more)), out)
    result = updated(configured(("text", TEXT)), out)
    assert counts(result) == (0, first.built - 1, 1)
    assert not (out / "more").exists()


def test_a_changed_filter_builds_the_shards_that_it_concerns(sources, configured):
    out = sources / "out"
    first = build(configured(("reach", EPISODES), ("text", TEXT)), out)
    shards = {item.name: item.shards for item in first.manifest.datasets}
    result = updated(configured(("reach", EPISODES.replace("0.5", "0.9")), ("text", TEXT)), out)
    assert result.manifest.datasets[0].kept < first.manifest.datasets[0].kept
    assert result.reused == shards["text"]
    assert result.removed == shards["reach"]


def test_new_and_changed_and_lost_files_move_their_own_shards_alone(sources, configured):
    for number in range(4, 9):
        write_lines(sources / "text" / f"{number}.jsonl", [f"text {number} " * 150])
    out, config = sources / "out", configured(("text", TEXT), config="holdout: 0")
    first = build(config, out)
    assert first.built >= 7
    before = times(out)
    write_lines(sources / "text" / "9.jsonl", ["a new file " * 120])
    added = updated(config, out)
    assert added.built in (1, 2)
    assert added.reused == first.built - added.removed >= first.built - 1
    assert len(before.items() & times(out).items()) == added.reused
    write_lines(sources / "text" / "1.jsonl", ["it was changed " * 80])
    changed = updated(config, out)
    assert changed.built in (1, 2)
    assert changed.reused >= first.built - 2
    (sources / "text" / "9.jsonl").unlink()
    lost = updated(config, out)
    assert lost.built in (0, 1)
    assert lost.removed >= 1


def test_a_better_episode_renames_no_shard_whose_kept_rows_stay(sources, configured, write_tfds, monkeypatch):
    """The expert return and the threshold rise a little, and a dropped episode of every file changes: the records stay,
    and only indexes are written."""
    from gatokit.pipelines.beam import jobs

    def write(low: float, high: float) -> None:
        episodes = [episode(value) for value in (100.0, low, 101.0, 102.0, 103.0, low, 104.0, high)]
        shutil.rmtree(sources / "episodes" / "reach")
        write_tfds(sources / "episodes" / "reach", STEPS, episodes, max_examples_per_shard=4)

    out, config = sources / "out", configured(("reach", EPISODES))
    write(1.0, 105.0)
    first = build(config, out)
    before = times(out)
    assert first.built >= 2
    write(2.0, 105.5)
    built = []
    real = jobs.build_shard
    monkeypatch.setattr(jobs, "build_shard", lambda task, *rest: built.append(task.stem) or real(task, *rest))
    result = build(config, out, update=True)
    assert result.manifest.datasets[0].kept == 6
    assert len(built) == result.built == 1  # the one of the better episode
    assert before.items() - times(out).items() == {
        item for item in before.items() if item[0] not in {file.name for file in out.rglob("*.arrayrecord")}
    }
    assert result.reused == first.built - 1 >= 1
    assert verify(out) == []
    build(config, sources / "fresh")
    assert contents(out) == contents(sources / "fresh")


def test_a_rule_that_keeps_the_same_rows_writes_indexes_alone(sources, configured, monkeypatch):
    """The same episodes stay, and the others are dropped for another reason; a threshold that drops none anew changes
    not even an index."""
    from gatokit.pipelines.beam import jobs

    out = sources / "out"
    first = build(configured(("reach", EPISODES), ("text", TEXT)), out)
    before = times(out)
    indexes = {path: path.stat().st_mtime_ns for path in out.rglob("*.index.parquet")}

    def none(*arguments: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "build_shard", none)
        lower = build(configured(("reach", EPISODES.replace("0.5", "0.45")), ("text", TEXT)), out, update=True)
        assert counts(lower) == (0, first.built, 0)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*.index.parquet")} == indexes
        rows = pq.read_table(out / "reach" / "tasks.parquet").to_pylist()
        assert [(row["kept"], row["threshold"]) for row in rows] == [(7, pytest.approx(5.4))]
        patch.setattr(jobs, "build_shard", none)
        other = configured(("reach", EPISODES.replace("min_return: 0.5", "return: [6, null]")), ("text", TEXT))
        assert counts(build(other, out, update=True)) == (0, first.built, 0)
    assert times(out) == before
    assert len(set(out.rglob("*.index.parquet")) - indexes.keys()) >= 1
    build(other, sources / "fresh")
    assert contents(out) == contents(sources / "fresh")
    assert verify(out) == []


def test_the_data_digest_is_that_of_the_shards_alone(sources, configured, monkeypatch):
    from gatokit.loader.mixture import open_mixture
    from gatokit.pipelines import versions

    def digests(*arguments: Any, **options: Any) -> tuple[str, str, str]:
        build(*arguments, **options)
        manifest = read_manifest(out)
        return manifest.data_digest, open_mixture([out]).data_digest, manifest.digest

    out, config = sources / "out", configured(("text", TEXT))
    first = digests(config, out)
    manifest = json.loads((out / "manifest.json").read_bytes())
    parts = [part for split in manifest["datasets"][0]["splits"] for part in split["parts"]]
    assert len(parts) > 1
    named = [[part["file"], part["size"], part["blake2b"]] for part in parts]
    said = json.dumps({"text": named}, separators=(",", ":"))
    assert first[0] == manifest["data_digest"] == hashlib.blake2b(said.encode(), digest_size=32).hexdigest()
    licensed = digests(configured(("text", f"{TEXT}, license: MIT")), out, update=True)
    assert licensed[:2] == first[:2]
    assert licensed[2] != first[2]
    monkeypatch.setattr(versions.importlib.metadata, "version", lambda name: "99")
    before = contents(out)
    assert digests(configured(("text", f"{TEXT}, license: MIT")), out) == licensed
    assert contents(out) == before  # what is told of packages is told of those that made the shards
    assert "99" not in manifest["packages"].values()
    (sources / "text" / "0.jsonl").unlink()
    assert digests(configured(("text", TEXT)), out, update=True)[0] != first[0]


def test_provenance_is_kept_by_shard(sources, configured, monkeypatch):
    from gatokit.pipelines import versions

    out, config = sources / "out", configured(("text", TEXT))
    before = build(config, out).manifest
    [[id_, made]] = before.provenance.items()
    assert id_ == made.id
    assert made.packages == before.packages == versions.packages()
    assert made.code == versions.code_digest("documents") != versions.code_digest("episodes")
    monkeypatch.setattr(versions, "code_digest", lambda kind: "0" * 16)
    write_lines(sources / "text" / "9.jsonl", ["a new file " * 120])
    after = build(config, out, update=True).manifest
    [[other, new]] = [item for item in after.provenance.items() if item[0] != id_]
    assert (new.code, new.packages) == ("0" * 16, made.packages)
    makers = {split.fingerprint: split.made_by for split in after.datasets[0].splits}
    assert set(makers.values()) == {id_, other}
    for split in after.datasets[0].splits:
        stored = json.loads(pq.read_schema(out / "text" / split.index).metadata[b"gatokit.provenance"])
        assert stored == (new if split.made_by == other else made).model_dump()
        assert (split.fingerprint in {item.fingerprint for item in before.datasets[0].splits}) == (split.made_by == id_)
    assert verify(out) == []


def test_a_weight_changes_the_manifest_alone(sources, configured):
    out = sources / "out"
    first = build(configured(("text", TEXT)), out)
    result = updated(configured(("text", f"{TEXT}, weight: 3, license: MIT")), out)
    assert counts(result) == (0, first.built, 0)
    assert (result.manifest.datasets[0].weight, result.manifest.datasets[0].license) == (3, "MIT")


def test_chunks_of_another_size_are_all_built_anew(sources, configured):
    out = sources / "out"
    first = build(configured(("text", TEXT)), out)
    result = updated(configured(("text", TEXT), config="chunk_tokens: 16"), out)
    assert (result.reused, result.removed) == (0, first.built)


def test_an_update_of_nothing_and_of_an_empty_directory_are_builds(sources, configured):
    out, config = sources / "out", configured(("text", TEXT))
    first = updated(config, out)
    assert (first.reused, first.removed) == (0, 0)
    assert counts(updated(config, out)) == (0, first.built, 0)


def test_other_versions_of_packages_are_told(sources, configured, monkeypatch):
    from gatokit.pipelines import versions

    out = sources / "out"
    build(configured(("text", TEXT)), out)
    monkeypatch.setattr(versions.importlib.metadata, "version", lambda name: "99")
    result = build(configured(("text", TEXT)), out, update=True)
    assert result.notices[-1].startswith("shards that do not change stay as they were made, with gatokit ")


def refused(config: Path, out: Path, sentence: str, **options: Any) -> None:
    before = contents(out)
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}"):
        build(config, out, **options)
    assert contents(out) == before


def test_without_the_option_the_refusal_names_it(sources, configured):
    out = sources / "out"
    build(configured(("text", TEXT)), out)
    changed = configured(("text", f"{TEXT}, weight: 2"))
    refused(changed, out, f"--out {out}: holds a finished build of another config; --update builds what changed; else")
    config = configured(("text", TEXT))
    write_lines(sources / "text" / "9.jsonl", ["a new file"])
    refused(config, out, f"--out {out}: holds a finished build of other source files; --update builds what changed")


def test_what_an_update_cannot_be(sources, configured, vocabulary):
    out = sources / "out"
    config = configured(("text", TEXT), ("more", "kind: text, source: more/x.jsonl"))
    build(config, out)
    only = f"--only text: an update would remove more from {out}; leave --only out"
    refused(config, out, only, update=True, only="text")
    offset = configured(("text", TEXT), config="discrete_offset: 33024")
    meaning = f"--out {out}: holds shards made with discrete_offset 0, and 33024 gives every token another meaning"
    refused(offset, out, meaning, update=True)
    config = configured(("text", TEXT))
    config.write_text(re.sub("vocabulary: .*", f"vocabulary: {vocabulary}", config.read_text()))
    refused(config, out, f"--out {out}: holds shards of another vocabulary", update=True)
    scan(config, sources / "scanned")
    refused(config, sources / "scanned", f"--out {sources / 'scanned'}: holds a finished scan", update=True)


def test_a_directory_is_built_anew_with_another_vocabulary(sources, configured, vocabulary):
    """In one process, which has the first vocabulary in memory."""
    out, config = sources / "out", configured(("text", TEXT))
    build(config, out)
    shutil.rmtree(out)
    config.write_text(re.sub("vocabulary: .*", f"vocabulary: {vocabulary}", config.read_text()))
    build(config, out)
    [first, *_] = open_directory(out).datasets["text"].documents()
    [words] = first.parts
    assert str(words).split() == ["text", "0", "0"] * 30
    assert verify(out) == []


def test_data_that_fails_leaves_the_old_build_and_mended_data_the_new_one(sources, configured):
    out = sources / "out"
    first = build(configured(("text", TEXT)), out)
    before = (out / "manifest.json").read_bytes()
    bad = ("more", "kind: text, source: more/x.jsonl")
    (sources / "more" / "x.jsonl").write_bytes(b"{\n" * 20 + b'{"text": "sound"}\n')
    config = configured(("text", f"{TEXT}, end_of_document: false"), bad)
    with pytest.raises(DataError, match=r"more: 20 of 21 documents are bad"):
        build(config, out, update=True)
    assert (out / "manifest.json").read_bytes() == before
    assert all(fault.fault.startswith(LEFTOVER) for fault in verify(out))
    write_lines(sources / "more" / "x.jsonl", ["sound"])
    assert updated(config, out).removed == first.built


KILLED = """
import os, shutil, signal, sys
from gatokit.pipelines import run
config, source, target = sys.argv[1:4]
points = [int(word) for word in sys.argv[4:]]

def killed_at(point, out):
    count = 0
    def dying(real):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        return call
    for name in ("replace", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    run.build(config, out, update=True)
    return count

def child(point, out):
    shutil.copytree(source, out)
    process = os.fork()
    if process == 0:
        count = killed_at(point, out)
        with open(out + ".count", "w") as file:
            file.write(str(count))
        os._exit(0)
    return os.waitpid(process, 0)[1]

if __name__ == "__main__":
    assert child(0, target + "-count") == 0
    total = int(open(target + "-count.count").read())
    print(total)
    for point in points:
        # From the end, where the new files come into place.
        assert child(total - point, f"{target}-{point}") == signal.SIGKILL
"""


def killed(config: Path, out: Path, fresh: Path, points: list[int]) -> None:
    """Updates copies of ``out``, killed before renames and removals counted from the end; ``fresh`` is the new build.

    What is left is the old build or the new one, and an update of it ends as the new one.
    """
    old, new = (json.loads((directory / "manifest.json").read_bytes()) for directory in (out, fresh))
    script, target = out.with_name("killed.py"), out.with_name("killed")
    script.write_text(KILLED)
    command = [sys.executable, script, config, out, target, *points]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > max(points)
    found = []
    for point in points:
        left = out.with_name(f"killed-{point}")
        faults = verify(left)
        assert [fault for fault in faults if not fault.fault.startswith(LEFTOVER)] == [], point
        manifest = json.loads((left / "manifest.json").read_bytes())
        found.append(manifest["config_digest"] == new["config_digest"])
        assert found[-1] or manifest == old
        read_manifest(left)
    # The later it was killed the newer it is, and both are among them.
    assert found == sorted(found, reverse=True)
    assert set(found) == {False, True}
    for point in points[::3]:
        build(config, out.with_name(f"killed-{point}"), update=True)
        assert contents(out.with_name(f"killed-{point}")) == contents(fresh), point


@pytest.mark.parametrize(
    "points",
    [
        pytest.param([1, 4, 7, 10, 13, 16, 20, 25, 30, 40], id="some"),
        pytest.param([*range(34), 40, 50], id="all", marks=pytest.mark.slow),
    ],
)
def test_a_killed_update_is_the_old_build_or_the_new_one(points, sources, configured, tmp_path):
    """Killed before renames and removals of its end, and before some of its middle."""
    out = sources / "out"
    build(configured(("reach", EPISODES), ("text", TEXT), ("more", "kind: text, source: more/x.jsonl")), out)
    write_lines(sources / "text" / "9.jsonl", ["a new file"])
    config = configured(("reach", EPISODES.replace("0.5", "0.9")), ("text", TEXT))
    build(config, tmp_path / "fresh")
    killed(config, out, tmp_path / "fresh", points)


# --- columns of the index for values that are stored with the episodes ---------------------------------------------

LEVELS = "kind: episodes, source: 'levels/*', keep: {all: true}"


@pytest.fixture
def grown(tmp_path: Path, write_tfds: Callable[..., Path], configured: Callable[..., Path]) -> Path:
    """A build of one directory, beside which a second has come that stores more with its episodes: a mark of the same
    name elsewhere, another type of level, and a weight."""
    numbers, texts = tfds.features.Scalar(dtype=np.int64), tfds.features.Text()
    marks = tfds.features.FeaturesDict({"success": np.bool_})
    first = [{**episode(1.0), "level": 7 + n, "marks": {"success": n > 2}} for n in range(6)]
    second = [{**episode(2.0), "level": "hard", "flags": {"success": n > 0}, "weight": n} for n in range(3)]
    write_tfds(tmp_path / "levels" / "a", STEPS, first, metadata={"level": numbers, "marks": marks})
    build(configured(("levels", LEVELS), config="holdout: 0"), tmp_path / "out")
    write_tfds(tmp_path / "levels" / "b", STEPS, second, metadata={"level": texts, "flags": marks, "weight": numbers})
    return tmp_path


def test_reused_shards_get_the_columns_of_new_sources(grown, configured):
    out = grown / "out"
    before, reader = times(out), open_directory(out).datasets["levels"]
    assert reader.columns == {"level": "int64", "success": "bool"}
    result = updated(configured(("levels", LEVELS), config="holdout: 0"), out)
    assert (result.reused, result.removed, len(before.items() & times(out).items())) == (2, 1, 2)
    reader = open_directory(out).datasets["levels"]
    assert reader.columns == {"flags/success": "bool", "level": "string", "marks/success": "bool", "weight": "int64"}
    assert reader.missing_columns() == ()
    rows = [(row.task, *(row.metadata[name] for name in sorted(reader.columns))) for row in reader.rows()]
    assert rows == [
        *(("a", None, str(7 + n), n > 2, None) for n in range(6)),
        *(("b", n > 0, "hard", None, n) for n in range(3)),
    ]
    previews = preview(reader, Keep.model_validate({"where": "`marks/success` == true and level in ('10', '12')"}))
    assert [(row.task, row.kept, row.kept_at) for row in previews] == [("a", 6, 2), ("b", 3, 0)]


@pytest.mark.parametrize(
    "points",
    [pytest.param([5, 12, 17, 22], id="some"), pytest.param([*range(30)], id="all", marks=pytest.mark.slow)],
)
def test_an_update_that_changes_indexes_can_be_killed(points, grown, configured):
    config = configured(("levels", LEVELS), config="holdout: 0\nmax_bad_fraction: 0.5")
    build(config, grown / "fresh")
    killed(config, grown / "out", grown / "fresh", points)
