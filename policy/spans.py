"""Spans: consecutive tokens of one row (an episode or a document that a policy reads), batches made of them, and the
demonstration of a task, which a policy reads before it acts (Gato, section 2.4).

Legend: T tokens of a span, P patches, B rows, L tokens of a batch.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gatokit.loader.batch import Batch, empty_batch
from gatokit.schemas.errors import DataError
from gatokit.schemas.policy import Prompt
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import NO_POSITION, PATCH, PlacedImage, TokenKind, TokenSequence
from gatokit.storage.array_record import ArrayRecordFile
from gatokit.tokenizers.image_codec import decode
from gatokit.tokenizers.patches import evaluation_positions, patches

_PRIVATE_NUMBERS = 65_535
"""The numbers of private tokens are 1 to this, and then start again at 1."""


class Patches(NamedTuple):
    """Image patches: ``pixels`` uint8 (P, 16, 16, 3), and int64 (P,) each: the token in the span, and the rows of the
    tables of patch rows and patch columns."""

    pixels: np.ndarray
    token: np.ndarray
    row: np.ndarray
    column: np.ndarray

    @staticmethod
    def of(images: Sequence[PlacedImage]) -> "Patches":
        """The patches of images, at the means of their intervals (Gato, appendix C.3); RejectedError ``bad_image``."""
        if not images:
            empty = np.zeros(0, np.int64)
            return Patches(np.zeros((0, PATCH, PATCH, 3), np.uint8), empty, empty, empty)
        arrays = []
        for placed in images:
            rows, columns = placed.grid
            pixels = patches(decode(placed.image.data))
            row, column = evaluation_positions(rows), evaluation_positions(columns)
            token = placed.token + np.arange(len(pixels))
            arrays.append((pixels, token, np.repeat(row, columns), np.tile(column, rows)))
        return Patches(*map(np.concatenate, zip(*arrays, strict=True)))


class Span(NamedTuple):
    """Consecutive tokens of one row; the arrays (T,) are those of ``Batch``."""

    tokens: np.ndarray
    kinds: np.ndarray
    positions: np.ndarray
    hidden: np.ndarray
    private: np.ndarray
    patches: Patches

    @property
    def size(self) -> int:
        """T."""
        return len(self.tokens)

    @staticmethod
    def of(sequence: TokenSequence, begin: int = 0, end: int | None = None) -> "Span":
        """Tokens [``begin``, ``end``) of a sequence, visible to all later tokens."""
        end = len(sequence.tokens) if end is None else end
        images = [image._replace(token=image.token - begin) for image in sequence.images if begin <= image.token < end]
        return Span(
            tokens=sequence.tokens[begin:end],
            kinds=sequence.kinds[begin:end],
            positions=sequence.positions[begin:end],
            hidden=np.zeros(end - begin, bool),
            private=np.zeros(end - begin, np.uint16),
            patches=Patches.of(images),
        )

    @staticmethod
    def of_actions(ids: np.ndarray, kinds: np.ndarray, private: int) -> "Span":
        """The action tokens of one time step.

        With ``private`` n > 0 they are hidden as in training windows of hidden actions: the last one is the learned
        vector, and the others are private to this step, number n (``loader/batch.py``).
        """
        count = len(ids)
        span = Span(
            tokens=ids.astype(np.uint16),
            kinds=kinds,
            positions=np.full(count, NO_POSITION, np.uint16),
            hidden=np.zeros(count, bool),
            private=np.zeros(count, np.uint16),
            patches=Patches.of([]),
        )
        if private and count:
            span.private[:-1] = private
            span.hidden[-1] = True
        return span

    def part(self, begin: int, end: int) -> "Span":
        """Tokens [``begin``, ``end``)."""
        inside = (self.patches.token >= begin) & (self.patches.token < end)
        pixels, token, row, column = (array[inside] for array in self.patches)
        patches = Patches(pixels, token - begin, row, column)
        return Span._make([*(array[begin:end] for array in self[:-1]), patches])


_NO_TOKENS = Span.of_actions(np.zeros(0, np.uint16), np.zeros(0, np.uint8), 0)


def concatenate(spans: Sequence[Span]) -> Span:
    """Spans one after the other, as one."""
    spans = spans or [_NO_TOKENS]
    if len(spans) == 1:
        return spans[0]
    begins = np.cumsum([0, *(span.size for span in spans[:-1])])
    moved = [span.patches._replace(token=span.patches.token + begin) for span, begin in zip(spans, begins, strict=True)]
    patches = Patches(*map(np.concatenate, zip(*moved, strict=True)))
    return Span._make([*map(np.concatenate, zip(*(span[:-1] for span in spans), strict=True)), patches])


def make_batch(spans: Sequence[Span | None], length: int, slots: int) -> Batch:
    """A batch (B, L) whose rows are the spans, followed by padding; None is a row of padding.

    Each row is a group of its own with ``slots`` patch slots; there are no targets.
    """
    batch = empty_batch(len(spans), length, len(spans), slots)
    for row, span in enumerate(spans):
        if span is None:
            continue
        for name in ("tokens", "kinds", "positions", "hidden", "private"):
            getattr(batch, name)[row, : span.size] = getattr(span, name)
        count = len(span.patches.token)
        batch.patches[row, :count], batch.patch_token[row, :count] = span.patches.pixels, span.patches.token
        batch.patch_row[row, :count], batch.patch_column[row, :count] = span.patches.row, span.patches.column
    # The ids of image tokens and of hidden actions are never looked up.
    batch.tokens[(batch.kinds == TokenKind.IMAGE) | batch.hidden] = 0
    return batch


def private_number(step: int) -> int:
    """The number of a step's private tokens, 1 or more."""
    return step % _PRIVATE_NUMBERS + 1


def read_prompt(path: Path, prompt: Prompt, tokens: int, action_tokens: int, hide: bool) -> list[Span]:
    """The first whole steps of a demonstration that have at most ``tokens`` tokens together, one span each.

    ``path`` is the file of demonstrations, ``action_tokens`` the number at the end of every step; with ``hide`` these
    are hidden (``Span.of_actions``). Raises DataError if the file is missing or damaged.
    """
    steps: list[Span] = []
    if not tokens:
        return steps
    if not path.exists():
        raise DataError(
            f"{path} is missing, which holds the demonstrations: take the policy's folder of the run, or play without "
            "a prompt"
        )
    left = tokens
    for sequence in _read_sequences(path, prompt):
        for begin, end in pairwise([*sequence.step_begin.tolist(), len(sequence.tokens)]):
            if end - begin > left:
                return steps
            left -= end - begin
            action = end - action_tokens
            number = private_number(len(steps)) if hide else 0
            actions = Span.of_actions(sequence.tokens[action:end], sequence.kinds[action:end], number)
            steps.append(concatenate([Span.of(sequence, begin, action), actions]))
    return steps


def _read_sequences(path: Path, prompt: Prompt) -> Iterator[TokenSequence]:
    """The tokens of each record of the demonstration."""
    with ArrayRecordFile(path) as file:
        for ordinal in range(prompt.first_record, prompt.first_record + prompt.records):
            (data,) = file.read(ordinal, ordinal + 1)
            try:
                yield Record.from_bytes(data).sequence
            except ValueError as error:
                raise DataError(
                    f"{path}, record {ordinal}: {error}; take the policy's folder of the run again"
                ) from None
