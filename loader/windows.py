"""The windows of a run: sample i is a function of (seed, i) alone, whatever the step, process or order.

Legend: B rows, L tokens of a window, G groups of rows, P patch slots of a group.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatokit.loader import rng as draws
from gatokit.loader.batch import Batch
from gatokit.loader.canvas import Canvas, Part
from gatokit.loader.choices import Choices, Chooser, Source
from gatokit.loader.mixture import Mixture
from gatokit.loader.patches import cut_patches
from gatokit.loader.provenance import Sample, Segment, segments_of
from gatokit.loader.records import Readers
from gatokit.loader.targets import Targets, find_targets
from gatokit.schemas.errors import ConfigError
from gatokit.schemas.index import TRAIN
from gatokit.schemas.run import RunConfig
from gatokit.schemas.tokens import TokenKind

_ATTEMPTS = 64
"""Draws of a row, after which its group's patch slots are too few."""
_TRIED = 512
"""Samples whose patches decide how many slots a group gets."""
_SLOTS = 8
"""Slots come in multiples of this."""


@dataclass
class _Drawn:
    """Rows that are filled and fit their patch slots."""

    samples: np.ndarray
    attempts: np.ndarray
    choices: Choices
    canvas: Canvas
    redrawn: np.ndarray


class Windows:
    """Makes the batches of a run from a mixture; threads may share one, and it travels to other processes.

    ``dataset`` draws from that one alone, for evaluation.
    """

    patch_slots: int
    """Of a group: the config's, or for one dataset alone, or without one in the config, as many as the first windows
    need with an eighth to spare, and as one window can."""

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
        """``split`` is ``train`` or ``held_out``; ``training`` draws the positions of patches; ``patch_slots`` stands
        before the config's.

        ConfigError where the context is too short or there is nothing to draw from.
        """
        self._arguments = mixture, config, split, dataset, training
        self._config, self._mixture, self._training = config, mixture, training
        self._context, self._group_rows = config.context, config.patch_group_rows
        self._key = draws.key(config.seed, split != TRAIN)
        self._chooser = Chooser(
            mixture.datasets, _weights(mixture, split, dataset), split, self._key, config.context, config.input
        )
        _check_context(self._chooser, config)
        self._shards = [shard for item in mixture.datasets for shard in item.shards]
        self._readers = Readers(self._shards, config.input.open_shards)
        if patch_slots is None and dataset is None:
            patch_slots = config.input.patch_slots
        self.patch_slots = self._group_rows * self._context if patch_slots is None else patch_slots
        if patch_slots is None:
            self.patch_slots = self._needed_slots()

    def batch(self, step: int, rows: range) -> Batch:
        """Rows of the global batch of a step; sample i is ``step * config.batch + row``.

        ValueError for rows that are not whole patch groups; DataError where a record is damaged; ConfigError where
        the patch slots are too few.
        """
        drawn = self._drawn(self._samples(step, rows))
        canvas, found = drawn.canvas, self._targets(drawn)
        kinds = np.ascontiguousarray(canvas.kinds[:, :-1])
        tokens = canvas.ids[:, :-1] * ((kinds != TokenKind.IMAGE) & ~found.hidden)
        patches = cut_patches(
            canvas,
            self._readers,
            drawn.samples,
            drawn.attempts,
            self._key,
            group_rows=self._group_rows,
            slots=self.patch_slots,
            context=self._context,
            training=self._training,
        )
        return Batch(
            tokens=tokens,
            kinds=kinds,
            positions=np.ascontiguousarray(canvas.positions[:, :-1]),
            **found._asdict(),
            dataset=drawn.choices.dataset.astype(np.int32),
            redrawn=drawn.redrawn.astype(np.int32),
            **patches._asdict(),
        )

    def trace(self, step: int, rows: range) -> list[Sample]:
        """What the rows of a step's batch are made of; arguments and errors as ``batch``."""
        drawn = self._drawn(self._samples(step, rows))
        targets, images = self._targets(drawn).target_kinds, drawn.canvas.images
        found = []
        for at, row in enumerate(rows):
            parts, prompt = drawn.canvas.parts[at], int(drawn.canvas.prompt[at])
            source = self._chooser.sources[drawn.choices.dataset[at]]
            assert source is not None
            index, group = source.index, int(drawn.choices.group[at])
            found.append(
                Sample(
                    row=row,
                    sample=int(drawn.samples[at]),
                    dataset=source.dataset.name,
                    task=None if index is None else index.task_of(group),
                    agent=None if index is None else index.agents[group],
                    prompt=next(iter(self._segments(part for part in parts if part.column < prompt)), None),
                    segments=self._segments(part for part in parts if part.column >= prompt),
                    tokens=int(np.count_nonzero(drawn.canvas.kinds[at, :-1])),
                    targets=int(np.count_nonzero(targets[at])),
                    patches=int(images[at]),
                    hides_actions=bool(drawn.choices.hide[at]),
                    redraws=int(drawn.attempts[at]),
                )
            )
        return found

    def _segments(self, parts: Iterable[Part]) -> tuple[Segment, ...]:
        return segments_of(parts, self._shards, self._context)

    def _targets(self, drawn: _Drawn) -> Targets:
        canvas = drawn.canvas
        return find_targets(
            canvas.ids,
            canvas.kinds,
            canvas.prompt,
            canvas.cut_action,
            drawn.choices.hide,
        )

    def _samples(self, step: int, rows: range) -> np.ndarray:
        if rows.step != 1 or rows.start % self._group_rows or rows.stop % self._group_rows:
            raise ValueError(f"{rows} are no whole groups of {self._group_rows} rows")
        return np.arange(rows.start, rows.stop) + step * self._config.batch

    def _drawn(self, samples: np.ndarray) -> _Drawn:
        """The samples' rows; where the patches of a group are more than its slots, its last row with any is drawn
        again, until they fit."""
        attempts = np.zeros(len(samples), np.int64)
        choices = self._chooser.choose(samples, attempts)
        canvas = Canvas(len(samples), self._context, self._readers)
        drawn = _Drawn(samples, attempts, choices, canvas, np.full(len(samples), -1))
        self._fill(drawn, np.arange(len(samples)))
        while True:
            images = canvas.images.reshape(-1, self._group_rows)
            full = np.flatnonzero(images.sum(axis=1) > self.patch_slots)
            if not len(full):
                return drawn
            last = self._group_rows - 1 - np.argmax(images[full, ::-1] > 0, axis=1)
            rows = full * self._group_rows + last
            self._draw_again(drawn, rows)

    def _draw_again(self, drawn: _Drawn, rows: np.ndarray) -> None:
        drawn.redrawn[rows] = np.where(drawn.attempts[rows], drawn.redrawn[rows], drawn.choices.dataset[rows])
        drawn.attempts[rows] += 1
        if drawn.attempts[rows].max() >= _ATTEMPTS:
            raise ConfigError(
                f"input.patch_slots: {self.patch_slots} are too few for the pictures of {self._group_rows} windows of "
                f"{self._context} tokens; raise it, or leave it out"
            )
        for row in rows.tolist():
            drawn.canvas.clear(row)
        drawn.choices.put(rows, self._chooser.choose(drawn.samples[rows], drawn.attempts[rows]))
        self._fill(drawn, rows)

    def _fill(self, drawn: _Drawn, rows: np.ndarray) -> None:
        """Puts the tokens of the samples' records into their rows."""
        choices, canvas, snap = drawn.choices, drawn.canvas, self._config.input.align == "step"
        places = np.stack([choices.shard, choices.first, choices.stop, choices.skip], axis=1)[rows].tolist()
        prompts = np.stack(
            [choices.prompt_shard, choices.prompt_first, choices.prompt_stop, choices.prompt_skip], axis=1
        )[rows].tolist()
        prompt_tokens, prompt_end = choices.prompt_tokens[rows].tolist(), choices.prompt_end[rows].tolist()
        hides = choices.hide[rows].tolist()
        episodes, datasets = (choices.group[rows] >= 0).tolist(), choices.dataset[rows].tolist()
        for at, row in enumerate(rows.tolist()):
            source = self._chooser.sources[datasets[at]]
            assert source is not None
            if episodes[at]:
                column = 0
                if prompt_tokens[at]:
                    column = canvas.demonstrate(
                        row, prompt_tokens[at], prompts[at], at_end=prompt_end[at], snap=snap, hide=hides[at]
                    )
                canvas.episode(row, column, places[at], snap)
            elif source.dataset.pairs is None:
                canvas.document(row, float(choices.start[row]), places[at][0], places[at][1])
            else:
                self._pairs(drawn, row, source, source.dataset.pairs)

    def _pairs(self, drawn: _Drawn, row: int, source: Source, pairs: int) -> None:
        """Fills a row with distinct documents of a dataset, ``pairs`` of them where it has so many (Gato, section
        2.3: five question-answer pairs, padded or randomly cropped)."""
        sample, attempt = int(drawn.samples[row]), int(drawn.attempts[row])
        u = draws.uniform(self._key, sample, attempt, np.array([draws.CROP, *range(draws.PAIRS, draws.PAIRS + pairs)]))
        begin, left = int(drawn.choices.among[row]), int(drawn.choices.count[row])
        taken: list[tuple[int, int]] = []
        documents: list[list[Part]] = []
        while left and len(documents) < pairs:
            record = begin + int(draws.below(u[1 + len(documents)], left))
            for first, count in sorted(taken):
                record += count if record >= first else 0
            shard, ordinal = source.locate(record)
            documents.append(drawn.canvas.whole(shard, ordinal))
            taken.append((record - (ordinal - documents[-1][0].record), len(documents[-1])))
            left -= len(documents[-1])
        drawn.canvas.documents(row, documents, float(u[0]))

    def _needed_slots(self) -> int:
        if not self._shows_pictures():
            return _SLOTS
        groups = -(-_TRIED // self._group_rows)
        drawn = self._drawn(np.arange(groups * self._group_rows))
        images = drawn.canvas.images.reshape(groups, self._group_rows)
        wanted = max(self._context, int(images.sum(axis=1).max()) * 9 // 8)
        return min(-(-wanted // _SLOTS) * _SLOTS, self.patch_slots)

    def _shows_pictures(self) -> bool:
        """Whether any dataset has pictures."""
        for source in self._chooser.sources:
            if source is None:
                continue
            described = source.dataset.described
            if described.documents is not None and described.documents.pictures is not None:
                return True
            if any(field.kind == "image" for spec in described.specs.values() for field in spec.fields):
                return True
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (*self._arguments, self.patch_slots)


def _again(
    mixture: Mixture, config: RunConfig, split: str, dataset: str | None, training: bool, patch_slots: int
) -> Windows:
    """The windows that another process had."""
    return Windows(mixture, config, split=split, dataset=dataset, training=training, patch_slots=patch_slots)


def _weights(mixture: Mixture, split: str, dataset: str | None) -> np.ndarray:
    """Share of each of the mixture's datasets; zero for those that are not drawn."""
    if dataset is not None and dataset not in mixture.names:
        raise ConfigError(f"{dataset} is no dataset of this run; there are {', '.join(mixture.names)}")
    weights = mixture.weights * [
        (dataset in (None, item.name)) and item.records(split) > 0 for item in mixture.datasets
    ]
    if not weights.any():
        raise ConfigError(f"{dataset or ', '.join(mixture.names)}: no records of the split {split}")
    return weights / weights.sum()


def _check_context(chooser: Chooser, config: RunConfig) -> None:
    """ConfigError where a window may miss every action of a task: it must hold two steps, or one that begins it."""
    steps, word = (1, "one step") if config.input.align == "step" else (2, "two steps")
    for source in chooser.sources:
        if source is None or source.index is None:
            continue
        index, specs = source.index, source.dataset.specs
        for place, task in enumerate(index.tasks):
            sizes = [field.tokens for field in specs[task].fields]
            begin, end = index.task_begin[place], index.task_begin[place + 1]
            if None in sizes:
                tokens = index.token_end[index.record_begin[end]] - index.token_end[index.record_begin[begin]]
                step = -(-int(tokens) // int(index.steps[begin:end].sum(dtype=np.int64)))
            else:
                step = sum(size for size in sizes if size is not None) + 1
            if steps * step > config.context:
                raise ConfigError(
                    f"context: {config.context} tokens hold less than {word} of {source.dataset.name}, task {task}, "
                    f"which has {step} a step; give at least {steps * step}"
                )
