"""Training: step time, tokens a second, MFU and the share of time spent waiting for input, through the real loader.

The same code on every device: on a CPU the preset `tiny`, on an accelerator `79m`, `364m` and `1.2b` with 16 rows a
device, each with relative and with rotary positions. Beside it what the loss at the targets saves: gradients of the
same batch with it and with logits at every position, taking turns.

    gatokit demo --out demo                        # makes the data
    python benchmarks/train.py --data demo/built   # about five minutes on two cores
    python benchmarks/train.py --data demo/built --sizes 1.2b --positions rotary --batch 8 --remat none
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from harness import machine

from gatokit.loader.batch import PADDING, Batch
from gatokit.loader.loader import batches_ahead
from gatokit.loader.mixture import Mixture, open_mixture
from gatokit.loader.windows import Windows
from gatokit.schemas.run import RunConfig, read_run_config
from gatokit.trainer import cost, model
from gatokit.trainer.loss import target_losses
from gatokit.trainer.mesh import make_mesh, place, process_rows
from gatokit.trainer.step import Metrics, Trainer

WARM_UP = 5
"""Steps before the clock starts: they compile, and fill the prefetch."""
ROWS = 16
"""Of an accelerator, if no batch is given."""


@dataclass(frozen=True)
class Case:
    """A run that is ready to go."""

    config: RunConfig
    windows: Windows
    trainer: Trainer


def case(mixture: Mixture, size: str, positions: str, changes: dict[str, Any]) -> Case:
    """The preset with other values, on this machine's devices; on an accelerator it has 16 rows a device."""
    settings = read_run_config(size).model_dump()
    settings["model"] = {"size": size, "positions": positions}
    if jax.devices()[0].platform != "cpu":
        settings["batch"] = ROWS * jax.device_count()
    settings |= {name: value for name, value in changes.items() if value is not None}
    config = RunConfig(**settings)
    windows = Windows(mixture, config)
    mesh = make_mesh(config.mesh, jax.devices())
    ids = mixture.tokenizer.vocabulary_size
    return Case(config, windows, Trainer(config, ids, len(mixture.names), windows.patch_slots, mesh))


def train(run: Case, steps: int) -> dict[str, Any]:
    """Seconds a step and what follows from them, over ``steps`` steps behind the warm-up.

    As in a run, a step is dispatched before the last one's metrics are read.
    """
    trainer, mesh = run.trainer, run.trainer.mesh
    begin = time.perf_counter()
    state = trainer.init()
    ends: list[float] = []
    waits: list[float] = []
    read: list[Metrics] = []
    pending: Metrics | None = None
    rows = process_rows(mesh, run.config.batch)
    with batches_ahead(run.windows, 0, WARM_UP + steps, rows, run.config.input.workers) as ready:
        for _ in range(WARM_UP + steps):
            asked = time.perf_counter()
            batch = next(ready)
            waits.append(time.perf_counter() - asked)
            state, metrics = trainer.step(state, place(batch, mesh))
            if pending is not None:
                read.append(jax.device_get(pending))
                ends.append(time.perf_counter())
            pending = metrics
        read.append(jax.device_get(pending))
        ends.append(time.perf_counter())
    seconds = ends[-1] - ends[WARM_UP - 1]
    timed = read[WARM_UP:]
    tokens = sum(int(metrics.sums.tokens) for metrics in timed)
    targets = sum(int(metrics.sums.dataset_targets.sum()) for metrics in timed)
    patches = sum(int(metrics.sums.patches) for metrics in timed)
    work = cost.train_step_flops(
        run.config.model,
        rows=steps * run.config.batch,
        context=run.config.context,
        patch_slots=patches,
        targets=targets,
        vocabulary_size=trainer.vocabulary_size,
    )
    known = cost.peak(jax.devices()[0].device_kind, run.config.precision)
    each = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    return {
        "batch": run.config.batch,
        "microbatches": run.config.microbatches,
        "remat": run.config.remat,
        "step_seconds": seconds / steps,
        "step_seconds_median": statistics.median(each),
        "tokens_per_second": tokens / seconds,
        "targets_share": targets / tokens,
        "patches_a_step": patches / steps,
        "flops_per_second": work / seconds,
        "mfu": work / seconds / known / jax.device_count() if known else "unknown peak",
        "input_wait": sum(waits[WARM_UP:]) / seconds,
        "first_step_seconds": ends[0] - begin,
        "loss": float(read[-1].loss),
    }


