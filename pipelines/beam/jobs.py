"""The Beam jobs: one scans units, one builds shards. Both spread independent pieces of work and shuffle no data."""

import json
import tempfile
import threading
from collections.abc import Callable, Sequence
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

from gatokit.pipelines.beam import work
from gatokit.pipelines.beam.local_workers import DIED, ProcessEnvironment, without_noise
from gatokit.schemas.errors import ConfigError, DataError, GatokitError
from gatokit.storage import files
from gatokit.storage.files import is_remote

NAMESPACE = "gatokit"
"""Namespace of the counters, which are sums of ``work.Counts``. A piece that is done twice counts twice."""
_POLL_SECONDS = 0.2
_MOST_SAID = 1000
"""Characters of what a runner says of a job that failed."""


class JobFailedError(GatokitError):
    """A runner on other machines gave up."""

    exit_status = 1


class WorkerDiedError(Exception):
    """A local worker process ended before its work did."""


class ScanFiles(beam.PTransform):
    """Calls ``work.scan`` for each piece."""

    def __init__(self, directory: str, work_directory: str) -> None:
        super().__init__()
        self._fn = _ScanFn(directory, work_directory)

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """One unit per piece."""
        return units | "Spread units" >> beam.Reshuffle() | "Scan unit" >> beam.ParDo(self._fn)


class WriteShards(beam.PTransform):
    """Calls ``work.build`` for each piece."""

    def __init__(self, vocabulary: str, work_directory: str) -> None:
        super().__init__()
        self._fn = _BuildFn(vocabulary, work_directory)

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        """One shard per piece."""
        return tasks | "Spread tasks" >> beam.Reshuffle() | "Build shard" >> beam.ParDo(self._fn)


class _ScanFn(beam.DoFn):
    def __init__(self, directory: str, work_directory: str) -> None:
        self._directory, self._work = directory, work_directory

    def setup(self) -> None:
        """Once per worker."""
        work.return_large_blocks()

    def process(self, piece: tuple[str, str, int, int]) -> list[str]:
        """Scans a unit."""
        _count(work.scan(piece, self._directory, self._work))
        return [piece[0]]


class _BuildFn(beam.DoFn):
    def __init__(self, vocabulary: str, work_directory: str) -> None:
        self._vocabulary, self._work = vocabulary, work_directory

    def setup(self) -> None:
        """Loads the vocabulary once per worker, so that it does not travel with every bundle."""
        work.vocabulary_at(self._vocabulary)
        work.return_large_blocks()

    def process(self, piece: tuple[str, str]) -> list[str]:
        """Builds a shard."""
        _count(work.build(piece, self._vocabulary, self._work))
        return [piece[0]]


def _count(counts: work.Counts) -> None:
    for name, count in counts.items():
        Metrics.counter(NAMESPACE, name).inc(count)


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
    work_directory: Path,
) -> work.Counts:
    """Runs ``transform`` over ``pieces`` and waits, calling ``poll`` a few times a second; what its counters say.

    Raises the first reason that a piece left below ``work``, WorkerDiedError, or what the pipeline itself raised.
    """
    failure: list[BaseException] = []
    counters: dict[str, int] = {}
    pieces = list(pieces)
    log = (Path(tempfile.gettempdir()) / "gatokit" if is_remote(work_directory) else work_directory) / "workers.log"

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
    for name in files.names(work_directory / work.ERRORS):
        if name.endswith(".json"):
            raise DataError(json.loads(files.read_bytes(work_directory / work.ERRORS / name))["message"])
    if failure:
        said = str(failure[0])
        if work.is_full(said):
            raise DataError(work.FULL)
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
