"""Decoded values for JSON, for a cell of a table and for a page."""

import base64
import hashlib
from typing import Any

import numpy as np

from gatokit.schemas.episode import FIRST, LAST, TERMINAL
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.image_codec import decode
from gatokit.tokenizers.image_header import probe

_FLAGS = {FIRST: "first", LAST: "last", TERMINAL: "terminal"}


def json_value(value: Any) -> Any:
    """Arrays as nested lists, an image as ``{height, width, sha256}`` of its RGB bytes, a dict by its values.

    Raises RejectedError if an image does not decode.
    """
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, EncodedImage):
        pixels = decode(value.data)
        return {"height": value.height, "width": value.width, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def data_url(data: bytes, codec: str) -> str:
    """An encoded image as a URL that holds it."""
    return f"data:image/{codec};base64,{base64.b64encode(data).decode()}"


def flag_names(flags: int) -> list[str]:
    """``first``, ``last`` and ``terminal``, those whose bit is set."""
    return [name for bit, name in _FLAGS.items() if flags & bit]


def brief(value: Any, width: int) -> str:
    """A value in at most about ``width`` characters: the first numbers of an array, the beginning of a text."""
    if isinstance(value, EncodedImage):
        return f"{value.height}x{value.width} {probe(value.data).codec}, {len(value.data):,} B"
    if isinstance(value, str):
        return value if len(value) <= width else value[: max(1, width - 1)] + "…"
    numbers = np.asarray(value).ravel()
    words: list[str] = []
    more = f" … ({len(numbers)})"
    for count, number in enumerate(numbers.tolist(), 1):
        word = _number(number)
        room = width - sum(len(other) + 1 for other in words) - len(word)
        if room < (0 if count == len(numbers) else len(more)) and words:
            return " ".join(words) + more
        words.append(word)
    return " ".join(words)


def _number(number: Any) -> str:
    if isinstance(number, bool):
        return "yes" if number else "no"
    return f"{number:.3f}" if isinstance(number, float) and abs(number) < 1e4 else f"{number:.6g}"
