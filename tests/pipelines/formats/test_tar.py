import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.formats.tar import Gap, Member, Reader, is_tar, members
from gatokit.storage.files import ranges

NAMES = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]) | st.sampled_from("./a"),
    min_size=1,
    max_size=300,
).filter(lambda name: name.strip("/") not in ("", ".") and not name.endswith("/"))
TYPES = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]


def walk(path: Path) -> list[Member | Gap]:
    with ranges(path) as file:
        return list(members(Reader(file)))


def damage(path: Path) -> tuple[list[bytes], Gap]:
    """Names of the members, and the only gap between or behind them."""
    found = walk(path)
    [gap] = [item for item in found if isinstance(item, Gap)]
    return [item.name for item in found if isinstance(item, Member)], gap


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
        found, gap = damage(path)
        assert (found, gap.ends_early, gap.end) == (names, True, end)
        assert gap.problem.startswith("the file ends")
    path.write_bytes(whole[:3072])
    assert [member.name for member in walk(path)] == [b"a.jpg", b"b.jpg"]


def test_behind_a_damaged_header_the_walk_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"a": b"1", "b": b"2", "c": b"3"})
    whole = path.read_bytes()
    for at in [1024, 1024 + 130, 1024 + 150, 1024 + 511]:
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        gap = Gap(1024, 2048, "a header does not match its checksum at byte 1024")
        assert damage(path) == ([b"a", b"c"], gap)


def test_what_follows_the_end_marker_is_no_padding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"a": b"1"})
    whole = path.read_bytes()
    path.write_bytes(whole * 2)
    problem = "more than padding follows the archive's end marker at byte 1024"
    assert damage(path) == ([b"a", b"a"], Gap(1024, len(whole), problem))
    path.write_bytes(whole + b"x" * 700)
    assert damage(path) == ([b"a"], Gap(1024, len(whole) + 700, problem))


def test_bytes_that_are_put_in_or_taken_out_cost_the_member_before_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {name: name.encode() * 600 for name in "abcd"})
    whole, member = path.read_bytes(), 512 + 1024
    path.write_bytes(whole[: member + 700] + whole[member + 703 :])
    problem = f"a header does not match its checksum at byte {member}"
    assert damage(path) == ([b"a", b"c", b"d"], Gap(member, 2 * member - 3, problem))
    path.write_bytes(whole[: member + 700] + b"new" + whole[member + 700 :])
    assert damage(path) == ([b"a", b"c", b"d"], Gap(member, 2 * member + 3, problem))
    path.write_bytes(whole[:member] + whole[2 * member : 3 * member] + whole[member : 2 * member] + whole[3 * member :])
    assert [item.name for item in walk(path)] == [b"a", b"c", b"b", b"d"]


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
        problem = "a sparse file; write the archive without --sparse, at byte 0"
        assert walk(path) == [Gap(0, path.stat().st_size - 1024, problem)]


@pytest.mark.parametrize("record", [b"9 path=a", b"x path=a\n", b"999 path=a\n", b"11 path a\n\n"])
def test_an_extended_header_that_does_not_parse(tmp_path: Path, record: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    path = tmp_path / "a.tar"
    follows = tarfile.TarInfo("y").tobuf() + bytes(1024)
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + follows)
    assert (damage(path)[0], damage(path)[1][:2]) == ([b"y"], (0, 1024))


@settings(max_examples=200)
@given(flips=st.lists(st.tuples(st.integers(0, 4 * 512 - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_archive_is_walked(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.tar", {"a": b"1", "b" * 150: b"2"}, tarfile.PAX_FORMAT)
    data = bytearray(path.read_bytes())
    for at, mask in flips:
        data[at] ^= mask
    path.write_bytes(data)
    ends = [item.end if isinstance(item, Gap) else item.begin + item.size for item in walk(path)]
    assert ends == sorted(ends)
    assert max(ends, default=0) <= len(data)


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
