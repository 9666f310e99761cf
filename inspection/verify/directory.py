"""The files of a directory against its manifest: presence, size, digest, and no other file."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.inspection.verify.index import (
    Totals,
    dataset_faults,
    index_faults,
    manifest_faults,
    part_owners,
    read_index,
)
from gatokit.inspection.verify.records import ContentCheck, DocumentCheck, EpisodeCheck, shard_faults
from gatokit.schemas.errors import DataError, GatokitError
from gatokit.schemas.manifest import LOG, MANIFEST, FileEntry, Manifest, local_directory
from gatokit.schemas.tokens import TEXT_IDS
from gatokit.storage.files import TEMPORARY
from gatokit.storage.lock import LOCK
from gatokit.tokenizers.text import TextTokenizer

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


MOST_OF_A_FILE = 10
"""Further faults of a file are counted and not listed."""

Progress = Callable[[str, int, int], None]
"""Called with a stage (``files`` or ``records``), how many are done and how many there are."""


@dataclass(frozen=True)
class Fault:
    """One fault: the file below the directory, with forward slashes, and what is wrong with it."""

    file: str
    fault: str


class Faults:
    """Collects faults, at most ``MOST_OF_A_FILE`` sentences of each file."""

    def __init__(self) -> None:
        self._listed: list[Fault] = []
        self._counts: Counter[str] = Counter()

    def add(self, file: str, fault: str) -> None:
        """Adds one fault of a file."""
        self._counts[file] += 1
        if self._counts[file] <= MOST_OF_A_FILE:
            self._listed.append(Fault(file, fault))

    def has(self, file: str) -> bool:
        """Whether anything is wrong with a file."""
        return file in self._counts

    def listed(self) -> list[Fault]:
        """All faults in the order in which they were added; the counts of those left out come last."""
        more = {file: count - MOST_OF_A_FILE for file, count in self._counts.items() if count > MOST_OF_A_FILE}
        return self._listed + [Fault(file, f"and {count:,} more faults of this file") for file, count in more.items()]


def verify(directory: str | Path, progress: Progress | None = None) -> list[Fault]:
    """Every fault of a finished build or scan; an empty list means that it is complete and sound.

    Checks the presence, size and digest of every file, that there is no other file, that every record decodes and is
    what the index says, and that indexes, summaries and manifest agree. What depends on a file with a fault is not
    checked further. Raises ConfigError if there is no such directory.
    """
    root = local_directory(directory)
    faults = Faults()
    manifest = _manifest(root, faults)
    if manifest is not None:
        for file, sentence in file_faults(root, manifest, _counter(progress, "files", len(manifest.files))):
            faults.add(file, sentence)
        _check_contents(root, manifest, faults, progress)
    return faults.listed()


def _manifest(root: Path, faults: Faults) -> Manifest | None:
    """The manifest. None, and a fault is added, if nothing else can be checked against it."""
    path = root / MANIFEST
    if not path.exists():
        faults.add(MANIFEST, "missing: the directory is not complete; run the build again to finish it")
        return None
    try:
        manifest = Manifest.read(root)
    except DataError as error:
        faults.add(MANIFEST, str(error).removeprefix(f"{path} ").removeprefix(f"{path}: "))
        return None
    if path.read_bytes() != manifest.to_bytes():
        faults.add(MANIFEST, "was edited: it holds the same values in another spelling")
    for sentence in manifest_faults(manifest):
        faults.add(MANIFEST, sentence)
    return manifest


def _check_contents(root: Path, manifest: Manifest, faults: Faults, progress: Progress | None) -> None:
    vocabulary = manifest.vocabulary
    if faults.has(MANIFEST) or (vocabulary is not None and faults.has(vocabulary.file)):
        return
    moved = _counter(progress, "records", sum(dataset.records for dataset in manifest.datasets))
    directory = Directory(root, manifest)
    text = None
    if vocabulary is not None:
        try:
            text = directory.text
            if text.pieces != vocabulary.pieces:
                raise DataError(f"has {text.pieces} pieces, and the manifest says {vocabulary.pieces}")
        except GatokitError as error:
            faults.add(vocabulary.file, str(error).removeprefix(f"{root / vocabulary.file} "))
            return
    for dataset in directory.datasets.values():
        described, tasks = (
            f"{dataset.totals.directory}/{name}" for name in (dataset.totals.described_file, dataset.totals.tasks_file)
        )
        if faults.has(described) or faults.has(tasks):
            continue
        try:
            for sentence in dataset_faults(dataset):
                faults.add(described, sentence)
        except DataError as error:
            faults.add(described, str(error))
        if not faults.has(described):
            _check_dataset(dataset, _content_check(dataset, manifest, text), faults, moved)


def _content_check(dataset: DatasetReader, manifest: Manifest, text: TextTokenizer | None) -> ContentCheck:
    """What checks the records of a dataset; ``text`` is None in a scan, which has no records."""
    rules = dataset.described.documents
    if rules is not None and text is not None:
        return DocumentCheck(rules, text, manifest.tokenizer.chunk_tokens)
    pieces = TEXT_IDS if text is None else text.pieces
    return EpisodeCheck(dataset.described.specs, manifest.tokenizer, pieces)


def _check_dataset(dataset: DatasetReader, content: ContentCheck, faults: Faults, moved: Callable[[int], None]) -> None:
    name, totals = dataset.totals.directory, Totals(dataset)
    for split in dataset.totals.splits:
        index = f"{name}/{split.index}"
        if faults.has(index):
            continue
        try:
            table = read_index(dataset.path / split.index)
        except ValueError as error:
            faults.add(index, str(error))
            continue
        totals.add(table)
        for sentence in index_faults(table, split, dataset):
            faults.add(index, sentence)
        for ordinal, part in enumerate(split.parts):
            shard = f"{name}/{part.file}"
            if faults.has(shard):
                continue
            try:
                owners = part_owners(table, ordinal, part)
            except ValueError as error:
                faults.add(index, str(error))
                continue
            for sentence in shard_faults(dataset.path / part.file, part.records, owners, content, moved):
                faults.add(shard, sentence)
    if not any(faults.has(f"{name}/{split.index}") for split in dataset.totals.splits):
        for file, sentence in totals.faults():
            faults.add(file if file == MANIFEST else f"{name}/{file}", sentence)


def _counter(progress: Progress | None, stage: str, total: int) -> Callable[[int], None]:
    """A function that is called with how many more are done."""
    done = 0

    def moved(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(stage, done, total)

    return moved
