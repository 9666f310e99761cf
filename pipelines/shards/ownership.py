"""Which files of a directory a build made, and so may overwrite and remove.

A directory is a build's if its manifest or its log says so: the log is the first file that a build writes into an
empty directory. In it the folders of the datasets that manifest and log name are the build's, a working directory that
holds ``MARKER``, and tables of scanned rows. Everything else is somebody's own, and stays as it is. Nothing is read,
written or removed through a link.
"""

import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatokit.pipelines.scan_cache import SCANS, is_table, tables
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.index import INDEX_SUFFIX
from gatokit.schemas.manifest import LOG, MANIFEST, VOCABULARY, Manifest
from gatokit.storage import files
from gatokit.storage.files import TEMPORARY_NAME, is_remote
from gatokit.storage.folder import check_tree, read_manifest
from gatokit.storage.lock import LOCK, hold, is_lock
from gatokit.storage.ownership import check_folder, check_output

WORK = ".work"
"""Folder of a job that has not finished: scanned rows, shard tasks, markers."""
MARKER = "gatokit"
"""Name of the file in ``WORK`` by which it is a build's."""
_SUMMARY = r"(dataset(-[0-9a-f]{16})?\.json|tasks(-[0-9a-f]{16})?\.parquet)"
_LINE_BYTES = 1 << 20
"""Longer lines of a log are read in parts, and none of these says anything."""
_OF_SYSTEMS = re.compile(r"\.(nfs[0-9a-f]+|DS_Store|_.*)|Thumbs\.db|desktop\.ini", re.DOTALL)
"""Files that file systems and desktops leave in any folder."""


@dataclass(frozen=True)
class BuildLog:
    """What a build's log says: the datasets of all jobs that began, and whether the last one finished."""

    datasets: set[str]
    is_finished: bool


def read_log(root: Path) -> BuildLog | None:
    """The log of a directory; None if there is none that a build wrote. Raises MalformedError if it is a link."""
    path = root / LOG
    check_output(path)
    if not files.exists(path):
        return None
    datasets, is_finished, is_log = set[str](), False, False
    with files.ranges(path) as file:
        for event in _events(file):
            match event:
                case {"event": "build started" | "scan started", "datasets": [*names]}:
                    datasets |= {name for name in names if isinstance(name, str)}
                    is_log, is_finished = True, False
                case {"event": "build finished" | "scan finished"}:
                    is_finished = True
                case _:
                    is_finished = False
    return BuildLog(datasets, is_finished) if is_log else None


def _events(file: files.Ranges) -> Iterator[Any]:
    """The values of the lines that are JSON."""
    rest, offset = b"", 0
    while part := file.read_at(offset, _LINE_BYTES):
        offset += len(part)
        *lines, rest = (rest + part).split(b"\n")
        rest = rest if len(rest) <= _LINE_BYTES else b"?"
        for line in lines:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                continue


# --- before a job writes -------------------------------------------------------------------------------------------


def check_directory(root: Path, datasets: Collection[str], content: str) -> None:
    """Raises ConfigError if a job with these datasets would write over something in ``root`` that no build made,
    MalformedError if it would write through a link."""
    there = files.names(root) if files.is_directory(root) else []
    for name in {LOG, MANIFEST, VOCABULARY, LOCK}.intersection(there):
        check_output(root / name)
    for name in {WORK, SCANS, *datasets}.intersection(there):
        check_folder(root / name)
    log, manifest = _evidence(root, there)
    if log is None and LOG in there:
        raise _foreign(root, LOG, content)
    if log is None and manifest is None:
        # A vocabulary must be the config's and stays. A lock that another job has just made comes before its log.
        ours = ({VOCABULARY} if content == "build" else set()) | (
            {LOCK} if is_remote(root) or LOCK not in there else _lock_names(root)
        )
        foreign = [name for name in there if name not in ours and not _OF_SYSTEMS.fullmatch(name)]
        if foreign:
            raise _foreign(root, foreign[0], content)
        return
    if WORK in there and not _is_own_work(root, log):
        raise _foreign(root, WORK, content)
    if WORK in there and not is_remote(root):
        check_tree(root / WORK)
    known = _folders(log, manifest)
    named = _named(manifest) if manifest is not None else set()
    for folder in sorted(set(datasets).intersection(there)):
        of_folder = files.sizes(root / folder, links=False)
        for name in of_folder if is_remote(root) else files.names(root / folder):
            is_own = folder in known and name in of_folder and (_is_made(folder, name) or f"{folder}/{name}" in named)
            if not is_own and not _OF_SYSTEMS.fullmatch(name):
                raise _foreign(root, f"{folder}/{name}", content)


def _lock_names(root: Path) -> set[str]:
    return {LOCK} if is_lock(root / LOCK, may_be_empty=False) else set()


def _foreign(root: Path, name: str, content: str) -> ConfigError:
    return ConfigError(f"--out {root}: holds {name}, no part of this {content}; choose another directory")


def _evidence(root: Path, there: Collection[str]) -> tuple[BuildLog | None, Manifest | None]:
    return read_log(root), read_manifest(root) if MANIFEST in there else None


def _folders(log: BuildLog | None, manifest: Manifest | None) -> set[str]:
    """The folders of a build's datasets."""
    of_manifest = {entry.directory for entry in manifest.datasets} if manifest is not None else set()
    return of_manifest | (log.datasets if log is not None else set())


