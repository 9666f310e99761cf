"""Estimates what a build gives and takes from a sample of each dataset, which is scanned, filtered, planned and built.

The rest of a dataset is extrapolated by its bytes. If there is time for all of it, every number but the times is exact.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import WorkerOptions

from gatokit.pipelines.beam import jobs
from gatokit.pipelines.documents.image_folder import ImageFolderFile
from gatokit.pipelines.documents.text import LinesFile
from gatokit.pipelines.documents.webdataset import WebDatasetFile
from gatokit.pipelines.episodes.plan import EpisodesPlan
from gatokit.pipelines.inputs import read_inputs, read_vocabulary
from gatokit.pipelines.planning import (
    DatasetPlan,
    Plan,
    PlannedShard,
    ShardTask,
    Splitter,
    check_vocabulary,
    plan_datasets,
    plan_shards,
    scan_units,
    task_rows,
)
from gatokit.pipelines.scan_cache import Segment
from gatokit.pipelines.shards.writer import MOST_RECORDS, build_shard
from gatokit.schemas.config import BuildConfig
from gatokit.schemas.config_episodes import EpisodesConfig, Keep
from gatokit.schemas.errors import DataError
from gatokit.schemas.progress import Progress, no_progress
from gatokit.storage.files import write_rows
from gatokit.tokenizers.text import TextTokenizer

PIECE_BYTES = 32 << 20
"""Files are scanned together up to this many bytes. A larger file is scanned so far if there is no time for all."""
_SCAN_RATE = 50e6
"""Bytes a second that a scan is expected to read."""
_FIRST_BYTES = 1 << 20
"""Bytes of the first shard that are built to measure the speed of the build."""
_LEAST_SHARDS = 4
"""The time of the build is divided among at least this many shards."""
_STRIPES = 16
"""Runs of rows, evenly spaced, in the sample of a shard."""
_SPLIT_ROWS = 64
"""Rows per split of a file that was not scanned."""
_PLANNING_SECONDS = 15e-6
"""Seconds per episode or document that one process takes between scan and build and after them: benchmarks/scale.py."""


@dataclass(frozen=True)
class DatasetEstimate:
    """What a build of one dataset will give.

    Counts that ``exact`` does not name are estimates. ``spread`` has the least and the largest value among the pieces
    of the sample of: the share of episodes that is kept, tokens a stored byte, and bytes a second of scan and build.
    ``scanned_share`` is the sample's share of the source's bytes, ``built_share`` that of the bytes to build.
    ``units`` are the pieces of work of the scan. Seconds are those of one worker.
    """

    name: str
    kind: str
    files: int
    source_bytes: int
    splits: int
    episodes: int
    kept: int
    shards: int
    tokens: int
    bytes: int
    worker_hours: float
    exact: tuple[str, ...]
    spread: dict[str, tuple[float, float]]
    scanned_share: float
    built_share: float
    units: int
    scan_seconds: float
    build_seconds: float


@dataclass(frozen=True)
class Estimate:
    """The estimates of a config's datasets, and the seconds that ``workers`` take once they have started."""

    datasets: tuple[DatasetEstimate, ...]
    workers: int
    seconds: float
    notices: tuple[str, ...]

    def total(self, name: str) -> float:
        """The sum of a count over all datasets."""
        return sum(getattr(item, name) for item in self.datasets)


