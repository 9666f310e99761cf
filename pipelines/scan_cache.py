"""Scanned rows of source files, kept in tables, so that no file is read again that is what it was.

A table holds the rows of several files one after the other. Its metadata says which rows are those of which file, and
gives each file a key: a digest of all that its rows depend on. Rows that name pictures in a folder also depend on
these; size and version of each are kept beside the key and compared before the rows are taken again.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.schemas.errors import ConfigError, MalformedError
from gatokit.schemas.index import CONTAINER_REASONS
from gatokit.schemas.manifest import digest
from gatokit.storage import files
from gatokit.storage.folder import regular_file
from gatokit.storage.ownership import check_output

SCANS = ".scan"
"""Folder in ``--out`` with the tables, if no other is given."""
_SUFFIX = ".arrow"
_FILES = b"gatokit.scanned"
_PICTURES = b"gatokit.pictures"
_FOOTER_BYTES = 1 << 16
_MOST_SCHEMA = 1 << 24

Pictures = dict[str, tuple[int, int] | None]
"""Size and ``files.version`` of pictures by their names; None for one that is not there."""
LOOKED_AT: ContextVar[Pictures | None] = ContextVar("looked_at", default=None)
"""The pictures that the scan of a file has looked for. None: nobody asks."""


@dataclass(frozen=True)
class ScannedFile:
    """Rows [``begin``, ``end``) of a table, which has them under the file number ``ordinal``.

    ``is_whole`` is set if nothing of the file was lost.
    """

    table: Path
    ordinal: int
    begin: int
    end: int
    is_whole: bool
    pictures: Pictures


@dataclass(frozen=True)
class Segment:
    """Rows [``begin``, ``end``) of a table, all of them by default. ``ordinals`` has the file number that replaces each
    one of the table (-1: it has no rows here); None if they stay."""

    path: Path
    begin: int = 0
    end: int | None = None
    ordinals: np.ndarray | None = None

    def read(self, without: Callable[[str], bool] | None = None) -> pa.Table:
        """The rows, without the columns of which ``without`` is true."""
        rows = files.read_rows(self.path, without, is_mapped=True)
        if self.end is not None:
            rows = rows.slice(self.begin, self.end - self.begin)
        if self.ordinals is not None:
            numbers = pa.array(self.ordinals[rows["file"].to_numpy()], pa.int32())
            place = rows.schema.get_field_index("file")
            rows = rows.set_column(place, rows.schema.field(place), numbers)
        return rows


def table_path(directory: str | Path, fingerprint: str) -> Path:
    """The table of the unit of a scan with this fingerprint."""
    return Path(directory) / f"{fingerprint}{_SUFFIX}"


def unit_keys(keys: Sequence[str], ordinals: Sequence[int], most_rows: int | None) -> tuple[str, ...]:
    """The keys of some files. If the scan ends with their row ``most_rows``, each depends on all of them."""
    of_unit = tuple(keys[ordinal] for ordinal in ordinals)
    if most_rows is None:
        return of_unit
    return tuple(digest(f"{most_rows}\0{key}\0".encode() + "".join(of_unit).encode(), 16) for key in of_unit)


def with_pictures(rows: pa.Table, pictures: dict[int, Pictures]) -> pa.Table:
    """Scanned rows with what the scan of each file, by its number, has looked for."""
    found = {ordinal: each for ordinal, each in pictures.items() if each}
    return rows.replace_schema_metadata({_PICTURES: _packed(found)} if found else None)


def write(path: str | Path, keys: Sequence[str], ordinals: Sequence[int], tables: Sequence[pa.Table]) -> pa.Table:
    """Writes the rows of files with these keys and ascending numbers, in which ``tables`` are one after the other."""
    pictures: dict[str, Pictures] = {}
    for table in tables:
        pictures |= _unpacked((table.schema.metadata or {}).get(_PICTURES))
    rows = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    number, numbers = rows["file"].to_numpy(), np.array(ordinals, np.int64)
    begins, ends = (np.searchsorted(number, numbers, side).tolist() for side in ("left", "right"))
    is_lost = pc.is_in(rows["reason"].cast(pa.string()), pa.array(CONTAINER_REASONS, pa.string()))
    lost = set(number[is_lost.to_numpy()].tolist())
    found = [
        [key, ordinal, begin, end, ordinal not in lost, pictures.get(str(ordinal), {})]
        for key, ordinal, begin, end in zip(keys, ordinals, begins, ends, strict=True)
    ]
    files.write_rows(path, rows.replace_schema_metadata({_FILES: _packed(found)}))
    return rows


def find(paths: Iterable[Path]) -> dict[str, ScannedFile]:
    """The files of tables by their keys. A table that cannot be read has none."""

    def read(path: Path) -> bytes | None:
        try:
            if not files.is_remote(path):
                regular_file(path.parent, path.name)
            with files.arrow_file(path) as file, pa.ipc.open_file(file) as reader:
                return (reader.schema.metadata or {}).get(_FILES)
        except (OSError, pa.ArrowException, MalformedError):
            return None

    paths = list(paths)
    found: dict[str, ScannedFile] = {}
    for path, packed in zip(paths, files.prefetch(paths, read, lambda _: _FOOTER_BYTES), strict=True):
        for key, ordinal, begin, end, is_whole, pictures in _unpacked(packed) or ():
            states = {name: None if state is None else (state[0], state[1]) for name, state in pictures.items()}
            found[key] = ScannedFile(path, ordinal, begin, end, is_whole, states)
    return found


def tables(directory: str | Path) -> list[Path]:
    """The files in a directory that have the suffix of a table."""
    return [Path(directory) / name for name in files.names(directory) if name.endswith(_SUFFIX)]


def is_table(path: Path) -> bool:
    """Whether a file is a table of scanned rows, which may be damaged: the beginning of Arrow's file, in which the
    names of its metadata stand, says so."""
    try:
        check_output(path)
        with files.ranges(path) as file:
            begin = file.read_at(0, 16)
            length = min(int.from_bytes(begin[12:16], "little"), _MOST_SCHEMA)
            return begin.startswith(b"ARROW1") and _FILES in file.read_at(16, length)
    except (OSError, MalformedError):
        return False


def remove(paths: Iterable[Path]) -> None:
    """Removes tables. Raises ConfigError if a file is no table of scanned rows, and so is somebody's own."""
    for path in paths:
        if files.exists(path) and not is_table(path):
            raise ConfigError(f"{path}: holds no scanned rows; remove it, or give another --scan-cache")
        files.remove(path)


