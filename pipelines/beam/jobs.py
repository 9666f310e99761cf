"""The Beam jobs: one scans units, one builds shards. Both spread independent pieces of work and shuffle no data.

``scan_piece`` and ``build_piece`` are functions of plain arguments, which another scheduler may call on any machine.
The result of a piece is a file, and a repeated call writes the same file again. A piece that fails for a reason that
the user can mend writes the reason to a file below ``work``, the working directory of the job, because Beam would wrap
it in its own traceback. An error that may pass, such as one of a disk or of the network, is raised to a runner that
tries again, perhaps on another machine; elsewhere it is written down too, and the piece is tried again when the others
are done.
"""

import ctypes
import errno
import functools
import gc
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import create_runner

from gatokit.pipelines import scan_cache
from gatokit.pipelines.beam import crash_isolation
from gatokit.pipelines.beam.local_workers import DIED, ProcessEnvironment, without_noise
from gatokit.pipelines.beam.progress import Watch, note
from gatokit.pipelines.inputs import load_vocabulary
from gatokit.pipelines.planning import ShardTask, unit_from_json
from gatokit.pipelines.shards.writer import build_shard, finished_shard, write_index_again
from gatokit.schemas.errors import ConfigError, DataError, GatokitError, first_line
from gatokit.schemas.manifest import digest
from gatokit.schemas.progress import Progress
from gatokit.storage import files
from gatokit.storage.files import is_remote
from gatokit.tokenizers.text import TextTokenizer

_NAMESPACE = "gatokit"
"""Namespace of the counters, which are sums of ``Counts``. A piece that is done twice counts twice."""
ERRORS = "errors"
"""Folder in ``work`` with the reasons of pieces that failed."""
_ATTEMPTS = "attempts"
"""Folder in ``work`` with a marker for each piece that is being worked on."""
TRIES = 3
"""Times that a piece is tried that fails for a reason that may pass, where the runner tries nothing again."""
_FULL = "the disk is full; make room and run the build again: finished shards stay"
_TOO_LARGE = "no file may become as large: the file system or `ulimit -f` forbids it; choose another disk or limit"
_M_MMAP_THRESHOLD = -3
_POLL_SECONDS = 0.2
_BLOCK = 256
"""Pieces that are read together from the list of a job."""
_MOST_DEATHS = 3
"""Times in a row that worker processes may die without one piece of work getting done."""
_MOST_SAID = 1000
"""Characters of what a runner says of a job that failed."""
_MOST_KINDS = 10
"""Kinds of errors of which one is said each; the log has all errors."""
_VARYING = re.compile(r"\S*[\d/'\"#]\S*")
"""Words in which errors of one kind differ: names and numbers."""

Counts = dict[str, int]
"""What a piece did: ``scanned`` rows; of a build ``episodes`` or ``documents``, those ``kept``, ``tokens``, ``shards``
and their ``bytes``; and, as ``DATASET.REASON``, its rows without records. Empty if it failed."""


Piece = tuple[Any, ...]
"""The arguments of a piece of work, as JSON has them; the first one names it."""


# --- pieces of work ----------------------------------------------------------------------------------------------


def scan_piece(piece: tuple[str, str, int, int], directory: str, work: str, is_retried: bool = False) -> Counts:
    """Scans a unit and writes its rows to a file in ``directory``.

    ``piece`` is the unit's fingerprint, which names that file, and the path, offset and length of its JSON. A job of
    thousands of units would be too large for Dataflow with the units themselves. With ``is_retried`` the caller tries
    again if this raises OSError.
    """
    fingerprint, path, offset, length = piece
    result = scan_cache.table_path(directory, fingerprint)

    def attempt(died: bool) -> tuple[int, Counts]:
        with files.ranges(path) as file:
            unit = unit_from_json(file.read_at(offset, length))
        if files.exists(result):  # a runner may call again for a piece that is finished
            rows = files.read_rows(result)
        elif died:
            crash_isolation.scan(unit, result)
            rows = files.read_rows(result)
        else:
            rows = scan_cache.write(result, unit.keys, unit.ordinals, [unit.scan()])
        return rows.num_rows, {"scanned": rows.num_rows, **_by_reason(unit.dataset, rows)}

    return _do(attempt, work, fingerprint, is_retried)


