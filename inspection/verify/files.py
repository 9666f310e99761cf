"""The files of a directory against its manifest: presence, size, digest, and nothing besides."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gatokit.inspection.verify.faults import Faults
from gatokit.schemas.manifest import LOG, MANIFEST, FileEntry, Manifest

_LEFTOVERS = {
    ".work": "work of a build that did not end; run the build again, or delete it",
    ".lock": "the lock of a build that runs or was killed; delete it if none runs",
}
_TEMPORARY = ".tmp-"


def check_files(root: Path, manifest: Manifest, faults: Faults, moved: Callable[[int], None]) -> None:
    """Faults of every listed file, and of every file that is not listed. ``moved`` is called with 1 for each
    file that is done."""
    owners = {entry.blake2b: entry.path for entry in manifest.files}
    sizes = {entry.size for entry in manifest.files}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(partial(_fault, root, owners, sizes), manifest.files)
        for entry, fault in zip(manifest.files, found, strict=True):
            if fault is not None:
                faults.add(entry.path, fault)
            moved(1)
    for path in unlisted(root, {entry.path for entry in manifest.files}):
        name = path.rsplit("/", 1)[-1]
        if name.startswith(_TEMPORARY):
            faults.add(path, "a temporary file of a build that was killed; delete it")
        else:
            faults.add(path, _LEFTOVERS.get(path.split("/")[0], "no file of the manifest"))


def unlisted(root: Path, listed: set[str]) -> list[str]:
    """Files below ``root`` that are neither listed nor the manifest nor the log; of ``.work`` its name alone."""
    found = []
    for directory, directories, names in os.walk(root):
        directories.sort()
        below = Path(directory).relative_to(root)
        if below == Path() and ".work" in directories:
            directories.remove(".work")
            found.append(".work")
        links = [name for name in directories if os.path.islink(os.path.join(directory, name))]
        for name in sorted([*names, *links]):
            path = (below / name).as_posix()
            if path not in listed and path not in (MANIFEST, LOG):
                found.append(path)
    return found


def _fault(root: Path, owners: dict[str, str], sizes: set[int], entry: FileEntry) -> str | None:
    path = root / entry.path
    try:
        size = path.stat().st_size
        found = None
        if size in sizes:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=32)).hexdigest()
            if found == entry.blake2b:
                return None
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if found in owners:
        return f"holds the content of {owners[found]}"
    if size == entry.size:
        return "its content does not match its digest"
    which = "truncated" if size < entry.size else "too long"
    return f"{which}: {size:,} bytes, and the manifest says {entry.size:,}"
