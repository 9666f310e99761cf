"""Finds and removes what interrupted jobs left in a directory. A file that the manifest names is never removed."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from gatokit.pipelines.shards.index import INDEX_SUFFIX
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import LOG, MANIFEST, Manifest
from gatokit.storage import files
from gatokit.storage.files import is_remote
from gatokit.storage.lock import hold

WORK = ".work"
"""Folder of a job that has not finished: scanned rows, shard tasks, markers."""
_TEMPORARY = re.compile(re.escape(files.TEMPORARY) + r"[0-9a-f]{32}-.+", re.DOTALL)
_SUMMARY = re.compile(r"(dataset(-[0-9a-f]{16})?\.json|tasks(-[0-9a-f]{16})?\.parquet)")
_SHARD = re.compile(r"-[0-9a-f]{16}(-\d{3,})?\.arrayrecord")
_INDEX = re.compile(r"-[0-9a-f]{16}" + re.escape(INDEX_SUFFIX))


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
    the manifest does not name. With ``work`` also the folder from which an interrupted build would continue.

    Without a manifest it is unknown which shards are needed, and they stay. Raises ConfigError if this is no directory
    of a build or scan, DataError while a build holds it.
    """
    root = files.out_directory(directory)
    there = set(files.names(root))
    if not there & {MANIFEST, LOG, WORK}:
        raise ConfigError(f"{directory} is no directory of a build or scan: it holds neither {MANIFEST} nor {LOG}")
    with hold(root):
        named = None
        if MANIFEST in there:
            manifest = Manifest.parse(files.read_bytes(root / MANIFEST), root / MANIFEST)
            named = {file.path for file in manifest.files}
        found = list(leftovers(root, named, work))
        if not dry_run:
            _remove(root, found)
            if work:
                files.remove_tree(root / WORK)
        return found


def remove_leftovers(root: Path, named: Collection[str]) -> list[Leftover]:
    """Removes what interrupted jobs or another build left and the manifest does not name (``named`` are its paths).

    The work folder of an interrupted build stays.
    """
    found = list(leftovers(root, named, work=False))
    _remove(root, found)
    return found


def leftovers(root: Path, named: Collection[str] | None, work: bool) -> Iterator[Leftover]:
    """The files that a job wrote, recognised by their names, and that are not ``named``.

    If ``named`` is None, only temporary files.
    """
    for name in files.names(root):
        if name == WORK:
            yield from _of_work(root, WORK, work)
        elif _TEMPORARY.fullmatch(name):
            yield Leftover(name, files.size(root / name))
        elif not name.startswith(".") and _is_folder(root / name):
            yield from _of_dataset(root, name, named)


def _of_dataset(root: Path, name: str, named: Collection[str] | None) -> Iterator[Leftover]:
    there = files.sizes(root / name)
    own = {file: file.startswith(name) and _INDEX.fullmatch(file, len(name)) is not None for file in there}
    # An index marks a folder as ours and its shard as done, so it goes last.
    for file in sorted(there, key=lambda file: (own[file], file)):
        path = f"{name}/{file}"
        is_ours = own[file] or (file.startswith(name) and _SHARD.fullmatch(file, len(name)) is not None)
        is_ours |= any(own.values()) and _SUMMARY.fullmatch(file) is not None
        if _TEMPORARY.fullmatch(file) or (is_ours and named is not None and path not in named):
            yield Leftover(path, there[file])


def _of_work(root: Path, path: str, everything: bool) -> Iterator[Leftover]:
    if _is_folder(root / path):
        there = files.sizes(root / path)
        for file in sorted(there):
            if everything or _TEMPORARY.fullmatch(file):
                yield Leftover(f"{path}/{file}", there[file])
        for name in files.names(root / path):
            if name not in there:
                yield from _of_work(root, f"{path}/{name}", everything)


def _is_folder(path: Path) -> bool:
    """Whether the path is a directory, not a link to one."""
    return files.is_directory(path) and not path.is_symlink()


def _remove(root: Path, found: list[Leftover]) -> None:
    for item in found:
        files.remove(root / item.path)
    for name in {item.path.partition("/")[0] for item in found if "/" in item.path} - {WORK}:
        if not is_remote(root) and not files.names(root / name):
            (root / name).rmdir()
