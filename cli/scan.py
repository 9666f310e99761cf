"""``gatokit scan``: reads returns and shows what the filter would keep."""

import argparse
from pathlib import Path

from gatokit.cli.build import add_job_arguments, run_job, show_left_out
from gatokit.cli.console import Output

TAKES_BEAM_OPTIONS = True

EXAMPLE = "gatokit scan demo.yaml --out scanned"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_job_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Scans and shows the table of tasks."""
    import pyarrow.parquet as pq

    from gatokit.inspection.tables.fields import show_fields
    from gatokit.storage.files import arrow_file

    output = Output(arguments.json)
    result = run_job(arguments, output)
    keys = ("task", "agent", "episodes", "window", "expert_return", "threshold", "kept", "dropped")
    tasks = []
    for dataset in result.manifest.datasets:
        with arrow_file(Path(arguments.out) / dataset.directory / dataset.tasks_file) as file:
            for row in pq.read_table(file).to_pylist():
                tasks.append({"dataset": dataset.name} | {key: row[key] for key in keys})
    columns = ["dataset", "task", "agent", "N", "W", "expert return", "threshold", "kept", "dropped"]
    output.table(arguments.out, columns, [task.values() for task in tasks])
    show_fields(output, result.steps)
    show_left_out(result, output)
    output.say(f"scanned in {result.seconds:.1f} s; next: gatokit inspect {arguments.out}")
    values = {key: getattr(result, key) for key in ("seconds", "stages", "rejected", "left_out")}
    steps = {name: step.model_dump(mode="json") for name, step in result.steps.items()}
    output.result({"tasks": tasks, "steps": steps} | values)
    return 0
