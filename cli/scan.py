"""``gatokit scan``: reads returns and says what the filter would keep."""

import argparse
from pathlib import Path

from gatokit.cli.build import add_job_arguments, run_job, summary
from gatokit.cli.console import Output

TAKES_BEAM_OPTIONS = True

EXAMPLE = "gatokit scan demo.yaml --out scanned\n\nEvery other option is Apache Beam's, such as --runner or --project."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_job_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Scans and prints the table of tasks."""
    import pyarrow.parquet as pq

    from gatokit.storage.files import arrow_file

    output = Output(arguments.json)
    result = run_job(arguments, output)
    tasks = []
    for dataset in result.manifest.datasets:
        with arrow_file(Path(arguments.out) / dataset.directory / dataset.tasks_file) as file:
            tasks += [{"dataset": dataset.name, **row} for row in pq.read_table(file).to_pylist()]
    keys = ("dataset", "task", "agent", "episodes", "window", "expert_return", "threshold", "kept", "dropped")
    output.table(
        f"{arguments.out}",
        ["dataset", "task", "agent", "N", "W", "expert return", "threshold", "kept", "dropped"],
        [[row[key] for key in keys] for row in tasks],
    )
    for sentence in summary(result):
        output.say(sentence)
    output.say(f"scanned in {result.seconds:.1f} s; next: gatokit inspect {arguments.out}")
    output.result(
        {
            "tasks": [{key: row[key] for key in keys} for row in tasks],
            "seconds": result.seconds,
            "stages": result.stages,
            "rejected": result.rejected,
        }
    )
    return 0
