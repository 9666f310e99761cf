"""Finishes a job: totals from the indexes, the last checks, ``tasks.parquet``, ``dataset.json`` and the manifest."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.pipelines.documents.reader import DocumentsPlan
from gatokit.pipelines.episodes.fields import JoinedConstants, join_constants, step_tokens
from gatokit.pipelines.episodes.filter import EpisodeFilterResult
from gatokit.pipelines.episodes.plan import EpisodesPlan
from gatokit.pipelines.episodes.ranges import MOST_OUTSIDE
from gatokit.pipelines.losses import LeftOut, Losses
from gatokit.pipelines.planning import Plan
from gatokit.pipelines.shards.ownership import Leftover, read_log, remove_leftovers
from gatokit.pipelines.shards.writer import (
    read_constants,
    read_left_out,
    read_out_of_range,
    read_parts,
    read_provenance,
)
from gatokit.schemas.config import BuildConfig, document_rules
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import HELD_OUT, INDEX, METADATA_TYPES, TASKS, common_type
from gatokit.schemas.manifest import (
    MANIFEST,
    VOCABULARY,
    DatasetEntry,
    DatasetFile,
    FileEntry,
    Manifest,
    MetadataType,
    Provenance,
    SplitEntry,
    StepTokens,
    TaskEntry,
    TokenizerSettings,
    VocabularyEntry,
    digest,
    json_digest,
)
from gatokit.storage import files
from gatokit.storage.files import write_atomically
from gatokit.tokenizers.tensors import M

_MOST_SATURATED = 0.01
"""If a larger share of an observation's values is saturated, the user is told."""
_COUNTED_COLUMNS = ["task", "agent", "kept", "split", "steps", "tokens", "lost", "reason", "detail", "episode_id"]
_METADATA_NAMES = {type_: name for name, type_ in METADATA_TYPES.items()}


