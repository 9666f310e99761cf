"""The inputs of a job: its config, and the vocabulary, lists, files and directories that the config names.

Paths are local or on ``gs://``, and relative ones start at the directory of the config. Patterns are glob patterns.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, PlainSerializer

from gatokit.schemas.config import BuildConfig, DatasetConfig, read_config
from gatokit.schemas.config_episodes import EpisodesConfig, Keep
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import digest
from gatokit.storage import files, gcs
from gatokit.storage.files import is_remote, is_utf8
from gatokit.tokenizers.text import TextTokenizer

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_ESCAPED = re.compile(r"\[([*?[])\]")


# --- the config, its lists of episodes and its vocabulary ----------------------------------------------------


def read_inputs(path: str | Path, only: str | None = None) -> tuple[BuildConfig, Path]:
    """Reads a config, with the digests of its lists of episodes; also gives the directory that relative paths start at.

    ``only`` leaves one of its datasets. Raises ConfigError if the config or a list cannot be read, or if it has no such
    dataset.
    """
    if not is_remote(path):
        config, base = read_config(path), Path(path).resolve().parent
    elif files.is_file(path):
        with files.local_copy(path) as copy:
            config, base = read_config(copy), Path(path).parent
    else:
        raise ConfigError(f"{path} does not exist; give a build config")
    if only is not None and only not in [dataset.name for dataset in config.datasets]:
        names = ", ".join(dataset.name for dataset in config.datasets)
        raise ConfigError(f"--only {only}: {path} has no such dataset, only {names}")
    datasets: list[DatasetConfig] = []
    for dataset in config.datasets:
        if only in (None, dataset.name):
            if isinstance(dataset, EpisodesConfig) and dataset.keep.episodes is not None:
                keep = _with_digest(dataset.keep, dataset.keep.episodes, base, f"datasets[{len(datasets)}].keep")
                dataset = dataset.model_copy(update={"keep": keep})
            datasets.append(dataset)
    return config.model_copy(update={"datasets": tuple(datasets)}), base


def _with_digest(keep: Keep, listed: str, base: Path, field: str) -> Keep:
    """The same with the digest of its list, so that a config whose list changed is another config.

    The path of the list starts at ``base``. Raises ConfigError if it cannot be read, or has another digest than the
    config gives.
    """
    path = local_path(listed, base, f"{field}.episodes")
    if not files.is_file(path):
        raise ConfigError(f"{field}.episodes: {path} does not exist; give a list of episode ids")
    found = digest(files.read_bytes(path))
    if keep.digest not in (None, found):
        raise ConfigError(
            f"{field}.digest: {path} has the digest {found}, another than {keep.digest}; give the list that was meant, "
            "or remove digest"
        )
    return keep.model_copy(update={"digest": found, "episodes": relative_path(listed, base)})


def relative_path(path: str, base: Path) -> str:
    """A path of the config as manifests name it: relative to ``base``."""
    path = os.path.expanduser(path)
    return os.path.relpath(path, base) if os.path.isabs(path) else path


def read_vocabulary(config: BuildConfig, base: Path, path: str | Path) -> TextTokenizer | None:
    """The vocabulary of the config at ``path``, None if it names none; raises ConfigError if it is no model."""
    if config.vocabulary is None:
        return None
    named = local_path(config.vocabulary, base, "vocabulary")
    if not files.is_file(named):
        raise ConfigError(f"{path}: vocabulary: {named} does not exist; give a SentencePiece model")
    return load_vocabulary(named)


def load_vocabulary(path: str | Path) -> TextTokenizer:
    """The tokenizer of a model; raises ConfigError if it cannot be read or is no model."""
    if not is_remote(path):
        return TextTokenizer.load(path)
    return TextTokenizer(gcs.read(path), source=gcs.canonical(path))


# --- paths that travel as JSON --------------------------------------------------------------------------------


def _path_to_json(path: str) -> str:
    """The path, or NUL and its bytes in hexadecimal if they are not UTF-8, which JSON cannot hold."""
    return path if is_utf8(path) else "\0" + os.fsencode(path).hex()


def _path_from_json(path: str) -> str:
    return os.fsdecode(bytes.fromhex(path[1:])) if path.startswith("\0") else path


def source_name(path: str) -> str:
    """A path as a part of ids, in UTF-8: other bytes are written as escapes."""
    return path if is_utf8(path) else str(os.fsencode(path), "utf-8", "backslashreplace")


SourcePath = Annotated[str, AfterValidator(_path_from_json), PlainSerializer(_path_to_json)]
"""The path of a source, as Python has it: bytes that are not UTF-8 are surrogates."""
SourceName = Annotated[str, AfterValidator(source_name)]
"""A path as a part of ids."""


# --- sources -------------------------------------------------------------------------------------------------


class FoundDirectory(NamedTuple):
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
    """``local_path`` of a pattern; special characters in ``base`` are escaped."""
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
        walk = _walk_remote(match, markers) if is_remote(match) else _walk(match, markers, field)
        for path, marker in walk:
            # A pattern that names the source itself leaves no name below its fixed part.
            name = _name(os.path.relpath(path, below)) or _name(os.path.abspath(path)).split("/")[-1]
            version = _version(os.path.basename(path))
            key = os.path.dirname(path) if version else path
            if names_version or key not in found or version > found[key][0]:
                found[key] = version, FoundDirectory(path, source_name(name), marker)
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
    for marker in markers:
        if marker in names:
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


def check_apart(out: Path, field: str, pattern: str | None, folders: Iterable[str], written: Iterable[str]) -> None:
    """Raises ConfigError if ``out`` holds one of the ``folders`` of the dataset ``field``, or its source, a
    ``pattern``, would match a file ``written`` below ``out``, or a folder that it is in."""
    root = _real(out)
    for folder in sorted(set(folders)):
        if _is_below(_real(folder), root):
            raise ConfigError(f"--out {out}: holds a source, {folder} of {field}; choose another directory")
    if pattern is None:
        return
    fixed = _real(fixed_part(pattern))
    if _is_below(root, fixed):
        components = pattern.rstrip("/").split("/")
        first = next((number for number, part in enumerate(components) if _has_wildcard(part)), len(components))
        for path in written:
            parts = f"{root}/{path}"[len(fixed.rstrip("/")) + 1 :].split("/")
            if any(gcs.matches(parts[:count], components[first:]) for count in range(len(parts) + 1)):
                raise ConfigError(
                    f"--out {out}: lies in a source, {_unescaped(pattern)} of {field}; choose another directory"
                )


def _real(path: str | Path) -> str:
    """The path without links; on ``gs://`` without a slash at its end."""
    return gcs.canonical(path).rstrip("/") if is_remote(path) else os.path.realpath(path)


def _is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


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
