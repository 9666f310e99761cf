"""The end of a job: totals from the indexes, the last checks, ``tasks.parquet``, ``dataset.json``, the manifest."""

import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatokit.pipelines.build import INDEX_SUFFIX
from gatokit.pipelines.plan import Plan
from gatokit.pipelines.shards import read_outside, read_parts
from gatokit.pipelines.storage import (
    TEMPORARY,
    arrow_file,
    file_digest,
    is_directory,
    remove,
    sizes,
    write_atomically,
)
from gatokit.pipelines.tasks import Losses, check_budget
from gatokit.schemas.canonical import json_digest
from gatokit.schemas.config import BuildConfig
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import HELD_OUT, TASKS
from gatokit.schemas.manifest import (
    DATASET,
    MANIFEST,
    TASKS_FILE,
    VOCABULARY,
    Dataset,
    FileEntry,
    Manifest,
    Split,
    Tokenizer,
    Vocabulary,
)
from gatokit.schemas.tokens import TokenIds

MOST_OUTSIDE = 0.001
"""Share of an action's values that may lie outside of its range before the range is taken to be wrong."""
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
_COUNTED = ["task", "agent", "kept", "split", "steps", "tokens", "lost", "reason", "detail", "episode_id"]


def finish_dataset(root: Path, plan: Plan, config: BuildConfig, content: Literal["build", "scan"]) -> Dataset:
    """Reads the indexes of a dataset's splits, checks it and writes its two summary files.

    DataError where the build found more bad episodes than the budget allows, an action whose range is wrong
    or a task of which nothing is left.
    """
    dataset = plan.dataset.config
    directory = root / dataset.name
    splits, totals = [], _Totals()
    for order in plan.orders:
        name = order.stem + INDEX_SUFFIX
        with arrow_file(directory / name) as file:
            table = pq.ParquetFile(file).read(_COUNTED, use_threads=False)
        totals.add(table)
        splits.append(
            Split(
                fingerprint=order.fingerprint,
                index=name,
                rows=table.num_rows,
                kept=pc.sum(table["kept"]).as_py() or 0,
                parts=read_parts(table.schema.metadata),
            )
        )
    episodes, kept = sum(total["lost"] for total in totals.streams.values()), sum(split.kept for split in splits)
    _check(totals, episodes, plan, config)
    pq.write_table(_tasks(totals, plan, content), sink := pa.BufferOutputStream())
    write_atomically(directory / TASKS_FILE, sink.getvalue().to_pybytes())
    write_atomically(directory / DATASET, plan.judged.describe(episodes, kept).to_bytes())
    parts = [part for split in splits for part in split.parts]
    return Dataset(
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


def write_manifest(
    root: Path,
    config: BuildConfig,
    described: dict[str, Any],
    datasets: list[Dataset],
    vocabulary: Vocabulary | None,
    content: Literal["build", "scan"],
) -> Manifest:
    """Removes what the manifest does not list, digests the rest and writes the manifest, last and atomically."""
    known = {part.file: part for dataset in datasets for split in dataset.splits for part in split.parts}
    paths = [Path(VOCABULARY)] if vocabulary is not None else []
    for dataset in datasets:
        names = [DATASET, TASKS_FILE, *(name for split in dataset.splits for name in _files(split))]
        paths += [Path(dataset.directory) / name for name in names]
        _remove_leftovers(root / dataset.directory, set(names), dataset.name)
    _remove_leftovers(root, set())
    files = []
    for path in sorted(paths):
        part = known.get(path.name)
        size, digest = (part.size, part.blake2b) if part else file_digest(root / path)
        files.append(FileEntry(path=path.as_posix(), size=size, blake2b=digest))
    ids = TokenIds(config.discrete_offset)
    manifest = Manifest(
        content=content,
        packages={name: importlib.metadata.version(name) for name in _PACKAGES},
        config=described,
        config_digest=json_digest(described),
        tokenizer=Tokenizer(
            discrete_offset=ids.discrete_offset,
            separator=ids.separator,
            vocabulary_size=ids.vocabulary_size,
            chunk_tokens=config.chunk_tokens,
        ),
        vocabulary=vocabulary,
        datasets=datasets,
        files=files,
    )
    data = manifest.to_bytes()
    write_atomically(root / MANIFEST, data)
    return Manifest.parse(data, root / MANIFEST)


def finished_orders(directory: Path, stems: Sequence[str]) -> set[str]:
    """The splits whose index stands, and every part that it names, at its size."""
    there = sizes(directory) if is_directory(directory) else {}
    return {stem for stem in stems if stem + INDEX_SUFFIX in there and _is_whole(directory, stem, there)}


def _is_whole(directory: Path, stem: str, there: dict[str, int]) -> bool:
    try:
        with arrow_file(directory / (stem + INDEX_SUFFIX)) as file:
            metadata = pq.read_schema(file).metadata
        return all(there.get(part.file) == part.size for part in read_parts(metadata))
    except (OSError, KeyError, ValueError, pa.ArrowInvalid):
        return False


def _files(split: Split) -> Sequence[str]:
    return [split.index, *(part.file for part in split.parts)]


def _remove_leftovers(directory: Path, names: set[str], dataset: str | None = None) -> None:
    """Removes temporary files of dead attempts, and a dataset's shards and indexes of plans that were given up."""
    for name in sizes(directory):
        planned = name.startswith(f"{dataset}-") and name.endswith((INDEX_SUFFIX, ".arrayrecord"))
        if name not in names and (planned or name.startswith(TEMPORARY)):
            remove(directory / name)


class _Totals:
    """Sums over the indexes of a dataset."""

    def __init__(self) -> None:
        self.streams: dict[tuple[str | None, str | None], Counter[str]] = {}
        """By task and agent: rows lost or not, and episodes, steps and tokens of those kept."""
        self.losses = Losses()
        self.outside, self.values = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        """By task and action: values outside of the range, and all."""

    def add(self, rows: pa.Table) -> None:
        """Takes the next index."""
        kept = rows.filter(rows["kept"])
        self._count(rows, [("lost", "sum")])
        self._count(kept, [("kept", "count"), ("steps", "sum"), ("tokens", "sum")])
        self._count(kept.filter(pc.equal(kept["split"], HELD_OUT)), [("split", "count")])
        dropped = rows.filter(pc.is_valid(rows["reason"]))
        self.losses.add(*(dropped[name].to_pylist() for name in ("reason", "lost", "episode_id", "detail")))
        for task, fields in read_outside(rows.schema.metadata).items():
            for field, (beyond, total) in fields.items():
                self.outside[task, field] += beyond
                self.values[task, field] += total

    def of(self, task: str, agent: str | None) -> Counter[str]:
        """The sums of one stream."""
        return self.streams.get((task, agent), Counter())

    def kept(self, task: str) -> int:
        """Kept episodes of a task."""
        return sum(total["kept"] for (name, _), total in self.streams.items() if name == task)

    def _count(self, rows: pa.Table, sums: list[tuple[str, str]]) -> None:
        grouped = rows.group_by(["task", "agent"], use_threads=False).aggregate(sums)
        for row in grouped.to_pylist():
            total = self.streams.setdefault((row["task"], row["agent"]), Counter())
            for column, function in sums:
                total[column] += row[f"{column}_{function}"] or 0


def _check(totals: _Totals, episodes: int, plan: Plan, config: BuildConfig) -> None:
    name, losses = plan.dataset.config.name, totals.losses
    check_budget(losses, episodes, config.max_bad_fraction, name, plan.dataset.what)
    for (task, field), beyond in sorted(totals.outside.items()):
        total = totals.values[task, field]
        if beyond > MOST_OUTSIDE * total:
            raise DataError(
                f"{name}: task {task!r}: {beyond} of {total} values of {field} lie outside of its range "
                f"{plan.judged.range_of(task, field)}; give the right one as {plan.dataset.field}.fields.{field}: "
                "{as: continuous, range: [low, high]}"
            )
    for judged in plan.judged.tasks:
        if not totals.kept(judged.name):
            raise DataError(
                f"{name}: every kept {plan.dataset.what[:-1]} of task {judged.name!r} was rejected while tokenizing: "
                + ", ".join(
                    f"{count} {reason} (first {losses.examples[reason]})" for reason, count in losses.counts.items()
                )
            )


def _tasks(totals: _Totals, plan: Plan, content: str) -> pa.Table:
    lines = []
    for task in plan.judged.tasks:
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
