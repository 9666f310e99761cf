"""What another threshold would keep, against brute force over the rows."""

import numpy as np
import pytest

from gatokit.inspection import open_directory, preview
from gatokit.inspection.tables.summary import drops, histogram, hours
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.index import BAD_REASONS


def brute_force(dataset, task, fraction, random=None):
    """Ids that min_return would keep, worked out from the returns of the index alone."""
    rows = list(dataset.episodes(task=task))
    streams = {}
    for row in rows:
        if row.episode_return is not None:
            streams.setdefault(row.agent, []).append((row.order, row.episode_return))
    best = -np.inf
    for stream in streams.values():
        returns = [value for _, value in sorted(stream)]
        window = max(1, min(1000, len(returns) // 10))
        means = [sum(returns[at : at + window]) / window for at in range(len(returns) - window + 1)]
        best = max(best, *means)
    limit = best - (1 - fraction) * abs(best) if random is None else random + fraction * (best - random)
    return {
        row.episode_id
        for row in rows
        if row.episode_return is not None
        and row.episode_return >= limit - 1e-9 * abs(limit)
        and row.steps > 0
        and row.reason not in BAD_REASONS
    }


def check(dataset, task, row, fraction, random=None):
    then = brute_force(dataset, task, fraction, random)
    now = {item.episode_id for item in dataset.episodes(task=task, kept=True)}
    total = sum(item.lost for item in dataset.episodes(task=task))
    assert (row.kept, row.kept_at, row.added, row.removed, row.dropped_at) == (
        len(now),
        len(then),
        len(then - now),
        len(now - then),
        total - len(then),
    )


@pytest.mark.parametrize("fraction", [0, 0.2, 0.5, 0.8, 0.85, 0.9, 0.95, 1])
@pytest.mark.parametrize("where", ["built", "scanned"])
def test_small_against_brute_force(small, where, fraction):
    for name, dataset in open_directory(getattr(small, where)).datasets.items():
        rows = preview(dataset, fraction)
        assert [row.task for row in rows] == dataset.task_names
        for row in rows:
            check(dataset, row.task, row, fraction, -40 if name == "against_random" else None)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8, 0.9, 1])
def test_recorded_against_brute_force(built, fraction):
    for dataset in open_directory(built).datasets.values():
        for row in preview(dataset, fraction):
            check(dataset, row.task, row, fraction)


def test_the_builds_own_fraction_changes_nothing(small, built):
    datasets = [*open_directory(built).datasets.values(), *open_directory(small.built).datasets.values()]
    for dataset in datasets:
        if dataset.keep.min_return is not None:
            for row in preview(dataset, dataset.keep.min_return):
                assert row.threshold == row.threshold_at
                assert (row.kept_at, row.added, row.removed) == (row.kept, 0, 0)


def test_negative_returns_keep_fewer_at_a_higher_fraction(small):
    dataset = open_directory(small.built).datasets["arm"]
    kept = [next(row.kept_at for row in preview(dataset, at) if row.task == "push") for at in (0, 0.5, 0.8, 0.88, 0.95)]
    # Three each of -10, -11, -11.5, -16 and -22, less a NaN state of the second kind and a NaN reward of the third.
    assert kept == [10, 7, 7, 5, 3]


def test_a_rule_without_a_threshold_is_answered_too(small):
    (row,) = preview(open_directory(small.built).datasets["grid"], 1)
    assert (row.threshold, row.threshold_at, row.kept, row.kept_at) == (None, 8.0, 4, 4)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_no_fraction_is_said(small, fraction):
    with pytest.raises(ConfigError, match="is no fraction of the expert return"):
        preview(open_directory(small.built).datasets["grid"], fraction)


def test_drops_add_up_and_have_examples(small):
    dataset = open_directory(small.built).datasets["arm"]
    found = drops(dataset)
    assert sum(drop.episodes for drop in found) == dataset.totals.episodes - dataset.totals.kept
    for drop in found:
        first = next(row for row in dataset.episodes(kept=False) if row.reason == drop.reason)
        assert drop.example == first.episode_id
        assert drop.meaning
    assert {drop.reason: drop.episodes for drop in drops(dataset, "reach")} == {
        "below_threshold": 6,
        "not_finite": 2,
        "too_short": 1,
    }
    assert hours(dataset) == sum(row.steps for row in dataset.episodes(kept=True)) / 10 / 3600
    assert hours(open_directory(small.built).datasets["grid"]) is None


def test_histogram_counts_every_sound_episode_once(small, built):
    for directory in (small.built, built):
        for dataset in open_directory(directory).datasets.values():
            for task in dataset.task_names:
                rows = [row for row in dataset.episodes(task=task) if row.episode_return is not None]
                bins = histogram(dataset, task)
                assert sum(item.kept for item in bins) == sum(row.kept for row in rows)
                assert sum(item.dropped for item in bins) == sum(not row.kept for row in rows)
                assert len(bins) <= 14
                for item in bins[:-1]:
                    inside = [row for row in rows if item.low <= row.episode_return < item.high]
                    assert item.kept + item.dropped == len(inside)


def test_equal_returns_are_one_bin(small):
    (only,) = histogram(open_directory(small.built).datasets["grid"], "grid")
    assert (only.low, only.high, only.kept, only.dropped) == (8.0, 8.0, 4, 0)
