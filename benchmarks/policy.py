"""A policy's step: with a memory of keys and values against a window read anew, alone and many side by side.

A step is everything between an observation and its action: tokenizing, the model, choosing, decoding. The memory is
full and the prompt read before the clock starts. Meta-World's states make 44 tokens a step, four of them chosen.

    python benchmarks/policy.py --checkpoint demo/run      # about two minutes on two cores
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

from harness import machine

from gatokit.environments.registry import make
from gatokit.policy.policy import Decoding, Player, Policy, load_policy

ROWS = (1, 16)


def with_context(policy: Policy, context: int) -> Policy:
    """The policy with another context, which is a number of tokens and no parameter."""
    config = policy.config.model_copy(update={"context": context})
    return replace(policy, file=policy.file.model_copy(update={"config": config}))


def filled(policy: Policy, task: str, rows: int, memory: Literal["memory", "window"]) -> tuple[Player, dict]:
    """A player that has played until its context is full, and the observations of its rows."""
    environment = make(task)
    player = policy.player(policy.find(task), environment.spec, rows, Decoding(memory=memory))
    seen = {row: environment.reset(row) for row in range(rows)}
    for row in range(rows):
        player.begin(row, row)
    step = sum(item.tokens or 0 for item in policy.find(task).spec.fields) + 1
    for _ in range(policy.config.context // step + 2):
        player.act(seen)
    environment.close()
    return player, seen


def main() -> None:
    """Times, prints a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/run"))
    parser.add_argument("--env", default="metaworld/door-open-v3")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    policy = with_context(load_policy(arguments.checkpoint), arguments.context)
    found = {}
    print(f"{'context ' + str(arguments.context):>14} {'memory, ms':>12} {'window, ms':>12} {'ratio':>7}")
    for rows in ROWS:
        players = {name: filled(policy, arguments.env, rows, name) for name in ("memory", "window")}
        times: dict[str, list[float]] = {name: [] for name in players}
        for _ in range(arguments.repeats):
            for name, (player, seen) in players.items():
                begin = time.perf_counter()
                player.act(seen)
                times[name].append(time.perf_counter() - begin)
        median = {name: statistics.median(values) for name, values in times.items()}
        found[rows] = median
        ratio = median["window"] / median["memory"]
        print(
            f"{rows:>8} rows {1e3 * median['memory']:>14.1f} {1e3 * median['window']:>12.1f} {ratio:>7.1f}", flush=True
        )
    print(json.dumps({"machine": machine(), "context": arguments.context, "seconds": found}))


if __name__ == "__main__":
    main()
