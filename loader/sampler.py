"""Draws what each window is made of: dataset, task, episode or document, start and prompt, for many at once.

Gato, section 2.3 and appendix B: datasets by weight, and a quarter of the windows of episodes with a prompt of the same
task and agent. Inside a dataset the draw is uniform over tasks, then over kept episodes, then over starts; for
documents it is uniform over records. Every draw is a function of (seed, sample, attempt), without any state, so that
any sample can be drawn anywhere and in any order.

Legend: B samples.
"""

import enum
from dataclasses import dataclass, fields

import numpy as np

from gatokit.loader.index import RECORD_RANGE, EpisodeIndex
from gatokit.loader.mixture import MixedDataset, Mixture
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.index import TRAIN
from gatokit.schemas.run import RunConfig

BLOCK = 65_536
"""Samples that draw from the same shards, if there are more shards than may be open."""
PROMPT_END_SHARE = 0.5
"""Share of the prompts that are taken from the end of their episode (Gato, section 2.3)."""


# --- random numbers ----------------------------------------------------------------------------------------------


class Lane(enum.IntEnum):
    """For what a sample draws one random number each."""

    DATASET = 0
    TASK = 1
    OWNER = 2
    START = 3
    PROMPTED = 4
    PROMPT_END = 5
    PROMPT_OWNER = 6
    PROMPT_START = 7
    HIDE = 8
    SLOT = 9
    CROP = 10


PAIR_LANES = 1 << 20
"""The lane of a window's first pair; those of the other pairs follow."""
PATCH_LANES = 1 << 30
"""The lane of the row of the patch at position 0 of a window; its column follows, then the patches behind it."""
PIVOT_LANES = 1 << 38
"""The lane of the first pivot of a block of samples; those of the other pivots follow."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ATTEMPT = np.uint64(40)


class Rng:
    """A counter-based generator: its numbers are a hash (splitmix64) of seed, split, sample, attempt and lane."""

    def __init__(self, seed: int, held_out: bool) -> None:
        words = np.array([seed, held_out], np.uint64)
        self._key = np.uint64(_mix(_mix(words[:1]) + _STEP * (words[1:] + np.uint64(1)))[0])

    def uniform(self, sample: np.ndarray | int, attempt: np.ndarray | int, lane: np.ndarray | int) -> np.ndarray:
        """Multiples of 2^-53 in [0, 1), float64 in the common shape of ``sample``, ``attempt`` and ``lane``.

        ``attempt`` is below 2^24 and ``lane`` below 2^40. Each sample has a stream of its own, and attempt and lane
        name an element of it.
        """
        words = (_words(attempt) << _ATTEMPT) | _words(lane)
        streams = _mix(self._key + _STEP * (_words(sample) + np.uint64(1)))
        return (_mix(streams + _STEP * (words + np.uint64(1))) >> np.uint64(11)) * 2.0**-53


def below(uniforms: np.ndarray | float, count: np.ndarray | int) -> np.ndarray:
    """Turns numbers in [0, 1) into integers in [0, ``count``), int64; ``count`` is at least 1."""
    counts = np.asarray(count, np.int64)
    return np.minimum(np.floor(uniforms * counts).astype(np.int64), counts - 1)


def _words(values: np.ndarray | int) -> np.ndarray:
    return np.atleast_1d(np.asarray(values)).astype(np.uint64)


def _mix(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


# --- draws -------------------------------------------------------------------------------------------------------


@dataclass
class Draws:
    """What was drawn for B samples: arrays (B,), int64 unless something else is said."""

    dataset: np.ndarray
    """Ordinal in the mixture."""
    group: np.ndarray
    """For an episode its group in the index, for a document -1."""
    owner: np.ndarray
    """For an episode its ordinal in the index, for a document a record's ordinal among those of the split."""
    window: np.ndarray
    """RECORD_RANGE: what fills the window. The shard is an ordinal among the shards of all datasets. For documents it
    is the first record alone, and ``skip`` is 0: where the window begins in it follows from ``start``."""
    start: np.ndarray
    """float64 in [0, 1): where in its first record a document's window begins."""
    candidates_begin: np.ndarray
    candidates: np.ndarray
    """For pairs: first ordinal and number of the records from which the other pairs of the window are drawn."""
    prompt: np.ndarray
    """RECORD_RANGE: what the prompt is taken from."""
    prompt_owner: np.ndarray
    """The episode that the prompt is taken from; -1 for documents."""
    prompt_tokens: np.ndarray
    """Most tokens of the prompt; 0 without a prompt."""
    prompt_end: np.ndarray
    """bool: the prompt is the end of its episode."""
    hide: np.ndarray
    """bool: past actions are hidden."""

    def put(self, rows: np.ndarray, other: "Draws") -> None:
        """Replaces ``rows`` by those of ``other``."""
        for item in fields(self):
            getattr(self, item.name)[rows] = getattr(other, item.name)


