"""``gatokit demo``: runs every command on real episodes, images and prose, which it makes first."""

import argparse
import contextlib
import io
import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from gatokit.cli.console import Output, positive
from gatokit.schemas.errors import ConfigError

VOCABULARY_PIECES = 4000
"""The demo's text is too short for 32,000."""
PLAYED = ("metaworld/button-press-topdown-v3", "metaworld/door-open-v3", "metaworld/drawer-open-v3")
"""What the policy is scored on: a few minutes of training on two cores teach a small model these."""
ROLLOUTS = 10
COUNTED_BATCHES = 200
"""Batches whose targets give the unigram entropy."""

_FOLDERS = ("data", "data/captions", "data/text", "scanned", "built", "pictures", "run", "scores")

EXAMPLE = "gatokit demo --out demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--out", default="demo", metavar="DIR", help="directory to write (default: demo)")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="local processes (default: 2)")


def run(arguments: argparse.Namespace) -> int:
    """Runs every stage; what is already there is not made again."""
    from gatokit.storage.ownership import check_folder

    output, out, begin = Output(arguments.json), Path(arguments.out), time.monotonic()
    workers = ["--workers", str(arguments.workers)]
    for name in _FOLDERS:
        check_folder(out / name)
    config, run_config = (_copied(name, out) for name in ("demo.yaml", "demo-train.yaml"))
    _make_sources(output, out / "data", arguments.workers)
    vocabulary, built = out / "vocabulary.model", str(out / "built")

    def command(*words: object) -> int:
        """Shows and runs one command. With ``--json`` it prints nothing, but the JSON of a command that fails."""
        from gatokit.cli.main import main

        texts = [str(word) for word in words]
        output.say("", f"$ gatokit {' '.join(texts)}")
        if not arguments.json:
            return main(texts)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            status = main([*texts, "--json"])
        if status:
            print(printed.getvalue(), end="", flush=True)
        return status

    status = (
        (not vocabulary.exists() and command("vocab", config, "--out", vocabulary, "--pieces", VOCABULARY_PIECES))
        or command("scan", config, "--out", out / "scanned", *workers)
        or command("build", config, "--out", built, *workers)
        or command("verify", built)
        or command("inspect", built)
        or command("inspect", built, "--dataset", "metaworld", "--at", "0.9")
        or command("inspect", built, "--dataset", "babyai", "--episode", _first_kept(built, "babyai"))
        or command("inspect", built, "--html", out / "report.html", "--card", out / "CARD.md")
        or command("inspect", built, "--document", "00000.tar#000000007", "--images", out / "pictures")
    )
    if status:
        return status
    output.say("", "— train the smallest model on the shards")
    trained, scores = out / "run", out / "scores"
    status = command("train", run_config, "--data", built, "--out", trained)
    if status:
        return status
    losses = _show_losses(output, run_config, built, trained)
    output.say("", "— let the policy play, beside the expert and chance")
    tasks = [word for task in PLAYED for word in ("--env", task)]
    options = ["--rollouts", ROLLOUTS, "--memory", "memory", "--out", scores, *workers]
    status = command("evaluate", "--checkpoint", trained, *tasks, *options)
    if status:
        return status
    seconds = time.monotonic() - begin
    output.say("", f"the demo took {seconds:.0f} s; everything is below {out}, and its config is {config}")
    from gatokit.evaluation.run import SCORES

    mean = json.loads((scores / SCORES).read_text(encoding="utf-8"))["mean"]
    output.result({"out": str(out), "seconds": seconds, "losses": losses, "score": mean})
    return 0


def _make_sources(output: Output, data: Path, workers: int) -> None:
    """Records episodes, and makes the images with captions and the prose."""
    from gatokit.environments.demo import make_captions, make_text, record_demo

    output.say("", "— record episodes of four families: experts, noisy experts and random agents")
    with output.progress() as progress:
        recordings = record_demo(data, workers, progress)
    agents = ("expert", "noisy", "random")
    rows = [[item.env_id, item.episodes, item.steps, *map(item.mean_return.get, agents)] for item in recordings]
    output.table(f"{data}", ["recorded", "episodes", "steps", *agents], rows)
    output.say("", "— draw images with captions, and collect prose, from Python packages")
    with output.progress() as progress:
        for done, (folder, make) in enumerate((("captions", make_captions), ("text", make_text))):
            progress("corpora", done, 2)
            (data / folder).mkdir(parents=True, exist_ok=True)
            make(data / folder)
        progress("corpora", 2, 2)


def _first_kept(directory: str, dataset: str) -> str:
    from gatokit.inspection import open_directory

    return next(open_directory(directory).datasets[dataset].episodes(kept=True)).episode_id


def _copied(name: str, out: Path) -> Path:
    """A config that comes with the package, as a file in ``out``. Raises ConfigError if another one is there."""
    from gatokit.storage.files import write_new
    from gatokit.storage.ownership import check_output

    path, data = out / name, files("gatokit.cli").joinpath(name).read_bytes()
    check_output(path)
    if not path.exists():
        write_new(path, data)
    elif path.read_bytes() != data:
        raise ConfigError(f"{path}: is another file than the demo's; remove it, or choose another --out")
    return path


def _show_losses(output: Output, config: Path, built: str, out: Path) -> list[dict[str, Any]]:
    """Shows the losses by kind beside the unigram entropy of the targets, and draws both as ``loss.png``."""
    from gatokit.inspection.report.charts import LOSS_CHART, draw_losses
    from gatokit.storage.run_directory import last_line

    entropies = unigram_entropies(config, built, COUNTED_BATCHES)
    last = last_line(out)
    trained, held_out = last["kinds"], last["held_out"]["kinds"]
    rows = [
        {"kind": kind, "entropy": entropy, "training": trained.get(kind), "held_out": held_out.get(kind)}
        for kind, entropy in entropies.items()
    ]
    title = "loss by kind, and the unigram entropy of the targets, nats"
    output.table(title, ["kind", "unigram entropy", "training", "held out"], [row.values() for row in rows])
    draw_losses(out, entropies)
    output.say(f"the curves are in {out / LOSS_CHART}")
    return rows


def unigram_entropies(config: Path, built: str, batches: int) -> dict[str, float]:
    """Entropy in nats of the ids of each kind of target in a run's first batches, without kinds that have none.

    It is the loss of a model that knows only how often each id is a target. That of a sample is a little too low, so a
    loss below it is also below that of all data.
    """
    import numpy as np

    from gatokit.loader.mixture import open_mixture
    from gatokit.loader.windows import Windows
    from gatokit.schemas.run import read_run_config
    from gatokit.schemas.tokens import TokenKind

    run = read_run_config(config)
    windows = Windows(open_mixture([built], run.input.weights), run)
    seen = [windows.batch(step, range(run.batch)) for step in range(batches)]
    entropies = {}
    for kind in TokenKind:
        counts = np.bincount(np.concatenate([batch.targets[batch.target_kinds == kind] for batch in seen]))
        shares = counts[counts > 0] / max(1, counts.sum())
        if len(shares):
            entropies[kind.name.lower()] = float(-(shares * np.log(shares)).sum())
    return entropies
