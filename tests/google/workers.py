"""Workers of the Dataflow stand-in: processes of an environment that holds gatokit from a staged package alone."""

import os
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.google.dataflow import Job
from tests.google.fixtures import Bucket


def install(package: Path, directory: Path) -> Path:
    """A virtual environment below ``directory`` with a package as its only own one; its interpreter.

    What gatokit needs comes from the environment that runs the tests, less the checkout, which is linked there.
    """
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    site = directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # Directories named in a .pth file are searched, but their own .pth files, such as the checkout's, are not read.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(package)]
    # pip lists what is installed already by the same path.
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=directory)
    return python


def execute(job: Job, bucket: Bucket, python: Path | None = None, log: Path = Path(os.devnull)) -> None:
    """Runs the graph that was staged for a job in worker processes of ``python``, or without one in this process.
    Raises what the pipeline raises."""
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.portability.api import beam_runner_api_pb2
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import EmbeddedPythonEnvironment, SubprocessSDKEnvironment

    pipeline = beam_runner_api_pb2.Pipeline.FromString(bucket.get(job.graph.removeprefix(bucket.url())))
    workers: EmbeddedPythonEnvironment | SubprocessSDKEnvironment = EmbeddedPythonEnvironment()
    if python is not None:
        program = shlex.join([os.fspath(python), "-m", "apache_beam.runners.worker.sdk_worker_main"])
        away = shlex.quote(os.fspath(python.parent))
        workers = SubprocessSDKEnvironment(f"cd {away} && exec {program} >> {shlex.quote(os.fspath(log))} 2>&1")
    urn, payload = workers.to_runner_api_parameter(None)
    for environment in pipeline.components.environments.values():
        environment.urn, environment.payload = urn, payload or b""
        del environment.dependencies[:]
    FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([]))
