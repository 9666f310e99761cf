"""Records simple controllers on the DeepMind Control Suite, noisy copies of them and chance as RLDS.

    python examples/record_dm_control.py --out data --tasks cartpole-swingup reacher-easy --episodes 100

A hundred episodes of 1000 steps take about half a minute.
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
    parser.add_argument("--out", default="data", help="folder; a task goes to OUT/dm_control/TASK (default: data)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=["cartpole-swingup", "pendulum-swingup", "reacher-easy"],
        metavar="TASK",
        help="task names, or: all",
    )
    parser.add_argument(
        "--episodes", type=int, default=100, help="episodes a task: half expert, the rest noisy and random"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writer", choices=WRITERS, help="default: tfrecord-shuffled")
    parser.add_argument("--jobs", type=int, default=2, help="tasks recorded at the same time")
    arguments = parser.parse_args()
    try:
        names = tasks("dm_control") if arguments.tasks == ["all"] else arguments.tasks
        mix = Mix.of(arguments.episodes)
        jobs = [Job(f"dm_control/{name}", mix, arguments.seed, arguments.writer) for name in names]
        with progress_bars() as progress:
            recordings = record_tasks(jobs, arguments.out, arguments.jobs, progress)
    except GatokitError as error:
        parser.error(str(error))
    for recording in recordings:
        means = ", ".join(f"{agent} {value:.2f}" for agent, value in recording.mean_return.items())
        print(f"{recording.directory}: {recording.episodes} episodes, {recording.steps} steps; {means}")


if __name__ == "__main__":
    main()
