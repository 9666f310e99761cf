"""What a build will give and take, from the files that are there and a measured sample of them.

The sample goes the way of a build: some of the source's files are scanned, judged and planned, and some of the orders
built in a temporary directory. What was not looked at is extrapolated by bytes. A source that is small enough is
looked at as a whole, and then every number is exact but the hours.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import WorkerOptions

from gatokit.pipelines.beam import jobs
from gatokit.pipelines.documents.image_folder import ImageFolderFile
from gatokit.pipelines.documents.reader import DocumentFile
from gatokit.pipelines.documents.text import LinesFile
from gatokit.pipelines.documents.webdataset import WebDatasetFile
from gatokit.pipelines.episodes.plan import EpisodesPlan
from gatokit.pipelines.episodes.reader import EpisodeFile
from gatokit.pipelines.inputs import read_inputs, read_vocabulary
from gatokit.pipelines.planning import (
    DatasetPlan,
    Plan,
    PlannedShard,
    ScanUnit,
    ShardTask,
    Splitter,
    plan_datasets,
    plan_shards,
    scan_units,
    task_rows,
    undivided,
)
from gatokit.pipelines.shards.index import INDEX_SUFFIX, read_parts
from gatokit.pipelines.shards.writer import MOST_RECORDS, build_shard
from gatokit.schemas.config import BuildConfig, EpisodesConfig, Keep
from gatokit.schemas.errors import DataError
from gatokit.storage.files import write_rows
from gatokit.tokenizers.text import TextTokenizer

PIECE_BYTES = 32 << 20
"""What is scanned together, and of a larger file, unless there is time for all of it."""
_LEAST_ORDERS = 4
"""So many orders are looked at before any takes all of the time."""
_FIRST_BYTES = 1 << 20
"""So much of an order is built before the clock runs, to know how much there is time for."""
_FIRST_SCAN_RATE = 50e6
"""Bytes a second that a scan is taken to make before it was measured."""
_PLANNING_SECONDS = 15e-6
"""That an episode or document takes between the passes and behind them, in one process: benchmarks/scale.py."""
_STRIPES = 16
"""Pieces of an order that is built in part."""
_SPLIT_ROWS = 64
"""Rows that stand for those of a split where its source was not scanned."""


@dataclass(frozen=True)
class DatasetEstimate:
    """What a build of one dataset will give.

    Counts that ``exact`` does not name are estimates. ``spread`` gives the least and the largest value among the pieces
    of the sample for: the share of episodes that is kept, tokens a stored byte, and bytes a second of both passes.
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
    """Of the source's bytes."""
    built_share: float
    """Of the bytes that are to be built."""
    units: int
    """Pieces of work of the scan."""
    scan_seconds: float
    build_seconds: float
    """On one worker."""


@dataclass(frozen=True)
class Estimate:
    """The estimates of a config's datasets, and the seconds that ``workers`` take, without the time they need to
    start."""

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
    progress: Callable[[str, int, int], None] | None = None,
) -> Estimate:
    """What ``run.build`` with the same arguments would give, from a sample that takes about ``sample_seconds``.

    Errors are those of a build: all that it finds before it scans, and of what is wrong with the data what the sample
    shows of a dataset that it holds whole.
    """
    begin = time.monotonic()
    workers = _workers(jobs.execution(beam_arguments, workers))
    config, base = read_inputs(config_path, only)
    text = read_vocabulary(config, base, config_path)
    plans = plan_datasets(config, base)
    end = max(begin + sample_seconds, time.monotonic() + sample_seconds / 2)
    found, notices = [], []
    for number, plan in enumerate(plans):
        if progress is not None:
            progress("sample", number, len(plans))
        seconds = max(0.0, end - time.monotonic()) / (len(plans) - number)
        with tempfile.TemporaryDirectory(prefix="gatokit-plan-") as folder:
            dataset, said = _estimate(plan, config, text, seconds, Path(folder))
        found.append(dataset)
        notices += said
    if progress is not None:
        progress("sample", len(plans), len(plans))
    seconds = sum(
        item.scan_seconds / max(1, min(workers, item.units))
        + item.build_seconds / max(1, min(workers, item.splits))
        + item.episodes * _PLANNING_SECONDS
        for item in found
    )
    return Estimate(tuple(found), workers, seconds, tuple(notices))


