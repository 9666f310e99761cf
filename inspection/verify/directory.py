"""Is a finished directory what its manifest says, to the last byte?"""

from collections.abc import Callable
from pathlib import Path

from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.directory import Directory
from gatokit.inspection.verify.documents import DocumentChecks
from gatokit.inspection.verify.episodes import EpisodeChecks
from gatokit.inspection.verify.faults import Fault, Faults
from gatokit.inspection.verify.files import check_files
from gatokit.inspection.verify.index import Summary, index_faults, part_owners, read_index
from gatokit.inspection.verify.records import ContentCheck, RecordChecker
from gatokit.inspection.verify.totals import DocumentTotals, Totals, dataset_faults, manifest_faults
from gatokit.schemas.errors import DataError, GatokitError
from gatokit.schemas.manifest import MANIFEST, Manifest, local_directory
from gatokit.schemas.tokens import TEXT_IDS, TokenIds
from gatokit.tokenizers.text import TextTokenizer

__all__ = ["Fault", "verify"]

Progress = Callable[[str, int, int], None]
"""Called with a stage (``files`` or ``records``), how many are done and how many there are."""


def verify(directory: str | Path, progress: Progress | None = None) -> list[Fault]:
    """Every fault of a finished build or scan; an empty list means that it is complete and sound.

    Checks presence, size and digest of every file, that there is no other, that every record decodes and is what
    the index says, and that indexes, summaries and manifest agree. What depends on a file with a fault is not
    checked further. ConfigError where there is no such directory.
    """
    root = local_directory(directory)
    faults = Faults()
    manifest = _manifest(root, faults)
    if manifest is not None:
        check_files(root, manifest, faults, _counter(progress, "files", len(manifest.files)))
        _check_contents(root, manifest, faults, progress)
    return faults.listed()


def _manifest(root: Path, faults: Faults) -> Manifest | None:
    """The manifest; None, with a fault noted, where nothing else can be checked by it."""
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
    if faults.has(MANIFEST) or (manifest.vocabulary is not None and faults.has(manifest.vocabulary.file)):
        return
    moved = _counter(progress, "records", sum(dataset.records for dataset in manifest.datasets))
    directory = Directory(root, manifest)
    text = None
    if manifest.vocabulary is not None:
        try:
            text = _vocabulary(directory)
        except GatokitError as error:
            faults.add(manifest.vocabulary.file, str(error).removeprefix(f"{root / manifest.vocabulary.file} "))
            return
    for dataset in directory.datasets.values():
        name, described = dataset.totals.directory, dataset.totals.described_file
        if faults.has(f"{name}/{described}") or faults.has(f"{name}/{dataset.totals.tasks_file}"):
            continue
        try:
            summary = _summary(dataset, manifest)
        except DataError as error:
            faults.add(f"{name}/{described}", str(error))
            continue
        for sentence in dataset_faults(summary):
            faults.add(f"{name}/{described}", sentence)
        if not faults.has(f"{name}/{described}"):
            checker = RecordChecker(_content(dataset, manifest, text))
            _check_dataset(dataset, summary, checker, faults, moved)


def _vocabulary(directory: Directory) -> TextTokenizer:
    assert directory.manifest.vocabulary is not None
    said, text = directory.manifest.vocabulary.pieces, directory.text
    if text.pieces != said:
        raise DataError(f"has {text.pieces} pieces, and the manifest says {said}")
    return text


def _summary(dataset: DatasetReader, manifest: Manifest) -> Summary:
    described, is_scan = dataset.described, manifest.content == "scan"
    return Summary(dataset.totals, described, dataset.tasks, dataset.keep, dataset.corpus, is_scan)


def _content(dataset: DatasetReader, manifest: Manifest, text: TextTokenizer | None) -> ContentCheck:
    """What the records of a dataset are checked for; ``text`` is None in a scan, which has no records."""
    rules = dataset.described.documents
    if rules is not None and text is not None:
        return DocumentChecks(rules, text, manifest.tokenizer.chunk_tokens)
    pieces = TEXT_IDS if text is None else text.pieces
    return EpisodeChecks(dataset.described.specs, TokenIds(manifest.tokenizer.discrete_offset), pieces)


def _check_dataset(
    dataset: DatasetReader, summary: Summary, checker: RecordChecker, faults: Faults, moved: Callable[[int], None]
) -> None:
    name, totals = dataset.totals.directory, DocumentTotals() if dataset.holds_documents else Totals()
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
        for sentence in index_faults(table, split, summary):
            faults.add(index, sentence)
        for ordinal, part in enumerate(split.parts):
            file = f"{name}/{part.file}"
            if faults.has(file):
                continue
            try:
                owners = part_owners(table, ordinal, part)
            except ValueError as error:
                faults.add(index, str(error))
                continue
            for sentence in checker.faults(dataset.path / part.file, part.records, owners, moved):
                faults.add(file, sentence)
    if not any(faults.has(f"{name}/{split.index}") for split in dataset.totals.splits):
        for file, sentence in totals.faults(summary):
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
