"""Scan and build from beginning to end: what the commands call, and what a program calls."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
import pyarrow as pa

from gatokit.pipelines.beam import jobs
from gatokit.pipelines.beam.forks import kept
from gatokit.pipelines.config_loading import load_vocabulary, read_inputs, read_vocabulary
from gatokit.pipelines.dataset import DatasetPlan, ScanUnit
from gatokit.pipelines.planning.kinds import plan_datasets, scan_units
from gatokit.pipelines.planning.plan import Plan, plan_shards
from gatokit.pipelines.planning.shard_task import ShardTask
from gatokit.pipelines.shards.build import INDEX_SUFFIX
from gatokit.pipelines.shards.garbage import WORK
from gatokit.pipelines.shards.manifest import finish_dataset, finished_orders, packages, write_manifest
from gatokit.pipelines.shards.writer import write_index
from gatokit.schemas.config import PATHS, BuildConfig
from gatokit.schemas.digests import json_digest
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.index import INDEX
from gatokit.schemas.manifest import LOG, MANIFEST, VOCABULARY, Manifest, ShardEntry, VocabularyEntry
from gatokit.storage import files
from gatokit.storage.files import TEMPORARY, is_remote, out_directory, write_atomically
from gatokit.storage.lock import LOCK, hold

Progress = Callable[[str, int, int], None]
"""Called with a stage (``scan`` or ``build``), the pieces that are done and their number."""

_SCANNED, _UNITS, _ORDERS = "scan", "units.jsonl", "orders"
_MOST_DEATHS = 3
"""Times in a row that worker processes may die without one piece of work getting done."""
_LISTING_SECONDS = 5.0
"""A listing of objects costs a request, so that progress on ``gs://`` moves this often."""


