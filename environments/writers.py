"""Writes episodes to disk as RLDS with the two usual libraries: EnvLogger and TensorFlow Datasets (TFDS).

Both store ``steps`` as (observation, action, reward, discount, is_first, is_last, is_terminal): the action is taken at
the observation, and the reward follows it. The last step holds the final observation and zeros for the rest.
"""

import os
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gatokit.environments.adapter import Adapter, need
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import FieldSpec

WRITERS = ("envlogger", "tfrecord", "array_record", "tfrecord-shuffled", "array_record-shuffled")
"""EnvLogger's TFDS backend (TFRecord); TFDS in collection order; TFDS in the order of its builders, by key hash."""

EPISODES_PER_FILE = 50
VERSION = "1.0.0"


class EpisodeWriter(Protocol):
    """Writes RLDS episodes, one after the other."""

    def write(self, episode: dict[str, Any]) -> None:
        """Writes an episode: its ``steps``, and the keys of ``metadata_of``."""

    def close(self) -> None:
        """Writes the rest and the description of the dataset."""


def open_writer(adapter: Adapter, directory: Path, writer: str) -> EpisodeWriter:
    """One of ``WRITERS`` for the adapter's episodes, which writes below ``directory``, which must exist."""
    if writer not in WRITERS:
        raise ConfigError(f"there is no writer {writer!r}; there are {', '.join(WRITERS)}")
    # TensorFlow reads these when it is first imported; its start-up lines would disturb a progress bar.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    tfds = need("tensorflow_datasets")
    config = tfds.rlds.rlds_base.DatasetConfig(
        name=re.sub(r"\W", "_", adapter.name).lower(),
        observation_info={field.components[-1]: _feature(tfds, field) for field in adapter.spec.observation},
        action_info=_feature(tfds, adapter.action),
        reward_info=np.float32,
        discount_info=np.float32,
        episode_metadata_info={
            key: _metadata_feature(tfds, value) for key, value in metadata_of(adapter, "", 0, 0).items()
        },
    )
    if writer == "envlogger":
        return _EnvLogger(config, directory)
    directory = directory / VERSION
    directory.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=config.name, version=tfds.core.Version(VERSION), data_dir=str(directory), module_name=""
    )
    info = tfds.rlds.rlds_base.build_info(config, identity)
    file_format, _, order = writer.partition("-")
    info.set_file_format(file_format)
    return (_Shuffled if order == "shuffled" else _Sequential)(info, directory, file_format)


def metadata_of(adapter: Adapter, agent: str, index: int, seed: int) -> dict[str, Any]:
    """The metadata of an episode.

    ``agent_id`` text, ``env_id`` text, ``episode_index`` int64 in collection order, ``seed`` int64,
    ``time_limit`` int64, and ``num_actions`` int64 or ``action_low`` and ``action_high`` float32 (A,).
    """
    metadata = {
        "agent_id": agent,
        "env_id": adapter.name,
        "episode_index": np.int64(index),
        "seed": np.int64(seed),
        "time_limit": np.int64(adapter.time_limit),
    }
    if adapter.action.kind == "discrete":
        return metadata | {"num_actions": np.int64(adapter.action.num or 0)}
    return metadata | {"action_low": adapter.action_low, "action_high": adapter.action_high}


def _feature(tfds: Any, field: FieldSpec) -> Any:
    if field.kind == "text":
        return tfds.features.Text()
    if field.kind == "image":
        return tfds.features.Image(shape=field.shape, encoding_format="png")
    return tfds.features.Tensor(shape=field.shape, dtype=np.dtype(field.dtype))


def _metadata_feature(tfds: Any, value: Any) -> Any:
    if isinstance(value, str):
        return tfds.features.Text()
    return tfds.features.Tensor(shape=value.shape, dtype=value.dtype)


class _EnvLogger:
    """EnvLogger's TFDS backend: files ``<name>-train.tfrecord-00000``."""

    def __init__(self, config: Any, directory: Path) -> None:
        backend = need("envlogger.backends.tfds_backend_writer").TFDSBackendWriter
        self._backend = backend(
            data_directory=str(directory), ds_config=config, max_episodes_per_file=EPISODES_PER_FILE, version=VERSION
        )

    def write(self, episode: dict[str, Any]) -> None:
        dm_env, step_data = need("dm_env"), need("envlogger.step_data").StepData
        # EnvLogger's step is the action that led to an observation, RLDS's is the one that follows it.
        action, reward, discount = None, None, None
        for step in episode["steps"]:
            kind = dm_env.StepType.FIRST if step["is_first"] else dm_env.StepType.MID
            if step["is_last"]:
                kind = dm_env.StepType.LAST
            time_step = dm_env.TimeStep(kind, reward, discount, step["observation"])
            self._backend.record_step(step_data(time_step, action, None), is_new_episode=step["is_first"])
            action, reward, discount = step["action"], step["reward"], step["discount"]
        self._backend.set_episode_metadata({key: value for key, value in episode.items() if key != "steps"})

    def close(self) -> None:
        self._backend.close()
        # The backend's destructor would write the description again.
        self._backend.close = lambda: None


class _Sequential:
    """TFDS's SequentialWriter, in collection order: files ``<name>-train.array_record-00000``."""

    def __init__(self, info: Any, directory: Path, file_format: str) -> None:
        self._writer = need("tensorflow_datasets").core.SequentialWriter(
            info, EPISODES_PER_FILE, file_format=file_format
        )
        self._writer.initialize_splits(["train"])

    def write(self, episode: dict[str, Any]) -> None:
        self._writer.add_examples({"train": [episode]})

    def close(self) -> None:
        self._writer.close_all()


class _Shuffled:
    """The writer of TFDS's builders, in the order of the keys' hashes: ``<name>-train.array_record-00000-of-00001``."""

    def __init__(self, info: Any, directory: Path, file_format: str) -> None:
        tfds = need("tensorflow_datasets")
        tfds.disable_progress_bar()
        writer = need("tensorflow_datasets.core.writer")
        serializer = need("tensorflow_datasets.core.example_serializer").ExampleSerializer
        self._directory, self._info, self._splits = directory, info, tfds.core.splits
        self._template = tfds.core.ShardedFileTemplate(
            dataset_name=info.name,
            data_dir=tfds.core.Path(directory),
            split="train",
            filetype_suffix=file_format,
        )
        self._writer = writer.Writer(
            serializer(info.features.get_serialized_info()),
            self._template,
            hash_salt="train",
            disable_shuffling=False,
            example_writer=writer.ExampleWriter(file_format=info.file_format),
        )

    def write(self, episode: dict[str, Any]) -> None:
        self._writer.write(f"episode-{int(episode['episode_index'])}", self._info.features.encode_example(episode))

    def close(self) -> None:
        lengths, size = self._writer.finalize()
        split = self._splits.SplitInfo(
            name="train", shard_lengths=lengths, num_bytes=size, filename_template=self._template
        )
        self._info.set_splits(self._splits.SplitDict([split]))
        self._info.write_to_directory(self._directory)
