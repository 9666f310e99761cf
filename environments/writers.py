"""Writes rollouts to disk as RLDS with the two usual libraries: EnvLogger and TensorFlow Datasets (TFDS).

Both store ``steps`` as (observation, action, reward, discount, is_first, is_last, is_terminal): the action is taken at
the observation, and the reward follows it. The last step holds the final observation and zeros for the rest.
"""

import abc
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from gatokit.environments.adapter import Action, Adapter, Observation, Transition, need
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import FieldSpec

WRITERS = ("envlogger", "tfrecord", "array_record", "tfrecord-shuffled", "array_record-shuffled")
"""EnvLogger's TFDS backend (TFRecord); TFDS in collection order; TFDS in the order of its builders, by key hash."""

EPISODES_PER_FILE = 50
VERSION = "1.0.0"

Metadata = dict[str, Any]


class Recorder(abc.ABC):
    """Steps an adapter and writes the episodes. ``close`` completes the dataset on disk."""

    @abc.abstractmethod
    def reset(self, seed: int, metadata: Metadata) -> Observation:
        """Begins an episode; ``metadata`` has the keys of ``metadata_of``."""

    @abc.abstractmethod
    def step(self, action: Action) -> Transition:
        """One step of the adapter."""

    @abc.abstractmethod
    def close(self) -> None:
        """Writes the rest and the description of the dataset."""


def open_recorder(adapter: Adapter, directory: Path, writer: str) -> Recorder:
    """A recorder with one of ``WRITERS`` that writes below ``directory``, which must exist."""
    if writer not in WRITERS:
        raise ConfigError(f"there is no writer {writer!r}; there are {', '.join(WRITERS)}")
    # TensorFlow reads these when it is first imported; its start-up lines would disturb a progress bar.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if writer == "envlogger":
        return EnvLoggerRecorder(adapter, directory)
    file_format, _, order = writer.partition("-")
    return TfdsRecorder(adapter, directory / VERSION, file_format, shuffle=order == "shuffled")


def metadata_of(adapter: Adapter, agent: str, index: int, seed: int) -> Metadata:
    """The metadata of an episode.

    ``agent_id`` text, ``env_id`` text, ``episode_index`` int64 in collection order, ``seed`` int64,
    ``time_limit`` int64, and ``num_actions`` int64 or ``action_low`` and ``action_high`` float32 (A,).
    """
    metadata: Metadata = {
        "agent_id": agent,
        "env_id": adapter.name,
        "episode_index": np.int64(index),
        "seed": np.int64(seed),
        "time_limit": np.int64(adapter.time_limit),
    }
    if adapter.action.kind == "discrete":
        return metadata | {"num_actions": np.int64(adapter.action.num or 0)}
    return metadata | {"action_low": adapter.action_low, "action_high": adapter.action_high}


class EnvLoggerRecorder(Recorder):
    """EnvLogger around the adapter, with its TFDS backend: files ``<name>-train.tfrecord-00000``."""

    def __init__(self, adapter: Adapter, directory: Path) -> None:
        self._view = need("gatokit.environments.dm_env_view").DmEnvView(adapter)
        backend = need("envlogger.backends.tfds_backend_writer").TFDSBackendWriter
        self._backend = backend(
            data_directory=str(directory),
            ds_config=_dataset(adapter),
            max_episodes_per_file=EPISODES_PER_FILE,
            version=VERSION,
        )
        self._metadata: Metadata = {}
        self._env = need("envlogger").EnvLogger(
            self._view, episode_fn=lambda timestep, action, env: self._metadata, backend=self._backend
        )

    def reset(self, seed: int, metadata: Metadata) -> Observation:
        """Begins an episode."""
        self._view.seed, self._metadata = seed, metadata
        return self._env.reset().observation

    def step(self, action: Action) -> Transition:
        """One step."""
        self._env.step(action)
        assert self._view.transition is not None
        return self._view.transition

    def close(self) -> None:
        """Closes the backend once; its destructor would write the description again."""
        self._env.close()
        self._backend.close = lambda: None


