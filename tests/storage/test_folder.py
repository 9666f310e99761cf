"""A name leads to a regular file inside of its folder, or to a sentence; JSON is read strictly."""

import os
import re
import socket
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatokit.schemas.errors import DataError, MalformedError
from gatokit.schemas.untrusted import check_path_name, check_plain_name, parse_json
from gatokit.storage.folder import check_tree, read_file, read_json, regular_file

BAD = [
    "",
    ".",
    "..",
    "../x",
    "/x",
    "a/../x",
    "a//x",
    "a/",
    "./x",
    ".x",
    "a/.x",
    "a\\x",
    "a\0x",
    "a\nx",
    "x\u202e",
    "ä",
    "-x",
]
BAD += ["a" * 256, "a/" * 300 + "\ud800", "gs://b/x", "C:x", "a\x1b[31m", " x", "x\n", "~/x", "%2e%2e/x"]


@pytest.mark.parametrize("name", BAD)
def test_bad_names(tmp_path: Path, name: str) -> None:
    for check in (check_path_name, check_plain_name):
        with pytest.raises(ValueError, match="is no ") as caught:
            check(name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 250
    with pytest.raises(MalformedError, match=f"^{tmp_path}: ") as refused:
        read_file(tmp_path, name)
    assert refused.value.exit_status == 2


def test_plain_names_are_one_component() -> None:
    assert check_plain_name("a-1.index.parquet") == "a-1.index.parquet"
    assert check_path_name("a_1/b.c/D-2") == "a_1/b.c/D-2"
    with pytest.raises(ValueError, match=r"^'a/b' is no plain name"):
        check_plain_name("a/b")


@example("a..b/c.")
@given(st.one_of(st.text(), st.lists(st.sampled_from(["a", "..", ".", "", "b.c", "\\", "\0"])).map("/".join)))
def test_a_name_that_passes_stays_in_the_folder(name: str) -> None:
    try:
        check_path_name(name)
    except ValueError:
        return
    path = PurePosixPath("/folder") / name
    assert path.parts == ("/", "folder", *name.split("/"))
    assert os.path.normpath(path) == str(path)
    assert all(part[0] != "." for part in path.parts[1:])
    assert name.isascii()
    assert name.isprintable()


def test_reads_a_file_of_the_stated_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "linked").symlink_to(tmp_path)
    for folder in (tmp_path, str(tmp_path), tmp_path / "linked"):  # the folder itself may be a link
        assert read_file(folder, "a/x") == read_file(folder, "a/x", 5) == b"12345"
        assert regular_file(folder, "a/x", 5) == Path(folder) / "a" / "x"
    with pytest.raises(DataError, match=f"^{tmp_path}/a/x has 5 bytes and the manifest says 6; gatokit verify"):
        read_file(tmp_path, "a/x", 6)
    with pytest.raises(MalformedError, match=f"^{tmp_path}/a/x has 5 bytes, and such a file has at most 4$"):
        read_file(tmp_path, "a/x", most=4)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path, "a/y")


def _link(path: Path) -> None:
    path.symlink_to(path.parent / "outside")


def _broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_link, "a link"),
        (_broken_link, "a link"),
        (os.mkfifo, "a FIFO"),
        (_socket, "a socket"),
        (Path.mkdir, "a directory"),
    ],
)
def test_what_is_no_file_is_not_opened(tmp_path: Path, make, kind: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "outside").write_bytes(b"{}")
    (tmp_path / "folder" / "a").mkdir(parents=True)
    make(tmp_path / "folder" / "a" / "x")
    message = f"^{tmp_path}/folder/a/x is {kind}, not a regular file; copy the file itself to its place$"
    for read in (read_file, regular_file, read_json):
        with pytest.raises(MalformedError, match=message):
            read(tmp_path / "folder", "a/x")
    if kind != "a directory":
        with pytest.raises(MalformedError, match=message):
            check_tree(tmp_path / "folder")


def test_a_device_is_not_opened() -> None:
    for read in (read_file, regular_file):
        with pytest.raises(MalformedError, match=r"^/dev/zero is a device, not a regular file"):
            read("/dev", "zero")


def test_a_directory_that_is_a_link_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_bytes(b"{}")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").symlink_to("../elsewhere")
    with pytest.raises(MalformedError, match=f"^{folder}/a is a link, not a directory; copy the folder again$"):
        read_file(folder, "a/x")
    with pytest.raises(MalformedError, match=f"^{folder}/a is a link, not a regular file"):
        check_tree(folder)
    check_tree(tmp_path / "elsewhere")


def test_a_sparse_file_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MalformedError, match=r"x has 1,099,511,627,776 bytes, and .* at most 268,435,456$"):
        read_json(tmp_path, "x")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "the key 'c' stands twice"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number of JSON"),
        (b"[1e999]", "the number 1e999 is too large"),
        (b"9" * 5000, "Exceeds the limit (4300 digits) for integer string conversion"),
        (b'"\xff"', "'utf-8' codec can't decode byte 0xff in position 1"),
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"\\u001b[31m\\u202e": 1, "\\u001b[31m\\u202e": 2}', r"the key '\x1b[31m\u202e' stands twice"),
    ],
)
def test_json_is_strict(data: bytes, problem: str) -> None:
    with pytest.raises(MalformedError, match=f"^x cannot be read as JSON: {re.escape(problem)}"):
        parse_json(data, "x")


def test_json_is_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, "\xc3\xa4"], "b": {"a": null}}', "x") == {"a": [1, 2.5, "ä"], "b": {"a": None}}