def _workers(where: jobs.Execution) -> int:
    """Processes that work at once: the local ones, or as many as a service may start."""
    if where.local_workers is not None:
        return where.local_workers
    asked = where.options.view_as(WorkerOptions)
    return int(asked.max_num_workers or asked.num_workers or 1)


# --- one dataset -------------------------------------------------------------------------------------------


@dataclass
class _Piece:
    """Files that were scanned: the source bytes that the rows stand for, and what was found in them."""

    ordinal: int
    path: Path
    size: float
    stands_for: float
    """How many times as many bytes all of it has."""
    seconds: float
    whole: bool
    episodes: int = 0
    kept: int = 0
    length: int = 0
    kept_length: int = 0


@dataclass
class _Sample:
    """A scan's pieces and what is known of single files: stored bytes and episodes of those that were read whole."""

    pieces: list[_Piece] = field(default_factory=list)
    lengths: dict[int, int] = field(default_factory=dict)
    whole: bool = False


@dataclass(frozen=True)
class _Built:
    """An order, or a part of it: what was asked for and what came of it."""

    stands_for: float
    """How many times as many stored bytes the whole order keeps."""
    length: int
    asked: int
    kept: int
    tokens: int
    records: int
    size: int
    parts: int
    seconds: float
    whole: bool


def _estimate(
    dataset: DatasetPlan, config: BuildConfig, text: TextTokenizer, seconds: float, folder: Path
) -> tuple[DatasetEstimate, list[str]]:
    begin = time.monotonic()
    sample = _scan(dataset, config.max_episode_bytes, begin + seconds / 2, folder)
    plan, notices = _plan(dataset, sample, config, text.digest, folder / "orders")
    _judge(sample, plan)
    built = _build(plan, text, max(begin + seconds, time.monotonic() + seconds / 4), folder / "built")
    return _extrapolate(dataset, config, sample, plan, built), [*plan.result.notices, *notices]


def _scan(dataset: DatasetPlan, max_bytes: int, end: float, folder: Path) -> _Sample:
    """Scans pieces that lie evenly in the source until the time is over, at least one."""
    units, files = scan_units(dataset, max_bytes, PIECE_BYTES), dataset.files
    ordinals = _ordinals(units, files)
    sizes = [sum(files[ordinal].size for ordinal in members) for members in ordinals]
    found: dict[int, _Piece] = {}
    rate, left = _FIRST_SCAN_RATE, sum(sizes)
    spent = done = 0.0
    waiting = spread_order(len(units))
    while waiting:
        number = waiting.pop(0)
        before = time.monotonic()
        if found and before >= end:
            break
        there_is_time = left <= rate * (end - before)
        [first, *others] = ordinals[number]
        cut = not there_is_time and not others and sizes[number] > PIECE_BYTES and _divides(files[first])
        rows = units[number].scan(PIECE_BYTES if cut else None)
        path = folder / f"{number}.arrow"
        write_rows(path, rows)
        share = _share(files[first], rows) if cut else 1.0
        passed = time.monotonic() - before
        size = share * sizes[number]
        found[number] = _Piece(number, path, size, 1 / max(share, 1e-9), passed, share >= 1.0)
        spent, done, left = spent + passed, done + size, left - (sizes[number] if share >= 1.0 else 0)
        rate = max(1.0, done / max(spent, 1e-3))
        if not waiting:
            # What was cut is read to its end where the time turned out to suffice.
            again = [piece.ordinal for piece in found.values() if not piece.whole]
            if again and left <= rate * (end - time.monotonic()):
                waiting = again
    pieces = [found[number] for number in sorted(found)]
    sample = _Sample(pieces, whole=len(found) == len(units) and all(piece.whole for piece in pieces))
    for piece in pieces:
        if piece.whole:
            sample.lengths |= dict.fromkeys(ordinals[piece.ordinal], 0)
    return sample


