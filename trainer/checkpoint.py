"""Checkpoints of a run: the run resumes from them, other runs start from them, and policies are made of them.

    checkpoints/500/params      the parameters
                    optimizer   the optimizer's state
                    run         JSON: ``RunState``
                    policy      what a policy needs in addition to the parameters (``run_directory``)

A step's directory gets its name when it is complete; until then the name ends in ``.orbax-checkpoint-tmp``.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PolicyCheckpointInfo,
    PreservationContext,
)

from gatokit.schemas.errors import DataError
from gatokit.schemas.run import CheckpointConfig

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class RunState:
    """The state of a run besides parameters and optimizer."""

    step: int
    """Steps done."""
    samples: int
    """Windows consumed: the whole state of the input."""
    best: float | None
    """Lowest mean held-out loss so far, in nats."""
    best_step: int | None
    interval: dict[str, Any]
    """Sums since the last logged step (``metrics.Interval``)."""


class _LinkedFiles(ocp.CheckpointHandler):
    """A checkpoint item of finished files, which are hard-linked if the file system can, and copied otherwise."""

    def save(self, directory: Any, args: "_Link") -> None:
        if jax.process_index() == 0 and args.source is not None:
            shutil.copytree(args.source, Path(directory), copy_function=_link_or_copy, dirs_exist_ok=True)

    def restore(self, directory: Any, args: "_Link | None" = None) -> Path:
        return Path(directory)

    def finalize(self, directory: Any) -> None:
        pass


@ocp.args.register_with_handler(_LinkedFiles, for_save=True, for_restore=True)
@dataclass
class _Link(ocp.args.CheckpointArgs):
    source: Path | None = None


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass
class _Best:
    """Keeps the one checkpoint of the lowest held-out loss."""

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        losses = [(info.metrics or {}).get("held_out") for info in checkpoints]
        best = min((loss for loss in losses if loss is not None), default=None)
        return [loss is not None and loss == best for loss in losses]


class Checkpoints:
    """The checkpoints below a run's directory, written in the background while the next steps run.

    Every process calls the same methods in the same order. As a context manager it waits at the end until the last
    checkpoint is written.
    """

    def __init__(self, out: Path, config: CheckpointConfig) -> None:
        self.directory = out.absolute() / CHECKPOINTS
        kept = AnyPreservationPolicy([LatestN(config.keep_last), _Best()])
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._writing: int | None = None

    def newest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, run: RunState, params: Any, optimizer: Any, policy_files: Path, held_out: float | None) -> None:
        """Begins to write a checkpoint of ``run.step``; returns when the arrays may change.

        Raises DataError if this checkpoint, or the one before, could not be written.
        """
        self.wait()
        self._writing = run.step
        try:
            self._manager.save(
                run.step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    optimizer=ocp.args.StandardSave(optimizer),
                    run=ocp.args.JsonSave(asdict(run)),
                    policy=_Link(policy_files),
                ),
                metrics=None if held_out is None else {"held_out": held_out},
                force=True,
            )
        except Exception as error:
            raise self._fault(error) from error

    def check(self) -> None:
        """Raises DataError if a checkpoint could not be written in the background; does not wait."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._fault(error) from error

    def wait(self) -> None:
        """Returns when the last checkpoint is complete. Raises DataError if it could not be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._fault(error) from error
        self._writing = None

    def restore(self, step: int, params: Any, optimizer: Any) -> tuple[Any, Any, RunState]:
        """Parameters, optimizer state and run state of a step, placed as the abstract ``params``, ``optimizer`` say.

        Raises DataError if the checkpoint cannot be read.
        """
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(params),
            optimizer=ocp.args.StandardRestore(optimizer),
            run=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=args)
            return restored.params, restored.optimizer, RunState(**restored.run)
        except Exception as error:
            raise _unreadable(self.directory / str(step), error) from error

    def close(self) -> None:
        """Waits for the last checkpoint, and closes. Raises DataError if it could not be written."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The error that ended the run comes first; one of a checkpoint that failed as well would hide it.
        with nullcontext() if error is None else suppress(DataError):
            self.close()

    def _fault(self, error: Exception) -> DataError:
        # Orbax and TensorStore raise many types; the system's reason is in their text.
        good = self.newest()
        kept = f"the last good one is step {good}" if good is not None else "there is none yet"
        return DataError(
            f"the checkpoint of step {self._writing} could not be written to {self.directory}: {_reason(error)}; "
            f"{kept}. Make room and run the same command again"
        )


def restore_params(directory: Path, params: Any) -> Any:
    """The parameters of one checkpoint (a directory named by its step), placed as the abstract ``params`` says.

    Raises DataError if it cannot be read, or an array has another shape.
    """
    path = directory.absolute() / "params"
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            check_shapes(checkpointer.metadata(path).item_metadata.tree, params, directory)
            return checkpointer.restore(path, params)
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(directory, error) from error


def check_shapes(actual: Any, wanted: Any, where: Path) -> None:
    """Raises DataError, which names the arrays, if two trees of arrays differ in names or shapes."""
    have, need = shapes(actual), shapes(wanted)
    faults = [f"{name} is missing" for name in sorted(need.keys() - have.keys())]
    faults += [f"{name} is not of this model" for name in sorted(have.keys() - need.keys())]
    faults += [
        f"{name} is {have[name]}, not {need[name]}"
        for name in sorted(need.keys() & have.keys())
        if have[name] != need[name]
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DataError(f"{where} does not fit the config's model: {'; '.join(faults[:3])}{more}")


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape by path, the keys joined by dots."""
    return {name: tuple(leaf.shape) for name, leaf in flat(tree).items()}


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by path, the keys joined by dots."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def find_checkpoint(path: Path) -> Path:
    """The newest complete checkpoint of a run's directory, or ``path`` if it is itself a checkpoint.

    Raises DataError if it is neither.
    """
    if (path / "params").is_dir():
        return path
    steps = [int(item.name) for item in (path / CHECKPOINTS).glob("*") if item.name.isdigit()]
    if not steps:
        raise DataError(f"{path} holds no checkpoint: give a run's directory or one of its checkpoints")
    return path / CHECKPOINTS / str(max(steps))


def _unreadable(directory: Path, error: Exception) -> DataError:
    return DataError(
        f"the checkpoint {directory} cannot be read: {_reason(error)}. Remove it to go on from the one before"
    )


def _reason(error: Exception) -> str:
    """The system's reason if it refused a file, otherwise the first line of the error."""
    refused = re.search(r": ([^:]+) \[os_error_code", str(error))
    if refused is not None:
        return refused[1]
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 300 else "… " + lines[0][-300:]
