"""``gatokit train``: trains, or compiles the training step to show what it takes."""

import argparse
import importlib.util
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from gatokit.cli.console import Output, needs, not_negative, positive
from gatokit.schemas.errors import ConfigError, first_line, install_hint
from gatokit.schemas.words import duration, visible

if TYPE_CHECKING:
    from gatokit.loader.mixture import Mixture
    from gatokit.trainer.step import Trainer

EXAMPLE = """gatokit train tiny --data demo/built --out run
  gatokit train tiny batch=16 optimizer.learning_rate=3e-4 --data demo/built --out run
  gatokit train run.yaml --data built --data new=more/built --out run
  gatokit train run.yaml --compile-only
  gatokit train 1.2b --compile-only --topology v3:16x16

RUN_CONFIG is a YAML file or one of the presets tiny, 79m, 364m and 1.2b. The smallest file is

  model: tiny
  steps: 2000

Run the same command again to go on from the newest checkpoint in --out. SIGTERM or Ctrl-C writes a checkpoint first;
a second one ends at once."""

_COMPILE_INSTEAD = (
    "gatokit train CONFIG --compile-only shows the memory that the step takes on this machine's devices, and with "
    "--topology v3:16x16 on those of a TPU slice"
)
TAKES_OVERRIDES = True
RETIRED = {
    "--overfit-one-batch": "to see the loss near zero, train on a small build, such as gatokit build CONFIG --out "
    "small --limit 1",
    "--plan": _COMPILE_INSTEAD,
    "--device": _COMPILE_INSTEAD,
}
PROFILE_STEPS = 5
_WHOLE_SLICES = {"v3": "16x16", "v4": "8x8x8", "v5e": "16x16", "v5p": "8x8x8", "v6e": "16x16"}
_OFFLINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Keeps libtpu from asking a metadata server what this machine is, and from locking out another user of its TPU."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    option = parser.add_argument
    option("config", metavar="RUN_CONFIG", help="run config (YAML), or a preset's name")
    option(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="a value of the config, such as batch=16 or optimizer.learning_rate=3e-4",
    )
    option(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="finished build, also on gs:// with --cache; several are mixed, and NAME names its datasets NAME/dataset",
    )
    option("--cache", metavar="DIR", help="directory that keeps what a run reads from gs://")
    option("--cache-bytes", type=positive, metavar="N", help="of shards in --cache; those unused for longest go")
    option("--out", metavar="DIR", help="directory of the run")
    option("--steps", type=positive, metavar="N", help="stop at step N; the schedule stays the config's")
    option(
        "--profile",
        type=positive,
        nargs="?",
        const=PROFILE_STEPS,
        metavar="STEPS",
        help=f"trace some steps to OUT/profile (default: {PROFILE_STEPS})",
    )
    option(
        "--compile-only", action="store_true", help="without data: compile the step for this machine, show its memory"
    )
    option("--topology", metavar="NAME", help="with --compile-only: for this TPU slice, such as v3:16x16 or v5e:4x4")
    option("--coordinator", metavar="HOST:PORT", help="where the processes of the run meet")
    option("--processes", type=positive, metavar="N", help="number of processes")
    option("--process", type=not_negative, metavar="I", help="ordinal of this one, from 0")
    option(
        "--timeout",
        type=positive,
        default=600,
        metavar="SECONDS",
        help="end a run of several processes, naming the host, when no step ends for this long (default: 600)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains, or shows what the config would take."""
    from gatokit.schemas.run import read_run_config

    config = read_run_config(arguments.config, arguments.overrides)
    output = Output(arguments.json)
    if arguments.topology is not None and not arguments.compile_only:
        raise ConfigError("--topology belongs to --compile-only: give both or none")
    if arguments.compile_only:
        with needs("tpu" if arguments.topology else "train"):
            import jax

            from gatokit.trainer.cost import compile_only
        topology, devices = (None, jax.devices()) if arguments.topology is None else tpu_slice(arguments.topology)
        compiled = {"topology": topology} | compile_only(config, devices)
        output.say(*compiled_text(compiled).split("\n"))
        output.result(compiled)
        return 0
    if not arguments.data or not arguments.out:
        raise ConfigError("--data and --out are needed: a finished build, and the directory of the run")
    if "://" in arguments.out:
        raise ConfigError(f"--out {arguments.out}: a run needs a directory; mount the bucket, as docs/training.md says")
    coordinator, processes, process = arguments.coordinator, arguments.processes, arguments.process
    if len({value is None for value in (coordinator, processes, process)}) > 1:
        raise ConfigError("--coordinator, --processes and --process go together: give all three or none")
    if processes is not None and process >= processes:
        raise ConfigError(f"--process {process} must be in 0 … {processes - 1}, since --processes is {processes}")
    with needs("train"):
        from gatokit.storage.cache import open_remote
        from gatokit.trainer.distributed import is_first, meet
        from gatokit.trainer.train import train
    _hush_checkpoints()
    data = [open_remote(item, arguments.cache, arguments.cache_bytes) for item in arguments.data]
    meet(coordinator, processes, process)
    if not is_first():
        output = Output(as_json=True)
    report = _Report(output, quiet=not is_first())
    with report.bar, _stop_signals() as caught:
        trained = train(
            config,
            data,
            Path(arguments.out),
            report,
            is_asked_to_stop=lambda: bool(caught),
            steps=arguments.steps,
            profile=arguments.profile,
            timeout=arguments.timeout,
        )
    if is_first():
        _show_losses(trained.line, output)
        output.result(trained.line | {"out": arguments.out})
    if trained.stopped:
        # Another process may have been asked, and not this one.
        number = caught[0] if caught else signal.SIGTERM
        output.notice(f"{number.name} after step {trained.step}, which is saved: run the same command to go on")
        return 128 + number
    output.say(f"step {trained.step} of {config.steps}; curves and metrics are in {arguments.out}")
    return 0


def tpu_slice(topology: str) -> tuple[str, list[Any]]:
    """The name of a TPU slice, and its devices, of which this machine needs none; a generation alone, such as ``v3``,
    means a large slice of it. Raises ConfigError if there is no such slice, or libtpu is not installed."""
    if not re.fullmatch(r"v\d+[a-z]*(:\d+(x\d+)+)?", topology):
        raise ConfigError(f"topology {topology!r} is not a TPU slice such as v3:16x16 or v5e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        needs = "compiling for a TPU slice needs libtpu, with or without a TPU"
        raise ConfigError(needs, way_out=install_hint("tpu"), code="missing_package")
    if ":" not in topology:
        if topology not in _WHOLE_SLICES:
            raise ConfigError(f"topology {topology!r}: name its shape too, such as {topology}:4x4")
        topology = f"{topology}:{_WHOLE_SLICES[topology]}"
    import jax
    from jax.experimental import topologies

    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)
    # A TPU of this machine is left alone.
    jax.config.update("jax_platforms", "cpu")
    try:
        return topology, list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"topology {topology}: {first_line(error)}") from None


@contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """A list that gets the first SIGTERM or SIGINT; the second ends the process at once."""
    caught: list[signal.Signals] = []

    def remember(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))
        # The system's own handler also ends a process that is deep in a compilation, where Python sees no signal.
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def compiled_text(compiled: dict[str, Any]) -> str:
    """What ``compile_only`` returned, to be read by people."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in compiled["mesh"].items())
    devices, hosts, teraflops = compiled["devices"], compiled["hosts"], compiled["flops"] / 1e12
    gib = {name: compiled[f"{name}_bytes"] / (1 << 30) for name in ("argument", "temporary", "output")}
    of_device = f" of {compiled['device_bytes'] / (1 << 30):.1f} GiB" if compiled["device_bytes"] else ""
    return (
        f"{compiled['topology'] or 'this machine'}: {devices} device{'s' * (devices > 1)} ({compiled['device']}) on "
        f"{hosts} host{'s' * (hosts > 1)}; mesh {mesh}\n"
        f"batch {compiled['batch']} x {compiled['context']} tokens, microbatches {compiled['microbatches']}, "
        f"remat {compiled['remat']}, {compiled['patch_slots']} patch slots a group, {compiled['vocabulary_size']} ids\n"
        f"{compiled['parameters']:,} parameters\n"
        f"{gib['argument'] + gib['temporary']:.2f} GiB{of_device} a device: arguments {gib['argument']:.2f} GiB, "
        f"temporaries {gib['temporary']:.2f} GiB, output {gib['output']:.2f} GiB in the arguments' place\n"
        f"{teraflops:,.1f} TFLOP a step, {teraflops / devices:,.2f} a device\n"
        f"compiled in {compiled['seconds']:.0f} s"
    )


def _hush_checkpoints() -> None:
    """Hides the tracebacks that Orbax and TensorStore show for a checkpoint that cannot be written."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def hushed(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hushed


