"""A training run, from its config and its data to its last checkpoint.

The next step is dispatched before the last one's metrics are read, so that devices never wait for the host; a
checkpoint is only written of a step whose metrics were read and are numbers.
"""

import itertools
import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from gatokit.loader.batch import Batch
from gatokit.loader.loader import Loader
from gatokit.loader.mixture import open_mixture
from gatokit.loader.windows import Windows
from gatokit.schemas.errors import ConfigError, DataError, GatokitError
from gatokit.schemas.run import RunConfig
from gatokit.trainer import flops
from gatokit.trainer.checkpoint import Checkpoints, RunState
from gatokit.trainer.distributed import Agreement, Watch, is_first
from gatokit.trainer.export import load_weights, trained_with
from gatokit.trainer.heldout import HeldOut
from gatokit.trainer.mesh import make_mesh, place, process_rows
from gatokit.trainer.metrics import Clock, Interval, Line, MetricsFile, as_sums, read_metrics
from gatokit.trainer.model import check_positions
from gatokit.trainer.model import count as parameter_count
from gatokit.trainer.peaks import peak
from gatokit.trainer.plots import draw_losses
from gatokit.trainer.policy_files import POLICY_FOLDER, write_policy_files
from gatokit.trainer.run_file import RunFile, check_same, read_run
from gatokit.trainer.signals import Asked, asked_to_stop
from gatokit.trainer.step import Metrics, State, Trainer

PROFILE_AFTER = 3
"""Steps before a profile begins: they compile and fill the prefetch."""


class Report(Protocol):
    """Where a run tells people of itself."""

    def say(self, text: str) -> None:
        """A line."""

    def notice(self, text: str) -> None:
        """A line that a person should read."""

    def progress(self, step: int, last: int, line: Line) -> None:
        """``step`` of ``last`` steps are done; ``line`` is the newest of the metrics."""


@dataclass(frozen=True)
class Trained:
    """How a run ended."""

    step: int
    line: Line
    """The last one of the metrics, with the losses of the last evaluation as ``held_out``."""
    stopped_by: signal.Signals | None


def train(
    config: RunConfig,
    directories: Sequence[str],
    out: Path,
    report: Report,
    *,
    steps: int | None = None,
    overfit_one_batch: bool = False,
    profile: int | None = None,
    timeout: float = 600.0,
) -> Trained:
    """Trains until ``config.steps``, or stops before at step ``steps``; goes on from the newest checkpoint in ``out``.

    ``directories`` are finished builds (``DIR`` or ``NAME=DIR``). ``overfit_one_batch`` trains on the first batch
    alone, without stochastic depth, dropout or checkpoints. ``profile`` steps are traced to ``out``/profile. A run
    of several processes that stands still for ``timeout`` seconds ends by naming the host at fault.

    ConfigError, DataError: whatever is the user's to mend, a loss that is not a number included.
    """
    watch = Watch(timeout)
    try:
        with asked_to_stop() as asked, ExitStack() as stack:
            try:
                run = _Run(config, directories, out, report, overfit_one_batch, watch, stack)
                return run.loop(_last_step(config, steps), profile, asked)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise ConfigError(
                        f"a device is out of memory: {str(error).splitlines()[0]}; gatokit train CONFIG --plan "
                        "--device NAME says which microbatches and remat fit"
                    ) from None
                watch.lost(error)
                raise
    except GatokitError as error:
        watch.failed(str(error), error.exit_status)
        raise
    finally:
        watch.close()


def _last_step(config: RunConfig, steps: int | None) -> int:
    if steps is not None and steps > config.steps:
        raise ConfigError(f"--steps {steps} is more than the config's steps {config.steps}: raise that instead")
    return config.steps if steps is None else steps


