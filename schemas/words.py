"""Values as people read them, in tables and on pages, and the word that was meant.

Texts of data and names of files are shown by ``visible``: a terminal must not obey what somebody else wrote.
"""

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: line breaks, and what begins escape sequences
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional marks
    "\u2028\u2029"  # line breaks
    "\u00ad\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # invisible
    "\ud800-\udfff]"  # surrogates, which bytes of a file's name become that are not UTF-8
)


def did_you_mean(word: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> str:
    """A question that names the known words nearest to ``word``, as "did you mean 'build'?"; "" if none is near."""
    nearest = difflib.get_close_matches(word, list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def shown(value: object) -> str:
    """A value as a table shows it: thousands separated, floats to six digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return visible(str(value))


def byte_size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def one_line(text: str, most: int = 200) -> str:
    """``visible`` of at most ``most`` characters of a text; "…" says that there are more."""
    return visible(text if len(text) <= most else text[: most - 1] + "…")


def visible(text: str) -> str:
    """A text on one line; escapes such as ``\\x1b`` and ``\\u202e`` replace control characters, line breaks,
    bidirectional marks and invisible characters."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def visible_lines(text: str) -> list[str]:
    """The lines of a text, each ``visible``; tabs become spaces."""
    return [visible(line) for line in text.expandtabs().split("\n")]


def visible_texts(value: Any) -> Any:
    """A value of dicts and sequences in which each text is ``visible`` line by line; keys stay as they are."""
    if isinstance(value, str):
        return "\n".join(visible_lines(value))
    if isinstance(value, dict):
        return {key: visible_texts(item) for key, item in value.items()}
    return [visible_texts(item) for item in value] if isinstance(value, list | tuple) else value


def ascii_json(value: Any) -> str:
    """A value as JSON on one line, of printable ASCII only."""
    return json.dumps(value).replace("\x7f", "\\u007f")
