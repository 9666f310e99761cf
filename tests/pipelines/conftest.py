"""Writers of small real recordings: TFDS directories by TFDS itself, EnvLogger logs by EnvLogger itself."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Episodes = Sequence[Mapping[str, Any]]


def _write_tfds(
    path: Path,
    steps: Mapping[str, Any],
    episodes: Episodes | Mapping[str, Episodes],
    *,
    metadata: Mapping[str, Any] | None = None,
    file_format: str = "tfrecord",
    max_examples_per_shard: int = 2,
    finished: bool = True,
) -> Path:
    import tensorflow_datasets as tfds

    path.mkdir(parents=True, exist_ok=True)
    identity = tfds.core.DatasetIdentity(
        name="recorded", version=tfds.core.Version("1.0.0"), data_dir=os.fspath(path), module_name=""
    )
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(dict(steps)), **(metadata or {})})
    info = tfds.core.DatasetInfo(builder=identity, description="a test", features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard, file_format=file_format)
    splits = episodes if isinstance(episodes, Mapping) else {"train": episodes}
    writer.initialize_splits(list(splits))
    if finished:
        writer.add_examples({split: list(written) for split, written in splits.items()})
        writer.close_all()
    return path


def _write_riegeli(
    path: Path,
    episodes: Sequence[tuple[Sequence[Any], Mapping[str, Any] | None]],
    *,
    metadata: Mapping[str, Any] | None = None,
    max_episodes_per_file: int = 2,
) -> Path:
    from envlogger.backends.riegeli_backend_writer import RiegeliBackendWriter

    path.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        # EnvLogger's encoder names the type that NumPy 2 removed.
        patch.setattr(np, "unicode_", np.str_, raising=False)
        writer = RiegeliBackendWriter(
            data_directory=os.fspath(path), max_episodes_per_file=max_episodes_per_file, metadata=dict(metadata or {})
        )
        for steps, episode_metadata in episodes:
            for ordinal, step in enumerate(steps):
                writer.record_step(step, is_new_episode=ordinal == 0)
            if episode_metadata is not None:
                writer.set_episode_metadata(dict(episode_metadata))
        writer.close()
    return path


@pytest.fixture(scope="session")
def write_tfds() -> Callable[..., Path]:
    """``write_tfds(path, steps, episodes, *, metadata, file_format, max_examples_per_shard, finished) -> path``.

    ``steps`` and ``metadata`` are TFDS features. ``episodes`` are those of the split ``train``, or of each split
    by name: ``{"steps": [step, …], **metadata}``. Files are named ``recorded-SPLIT.FORMAT-NNNNN``, in the given
    order; ``finished=False`` leaves what a recording killed in its first shard leaves.
    """
    return _write_tfds


@pytest.fixture(scope="session")
def write_riegeli(native_envlogger: Path) -> Callable[..., Path]:
    """``write_riegeli(path, episodes, *, metadata, max_episodes_per_file) -> path``.

    Each episode is its ``envlogger.StepData`` in dm_env order and its metadata or None.
    """
    return _write_riegeli
