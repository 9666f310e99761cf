"""``gatokit build``: builds the dataset; with ``--plan`` estimates a build and writes nothing."""

import argparse
from functools import partial
from typing import Any

from gatokit.cli.console import Output, needs, positive
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.words import byte_size, duration

TAKES_BEAM_OPTIONS = True

EXAMPLE = "gatokit build demo.yaml --out built --workers 2"

_MOST_SECONDS = 3600.0
_ESTIMATES = ("files", "source_bytes", "splits", "episodes", "kept", "shards", "tokens", "bytes", "worker_hours")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_job_arguments(parser)
    option = parser.add_argument
    option(
        "--update", action="store_true", help="DIR may hold a build of another config or data: build only what changed"
    )
    option("--plan", action="store_true", help="say what a build would give and take, and write nothing")
    option(
        "--sample-seconds", type=_seconds, default=20.0, metavar="S", help="with --plan: time to measure (default: 20)"
    )


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that scan and build share."""
    parser.add_argument("config", metavar="CONFIG", help="build config (YAML)")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--only", metavar="DATASET", help="this dataset of the config alone")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="read the first N episodes of each task alone, if paths name tasks"
    )
    parser.add_argument(
        "--scan-cache",
        metavar="DIR",
        help="keep scanned rows here; builds may share it (default: OUT/.scan)",
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="local processes (default: 1)")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to {_MOST_SECONDS:g}")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Builds and shows what was written, or shows what a build would write."""
    from gatokit.inspection.tables.fields import show_fields

    output = Output(arguments.json)
    if arguments.plan:
        _plan(arguments, output)
        return 0
    result = run_job(arguments, output)
    keys = ("name", "episodes", "kept", "tokens", "records", "held_out", "shards", "bytes")
    datasets = [{key: getattr(item, key) for key in keys} for item in result.manifest.datasets]
    output.table(
        arguments.out,
        ["dataset", "found", "kept", "tokens", "records", "held-out records", "shards", "bytes"],
        [(row | {"bytes": byte_size(row["bytes"])}).values() for row in datasets],
    )
    show_fields(output, result.steps)
    show_left_out(result, output)
    speed = "" if result.tokens_per_second is None else f", {result.tokens_per_second:,.0f} tokens/s"
    output.say(
        f"{result.built:,} shards built, {result.reused:,} reused, {result.removed:,} removed; "
        f"scan {result.stages['scan']:.1f} s, build {result.stages['build']:.1f} s{speed}"
    )
    output.say(f"built in {result.seconds:.1f} s; next: gatokit inspect {arguments.out}")
    for row in datasets:
        del row["held_out"]
    more = ("seconds", "stages", "built", "reused", "removed", "rejected", "left_out", "tokens_per_second")
    steps = {name: step.model_dump(mode="json") for name, step in result.steps.items()}
    values = {"datasets": datasets, "out": arguments.out, "steps": steps}
    output.result(values | {key: getattr(result, key) for key in more})
    return 0


def run_job(arguments: argparse.Namespace, output: Output) -> Any:
    """Scans or builds as the arguments ask, with progress and notices. Returns the ``pipelines.run.Result``."""
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
            scan_cache=arguments.scan_cache,
        )
    for notice in result.notices:
        output.notice(notice)
    return result


def show_left_out(result: Any, output: Output) -> None:
    """Shows what of each dataset is lost, why, and the first example; nothing if all was kept."""
    if result.left_out:
        columns = ["dataset", "what", "reason", "count", "of", "first"]
        output.table("left out", columns, [[row[column] for column in columns] for row in result.left_out])
    for item in result.manifest.datasets:
        if item.source_loss is not None:
            output.notice(f"{item.name}: {item.source_loss.sentence}")


# --- --plan ----------------------------------------------------------------------------------------------------


def _plan(arguments: argparse.Namespace, output: Output) -> None:
    """Estimates a build and shows the estimates."""
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
    totals = {key: plan.total(key) for key in _ESTIMATES}
    lines = [_estimates(item.name, vars(item), set(item.exact)) for item in plan.datasets]
    lines.append(_estimates("all", totals, set.intersection(*(set(item.exact) for item in plan.datasets))))
    output.table(
        f"plan of {arguments.config}",
        ["dataset", "files", "source", "splits", "found", "kept", "shards", "tokens", "bytes", "on one worker"],
        lines,
    )
    lines = []
    for item in plan.datasets:
        cells = [item.name, _percent(item.scanned_share), _percent(item.built_share)]
        for key, ends in item.spread.items():
            low, high = (_spread_text(key, end) for end in ends)
            cells.append(low if low == high else f"{low} to {high}")
        lines.append(cells)
    output.table(
        "from piece to piece of the sample",
        ["dataset", "scanned", "built", "kept", "tokens a byte", "scanned a second", "built a second"],
        lines,
    )
    workers = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
    output.say(f"about {duration(plan.seconds)} with {workers}, once they run; ~ marks estimates, the rest is exact")
    keys = ("name", *_ESTIMATES, "kind", "scanned_share", "built_share", "scan_seconds", "build_seconds", "exact")
    datasets = [{key: getattr(item, key) for key in (*keys, "spread")} for item in plan.datasets]
    values = {"datasets": datasets, "totals": totals, "workers": plan.workers, "seconds": plan.seconds}
    output.result({"plan": values})


def _estimates(name: str, values: dict[str, Any], exact: set[str]) -> list[str]:
    """The cells of a dataset. Estimates have ``~`` before them, and counts among them three digits."""
    cells = [name]
    for key in _ESTIMATES:
        value = values[key]
        if key == "worker_hours":
            text = duration(3600 * value)
        elif "bytes" in key:
            text = byte_size(value)
        elif key in exact or value < 1000:
            text = f"{value:,}"
        else:
            text = f"{round(value, 3 - len(str(value))):,}"
        cells.append(text if key in exact else f"~{text}")
    return cells


def _spread_text(key: str, value: float) -> str:
    if key == "kept_share":
        return _percent(value)
    return f"{value:.3g}" if key == "tokens_per_byte" else byte_size(value)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
