"""Finds the source directories below a glob pattern and names them."""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from gatokit.schemas.errors import ConfigError

_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True)
class Found:
    """A directory that a format recognised: ``name`` is its path below the pattern's fixed part, without
    version directories, and ``marker`` the file that gave it away."""

    path: str
    name: str
    marker: str


def fixed_part(pattern: str) -> str:
    """The directory above the first component of ``pattern`` that holds a wildcard.

    Names of files and tasks are paths below it. A pattern without a wildcard is a directory itself, and names
    are paths below its parent.
    """
    components = pattern.rstrip("/").split("/")
    for count, component in enumerate(components):
        if glob.has_magic(component):
            return "/".join(components[:count]) or ("/" if pattern.startswith("/") else ".")
    while len(components) > 1 and _VERSION.fullmatch(components[-1]):
        components.pop()
    return "/".join(components[:-1]) or ("/" if pattern.startswith("/") else ".")


def find(pattern: str, markers: tuple[str, ...], field: str) -> list[Found]:
    """Directories at or below the matches of ``pattern`` that hold one of ``markers``, in order of name.

    Of several version directories beside each other the highest is taken, unless the pattern ends in one.
    ConfigError, naming ``field``, where nothing matches or no match holds a source.
    """
    if "://" in pattern:
        raise ConfigError(f"{field}: {pattern!r} is no local path; copy or mount the files and give that path")
    matches = sorted(glob.glob(pattern))
    if not matches:
        what = "matches nothing" if glob.has_magic(pattern) else "does not exist"
        raise ConfigError(f"{field}: {pattern} {what}; paths are relative to the config file")
    below = fixed_part(pattern)
    named_version = _VERSION.fullmatch(os.path.basename(pattern.rstrip("/"))) is not None
    found: dict[str, tuple[tuple[int, ...], Found]] = {}
    for match in matches:
        for path, marker in _walk(match, markers):
            components = os.path.relpath(path, below).split("/")
            name = "/".join(part for part in components if not _VERSION.fullmatch(part))
            version = _version(components[-1])
            rival = found.get(os.path.dirname(path) if version else path)
            if rival is None or named_version or version > rival[0]:
                found[os.path.dirname(path) if version else path] = (version, Found(path, name, marker))
    if not found:
        raise ConfigError(f"{field}: no directory below {pattern} holds a source of episodes ({' or '.join(markers)})")
    return sorted((item for _, item in found.values()), key=lambda item: (item.name, item.path))


def _walk(top: str, markers: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for path, directories, names in os.walk(top):
        directories.sort()
        for marker in markers:
            if marker in names:
                yield path, marker
                directories.clear()


def _version(component: str) -> tuple[int, ...]:
    return tuple(map(int, component.split("."))) if _VERSION.fullmatch(component) else ()
