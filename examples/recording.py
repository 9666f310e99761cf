"""The command line of the scripts that record a family's tasks."""

import argparse
from collections.abc import Callable
from typing import Any

from gatokit.cli.console import Output
from gatokit.environments import tasks
from gatokit.environments.agents import Mix
from gatokit.environments.record import DEFAULT_WRITER, Job, record_tasks
from gatokit.environments.writers import WRITERS
from gatokit.schemas.errors import GatokitError


def parser_of(family: str, description: str | None, default_tasks: list[str], episodes: int) -> argparse.ArgumentParser:
    """The arguments that all families share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="data", help=f"folder; a task goes to OUT/{family}/TASK (default: data)")
    parser.add_argument("--tasks", nargs="+", default=default_tasks, metavar="TASK", help="task names, or: all")
    parser.add_argument(
        "--episodes", type=int, default=episodes, help="episodes a task: half expert, the rest noisy and random"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writer", choices=WRITERS, help=f"default: {DEFAULT_WRITER[family]}")
    parser.add_argument("--jobs", type=int, default=2, help="tasks recorded at the same time")
    return parser


def record_family(
    family: str, parser: argparse.ArgumentParser, options: Callable[[argparse.Namespace], dict[str, Any]] | None = None
) -> None:
    """Reads the arguments, records, and prints each agent's mean return. ``options`` makes those of the adapters."""
    arguments = parser.parse_args()
    try:
        names = tasks(family) if arguments.tasks == ["all"] else arguments.tasks
        mix, of_adapter = Mix.of(arguments.episodes), options(arguments) if options else {}
        jobs = [Job(f"{family}/{name}", mix, arguments.seed, arguments.writer, of_adapter) for name in names]
        with Output(as_json=False).progress() as progress:
            recordings = record_tasks(jobs, arguments.out, arguments.jobs, progress)
    except GatokitError as error:
        parser.error(str(error))
    for recording in recordings:
        means = ", ".join(f"{agent} {value:.2f}" for agent, value in recording.mean_return.items())
        print(f"{recording.directory}: {recording.episodes} episodes, {recording.steps} steps; {means}")
