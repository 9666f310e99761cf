"""Text ↔ SentencePiece ids (Gato, section 2.1: 32,000 subwords)."""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from gatokit.schemas.errors import ConfigError, RejectedError
from gatokit.schemas.manifest import digest
from gatokit.schemas.tokens import TEXT_IDS

_LONG = 1 << 16
"""Characters of a text from which on it is encoded in pieces: SentencePiece takes 44 bytes of memory a byte."""
_LARGEST_PART = 4 << 20
"""Bytes of a part of a text that can be encoded, which takes 180 MiB of memory."""
_CUT = re.compile("(?<=[0-9A-Za-z]) (?=[0-9A-Za-z])")
"""Where a text may be divided: at a single space between letters or digits."""
_NO_SPACE_ADDED = b"\x1a\x02\x18\x00"
"""Behind a model's bytes: its NormalizerSpec (field 3) with add_dummy_prefix (field 3) false."""
_TRAINER, _NORMALIZER = 2, 3
"""Fields of a ModelProto: TrainerSpec, NormalizerSpec."""
_MODEL_TYPE, _SPACE_BEHIND = 3, 24
"""Fields of a TrainerSpec: model_type, treat_whitespace_as_suffix."""
_WORDS = 3
"""The model_type that takes words whole."""
_RULES = 2
"""Field of a NormalizerSpec: precompiled_charsmap."""
_LONGEST_RULE = 64
"""Characters of a rule of normalization; those of NFKC have four."""
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
            self._names = list(map(self._processor.id_to_piece, range(self._processor.vocab_size() if loaded else 0)))
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

        A long text is encoded in parts, and gets the ids that it has as a whole. With one exception: SentencePiece adds
        up a unigram model's scores from the beginning of a text in float32, so that rounding decides between two
        divisions of a word with nearly the same score. Raises RejectedError ``too_large`` if more than 4 MiB of the
        text have no place to divide them.
        """
        if len(text) <= _LONG:
            return self._ids(text.encode())
        found, begin, in_unknown = [], 0, False
        while begin < len(text):
            end = self._cut(text, begin + _LONG)
            data = text[begin:end].encode()
            if len(data) > _LARGEST_PART:
                counted = f"{len(data):,} bytes, which are more than {_LARGEST_PART:,}"
                raise RejectedError("too_large", f"the vocabulary cannot divide a part of the text with {counted}")
            ids = self._ids(data, self._processor if self._gets_space(text, begin, end) else self._inner)
            # Neighbouring unknown characters are one piece.
            is_unknown = [len(ids) > 0 and ids[side] == self.unknown_id for side in (0, -1)]
            found.append(ids[int(in_unknown and is_unknown[0]) :])
            in_unknown = is_unknown[1]
            begin = end
        return np.concatenate(found)

    def _gets_space(self, text: str, begin: int, end: int) -> bool:
        """Whether a part of the text gets the space that the model may add to a text: at the text's own end, and at a
        space where it is divided."""
        if self._trainer.get(_SPACE_BEHIND):
            return text[end : end + 1] in ("", " ")
        return begin == 0 or text[begin] == " "

    def _cut(self, text: str, begin: int) -> int:
        """Where to divide a text, at ``begin`` or behind it: at a space if one is near, else between two characters
        that nothing joins. The end of the text if there is no such place in
        the next 4 MiB."""
        for near in range(begin, min(len(text), begin + _LARGEST_PART), _LONG):
            if self._divides_at_spaces and (space := _CUT.search(text, near, near + _LONG + 1)):
                return space.start()
            if (joined := self._joined) is None:
                continue
            for place in range(near, min(near + _LONG, len(text))):
                pair = text[place - 1 : place + 1]
                if pair not in joined and " " not in pair and SPACE not in pair and self._is_apart(text, place):
                    return place
        return len(text)

    def _is_apart(self, text: str, place: int) -> bool:
        """Whether no rule of normalization and no piece reaches over ``place``, and no space is beside it, after
        normalization too. The pieces hold no such pair before it."""
        assert self._rules is not None
        assert self._joined is not None
        continuing, longest = self._rules
        before, behind = text[place - 1], text[place]
        if before in continuing or behind in continuing:
            return False
        left = self._normalized(before)
        right = self._normalized(text[place - 1 : place + longest])[len(left) :]
        if not left or not right or not {left[-1], right[0]}.isdisjoint((" ", SPACE)):
            return False
        # A symbol of the user's is not normalized.
        return self._joined.isdisjoint(a + b for a in (left[-1], before) for b in (right[0], behind))

    def _normalized(self, text: str) -> str:
        data: bytes = self._inner.normalize(text.encode())
        return data.decode()

    @cached_property
    def _inner(self) -> sentencepiece.SentencePieceProcessor:
        """The model without the space that it adds to every text."""
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(self.model + _NO_SPACE_ADDED)
        return processor

    @cached_property
    def _trainer(self) -> dict[int, Any]:
        return dict(_fields(_message(self.model, _TRAINER)))

    @cached_property
    def _rules(self) -> tuple[frozenset[str], int] | None:
        return _continuing(dict(_fields(_message(self.model, _NORMALIZER))).get(_RULES, b""))

    @cached_property
    def _joined(self) -> frozenset[str] | None:
        """All pairs of neighbouring characters in the model's pieces. Where a text has another pair, no piece reaches
        from one side to the other, so each side has the ids that it has alone. None if the model takes words whole."""
        if self._trainer.get(_MODEL_TYPE) == _WORDS or self._rules is None:
            return None
        return frozenset(piece[at : at + 2] for piece in self._names for at in range(len(piece) - 1))

    def _ids(self, data: bytes, processor: sentencepiece.SentencePieceProcessor | None = None) -> np.ndarray:
        return np.array((processor or self._processor).encode(data, out_type=int), np.uint16)

    @cached_property
    def _divides_at_spaces(self) -> bool:
        """Whether the ids of a text are those of its parts, if each part but the first begins with a space.

        Then no piece reaches over the beginning of a word, a space is a piece of its own that no rule of normalization
        joins to its neighbours, and the model puts no other space in front of a text that begins with one.
        """
        if self._rules is None or " " in self._rules[0]:
            return False
        if any(SPACE in piece.lstrip(SPACE) or " " in piece for piece in self._names):
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


def _message(message: bytes, number: int) -> bytes:
    """The message in a field of a serialized protobuf message; that of several is one behind the other."""
    return b"".join(value for field, value in _fields(message) if field == number)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a serialized protobuf message; values are integers or bytes."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        field, wire = divmod(number(), 8)
        if wire == 0:
            yield field, number()
            continue
        size = {1: 8, 5: 4}.get(wire) or number()
        yield field, message[at : at + size]
        at += size


def _continuing(rules: bytes) -> tuple[frozenset[str], int] | None:
    """The characters that stand behind another in what a rule of normalization replaces, and a space if any rule
    begins with it; and the most characters of a rule, at least 1. None if ``rules`` cannot be followed.

    ``rules`` are a model's precompiled_charsmap: the size of a double-array trie (Darts-clone) in four bytes, the trie
    of what is replaced in UTF-8, and what replaces it.
    """
    if not rules:
        return frozenset(), 1
    units = np.frombuffer(rules, "<u4", int.from_bytes(rules[:4], "little") // 4, 4)
    labels, values = units & 0x800000FF, np.arange(1, 256)
    children = ((units >> 10) << ((units & 0x200) >> 6)).astype(np.int64)
    found, longest = set(), 1
    waiting = [(int(children[0]), b"", 0)]
    seen = set(waiting)
    while waiting:
        base, begun, length = waiting.pop()
        if length == _LONGEST_RULE:
            return None
        places = base ^ values
        for byte in values[labels[np.minimum(places, len(units) - 1)] == values].tolist():
            character, place = begun + bytes([byte]), base ^ byte
            state = int(place ^ children[place]), character, length
            if len(character) == 1 + (character[0] >= 0xC0) + (character[0] >= 0xE0) + (character[0] >= 0xF0):
                if length or character == b" ":
                    found.add(character.decode())
                state, longest = (state[0], b"", length + 1), max(longest, length + 1)
            if state not in seen:
                seen.add(state)
                waiting.append(state)
    return frozenset(found), longest


def _load_again(path: str, expected: str) -> TextTokenizer:
    tokenizer = TextTokenizer.load(path)
    if tokenizer.digest != expected:
        raise ConfigError(f"the vocabulary {path} changed while it was in use")
    return tokenizer
