"""Copies from the data what a policy needs beside its parameters: specs, vocabulary, tokenizer, a prompt a task."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter

from gatokit.loader.mixture import MixedDataset, Mixture
from gatokit.loader.records import OpenShards
from gatokit.schemas.errors import DataError
from gatokit.schemas.index import TRAIN
from gatokit.schemas.manifest import VOCABULARY
from gatokit.schemas.policy import POLICY, PROMPTS, PolicyDataset, PolicyFile, PolicyTask, Prompt
from gatokit.schemas.run import RunConfig

POLICY_FOLDER = "policy"

_COLUMNS = ["episode_id", "task", "agent", "split", "return", "expert_return", "part", "first_record", "record_tokens"]


class _Episode(NamedTuple):
    """The best episode of a task so far."""

    episode_id: str
    agent: str
    episode_return: float
    expert_return: float
    shard: int
    first_record: int
    records: int


def write_policy_files(mixture: Mixture, config: RunConfig, out: Path) -> Path:
    """The folder of these files below a run's directory, written if it is not there; DataError where it cannot be."""
    folder = out / POLICY_FOLDER
    if folder.exists():
        return folder
    temporary = out / f".{POLICY_FOLDER}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        (temporary / VOCABULARY).write_bytes(mixture.vocabulary)
        datasets = _write_prompts(mixture, temporary / PROMPTS)
        policy = PolicyFile(
            config=config, tokenizer=mixture.tokenizer, vocabulary_blake2b=mixture.vocabulary_digest, datasets=datasets
        )
        (temporary / POLICY).write_bytes(policy.to_bytes())
        os.replace(temporary, folder)
    except (OSError, RuntimeError) as error:  # ArrayRecord's writer raises the latter
        raise DataError(f"{folder} cannot be written: {error}") from None
    return folder


def _write_prompts(mixture: Mixture, path: Path) -> dict[str, PolicyDataset]:
    """Writes the records of each task's best episode; what ``policy.json`` says of the datasets."""
    writer = ArrayRecordWriter(str(path), "group_size:1,zstd:1")
    written = 0
    found = {}
    for dataset in mixture.datasets:
        described = dataset.described
        shards = OpenShards(dataset.shards, 16)
        tasks = {}
        for task, best in sorted(_best_episodes(dataset).items() if dataset.holds_episodes else ()):
            for record in shards.read_bytes(best.shard, best.first_record, best.first_record + best.records):
                writer.write(record)
            prompt = Prompt(
                episode_id=best.episode_id,
                agent=best.agent,
                episode_return=best.episode_return,
                first_record=written,
                records=best.records,
            )
            written += best.records
            spec = described.tasks[task].spec
            tasks[task] = PolicyTask(spec=spec, expert_return=best.expert_return, prompt=prompt)
        found[dataset.name] = PolicyDataset(
            kind=dataset.totals.kind, specs=described.specs, tasks=tasks, documents=described.documents
        )
    writer.close()
    return found


def _best_episodes(dataset: MixedDataset) -> dict[str, _Episode]:
    """By task the training episode of the highest return; of equal ones the first."""
    found: dict[str, _Episode] = {}
    first_shard = 0
    for split in dataset.totals.splits:
        path = dataset.path / split.index
        try:
            table = pq.read_table(path, columns=_COLUMNS, filters=[("split", "=", TRAIN)])
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"the index {path} cannot be read: {error}; gatokit verify says more") from None
        returns, tasks = table["return"].to_numpy(), table["task"].to_pylist()
        best: dict[str, int] = {}
        for row, task in enumerate(tasks):
            if task not in best or returns[row] > returns[best[task]]:
                best[task] = row
        for task, row in best.items():
            if task in found and returns[row] <= found[task].episode_return:
                continue
            values = {name: table[name][row].as_py() for name in _COLUMNS}
            found[task] = _Episode(
                episode_id=values["episode_id"],
                agent=values["agent"],
                episode_return=values["return"],
                expert_return=values["expert_return"],
                shard=first_shard + values["part"],
                first_record=values["first_record"],
                records=len(values["record_tokens"]),
            )
        first_shard += len(split.parts)
    return found
