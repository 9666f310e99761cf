"""Draws what each window is made of: dataset, task, episode or document, start and prompt, for many at once.

Gato, section 2.3 and appendix B: datasets by weight, and a quarter of the windows of episodes with a prompt, from
another training episode of the same task and agent if there is one. Inside a dataset the draw is uniform over tasks,
then over kept episodes, then over starts; for documents it is uniform over records. Every draw is a function of (seed,
sample, attempt), without any state, so that any sample can be drawn anywhere and in any order.

Legend: B samples.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gatokit.loader.mixture import RECORD_RANGE, EpisodeIndex, MixedDataset, Mixture
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.index import TRAIN
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import OBSERVATION_POSITIONS

BLOCK = 65_536
"""Samples that draw from the same shards, if there are more shards than may be open."""
PROMPT_END_SHARE = 0.5
"""Share of the prompts that are taken from the end of their episode (Gato, section 2.3)."""


# --- random numbers ----------------------------------------------------------------------------------------------


class Lane(enum.IntEnum):
    """What a sample draws one random number for."""

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


DOCUMENT_LANES = 1 << 20
"""The first lane of a window's documents."""
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


def spread(phase: np.ndarray | int, samples: np.ndarray) -> np.ndarray:
    """Multiples of 2^-53 in [0, 1), float64, for consecutive ``samples``, int: they are spread evenly, since each is
    the one before plus the golden ratio. ``phase``, uint64, is where they begin; it and ``samples`` are broadcast."""
    return ((_words(phase) + _STEP * _words(samples)) >> np.uint64(11)) * 2.0**-53


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

