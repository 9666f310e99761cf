"""One model, several embodiments: six tasks of three domains played by one set of weights.

    python examples/experiments/several_embodiments.py --out data/experiments

About an hour on two cores. Result: 86.3 ± 1.5 % of expert, mean over three domains (docs/results.md).
"""

import argparse
from pathlib import Path

from experiment import build, evaluate, record, train

from gatokit.environments.agents import Mix
from gatokit.environments.record import Job

JOBS = (
    Job("metaworld/reach-v3", Mix(expert=100, noisy=60), writer="tfrecord"),
    Job("metaworld/drawer-close-v3", Mix(expert=100, noisy=60), writer="tfrecord"),
    Job("babyai/GoToObj-v0", Mix(expert=3000, noisy=1000)),
    Job("babyai/GoToRedBallGrey-v0", Mix(expert=3000, noisy=1000)),
    Job("dm_control/cartpole-balance", Mix(expert=30, noisy=30)),
    Job("dm_control/point_mass-easy", Mix(expert=200, noisy=100), options={"time_limit": 120}),
)
"""The mass reaches its target in some eighty steps. Episodes of 1,000 would be nine tenths of standing still, from
which a policy learns to stand still wherever it is."""
FAMILIES = ("metaworld", "babyai", "dm_control")

RUN = """
model: {size: tiny, stochastic_depth: 0}
context: 176            # one step of BabyAI, four of Meta-World, twenty and more of dm_control
batch: 32
steps: 1800
precision: float32
remat: none
log_every: 50
input:
  weights: {metaworld: 0.36, babyai: 0.40, dm_control: 0.24}
  align: step
  hide_actions: 1.0
  prompt: {share: 0}
loss_weight: sequence
optimizer: {learning_rate: 3e-3, final_learning_rate: 1e-4, warmup_steps: 100}
evaluation: {every: 600, batches: 4}
checkpoint: {every: 200, keep_last: 2}
"""


def main() -> None:
    """Records, builds, trains and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/experiments"))
    parser.add_argument("--rollouts", default="50")
    arguments = parser.parse_args()
    out = arguments.out / "several_embodiments"
    record(JOBS, out / "recorded")
    built = build({family: f"{family}/*" for family in FAMILIES}, out / "recorded", out / "built")
    run = train(RUN, built, out / "run")
    options = ("--rollouts", arguments.rollouts, "--prompt-tokens", "0", "--memory", "memory")
    scores = evaluate(run, [job.name for job in JOBS], out / "scores", *options)
    for task in scores["tasks"]:
        print(f"{task['task']:32} {task['normalized']:6.1f} %")


if __name__ == "__main__":
    main()
