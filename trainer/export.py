"""What a run gives to policies and to other runs: the files of a policy, and weights as ``model.safetensors``.

The files of a policy lie in the folder ``policy`` of a run and of its checkpoints, and beside the weights of an export.
"""

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gatokit.loader.mixture import Mixture
from gatokit.loader.records import OpenShards
from gatokit.schemas.errors import ConfigError, DataError, RejectedError
from gatokit.schemas.manifest import VOCABULARY, indented_json
from gatokit.schemas.policy import POLICY, PROMPTS, PolicyDataset, PolicyFile, PolicyTask, Prompt
from gatokit.schemas.record import Record
from gatokit.schemas.run import RunConfig
from gatokit.schemas.run_directory import POLICY_FOLDER, WEIGHTS, flatten
from gatokit.storage.files import whole_folder, writing
from gatokit.storage.folder import read_policy, regular_file
from gatokit.storage.run_directory import find_checkpoint, holds_weights
from gatokit.tokenizers.image_codec import decode
from gatokit.trainer import model
from gatokit.trainer.attention import Tree
from gatokit.trainer.checkpoint import check_shapes, restore_params

CONFIG = "config.json"
FORMAT = "gatokit"
_MOST_TRIED = 16
"""Episodes of a task, the best first, of which one must decode."""


def write_policy_files(mixture: Mixture, config: RunConfig, run: Path) -> list[str]:
    """Copies from the data into a run's directory what a policy needs beside its parameters: specs, vocabulary,
    tokenizer, and as the prompt of each task the records of its best episode whose images decode.

    Returns a sentence for each better episode that does not decode. Raises DataError if none of a task's best episodes
    decodes, or if the files cannot be written.
    """
    notices: list[str] = []
    # ArrayRecord's writer raises RuntimeError.
    with writing(run / POLICY_FOLDER, (OSError, RuntimeError)), whole_folder(run / POLICY_FOLDER) as temporary:
        if mixture.vocabulary is not None:
            (temporary / VOCABULARY).write_bytes(mixture.vocabulary)
        writer = ArrayRecordWriter(str(temporary / PROMPTS), "group_size:1,zstd:1")
        written, datasets = 0, {}
        for dataset in mixture.datasets:
            described, tasks = dataset.described, {}
            shards = OpenShards(dataset.shards, 16)
            for task, episodes in sorted(dataset.best_episodes(_MOST_TRIED).items()):
                best, stored, damaged = _first_sound(shards, episodes, f"{dataset.name}, task {task!r}")
                notices += damaged
                for record in stored:
                    writer.write(record)
                records = len(stored)
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
        policy = PolicyFile(
            config=config,
            tokenizer=mixture.tokenizer,
            vocabulary_blake2b=mixture.vocabulary_digest,
            datasets=datasets,
        )
        (temporary / POLICY).write_bytes(policy.to_bytes())
    return notices


def _first_sound(
    shards: OpenShards, episodes: list[dict[str, Any]], of_task: str
) -> tuple[dict[str, Any], list[bytes], list[str]]:
    """The first of the episodes all of whose images decode, its records, and what is wrong with those before it. Raises
    DataError if there is none."""
    problems: list[str] = []
    for episode in episodes:
        begin = episode["first_record"]
        records = shards.read_bytes(episode["shard"], begin, begin + len(episode["record_tokens"]))
        try:
            for image in itertools.chain.from_iterable(Record.from_bytes(data).sequence.images for data in records):
                decode(image.image.data)
        except (ValueError, RejectedError) as error:
            problems.append(f"{of_task}: {episode['episode_id']} cannot be the prompt: {error}")
            continue
        return episode, records, problems
    raise DataError(
        f"{problems[0]}, and neither can the other {len(episodes) - 1} best episodes; gatokit verify --decode names "
        "all that is damaged"
    )


def export(run: Path, out: Path) -> int:
    """Writes the parameters of a run's newest checkpoint, or of the checkpoint ``run`` itself; returns their number.

    ``out`` gets ``model.safetensors`` (float32, keys joined by dots), ``config.json`` and the policy's files. Raises
    DataError if there is no checkpoint, ConfigError if ``out`` exists already.
    """
    checkpoint = find_checkpoint(run)
    if os.path.lexists(out):
        raise ConfigError(f"{out} is there already: give another --out, or remove it")
    policy = read_policy(checkpoint / POLICY_FOLDER)
    table = model.parameter_table(policy.config.model, policy.tokenizer.vocabulary_size)
    params = restore_params(checkpoint, abstract(table))
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    config = {
        "format": FORMAT,
        "model": policy.config.model.model_dump(mode="json"),
        "context": policy.config.context,
        "tokenizer": policy.tokenizer.model_dump(mode="json"),
        "vocabulary": policy.vocabulary_blake2b and {"file": VOCABULARY, "blake2b": policy.vocabulary_blake2b},
        "step": int(checkpoint.name) if checkpoint.name.isdigit() else None,
    }
    with writing(out, (OSError, SafetensorError)), whole_folder(out) as temporary:
        for name in (PROMPTS, VOCABULARY) if policy.vocabulary_blake2b else (PROMPTS,):
            shutil.copyfile(regular_file(checkpoint / POLICY_FOLDER, name), temporary / name)
        (temporary / POLICY).write_bytes(_without_paths(policy).to_bytes())
        save_file(arrays, temporary / WEIGHTS, metadata={"format": FORMAT})
        (temporary / CONFIG).write_bytes(indented_json(config))
    return model.count(table)


def _without_paths(policy: PolicyFile) -> PolicyFile:
    """The description of a policy with a name in place of the path of the weights from which its run began."""
    if policy.config.init_from is None:
        return policy
    config = policy.config.model_copy(update={"init_from": Path(policy.config.init_from).name or "weights"})
    return policy.model_copy(update={"config": config})


def load_weights(path: Path, wanted: Any) -> Any:
    """Parameters from a run's directory, one of its checkpoints or an export, placed as the abstract ``wanted`` says.

    Raises ConfigError if ``path`` does not exist, DataError if it cannot be read or an array has another shape.
    """
    if not path.exists():
        raise ConfigError(f"init_from: there is no {path}")
    if not holds_weights(path):
        return restore_params(find_checkpoint(path), wanted)
    try:
        arrays = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path / WEIGHTS} cannot be read: {error}") from None
    check_shapes(arrays, flatten(wanted), path)

    def placed(keys: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        array = arrays[jax.tree_util.keystr(keys, simple=True, separator=".")]
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)

    return jax.tree_util.tree_map_with_path(placed, wanted)


def abstract(table: Tree) -> Any:
    """Shapes of the parameters, on this process's first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda parameter: jax.ShapeDtypeStruct(parameter.shape, np.float32, sharding=sharding), table)
