"""JSON whose top level is an object with long arrays, read an element at a time.

Memory follows the largest element, where ``json.load`` holds the text and several times its size in objects.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

CHUNK = 1 << 20
LONGEST = 64 << 20
"""Characters of one element above which the text is taken for damaged."""

_NOT_BLANK = re.compile(r"[^ \t\n\r]")


class JsonArraysError(ValueError):
    """The text is no JSON object, or ends inside of it; says where."""


def read_arrays(file: BinaryIO, arrays: Mapping[str, Callable[[Any], None]]) -> dict[str, Any]:
    """The values of the top-level object of ``file`` but for its arrays.

    Elements of the arrays named in ``arrays`` go to their function as they are read, those of others are dropped.
    Bytes that are no UTF-8 become surrogates (``surrogateescape``), so that one bad text does not cost the others.
    JsonArraysError where the text is damaged or ends early, or where one of ``arrays`` is not there.
    """
    text = _Text(file)
    values: dict[str, Any] = {}
    found = set()
    for _ in _separated(text, "{", "}"):
        key = text.value()
        if not isinstance(key, str):
            raise text.error("a key is no string")
        text.take(":")
        if text.next() != "[":
            values[key] = text.value()
            continue
        found.add(key)
        add = arrays.get(key)
        for _ in _separated(text, "[", "]"):
            element = text.value()
            if add is not None:
                add(element)
    if text.next():
        raise text.error("more follows the end of the object")
    if missing := sorted(arrays.keys() - found):
        raise JsonArraysError(f"has no list {missing[0]!r}")
    return values


def _separated(text: "_Text", begin: str, end: str) -> Iterator[None]:
    """Stops before each of the values between ``begin`` and ``end``, which commas separate."""
    text.take(begin)
    if text.next() != end:
        yield
        while text.accepts(","):
            yield
    text.take(end)


class _Text:
    """A part of the text that grows where a value does not end in it, and what comes next there."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = self._before = 0
        self._ended = False

    def next(self) -> str:
        """The next character that is not blank, "" at the end; steps over what is blank before it."""
        while True:
            found = _NOT_BLANK.search(self._text, self._at)
            self._at = len(self._text) if found is None else found.start()
            if found is not None:
                return found[0]
            if self._ended:
                return ""
            self._grow()

    def take(self, character: str) -> None:
        """Steps over ``character``, which must be next."""
        if not self.accepts(character):
            raise self.error(f"{character!r} is missing")

    def accepts(self, character: str) -> bool:
        """Steps over ``character`` if it is next."""
        found = self.next() == character
        self._at += found
        return found

    def value(self) -> Any:
        """The value that comes next."""
        self.next()
        size = CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # A number may go on behind what has been read.
                if self._ended or end + 3 < len(self._text):
                    self._at = end
                    return value
            except RecursionError:
                raise self.error("values are nested too deeply") from None
            except ValueError as error:
                if self._ended or len(self._text) - self._at > LONGEST:
                    self._at = getattr(error, "pos", self._at)
                    raise self.error(getattr(error, "msg", str(error))) from None
            self._grow(size)
            size *= 2

    def error(self, why: str) -> JsonArraysError:
        """An error that says where in the text it is."""
        why = "the text ends early" if self._at == len(self._text) else why
        return JsonArraysError(f"is damaged at character {self._before + self._at}: {why}")

    def _grow(self, size: int | None = None) -> None:
        data = self._file.read(size or CHUNK)
        self._ended = not data
        self._before += self._at
        self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        self._at = 0