# --- a dataset ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A dataset whose splits are all there: its totals, what a step of episodes is made of, its two summary files, by
    reason what was rejected, size and digest of each index, and sentences for the user."""

    dataset: DatasetEntry
    step: StepTokens | None
    described: bytes
    tasks: bytes
    rejected: dict[str, int]
    indexes: dict[str, tuple[int, str]]
    provenance: dict[str, Provenance]
    """What made its splits, by ``SplitEntry.made_by``."""
    notices: tuple[str, ...]
    """Sentences for the user."""
    left_out: list[dict[str, Any]]
    """A row for everything that is lost, see ``pipelines.run.Result``."""

    def summaries(self, dataset: DatasetEntry) -> dict[str, bytes]:
        """Path and content of the summary files under the names that ``dataset`` gives them."""
        contents = {dataset.described_file: self.described, dataset.tasks_file: self.tasks}
        return {f"{dataset.directory}/{name}": content for name, content in contents.items()}


class _Totals:
    """Sums over the indexes of a dataset.

    ``streams`` has by task and agent the rows lost or not, and episodes, steps and tokens of those kept. ``outside``
    and ``values`` have by task and continuous field the values out of range (``OutOfRange``), and all.
    """

    def __init__(self) -> None:
        self.streams: dict[tuple[str | None, str | None], Counter[str]] = {}
        self.losses = Losses()
        self.outside, self.values = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self.left_out = LeftOut()
        self.constants: JoinedConstants | None = {}

    def add(self, rows: pa.Table) -> None:
        """Takes the next index."""
        kept = rows.filter(rows["kept"])
        self._count(rows, [("lost", "sum")])
        self._count(kept, [("kept", "count"), ("steps", "sum"), ("tokens", "sum")])
        self._count(kept.filter(pc.equal(kept["split"], HELD_OUT)), [("split", "count")])
        self.losses.add(rows, lambda dropped: dropped["episode_id"].to_pylist())
        self.left_out.merge(read_left_out(rows.schema.metadata))
        constants = read_constants(rows.schema.metadata)
        if len(kept) and self.constants is not None:
            self.constants = None if constants is None else join_constants(self.constants, constants)
        for task, fields in read_out_of_range(rows.schema.metadata).items():
            for field, (beyond, total) in fields.items():
                self.outside[task, field] += beyond
                self.values[task, field] += total

    def _count(self, rows: pa.Table, sums: list[tuple[str, str]]) -> None:
        grouped = rows.group_by(["task", "agent"], use_threads=False).aggregate(sums)
        for row in grouped.to_pylist():
            total = self.streams.setdefault((row["task"], row["agent"]), Counter())
            for column, function in sums:
                total[column] += row[f"{column}_{function}"] or 0


def finish_dataset(root: Path, plan: Plan, config: BuildConfig, content: Literal["build", "scan"]) -> Finished:
    """Reads the indexes of a dataset's splits, checks it and makes its two summary files.

    Raises DataError if the build found more bad episodes than the budget allows, or nothing is left of a task.
    """
    dataset, specs = plan.dataset.config, plan.result.specs
    splits, totals, indexes, makers = [], _Totals(), {}, {}
    columns: dict[str, set[MetadataType]] = {}
    names = [shard.index for shard in plan.shards]
    contents = files.prefetch([root / dataset.name / name for name in names], files.read_bytes, len)
    for shard, name, data in zip(plan.shards, names, contents, strict=True):
        file = pq.ParquetFile(pa.BufferReader(data))
        table = file.read(_COUNTED_COLUMNS, use_threads=False)
        totals.add(table)
        for column in list(file.schema_arrow)[len(INDEX.names) :]:
            columns.setdefault(column.name, set()).add(_METADATA_NAMES[column.type])
        indexes[name] = len(data), digest(data)
        made_by, generations = read_provenance(table.schema.metadata)
        makers[made_by.id] = made_by
        splits.append(
            SplitEntry(
                fingerprint=shard.fingerprint,
                index=name,
                rows=table.num_rows,
                kept=pc.sum(table["kept"]).as_py() or 0,
                parts=read_parts(table.schema.metadata),
                made_by=made_by.id,
                generations=generations,
            )
        )
    episodes, kept = totals.losses.rows, sum(split.kept for split in splits)
    left_out = _left_out(totals, plan)
    _check(totals, plan, config)
    left_out.check_bounds(config, dataset.name)
    ordered = isinstance(plan.dataset, EpisodesPlan) and plan.dataset.in_order
    pq.write_table(_tasks(totals, plan, content), sink := pa.BufferOutputStream())
    described = DatasetFile(
        name=dataset.name,
        kind=dataset.kind,
        specs={specs[task].id: specs[task] for task in sorted(specs)},
        tasks={
            task.name: TaskEntry(spec=specs[task.name].id if specs else "", ordered=ordered)
            for task in plan.result.tasks
        },
        columns={name: common_type(columns[name]) for name in sorted(columns)},
        documents=document_rules(plan.dataset.config) if isinstance(plan.dataset, DocumentsPlan) else None,
        episodes=episodes,
        kept=kept,
        step=_step(totals, plan, content),
    )
    parts = [part for split in splits for part in split.parts]
    entry = DatasetEntry(
        name=dataset.name,
        kind=dataset.kind,
        directory=dataset.name,
        weight=dataset.weight,
        license=dataset.license,
        hz=getattr(dataset, "hz", None),
        ordered=ordered,
        episodes=episodes,
        kept=kept,
        tokens=sum(part.tokens for part in parts),
        training=sum(part.training for part in parts),
        held_out=sum(part.held_out for part in parts),
        shards=len(parts),
        bytes=sum(part.size for part in parts),
        splits=splits,
        last_step=getattr(plan.result, "last_step", None),
        source_loss=plan.result.source_loss,
        left_out=left_out.entries(),
        overlap=plan.result.overlap,
    )
    rejected = dict(sorted(totals.losses.counts.items()))
    notices = (*_outside_levels(totals, plan), *_saturated(totals, plan))
    tasks = sink.getvalue().to_pybytes()
    lost = list(_lost_rows(totals.losses, entry, plan.dataset.kind))
    return Finished(entry, described.step, described.to_bytes(), tasks, rejected, indexes, makers, notices, lost)


def _lost_rows(losses: Losses, entry: DatasetEntry, noun: str) -> Iterator[dict[str, Any]]:
    """A row for everything that a dataset lost: files, episodes or documents (``noun``), and parts of these."""
    source = entry.source_loss
    if source is not None:
        counts = {"count": source.lost_bytes, "of": source.bytes, "first": source.examples[0]}
        yield {"dataset": entry.name, "what": "bytes of files", "reason": "unreadable", **counts}
    for reason, count in sorted(losses.counts.items()):
        counts = {"count": count, "of": losses.rows, "first": losses.examples[reason]}
        yield {"dataset": entry.name, "what": noun, "reason": reason, **counts}
    for item in entry.left_out:
        yield {"dataset": entry.name, **item.model_dump()}


def _left_out(totals: _Totals, plan: Plan) -> LeftOut:
    """What the scan and the build left out of kept rows, and the values that were clipped or saturated."""
    left_out = LeftOut()
    left_out.merge(plan.result.left_out)
    left_out.merge(totals.left_out)
    for (task, path), outside in sorted(totals.outside.items()):
        [item] = [item for item in plan.result.specs[task].fields if item.path == path]
        source = item.source[0] if item.source else path
        if item.is_action or item.levels is not None:
            what, reason = f"values of {source} clipped", "outside_range"
        else:
            what, reason = f"values of {source} saturated", "saturated"
        left_out.totals[what] += totals.values[task, path]
        left_out.add(what, reason, outside, task)
    return left_out


def _outside_levels(totals: _Totals, plan: Plan) -> Iterator[str]:
    """A notice for each image of which too many values are outside of the values that become black and white."""
    shares: dict[tuple[str, tuple[float, float]], float] = {}
    for (task, path), outside in totals.outside.items():
        [item] = [item for item in plan.result.specs[task].fields if item.path == path]
        if item.levels is not None:
            key = item.source[0] if item.source else path, item.levels
            shares[key] = max(shares.get(key, 0.0), outside / totals.values[task, path])
    for (path, (low, high)), share in sorted(shares.items()):
        if share > MOST_OUTSIDE:
            yield (
                f"{plan.dataset.config.name}: up to {share:.1%} of a task's values of {path} lie outside of "
                f"[{low:g}, {high:g}] and are black or white; if that is not meant, give "
                f"{plan.dataset.field}.fields.{path} another range"
            )


def _step(totals: _Totals, plan: Plan, content: str) -> StepTokens | None:
    """What a step of a dataset of episodes is made of; None for documents."""
    if not isinstance(plan.dataset, EpisodesPlan):
        return None
    steps, tokens = Counter[str](), 0
    for (task, _), total in totals.streams.items():
        steps[task or ""] += total["steps"]
        tokens += total["tokens"]
    is_build = content == "build"
    constants = totals.constants if is_build else None
    assert isinstance(plan.result, EpisodeFilterResult)
    last_step = plan.result.last_step
    return step_tokens(plan.dataset, plan.result.specs, steps, tokens if is_build else None, constants, last_step)


def _saturated(totals: _Totals, plan: Plan) -> Iterator[str]:
    """A notice for each observation of which many values are beyond the ends of the mu-law."""
    beyond, values = Counter[str](), Counter[str]()
    for (task, path), outside in totals.outside.items():
        [item] = [item for item in plan.result.specs[task].fields if item.path == path]
        if item.kind == "continuous" and not item.is_action:
            source = item.source[0] if item.source else path
            beyond[source] += outside
            values[source] += totals.values[task, path]
    for path, outside in sorted(beyond.items()):
        if outside > _MOST_SATURATED * values[path]:
            yield (
                f"{plan.dataset.config.name}: {outside / values[path]:.1%} of the values of {path} are beyond ±{M:g}, "
                f"where tokens are saturated: they all have one of two ids; leave the field out, "
                f"{plan.dataset.field}.fields.{path}: {{as: skip}}, or record it in larger units"
            )


def _check(totals: _Totals, plan: Plan, config: BuildConfig) -> None:
    name, kind, losses = plan.dataset.config.name, plan.dataset.kind, totals.losses
    losses.check_budget(config, name, kind)
    kept = {task for (task, _), total in totals.streams.items() if total["kept"]}
    for found in plan.result.tasks:
        if not found.is_left_out and found.name not in kept:
            reasons = [f"{count} {reason} (first {losses.examples[reason]})" for reason, count in losses.counts.items()]
            raise DataError(
                f"{name}: every kept {kind[:-1]} of task {found.name!r} was rejected while tokenizing: "
                + ", ".join(reasons)
            )


def _tasks(totals: _Totals, plan: Plan, content: str) -> pa.Table:
    lines = []
    for task in plan.result.tasks:
        # Rows that were too damaged to name their agent are counted in the first stream.
        nameless = totals.streams.get((task.name, None), Counter())["lost"]
        for stream in sorted(task.streams, key=lambda stream: stream.agent):
            total = totals.streams.get((task.name, stream.agent), Counter[str]())
            lines.append(
                {
                    "task": task.name,
                    "agent": stream.agent,
                    "episodes": stream.episodes,
                    "window": stream.window,
                    "stream_return": stream.stream_return,
                    "expert_return": task.expert_return,
                    "threshold": task.threshold,
                    "kept": total["kept"],
                    "dropped": total["lost"] + nameless - total["kept"],
                    "held_out": total["split"],
                    "steps": total["steps"],
                    "tokens": total["tokens"] if content == "build" else None,
                }
            )
            nameless = 0
    return pa.Table.from_pylist(lines, TASKS)


# --- the manifest ------------------------------------------------------------------------------------------------


def write_manifest(
    root: Path,
    config: BuildConfig,
    described: dict[str, Any],
    finished: Sequence[Finished],
    vocabulary: VocabularyEntry | None,
    content: Literal["build", "scan"],
    before: Manifest | None,
) -> tuple[Manifest, list[Leftover]]:
    """Writes the summary files and the manifest, last and atomically, and removes what the manifest does not list.

    ``before`` is the manifest that stands, whose files stay what they are as long as it stands. If summary files of it
    change, a manifest that names the new ones differently comes in between. Returns the manifest, and the files that
    ``before`` or an attempt that died left behind.
    """

    def manifest(datasets: list[DatasetEntry]) -> Manifest:
        entries = []
        if vocabulary is not None:
            size, blake2b = files.file_digest(root / VOCABULARY)
            entries.append(FileEntry(path=VOCABULARY, size=size, blake2b=blake2b))
        for item, dataset in zip(finished, datasets, strict=True):
            for path, data in item.summaries(dataset).items():
                entries.append(FileEntry(path=path, size=len(data), blake2b=digest(data)))
            for split in dataset.splits:
                size, blake2b = item.indexes[split.index]
                entries.append(FileEntry(path=f"{dataset.directory}/{split.index}", size=size, blake2b=blake2b))
                for part in split.parts:
                    path = f"{dataset.directory}/{part.file}"
                    entries.append(FileEntry(path=path, size=part.size, blake2b=part.blake2b))
        written = Manifest(
            content=content,
            packages=_joined_packages(makers.values()),
            config=described,
            config_digest=json_digest(described),
            tokenizer=TokenizerSettings.of(config.discrete_offset, config.chunk_tokens),
            vocabulary=vocabulary,
            datasets=datasets,
            files=sorted(entries, key=lambda entry: Path(entry.path)),
            provenance={id_: makers[id_] for id_ in sorted(makers)},
        )
        return written.model_copy(update={"data_digest": written.digest_of_data}) if content == "build" else written

    makers = {id_: made_by for item in finished for id_, made_by in item.provenance.items()}
    datasets = [item.dataset for item in finished]
    last = manifest(datasets)
    kept = {file.path: file.blake2b for file in before.files} if before is not None else {}
    between = []
    for item in finished:
        dataset = item.dataset
        if any(kept.get(path, digest(data)) != digest(data) for path, data in item.summaries(dataset).items()):
            dataset = dataset.model_copy(update={"update": digest(item.described + item.tasks, 8)})
        between.append(dataset)
    if between != datasets:
        _write_summaries(root, finished, between)
        write_atomically(root / MANIFEST, manifest(between).to_bytes())
    _write_summaries(root, finished, datasets)
    named = {file.path for file in last.files}
    log = read_log(root)
    folders = {entry.directory for entry in (*datasets, *(before.datasets if before else ()))}
    folders |= log.datasets if log else set()
    removed = remove_leftovers(root, folders, named) if before is None else []
    write_atomically(root / MANIFEST, last.to_bytes())
    return last, removed or remove_leftovers(root, folders, named)


def _write_summaries(root: Path, finished: Sequence[Finished], datasets: Sequence[DatasetEntry]) -> None:
    """Writes the summary files that are not what they should be."""
    for item, dataset in zip(finished, datasets, strict=True):
        for path, data in item.summaries(dataset).items():
            if not files.exists(root / path) or files.read_bytes(root / path) != data:
                write_atomically(root / path, data)


def _joined_packages(makers: Iterable[Provenance]) -> dict[str, str]:
    """The versions of each package, those of different shards joined by commas."""
    found: dict[str, set[str]] = {}
    for made_by in makers:
        for name, version in made_by.packages.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(found[name])) for name in sorted(found)}
