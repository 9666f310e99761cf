"""The kinds of datasets: which plan each config makes."""

from pathlib import Path

from gatokit.pipelines.document_plan import plan_documents
from gatokit.pipelines.episode_plan import plan_episodes
from gatokit.pipelines.plan import DatasetPlan
from gatokit.schemas.config import BuildConfig, EpisodesConfig


def plan_dataset(config: BuildConfig, number: int, base: Path) -> DatasetPlan:
    """The plan of a config's dataset, relative paths starting at ``base``; ConfigError or DataError where its
    sources cannot be used."""
    dataset, field = config.datasets[number], f"datasets[{number}]"
    if isinstance(dataset, EpisodesConfig):
        return plan_episodes(dataset, field, base)
    return plan_documents(dataset, field, base)