def _named(manifest: Manifest) -> set[str]:
    """The files that a manifest names, in its list or in its datasets."""
    named = {file.path for file in manifest.files}
    for entry in manifest.datasets:
        names = [entry.described_file, entry.tasks_file, *(split.index for split in entry.splits)]
        names += [part.file for split in entry.splits for part in split.parts]
        named |= {f"{entry.directory}/{name}" for name in names}
    return named


def _is_own_work(root: Path, log: BuildLog | None) -> bool:
    """Whether the working directory has nothing in it, or a build made it. Earlier versions made no ``MARKER``, and
    left a working directory only if they did not finish."""
    if not is_remote(root) and os.path.lexists(root / WORK) and not _is_folder(root / WORK):
        return False
    there = [name for name in files.names(root / WORK) if not _OF_SYSTEMS.fullmatch(name)]
    return not there or MARKER in there or (log is not None and not log.is_finished)


def make_work(root: Path) -> None:
    """Makes the working directory, or marks one that ``check_directory`` has found to be a build's."""
    if not files.exists(root / WORK / MARKER):
        files.write_atomically(root / WORK / MARKER, b"a build that has not finished keeps its work here\n")


# --- leftovers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """A file that belongs to no finished job. ``path`` is relative to the directory, with forward slashes."""

    path: str
    bytes: int

    @property
    def is_shard(self) -> bool:
        """Whether it holds records."""
        return self.path.endswith(".arrayrecord") and not self.path.rpartition("/")[2].startswith(files.TEMPORARY)


def collect(directory: str | Path, *, work: bool = False, dry_run: bool = False) -> list[Leftover]:
    """Removes, or with ``dry_run`` only lists, what interrupted jobs left: temporary files, and shards and indexes that
    the manifest does not name. With ``work`` also the folder from which an interrupted build would continue, and the
    scanned rows that were kept.

    Without a manifest it is unknown which shards are needed, and they stay. Raises ConfigError if this is no directory
    of a build or scan, DataError while a build holds it.
    """
    root = files.out_directory(directory)
    if _evidence(root, files.names(root)) == (None, None):
        raise ConfigError(f"{directory} is no directory of a build or scan: it holds neither {MANIFEST} nor {LOG}")
    with hold(root):
        log, manifest = _evidence(root, files.names(root))
        named = None if manifest is None else _named(manifest)
        folders = _folders(log, manifest) | ({WORK} if _is_own_work(root, log) else set())
        return remove_leftovers(root, folders, named, work=work, dry_run=dry_run)


def remove_leftovers(
    root: Path, folders: Collection[str], named: Collection[str] | None, *, work: bool = False, dry_run: bool = False
) -> list[Leftover]:
    """Removes the files that a job wrote and that are not ``named``, and returns them. A build's ``folders`` are those
    of its datasets, and ``WORK`` if it is a build's.

    If ``named`` is None, only temporary files. In the working directory and among scanned rows also only those, unless
    ``work`` is set.
    """
    found: list[Leftover] = []
    for name in files.names(root):
        if TEMPORARY_NAME.fullmatch(name) and not _is_folder(root / name):
            found.append(Leftover(name, files.size(root / name)))
        elif name == SCANS and _is_folder(root / name):
            found += _of_scans(root, work)
        elif name in folders and _is_folder(root / name):
            found += _of_work(root, name, work) if name == WORK else _of_dataset(root, name, named)
    if not dry_run:
        for item in found:
            files.remove(root / item.path)
        if work and WORK in folders:
            files.remove_tree(root / WORK)
        for name in {item.path.partition("/")[0] for item in found if "/" in item.path} - {WORK}:
            if not is_remote(root) and not files.names(root / name):
                (root / name).rmdir()
    return found


def _is_made(folder: str, name: str) -> bool:
    """Whether a file in a dataset's folder has a name that builds give."""
    stem = re.escape(folder) + "-[0-9a-f]{16}"
    pattern = rf"{stem}(-\d{{3,}})?\.arrayrecord|{stem}(-[0-9a-f]{{16}})?{re.escape(INDEX_SUFFIX)}|{_SUMMARY}"
    return bool(re.fullmatch(pattern, name) or TEMPORARY_NAME.fullmatch(name))


def _of_dataset(root: Path, name: str, named: Collection[str] | None) -> Iterator[Leftover]:
    there = files.sizes(root / name, links=False)
    # An index says that its shard is done, so it goes last.
    for file in sorted(there, key=lambda file: (file.endswith(INDEX_SUFFIX), file)):
        is_left = named is not None and _is_made(name, file) and f"{name}/{file}" not in named
        if is_left or TEMPORARY_NAME.fullmatch(file):
            yield Leftover(f"{name}/{file}", there[file])


def _of_scans(root: Path, everything: bool) -> Iterator[Leftover]:
    there = files.sizes(root / SCANS, links=False)
    own = {path.name for path in tables(root / SCANS) if is_table(path)} if everything else set()
    for file in sorted(there):
        if file in own or TEMPORARY_NAME.fullmatch(file):
            yield Leftover(f"{SCANS}/{file}", there[file])


def _of_work(root: Path, path: str, everything: bool) -> Iterator[Leftover]:
    there = files.sizes(root / path, links=False)
    for file in sorted(there):
        if (everything and f"{path}/{file}" != f"{WORK}/{MARKER}") or TEMPORARY_NAME.fullmatch(file):
            yield Leftover(f"{path}/{file}", there[file])
    for name in files.names(root / path):
        if name not in there and _is_folder(root / path / name):
            yield from _of_work(root, f"{path}/{name}", everything)


def _is_folder(path: Path) -> bool:
    """Whether the path is a directory and no link."""
    return files.is_directory(path) and not path.is_symlink()
