"""``gatokit build``: the dataset."""

import argparse
from functools import partial
from typing import Any

from gatokit.cli import plan
from gatokit.cli.console import Output, needs, size

TAKES_BEAM_OPTIONS = True

EXAMPLE = (
    "gatokit build demo.yaml --out built --workers 2\n\n"
    "Every other option is Apache Beam's, such as --runner or --project."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_job_arguments(parser)
    parser.add_argument(
        "--update",
        action="store_true",
        help="DIR may hold a finished build of another config or other source files: build what changed, keep the rest",
    )
    plan.add_arguments(parser)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that scan and build share."""
    parser.add_argument("config", metavar="CONFIG", help="build config (YAML)")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--only", metavar="DATASET", help="this dataset of the config alone")
    parser.add_argument("--limit", type=positive, metavar="N", help="look at the first N episodes of each task alone")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="local processes (default: 1)")


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def run_job(arguments: argparse.Namespace, output: Output) -> Any:
    """Runs the scan or build that the arguments ask for, with progress, and shows its notices; its ``Result``."""
    with needs("build"):
        from gatokit.pipelines import run as pipelines
    job = pipelines.scan if arguments.verb == "scan" else partial(pipelines.build, update=arguments.update)
    with output.progress() as progress:
        result = job(
            arguments.config,
            arguments.out,
            only=arguments.only,
            limit=arguments.limit,
            workers=arguments.workers,
            beam_arguments=arguments.beam_options,
            progress=progress,
        )
    for notice in result.notices:
        output.notice(notice)
    return result


def run(arguments: argparse.Namespace) -> int:
    """Builds and prints what was written, or plans."""
    output = Output(arguments.json)
    if arguments.plan:
        return plan.run(arguments, output)
    result = run_job(arguments, output)
    datasets = result.manifest.datasets
    output.table(
        f"{arguments.out}",
        ["dataset", "found", "kept", "tokens", "records", "held-out records", "shards", "bytes"],
        [
            [
                item.name,
                item.episodes,
                item.kept,
                item.tokens,
                item.records,
                item.held_out,
                item.shards,
                size(item.bytes),
            ]
            for item in datasets
        ],
    )
    for sentence in summary(result):
        output.say(sentence)
    output.say(f"built in {result.seconds:.1f} s; next: gatokit inspect {arguments.out}")
    keys = ("name", "episodes", "kept", "tokens", "records", "shards", "bytes")
    output.result(
        {
            "datasets": [{key: getattr(item, key) for key in keys} for item in datasets],
            "seconds": result.seconds,
            "out": str(arguments.out),
            "stages": result.stages,
            "built": result.built,
            "reused": result.reused,
            "removed": result.removed,
            "rejected": result.rejected,
            "tokens_per_second": result.tokens_per_second,
        }
    )
    return 0


def summary(result: Any) -> list[str]:
    """Sentences about a finished job: rows rejected by reason, shards built or not, how fast."""
    sentences = [f"{name}: not kept: {_listed(reasons)}" for name, reasons in result.rejected.items() if reasons]
    if result.manifest.content == "build":
        shards = f"{result.built:,} shards built, {result.reused:,} reused, {result.removed:,} removed"
        rate = result.tokens_per_second
        speed = "" if rate is None else f", {rate:,.0f} tokens/s"
        seconds = f"scan {result.stages['scan']:.1f} s, build {result.stages['build']:.1f} s"
        sentences.append(f"{shards}; {seconds}{speed}")
    return sentences


def _listed(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
