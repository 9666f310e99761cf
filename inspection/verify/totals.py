"""Sums over the indexes of a dataset against ``tasks.parquet``, ``dataset.json`` and the manifest."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from gatokit.inspection.read.dataset import DatasetReader
from gatokit.inspection.read.rows import TaskRow
from gatokit.schemas.config import CorpusConfig, TextConfig
from gatokit.schemas.digests import json_digest
from gatokit.schemas.document import DocumentRules
from gatokit.schemas.index import HELD_OUT
from gatokit.schemas.manifest import DATASET, MANIFEST, TASKS_FILE, DatasetEntry, DatasetFile, Manifest
from gatokit.schemas.tokens import TokenIds

_SUMMED = ("episodes", "kept", "held_out", "steps", "tokens")
_OF_EPISODES = ("window", "stream_return", "expert_return", "threshold")
_FOUND_BY_BUILDS = ("bad_image", "image_too_large", "image_animated", "empty", "crashed_decoder")
"""Why a build drops documents that the scan found sound; a scan can find ``bad_image`` and ``empty`` too."""


class Totals:
    """Adds up the indexes of a dataset's splits."""

    def __init__(self, dataset: DatasetReader) -> None:
        self._dataset = dataset
        self._noun = "documents" if dataset.holds_documents else "episodes"
        self._ids: list[pa.Array] = []
        self._rows = 0
        self._rows_of_task: Counter[str] = Counter()
        self._sums: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._found_by_builds = 0

    def add(self, table: pa.Table) -> None:
        """Adds the index of a split."""
        self._ids += table["episode_id"].chunks
        kept = table["kept"]
        if self._dataset.holds_documents:
            sound = pc.or_(kept, pc.fill_null(pc.equal(table["reason"], "duplicate"), False))
            late = pc.is_in(table["reason"], pa.array(_FOUND_BY_BUILDS))
            self._found_by_builds += pc.sum(late).as_py() or 0
        else:
            sound = pc.is_valid(table["return"])
        columns = {
            "lost": table["lost"],
            "episodes": sound.cast(pa.int64()),
            "kept": kept.cast(pa.int64()),
            "held_out": pc.fill_null(pc.equal(table["split"], HELD_OUT), False).cast(pa.int64()),
            "steps": pc.if_else(kept, table["steps"], 0),
            "tokens": pc.if_else(kept, table["tokens"], 0),
        }
        streams = pa.table({"task": table["task"], "agent": table["agent"], **columns}).group_by(["task", "agent"])
        for row in streams.aggregate([(name, "sum") for name in columns]).to_pylist():
            self._rows += row["lost_sum"]
            if row["task"] is not None:
                self._rows_of_task[row["task"]] += row["lost_sum"]
                for name in _SUMMED:
                    self._sums[row["task"], row["agent"]][name] += row[f"{name}_sum"] or 0

    def faults(self) -> Iterator[tuple[str, str]]:
        """A file below the dataset's directory (or the manifest), and what is wrong with it."""
        totals = self._dataset.totals
        ids = pa.chunked_array(self._ids, pa.string())
        if pc.count_distinct(ids).as_py() != len(ids):
            counts = pc.value_counts(ids)
            twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
            yield DATASET, f"two rows of the indexes have the episode id {twice!r}"
        kept = sum(sums["kept"] for sums in self._sums.values())
        for file, declared in ((DATASET, self._dataset.described), (MANIFEST, totals)):
            if (declared.episodes, declared.kept) != (self._rows, kept):
                counts = f"{declared.episodes} {self._noun}, {declared.kept} kept"
                yield file, f"{totals.name}: {counts}, and the indexes hold {self._rows} and {kept}"
        for sentence in self._task_faults():
            yield TASKS_FILE, sentence

    def _task_faults(self) -> Iterator[str]:
        rows: Counter[str] = Counter()
        for row in self._dataset.tasks:
            rows[row.task] += row.kept + row.dropped
            sums = self._sums[row.task, row.agent]
            for name in _SUMMED:
                declared = getattr(row, name)
                # N counts documents that the scan found sound, of which the build may have dropped some.
                late = 0 if name != "episodes" or self._dataset.is_scan else self._found_by_builds
                if declared is not None and not sums[name] <= declared <= sums[name] + late:
                    numbers = f"{declared} {name}, and the indexes hold {sums[name]}"
                    yield f"task {row.task!r}, agent {row.agent!r}: {numbers}"
        for task in sorted(rows.keys() | self._rows_of_task.keys()):
            if rows[task] != self._rows_of_task[task]:
                yield f"task {task!r}: {rows[task]} {self._noun}, and the indexes hold {self._rows_of_task[task]}"


