"""One split's index: its rows by themselves, against the dataset's summaries and rule, and against its parts.

Legend: R rows of the index.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.inspection.read.columns import named
from gatokit.inspection.read.rows import TaskRow
from gatokit.inspection.verify.records import Owner
from gatokit.schemas.config import CorpusConfig, Keep
from gatokit.schemas.filter import FILTER_REASONS as RULE_REASONS
from gatokit.schemas.filter import RULES, at_or_above, in_range
from gatokit.schemas.index import HELD_OUT, INDEX, INDEX_VERSION, REASONS, TRAIN
from gatokit.schemas.manifest import DatasetEntry, DatasetFile, ShardEntry, SplitEntry
from gatokit.schemas.where import Where

_STORED = ("tokens", "part", "first_record", "record_tokens")
_OF_EPISODES = ("spec", "steps", "return", "expert_return", "threshold")
_RULES_OF_EPISODES = ("too_short", *RULE_REASONS)


@dataclass(frozen=True)
class Summary:
    """A dataset's totals in the manifest, its two summary files and the rule that filtered it: ``keep`` of
    episodes, ``corpus`` of documents."""

    totals: DatasetEntry
    described: DatasetFile
    tasks: list[TaskRow]
    keep: Keep | None
    corpus: CorpusConfig | None
    is_scan: bool


def read_index(path: Path) -> pa.Table:
    """The index file (schema ``INDEX``); ValueError, as a sentence, where it is none."""
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


def index_faults(table: pa.Table, split: SplitEntry, summary: Summary) -> Iterator[str]:
    """What is wrong with the rows of a split's index: how many rows, and the first of them."""
    kept = pc.sum(table["kept"]).as_py() or 0
    if (table.num_rows, kept) != (split.rows, split.kept):
        yield f"{table.num_rows} rows, {kept} kept, and the manifest says {split.rows} and {split.kept}"
    own = _episodes(table, summary) if summary.corpus is None else _documents(table, summary.corpus)
    for what, mask in (_verdicts(table) | _stored(table, summary) | own).items():
        wrong = table["episode_id"].filter(mask)
        if len(wrong):
            yield f"{len(wrong)} rows {what}; the first is {wrong[0].as_py()!r}"


def part_owners(table: pa.Table, ordinal: int, part: ShardEntry) -> list[Owner]:
    """The owners of a part's records in their order; ValueError, as a sentence, where these do not fill the part as
    the manifest says."""
    rows = table.filter(pc.fill_null(pc.equal(table["part"], ordinal), False)).sort_by("first_record")
    counts = pc.fill_null(pc.list_value_length(rows["record_tokens"]), 0).to_numpy()
    first = rows["first_record"].to_numpy()
    if not np.array_equal(first, np.cumsum(counts) - counts) or counts.sum() != part.records:
        raise ValueError(f"its rows do not cover the {part.records} records of {part.file} one after the other")
    apart = pc.fill_null(pc.equal(rows["split"], HELD_OUT), False).to_numpy()
    training = int(counts[~apart].sum())
    if apart.any() and first[apart].min() < training:
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


def _stored(table: pa.Table, summary: Summary) -> dict[str, Any]:
    present = [pc.is_valid(table[name]) for name in _STORED]
    if summary.is_scan:
        return {f"have a value in {name}, in a scan": mask for name, mask in zip(_STORED, present, strict=True)}
    stored = pc.and_(pc.and_(present[1], present[2]), present[3])
    ends = np.cumsum(pc.fill_null(pc.list_value_length(table["record_tokens"]), 0).to_numpy())
    flat = pc.list_flatten(table["record_tokens"]).to_numpy().astype(np.int64)
    before = np.concatenate([[0], np.cumsum(flat)])
    sums = before[ends] - before[np.concatenate([[0], ends[:-1]])] if len(ends) else ends
    return {
        "are kept and not stored, or dropped and stored": pc.not_equal(table["kept"], stored),
        "have other tokens than their records": _differ(table["tokens"], pa.chunked_array([sums], pa.int64())),
    }


