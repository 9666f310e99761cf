"""The kinds of datasets: which plan each config makes, and its units of a scan as plain values."""

from pathlib import Path
from typing import Any

from gatokit.pipelines.dataset import ScanUnit as Unit
from gatokit.pipelines.documents.plan import DocumentUnit, plan_documents
from gatokit.pipelines.episodes.formats import file_from_json, file_to_json
from gatokit.pipelines.episodes.plan import plan_episodes
from gatokit.pipelines.episodes.scan import ScanFile, ScanUnit
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
    files = [{**item.model_dump(mode="json", exclude={"file"}), "file": file_to_json(item.file)} for item in unit.files]
    return {"kind": "episodes", **unit.model_dump(mode="json", exclude={"files"}), "files": files}


def unit_from_json(value: dict[str, Any]) -> Unit:
    """The inverse of ``unit_to_json``."""
    fields = dict(value)
    if fields.pop("kind") == "documents":
        return DocumentUnit.model_validate(fields)
    files = [ScanFile(**{**file, "file": file_from_json(file["file"])}) for file in fields.pop("files")]
    return ScanUnit.model_validate({**fields, "files": files})
