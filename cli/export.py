"""``gatokit export``: the weights of a run."""

import argparse
from pathlib import Path

from gatokit.cli.console import Output, add_command
from gatokit.cli.extras import needs


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "export",
        "write a run's weights as safetensors, with all that a policy needs beside them",
        "gatokit export run --out weights\n  gatokit export run/checkpoints/2000 --out weights",
    )
    parser.add_argument("checkpoint", metavar="RUN", help="a run's directory (its newest checkpoint), or a checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    parser.set_defaults(run=run, takes_beam_options=False)


def run(arguments: argparse.Namespace) -> int:
    """Exports and says what."""
    with needs("train"):
        from gatokit.trainer.export import export
    output = Output(arguments.json)
    count = export(Path(arguments.checkpoint), Path(arguments.out))
    output.say(f"{count:,} parameters in {arguments.out}; another run starts from them with init_from: {arguments.out}")
    output.result({"out": arguments.out, "parameters": count})
    return 0
