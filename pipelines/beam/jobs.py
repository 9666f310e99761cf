"""The Beam jobs: one scans units, one builds orders. Both spread independent pieces of work and shuffle no data.

A piece's result is a file; running a piece twice writes the same file twice. A piece that fails for a reason
that its user can mend leaves that reason as a file, for Beam would wrap it in its own traceback.
"""

import ctypes
import errno
import gc
import json
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
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
from apache_beam.runners.runner import PipelineRunner

from gatokit.pipelines.beam import crash_isolation as isolated
from gatokit.pipelines.beam.local_workers import DIED, ProcessEnvironment, without_noise
from gatokit.pipelines.config_loading import load_vocabulary
from gatokit.pipelines.planning.kinds import unit_from_json
from gatokit.pipelines.planning.shard_task import ShardTask
from gatokit.pipelines.shards.build import Built, build_shard
from gatokit.schemas.digests import digest
from gatokit.schemas.errors import ConfigError, DataError, GatokitError
from gatokit.storage import files
from gatokit.storage.files import is_remote, write_atomically, write_rows
from gatokit.tokenizers.text import TextTokenizer

ERRORS = "errors"
"""Folder below a job's working directory where failed pieces leave their reasons."""
ATTEMPTS = "attempts"
"""Folder below it where pieces that are worked on have their notes."""
NAMESPACE = "gatokit"
"""Of the counters: ``scanned`` rows of a scan; of a build ``episodes`` and ``documents`` with those ``kept``,
``tokens``, ``shards`` and their ``bytes``. A piece that is done twice counts twice; the files tell what is there."""
_POLL_SECONDS = 0.2
_M_MMAP_THRESHOLD = -3
_MOST_SAID = 1000
"""Characters of what a runner says of a job that failed."""
_FULL = "the disk is full; make room and run the build again: finished shards stay"


class JobFailedError(GatokitError):
    """A runner on other machines gave up."""

    exit_status = 1


class WorkerDiedError(Exception):
    """A local worker process ended before its work did."""


class ScanFiles(beam.PTransform):
    """Scans units into files below ``directory``; ``work`` is the job's working directory.

    A unit is given as where it stands, as JSON, in a file: its fingerprint, which names its result, the file's path,
    offset and length. A Dataflow job of thousands of units would be too large with the units themselves.
    """

    def __init__(self, directory: str, work: str) -> None:
        super().__init__()
        self._fn = _ScanFn(directory, work)

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """One unit a piece of work."""
        return units | "Spread units" >> beam.Reshuffle() | "Scan unit" >> beam.ParDo(self._fn)


class WriteShards(beam.PTransform):
    """Builds orders, given as (path of the order, directory of its dataset), with the model at ``vocabulary``; ``work``
    is the job's working directory."""

    def __init__(self, vocabulary: str, work: str) -> None:
        super().__init__()
        self._fn = _BuildFn(vocabulary, work)

    def expand(self, orders: beam.PCollection) -> beam.PCollection:
        """One order a piece of work: reading, tokenizing and writing stay together, so that no image or token
        passes through the runner."""
        return orders | "Spread orders" >> beam.Reshuffle() | "Build shard" >> beam.ParDo(self._fn)


class _ScanFn(beam.DoFn):
    def __init__(self, directory: str, work: str) -> None:
        self._directory, self._work = directory, work

    def setup(self) -> None:
        """Once a worker."""
        return_large_blocks()

    def process(self, element: tuple[str, str, int, int]) -> list[str]:
        """Scans a unit, unless that fails for a reason that its user can mend."""
        fingerprint, path, offset, length = element
        result = Path(self._directory) / f"{fingerprint}.arrow"
        with files.ranges(path) as file:
            unit = unit_from_json(file.read_at(offset, length))

        def work(died: bool) -> None:
            if died:
                rows = isolated.scan(unit, result)
            else:
                table = unit.scan()
                write_rows(result, table)
                rows = table.num_rows
            _count(scanned=rows)

        _attempt(work, self._work, fingerprint)
        return [fingerprint]


class _BuildFn(beam.DoFn):
    def __init__(self, vocabulary: str, work: str) -> None:
        self._vocabulary, self._work = vocabulary, work
        self._text: TextTokenizer | None = None

    def setup(self) -> None:
        """Loads the model here, once a worker, so that it does not travel with every bundle."""
        self._text = load_vocabulary(self._vocabulary)
        return_large_blocks()

    def process(self, element: tuple[str, str]) -> list[str]:
        """Builds an order, unless that fails for a reason that its user can mend."""
        path, directory = element
        assert self._text is not None
        text = self._text

        def work(died: bool) -> None:
            if died:
                built = isolated.build(path, directory, self._vocabulary)
            else:
                built = build_shard(ShardTask.read(path), directory, text)
            _count_built(built)

        _attempt(work, self._work, path)
        return [path]


