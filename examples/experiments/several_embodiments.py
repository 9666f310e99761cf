"""One model, several embodiments: six tasks of three domains played by one set of weights.

    python examples/experiments/several_embodiments.py --out data/experiments

About an hour on two cores. Result: 78.3 ± 2.8 % of expert, mean over three domains (docs/results.md).
"""

import argparse
from pathlib import Path

from road import build, evaluate, record, train

from gatokit.environments.agents import Mix
from gatokit.environments.jobs import Job

JOBS = (
    Job("metaworld/reach-v3", Mix(expert=100, noisy=60), writer="tfrecord"),
    Job("metaworld/drawer-close-v3", Mix(expert=100, noisy=60), writer="tfrecord"),
    Job("babyai/GoToObj-v0", Mix(expert=3000, noisy=1000)),
    Job("babyai/GoToRedBallGrey-v0", Mix(expert=3000, noisy=1000)),
    Job("dm_control/cartpole-balance", Mix(expert=30, noisy=30)),
    Job("dm_control/point_mass-easy", Mix(expert=60, noisy=60)),
)
FAMILIES = ("metaworld", "babyai", "dm_control")
MOVING = Job("dm_control/point_mass-easy", Mix(expert=200, noisy=100), options={"time_limit": 200})
"""The mass reaches its target in some eighty steps; whole episodes are nine tenths of standing still, from which the
first run learns to stand still."""

RUN = """
model: {size: tiny, stochastic_depth: 0}
context: 176            # one step of BabyAI, four of Meta-World, twenty and more of dm_control
batch: 32
steps: 1400
precision: float32
remat: none
log_every: 50
input:
  weights: {metaworld: 0.4, babyai: 0.44, dm_control: 0.16}
  align: step
  hide_actions: 1.0
  prompt: {share: 0}
loss_weight: sequence
optimizer: {learning_rate: 3e-3, final_learning_rate: 1e-4, warmup_steps: 100}
evaluation: {every: 700, batches: 4}
checkpoint: {every: 200, keep_last: 2}
"""

SECOND = (
    RUN.replace("steps: 1400", "steps: 300")
    .replace("learning_rate: 3e-3", "learning_rate: 1e-3")
    .replace("warmup_steps: 100", "warmup_steps: 20")
    .replace("every: 700", "every: 300")
    .replace("{metaworld: 0.4, babyai: 0.44, dm_control: 0.16}", "{metaworld: 0.3, babyai: 0.4, dm_control: 0.3}")
)
"""Goes on from the first run's weights, with episodes of the mass that end when it has arrived."""


def main() -> None:
    """Records, builds, trains and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/experiments"))
    parser.add_argument("--rollouts", default="50")
    arguments = parser.parse_args()
    out = arguments.out / "several_embodiments"
    record(JOBS, arguments.out / "recorded")
    built = build({family: f"{family}/*" for family in FAMILIES}, arguments.out / "recorded", out / "built")
    first = train(RUN, built, out / "run").resolve()
    record([MOVING], out / "recorded")
    for task in (
        "metaworld/reach-v3",
        "metaworld/drawer-close-v3",
        "babyai/GoToObj-v0",
        "babyai/GoToRedBallGrey-v0",
        "dm_control/cartpole-balance",
    ):
        link(arguments.out / "recorded" / task, out / "recorded" / task)
    built = build({family: f"{family}/*" for family in FAMILIES}, out / "recorded", out / "built-second")
    run = train(f"{SECOND}init_from: {first}\n", built, out / "run-second")
    options = ("--rollouts", arguments.rollouts, "--prompt-tokens", "0")
    scores = evaluate(run, [job.name for job in JOBS], out / "scores", *options)
    for task in scores["tasks"]:
        print(f"{task['task']:32} {task['normalized']:6.1f} %")


def link(source: Path, target: Path) -> None:
    """A name for a recording in another folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(source.resolve())


if __name__ == "__main__":
    main()
