"""The index of a split: its rows by themselves, against the dataset's summaries and rule, and against its parts.

Legend: R rows of the index.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import TaskRow, coded, where_column
from gatokit.inspection.verify.records import Owner
from gatokit.schemas.config import CorpusConfig, Keep, TextConfig
from gatokit.schemas.filter import FILTER_REASONS as RULE_REASONS
from gatokit.schemas.filter import RULES, at_or_above, in_range
from gatokit.schemas.index import HELD_OUT, INDEX, INDEX_VERSION, REASONS, TRAIN
from gatokit.schemas.manifest import (
    DATASET,
    MANIFEST,
    TASKS_FILE,
    DatasetEntry,
    DatasetFile,
    DocumentRules,
    Manifest,
    ShardEntry,
    SplitEntry,
    TokenizerSettings,
    json_digest,
)
from gatokit.schemas.where import Where

_STORED = ("tokens", "part", "first_record", "record_tokens")
_OF_EPISODES = ("spec", "steps", "return", "expert_return", "threshold")
_RULES_OF_EPISODES = ("too_short", *RULE_REASONS)


def read_index(path: Path) -> pa.Table:
    """The index file (schema ``INDEX``). Raises ValueError, with a sentence, if it is none."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"cannot be read: {error}") from None
    version = (table.schema.metadata or {}).get(b"gatokit.index", b"0")
    if not version.isdigit() or int(version) > INDEX_VERSION:
        raise ValueError(f"has index version {version.decode()}, and this gatokit reads up to {INDEX_VERSION}")
    if table.schema.names != INDEX.names:
        raise ValueError(f"has the columns {', '.join(table.schema.names)}")
    for found, expected in zip(table.schema, INDEX, strict=True):
        if found.type != expected.type:
            raise ValueError(f"has a column {found.name} of {found.type}, not {expected.type}")
    return table


def index_faults(table: pa.Table, split: SplitEntry, dataset: DatasetReader) -> Iterator[str]:
    """What is wrong with the rows of a split's index, each with the number of such rows and the first of them."""
    kept = pc.sum(table["kept"]).as_py() or 0
    if (table.num_rows, kept) != (split.rows, split.kept):
        yield f"{table.num_rows} rows, {kept} kept, and the manifest says {split.rows} and {split.kept}"
    masks = _verdicts(table) | _stored(table, dataset.is_scan)
    masks |= _episodes(table, dataset) if dataset.corpus is None else _documents(table, dataset.corpus)
    for fault, mask in masks.items():
        wrong = table["episode_id"].filter(mask)
        if len(wrong):
            yield f"{len(wrong)} rows {fault}; the first is {wrong[0].as_py()!r}"


def part_owners(table: pa.Table, ordinal: int, part: ShardEntry) -> list[Owner]:
    """The owners of a part's records, in order. Raises ValueError, with a sentence, if they do not fill the part as the
    manifest says."""
    rows = table.filter(pc.fill_null(pc.equal(table["part"], ordinal), False)).sort_by("first_record")
    counts = pc.fill_null(pc.list_value_length(rows["record_tokens"]), 0).to_numpy()
    first = rows["first_record"].to_numpy()
    if not np.array_equal(first, np.cumsum(counts) - counts) or counts.sum() != part.records:
        raise ValueError(f"its rows do not cover the {part.records} records of {part.file} one after the other")
    held_out = pc.fill_null(pc.equal(rows["split"], HELD_OUT), False).to_numpy()
    training = int(counts[~held_out].sum())
    if held_out.any() and first[held_out].min() < training:
        raise ValueError(f"held-out records of {part.file} stand before training records")
    tokens = pc.sum(rows["tokens"]).as_py() or 0
    if (training, tokens) != (part.training, part.tokens):
        raise ValueError(
            f"{part.file}: {training} training records and {tokens} tokens, and the manifest says {part.training} "
            f"and {part.tokens}"
        )
    columns = [rows[name].to_pylist() for name in ("episode_id", "spec", "steps", "return", "record_tokens")]
    return [Owner(*values) for values in zip(*columns, strict=True)]


def _verdicts(table: pa.Table) -> dict[str, Any]:
    kept = table["kept"]
    known = pc.is_in(table["reason"], pa.array(list(REASONS)))
    in_split = pc.is_in(table["split"], pa.array([TRAIN, HELD_OUT]))
    return {
        "are kept and have a reason to be dropped": pc.and_(kept, pc.is_valid(table["reason"])),
        "are dropped without a known reason": pc.and_not(pc.invert(kept), known),
        "are kept and in no split, or dropped and in one": pc.not_equal(kept, in_split),
    }


