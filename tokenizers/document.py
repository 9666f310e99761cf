"""A document ↔ its token sequence: images as patches, text as ids, in reading order (Gato, section 2.1).

Legend: T tokens of one document.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gatokit.schemas.document import Document
from gatokit.schemas.errors import RejectedError
from gatokit.schemas.tokens import IMAGE_ID, NO_POSITION, PATCH, EncodedImage, PlacedImage, TokenKind, TokenSequence
from gatokit.tokenizers.text import TextTokenizer

_NO_STEPS = np.empty(0, np.uint32)
_SHORT = 1024
"""Most tokens of a document with images whose kinds are cached, because many documents have the same."""
_TEXT, _IMAGE = int(TokenKind.TEXT), int(TokenKind.IMAGE)


class _Constant:
    """Arrays of any length that hold one value; short ones share their memory and are read-only."""

    def __init__(self, value: int, dtype: type[np.unsignedinteger[Any]]) -> None:
        self._shared = np.full(1 << 12, value, dtype)
        self._shared.flags.writeable = False

    def of(self, length: int) -> np.ndarray:
        """An array (length,)."""
        return self._shared[:length] if length <= len(self._shared) else np.full(length, self._shared[0])


_NO_POSITIONS = _Constant(NO_POSITION, np.uint16)
_IMAGE_IDS = _Constant(IMAGE_ID, np.uint16)
_IMAGE_KINDS, _TEXT_KINDS = _Constant(_IMAGE, np.uint8), _Constant(_TEXT, np.uint8)


def _new_kinds(widths: Iterable[int]) -> np.ndarray:
    """The kinds of texts (positive widths) and images (negative widths)."""
    return np.concatenate([(_IMAGE_KINDS if width < 0 else _TEXT_KINDS).of(abs(width)) for width in widths])


@functools.lru_cache(maxsize=4096)
def _kinds(widths: tuple[int, ...]) -> np.ndarray:
    """The same, as a cached read-only array."""
    kinds = _new_kinds(widths)
    kinds.flags.writeable = False
    return kinds


def patch_count(image: EncodedImage) -> int:
    """Tokens of an image."""
    return image.height // PATCH * (image.width // PATCH)


class DocumentTokenizer:
    """Turns documents into tokens and back. These have no separators, no steps and no local positions."""

    def __init__(self, text: TextTokenizer, end_of_document: bool) -> None:
        """With ``end_of_document`` the vocabulary's end piece, if it has one, ends each document."""
        self._text = text
        self._end = np.array([text.end_id], np.uint16) if end_of_document and text.end_id is not None else None

    def encode(self, documents: Sequence[Document]) -> list[TokenSequence | RejectedError]:
        """The tokens of each document, or why it has none: ``empty`` if nothing is left of it.

        All texts go to SentencePiece in one call. Raises UnicodeEncodeError if a text holds lone surrogates.
        """
        ids = iter(
            self._text.encode_batch([part for item in documents for part in item.parts if isinstance(part, str)])
        )
        return [
            self._sequence(document, [next(ids) if isinstance(part, str) else part for part in document.parts])
            for document in documents
        ]

    def decode(self, sequence: TokenSequence) -> list[str | EncodedImage]:
        """The texts and images of a document, or of consecutive records of it.

        Raises ValueError if kinds, ids and images contradict each other.
        """
        tokens, kinds = sequence.tokens, sequence.kinds
        if not np.isin(kinds, (_TEXT, _IMAGE)).all():
            raise ValueError("the sequence of a document has tokens that are neither text nor image")
        parts: list[str | EncodedImage] = []
        at = 0
        for token, image in (*sequence.images, (len(tokens), None)):
            if token > at:
                parts.append(self._decode_text(tokens[at:token], kinds[at:token], token == len(tokens)))
            if image is not None:
                before, at = at, token + patch_count(image)
                fits = before <= token and at <= len(tokens)
                if not fits or (kinds[token:at] != _IMAGE).any() or (tokens[token:at] != IMAGE_ID).any():
                    raise ValueError(f"the image at token {token} has other tokens than its patches")
                parts.append(image)
        return [part for part in parts if part != ""]

    def _sequence(self, document: Document, parts: list[np.ndarray | EncodedImage]) -> TokenSequence | RejectedError:
        pieces, widths, images, at = [], [], [], 0
        for part in parts:
            if isinstance(part, EncodedImage):
                width = patch_count(part)
                images.append(PlacedImage(at, part))
                pieces.append(_IMAGE_IDS.of(width))
                widths.append(-width)
            else:
                width = len(part)
                pieces.append(part)
                widths.append(width)
            at += width
        if not at:
            return RejectedError("empty", "the vocabulary's normalisation leaves nothing of its text")
        if self._end is not None:
            pieces.append(self._end)
            widths.append(1)
            at += 1
        return TokenSequence(
            tokens=np.concatenate(pieces),
            kinds=_kinds(tuple(widths)) if images and at <= _SHORT else _new_kinds(widths),
            positions=_NO_POSITIONS.of(at),
            step_begin=_NO_STEPS,
            images=images,
        )

    def _decode_text(self, tokens: np.ndarray, kinds: np.ndarray, last: bool) -> str:
        if (kinds != _TEXT).any():
            raise ValueError("the sequence has patches of no image")
        if last and len(tokens) and tokens[-1] == self._text.end_id:
            tokens = tokens[:-1]
        return self._text.decode(tokens)
