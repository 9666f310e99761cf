"""``gatokit build``: the dataset, or with ``--plan`` what a build would give and take."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from gatokit.cli.console import Output, needs
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.words import byte_size

_ESTIMATED = ("files", "source_bytes", "splits", "episodes", "kept", "shards", "tokens", "bytes", "worker_hours")
_MOST_SECONDS = 3600.0


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
    parser.add_argument("--plan", action="store_true", help="say what a build would give and take, and write nothing")
    parser.add_argument(
        "--sample-seconds",
        type=_seconds,
        default=20.0,
        metavar="S",
        help="with --plan: how long to measure a sample (default: 20)",
    )


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that scan and build share."""
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


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to {_MOST_SECONDS:g}")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Builds and prints what was written, or plans."""
    output = Output(arguments.json)
    if arguments.plan:
        _plan(arguments, output)
        return 0
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
                byte_size(item.bytes),
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


def run_job(arguments: argparse.Namespace, output: Output) -> Any:
    """Runs the scan or build that the arguments ask for, with progress, and shows its notices. Returns its result."""
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


def summary(result: Any) -> list[str]:
    """Sentences about a finished job: rows rejected by reason, shards built or not, how fast."""
    sentences = []
    for name, reasons in result.rejected.items():
        counts = [f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
        if counts:
            sentences.append(f"{name}: not kept: {', '.join(counts)}")
    if result.manifest.content == "build":
        shards = f"{result.built:,} shards built, {result.reused:,} reused, {result.removed:,} removed"
        rate = result.tokens_per_second
        speed = "" if rate is None else f", {rate:,.0f} tokens/s"
        seconds = f"scan {result.stages['scan']:.1f} s, build {result.stages['build']:.1f} s"
        sentences.append(f"{shards}; {seconds}{speed}")
    return sentences


# --- --plan ----------------------------------------------------------------------------------------------------


def _plan(arguments: argparse.Namespace, output: Output) -> None:
    """Estimates a build and prints it."""
    if arguments.limit is not None:
        raise ConfigError("--plan looks at whole datasets; leave out --limit, or choose one with --only")
    with needs("build"):
        from gatokit.pipelines.estimate import estimate
    with output.progress() as progress:
        plan = estimate(
            arguments.config,
            only=arguments.only,
            workers=arguments.workers,
            beam_arguments=arguments.beam_options,
            sample_seconds=arguments.sample_seconds,
            progress=progress,
        )
    for notice in plan.notices:
        output.notice(notice)
    rows = [{"name": item.name, **{key: getattr(item, key) for key in _ESTIMATED}} for item in plan.datasets]
    total = {"name": "all", **{key: plan.total(key) for key in _ESTIMATED}}
    exact = [set(item.exact) for item in plan.datasets]
    output.table(
        f"plan of {arguments.config}",
        ["dataset", "files", "source", "splits", "found", "kept", "shards", "tokens", "bytes", "on one worker"],
        [_estimates(row, names) for row, names in zip([*rows, total], [*exact, set.intersection(*exact)], strict=True)],
    )
    output.table(
        "from piece to piece of the sample",
        ["dataset", "scanned", "built", "kept", "tokens a byte", "scanned a second", "built a second"],
        [
            [
                item.name,
                _percent(item.scanned_share),
                _percent(item.built_share),
                _range(item.spread["kept_share"], _percent),
                _range(item.spread["tokens_per_byte"], lambda value: f"{value:.3g}"),
                _range(item.spread["scan_bytes_per_second"], byte_size),
                _range(item.spread["build_bytes_per_second"], byte_size),
            ]
            for item in plan.datasets
        ],
    )
    workers = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
    output.say(f"about {_duration(plan.seconds)} with {workers}, once they run; ~ marks estimates, the rest is exact")
    keys = ("kind", "scanned_share", "built_share", "scan_seconds", "build_seconds")
    output.result(
        {
            "plan": {
                "datasets": [
                    {
                        **row,
                        **{key: getattr(item, key) for key in keys},
                        "exact": list(item.exact),
                        "spread": dict(item.spread),
                    }
                    for row, item in zip(rows, plan.datasets, strict=True)
                ],
                "totals": {key: total[key] for key in _ESTIMATED},
                "workers": plan.workers,
                "seconds": plan.seconds,
            }
        }
    )


def _estimates(row: dict[str, Any], exact: set[str]) -> list[str]:
    """The cells of a dataset, with ``~`` before estimates and three digits of them."""
    cells = [row["name"]]
    for key in _ESTIMATED:
        value = row[key]
        if key == "worker_hours":
            text = _duration(3600 * value)
        elif "bytes" in key:
            text = byte_size(value)
        elif key in exact or value < 1000:
            text = f"{value:,}"
        else:
            text = f"{round(value, 3 - len(str(value))):,}"
        cells.append(text if key in exact else f"~{text}")
    return cells


def _range(spread: tuple[float, float], text: Callable[[float], str]) -> str:
    low, high = map(text, spread)
    return low if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
