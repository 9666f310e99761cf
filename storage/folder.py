"""Opens the files of a folder that somebody else may have made: a build, a scan, a run, an export.

A name leads to a regular file inside of the folder and nowhere else: no link is followed, no FIFO, device or socket is
opened, and not more is read than the file should have. Only the folder itself may be a link.
"""

import io
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gatokit.schemas.errors import DataError, MalformedError
from gatokit.schemas.manifest import (
    DATASET,
    MANIFEST,
    MANIFEST_VERSION,
    DatasetEntry,
    DatasetFile,
    EpisodeSpec,
    Manifest,
    check_version,
)
from gatokit.schemas.policy import POLICY, POLICY_VERSION, PolicyFile
from gatokit.schemas.untrusted import MOST_JSON, Model, check_path_name, parse_json, quoted, validated_model
from gatokit.storage import gcs
from gatokit.storage.files import is_remote
from gatokit.storage.ownership import kind_of

_MOST_VALUES = 1 << 28
"""Pixels or components of a field's value in a step."""
_OPENED = os.O_RDONLY | os.O_CLOEXEC


def regular_file(folder: str | Path, name: str, size: int | None = None) -> Path:
    """The path of the regular file ``name`` below a local folder, for libraries that open files themselves.

    Raises MalformedError if the name leads out of the folder, through a link, or to anything but a regular file;
    DataError if the file does not have the ``size`` in bytes that the manifest gives; OSError if there is no such file.
    """
    path = Path(folder) / _checked(name, folder)
    _check_parents(Path(folder), name)
    _check_status(path, os.lstat(path), size)
    return path


