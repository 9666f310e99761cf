"""Files that somebody else put where commands write: whatever they are called, they stay what they are."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.cli.main import main
from gatokit.environments import make
from gatokit.environments.agents import Mix
from gatokit.environments.record import record
from gatokit.inspection.verify.directory import verify
from gatokit.schemas.errors import MalformedError

HEX = "0123456789abcdef"
RANDOM = f".tmp-{'0' * 32}-"
OF_A_BUILD = (
    ".lock",
    ".scan",
    f".scan/{HEX}.arrow",
    ".work",
    ".work/units.jsonl",
    ".work/shards/t.arrow",
    "build.log.jsonl",
    "manifest.json",
    "t",
    "t/dataset.json",
    "t/tasks.parquet",
    f"t/t-{HEX}.arrayrecord",
    f"t/t-{HEX}-{HEX}.index.parquet",
    f"t/{RANDOM}t-{HEX}.arrayrecord",
    f"{RANDOM}manifest.json",
    "vocabulary.model",
)
"""What a build or scan writes into its directory."""
BESIDE_A_BUILD = (
    ".lock",
    ".scan/mine.arrow",
    f".scan/{HEX}.arrow",
    ".work",
    ".work/diary.txt",
    ".work/units.jsonl",
    ".tmp-mine",
    "notes.txt",
    "other",
    "other/dataset.json",
    f"other/other-{HEX}.index.parquet",
    f"other/{RANDOM}x",
    "t/mine.arrayrecord",
    "t/notes.txt",
)
"""What somebody may put into the directory of a finished build of the dataset ``t``."""
FORMS = ("text", "empty", "JSON", "link to a file", "link to a folder", "link to nothing")


def tree(root: Path) -> dict[str, object]:
    """What lies below a folder: the content of files, the targets of links, None for folders."""
    found: dict[str, object] = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            key = str(path.relative_to(root))
            found[key] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    return found


def put(root: Path, name: str, form: str, victim: Path) -> None:
    """Puts a foreign file at a name, unless something is there or above it."""
    path = root / name
    if os.path.lexists(path) or any(parent.is_symlink() or parent.is_file() for parent in path.parents):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    match form:
        case "text":
            path.write_text("mine")
        case "empty":
            path.touch()
        case "JSON":
            path.write_text('{"event": "mine", "version": 1, "lock": "mine"}\n')
        case "link to a file":
            path.symlink_to(victim / ".bashrc")
        case "link to a folder":
            path.symlink_to(victim / "documents")
        case "link to nothing":
            path.symlink_to(victim / "nothing")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """A folder with a text, a config that builds it, ``victim`` with somebody's files, and a build, ``finished``."""
    root = tmp_path_factory.mktemp("foreign")
    for path in ("documents/thesis.tex", f"documents/t-{HEX}.arrayrecord", "documents/shards/t.arrow", ".bashrc"):
        (root / "victim" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "victim" / path).write_text(f"# {path}\n")
    (root / "a.jsonl").write_text("".join(json.dumps({"text": f"line {number}"}) + "\n" for number in range(5)))
    config = f"vocabulary: {vocabulary}\ndatasets:\n  - {{name: t, kind: text, source: a.jsonl}}\n"
    (root / "c.yaml").write_text(config)
    (root / "b.jsonl").write_text(json.dumps({"text": "another line"}) + "\n")
    (root / "changed.yaml").write_text(config.replace("a.jsonl", "'[ab].jsonl'"))
    assert main(["build", str(root / "c.yaml"), "--out", str(root / "finished")]) == 0
    return root


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(OF_A_BUILD), st.sampled_from(FORMS), min_size=1, max_size=4),
    st.sampled_from(["build", "scan", "update", "gc", "gc --all"]),
)
def test_a_folder_of_somebody_else_is_refused_and_stays_as_it_is(
    place: Path, foreign: dict[str, str], command: str
) -> None:
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name, form in foreign.items():
        put(out, name, form, place / "victim")
    before, of_victim = tree(out), tree(place / "victim")
    assert before
    words = {
        "build": ["build", str(place / "c.yaml"), "--out", str(out)],
        "scan": ["scan", str(place / "c.yaml"), "--out", str(out)],
        "update": ["build", str(place / "c.yaml"), "--out", str(out), "--update"],
        "gc": ["gc", str(out)],
        "gc --all": ["gc", str(out), "--all"],
    }
    assert main(words[command]) == 2
    assert tree(out) == before
    assert tree(place / "victim") == of_victim


