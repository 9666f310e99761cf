"""Scan and build from beginning to end: the commands call these two functions, and so do programs."""

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from gatokit.pipelines import scan_cache as kept_rows
from gatokit.pipelines.beam import jobs
from gatokit.pipelines.beam.local_workers import prepare_workers
from gatokit.pipelines.formats.records import CHANGED
from gatokit.pipelines.holdout import held_out_before
from gatokit.pipelines.inputs import (
    check_apart,
    load_vocabulary,
    local_path,
    local_pattern,
    read_inputs,
    read_vocabulary,
    relative_path,
)
from gatokit.pipelines.planning import (
    DatasetPlan,
    Plan,
    PlannedShard,
    ShardTask,
    check_vocabulary,
    known_files,
    plan_datasets,
    plan_shards,
    scan_units,
    stem_of_index,
)
from gatokit.pipelines.scan_cache import SCANS, Segment, find, segments, table_path, tables
from gatokit.pipelines.shards.manifest import Finished, finish_dataset, write_manifest
from gatokit.pipelines.shards.ownership import WORK, check_directory, make_work
from gatokit.pipelines.shards.writer import finished_indexes, provenance, write_index
from gatokit.pipelines.stages import with_metadata
from gatokit.pipelines.versions import packages
from gatokit.schemas.config import BUDGETS, PATHS, BuildConfig
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.index import INDEX, INDEX_SUFFIX
from gatokit.schemas.manifest import (
    DATASET,
    LOG,
    MANIFEST,
    MANIFEST_VERSION,
    VOCABULARY,
    Manifest,
    StepTokens,
    VocabularyEntry,
    json_digest,
)
from gatokit.schemas.progress import Progress
from gatokit.schemas.words import ascii_json
from gatokit.storage import files
from gatokit.storage.files import is_remote, out_directory, write_atomically
from gatokit.storage.folder import read_manifest
from gatokit.storage.lock import hold