def estimate(
    config_path: str | Path,
    *,
    only: str | None = None,
    workers: int = 1,
    beam_arguments: Sequence[str] = (),
    sample_seconds: float = 20.0,
    progress: Progress = no_progress,
) -> Estimate:
    """What ``run.build`` with the same arguments would give, from a sample that takes about ``sample_seconds``.

    Raises the errors that a build raises before it scans, and DataError if a dataset that the sample holds completely
    cannot be built.
    """
    begin = time.monotonic()
    where = jobs.execution(beam_arguments, workers)
    asked = where.options.view_as(WorkerOptions)
    workers = where.local_workers or int(asked.max_num_workers or asked.num_workers or 1)
    config, base = read_inputs(config_path, only)
    text = read_vocabulary(config, base, config_path)
    plans = plan_datasets(config, base)
    check_vocabulary(plans, text, config_path)
    end = max(begin + sample_seconds, time.monotonic() + sample_seconds / 2)
    datasets: list[DatasetEstimate] = []
    notices: list[str] = []
    for number, plan in enumerate(plans):
        progress("sample", number, len(plans))
        seconds = max(0.0, end - time.monotonic()) / (len(plans) - number)
        with tempfile.TemporaryDirectory(prefix="gatokit-plan-") as folder:
            datasets.append(_estimate(plan, config, text, seconds, Path(folder), notices))
    progress("sample", len(plans), len(plans))
    seconds = sum(
        item.scan_seconds / max(1, min(workers, item.units))
        + item.build_seconds / max(1, min(workers, item.splits))
        + item.episodes * _PLANNING_SECONDS
        for item in datasets
    )
    return Estimate(tuple(datasets), workers, seconds, tuple(notices))


@dataclass(frozen=True)
class _Piece:
    """A part of the source that was scanned, or of a shard that was built. It stands for ``times`` as many bytes."""

    path: Path
    times: float
    counts: dict[str, float]


def _estimate(
    dataset: DatasetPlan,
    config: BuildConfig,
    text: TextTokenizer | None,
    seconds: float,
    folder: Path,
    notices: list[str],
) -> DatasetEstimate:
    begin = time.monotonic()
    pieces = _scan_sample(dataset, config.max_episode_bytes, seconds / 2, folder)
    source_bytes = sum(file.size for file in dataset.files)
    scanned_bytes = sum(piece.counts["size"] for piece in pieces)
    all_scanned = scanned_bytes >= source_bytes
    plan = _plan_sample(
        dataset, [Segment(piece.path) for piece in pieces], all_scanned, config, text.digest if text else "", notices
    )
    for piece, rows in zip(pieces, task_rows(plan.dataset, plan.result), strict=True):
        length, kept = rows["length"].to_numpy(), rows["kept"].to_numpy()
        piece.counts["episodes"] = int(rows["lost"].to_numpy().sum())
        piece.counts["kept"] = int(kept.sum())
        piece.counts["length"], piece.counts["kept_length"] = int(length.sum()), int(length[kept].sum())
    shards = [shard for shard in plan.shards if shard.kept]
    left = begin + seconds - time.monotonic()
    built = _build_sample(shards, text, max(left, seconds / 4), folder / "built") if shards else []
    all_built = all_scanned and len(built) == len(shards) and all(piece.times == 1 for piece in built)

    # --- from the sample to the dataset ------------------------------------------------------------------------------
    up = source_bytes / max(1.0, _sum(pieces, "size"))
    declared = [file.episodes for file in dataset.files] if isinstance(dataset, EpisodesPlan) else [None]
    is_declared = not all_scanned and None not in declared
    episodes = sum(filter(None, declared)) if is_declared else round(up * _sum(pieces, "episodes"))
    kept_length = up * _sum(pieces, "kept_length")
    kept = up * _sum(pieces, "kept") if all_scanned else episodes * _ratio(pieces, "kept", "episodes")
    splits, full = len(plan.shards), len(shards)
    if not all_scanned:
        splits = full = _splits(dataset, config.shard_bytes, up * _sum(pieces, "length") / max(1, source_bytes))
    records = kept_length * _ratio(built, "records", "length")
    parts = full * max(1, math.ceil(records / max(1, full) / MOST_RECORDS))
    scan_seconds = up * _sum(pieces, "seconds")
    build_seconds = kept_length * _ratio(built, "seconds", "length")
    exact = ["files", "source_bytes"]
    exact += ["splits"] if all_scanned else []
    exact += ["episodes"] if all_scanned or is_declared else []
    exact += ["kept", "shards", "tokens", "bytes"] if all_built else []
    return DatasetEstimate(
        name=dataset.config.name,
        kind=dataset.config.kind,
        files=len(dataset.files),
        source_bytes=source_bytes,
        splits=splits,
        episodes=episodes,
        kept=round(kept * _ratio(built, "kept", "asked")),
        shards=round(_sum(built, "shards")) if all_built else parts,
        tokens=round(kept_length * _ratio(built, "tokens", "length")),
        bytes=round(kept_length * _ratio(built, "bytes", "length")),
        worker_hours=(scan_seconds + build_seconds) / 3600,
        exact=tuple(exact),
        spread={
            "kept_share": _spread(pieces, "kept", "episodes"),
            "tokens_per_byte": _spread(built, "tokens", "length"),
            "scan_bytes_per_second": _spread(pieces, "size", "seconds"),
            "build_bytes_per_second": _spread(built, "length", "seconds"),
        },
        scanned_share=1.0 if all_scanned else scanned_bytes / source_bytes,
        built_share=1.0 if all_built else sum(piece.counts["length"] for piece in built) / max(1.0, kept_length),
        units=len(scan_units(dataset, config.max_episode_bytes)),
        scan_seconds=scan_seconds,
        build_seconds=build_seconds,
    )


