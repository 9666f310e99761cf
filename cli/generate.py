"""``gatokit generate``: lets a policy write text."""

import argparse
from pathlib import Path

from gatokit.cli.console import Output, needs, positive
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.words import visible_lines

EXAMPLE = """gatokit generate --checkpoint run --text "The sum of two numbers"
  gatokit generate --checkpoint run --image cat.png --tokens 16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    option = parser.add_argument
    option("--checkpoint", required=True, metavar="DIR", help="a run's directory, one of its checkpoints, or an export")
    option("--text", default="", help="what to continue")
    option("--image", metavar="FILE", help="an image to caption; it comes before the text")
    option("--dataset", metavar="NAME", help="prepare the image as in this dataset (default: the first with images)")
    option("--tokens", type=positive, default=64, metavar="N", help="most pieces of text (default: 64)")
    option("--greedy", action="store_true", help="take the likeliest piece instead of a sample")
    option(
        "--temperature", type=_temperature, default=0.9, metavar="T", help="of samples (default: 0.9, as in the paper)"
    )
    option("--seed", type=int, default=0, help="seed of samples (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Shows the text that the policy writes."""
    with needs("train"):
        from gatokit.policy.generate import generate
        from gatokit.policy.policy import load_policy
    output = Output(arguments.json)
    image = None
    if arguments.image is not None:
        try:
            image = Path(arguments.image).read_bytes()
        except OSError as error:
            raise ConfigError(f"--image: {arguments.image} cannot be read: {error.strerror}") from None
    written = generate(
        load_policy(Path(arguments.checkpoint)),
        arguments.text,
        image,
        dataset=arguments.dataset,
        tokens=arguments.tokens,
        rule="greedy" if arguments.greedy else "sample",
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    output.say(*visible_lines(f"{arguments.text}{written}"))
    output.result({"text": arguments.text, "image": arguments.image, "written": written})
    return 0


def _temperature(word: str) -> float:
    value = float(word)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{word} is not above 0; --greedy takes the likeliest")
    return value