@dataclass(frozen=True)
class Result:
    """A finished job: its manifest, sentences that a person should read, and the wall time in seconds.

    ``stages`` has the seconds of ``scan``, ``plan``, ``build`` and ``finish``. Of the shards that are there some were
    ``built`` now, with ``built_tokens`` in them, and the others ``reused``; ``removed`` ones are there no more.
    ``rejected`` counts, by dataset and reason, what was not kept.
    """

    manifest: Manifest
    notices: tuple[str, ...]
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    built: int = 0
    built_tokens: int = 0
    reused: int = 0
    removed: int = 0
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens that were built now, by the seconds of the build stage; None where none were."""
        return round(self.built_tokens / self.stages["build"], 1) if self.built_tokens else None


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
    return _run(config_path, out, "scan", only, limit, workers, beam_arguments, progress, False)


def build(
    config_path: str | Path,
    out: str | Path,
    *,
    only: str | None = None,
    limit: int | None = None,
    workers: int = 1,
    beam_arguments: Sequence[str] = (),
    progress: Progress | None = None,
    update: bool = False,
) -> Result:
    """Builds every dataset of a config; an interrupted build goes on where it stopped. Arguments as ``scan``.

    With ``update`` the directory may hold a finished build of another config or of other source files: shards that
    are in both stay, and the directory is that build until it is this one.
    """
    return _run(config_path, out, "build", only, limit, workers, beam_arguments, progress, update)


def _run(
    config_path: str | Path,
    out: str | Path,
    content: Literal["build", "scan"],
    only: str | None,
    limit: int | None,
    workers: int,
    beam_arguments: Sequence[str],
    progress: Progress | None,
    update: bool,
) -> Result:
    where = jobs.execution(beam_arguments, workers)
    # Local workers get ready while sources are listed.
    with kept(where.local_workers):
        return _run_on(where, config_path, out, content, only, limit, progress, update)


def _run_on(
    where: jobs.Execution,
    config_path: str | Path,
    out: str | Path,
    content: Literal["build", "scan"],
    only: str | None,
    limit: int | None,
    progress: Progress | None,
    update: bool,
) -> Result:
    begin = time.monotonic()
    root = out_directory(out)
    config, base = read_inputs(config_path, only)
    described = _described(config, base, limit)
    text = read_vocabulary(config, base, config_path) if content == "build" else None
    model = VocabularyEntry(file=VOCABULARY, pieces=text.pieces, blake2b=text.digest) if text else None
    plans = plan_datasets(config, base)
    if where.is_elsewhere:
        _check_reachable(plans, out)
    with hold(root), _os_errors():
        before = _check_root(root, config, described, content, only, update)
        _check_vocabulary(root, model)
        log, work = _Log(root / LOG), root / WORK
        files.remove_tree(work / jobs.ERRORS)
        names = [plan.config.name for plan in plans]
        log.write(f"{content} started", config=str(config_path), datasets=names, update=before is not None)
        with log.stage("scan"):
            results = _scan(plans, config, work, where, progress, log)
        with log.stage("plan"):
            files.remove_tree(work / _ORDERS)
            planned = [
                plan_shards(plan, paths, config, model.blake2b if model else "", limit, work / _ORDERS)
                for plan, paths in zip(plans, results, strict=True)
            ]
            notices = (*(notice for plan in planned for notice in plan.result.notices), *_mixed(before, update))
            for notice in notices:
                log.write("notice", text=notice)
            if before is not None and not update:
                _check_unchanged(root, before, planned, content, work)
        reused: set[str] = set()
        with log.stage("build"):
            if text is not None:
                if not files.exists(root / VOCABULARY):
                    write_atomically(root / VOCABULARY, text.model)
                reused = _build(planned, root, work, where, progress, log)
            else:
                _write_scan(planned, root)
        with log.stage("finish"):
            finished = [finish_dataset(root, plan, config, content) for plan in planned]
            files.remove_tree(work)
            manifest, removed = write_manifest(root, config, described, finished, model, content, before)
        result = Result(
            manifest,
            notices,
            time.monotonic() - begin,
            log.seconds,
            **_counts(manifest, reused),
            removed=sum(item.is_shard for item in removed),
            rejected={item.dataset.name: item.rejected for item in finished},
        )
        _log_result(log, content, result)
        return result


def _check_reachable(plans: list[DatasetPlan], out: str | Path) -> None:
    """ConfigError where workers on other machines cannot reach what they are to read or write."""
    if not is_remote(out):
        raise ConfigError(
            f"--out {out}: lies on this machine, where the runner's workers write nothing; give a gs:// path"
        )
    for plan in plans:
        for file in plan.files:
            for path in (file.path, getattr(file, "image_dir", None)):
                if path is not None and not is_remote(path):
                    raise ConfigError(
                        f"{plan.field}: {path} lies on this machine, where the runner's workers read nothing; "
                        "copy it to a bucket and give its gs:// path"
                    )


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


def _check_root(
    root: Path, config: BuildConfig, described: dict[str, Any], content: str, only: str | None, update: bool
) -> Manifest | None:
    """The manifest of what stands in the directory, if that is finished.

    ConfigError where it holds something that this job would not have put there and is not asked to replace.
    """
    ours = {MANIFEST, VOCABULARY, LOG, LOCK, WORK, *(dataset["name"] for dataset in described["datasets"])}
    names = files.names(root)
    if MANIFEST not in names:
        foreign = [name for name in names if name not in ours and not name.startswith(TEMPORARY)]
        if foreign:
            raise ConfigError(f"--out {root}: holds {foreign[0]}, no part of this {content}; choose another directory")
        return None
    manifest = Manifest.parse(files.read_bytes(root / MANIFEST), root / MANIFEST)
    if manifest.content != content:
        raise ConfigError(f"--out {root}: holds a finished {manifest.content}; choose another directory")
    if not update and manifest.config_digest != json_digest(described):
        raise ConfigError(f"--out {root}: holds a finished {content} of another config; {_ways_out(content)}")
    if manifest.tokenizer.discrete_offset != config.discrete_offset:
        raise ConfigError(
            f"--out {root}: holds shards made with discrete_offset {manifest.tokenizer.discrete_offset}, and "
            f"{config.discrete_offset} gives every token another meaning; choose another directory"
        )
    others = [item.name for item in manifest.datasets if item.name != only]
    if update and only is not None and others:
        raise ConfigError(f"--only {only}: an update would remove {others[0]} from {root}; leave --only out")
    return manifest


def _ways_out(content: str) -> str:
    ways = "choose another directory or delete it"
    return f"--update builds what changed; else {ways}" if content == "build" else ways


def _check_vocabulary(root: Path, model: VocabularyEntry | None) -> None:
    """ConfigError where a build, finished or not, has made shards with another model."""
    path = root / VOCABULARY
    if model is not None and files.exists(path) and load_vocabulary(path).digest != model.blake2b:
        raise ConfigError(
            f"--out {root}: holds shards of another vocabulary, {path}; choose another directory or delete this one"
        )


def _check_unchanged(root: Path, before: Manifest, planned: list[Plan], content: str, work: Path) -> None:
    finished = {split.fingerprint for item in before.datasets for split in item.splits}
    if finished != {order.fingerprint for plan in planned for order in plan.shards}:
        files.remove_tree(work)
        raise ConfigError(f"--out {root}: holds a finished {content} of other source files; {_ways_out(content)}")


def _mixed(before: Manifest | None, update: bool) -> list[str]:
    """A sentence where shards may be reused that other versions of the packages have made."""
    if before is None or not update:
        return []
    now = packages()
    other = [f"{name} {version}" for name, version in before.packages.items() if now.get(name) != version]
    return [f"shards that do not change stay as they were made, with {', '.join(other)}"] if other else []


def _scan(
    plans: list[DatasetPlan],
    config: BuildConfig,
    work: Path,
    where: jobs.Execution,
    progress: Progress | None,
    log: "_Log",
) -> list[list[Path]]:
    """The scanned rows of every dataset; units that a killed job finished are not scanned again."""
    directory = work / _SCANNED
    units: dict[Path, ScanUnit] = {}
    results = []
    for plan in plans:
        paths = []
        for unit in scan_units(plan, config.max_episode_bytes):
            paths.append(directory / f"{unit.fingerprint}.arrow")
            units[paths[-1]] = unit
        results.append(paths)

    def waiting() -> list[object]:
        done = files.existing(pieces)
        return [piece for path, piece in pieces.items() if path not in done]

    pieces = _write_units(units, work / _UNITS)
    left = waiting()
    log.write("scan planned", units=len(units), finished=len(units) - len(left))
    if left:
        poll = _poll(progress, "scan", [path for paths in results for path in paths])
        _run_all(waiting, jobs.ScanFiles(str(directory), str(work)), where, poll, work, log)
        _report_all(progress, "scan", sum(map(len, results)))
    return results


def _write_units(units: dict[Path, ScanUnit], path: Path) -> dict[Path, tuple[str, str, int, int]]:
    """Writes the units into one file; by result, what ``jobs.ScanFiles`` is given."""
    lines = [unit.model_dump_json().encode() + b"\n" for unit in units.values()]
    write_atomically(path, b"".join(lines))
    begins = accumulate(map(len, lines), initial=0)
    return {
        result: (result.stem, str(path), begin, len(line))
        for result, line, begin in zip(units, lines, begins, strict=False)
    }


def _build(
    planned: list[Plan], root: Path, work: Path, where: jobs.Execution, progress: Progress | None, log: "_Log"
) -> set[str]:
    """Builds the orders whose shards are not there yet; the fingerprints of those whose shards were."""
    orders = {
        root / plan.dataset.config.name / (order.stem + INDEX_SUFFIX): order
        for plan in planned
        for order in plan.shards
    }

    def finished() -> set[Path]:
        found = set()
        for plan in planned:
            directory = root / plan.dataset.config.name
            done = finished_orders(directory, [order.stem for order in plan.shards])
            found |= {directory / (stem + INDEX_SUFFIX) for stem in done}
        return found

    def waiting() -> list[object]:
        done = finished()
        return [(str(order.path), str(index.parent)) for index, order in orders.items() if index not in done]

    before = finished()
    for index in orders.keys() - before:
        files.remove(index)
    log.write("build planned", shards=len(orders), finished=len(before))
    if len(before) < len(orders):
        poll = _poll(progress, "build", list(orders))
        try:
            _run_all(waiting, jobs.WriteShards(str(root / VOCABULARY), str(work)), where, poll, work, log)
        except DataError:
            # The source may have changed in a way that no file's time shows.
            files.remove_tree(work / _SCANNED)
            raise
        _report_all(progress, "build", len(orders))
    return {orders[index].fingerprint for index in before}


def _run_all(
    waiting: Callable[[], list[object]],
    transform: beam.PTransform,
    where: jobs.Execution,
    poll: Callable[[], None],
    work: Path,
    log: "_Log",
) -> None:
    """Runs ``transform`` over the pieces that are ``waiting``, and again where a worker process dies over it: what that
    worked on is done in a process of its own then."""
    left, deaths = waiting(), 0
    while left:
        try:
            log.write("metrics", **jobs.run(left, transform, where, poll, work))
            return
        except jobs.WorkerDiedError as error:
            log.write("worker died", message=str(error), pieces=len(left))
            before, left = len(left), waiting()
            deaths = deaths + 1 if len(left) == before else 1
            if deaths == _MOST_DEATHS:
                raise DataError(
                    f"{error}. {deaths} times in a row nothing got done: take fewer --workers if memory is short, and "
                    "run the command again to go on"
                ) from None


def _write_scan(planned: list[Plan], root: Path) -> None:
    for plan in planned:
        for order in plan.shards:
            rows = ShardTask.read(order.path).rows
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
        waiting.difference_update(files.existing(waiting))
        looked = now
        progress(stage, len(results) - len(waiting), len(results))

    return poll


def _report_all(progress: Progress | None, stage: str, pieces: int) -> None:
    if progress is not None:
        progress(stage, pieces, pieces)


def _counts(manifest: Manifest, reused: set[str]) -> dict[str, Any]:
    parts: dict[bool, list[ShardEntry]] = {True: [], False: []}
    for dataset in manifest.datasets:
        for split in dataset.splits:
            parts[split.fingerprint in reused] += split.parts
    tokens = sum(part.tokens for part in parts[False])
    return {"built": len(parts[False]), "built_tokens": tokens, "reused": len(parts[True])}


def _log_result(log: "_Log", content: str, result: Result) -> None:
    keys = ("name", "episodes", "kept", "tokens", "records", "shards", "bytes")
    for item in result.manifest.datasets:
        log.write(
            "dataset finished",
            **{key: getattr(item, key) for key in keys},
            rejected=result.rejected[item.name],
        )
    log.write(
        f"{content} finished",
        seconds=round(result.seconds, 3),
        stages={name: round(seconds, 3) for name, seconds in result.stages.items()},
        tokens=sum(item.tokens for item in result.manifest.datasets),
        built=result.built,
        reused=result.reused,
        removed=result.removed,
        tokens_per_second=result.tokens_per_second,
    )


@contextmanager
def _os_errors() -> Iterator[None]:
    """DataError where the disk or the storage service fails: what is there stays, and the job can go on."""
    try:
        yield
    except OSError as error:
        raise DataError(jobs.sentence(error)) from None


class _Log:
    """``build.log.jsonl``: what happened when, one JSON object a line; and how long each stage took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = {}

    def write(self, event: str, **values: Any) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **values}
        files.append_line(self._path, json.dumps(line, ensure_ascii=False))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage, and says how it ended."""
        begin = time.monotonic()
        try:
            yield
        except BaseException as error:
            seconds = round(time.monotonic() - begin, 3)
            with suppress(OSError):  # what brought us here matters more
                self.write("failed", stage=name, seconds=seconds, error=type(error).__name__, message=str(error))
            raise
        self.seconds[name] = time.monotonic() - begin
        self.write("stage finished", stage=name, seconds=round(self.seconds[name], 3))
