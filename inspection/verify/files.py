"""The files of a directory against its manifest: presence, size, digest, and no other file."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gatokit.schemas.manifest import LOG, MANIFEST, FileEntry, Manifest
from gatokit.storage.files import TEMPORARY
from gatokit.storage.lock import LOCK

_WORK = ".work"
_LEFTOVERS = {
    _WORK: "work of a build that did not end; run the build again, or delete it",
    LOCK: "the lock of a build that runs or was killed; delete it if none runs",
}


def file_faults(root: Path, manifest: Manifest, moved: Callable[[int], None]) -> Iterator[tuple[str, str]]:
    """File and fault of every listed file that is wrong, and of every file that is not listed. ``moved`` is called with
    1 for each file that is done."""
    file_of_digest = {entry.blake2b: entry.path for entry in manifest.files}
    sizes = {entry.size for entry in manifest.files}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = pool.map(partial(_fault, root, file_of_digest, sizes), manifest.files)
        for entry, fault in zip(manifest.files, faults, strict=True):
            if fault is not None:
                yield entry.path, fault
            moved(1)
    for path in unlisted(root, {entry.path for entry in manifest.files}):
        if path.rsplit("/", 1)[-1].startswith(TEMPORARY):
            yield path, "a temporary file of a build that was killed; delete it"
        else:
            yield path, _LEFTOVERS.get(path.split("/")[0], "no file of the manifest")


def unlisted(root: Path, listed: set[str]) -> list[str]:
    """Files below ``root`` that are neither listed nor the manifest nor the log; of ``.work`` only its name."""
    found = []
    for directory, directories, names in os.walk(root):
        directories.sort()
        below = Path(directory).relative_to(root)
        if below == Path() and _WORK in directories:
            directories.remove(_WORK)
            found.append(_WORK)
        links = [name for name in directories if os.path.islink(os.path.join(directory, name))]
        for name in sorted([*names, *links]):
            path = (below / name).as_posix()
            if path not in listed and path not in (MANIFEST, LOG):
                found.append(path)
    return found


def _fault(root: Path, file_of_digest: dict[str, str], sizes: set[int], entry: FileEntry) -> str | None:
    path = root / entry.path
    digest = None
    try:
        size = path.stat().st_size
        # The content of another listed file is named as such; nothing else is read that has a wrong size.
        if size in sizes:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=32)).hexdigest()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if digest == entry.blake2b:
        return None
    if digest in file_of_digest:
        return f"holds the content of {file_of_digest[digest]}"
    if size == entry.size:
        return "its content does not match its digest"
    problem = "truncated" if size < entry.size else "too long"
    return f"{problem}: {size:,} bytes, and the manifest says {entry.size:,}"
