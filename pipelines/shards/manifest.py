"""Finishes a job: totals from the indexes, the last checks, ``tasks.parquet``, ``dataset.json`` and the manifest."""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.pipelines.documents.scan import DocumentsPlan
from gatokit.pipelines.planning import Plan
from gatokit.pipelines.shards.garbage import Leftover, remove_leftovers
from gatokit.pipelines.shards.index import COUNTED_COLUMNS, INDEX_SUFFIX, IndexTotals, read_parts
from gatokit.schemas.config import BuildConfig, document_rules
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import TASKS
from gatokit.schemas.manifest import (
    MANIFEST,
    VOCABULARY,
    DatasetEntry,
    DatasetFile,
    FileEntry,
    Manifest,
    SplitEntry,
    TaskEntry,
    TokenizerSettings,
    VocabularyEntry,
    json_digest,
)
from gatokit.storage.files import exists, file_digest, read_bytes, write_atomically
from gatokit.storage.prefetch import prefetch

MOST_OUTSIDE = 0.001
"""If a larger share of an action's values lies outside of its range, the range is wrong."""
_PACKAGES = (
    "gatokit",
    "apache-beam",
    "array-record",
    "numpy",
    "opencv-python-headless",
    "protobuf",
    "pyarrow",
    "sentencepiece",
)


@dataclass(frozen=True)
class Finished:
    """A dataset whose splits are all there: its totals, its two summary files, by reason what was rejected, and size
    and digest of each index."""

    dataset: DatasetEntry
    described: bytes
    tasks: bytes
    rejected: dict[str, int]
    indexes: dict[str, tuple[int, str]]

    def summaries(self, dataset: DatasetEntry) -> dict[str, bytes]:
        """Path and content of the summary files under the names that ``dataset`` gives them."""
        contents = {dataset.described_file: self.described, dataset.tasks_file: self.tasks}
        return {f"{dataset.directory}/{name}": content for name, content in contents.items()}


def finish_dataset(root: Path, plan: Plan, config: BuildConfig, content: Literal["build", "scan"]) -> Finished:
    """Reads the indexes of a dataset's splits, checks it and makes its two summary files.

    Raises DataError if the build found more bad episodes than the budget allows, the range of an action is wrong, or
    nothing is left of a task.
    """
    dataset = plan.dataset.config
    directory = root / dataset.name
    splits, totals = [], IndexTotals()
    names = [order.stem + INDEX_SUFFIX for order in plan.shards]
    indexes = {}
    contents = prefetch([directory / name for name in names], read_bytes, len)
    for order, name, data in zip(plan.shards, names, contents, strict=True):
        table = pq.ParquetFile(pa.BufferReader(data)).read(COUNTED_COLUMNS, use_threads=False)
        totals.add(table)
        indexes[name] = len(data), _digest(data, 32)
        splits.append(
            SplitEntry(
                fingerprint=order.fingerprint,
                index=name,
                rows=table.num_rows,
                kept=pc.sum(table["kept"]).as_py() or 0,
                parts=read_parts(table.schema.metadata),
            )
        )
    episodes, kept = totals.losses.rows, sum(split.kept for split in splits)
    _check(totals, plan, config)
    pq.write_table(_tasks(totals, plan, content), sink := pa.BufferOutputStream())
    parts = [part for split in splits for part in split.parts]
    described = DatasetEntry(
        name=dataset.name,
        kind=dataset.kind,
        directory=dataset.name,
        weight=dataset.weight,
        license=dataset.license,
        hz=getattr(dataset, "hz", None),
        ordered=getattr(dataset, "order", None) is not None,
        episodes=episodes,
        kept=kept,
        tokens=sum(part.tokens for part in parts),
        training=sum(part.training for part in parts),
        held_out=sum(part.held_out for part in parts),
        shards=len(parts),
        bytes=sum(part.size for part in parts),
        splits=splits,
    )
    return Finished(
        described,
        _describe(plan, episodes, kept).to_bytes(),
        sink.getvalue().to_pybytes(),
        dict(sorted(totals.losses.counts.items())),
        indexes,
    )


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

    ``before`` is the manifest that stands, whose files stay what they are as long as it stands. Where summary files of
    it change, a manifest that names the new ones differently comes in between. Returns the manifest, and the files that
    ``before`` or an attempt that died left behind.
    """

    def manifest(datasets: Sequence[DatasetEntry]) -> Manifest:
        return _manifest(root, config, described, finished, datasets, vocabulary, content)

    datasets = [item.dataset for item in finished]
    last = manifest(datasets)
    kept = {file.path: file.blake2b for file in before.files} if before is not None else {}
    moving = [
        any(kept.get(file.path, file.blake2b) != file.blake2b for file in last.files if _is_of(file, item))
        for item in datasets
    ]
    if any(moving):
        between = [
            item.dataset.model_copy(update={"update": _digest(item.described + item.tasks, 8)})
            if moves
            else item.dataset
            for item, moves in zip(finished, moving, strict=True)
        ]
        _write(root, finished, between)
        write_atomically(root / MANIFEST, manifest(between).to_bytes())
    _write(root, finished, datasets)
    named = {file.path for file in last.files}
    removed = remove_leftovers(root, named) if before is None else []
    write_atomically(root / MANIFEST, last.to_bytes())
    return last, removed or remove_leftovers(root, named)


def _write(root: Path, finished: Sequence[Finished], datasets: Sequence[DatasetEntry]) -> None:
    """Writes the summary files that are not what they should be."""
    for item, dataset in zip(finished, datasets, strict=True):
        for path, data in item.summaries(dataset).items():
            if not exists(root / path) or read_bytes(root / path) != data:
                write_atomically(root / path, data)


def _manifest(
    root: Path,
    config: BuildConfig,
    described: dict[str, Any],
    finished: Sequence[Finished],
    datasets: Sequence[DatasetEntry],
    vocabulary: VocabularyEntry | None,
    content: Literal["build", "scan"],
) -> Manifest:
    files = []
    if vocabulary is not None:
        size, digest = file_digest(root / VOCABULARY)
        files.append(FileEntry(path=VOCABULARY, size=size, blake2b=digest))
    for item, dataset in zip(finished, datasets, strict=True):
        for path, data in item.summaries(dataset).items():
            files.append(FileEntry(path=path, size=len(data), blake2b=_digest(data, 32)))
        for split in dataset.splits:
            size, digest = item.indexes[split.index]
            files.append(FileEntry(path=f"{dataset.directory}/{split.index}", size=size, blake2b=digest))
            for part in split.parts:
                path = f"{dataset.directory}/{part.file}"
                files.append(FileEntry(path=path, size=part.size, blake2b=part.blake2b))
    return Manifest(
        content=content,
        packages=packages(),
        config=described,
        config_digest=json_digest(described),
        tokenizer=TokenizerSettings.of(config.discrete_offset, config.chunk_tokens),
        vocabulary=vocabulary,
        datasets=list(datasets),
        files=sorted(files, key=lambda file: Path(file.path)),
    )


def packages() -> dict[str, str]:
    """The packages whose versions the bytes of a shard may depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _is_of(file: FileEntry, dataset: DatasetEntry) -> bool:
    """Whether a file is one of the dataset's two summary files."""
    return file.path in (f"{dataset.directory}/{dataset.described_file}", f"{dataset.directory}/{dataset.tasks_file}")


