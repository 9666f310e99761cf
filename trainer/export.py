"""Weights as ``model.safetensors`` with the files of a policy: written from a run, and read by another run."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.manifest import VOCABULARY, indented_json
from gatokit.schemas.policy import PolicyFile
from gatokit.trainer import model
from gatokit.trainer.attention import Tree
from gatokit.trainer.checkpoint import check_shapes, find_checkpoint, flat, restore_params
from gatokit.trainer.run_directory import POLICY_FOLDER

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = "gatokit"


def export(run: Path, out: Path) -> int:
    """Writes the parameters of a run's newest checkpoint, or of the checkpoint ``run`` itself; returns their number.

    ``out`` gets ``model.safetensors`` (float32, keys joined by dots), ``config.json`` and the policy's files. Raises
    DataError if there is no checkpoint, ConfigError if ``out`` exists already.
    """
    checkpoint = find_checkpoint(run)
    if out.exists():
        raise ConfigError(f"{out} is there already: give another --out, or remove it")
    policy = PolicyFile.read(checkpoint / POLICY_FOLDER)
    table = model.parameter_table(policy.config.model, policy.tokenizer.vocabulary_size)
    arrays = {name: np.asarray(leaf) for name, leaf in flat(restore_params(checkpoint, abstract(table))).items()}
    config = {
        "format": FORMAT,
        "model": policy.config.model.model_dump(mode="json"),
        "context": policy.config.context,
        "tokenizer": policy.tokenizer.model_dump(mode="json"),
        "vocabulary": {"file": VOCABULARY, "blake2b": policy.vocabulary_blake2b},
        "step": int(checkpoint.name) if checkpoint.name.isdigit() else None,
    }
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(checkpoint / POLICY_FOLDER, temporary, ignore=shutil.ignore_patterns("commit_success.txt"))
        save_file(arrays, temporary / WEIGHTS, metadata={"format": FORMAT})
        (temporary / CONFIG).write_bytes(indented_json(config))
        os.replace(temporary, out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(f"{out} cannot be written: {error}") from None
    return model.count(table)


def load_weights(path: Path, wanted: Any) -> Any:
    """Parameters from a run's directory, one of its checkpoints or an export, placed as the abstract ``wanted`` says.

    Raises ConfigError if ``path`` does not exist, DataError if it cannot be read or an array has another shape.
    """
    if not path.exists():
        raise ConfigError(f"init_from: there is no {path}")
    if not (path / WEIGHTS).exists():
        return restore_params(find_checkpoint(path), wanted)
    try:
        arrays = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path / WEIGHTS} cannot be read: {error}") from None
    leaves = flat(wanted)
    check_shapes(arrays, leaves, path)
    placed = [
        jax.make_array_from_callback(leaf.shape, leaf.sharding, arrays[name].__getitem__)
        for name, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(wanted), placed)


def policy_folder(path: Path) -> Path:
    """The folder of the policy's files in a run, a checkpoint or an export. Raises DataError if there is none."""
    return path if (path / WEIGHTS).exists() else find_checkpoint(path) / POLICY_FOLDER


def abstract(table: Tree) -> Any:
    """Shapes of the parameters, on this process's first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda parameter: jax.ShapeDtypeStruct(parameter.shape, np.float32, sharding=sharding), table)
