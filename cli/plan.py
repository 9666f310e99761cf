"""``gatokit build --plan``: what a build would give and take, without building."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from gatokit.cli.console import Output, needs, size
from gatokit.schemas.errors import ConfigError

_COUNTS = ("files", "source_bytes", "splits", "episodes", "kept", "shards", "tokens", "bytes", "worker_hours")
_MOST_SECONDS = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--plan`` and its option."""
    parser.add_argument("--plan", action="store_true", help="say what a build would give and take, and write nothing")
    parser.add_argument(
        "--sample-seconds",
        type=_seconds,
        default=20.0,
        metavar="S",
        help="with --plan: how long to measure a sample (default: 20)",
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Estimates and prints."""
    if arguments.limit is not None:
        raise ConfigError("--plan looks at whole datasets; leave out --limit, or choose one with --only")
    with needs("build"):
        from gatokit.pipelines.estimate import estimate
    with output.progress() as progress:
        found = estimate(
            arguments.config,
            only=arguments.only,
            workers=arguments.workers,
            beam_arguments=arguments.beam_options,
            sample_seconds=arguments.sample_seconds,
            progress=progress,
        )
    for notice in found.notices:
        output.notice(notice)
    rows = [{"name": item.name, **{key: getattr(item, key) for key in _COUNTS}} for item in found.datasets]
    total = {"name": "all", **{key: found.total(key) for key in _COUNTS}}
    exact = [set(item.exact) for item in found.datasets]
    columns = ["dataset", "files", "source", "splits", "found", "kept", "shards", "tokens", "bytes", "on one worker"]
    output.table(
        f"plan of {arguments.config}",
        columns,
        [_shown(row, names) for row, names in zip([*rows, total], [*exact, set.intersection(*exact)], strict=True)],
    )
    columns = ["dataset", "scanned", "built", "kept", "tokens a byte", "scanned a second", "built a second"]
    output.table("from piece to piece of the sample", columns, [_measured(item) for item in found.datasets])
    who = f"{found.workers} worker{'s' if found.workers > 1 else ''}"
    output.say(f"about {_duration(found.seconds)} with {who}, once they run; ~ marks estimates, the rest is exact")
    keys = ("kind", "scanned_share", "built_share", "scan_seconds", "build_seconds")
    output.result(
        {
            "plan": {
                "datasets": [
                    {
                        **row,
                        **{key: getattr(item, key) for key in keys},
                        "exact": list(item.exact),
                        "spread": asdict(item)["spread"],
                    }
                    for row, item in zip(rows, found.datasets, strict=True)
                ],
                "totals": {key: total[key] for key in _COUNTS},
                "workers": found.workers,
                "seconds": found.seconds,
            }
        }
    )
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to {_MOST_SECONDS:g}")
    return seconds


def _shown(row: dict[str, Any], exact: set[str]) -> list[str]:
    cells = [row["name"]]
    for key in _COUNTS:
        value = row[key]
        if key == "worker_hours":
            text = _duration(3600 * value)
        elif "bytes" in key:
            text = size(value)
        else:
            text = f"{value:,}" if key in exact else f"{_rounded(value):,}"
        cells.append(text if key in exact else f"~{text}")
    return cells


def _rounded(value: int) -> int:
    """To three digits."""
    return round(value, 3 - len(str(value))) if value >= 1000 else value


def _measured(item: Any) -> list[str]:
    """How much of a dataset was looked at, and the least and the most that a piece of it gave."""
    return [
        item.name,
        _percent(item.scanned_share),
        _percent(item.built_share),
        _range(item.spread["kept_share"], _percent),
        _range(item.spread["tokens_per_byte"], lambda value: f"{value:.3g}"),
        _range(item.spread["scan_bytes_per_second"], size),
        _range(item.spread["build_bytes_per_second"], size),
    ]


def _range(spread: tuple[float, float], shown: Callable[[float], str]) -> str:
    low, high = map(shown, spread)
    return low if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
