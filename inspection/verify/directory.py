"""Is a finished directory what its manifest says, to the last byte?"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gatokit.inspection.read.directory import DatasetReader, Directory
from gatokit.inspection.verify.index import (
    IndexSums,
    dataset_faults,
    index_faults,
    manifest_faults,
    part_owners,
    read_index,
)
from gatokit.inspection.verify.pictures import ImageDecoder
from gatokit.inspection.verify.records import ContentCheck, DocumentCheck, EpisodeCheck, Owner, shard_faults
from gatokit.schemas.errors import DataError, GatokitError, MalformedError
from gatokit.schemas.manifest import CARD, LOG, MANIFEST, FileEntry, Manifest, local_directory
from gatokit.schemas.progress import Progress
from gatokit.schemas.tokens import TEXT_IDS
from gatokit.storage.files import TEMPORARY
from gatokit.storage.folder import open_file, read_file
from gatokit.storage.lock import LOCK
from gatokit.storage.ownership import kind_of

MOST_OF_A_FILE = 10
"""Further faults of a file are counted and not listed."""

_WORK, _SCANS, _GIT = ".work", ".scan", ".gitattributes"
_LEFTOVERS = {
    _WORK: "work of a build that did not end; run the build again, or delete it",
    LOCK: "the lock of a build that runs or was killed; delete it if none runs",
}


@dataclass(frozen=True)
class Fault:
    """One fault: the file below the directory, with forward slashes, and what is wrong with it."""

    file: str
    fault: str


class Faults:
    """Collects faults, at most ``most`` sentences of each file (None: all)."""

    def __init__(self, most: int | None = MOST_OF_A_FILE) -> None:
        self._most = most
        self._listed: list[Fault] = []
        self._counts: Counter[str] = Counter()

    def add(self, file: str, *sentences: str) -> None:
        """Adds faults of a file."""
        left = len(sentences) if self._most is None else max(0, self._most - self._counts[file])
        self._listed += [Fault(file, sentence) for sentence in sentences[:left]]
        self._counts[file] += len(sentences)

    def has(self, file: str) -> bool:
        """Whether anything is wrong with a file."""
        return self._counts[file] > 0

    def listed(self) -> list[Fault]:
        """All faults in the order in which they were added; the counts of those left out come last."""
        most = sys.maxsize if self._most is None else self._most
        more = {file: count - most for file, count in self._counts.items() if count > most}
        return self._listed + [Fault(file, f"and {count:,} more faults of this file") for file, count in more.items()]


def verify(directory: str | Path, progress: Progress | None = None, decoder: ImageDecoder | None = None) -> list[Fault]:
    """Every fault of a finished build or scan; an empty list means that it is complete and sound.

    Checks the presence, size and digest of every file, that there is no other file, that every record decodes and is
    what the index says, and that indexes, summaries and manifest agree. With a ``decoder`` every image is decoded too,
    and all faults of a file are listed. What depends on a file with a fault is not checked further. Raises ConfigError
    if there is no such directory.
    """
    root = local_directory(directory)
    faults = Faults() if decoder is None else Faults(None)
    manifest = _read_manifest(root, faults)
    if manifest is not None:
        _check_files(root, manifest, faults, _counter(progress, "files", len(manifest.files)))
        if not faults.has(MANIFEST):
            _check_contents(root, manifest, faults, progress, decoder)
    return faults.listed()


def _read_manifest(root: Path, faults: Faults) -> Manifest | None:
    """The manifest. None, and a fault is added, if nothing else can be checked against it."""
    try:
        data = read_file(root, MANIFEST)
        manifest = Manifest.parse(data, root / MANIFEST)
    except FileNotFoundError:
        faults.add(MANIFEST, "missing: the directory is not complete; run the build again to finish it")
        return None
    except OSError as error:
        faults.add(MANIFEST, f"cannot be read: {error.strerror}")
        return None
    except DataError as error:
        faults.add(MANIFEST, _sentence(error, root / MANIFEST))
        return None
    if data != manifest.to_bytes():
        faults.add(MANIFEST, "was edited: it holds the same values in another spelling")
    faults.add(MANIFEST, *manifest_faults(manifest))
    return manifest


def _check_files(root: Path, manifest: Manifest, faults: Faults, count: Callable[[int], None]) -> None:
    """Checks every listed file, and that there is no other file."""
    path_of_digest = {entry.blake2b: entry.path for entry in manifest.files}
    sizes = {entry.size for entry in manifest.files}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sentences = pool.map(partial(_file_fault, root, path_of_digest, sizes), manifest.files)
        for entry, sentence in zip(manifest.files, sentences, strict=True):
            if sentence is not None:
                faults.add(entry.path, sentence)
            count(1)
    listed = {MANIFEST, *(entry.path for entry in manifest.files)}
    for path in _all_files(root):
        if path in listed:
            continue
        kind = kind_of((root / path).lstat())
        if path in (LOG, CARD, _GIT) or path.startswith(f"{_SCANS}/"):
            if kind is not None:
                faults.add(path, f"is {kind}, not a regular file")
        elif path.rpartition("/")[2].startswith(TEMPORARY):
            faults.add(path, "a temporary file of a build that was killed; delete it")
        else:
            what = "no file of the manifest" if kind is None else f"{kind}, and no file of the manifest"
            faults.add(path, _LEFTOVERS.get(path, what))


def _file_fault(root: Path, path_of_digest: dict[str, str], sizes: set[int], entry: FileEntry) -> str | None:
    digest = None
    try:
        with open_file(root, entry.path) as file:
            size = os.fstat(file.fileno()).st_size
            # A file that holds the content of another listed file is named as such; files of any other size are not
            # read.
            if size in sizes:
                digest = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=32)).hexdigest()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except MalformedError as error:
        return _sentence(error, root / entry.path)
    if digest == entry.blake2b:
        return None
    if digest in path_of_digest:
        return f"holds the content of {path_of_digest[digest]}"
    if size == entry.size:
        return "its content does not match its digest"
    problem = "truncated" if size < entry.size else "too long"
    return f"{problem}: {size:,} bytes, and the manifest says {entry.size:,}"


def _all_files(root: Path) -> Iterator[str]:
    """The paths below ``root`` of all files and links; of the folder ``.work`` only the folder itself."""
    for directory, folders, files in os.walk(root):
        below = Path(directory).relative_to(root)
        if below == Path() and _WORK in folders:
            folders.remove(_WORK)
            files.append(_WORK)
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(directory, name))]
        for name in sorted([*files, *links]):
            yield (below / name).as_posix()


def _sentence(error: Exception, path: Path) -> str:
    """What an error says of the file at ``path``."""
    return str(error).removeprefix(f"{path} ").removeprefix(f"{path}: ")


def _check_contents(
    root: Path, manifest: Manifest, faults: Faults, progress: Progress | None, decoder: ImageDecoder | None
) -> None:
    """Checks the vocabulary and every dataset; ``manifest`` has no fault."""
    directory = Directory(root, manifest)
    try:
        datasets = directory.datasets.values()
    except DataError as error:
        faults.add(MANIFEST, _sentence(error, root / MANIFEST))
        return
    vocabulary, text = manifest.vocabulary, None
    if vocabulary is not None:
        if faults.has(vocabulary.file):
            return
        try:
            text = directory.text
            if text is not None and text.pieces != vocabulary.pieces:
                raise DataError(f"has {text.pieces} pieces, and the manifest says {vocabulary.pieces}")
        except GatokitError as error:
            faults.add(vocabulary.file, _sentence(error, root / vocabulary.file))
            return
    total = sum(dataset.records for dataset in manifest.datasets)
    count, count_decoded = _counter(progress, "records", total), _counter(progress, "images", total)
    for dataset in datasets:
        totals = dataset.totals
        described, tasks = (f"{totals.directory}/{name}" for name in (totals.described_file, totals.tasks_file))
        if faults.has(described) or faults.has(tasks):
            continue
        try:
            faults.add(described, *dataset_faults(dataset))
        except DataError as error:
            faults.add(described, _sentence(error, root / described))
        if faults.has(described):
            continue
        rules, specs = dataset.described.documents, dataset.described.specs.values()
        has_text = rules is not None or any(field.kind == "text" for spec in specs for field in spec.fields)
        if has_text and text is None and manifest.content == "build":
            faults.add(described, "it holds text, and the manifest names no vocabulary")
            continue
        content: ContentCheck
        if rules is not None and text is not None:
            content = DocumentCheck(rules, text, manifest.tokenizer.chunk_tokens)
        else:
            pieces = TEXT_IDS if text is None else text.pieces
            content = EpisodeCheck(dataset.described.specs, manifest.tokenizer, pieces)
        decode = None
        if decoder is not None and dataset.described.has_images:
            decode = partial(decoder.faults, noun=content.noun, count=count_decoded)
        elif decoder is not None:
            count_decoded(totals.records)
        _check_dataset(dataset, content, faults, count, decode)


def _check_dataset(
    dataset: DatasetReader,
    content: ContentCheck,
    faults: Faults,
    count: Callable[[int], None],
    decode: Callable[[Path, list[Owner], int], Iterator[str]] | None,
) -> None:
    """Checks the indexes and shards of a dataset whose summaries have no fault."""
    name, sums = dataset.totals.directory, IndexSums(dataset)
    for split in dataset.totals.splits:
        index = f"{name}/{split.index}"
        if faults.has(index):
            continue
        try:
            table = read_index(dataset.file(split.index), dataset.columns)
        except DataError as error:
            faults.add(index, _sentence(error, dataset.path / split.index))
            continue
        sums.add(table)
        faults.add(index, *index_faults(table, split, dataset))
        for ordinal, part in enumerate(split.parts):
            shard = f"{name}/{part.file}"
            if faults.has(shard):
                continue
            try:
                owners = part_owners(table, ordinal, part)
            except ValueError as error:
                faults.add(index, str(error))
                continue
            path = dataset.path / part.file
            faults.add(shard, *shard_faults(path, part.records, owners, content, count))
            if decode is not None and not faults.has(shard):
                faults.add(shard, *decode(path, owners, part.records))
    if not any(faults.has(f"{name}/{split.index}") for split in dataset.totals.splits):
        for file, sentence in sums.faults():
            faults.add(file if file == MANIFEST else f"{name}/{file}", sentence)


def _counter(progress: Progress | None, stage: str, total: int) -> Callable[[int], None]:
    """A function that is called with how many more are done."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(stage, done, total)

    return count
