"""What relative positions cost beside rotary ones: forward and backward of the same blocks on this machine.

Both sides are compiled programs of one process that take turns; their fastest turns are compared. The ratio of their
operations, from ``gatokit.trainer.cost``, is printed beside it.

    python benchmarks/positions.py                # two minutes on two cores
    python benchmarks/positions.py --repeats 20 --precision bfloat16
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import machine

from gatokit.schemas.run import SIZES, ModelConfig
from gatokit.trainer import cost, model
from gatokit.trainer.attention import self_attention

CASES = {
    "tiny": {"size": "tiny", "layers": 4, "rows": 8, "context": 256},
    "79m, one layer": {"size": "79m", "layers": 1, "rows": 2, "context": 1024},
    "364m, one layer": {"size": "364m", "layers": 1, "rows": 1, "context": 1024},
}
SCHEMES = ("relative", "rotary")


def program(case: dict[str, Any], positions: str, precision: str) -> tuple[Callable[[], Any], float]:
    """A function that runs a training pass over the blocks once, and its operations."""
    config = ModelConfig(**SIZES[case["size"]] | {"layers": case["layers"], "positions": positions})
    table = model.parameter_table(config, 33_025)["layers"]
    layers = jax.jit(lambda: model.initialize(table, 0))()
    rows = np.arange(case["rows"])
    vectors = np.random.default_rng(0).normal(size=(case["rows"], case["context"], config.width))
    inputs = jnp.asarray(vectors, precision)

    def attention(inputs: jax.Array, parameters: Any, own: None) -> tuple[jax.Array, None]:
        return self_attention(inputs, parameters, config, None), None

    @jax.jit
    @jax.grad
    def gradient(layers: Any) -> jax.Array:
        found, _ = model.apply_layers(inputs, layers, config, attention, key=jax.random.key(0), rows=rows)
        return jnp.square(found.astype(jnp.float32)).mean()

    count = cost.train_step_flops(
        config, rows=case["rows"], context=case["context"], patch_slots=0, targets=0, vocabulary_size=0
    )
    return lambda: jax.block_until_ready(gradient(layers)), count


def measure(name: str, precision: str, repeats: int) -> dict[str, Any]:
    """Seconds of the fastest turn of both schemes, their ratio, and that of their operations."""
    programs = {positions: program(CASES[name], positions, precision) for positions in SCHEMES}
    seconds: dict[str, list[float]] = {positions: [] for positions in SCHEMES}
    for run, _ in programs.values():
        run()
    for _ in range(repeats):
        for positions, (run, _) in programs.items():
            begin = time.perf_counter()
            run()
            seconds[positions].append(time.perf_counter() - begin)
    best = {positions: min(turns) for positions, turns in seconds.items()}
    operations = {positions: count for positions, (_, count) in programs.items()}
    return {
        **best,
        "turns": seconds,
        "ratio": best["relative"] / best["rotary"],
        "operations_ratio": operations["relative"] / operations["rotary"],
        "gflops": {positions: operations[positions] / best[positions] / 1e9 for positions in SCHEMES},
    }


def main() -> None:
    """Prints a row for each case, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "jax": jax.__version__, "precision": arguments.precision}
    print("| blocks | relative, ms | rotary, ms | ratio | ratio of operations |\n|---|---|---|---|---|")
    for name in CASES:
        row = result[name] = measure(name, arguments.precision, arguments.repeats)
        print(
            f"| {name} | {row['relative'] * 1e3:,.0f} | {row['rotary'] * 1e3:,.0f} | {row['ratio']:.2f} "
            f"| {row['operations_ratio']:.2f} |",
            flush=True,
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
