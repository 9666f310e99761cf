"""``gatokit gc``: removes what killed builds left in a directory."""

import argparse

from gatokit.cli.console import Output, needs
from gatokit.schemas.words import byte_size

EXAMPLE = (
    "gatokit gc built --dry-run\n\n"
    "Temporary files go, and shards and indexes that the manifest does not name: those of an update that was not\n"
    "finished too. Without a manifest shards stay, because a build that is run again goes on with them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="directory of a build or scan")
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    parser.add_argument(
        "--all", action="store_true", help="also the scanned rows and plans from which an interrupted build goes on"
    )


def run(arguments: argparse.Namespace) -> int:
    """Removes and prints what was removed."""
    output = Output(arguments.json)
    with needs("build"):
        from gatokit.pipelines.shards.garbage import collect
    found = collect(arguments.directory, work=arguments.all, dry_run=arguments.dry_run)
    total = sum(item.bytes for item in found)
    if found:
        output.table(f"{arguments.directory}", ["file", "bytes"], [[item.path, item.bytes] for item in found])
    done = "would remove" if arguments.dry_run else "removed"
    output.say(f"{done} {len(found):,} files, {byte_size(total)}" if found else "there is nothing to remove")
    output.result(
        {
            "files": [{"path": item.path, "bytes": item.bytes} for item in found],
            "bytes": total,
            "removed": not arguments.dry_run,
        }
    )
    return 0
