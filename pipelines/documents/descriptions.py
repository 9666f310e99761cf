"""What a JSON file says of its documents, kept compactly until all of it is read."""

import io
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatokit.pipelines.documents.captions import printable
from gatokit.pipelines.formats.json_arrays import JsonArraysError, read_arrays
from gatokit.schemas.errors import DataError, RejectedError
from gatokit.storage import files

Id = int | str
_LAST = 1 << 62


@dataclass(frozen=True)
class Described:
    """A document: its text and the id of its picture, or why it is rejected."""

    key: str
    text: str = ""
    picture: Id = ""
    why: RejectedError | None = None


class Descriptions:
    """Documents in order of arrival; iterating gives them in order of their pictures, rejected ones last."""

    def __init__(self) -> None:
        self._keys, self._texts = _Texts(), _Texts()
        self._pictures = array("q")
        self._ordinals: dict[Id, int] = {}
        self._why: dict[int, tuple[str, str]] = {}
        self._seen: set[str] = set()

    def __len__(self) -> int:
        return len(self._pictures)

    def __contains__(self, key: str) -> bool:
        return key in self._seen

    def picture(self, id: Id) -> int:
        """The place of a picture in the order, which is that of their first mention."""
        return self._ordinals.setdefault(id, len(self._ordinals))

    def add(self, key: str, text: str, picture: Id) -> None:
        """Adds a document; RejectedError where one of its key was there before."""
        if key in self._seen:
            raise RejectedError("duplicate_id", f"the id {key!r:.200} comes a second time")
        self._append(key, text, self.picture(picture))

    def reject(self, key: str, why: RejectedError) -> None:
        """Adds a rejected document."""
        self._why[len(self)] = why.reason, why.detail
        self._append(key, "", _LAST)

    def __iter__(self) -> Iterator[Described]:
        ids = list(self._ordinals)
        for at in np.argsort(np.frombuffer(self._pictures, np.int64), kind="stable").tolist():
            if at in self._why:
                yield Described(self._keys[at], why=RejectedError(*self._why[at]))
            else:
                yield Described(self._keys[at], self._texts[at], ids[self._pictures[at]])

    def _append(self, key: str, text: str, picture: int) -> None:
        self._seen.add(key)
        self._keys.append(key)
        self._texts.append(text)
        self._pictures.append(picture)


class _Texts:
    """A list of strings that takes little more than their bytes."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        """Adds a string; halves of surrogate pairs survive."""
        self._data += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._data))

    def __getitem__(self, at: int) -> str:
        return self._data[self._ends[at] : self._ends[at + 1]].decode("utf-8", "surrogatepass")


def read_lists(path: str, name: str, lists: Mapping[str, Callable[[Any], None]], hint: str) -> dict[str, Any]:
    """``read_arrays`` of the file at ``path``. DataError, with ``hint``, where it is damaged or lacks a list."""
    try:
        with io.BufferedReader(files.stream(path)) as file:
            return read_arrays(file, lists)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}; {hint}") from None
    except JsonArraysError as error:
        raise DataError(f"{name}: {error}; {hint}") from None


def id_of(entry: Any, field: str) -> Id:
    """The id that a JSON object has under ``field``; RejectedError where there is none."""
    value = _value(entry, field)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RejectedError("wrong_shape", f"{field!r} holds neither a whole number nor a string")
    return value


def key_of(id: Id) -> str:
    """An id as a document's key."""
    return printable(str(id))


def text_of(entry: Any, field: str) -> str:
    """The string that a JSON object has under ``field``; RejectedError where there is none."""
    value = _value(entry, field)
    if not isinstance(value, str):
        raise RejectedError("wrong_shape", f"{field!r} holds no string")
    return value


def _value(entry: Any, field: str) -> Any:
    value = entry.get(field) if isinstance(entry, dict) else None
    if value is None:
        raise RejectedError("missing_field", f"the JSON has no {field!r}")
    return value
