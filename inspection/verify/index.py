"""Indexes and summaries: the rows of an index by themselves, against the rule and against its shards; sums over them
against ``tasks.parquet``, ``dataset.json`` and the manifest; and whether these contradict themselves.

Legend: R rows of the index of a split.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.inspection.read.directory import DatasetReader
from gatokit.inspection.read.index import where_columns
from gatokit.inspection.verify.records import Owner
from gatokit.schemas.config import CorpusConfig, document_rules
from gatokit.schemas.config_episodes import Keep
from gatokit.schemas.errors import DataError, MalformedError
from gatokit.schemas.filter import FILTER_REASONS, RULES, at_or_above, float32_rounding, in_range
from gatokit.schemas.index import HELD_OUT, INDEX, METADATA_TYPES, OF_TASK, REASONS, ROW_COLUMNS, TRAIN
from gatokit.schemas.manifest import (
    DATASET,
    MANIFEST,
    TASKS_FILE,
    Manifest,
    MetadataType,
    ShardEntry,
    SplitEntry,
    TokenizerSettings,
    json_digest,
)
from gatokit.schemas.where import Where, coded
from gatokit.storage.index import check_columns, index_schema

_STORED = ("tokens", "part", "first_record", "record_tokens")
_ONLY_OF_EPISODES = ("spec", "steps", "return", *OF_TASK)
_TASK_ONLY_OF_EPISODES = ("window", "stream_return", "expert_return", "threshold")
_FOUND_BY_BUILDS = ("bad_image", "image_too_large", "image_animated", "empty", "crashed_decoder")
"""Why a build drops documents that the scan found sound; a scan can find ``bad_image`` and ``empty`` too."""

Masks = dict[str, Any]
"""What is wrong with some rows, and which rows these are: bool (R,), or null, which means not wrong."""


# --- the index of a split --------------------------------------------------------------------------------------


def read_index(path: Path, columns: Mapping[str, MetadataType]) -> pa.Table:
    """The index file at ``path``: of the schema ``INDEX``, in format 1 with the columns ``OF_TASK``, behind it any of
    ``columns``, of which the others are added as nulls. Raises DataError if it is no such file."""
    names = index_schema(path, None, columns).names
    expected = ROW_COLUMNS if names[: len(ROW_COLUMNS)] == ROW_COLUMNS else INDEX.names
    if names[: len(expected)] != expected:
        raise MalformedError(f"{path} has the columns {', '.join(names)}")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    check_columns(table, path)
    for name, type_ in columns.items():
        column = table[name] if name in names else pa.chunked_array([pa.nulls(len(table))])
        table = table.drop_columns([name] if name in names else [])
        table = table.append_column(name, column.cast(METADATA_TYPES[type_]))
    return table


def index_faults(table: pa.Table, split: SplitEntry, dataset: DatasetReader) -> Iterator[str]:
    """What is wrong with the rows of a split's index, each with the number of such rows and the first of them."""
    kept = pc.sum(table["kept"]).as_py() or 0
    if (table.num_rows, kept) != (split.rows, split.kept):
        yield f"{table.num_rows} rows, {kept} kept, and the manifest says {split.rows} and {split.kept}"
    masks = _row_masks(table, dataset.is_scan)
    if dataset.corpus is not None:
        masks |= _document_masks(table, dataset.corpus)
    if dataset.keep is not None:
        masks |= _episode_masks(table, dataset, dataset.keep)
    for fault, mask in masks.items():
        wrong = table["episode_id"].filter(mask)
        if len(wrong):
            yield f"{len(wrong)} rows {fault}; the first is {wrong[0].as_py()!r}"


def part_owners(table: pa.Table, ordinal: int, part: ShardEntry) -> list[Owner]:
    """The owners of a shard's records, in order; ``part`` is the shard of that ordinal. Raises ValueError, with a
    sentence, if they do not fill the shard as the manifest says."""
    rows = table.filter(_equals(table["part"], ordinal)).sort_by("first_record")
    counts = pc.fill_null(pc.list_value_length(rows["record_tokens"]), 0).to_numpy()
    first = rows["first_record"].to_numpy()
    if not np.array_equal(first, np.cumsum(counts) - counts) or counts.sum() != part.records:
        raise ValueError(f"its rows do not cover the {part.records} records of {part.file} one after the other")
    held_out = _equals(rows["split"], HELD_OUT).to_numpy()
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


