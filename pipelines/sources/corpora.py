"""The formats of corpora: the files of each, found by glob, and the types of their files.

A new format is a module beside this one, a line in ``_FILE_TYPES`` and one in ``corpus_files``.
"""

from typing import Any

from gatokit.pipelines.sources.corpus import CorpusFile

_FILE_TYPES: dict[str, type[CorpusFile]] = {}


def corpus_file_to_json(file: CorpusFile) -> dict[str, Any]:
    """A file and its type as plain values."""
    name = next(name for name, type_ in _FILE_TYPES.items() if type(file) is type_)
    return {"type": name, **file.model_dump(mode="json")}


def corpus_file_from_json(value: dict[str, Any]) -> CorpusFile:
    """The inverse of ``corpus_file_to_json``."""
    fields = dict(value)
    return _FILE_TYPES[fields.pop("type")].model_validate(fields)
