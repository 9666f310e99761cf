"""``gatokit gc``: removes what killed builds left in a directory."""

import argparse

from gatokit.cli.console import Output, needs
from gatokit.schemas.words import byte_size

EXAMPLE = """gatokit gc built --dry-run

Temporary files go, and shards and indexes that the manifest does not name: those of an update that was not
finished too. Without a manifest shards stay, because a build that is run again goes on with them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    option = parser.add_argument
    option("directory", metavar="DIR", help="directory of a build or scan")
    option("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    option("--all", action="store_true", help="also the scanned rows and plans from which an interrupted build goes on")


def run(arguments: argparse.Namespace) -> int:
    """Removes files and shows which."""
    output = Output(arguments.json)
    with needs("build"):
        from gatokit.pipelines.shards.ownership import collect
    found = collect(arguments.directory, work=arguments.all, dry_run=arguments.dry_run)
    files = [{"path": item.path, "bytes": item.bytes} for item in found]
    total = sum(item.bytes for item in found)
    if files:
        output.table(arguments.directory, ["file", "bytes"], [file.values() for file in files])
        done = "would remove" if arguments.dry_run else "removed"
        output.say(f"{done} {len(files):,} files, {byte_size(total)}")
    else:
        output.say("there is nothing to remove")
    output.result({"files": files, "bytes": total, "removed": not arguments.dry_run})
    return 0