def _row_masks(table: pa.Table, is_scan: bool) -> Masks:
    """Rows of all kinds: whether they are kept, why not, and where they are stored."""
    kept, reason, sizes = table["kept"], table["reason"], table["record_tokens"]
    in_split = _is_in(table["split"], (TRAIN, HELD_OUT))
    masks = {
        "are kept and have a reason to be dropped": pc.and_(kept, pc.is_valid(reason)),
        "are dropped without a known reason": pc.and_not(pc.invert(kept), _is_in(reason, REASONS)),
        "are kept and in no split, or dropped and in one": pc.not_equal(kept, in_split),
    }
    if is_scan:
        return masks | {f"have a value in {name}, in a scan": pc.is_valid(table[name]) for name in _STORED}
    stored = pc.and_(pc.and_(pc.is_valid(table["part"]), pc.is_valid(table["first_record"])), pc.is_valid(sizes))
    ends = np.cumsum(pc.fill_null(pc.list_value_length(sizes), 0).to_numpy())
    tokens_before = np.concatenate([[0], np.cumsum(pc.list_flatten(sizes).to_numpy(), dtype=np.int64)])
    sums = np.diff(tokens_before[ends], prepend=0)
    return masks | {
        "are kept and not stored, or dropped and stored": pc.not_equal(kept, stored),
        "have other tokens than their records": _differ(table["tokens"], pa.chunked_array([sums], pa.int64())),
    }


def _document_masks(table: pa.Table, corpus: CorpusConfig) -> Masks:
    """Rows of documents: the columns of episodes are null, and the dataset is their only task."""
    is_of_task = pc.and_(_equals(table["task"], corpus.name), _equals(table["agent"], ""))
    position = table["source_position"].cast(pa.float64())
    masks = {
        f"have a value in {name}, and documents have none": pc.is_valid(table[name])
        for name in _ONLY_OF_EPISODES
        if name in table.column_names
    }
    masks |= {
        "are of another task than their dataset, or of an agent": pc.invert(is_of_task),
        "have another order than their position": _differ(table["order"], position),
        "are dropped by a rule of episodes": _is_in(table["reason"], ("too_short", *FILTER_REASONS)),
    }
    if not corpus.drop_duplicates:
        masks["are dropped as duplicates, which the config keeps"] = _equals(table["reason"], "duplicate")
    return masks


def _episode_masks(table: pa.Table, dataset: DatasetReader, keep: Keep) -> Masks:
    """Rows of episodes against ``dataset.json``, ``tasks.parquet`` and those rules for which one row is enough."""
    codes, names = coded(table["task"])

    def of_task(values: Mapping[str, Any], type_: pa.DataType) -> pa.ChunkedArray:
        by_code = pa.array([*(values.get(name) for name in names), None], type_)
        return pa.chunked_array([by_code.take(pa.array(codes % len(by_code)))])

    kept, reason, returns = table["kept"], table["reason"], table["return"].to_numpy()
    # An index does not hold the rounding of rewards. Half an ulp of the largest value in every step is enough.
    steps = pc.fill_null(table["steps"], 0).to_numpy()
    specs = of_task({task: entry.spec for task, entry in dataset.described.tasks.items()}, pa.string())
    expert_returns = of_task(dataset.expert_returns, pa.float64())
    thresholds = of_task(dataset.thresholds, pa.float64())
    absent_rules = [rule_reason for key, rule_reason in RULES.items() if getattr(keep, key) is None]
    masks = {
        "have another spec than their task": _differ(table["spec"], specs),
        "are dropped by a rule that the config does not have": _is_in(reason, absent_rules),
    }
    if "threshold" in table.column_names:  # format 1
        masks["have another expert return than their task"] = _differ(table["expert_return"], expert_returns)
        masks["have another threshold than their task"] = _differ(table["threshold"], thresholds)
    if keep.min_return is not None:
        reached = pa.array(at_or_above(returns, thresholds.to_numpy()))
        below = _equals(reason, "below_threshold")
        masks["are kept below the threshold"] = pc.and_not(kept, reached)
        masks["are dropped below the threshold that they reach"] = pc.and_(below, reached)
    if keep.returns is not None:
        most = max(abs(end) for end in keep.returns if end is not None)
        within = pa.array(in_range(keep, returns, steps * float32_rounding(np.maximum(np.abs(returns), most))))
        masks["are kept with a return outside of the range"] = pc.and_not(kept, within)
    if keep.where is not None:
        where = Where(keep.where, dataset.column_types)
        columns = where_columns(table, where.columns, dataset.of_tasks)
        exact = columns | ({"return": returns} if "return" in columns else {})
        true, exactly = (pa.array(where.passes(values, table.num_rows)) for values in (columns, exact))
        masks["are kept, and the expression of keep is not true for them"] = pc.and_not(kept, pc.or_(true, exactly))
        masks["are dropped by the expression of keep, which is true for them"] = pc.and_(
            _equals(reason, "not_where"), pc.and_(true, exactly)
        )
    return masks


