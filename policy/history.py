"""What one row of a policy has read: tokens of prompts, observations and its own actions, and batches made of them.

Legend: T tokens of a span, P patches, B rows, L tokens of a batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gatokit.loader.batch import NO_TOKEN, PADDING, Batch
from gatokit.schemas.tokens import NO_POSITION, PATCH, EncodedImage, TokenKind
from gatokit.tokenizers.image_codec import decode
from gatokit.tokenizers.patches import evaluation_positions, patches

PRIVATE_NUMBERS = 65_535
"""Numbers of private tokens are 1 to this, and begin again."""


class Shown(NamedTuple):
    """Patches of pictures: ``pixels`` uint8 (P, 16, 16, 3), and int64 (P,) the token in their span and their rows of
    the tables of patch rows and columns."""

    pixels: np.ndarray
    token: np.ndarray
    row: np.ndarray
    column: np.ndarray

    @staticmethod
    def none() -> "Shown":
        """No patches."""
        empty = np.zeros(0, np.int64)
        return Shown(np.zeros((0, PATCH, PATCH, 3), np.uint8), empty, empty, empty)

    @staticmethod
    def of(image: EncodedImage, token: int) -> "Shown":
        """The patches of a picture whose first one is ``token``, at the means of their intervals (Gato, appendix C.3);
        RejectedError ``bad_image``."""
        pixels = patches(decode(image.data))
        rows, columns = image.height // PATCH, image.width // PATCH
        return Shown(
            pixels,
            token + np.arange(len(pixels)),
            np.repeat(evaluation_positions(rows), columns),
            np.tile(evaluation_positions(columns), rows),
        )


class Span(NamedTuple):
    """Consecutive tokens of one row; the arrays (T,) are those of a batch."""

    tokens: np.ndarray
    kinds: np.ndarray
    positions: np.ndarray
    hidden: np.ndarray
    private: np.ndarray
    shown: Shown

    @property
    def size(self) -> int:
        """T."""
        return len(self.tokens)

    @staticmethod
    def of(tokens: np.ndarray, kinds: np.ndarray, positions: np.ndarray, shown: Shown | None = None) -> "Span":
        """Tokens that everyone sees."""
        return Span(
            tokens,
            kinds,
            positions,
            np.zeros(len(tokens), bool),
            np.zeros(len(tokens), np.uint16),
            Shown.none() if shown is None else shown,
        )

    @staticmethod
    def none() -> "Span":
        """No tokens."""
        return Span.of(np.zeros(0, np.uint16), np.zeros(0, np.uint8), np.zeros(0, np.uint16))

    @staticmethod
    def actions(ids: np.ndarray, kinds: np.ndarray, hide: int) -> "Span":
        """The action tokens of one time step.

        With ``hide`` n > 0 they are seen as windows of hidden actions show them: the last is the learned vector, and
        the others are private to this step, number n (``loader/batch.py``).
        """
        span = Span.of(ids.astype(np.uint16), kinds, np.full(len(ids), NO_POSITION, np.uint16))
        if hide and len(ids):
            span.private[:-1] = hide
            span.hidden[-1] = True
        return span

    def part(self, begin: int, end: int) -> "Span":
        """Tokens [begin, end)."""
        taken = (self.shown.token >= begin) & (self.shown.token < end)
        pixels, token, row, column = (array[taken] for array in self.shown)
        return Span(
            tokens=self.tokens[begin:end],
            kinds=self.kinds[begin:end],
            positions=self.positions[begin:end],
            hidden=self.hidden[begin:end],
            private=self.private[begin:end],
            shown=Shown(pixels, token - begin, row, column),
        )


def shown_pictures(pictures: Sequence[tuple[int, EncodedImage]]) -> Shown:
    """The patches of pictures that begin at tokens of one span."""
    if not pictures:
        return Shown.none()
    found = [Shown.of(image, token) for token, image in pictures]
    return Shown(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def joined(spans: Sequence[Span]) -> Span:
    """Spans one behind the other."""
    if len(spans) == 1:
        return spans[0]
    if not spans:
        return Span.none()
    shown = Shown.none()
    if any(len(span.shown.token) for span in spans):
        begins = np.cumsum([0, *(span.size for span in spans[:-1])])
        pixels, _, row, column = (np.concatenate(arrays) for arrays in zip(*(s.shown for s in spans), strict=True))
        token = np.concatenate([span.shown.token + begin for span, begin in zip(spans, begins, strict=True)])
        shown = Shown(pixels, token, row, column)
    return Span(
        tokens=np.concatenate([span.tokens for span in spans]),
        kinds=np.concatenate([span.kinds for span in spans]),
        positions=np.concatenate([span.positions for span in spans]),
        hidden=np.concatenate([span.hidden for span in spans]),
        private=np.concatenate([span.private for span in spans]),
        shown=shown,
    )


def batch_of(spans: Sequence[Span | None], length: int, slots: int) -> Batch:
    """A batch (B, L) whose rows are the spans, padding behind them; None is a row of padding.

    Each row is a group of its own with ``slots`` patch slots; there are no targets.
    """
    rows = len(spans)
    arrays: dict[str, np.ndarray] = {
        "tokens": np.zeros((rows, length), np.uint16),
        "kinds": np.full((rows, length), PADDING, np.uint8),
        "positions": np.full((rows, length), NO_POSITION, np.uint16),
        "hidden": np.zeros((rows, length), bool),
        "private": np.zeros((rows, length), np.uint16),
    }
    pixels = np.zeros((rows, slots, PATCH, PATCH, 3), np.uint8)
    token = np.full((rows, slots), NO_TOKEN, np.int32)
    places = np.zeros((2, rows, slots), np.uint8)
    for at, span in enumerate(spans):
        if span is None:
            continue
        for name, array in arrays.items():
            array[at, : span.size] = getattr(span, name)
        count = len(span.shown.token)
        pixels[at, :count], token[at, :count] = span.shown.pixels, span.shown.token
        places[0, at, :count], places[1, at, :count] = span.shown.row, span.shown.column
    # An image token is never looked up, and neither is a hidden action.
    arrays["tokens"] *= (arrays["kinds"] != TokenKind.IMAGE) & ~arrays["hidden"]
    empty = np.zeros((rows, length), np.uint8)
    return Batch(
        **arrays,
        targets=empty.astype(np.uint16),
        target_kinds=empty,
        first_action=empty.astype(bool),
        dataset=np.zeros(rows, np.int32),
        redrawn=np.full(rows, -1, np.int32),
        patches=pixels,
        patch_token=token,
        patch_row=places[0],
        patch_column=places[1],
    )