class TfdsRecorder(Recorder):
    """TFDS's own writers. Files in collection order are ``<name>-train.array_record-00000``. If episodes are shuffled
    by the hash of their keys, as TFDS builders do, they are ``<name>-train.array_record-00000-of-00001``."""

    def __init__(self, adapter: Adapter, directory: Path, file_format: str, shuffle: bool) -> None:
        tfds = need("tensorflow_datasets")
        config = _dataset(adapter)
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=config.name, version=tfds.core.Version(VERSION), data_dir=str(directory), module_name=""
        )
        self._adapter = adapter
        self._info = tfds.rlds.rlds_base.build_info(config, identity)
        self._info.set_file_format(file_format)
        self._steps: list[dict[str, Any]] = []
        self._observation: Observation = {}
        self._metadata: Metadata = {}
        directory.mkdir(parents=True)
        self._sink = (_Shuffled if shuffle else _Sequential)(self._info, directory, file_format)

    def reset(self, seed: int, metadata: Metadata) -> Observation:
        """Begins an episode."""
        self._steps, self._metadata = [], metadata
        self._observation = self._adapter.reset(seed)
        return self._observation

    def step(self, action: Action) -> Transition:
        """One step. The step that ends the episode writes it."""
        transition = self._adapter.step(action)
        self._add(action, transition.reward, 0.0 if transition.terminated else 1.0)
        self._observation = transition.observation
        if transition.terminated or transition.truncated:
            self._add(np.zeros_like(action), 0.0, 0.0, last=True, terminal=transition.terminated)
            self._sink.add({"steps": self._steps, **self._metadata})
        return transition

    def _add(self, action: Action, reward: float, discount: float, last: bool = False, terminal: bool = False) -> None:
        self._steps.append(
            {
                "observation": self._observation,
                "action": action,
                "reward": np.float32(reward),
                "discount": np.float32(discount),
                "is_first": not self._steps,
                "is_last": last,
                "is_terminal": terminal,
            }
        )

    def close(self) -> None:
        """Closes the last file and writes the description."""
        self._sink.close()


class _Sequential:
    """TFDS's SequentialWriter."""

    def __init__(self, info: Any, directory: Path, file_format: str) -> None:
        self._writer = need("tensorflow_datasets").core.SequentialWriter(
            info, EPISODES_PER_FILE, file_format=file_format
        )
        self._writer.initialize_splits(["train"])

    def add(self, episode: dict[str, Any]) -> None:
        self._writer.add_examples({"train": [episode]})

    def close(self) -> None:
        self._writer.close_all()


class _Shuffled:
    """The writer of TFDS's builders, which orders episodes by the hashes of their keys."""

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

    def add(self, episode: dict[str, Any]) -> None:
        self._writer.write(f"episode-{int(episode['episode_index'])}", self._info.features.encode_example(episode))

    def close(self) -> None:
        lengths, size = self._writer.finalize()
        split = self._splits.SplitInfo(
            name="train", shard_lengths=lengths, num_bytes=size, filename_template=self._template
        )
        self._info.set_splits(self._splits.SplitDict([split]))
        self._info.write_to_directory(self._directory)


def _dataset(adapter: Adapter) -> Any:
    """The description of a task's episodes for TFDS's RLDS builders."""
    tfds = need("tensorflow_datasets")
    return tfds.rlds.rlds_base.DatasetConfig(
        name=re.sub(r"\W", "_", adapter.name).lower(),
        observation_info={field.components[-1]: _feature(field) for field in adapter.spec.observation},
        action_info=_feature(adapter.action),
        reward_info=np.float32,
        discount_info=np.float32,
        episode_metadata_info={key: _metadata_feature(value) for key, value in metadata_of(adapter, "", 0, 0).items()},
    )


def _feature(field: FieldSpec) -> Any:
    features = need("tensorflow_datasets").features
    if field.kind == "text":
        return features.Text()
    if field.kind == "image":
        return features.Image(shape=field.shape, encoding_format="png")
    return features.Tensor(shape=field.shape, dtype=np.dtype(field.dtype))


def _metadata_feature(value: Any) -> Any:
    features = need("tensorflow_datasets").features
    return features.Text() if isinstance(value, str) else features.Tensor(shape=value.shape, dtype=value.dtype)
