"""Records Meta-World's scripted experts, noisy copies of them and chance as RLDS.

    python examples/record_metaworld.py --out data --tasks door-open-v3 drawer-open-v3 --episodes 100

A hundred episodes of a task take about half a minute. ``--tasks all`` records all fifty: on handle-press-side,
where chance may earn more than the expert, the filter has little to work with.
"""

import argparse

from gatokit.environments import tasks
from gatokit.environments.agents import Mix
from gatokit.environments.jobs import Job, record_tasks
from gatokit.environments.progress import progress_bars
from gatokit.environments.writers import WRITERS
from gatokit.schemas.errors import GatokitError


def main() -> None:
    """Reads the arguments, records, and prints each agent's mean return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="data", help="folder; a task goes to OUT/metaworld/TASK (default: data)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=["button-press-topdown-v3", "door-open-v3", "drawer-open-v3"],
        metavar="TASK",
        help="task names, or: all",
    )
    parser.add_argument(
        "--episodes", type=int, default=100, help="episodes a task: half expert, the rest noisy and random"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writer", choices=WRITERS, help="default: envlogger (its TFDS backend)")
    parser.add_argument("--jobs", type=int, default=2, help="tasks recorded at the same time")
    arguments = parser.parse_args()
    try:
        names = tasks("metaworld") if arguments.tasks == ["all"] else arguments.tasks
        mix = Mix.of(arguments.episodes)
        jobs = [Job(f"metaworld/{name}", mix, arguments.seed, arguments.writer) for name in names]
        with progress_bars() as progress:
            recordings = record_tasks(jobs, arguments.out, arguments.jobs, progress)
    except GatokitError as error:
        parser.error(str(error))
    for recording in recordings:
        means = ", ".join(f"{agent} {value:.2f}" for agent, value in recording.mean_return.items())
        print(f"{recording.directory}: {recording.episodes} episodes, {recording.steps} steps; {means}")


if __name__ == "__main__":
    main()
