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
from gatokit.pipelines.plan import Plan, count_reasons
from gatokit.pipelines.shards import read_outside, read_parts
from gatokit.pipelines.storage import TEMPORARY, file_digest, write_atomically
from gatokit.pipelines.tasks import check_budget
from gatokit.schemas.canonical import json_digest
from gatokit.schemas.config import BuildConfig
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import TASKS
from gatokit.schemas.manifest import (
    DATASET,
    MANIFEST,
    TASKS_FILE,
    VOCABULARY,
    Dataset,
    DatasetFile,
    FileEntry,
    Manifest,
    Split,
    TaskEntry,
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
    splits, tables, outside = [], [], Counter[tuple[str, str]]()
    values = Counter[tuple[str, str]]()
    for order in plan.orders:
        name = order.stem + INDEX_SUFFIX
        table = pq.read_table(directory / name, columns=_COUNTED)
        metadata = table.schema.metadata
        tables.append(table.replace_schema_metadata(None))
        for task, fields in read_outside(metadata).items():
            for field, (beyond, total) in fields.items():
                outside[task, field] += beyond
                values[task, field] += total
        splits.append(
            Split(
                fingerprint=order.fingerprint,
                index=name,
                rows=table.num_rows,
                kept=pc.sum(table["kept"]).as_py() or 0,
                parts=read_parts(metadata),
            )
        )
    rows = pa.concat_tables(tables)
    _check(rows, plan, config, outside, values)
    pq.write_table(_tasks(rows, plan, content), sink := pa.BufferOutputStream())
    write_atomically(directory / TASKS_FILE, sink.getvalue().to_pybytes())
    episodes, kept = pc.sum(rows["lost"]).as_py(), sum(split.kept for split in splits)
    ordered = dataset.order is not None
    described = DatasetFile(
        name=dataset.name,
        kind=dataset.kind,
        specs={spec.id: spec for _, spec in sorted(plan.specs.items())},
        tasks={task: TaskEntry(spec=spec.id, ordered=ordered) for task, spec in sorted(plan.specs.items())},
        episodes=episodes,
        kept=kept,
    )
    write_atomically(directory / DATASET, described.to_bytes())
    parts = [part for split in splits for part in split.parts]
    return Dataset(
        name=dataset.name,
        kind=dataset.kind,
        directory=dataset.name,
        weight=dataset.weight,
        license=dataset.license,
        hz=dataset.hz,
        ordered=ordered,
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
    write_atomically(root / MANIFEST, manifest.to_bytes())
    return Manifest.read(root)


def is_done(directory: Path, order_stem: str) -> bool:
    """Whether a split's index stands, and every part that it names, at its size."""
    try:
        metadata = pq.read_schema(directory / (order_stem + INDEX_SUFFIX)).metadata
        return all((directory / part.file).stat().st_size == part.size for part in read_parts(metadata))
    except (OSError, KeyError, ValueError, pa.ArrowInvalid):
        return False


def _files(split: Split) -> Sequence[str]:
    return [split.index, *(part.file for part in split.parts)]


def _remove_leftovers(directory: Path, names: set[str], dataset: str | None = None) -> None:
    """Removes temporary files of dead attempts, and a dataset's shards and indexes of plans that were given up."""
    for path in directory.iterdir():
        planned = path.name.startswith(f"{dataset}-") and path.name.endswith((INDEX_SUFFIX, ".arrayrecord"))
        if path.name not in names and (planned or path.name.startswith(TEMPORARY)):
            path.unlink()


def _check(
    rows: pa.Table,
    plan: Plan,
    config: BuildConfig,
    outside: Counter[tuple[str, str]],
    values: Counter[tuple[str, str]],
) -> None:
    name = plan.dataset.config.name
    dropped = rows.filter(pc.is_valid(rows["reason"]))
    reasons, examples = count_reasons(
        *(dropped[name].to_pylist() for name in ("reason", "lost", "episode_id", "detail"))
    )
    check_budget(reasons, examples, pc.sum(rows["lost"]).as_py(), config.max_bad_fraction, name)
    for (task, field), beyond in sorted(outside.items()):
        total = values[task, field]
        if beyond > MOST_OUTSIDE * total:
            raise DataError(
                f"{name}: task {task!r}: {beyond} of {total} values of {field} lie outside of its range "
                f"{_range(plan, task, field)}; give the right one as {plan.dataset.field}.fields.{field}: "
                "{as: continuous, range: [low, high]}"
            )
    left = set(rows.filter(rows["kept"])["task"].unique().to_pylist())
    for judged in plan.tasks:
        if judged.name not in left:
            raise DataError(
                f"{name}: every kept episode of task {judged.name!r} was rejected while tokenizing: "
                + ", ".join(f"{count} {reason} (first {examples[reason]})" for reason, count in reasons.items())
            )


def _range(plan: Plan, task: str, path: str) -> list[list[float]]:
    return [list(pair) for field in plan.specs[task].action if field.path == path for pair in field.range or ()]


def _tasks(rows: pa.Table, plan: Plan, content: str) -> pa.Table:
    kept = rows.filter(rows["kept"])
    counts = _by_stream(rows, [("lost", "sum")])
    sums = _by_stream(kept, [("kept", "count"), ("steps", "sum"), ("tokens", "sum")])
    apart = _by_stream(kept.filter(pc.equal(kept["split"], "held_out")), [("kept", "count")])
    lines = []
    for task in plan.tasks:
        streams = {stream.agent: stream for stream in task.streams}
        # Rows that were too damaged to name their agent stand in the first stream.
        nameless = counts.get((task.name, None), {}).get("lost_sum", 0)
        for number, agent in enumerate(sorted(streams)):
            stream, key = streams[agent], (task.name, agent)
            total = counts[key]["lost_sum"] + (nameless if number == 0 else 0)
            have = sums.get(key, {})
            lines.append(
                {
                    "task": task.name,
                    "agent": agent,
                    "episodes": stream.episodes,
                    "window": stream.window,
                    "stream_return": stream.stream_return,
                    "expert_return": task.expert_return,
                    "threshold": task.threshold,
                    "kept": have.get("kept_count", 0),
                    "dropped": total - have.get("kept_count", 0),
                    "held_out": apart.get(key, {}).get("kept_count", 0),
                    "steps": have.get("steps_sum", 0),
                    "tokens": have.get("tokens_sum", 0) if content == "build" else None,
                }
            )
    return pa.Table.from_pylist(lines, TASKS)


def _by_stream(rows: pa.Table, sums: list[tuple[str, str]]) -> dict[tuple[str, str | None], dict[str, int]]:
    grouped = rows.group_by(["task", "agent"], use_threads=False).aggregate(sums)
    return {(row["task"], row["agent"]): row for row in grouped.to_pylist()}