def segments(found: Sequence[ScannedFile]) -> list[Segment]:
    """The rows of a dataset's files, which get the numbers 0, 1, 2, …. Rows that follow each other are one segment."""
    starts = [
        number
        for number, (before, item) in enumerate(pairwise([None, *found]))
        if before is None or item is None or (before.table, before.end) != (item.table, item.begin)
    ]
    result = []
    for first, stop in pairwise([*starts, len(found)]):
        members = [item for item in found[first:stop] if item is not None]
        ordinals = np.full(max(item.ordinal for item in members) + 1, -1, np.int64)
        ordinals[[item.ordinal for item in members]] = np.arange(first, stop)
        result.append(Segment(members[0].table, members[0].begin, members[-1].end, ordinals))
    return result


def state(path: str) -> tuple[int, int] | None:
    """Size and version of a file; None if there is none."""
    try:
        return files.size(path), files.version(path)
    except (OSError, ValueError):
        return None


def stand(folder: str, pictures: Pictures) -> bool:
    """Whether pictures of a folder are what they were."""
    if not files.is_remote(folder):
        return all(state(f"{folder}/{name}") == known for name, known in pictures.items())
    there = files.states(folder) if pictures else {}
    return all(there.get(name) == known for name, known in pictures.items())


def _packed(value: object) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode("utf-8", "surrogatepass"), 1)


def _unpacked(packed: bytes | None) -> Any:
    return {} if packed is None else json.loads(zlib.decompress(packed))
