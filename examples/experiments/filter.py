"""What the filter is worth: the same mixed recordings under three thresholds, with the same steps and three seeds.

    python examples/experiments/filter.py --out data/experiments

About half an hour on two cores. Result, median of continuous actions: 90, 67 and 47 % of expert (docs/results.md).
"""

import argparse
from pathlib import Path

import numpy as np
from experiment import build, draw_curves, evaluate, train

from gatokit.environments.agents import Bursts, Mix
from gatokit.environments.record import record
from gatokit.environments.registry import make

TASK = "dm_control/cartpole-balance"
STEPS = 500
MIX = Mix(expert=20, noisy=60, random=60)
NOISE = Bursts(gap=(40, 120), length=(8, 20), hold=True)
"""Strong enough that the pole falls in many noisy episodes, so that their returns differ."""
KEEPS = {"0.8 of expert": "{min_return: 0.8}", "0.5 of expert": "{min_return: 0.5}", "everything": "{all: true}"}
SEEDS = (0, 1, 2)

RUN = """
model: {{size: tiny, stochastic_depth: 0}}
context: 63             # nine steps
batch: 16
steps: 200
seed: {seed}
precision: float32
remat: none
log_every: 20
input: {{align: step, hide_actions: 1.0, prompt: {{share: 0}}}}
optimizer: {{learning_rate: 3e-3, final_learning_rate: 1e-4, warmup_steps: 20}}
evaluation: {{every: 200, batches: 2}}
checkpoint: {{every: 200}}
"""


def main() -> None:
    """Records, builds, trains and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/experiments"))
    parser.add_argument("--rollouts", default="20")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    out = arguments.out / "filter"
    adapter = make(TASK, time_limit=STEPS)
    record(adapter, out / "recorded", MIX, bursts=NOISE)
    adapter.close()
    scores: dict[str, dict[str, list[float]]] = {}
    builds = [
        build({"dm_control": "dm_control/*"}, out / "recorded", out / f"built-{number}", keep)
        for number, keep in enumerate(KEEPS.values())
    ]
    for seed in arguments.seeds:
        for number, (name, built) in enumerate(zip(KEEPS, builds, strict=True)):
            run = train(RUN.format(seed=seed), built, out / f"run-{number}-{seed}")
            found = evaluate(
                run, [TASK], out / f"scores-{number}-{seed}", "--rollouts", arguments.rollouts, "--memory", "memory",
                "--prompt-tokens", "0", "--time-limit", f"{TASK}={STEPS}",
            )  # fmt: skip
            task = found["tasks"][0]
            for rule, score in (("median", task["normalized"]), ("sample", sampled(task))):
                scores.setdefault(rule, {}).setdefault(name, []).append(score)
                print(f"seed {seed}, {name}, {rule}: {score:.1f} %", flush=True)
    for rule, of_rule in scores.items():
        for name, values in of_rule.items():
            spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
            print(f"{rule:8} {name:16} {np.mean(values):6.1f} ± {spread:.1f} %   {np.round(values, 1)}")
    draw_curves(out / "filter.png", "what is kept", "score, % of expert", scores)


def sampled(task: dict) -> float:
    """The score of the paper's sampling, which stands beside the rule's."""
    return next(score["normalized"] for name, score in task["others"].items() if name.startswith("sample"))


if __name__ == "__main__":
    main()