def manifest_faults(manifest: Manifest) -> Iterator[str]:
    """Where the manifest contradicts itself."""
    if manifest.config_digest != json_digest(manifest.config):
        yield "the config does not match its digest"
    ids = TokenIds(manifest.tokenizer.discrete_offset)
    if (manifest.tokenizer.separator, manifest.tokenizer.vocabulary_size) != (ids.separator, ids.vocabulary_size):
        yield f"the separator or the number of ids is not that of discrete_offset {ids.discrete_offset}"
    if [dataset.name for dataset in manifest.datasets] != [item.get("name") for item in manifest.config["datasets"]]:
        yield "its datasets are not those of its config"
    files = {entry.path: entry for entry in manifest.files}
    expected: dict[str, str | None] = {}
    if manifest.vocabulary is not None:
        expected[manifest.vocabulary.file] = manifest.vocabulary.blake2b
    for dataset in manifest.datasets:
        expected |= _files(dataset)
        yield from _sums(dataset)
    for path in sorted(expected.keys() ^ files.keys()):
        yield f"{path} belongs to no dataset" if path in files else f"{path} is not among the files"
    for path in sorted(expected.keys() & files.keys()):
        if expected[path] not in (None, files[path].blake2b):
            yield f"{path} has two digests"


def dataset_faults(dataset: DatasetReader) -> Iterator[str]:
    """Where ``dataset.json`` contradicts itself, the manifest or ``tasks.parquet``. Raises DataError if one of the two
    files cannot be read."""
    described, tasks, totals = dataset.described, dataset.tasks, dataset.totals
    if (described.name, described.kind) != (totals.name, totals.kind):
        yield f"describes {described.name!r} of kind {described.kind}, and the manifest has {totals.name!r} here"
    if dataset.corpus is None:
        yield from _spec_faults(described)
    else:
        yield from _rule_faults(described, tasks, dataset.corpus)
    differing = sorted(set(described.tasks) ^ {row.task for row in tasks})
    if differing:
        yield f"task {differing[0]!r} stands only in one of {DATASET} and {TASKS_FILE}"


def _spec_faults(described: DatasetFile) -> Iterator[str]:
    if described.documents is not None:
        yield "holds rules of documents, and the manifest has episodes here"
    for id_, spec in described.specs.items():
        if spec.id != id_:
            yield f"the spec {id_} was edited: its fields are those of {spec.id}"
    for task, entry in described.tasks.items():
        if entry.spec not in described.specs:
            yield f"task {task!r} has the spec {entry.spec}, which is not among the specs"


def _rule_faults(described: DatasetFile, tasks: list[TaskRow], corpus: CorpusConfig) -> Iterator[str]:
    rules = DocumentRules(
        pictures=None if isinstance(corpus, TextConfig) else corpus.images.rule(),
        end_of_document=corpus.end_of_document,
        bad_images=getattr(corpus, "bad_images", "reject"),
    )
    if described.documents != rules:
        yield "its rules of documents are not those of the config"
    name = corpus.name
    if described.specs or {task: entry.spec for task, entry in described.tasks.items()} != {name: ""}:
        yield f"has specs, or other tasks than {name!r}, the one of its documents"
    if [(row.task, row.agent) for row in tasks] != [(name, "")]:
        yield f"{TASKS_FILE} has other rows than the one of {name!r}"
    for row in tasks:
        for column in _OF_EPISODES:
            if getattr(row, column) is not None:
                yield f"{TASKS_FILE} has a value in {column}, and documents have none"


def _files(dataset: DatasetEntry) -> dict[str, str | None]:
    """Every file of a dataset, and its digest if its entry has one."""
    names: dict[str, str | None] = {dataset.described_file: None, dataset.tasks_file: None}
    names |= {split.index: None for split in dataset.splits}
    names |= {part.file: part.blake2b for split in dataset.splits for part in split.parts}
    return {f"{dataset.directory}/{name}": digest for name, digest in names.items()}


def _sums(dataset: DatasetEntry) -> Iterator[str]:
    parts = [part for split in dataset.splits for part in split.parts]
    sums = {
        "kept": sum(split.kept for split in dataset.splits),
        "tokens": sum(part.tokens for part in parts),
        "training": sum(part.training for part in parts),
        "held_out": sum(part.held_out for part in parts),
        "shards": len(parts),
        "bytes": sum(part.size for part in parts),
    }
    for name, total in sums.items():
        if getattr(dataset, name) != total:
            yield f"{dataset.name}: {name} is {getattr(dataset, name)}, and its splits add up to {total}"