def _scan_sample(dataset: DatasetPlan, max_bytes: int, seconds: float, folder: Path) -> list[_Piece]:
    """Scans pieces that lie evenly in the source for about ``seconds``, at least one. Returns them in
    source order."""
    end = time.monotonic() + seconds
    has_time = sum(file.size for file in dataset.files) <= _SCAN_RATE * seconds
    units = scan_units(dataset, max_bytes, PIECE_BYTES)
    starts = list(accumulate((len(unit.files) for unit in units), initial=0))
    found: dict[int, _Piece] = {}
    for number in spread_order(len(units)):
        begin = time.monotonic()
        if found and begin >= end:
            break
        files = dataset.files[starts[number] : starts[number + 1]]
        size = sum(file.size for file in files)
        column, total = _extent(files[0]) if size > PIECE_BYTES and not has_time else ("", 0)
        rows = units[number].scan(PIECE_BYTES if total else None)
        share = 1.0
        if total and rows.num_rows:
            last = rows.slice(rows.num_rows - 1).to_pylist()[0]
            first, _ = getattr(files[0], "positions", None) or (0, 0)
            done = last[column] + (last["length"] if column == "offset" else 1 - first)
            share = min(1.0, done / total)
        path = folder / f"{number}.arrow"
        write_rows(path, rows)
        found[number] = _Piece(path, 1 / max(share, 1e-9), {"size": share * size, "seconds": time.monotonic() - begin})
    return [found[number] for number in sorted(found)]


def spread_order(count: int) -> list[int]:
    """The numbers below ``count``, so that each beginning of the list lies evenly among them (van der Corput)."""
    bits = max(0, (count - 1).bit_length())
    mirrored = (int(f"{number:0{bits}b}"[::-1], 2) if bits else 0 for number in range(1 << bits))
    return [number for number in mirrored if number < count]


def _extent(file: Any) -> tuple[str, int]:
    """The column of a scan that tells how far it got in a file, and its value at the end of the file. The value is 0 if
    a file cannot be scanned in part."""
    if not file.divides:
        return "", 0
    if isinstance(file, ImageFolderFile):
        return "position", sum(1 for _ in file.captions())
    if isinstance(file, LinesFile | WebDatasetFile):
        return "offset", file.size
    return "position", getattr(file, "episodes", None) or getattr(file, "examples", None) or 0


def _plan_sample(
    dataset: DatasetPlan,
    segments: list[Segment],
    is_whole: bool,
    config: BuildConfig,
    vocabulary: str,
    notices: list[str],
) -> Plan:
    """Plans the shards of the sample. If a part of the source cannot be built, all sound rows of it are kept."""
    tasks, own = segments[0].path.parent / "tasks", []
    if isinstance(dataset, EpisodesPlan) and not is_whole:
        dataset, keep = replace(dataset, is_partial=True), dataset.config.keep
        if isinstance(keep.best, int) or isinstance(keep.sample, int):
            own.append(f"{dataset.config.name}: keeps a number of episodes a task, of which a sample says too much")
    try:
        plan = plan_shards(dataset, segments, config, vocabulary, None, tasks)
    except DataError as error:
        if is_whole:
            raise
        notice = f"in the sample, and perhaps not in the whole: {error}"
        if isinstance(dataset.config, EpisodesConfig):
            dataset = replace(dataset, config=dataset.config.model_copy(update={"keep": Keep(all=True)}))
            notice += "; the estimate keeps every sound episode"
        config = config.model_copy(update={"max_bad_fraction": 1.0, "max_lost_bytes": 1.0, "max_bad_images": 1.0})
        plan = plan_shards(dataset, segments, config, vocabulary, None, tasks)
        own.append(notice)
    notices += [*plan.result.notices, *own]
    return plan


