"""Which directories a pattern finds, and what they are called."""

import glob
import os
import re
from pathlib import Path

import pytest

from gatokit.pipelines.inputs import FoundDirectory, find_directories, fixed_part, local_path, local_pattern
from gatokit.schemas.errors import ConfigError

TFDS, LOG = "features.json", "metadata.riegeli"


def tree(root: Path, *files: str) -> None:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(root: Path, pattern: str) -> dict[str, str]:
    """Name of each source and its path below ``root``."""
    items = find_directories(f"{root}/{pattern}", (TFDS, LOG), "datasets[0].source")
    names = {item.name: os.path.relpath(item.path, root) for item in items}
    assert len(names) == len(items)
    assert list(names) == sorted(names)
    return names


def refused(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_directories(pattern, (TFDS, LOG), "datasets[2].source")
    assert str(caught.value) == f"datasets[2].source: {message}"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/*", {"a": "data/a", "b": "data/b"}),
        ("data/*/", {"a": "data/a", "b": "data/b"}),
        ("data", {"a": "data/a", "b": "data/b"}),
        ("data/", {"a": "data/a", "b": "data/b"}),
        ("data/a", {"a": "data/a"}),
        ("d*/a", {"data/a": "data/a"}),
        ("*/?", {"data/a": "data/a", "data/b": "data/b", "more/c": "more/c"}),
        ("*", {"data/a": "data/a", "data/b": "data/b", "more/c": "more/c"}),
        ("data/[b]", {"b": "data/b"}),
    ],
)
def test_wildcards_at_different_places(tmp_path: Path, pattern: str, expected: dict[str, str]) -> None:
    tree(tmp_path, f"data/a/{TFDS}", f"data/b/{LOG}", "data/README.md", f"more/c/{TFDS}", "empty/x/y/readme")
    assert found(tmp_path, pattern) == expected


def test_the_marker_says_which_format(tmp_path: Path) -> None:
    tree(tmp_path, f"a/{TFDS}", f"b/{LOG}")
    assert find_directories(f"{tmp_path}/*", (TFDS, LOG), "source") == [
        FoundDirectory(f"{tmp_path}/a", "a", TFDS),
        FoundDirectory(f"{tmp_path}/b", "b", LOG),
    ]


def test_a_source_inside_of_a_source_is_part_of_it(tmp_path: Path) -> None:
    tree(tmp_path, f"a/{TFDS}", f"a/inner/{TFDS}", f"a/{LOG}")
    assert found(tmp_path, "*") == {"a": "a"}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/*", {"a": "data/a/10.0.0", "b": "data/b/1.0.0", "c/easy": "data/c/easy/2.0.1"}),
        ("data/a", {"a": "data/a/10.0.0"}),
        ("data/a/", {"a": "data/a/10.0.0"}),
        ("data/a/*", {"a": "data/a/10.0.0"}),
        ("data/a/1.*", {"a": "data/a/1.2.0"}),
        ("data/a/9.1.1", {"a": "data/a/9.1.1"}),
        ("data/a/9.1.1/", {"a": "data/a/9.1.1"}),
        ("data/*/1.0.0", {"a": "data/a/1.0.0", "b": "data/b/1.0.0"}),
        ("data/c/easy", {"easy": "data/c/easy/2.0.1"}),
    ],
)
def test_versions(tmp_path: Path, pattern: str, expected: dict[str, str]) -> None:
    versions = ["a/9.1.1", "a/10.0.0", "a/1.0.0", "a/1.2.0", "b/1.0.0", "c/easy/2.0.0", "c/easy/2.0.1"]
    tree(tmp_path, *(f"data/{version}/{TFDS}" for version in versions))
    assert found(tmp_path, pattern) == expected


def test_hidden_directories_are_recordings_in_progress(tmp_path: Path) -> None:
    tree(tmp_path, f"data/a/{TFDS}", f"data/.b/{TFDS}", f"data/c/.d/{TFDS}")
    for pattern in ("data", "data/*"):
        assert found(tmp_path, pattern) == {"a": "data/a"}


def test_what_only_looks_like_a_version_is_a_name(tmp_path: Path) -> None:
    tree(tmp_path, *(f"data/a/{name}/{TFDS}" for name in ("1.0", "v1.0.0", "1.0.0-rc", "1.0.0.0")))
    expected = {f"a/{name}": f"data/a/{name}" for name in ("1.0", "1.0.0-rc", "1.0.0.0", "v1.0.0")}
    assert found(tmp_path, "data/*") == expected


def test_spaces_brackets_and_unicode_in_names(tmp_path: Path) -> None:
    root = tmp_path / "mit Leerzeichen [v2] *"
    tree(root, f"data/größe ü/{TFDS}", f"data/レベル 1/{LOG}", f"data/it's #1/{TFDS}")
    items = find_directories(f"{glob.escape(str(root))}/data/*", (TFDS, LOG), "source")
    assert [item.name for item in items] == ["größe ü", "it's #1", "レベル 1"]
    assert [item.path for item in items] == [f"{root}/data/{item.name}" for item in items]
    assert fixed_part(f"{glob.escape(str(root))}/data/*") == f"{root}/data"
    refused(f"{glob.escape(str(root))}/x*", f"{root}/x* matches nothing; paths are relative to the config file")


