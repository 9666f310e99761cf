"""Checkpoints of a run: the run resumes from them, other runs start from them, and policies are made of them.

    checkpoints/500/params        the parameters
                    optimizer     the optimizer's state
                    run           JSON: ``RunState``
                    policy        what a policy needs in addition to the parameters (``export.write_policy_files``)
                    digests.json  BLAKE2b of each file of these

A step's directory gets its name when it is complete; until then the name ends in ``.orbax-checkpoint-tmp``.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.args import Composite, JsonRestore, JsonSave, StandardRestore, StandardSave

from gatokit.schemas.errors import DataError, first_line
from gatokit.schemas.manifest import indented_json
from gatokit.schemas.run import CheckpointConfig
from gatokit.schemas.run_directory import CHECKPOINTS, POLICY_FOLDER, RunState, flatten
from gatokit.storage.files import file_digest, write_atomically
from gatokit.storage.folder import read_json

DIGESTS = "digests.json"


class _LinkedFiles(ocp.CheckpointHandler):
    """A checkpoint item of finished files, which are hard-linked if the file system can, and copied otherwise."""

    def save(self, directory: Any, args: "_Link") -> None:
        def link(source: str, target: str) -> None:
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)

        if jax.process_index() == 0:
            shutil.copytree(args.source, Path(directory), copy_function=link, dirs_exist_ok=True)

    def restore(self, directory: Any, args: Any = None) -> Path:
        return Path(directory)


@ocp.args.register_with_handler(_LinkedFiles, for_save=True, for_restore=True)
@dataclass
class _Link(ocp.args.CheckpointArgs):
    source: Path


class Checkpoints:
    """The checkpoints below a run's directory, written in the background while the next steps run.

    Every process calls the same methods in the same order. They raise DataError if a checkpoint could not be written.
    As a context manager it waits at the end until the last checkpoint is complete.
    """

    def __init__(self, out: Path, config: CheckpointConfig) -> None:
        self.directory = out.absolute() / CHECKPOINTS
        self.best: int | None = None
        self._last, self._writing = config.keep_last, 0
        self._begun: list[int] = []
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._finalized),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Which checkpoints stay: the newest, and the one of the step ``best``. (A preservation policy of Orbax.)"""
        steps = [checkpoint.step for checkpoint in checkpoints]
        return [step in sorted(steps)[-self._last :] or step == self.best for step in steps]

    def _finalized(self) -> None:
        """Writes the digests of a checkpoint's files, in the thread that has written them, before it gets its name."""
        step = self._begun.pop(0)
        if jax.process_index() == 0:
            [directory] = self.directory.glob(f"{step}.orbax-checkpoint-tmp*")
            write_digests(directory)

    def newest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, run: RunState, params: Any, optimizer: Any) -> None:
        """Begins to write a checkpoint of ``run.step``; returns when the arrays may change."""
        self.wait()
        self._writing = run.step
        self._begun.append(run.step)
        items = Composite(
            params=StandardSave(params),
            optimizer=StandardSave(optimizer),
            run=JsonSave(asdict(run)),
            policy=_Link(self.directory.parent / POLICY_FOLDER),
        )
        with self._errors():
            self._manager.save(run.step, args=items, force=True)

    def check(self) -> None:
        """Looks whether the checkpoint that is being written has failed; does not wait."""
        with self._errors():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when the last checkpoint is complete."""
        with self._errors():
            self._manager.wait_until_finished()

    def restore(self, step: int, params: Any, optimizer: Any) -> tuple[Any, Any, RunState]:
        """Parameters, optimizer state and run state of a step, placed as the abstract ``params``, ``optimizer`` say.

        Raises DataError if the checkpoint cannot be read.
        """
        items = Composite(params=StandardRestore(params), optimizer=StandardRestore(optimizer), run=JsonRestore())
        with _reading(self.directory / str(step)):
            check_digests(self.directory / str(step))
            restored = self._manager.restore(step, args=items)
            return restored.params, restored.optimizer, RunState(**restored.run)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # The error that ended the run comes first; one of a checkpoint that failed as well would hide it.
        with nullcontext() if error is None else suppress(DataError):
            self.wait()
            self._manager.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            good = self.newest()
            kept = f"the last good one is step {good}" if good is not None else "there is none yet"
            raise DataError(
                f"the checkpoint of step {self._writing} could not be written to {self.directory}: {_reason(error)}; "
                f"{kept}. Make room and run the same command again"
            ) from error


@contextmanager
def _reading(directory: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the checkpoint {directory} cannot be read: {_reason(error)}. Remove it to go on from the one before"
        ) from error


def _reason(error: Exception) -> str:
    """The system's reason, if it refused a file, from the text of an error of Orbax or TensorStore, which raise many
    types; otherwise the end of the error's first line."""
    refused = re.search(r": ([^:]+) \[os_error_code", str(error))
    return refused[1] if refused is not None else first_line(error)[-300:]


def restore_params(directory: Path, params: Any) -> Any:
    """The parameters of one checkpoint (a directory named by its step), placed as the abstract ``params`` says.

    Raises DataError if it cannot be read, or an array has another shape.
    """
    path = directory.absolute() / "params"
    with _reading(directory), ocp.StandardCheckpointer() as checkpointer:
        check_digests(directory, "params")
        check_shapes(flatten(checkpointer.metadata(path).item_metadata.tree), flatten(params), directory)
        return checkpointer.restore(path, params)


def restore_all(directory: Path, params: Any, optimizer: Any) -> tuple[Any, Any, RunState]:
    """``Checkpoints.restore`` of one checkpoint (a directory named by its step) of another run, which stays as it is.

    Raises DataError if it cannot be read, or an array has another shape.
    """
    placed = restore_params(directory, params)
    with _reading(directory), ocp.StandardCheckpointer() as checkpointer:
        check_digests(directory)
        run = RunState(**read_json(directory, "run/metadata"))
        return placed, checkpointer.restore(directory.absolute() / "optimizer", optimizer), run


def check_shapes(arrays: dict[str, Any], wanted: dict[str, Any], where: Path) -> None:
    """Raises DataError, which names the arrays, if arrays by path differ in names or shapes."""
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - arrays.keys())]
    faults += [f"{name} is not of this model" for name in sorted(arrays.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & arrays.keys()):
        if arrays[name].shape != wanted[name].shape:
            faults.append(f"{name} is {arrays[name].shape}, not {wanted[name].shape}")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DataError(f"{where} does not fit the config's model: {'; '.join(faults[:3])}{more}")


def write_digests(directory: Path) -> None:
    """Writes ``digests.json`` of a checkpoint: the digest of each file of its items, by path below ``directory``."""
    write_atomically(directory / DIGESTS, indented_json(_digests(directory)))


def check_digests(directory: Path, items: str = "*") -> None:
    """Raises DataError, which names the file, if a file of a checkpoint's ``items``, a pattern, is missing or another
    than was written. A checkpoint of an earlier version has no digests."""
    try:
        stated = read_json(directory, DIGESTS)
    except FileNotFoundError:
        return
    found = _digests(directory, items)
    for name in sorted(found.keys() | {name for name in stated if fnmatch(name, f"{items}/*")}):
        if found.get(name) != stated.get(name):
            raise DataError(
                f"the checkpoint {directory} is damaged: {name} is not what was written. Remove it to go on from the "
                "one before"
            )


def _digests(directory: Path, items: str = "*") -> dict[str, str]:
    files = (path for item in directory.glob(items) for path in sorted(item.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): file_digest(path)[1] for path in files}