def _build_sample(shards: list[PlannedShard], text: TextTokenizer | None, seconds: float, folder: Path) -> list[_Piece]:
    """Builds shards that lie evenly among these, or parts of them, for about ``seconds``; at least one."""
    end = time.monotonic() + seconds
    shards = [shards[number] for number in spread_order(len(shards))]
    _build_part(shards[0], _FIRST_BYTES, text, folder)  # loads and caches what the measured ones need
    first = _build_part(shards[0], _FIRST_BYTES, text, folder).counts
    most = total = sum(shard.length for shard in shards)
    feasible = first["length"] / first["seconds"] * max(0.0, end - time.monotonic())
    if total > feasible:
        most = max(int(feasible / min(_LEAST_SHARDS, len(shards))), _FIRST_BYTES)
    built: list[_Piece] = []
    for shard in shards:
        if built and time.monotonic() >= end:
            break
        built.append(_build_part(shard, most, text, folder))
    return built


def _build_part(shard: PlannedShard, most_bytes: int, text: TextTokenizer | None, folder: Path) -> _Piece:
    """Builds a shard, or about ``most_bytes`` of its kept rows: from its beginning, or in evenly spaced stripes if its
    files can be read from the middle."""
    task = ShardTask.read(shard.path)
    if shard.length > most_bytes:
        kept = task.rows["kept"].to_numpy()
        sizes = np.where(kept, task.rows["length"].to_numpy(), 0)
        begins = (np.cumsum(sizes) - sizes) / shard.length
        stripes = _STRIPES if all(file.divides for file in task.header.source_files()) else 1
        chosen = kept & ((begins * stripes) % 1 < most_bytes / shard.length)
        task = ShardTask(task.header, task.rows.filter(pa.array(chosen)))
    begin = time.perf_counter()
    built = build_shard(task, folder, text)
    seconds = time.perf_counter() - begin
    shutil.rmtree(folder)
    asked = task.rows["kept"].to_numpy()
    length = int(task.rows["length"].to_numpy()[asked].sum())
    counts = {name: getattr(built, name) for name in ("kept", "tokens", "records", "shards", "bytes")}
    counts |= {"asked": int(asked.sum()), "length": length, "seconds": seconds}
    return _Piece(shard.path, shard.length / max(1, length), counts)


def _splits(dataset: DatasetPlan, shard_bytes: int, rows_per_byte: float) -> int:
    """The number of splits if each file has ``rows_per_byte`` of its size in rows, both in bytes."""
    splitter, last = Splitter(dataset.files, shard_bytes), 0
    sizes = [file.size for file in dataset.files]
    for ordinal, size in enumerate(sizes):
        length = round(size * rows_per_byte)
        rows = _SPLIT_ROWS * -(-length // shard_bytes)
        if rows:
            lengths = np.diff(np.arange(rows + 1) * (length / rows)).astype(np.int64)
            last = int(splitter.assign(np.full(rows, ordinal), lengths, np.arange(rows))[-1])
    return last + 1


def _sum(pieces: Sequence[_Piece], name: str) -> float:
    """The sum over what the pieces stand for."""
    return float(sum(piece.counts[name] * piece.times for piece in pieces))


def _ratio(pieces: Sequence[_Piece], name: str, size: str) -> float:
    """The ratio of two sums; 0 if there is nothing."""
    total = _sum(pieces, size)
    return _sum(pieces, name) / total if total else 0.0


def _spread(pieces: Sequence[_Piece], name: str, size: str) -> tuple[float, float]:
    """The least and the largest ratio among the pieces; zeros if there is none."""
    ratios = [piece.counts[name] / piece.counts[size] for piece in pieces if piece.counts[size]]
    return (min(ratios), max(ratios)) if ratios else (0.0, 0.0)
