"""The kinds of datasets. Each is registered here once, with the functions that the stages of a job call."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatokit.pipelines.dataset import DatasetPlan, FilterResult, ShardBuilder, ShardHeader
from gatokit.pipelines.documents import dedup
from gatokit.pipelines.documents.scan import DocumentUnit, plan_documents
from gatokit.pipelines.documents.scan import scan_units as document_units
from gatokit.pipelines.documents.tokenize import DocumentShardBuilder, DocumentShardHeader
from gatokit.pipelines.episodes import scanned as episode_rows
from gatokit.pipelines.episodes.plan import plan_episodes
from gatokit.pipelines.episodes.plan import scan_units as episode_units
from gatokit.pipelines.episodes.scan import EpisodeUnit
from gatokit.pipelines.episodes.tokenize import EpisodeShardBuilder, EpisodeShardHeader


@dataclass(frozen=True)
class Kind:
    """What a kind of dataset does in each stage. ``unit`` and ``header`` are pydantic models."""

    plan: Callable[[Any, str, Path], DatasetPlan]
    units: Callable[..., list[Any]]
    unit: type[Any]
    filter: Callable[..., FilterResult]
    task_rows: Callable[..., Any]
    shard_header: Callable[..., ShardHeader]
    header: type[Any]
    builder: Callable[..., ShardBuilder]


KINDS = {
    "episodes": Kind(
        plan=plan_episodes,
        units=episode_units,
        unit=EpisodeUnit,
        filter=episode_rows.filter_episodes,
        task_rows=episode_rows.task_rows,
        shard_header=episode_rows.shard_header,
        header=EpisodeShardHeader,
        builder=EpisodeShardBuilder,
    ),
    "documents": Kind(
        plan=plan_documents,
        units=document_units,
        unit=DocumentUnit,
        filter=dedup.filter_documents,
        task_rows=dedup.task_rows,
        shard_header=dedup.shard_header,
        header=DocumentShardHeader,
        builder=DocumentShardBuilder,
    ),
}
"""By ``DatasetPlan.kind``."""