@settings(max_examples=12)
@given(
    st.dictionaries(st.sampled_from(BESIDE_A_BUILD), st.sampled_from(FORMS), min_size=1, max_size=4),
    st.lists(st.sampled_from(["build", "update", "gc", "gc --all"]), min_size=1, max_size=2, unique=True),
)
def test_what_somebody_puts_into_a_build_stays_as_it_is(
    place: Path, foreign: dict[str, str], commands: list[str]
) -> None:
    out = place / "own"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(place / "finished", out)
    of_build, of_victim = tree(out).keys(), tree(place / "victim")
    for name, form in foreign.items():
        if (name, form) != (".lock", "empty"):  # the lock that a killed build of earlier versions left
            put(out, name, form, place / "victim")
    before = {name: content for name, content in tree(out).items() if name not in of_build}
    words = {
        "build": ["build", str(place / "c.yaml"), "--out", str(out)],
        "update": ["build", str(place / "changed.yaml"), "--out", str(out), "--update"],
        "gc": ["gc", str(out)],
        "gc --all": ["gc", str(out), "--all"],
    }
    for command in commands:
        assert main(words[command]) in (0, 2)
        after = tree(out)
        assert {name: after.get(name) for name in before} == before
        assert tree(place / "victim") == of_victim


def test_a_working_folder_in_a_build_that_finished_is_not_the_build_s(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(place / "finished", out)
    (out / ".work" / "shards").mkdir(parents=True)
    for name in ("diary.txt", "units.jsonl", f"{RANDOM}x", "shards/t.arrow"):
        (out / ".work" / name).write_text("mine")
    before = tree(out)
    for config, *options in (["c.yaml"], ["changed.yaml", "--update"]):
        assert main(["build", str(place / config), "--out", str(out), *options]) == 2
        assert f"--out {out}: holds .work, no part of this build" in capsys.readouterr().err
    assert main(["gc", str(out)]) == 0
    assert tree(out) == before
    assert main(["gc", str(out), "--all"]) == 0
    assert {name: content for name, content in before.items() if not name.startswith(".scan")} == tree(out)


def test_a_build_is_built_again_updated_and_collected(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "again"
    shutil.copytree(place / "finished", out)
    for words in (["c.yaml"], ["changed.yaml", "--update"]):
        assert main(["build", str(place / words[0]), "--out", str(out), *words[1:]]) == 0
    (out / "build.log.jsonl").unlink()  # as in a copy that was given away
    assert main(["build", str(place / "c.yaml"), "--out", str(out), "--update"]) == 0
    assert main(["gc", str(out), "--all"]) == 0
    assert verify(out) == []


@pytest.mark.parametrize(
    ("out", "source", "said"),
    [
        ("src", "src/*.jsonl", "holds a source"),
        ("", "src/*.jsonl", "holds a source"),
        (".", "src/text/*.jsonl", "holds a source"),
        ("link", "src/*.jsonl", "holds a source"),
        ("src/built", "src/**/*.jsonl", "lies in a source"),
        ("src/built", "src/*.jsonl", None),
        ("built", "src/*.jsonl", None),
        ("src2", "src/*.jsonl", None),
    ],
)
def test_no_build_goes_into_its_source(
    tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str], out: str, source: str, said: str | None
) -> None:
    for path in ("src/a.jsonl", "src/text/b.jsonl"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps({"text": f"a text in {path}"}) + "\n")
    (tmp_path / "link").symlink_to("src")
    config = tmp_path / "configs" / "c.yaml"
    config.parent.mkdir()
    config.write_text(
        f"vocabulary: {vocabulary}\ndatasets:\n  - {{name: text, kind: text, source: '{tmp_path}/{source}'}}\n"
    )
    before = tree(tmp_path)
    status = main(["build", str(config), "--out", str(tmp_path / out)])
    assert status == (0 if said is None else 2)
    if said is not None:
        assert said in capsys.readouterr().err
        assert tree(tmp_path) == before
    else:
        assert verify(tmp_path / out) == []


@pytest.mark.parametrize("option", ["--card", "--html"])
def test_a_page_replaces_the_page_it_was_and_nothing_that_somebody_wrote(
    place: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, words = tmp_path / "page", ["inspect", str(place / "finished"), option]
    assert main([*words, str(path)]) == 0
    first = path.read_bytes()
    assert main([*words, str(path)]) == 0
    assert path.read_bytes() == first
    path.write_bytes(first[: first.rindex(b"<!-- written by gatokit ")])  # as versions before wrote it
    assert main([*words, str(path)]) == 0
    assert path.read_bytes() == first
    earlier = first[: first.rindex(b"<!-- written by gatokit ")].replace(b"finished", b"of before")
    if option == "--html":  # a page of an earlier version, with other content
        path.write_bytes(earlier)
        assert main([*words, str(path)]) == 0
        assert path.read_bytes() == first
    html = b'<!doctype html>\n<html lang="en">\n<title>mine</title></html>\n'
    edited = [first.replace(b"finished", b"edited"), earlier + b"more\n", b"my notes\n", html, b""]
    for content in edited + [earlier] * (option == "--card"):
        path.write_bytes(content)
        assert main([*words, str(path)]) == 2
        assert f"{option} {path}: is there, and gatokit did not write it as it is" in capsys.readouterr().err
        assert path.read_bytes() == content
    (tmp_path / "mine").write_text("mine")
    for target in ("mine", "nothing"):
        path.unlink()
        path.symlink_to(target)
        assert main([*words, str(path)]) == 2
        assert (os.readlink(path), (tmp_path / "mine").read_text()) == (target, "mine")
        assert not (tmp_path / "nothing").exists()


def test_other_files_that_are_named_are_no_links(place: Path, tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("mine")
    for target in ("victim", "nothing"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert main(["vocab", str(place / "c.yaml"), "--out", str(link), "--pieces", "300"]) == 2
        assert main(["describe", str(place), "--write", str(link)]) == 2
        assert tree(tmp_path) == {"victim": b"mine", "link": target}


def test_what_killed_builds_of_earlier_versions_left_is_taken_up(place: Path, tmp_path: Path) -> None:
    """They marked no working folder, and their locks are empty."""
    out = tmp_path / "out"
    shutil.copytree(place / "finished", out)
    (out / "manifest.json").unlink()
    lines = (out / "build.log.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines.pop())["event"] == "build finished"
    (out / "build.log.jsonl").write_text("".join(lines) + '{"time": "2026-')
    (out / ".lock").touch()
    (out / ".work").mkdir()
    (out / ".work" / "units.jsonl").write_text("old")
    for name in (f".tmp-{HEX}{HEX}-x", f"t-{HEX}.arrayrecord"):
        (out / "t" / name).write_text("old")
    assert main(["build", str(place / "c.yaml"), "--out", str(out)]) == 0
    assert verify(out) == []


def test_a_folder_of_scanned_rows_may_hold_other_files(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, words = tmp_path / "cache", ["scan", str(place / "c.yaml"), "--scan-cache", str(tmp_path / "cache")]
    assert main([*words, "--out", str(tmp_path / "first")]) == 0
    [table] = cache.iterdir()
    for name in (f"{HEX}.arrow", "notes.arrow", "notes.txt"):
        (cache / name).write_text("mine")
    assert main([*words, "--out", str(tmp_path / "second")]) == 0
    table.write_text("mine")
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "third")]) == 2
    assert f"{table}: holds no scanned rows; remove it, or give another --scan-cache" in capsys.readouterr().err
    assert set(tree(cache).values()) == {b"mine"}
    assert len(tree(cache)) == 4


@pytest.mark.parametrize("name", ["shards", "errors", "attempts", "finished.txt", "units.jsonl"])
def test_a_build_does_not_go_on_through_a_link(name: str, place: Path, tmp_path: Path) -> None:
    """A build that was published before it had finished."""
    out = tmp_path / "out"
    shutil.copytree(place / "finished", out)
    (out / "manifest.json").unlink()
    (out / ".work").mkdir()
    (out / ".work" / "gatokit").touch()
    (out / ".work" / name).symlink_to(place / "victim" / ("documents" if "." not in name else ".bashrc"))
    before, of_victim = tree(out), tree(place / "victim")
    assert main(["build", str(place / "c.yaml"), "--out", str(out)]) == 2
    assert (tree(out), tree(place / "victim")) == (before, of_victim)


@pytest.mark.parametrize("name", ["data", "data/captions", "built", "run", "scores", "pictures", "data/atari"])
def test_the_demo_writes_through_no_link(name: str, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "demo" / "data").mkdir(parents=True)
    if name == "data":
        (tmp_path / "demo" / "data").rmdir()
    (tmp_path / "demo" / name).symlink_to(tmp_path / "victim")
    if name == "data/atari":
        with pytest.raises(MalformedError, match="atari is a link"):
            record(make("atari/Breakout", time_limit=9), tmp_path / "demo" / "data", Mix(expert=1))
    else:
        assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.parametrize("name", ["demo.yaml", "demo-train.yaml"])
def test_the_demo_replaces_no_config_that_somebody_edited(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "data").exists()
