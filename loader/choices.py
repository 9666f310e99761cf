"""What each sample is made of: dataset, task, episode or document, start and prompt, drawn for many samples at once.

Gato, section 2.3 and appendix B: datasets by weight, a quarter of the control windows with a prompt of the same task
and agent. Inside a dataset the draw is uniform over tasks, then kept episodes, then starts; of documents over records.

Legend: B samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from gatokit.loader import rng as draws
from gatokit.loader.index import EpisodeIndex, Ranges
from gatokit.loader.mixture import MixedDataset
from gatokit.schemas.index import TRAIN
from gatokit.schemas.run import InputConfig

PROMPT_END_SHARE = 0.5
"""Share of the prompts that are taken from the end of their episode (Gato, section 2.3)."""
BLOCK = 65_536
"""Samples that draw from the same shards, where there are more shards than may be open."""


@dataclass
class Choices:
    """Arrays (B,) of what was drawn; all int64 where nothing else is said."""

    dataset: np.ndarray
    """Ordinal in the mixture."""
    group: np.ndarray
    """Of an episode its group in the index, of a document -1."""
    owner: np.ndarray
    """Of an episode its ordinal in the index, of documents a record's ordinal among those of the split."""
    shard: np.ndarray
    """Ordinal among the shards of all datasets."""
    first: np.ndarray
    stop: np.ndarray
    """Records [first, stop) hold the window; a document's others are known only when the first is read."""
    skip: np.ndarray
    """Tokens of the first record before the window; drawn later for documents."""
    among: np.ndarray
    """Of pairs: the first ordinal of the records that the others are drawn from."""
    count: np.ndarray
    """Of pairs: the number of these records."""
    prompt_owner: np.ndarray
    """The episode that a prompt is taken from; -1 of documents."""
    prompt_tokens: np.ndarray
    """0 where there is no prompt."""
    prompt_shard: np.ndarray
    prompt_first: np.ndarray
    prompt_stop: np.ndarray
    prompt_skip: np.ndarray
    prompt_end: np.ndarray
    """bool: the prompt is the end of its episode."""
    hide: np.ndarray
    """bool: past actions are hidden."""
    start: np.ndarray
    """float64 in [0, 1): where in its first record a document's window begins."""

    def put(self, rows: np.ndarray, other: "Choices") -> None:
        """Replaces ``rows`` by those of ``other``."""
        for item in fields(self):
            getattr(self, item.name)[rows] = getattr(other, item.name)


@dataclass(frozen=True)
class Source:
    """One dataset of the mixture, as it is drawn from."""

    dataset: MixedDataset
    first_shard: int
    """Ordinal of its first shard among those of all datasets."""
    first_pivot: int
    """Number of tasks and corpora before it."""
    index: EpisodeIndex | None
    """None of documents."""
    begin: np.ndarray
    """int64 (shards,): the first record of the split in each shard."""
    before: np.ndarray
    """int64 (shards + 1,): records of the split in the shards before each one."""

    def locate(self, record: int) -> tuple[int, int]:
        """Shard (ordinal among all) and ordinal in it of a record's ordinal in the split."""
        shard = int(np.searchsorted(self.before, record, "right")) - 1
        return self.first_shard + shard, int(self.begin[shard] + record - self.before[shard])


