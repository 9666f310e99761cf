"""Reads a build config, the lists of episodes that it names, and its vocabulary."""

import os
from pathlib import Path

from gatokit.pipelines.find import local_path
from gatokit.schemas.config import BuildConfig, EpisodesConfig, Keep, read_config
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import digest
from gatokit.storage import files, gcs
from gatokit.storage.files import is_remote
from gatokit.tokenizers.text import TextTokenizer


def read_inputs(path: str | Path, only: str | None = None) -> tuple[BuildConfig, Path]:
    """Reads a config, with the digests of its lists of episodes; also gives the directory that relative paths start at.

    ``only`` leaves one of its datasets. Raises ConfigError if the config or a list cannot be read, or if it has no such
    dataset.
    """
    if not is_remote(path):
        config, base = read_config(path), Path(path).resolve().parent
    elif files.is_file(path):
        with files.local_copy(path) as copy:
            config, base = read_config(copy), Path(path).parent
    else:
        raise ConfigError(f"{path} does not exist; give a build config")
    if only is None:
        return _with_digests(config, base), base
    datasets = tuple(dataset for dataset in config.datasets if dataset.name == only)
    if not datasets:
        names = ", ".join(dataset.name for dataset in config.datasets)
        raise ConfigError(f"--only {only}: {path} has no such dataset, only {names}")
    return _with_digests(config.model_copy(update={"datasets": datasets}), base), base


def read_vocabulary(config: BuildConfig, base: Path, path: str | Path) -> TextTokenizer:
    """The vocabulary of the config at ``path``; raises ConfigError if it is missing or no model."""
    named = local_path(config.vocabulary, base, "vocabulary")
    if not files.is_file(named):
        raise ConfigError(f"{path}: vocabulary: {named} does not exist; give a SentencePiece model")
    return load_vocabulary(named)


def load_vocabulary(path: str | Path) -> TextTokenizer:
    """The tokenizer of a model, local or on ``gs://``; raises ConfigError if it cannot be read or is no model."""
    if not is_remote(path):
        return TextTokenizer.load(path)
    return TextTokenizer(gcs.read(path), source=gcs.canonical(path))


def _with_digests(config: BuildConfig, base: Path) -> BuildConfig:
    """The config with the digest of every list in it, and paths of lists that start at ``base``.

    So a config whose list changed is another config. Raises ConfigError if a list cannot be read or has another digest
    than the config gives.
    """
    datasets = tuple(
        dataset.model_copy(update={"keep": _with_digest(dataset.keep, base, f"datasets[{number}].keep")})
        if isinstance(dataset, EpisodesConfig) and dataset.keep.episodes is not None
        else dataset
        for number, dataset in enumerate(config.datasets)
    )
    return config.model_copy(update={"datasets": datasets})


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
    configured = os.path.expanduser(keep.episodes)
    relative = os.path.relpath(configured, base) if os.path.isabs(configured) else configured
    return keep.model_copy(update={"digest": found, "episodes": relative})