def _stored(table: pa.Table, is_scan: bool) -> dict[str, Any]:
    present = [pc.is_valid(table[name]) for name in _STORED]
    if is_scan:
        return {f"have a value in {name}, in a scan": mask for name, mask in zip(_STORED, present, strict=True)}
    stored = pc.and_(pc.and_(present[1], present[2]), present[3])
    ends = np.cumsum(pc.fill_null(pc.list_value_length(table["record_tokens"]), 0).to_numpy())
    flat = pc.list_flatten(table["record_tokens"]).to_numpy().astype(np.int64)
    before = np.concatenate([[0], np.cumsum(flat)])
    sums = before[ends] - before[np.concatenate([[0], ends[:-1]])] if len(ends) else ends
    return {
        "are kept and not stored, or dropped and stored": pc.not_equal(table["kept"], stored),
        "have other tokens than their records": _differing(table["tokens"], pa.chunked_array([sums], pa.int64())),
    }


def _documents(table: pa.Table, corpus: CorpusConfig) -> dict[str, Any]:
    """Rows of documents: the columns of episodes are null, and the dataset is their only task."""
    faults = {f"have a value in {name}, and documents have none": pc.is_valid(table[name]) for name in _OF_EPISODES}
    of_task = pc.and_(pc.equal(table["task"], corpus.name), pc.equal(table["agent"], ""))
    faults["are of another task than their dataset, or of an agent"] = pc.invert(pc.fill_null(of_task, False))
    faults["have another order than their position"] = _differing(
        table["order"], table["source_position"].cast(pa.float64())
    )
    faults["are dropped by a rule of episodes"] = pc.is_in(table["reason"], pa.array(_RULES_OF_EPISODES))
    if not corpus.drop_duplicates:
        duplicate = pc.fill_null(pc.equal(table["reason"], "duplicate"), False)
        faults["are dropped as duplicates, which the config keeps"] = duplicate
    return faults


def _episodes(table: pa.Table, dataset: DatasetReader) -> dict[str, Any]:
    """Rows of episodes against ``dataset.json``, ``tasks.parquet`` and the rule."""
    codes, names = coded(table["task"])

    def of_task(values: dict[str, Any], kind: pa.DataType) -> pa.ChunkedArray:
        by_code = pa.array([*(values.get(name) for name in names), None], kind)
        return pa.chunked_array([by_code.take(pa.array(codes % len(by_code)))])

    specs = {task: entry.spec for task, entry in dataset.described.tasks.items()}
    expert = of_task({row.task: row.expert_return for row in dataset.tasks}, pa.float64())
    limit = of_task({row.task: row.threshold for row in dataset.tasks}, pa.float64())
    faults = {
        "have another spec than their task": _differing(table["spec"], of_task(specs, pa.string())),
        "have another expert return than their task": _differing(table["expert_return"], expert),
        "have another threshold than their task": _differing(table["threshold"], limit),
    }
    keep = dataset.keep
    if keep is None:
        return faults
    if keep.min_return is not None:
        reached = at_or_above(table["return"].to_numpy(), limit.to_numpy())
        faults["are kept below the threshold"] = pc.and_not(table["kept"], pa.array(reached))
        below = pc.fill_null(pc.equal(table["reason"], "below_threshold"), False)
        faults["are dropped below the threshold that they reach"] = pc.and_(below, pa.array(reached))
    return faults | _rule_masks(table, keep, dataset.expert_returns)


def _rule_masks(table: pa.Table, keep: Keep, experts: dict[str, float]) -> dict[str, Any]:
    """Rows of episodes against the rules that need only one row."""
    kept = table["kept"]
    absent = [reason for key, (reason, _) in RULES.items() if getattr(keep, key) is None]
    faults = {"are dropped by a rule that the config does not have": pc.is_in(table["reason"], pa.array(absent))}
    if keep.returns is not None:
        within = in_range(keep, table["return"].to_numpy())
        faults["are kept with a return outside of the range"] = pc.and_not(kept, pa.array(within))
    if keep.where is not None:
        where = Where(keep.where)
        columns = {name: where_column(table, name, experts) for name in where.columns}
        true = pa.array(where.passes(columns, table.num_rows))
        dropped = pc.fill_null(pc.equal(table["reason"], "not_where"), False)
        faults["are kept, and the expression of keep is not true for them"] = pc.and_not(kept, true)
        faults["are dropped by the expression of keep, which is true for them"] = pc.and_(dropped, true)
    return faults


def _differing(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where two columns (R,) differ; null equals only null."""
    return pc.or_(pc.fill_null(pc.not_equal(left, right), False), pc.not_equal(pc.is_null(left), pc.is_null(right)))


_SUMMED = ("episodes", "kept", "held_out", "steps", "tokens")
_OF_EPISODE_TASKS = ("window", "stream_return", "expert_return", "threshold")
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
    settings = manifest.tokenizer
    if settings != TokenizerSettings.of(settings.discrete_offset, settings.chunk_tokens):
        yield f"the separator or the number of ids is not that of discrete_offset {settings.discrete_offset}"
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
        for column in _OF_EPISODE_TASKS:
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
