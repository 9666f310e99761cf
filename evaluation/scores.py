"""Normalised scores: 0 is chance, 100 the expert, both measured in the harness that measures the policy.

``scores.png`` shows how many tasks reach which share of expert, and every task's score.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gatokit.evaluation.rollouts import Rollout
from gatokit.schemas.errors import ConfigError

_FEWEST = 2
"""Fewest rollouts of an agent: a mean of fewer has no standard error."""

_GAP_ERRORS = 5.0
"""The expert must be this many standard errors above chance; otherwise a task's score means nothing."""

SHARES = tuple(range(0, 101, 10))
"""Percentages of expert at which ``scores.json`` counts tasks."""


def check_rollouts(rollouts: int) -> None:
    """Raises ConfigError for too few rollouts."""
    if rollouts < _FEWEST:
        raise ConfigError(f"--rollouts is {_FEWEST} or more, not {rollouts}: a mean of fewer has no standard error")


@dataclass(frozen=True)
class Returns:
    """An agent's returns in one task: the mean of its rollouts, and the standard error of that mean.

    A mean that was not measured has 0 ``episodes`` and no error.
    """

    episodes: int
    mean: float
    error: float

    @staticmethod
    def of(rollouts: Sequence[Rollout]) -> "Returns":
        """The returns of at least ``_FEWEST`` rollouts."""
        values = np.array([rollout.episode_return for rollout in rollouts], np.float64)
        return Returns(len(values), float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


@dataclass(frozen=True)
class Anchors:
    """The two ends of a task's scale. ``expert_source`` says if the expert was measured or its return is the data's."""

    random: Returns
    expert: Returns
    expert_source: Literal["measured", "data"] = "measured"

    @property
    def gap(self) -> float:
        """The expert's mean return minus that of chance."""
        return self.expert.mean - self.random.mean

    @property
    def refusal(self) -> str | None:
        """Why there is no scale between the two; None if there is one."""
        if self.gap <= 0:
            return f"the expert's {self.expert.mean:.4g} is not above chance's {self.random.mean:.4g}"
        gap_error = math.hypot(self.expert.error, self.random.error)
        if self.gap < _GAP_ERRORS * gap_error:
            return (
                f"the expert's {self.expert.mean:.4g} and chance's {self.random.mean:.4g} are {self.gap:.3g} apart, "
                f"less than {_GAP_ERRORS:g} standard errors of {gap_error:.2g}; more --rollouts may part them"
            )
        return None


@dataclass(frozen=True)
class Score:
    """A policy's score in one task: ``normalized`` is in percent, and ``error`` its standard error, which includes
    those of expert and chance."""

    returns: Returns
    normalized: float
    error: float

    @staticmethod
    def of(returns: Returns, anchors: Anchors) -> "Score":
        """100 · (R − R_random) / (E − R_random) (Gato, section 4.1), its error by the derivatives of R, R_random, E."""
        share = (returns.mean - anchors.random.mean) / anchors.gap
        errors = (returns.error, (share - 1) * anchors.random.error, share * anchors.expert.error)
        return Score(returns, 100 * share, 100 * math.hypot(*errors) / anchors.gap)


@dataclass(frozen=True)
class TaskScores:
    """A task's scale and the scores on it, by variant: ``rule/memory``."""

    task: str
    anchors: Anchors
    scores: Mapping[str, Score]

    @property
    def domain(self) -> str:
        """The family of the task's environment."""
        return self.task.partition("/")[0]


@dataclass(frozen=True)
class Mean:
    """A mean of scores in percent; ``error`` is its standard error for these tasks, from the number of rollouts."""

    tasks: int
    normalized: float
    error: float

    @staticmethod
    def of(scores: Iterable[tuple[int, float, float]]) -> "Mean":
        """The mean of scores that are given as (number of tasks, score, error)."""
        tasks, values, errors = zip(*scores, strict=True)
        return Mean(sum(tasks), float(np.mean(values)), math.hypot(*errors) / len(errors))


def domain_means(scored: Sequence[TaskScores], variant: str) -> dict[str, Mean]:
    """The mean of each domain over its tasks."""
    domains: dict[str, list[tuple[int, float, float]]] = {}
    for task in scored:
        score = task.scores[variant]
        domains.setdefault(task.domain, []).append((1, score.normalized, score.error))
    return {domain: Mean.of(scores) for domain, scores in sorted(domains.items())}


def overall(scored: Sequence[TaskScores], variant: str) -> Mean:
    """The mean over domains of their means (Gato, section 5.1)."""
    return Mean.of((mean.tasks, mean.normalized, mean.error) for mean in domain_means(scored, variant).values())


def best_variant(scored: Sequence[TaskScores], variants: Sequence[str]) -> str:
    """The variant with the highest mean over domains; the first of equal ones."""
    return max(variants, key=lambda variant: overall(scored, variant).normalized)


def curve(scored: Sequence[TaskScores], variant: str, shares: Sequence[float] = SHARES) -> list[int]:
    """The number of tasks at or above each share of expert, in percent (Gato, figure 5)."""
    values = [task.scores[variant].normalized for task in scored]
    return [sum(value >= share for value in values) for share in shares]


@dataclass(frozen=True)
class Results:
    """An evaluation's results. ``variant`` is the one that counts; ``refused`` are the tasks without a scale."""

    rule: str
    variant: str
    variants: tuple[str, ...]
    scored: Sequence[TaskScores]
    refused: Mapping[str, Anchors] = field(default_factory=dict)

    @property
    def others(self) -> tuple[str, ...]:
        """The variants that are shown beside the one that counts."""
        return tuple(variant for variant in self.variants if variant != self.variant)

    def to_json(self) -> dict[str, Any]:
        """The content of ``scores.json`` and ``--json``; scores and their errors in percent."""
        scored = self.scored
        mean = overall(scored, self.variant) if scored else None
        counts = zip(SHARES, curve(scored, self.variant), strict=True) if scored else ()
        return {
            "rule": self.rule,
            "memory": self.variant.partition("/")[2],
            "mean": mean and mean.normalized,
            "standard_error": mean and mean.error,
            "domains": [
                {"domain": domain, "tasks": part.tasks, "normalized": part.normalized, "standard_error": part.error}
                for domain, part in domain_means(scored, self.variant).items()
            ],
            "tasks": [self._task_json(task) for task in scored],
            "others": {variant: overall(scored, variant).normalized for variant in self.others if scored},
            "curve": [{"percent_of_expert": share, "tasks": count} for share, count in counts],
            "refused": [
                {"task": task, **_anchors_json(anchors), "why": anchors.refusal}
                for task, anchors in self.refused.items()
            ],
        }

    def _task_json(self, task: TaskScores) -> dict[str, Any]:
        score = task.scores[self.variant]
        return {
            "task": task.task,
            "domain": task.domain,
            "episodes": score.returns.episodes,
            "mean_return": score.returns.mean,
            "return_standard_error": score.returns.error,
            **_anchors_json(task.anchors),
            "normalized": score.normalized,
            "standard_error": score.error,
            "others": {variant: _score_json(task.scores[variant]) for variant in self.others},
        }


def _score_json(score: Score) -> dict[str, Any]:
    return {"mean_return": score.returns.mean, "normalized": score.normalized, "standard_error": score.error}


def _anchors_json(anchors: Anchors) -> dict[str, Any]:
    return {
        "random_return": anchors.random.mean,
        "random_standard_error": anchors.random.error,
        "expert_return": anchors.expert.mean,
        "expert_standard_error": anchors.expert.error,
        "expert_source": anchors.expert_source,
    }


def draw_scores(results: Results, out: Path) -> None:
    """Draws the curve of each variant (Gato, figure 5), and a bar a task with its three mean returns."""
    from gatokit.inspection.report import charts

    shares = range(101)
    curves = [
        {"share": share, "tasks": count, "rule/memory": variant}
        for variant in (results.variant, *results.others)
        for share, count in zip(shares, curve(results.scored, variant, shares), strict=True)
    ]
    bars = []
    for task in results.scored:
        score, anchors = task.scores[results.variant], task.anchors
        returns = ", ".join(f"{mean:.4g}" for mean in (anchors.random.mean, score.returns.mean, anchors.expert.mean))
        ends = {"low": score.normalized - score.error, "high": score.normalized + score.error}
        bars.append({"task": f"{task.task} ({returns})", "domain": task.domain, "score": score.normalized} | ends)
    title = f"{results.variant}: {overall(results.scored, results.variant).normalized:.1f} % of expert"
    charts.draw_scores(out, title, curves, bars)
