"""A published folder has the data of its build, and nothing about who made it and where."""

import getpass
import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import config

from gatokit.inspection import open_directory
from gatokit.inspection.publish import publish
from gatokit.inspection.report import report
from gatokit.inspection.verify.directory import verify
from gatokit.loader.mixture import open_mixture
from gatokit.loader.windows import Windows
from gatokit.pipelines.run import build
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import Manifest, digest, json_digest

HOST = "workstation-of-alice"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, mixed_config: Path) -> Path:
    """A folder with ``home/alice``, which holds sources and a vocabulary, and ``work``, which holds a build of them."""
    root = tmp_path_factory.mktemp("made")
    home = root / "home" / "alice"
    shutil.copytree(mixed_config.parent, home / "sets")
    text = (home / "sets" / "mixed.yaml").read_text()
    model = text.split("vocabulary: ")[1].split("\n")[0]
    shutil.copy(model, home / "words.model")
    text = text.replace(model, str(home / "words.model"))
    text = re.sub(r"(source|questions|annotations|image_dir): (?=[a-z])", rf"\1: {home}/sets/", text)
    (root / "work").mkdir()
    (root / "work" / "c.yaml").write_text(text)
    build(root / "work" / "c.yaml", root / "work" / "built")
    return root


@pytest.fixture
def private(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The build of the user alice, whose sources and vocabulary lie in her home directory."""
    monkeypatch.setenv("HOME", str(made / "home" / "alice"))
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    assert getpass.getuser() == "alice"
    return Path(shutil.copytree(made / "work" / "built", tmp_path / "built"))


def everything(folder: Path) -> str:
    """All names and texts of a folder: its files' bytes, the values and the metadata of its tables, its records."""
    said = []
    for path in sorted(folder.rglob("*")):
        said.append(path.relative_to(folder).as_posix())
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            said += [repr(table.schema.metadata), repr(table.to_pylist())]
        if path.is_file():
            said.append(path.read_bytes().decode("latin-1"))
    for dataset in open_directory(folder).datasets.values():
        for row in dataset.rows():
            if row.shard is not None:
                stored = dataset.document(row) if dataset.holds_documents else dataset.episode(row)
                said.append(repr(vars(stored.row)))
    return "\n".join(said)


def words_of(text: str) -> list[str]:
    return [word for word in ("alice", HOST, "/home/", "home/", "../") if word in text]


def test_user_host_and_home_are_in_a_build_and_not_in_what_is_published(private: Path, tmp_path: Path):
    assert words_of(everything(private)) == ["alice", "/home/", "home/", "../"]
    published = publish(private, tmp_path / "out")
    assert words_of(everything(tmp_path / "out")) == []
    assert published.notices == []
    directory = open_directory(tmp_path / "out")
    assert words_of(json.dumps(report(directory, list(directory.datasets.values())))) == []
    manifest = directory.manifest
    assert manifest.config["vocabulary"] == "words.model"
    sources = [
        {key: dataset[key] for key in ("source", "questions", "annotations", "image_dir") if key in dataset}
        for dataset in manifest.config["datasets"]
    ]
    assert sources == [
        {"source": "arm"},  # arm/*
        {"source": "grid"},
        {"source": "books.jsonl"},
        {"source": "captions.tar"},
        {"questions": "questions.json", "annotations": "annotations.json", "image_dir": "images"},
        {"source": "pages.jsonl", "image_dir": "images"},
    ]


def test_the_data_is_the_same_and_a_run_goes_on_with_it(private: Path, tmp_path: Path):
    (private / ".scan").mkdir(exist_ok=True)
    (private / ".scan" / "kept").write_text("rows")
    (private / "notes.txt").write_text("mine")
    seen: list[tuple[Any, ...]] = []
    published = publish(
        private, tmp_path / "out", lambda *done, rows=0, size=0, total_size=0: seen.append((*done, size, total_size))
    )
    before, after = open_directory(private).manifest, open_directory(tmp_path / "out").manifest
    files = {entry.path for entry in before.files}
    there = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert there == files | {"manifest.json", "README.md"}
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (private / name).read_bytes()
        assert (tmp_path / "out" / name).stat().st_ino != (private / name).stat().st_ino
    total = sum(entry.size for entry in before.files)
    assert (published.files, published.bytes) == (len(files), total)
    assert [done[:3] for done in seen] == [("publish", number, len(files)) for number in range(1, len(files) + 1)]
    assert seen[-1][3:] == (total, total)
    assert verify(tmp_path / "out") == []
    assert after.data_digest == before.data_digest
    assert after.digest != before.digest
    run = config(tmp_path)
    left, right = (open_mixture([str(path)], run.input.weights) for path in (private, tmp_path / "out"))
    assert left.data_digest == right.data_digest
    drawn = [Windows(mixture, run).trace(3, range(4)) for mixture in (left, right)]
    windows = [json.dumps([window.to_json() for window in each]) for each in drawn]
    assert windows[0].count(f"{private}/") >= 4
    assert windows[0].replace(f"{private}/", f"{tmp_path}/out/") == windows[1]


def test_the_card_is_there_has_the_name_of_the_copy_and_may_be_edited(private: Path, tmp_path: Path):
    publish(private, tmp_path / "toys")
    text = (tmp_path / "toys" / "README.md").read_text()
    assert text.startswith("# toys\n\nA build of Gatokit with 6 datasets: ")
    assert "\n| arm | arm | not stated | streams: agent, all: True | 3 |\n" in text
    (tmp_path / "toys" / "README.md").write_text("---\nlicense: mit\n---\n" + text)
    (tmp_path / "toys" / ".gitattributes").write_text("*.arrayrecord filter=lfs\n")
    assert verify(tmp_path / "toys") == []
    (tmp_path / "toys" / "arm" / "README.md").write_text("")
    assert [fault.file for fault in verify(tmp_path / "toys")] == ["arm/README.md"]


def edited(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest of a build and signs it again."""
    content = json.loads((folder / "manifest.json").read_text())
    del content["digest"]
    edit(content)
    content["config_digest"] = json_digest(content["config"])
    content["digest"] = json_digest(content)
    (folder / "manifest.json").write_bytes(Manifest.parse(json.dumps(content).encode(), "m").to_bytes())


def test_generations_of_objects_which_are_times_go_from_manifest_and_index(private: Path, tmp_path: Path):
    generations = {"books.jsonl": 1_764_560_000_123_456}

    def edit(content: dict[str, Any]) -> None:
        [books] = [item for item in content["datasets"] if item["name"] == "books"]
        books["splits"][0]["generations"] = generations
        path = private / "books" / books["splits"][0]["index"]
        table = pq.read_table(path)
        written = {b"gatokit.generations": json.dumps(generations).encode()}
        pq.write_table(table.replace_schema_metadata(table.schema.metadata | written), path)
        [entry] = [item for item in content["files"] if item["path"] == f"books/{path.name}"]
        entry |= {"size": path.stat().st_size, "blake2b": digest(path.read_bytes())}

    edited(private, edit)
    assert verify(private) == []
    assert "1764560000123456" in everything(private)
    publish(private, tmp_path / "out")
    assert "1764560000123456" not in everything(tmp_path / "out")
    assert verify(tmp_path / "out") == []
    [before], [after] = (list(path.glob("books/*.index.parquet")) for path in (private, tmp_path / "out"))
    assert pq.read_table(after).equals(pq.read_table(before))
    assert not {file.name for file in (tmp_path / "out").rglob("*.whole")}


def test_paths_that_end_at_the_home_directory_or_in_a_pattern_and_lists_become_names(private: Path, tmp_path: Path):
    def edit(content: dict[str, Any]) -> None:
        arm, grid, books = content["config"]["datasets"][:3]
        arm["source"], grid["source"] = "../home/alice", "../home/alice/sets/**"
        arm["keep"] = {"episodes": "../home/alice/chosen.txt", "digest": "0" * 64}
        books["source"] = f"gs://bucket/{HOST}/"
        content["config"]["vocabulary"] = ".."

    edited(private, edit)
    publish(private, tmp_path / "out")
    manifest = open_directory(tmp_path / "out").manifest
    arm, grid, books = manifest.config["datasets"][:3]
    assert (arm["source"], grid["source"], books["source"]) == ("arm", "grid", "books")
    assert arm["keep"]["episodes"] == "chosen.txt"
    assert manifest.config["vocabulary"] == "vocabulary.model"
    assert words_of((tmp_path / "out" / "manifest.json").read_text()) == []


def test_what_the_source_itself_says_stays_and_is_named(private: Path, tmp_path: Path):
    home = str(Path.home())

    def edit(content: dict[str, Any]) -> None:
        [books] = [item for item in content["datasets"] if item["name"] == "books"]
        path = private / "books" / books["splits"][0]["index"]
        table = pq.read_table(path)
        ids = [f"{home}/{name}" for name in table["episode_id"].to_pylist()]
        at = table.schema.names.index("episode_id")
        pq.write_table(table.set_column(at, "episode_id", [ids]).replace_schema_metadata(table.schema.metadata), path)
        [entry] = [item for item in content["files"] if item["path"] == f"books/{path.name}"]
        entry |= {"size": path.stat().st_size, "blake2b": digest(path.read_bytes())}

    edited(private, edit)
    notices = publish(private, tmp_path / "out").notices
    [index] = (tmp_path / "out" / "books").glob("*.index.parquet")
    assert notices == [f"books/{index.name} still says {home}, which the source or the vocabulary names so"]


def test_nothing_is_published_over_something_or_of_something_damaged(private: Path, tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for out in (tmp_path / "there", tmp_path / "link", private):
        with pytest.raises(ConfigError, match="exists already; give another directory"):
            publish(private, out)
    with pytest.raises(ConfigError, match=r"lies in .*built; give a directory outside of it"):
        publish(private, private / "public")
    with pytest.raises(ConfigError, match="give a local directory"):
        publish(private, "gs://bucket/out")
    [index] = (private / "books").glob("*.index.parquet")
    data = index.read_bytes()
    index.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(DataError, match="is damaged: its digest is another; gatokit verify"):
        publish(private, tmp_path / "out")
    index.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file or directory; gatokit verify"):
        publish(private, tmp_path / "out")
    index.symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="is a link, not a regular file"):
        publish(private, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built", "link", "there"]
    assert list((tmp_path / "there").iterdir()) == []


def test_the_command_publishes(private: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from gatokit.cli.main import main

    assert main(["publish", str(private), "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    manifest = open_directory(tmp_path / "out").manifest
    sizes = [entry.size for entry in manifest.files]
    assert result == {"out": str(tmp_path / "out"), "files": len(sizes), "bytes": sum(sizes), "notices": []}
    assert main(["publish", str(private), "--out", str(tmp_path / "out")]) == 2
    assert "exists already; give another directory, or remove it" in capsys.readouterr().err
