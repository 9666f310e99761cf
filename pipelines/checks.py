"""Checks before a job writes: can its workers reach the data, and may it continue what the directory holds?"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatokit.pipelines.inputs import load_vocabulary
from gatokit.pipelines.planning import DatasetPlan, Plan
from gatokit.pipelines.shards.garbage import WORK
from gatokit.pipelines.shards.manifest import packages
from gatokit.schemas.config import PATHS, BuildConfig
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import LOG, MANIFEST, VOCABULARY, Manifest, VocabularyEntry, json_digest
from gatokit.storage import files
from gatokit.storage.files import TEMPORARY, is_remote
from gatokit.storage.lock import LOCK


def described_config(config: BuildConfig, base: Path, limit: int | None) -> dict[str, Any]:
    """The config as the manifest holds it: complete, with paths relative to the config file."""
    described = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    described["vocabulary"] = _relative(described["vocabulary"], base)
    for dataset in described["datasets"]:
        for key in PATHS & dataset.keys():
            dataset[key] = _relative(dataset[key], base)
    return described | ({"limit": limit} if limit is not None else {})


def _relative(path: str, base: Path) -> str:
    path = os.path.expanduser(path)
    return os.path.relpath(path, base) if os.path.isabs(path) else path


def check_reachable(plans: Sequence[DatasetPlan], out: Path) -> None:
    """Raises ConfigError if workers on other machines cannot reach what they are to read or write."""
    if not is_remote(out):
        raise ConfigError(
            f"--out {out}: lies on this machine, where the runner's workers write nothing; give a gs:// path"
        )
    for plan in plans:
        for file in plan.files:
            for path in (file.path, getattr(file, "image_dir", None)):
                if path is not None and not is_remote(path):
                    raise ConfigError(
                        f"{plan.field}: {path} lies on this machine, where the runner's workers read nothing; "
                        "copy it to a bucket and give its gs:// path"
                    )


def finished_manifest(
    root: Path, config: BuildConfig, described: dict[str, Any], content: str, only: str | None, update: bool
) -> Manifest | None:
    """The manifest in the directory, if a finished job left one.

    Raises ConfigError if the directory holds something that this job would not write and is not asked to replace.
    """
    ours = {MANIFEST, VOCABULARY, LOG, LOCK, WORK, *(dataset["name"] for dataset in described["datasets"])}
    names = files.names(root)
    if MANIFEST not in names:
        foreign = [name for name in names if name not in ours and not name.startswith(TEMPORARY)]
        if foreign:
            raise ConfigError(f"--out {root}: holds {foreign[0]}, no part of this {content}; choose another directory")
        return None
    manifest = Manifest.parse(files.read_bytes(root / MANIFEST), root / MANIFEST)
    if manifest.content != content:
        raise ConfigError(f"--out {root}: holds a finished {manifest.content}; choose another directory")
    if not update and manifest.config_digest != json_digest(described):
        raise ConfigError(f"--out {root}: holds a finished {content} of another config; {_ways_out(content)}")
    if manifest.tokenizer.discrete_offset != config.discrete_offset:
        raise ConfigError(
            f"--out {root}: holds shards made with discrete_offset {manifest.tokenizer.discrete_offset}, and "
            f"{config.discrete_offset} gives every token another meaning; choose another directory"
        )
    others = [item.name for item in manifest.datasets if item.name != only]
    if update and only is not None and others:
        raise ConfigError(f"--only {only}: an update would remove {others[0]} from {root}; leave --only out")
    return manifest


def check_vocabulary(root: Path, model: VocabularyEntry | None) -> None:
    """Raises ConfigError if a build, finished or not, made shards with another vocabulary."""
    path = root / VOCABULARY
    if model is not None and files.exists(path) and load_vocabulary(path).digest != model.blake2b:
        raise ConfigError(
            f"--out {root}: holds shards of another vocabulary, {path}; choose another directory or delete this one"
        )


def check_unchanged(root: Path, before: Manifest, plans: Sequence[Plan], content: str) -> None:
    """Raises ConfigError if a finished job has other shards than the plans."""
    finished = {split.fingerprint for item in before.datasets for split in item.splits}
    if finished != {shard.fingerprint for plan in plans for shard in plan.shards}:
        files.remove_tree(root / WORK)
        raise ConfigError(f"--out {root}: holds a finished {content} of other source files; {_ways_out(content)}")


def other_packages(before: Manifest | None) -> list[str]:
    """A notice if an update of ``before`` reuses shards that other versions of the packages wrote."""
    now = packages()
    items = before.packages.items() if before is not None else ()
    other = [f"{name} {version}" for name, version in items if now.get(name) != version]
    return [f"shards that do not change stay as they were made, with {', '.join(other)}"] if other else []


def _ways_out(content: str) -> str:
    ways = "choose another directory or delete it"
    return f"--update builds what changed; else {ways}" if content == "build" else ways