def _equals(column: pa.ChunkedArray, value: Any) -> pa.ChunkedArray:
    """Where a column (R,) has a value; null has none."""
    return pc.fill_null(pc.equal(column, value), False)


def _is_in(column: pa.ChunkedArray, values: Collection[str]) -> pa.ChunkedArray:
    """Where a column (R,) has one of some values; null has none."""
    return pc.is_in(column, pa.array(list(values), pa.string()))


def _differ(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where two columns (R,) differ; null equals only null."""
    return pc.or_(pc.fill_null(pc.not_equal(left, right), False), pc.not_equal(pc.is_null(left), pc.is_null(right)))


# --- all indexes of a dataset against its summaries ------------------------------------------------------------


class IndexSums:
    """Adds up the indexes of a dataset's splits, and compares the sums with the dataset's summaries."""

    def __init__(self, dataset: DatasetReader) -> None:
        self._dataset = dataset
        self._ids: list[pa.Array] = []
        self._sums: dict[tuple[str | None, str | None], Counter[str]] = defaultdict(Counter)
        """By task and agent."""
        self._found_by_builds = 0

    def add(self, table: pa.Table) -> None:
        """Adds the index of a split."""
        self._ids += table["episode_id"].chunks
        kept = table["kept"]
        if self._dataset.holds_documents:
            sound = pc.or_(kept, _equals(table["reason"], "duplicate"))
            self._found_by_builds += pc.sum(_is_in(table["reason"], _FOUND_BY_BUILDS)).as_py() or 0
        else:
            without_rewards = [row.task for row in self._dataset.tasks if row.expert_return is None]
            counted = pc.and_(_is_in(table["task"], without_rewards), pc.is_valid(table["steps"]))
            sound = pc.or_(pc.is_valid(table["return"]), pc.fill_null(counted, False))
        columns = {
            "lost": table["lost"],
            "episodes": sound.cast(pa.int64()),
            "kept": kept.cast(pa.int64()),
            "held_out": _equals(table["split"], HELD_OUT).cast(pa.int64()),
            "steps": pc.if_else(kept, table["steps"], 0),
            "tokens": pc.if_else(kept, table["tokens"], 0),
        }
        streams = pa.table({"task": table["task"], "agent": table["agent"], **columns}).group_by(["task", "agent"])
        for row in streams.aggregate([(name, "sum") for name in columns]).to_pylist():
            self._sums[row["task"], row["agent"]].update({name: row[f"{name}_sum"] or 0 for name in columns})

    def faults(self) -> Iterator[tuple[str, str]]:
        """A file below the dataset's directory (or the manifest), and what is wrong with it."""
        dataset = self._dataset
        noun = "documents" if dataset.holds_documents else "episodes"
        ids = pa.chunked_array(self._ids, pa.string())
        if pc.count_distinct(ids).as_py() != len(ids):
            counts = pc.value_counts(ids)
            twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
            yield DATASET, f"two rows of the indexes have the episode id {twice!r}"
        rows, kept = (sum(sums[name] for sums in self._sums.values()) for name in ("lost", "kept"))
        for file, declared in ((DATASET, dataset.described), (MANIFEST, dataset.totals)):
            if (declared.episodes, declared.kept) != (rows, kept):
                said = f"{declared.episodes} {noun}, {declared.kept} kept"
                yield file, f"{dataset.name}: {said}, and the indexes hold {rows} and {kept}"
        rows_of_task: Counter[str] = Counter()
        for (task, _), sums in self._sums.items():
            if task is not None:
                rows_of_task[task] += sums["lost"]
        declared_of_task: Counter[str] = Counter()
        for row in dataset.tasks:
            declared_of_task[row.task] += row.kept + row.dropped
            sums = self._sums[row.task, row.agent]
            for name in ("episodes", "kept", "held_out", "steps", "tokens"):
                number = getattr(row, name)
                # N counts documents that the scan found sound, of which the build may have dropped some.
                late = 0 if name != "episodes" or dataset.is_scan else self._found_by_builds
                if number is not None and not sums[name] <= number <= sums[name] + late:
                    said = f"{number} {name}, and the indexes hold {sums[name]}"
                    yield TASKS_FILE, f"task {row.task!r}, agent {row.agent!r}: {said}"
        for task in sorted(declared_of_task.keys() | rows_of_task.keys()):
            if declared_of_task[task] != rows_of_task[task]:
                said = f"{declared_of_task[task]} {noun}, and the indexes hold {rows_of_task[task]}"
                yield TASKS_FILE, f"task {task!r}: {said}"


# --- summaries by themselves -----------------------------------------------------------------------------------


def manifest_faults(manifest: Manifest) -> Iterator[str]:
    """Where the manifest contradicts itself."""
    if manifest.config_digest != json_digest(manifest.config):
        yield "the config does not match its digest"
    settings = manifest.tokenizer
    if settings != TokenizerSettings.of(settings.discrete_offset, settings.chunk_tokens):
        yield f"the separator or the number of ids is not that of discrete_offset {settings.discrete_offset}"
    try:
        names = list(manifest.dataset_configs)
    except MalformedError:
        names = []
    if [dataset.name for dataset in manifest.datasets] != names:
        yield "its datasets are not those of its config"
    if manifest.version > 1 and manifest.data_digest != (
        manifest.digest_of_data if manifest.content == "build" else ""
    ):
        yield "the data digest is not that of its shards"
    makers = {split.made_by for dataset in manifest.datasets for split in dataset.splits} - {None}
    if makers != manifest.provenance.keys():
        yield "what made its splits is not what its provenance lists"
    digests = {entry.path: entry.blake2b for entry in manifest.files}
    expected: dict[str, str | None] = {}
    if manifest.vocabulary is not None:
        expected[manifest.vocabulary.file] = manifest.vocabulary.blake2b
    for dataset in manifest.datasets:
        parts = [part for split in dataset.splits for part in split.parts]
        names = [dataset.described_file, dataset.tasks_file, *(split.index for split in dataset.splits)]
        expected |= {f"{dataset.directory}/{name}": None for name in names}
        expected |= {f"{dataset.directory}/{part.file}": part.blake2b for part in parts}
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
    for path in sorted(expected.keys() ^ digests.keys()):
        yield f"{path} belongs to no dataset" if path in digests else f"{path} is not among the files"
    for path in sorted(expected.keys() & digests.keys()):
        if expected[path] not in (None, digests[path]):
            yield f"{path} has two digests"


def dataset_faults(dataset: DatasetReader) -> Iterator[str]:
    """Where ``dataset.json`` contradicts itself, the manifest or ``tasks.parquet``. Raises DataError if one of the two
    files cannot be read."""
    described, tasks, totals, corpus = dataset.described, dataset.tasks, dataset.totals, dataset.corpus
    if (described.name, described.kind) != (totals.name, totals.kind):
        yield f"describes {described.name!r} of kind {described.kind}, and the manifest has {totals.name!r} here"
    if corpus is None:
        if described.documents is not None:
            yield "holds rules of documents, and the manifest has episodes here"
        for id_, spec in described.specs.items():
            if spec.id != id_:
                yield f"the spec {id_} was edited: its fields are those of {spec.id}"
        for task, entry in described.tasks.items():
            if entry.spec not in described.specs:
                yield f"task {task!r} has the spec {entry.spec}, which is not among the specs"
    else:
        if described.documents != document_rules(corpus):
            yield "its rules of documents are not those of the config"
        if described.specs or {task: entry.spec for task, entry in described.tasks.items()} != {corpus.name: ""}:
            yield f"has specs, or other tasks than {corpus.name!r}, the one of its documents"
        if [(row.task, row.agent) for row in tasks] != [(corpus.name, "")]:
            yield f"{TASKS_FILE} has other rows than the one of {corpus.name!r}"
        for row in tasks:
            for column in _TASK_ONLY_OF_EPISODES:
                if getattr(row, column) is not None:
                    yield f"{TASKS_FILE} has a value in {column}, and documents have none"
    differing = sorted(set(described.tasks) ^ {row.task for row in tasks})
    if differing:
        yield f"task {differing[0]!r} stands only in one of {DATASET} and {TASKS_FILE}"
