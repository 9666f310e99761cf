"""How often what is drawn, over 100,000 samples: within five standard errors of what was asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slow_windows import number

from gatokit.loader.mixture import EpisodeIndex, open_mixture
from gatokit.loader.sampler import BLOCK, PIVOT_LANES, Lane, Rng, Sampler, below, spread
from gatokit.schemas.run import RunConfig

SAMPLES = 100_000


def assert_shares(counts: Sequence[int] | np.ndarray, shares: Sequence[float] | np.ndarray) -> None:
    total, expected = np.sum(counts), np.asarray(shares)
    errors = np.sqrt(expected * (1 - expected) / total)
    assert np.all(np.abs(np.asarray(counts) / total - expected) <= 5 * errors), (counts, expected)


def drawn(mixed: Path, samples: np.ndarray | None = None, **input: Any) -> tuple[np.recarray, Sampler]:
    config = RunConfig.model_validate({"model": "tiny", "context": 64, "seed": 4, "input": input})
    sampler = Sampler(open_mixture([mixed]), config)
    samples = np.arange(SAMPLES) if samples is None else samples
    return sampler.draw(samples, np.zeros_like(samples)).view(np.recarray), sampler


def index_of(sampler: Sampler, dataset: int) -> EpisodeIndex:
    index = sampler.datasets[dataset].index
    assert index is not None
    return index


def test_a_draw_is_the_hash_written_out() -> None:
    samples, attempts, lanes = (
        np.array([0, 1, 2**40]),
        np.array([0, 3, 7]),
        np.array([Lane.DATASET, Lane.SLOT, PIVOT_LANES + 5]),
    )
    found = Rng(7, True).uniform(samples, attempts, lanes)
    expected = [
        number(7, True, *each) for each in zip(samples.tolist(), attempts.tolist(), lanes.tolist(), strict=True)
    ]
    assert found.tolist() == expected
    assert below(np.array([0.0, 0.5, 1 - 2**-53]), np.array([3, 3, 3])).tolist() == [0, 1, 2]


def test_lanes_samples_and_attempts_are_independent_and_uniform() -> None:
    u = Rng(0, False).uniform(np.arange(20_000)[:, None], np.arange(2)[None], np.array([0, 1])[None])
    u = np.concatenate([u, Rng(1, False).uniform(np.arange(20_000), 0, 0)[:, None]], axis=1)
    correlations = np.corrcoef(np.concatenate([u, np.roll(u[:, :1], 1)], axis=1).T) - np.eye(4)
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)
    for column in u.T:
        assert_shares(np.bincount((column * 64).astype(int), minlength=64), np.full(64, 1 / 64))


def test_datasets_come_by_weight_tasks_and_episodes_alike(mixed: Path) -> None:
    found, sampler = drawn(mixed)
    assert_shares(np.bincount(found.dataset), np.array([3, 2, 1.5, 1, 1, 1]) / 9.5)
    for dataset in (0, 1):
        index = index_of(sampler, dataset)
        owners = np.bincount(found.owner[found.dataset == dataset], minlength=index.episodes)
        sizes = np.diff(index.task_begin)
        assert_shares(np.add.reduceat(owners, index.task_begin[:-1]), np.full(len(sizes), 1 / len(sizes)))
        assert_shares(owners, np.repeat(1 / sizes / len(sizes), sizes))
    books = found.owner[found.dataset == 2]
    assert_shares(np.bincount(books), np.full(books.max() + 1, 1 / (books.max() + 1)))


@pytest.mark.parametrize("bounds", [[0.02, 1.0], [0.3, 0.32, 0.92, 1.0]])
def test_few_samples_in_a_row_have_the_shares_of_the_datasets(bounds: list[float]) -> None:
    """Any 50 samples hold a dataset of 2 % once, twice at times."""
    dataset = np.searchsorted(bounds, spread(1 << 63, np.arange(SAMPLES)), "right")
    for at, share in enumerate(np.diff(bounds, prepend=0)):
        counts = np.add.reduceat(dataset == at, np.arange(0, SAMPLES, 50))
        assert np.abs(counts - 50 * share).max() < 3
        assert abs(np.mean(dataset == at) - share) < 0.0001
    assert spread(0, np.array([1])).tolist() == [0.6180339887498948]


def test_held_out_windows_are_shown_training_episodes_of_their_task_and_agent(mixed: Path) -> None:
    config = RunConfig.model_validate({"model": "tiny", "context": 64, "input": {"prompt": {"share": 1}}})
    held_out, training = (Sampler(open_mixture([mixed]), config, split) for split in ("held_out", "train"))
    found = held_out.draw(np.arange(2000), np.zeros(2000, int)).view(np.recarray)
    for dataset in (0, 1):
        index, shown = index_of(held_out, dataset), index_of(training, dataset)
        rows = found[(found.dataset == dataset) & (found.prompt_owner >= 0)]
        assert len(rows) > 100
        for row in rows:
            group = int(shown.group_of(row.prompt_owner))
            assert (shown.task_of(group), shown.agents[group]) == (index.task_of(row.group), index.agents[row.group])
            # The record is a training record, and these come first in a shard.
            sampled = held_out.datasets[dataset]
            shard = int(row.prompt["shard"]) - sampled.first_shard
            assert row.prompt["stop"] <= sampled.dataset.shards[shard].training
            assert row.window["first"] >= sampled.dataset.shards[shard].training or row.window["shard"] != shard


@pytest.mark.parametrize("align", ["token", "step"])
def test_prompts_are_a_quarter_of_the_episodes_windows_half_from_the_end(mixed: Path, align: str) -> None:
    found, sampler = drawn(mixed, align=align)
    prompted = found.prompt_tokens > 0
    assert not prompted[found.dataset > 1].any()
    assert np.array_equal(prompted, found.prompt_owner >= 0)
    index = index_of(sampler, 0)
    # One agent has a single episode of a task, and so no other to show.
    alone = (found.dataset == 0) & (np.diff(index.group_begin)[found.group * (found.dataset == 0)] == 1)
    assert alone.sum() > 1000
    assert not prompted[alone].any()
    assert_shares(np.bincount(prompted[~alone & (found.dataset < 2)]), [0.75, 0.25])
    assert_shares(np.bincount(found.prompt_end[prompted]), [0.5, 0.5])
    for dataset in (0, 1):
        index, rows = index_of(sampler, dataset), prompted & (found.dataset == dataset)
        owner, prompt = found.owner[rows], found.prompt_owner[rows]
        assert np.array_equal(index.group_of(owner), index.group_of(prompt))
        assert not np.any(owner == prompt)
        # Of the others each has the same chance.
        first = index.group_begin[0]
        others = np.bincount(prompt[owner == first] - first, minlength=index.group_begin[1])[1:]
        assert_shares(others, np.full(len(others), 1 / len(others)))


def test_every_full_window_of_an_episode_is_as_likely(mixed: Path) -> None:
    found, sampler = drawn(mixed, prompt={"share": 0})
    index = index_of(sampler, 1)
    longest = int(np.argmax(index.tokens(np.arange(index.episodes))))
    rows = (found.dataset == 1) & (found.owner == longest)
    tokens = int(index.tokens(np.array([longest]))[0])
    at = index.record_begin[longest] + found.window["first"][rows] - index.first_record[longest]
    starts = index.token_end[at] - index.token_end[index.record_begin[longest]] + found.window["skip"][rows]
    assert tokens == 40 * 9
    assert_shares(np.bincount(starts, minlength=tokens - 63), np.full(tokens - 63, 1 / (tokens - 63)))
    stepped, _ = drawn(mixed, prompt={"share": 0}, align="step")
    at = index.record_begin[longest] + stepped.window["first"][rows] - index.first_record[longest]
    starts = index.token_end[at] - index.token_end[index.record_begin[longest]] + stepped.window["skip"][rows]
    # 64 tokens hold seven of the forty steps, so a window may begin with any but the last six.
    last = (tokens - 64 + 8) // 9
    assert starts.max() // 9 == last == 33


def test_more_shards_than_may_be_open_are_drawn_in_turns(mixed: Path) -> None:
    """With 4 open shards and 27 of them, the samples of a block draw from one of each task and corpus."""
    found, sampler = drawn(mixed, open_shards=4, prompt={"share": 0})
    assert BLOCK < SAMPLES
    for block in (slice(0, BLOCK), slice(BLOCK, None)):
        shards = {
            (dataset, task): set(found.window["shard"][block][rows[block]].tolist())
            for dataset in range(6)
            for task in range(2 if dataset == 0 else 1)
            for rows in [_of_task(found, sampler, dataset, task)]
        }
        assert all(len(of) == 1 for of in shards.values())
    # Over many blocks everything is as likely as ever.
    found, sampler = drawn(mixed, np.arange(SAMPLES) * BLOCK, open_shards=4)
    index = index_of(sampler, 0)
    sizes = np.diff(index.task_begin)
    owners = np.bincount(found.owner[found.dataset == 0], minlength=index.episodes)
    assert_shares(owners, np.repeat(1 / sizes / len(sizes), sizes))
    prompted = (found.dataset == 0) & (found.prompt_owner >= 0)
    assert prompted.sum() > 1000
    assert np.array_equal(index.group_of(found.owner[prompted]), index.group_of(found.prompt_owner[prompted]))


def _of_task(found: np.recarray, sampler: Sampler, dataset: int, task: int) -> np.ndarray:
    rows = found.dataset == dataset
    if dataset > 1:
        return rows
    begin, end = index_of(sampler, dataset).task_begin[task : task + 2]
    return rows & (found.owner >= begin) & (found.owner < end)