def build_piece(
    piece: tuple[str, str, str | None], vocabulary: str | None, work: str, is_retried: bool = False
) -> Counts:
    """Builds a shard. ``piece`` is the path of its task, the directory of its dataset and, if its records stand there
    already, the name of an index of them (``write_index_again``). ``vocabulary`` is the path of the model, None if
    nothing is text. ``is_retried`` as in ``scan_piece``.

    Reading, tokenizing and writing stay together, so that no image and no token passes through a scheduler.
    """
    path, directory, earlier = piece

    def attempt(died: bool) -> tuple[int, Counts]:
        task = ShardTask.read(path)
        built = finished_shard(task, directory)
        if built is None and earlier is not None:
            built = write_index_again(task, directory, earlier)
        elif built is None and died:
            built = crash_isolation.build(path, directory, vocabulary)
        elif built is None:
            built = build_shard(task, directory, _vocabulary(vocabulary, task.header.settings.vocabulary_digest))
        counts = {name: getattr(built, name) for name in ("kept", "tokens", "shards", "bytes")}
        reasons = {f"{task.header.dataset}.{reason}": count for reason, count in built.reasons.items()}
        return built.rows, {built.kind: built.rows, **counts, **reasons}

    return _do(attempt, work, path, is_retried)


@functools.lru_cache(maxsize=1)
def _vocabulary(path: str | None, digest: str) -> TextTokenizer | None:
    """The vocabulary, which all pieces of a process share. Raises DataError if it has another digest."""
    text = None if path is None else load_vocabulary(path)
    if text is not None and text.digest != digest:
        raise DataError(f"{path}: the vocabulary changed while shards were built; run the build again")
    return text


def _by_reason(dataset: str, rows: pa.Table) -> Counts:
    """The rows of a scan that have a reason, by dataset and reason."""
    counted = pc.value_counts(rows["reason"].cast(pa.string())).to_pylist()
    return {f"{dataset}.{item['values']}": item["counts"] for item in counted if item["values"] is not None}


def _do(attempt: Callable[[bool], tuple[int, Counts]], work: str, name: str, is_retried: bool) -> Counts:
    """Calls ``attempt`` with True if an earlier attempt at the piece ``name`` died. It returns rows and counts."""
    key = digest(name.encode(), 8)
    try:
        # The collector need not look again and again at what exists already: modules, features and columns.
        gc.freeze()
        with marked(Path(work) / _ATTEMPTS / key) as died:
            rows, counts = attempt(died)
        note(work, name, rows)
        return counts
    except (GatokitError, OSError) as error:
        may_pass = files.may_pass(error)
        if may_pass and is_retried:
            raise
        # A full disk of this machine is full at the next try too.
        said = {"message": sentence(error), "may_pass": may_pass and not _is_full(str(error))}
        files.write_atomically(Path(work) / ERRORS / f"{key}.json", json.dumps(said).encode())
        return {}
    finally:
        gc.unfreeze()


@contextmanager
def marked(marker: Path) -> Iterator[bool]:
    """A marker file exists while the block runs. Yields whether it existed before.

    Then an attempt died, was killed or still runs elsewhere. In each case an isolated process gives the same result.
    """
    died = files.exists(marker)
    files.write_atomically(marker, b"")
    try:
        yield died
    finally:
        files.remove(marker)


def sentence(error: Exception) -> str:
    """The message of an error for the user who can mend its reason."""
    message = str(error) if isinstance(error, GatokitError) else f"{type(error).__name__}: {error}"
    if os.strerror(errno.EFBIG) in message:
        return f"{_TOO_LARGE} ({message})"
    return f"{_FULL} ({message})" if _is_full(message) else message


def _is_full(message: str) -> bool:
    """Whether a message says that a disk is full."""
    return any(os.strerror(number) in message for number in (errno.ENOSPC, errno.EDQUOT))


# --- jobs --------------------------------------------------------------------------------------------------------


class JobFailedError(GatokitError):
    """A runner on other machines gave up."""

    exit_status = 1


class WorkerDiedError(Exception):
    """A local worker process ended before its work did."""


class PiecesFailedError(DataError):
    """Pieces of work failed for reasons that may pass; the others are done."""


class _Do(beam.DoFn):
    """Calls a function with each piece and counts what it did."""

    def __init__(self, call: Callable[[Any], Counts]) -> None:
        self._call = call

    def setup(self) -> None:
        """From now on the process returns large blocks of memory to the system when they are freed.

        glibc would keep freed blocks of up to 32 MiB for every thread. With another C library nothing happens.
        """
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)

    def process(self, piece: Any) -> None:
        """Does one piece."""
        for name, count in self._call(piece).items():
            Metrics.counter(_NAMESPACE, name).inc(count)


