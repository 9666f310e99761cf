"""Public packages as folders, fetched once: what the ``make_*.py`` scripts make their corpora from."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def finished_at(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which is renamed to it when the block ends without an exception.

    What stands at ``path`` is therefore whole, however a run ended. The block may make a folder or a file. What killed
    runs have left is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.unfinished-*"):
        if not runs(int(left.name.rpartition("-")[2])):
            remove(left)
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        remove(unfinished)


def runs(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def debian_package(name: str, downloads: Path) -> Path:
    """The folder with the files of a Debian package, as unpacked below ``/``; nothing is installed.

    apt takes the version that its package lists name, and checks it against them.
    """
    whole = downloads / name
    if whole.exists():
        return whole
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise SystemExit(
            f"{name} is a Debian package and this machine has no apt-get: on one that has, a debian:12 container, "
            f"say, run 'apt-get download {name} && dpkg-deb -x {name}_*.deb {name}', and copy that folder to {whole}"
        )
    print(f"downloading {name}", file=sys.stderr)
    with finished_at(whole) as folder:
        folder.mkdir()
        run(["apt-get", "download", "-q", name], folder)
        (archive,) = folder.glob("*.deb")
        run(["dpkg-deb", "-x", archive.name, "."], folder)
        archive.unlink()
    return whole


def npm_package(name: str, version: str, sha256: str, downloads: Path) -> Path:
    """The folder with the files of an npm package of that version, after a check of its archive's digest."""
    whole = downloads / f"{name}-{version}"
    if whole.exists():
        return whole
    if not shutil.which("npm"):
        raise SystemExit(f"{name} is an npm package: install npm, which comes with Node.js")
    print(f"downloading {name}", file=sys.stderr)
    with finished_at(whole) as folder:
        folder.mkdir()
        run(["npm", "pack", "--silent", f"{name}@{version}"], folder)
        (archive,) = folder.glob("*.tgz")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != sha256:
            raise SystemExit(f"{name}@{version} has SHA-256 {digest}, not {sha256}")
        run(["tar", "-xzf", archive.name, "--strip-components=1"], folder)
        archive.unlink()
    return whole


def run(command: list[str], folder: Path) -> None:
    """Runs a command there; its words on standard error are shown only if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