class _Run:
    """Everything that a run holds."""

    def __init__(
        self,
        config: RunConfig,
        directories: Sequence[str],
        out: Path,
        report: Report,
        overfit_one_batch: bool,
        watch: Watch,
        stack: ExitStack,
    ) -> None:
        self.out, self.report, self.overfit_one_batch, self.watch = out, report, overfit_one_batch, watch

        # ---- mesh ----------------------------------------------------------------------------------------------

        self.mesh = make_mesh(config.mesh, jax.devices())
        self.agreement = Agreement()

        # ---- input ---------------------------------------------------------------------------------------------

        if overfit_one_batch:
            config = config.model_copy(
                update={"model": config.model.model_copy(update={"stochastic_depth": 0.0, "dropout": 0.0})}
            )
        self.mixture = open_mixture(directories, config.input.weights)
        self.windows = Windows(self.mixture, config)
        self.config = config = _resolved(config, self.windows.patch_slots)
        self.rows = process_rows(self.mesh, config.batch)
        self._open_directory(directories)

        # ---- model and optimizer -------------------------------------------------------------------------------

        vocabulary_size = self.mixture.ids.vocabulary_size
        self.trainer = Trainer(config, vocabulary_size, len(self.mixture.names), self.windows.patch_slots, self.mesh)
        self.held_out = HeldOut(self.mixture, config, self.rows)
        self.vocabulary_size = vocabulary_size
        self._introduce()

        # ---- restore: the run's own checkpoint, another's weights, or from scratch -------------------------------

        self.checkpoints = None if overfit_one_batch else stack.enter_context(Checkpoints(out, config.checkpoint))
        self.state, self.run = self._restore()
        self.interval = Interval(self.run.interval)
        self.metrics_file = MetricsFile(out, self.run.step) if is_first() else None
        if self.metrics_file is not None:
            stack.callback(self.metrics_file.close)
        self.line: Line = {}

    # ---- loop --------------------------------------------------------------------------------------------------

    def loop(self, last: int, profile: int | None, asked: Asked) -> Trained:
        """Steps from where the run is up to ``last``."""
        first = self.run.step
        if first >= last:
            self.report.say(f"step {first} is done already; nothing to do")
            return Trained(first, self._last_line(), None)
        self.clock = Clock()
        stopping = False
        pending: tuple[int, Metrics, Any] | None = None
        with self._input(first, last) as ready, _profiled(self.out, first, profile) as trace:
            self.report.progress(first, last, {})
            for done in range(first + 1, last + 1):
                self.watch.at(done - 1, f"waiting for the input of step {done}")
                batch = self._next(ready)
                trace(done)
                self.state, metrics = self.trainer.step(self.state, batch)
                self.watch.at(done, f"waiting for step {done}")
                asks = self.agreement.ask(bool(asked))
                if pending is not None:
                    stopping = self._read(*pending, last)
                pending = done, metrics, asks
                evaluates = done % self.config.evaluation.every == 0 or done == self.config.steps
                saves = done % self.config.checkpoint.every == 0 or done == last or stopping
                if evaluates or saves:
                    stopping = self._read(*pending, last) or stopping
                    pending = None
                    self._pause(done, evaluates, saves or stopping)
                if stopping and pending is None:
                    break
        if self.checkpoints is not None:
            self.watch.at(done, "writing the last checkpoint")
            self.checkpoints.wait()
        self._draw()
        # Another process may have been asked, and this one not.
        by = (asked.by or signal.SIGTERM) if stopping and done < last else None
        return Trained(done, self._last_line(), by)

    def _read(self, done: int, metrics: Metrics, asks: Any, last: int) -> bool:
        """Reads a step's metrics, which waits for it to end, and logs; whether any process was asked to stop."""
        values, asked = jax.device_get((metrics, asks))
        if not values.finite:
            raise self._not_finite(done, values)
        self.interval.add(float(values.loss), float(values.gradient_norm), values.sums)
        if self.checkpoints is not None:
            self.checkpoints.check()
        complete = done % self.config.log_every == 0 or done == self.config.steps
        if complete or done == last:
            self._log(done, float(values.learning_rate), complete)
        self.report.progress(done, last, self.line)
        return bool(asked)

    def _log(self, done: int, learning_rate: float, complete: bool) -> None:
        sums = self.interval.sums
        assert sums is not None
        totals = as_sums(sums)
        work = flops.train_step(
            self.config.model,
            rows=self.interval.steps * self.config.batch,
            context=self.config.context,
            patch_slots=float(totals.patches),
            targets=float(np.sum(totals.dataset_targets)),
            vocabulary_size=self.vocabulary_size,
        )
        device = jax.devices()[0]
        known = peak(device.device_kind, self.config.precision)
        line: Line = {"step": done} | self.interval.line(self.mixture.names)
        line["learning_rate"] = learning_rate
        line |= self.clock.lap(float(totals.tokens), work.total, known and known * jax.device_count())
        if complete:
            self.interval = Interval()
        else:
            line["partial"] = True
        self.line = line
        if self.metrics_file is not None:
            self.metrics_file.write(line)

    def _pause(self, done: int, evaluates: bool, saves: bool) -> None:
        """Evaluates and begins to write a checkpoint, between two steps."""
        begin = time.monotonic()
        loss = None
        if evaluates and self.held_out.names:
            self.watch.at(done, f"evaluating step {done}")
            found = self.held_out.evaluate(self.trainer, self.state.params)
            loss = found["loss"]
            if self.metrics_file is not None:
                self.metrics_file.write({"step": done, "held_out": found})
            best = self.run.best
            if loss is not None and (best is None or loss < best):
                self.run = RunState(**vars(self.run) | {"best": loss, "best_step": done})
                saves = True
            self._draw()
        if saves and self.checkpoints is not None:
            self.watch.at(done, f"writing the checkpoint of step {done}")
            self.run = RunState(
                step=done,
                samples=done * self.config.batch,
                best=self.run.best,
                best_step=self.run.best_step,
                interval=self.interval.saved(),
            )
            self.checkpoints.save(
                self.run, self.state.params, self.state.optimizer, self.out / POLICY_FOLDER, held_out=loss
            )
        self.clock.begin += time.monotonic() - begin

    # ---- parts -------------------------------------------------------------------------------------------------

    def _open_directory(self, directories: Sequence[str]) -> None:
        """Makes the run's directory, or checks that it is this run's."""
        wanted = RunFile(
            config=self.config,
            data=list(directories),
            data_digest=self.mixture.data_digest,
            overfit_one_batch=self.overfit_one_batch,
        )
        found = read_run(self.out)
        if found is not None:
            check_same(found, wanted, self.out)
        if is_first():
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--out {self.out} cannot be made: {error.strerror}") from None
            wanted.write(self.out)
            write_policy_files(self.mixture, self.config, self.out)

    def _introduce(self) -> None:
        config, devices = self.config, jax.devices()
        count = parameter_count(self.trainer.table)
        axes = ", ".join(f"{name} {size}" for name, size in self.mesh.shape.items() if size > 1) or "one device"
        hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
        weights = ", ".join(
            f"{name} {weight:.1%}" for name, weight in zip(self.mixture.names, self.mixture.weights, strict=True)
        )
        self.report.say(
            f"{config.model.size or 'model'}: {count:,} parameters, {config.precision}, on {len(devices)} × "
            f"{devices[0].device_kind}{hosts} ({axes})"
        )
        self.report.say(
            f"{config.batch} windows of {config.context} tokens a step, {self.windows.patch_slots} patch slots for "
            f"{config.patch_group_rows} of them; {weights}"
        )
        without = sorted(set(self.mixture.names) - set(self.held_out.names))
        if without:
            self.report.notice(f"nothing is held out of {', '.join(without)}: not evaluated")

    def _restore(self) -> tuple[State, RunState]:
        newest = self.checkpoints.newest() if self.checkpoints is not None else None
        wanted = self.trainer.abstract_state()
        if newest is not None:
            assert self.checkpoints is not None
            self.watch.at(0, f"reading the checkpoint of step {newest}")
            params, optimizer, run = self.checkpoints.restore(newest, wanted.params, wanted.optimizer)
            self.report.say(f"goes on from step {newest}")
            step = jax.device_put(np.int32(run.step), wanted.step.sharding)
            return State(step, params, optimizer), run
        fresh = RunState(step=0, samples=0, best=None, best_step=None, interval={})
        if self.config.init_from is None:
            return self.trainer.init(), fresh
        source = Path(self.config.init_from)
        params = load_weights(source, wanted.params)
        policy = trained_with(source)
        if policy.tokenizer.discrete_offset != self.mixture.tokenizer.discrete_offset:
            raise ConfigError(
                f"init_from: {source} was trained with discrete_offset {policy.tokenizer.discrete_offset} and the data "
                f"was built with {self.mixture.tokenizer.discrete_offset}: build the data with the former"
            )
        if policy.vocabulary_blake2b != self.mixture.vocabulary_digest:
            self.report.notice(f"{source} was trained with another vocabulary, so its text tokens mean something else")
        self.report.say(f"begins with the weights of {source}")
        return self.trainer.begin(params), fresh

    @contextmanager
    def _input(self, first: int, last: int) -> Iterator[Iterator[Batch]]:
        """This process's part of each step's batch."""
        if self.overfit_one_batch:
            yield itertools.repeat(self.windows.batch(0, self.rows))
            return
        with Loader(self.windows, first, last, self.rows, self.config.input.workers) as found:
            yield iter(found)

    def _next(self, ready: Iterator[Batch]) -> Batch:
        begin = time.monotonic()
        batch = next(ready)
        self.clock.waited += time.monotonic() - begin
        check_positions(batch)
        return place(batch, self.mesh)

    def _not_finite(self, done: int, values: Metrics) -> DataError:
        """The error of a loss that is not a number, with the records of its batch."""
        path = self.out / f"not-finite-{done}.json"
        step = 0 if self.overfit_one_batch else done - 1
        samples = self.windows.trace(step, range(self.config.batch))
        if is_first():
            path.write_text(json.dumps([sample.to_json() for sample in samples], indent=1) + "\n", encoding="utf-8")
        if self.checkpoints is not None:
            self.checkpoints.wait()
        good = self.checkpoints.newest() if self.checkpoints is not None else None
        kept = "there is no checkpoint yet" if good is None else f"the last good checkpoint is step {good}"
        first = ", ".join(f"{sample.dataset} {sample.owner}" for sample in samples[:3])
        return DataError(
            f"the loss of step {done} is {float(values.loss):g} and its gradient's norm {float(values.gradient_norm):g}"
            f": the run stops, and {kept}. The {len(samples)} windows of its batch ({first}, …) are listed in {path}"
        )

    def _draw(self) -> None:
        if is_first():
            draw_losses(self.out)

    def _last_line(self) -> Line:
        """The last metrics, with the last held-out losses; the first process has them from its file."""
        lines = read_metrics(self.out) if is_first() else [self.line]
        trained = [line for line in lines if "loss" in line]
        held_out = [line for line in lines if "held_out" in line]
        return (trained[-1] if trained else {}) | {"held_out": held_out[-1]["held_out"] if held_out else None}


@contextmanager
def _profiled(out: Path, first: int, steps: int | None) -> Iterator[Any]:
    """A function to be called before each step, which traces ``steps`` of them to ``out``/profile."""
    begin = first + 1 + PROFILE_AFTER
    running = False

    def before(done: int) -> None:
        nonlocal running
        if steps and done == begin:
            jax.profiler.start_trace(str(out / "profile"))
            running = True
        elif steps and running and done == begin + steps:
            jax.profiler.stop_trace()
            running = False

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()


def _resolved(config: RunConfig, patch_slots: int) -> RunConfig:
    """The config with what was derived from the data filled in."""
    derived = {"patch_slots": patch_slots, "patch_group_rows": config.patch_group_rows}
    return config.model_copy(update={"input": config.input.model_copy(update=derived)})
