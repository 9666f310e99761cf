"""The formats of episode sources: what gives a directory away, what reads it, and the types of their files.

A new format is a module beside this one and a line in each of the two tables.
"""

from collections.abc import Callable
from typing import Any

from gatokit.pipelines.episodes import envlogger
from gatokit.pipelines.episodes import rlds as tfds
from gatokit.pipelines.episodes.envlogger import RiegeliFile
from gatokit.pipelines.episodes.examples import ArrayRecordFile, TfRecordFile
from gatokit.pipelines.episodes.reader import EpisodeFile, SourceDirectory

READERS: dict[str, Callable[[str, str, str, tuple[str, ...] | None], SourceDirectory]] = {
    tfds.MARKER: tfds.read_directory,
    envlogger.MARKER: envlogger.read_directory,
}
"""File name that gives a directory away, and the function that reads its description."""

_FILE_TYPES: dict[str, type[EpisodeFile]] = {
    "tfrecord": TfRecordFile,
    "array_record": ArrayRecordFile,
    "envlogger": RiegeliFile,
}


def file_to_json(file: EpisodeFile) -> dict[str, Any]:
    """A file and its type as plain values."""
    name = next(name for name, type_ in _FILE_TYPES.items() if type(file) is type_)
    return {"type": name, **file.model_dump(mode="json")}


def file_from_json(value: dict[str, Any]) -> EpisodeFile:
    """The inverse of ``file_to_json``."""
    fields = dict(value)
    return _FILE_TYPES[fields.pop("type")].model_validate(fields)
