"""The windows of a run: sample i is a function of (seed, i) alone, in whatever step, process or order it is made.

Legend: B rows, L tokens of a window, G groups of rows, P patch slots of a group.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from gatokit.loader.batch import Batch, is_action, is_kind
from gatokit.loader.documents import DocumentFiller
from gatokit.loader.mixture import Mixture
from gatokit.loader.patches import PatchCutter, SlotShares
from gatokit.loader.provenance import Provenance, segments_of
from gatokit.loader.records import DamagedRecordError, OpenShards, RecordSpan, RecordView
from gatokit.loader.rows import Rows
from gatokit.loader.sampler import Sampler, sample_numbers, too_long
from gatokit.schemas.errors import ConfigError, DataError
from gatokit.schemas.index import TRAIN
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import NO_POSITION, OBSERVATION_POSITIONS, TokenKind

_ATTEMPTS = 64
"""Draws of a row; if its group's patch slots are still full then, they are too few."""
_TRIED = 256
"""Windows of each dataset whose patches decide how many slots a group gets by default."""


class Windows:
    """Makes the batches of a run from a mixture. Threads may share it, and it can be pickled."""

    patch_slots: int
    """Slots of a group: those of the config. If it gives none, or with ``dataset``, the fewest, but at least the tokens
    of one window, with which no dataset has more than ``MOST_REDRAWN`` of its windows drawn again."""
    restricted: bool
    """Whether some tokens are seen by some later ones alone (``Batch.private``)."""

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
        self._skipped = config.input.skip if split == TRAIN else ()
        self._sampler = sampler = Sampler(mixture, config, split, dataset)
        self._shards = OpenShards(
            [shard for item in mixture.datasets for shard in item.shards], config.input.open_shards
        )
        holds_documents = any(sampled.index is None for sampled in sampler.datasets.values())
        self.restricted = config.input.hide_actions > 0 or (config.input.pack and holds_documents)
        self._documents = DocumentFiller(sampler.rng, self._shards, config.context, config.input.pack)
        if patch_slots is None and dataset is None:
            patch_slots = config.input.patch_slots
        self.patch_slots = self._slot_shares().slots(config.context) if patch_slots is None else patch_slots
        self._cutter = PatchCutter(
            sampler.rng, self._shards, config.context, self._group_rows, self.patch_slots, training
        )

    def __reduce__(self) -> tuple[object, ...]:
        windows = partial(Windows, split=self._split, dataset=self._dataset, training=self._training)
        return partial(windows, patch_slots=self.patch_slots), (self._mixture, self._config)

    def redrawn(self) -> dict[str, float]:
        """The share of its windows that is expected to be drawn again because the patch slots are full, by dataset,
        where it is not 0."""
        shares = self._slot_shares().redrawn(self.patch_slots)
        return {self._mixture.names[number]: share for number, share in shares.items()}

    def batch(self, step: int, rows: range) -> Batch:
        """``rows`` of the batch of a step, from 0; sample i is ``step * config.batch + row``, without those of
        ``input.skip``.

        Raises ValueError if the rows are not whole patch groups, DataError if a shard cannot be opened or all that is
        drawn for a row is damaged, ConfigError if the patch slots are too few.
        """
        filled, patches = self._made(step, rows)
        targets = filled.targets()
        kinds = np.ascontiguousarray(filled.kinds[:, :-1])
        return Batch(
            tokens=filled.ids[:, :-1] * ~(is_kind(kinds, TokenKind.IMAGE) | targets.hidden),
            kinds=kinds,
            positions=np.ascontiguousarray(filled.positions[:, :-1]),
            **targets._asdict(),
            dataset=filled.draws["dataset"].astype(np.int32),
            redrawn=filled.redrawn.astype(np.int32),
            unusable=filled.unusable,
            **patches,
        )

    def trace(self, step: int, rows: range) -> list[Provenance]:
        """What the rows of a step's batch are made of; arguments and errors as for ``batch``."""
        filled, _ = self._made(step, rows)
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

    def _made(self, step: int, rows: range) -> tuple[Rows, dict[str, np.ndarray]]:
        """The rows of a step, and their patches as fields of ``Batch``."""
        if rows.step != 1 or rows.start % self._group_rows or rows.stop % self._group_rows:
            raise ValueError(f"{rows} are no whole groups of {self._group_rows} rows")
        filled = self._filled(sample_numbers(np.arange(rows.start, rows.stop) + step * self._batch, self._skipped))
        patches, damaged = self._cutter.cut(filled)
        while damaged:
            self._draw(filled, self._again(filled, damaged))
            patches, damaged = self._cutter.cut(filled)
        return filled, patches

    # --- drawing ---------------------------------------------------------------------------------------------------

    def _filled(self, samples: np.ndarray) -> Rows:
        """Draws and fills the rows of these samples, int64 (B,)."""
        rows = Rows(samples, self._context)
        self._draw(rows, np.arange(len(samples)))
        return rows

    def _draw(self, rows: Rows, drawn: np.ndarray) -> None:
        """Draws and fills the rows of these numbers.

        A row of which a record is unusable is drawn again. As long as the patches of a group are more than its slots,
        its last row with any is drawn again.
        """
        while len(drawn):
            rows.draws[drawn] = self._sampler.draw(rows.samples[drawn], rows.attempts[drawn])
            unusable = self._again(rows, self._fill(rows, drawn))
            rows.patches[drawn] = np.count_nonzero(is_kind(rows.kinds[drawn, :-1], TokenKind.IMAGE), axis=1)
            counts = rows.patches.reshape(-1, self._group_rows)
            full = np.flatnonzero(counts.sum(axis=1) > self.patch_slots)
            last = self._group_rows - 1 - np.argmax(counts[full, ::-1] > 0, axis=1)
            drawn = full * self._group_rows + last
            rows.redrawn[drawn] = np.where(rows.redrawn[drawn] < 0, rows.draws["dataset"][drawn], rows.redrawn[drawn])
            too_few = ConfigError(
                f"input.patch_slots: {self.patch_slots} are too few for the images of {self._group_rows} windows of "
                f"{self._context} tokens; raise it, or leave it out"
            )
            self._clear(rows, drawn, too_few)
            drawn = np.union1d(drawn, unusable)

    def _again(self, rows: Rows, damaged: Mapping[int, DataError]) -> np.ndarray:
        """Clears rows that cannot be used, and returns their numbers."""
        for row, error in damaged.items():
            rows.unusable[row] += 1
            rows.patches[row] = 0
            self._clear(rows, np.array([row]), error)
        return np.array([*damaged], np.int64)

    def _clear(self, rows: Rows, numbers: np.ndarray, error: DataError | ConfigError) -> None:
        """Prepares rows for their next attempt. Raises ``error`` if one had all of its attempts."""
        rows.attempts[numbers] += 1
        if rows.attempts[numbers].max(initial=0) >= _ATTEMPTS:
            raise error
        rows.prompt_tokens[numbers], rows.cut_action[numbers] = 0, False
        for row in numbers.tolist():
            rows.clear(row)

    def _slot_shares(self) -> SlotShares:
        """How full slots get, by windows of each dataset alone that are drawn with seed 0."""
        tried = [np.zeros(0, np.int64)] * len(self._mixture.datasets)
        config = self._config.model_copy(update={"seed": 0})
        samples = np.arange(-(-_TRIED // self._group_rows) * self._group_rows)
        for number, sampled in self._sampler.datasets.items():
            if sampled.dataset.described.has_images:
                alone = partial(Windows, split=self._split, dataset=sampled.dataset.name, training=False)
                windows = alone(self._mixture, config, patch_slots=self._group_rows * self._context)
                tried[number] = windows._filled(samples).patches
        return SlotShares(tried, self._sampler.bounds, self._group_rows)

    # --- filling ---------------------------------------------------------------------------------------------------

    def _fill(self, rows: Rows, numbers: np.ndarray) -> dict[int, DataError]:
        """Puts the tokens of what was drawn into the rows of these numbers; returns those that cannot be used."""
        unusable: dict[int, DataError] = {}
        draws = rows.draws
        drawn = (draws[name][numbers].tolist() for name in ("dataset", "window", "prompt_tokens"))
        for row, dataset, (shard, first, stop, skip), prompt_tokens in zip(numbers.tolist(), *drawn, strict=True):
            sampled = self._sampler.datasets[dataset]
            try:
                if sampled.index is None:
                    self._documents.fill(rows, row, sampled)
                    continue
                column = self._fill_prompt(rows, row, prompt_tokens) if prompt_tokens else 0
                views = self._shards.read(shard, first, stop)
                if self._aligned:
                    skip = _step_of(views[0], skip)
                rows.copy(row, range(column, self._context + 1), self._shards, (shard, first, skip), views)
            except DamagedRecordError as error:
                unusable[row] = error
        positions = rows.positions[numbers]
        longest = np.max(positions, axis=1, initial=0, where=positions != NO_POSITION)
        for row in numbers[longest >= OBSERVATION_POSITIONS].tolist():
            name = self._sampler.datasets[int(draws["dataset"][row])].dataset.name
            unusable[row] = too_long(name, int(longest[numbers == row][0]) + 1)
        return unusable

    def _fill_prompt(self, rows: Rows, row: int, tokens: int) -> int:
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
        end = rows.copy(row, range(wanted), self._shards, (shard, first, skip), views)
        length = min(end, tokens)
        if self._aligned and end > tokens:
            length = _last_step(rows.spans[row], tokens) or tokens
        if length < end:
            rows.cut_action[row] = is_action(rows.kinds[row, length - 1 : length + 1]).all()
            rows.clear(row, length)
        rows.prompt_tokens[row] = length
        return length


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