def spread_order(count: int) -> list[int]:
    """The numbers below ``count``, so that each beginning of the list lies evenly among them (van der Corput)."""
    bits = max(0, (count - 1).bit_length())
    mirrored = (int(f"{number:0{bits}b}"[::-1], 2) if bits else 0 for number in range(1 << bits))
    return [number for number in mirrored if number < count]


def _ordinals(units: Sequence[ScanUnit], files: Sequence[EpisodeFile | DocumentFile]) -> list[range]:
    """The files of each unit, which holds the next of them."""
    ordinals, begin = [], 0
    for unit in units:
        end = begin + len(unit.files)
        ordinals.append(range(begin, end))
        begin = end
    assert begin == len(files)
    return ordinals


def _stated(file: EpisodeFile | DocumentFile) -> int | None:
    """Episodes or Examples that the source says a file holds."""
    stated: int | None = getattr(file, "episodes", None) or getattr(file, "examples", None)
    return stated


def _divides(file: EpisodeFile | DocumentFile) -> bool:
    """Whether a file can be read from any place, and the share of it that was read be told."""
    if isinstance(file, DocumentFile) and not file.divides:
        return False
    by_offset = isinstance(file, LinesFile | WebDatasetFile)
    return by_offset or isinstance(file, ImageFolderFile) or _stated(file) is not None


def _share(file: EpisodeFile | DocumentFile, rows: pa.Table) -> float:
    """The share of a file that its first rows are."""
    if not rows.num_rows:
        return 1.0
    position, offset, length = (rows[name][-1].as_py() for name in ("position", "offset", "length"))
    if stated := _stated(file):
        return min(1.0, (position + 1) / stated)
    if isinstance(file, ImageFolderFile):
        return min(1.0, (position + 1) / sum(1 for _ in file.captions()))
    return min(1.0, (offset + length) / max(1, file.size))


def _plan(
    dataset: DatasetPlan, sample: _Sample, config: BuildConfig, vocabulary: str, directory: Path
) -> tuple[Plan, list[str]]:
    """The orders of the sample. Where a part of a source would fail, all that is sound in it stays."""
    paths = [piece.path for piece in sample.pieces]
    notices = []
    if isinstance(dataset, EpisodesPlan) and not sample.whole:
        dataset, keep = replace(dataset, is_partial=True), dataset.config.keep
        if isinstance(keep.best, int) or isinstance(keep.sample, int):
            notices.append(f"{dataset.config.name}: keeps a number of episodes a task, of which a sample says too much")
    try:
        return plan_shards(dataset, paths, config, vocabulary, None, directory), notices
    except DataError as error:
        if sample.whole:
            raise
        said = f"in the sample, and perhaps not in the whole: {error}"
    if isinstance(dataset.config, EpisodesConfig):
        kept = dataset.config.model_copy(update={"keep": Keep(all=True)})
        dataset = replace(dataset, config=kept)
        said += "; the estimate keeps every sound episode"
    easy = config.model_copy(update={"max_bad_fraction": 1.0})
    return plan_shards(dataset, paths, easy, vocabulary, None, directory), [*notices, said]


def _judge(sample: _Sample, plan: Plan) -> None:
    """Counts what was found and kept in each piece, and the stored bytes of whole files."""
    for piece, rows in zip(sample.pieces, task_rows(plan.dataset, plan.result), strict=True):
        length, kept = rows["length"].to_numpy(), rows["kept"].to_numpy()
        piece.episodes, piece.kept = int(rows["lost"].to_numpy().sum()), int(kept.sum())
        piece.length, piece.kept_length = int(length.sum()), int(length[kept].sum())
        if piece.whole and rows.num_rows:
            files, at = np.unique(rows["file"].to_numpy(), return_inverse=True)
            sums = np.zeros(len(files), np.int64)
            np.add.at(sums, at, length)
            sample.lengths |= zip(files.tolist(), sums.tolist(), strict=True)


