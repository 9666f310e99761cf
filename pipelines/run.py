"""Scan and build from beginning to end: what the commands call, and what a program calls."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from gatokit.pipelines import jobs, storage
from gatokit.pipelines.build import INDEX_SUFFIX
from gatokit.pipelines.cloud import is_remote
from gatokit.pipelines.finish import finish_dataset, finished_orders, write_manifest
from gatokit.pipelines.kinds import plan_dataset
from gatokit.pipelines.orders import Order
from gatokit.pipelines.plan import DatasetPlan, Plan, make_plan
from gatokit.pipelines.shards import write_index
from gatokit.pipelines.sources.find import local_path
from gatokit.pipelines.storage import LOCK, TEMPORARY, hold, out_directory, write_atomically
from gatokit.schemas.canonical import json_digest
from gatokit.schemas.config import PATHS, BuildConfig, read_config
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.index import INDEX
from gatokit.schemas.manifest import LOG, MANIFEST, VOCABULARY, Manifest, Vocabulary

Progress = Callable[[str, int, int], None]
"""Called with a stage (``scan`` or ``build``), the pieces that are done and their number."""

_WORK, _SCANNED, _ORDERS = ".work", "scan", "orders"
_LISTING_SECONDS = 5.0
"""A listing of objects costs a request, so that progress on ``gs://`` moves this often."""


@dataclass(frozen=True)
class Result:
    """A finished job: its manifest, sentences that a person should read, and the wall time in seconds."""

    manifest: Manifest
    notices: tuple[str, ...]
    seconds: float