class _Report:
    """Prints what a run says, and its progress: a bar on a terminal, elsewhere a line for each logged step."""

    def __init__(self, output: Output, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._output, self._shown = output, 0
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, quiet=quiet)
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        no_bar = quiet or not self._console.is_terminal
        self.bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=self._console, disable=no_bar)

    def begins(self, trainer: "Trainer", mixture: "Mixture", held_out: Sequence[str]) -> None:
        import jax

        from gatokit.trainer.model import count

        config, devices = trainer.config, jax.devices()
        axes = ", ".join(f"{name} {size}" for name, size in trainer.mesh.shape.items() if size > 1) or "one device"
        hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
        self.say(
            f"{config.model.size or 'model'}: {count(trainer.table):,} parameters, {config.precision}, on "
            f"{len(devices)} × {devices[0].device_kind}{hosts} ({axes})"
        )
        shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(mixture.names, mixture.weights, strict=True))
        self.say(
            f"{config.batch} windows of {config.context} tokens a step, {trainer.patch_slots} patch slots for "
            f"{config.patch_group_rows} of them; {shares}"
        )
        without = sorted(set(mixture.names) - set(held_out))
        if without:
            self.notice(f"nothing is held out of {', '.join(without)}: not evaluated")

    def say(self, text: str) -> None:
        self._console.print(visible(text), markup=False)

    def notice(self, text: str) -> None:
        if not self._console.quiet:
            self._output.notice(text)

    def progress(self, step: int, last: int, line: dict[str, Any]) -> None:
        if not self.bar.disable:
            text = _summary(line) if line else "compiling"
            if not self.bar.tasks:
                self.bar.add_task("train", total=last, text=text)
            self.bar.update(self.bar.task_ids[0], completed=step, text=text)
        elif line and line["step"] > self._shown:
            self._shown = line["step"]
            seconds = line["step_seconds"]
            pace = f"{seconds:.3g} s a step, {duration((last - line['step']) * seconds)} left"
            self.say(f"step {line['step']} of {last}: {_summary(line)}, {pace}")


def _summary(line: dict[str, Any]) -> str:
    mfu = line["mfu"] if isinstance(line["mfu"], str) else f"{line['mfu']:.1%}"
    loss = "none taken" if line["loss"] is None else f"{line['loss']:.4f}"
    return (
        f"loss {loss}, {line['tokens_per_second']:,.0f} tokens/s, MFU {mfu}, "
        f"input {line['input_wait']:.1%}, lr {line['learning_rate']:.2e}"
    )


def _show_losses(line: dict[str, Any], output: Output) -> None:
    """Shows the last losses by dataset and by kind."""
    held_out = line.get("held_out") or {"datasets": {}, "kinds": {}, "text_perplexity": None}
    rows = [
        [name, item["share"], item["loss"], held_out["datasets"].get(name, {}).get("loss")]
        for name, item in line.get("datasets", {}).items()
    ]
    output.table("loss by dataset, nats", ["dataset", "share of targets", "training", "held out"], rows)
    rows = [[kind, loss, held_out["kinds"].get(kind)] for kind, loss in line.get("kinds", {}).items()]
    output.table("loss by kind, nats", ["kind", "training", "held out"], rows)
    if held_out["text_perplexity"] is not None:
        output.say(f"text perplexity of what is held out: {held_out['text_perplexity']:,.2f} a token")
    if line.get("first_action_loss") is not None:
        first, all_ = line["first_action_loss"], line["action_loss"]
        output.say(f"first action of a window: {first:.4f} nats; all actions: {all_:.4f}")