def return_large_blocks() -> None:
    """From now on this process returns large blocks of memory to the system when they are freed.

    glibc would keep freed blocks of up to 32 MiB for every thread. With another C library nothing happens.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _count(**counts: int) -> None:
    for name, count in counts.items():
        Metrics.counter(NAMESPACE, name).inc(count)


def _count_built(built: Built) -> None:
    _count(**{built.what: built.rows}, kept=built.kept, tokens=built.tokens, shards=built.shards, bytes=built.bytes)


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

    def runner(self, log: Path) -> PipelineRunner | None:
        """The runner to hand to Beam; None takes the one that the options name.

        Local worker processes write what Beam has to say to ``log``.
        """
        if self.local_workers is None:
            return None
        if self.local_workers == 1:
            return FnApiRunner()
        return FnApiRunner(default_environment=ProcessEnvironment(str(log)))


def execution(arguments: Sequence[str], workers: int) -> Execution:
    """From command-line arguments of Beam; without ``--runner`` the local runner with ``workers`` processes.

    ConfigError names an argument that Beam does not know.
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
    if options.view_as(StandardOptions).runner is not None:
        return Execution(options, None)
    direct = options.view_as(DirectOptions)
    workers = max(workers, direct.direct_num_workers or 1)
    direct.direct_num_workers = workers
    # The processes are named by the runner's environment, where their output can be kept from the terminal.
    direct.direct_running_mode = "in_memory"
    return Execution(options, workers)


def run(
    pieces: Sequence[object],
    transform: beam.PTransform,
    where: Execution,
    poll: Callable[[], None],
    work: Path,
) -> dict[str, int]:
    """Runs ``transform`` over ``pieces`` and waits, calling ``poll`` a few times a second; what its counters say.

    Raises the first reason that a piece left below ``work``, WorkerDiedError, or what the pipeline itself raised.
    """
    failure: list[BaseException] = []
    counters: dict[str, int] = {}
    pieces = list(pieces)
    log = (Path(tempfile.gettempdir()) / "gatokit" if is_remote(work) else work) / "workers.log"

    def job() -> None:
        try:
            pipeline = beam.Pipeline(runner=where.runner(log), options=where.options)
            with pipeline:
                _ = pipeline | "Pieces" >> beam.Create(pieces, reshuffle=False) | transform
            counters.update(_counters(pipeline.result))
        except BaseException as error:
            failure.append(error)

    # Beam's run blocks until the end and local metrics come only then, so finished files are the progress.
    thread = threading.Thread(target=job, name="beam", daemon=True)
    with without_noise():
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            poll()
    for name in files.names(work / ERRORS):
        if name.endswith(".json"):
            raise DataError(json.loads(files.read_bytes(work / ERRORS / name))["message"])
    if failure:
        said = str(failure[0])
        if _is_full(said):
            raise DataError(_FULL)
        if DIED in said:
            raise WorkerDiedError(said[said.index(DIED) :].splitlines()[0])
        if where.is_elsewhere:
            raise JobFailedError(
                f"{' '.join(said.split())[:_MOST_SAID]} Run the same command again to go on"
            ) from failure[0]
        raise failure[0]
    return counters


def _counters(result: Any) -> dict[str, int]:
    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    return {counter.key.metric.name: int(counter.result) for counter in found}


def sentence(error: Exception) -> str:
    """What an error says to the one who can mend its reason."""
    message = str(error) if isinstance(error, GatokitError) else f"{type(error).__name__}: {error}"
    return f"{_FULL} ({message})" if _is_full(message) else message


def _is_full(message: str) -> bool:
    return any(os.strerror(number) in message for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def _attempt(work: Callable[[bool], None], directory: str, name: str) -> None:
    """Does a piece of work; where it fails for a reason that its user can mend, leaves that reason. ``work`` is told
    whether an earlier attempt died."""
    key = digest(name.encode(), 8)
    try:
        # The collector need not look again and again through what is there already: modules, features and columns.
        gc.freeze()
        with isolated.attempt(Path(directory) / ATTEMPTS / key) as died:
            work(died)
    except (GatokitError, OSError) as error:
        message = json.dumps({"message": sentence(error)}).encode()
        write_atomically(Path(directory) / ERRORS / f"{key}.json", message)
    finally:
        gc.unfreeze()