def scan(
    config_path: str | Path,
    out: str | Path,
    *,
    only: str | None = None,
    limit: int | None = None,
    workers: int = 1,
    beam_arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Writes the index of every dataset without decoding or tokenizing anything.

    ``only`` names one dataset, ``limit`` looks at the first episodes of each task alone, ``workers`` is the
    number of local processes, ``beam_arguments`` are Beam's own options.
    """
    return _run(config_path, out, "scan", only, limit, workers, beam_arguments, progress)


def build(
    config_path: str | Path,
    out: str | Path,
    *,
    only: str | None = None,
    limit: int | None = None,
    workers: int = 1,
    beam_arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Builds every dataset of a config; an interrupted build goes on where it stopped. Arguments as ``scan``."""
    return _run(config_path, out, "build", only, limit, workers, beam_arguments, progress)


def _run(
    config_path: str | Path,
    out: str | Path,
    content: Literal["build", "scan"],
    only: str | None,
    limit: int | None,
    workers: int,
    beam_arguments: Sequence[str],
    progress: Progress | None,
) -> Result:
    begin = time.monotonic()
    where, root = jobs.execution(beam_arguments, workers), out_directory(out)
    config, base = _read_config(config_path)
    config = _selected(config, only, config_path)
    described = _described(config, base, limit)
    vocabulary = Path(local_path(config.vocabulary, base, "vocabulary"))
    model = _vocabulary(vocabulary, config_path) if content == "build" else None
    plans = [plan_dataset(config, number, base) for number in range(len(config.datasets))]
    with hold(root):
        _check_root(root, described, content)
        _check_vocabulary(root, model)
        log = _Log(root / LOG)
        work = root / _WORK
        errors = work / jobs.ERRORS
        storage.remove_tree(errors)
        log.write(f"{content} started", config=str(config_path), datasets=[plan.config.name for plan in plans])
        digest = model.blake2b if model else ""
        results = _scan(plans, config, work, where, progress)
        storage.remove_tree(work / _ORDERS)
        planned = [
            make_plan(plan, paths, config, digest, limit, work / _ORDERS)
            for plan, paths in zip(plans, results, strict=True)
        ]
        notices = tuple(notice for plan in planned for notice in plan.judged.notices)
        for notice in notices:
            log.write("notice", text=notice)
        _check_unchanged(root, planned)
        if content == "build":
            write_atomically(root / VOCABULARY, storage.read_bytes(vocabulary))
            _build(planned, root, work, where, progress, log)
        else:
            _write_scan(planned, root)
        datasets = [finish_dataset(root, plan, config, content) for plan in planned]
        storage.remove_tree(work)
        manifest = write_manifest(root, config, described, datasets, model, content)
        seconds = time.monotonic() - begin
        log.write(f"{content} finished", seconds=round(seconds, 3), tokens=sum(item.tokens for item in datasets))
        return Result(manifest, notices, seconds)


def _read_config(path: str | Path) -> tuple[BuildConfig, Path]:
    """A config, and the directory that its relative paths start at."""
    if not is_remote(path):
        return read_config(path), Path(path).resolve().parent
    with storage.local_copy(path) as copy:
        return read_config(copy), Path(path).parent


def _selected(config: BuildConfig, only: str | None, path: str | Path) -> BuildConfig:
    if only is None:
        return config
    datasets = tuple(dataset for dataset in config.datasets if dataset.name == only)
    if not datasets:
        names = ", ".join(dataset.name for dataset in config.datasets)
        raise ConfigError(f"--only {only}: {path} has no such dataset, only {names}")
    return config.model_copy(update={"datasets": datasets})


def _described(config: BuildConfig, base: Path, limit: int | None) -> dict[str, Any]:
    """The config as the manifest holds it: complete, with paths relative to the config file."""
    described = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    described["vocabulary"] = _relative(described["vocabulary"], base)
    for dataset in described["datasets"]:
        for key in PATHS & dataset.keys():
            dataset[key] = _relative(dataset[key], base)
    return described | ({"limit": limit} if limit is not None else {})


def _relative(path: str, base: Path) -> str:
    path = os.path.expanduser(path)
    return os.path.relpath(path, base) if os.path.isabs(path) else path


def _manifest(root: Path) -> Manifest:
    return Manifest.parse(storage.read_bytes(root / MANIFEST), root / MANIFEST)


def _vocabulary(path: Path, config_path: str | Path) -> Vocabulary:
    if not storage.is_file(path):
        raise ConfigError(f"{config_path}: vocabulary: {path} does not exist; give a SentencePiece model")
    text = storage.load_vocabulary(path)
    return Vocabulary(file=VOCABULARY, pieces=text.pieces, blake2b=text.digest)


def _check_root(root: Path, described: dict[str, Any], content: str) -> None:
    """ConfigError where the directory holds something that this job would not have put there."""
    ours = {MANIFEST, VOCABULARY, LOG, LOCK, _WORK, *(dataset["name"] for dataset in described["datasets"])}
    names = storage.names(root)
    if MANIFEST not in names:
        foreign = [name for name in names if name not in ours and not name.startswith(TEMPORARY)]
        if foreign:
            raise ConfigError(f"--out {root}: holds {foreign[0]}, no part of this {content}; choose another directory")
        return
    manifest = _manifest(root)
    if manifest.content != content:
        raise ConfigError(f"--out {root}: holds a finished {manifest.content}; choose another directory")
    if manifest.config_digest != json_digest(described):
        raise ConfigError(
            f"--out {root}: holds a finished {content} of another config; choose another directory or delete it"
        )


def _check_vocabulary(root: Path, model: Vocabulary | None) -> None:
    """ConfigError where a build, finished or not, has made shards with another model."""
    path = root / VOCABULARY
    if model is not None and storage.exists(path) and storage.load_vocabulary(path).digest != model.blake2b:
        raise ConfigError(
            f"--out {root}: holds shards of another vocabulary, {path}; choose another directory or delete this one"
        )


def _check_unchanged(root: Path, planned: list[Plan]) -> None:
    if not storage.exists(root / MANIFEST):
        return
    finished = {split.fingerprint for item in _manifest(root).datasets for split in item.splits}
    if finished != {order.fingerprint for plan in planned for order in plan.orders}:
        raise ConfigError(
            f"--out {root}: holds a finished build of other source files; choose another directory or delete it"
        )


def _scan(
    plans: list[DatasetPlan],
    config: BuildConfig,
    work: Path,
    where: jobs.Execution,
    progress: Progress | None,
) -> list[list[Path]]:
    """The scanned rows of every dataset; units that a killed job finished are not scanned again."""
    directory = work / _SCANNED
    units, results = {}, []
    for plan in plans:
        paths = []
        for unit in plan.units(config.max_episode_bytes):
            paths.append(directory / f"{unit.fingerprint}.arrow")
            units[paths[-1]] = unit
        results.append(paths)
    done = storage.existing(units)
    waiting = [unit for path, unit in units.items() if path not in done]
    if waiting:
        poll = _poll(progress, "scan", [path for paths in results for path in paths])
        jobs.run(waiting, jobs.ScanFiles(str(directory), str(work / jobs.ERRORS)), where, poll, work)
        _report_all(progress, "scan", sum(map(len, results)))
    return results


def _build(
    planned: list[Plan], root: Path, work: Path, where: jobs.Execution, progress: Progress | None, log: "_Log"
) -> None:
    """Builds the orders whose shards are not there yet."""
    waiting, results = [], []
    for plan in planned:
        directory = root / plan.dataset.config.name
        done = finished_orders(directory, [order.stem for order in plan.orders])
        for order in plan.orders:
            results.append(directory / (order.stem + INDEX_SUFFIX))
            if order.stem not in done:
                storage.remove(results[-1])
                waiting.append((str(order.path), str(directory)))
    log.write("build planned", shards=len(results), finished=len(results) - len(waiting))
    if waiting:
        poll = _poll(progress, "build", results)
        try:
            jobs.run(waiting, jobs.WriteShards(str(root / VOCABULARY), str(work / jobs.ERRORS)), where, poll, work)
        except DataError:
            # The source may have changed in a way that no file's time shows.
            storage.remove_tree(work / _SCANNED)
            raise
        _report_all(progress, "build", len(results))


def _write_scan(planned: list[Plan], root: Path) -> None:
    for plan in planned:
        for order in plan.orders:
            rows = Order.read(order.path).rows
            empty = pa.nulls(rows.num_rows)
            for name in ("tokens", "part", "first_record", "record_tokens"):
                rows = rows.append_column(name, empty)
            path = root / plan.dataset.config.name / (order.stem + INDEX_SUFFIX)
            write_index(path, rows.select(INDEX.names).cast(INDEX), [], {})


def _poll(progress: Progress | None, stage: str, results: list[Path]) -> Callable[[], None]:
    waiting, looked = set(results), 0.0

    def poll() -> None:
        nonlocal looked
        now = time.monotonic()
        if progress is None or (waiting and is_remote(results[0]) and now - looked < _LISTING_SECONDS):
            return
        waiting.difference_update(storage.existing(waiting))
        looked = now
        progress(stage, len(results) - len(waiting), len(results))

    return poll


def _report_all(progress: Progress | None, stage: str, pieces: int) -> None:
    if progress is not None:
        progress(stage, pieces, pieces)


class _Log:
    """``build.log.jsonl``: what happened when, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str, **values: Any) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **values}
        storage.append_line(self._path, json.dumps(line, ensure_ascii=False))