@dataclass(frozen=True)
class Execution:
    """Where a job runs: Beam's options and, for the local runner, its number of processes (None: a runner of
    Beam's own choice)."""

    options: PipelineOptions
    local_workers: int | None

    @property
    def is_elsewhere(self) -> bool:
        """Whether the workers are machines that share no disk with this one."""
        return "dataflow" in str(self.options.view_as(StandardOptions).runner).lower()


def execution(arguments: Sequence[str], workers: int) -> Execution:
    """From command-line arguments of Beam; without ``--runner`` the local runner with ``workers`` processes.

    ConfigError names an argument or a runner that Beam does not know.
    """
    parser = _BeamArgumentParser(allow_abbrev=False)
    for type_ in PipelineOptions.__subclasses__():
        type_._add_argparse_args(parser)
    unknown = parser.parse_known_args(list(arguments))[1]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}: neither gatokit nor Apache Beam has it; see --help")
    options = PipelineOptions(list(arguments))
    # Workers import everything from the installed package.
    options.view_as(SetupOptions).save_main_session = False
    # What is read and written on gs:// before and after the pipeline takes its project and credentials from here.
    FileSystems.set_options(options)
    runner = options.view_as(StandardOptions).runner
    if runner is not None:
        try:
            create_runner(runner)
        except (ValueError, ImportError, AttributeError) as error:
            why = first_line(error)[:300]
            raise ConfigError(f"--runner {runner}: is no runner that is installed here: {why}; see --help") from None
        return Execution(options, None)
    direct = options.view_as(DirectOptions)
    workers = max(workers, direct.direct_num_workers or 1)
    direct.direct_num_workers = workers
    # The processes are named by the runner's environment, where their output can be kept from the terminal.
    direct.direct_running_mode = "in_memory"
    return Execution(options, workers)


def run_pieces(
    stage: str,
    pieces: Mapping[Path, Piece],
    sizes: Mapping[Path, int],
    finished: Callable[[], set[Path]],
    call: Callable[[Any], Counts],
    where: Execution,
    work: Path,
    log: Callable[..., None],
    progress: Progress | None,
) -> None:
    """Calls a function with each piece whose result is not ``finished``, and again after a worker process died.

    The second time an isolated process does what the dead one worked on. ``pieces`` has the result of each, and
    ``sizes`` says of how many bytes of the source it is. Those that failed for a reason that may pass are tried
    ``TRIES`` times. Raises PiecesFailedError if one fails each time, DataError with the reasons that the user has to
    mend.
    """
    deaths = tries = 0
    watch = Watch(stage, {piece[0]: result for result, piece in pieces.items()}, sizes, work, progress)

    def waiting() -> list[Piece]:
        done = finished()
        watch.finished(done)
        return [piece for result, piece in pieces.items() if result not in done]

    left = waiting()
    while left:
        files.remove_tree(work / ERRORS)
        try:
            log("metrics", **run(left, call, stage, where, watch.look, work, log))
            watch.finished(set(pieces))
            return
        except PiecesFailedError as error:
            tries, left = tries + 1, waiting()
            if tries == TRIES:
                way_out = "mend that and run the command again to go on"
                raise PiecesFailedError(f"{error} (tried {TRIES} times)", way_out=way_out) from None
            log("tried again", pieces=len(left))
        except WorkerDiedError as error:
            log("worker died", message=str(error), pieces=len(left))
            before, left = len(left), waiting()
            deaths = deaths + 1 if len(left) == before else 1
            if deaths == _MOST_DEATHS:
                raise DataError(
                    f"{error}. {deaths} times in a row nothing got done: take fewer --workers if memory is short, and "
                    "run the command again to go on"
                ) from None