@pytest.mark.parametrize("pattern", [".", "../here"])
def test_the_directory_itself_has_its_own_name(tmp_path: Path, pattern: str) -> None:
    tree(tmp_path, f"here/{TFDS}")
    assert found(tmp_path / "here", pattern) == {"here": "."}


def test_relative_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, f"data/a/{TFDS}")
    monkeypatch.chdir(tmp_path)
    for pattern, below in [("data/*", "data"), ("data", "data"), ("*", "."), ("./data/a/*", "./data/a")]:
        assert fixed_part(pattern) == below
    assert find_directories("data/*", (TFDS,), "source") == [FoundDirectory("data/a", "a", TFDS)]
    assert find_directories("*", (TFDS,), "source") == [FoundDirectory("data/a", "data/a", TFDS)]


@pytest.mark.parametrize(
    ("pattern", "below"),
    [
        ("/data/suite/*", "/data/suite"),
        ("/data/suite", "/data/suite"),
        ("/data/suite/", "/data/suite"),
        ("/data/s*/x/y", "/data"),
        ("/*", "/"),
        ("/", "/"),
        ("/a/[[]x]/b", "/a/[x]/b"),
        ("/a/[[]x]/b?", "/a/[x]"),
        ("/a/x[12]/b", "/a"),
    ],
)
def test_fixed_part(pattern: str, below: str) -> None:
    assert fixed_part(pattern) == below


def test_links_are_followed(tmp_path: Path) -> None:
    tree(tmp_path, f"elsewhere/a/{TFDS}", f"elsewhere/b/1.0.0/{TFDS}", f"data/plain/{TFDS}")
    (tmp_path / "data" / "match").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "data" / "deeper").mkdir()
    (tmp_path / "data" / "deeper" / "inner").symlink_to(tmp_path / "elsewhere")
    expected = {
        "deeper/inner/a": "data/deeper/inner/a",
        "deeper/inner/b": "data/deeper/inner/b/1.0.0",
        "match": "data/match",
        "plain": "data/plain",
    }
    assert found(tmp_path, "data/*") == expected


def test_links_in_circles_end(tmp_path: Path) -> None:
    tree(tmp_path, f"one/a/{TFDS}", f"two/b/{TFDS}")
    (tmp_path / "one" / "up").symlink_to(tmp_path)
    (tmp_path / "one" / "two").symlink_to(tmp_path / "two")
    (tmp_path / "two" / "one").symlink_to(tmp_path / "one")
    assert found(tmp_path, "one") == {
        "a": "one/a",
        "two/b": "one/two/b",
        "up/two/b": "one/up/two/b",
    }


def test_a_link_to_nothing_is_an_error_where_it_is_meant(tmp_path: Path) -> None:
    tree(tmp_path, f"data/a/{TFDS}")
    (tmp_path / "data" / "gone").symlink_to(tmp_path / "nowhere")
    refused(
        f"{tmp_path}/data/*",
        f"{tmp_path}/data/gone cannot be read: No such file or directory; mend it or narrow source",
    )
    assert found(tmp_path, "data/a") == {"a": "data/a"}


def test_nothing_there(tmp_path: Path) -> None:
    tree(tmp_path, "data/a/readme")
    refused(f"{tmp_path}/none", f"{tmp_path}/none does not exist; paths are relative to the config file")
    refused(f"{tmp_path}/none/*", f"{tmp_path}/none/* matches nothing; paths are relative to the config file")
    for pattern in ("data", "data/*", "data/a/readme"):
        refused(
            f"{tmp_path}/{pattern}",
            f"no directory below {tmp_path}/{pattern} holds a source of episodes ({TFDS} or {LOG})",
        )


def test_paths_start_at_their_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    base = tmp_path / "a [1]"
    assert local_path("data/*", base, "source") == f"{base}/data/*"
    assert local_path("/data", base, "source") == "/data"
    assert local_path("~/data", base, "source") == "/home/me/data"
    assert local_pattern("data/*", base, "source") == f"{tmp_path}/a [[]1]/data/*"


def test_paths_on_object_storage_stand_for_themselves(tmp_path: Path) -> None:
    assert local_pattern("gs://bucket/data/*", tmp_path, "source") == "gs://bucket/data/*"
    assert local_path("data/x", Path("gs://bucket/configs"), "source") == "gs://bucket/configs/data/x"
    said = "source: 's3://bucket/data/*' is neither local nor on gs://; copy or mount the files and give that path"
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        local_pattern("s3://bucket/data/*", tmp_path, "source")
