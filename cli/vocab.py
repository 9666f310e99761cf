"""``gatokit vocab``: trains the SentencePiece model."""

import argparse

from gatokit.cli.console import Output, needs, positive
from gatokit.schemas.words import byte_size

EXAMPLE = """gatokit vocab corpora.yaml --out text.model

Trains on the texts, captions, questions with answers and pages of the config's datasets, and on the text fields of its
episodes, as a build keeps them for training: no duplicates, nothing held out. A config with more text than
--sample-bytes gives a sample, each dataset in proportion to its bytes. A config without text needs no vocabulary: then
this says so and writes none.

Under --normalization identity decoded text equals the source text, with one exception: U+2581 (▁), SentencePiece's sign
for a space, becomes a space. Under nfkc compatibility forms are unified, and line ends and runs of spaces become one
space."""

MOST_PIECES = 32_000
"""``schemas.tokens.TEXT_IDS``; to import it would import NumPy for the help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    option = parser.add_argument
    option("config", metavar="CONFIG", help="build config (YAML)")
    option("--out", required=True, metavar="FILE", help="model to write; the config's vocabulary")
    option("--pieces", type=positive, default=MOST_PIECES, metavar="N", help=f"most pieces (default: {MOST_PIECES})")
    option("--normalization", choices=["identity", "nfkc"], default="identity", help="of the text (default: identity)")
    option(
        "--sample-bytes",
        type=positive,
        default=60_000_000,
        metavar="N",
        help="most text to train on, which takes 25 times as much memory (default: 60000000)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains the model and shows what it was trained on."""
    from dataclasses import asdict

    with needs("build"):
        from gatokit.pipelines.vocabulary import make_vocabulary
    output = Output(arguments.json)
    with output.progress() as progress:
        trained = make_vocabulary(
            arguments.config,
            arguments.out,
            pieces=arguments.pieces,
            normalization=arguments.normalization,
            sample_bytes=arguments.sample_bytes,
            progress=progress,
        )
    if trained is None:
        said = f"{arguments.config}: nothing of its data is text, so that a build needs no vocabulary; none was written"
        output.say(said)
        output.result({"file": None, "pieces": 0, "datasets": [], "warnings": [said]})
        return 0
    for warning in trained.warnings:
        output.notice(warning)
    rows = [[item.name, item.of, item.documents, byte_size(item.bytes)] for item in trained.datasets]
    output.table(f"{trained.file}", ["dataset", "documents", "in the sample", "bytes"], rows)
    held_out = trained.held_out_characters_per_token
    output.say(
        f"{trained.pieces:,} pieces ({trained.normalization}) from {trained.sentences:,} sentences, "
        f"{byte_size(trained.bytes)}, in {trained.seconds:.1f} s; {trained.characters_per_token:.2f} characters a token"
        + ("" if held_out is None else f", {held_out:.2f} in held-out documents")
    )
    output.say(f"BLAKE2b {trained.blake2b}")
    output.result(asdict(trained))
    return 0
