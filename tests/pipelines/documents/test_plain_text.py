"""Plain text files."""

import gzip
from pathlib import Path

import pytest
import zstandard

from gatokit.pipelines.documents.reader import content_digest
from gatokit.pipelines.documents.text import PlainTextFile
from gatokit.schemas.errors import DataError


def plain(path: Path, data: bytes) -> PlainTextFile:
    path.write_bytes(data)
    return PlainTextFile(path=str(path), name=path.name, size=len(data))


STORES = {"a b [1] ü.txt": bytes, "a.md.gz": gzip.compress, "a.rst.zst": zstandard.compress}


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"one\r\n\n  two\0\n", "one\r\n\n  two\0\n"),
        (b"\xef\xbb\xbf\xc3\xbc", "ü"),
        ("ü\n🙂".encode("utf-16"), "ü\n🙂"),
        (b"\xfe\xff" + "ü\n🙂".encode("utf-16-be"), "ü\n🙂"),
        ("ü\n🙂".encode("utf-32"), "ü\n🙂"),
        (b"line\n" * 600_000, "line\n" * 600_000),
    ],
)
def test_a_file_is_one_text_to_the_byte(tmp_path: Path, name: str, data: bytes, text: str) -> None:
    file = plain(tmp_path / name, STORES[name](data))
    [found] = file.scan(len(data))
    assert (found.reason, found.key, found.byte_range.position, found.byte_range.length) == (None, "0", 0, len(data))
    assert found.content == content_digest([text])
    assert list(file.read([found.byte_range])) == [[text]]
    assert list(file.read([])) == []


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "empty", "'the file' holds nothing but white space"),
        (b"\xef\xbb\xbf \n", "empty", "'the file' holds nothing but white space"),
        (b"\xff\xfea\0b", "not_utf8", "the file is not valid UTF-8 at its byte 4"),
        (b"abc\xff", "not_utf8", "the file is not valid UTF-8 at its byte 3"),
        (b"x" * 101, "too_large", "the document is above max_episode_bytes 100"),
    ],
)
def test_a_bad_file_is_one_row(tmp_path: Path, name: str, data: bytes, reason: str, detail: str) -> None:
    [found] = plain(tmp_path / name, STORES[name](data)).scan(100)
    assert (found.reason, found.detail, found.content, found.lost) == (reason, detail, None, 1)


@pytest.mark.parametrize("name", ["a.md.gz", "a.rst.zst"])
def test_a_truncated_file_is_one_row(tmp_path: Path, name: str) -> None:
    whole = STORES[name](b"some text " * 50)
    for size in range(1, len(whole)):
        [found] = plain(tmp_path / name, whole[:size]).scan(1000)
        assert (found.reason, found.lost, found.lost_bytes) == ("ends_early", 1, 0)


def test_a_change_after_the_scan_is_an_error(tmp_path: Path) -> None:
    file = plain(tmp_path / "a.txt", b"some text")
    [found] = file.scan(100)
    for data in (b"same text", b"some text!", b"some tex", b"", b"\xff" * 9):
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.txt: document 0 changed between scan and build"):
            list(file.read([found.byte_range]))
