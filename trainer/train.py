"""A training run, from its config and its data to its last checkpoint: ``train`` reads top to bottom.

The next step is dispatched before the metrics of the last one are read, so that devices never wait for the host. A
checkpoint is written before its step is evaluated; an evaluation that a stop or a kill cut short is done again.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from gatokit.loader.loader import batches_ahead
from gatokit.loader.mixture import Mixture, open_mixture
from gatokit.loader.provenance import Provenance
from gatokit.loader.sampler import sample_numbers
from gatokit.loader.windows import Windows
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import LOG, MANIFEST
from gatokit.schemas.run import RunConfig
from gatokit.schemas.run_directory import CHECKPOINTS, METRICS, POLICY_FOLDER, RUN, Line, RunFile, RunState, flatten
from gatokit.storage.files import write_atomically, writing
from gatokit.storage.folder import check_tree, read_policy
from gatokit.storage.lock import hold
from gatokit.storage.ownership import check_own
from gatokit.storage.run_directory import find_checkpoint, last_line, policy_folder, read_metrics, read_run
from gatokit.trainer import cost
from gatokit.trainer.checkpoint import Checkpoints, restore_all
from gatokit.trainer.distributed import Watchdog, any_process, is_first
from gatokit.trainer.export import load_weights, write_policy_files
from gatokit.trainer.mesh import make_mesh, place, process_rows
from gatokit.trainer.metrics import HeldOut, Interval, MetricsFile, NormLimit
from gatokit.trainer.step import Metrics, State, Trainer

PROFILE_AFTER = 3  # steps before a profile begins: they compile and fill the prefetch


class Report(Protocol):
    """Where a run prints."""

    def begins(self, trainer: Trainer, mixture: Mixture, held_out: Sequence[str]) -> None:
        """What is trained on what; the datasets ``held_out`` are evaluated."""

    def say(self, text: str) -> None:
        """Prints a line."""

    def notice(self, text: str) -> None:
        """Prints a line that a person should read."""

    def progress(self, step: int, last: int, line: Line) -> None:
        """``step`` of ``last`` steps are done; ``line`` holds the newest metrics."""


@dataclass(frozen=True)
class Trained:
    """How a run ended."""

    step: int
    line: Line  # the last line of the metrics, with the losses of the last evaluation as ``held_out``
    stopped: bool  # before its last step, since a process was asked to stop


def train(
    config: RunConfig,
    directories: Sequence[str],
    out: Path,
    report: Report,
    *,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
    steps: int | None = None,
    profile: int | None = None,
    timeout: float = 600.0,
) -> Trained:
    """Trains up to ``config.steps``, or stops early at step ``steps``; goes on from the newest checkpoint in ``out``.

    ``directories`` are finished builds (``DIR`` or ``NAME=DIR``). When ``is_asked_to_stop`` in any process, the run
    saves a checkpoint and ends. ``profile`` steps are traced to ``out``/profile. A run of several processes in which
    no step ends for ``timeout`` seconds ends by naming the host at fault.

    Raises ConfigError or DataError for everything that the user can mend, and if too many steps in a row are skipped.
    """
    with Watchdog(timeout) as watchdog, ExitStack() as stack:
        # ---- mesh --------------------------------------------------------------------------------------------------
        last = config.steps if steps is None else steps
        if last > config.steps:
            raise ConfigError(f"--steps {steps} is more than the config's steps {config.steps}: raise that instead")
        mesh = make_mesh(config.mesh, jax.devices())
        ask_any_process = any_process()

        # ---- input -------------------------------------------------------------------------------------------------
        mixture = open_mixture(directories, config.input.weights)
        windows = Windows(mixture, config)
        rows = process_rows(mesh, config.batch)

        # ---- model and optimizer -----------------------------------------------------------------------------------
        config = _resolved(config, windows, out)
        ids, restricted = mixture.tokenizer.vocabulary_size, windows.restricted
        trainer = Trainer(config, ids, len(mixture.names), windows.patch_slots, mesh, restricted=restricted)
        held_out = HeldOut(mixture, config, rows)

        # ---- directory ---------------------------------------------------------------------------------------------
        stack.enter_context(hold(out) if is_first() else nullcontext())
        run_file = RunFile(config=config, data=[*directories], data_digest=mixture.data_digest)
        existing = _open_directory(out, run_file, mixture, report)
        report.begins(trainer, mixture, held_out.names)
        again = [f"{share:.1%} of {name}" for name, share in windows.redrawn().items() if share >= 0.0005]
        if again:
            report.say(f"expected to be drawn again, since the patch slots are full: {', '.join(again)}")

        # ---- restore: the run's own checkpoint, another run's, its weights, or from scratch ------------------------
        checkpoints = stack.enter_context(Checkpoints(out, config.checkpoint))
        watchdog.at(0, "reading a checkpoint")
        state, run = _restore(trainer, checkpoints, mixture, report)
        if existing is not None:
            _check_skipped(existing.config, config, run.step)
        interval, first = Interval.restored(run.interval), run.step
        limit = NormLimit(config.optimizer.skip_norm, run.norms)
        metrics_file = stack.enter_context(closing(MetricsFile(out, first))) if is_first() else None
        evaluated = {line["step"]: line["held_out"]["loss"] for line in read_metrics(out) if "held_out" in line}
        for at, loss in evaluated.items():
            run = _best(run, at, loss)
        checkpoints.best = run.best_step

        # ---- loop --------------------------------------------------------------------------------------------------
        since, waited, stopping, skipped = time.monotonic(), 0.0, False, 0
        line: Line = {}
        pending: tuple[int, Metrics, Any] | None = None

        def read_metrics_of(step: int, metrics: Metrics, asks: Any) -> bool:
            """Waits for a step to end, and logs it; returns whether any process was asked to stop."""
            nonlocal interval, line, since, waited, skipped
            values, someone_asked = jax.device_get((metrics, asks))
            taken = bool(values.taken)
            interval.add(float(values.loss), float(values.gradient_norm), values.sums, taken)
            limit.add(step, float(values.gradient_norm), taken)
            skipped = 0 if taken else skipped + 1
            if not taken:
                report.notice(f"step {step} is skipped: {_said(values)}")
            if skipped >= config.most_skipped:
                raise _all_skipped(
                    step, values, skipped, windows.trace(step - 1, range(config.batch)), checkpoints, out
                )
            checkpoints.check()
            complete = step % config.log_every == 0 or step == config.steps
            if complete or step == last:
                now = time.monotonic()
                line = {"step": step, **interval.line(mixture.names), "learning_rate": float(values.learning_rate)}
                line |= _speed(trainer, interval, max(now - since, 1e-9), waited)
                since, waited = now, 0.0
                if complete:
                    interval = Interval()
                else:
                    line["partial"] = True
                if metrics_file is not None:
                    metrics_file.write(line)
                if "unusable" in line:
                    report.notice(f"{line['unusable']} windows with a damaged or too long record were drawn again")
            report.progress(step, last, line)
            return bool(someone_asked)

        def evaluate(step: int) -> bool:
            """Evaluates and logs a step; returns whether any process was asked to stop meanwhile."""
            nonlocal run, since
            began = time.monotonic()

            def is_stopped() -> bool:
                watchdog.at(step, f"evaluating step {step}")
                return bool(jax.device_get(ask_any_process(is_asked_to_stop())))

            losses = held_out.evaluate(trainer, state.params, is_stopped)
            if losses is None:
                return True
            if metrics_file is not None:
                metrics_file.write({"step": step, "held_out": losses})
            run = _best(run, step, losses["loss"])
            checkpoints.best = run.best_step
            since += time.monotonic() - began  # the speed is that of the steps alone
            return False

        def evaluates(step: int) -> bool:
            return bool(held_out.names) and (step % config.evaluation.every == 0 or step == config.steps)

        if first and evaluates(first) and first not in evaluated:  # the run was stopped in an evaluation
            stopping = evaluate(first)
        elif first >= last:
            report.say(f"step {first} is done already; nothing to do")
        if first >= last or stopping:
            return Trained(first, last_line(out), stopped=stopping)
        ready = stack.enter_context(batches_ahead(windows, first, last, rows, config.input.workers))
        tracing = stack.enter_context(ExitStack())
        report.progress(first, last, {})
        for step in range(first + 1, last + 1):
            watchdog.at(step - 1, f"waiting for the input of step {step}")
            began = time.monotonic()
            batch = next(ready)
            waited += time.monotonic() - began
            if profile and step == first + 1 + PROFILE_AFTER:
                tracing.enter_context(jax.profiler.trace(str(out / "profile")))
            if profile and step == first + 1 + PROFILE_AFTER + profile:
                tracing.close()
            if step == first + 1:
                report.say("compiling the step")
            began = time.monotonic()
            state, metrics = trainer.step(state, place(batch, mesh), limit.of(step))
            if step == first + 1:
                since = time.monotonic()
                report.say(f"compiled in {since - began:.0f} s")
            watchdog.at(step, f"waiting for step {step}")
            asks = ask_any_process(is_asked_to_stop())
            if pending is not None:
                stopping = read_metrics_of(*pending)
            pending = step, metrics, asks
            if not (evaluates(step) or step % config.checkpoint.every == 0 or step == last or stopping):
                continue
            stopping = read_metrics_of(*pending) or stopping
            pending, began = None, time.monotonic()
            watchdog.at(step, f"writing the checkpoint of step {step}")
            run = replace(run, step=step, samples=step * config.batch, interval=interval.saved(), norms=limit.means)
            checkpoints.save(run, state.params, state.optimizer)
            if evaluates(step):
                checkpoints.wait()
            since += time.monotonic() - began
            stopping = stopping or (evaluates(step) and evaluate(step))
            if stopping:
                break

        # ---- end ---------------------------------------------------------------------------------------------------
        watchdog.at(step, "writing the last checkpoint")
        checkpoints.wait()
        if is_first():
            from gatokit.inspection.report.charts import draw_losses

            draw_losses(out)
        return Trained(step, last_line(out), stopped=stopping)


def _resolved(config: RunConfig, windows: Windows, out: Path) -> RunConfig:
    """The config with what follows from the data, and the schedule of the run that goes on in ``out``."""
    existing = read_run(out)
    steps = config.optimizer.schedule_steps or (config if existing is None else existing.config).schedule_steps
    optimizer = config.optimizer.model_copy(update={"schedule_steps": steps})
    derived = {"patch_slots": windows.patch_slots, "patch_group_rows": config.patch_group_rows}
    updates = {"optimizer": optimizer, "input": config.input.model_copy(update=derived)}
    resolved = config.model_copy(update=updates)
    optimizer = optimizer.model_copy(update={"warmup_steps": resolved.warmup_steps})
    return resolved.model_copy(update={"optimizer": optimizer})


def _best(run: RunState, step: int, loss: float | None) -> RunState:
    """The state of a run whose step ``step`` has this held-out loss."""
    if loss is None or (run.best is not None and run.best <= loss):
        return run
    return replace(run, best=loss, best_step=step)


def _check_skipped(before: RunConfig, after: RunConfig, step: int) -> None:
    """Raises ConfigError if ``input.skip`` changes for samples that the first ``step`` steps have drawn."""
    count = np.array([step * after.batch])
    drawn = int(sample_numbers(count, before.input.skip)[0])
    old, new = ([pair for pair in config.input.skip if pair[0] < drawn] for config in (before, after))
    if old != new:
        raise ConfigError(f"input.skip: samples below {drawn:,} were drawn already: skip later ones")


def _open_directory(out: Path, run: RunFile, mixture: Mixture, report: Report) -> RunFile | None:
    """Makes the directory of a run with ``run.json`` and the policy's files, or checks that it is this run's, which it
    returns. A run without a checkpoint begins anew, whatever its config was.

    Raises ConfigError if it holds another run, a build or files of these names that no run wrote, or cannot be made.
    """
    folders = (POLICY_FOLDER, CHECKPOINTS, "tensorboard", "profile")
    check_own(out, RUN, (*folders, METRICS, "loss.png"), others=(MANIFEST, LOG))
    existing = read_run(out)
    if existing is not None and not any(item.name.isdigit() for item in (out / CHECKPOINTS).glob("*")):
        existing = None
    if existing is not None:
        existing.check_same(run, out)
        if existing.version < run.version:
            report.notice(f"{out / RUN} is of an earlier version: the next windows are drawn by other rules")
            run = run.model_copy(update={"version": existing.version})
        if run.config.steps > run.config.schedule_steps:
            report.notice(
                f"the learning rate stays as it is after step {run.config.schedule_steps:,}; "
                "optimizer.schedule_steps makes the schedule longer"
            )
    if not is_first():
        return existing
    if (out / CHECKPOINTS).exists():
        check_tree(out / CHECKPOINTS)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made: {error.strerror}") from None
    with writing(out / RUN):
        write_atomically(out / RUN, run.to_bytes())
    if existing is None and (out / POLICY_FOLDER).exists():
        shutil.rmtree(out / POLICY_FOLDER)
    if existing is None:
        for notice in write_policy_files(mixture, run.config, out):
            report.notice(notice)
    return existing


def _restore(trainer: Trainer, checkpoints: Checkpoints, mixture: Mixture, report: Report) -> tuple[State, RunState]:
    newest, wanted = checkpoints.newest(), trainer.abstract_state
    if newest is not None:
        params, optimizer, run = checkpoints.restore(newest, wanted.params, wanted.optimizer)
        report.say(f"goes on from step {newest}")
        return State(jax.device_put(np.int32(run.step), wanted.step.sharding), params, optimizer), run
    fresh = RunState(step=0, samples=0, best=None, best_step=None, interval={})
    if trainer.config.resume_from is not None:
        return _resumed(trainer, Path(trainer.config.resume_from), report)
    if trainer.config.init_from is None:
        return trainer.init(), fresh
    source = Path(trainer.config.init_from)
    params = load_weights(source, wanted.params)
    policy = read_policy(policy_folder(source))
    if policy.tokenizer.discrete_offset != mixture.tokenizer.discrete_offset:
        raise ConfigError(
            f"init_from: {source} was trained with discrete_offset {policy.tokenizer.discrete_offset} and the data "
            f"was built with {mixture.tokenizer.discrete_offset}: build the data with the former"
        )
    digests = {policy.vocabulary_blake2b, mixture.vocabulary_digest}
    if len(digests - {None}) > 1:
        report.notice(f"{source} was trained with another vocabulary, so its text tokens mean something else")
    report.say(f"begins with the weights of {source}")
    return trainer.init(params), fresh


def _resumed(trainer: Trainer, source: Path, report: Report) -> tuple[State, RunState]:
    """The state of another run, and its step. Raises ConfigError if there is no run at ``source``."""
    found = read_run(source)
    if found is None:
        raise ConfigError(f"resume_from: {source} holds no {RUN}; give the directory of a run")
    wanted = trainer.abstract_state
    params, optimizer, run = restore_all(find_checkpoint(source), wanted.params, wanted.optimizer)
    report.say(f"goes on from step {run.step} of {source}")
    before, after = (flatten(config.model_dump(mode="json")) for config in (found.config, trainer.config))
    for name in sorted(before.keys() | after.keys() - {"resume_from"}):
        if before.get(name) != after.get(name):
            report.say(f"{name} was {before.get(name)}, is {after.get(name)}")
    state = State(jax.device_put(np.int32(run.step), wanted.step.sharding), params, optimizer)
    return state, replace(run, best=None, best_step=None, interval={}, samples=run.step * trainer.config.batch)


def _speed(trainer: Trainer, interval: Interval, seconds: float, waited: float) -> Line:
    """Tokens a second, MFU and the wait for input, over the interval's ``seconds``."""
    config, sums = trainer.config, interval.sums
    sizes = {"patch_slots": float(sums.patches), "targets": float(np.sum(sums.dataset_targets))}
    sizes |= {"rows": (interval.steps + interval.skipped) * config.batch, "vocabulary_size": trainer.vocabulary_size}
    work = cost.train_step_flops(config.model, context=config.context, **sizes)
    peak = cost.peak(jax.devices()[0].device_kind, config.precision)
    return {
        "seconds": seconds,
        "step_seconds": seconds / (interval.steps + interval.skipped),
        "tokens_per_second": float(np.sum(sums.dataset_tokens)) / seconds,
        "mfu": work / seconds / (peak * jax.device_count()) if peak else "unknown peak",
        "input_wait": waited / seconds,
    }


def _said(values: Metrics) -> str:
    return f"its loss is {float(values.loss):g} and its gradient's norm {float(values.gradient_norm):g}"


def _all_skipped(
    step: int, values: Metrics, count: int, drawn: Sequence[Provenance], checkpoints: Checkpoints, out: Path
) -> DataError:
    """The error of ``count`` steps in a row that were skipped; writes the records of the windows ``drawn`` for the
    last one."""
    path = out / f"skipped-{step}.json"
    if is_first():
        content = json.dumps([window.to_json() for window in drawn], indent=1) + "\n"
        with writing(path):
            write_atomically(path, content.encode())
    checkpoints.wait()
    good = checkpoints.newest()
    kept = "there is no checkpoint yet" if good is None else f"the last checkpoint is step {good}"
    some = ", ".join(f"{window.dataset} {window.owner}" for window in drawn[:3])
    return DataError(
        f"step {step}: {_said(values)}: the run stops after {count} skipped steps in a row (most_skipped), and {kept}. "
        f"The {len(drawn)} windows of its batch ({some}, …) are listed in {path}"
    )
