"""``gatokit publish``: copies a finished directory for other people."""

import argparse
from dataclasses import asdict

from gatokit.cli.console import Output
from gatokit.schemas.words import byte_size

EXAMPLE = """gatokit publish built --out published && gatokit verify published

The shards and the data digest stay, so that runs go on with the copy. Of sources only names stay; the log, times and
paths are left out, and a card is added as README.md. docs/publish.md lists what a folder tells about its maker."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="finished build or scan")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write, which must not exist")


def run(arguments: argparse.Namespace) -> int:
    """Copies, and shows what the copy still says."""
    from gatokit.inspection.publish import publish

    output = Output(arguments.json)
    with output.progress() as progress:
        published = publish(arguments.directory, arguments.out, progress)
    for notice in published.notices:
        output.notice(notice)
    output.say(f"{published.files:,} files, {byte_size(published.bytes)}, a card and a manifest in {arguments.out}")
    output.result({"out": arguments.out} | asdict(published))
    return 0
