"""The demo's training run: what it learned, beside what is learned by counting."""

import shutil
from pathlib import Path
from typing import Any

from gatokit.cli.console import Output, needs
from gatokit.schemas.run import read_run_config

COUNTED_BATCHES = 200
"""Batches whose targets give the unigram entropy."""


def forget_other_run(config: Path, built: str, out: Path, scores: Path) -> None:
    """Removes a run in ``out`` that was made by another config or on another build, and ``scores`` of no run there."""
    with needs("train"):
        from gatokit.loader.mixture import open_mixture
        from gatokit.trainer.run_directory import read_run
    run, wanted = read_run(out), read_run_config(config)
    if run is None:
        shutil.rmtree(scores, ignore_errors=True)
        return
    slots = {"patch_slots": wanted.input.patch_slots, "patch_group_rows": wanted.input.patch_group_rows}
    found = run.config.model_copy(update={"input": run.config.input.model_copy(update=slots)})
    if found != wanted or run.data_digest != open_mixture([built], wanted.input.weights).data_digest:
        shutil.rmtree(out)
        shutil.rmtree(scores, ignore_errors=True)


def show_losses(output: Output, config: Path, built: str, out: Path) -> list[dict[str, Any]]:
    """A table of the losses by kind beside the unigram entropy of the targets, and ``loss.png`` with both."""
    from gatokit.loader.mixture import open_mixture
    from gatokit.loader.windows import Windows
    from gatokit.trainer.loss_chart import draw_losses
    from gatokit.trainer.metrics import read_metrics, unigram_entropies

    wanted = read_run_config(config)
    windows = Windows(open_mixture([built], wanted.input.weights), wanted)
    entropies = unigram_entropies(windows, wanted, COUNTED_BATCHES)
    lines = read_metrics(out)
    trained = [line["kinds"] for line in lines if "kinds" in line][-1]
    held_out = [line["held_out"]["kinds"] for line in lines if "held_out" in line][-1]
    rows = [
        {"kind": kind, "entropy": entropy, "training": trained.get(kind), "held_out": held_out.get(kind)}
        for kind, entropy in entropies.items()
    ]
    output.table(
        "loss by kind, and the unigram entropy of the targets, nats",
        ["kind", "unigram entropy", "training", "held out"],
        [list(row.values()) for row in rows],
    )
    output.say(f"the curves are in {draw_losses(out, entropies)}")
    return rows