DRAW = np.dtype(
    [
        ("dataset", np.int64),  # ordinal in the mixture
        ("group", np.int64),  # an episode's group in the index; -1 for a document
        ("owner", np.int64),  # ordinal of an episode in the index, or of a document's record among those of the split
        ("window", RECORD_RANGE),  # what fills the window; of a document the drawn record alone, and skip is 0
        ("candidates_begin", np.int64),  # the first record from which the window's other documents are drawn
        ("candidates", np.int64),  # the number of such records
        ("prompt", RECORD_RANGE),  # what the prompt is taken from
        ("prompt_owner", np.int64),  # the training episode that the prompt is taken from; -1 without a prompt
        ("prompt_tokens", np.int64),  # most tokens of the prompt; 0 without a prompt
        ("prompt_end", np.bool_),  # the prompt is the end of its episode
        ("hide", np.bool_),  # past actions are hidden
    ]
)
"""What is drawn for a sample. Shards in its ranges are ordinals among the shards of all datasets."""


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
    prompts: EpisodeIndex | None
    """The training episodes, from which prompts are taken; None for documents."""
    prompt_group: np.ndarray
    """int64 (groups,): of each group of ``index`` that of ``prompts`` with the same task and agent; -1 without one."""
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
    bounds: np.ndarray
    """float64: the share of samples of each dataset of the mixture and those before it."""

    def __init__(self, mixture: Mixture, config: RunConfig, split: str = TRAIN, dataset: str | None = None) -> None:
        """``dataset`` draws from that one alone.

        Raises ConfigError if there is nothing to draw from, or if the context is too short.
        """
        self.rng = Rng(config.seed, split != TRAIN)
        self._config, self._context = config.input, config.context
        self._prompt_tokens = min(config.input.prompt.tokens, config.context // 2)
        if dataset is not None and dataset not in mixture.names:
            raise ConfigError(f"{dataset} is no dataset of this run; there are {', '.join(mixture.names)}")
        weights = mixture.weights * [
            dataset in (None, item.name) and item.records(split) > 0 for item in mixture.datasets
        ]
        if not weights.any():
            raise ConfigError(f"{dataset or ', '.join(mixture.names)}: no records of the split {split}")
        weights = weights / weights.sum()
        self.bounds = np.cumsum(weights)
        self._last = int(np.flatnonzero(weights)[-1])
        self._phase = int(self.rng.uniform(0, 0, Lane.DATASET)[0] * 2.0**53) << 11
        self.datasets = {}
        shards = used_shards = pivots = 0
        for ordinal, mixed in enumerate(mixture.datasets):
            if weights[ordinal] > 0:
                index = prompts = None
                prompt_group = np.zeros(0, np.int64)
                if mixed.holds_episodes:
                    index, prompts = mixed.index(split), mixed.index(TRAIN)
                    prompt_group = _same_groups(index, prompts)
                training = np.array([shard.training for shard in mixed.shards], np.int64)
                records = training if split == TRAIN else np.array([shard.held_out for shard in mixed.shards], np.int64)
                self.datasets[ordinal] = SampledDataset(
                    dataset=mixed,
                    first_shard=shards,
                    first_pivot=pivots,
                    index=index,
                    prompts=prompts,
                    prompt_group=prompt_group,
                    first_record=np.zeros_like(training) if split == TRAIN else training,
                    records_before=np.cumsum([0, *records]),
                )
                used_shards += int(np.count_nonzero(records))
                pivots += 1 if index is None else len(index.tasks)
            shards += len(mixed.shards)
        open_shards = config.input.open_shards
        self._pivots = max(1, open_shards // max(pivots, 1)) if used_shards > open_shards else 0
        for sampled in self.datasets.values():
            _check_context(sampled, config)

    def draw(self, samples: np.ndarray, attempts: np.ndarray) -> np.ndarray:
        """Draws for the samples of these numbers, int64 (B,), each at its n-th attempt, int64 (B,): DRAW (B,)."""
        u = self.rng.uniform(samples[:, None], attempts[:, None], np.arange(len(Lane)))
        # Each dataset has its share of any few samples in a row, so that the patches of groups differ little.
        place = np.where(attempts == 0, spread(self._phase, samples), u[:, Lane.DATASET])
        dataset = np.minimum(np.searchsorted(self.bounds, place, "right"), self._last)
        draws = np.zeros(len(samples), DRAW)
        for ordinal in np.unique(dataset).tolist():
            rows = np.flatnonzero(dataset == ordinal)
            sampled = self.datasets[ordinal]
            if sampled.index is not None:
                draws[rows] = self._draw_episodes(sampled, sampled.index, u[rows], samples[rows])
            else:
                draws[rows] = self._draw_documents(sampled, u[rows], samples[rows])
        draws["dataset"] = dataset
        return draws

    def _draw_episodes(
        self, sampled: SampledDataset, index: EpisodeIndex, u: np.ndarray, samples: np.ndarray
    ) -> np.ndarray:
        """Draws task, episode, prompt and starts: DRAW without the dataset."""
        task = below(u[:, Lane.TASK], len(index.tasks))
        begin, end = index.task_begin[task], index.task_begin[task + 1]
        if self._pivots:
            pivot = sampled.first_pivot + task
            begin, end = self._pivot_range(index.run_begin, begin, end, pivot, u[:, Lane.SLOT], samples)
        count = end - begin
        episode = begin + below(u[:, Lane.OWNER], count)
        group = index.group_of(episode)

        # The prompt is another training episode of the group or, if there are pivots, of the run.
        prompts, own = sampled.prompts, sampled.prompts is index
        assert prompts is not None
        of = sampled.prompt_group[group]
        near, others = prompts.group_begin[of], prompts.group_begin[of + 1] - prompts.group_begin[of]
        if self._pivots and own:
            near, others = np.where(count > 1, begin, near), np.where(count > 1, count, others)
        others = np.where(of < 0, 0, others - own)
        prompt = near + below(u[:, Lane.PROMPT_OWNER], np.maximum(others, 1))
        prompt = np.where(others > 0, prompt + (own & (prompt >= episode)), 0)
        prompt_all = prompts.tokens(prompt)
        prompt_tokens = np.minimum(self._prompt_tokens, prompt_all)
        at_end = u[:, Lane.PROMPT_END] < PROMPT_END_SHARE
        prompt_start = self._starts(u[:, Lane.PROMPT_START], prompts, prompt, prompt_all, prompt_tokens)
        prompt_start = np.where(at_end, prompt_all - prompt_tokens, prompt_start)
        prompted = (u[:, Lane.PROMPTED] < self._config.prompt.share) & (others > 0)

        tokens = index.tokens(episode)
        window = self._context - np.where(prompted, prompt_tokens, 0)
        start = self._starts(u[:, Lane.START], index, episode, tokens, window)

        # One token more: it is the target of a window's last position, or tells what a prompt ends before.
        windows = index.record_ranges(episode, start, np.minimum(tokens, start + window + 1))
        shown = prompts.record_ranges(prompt, prompt_start, np.minimum(prompt_all, prompt_start + prompt_tokens + 1))
        windows["shard"] += sampled.first_shard
        shown["shard"] += sampled.first_shard
        draws = np.zeros(len(u), DRAW)
        draws["group"], draws["owner"], draws["window"] = group, episode, windows
        draws["prompt"], draws["prompt_owner"] = shown, np.where(prompted, prompt, -1)
        draws["prompt_end"] = prompted & at_end
        draws["prompt_tokens"] = np.where(prompted, prompt_tokens, 0)
        draws["hide"] = u[:, Lane.HIDE] < self._config.hide_actions
        return draws

    def _starts(
        self, u: np.ndarray, index: EpisodeIndex, episodes: np.ndarray, tokens: np.ndarray, window: np.ndarray
    ) -> np.ndarray:
        """A token of each episode: where its window starts or, with ``align: step``, one of the window's first step."""
        longest = np.maximum(tokens - window, 0)
        if self._config.align == "step":
            longest += -(-tokens // index.steps[episodes]) - 1
        return np.minimum(below(u, longest + 1), tokens - 1)

    def _draw_documents(self, sampled: SampledDataset, u: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Draws records of documents: DRAW without the dataset."""
        begin = np.zeros(len(u), np.int64)
        end = np.full(len(u), sampled.records_before[-1])
        if self._pivots:
            pivot = np.full(len(u), sampled.first_pivot)
            begin, end = self._pivot_range(sampled.records_before, begin, end, pivot, u[:, Lane.SLOT], samples)
        record = begin + below(u[:, Lane.OWNER], end - begin)
        draws = np.zeros(len(u), DRAW)
        draws["group"] = draws["prompt_owner"] = -1
        draws["candidates_begin"], draws["candidates"] = begin, end - begin
        draws["owner"], draws["window"] = record, sampled.record_ranges(record)
        return draws

    def _pivot_range(
        self,
        bounds: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
        pivot: np.ndarray,
        u: np.ndarray,
        samples: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The range between ``bounds`` (of runs or shards) around one of a block's pivots, as begin and end.

        A pivot is uniform over the items [begin, end), and the item is then drawn uniformly from the pivot's range. So
        every item has the same chance, and a block of samples uses few ranges, hence few shards.
        """
        slot = below(u, self._pivots)
        chosen = begin + below(self.rng.uniform(samples // BLOCK, pivot, PIVOT_LANES + slot), end - begin)
        at = np.searchsorted(bounds, chosen, "right") - 1
        return bounds[at], bounds[at + 1]


def sample_numbers(counts: np.ndarray, skipped: Sequence[tuple[int, int]]) -> np.ndarray:
    """The numbers of the samples behind ``counts`` others, int64, if those of the ranges [begin, end), which ascend and
    do not meet, are left out."""
    numbers = np.array(counts, np.int64)
    for begin, end in skipped:
        numbers[numbers >= begin] += end - begin
    return numbers


def too_long(name: str, tokens: int) -> DataError:
    """The error of a dataset whose observations have up to ``tokens`` tokens, more than the table of positions."""
    return DataError(
        f"{name}: a time step's observation has {tokens} tokens, and the model has {OBSERVATION_POSITIONS} positions: "
        "build the data with smaller images (images.size) or fewer fields"
    )


def _same_groups(index: EpisodeIndex, prompts: EpisodeIndex) -> np.ndarray:
    """The group of ``prompts`` with the task and agent of each group of ``index``, int64 (groups,); -1 without one."""
    known = {(prompts.task_of(group), agent): group for group, agent in enumerate(prompts.agents)}
    return np.array([known.get((index.task_of(group), agent), -1) for group, agent in enumerate(index.agents)], int)


def _check_context(sampled: SampledDataset, config: RunConfig) -> None:
    """Raises ConfigError if a window may miss every action of a task: it must hold two steps, or one if it begins with
    a step. Raises DataError if its observations have more tokens than there are positions."""
    if sampled.index is None:
        return
    steps, words = (1, "one step") if config.input.align == "step" else (2, "two steps")
    index, described = sampled.index, sampled.dataset.described
    for number, task in enumerate(index.tasks):
        spec = described.spec_of(task)
        observation = sum(field.tokens or 0 for field in spec.observation)
        if observation > OBSERVATION_POSITIONS:
            raise too_long(f"{sampled.dataset.name}, task {task}", observation)
        sizes = [field.tokens for field in spec.fields]
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
