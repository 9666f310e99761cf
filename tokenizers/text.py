"""Text ↔ SentencePiece ids (Gato, section 2.1: 32,000 subwords)."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from gatokit.schemas.errors import ConfigError
from gatokit.schemas.manifest import digest
from gatokit.schemas.tokens import TEXT_IDS

_LONG = 1 << 16
"""Characters of a text from which on it is encoded in pieces: SentencePiece takes 30 bytes of memory a byte."""
_CUT = re.compile("(?<=[0-9A-Za-z]) (?=[0-9A-Za-z])")
"""Where a text may be divided: at a single space between letters or digits, which no normalization changes."""
_NO_NORMALIZATION = b"\x1a\x10\n\x08identity\x12\x00\x18\x00\x20\x00"
"""The serialized NormalizerSpec of a model that takes every text as it is, with all spaces and no other in front."""
SPACE = "\u2581"
"""SentencePiece's sign for a space."""
_LARGEST_MODEL = 64 << 20
"""Bytes of a model; one of 32,000 pieces has less than two million."""
_SHORT = 256
"""Mean bytes of a text from which on one call for several texts is faster."""


class TextTokenizer:
    """A SentencePiece model that turns text into uint16 ids in [0, ``pieces``) and back.

    A tokenizer made by ``load`` is pickled as its path, which is read again when it is unpickled; one made from bytes
    is pickled with the model.
    """

    def __init__(self, model: bytes, *, source: str = "the vocabulary") -> None:
        """Raises ConfigError, naming ``source``, if ``model`` is no SentencePiece model or has above 32,000 pieces."""
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(model) and self._processor.LoadFromSerializedProto(model)
            names = list(map(self._processor.id_to_piece, range(self._processor.vocab_size() if loaded else 0)))
        except (RuntimeError, UnicodeDecodeError):  # the second, if a piece is not UTF-8
            loaded = False
        if not loaded:
            raise ConfigError(f"{source} is no SentencePiece model: `gatokit vocab` trains one")
        self.pieces: int = self._processor.vocab_size()
        """Number of ids of this model."""
        if self.pieces > TEXT_IDS:
            counted = f"{self.pieces} pieces and text ids end at {TEXT_IDS}"
            raise ConfigError(f"{source} has {counted}: train one with fewer pieces")
        end: int = self._processor.eos_id()
        self.end_id = None if end < 0 else end
        """Id of the piece that ends a document (``</s>``); None if the model has none."""
        has_bytes = any(map(self._processor.is_byte, range(self.pieces)))
        self.unknown_id: int | None = None if has_bytes else self._processor.unk_id()
        """Id of what the model has no piece for; None if it has a piece for every byte, so that nothing is unknown."""
        self.model = model
        """The bytes of the model."""
        self.digest = digest(model)
        """Their BLAKE2b."""
        self._path: str | None = None
        self._can_divide = self._divides_at_spaces(names)

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """The tokenizer whose model is the local file ``path``; ConfigError if it cannot be read or is no model."""
        try:
            with open(path, "rb") as file:
                model = file.read(_LARGEST_MODEL + 1)
        except OSError as error:
            raise ConfigError(f"the vocabulary {path} cannot be read: {error.strerror}") from error
        if len(model) > _LARGEST_MODEL:
            raise ConfigError(f"{path} is no SentencePiece model: it has more than {_LARGEST_MODEL:,} bytes")
        tokenizer = cls(model, source=str(path))
        tokenizer._path = str(Path(path).absolute())
        return tokenizer

    def encode(self, text: str) -> np.ndarray:
        """Ids of ``text``, uint16 (T,); UnicodeEncodeError if it holds lone surrogates.

        A long text is encoded in pieces, and gets the ids that it has as a whole. A part without any place to divide it
        is encoded whole.
        """
        if len(text) <= _LONG:
            return self._ids(text.encode())
        found, begin = [], 0
        while begin < len(text):
            end = self._cut(text, begin + _LONG)
            found.append(self._ids(text[begin:end].encode()))
            begin = end
        return np.concatenate(found)

    def _cut(self, text: str, begin: int) -> int:
        """Where to divide a text, at ``begin`` or behind it: at a space if one is near, else between two characters
        that no piece joins. The end of the text if there is no such place."""
        for near in range(begin, len(text), _LONG):
            if self._can_divide and (space := _CUT.search(text, near, near + _LONG + 1)):
                return space.start()
            if (joined := self._joined) is None:
                continue
            for place in range(near, min(near + _LONG, len(text))):
                pair = text[place - 1 : place + 1]
                if pair not in joined and " " not in pair and SPACE not in pair:
                    return place
        return len(text)

    @cached_property
    def _joined(self) -> frozenset[str] | None:
        """All pairs of neighbouring characters in the model's pieces. Where a text has another pair, no piece reaches
        from one side to the other, so each side has the ids that it has alone. None if the model normalizes texts,
        joins unknown characters, or takes words whole."""
        pieces = [self._processor.id_to_piece(id_) for id_ in range(self.pieces)]
        letter = next((piece for piece in pieces if len(piece) == 1 and piece.isalnum()), None)
        if self.unknown_id is not None or letter is None or _NO_NORMALIZATION not in self.model:
            return None
        parts = [self._ids(part.encode()) for part in (letter, "\U0010fffd")]
        if not np.array_equal(self._ids(f"{letter}\U0010fffd".encode()), np.concatenate(parts)):
            return None
        return frozenset(piece[at : at + 2] for piece in pieces for at in range(len(piece) - 1))

    def _ids(self, data: bytes) -> np.ndarray:
        return np.array(self._processor.encode(data, out_type=int), np.uint16)

    def _divides_at_spaces(self, pieces: Sequence[str]) -> bool:
        """Whether the ids of a text are those of its parts, if each part but the first begins with a space.

        Then no piece reaches over the beginning of a word, a space is a piece of its own, and the model puts no other
        space in front of a text that begins with one.
        """
        if any(SPACE in piece.lstrip(SPACE) or " " in piece for piece in pieces):
            return False
        parts = [self._ids(part) for part in (b"a", b" b")]
        is_known = self._processor.piece_to_id(SPACE) != self._processor.unk_id()
        return is_known and np.array_equal(self._ids(b"a b"), np.concatenate(parts))

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of every text, uint16 (T,) each; errors as in ``encode``."""
        if any(len(text) > _LONG for text in texts):
            return [self.encode(text) for text in texts]
        encoded = [text.encode() for text in texts]
        if sum(map(len, encoded)) < _SHORT * len(encoded):
            # A call with several texts starts a thread, which costs more than tokenizing captions.
            return [self._ids(data) for data in encoded]
        # One thread, because there is a worker process for each core.
        return [
            np.fromiter(ids, np.uint16, len(ids))
            for ids in self._processor.encode(encoded, out_type=int, num_threads=1)
        ]

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids (T,); ValueError if one is no piece of the model."""
        if len(ids) and np.max(ids) >= self.pieces:
            raise ValueError(f"text id {np.max(ids)} is outside the vocabulary's {self.pieces} pieces")
        text: str = self._processor.decode(np.asarray(ids).tolist()) if len(ids) else ""
        # A model that was trained on hardly any space has no piece for it: then its sign is written as bytes.
        return text.replace(SPACE, " ")

    def piece(self, id_: int) -> str:
        """The text of one id, spaces included, or the name of a byte beyond ASCII (``<0xC3>``) or of a control piece
        (``</s>``)."""
        named: str = self._processor.id_to_piece(id_)
        if self._processor.is_byte(id_):
            byte = int(named[1:-1], 16)
            return chr(byte) if byte < 128 else named
        return named.replace(SPACE, " ")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            return TextTokenizer, (self.model,)
        return _load_again, (self._path, self.digest)


def text_of_codes(codes: np.ndarray) -> str:
    """The text whose codes of characters are integers (N,) with zeros behind them: bytes of UTF-8 or, if they are no
    such bytes, code points. ValueError if they are neither."""
    numbers = np.trim_zeros(np.asarray(codes).ravel(), "b").tolist()
    try:
        return bytes(numbers).decode()
    except ValueError:
        text = "".join(map(chr, numbers))
    text.encode()  # raises UnicodeEncodeError, a ValueError, for surrogates
    return text


def _load_again(path: str, expected: str) -> TextTokenizer:
    tokenizer = TextTokenizer.load(path)
    if tokenizer.digest != expected:
        raise ConfigError(f"the vocabulary {path} changed while it was in use")
    return tokenizer