def open_file(folder: str | Path, name: str, size: int | None = None) -> io.BufferedReader:
    """Opens the file ``name`` below a local folder for reading. Raises as ``regular_file`` does."""
    path = regular_file(folder, name, size)
    # What was checked may have been replaced by now, also a directory on the way.
    *parents, last = name.split("/")
    directory = os.open(folder, _OPENED | os.O_DIRECTORY)
    try:
        for parent in parents:
            below = os.open(parent, _OPENED | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            os.close(directory)
            directory = below
        file = open(os.open(last, _OPENED | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory), "rb")  # noqa: SIM115
    finally:
        os.close(directory)
    try:
        _check_status(path, os.fstat(file.fileno()), size)
    except DataError:
        file.close()
        raise
    return file


def read_file(folder: str | Path, name: str, size: int | None = None, most: int = MOST_JSON) -> bytes:
    """The content of the file ``name`` below a folder, which may be on ``gs://``. Raises as ``regular_file`` does, and
    MalformedError if the file has more than ``most`` bytes."""
    path = Path(folder) / _checked(name, folder)
    if is_remote(folder):
        _check_most(path, gcs.about(path).size, most)
        return gcs.read(path)
    with open_file(folder, name, size) as file:
        length = os.fstat(file.fileno()).st_size
        _check_most(path, length, most)
        return file.read(length)


def check_tree(folder: str | Path) -> None:
    """Raises MalformedError if anything below a folder is neither a directory nor a regular file. For libraries that
    read whole folders."""
    for path, status in _entries(Path(folder)):
        if not stat.S_ISDIR(status.st_mode):
            _check_status(path, status, None)


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            yield Path(entry.path), status
            if stat.S_ISDIR(status.st_mode):
                yield from _entries(Path(entry.path))


# --- what a manifest lists -----------------------------------------------------------------------------------------


def listed_size(folder: str | Path, manifest: Manifest, name: str) -> int:
    """The size in bytes that a manifest gives for a file. Raises MalformedError if it does not list the file."""
    entry = manifest.entries.get(name)
    if entry is None:
        raise MalformedError(f"{Path(folder) / MANIFEST} does not list {name} among its files")
    return entry.size


def listed_file(folder: str | Path, manifest: Manifest, name: str) -> Path:
    """The path of a file that a manifest lists, for libraries that open files themselves. Raises as ``listed_size`` and
    ``regular_file`` do."""
    return regular_file(folder, name, listed_size(folder, manifest, name))


# --- descriptions ------------------------------------------------------------------------------------------------


def read_json(folder: str | Path, name: str, size: int | None = None) -> Any:
    """The value in a JSON file below a folder. Raises as ``read_file`` does, and MalformedError if it is no JSON."""
    return parse_json(read_file(folder, name, size), Path(folder) / name)


def read_manifest(directory: str | Path) -> Manifest:
    """The manifest of a finished directory, which may be on ``gs://``.

    Raises DataError if there is no manifest (the directory is not complete), if it was edited or if a newer gatokit
    wrote it; MalformedError if it is no regular file, no JSON, or names something outside of the directory.
    """
    path = Path(directory) / MANIFEST
    try:
        data = read_file(directory, MANIFEST)
    except FileNotFoundError:
        raise DataError(
            f"{directory} has no {MANIFEST}: it is no finished build or scan. Run the build again to finish it"
        ) from None
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read: {error}") from None
    return Manifest.parse(data, path)


def read_model(folder: str | Path, name: str, model: type[Model], newest: int, size: int | None = None) -> Model:
    """The model in a JSON file that has the key ``version``. Raises DataError if the file cannot be read or is newer
    than ``newest``, MalformedError if it does not hold such a model."""
    path = Path(folder) / name
    try:
        content = read_json(folder, name, size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict) or not isinstance(content.get("version"), int):
        raise MalformedError(f"{path} cannot be read: it has no version that is a number")
    check_version(content["version"], newest, path)
    return validated_model(model, content, f"{path} cannot be read")


def read_dataset_file(folder: str | Path, name: str = DATASET, size: int | None = None) -> DatasetFile:
    """``dataset.json`` of a dataset. Raises as ``read_model`` does."""
    found = read_model(folder, name, DatasetFile, MANIFEST_VERSION, size)
    _check_specs(found.specs, Path(folder) / name)
    return found


def read_listed_dataset(folder: str | Path, manifest: Manifest, dataset: DatasetEntry) -> DatasetFile:
    """``dataset.json`` of a dataset of a build. Raises as ``read_model`` and ``listed_size`` do."""
    name = f"{dataset.directory}/{dataset.described_file}"
    return read_dataset_file(folder, name, listed_size(folder, manifest, name))


def read_policy(folder: str | Path) -> PolicyFile:
    """``policy.json`` in a folder. Raises as ``read_model`` does."""
    found = read_model(folder, POLICY, PolicyFile, POLICY_VERSION)
    for dataset in found.datasets.values():
        _check_specs(dataset.specs, Path(folder) / POLICY)
    return found


def _check_specs(specs: Mapping[str, EpisodeSpec], path: Path) -> None:
    """Raises MalformedError if a field of a spec has a size below 0, or more values in a step than are ever stored."""
    for spec in specs.values():
        for field in spec.fields:
            image = () if field.image is None else (field.image.height, field.image.width)
            sizes = (*field.shape, *image, 0 if field.max_length is None else field.max_length)
            if min(sizes) < 0 or math.prod(image or field.shape) > _MOST_VALUES:
                raise MalformedError(
                    f"{path}: the field {quoted(field.path)} has the size {list(image or field.shape)}"
                )


# --- checks ------------------------------------------------------------------------------------------------------


def _checked(name: str, folder: str | Path) -> str:
    try:
        return check_path_name(name)
    except ValueError as error:
        raise MalformedError(f"{folder}: {error}") from None


def _check_parents(folder: Path, name: str) -> None:
    for part in name.split("/")[:-1]:
        folder /= part
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode):
            raise MalformedError(f"{folder} is {kind_of(status) or 'a file'}, not a directory; copy the folder again")


def _check_status(path: Path, status: os.stat_result, size: int | None) -> None:
    kind = kind_of(status)
    if kind is not None:
        raise MalformedError(f"{path} is {kind}, not a regular file; copy the file itself to its place")
    if size is not None and status.st_size != size:
        raise DataError(
            f"{path} has {status.st_size} bytes and the manifest says {size}; gatokit verify says what else is damaged"
        )


def _check_most(path: Path, size: int, most: int) -> None:
    if size > most:
        raise MalformedError(f"{path} has {size:,} bytes, and such a file has at most {most:,}")
