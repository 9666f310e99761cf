"""Records BabyAI's bot, noisy copies of it and chance as RLDS.

    python examples/record_babyai.py --out data --tasks GoToLocal-v0 PickupLoc-v0 --episodes 200

Two hundred episodes of a small level take a second or two, of a maze a minute. The bot does not solve KeyInBox and
the Carrying levels.
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
    parser.add_argument("--out", default="data", help="folder; a task goes to OUT/babyai/TASK (default: data)")
    parser.add_argument(
        "--tasks", nargs="+", default=["GoToLocal-v0", "PickupLoc-v0"], metavar="TASK", help="task names, or: all"
    )
    parser.add_argument(
        "--episodes", type=int, default=200, help="episodes a task: half expert, the rest noisy and random"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writer", choices=WRITERS, help="default: array_record-shuffled")
    parser.add_argument("--jobs", type=int, default=2, help="tasks recorded at the same time")
    arguments = parser.parse_args()
    try:
        names = tasks("babyai") if arguments.tasks == ["all"] else arguments.tasks
        mix = Mix.of(arguments.episodes)
        jobs = [Job(f"babyai/{name}", mix, arguments.seed, arguments.writer) for name in names]
        with progress_bars() as progress:
            recordings = record_tasks(jobs, arguments.out, arguments.jobs, progress)
    except GatokitError as error:
        parser.error(str(error))
    for recording in recordings:
        means = ", ".join(f"{agent} {value:.2f}" for agent, value in recording.mean_return.items())
        print(f"{recording.directory}: {recording.episodes} episodes, {recording.steps} steps; {means}")


if __name__ == "__main__":
    main()
