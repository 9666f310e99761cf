import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.formats.tar import DamagedTarError, Member, Reader, is_tar, members
from gatokit.storage.files import ranges

NAMES = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]) | st.sampled_from("./a"),
    min_size=1,
    max_size=300,
).filter(lambda name: name.strip("/") not in ("", ".") and not name.endswith("/"))
TYPES = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]


def walk(path: Path) -> list[Member]:
    with ranges(path) as file:
        return list(members(Reader(file)))


def damage(path: Path) -> tuple[list[bytes], str, int]:
    """Names of the members before the damage, what it says, and where."""
    found = []
    with ranges(path) as file:
        walked = members(Reader(file))
        with pytest.raises(DamagedTarError) as caught:
            found.extend(member.name for member in walked)
    return found, str(caught.value), caught.value.offset


def write(path: Path, files: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@settings(max_examples=150)
@given(
    files=st.lists(st.tuples(NAMES, st.sampled_from(TYPES), st.integers(0, 2000)), max_size=6),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_of_pythons_tarfile(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes, int]], format: int
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    with tarfile.open(path, "w", format=format, encoding="utf-8") as archive:
        for name, kind, size in files:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "elsewhere"
            info.size = size if kind in tarfile.REGULAR_TYPES else 0
            try:
                archive.addfile(info, io.BytesIO(bytes(size)))
            except ValueError:  # a name too long for the format
                continue
    with tarfile.open(path, encoding="utf-8") as archive:
        expected = [
            Member(info.name.encode(), info.offset, info.offset_data, info.size) for info in archive if info.isreg()
        ]
    assert walk(path) == expected


def test_a_small_archive_in_full(tmp_path: Path) -> None:
    assert walk(write(tmp_path / "a.tar", {"x.jpg": b"12345", "folder/x.txt": b"", "y": b"z" * 513})) == [
        Member(b"x.jpg", 0, 512, 5),
        Member(b"folder/x.txt", 1024, 1536, 0),
        Member(b"y", 1536, 2048, 513),
    ]


def test_a_size_in_a_pax_header_counts(tmp_path: Path) -> None:
    info = tarfile.TarInfo("large")
    info.size, info.pax_headers = 0, {"size": "700"}
    after = tarfile.TarInfo("after")
    data = info.tobuf(tarfile.PAX_FORMAT) + bytes(1024) + after.tobuf() + bytes(1024)
    (tmp_path / "a.tar").write_bytes(data)
    found = walk(tmp_path / "a.tar")
    assert [(member.name, member.begin, member.size) for member in found] == [
        (b"large", 1536, 700),
        (b"after", 3072, 0),
    ]


def test_a_binary_size_and_a_checksum_of_signed_bytes(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("ünsigned").tobuf(tarfile.USTAR_FORMAT, "latin-1"))
    header[124:136] = b"\x80" + (600).to_bytes(11, "big")
    header[148:156] = b" " * 8
    signed = sum(byte - 256 * (byte >= 128) for byte in header)
    header[148:156] = b"%06o\0 " % signed
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024) + bytes(1024))
    assert walk(tmp_path / "a.tar") == [Member(b"\xfcnsigned", 0, 512, 600)]


def test_an_archive_cut_off_anywhere_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"a.jpg": b"1" * 600, "b.jpg": b"2" * 10})
    whole = path.read_bytes()
    for end, names in [
        (100, []),
        (700, []),
        (1024, []),
        (1536, [b"a.jpg"]),
        (2052, [b"a.jpg"]),
        (2560, [b"a.jpg", b"b.jpg"]),
    ]:
        path.write_bytes(whole[:end])
        found, why, _ = damage(path)
        assert (found, "the file ends" in why) == (names, True), end
    path.write_bytes(whole[:3072])
    assert [member.name for member in walk(path)] == [b"a.jpg", b"b.jpg"]


def test_a_flipped_bit_in_a_header_ends_the_walk(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"a": b"1", "b": b"2", "c": b"3"})
    whole = path.read_bytes()
    for at in [1024, 1024 + 130, 1024 + 150, 1024 + 511]:
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        assert damage(path) == ([b"a"], damage(path)[1], 1024)


def test_what_follows_the_end_marker_is_no_padding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"a": b"1"})
    path.write_bytes(path.read_bytes() * 2)
    assert damage(path)[::2] == ([b"a"], 1024)
    assert "more than padding follows" in damage(path)[1]


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("holes")
    info.type = tarfile.GNUTYPE_SPARSE
    old = tmp_path / "old.tar"
    old.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    new = tmp_path / "new.tar"
    info = tarfile.TarInfo("holes")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "holes"}
    new.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    for path in (old, new):
        assert damage(path) == ([], "a sparse file; write the archive without --sparse, at byte 0", 0)


@pytest.mark.parametrize("record", [b"9 path=a", b"x path=a\n", b"999 path=a\n", b"11 path a\n\n"])
def test_an_extended_header_that_does_not_parse(tmp_path: Path, record: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tarfile.TarInfo("y").tobuf())
    assert damage(path)[0] == []


@settings(max_examples=200)
@given(flips=st.lists(st.tuples(st.integers(0, 4 * 512 - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_archive_is_walked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.tar", {"a": b"1", "b" * 150: b"2"}, tarfile.PAX_FORMAT)
    data = bytearray(path.read_bytes())
    for at, mask in flips:
        data[at] ^= mask
    path.write_bytes(data)
    found: list[Member] = []
    with ranges(path) as file, contextlib.suppress(DamagedTarError):
        found.extend(members(Reader(file)))
    assert all(member.begin + member.size <= len(data) for member in found)


def test_is_tar() -> None:
    header = tarfile.TarInfo("a").tobuf()
    assert is_tar(header)
    assert is_tar(bytes(512))
    assert not is_tar(header[:511])
    assert not is_tar(b"PK\3\4".ljust(512, b"x"))


def test_small_reads_share_a_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tar", {f"{i}": bytes(100) for i in range(100)})
    calls = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: calls.append(arguments) or pread(*arguments))
    assert len(walk(path)) == 100
    assert len(calls) <= 2
