"""Finds the files and directories that a path or glob pattern of the config names. Local and ``gs://``."""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gatokit.schemas.errors import ConfigError
from gatokit.storage import files, gcs
from gatokit.storage.files import is_remote

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_ESCAPED = re.compile(r"\[([*?[])\]")


@dataclass(frozen=True)
class FoundDirectory:
    """A source directory: ``name`` is its path below the pattern's fixed part, without version directories, and
    ``marker`` the file that shows its format."""

    path: str
    name: str
    marker: str


def local_path(path: str, base: str | Path, field: str) -> str:
    """A path of the config, local or on ``gs://``; a relative one starts at ``base``.

    Raises ConfigError, naming ``field``, if it is another URL.
    """
    if is_remote(path):
        return gcs.canonical(path)
    if "://" in path:
        raise ConfigError(
            f"{field}: {path!r} is neither local nor on gs://; copy or mount the files and give that path"
        )
    joined = os.path.join(base, os.path.expanduser(path))
    return gcs.canonical(joined) if is_remote(joined) else joined


def local_pattern(source: str, base: Path, field: str) -> str:
    """``local_path`` of a glob pattern; special characters in ``base`` are escaped."""
    return local_path(source, glob.escape(os.fspath(base)), field)


def fixed_part(pattern: str) -> str:
    """The part of ``pattern`` above its first component with a wildcard; all of it if it has none.

    Names of files and tasks are paths below it.
    """
    components = pattern.rstrip("/").split("/")
    for count, component in enumerate(components):
        if _has_wildcard(component):
            return _unescaped("/".join(components[:count])) or ("/" if pattern.startswith("/") else ".")
    return _unescaped("/".join(components)) or "/"


def find_files(pattern: str, field: str) -> list[tuple[str, str]]:
    """(path, name) of the files that ``pattern`` matches, sorted by name.

    The name is the path below the fixed part, or the last component if the pattern has no wildcard. Raises
    ConfigError, naming ``field``, if nothing matches or a match is a directory.
    """
    below = fixed_part(pattern)
    found = []
    for path in _matches(pattern, field):
        if not files.is_file(path):
            raise ConfigError(
                f"{field}: {path} is no file; name the files in it, such as {os.path.join(path, '*')}, "
                "relative to the config file"
            )
        found.append((path, os.path.basename(path) if path == below else os.path.relpath(path, below)))
    return sorted(found, key=lambda item: (item[1], item[0]))


def find_directories(
    pattern: str, markers: tuple[str, ...], field: str, noun: str = "a source of episodes"
) -> list[FoundDirectory]:
    """Directories at or below the matches of ``pattern`` that hold one of ``markers``, sorted by name.

    Of version directories beside each other only the highest is taken, unless the pattern ends in a version. Raises
    ConfigError, naming ``field``, if nothing matches or no match holds a source.
    """
    below = fixed_part(pattern)
    names_version = bool(_version(os.path.basename(pattern.rstrip("/"))))
    found: dict[str, tuple[tuple[int, ...], FoundDirectory]] = {}
    for match in _matches(pattern, field):
        for path, marker in _walk(match, markers, field):
            # A pattern that names the source itself leaves no name below its fixed part.
            name = _name(os.path.relpath(path, below)) or _name(os.path.abspath(path)).split("/")[-1]
            version = _version(os.path.basename(path))
            key = os.path.dirname(path) if version else path
            if names_version or key not in found or version > found[key][0]:
                found[key] = version, FoundDirectory(path, name, marker)
    if not found:
        raise ConfigError(f"{field}: no directory below {_unescaped(pattern)} holds {noun} ({' or '.join(markers)})")
    return sorted((item for _, item in found.values()), key=lambda item: (item.name, item.path))


def _matches(pattern: str, field: str) -> list[str]:
    matches = files.matching(pattern)
    if not matches:
        problem = "matches nothing" if _has_wildcard(pattern) else "does not exist"
        raise ConfigError(f"{field}: {_unescaped(pattern)} {problem}; paths are relative to the config file")
    return matches


def _walk(
    path: str, markers: tuple[str, ...], field: str, above: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Yields (directory, marker) at or below ``path``. Follows links, but not back into a directory of ``above``."""
    if is_remote(path):
        yield from _walk_remote(path, markers)
        return
    real = os.path.realpath(path)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except NotADirectoryError:
        return
    except OSError as error:
        raise ConfigError(f"{field}: {path} cannot be read: {error.strerror}; mend it or narrow source") from None
    names = {entry.name for entry in entries}
    marker = next((marker for marker in markers if marker in names), None)
    if marker is not None:
        yield path, marker
        return
    for entry in entries:
        # A name that begins with a dot is a recording in progress, or belongs to another program.
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _walk(entry.path, markers, field, above | {real})


def _walk_remote(path: str, markers: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    found: dict[str, set[str]] = {}
    for item in gcs.below(path):
        directory, _, name = item.path.rpartition("/")
        if name in markers and "/." not in directory[len(path) :]:
            found.setdefault(directory, set()).add(name)
    for directory, names in sorted(found.items()):
        if not any(directory.startswith(f"{other}/") for other in found):
            yield directory, next(marker for marker in markers if marker in names)


def _has_wildcard(pattern: str) -> bool:
    return glob.has_magic(_ESCAPED.sub("", pattern))


def _unescaped(pattern: str) -> str:
    return _ESCAPED.sub(r"\1", pattern)


def _name(path: str) -> str:
    """The path without its version directories."""
    return "/".join(part for part in path.split("/") if part != "." and not _version(part))


def _version(component: str) -> tuple[int, ...]:
    """The numbers of a version directory such as ``1.0.0``; empty if the name is no version."""
    return tuple(map(int, component.split("."))) if _VERSION.fullmatch(component) else ()