class Chooser:
    """Draws what samples are made of; a function of the key, sample and attempt alone."""

    def __init__(
        self, datasets: Sequence[MixedDataset], weights: np.ndarray, split: str, key: np.uint64, context: int,
        config: InputConfig,
    ) -> None:  # fmt: skip
        """``weights`` (one a dataset) may hold zeros; datasets with a weight must have records of the split."""
        self._key = key
        self._bounds = np.cumsum(weights)
        self._last = int(np.flatnonzero(weights)[-1])
        self._context = context
        self._config = config
        self._prompt_tokens = min(config.prompt.tokens, context // 2)
        self.sources: list[Source | None] = []
        shards = pivots = 0
        for dataset, weight in zip(datasets, weights, strict=True):
            source = None
            if weight > 0:
                source = _source(dataset, split, shards, pivots)
                pivots += 1 if source.index is None else len(source.index.tasks)
            self.sources.append(source)
            shards += len(dataset.shards)
        used = sum(int(np.count_nonzero(np.diff(item.before))) for item in self.sources if item)
        self._pivots = max(1, config.open_shards // max(pivots, 1)) if used > config.open_shards else 0

    @property
    def prompt_tokens(self) -> int:
        """The longest prompt."""
        return self._prompt_tokens

    def choose(self, samples: np.ndarray, attempts: np.ndarray) -> Choices:
        """What the samples of these numbers are made of, at their n-th attempt each."""
        u = draws.uniform(self._key, samples[:, None], attempts[:, None], np.arange(draws.LANES))
        dataset = np.minimum(np.searchsorted(self._bounds, u[:, draws.DATASET], "right"), self._last)
        count = len(samples)
        found = Choices(
            **{item.name: np.zeros(count, np.int64) for item in fields(Choices)}
            | {
                "dataset": dataset,
                "group": np.full(count, -1),
                "prompt_owner": np.full(count, -1),
                "start": u[:, draws.START],
            }
            | {"prompt_end": np.zeros(count, bool), "hide": np.zeros(count, bool)}
        )
        for ordinal in np.unique(dataset).tolist():
            rows = np.flatnonzero(dataset == ordinal)
            source = self.sources[ordinal]
            assert source is not None
            if source.index is not None:
                self._episodes(found, rows, source, source.index, u[rows], samples[rows])
            else:
                self._documents(found, rows, source, u[rows], samples[rows])
        return found

    def _episodes(
        self, found: Choices, rows: np.ndarray, source: Source, index: EpisodeIndex, u: np.ndarray, samples: np.ndarray
    ) -> None:
        """Task, episode, prompt and starts of the samples ``rows``."""
        task = draws.below(u[:, draws.TASK], len(index.tasks))
        begin = index.task_begin[task]
        count = index.task_begin[task + 1] - begin
        if self._pivots:
            begin, count = self._of_pivot(
                index.run_begin, begin, count, source.first_pivot + task, u[:, draws.SLOT], samples
            )
        episode = begin + draws.below(u[:, draws.OWNER], count)
        group = index.group_of(episode)
        found.group[rows], found.owner[rows] = group, episode
        found.hide[rows] = u[:, draws.HIDE] < self._config.hide_actions

        near, others = index.group_begin[group], index.group_begin[group + 1] - index.group_begin[group]
        if self._pivots:
            near, others = np.where(count > 1, begin, near), np.where(count > 1, count, others)
        prompt = near + draws.below(u[:, draws.PROMPT_OWNER], np.maximum(others - 1, 1))
        prompt = np.where(others > 1, prompt + (prompt >= episode), episode)
        prompted = u[:, draws.PROMPTED] < self._config.prompt.share
        prompt_all = index.tokens(prompt)
        prompt_tokens = np.minimum(self._prompt_tokens, prompt_all)
        at_end = u[:, draws.PROMPT_END] < PROMPT_END_SHARE
        prompt_start = np.where(
            at_end,
            prompt_all - prompt_tokens,
            self._starts(u[:, draws.PROMPT_START], index, prompt, prompt_all, prompt_tokens),
        )
        found.prompt_tokens[rows] = np.where(prompted, prompt_tokens, 0)
        found.prompt_end[rows] = at_end
        found.prompt_owner[rows] = prompt
        where = index.locate(prompt, prompt_start, np.minimum(prompt_all, prompt_start + prompt_tokens + 1))
        _put(found, rows, source, where, "prompt_")

        tokens = index.tokens(episode)
        window = self._context - found.prompt_tokens[rows]
        start = self._starts(u[:, draws.START], index, episode, tokens, window)
        _put(found, rows, source, index.locate(episode, start, np.minimum(tokens, start + window + 1)), "")

    def _starts(
        self, u: np.ndarray, index: EpisodeIndex, episodes: np.ndarray, tokens: np.ndarray, window: np.ndarray
    ) -> np.ndarray:
        """A token of each episode: where its window starts, or inside the step with which an aligned one does."""
        longest = np.maximum(tokens - window, 0)
        if self._config.align == "step":
            longest += -(-tokens // index.steps[episodes]) - 1
        return np.minimum(draws.below(u, longest + 1), tokens - 1)

    def _documents(self, found: Choices, rows: np.ndarray, source: Source, u: np.ndarray, samples: np.ndarray) -> None:
        """A record of each of the samples ``rows``."""
        begin = np.zeros(len(rows), np.int64)
        count = np.full(len(rows), source.before[-1])
        if self._pivots:
            pivot = np.full(len(rows), source.first_pivot)
            begin, count = self._of_pivot(source.before, begin, count, pivot, u[:, draws.SLOT], samples)
        found.among[rows], found.count[rows] = begin, count
        record = begin + draws.below(u[:, draws.OWNER], count)
        shard = np.searchsorted(source.before, record, "right") - 1
        first = source.begin[shard] + record - source.before[shard]
        found.owner[rows] = record
        _put(found, rows, source, Ranges(shard, first, first + 1, np.zeros(len(rows), np.int64)), "")

    def _of_pivot(
        self,
        bounds: np.ndarray,
        begin: np.ndarray,
        count: np.ndarray,
        pivot: np.ndarray,
        u: np.ndarray,
        samples: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Begin and count of the range of ``bounds`` (runs or shards) around one of a block's pivots.

        A pivot is uniform over the ``count`` items from ``begin`` on, and what is drawn is uniform in its range: so
        every item has the same chance, and the ranges in use are a function of the key and the block.
        """
        slot = draws.below(u, self._pivots)
        chosen = begin + draws.below(
            draws.uniform(self._key, samples // BLOCK, pivot, draws.PIVOTS + slot), count
        )  # fmt: skip
        place = np.searchsorted(bounds, chosen, "right") - 1
        return bounds[place], bounds[place + 1] - bounds[place]


def _source(dataset: MixedDataset, split: str, first_shard: int, first_pivot: int) -> Source:
    training = np.array([shard.training for shard in dataset.shards], np.int64)
    held_out = np.array([shard.held_out for shard in dataset.shards], np.int64)
    counts = training if split == TRAIN else held_out
    return Source(
        dataset=dataset,
        first_shard=first_shard,
        first_pivot=first_pivot,
        index=dataset.index(split) if dataset.holds_episodes else None,
        begin=np.zeros_like(training) if split == TRAIN else training,
        before=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
    )


def _put(found: Choices, rows: np.ndarray, source: Source, ranges: Ranges, prefix: str) -> None:
    for name, values in zip(("shard", "first", "stop", "skip"), ranges, strict=True):
        getattr(found, prefix + name)[rows] = values + source.first_shard if name == "shard" else values