def _documents(table: pa.Table, corpus: CorpusConfig) -> dict[str, Any]:
    """Rows of documents: what episodes alone have is null, and the dataset is their one task."""
    faults = {f"have a value in {name}, and documents have none": pc.is_valid(table[name]) for name in _OF_EPISODES}
    of_task = pc.and_(pc.equal(table["task"], corpus.name), pc.equal(table["agent"], ""))
    faults["are of another task than their dataset, or of an agent"] = pc.invert(pc.fill_null(of_task, False))
    faults["have another order than their position"] = _differ(
        table["order"], table["source_position"].cast(pa.float64())
    )
    of_rule = pc.is_in(table["reason"], pa.array(_RULES_OF_EPISODES))
    faults["are dropped by a rule of episodes"] = of_rule
    if not corpus.drop_duplicates:
        duplicate = pc.fill_null(pc.equal(table["reason"], "duplicate"), False)
        faults["are dropped as duplicates, which the config keeps"] = duplicate
    return faults


def _episodes(table: pa.Table, summary: Summary) -> dict[str, Any]:
    """Rows of episodes against ``dataset.json``, ``tasks.parquet`` and the rule."""
    known = {row.task: row for row in summary.tasks}
    encoded = table["task"].combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    names = encoded.dictionary.to_pylist()

    def of_task(values: dict[str, Any], kind: pa.DataType) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array([values.get(name) for name in names], kind).take(encoded.indices)])

    specs = {task: entry.spec for task, entry in summary.described.tasks.items()}
    expert = of_task({task: row.expert_return for task, row in known.items()}, pa.float64())
    limit = of_task({task: row.threshold for task, row in known.items()}, pa.float64())
    faults = {
        "have another spec than their task": _differ(table["spec"], of_task(specs, pa.string())),
        "have another expert return than their task": _differ(table["expert_return"], expert),
        "have another threshold than their task": _differ(table["threshold"], limit),
    }
    if summary.keep is not None and summary.keep.min_return is not None:
        reached = at_or_above(table["return"].to_numpy(), limit.to_numpy())
        faults["are kept below the threshold"] = pc.and_not(table["kept"], pa.array(reached))
        below = pc.fill_null(pc.equal(table["reason"], "below_threshold"), False)
        faults["are dropped below the threshold that they reach"] = pc.and_(below, pa.array(reached))
    if summary.keep is not None:
        experts = {task: row.expert_return for task, row in known.items() if row.expert_return is not None}
        faults |= _rules(table, summary.keep, experts)
    return faults


def _rules(table: pa.Table, keep: Keep, experts: dict[str, float]) -> dict[str, Any]:
    """Rows of episodes against the rules that look at one row alone."""
    kept = table["kept"]
    absent = [reason for key, (reason, _) in RULES.items() if getattr(keep, key) is None]
    faults = {"are dropped by a rule that the config does not have": pc.is_in(table["reason"], pa.array(absent))}
    if keep.returns is not None:
        within = in_range(keep, table["return"].to_numpy())
        faults["are kept with a return outside of the range"] = pc.and_not(kept, pa.array(within))
    if keep.where is not None:
        where = Where(keep.where)
        true = pa.array(where.passes({name: named(table, name, experts) for name in where.columns}, table.num_rows))
        dropped = pc.fill_null(pc.equal(table["reason"], "not_where"), False)
        faults["are kept, and the expression of keep is not true for them"] = pc.and_not(kept, true)
        faults["are dropped by the expression of keep, which is true for them"] = pc.and_(dropped, true)
    return faults


def _differ(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where two columns (R,) differ; null equals null alone."""
    return pc.or_(pc.fill_null(pc.not_equal(left, right), False), pc.not_equal(pc.is_null(left), pc.is_null(right)))
