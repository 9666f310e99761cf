"""A run's directory: ``run.json``, which keeps another run from going on in it, and the files of its policy.

The folder ``policy`` goes into every checkpoint and export, so that a policy runs without the data.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter
from pydantic import BaseModel, ConfigDict

from gatokit.loader.mixture import MixedDataset, Mixture
from gatokit.loader.records import OpenShards
from gatokit.schemas.config import validated
from gatokit.schemas.errors import ConfigError, DataError, first_line
from gatokit.schemas.index import TRAIN
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

_COLUMNS = ["episode_id", "task", "agent", "split", "return", "expert_return", "part", "first_record", "record_tokens"]


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
        overfit = content.pop("overfit_one_batch", False)
        run = validated(RunFile, content, str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}; give another --out") from None
    except ConfigError as error:
        raise DataError(f"{error}; give another --out") from None
    if overfit:
        raise DataError(
            f"{path} is of a run on one batch (--overfit-one-batch), which cannot go on: give another --out"
        )
    return run


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
    """Copies from the data what a policy needs beside its parameters: specs, vocabulary, tokenizer, a prompt a task.

    Raises DataError if the folder cannot be written.
    """
    folder, temporary = out / POLICY_FOLDER, out / f".{POLICY_FOLDER}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        (temporary / VOCABULARY).write_bytes(mixture.vocabulary)
        datasets = _write_prompts(mixture, temporary / PROMPTS)
        digest = mixture.vocabulary_digest
        policy = PolicyFile(config=config, tokenizer=mixture.tokenizer, vocabulary_blake2b=digest, datasets=datasets)
        (temporary / POLICY).write_bytes(policy.to_bytes())
        os.replace(temporary, folder)
    except (OSError, RuntimeError) as error:  # ArrayRecord's writer raises the latter
        raise DataError(f"{folder} cannot be written: {error}") from None


def _write_prompts(mixture: Mixture, path: Path) -> dict[str, PolicyDataset]:
    """Writes the records of each task's best episode; returns what ``policy.json`` says about the datasets."""
    writer = ArrayRecordWriter(str(path), "group_size:1,zstd:1")
    written = 0
    datasets = {}
    for dataset in mixture.datasets:
        described = dataset.described
        shards = OpenShards(dataset.shards, 16)
        tasks = {}
        for task, best in sorted(_best_episodes(dataset).items()):
            records = len(best["record_tokens"])
            for record in shards.read_bytes(best["shard"], best["first_record"], best["first_record"] + records):
                writer.write(record)
            prompt = Prompt(
                episode_id=best["episode_id"],
                agent=best["agent"],
                episode_return=best["return"],
                first_record=written,
                records=records,
            )
            written += records
            spec = described.tasks[task].spec
            tasks[task] = PolicyTask(spec=spec, expert_return=best["expert_return"], prompt=prompt)
        datasets[dataset.name] = PolicyDataset(
            kind=dataset.totals.kind, specs=described.specs, tasks=tasks, documents=described.documents
        )
    writer.close()
    return datasets


def _best_episodes(dataset: MixedDataset) -> dict[str, dict[str, Any]]:
    """By task the index row of the training episode of the highest return (of equal ones the first) and its shard's
    ordinal; empty for documents."""
    best: dict[str, dict[str, Any]] = {}
    first_shard = 0
    for split in dataset.totals.splits if dataset.holds_episodes else ():
        path = dataset.path / split.index
        try:
            table = pq.read_table(path, columns=_COLUMNS, filters=[("split", "=", TRAIN)])
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"the index {path} cannot be read: {error}; gatokit verify says more") from None
        tasks = table["task"].combine_chunks().dictionary_encode().indices.to_numpy()
        order = np.argsort(-table["return"].to_numpy(), kind="stable")
        _, firsts = np.unique(tasks[order], return_index=True)
        for episode in table.take(order[firsts]).to_pylist():
            task = episode["task"]
            if task not in best or episode["return"] > best[task]["return"]:
                best[task] = episode | {"shard": first_shard + episode["part"]}
        first_shard += len(split.parts)
    return best
