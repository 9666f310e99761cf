"""``gatokit demo``: the whole road on real episodes, pictures and prose that are made on the spot."""

import argparse
import json
import time
from importlib.resources import files
from pathlib import Path

from gatokit.cli.build import positive
from gatokit.cli.console import Output

VOCABULARY_PIECES = 4000
"""The demo's text is too short for 32,000."""
PLAYED = ("metaworld/button-press-topdown-v3", "metaworld/door-open-v3", "metaworld/drawer-open-v3")
"""What the policy is scored on: a few minutes of training on two cores teach a small model these."""
ROLLOUTS = 10


EXAMPLE = "gatokit demo --out demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--out", default="demo", metavar="DIR", help="directory to write (default: demo)")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="local processes (default: 2)")


def run(arguments: argparse.Namespace) -> int:
    """Runs every stage; what is already there is not done again."""
    from gatokit.cli.demo_corpora import CAPTIONS_FILE, make_captions, make_text
    from gatokit.cli.demo_train import forget_other_run, show_losses
    from gatokit.environments.demo import record_demo
    from gatokit.environments.jobs import progress_bars

    output = Output(arguments.json)
    out = Path(arguments.out)
    begin = time.monotonic()
    stage(output, "record episodes of four families: experts, noisy experts and random agents")
    with progress_bars() as progress:
        recordings = record_demo(out / "data", arguments.workers, progress)
    output.table(
        f"{out / 'data'}",
        ["recorded", "episodes", "steps", "expert", "noisy", "random"],
        [
            [item.env_id, item.episodes, item.steps, *(item.mean_return.get(a) for a in ("expert", "noisy", "random"))]
            for item in recordings
        ],
    )
    config, vocabulary = copied("demo.yaml", out), out / "vocabulary.model"
    stage(output, "draw pictures with captions, and collect prose, from Python packages")
    with output.progress() as progress:
        for done, (folder, write) in enumerate((("captions", make_captions), ("text", make_text))):
            progress("corpora", done, 2)
            (out / "data" / folder).mkdir(parents=True, exist_ok=True)
            write(out / "data" / folder)
        progress("corpora", 2, 2)
    workers = ["--workers", str(arguments.workers)]
    built = str(out / "built")
    train = ["vocab", str(config), "--out", str(vocabulary), "--pieces", str(VOCABULARY_PIECES)]
    for make in (
        *([lambda: train] if not vocabulary.exists() else []),
        lambda: ["scan", str(config), "--out", str(out / "scanned"), *workers],
        lambda: ["build", str(config), "--out", built, *workers],
        lambda: ["verify", built],
        lambda: ["inspect", built],
        lambda: ["inspect", built, "--dataset", "metaworld", "--at", "0.9"],
        lambda: ["inspect", built, "--dataset", "babyai", "--episode", first_kept(built, "babyai")],
        lambda: ["inspect", built, "--html", str(out / "report.html"), "--card", str(out / "CARD.md")],
        lambda: ["inspect", built, "--document", f"{CAPTIONS_FILE}#000000007", "--images", str(out / "pictures")],
    ):
        status = command(output, make(), quiet=arguments.json)
        if status:
            return status
    stage(output, "train the smallest model on the shards")
    run_config, run, scores = copied("demo-train.yaml", out), out / "run", out / "scores"
    forget_other_run(run_config, built, run, scores)
    status = command(output, ["train", str(run_config), "--data", built, "--out", str(run)], quiet=arguments.json)
    if status:
        return status
    losses = show_losses(output, run_config, built, run)
    stage(output, "let the policy play, beside the expert and chance")
    played = [word for task in PLAYED for word in ("--env", task)]
    evaluate = ["evaluate", "--checkpoint", str(run), *played, "--rollouts", str(ROLLOUTS), "--memory", "memory"]
    status = command(output, [*evaluate, "--out", str(scores), *workers], quiet=arguments.json)
    if status:
        return status
    seconds = time.monotonic() - begin
    output.say(f"\nthe demo took {seconds:.0f} s; everything is below {out}, and its config is {config}")
    from gatokit.evaluation.run import SCORES

    mean = json.loads((scores / SCORES).read_text(encoding="utf-8"))["mean"]
    output.result({"out": str(out), "seconds": seconds, "losses": losses, "score": mean})
    return 0


def copied(name: str, out: Path) -> Path:
    """A config that comes with the package, as a file in ``out``."""
    path = out / name
    path.write_text(files("gatokit.cli").joinpath(name).read_text(encoding="utf-8"), encoding="utf-8")
    return path


def stage(output: Output, text: str) -> None:
    """A heading."""
    output.say(f"\n— {text}")


def command(output: Output, words: list[str], *, quiet: bool) -> int:
    """Shows and runs one gatokit command; ``quiet`` prints nothing but the JSON of one that fails."""
    import contextlib
    import io

    from gatokit.cli.main import main

    output.say(f"\n$ gatokit {' '.join(words)}")
    if not quiet:
        return main(words)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main([*words, "--json"])
    if status:
        print(printed.getvalue(), end="", flush=True)
    return status


def first_kept(built: str, dataset: str) -> str:
    """The id of a dataset's first kept episode."""
    from gatokit.inspection import open_directory

    return next(open_directory(built).datasets[dataset].episodes(kept=True)).episode_id
