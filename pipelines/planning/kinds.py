"""The kinds of datasets: which plan each config makes, and its units of a scan as plain values."""

from pathlib import Path
from typing import Any

from gatokit.pipelines.dataset import ScanUnit as Unit
from gatokit.pipelines.documents.plan import DocumentUnit, plan_documents
from gatokit.pipelines.episodes.plan import plan_episodes
from gatokit.pipelines.episodes.scan import ScanUnit
from gatokit.pipelines.planning.plan import DatasetPlan
from gatokit.schemas.config import BuildConfig, EpisodesConfig


def plan_dataset(config: BuildConfig, number: int, base: Path) -> DatasetPlan:
    """The plan of a config's dataset, relative paths starting at ``base``; ConfigError or DataError where its
    sources cannot be used."""
    dataset, field = config.datasets[number], f"datasets[{number}]"
    if isinstance(dataset, EpisodesConfig):
        return plan_episodes(dataset, field, base)
    return plan_documents(dataset, field, base)


def unit_to_json(unit: Unit) -> dict[str, Any]:
    """A unit as plain values."""
    if isinstance(unit, DocumentUnit):
        return {"kind": "documents", **unit.model_dump(mode="json")}
    assert isinstance(unit, ScanUnit)
    return {"kind": "episodes", **unit.model_dump(mode="json")}


def unit_from_json(value: dict[str, Any]) -> Unit:
    """The inverse of ``unit_to_json``."""
    fields = dict(value)
    if fields.pop("kind") == "documents":
        return DocumentUnit.model_validate(fields)
    return ScanUnit.model_validate(fields)
