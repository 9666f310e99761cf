"""``gatokit export``: writes the weights of a run."""

import argparse
from pathlib import Path

from gatokit.cli.console import Output, needs

EXAMPLE = "gatokit export run --out weights\n  gatokit export run/checkpoints/2000 --out weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("checkpoint", metavar="RUN", help="a run's directory (its newest checkpoint), or a checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write")


def run(arguments: argparse.Namespace) -> int:
    """Exports the weights and shows how many."""
    with needs("train"):
        from gatokit.trainer.export import export
    output = Output(arguments.json)
    count = export(Path(arguments.checkpoint), Path(arguments.out))
    output.say(f"{count:,} parameters in {arguments.out}; another run starts from them with init_from: {arguments.out}")
    output.result({"out": arguments.out, "parameters": count})
    return 0