@dataclass(frozen=True)
class Result:
    """A finished job: its manifest, notices for the user, and the wall time in seconds.

    ``stages`` has the seconds of ``scan``, ``plan``, ``build`` and ``finish``. Of the shards in the manifest, ``built``
    were built now, with ``built_tokens`` tokens, and ``reused`` existed before; ``removed`` shards are gone.
    ``rejected`` counts, by dataset and reason, what was not kept, and ``left_out`` has a row for everything that is
    lost: ``dataset``, ``what``, ``reason``, ``count``, ``of`` and ``first``. ``steps`` says of each dataset of episodes
    what a step is made of.
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
    left_out: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, StepTokens] = field(default_factory=dict)

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
    scan_cache: str | Path | None = None,
) -> Result:
    """Writes the index of every dataset without decoding or tokenizing anything. Arguments as for ``build``."""
    return build(
        config_path,
        out,
        only=only,
        limit=limit,
        workers=workers,
        beam_arguments=beam_arguments,
        progress=progress,
        scan_cache=scan_cache,
        content="scan",
    )


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
    scan_cache: str | Path | None = None,
    content: Literal["build", "scan"] = "build",
) -> Result:
    """Builds every dataset of a config. An interrupted build continues where it stopped.

    ``only`` names one dataset. ``limit`` takes only the first episodes of each task, and stops reading where the source
    says by its paths that all are found. ``workers`` is the number of local
    processes, ``beam_arguments`` are Beam's own options. With ``update`` the directory may hold a finished build of
    another config or of other source files. Shards that are in both stay, and until the new build is finished, the
    directory is the old one. ``scan_cache`` is the directory in which scanned rows are kept, by default one in ``out``.
    ``content`` is ``scan`` if only indexes are written.
    """
    begin, root, where = time.monotonic(), out_directory(out), jobs.execution(beam_arguments, workers)
    work, log = root / WORK, _Log(root / LOG)
    if (where.local_workers or 1) > 1:
        prepare_workers()  # while sources are listed
    # --- 1. read the config and list the sources -----------------------------------------------------------------
    config, base = read_inputs(config_path, only)
    described = _described_config(config, base, limit)
    text = read_vocabulary(config, base, config_path) if content == "build" else None
    model = VocabularyEntry(file=VOCABULARY, pieces=text.pieces, blake2b=text.digest) if text else None
    datasets = plan_datasets(config, base)
    if content == "build":
        check_vocabulary(datasets, text, config_path)
    cache = root / SCANS if scan_cache is None else out_directory(scan_cache, "--scan-cache")
    if where.is_elsewhere:
        _check_reachable(datasets, root, cache)
    _check_apart(datasets, base, root)
    names = [dataset.config.name for dataset in datasets]
    with _os_errors():
        check_directory(root, names, content)
    with hold(root), _os_errors():
        before = _finished_manifest(root, config, described, content, only, update)
        if content == "build":
            _check_vocabulary(root, model)
        log.write(f"{content} started", config=str(config_path), datasets=names, update=before is not None)
        make_work(root)
        # --- 2. scan -------------------------------------------------------------------------------------------------
        with log.stage("scan"):
            scanned = _scan(datasets, config.max_episode_bytes, limit, cache, work, where, progress, log)
        # --- 3. filter the rows and plan the shards ------------------------------------------------------------------
        with log.stage("plan"):
            files.remove_tree(work / "shards")
            digest = model.blake2b if model else ""
            earlier = {} if before is None else _held_out_before(root, before, config)
            plans = [
                plan_shards(dataset, segments, config, digest, limit, work / "shards", earlier.get(dataset.config.name))
                for dataset, segments in zip(datasets, scanned, strict=True)
            ]
            notices = [notice for plan in plans for notice in plan.result.notices]
            for notice in notices:
                log.write("notice", text=notice)
            if before is not None and not update:
                _check_unchanged(root, before, plans, content)
        # --- 4. build the shards, or of a scan only their indexes ----------------------------------------------------
        reused: set[str] = set()
        with log.stage("build"):
            if content == "build":
                if text is not None and not files.exists(root / VOCABULARY):
                    write_atomically(root / VOCABULARY, text.model)
                with _current_sources(scanned):
                    reused = _build(plans, root, text is not None, work, where, progress, log)
            else:
                _write_scan(plans, root)
        # --- 5. count what there is, and write the manifest ----------------------------------------------------------
        with log.stage("finish"):
            finished = [finish_dataset(root, plan, config, content) for plan in plans]
            late_notices = [notice for item in finished for notice in item.notices]
            late_notices += _other_packages(finished, reused)
            for notice in late_notices:
                log.write("notice", text=notice)
            files.remove_tree(work)
            manifest, removed = write_manifest(root, config, described, finished, model, content, before)
            if scan_cache is None:
                unused = set(tables(cache)) - {segment.path for segments in scanned for segment in segments}
                kept_rows.remove(filter(kept_rows.is_table, unused))
        splits = [split for dataset in manifest.datasets for split in dataset.splits]
        built = [part for split in splits if split.fingerprint not in reused for part in split.parts]
        result = Result(
            manifest,
            (*notices, *late_notices),
            time.monotonic() - begin,
            log.seconds,
            built=len(built),
            built_tokens=sum(part.tokens for part in built),
            reused=sum(len(split.parts) for split in splits) - len(built),
            removed=sum(item.is_shard for item in removed),
            rejected={item.dataset.name: item.rejected for item in finished},
            left_out=[row for item in finished for row in item.left_out],
            steps={item.dataset.name: item.step for item in finished if item.step is not None},
        )
        keys = ("name", "episodes", "kept", "tokens", "records", "shards", "bytes")
        for item in manifest.datasets:
            counts = {key: getattr(item, key) for key in keys}
            log.write("dataset finished", **counts, rejected=result.rejected[item.name])
        log.write(
            f"{content} finished",
            seconds=round(result.seconds, 3),
            stages={name: round(seconds, 3) for name, seconds in result.stages.items()},
            tokens=sum(item.tokens for item in manifest.datasets),
            built=result.built,
            reused=result.reused,
            removed=result.removed,
            tokens_per_second=result.tokens_per_second,
        )
        return result


def _scan(
    datasets: Sequence[DatasetPlan],
    max_bytes: int,
    limit: int | None,
    cache: Path,
    work: Path,
    where: jobs.Execution,
    progress: Progress | None,
    log: "_Log",
) -> list[list[Segment]]:
    """Scans the files of each dataset whose rows are not in ``cache``, and returns the rows of all its files."""
    found = find(tables(cache))
    listed = work / "units.jsonl"
    lines: list[bytes] = []
    pieces: dict[Path, jobs.Piece] = {}
    sizes: dict[Path, int] = {}
    begin = 0
    of_datasets = []
    for dataset in datasets:
        known = known_files(dataset, dataset.keys(max_bytes), found)
        units = scan_units(dataset, max_bytes, known=known, limit=limit)
        keys = {ordinal: key for unit in units for ordinal, key in zip(unit.ordinals, unit.keys, strict=True)}
        of_datasets.append((dataset, known, keys))
        for unit in units:
            of_unit = {ordinal: keys[ordinal] for ordinal in unit.ordinals}
            if len(known_files(dataset, of_unit, found)) == len(of_unit):
                continue  # a unit that ends with a limit, whose files have other keys
            path = table_path(cache, unit.fingerprint)
            lines.append(unit.model_dump_json().encode() + b"\n")
            pieces[path] = (path.stem, str(listed), begin, len(lines[-1]))
            sizes[path] = unit.size
            begin += len(lines[-1])
    kept_rows.remove(files.existing(pieces))  # something was lost there, or pictures changed
    write_atomically(listed, b"".join(lines))
    finished = partial(files.existing, pieces)
    log.write("scan planned", units=len(pieces), known=sum(len(known) for _, known, _ in of_datasets))
    scan_piece = partial(jobs.scan_piece, directory=str(cache), work=str(work), is_retried=where.is_elsewhere)
    jobs.run_pieces("scan", pieces, sizes, finished, scan_piece, where, work, log.write, progress)
    found |= find(pieces)
    missing = sum(key not in found for _, known, keys in of_datasets for at, key in keys.items() if at not in known)
    if missing:
        raise DataError(f"scan: the job ended without the rows of {missing} files. Run the same command again to go on")
    return [
        segments([known.get(ordinal) or found[keys[ordinal]] for ordinal in range(len(dataset.files))])
        for dataset, known, keys in of_datasets
    ]


@contextmanager
def _current_sources(scanned: Sequence[Sequence[Segment]]) -> Iterator[None]:
    """Removes the scanned rows if a source changed without a new modification time, so that the next run scans it."""
    try:
        yield
    except DataError as error:
        if CHANGED in str(error):
            kept_rows.remove({segment.path for segments in scanned for segment in segments})
        raise


def _build(
    plans: Sequence[Plan],
    root: Path,
    has_text: bool,
    work: Path,
    where: jobs.Execution,
    progress: Progress | None,
    log: "_Log",
) -> set[str]:
    """Builds the shards that do not exist yet, and of shards whose records exist the index.

    Returns the fingerprints of the splits whose records did.
    """
    shards = {root / plan.dataset.config.name / shard.index: shard for plan in plans for shard in plan.shards}
    of_folder: dict[Path, dict[str, PlannedShard]] = {}
    for index, shard in shards.items():
        of_folder.setdefault(index.parent, {})[index.name] = shard

    def finished() -> set[Path]:
        return {
            folder / name
            for folder, wanted in of_folder.items()
            for name in finished_indexes(folder, wanted.__contains__)
        }

    reused, earlier = set[Path](), dict[tuple[Path, str], str]()
    for folder, wanted in of_folder.items():
        stems = {shard.stem for shard in wanted.values()}
        found = finished_indexes(folder, lambda name, stems=stems: stem_of_index(name) in stems)  # type: ignore[misc]
        reused |= {folder / name for name in found & wanted.keys()}
        earlier |= {(folder, stem_of_index(name)): name for name in sorted(found)}
    pieces: dict[Path, jobs.Piece] = {
        index: (str(shard.path), str(index.parent), earlier.get((index.parent, shard.stem)))
        for index, shard in shards.items()
    }
    sizes = {index: shard.length for index, shard in shards.items()}
    for index in shards.keys() - reused:
        files.remove(index)
    indexed = {index for index, (_, _, name) in pieces.items() if name is not None} - reused
    log.write("build planned", shards=len(shards), finished=len(reused), indexes=len(indexed))
    vocabulary = str(root / VOCABULARY) if has_text else None
    build_piece = partial(jobs.build_piece, vocabulary=vocabulary, work=str(work), is_retried=where.is_elsewhere)
    jobs.run_pieces("build", pieces, sizes, finished, build_piece, where, work, log.write, progress)
    return {shards[index].fingerprint for index in reused | indexed}


def _write_scan(plans: Sequence[Plan], root: Path) -> None:
    """Writes the indexes of a scan, whose token columns are null."""
    for plan in plans:
        for shard in plan.shards:
            rows = ShardTask.read(shard.path).rows
            columns = {name: rows[name] if name in rows.column_names else pa.nulls(len(rows)) for name in INDEX.names}
            path = root / plan.dataset.config.name / shard.index
            index = with_metadata(pa.table(columns).cast(INDEX), rows)
            write_index(path, index, [], {}, made_by=provenance(plan.dataset.kind))


# --- checks before the job writes ----------------------------------------------------------------------------------


def _described_config(config: BuildConfig, base: Path, limit: int | None) -> dict[str, Any]:
    """The config as the manifest holds it: complete, with paths relative to the config file."""
    described = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key in BUDGETS:
        if described[key] == BuildConfig.model_fields[key].default:
            del described[key]
    if config.vocabulary is not None:
        described["vocabulary"] = relative_path(config.vocabulary, base)
    for dataset in described["datasets"]:
        for key in PATHS & dataset.keys():
            dataset[key] = relative_path(dataset[key], base)
    return described | ({"limit": limit} if limit is not None else {})


def _check_reachable(plans: Sequence[DatasetPlan], out: Path, cache: Path) -> None:
    """Raises ConfigError if workers on other machines cannot reach what they are to read or write."""
    for option, written in (("--out", out), ("--scan-cache", cache)):
        if not is_remote(written):
            raise ConfigError(
                f"{option} {written}: lies on this machine, where the runner's workers write nothing; give a gs:// path"
            )
    for plan in plans:
        for file in plan.files:
            for path in (file.path, getattr(file, "image_dir", None)):
                if path is not None and not is_remote(path):
                    raise ConfigError(
                        f"{plan.field}: {path} lies on this machine, where the runner's workers read nothing; "
                        "copy it to a bucket and give its gs:// path"
                    )


def _check_apart(plans: Sequence[DatasetPlan], base: Path, root: Path) -> None:
    """Raises ConfigError if ``root`` is, holds or lies in a source of a dataset."""
    for plan in plans:
        named = [getattr(plan.config, key, None) for key in sorted(PATHS - {"source"})]
        folders = [local_path(path, base, plan.field) for path in named if path]
        folders += [os.path.dirname(file.path) for file in plan.files]
        source, name = getattr(plan.config, "source", None), plan.config.name
        pattern = None if source is None else local_pattern(source, base, f"{plan.field}.source")
        written = (LOG, MANIFEST, f"{name}/{DATASET}", f"{name}/{name}{INDEX_SUFFIX}")
        check_apart(root, plan.field, pattern, folders, written)


def _finished_manifest(
    root: Path, config: BuildConfig, described: dict[str, Any], content: str, only: str | None, update: bool
) -> Manifest | None:
    """The manifest in the directory, if a finished job left one.

    Raises ConfigError if this job would not write what is there and is not asked to replace it.
    """
    if not files.exists(root / MANIFEST):
        return None
    manifest = read_manifest(root)
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


def _held_out_before(root: Path, before: Manifest, config: BuildConfig) -> dict[str, np.ndarray]:
    """By dataset the hashes of the ids that a finished job held out; empty if it was asked for others."""
    if any(before.config.get(key) != getattr(config, key) for key in ("seed", "holdout")):
        return {}
    return {entry.name: held_out_before(root, entry, config.seed) for entry in before.datasets if entry.kept}


def _check_vocabulary(root: Path, model: VocabularyEntry | None) -> None:
    """Raises ConfigError if a build, finished or not, made shards with another vocabulary."""
    path = root / VOCABULARY
    if files.exists(path) and (model is None or load_vocabulary(path).digest != model.blake2b):
        raise ConfigError(
            f"--out {root}: holds shards of another vocabulary, {path}; choose another directory or delete this one"
        )


def _check_unchanged(root: Path, before: Manifest, plans: Sequence[Plan], content: str) -> None:
    """Raises ConfigError if a finished job has other shards than the plans."""
    finished = {split.fingerprint for item in before.datasets for split in item.splits}
    if finished != {shard.fingerprint for plan in plans for shard in plan.shards}:
        files.remove_tree(root / WORK)
        made = _differing_packages([before.packages])
        what = "of other source files" + (f", or made with {made}" if made else "")
        if before.version < MANIFEST_VERSION:
            what = f"of format {before.version}, whose files have other names"
        raise ConfigError(f"--out {root}: holds a finished {content} {what}; {_ways_out(content)}")


def _ways_out(content: str) -> str:
    ways = "choose another directory or delete it"
    return f"--update builds what changed; else {ways}" if content == "build" else ways


def _other_packages(finished: Sequence[Finished], reused: Collection[str]) -> list[str]:
    """A notice if other versions of the packages made shards that are ``reused``."""
    makers = [
        item.provenance[split.made_by].packages
        for item in finished
        for split in item.dataset.splits
        if split.made_by is not None and split.fingerprint in reused
    ]
    other = _differing_packages(makers)
    return [f"shards that do not change stay as they were made, with {other}"] if other else []


def _differing_packages(makers: Iterable[Mapping[str, str]]) -> str:
    """The packages of ``makers`` that have other versions here, with those versions."""
    now = packages()
    return ", ".join(
        dict.fromkeys(
            f"{name} {version}" for made in makers for name, version in made.items() if now.get(name) != version
        )
    )


# --- log and errors ------------------------------------------------------------------------------------------------


class _Log:
    """``build.log.jsonl``: one JSON object a line for each event. ``seconds`` has the time that each stage took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = {}

    def write(self, event: str, **values: Any) -> None:
        """Appends an event with the present time."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **values}
        if files.exists(self._path):
            files.append_line(self._path, ascii_json(line))
        else:  # by its first line a directory is a build's
            files.write_new(self._path, ascii_json(line).encode() + b"\n")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a stage and writes how it ended."""
        begin = time.monotonic()
        try:
            yield
        except BaseException as error:
            seconds = round(time.monotonic() - begin, 3)
            with suppress(OSError):  # the first error matters more
                self.write("failed", stage=name, seconds=seconds, error=type(error).__name__, message=str(error))
            raise
        self.seconds[name] = time.monotonic() - begin
        self.write("stage finished", stage=name, seconds=round(self.seconds[name], 3))


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raises DataError if the disk or the storage service fails. Finished files stay, and the job can be continued."""
    try:
        yield
    except OSError as error:
        raise DataError(jobs.sentence(error)) from None
