"""Hiding past actions: the same data and steps with earlier actions shown and hidden, by loss and by score.

    python examples/experiments/hidden_actions.py --out data/experiments

About six minutes on two cores. Result: 79 % of expert hidden, 37 % shown, at the higher loss (docs/results.md).
"""

import argparse
import json
from pathlib import Path

from experiment import build, evaluate, record, train

from gatokit.environments.agents import Mix
from gatokit.environments.record import Job

TASK = "dm_control/cartpole-balance"
SHARES = (0.0, 1.0)

RUN = """
model: {{size: tiny, stochastic_depth: 0}}
context: 63             # nine steps
batch: 16
steps: 200
precision: float32
remat: none
log_every: 20
input: {{align: step, hide_actions: {share}, prompt: {{share: 0}}}}
optimizer: {{learning_rate: 3e-3, final_learning_rate: 1e-4, warmup_steps: 20}}
evaluation: {{every: 200, batches: 8}}
checkpoint: {{every: 200}}
"""


def main() -> None:
    """Records, builds, trains and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/experiments"))
    parser.add_argument("--rollouts", default="20")
    arguments = parser.parse_args()
    out = arguments.out / "hidden_actions"
    record([Job(TASK, Mix(expert=20, noisy=20))], out / "recorded")
    built = build({"dm_control": "dm_control/*"}, out / "recorded", out / "built")
    lines = []
    for share in SHARES:
        run = train(RUN.format(share=share), built, out / f"run-{share}")
        found = evaluate(
            run, [TASK], out / f"scores-{share}", "--rollouts", arguments.rollouts, "--memory", "memory",
            "--prompt-tokens", "0", "--no-sampling",
        )  # fmt: skip
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = [line["held_out"] for line in metrics if "held_out" in line][-1]
        lines.append((share, last["action_loss"], last["first_action_loss"], found["tasks"][0]["normalized"]))
    print("hidden   held-out action loss   of a window's first action   score")
    for share, loss, first, score in lines:
        print(f"{share:6.1f} {loss:22.3f} {first:28.3f} {score:7.1f} %")


if __name__ == "__main__":
    main()
