"""What every folder of tests may use."""

import ctypes
import os
import struct
from pathlib import Path

import pytest


def empty_library(soname: str) -> bytes:
    """An x86-64 ELF library with a name and no symbols."""
    strings = b"\0" + soname.encode() + b"\0"
    strings += bytes(-len(strings) % 8)
    begin = 64 + 3 * 56
    symbols, names = begin, begin + 24
    hashes = names + len(strings)
    dynamic = hashes + 16
    entries = [(14, 1), (4, hashes), (5, names), (6, symbols), (10, len(strings)), (11, 24), (0, 0)]
    size = dynamic + 16 * len(entries)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 6, 0, 0, 0, size, size, 4096)
    dynamics = struct.pack("<IIQQQQQQ", 2, 6, dynamic, dynamic, dynamic, size - dynamic, size - dynamic, 8)
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    table = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    return header + load + dynamics + stack + bytes(24) + strings + struct.pack("<4I", 1, 1, 0, 0) + table


@pytest.fixture(scope="session")
def native_envlogger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes EnvLogger load on a machine without libgmpxx, here and in child processes; the library's stand-in.

    EnvLogger was linked to libgmpxx and uses no symbol of it, so an empty library of that name will do.
    """
    stand_in = tmp_path_factory.mktemp("native") / "libgmpxx.so.4"
    stand_in.write_bytes(empty_library("libgmpxx.so.4"))
    try:
        ctypes.CDLL("libgmpxx.so.4")
    except OSError:
        ctypes.CDLL(os.fspath(stand_in))
        known = os.environ.get("LD_LIBRARY_PATH")
        os.environ["LD_LIBRARY_PATH"] = os.fspath(stand_in.parent) + (f":{known}" if known else "")
    return stand_in
