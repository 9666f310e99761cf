"""What ``gatokit inspect --serve`` does: the explorer in a browser, until it is stopped."""

from collections.abc import Sequence

from gatokit.cli.console import Output, needs
from gatokit.inspection import DatasetReader, Directory

DEFAULT_PORT = 5006


def serve_explorer(output: Output, directory: Directory, datasets: Sequence[DatasetReader], port: int | None) -> None:
    """Serves until Ctrl-C or SIGTERM. ConfigError where Panel is not installed or the port cannot be had."""
    with needs("serve"):
        from gatokit.inspection.explorer.server import serve

    def ready(address: str) -> None:
        output.say(f"{directory.path} is at {address} on this machine alone; Ctrl-C stops it")
        output.result({"address": address})

    serve(directory, datasets, DEFAULT_PORT if port is None else port, ready)
