"""Builds that a stranger has made: every command ends with a sentence, and opens nothing outside of the build."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatokit.inspection import open_directory
from gatokit.loader.mixture import open_mixture
from gatokit.schemas.errors import DataError, MalformedError
from gatokit.schemas.manifest import digest, json_digest

_OPENED: list[str] | None = None


def _remember(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _OPENED is not None and isinstance(arguments[0], str | bytes | os.PathLike):
        _OPENED.append(os.path.abspath(os.fsdecode(arguments[0])))


sys.addaudithook(_remember)


@contextmanager
def opened() -> Iterator[list[str]]:
    """The files that Python opens in the block."""
    global _OPENED
    _OPENED = found = []
    try:
        yield found
    finally:
        _OPENED = None


@pytest.fixture
def build(built: Path, tmp_path: Path) -> Path:
    """A copy of a build in a folder that holds nothing else."""
    return Path(shutil.copytree(built, tmp_path / "strange" / "build"))


def sign(build: Path, content: dict[str, Any]) -> None:
    """Writes a manifest whose sizes and digests are those of the files."""
    for entry in content["files"]:
        path = build / entry["path"]
        if path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(build.resolve()):
            entry |= {"size": path.stat().st_size, "blake2b": digest(path.read_bytes())}
    content.pop("digest", None)
    content["digest"] = json_digest(content)
    (build / "manifest.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def manifest_of(build: Path) -> dict[str, Any]:
    return json.loads((build / "manifest.json").read_bytes())


def first_split(content: dict[str, Any]) -> dict[str, Any]:
    return next(split for split in content["datasets"][0]["splits"] if split["parts"])


def set_file(content: dict[str, Any], name: str) -> None:
    content["files"].append({"path": name, "size": 1, "blake2b": "0" * 64})


NAMES = [
    "../secret",
    "/etc/passwd",
    "a/../../secret",
    "file:///etc/passwd",
    "gs://bucket/x",
    "a//b",
    "",
    ".",
    "x\0",
    "\x1b[31m",
]
PLACES: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "files": set_file,
    "vocabulary": lambda content, name: content["vocabulary"].update(file=name),
    "directory": lambda content, name: content["datasets"][0].update(directory=name),
    "dataset's name": lambda content, name: content["datasets"][0].update(name=name),
    "update": lambda content, name: content["datasets"][0].update(update=name or "../x"),
    "index": lambda content, name: first_split(content).update(index=name),
    "part": lambda content, name: first_split(content)["parts"][0].update(file=name),
}
COMMANDS = [
    ("verify", "{build}"),
    ("inspect", "{build}"),
    ("inspect", "{build}", "--dataset", "{dataset}"),
    ("inspect", "{build}", "--html", "{out}/r.html"),
    ("inspect", "{build}", "--card", "{out}/CARD.md"),
    ("inspect", "{build}", "--episode", "{episode}"),
    ("inspect", "{build}", "--against", "{build}"),
    ("gc", "{build}"),
    ("publish", "{build}", "--out", "{out}/published"),
    ("build", "{config}", "--out", "{build}", "--update"),
    ("train", "tiny", "--data", "{build}", "--out", "{out}/run"),
]


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_leads_out_is_refused(
    gatokit, build: Path, recorded_config: Path, tmp_path: Path, place: str
) -> None:
    (build.parent / "secret").write_text("top secret")
    content = manifest_of(build)
    values = {"build": build, "dataset": content["datasets"][0]["name"], "out": tmp_path, "episode": "x"}
    values["config"] = recorded_config
    for number, name in enumerate(NAMES):
        changed = json.loads(json.dumps(content))
        PLACES[place](changed, name)
        sign(build, changed)
        with opened() as files:
            for words in COMMANDS if number == 0 else COMMANDS[:1]:
                ran = gatokit(*(word.format(**values) for word in words))
                assert ran.status == (1 if words[0] == "verify" else 2), (words, ran)
                assert "manifest.json" in ran.out + ran.err
                assert "Traceback" not in ran.err
            with pytest.raises(MalformedError, match=r"manifest\.json: "):
                open_mixture([build])
        assert not [path for path in files if path.endswith(("secret", "passwd"))]
    assert [path.name for path in tmp_path.iterdir()] == ["strange"]


def _files(build: Path) -> dict[str, Path]:
    dataset = open_directory(build).datasets[manifest_of(build)["datasets"][0]["name"]]
    split = next(split for split in dataset.totals.splits if split.parts)
    return {
        "manifest": build / "manifest.json",
        "vocabulary": build / "vocabulary.model",
        "described": dataset.path / "dataset.json",
        "tasks": dataset.path / "tasks.parquet",
        "index": dataset.path / split.index,
        "shard": dataset.path / split.parts[0].file,
        "folder": dataset.path,
    }


def _read_all(build: Path) -> None:
    """Opens all that inspection opens."""
    directory = open_directory(build)
    _ = directory.text
    for dataset in directory.datasets.values():
        _ = dataset.described, dataset.tasks
        rows = list(dataset.rows(kept=True))
        for _ in dataset.records(rows[:1]):
            pass


def _load_all(build: Path) -> None:
    """Opens all that the loader opens."""
    for dataset in open_mixture([build]).datasets:
        _ = dataset.described
        dataset.index("train")
        dataset.best_episodes(1)


@pytest.mark.parametrize("kind", ["a link", "a FIFO"])
@pytest.mark.parametrize("what", ["manifest", "vocabulary", "described", "tasks", "index", "shard", "folder"])
def test_links_and_fifos_are_not_opened(gatokit, build: Path, tmp_path: Path, what: str, kind: str) -> None:
    path = _files(build)[what]
    _read_all(build)
    _load_all(build)
    outside = tmp_path / "outside"
    path.rename(outside)
    if kind == "a link":
        path.symlink_to(outside)
    else:
        os.mkfifo(path)
    with opened() as files:
        for read in (_read_all, _load_all):
            with pytest.raises(MalformedError, match=rf"^{path} is {kind}, not a "):
                read(build)
        ran = gatokit("verify", build)
    assert ran.status == 1
    assert f"is {kind}, not a " in ran.out
    assert not [file for file in files if Path(file).is_relative_to(outside)]


@pytest.mark.parametrize("name", ["build.log.jsonl", ".scan/x.arrow", "more"])
def test_verify_names_links_that_nothing_reads(gatokit, build: Path, name: str) -> None:
    path = build / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("/etc/passwd")
    ran = gatokit("verify", build)
    assert ran.status == 1
    assert f"{name}: " in ran.out
    assert "a link" in ran.out


def change(path: Path, name: str, type_: pa.DataType | None, value: object) -> None:
    """Gives a table another column: of another type, with another value in the first kept row, or none."""
    table = pq.read_table(path)
    place, found = table.column_names.index(name), table[name].to_pylist()
    if type_ is None and value is None:
        table = table.drop_columns([name]).replace_schema_metadata(table.schema.metadata)
    else:
        kept = table["kept"].to_pylist().index(True) if "kept" in table.column_names else 0
        found = [value if row == kept or type_ is not None else old for row, old in enumerate(found)]
        column = pa.array(found, type_ or table.schema.field(name).type)
        table = table.set_column(place, pa.field(name, column.type), column)
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("name", "type_", "value", "said"),
    [
        ("part", pa.string(), "x", "has a column part of string, not int32"),
        ("first_record", pa.float64(), 0.5, "has a column first_record of double, not int64"),
        ("record_tokens", pa.int32(), 3, "has a column record_tokens of int32, not list<"),
        ("task", pa.int64(), 3, "has a column task of int64, not string"),
        ("kept", pa.string(), "yes", "has a column kept of string, not bool"),
        ("part", None, -1, "has a row with part -1"),
        ("part", None, 99, "part"),
        ("first_record", None, -5, "has a row with first_record -5"),
        ("first_record", None, 1 << 40, "1099511627776"),
        ("record_tokens", None, [-3], "has a row with record_tokens -3"),
        ("steps", None, -1, "has a row with steps -1"),
        ("return", None, float("inf"), "has a row with return inf"),
        ("part", None, None, "part"),
    ],
)
def test_a_wrong_index_is_a_sentence(gatokit, build: Path, name, type_, value, said: str) -> None:
    path = _files(build)["index"]
    change(path, name, type_, value)
    sign(build, manifest_of(build))
    with pytest.raises(DataError, match=said):
        _load_all(build)
    ran = gatokit("verify", build)
    assert ran.status == 1
    assert path.name in ran.out
    if value is not None and name != "return":
        with pytest.raises(DataError) as caught:
            _read_all(build)
        assert str(path.parent) in str(caught.value) or name in str(caught.value)


def test_a_wrong_number_of_rows_is_a_sentence(gatokit, build: Path) -> None:
    content = manifest_of(build)
    first_split(content)["rows"] += 1
    sign(build, content)
    for read in (_read_all, _load_all):
        with pytest.raises(MalformedError, match=r"has \d+ rows and the manifest says \d+$"):
            read(build)
    assert gatokit("verify", build).status == 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.update(config={}),
        lambda content: content.update(config={"datasets": 3}),
        lambda content: content.update(config={"datasets": [3, {"name": []}]}),
        lambda content: content["config"]["datasets"][0].update(keep=[[]]),
        lambda content: content["config"]["datasets"][0].update(keep={"where": "(((("}),
        lambda content: content["datasets"].append(content["datasets"][0]),
        lambda content: content["files"].append(content["files"][0]),
        lambda content: content["files"][0].update(size=-1),
        lambda content: content["files"][0].update(size=1 << 70),
        lambda content: content["datasets"][0].update(weight="heavy"),
        lambda content: first_split(content)["parts"][0].update(training=-1),
    ],
)
def test_a_wrong_manifest_is_a_sentence(gatokit, build: Path, edit) -> None:
    content = manifest_of(build)
    edit(content)
    content["config_digest"] = json_digest(content["config"])
    sign(build, content) if content["files"][0]["size"] == manifest_of(build)["files"][0]["size"] else _store(
        build, content
    )
    ran = gatokit("verify", build)
    assert ran.status == 1, ran
    ran = gatokit("inspect", build, "--dataset", content["datasets"][0]["name"])
    assert ran.status in (0, 2), ran
    assert "Traceback" not in ran.err


def _store(build: Path, content: dict[str, Any]) -> None:
    content.pop("digest", None)
    content["digest"] = json_digest(content)
    (build / "manifest.json").write_text(json.dumps(content))


def test_a_marker_of_a_cache_downloads_nothing(build: Path) -> None:
    for marker in ("[]", "{", '{"url": 3, "most_bytes": null}', '{"url": "gs://bucket/x", "most_bytes": 5}'):
        (build / "remote.json").write_text(marker)
        with pytest.raises(MalformedError, match=r"remote\.json "):
            open_mixture([build])
    assert sorted(path.name for path in build.parent.iterdir()) == ["build"]


RUN_COMMANDS = [
    ("export", "{run}", "--out", "{out}"),
    ("generate", "--checkpoint", "{run}", "--text", "a"),
    ("evaluate", "--checkpoint", "{run}", "--env", "babyai/GoToLocal-v0", "--rollouts", "2", "--out", "{out}"),
]


def _link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _write(content: bytes) -> Callable[[Path, Path], object]:
    return lambda path, outside: path.write_bytes(content)


RUN_FAULTS: dict[str, tuple[str, Callable[[Path, Path], object], str]] = {
    "link to a policy": ("policy/policy.json", _link, "policy.json is a link, not a regular file"),
    "link to a vocabulary": ("policy/vocabulary.model", _link, "vocabulary.model is a link, not a regular file"),
    "link to weights": ("params/array", _link, "array is a link, not a regular file"),
    "FIFO": ("params/array", lambda path, outside: os.mkfifo(path), "array is a FIFO, not a regular file"),
    "no object": ("policy/policy.json", _write(b"[1]"), "policy.json cannot be read"),
    "deep": (
        "policy/policy.json",
        _write(b"[" * 200_000),
        "policy.json cannot be read as JSON: it is nested too deeply",
    ),
    "a key twice": (
        "policy/policy.json",
        _write(b'{"version": 1, "version": 1}'),
        "policy.json cannot be read as JSON",
    ),
    "no fields": ("policy/policy.json", _write(b'{"version": 1}'), "policy.json cannot be read"),
}


@pytest.mark.parametrize("fault", RUN_FAULTS)
def test_a_wrong_run_is_a_sentence(gatokit, tmp_path: Path, fault: str) -> None:
    checkpoint, outside = tmp_path / "run" / "checkpoints" / "7", tmp_path / "outside"
    for folder in ("params", "policy"):
        (checkpoint / folder).mkdir(parents=True)
    outside.write_text("top secret")
    name, make, said = RUN_FAULTS[fault]
    make(checkpoint / name, outside)
    for words in RUN_COMMANDS:
        with opened() as files:
            ran = gatokit(*(word.format(run=tmp_path / "run", out=tmp_path / "out") for word in words))
        assert (ran.status, "Traceback" in ran.err) == (2, False), (words, ran)
        assert said in ran.err
        assert str(outside) not in files
        assert "top secret" not in ran.out + ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "run"]
