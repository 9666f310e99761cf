"""Copies a finished build or scan for other people, without what it says about who made it and where.

The data stays what it is, to the byte: shards, their names and the data digest. Paths of sources become names, logs and
generations of objects are left out, and a card is added. What the source itself says, such as ids of episodes, stays.
"""

import getpass
import hashlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.inspection.card import card, markdown
from gatokit.inspection.read.directory import Directory, open_directory
from gatokit.schemas.config import PATHS
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import CARD, MANIFEST, FileEntry, Manifest, json_digest
from gatokit.schemas.progress import Progress
from gatokit.storage.files import file_digest, is_remote, out_directory, whole_folder, writing
from gatokit.storage.folder import open_file

_GENERATIONS = b"gatokit.generations"
_PART = 8 << 20
"""Bytes that are copied at a time."""
_LEAST_NAME = 4
"""Characters of a host's name that is looked for; shorter ones stand in many words."""


@dataclass(frozen=True)
class Published:
    """A published folder: its files, their bytes, and a sentence for each file that still names this machine or home
    directory."""

    files: int
    bytes: int
    notices: list[str]


def publish(directory: str | Path, out: str | Path, progress: Progress | None = None) -> Published:
    """Writes a copy of the finished ``directory`` to the new local directory ``out``, complete or not at all.

    Raises ConfigError if ``out`` exists, is no local path or lies in ``directory``; DataError if a file is missing or
    damaged, or cannot be written.
    """
    source, target = open_directory(directory), out_directory(out).absolute()
    if is_remote(out):
        raise ConfigError(f"--out {out}: give a local directory, and copy it to the bucket then")
    if os.path.lexists(target):
        raise ConfigError(f"--out {out}: exists already; give another directory, or remove it")
    if target.resolve().is_relative_to(source.path.resolve()):
        raise ConfigError(f"--out {out}: lies in {source.path}; give a directory outside of it")
    manifest, stripped = public_manifest(source.manifest)
    total, size = sum(entry.size for entry in manifest.files), 0
    entries = []
    with writing(target), whole_folder(target) as folder:
        for done, entry in enumerate(manifest.files, 1):
            entries.append(_copied(source.path, entry, folder / entry.path, entry.path in stripped))
            size += entry.size
            if progress is not None:
                progress("publish", done, len(manifest.files), size=size, total_size=total)
        manifest = manifest.model_copy(update={"files": entries})
        described = Directory(source.path, manifest)
        about = replace(card(described, list(described.datasets.values())), title=target.name)
        (folder / CARD).write_bytes(markdown(about).encode())
        (folder / MANIFEST).write_bytes(manifest.to_bytes())
        notices = list(_private_notices(folder, manifest))
    return Published(len(entries), sum(entry.size for entry in entries), notices)


def public_manifest(manifest: Manifest) -> tuple[Manifest, set[str]]:
    """A manifest with names in place of paths and without generations, and the paths of the indexes that have
    generations as well."""
    config = dict(manifest.config)
    if config.get("vocabulary"):
        config["vocabulary"] = _name(config["vocabulary"], "vocabulary.model")
    config["datasets"] = [_public_dataset(dataset) for dataset in config["datasets"]]
    datasets, stripped = [], set()
    for dataset in manifest.datasets:
        stripped |= {f"{dataset.directory}/{split.index}" for split in dataset.splits if split.generations}
        splits = [split.model_copy(update={"generations": {}}) for split in dataset.splits]
        datasets.append(dataset.model_copy(update={"splits": splits}))
    update = {"config": config, "config_digest": json_digest(config), "datasets": datasets}
    return manifest.model_copy(update=update), stripped


def _public_dataset(config: dict[str, Any]) -> dict[str, Any]:
    public = {key: _name(value, config["name"]) if key in PATHS and value else value for key, value in config.items()}
    keep = public.get("keep")
    if isinstance(keep, dict) and keep.get("episodes"):
        public["keep"] = keep | {"episodes": _name(keep["episodes"], config["name"])}
    return public


def _name(path: str, otherwise: str) -> str:
    """The last component of a path or pattern; ``otherwise`` if it is as ``*`` or ``..``, or names the user or host."""
    name = PurePosixPath(path).name
    return otherwise if not re.search(r"\w", name) or name in _own_names() else name


def _own_names() -> set[str]:
    """The names of the user, of the home directory and of this machine."""
    names = {Path.home().name, socket.gethostname()}
    with suppress(OSError, KeyError):
        names.add(getpass.getuser())
    return names


def _copied(folder: Path, entry: FileEntry, target: Path, is_stripped: bool) -> FileEntry:
    """Copies a file of a manifest, or an index without generations; returns what the manifest says of the copy.

    Raises DataError if the file is not what the manifest says.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path, hash_ = folder / entry.path, hashlib.blake2b(digest_size=32)
    try:
        file = open_file(folder, entry.path, entry.size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; gatokit verify says what else is missing") from None
    with file, open(target, "xb") as copy:
        while part := file.read(_PART):
            hash_.update(part)
            copy.write(part)
    if hash_.hexdigest() != entry.blake2b:
        raise DataError(f"{path} is damaged: its digest is another; gatokit verify says what else is")
    if not is_stripped:
        return entry
    _strip_generations(target)
    size, digest = file_digest(target)
    return FileEntry(path=entry.path, size=size, blake2b=digest)


def _strip_generations(path: Path) -> None:
    """Writes an index anew without the generations of its source files."""
    whole = path.with_name(f"{path.name}.whole")
    path.rename(whole)
    with pq.ParquetFile(whole) as file:
        metadata = {key: value for key, value in file.schema_arrow.metadata.items() if key != _GENERATIONS}
        schema = file.schema_arrow.with_metadata(metadata)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for number in range(file.num_row_groups):
                writer.write_table(file.read_row_group(number).replace_schema_metadata(metadata))
    whole.unlink()


# --- what is left ------------------------------------------------------------------------------------------------


def _private_notices(folder: Path, manifest: Manifest) -> Iterator[str]:
    """A sentence for each file, but the shards, that has the path of the home directory or this machine's name."""
    home, host = str(Path.home()), socket.gethostname()
    words = [word for word in (home if len(home) > 1 else "", host if len(host) >= _LEAST_NAME else "") if word]
    shards = {
        f"{dataset.directory}/{part.file}"
        for dataset in manifest.datasets
        for split in dataset.splits
        for part in split.parts
    }
    for name in [MANIFEST, CARD, *(entry.path for entry in manifest.files if entry.path not in shards)]:
        found = [word for word in words if _holds(folder / name, word)]
        if found:
            yield f"{name} still says {' and '.join(found)}, which the source or the vocabulary names so"


def _holds(path: Path, word: str) -> bool:
    if path.suffix != ".parquet":
        return word.encode() in path.read_bytes()
    with pq.ParquetFile(path) as file:
        if any(word.encode() in value for value in (file.schema_arrow.metadata or {}).values()):
            return True
        columns = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
        return any(
            pc.any(pc.match_substring(column, word)).as_py()
            for batch in file.iter_batches(columns=columns)
            for column in batch.columns
        )
