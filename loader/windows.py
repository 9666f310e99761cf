"""The windows of a run: sample i is a function of (seed, i) alone, in whatever step, process or order it is made.

Legend: B rows, L tokens of a window, G groups of rows, P patch slots of a group.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import count

import numpy as np

from gatokit.loader.batch import NO_TOKEN, PADDING, Batch, Targets, find_targets, is_action, is_kind
from gatokit.loader.mixture import Mixture
from gatokit.loader.provenance import Provenance, segments_of
from gatokit.loader.records import OpenShards, RecordSpan, RecordView
from gatokit.loader.sampler import DRAW, PAIR_LANES, PATCH_LANES, Lane, SampledDataset, Sampler, below
from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.index import TRAIN
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import NO_POSITION, PATCH, TokenKind
from gatokit.tokenizers.image_codec import decode
from gatokit.tokenizers.patches import evaluation_positions, patches, position_intervals

_ATTEMPTS = 64
"""Draws of a row; if its group's patch slots are still full then, they are too few."""
_TRIED = 512
"""Samples whose patches decide how many slots a group gets by default."""
_SLOTS = 8
"""The default number of slots is a multiple of this."""


class _Rows:
    """B rows while they are drawn and filled. They have L + 1 tokens: the last one is the last position's target."""

    def __init__(self, samples: np.ndarray, context: int) -> None:
        """``samples`` are the numbers of the samples, int64 (B,)."""
        count, shape = len(samples), (len(samples), context + 1)
        self.samples = samples
        self.attempts = np.zeros(count, np.int64)  # how often a row was drawn again
        self.redrawn = np.full(count, -1)  # see ``Batch``
        self.draws = np.zeros(count, DRAW)
        self.ids = np.zeros(shape, np.uint16)
        self.kinds = np.full(shape, PADDING, np.uint8)
        self.positions = np.full(shape, NO_POSITION, np.uint16)
        self.prompt_tokens = np.zeros(count, np.int64)
        self.cut_action = np.zeros(count, bool)  # whether the prompt ends inside an action
        self.patches = np.zeros(count, np.int64)  # patches in a row's window
        self.spans: list[list[RecordSpan]] = [[] for _ in samples]  # what a row is made of

    def clear(self, row: int, column: int = 0) -> None:
        """Removes the tokens of a row from ``column`` on."""
        self.ids[row, column:], self.kinds[row, column:], self.positions[row, column:] = 0, PADDING, NO_POSITION
        self.spans[row] = [
            span._replace(take=min(span.take, column - span.column)) for span in self.spans[row] if span.column < column
        ]

    def put(self, row: int, span: RecordSpan) -> None:
        """Copies the tokens of a record into a row."""
        begin, end, skip, stop = span.column, span.column + span.take, span.skip, span.skip + span.take
        self.ids[row, begin:end] = span.view.tokens[skip:stop]
        self.kinds[row, begin:end] = span.view.kinds[skip:stop]
        self.positions[row, begin:end] = span.view.positions[skip:stop]
        self.spans[row].append(span)

    def targets(self) -> Targets:
        """What the windows predict and hide."""
        return find_targets(self.ids, self.kinds, self.prompt_tokens, self.cut_action, self.draws["hide"])


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
        self._batch, self._context, self._group_rows = config.batch, config.context, config.patch_group_rows
        self._split, self._dataset, self._training = split, dataset, training
        self._aligned = config.input.align == "step"
        self._sampler = Sampler(mixture, config, split, dataset)
        self._shards = OpenShards(
            [shard for item in mixture.datasets for shard in item.shards], config.input.open_shards
        )
        if patch_slots is None and dataset is None:
            patch_slots = config.input.patch_slots
        self.patch_slots = self._group_rows * self._context if patch_slots is None else patch_slots
        if patch_slots is None:
            self.patch_slots = self._needed_slots()

    def __reduce__(self) -> tuple[object, ...]:
        windows = partial(Windows, split=self._split, dataset=self._dataset, training=self._training)
        return partial(windows, patch_slots=self.patch_slots), (self._mixture, self._config)

    def batch(self, step: int, rows: range) -> Batch:
        """``rows`` of the batch of a step, from 0; sample i is ``step * config.batch + row``.

        Raises ValueError if the rows are not whole patch groups, DataError if a record is damaged, ConfigError if the
        patch slots are too few.
        """
        filled = self._filled(self._samples(step, rows))
        targets = filled.targets()
        kinds = np.ascontiguousarray(filled.kinds[:, :-1])
        return Batch(
            tokens=filled.ids[:, :-1] * ~(is_kind(kinds, TokenKind.IMAGE) | targets.hidden),
            kinds=kinds,
            positions=np.ascontiguousarray(filled.positions[:, :-1]),
            **targets._asdict(),
            dataset=filled.draws["dataset"].astype(np.int32),
            redrawn=filled.redrawn.astype(np.int32),
            **self._cut_patches(filled),
        )

    def trace(self, step: int, rows: range) -> list[Provenance]:
        """What the rows of a step's batch are made of; arguments and errors as for ``batch``."""
        filled = self._filled(self._samples(step, rows))
        tokens = np.count_nonzero(filled.kinds[:, :-1], axis=1).tolist()
        targets = np.count_nonzero(filled.targets().target_kinds, axis=1).tolist()
        found = []
        for at, row in enumerate(rows):
            sampled = self._sampler.datasets[int(filled.draws["dataset"][at])]
            index, group = sampled.index, int(filled.draws["group"][at])
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
                    patches=int(filled.patches[at]),
                    hides_actions=bool(filled.draws["hide"][at]),
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
        rows = _Rows(samples, self._context)
        drawn = np.arange(len(samples))
        while len(drawn):
            rows.draws[drawn] = self._sampler.draw(samples[drawn], rows.attempts[drawn])
            self._fill(rows, drawn)
            rows.patches[drawn] = np.count_nonzero(is_kind(rows.kinds[drawn, :-1], TokenKind.IMAGE), axis=1)
            counts = rows.patches.reshape(-1, self._group_rows)
            full = np.flatnonzero(counts.sum(axis=1) > self.patch_slots)
            last = self._group_rows - 1 - np.argmax(counts[full, ::-1] > 0, axis=1)
            drawn = full * self._group_rows + last
            rows.redrawn[drawn] = np.where(rows.attempts[drawn] == 0, rows.draws["dataset"][drawn], rows.redrawn[drawn])
            rows.attempts[drawn] += 1
            if rows.attempts.max(initial=0) >= _ATTEMPTS:
                raise ConfigError(
                    f"input.patch_slots: {self.patch_slots} are too few for the images of {self._group_rows} windows "
                    f"of {self._context} tokens; raise it, or leave it out"
                )
            rows.prompt_tokens[drawn], rows.cut_action[drawn] = 0, False
            for row in drawn.tolist():
                rows.clear(row)
        return rows

    def _needed_slots(self) -> int:
        if not any(sampled.dataset.described.has_images for sampled in self._sampler.datasets.values()):
            return _SLOTS
        groups = -(-_TRIED // self._group_rows)
        rows = self._filled(np.arange(groups * self._group_rows))
        largest = int(rows.patches.reshape(groups, self._group_rows).sum(axis=1).max())
        wanted = max(self._context, largest * 9 // 8)
        return min(-(-wanted // _SLOTS) * _SLOTS, self.patch_slots)

    # --- filling ---------------------------------------------------------------------------------------------------

    def _fill(self, rows: _Rows, numbers: np.ndarray) -> None:
        """Puts the tokens of what was drawn into the rows of these numbers."""
        draws = rows.draws
        drawn = (draws[name][numbers].tolist() for name in ("dataset", "window", "prompt_tokens"))
        for row, dataset, (shard, first, stop, skip), prompt_tokens in zip(numbers.tolist(), *drawn, strict=True):
            sampled = self._sampler.datasets[dataset]
            if sampled.index is not None:
                column = self._fill_prompt(rows, row, prompt_tokens) if prompt_tokens else 0
                views = self._shards.read(shard, first, stop)
                if self._aligned:
                    skip = _step_of(views[0], skip)
                self._copy(rows, row, column, self._context + 1, shard, first, skip, views)
            elif sampled.dataset.pairs is None:
                views = self._shards.read(shard, first, stop)
                skip = int(below(float(draws["start"][row]), len(views[0].tokens)))
                self._copy(rows, row, 0, self._context + 1, shard, first, skip, views)
            else:
                self._fill_pairs(rows, row, sampled, sampled.dataset.pairs)

    def _fill_prompt(self, rows: _Rows, row: int, tokens: int) -> int:
        """Puts a prompt of at most ``tokens`` tokens at the beginning of a row, and returns its length.

        With ``align: step`` it has whole steps: from the beginning of the drawn token's step on or, if the prompt is
        the end of its episode, from the next step on. A step that is longer than the prompt is cut.
        """
        draws = rows.draws
        shard, first, stop, skip = draws["prompt"][row].item()
        views = self._shards.read(shard, first, stop)
        if self._aligned and not draws["prompt_end"][row]:
            skip = _step_of(views[0], skip)
        elif self._aligned:
            later = int(np.searchsorted(views[0].step_begin, skip))
            if later < len(views[0].step_begin):
                skip = int(views[0].step_begin[later])
            elif len(views) > 1:
                first, skip, views = first + 1, 0, views[1:]
        # One token more tells whether the prompt ends inside a step or an action.
        wanted = tokens + int(self._aligned or draws["hide"][row])
        end = self._copy(rows, row, 0, wanted, shard, first, skip, views)
        length = min(end, tokens)
        if self._aligned and end > tokens:
            length = _last_step(rows.spans[row], tokens) or tokens
        if length < end:
            rows.cut_action[row] = is_action(rows.kinds[row, length - 1 : length + 1]).all()
            rows.clear(row, length)
        rows.prompt_tokens[row] = length
        return length

    def _fill_pairs(self, rows: _Rows, row: int, sampled: SampledDataset, pairs: int) -> None:
        """Fills a row with distinct documents, ``pairs`` of them if there are so many, padded or cropped at a random
        place (Gato, section 2.3: five question-answer pairs)."""
        lanes = np.array([Lane.CROP, *range(PAIR_LANES, PAIR_LANES + pairs)])
        crop, *u = self._sampler.rng.uniform(int(rows.samples[row]), int(rows.attempts[row]), lanes).tolist()
        begin, left = int(rows.draws["candidates_begin"][row]), int(rows.draws["candidates"][row])
        taken: list[tuple[int, int]] = []
        """First record, among those of the split, and number of records of each document."""
        spans: list[RecordSpan] = []
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

    def _document(self, shard: int, record: int) -> list[RecordSpan]:
        """All records of the document that a record belongs to."""
        views = self._shards.read(shard, record, record + 1)
        first = record - views[0].chunk
        if views[0].chunks > 1:
            views = self._shards.read(shard, first, first + views[0].chunks)
        return [RecordSpan(0, 0, len(view.tokens), shard, number, view) for number, view in enumerate(views, first)]

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
            rows.put(row, RecordSpan(column, skip, take, shard, record, view))
            column, skip = column + take, 0
            if column == stop or view.chunk + 1 == view.chunks:
                break
        return column

    # --- patches ---------------------------------------------------------------------------------------------------

    def _cut_patches(self, rows: _Rows) -> dict[str, np.ndarray]:
        """The patches that the rows show, as the fields of ``Batch``.

        In training a patch takes a random row and column of the position tables from the intervals of its place in the
        image, in evaluation their mean (Gato, appendix C.3).
        """
        groups, slots = len(rows.samples) // self._group_rows, self.patch_slots
        pixels = np.zeros((groups, slots, PATCH, PATCH, 3), np.uint8)
        token = np.full((groups, slots), NO_TOKEN, np.int32)
        low = np.zeros((2, groups, slots), np.int64)
        size = np.ones((2, groups, slots), np.int64)
        used = [0] * groups
        for row in np.flatnonzero(rows.patches).tolist():
            group, in_group = divmod(row, self._group_rows)
            for column, shown, places in self._shown(rows.spans[row]):
                begin = used[group]
                used[group] = end = begin + len(shown)
                pixels[group, begin:end] = shown
                token[group, begin:end] = in_group * self._context + column + np.arange(len(shown))
                low[:, group, begin:end], size[:, group, begin:end] = places
        if self._training and any(used):
            taken = np.nonzero(token >= 0)
            in_groups, columns = np.divmod(token[taken].astype(np.int64), self._context)
            numbers = taken[0] * self._group_rows + in_groups
            for axis in (0, 1):
                lanes = PATCH_LANES + 2 * columns + axis
                u = self._sampler.rng.uniform(rows.samples[numbers], rows.attempts[numbers], lanes)
                low[axis][taken] += below(u, size[axis][taken])
        low = low.astype(np.uint8)
        return {"patches": pixels, "patch_token": token, "patch_row": low[0], "patch_column": low[1]}

    def _shown(self, spans: list[RecordSpan]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The patches of each image that a row shows: the first one's column, their pixels, and ``_intervals``."""
        for span in spans:
            stop = span.skip + min(span.take, self._context - span.column)
            try:
                for image in span.view.images(span.skip, stop):
                    first, end = max(span.skip - image.token, 0), stop - image.token
                    shown = patches(decode(image.data))[first:end]
                    grid = image.height // PATCH, image.width // PATCH
                    if first + len(shown) != min(grid[0] * grid[1], end):
                        raise ValueError(f"an image does not have {image.height} x {image.width} pixels")
                    places = _intervals(grid, self._training)[:, :, first:end]
                    yield span.column + max(image.token - span.skip, 0), shown, places
            except (RejectedError, ValueError) as error:
                raise self._shards.damaged(span.shard, span.record, span.record + 1, error) from None


@lru_cache(maxsize=1024)
def _intervals(grid: tuple[int, int], training: bool) -> np.ndarray:
    """For the patches of an image in raster order, the first row of the position table that each may take and the
    number of such rows: int64 (2, axes, patches)."""

    def along(side: int) -> np.ndarray:
        if not training:
            return np.stack([evaluation_positions(side), np.ones(side, np.int64)])
        low, high = position_intervals(side).T
        return np.stack([low, np.maximum(high - low, 1)])

    height, width = grid
    return np.stack([np.repeat(along(height), width, axis=1), np.tile(along(width), height)], axis=1)


def _step_of(view: RecordView, token: int) -> int:
    """The token at which the step of a token begins."""
    return int(view.step_begin[np.searchsorted(view.step_begin, token, "right") - 1])


def _last_step(spans: list[RecordSpan], tokens: int) -> int:
    """The last column up to ``tokens`` at which a step begins; 0 if the first step is the only one."""
    for span in reversed(spans):
        columns = span.view.step_begin.astype(np.int64) - span.skip + span.column
        columns = columns[(columns >= span.column) & (columns <= min(tokens, span.column + span.take))]
        if len(columns):
            return int(columns[-1])
    return 0
