"""The Beam jobs: one scans units, one builds orders. Both spread independent pieces of work and shuffle no data.

A piece's result is a file; running a piece twice writes the same file twice. A piece that fails for a reason
that its user can mend leaves that reason as a file, for Beam would wrap it in its own traceback.
"""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions, _BeamArgumentParser

from gatokit.pipelines.build import build_split
from gatokit.pipelines.orders import Order
from gatokit.pipelines.scan import ScanUnit, scan_unit
from gatokit.pipelines.storage import write_atomically
from gatokit.schemas.canonical import digest
from gatokit.schemas.errors import ConfigError, DataError, GatokitError
from gatokit.tokenizers.text import TextTokenizer

LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""Beam's in-process runner, named in full: ``DirectRunner`` runs different engines on different machines."""
_POLL_SECONDS = 0.2


class ScanFiles(beam.PTransform):
    """Scans ``ScanUnit`` elements into Parquet files named by their fingerprints below ``directory``."""

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

    def process(self, unit: ScanUnit) -> list[str]:
        def work() -> None:
            sink = pa.BufferOutputStream()
            pq.write_table(scan_unit(unit), sink)
            write_atomically(Path(self._directory) / f"{unit.fingerprint}.parquet", sink.getvalue().to_pybytes())

        _leaving_reasons(work, self._errors, unit.fingerprint)
        return [unit.fingerprint]


class _BuildFn(beam.DoFn):
    def __init__(self, vocabulary: str, errors: str) -> None:
        self._vocabulary, self._errors = vocabulary, errors
        self._text: TextTokenizer | None = None

    def setup(self) -> None:
        """Loads the model here, once a worker, so that it does not travel with every bundle."""
        self._text = TextTokenizer.load(self._vocabulary)

    def process(self, element: tuple[str, str]) -> list[str]:
        path, directory = element
        assert self._text is not None
        text = self._text
        _leaving_reasons(lambda: build_split(Order.read(path), directory, text), self._errors, path)
        return [path]


def run(
    pieces: Sequence[object],
    transform: beam.PTransform,
    options: PipelineOptions,
    poll: Callable[[], None],
    errors: str | Path,
) -> None:
    """Runs ``transform`` over ``pieces`` and waits, calling ``poll`` a few times a second.

    Raises the first reason that a piece left below ``errors``, else what the pipeline itself raised.
    """
    failure: list[BaseException] = []
    pieces = list(pieces)

    def work() -> None:
        try:
            with beam.Pipeline(options=options) as pipeline:
                _ = pipeline | "Pieces" >> beam.Create(pieces, reshuffle=False) | transform
        except BaseException as error:
            failure.append(error)

    # Beam's run blocks until the end and local metrics come only then, so finished files are the progress.
    thread = threading.Thread(target=work, name="beam", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        poll()
    for path in sorted(Path(errors).glob("*.json")):
        raise DataError(json.loads(path.read_text())["message"])
    if failure:
        if "No space left on device" in str(failure[0]):
            raise DataError("the disk is full; make room and run the build again: finished shards stay")
        raise failure[0]


def options(arguments: Sequence[str], workers: int) -> PipelineOptions:
    """Beam's options from command-line arguments; without ``--runner`` the local runner with ``workers``
    processes. ConfigError names an argument that Beam does not know."""
    parser = _BeamArgumentParser(allow_abbrev=False)
    for type_ in PipelineOptions.__subclasses__():
        type_._add_argparse_args(parser)
    unknown = parser.parse_known_args(list(arguments))[1]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}: neither gatokit nor Apache Beam has it; see --help")
    local = not any(argument.split("=")[0] == "--runner" for argument in arguments)
    arguments = list(arguments)
    if local:
        arguments += [f"--runner={LOCAL_RUNNER}", f"--direct_num_workers={workers}"]
        if workers > 1:
            arguments.append("--direct_running_mode=multi_processing")
    result = PipelineOptions(arguments)
    # Workers import everything from the installed package.
    result.view_as(SetupOptions).save_main_session = False
    assert result.view_as(StandardOptions).runner
    return result


def _leaving_reasons(work: Callable[[], None], errors: str, name: str) -> None:
    try:
        work()
    except (GatokitError, OSError) as error:
        message = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error)
        path = Path(errors) / f"{digest(name.encode(), 8)}.json"
        write_atomically(path, json.dumps({"message": message}).encode())