def run(
    pieces: Sequence[Piece],
    call: Callable[[Any], Counts],
    stage: str,
    where: Execution,
    poll: Callable[[], None],
    work: Path,
    log: Callable[..., None],
) -> Counts:
    """Calls a function with each of ``pieces`` on the workers and waits, calling ``poll`` a few times a second.

    Returns what the counters say. Raises DataError with the reasons of pieces that do not pass, or else
    WorkerDiedError, JobFailedError, what the pipeline itself raised, or PiecesFailedError.
    """
    path, blocks = _listed(pieces, stage, work)
    failure: list[BaseException] = []
    counters: Counts = {}
    has_processes = (where.local_workers or 1) > 1
    runner = FnApiRunner() if where.local_workers else None
    if has_processes:
        # Nobody else can foresee this name and put a link there.
        folder = Path(tempfile.mkdtemp(prefix="gatokit-workers-")) if is_remote(work) else work
        runner = FnApiRunner(default_environment=ProcessEnvironment(str(folder / "workers.log")))

    def job() -> None:
        try:
            pipeline = beam.Pipeline(runner=runner, options=where.options)
            with pipeline:
                listed = pipeline | "Pieces" >> beam.Create(blocks, reshuffle=False)
                spread = listed | "Read" >> beam.FlatMap(_read_block, str(path)) | "Spread" >> beam.Reshuffle()
                _ = spread | stage.capitalize() >> beam.ParDo(_Do(call))
            found = pipeline.result.metrics().query(MetricsFilter().with_namespace(_NAMESPACE))["counters"]
            counters.update((counter.key.metric.name, int(counter.result)) for counter in found)
        except BaseException as error:
            failure.append(error)

    # Beam's run blocks until the end and local metrics come only then, so finished files are the progress.
    thread = threading.Thread(target=job, name="beam", daemon=True)
    with without_noise() if has_processes else nullcontext():
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            poll()
    errors = _errors(work, log)
    if failure:
        said = str(failure[0])
        if DIED in said:
            raise WorkerDiedError(said[said.index(DIED) :].splitlines()[0])
        if where.local_workers is None:
            full = "A worker's disk is full: give it more with --disk_size_gb. " if _is_full(said) else ""
            raise JobFailedError(
                f"{full}{' '.join(said.split())[:_MOST_SAID]} Run the same command again to go on"
            ) from failure[0]
        if _is_full(said):
            raise DataError(_FULL)
        raise failure[0]
    if errors:
        raise PiecesFailedError(_grouped(errors))
    if has_processes and is_remote(work):
        shutil.rmtree(folder, ignore_errors=True)
    return counters


def _listed(pieces: Sequence[Piece], stage: str, work: Path) -> tuple[Path, list[tuple[int, int]]]:
    """Writes pieces to a file, and returns the offset and length in it of each block of them.

    The graph of a job with all pieces in it may be larger than Dataflow takes.
    """
    lines = [json.dumps(piece).encode() + b"\n" for piece in pieces]
    sizes = [sum(map(len, lines[begin : begin + _BLOCK])) for begin in range(0, len(lines), _BLOCK)]
    data = b"".join(lines)
    path = work / f"{stage}-{digest(data, 8)}.jsonl"
    files.write_atomically(path, data)
    return path, list(zip(accumulate(sizes, initial=0), sizes, strict=False))


def _read_block(block: tuple[int, int], path: str) -> Iterator[Piece]:
    with files.ranges(path) as file:
        yield from (tuple(json.loads(line)) for line in file.read_at(*block).splitlines())


def _errors(work: Path, log: Callable[..., None]) -> list[str]:
    """Logs all errors of pieces. Returns their messages if all may pass; raises DataError with those that do not."""
    paths = [work / ERRORS / name for name in files.names(work / ERRORS) if name.endswith(".json")]
    errors = [json.loads(data) for data in files.prefetch(paths, files.read_bytes, len)]
    for error in errors:
        log("piece failed", **error)
    lasting = [error["message"] for error in errors if not error["may_pass"]]
    if lasting:
        raise DataError(_grouped(lasting))
    return [error["message"] for error in errors]


def _grouped(messages: Sequence[str]) -> str:
    """One sentence of many errors: the first of each kind, and how many there are of it."""
    if len(messages) == 1:
        return messages[0]
    kinds: dict[str, list[str]] = {}
    for message in messages:
        kinds.setdefault(_VARYING.sub("", message), []).append(message)
    said = [
        of_kind[0] if len(of_kind) == 1 else f"{of_kind[0]} (and {len(of_kind) - 1} more of this kind)"
        for of_kind in sorted(kinds.values(), key=len, reverse=True)
    ]
    more = f" | and {len(said) - _MOST_KINDS} more kinds of errors" if len(said) > _MOST_KINDS else ""
    return f"{len(messages)} pieces of work failed: {' | '.join(said[:_MOST_KINDS])}{more}"