@dataclass(frozen=True)
class SampledDataset:
    """A dataset of the mixture with what a draw from it needs."""

    dataset: MixedDataset
    first_shard: int
    """Ordinal of its first shard among the shards of all datasets."""
    first_pivot: int
    """Number of tasks, and datasets of documents, before it."""
    index: EpisodeIndex | None
    """None for documents."""
    first_record: np.ndarray
    """int64 (shards,): the first record of the split in each shard."""
    records_before: np.ndarray
    """int64 (shards + 1,): records of the split in the shards before each one."""

    def record_ranges(self, records: np.ndarray) -> np.ndarray:
        """The records of these ordinals in the split, as RECORD_RANGE."""
        shard = np.searchsorted(self.records_before, records, "right") - 1
        ranges = np.zeros(len(records), RECORD_RANGE)
        ranges["shard"] = self.first_shard + shard
        ranges["first"] = self.first_record[shard] + records - self.records_before[shard]
        ranges["stop"] = ranges["first"] + 1
        return ranges


class Sampler:
    """Draws what samples are made of; ``rng`` is its generator."""

    datasets: dict[int, SampledDataset]
    """The datasets that are drawn from, by ordinal in the mixture."""

    def __init__(self, mixture: Mixture, config: RunConfig, split: str = TRAIN, dataset: str | None = None) -> None:
        """``dataset`` draws from that one alone.

        Raises ConfigError if there is nothing to draw from, or if the context is too short.
        """
        self.rng = Rng(config.seed, split != TRAIN)
        self._config, self._context = config.input, config.context
        self._prompt_tokens = min(config.input.prompt.tokens, config.context // 2)
        weights = _weights(mixture, split, dataset)
        self._bounds = np.cumsum(weights)
        self._last = int(np.flatnonzero(weights)[-1])
        self.datasets = {}
        shards = pivots = 0
        for ordinal, (mixed, weight) in enumerate(zip(mixture.datasets, weights, strict=True)):
            if weight > 0:
                sampled = self.datasets[ordinal] = _sampled(mixed, split, shards, pivots)
                pivots += 1 if sampled.index is None else len(sampled.index.tasks)
            shards += len(mixed.shards)
        used = sum(int(np.count_nonzero(np.diff(item.records_before))) for item in self.datasets.values())
        open_shards = config.input.open_shards
        self._pivots = max(1, open_shards // max(pivots, 1)) if used > open_shards else 0
        for sampled in self.datasets.values():
            _check_context(sampled, config)

    def draw(self, samples: np.ndarray, attempts: np.ndarray) -> Draws:
        """Draws for the samples of these numbers, int64 (B,), each at its n-th attempt, int64 (B,)."""
        count = len(samples)
        u = self.rng.uniform(samples[:, None], attempts[:, None], np.arange(len(Lane)))
        dataset = np.minimum(np.searchsorted(self._bounds, u[:, Lane.DATASET], "right"), self._last)
        draws = Draws(
            dataset=dataset,
            group=np.full(count, -1),
            owner=np.zeros(count, np.int64),
            window=np.zeros(count, RECORD_RANGE),
            start=u[:, Lane.START],
            candidates_begin=np.zeros(count, np.int64),
            candidates=np.zeros(count, np.int64),
            prompt=np.zeros(count, RECORD_RANGE),
            prompt_owner=np.full(count, -1),
            prompt_tokens=np.zeros(count, np.int64),
            prompt_end=np.zeros(count, bool),
            hide=np.zeros(count, bool),
        )
        for ordinal in np.unique(dataset).tolist():
            rows = np.flatnonzero(dataset == ordinal)
            sampled = self.datasets[ordinal]
            if sampled.index is not None:
                self._draw_episodes(draws, rows, sampled, sampled.index, u[rows], samples[rows])
            else:
                self._draw_documents(draws, rows, sampled, u[rows], samples[rows])
        return draws

    def _draw_episodes(
        self,
        draws: Draws,
        rows: np.ndarray,
        sampled: SampledDataset,
        index: EpisodeIndex,
        u: np.ndarray,
        samples: np.ndarray,
    ) -> None:
        """Draws task, episode, prompt and starts of the samples ``rows``."""
        task = below(u[:, Lane.TASK], len(index.tasks))
        begin = index.task_begin[task]
        count = index.task_begin[task + 1] - begin
        if self._pivots:
            pivot = sampled.first_pivot + task
            begin, count = self._pivot_range(index.run_begin, begin, count, pivot, u[:, Lane.SLOT], samples)
        episode = begin + below(u[:, Lane.OWNER], count)
        group = index.group_of(episode)

        # The prompt is another episode of the group or, if there are pivots, of the run; the same one if it is alone.
        near, others = index.group_begin[group], index.group_begin[group + 1] - index.group_begin[group]
        if self._pivots:
            near, others = np.where(count > 1, begin, near), np.where(count > 1, count, others)
        prompt = near + below(u[:, Lane.PROMPT_OWNER], np.maximum(others - 1, 1))
        prompt = np.where(others > 1, prompt + (prompt >= episode), episode)
        prompt_all = index.tokens(prompt)
        prompt_tokens = np.minimum(self._prompt_tokens, prompt_all)
        at_end = u[:, Lane.PROMPT_END] < PROMPT_END_SHARE
        prompt_start = np.where(
            at_end,
            prompt_all - prompt_tokens,
            self._starts(u[:, Lane.PROMPT_START], index, prompt, prompt_all, prompt_tokens),
        )
        # One token more than the prompt has tells what it ends before.
        prompt_range = index.record_ranges(
            prompt, prompt_start, np.minimum(prompt_all, prompt_start + prompt_tokens + 1)
        )
        prompted = u[:, Lane.PROMPTED] < self._config.prompt.share

        tokens = index.tokens(episode)
        window = self._context - np.where(prompted, prompt_tokens, 0)
        start = self._starts(u[:, Lane.START], index, episode, tokens, window)
        window_range = index.record_ranges(episode, start, np.minimum(tokens, start + window + 1))

        window_range["shard"] += sampled.first_shard
        prompt_range["shard"] += sampled.first_shard
        draws.group[rows], draws.owner[rows], draws.window[rows] = group, episode, window_range
        draws.prompt[rows], draws.prompt_owner[rows], draws.prompt_end[rows] = prompt_range, prompt, at_end
        draws.prompt_tokens[rows] = np.where(prompted, prompt_tokens, 0)
        draws.hide[rows] = u[:, Lane.HIDE] < self._config.hide_actions

    def _starts(
        self, u: np.ndarray, index: EpisodeIndex, episodes: np.ndarray, tokens: np.ndarray, window: np.ndarray
    ) -> np.ndarray:
        """A token of each episode: where its window starts or, with ``align: step``, one of the window's first step."""
        longest = np.maximum(tokens - window, 0)
        if self._config.align == "step":
            longest += -(-tokens // index.steps[episodes]) - 1
        return np.minimum(below(u, longest + 1), tokens - 1)

    def _draw_documents(
        self, draws: Draws, rows: np.ndarray, sampled: SampledDataset, u: np.ndarray, samples: np.ndarray
    ) -> None:
        """Draws a record for each of the samples ``rows``."""
        begin = np.zeros(len(rows), np.int64)
        count = np.full(len(rows), sampled.records_before[-1])
        if self._pivots:
            pivot = np.full(len(rows), sampled.first_pivot)
            begin, count = self._pivot_range(sampled.records_before, begin, count, pivot, u[:, Lane.SLOT], samples)
        record = begin + below(u[:, Lane.OWNER], count)
        draws.candidates_begin[rows], draws.candidates[rows] = begin, count
        draws.owner[rows], draws.window[rows] = record, sampled.record_ranges(record)

    def _pivot_range(
        self,
        bounds: np.ndarray,
        begin: np.ndarray,
        count: np.ndarray,
        pivot: np.ndarray,
        u: np.ndarray,
        samples: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Begin and count of the range between ``bounds`` (of runs or shards) around one of a block's pivots.

        A pivot is uniform over the ``count`` items from ``begin`` on, and the item is then drawn uniformly from the
        pivot's range. So every item has the same chance, and a block of samples uses few ranges, hence few shards.
        """
        slot = below(u, self._pivots)
        chosen = begin + below(self.rng.uniform(samples // BLOCK, pivot, PIVOT_LANES + slot), count)
        at = np.searchsorted(bounds, chosen, "right") - 1
        return bounds[at], bounds[at + 1] - bounds[at]


def _sampled(dataset: MixedDataset, split: str, first_shard: int, first_pivot: int) -> SampledDataset:
    training = np.array([shard.training for shard in dataset.shards], np.int64)
    held_out = np.array([shard.held_out for shard in dataset.shards], np.int64)
    records = training if split == TRAIN else held_out
    return SampledDataset(
        dataset=dataset,
        first_shard=first_shard,
        first_pivot=first_pivot,
        index=dataset.index(split) if dataset.holds_episodes else None,
        first_record=np.zeros_like(training) if split == TRAIN else training,
        records_before=np.concatenate([np.zeros(1, np.int64), np.cumsum(records)]),
    )


def _weights(mixture: Mixture, split: str, dataset: str | None) -> np.ndarray:
    """Share of each of the mixture's datasets, float64; zero for those that are not drawn from."""
    if dataset is not None and dataset not in mixture.names:
        raise ConfigError(f"{dataset} is no dataset of this run; there are {', '.join(mixture.names)}")
    weights = mixture.weights * [
        (dataset in (None, item.name)) and item.records(split) > 0 for item in mixture.datasets
    ]
    if not weights.any():
        raise ConfigError(f"{dataset or ', '.join(mixture.names)}: no records of the split {split}")
    return weights / weights.sum()


def _check_context(sampled: SampledDataset, config: RunConfig) -> None:
    """Raises ConfigError if a window may miss every action of a task: it must hold two steps, or one if it begins with
    a step."""
    if sampled.index is None:
        return
    steps, words = (1, "one step") if config.input.align == "step" else (2, "two steps")
    index, specs = sampled.index, sampled.dataset.specs
    for number, task in enumerate(index.tasks):
        sizes = [field.tokens for field in specs[task].fields]
        if None in sizes:  # texts of different lengths: the mean step of the task
            begin, end = index.task_begin[number], index.task_begin[number + 1]
            tokens = index.token_end[index.record_begin[end]] - index.token_end[index.record_begin[begin]]
            step_tokens = -(-int(tokens) // int(index.steps[begin:end].sum(dtype=np.int64)))
        else:
            step_tokens = sum(size for size in sizes if size is not None) + 1
        if steps * step_tokens > config.context:
            raise ConfigError(
                f"context: {config.context} tokens hold less than {words} of {sampled.dataset.name}, task {task}, "
                f"which has {step_tokens} a step; give at least {steps * step_tokens}"
            )
