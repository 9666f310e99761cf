"""A new task from few demonstrations: fine-tuned on 1, 10 and 100 episodes, and the same from scratch.

    python examples/experiments/several_embodiments.py --out data/experiments   # the pretrained model, without the task
    python examples/experiments/few_demonstrations.py --out data/experiments

About twenty minutes on two cores. Result: 93 % of expert from one episode, 22 % from scratch (docs/results.md).
"""

import argparse
from pathlib import Path

from experiment import build, draw_curves, evaluate, record, train

from gatokit.environments.agents import Mix
from gatokit.environments.record import Job

TASK = "metaworld/door-close-v3"
"""The pretrained model knows the arm from two other tasks, but no door."""
JOB = Job(TASK, Mix(expert=102), writer="tfrecord")
EPISODES = (1, 10, 100)

RUN = """
model: {{size: tiny, stochastic_depth: 0}}
context: 176
batch: 16
steps: 150
precision: float32
remat: none
log_every: 20
input: {{align: step, hide_actions: 1.0, prompt: {{share: 0}}}}
optimizer: {{learning_rate: 1e-3, final_learning_rate: 1e-4, warmup_steps: 20}}
evaluation: {{every: 150, batches: 2}}
checkpoint: {{every: 150}}
{start}
"""


def main() -> None:
    """Records, builds, trains and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/experiments"))
    parser.add_argument("--rollouts", default="16")
    arguments = parser.parse_args()
    out = arguments.out / "few_demonstrations"
    pretrained = (arguments.out / "several_embodiments" / "run").resolve()
    record([JOB], out / "recorded")
    scores: dict[str, dict[str, list[float]]] = {}
    for episodes in EPISODES:
        keep = f"{{sample: {episodes}, seed: 0}}"
        built = build({"metaworld": "metaworld/*"}, out / "recorded", out / f"built-{episodes}", keep)
        for name, start in (("fine-tuned", f"init_from: {pretrained}"), ("from scratch", "")):
            run = train(RUN.format(start=start), built, out / f"run-{episodes}-{name.replace(' ', '-')}")
            found = evaluate(
                run, [TASK], out / f"scores-{episodes}-{name.replace(' ', '-')}", "--rollouts", arguments.rollouts,
                "--memory", "memory", "--prompt-tokens", "0", "--no-sampling",
            )  # fmt: skip
            scores.setdefault(name, {})[str(episodes)] = [found["tasks"][0]["normalized"]]
    for name, of in scores.items():
        for count, values in of.items():
            print(f"{name:14} {count:>4} episodes {values[0]:6.1f} %")
    draw_curves(out / "few_demonstrations.png", "episodes", "score, % of expert", scores)


if __name__ == "__main__":
    main()
