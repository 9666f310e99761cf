"""The formats of corpora: the files of each, found by glob, and the types of their files.

A new format is a module beside this one, a line in ``_FILE_TYPES`` and a function that makes its files.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gatokit.pipelines.documents import tfds_images as tfds_pictures
from gatokit.pipelines.documents.coco import CocoFile
from gatokit.pipelines.documents.mmc4 import CompressedMmc4File, Mmc4File
from gatokit.pipelines.documents.obelics import ObelicsFile, ObelicsFolderFile
from gatokit.pipelines.documents.parquet import PictureRowsFile
from gatokit.pipelines.documents.plain import PlainTextFile
from gatokit.pipelines.documents.reader import CorpusFile
from gatokit.pipelines.documents.text_rows import TextRowsFile
from gatokit.pipelines.documents.vqa import VqaFile
from gatokit.pipelines.documents.webdataset import WebDatasetFile
from gatokit.pipelines.find import find, find_files, fixed_part, local_path, local_pattern
from gatokit.pipelines.formats import tfds
from gatokit.pipelines.formats.json_lines import CompressedTextLinesFile, TextLinesFile
from gatokit.schemas.config import (
    CorpusConfig,
    ImageQuestionAnswerConfig,
    ImageTextConfig,
    InterleavedConfig,
    TextConfig,
)
from gatokit.schemas.errors import ConfigError
from gatokit.storage import files

_FILE_TYPES: dict[str, type[CorpusFile]] = {
    "lines": TextLinesFile,
    "compressed_lines": CompressedTextLinesFile,
    "plain": PlainTextFile,
    "rows": TextRowsFile,
    "webdataset": WebDatasetFile,
    "coco": CocoFile,
    "picture_rows": PictureRowsFile,
    "tfds_tfrecord": tfds_pictures.TfdsTfRecordFile,
    "tfds_array_record": tfds_pictures.TfdsArrayRecordFile,
    "vqa": VqaFile,
    "mmc4": Mmc4File,
    "compressed_mmc4": CompressedMmc4File,
    "obelics": ObelicsFile,
    "obelics_folder": ObelicsFolderFile,
}
_JSON_LINES, _PLAIN, _COMPRESSIONS = (".jsonl", ".ndjson", ".json"), (".txt", ".text", ".md", ".rst"), (".gz", ".zst")


def corpus_files(config: CorpusConfig, field: str, base: Path) -> list[CorpusFile]:
    """The files of a dataset in order of their names; paths start at ``base``.

    ConfigError, naming the key below ``field``, where there are none or one has no suffix of its format.
    """
    makers: dict[type[Any], Callable[[Any, str, Path], list[CorpusFile]]] = {
        TextConfig: _text,
        ImageTextConfig: _image_text,
        ImageQuestionAnswerConfig: _image_question_answer,
        InterleavedConfig: _interleaved,
    }
    return makers[type(config)](config, field, base)


def modification_times(file: CorpusFile) -> tuple[int, ...]:
    """Of the file, and of what else it is read from, in nanoseconds."""
    fields = file.model_dump()
    paths = [fields[name] for name in ("path", "annotations", "image_dir") if fields.get(name) is not None]
    return tuple(files.version(path) for path in paths)


def text_separator(file: CorpusFile) -> str:
    """What stands between two texts of a page that a picture no longer parts, as between any neighbours there."""
    return " " if isinstance(file, Mmc4File) else "\n\n"


def corpus_file_to_json(file: CorpusFile) -> dict[str, Any]:
    """A file and its type as plain values."""
    name = next(name for name, type_ in _FILE_TYPES.items() if type(file) is type_)
    return {"type": name, **file.model_dump(mode="json")}


def corpus_file_from_json(value: dict[str, Any]) -> CorpusFile:
    """The inverse of ``corpus_file_to_json``."""
    fields = dict(value)
    return _FILE_TYPES[fields.pop("type")].model_validate(fields)


def _text(config: TextConfig, field: str, base: Path) -> list[CorpusFile]:
    found: list[CorpusFile] = []
    for place in _found(config.source, f"{field}.source", base):
        name, compressed = _suffix(place["path"])
        if name in _JSON_LINES:
            found.append((CompressedTextLinesFile if compressed else TextLinesFile)(**place, field=config.field))
        elif name in _PLAIN:
            found.append(PlainTextFile(**place))
        elif name == ".parquet" and not compressed:
            found.append(TextRowsFile(**place, field=config.field))
        else:
            known = ", ".join((*_JSON_LINES, ".parquet", *_PLAIN))
            raise _other_suffix(place["path"], f"{field}.source", f"{known}, and {' or '.join(_COMPRESSIONS)} behind")
    return found


def _image_text(config: ImageTextConfig, field: str, base: Path) -> list[CorpusFile]:
    source = f"{field}.source"
    if config.format == "tfds":
        pattern = local_pattern(config.source, base, source)
        below = fixed_part(pattern)
        return [
            file
            for found in find(pattern, (tfds.MARKER,), source, "a TFDS dataset")
            for file in tfds_pictures.read_directory(found.path, below, config.image_field, config.text_field)
        ]
    found: list[CorpusFile] = []
    for place in _found(config.source, source, base):
        if config.format == "coco":
            assert config.image_dir is not None
            _check_suffix(place["path"], source, (".json",))
            found.append(CocoFile(**place, image_dir=_folder(config.image_dir, f"{field}.image_dir", base)))
        elif config.format == "webdataset":
            _check_suffix(place["path"], source, (".tar",))
            found.append(WebDatasetFile(**place, text_field=config.text_field))
        else:
            _check_suffix(place["path"], source, (".parquet",))
            found.append(PictureRowsFile(**place, image_field=config.image_field, text_field=config.text_field))
    return found


def _image_question_answer(config: ImageQuestionAnswerConfig, field: str, base: Path) -> list[CorpusFile]:
    questions = _found(config.questions, f"{field}.questions", base)
    annotations = _found(config.annotations, f"{field}.annotations", base)
    for key, found in (("questions", questions), ("annotations", annotations)):
        if len(found) != 1:
            raise ConfigError(f"{field}.{key}: matches {len(found)} files; name one, and make a dataset of each")
    return [
        VqaFile(
            **questions[0],
            annotations=annotations[0]["path"],
            image_dir=_folder(config.image_dir, f"{field}.image_dir", base),
            image_name=config.image_name,
            template=config.template,
        )
    ]


def _interleaved(config: InterleavedConfig, field: str, base: Path) -> list[CorpusFile]:
    folder = None if config.image_dir is None else _folder(config.image_dir, f"{field}.image_dir", base)
    skip_bad = config.bad_images == "skip"
    found: list[CorpusFile] = []
    for place in _found(config.source, f"{field}.source", base):
        if config.format == "mmc4":
            assert folder is not None
            _check_suffix(place["path"], f"{field}.source", _JSON_LINES, _COMPRESSIONS)
            type_ = CompressedMmc4File if _suffix(place["path"])[1] else Mmc4File
            found.append(type_(**place, image_dir=folder, skip_bad=skip_bad))
        else:
            _check_suffix(place["path"], f"{field}.source", (".parquet",))
            if folder is None:
                found.append(ObelicsFile(**place, skip_bad=skip_bad))
            else:
                found.append(ObelicsFolderFile(**place, image_dir=folder, skip_bad=skip_bad))
    return found


def _found(source: str, field: str, base: Path) -> list[dict[str, Any]]:
    """Path, name and size of the files that a pattern matches."""
    places = find_files(local_pattern(source, base, field), field)
    return [{"path": path, "name": name, "size": files.size(path)} for path, name in places]


def _folder(path: str, field: str, base: Path) -> str:
    found = local_path(path, base, field)
    if not files.is_directory(found):
        what = "is a file" if files.exists(found) else "does not exist"
        raise ConfigError(f"{field}: {found} {what}; give the folder of the pictures, relative to the config file")
    return found


def _suffix(path: str) -> tuple[str, bool]:
    """The suffix of a file, and whether one of a compression follows it."""
    stem, last = os.path.splitext(os.path.basename(path).lower())
    return (os.path.splitext(stem)[1], True) if last in _COMPRESSIONS else (last, False)


def _check_suffix(path: str, field: str, known: tuple[str, ...], compressions: tuple[str, ...] = ()) -> None:
    name, compressed = _suffix(path)
    if name not in known or (compressed and not compressions):
        behind = f", and {' or '.join(compressions)} behind" if compressions else ""
        raise _other_suffix(path, field, ", ".join(known) + behind)


def _other_suffix(path: str, field: str, known: str) -> ConfigError:
    return ConfigError(f"{field}: {path} has none of the suffixes {known}; narrow source, or rename the file")
