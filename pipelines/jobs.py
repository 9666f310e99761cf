"""The Beam jobs: one scans units, one builds orders. Both spread independent pieces of work and shuffle no data.

A piece's result is a file; running a piece twice writes the same file twice. A piece that fails for a reason
that its user can mend leaves that reason as a file, for Beam would wrap it in its own traceback.
"""

import gc
import json
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from gatokit.pipelines import storage
from gatokit.pipelines.build import build_split
from gatokit.pipelines.orders import Order
from gatokit.pipelines.storage import return_large_blocks, write_atomically, write_rows
from gatokit.schemas.canonical import digest
from gatokit.schemas.errors import ConfigError, DataError, GatokitError
from gatokit.tokenizers.text import TextTokenizer

ERRORS = "errors"
"""Folder below a job's working directory where failed pieces leave their reasons."""
_POLL_SECONDS = 0.2


class ScanFiles(beam.PTransform):
    """Scans units (``plan.Unit``) into files named by their fingerprints below ``directory``."""

    def __init__(self, directory: str, errors: str) -> None:
        super().__init__()
        self._fn = _ScanFn(directory, errors)

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """One unit a piece of work."""
        return units | "Spread units" >> beam.Reshuffle() | "Scan unit" >> beam.ParDo(self._fn)


class WriteShards(beam.PTransform):
    """Builds orders, given as (path of the order, directory of its dataset), with the model at ``vocabulary``."""

    def __init__(self, vocabulary: str, errors: str) -> None:
        super().__init__()
        self._fn = _BuildFn(vocabulary, errors)

    def expand(self, orders: beam.PCollection) -> beam.PCollection:
        """One order a piece of work: reading, tokenizing and writing stay together, so that no image or token
        passes through the runner."""
        return orders | "Spread orders" >> beam.Reshuffle() | "Build shard" >> beam.ParDo(self._fn)


class _ScanFn(beam.DoFn):
    def __init__(self, directory: str, errors: str) -> None:
        self._directory, self._errors = directory, errors

    def setup(self) -> None:
        """Once a worker."""
        return_large_blocks()

    def process(self, unit: Any) -> list[str]:
        def work() -> None:
            write_rows(Path(self._directory) / f"{unit.fingerprint}.arrow", unit.scan())

        _leaving_reasons(work, self._errors, unit.fingerprint)
        return [unit.fingerprint]


class _BuildFn(beam.DoFn):
    def __init__(self, vocabulary: str, errors: str) -> None:
        self._vocabulary, self._errors = vocabulary, errors
        self._text: TextTokenizer | None = None

    def setup(self) -> None:
        """Loads the model here, once a worker, so that it does not travel with every bundle."""
        self._text = storage.load_vocabulary(self._vocabulary)
        return_large_blocks()

    def process(self, element: tuple[str, str]) -> list[str]:
        path, directory = element
        assert self._text is not None
        text = self._text
        _leaving_reasons(lambda: build_split(Order.read(path), directory, text), self._errors, path)
        return [path]


@dataclass(frozen=True)
class Execution:
    """Where a job runs: Beam's options and, for the local runner, its number of processes (None: a runner of
    Beam's own choice)."""

    options: PipelineOptions
    local_workers: int | None

    def runner(self, log: Path) -> PipelineRunner | None:
        """The runner to hand to Beam; None takes the one that the options name.

        Local worker processes write what Beam has to say to ``log``.
        """
        if self.local_workers is None:
            return None
        if self.local_workers == 1:
            return FnApiRunner()
        log.parent.mkdir(parents=True, exist_ok=True)
        module = "apache_beam.runners.worker.sdk_worker_main"
        command = f"exec {shlex.quote(sys.executable)} -m {module} >> {shlex.quote(str(log))} 2>&1"
        return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


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
) -> None:
    """Runs ``transform`` over ``pieces`` and waits, calling ``poll`` a few times a second.

    Raises the first reason that a piece left below ``work``, else what the pipeline itself raised.
    """
    failure: list[BaseException] = []
    pieces = list(pieces)

    def job() -> None:
        try:
            with beam.Pipeline(runner=where.runner(work / "workers.log"), options=where.options) as pipeline:
                _ = pipeline | "Pieces" >> beam.Create(pieces, reshuffle=False) | transform
        except BaseException as error:
            failure.append(error)

    # Beam's run blocks until the end and local metrics come only then, so finished files are the progress.
    thread = threading.Thread(target=job, name="beam", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        poll()
    for name in storage.names(work / ERRORS):
        if name.endswith(".json"):
            raise DataError(json.loads(storage.read_bytes(work / ERRORS / name))["message"])
    if failure:
        if "No space left on device" in str(failure[0]):
            raise DataError("the disk is full; make room and run the build again: finished shards stay")
        raise failure[0]


def _leaving_reasons(work: Callable[[], None], errors: str, name: str) -> None:
    try:
        # The collector need not look again and again through what is there already: modules, features and columns.
        gc.freeze()
        work()
    except (GatokitError, OSError) as error:
        message = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error)
        path = Path(errors) / f"{digest(name.encode(), 8)}.json"
        write_atomically(path, json.dumps({"message": message}).encode())
    finally:
        gc.unfreeze()
