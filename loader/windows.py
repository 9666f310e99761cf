"""The windows of a run: sample i is a function of (seed, i) alone, in whatever step, process or order it is made.

Legend: B rows, L tokens of a window, G groups of rows, P patch slots of a group.
"""

from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from gatokit.loader.batch import IS_ACTION, PADDING, Batch, Targets, find_targets
from gatokit.loader.mixture import Mixture
from gatokit.loader.patches import cut_patches
from gatokit.loader.provenance import Provenance, segments_of
from gatokit.loader.records import OpenShards, RecordView, Span
from gatokit.loader.sampler import PAIR_LANES, Draws, Lane, SampledDataset, Sampler, below
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.index import TRAIN
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import NO_POSITION, TokenKind

_ATTEMPTS = 64
"""Draws of a row; if its group's patch slots are still full then, they are too few."""
_TRIED = 512
"""Samples whose patches decide how many slots a group gets by default."""
_SLOTS = 8
"""The default number of slots is a multiple of this."""


@dataclass
class _Rows:
    """B rows while they are drawn and filled. They have L + 1 tokens: the last one is the last position's target."""

    samples: np.ndarray
    """int64 (B,)."""
    attempts: np.ndarray
    """int64 (B,): how often the row was drawn again."""
    draws: Draws
    ids: np.ndarray
    """uint16 (B, L + 1)."""
    kinds: np.ndarray
    """uint8 (B, L + 1)."""
    positions: np.ndarray
    """uint16 (B, L + 1)."""
    prompt_tokens: np.ndarray
    """int64 (B,)."""
    cut_action: np.ndarray
    """bool (B,): the prompt ends inside an action."""
    redrawn: np.ndarray
    """int64 (B,): see ``Batch``."""
    spans: list[list[Span]]
    """What each row is made of."""

    def clear(self, row: int, column: int = 0) -> None:
        """Removes the tokens of a row from ``column`` on."""
        self.ids[row, column:], self.kinds[row, column:], self.positions[row, column:] = 0, PADDING, NO_POSITION
        self.spans[row] = [
            span._replace(take=min(span.take, column - span.column)) for span in self.spans[row] if span.column < column
        ]

    def put(self, row: int, span: Span) -> None:
        """Copies the tokens of a record into a row."""
        begin, end, skip, stop = span.column, span.column + span.take, span.skip, span.skip + span.take
        self.ids[row, begin:end] = span.view.tokens[skip:stop]
        self.kinds[row, begin:end] = span.view.kinds[skip:stop]
        self.positions[row, begin:end] = span.view.positions[skip:stop]
        self.spans[row].append(span)

    def patch_counts(self) -> np.ndarray:
        """Patches in each row's window, int64 (B,)."""
        return np.count_nonzero(self.kinds[:, :-1] == TokenKind.IMAGE, axis=1)

    def targets(self) -> Targets:
        """What the windows predict and hide."""
        return find_targets(self.ids, self.kinds, self.prompt_tokens, self.cut_action, self.draws.hide)