def gradients(run: Case) -> dict[str, Callable[[], Any]]:
    """Programs that make one real batch's gradients: with the loss at the targets, and with logits everywhere."""
    trainer, config = run.trainer, run.config
    params = trainer.init().params
    batch = place(run.windows.batch(0, process_rows(trainer.mesh, config.batch)), trainer.mesh)
    key = jax.random.key(0)

    def hidden(params: Any, batch: Batch) -> jax.Array:
        return model.forward(params, batch, config.model, dtype=trainer.dtype, remat=config.remat, key=key)

    def logits(params: Any, vectors: jax.Array) -> jax.Array:
        return model.logits(params, vectors, trainer.vocabulary_size)

    def at_targets(params: Any, batch: Batch) -> jax.Array:
        output = {"embedding": {"token": params["embedding"]["token"]}}
        vectors = hidden(params, batch)
        return target_losses(logits, output, vectors, batch, "token", trainer.datasets, trainer.mesh)[0]

    def everywhere(params: Any, batch: Batch) -> jax.Array:
        scores = jax.nn.log_softmax(logits(params, hidden(params, batch)))
        losses = -jnp.take_along_axis(scores, batch.targets.astype(jnp.int32)[..., None], axis=-1)[..., 0]
        return jnp.where(batch.target_kinds != PADDING, losses, 0).sum()

    def program(loss: Callable[[Any, Batch], jax.Array]) -> Callable[[], Any]:
        compiled = jax.jit(jax.value_and_grad(loss))
        return lambda: jax.block_until_ready(compiled(params, batch))

    return {"at_targets": program(at_targets), "everywhere": program(everywhere)}


def compare(programs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Seconds of the fastest turn of each, and their ratio."""
    losses = {name: float(program()[0]) for name, program in programs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            begin = time.perf_counter()
            program()
            seconds[name].append(time.perf_counter() - begin)
    best = {name: min(times) for name, times in seconds.items()}
    return {"seconds": best, "ratio": best["everywhere"] / best["at_targets"], "losses": losses}


def main() -> None:
    """Prints a line for each size and kind of positions, then the comparison of losses, then all as JSON."""
    on_cpu = jax.devices()[0].platform == "cpu"
    sizes = ["tiny"] if on_cpu else ["79m", "364m", "1.2b"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="finished builds, such as the demo's")
    parser.add_argument("--sizes", nargs="+", default=sizes, help="presets")
    parser.add_argument("--positions", nargs="+", default=["relative", "rotary"])
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each")
    parser.add_argument("--batch", type=int, help="rows of a step; gatokit train --compile-only shows what they take")
    parser.add_argument("--microbatches", type=int, help="of a step")
    parser.add_argument("--remat", choices=["none", "dots", "full"])
    parser.add_argument("--repeats", type=int, default=5, help="turns of the comparison of losses; 0 for none")
    arguments = parser.parse_args()
    changes = {name: getattr(arguments, name) for name in ("batch", "microbatches", "remat")}
    mixture = open_mixture(arguments.data, None)
    device = jax.devices()[0].device_kind
    found: dict[str, Any] = {"machine": machine() | {"device": device, "devices": jax.device_count()}, "steps": {}}
    print(json.dumps(found["machine"]), flush=True)
    for size in arguments.sizes:
        for positions in arguments.positions:
            row = train(case(mixture, size, positions, changes), arguments.steps)
            found["steps"][f"{size} {positions}"] = row
            mfu = row["mfu"] if isinstance(row["mfu"], str) else f"{row['mfu']:.1%}"
            print(
                f"{size:5} {positions:8} batch {row['batch']} in {row['microbatches']}, remat {row['remat']}: "
                f"{row['step_seconds']:.3f} s a step, {row['tokens_per_second']:,.0f} tokens/s, "
                f"{row['flops_per_second'] / 1e12:,.3f} TFLOP/s, MFU {mfu}, input {row['input_wait']:.2%}, "
                f"targets {row['targets_share']:.1%} of tokens, first step {row['first_step_seconds']:.0f} s",
                flush=True,
            )
    if arguments.repeats:
        row = compare(gradients(case(mixture, arguments.sizes[0], "relative", changes)), arguments.repeats)
        found["loss"] = row
        print(
            f"{arguments.sizes[0]:5} loss: gradients in {row['seconds']['at_targets']:.3f} s at the targets, "
            f"{row['seconds']['everywhere']:.3f} s with logits everywhere; ratio {row['ratio']:.2f}",
            flush=True,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
