"""examples/openx.yaml validates, and its datasets build from small sets that TFDS wrote with the features of the public
ones: successes apart from failures, the last real action there, the instruction word for word."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from public_sets import BUILDERS, OPENX, Planted, write

from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build
from gatokit.schemas.config import BuildConfig, read_config

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "openx.yaml"
QUICK = ["droid", "d4rl_hopper"]


@pytest.fixture(scope="module")
def example() -> BuildConfig:
    return read_config(EXAMPLE)


def test_every_dataset_has_features_to_build_it_with(example: BuildConfig) -> None:
    assert [dataset.name for dataset in example.datasets] == [*OPENX, *BUILDERS]
    assert len(example.datasets) >= 30
    assert all(dataset.license for dataset in example.datasets)


def check(name: str, folder: Path, vocabulary: Path) -> None:
    content = yaml.safe_load(EXAMPLE.read_text())
    [dataset] = [dataset for dataset in content["datasets"] if dataset["name"] == name]
    planted = write(name, folder / "data" / name)
    config = {"vocabulary": str(vocabulary), "datasets": [dataset | {"source": str(folder / "data" / name)}]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    build(folder / "config.yaml", folder / "built")
    assert verify(folder / "built") == []
    [reader] = open_directory(folder / "built").datasets.values()
    held_out = (dataset.get("splits") or {}).get("held_out")
    rows = [row for row in reader.rows() if held_out is None or f"-{held_out}." not in row.source_file]
    kept = expected(dataset["keep"], planted)
    assert [row.kept for row in rows] == kept
    assert [row.steps for row in rows] == [episode.steps for episode in planted]
    for row, episode in zip(rows, planted, strict=True):
        if row.kept:
            values = reader.episode(row).decode()
            texts = [values[path][0] for path in values if "instruction" in path]
            assert texts == [episode.instruction] * len(texts)
            assert texts or name in (*BUILDERS, *WITHOUT_WORDS)


WITHOUT_WORDS = ("berkeley_gnm_recon", "mt_opt")
"""Sets of robots without an instruction: empty in every episode, or a code of the task."""


def expected(keep: dict[str, Any], planted: list[Planted]) -> list[bool]:
    """Which episodes a dataset's rule keeps."""
    if "all" in keep:
        return [True] * len(planted)
    if "best" in keep:
        rank = sorted(range(len(planted)), key=lambda at: (-planted[at].is_success, at))
        return [at in rank[: round(keep["best"] * len(planted))] for at in range(len(planted))]
    return [episode.is_success for episode in planted]


@pytest.mark.parametrize("name", QUICK)
def test_a_dataset_builds(name: str, tmp_path: Path, exact_vocabulary: Path) -> None:
    check(name, tmp_path, exact_vocabulary)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in [*OPENX, *BUILDERS] if name not in QUICK])
def test_every_other_dataset_builds(name: str, tmp_path: Path, exact_vocabulary: Path) -> None:
    check(name, tmp_path, exact_vocabulary)