def _digest(data: bytes, size: int) -> str:
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def _check(totals: IndexTotals, plan: Plan, config: BuildConfig) -> None:
    name, losses = plan.dataset.config.name, totals.losses
    losses.check_budget(config.max_bad_fraction, name, plan.dataset.kind)
    for (task, field), beyond in sorted(totals.outside.items()):
        total = totals.values[task, field]
        if beyond > MOST_OUTSIDE * total:
            raise DataError(
                f"{name}: task {task!r}: {beyond} of {total} values of {field} lie outside of its range "
                f"{_range_of(plan, task, field)}; give the right one as {plan.dataset.field}.fields.{field}: "
                "{as: continuous, range: [low, high]}"
            )
    for task_ in plan.result.tasks:
        if not task_.is_left_out and not totals.kept(task_.name):
            raise DataError(
                f"{name}: every kept {plan.dataset.kind[:-1]} of task {task_.name!r} was rejected while tokenizing: "
                + ", ".join(
                    f"{count} {reason} (first {losses.examples[reason]})" for reason, count in losses.counts.items()
                )
            )


def _range_of(plan: Plan, task: str, path: str) -> list[list[float]]:
    """The range of a task's continuous action."""
    return [list(pair) for field in plan.result.specs[task].action if field.path == path for pair in field.range or ()]


def _describe(plan: Plan, episodes: int, kept: int) -> DatasetFile:
    config, specs = plan.dataset.config, plan.result.specs
    ordered = getattr(config, "order", None) is not None
    return DatasetFile(
        name=config.name,
        kind=config.kind,
        specs={specs[task].id: specs[task] for task in sorted(specs)},
        tasks={
            task.name: TaskEntry(spec=specs[task.name].id if specs else "", ordered=ordered)
            for task in plan.result.tasks
        },
        documents=document_rules(plan.dataset.config) if isinstance(plan.dataset, DocumentsPlan) else None,
        episodes=episodes,
        kept=kept,
    )


def _tasks(totals: IndexTotals, plan: Plan, content: str) -> pa.Table:
    lines = []
    for task in plan.result.tasks:
        streams = {stream.agent: stream for stream in task.streams}
        # Rows that were too damaged to name their agent stand in the first stream.
        nameless = totals.of(task.name, None)["lost"]
        for number, agent in enumerate(sorted(streams)):
            stream, total = streams[agent], totals.of(task.name, agent)
            lines.append(
                {
                    "task": task.name,
                    "agent": agent,
                    "episodes": stream.episodes,
                    "window": stream.window,
                    "stream_return": stream.stream_return,
                    "expert_return": task.expert_return,
                    "threshold": task.threshold,
                    "kept": total["kept"],
                    "dropped": total["lost"] + (nameless if number == 0 else 0) - total["kept"],
                    "held_out": total["split"],
                    "steps": total["steps"],
                    "tokens": total["tokens"] if content == "build" else None,
                }
            )
    return pa.Table.from_pylist(lines, TASKS)