def _build(plan: Plan, text: TextTokenizer, end: float, folder: Path) -> list[_Built]:
    """Builds orders that lie evenly in the plan, or parts of them, until the time is over; at least one."""
    found: list[_Built] = []
    numbers = [number for number in spread_order(len(plan.shards)) if plan.shards[number].kept]
    left, rate = sum(item.length for item in plan.shards), 0.0
    for done, number in enumerate(numbers):
        planned = plan.shards[number]
        order = ShardTask.read(planned.path)
        if not found:
            for _ in range(2):  # the first time pays for what is loaded and cached
                first = _build_rows(order, planned, _FIRST_BYTES, text, folder)
            rate = first.length / first.seconds
        seconds = end - time.monotonic()
        if found and seconds <= 0:
            break
        most = left if left <= rate * seconds else rate * seconds / min(_LEAST_ORDERS, len(numbers) - done)
        found.append(_build_rows(order, planned, max(int(most), _FIRST_BYTES), text, folder))
        left -= planned.length
    return found


def _build_rows(order: ShardTask, planned: PlannedShard, most_bytes: int, text: TextTokenizer, folder: Path) -> _Built:
    """Builds those rows of an order that are kept, or about ``most_bytes`` of them: from its beginning, or in stripes
    that lie evenly where its files can be read anywhere."""
    rows, whole = order.rows, planned.length <= most_bytes
    if not whole:
        kept = rows["kept"].to_numpy()
        sizes = np.where(kept, rows["length"].to_numpy(), 0)
        before = (np.cumsum(sizes) - sizes) / planned.length
        stripes = _STRIPES if all(map(_divides, order.header.source_files())) else 1
        rows = rows.filter(pa.array(kept & ((before * stripes) % 1 < most_bytes / planned.length)))
    part = ShardTask(order.header, rows)
    begin_seconds = time.perf_counter()
    build_shard(part, folder, text)
    seconds = time.perf_counter() - begin_seconds
    with pq.ParquetFile(folder / (part.stem + INDEX_SUFFIX)) as file:
        index = file.read(["kept", "tokens"])
        parts = read_parts(file.schema_arrow.metadata)
    shutil.rmtree(folder)
    asked = rows["kept"].to_numpy()
    length = int(rows["length"].to_numpy()[asked].sum())
    return _Built(
        stands_for=planned.length / max(1, length),
        length=length,
        asked=int(np.count_nonzero(asked)),
        kept=int(np.count_nonzero(index["kept"].to_numpy())),
        tokens=int(index["tokens"].to_numpy().sum()),
        records=sum(item.records for item in parts),
        size=sum(item.size for item in parts),
        parts=len(parts),
        seconds=seconds,
        whole=whole,
    )


# --- from the sample to all of it ----------------------------------------------------------------------------


def _extrapolate(
    dataset: DatasetPlan, config: BuildConfig, sample: _Sample, plan: Plan, built: list[_Built]
) -> DatasetEstimate:
    files, pieces = dataset.files, sample.pieces
    source_bytes = sum(file.size for file in files)
    looked_at = sum(piece.size * piece.stands_for for piece in pieces)
    up = 1.0 if sample.whole else source_bytes / max(1.0, looked_at)
    episodes, episodes_are_exact = _episodes(dataset, sample, up)
    length, kept_length = up * _sum(pieces, "length"), up * _sum(pieces, "kept_length")
    planned = up * _sum(pieces, "kept") if sample.whole else episodes * _ratio(pieces, "kept", "episodes")

    remains = _ratio(built, "kept", "asked")
    is_complete = sample.whole and sum(item.kept > 0 for item in plan.shards) == len(built)
    is_complete = is_complete and all(item.whole for item in built)
    records = kept_length * _ratio(built, "records", "length")
    if is_complete:
        splits, shards = len(plan.shards), sum(item.parts for item in built)
    elif sample.whole:
        splits = len(plan.shards)
        shards = sum(_parts(records * item.length / max(1.0, kept_length)) for item in plan.shards if item.kept)
    else:
        sizes = _splits(dataset, config, sample, length / max(1, source_bytes))
        splits = len(sizes)
        shards = _shards(sizes / sizes.sum(), episodes, planned * remains, records)
    scan_seconds = up * _sum(pieces, "seconds")
    build_seconds = kept_length * _ratio(built, "seconds", "length")
    exact = ["files", "source_bytes"]
    exact += ["splits"] if sample.whole else []
    exact += ["episodes"] if episodes_are_exact else []
    exact += ["kept", "shards", "tokens", "bytes"] if is_complete else []
    return DatasetEstimate(
        name=dataset.config.name,
        kind=dataset.config.kind,
        files=len(files),
        source_bytes=source_bytes,
        splits=splits,
        episodes=episodes,
        kept=round(planned * remains),
        shards=shards,
        tokens=round(kept_length * _ratio(built, "tokens", "length")),
        bytes=round(kept_length * _ratio(built, "size", "length")),
        worker_hours=(scan_seconds + build_seconds) / 3600,
        exact=tuple(exact),
        spread={
            "kept_share": _spread(pieces, "kept", "episodes"),
            "tokens_per_byte": _spread(built, "tokens", "length"),
            "scan_bytes_per_second": _spread(pieces, "size", "seconds"),
            "build_bytes_per_second": _spread(built, "length", "seconds"),
        },
        scanned_share=1.0 if sample.whole else sum(piece.size for piece in pieces) / max(1, source_bytes),
        built_share=1.0 if is_complete else sum(item.length for item in built) / max(1.0, kept_length),
        units=len(scan_units(dataset, config.max_episode_bytes)),
        scan_seconds=scan_seconds,
        build_seconds=build_seconds,
    )


