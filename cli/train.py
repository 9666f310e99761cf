"""``gatokit train``: a training run."""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gatokit.cli.build import positive
from gatokit.cli.console import Output, needs
from gatokit.schemas.errors import ConfigError

EXAMPLE = """gatokit train tiny --data demo/built --out run
  gatokit train run.yaml --data built --data new=more/built --out run
  gatokit train 1.2b --compile-only --topology v3:16x16

RUN_CONFIG is a YAML file or one of the presets tiny, 79m, 364m and 1.2b. The smallest file is

  model: tiny
  steps: 2000
  optimizer: {warmup_steps: 100}

Run the same command again to go on from the newest checkpoint in --out. SIGTERM or Ctrl-C writes a checkpoint first;
a second one ends at once."""

RETIRED = {
    "--overfit-one-batch": "to see the loss near zero, train on a small build, such as gatokit build CONFIG --out "
    "small --limit 1"
}
PROFILE_STEPS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("config", metavar="RUN_CONFIG", help="run config (YAML), or a preset's name")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="finished build, also on gs:// with --cache; several are mixed, and NAME names its datasets NAME/dataset",
    )
    parser.add_argument("--cache", metavar="DIR", help="directory that keeps what a run reads from gs://")
    parser.add_argument(
        "--cache-bytes", type=positive, metavar="N", help="of shards in --cache; those unused for longest go"
    )
    parser.add_argument("--out", metavar="DIR", help="directory of the run")
    parser.add_argument("--steps", type=positive, metavar="N", help="stop at step N; the schedule stays the config's")
    parser.add_argument(
        "--profile",
        type=positive,
        nargs="?",
        const=PROFILE_STEPS,
        metavar="STEPS",
        help=f"trace some steps to OUT/profile (default: {PROFILE_STEPS})",
    )
    parser.add_argument("--compile-only", action="store_true", help="compile the step for --topology, without data")
    parser.add_argument("--topology", metavar="NAME", help="TPU slice to compile for, such as v3:16x16 or v5e:4x4")
    parser.add_argument("--plan", action="store_true", help="microbatches, remat and memory for --device, without data")
    parser.add_argument("--device", metavar="NAME", help="device to plan for, such as H100")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where the processes of the run meet")
    parser.add_argument("--processes", type=positive, metavar="N", help="number of processes")
    parser.add_argument("--process", type=_ordinal, metavar="I", help="ordinal of this one, from 0")
    parser.add_argument(
        "--timeout",
        type=positive,
        default=600,
        metavar="SECONDS",
        help="end a run of several processes, naming the host, when no step ends for this long (default: 600)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains, or says what the config would take."""
    from gatokit.schemas.run import read_run_config

    config = read_run_config(arguments.config)
    output = Output(arguments.json)
    for flag, option in (("compile_only", "topology"), ("plan", "device")):
        if bool(getattr(arguments, flag)) != (getattr(arguments, option) is not None):
            raise ConfigError(f"--{flag.replace('_', '-')} and --{option} go together: give both or none")
    if arguments.compile_only:
        return _compile_only(config, arguments, output)
    if arguments.plan:
        return _plan(config, arguments, output)
    if not arguments.data or not arguments.out:
        raise ConfigError("--data and --out are needed: a finished build, and the directory of the run")
    if "://" in arguments.out:
        raise ConfigError(f"--out {arguments.out}: a run needs a directory; mount the bucket, as docs/training.md says")
    with needs("train"):
        from gatokit.loader.remote import is_remote, open_remote
        from gatokit.trainer.distributed import is_first, meet
        from gatokit.trainer.train import train
    _hush_checkpoints()
    data = [
        open_remote(item, arguments.cache, arguments.cache_bytes) if is_remote(item) else item
        for item in arguments.data
    ]
    meet(arguments.coordinator, arguments.processes, arguments.process)
    if not is_first():
        output = Output(as_json=True)
    with _report(output, quiet=not is_first()) as report:
        found = train(
            config,
            data,
            Path(arguments.out),
            report,
            steps=arguments.steps,
            profile=arguments.profile,
            timeout=arguments.timeout,
        )
    if is_first():
        _show(found.line, output)
        output.result(found.line | {"out": arguments.out})
    if found.stopped_by is not None:
        output.notice(f"{found.stopped_by.name} after step {found.step}, which is saved: run the same command to go on")
        return 128 + found.stopped_by
    output.say(f"step {found.step} of {config.steps}; curves and metrics are in {arguments.out}")
    return 0


def _hush_checkpoints() -> None:
    """Hides the tracebacks that Orbax and TensorStore show for a checkpoint that cannot be written."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)

    show = sys.unraisablehook

    def hushed(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hushed


def _compile_only(config: Any, arguments: argparse.Namespace, output: Output) -> int:
    with needs("tpu"):
        from gatokit.trainer.compile import compile_only
    report = compile_only(config, arguments.topology)
    output.say(str(report))
    output.result(asdict(report))
    return 0


def _plan(config: Any, arguments: argparse.Namespace, output: Output) -> int:
    with needs("train"):
        from gatokit.trainer.compile import plan
    found = plan(config, arguments.device)
    output.say(str(found))
    output.result(asdict(found))
    return 0


class _Report:
    """Prints the lines of a run, and its progress: a bar on a terminal, elsewhere a line at each logged step."""

    def __init__(self, output: Output, bar: Any, console: Any, quiet: bool) -> None:
        self._output, self._bar, self._console, self._quiet = output, bar, console, quiet
        self._task: Any = None
        self._shown = 0

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False)

    def notice(self, text: str) -> None:
        if not self._quiet:
            self._output.notice(text)

    def progress(self, step: int, last: int, line: dict[str, Any]) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("train", total=last, text="compiling")
            self._bar.update(self._task, completed=step, text=_summary(line) if line else "compiling")
        elif line and line["step"] > self._shown:
            self._shown = line["step"]
            self._console.print(f"step {line['step']} of {last}: {_summary(line)}", markup=False)


@contextmanager
def _report(output: Output, quiet: bool) -> Iterator[_Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    if quiet or not console.is_terminal:
        yield _Report(output, None, console, quiet)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=console) as bar:
        yield _Report(output, bar, console, quiet)


def _summary(line: dict[str, Any]) -> str:
    mfu = line["mfu"] if isinstance(line["mfu"], str) else f"{line['mfu']:.1%}"
    return (
        f"loss {line['loss']:.4f}, {line['tokens_per_second']:,.0f} tokens/s, MFU {mfu}, "
        f"input {line['input_wait']:.1%}, lr {line['learning_rate']:.2e}"
    )


def _show(line: dict[str, Any], output: Output) -> None:
    """Tables of the last losses."""
    held_out = line.get("held_out") or {"datasets": {}, "kinds": {}, "loss": None, "text_perplexity": None}
    output.table(
        "loss by dataset, nats",
        ["dataset", "share of targets", "training", "held out"],
        [
            [name, item["share"], item["loss"], held_out["datasets"].get(name, {}).get("loss")]
            for name, item in line.get("datasets", {}).items()
        ],
    )
    output.table(
        "loss by kind, nats",
        ["kind", "training", "held out"],
        [[name, loss, held_out["kinds"].get(name)] for name, loss in line.get("kinds", {}).items()],
    )
    if held_out["text_perplexity"] is not None:
        output.say(f"text perplexity of what is held out: {held_out['text_perplexity']:,.2f} a token")
    if line.get("first_action_loss") is not None:
        output.say(
            f"first action of a window: {line['first_action_loss']:.4f} nats; all actions: {line['action_loss']:.4f}"
        )


def _ordinal(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)
