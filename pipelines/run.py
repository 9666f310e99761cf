"""Scan and build from beginning to end: the commands call these two functions, and so do programs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Literal

import apache_beam as beam
import pyarrow as pa

from gatokit.pipelines import checks
from gatokit.pipelines.beam import jobs
from gatokit.pipelines.beam.local_workers import prepare_workers
from gatokit.pipelines.beam.work import ERRORS, sentence
from gatokit.pipelines.inputs import read_inputs, read_vocabulary
from gatokit.pipelines.planning import Plan, ScanUnit, ShardTask, plan_datasets, plan_shards, scan_units
from gatokit.pipelines.progress import JobLog, Progress, file_counter
from gatokit.pipelines.shards.garbage import WORK
from gatokit.pipelines.shards.index import INDEX_SUFFIX, finished_shards, write_index
from gatokit.pipelines.shards.manifest import finish_dataset, write_manifest
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import INDEX
from gatokit.schemas.manifest import LOG, VOCABULARY, Manifest, VocabularyEntry
from gatokit.storage import files
from gatokit.storage.files import out_directory, write_atomically
from gatokit.storage.lock import hold

_MOST_DEATHS = 3
"""Times in a row that worker processes may die without one piece of work getting done."""


@dataclass(frozen=True)
class Result:
    """A finished job: its manifest, notices for the user, and the wall time in seconds.

    ``stages`` has the seconds of ``scan``, ``plan``, ``build`` and ``finish``. Of the shards in the manifest, ``built``
    were built now, with ``built_tokens`` tokens, and ``reused`` existed before; ``removed`` shards are gone.
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
        """Tokens that were built now per second of the build stage; None if none were."""
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

    ``only`` names one dataset. ``limit`` takes only the first episodes of each task. ``workers`` is the number of local
    processes, ``beam_arguments`` are Beam's own options.
    """
    return _run("scan", config_path, out, only, limit, workers, beam_arguments, progress, False)


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
    """Builds every dataset of a config. An interrupted build continues where it stopped. Arguments as for ``scan``.

    With ``update`` the directory may hold a finished build of another config or of other source files. Shards that are
    in both stay. Until the new build is finished, the directory is the old one.
    """
    return _run("build", config_path, out, only, limit, workers, beam_arguments, progress, update)


def _run(
    content: Literal["build", "scan"],
    config_path: str | Path,
    out: str | Path,
    only: str | None,
    limit: int | None,
    workers: int,
    beam_arguments: Sequence[str],
    progress: Progress | None,
    update: bool,
) -> Result:
    begin, root, where = time.monotonic(), out_directory(out), jobs.execution(beam_arguments, workers)
    work, log = root / WORK, JobLog(root / LOG)
    if where.local_workers is not None and where.local_workers > 1:
        prepare_workers()  # while sources are listed
    # --- 1. read the config and list the sources -----------------------------------------------------------------
    config, base = read_inputs(config_path, only)
    described = checks.described_config(config, base, limit)
    text = read_vocabulary(config, base, config_path) if content == "build" else None
    model = VocabularyEntry(file=VOCABULARY, pieces=text.pieces, blake2b=text.digest) if text else None
    datasets = plan_datasets(config, base)
    if where.is_elsewhere:
        checks.check_reachable(datasets, root)
    with hold(root), _os_errors():
        before = checks.finished_manifest(root, config, described, content, only, update)
        checks.check_vocabulary(root, model)
        files.remove_tree(work / ERRORS)
        names = [dataset.config.name for dataset in datasets]
        log.write(f"{content} started", config=str(config_path), datasets=names, update=before is not None)
        # --- 2. scan -------------------------------------------------------------------------------------------------
        with log.stage("scan"):
            units = [scan_units(dataset, config.max_episode_bytes) for dataset in datasets]
            scanned = _scan(units, work, where, progress, log)
        # --- 3. filter the rows and plan the shards ------------------------------------------------------------------
        with log.stage("plan"):
            files.remove_tree(work / "shards")
            digest = model.blake2b if model else ""
            plans = [
                plan_shards(dataset, paths, config, digest, limit, work / "shards")
                for dataset, paths in zip(datasets, scanned, strict=True)
            ]
            notices = [notice for plan in plans for notice in plan.result.notices]
            notices += checks.other_packages(before) if update else []
            for notice in notices:
                log.write("notice", text=notice)
            if before is not None and not update:
                checks.check_unchanged(root, before, plans, content)
        # --- 4. build the shards, or of a scan only their indexes ----------------------------------------------------
        reused: set[str] = set()
        with log.stage("build"):
            if text is not None:
                if not files.exists(root / VOCABULARY):
                    write_atomically(root / VOCABULARY, text.model)
                reused = _build(plans, root, work, where, progress, log)
            else:
                _write_scan(plans, root)
        # --- 5. count what there is, and write the manifest ----------------------------------------------------------
        with log.stage("finish"):
            finished = [finish_dataset(root, plan, config, content) for plan in plans]
            files.remove_tree(work)
            manifest, removed = write_manifest(root, config, described, finished, model, content, before)
        splits = [split for dataset in manifest.datasets for split in dataset.splits]
        built = [part for split in splits if split.fingerprint not in reused for part in split.parts]
        result = Result(
            manifest,
            tuple(notices),
            time.monotonic() - begin,
            log.seconds,
            built=len(built),
            built_tokens=sum(part.tokens for part in built),
            reused=sum(len(split.parts) for split in splits) - len(built),
            removed=sum(item.is_shard for item in removed),
            rejected={item.dataset.name: item.rejected for item in finished},
        )
        _log_result(log, content, result)
        return result


def _scan(
    units: Sequence[Sequence[ScanUnit]],
    work: Path,
    where: jobs.Execution,
    progress: Progress | None,
    log: JobLog,
) -> list[list[Path]]:
    """Scans the units of each dataset, and returns the files with their rows. Units that a killed job scanned stay."""
    directory = work / "scan"
    results = [{directory / f"{unit.fingerprint}.arrow": unit for unit in of_dataset} for of_dataset in units]
    pieces = _write_units(dict(item for result in results for item in result.items()), work / "units.jsonl")

    def waiting() -> list[object]:
        done = files.existing(pieces)
        return [piece for path, piece in pieces.items() if path not in done]

    left = waiting()
    log.write("scan planned", units=len(pieces), finished=len(pieces) - len(left))
    if left:
        poll = file_counter(progress, "scan", list(pieces))
        _run_all(waiting, jobs.ScanFiles(str(directory), str(work)), where, poll, work, log)
        if progress is not None:
            progress("scan", len(pieces), len(pieces))
    return [list(result) for result in results]


def _write_units(units: dict[Path, ScanUnit], path: Path) -> dict[Path, tuple[str, str, int, int]]:
    """Writes the units into one file, and returns the piece of work for each result."""
    lines = [unit.model_dump_json().encode() + b"\n" for unit in units.values()]
    write_atomically(path, b"".join(lines))
    begins = accumulate(map(len, lines), initial=0)
    return {
        result: (result.stem, str(path), begin, len(line))
        for result, line, begin in zip(units, lines, begins, strict=False)
    }


def _build(
    plans: Sequence[Plan], root: Path, work: Path, where: jobs.Execution, progress: Progress | None, log: JobLog
) -> set[str]:
    """Builds the shards that do not exist yet. Returns the fingerprints of those that did."""
    shards = {
        root / plan.dataset.config.name / (shard.stem + INDEX_SUFFIX): shard for plan in plans for shard in plan.shards
    }

    def finished() -> set[Path]:
        found = set()
        for plan in plans:
            directory = root / plan.dataset.config.name
            done = finished_shards(directory, [shard.stem for shard in plan.shards])
            found |= {directory / (stem + INDEX_SUFFIX) for stem in done}
        return found

    def waiting() -> list[object]:
        done = finished()
        return [(str(shard.path), str(index.parent)) for index, shard in shards.items() if index not in done]

    reused = finished()
    for index in shards.keys() - reused:
        files.remove(index)
    log.write("build planned", shards=len(shards), finished=len(reused))
    if len(reused) < len(shards):
        poll = file_counter(progress, "build", list(shards))
        try:
            _run_all(waiting, jobs.WriteShards(str(root / VOCABULARY), str(work)), where, poll, work, log)
        except DataError:
            # A source may have changed without a new modification time, so the next run scans again.
            files.remove_tree(work / "scan")
            raise
        if progress is not None:
            progress("build", len(shards), len(shards))
    return {shards[index].fingerprint for index in reused}


def _run_all(
    waiting: Callable[[], list[object]],
    transform: beam.PTransform,
    where: jobs.Execution,
    poll: Callable[[], None],
    work: Path,
    log: JobLog,
) -> None:
    """Runs ``transform`` over the pieces that are ``waiting``, and again after a worker process died.

    The second time an isolated process does what the dead one worked on.
    """
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


def _write_scan(plans: Sequence[Plan], root: Path) -> None:
    """Writes the indexes of a scan, whose token columns are null."""
    for plan in plans:
        for shard in plan.shards:
            rows = ShardTask.read(shard.path).rows
            columns = {name: rows[name] if name in rows.column_names else pa.nulls(len(rows)) for name in INDEX.names}
            path = root / plan.dataset.config.name / (shard.stem + INDEX_SUFFIX)
            write_index(path, pa.table(columns).cast(INDEX), [], {})


def _log_result(log: JobLog, content: str, result: Result) -> None:
    keys = ("name", "episodes", "kept", "tokens", "records", "shards", "bytes")
    for item in result.manifest.datasets:
        counts = {key: getattr(item, key) for key in keys}
        log.write("dataset finished", **counts, rejected=result.rejected[item.name])
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
    """Raises DataError if the disk or the storage service fails. Finished files stay, and the job can be continued."""
    try:
        yield
    except OSError as error:
        raise DataError(sentence(error)) from None