def _episodes(dataset: DatasetPlan, sample: _Sample, up: float) -> tuple[int, bool]:
    """Episodes or documents of the source, and whether that is their exact number."""
    if isinstance(dataset.config, EpisodesConfig) and not sample.whole:
        stated = [_stated(file) for file in dataset.files]
        if None not in stated:
            return sum(filter(None, stated)), True
    return round(up * _sum(sample.pieces, "episodes")), sample.whole


def _splits(dataset: DatasetPlan, config: BuildConfig, sample: _Sample, bytes_a_byte: float) -> np.ndarray:
    """The stored bytes of each split; a file that was not scanned has ``bytes_a_byte`` of its size."""
    splitter = Splitter(config.shard_bytes)
    files: Sequence[EpisodeFile | DocumentFile] = dataset.files
    names = [file.name for file in files]
    whole = undivided(dataset)
    sizes = np.zeros(1024)
    last = -1
    for ordinal, file in enumerate(files):
        length = sample.lengths.get(ordinal, round(file.size * bytes_a_byte))
        if not length:
            continue
        count = _SPLIT_ROWS * -(-length // config.shard_bytes)
        rows = np.diff(np.arange(count + 1) * (length / count)).astype(np.int64)
        split = splitter.assign(names, np.full(len(rows), ordinal), rows, whole)
        last = int(split[-1])
        while last >= len(sizes):
            sizes = np.concatenate([sizes, np.zeros(len(sizes))])
        np.add.at(sizes, split, rows)
    return sizes[: max(1, last + 1)]


def _shards(shares: np.ndarray, episodes: int, kept: float, records: float) -> int:
    """The expected number of shards of splits that hold these shares of everything."""
    dropped = min(1.0, max(0.0, 1 - kept / max(1, episodes)))
    filled = 1 - dropped ** np.maximum(1, shares * episodes)
    return round(float((filled * np.maximum(1, np.ceil(shares * records / MOST_RECORDS))).sum()))


def _parts(records: float) -> int:
    return max(1, math.ceil(records / MOST_RECORDS))


_Items = Sequence[_Piece] | Sequence[_Built]


def _sum(items: _Items, name: str) -> float:
    """The sum over what the items stand for."""
    return float(sum(getattr(item, name) * item.stands_for for item in items))


def _ratio(items: _Items, name: str, size: str) -> float:
    """The ratio of two sums; 0 where there is nothing."""
    whole = _sum(items, size)
    return _sum(items, name) / whole if whole else 0.0


def _spread(items: _Items, name: str, size: str) -> tuple[float, float]:
    """The least and the largest ratio; zeros where there is none."""
    ratios = [getattr(item, name) / getattr(item, size) for item in items if getattr(item, size)]
    return (min(ratios), max(ratios)) if ratios else (0.0, 0.0)