class Windows:
    """Makes the batches of a run from a mixture. Threads may share it, and it can be pickled."""

    patch_slots: int
    """Slots of a group: those of the config. If it gives none, or with ``dataset``, as many as the first windows need
    and an eighth more, and at least the tokens of one window."""

    def __init__(
        self,
        mixture: Mixture,
        config: RunConfig,
        *,
        split: str = TRAIN,
        dataset: str | None = None,
        training: bool = True,
        patch_slots: int | None = None,
    ) -> None:
        """``split`` is ``train`` or ``held_out``. ``dataset`` draws from that one alone, for evaluation. ``training``
        draws the positions of patches. ``patch_slots`` replaces those of the config.

        Raises ConfigError if the context is too short or there is nothing to draw from.
        """
        self._mixture, self._config = mixture, config
        self._options: dict[str, Any] = {"split": split, "dataset": dataset, "training": training}
        self._batch, self._context, self._group_rows = config.batch, config.context, config.patch_group_rows
        self._aligned, self._training = config.input.align == "step", training
        self._sampler = Sampler(mixture, config, split, dataset)
        self._shards = OpenShards(
            [shard for item in mixture.datasets for shard in item.shards], config.input.open_shards
        )
        if patch_slots is None and dataset is None:
            patch_slots = config.input.patch_slots
        self.patch_slots = self._group_rows * self._context if patch_slots is None else patch_slots
        if patch_slots is None:
            self.patch_slots = self._needed_slots()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Windows, **self._options, patch_slots=self.patch_slots), (self._mixture, self._config)

    def batch(self, step: int, rows: range) -> Batch:
        """``rows`` of the batch of a step, from 0; sample i is ``step * config.batch + row``.

        Raises ValueError if the rows are not whole patch groups, DataError if a record is damaged, ConfigError if the
        patch slots are too few.
        """
        filled = self._filled(self._samples(step, rows))
        targets = filled.targets()
        kinds = np.ascontiguousarray(filled.kinds[:, :-1])
        patches = cut_patches(
            filled.spans,
            self._shards,
            self._sampler.rng,
            filled.samples,
            filled.attempts,
            group_rows=self._group_rows,
            slots=self.patch_slots,
            context=self._context,
            training=self._training,
        )
        return Batch(
            tokens=filled.ids[:, :-1] * ((kinds != TokenKind.IMAGE) & ~targets.hidden),
            kinds=kinds,
            positions=np.ascontiguousarray(filled.positions[:, :-1]),
            **targets._asdict(),
            dataset=filled.draws.dataset.astype(np.int32),
            redrawn=filled.redrawn.astype(np.int32),
            **patches._asdict(),
        )

    def trace(self, step: int, rows: range) -> list[Provenance]:
        """What the rows of a step's batch are made of; arguments and errors as for ``batch``."""
        filled = self._filled(self._samples(step, rows))
        tokens = np.count_nonzero(filled.kinds[:, :-1], axis=1).tolist()
        targets = np.count_nonzero(filled.targets().target_kinds, axis=1).tolist()
        patches = filled.patch_counts().tolist()
        found = []
        for at, row in enumerate(rows):
            sampled = self._sampler.datasets[int(filled.draws.dataset[at])]
            index, group = sampled.index, int(filled.draws.group[at])
            spans, prompt = filled.spans[at], int(filled.prompt_tokens[at])
            in_prompt = [span for span in spans if span.column < prompt]
            found.append(
                Provenance(
                    row=row,
                    sample=int(filled.samples[at]),
                    dataset=sampled.dataset.name,
                    task=None if index is None else index.task_of(group),
                    agent=None if index is None else index.agents[group],
                    prompt=next(iter(segments_of(in_prompt, self._shards.shards, self._context)), None),
                    segments=segments_of(spans[len(in_prompt) :], self._shards.shards, self._context),
                    tokens=tokens[at],
                    targets=targets[at],
                    patches=patches[at],
                    hides_actions=bool(filled.draws.hide[at]),
                    redraws=int(filled.attempts[at]),
                )
            )
        return found

    def _samples(self, step: int, rows: range) -> np.ndarray:
        if rows.step != 1 or rows.start % self._group_rows or rows.stop % self._group_rows:
            raise ValueError(f"{rows} are no whole groups of {self._group_rows} rows")
        return np.arange(rows.start, rows.stop) + step * self._batch

    # --- drawing ---------------------------------------------------------------------------------------------------

    def _filled(self, samples: np.ndarray) -> _Rows:
        """Draws and fills the rows of these samples, int64 (B,).

        As long as the patches of a group are more than its slots, its last row with any is drawn again.
        """
        attempts = np.zeros(len(samples), np.int64)
        shape = len(samples), self._context + 1
        rows = _Rows(
            samples=samples,
            attempts=attempts,
            draws=self._sampler.draw(samples, attempts),
            ids=np.zeros(shape, np.uint16),
            kinds=np.full(shape, PADDING, np.uint8),
            positions=np.full(shape, NO_POSITION, np.uint16),
            prompt_tokens=np.zeros(len(samples), np.int64),
            cut_action=np.zeros(len(samples), bool),
            redrawn=np.full(len(samples), -1),
            spans=[[] for _ in samples],
        )
        self._fill(rows, np.arange(len(samples)))
        while True:
            counts = rows.patch_counts().reshape(-1, self._group_rows)
            full = np.flatnonzero(counts.sum(axis=1) > self.patch_slots)
            if not len(full):
                return rows
            last = self._group_rows - 1 - np.argmax(counts[full, ::-1] > 0, axis=1)
            self._draw_again(rows, full * self._group_rows + last)

    def _draw_again(self, rows: _Rows, again: np.ndarray) -> None:
        """Replaces the rows ``again``."""
        first_time = rows.attempts[again] == 0
        rows.redrawn[again] = np.where(first_time, rows.draws.dataset[again], rows.redrawn[again])
        rows.attempts[again] += 1
        if rows.attempts[again].max() >= _ATTEMPTS:
            raise ConfigError(
                f"input.patch_slots: {self.patch_slots} are too few for the images of {self._group_rows} windows of "
                f"{self._context} tokens; raise it, or leave it out"
            )
        for row in again.tolist():
            rows.clear(row)
        rows.prompt_tokens[again], rows.cut_action[again] = 0, False
        rows.draws.put(again, self._sampler.draw(rows.samples[again], rows.attempts[again]))
        self._fill(rows, again)

    def _needed_slots(self) -> int:
        if not any(sampled.dataset.has_images for sampled in self._sampler.datasets.values()):
            return _SLOTS
        groups = -(-_TRIED // self._group_rows)
        rows = self._filled(np.arange(groups * self._group_rows))
        largest = int(rows.patch_counts().reshape(groups, self._group_rows).sum(axis=1).max())
        wanted = max(self._context, largest * 9 // 8)
        return min(-(-wanted // _SLOTS) * _SLOTS, self.patch_slots)

    # --- filling ---------------------------------------------------------------------------------------------------

    def _fill(self, rows: _Rows, numbers: np.ndarray) -> None:
        """Puts the tokens of what was drawn into the rows of these numbers."""
        draws = rows.draws
        columns = draws.dataset, draws.window, draws.prompt_tokens
        for row, dataset, window, prompt_tokens in zip(
            numbers.tolist(), *(column[numbers].tolist() for column in columns), strict=True
        ):
            sampled = self._sampler.datasets[dataset]
            shard, first, stop, skip = window
            if sampled.index is not None:
                column = self._fill_prompt(rows, row, prompt_tokens) if prompt_tokens else 0
                views = self._shards.read(shard, first, stop)
                if self._aligned:
                    skip = _step_of(views[0], skip)
                self._copy(rows, row, column, self._context + 1, shard, first, skip, views)
            elif sampled.dataset.pairs is None:
                views = self._shards.read(shard, first, stop)
                skip = int(below(float(draws.start[row]), len(views[0].tokens)))
                self._copy(rows, row, 0, self._context + 1, shard, first, skip, views)
            else:
                self._fill_pairs(rows, row, sampled, sampled.dataset.pairs)

    def _fill_prompt(self, rows: _Rows, row: int, tokens: int) -> int:
        """Puts a prompt of at most ``tokens`` tokens at the beginning of a row, and returns its length.

        With ``align: step`` it has whole steps: from the beginning of the drawn token's step on or, if the prompt is
        the end of its episode, from the next step on. A step that is longer than the prompt is cut.
        """
        draws = rows.draws
        shard, first, stop, skip = draws.prompt[row].item()
        views = self._shards.read(shard, first, stop)
        if self._aligned and not draws.prompt_end[row]:
            skip = _step_of(views[0], skip)
        elif self._aligned:
            later = int(np.searchsorted(views[0].step_begin, skip))
            if later < len(views[0].step_begin):
                skip = int(views[0].step_begin[later])
            elif len(views) > 1:
                first, skip, views = first + 1, 0, views[1:]
        # One token more tells whether the prompt ends inside a step or an action.
        wanted = tokens + int(self._aligned or draws.hide[row])
        end = self._copy(rows, row, 0, wanted, shard, first, skip, views)
        length = min(end, tokens)
        if self._aligned and end > tokens:
            length = _last_step(rows.spans[row], tokens) or tokens
        if length < end:
            rows.cut_action[row] = IS_ACTION[rows.kinds[row, length - 1 : length + 1]].all()
            rows.clear(row, length)
        rows.prompt_tokens[row] = length
        return length

    def _fill_pairs(self, rows: _Rows, row: int, sampled: SampledDataset, pairs: int) -> None:
        """Fills a row with distinct documents, ``pairs`` of them if there are so many, padded or cropped at a random
        place (Gato, section 2.3: five question-answer pairs)."""
        lanes = np.array([Lane.CROP, *range(PAIR_LANES, PAIR_LANES + pairs)])
        crop, *u = self._sampler.rng.uniform(int(rows.samples[row]), int(rows.attempts[row]), lanes).tolist()
        begin, left = int(rows.draws.candidates_begin[row]), int(rows.draws.candidates[row])
        taken: list[tuple[int, int]] = []
        """First record, among those of the split, and number of records of each document."""
        spans: list[Span] = []
        while left and len(taken) < pairs:
            record = begin + int(below(u[len(taken)], left))
            for first, records in sorted(taken):
                record += records if record >= first else 0
            shard, in_shard, _, _ = sampled.record_ranges(np.array([record]))[0].item()
            document = self._document(shard, in_shard)
            spans += document
            taken.append((record - (in_shard - document[0].record), len(document)))
            left -= len(document)
        surplus = sum(span.take for span in spans) - self._context - 1
        column = -int(below(crop, max(surplus, 0) + 1))
        for span in spans:
            skip = max(-column, 0)
            take = min(span.take - skip, self._context + 1 - (column + skip))
            if take > 0:
                rows.put(row, span._replace(column=column + skip, skip=skip, take=take))
            column += span.take

    def _document(self, shard: int, record: int) -> list[Span]:
        """All records of the document that a record belongs to."""
        views = self._shards.read(shard, record, record + 1)
        first = record - views[0].chunk
        if views[0].chunks > 1:
            views = self._shards.read(shard, first, first + views[0].chunks)
        return [Span(0, 0, len(view.tokens), shard, number, view) for number, view in enumerate(views, first)]

    def _copy(
        self, rows: _Rows, row: int, column: int, stop: int, shard: int, first: int, skip: int, views: list[RecordView]
    ) -> int:
        """Copies tokens to the columns [column, stop) of a row, from ``skip`` of the record ``first`` on, and returns
        the column behind the last one.

        ``views`` are the records from ``first`` on; if they end early, those of the same owner behind them are read.
        """
        for record in count(first):
            if record - first == len(views):
                views = views + self._shards.read(shard, record, record + 1)
            view = views[record - first]
            take = min(stop - column, len(view.tokens) - skip)
            rows.put(row, Span(column, skip, take, shard, record, view))
            column, skip = column + take, 0
            if column == stop or view.chunk + 1 == view.chunks:
                break
        return column


def _step_of(view: RecordView, token: int) -> int:
    """The token at which the step of a token begins."""
    return int(view.step_begin[np.searchsorted(view.step_begin, token, "right") - 1])


def _last_step(spans: list[Span], tokens: int) -> int:
    """The last column up to ``tokens`` at which a step begins; 0 if the first step is the only one."""
    for span in reversed(spans):
        columns = span.view.step_begin.astype(np.int64) - span.skip + span.column
        columns = columns[(columns >= span.column) & (columns <= min(tokens, span.column + span.take))]
        if len(columns):
            return int(columns[-1])
    return 0
