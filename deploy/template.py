"""The flex template: one small Dataflow job whose only step runs ``gatokit build``.

A flex template makes one job of one pipeline, and a build is two jobs with a plan made between them. So the template's
job is the place where the command runs, one worker for as long as the build takes, and the command submits the two.
Dataflow tries a step again when its worker is lost; the build then takes over the lock that the lost one left, and goes
on where it stopped.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from uuid import uuid4

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, SetupOptions, WorkerOptions

OWN = ("template_location", "job_name")
"""Beam's options that are about the template's own job and not about those of the build."""


class RunBuild(beam.DoFn):
    """Runs ``gatokit`` with the arguments given; ``owner`` names the job, whose step runs once at a time."""

    def __init__(self, owner: str) -> None:
        self._owner = owner

    def process(self, arguments: Sequence[str]) -> list[int]:
        """In a process of its own, for it has its own Beam."""
        environment = {**os.environ, "GATOKIT_LOCK_OWNER": self._owner}
        done = subprocess.run([sys.executable, "-m", "gatokit", *arguments], env=environment)
        if done.returncode:
            raise RuntimeError(f"gatokit build ended with status {done.returncode}; its reason is in the worker's log")
        return [done.returncode]


def build_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The template's parameters as arguments of ``gatokit``, and those of Beam among them."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True)
    for name in ("only", "limit"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--update", choices=("true", "false"))
    known, rest = parser.parse_known_args(list(arguments))
    chosen = [f"--{name}={value}" for name in ("only", "limit") if (value := getattr(known, name))]
    chosen += ["--update"] if known.update == "true" else []
    passed = [argument for argument in rest if argument.partition("=")[0].removeprefix("--") not in OWN]
    return ["build", known.config, "--out", known.out, *chosen, *passed], rest


def main(arguments: Sequence[str]) -> None:
    """Makes the template's job."""
    command, rest = build_arguments(arguments)
    options = PipelineOptions(rest)
    options.view_as(SetupOptions).save_main_session = False
    workers = options.view_as(WorkerOptions)
    workers.num_workers = workers.max_num_workers = 1
    workers.autoscaling_algorithm = "NONE"
    workers.machine_type = "e2-standard-2"
    options.view_as(GoogleCloudOptions).flexrs_goal = None
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Arguments" >> beam.Create([command], reshuffle=False)
            | "Run the build" >> beam.ParDo(RunBuild(uuid4().hex))
        )


if __name__ == "__main__":
    main(sys.argv[1:])
