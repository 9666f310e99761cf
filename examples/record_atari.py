"""Records Atari frames played by controllers that read the console's memory, noisy copies of them and chance as RLDS.

    python examples/record_atari.py --out data --tasks Breakout --steps 1000 --episodes 20

Frames are shrunk to 96x80 (30 patches of 16x16) and stored as PNG; ten thousand of them take about half a minute.
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
    parser.add_argument("--out", default="data", help="folder; a task goes to OUT/atari/TASK (default: data)")
    parser.add_argument("--tasks", nargs="+", default=["Breakout"], metavar="TASK", help="task names, or: all")
    parser.add_argument(
        "--episodes", type=int, default=20, help="episodes a task: half expert, the rest noisy and random"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writer", choices=WRITERS, help="default: array_record")
    parser.add_argument("--jobs", type=int, default=2, help="tasks recorded at the same time")
    parser.add_argument("--steps", type=int, default=1000, help="steps after which an episode is cut")
    parser.add_argument("--size", type=int, nargs=2, default=[96, 80], metavar=("HEIGHT", "WIDTH"), help="of a frame")
    arguments = parser.parse_args()
    try:
        names = tasks("atari") if arguments.tasks == ["all"] else arguments.tasks
        mix = Mix.of(arguments.episodes)
        options = {"time_limit": arguments.steps, "size": tuple(arguments.size)}
        jobs = [Job(f"atari/{name}", mix, arguments.seed, arguments.writer, options) for name in names]
        with progress_bars() as progress:
            recordings = record_tasks(jobs, arguments.out, arguments.jobs, progress)
    except GatokitError as error:
        parser.error(str(error))
    for recording in recordings:
        means = ", ".join(f"{agent} {value:.2f}" for agent, value in recording.mean_return.items())
        print(f"{recording.directory}: {recording.episodes} episodes, {recording.steps} steps; {means}")


if __name__ == "__main__":
    main()
