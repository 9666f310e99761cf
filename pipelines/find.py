"""Finds the source directories below a glob pattern and names them."""

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
class Found:
    """A directory that a format recognised: ``name`` is its path below the pattern's fixed part, without
    version directories, and ``marker`` the file that gave it away."""

    path: str
    name: str
    marker: str


def local_path(path: str, base: str | Path, field: str) -> str:
    """A path of the config, which starts at ``base``, local or on ``gs://``; ConfigError, naming ``field``, where it
    is another URL."""
    if is_remote(path):
        return gcs.canonical(path)
    if "://" in path:
        raise ConfigError(
            f"{field}: {path!r} is neither local nor on gs://; copy or mount the files and give that path"
        )
    joined = os.path.join(base, os.path.expanduser(path))
    return gcs.canonical(joined) if is_remote(joined) else joined


def local_pattern(source: str, base: Path, field: str) -> str:
    """``local_path`` of a glob pattern; what is special in ``base`` stands for itself."""
    return local_path(source, glob.escape(os.fspath(base)), field)


def fixed_part(pattern: str) -> str:
    """The part of ``pattern`` above its first component with a wildcard, or all of it where there is none.

    Names of files and tasks are paths below it.
    """
    components = pattern.rstrip("/").split("/")
    for count, component in enumerate(components):
        if _has_wildcard(component):
            return _literal("/".join(components[:count])) or ("/" if pattern.startswith("/") else ".")
    return _literal("/".join(components)) or "/"


def find_files(pattern: str, field: str) -> list[tuple[str, str]]:
    """(path, name) of the files that ``pattern`` matches, in order of name: the path below its fixed part, or of a
    file that the pattern names itself its last component.

    ConfigError, naming ``field``, where nothing matches or a match is a directory.
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


def find(pattern: str, markers: tuple[str, ...], field: str, what: str = "a source of episodes") -> list[Found]:
    """Directories at or below the matches of ``pattern`` that hold one of ``markers``, in order of name.

    Of several version directories beside each other the highest is taken, unless the pattern ends in one.
    ConfigError, naming ``field``, where nothing matches or no match holds a source.
    """
    matches = _matches(pattern, field)
    below = fixed_part(pattern)
    named_version = _VERSION.fullmatch(os.path.basename(pattern.rstrip("/"))) is not None
    found: dict[str, tuple[tuple[int, ...], Found]] = {}
    for match in matches:
        for path, marker in _walk(match, markers, field):
            components = os.path.relpath(path, below).split("/")
            name = _name(components) or _name(os.path.abspath(path).split("/")).split("/")[-1]
            version = _version(os.path.basename(path))
            rival = found.get(os.path.dirname(path) if version else path)
            if rival is None or named_version or version > rival[0]:
                found[os.path.dirname(path) if version else path] = (version, Found(path, name, marker))
    if not found:
        raise ConfigError(f"{field}: no directory below {_literal(pattern)} holds {what} ({' or '.join(markers)})")
    return sorted((item for _, item in found.values()), key=lambda item: (item.name, item.path))


def _matches(pattern: str, field: str) -> list[str]:
    matches = files.matching(pattern)
    if not matches:
        what = "matches nothing" if _has_wildcard(pattern) else "does not exist"
        raise ConfigError(f"{field}: {_literal(pattern)} {what}; paths are relative to the config file")
    return matches


def _walk(
    path: str, markers: tuple[str, ...], field: str, above: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """(directory, marker) at or below ``path``; links are followed, but not back into a directory above them."""
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
    marker = next((marker for marker in markers if any(entry.name == marker for entry in entries)), None)
    if marker is not None:
        yield path, marker
        return
    for entry in entries:
        # A name that begins with a dot is a recording in progress, or none of ours.
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _walk(entry.path, markers, field, above | {real})


def _walk_remote(path: str, markers: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    found: dict[str, set[str]] = {}
    for item in gcs.below(path):
        directory, _, name = item.path.rpartition("/")
        if name in markers and "/." not in directory[len(path) :]:
            found.setdefault(directory, set()).add(name)
    for directory, there in sorted(found.items()):
        if not any(directory.startswith(f"{other}/") for other in found):
            yield directory, next(marker for marker in markers if marker in there)


def _has_wildcard(pattern: str) -> bool:
    return glob.has_magic(_ESCAPED.sub("", pattern))


def _literal(pattern: str) -> str:
    return _ESCAPED.sub(r"\1", pattern)


def _name(components: list[str]) -> str:
    """The path without version directories; of a source that the pattern names itself nothing is left."""
    return "/".join(part for part in components if part != "." and not _VERSION.fullmatch(part))


def _version(component: str) -> tuple[int, ...]:
    return tuple(map(int, component.split("."))) if _VERSION.fullmatch(component) else ()
