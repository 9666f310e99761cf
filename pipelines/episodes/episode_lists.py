"""The lists of episodes that a config names: found beside it, and read when its datasets are judged."""

import os
from pathlib import Path

from gatokit.pipelines.find import local_path
from gatokit.schemas.config import BuildConfig, EpisodesConfig, Keep
from gatokit.schemas.digests import digest
from gatokit.schemas.episode_list import EpisodeList
from gatokit.schemas.errors import ConfigError
from gatokit.storage import files


def with_digests(config: BuildConfig, base: Path) -> BuildConfig:
    """The config with the digest of every list in it, and paths of lists that start at ``base``.

    So a config whose list changed is another config. ConfigError where a list cannot be read or is not the one whose
    digest the config states.
    """
    datasets = tuple(
        dataset.model_copy(update={"keep": _with_digest(dataset.keep, base, f"datasets[{number}].keep")})
        if isinstance(dataset, EpisodesConfig) and dataset.keep.episodes is not None
        else dataset
        for number, dataset in enumerate(config.datasets)
    )
    return config.model_copy(update={"datasets": datasets})


def read_selection(keep: Keep, path: str, dataset: str) -> EpisodeList:
    """The dataset's episodes of the list at ``path``; ConfigError where it is none or changed since it was found."""
    selection = EpisodeList(files.read_bytes(path), path, dataset)
    if keep.digest is not None and selection.digest != keep.digest:
        raise ConfigError(f"{path}: the list changed since the config was read; run the command again")
    return selection


def _with_digest(keep: Keep, base: Path, field: str) -> Keep:
    assert keep.episodes is not None
    path = local_path(keep.episodes, base, f"{field}.episodes")
    if not files.is_file(path):
        raise ConfigError(f"{field}.episodes: {path} does not exist; give a list of episode ids")
    found = digest(files.read_bytes(path))
    if keep.digest not in (None, found):
        raise ConfigError(
            f"{field}.digest: {path} has the digest {found}, another than {keep.digest}; give the list that was meant, "
            "or remove digest"
        )
    stated = os.path.expanduser(keep.episodes)
    relative = os.path.relpath(stated, base) if os.path.isabs(stated) else stated
    return keep.model_copy(update={"digest": found, "episodes": relative})
