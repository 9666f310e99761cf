"""What comes out of a file that somebody else may have written: names of files, numbers and JSON.

A published build is a folder of a stranger. The models of its files take their names from here, so that no object with
a bad name exists, and ``storage.folder`` opens what they name.
"""

import json
import math
import re
from collections import Counter
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from gatokit.schemas.errors import MalformedError
from gatokit.schemas.words import one_line

MOST_JSON = 256 << 20
"""Bytes of the largest JSON file that is read."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_MOST_NAME = 255
"""Bytes of a file's name, as most file systems have it."""

Model = TypeVar("Model", bound=BaseModel)


def check_plain_name(name: str) -> str:
    """Returns the name of a file in its folder.

    Raises ValueError unless it has only letters and digits of ASCII, ``_``, ``.`` and ``-``, begins with a letter or
    digit, and has at most 255 characters.
    """
    if len(name) > _MOST_NAME or not _PLAIN.fullmatch(name):
        raise ValueError(
            f"{quoted(name)} is no plain name: letters, digits, '_', '.' and '-', and first a letter or digit"
        )
    return name


def check_path_name(name: str) -> str:
    """Returns the name of a file below a folder: plain names joined by ``/``. Raises ValueError for any other, as one
    that is absolute or has a part that is empty, ``.`` or ``..``."""
    for part in name.split("/"):
        if len(part) > _MOST_NAME or not _PLAIN.fullmatch(part):
            raise ValueError(
                f"{quoted(name)} is no path below the folder: its parts are letters, digits, '_', '.' and '-', and "
                "first a letter or digit"
            )
    return name


PlainName = Annotated[str, AfterValidator(check_plain_name)]
PathName = Annotated[str, AfterValidator(check_path_name)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""How many there are; it fits into an int64."""


def quoted(value: object) -> str:
    """A value for a sentence: at most 80 characters of it, with escapes for what cannot be printed."""
    return one_line(repr(value), 80)


def parse_json(data: bytes, path: object) -> Any:
    """The value in the bytes of the JSON file at ``path``.

    Raises MalformedError if they are not JSON, a mapping has a key twice, a number is not finite, or it is nested too
    deeply.
    """
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise MalformedError(f"{path} cannot be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise MalformedError(f"{path} cannot be read as JSON: {one_line(str(error))}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {quoted(twice)} stands twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {one_line(text, 80)} is too large")
    return number


def validated_model(model: type[Model], content: Any, path: object) -> Model:
    """The model of what the JSON file at ``path`` holds. Raises MalformedError, which names the first wrong field and
    its value."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise MalformedError(f"{path}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first field that is wrong, why, and its value."""
    first = error.errors()[0]
    field, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    value = "" if first["type"] in ("value_error", "missing") else f", not {quoted(first['input'])}"
    return one_line(f"{field}: {message}{value}" if field else f"{message}{value}", 400)
