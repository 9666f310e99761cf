"""A run's directory: ``run.json``, which keeps another run from going on in it, and the files of its policy.

The folder ``policy`` goes into every checkpoint and export, so that a policy runs without the data.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from pydantic import BaseModel, ConfigDict

from gatokit.loader.mixture import Mixture
from gatokit.loader.records import OpenShards
from gatokit.schemas.config import validated
from gatokit.schemas.errors import ConfigError, DataError, first_line
from gatokit.schemas.manifest import VOCABULARY, indented_json
from gatokit.schemas.policy import POLICY, PROMPTS, PolicyDataset, PolicyFile, PolicyTask, Prompt
from gatokit.schemas.run import RunConfig
from gatokit.storage.files import write_atomically

RUN = "run.json"
RUN_VERSION = 1

CHANGEABLE = (
    "steps",
    "log_every",
    "microbatches",
    "remat",
    "mesh",
    "evaluation",
    "checkpoint",
    "init_from",
    "model.attention",
    "input.workers",
)
"""Fields that may change when a run goes on; ``steps`` may only grow. They change no batch, and losses only by
rounding."""
POLICY_FOLDER = "policy"


class RunFile(BaseModel):
    """The resolved config of a run, and what it reads."""

    model_config = ConfigDict(extra="forbid")

    version: int = RUN_VERSION
    config: RunConfig
    data: list[str]
    """Directories as they were given."""
    data_digest: str

    def write(self, out: Path) -> None:
        """Writes ``run.json``, whole or not at all."""
        try:
            write_atomically(out / RUN, indented_json(self.model_dump(mode="json")))
        except OSError as error:
            raise DataError(f"{out / RUN} cannot be written: {error.strerror}") from None


def open_run_directory(
    out: Path, config: RunConfig, directories: Sequence[str], mixture: Mixture, *, writes: bool
) -> None:
    """Makes the directory of a run, or checks that it is this run's; only the process that ``writes`` makes files.

    Raises ConfigError if it holds another run or cannot be made.
    """
    wanted = RunFile(config=config, data=list(directories), data_digest=mixture.data_digest)
    existing = read_run(out)
    if existing is not None:
        check_same(existing, wanted, out)
    if not writes:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made: {error.strerror}") from None
    wanted.write(out)
    if not (out / POLICY_FOLDER).exists():
        _write_policy_files(mixture, config, out)


def read_run(out: Path) -> RunFile | None:
    """The file of a run's directory, None if there is no such file. Raises DataError if it cannot be read."""
    path = out / RUN
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("overfit_one_batch", False):
            raise ValueError("a run on one batch (--overfit-one-batch) cannot go on")
        return validated(RunFile, content, RUN)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}; give another --out") from None


def check_same(existing: RunFile, wanted: RunFile, out: Path) -> None:
    """Raises ConfigError, which names what differs, if the run in ``out`` cannot go on as ``wanted``."""
    before, after = (_fields(item.config.model_dump(mode="json")) for item in (existing, wanted))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name) and not name.startswith(CHANGEABLE):
            raise ConfigError(
                f"{out} holds a run whose {name} is {before.get(name)!r}, and the config says {after.get(name)!r}: "
                "give another --out, or the run's own config"
            )
    if wanted.config.steps < existing.config.steps:
        raise ConfigError(
            f"{out} holds a run of {existing.config.steps} steps, and the config says {wanted.config.steps}: steps may "
            "only grow; --steps stops earlier"
        )
    if existing.data_digest != wanted.data_digest:
        raise ConfigError(
            f"{out} holds a run on other data ({', '.join(existing.data)}; its digest is {existing.data_digest[:12]}, "
            f"not {wanted.data_digest[:12]}): give another --out, or init_from to go on with other data"
        )


def _fields(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted path."""
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= _fields(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return leaves


def _write_policy_files(mixture: Mixture, config: RunConfig, out: Path) -> None:
    """Copies from the data what a policy needs beside its parameters: specs, vocabulary, tokenizer, and the records of
    each task's best episode as its prompt.

    Raises DataError if the folder cannot be written.
    """
    folder, temporary = out / POLICY_FOLDER, out / f".{POLICY_FOLDER}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        (temporary / VOCABULARY).write_bytes(mixture.vocabulary)
        writer = ArrayRecordWriter(str(temporary / PROMPTS), "group_size:1,zstd:1")
        written = 0
        datasets = {}
        for dataset in mixture.datasets:
            described, tasks = dataset.described, {}
            shards = OpenShards(dataset.shards, 16)
            for task, best in sorted(dataset.best_episodes().items()):
                first = best["first_record"]
                records = shards.read_bytes(best["shard"], first, first + len(best["record_tokens"]))
                for record in records:
                    writer.write(record)
                prompt = Prompt(
                    episode_id=best["episode_id"],
                    agent=best["agent"],
                    episode_return=best["return"],
                    first_record=written,
                    records=len(records),
                )
                written += len(records)
                spec = described.tasks[task].spec
                tasks[task] = PolicyTask(spec=spec, expert_return=best["expert_return"], prompt=prompt)
            datasets[dataset.name] = PolicyDataset(
                kind=dataset.totals.kind, specs=described.specs, tasks=tasks, documents=described.documents
            )
        writer.close()
        policy = PolicyFile(
            config=config,
            tokenizer=mixture.tokenizer,
            vocabulary_blake2b=mixture.vocabulary_digest,
            datasets=datasets,
        )
        (temporary / POLICY).write_bytes(policy.to_bytes())
        os.replace(temporary, folder)
    except (OSError, RuntimeError) as error:  # ArrayRecord's writer raises the latter
        raise DataError(f"{folder} cannot be written: {error}") from None
