"""Captions in a JSON file and their images in a folder: COCO (cocodataset.org), VQAv2 (visualqa.org) and OK-VQA
(okvqa.allenai.org).

Documents are ordered by image, so that each image is opened once for all its texts.
"""

import itertools
import json
import os
import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c

from gatokit.pipelines.documents.image_files import ImageFolder, image_folder
from gatokit.pipelines.documents.reader import (
    DocumentFile,
    Part,
    ScannedDocument,
    captioned,
    image_directory,
    printable,
    rejected,
    source_files,
    string_of,
    too_large,
    value_of,
)
from gatokit.pipelines.formats.json_lines import read_object
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.config import ImageQuestionAnswerConfig, ImageTextConfig
from gatokit.schemas.errors import ConfigError, DataError, RejectedError

SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")
"""Suffixes under which an image of VQA is looked for if it is not there under its own."""

_COCO_HINT = "give a captions JSON of COCO, such as captions_train2017.json (test sets have no captions)"
_QUESTIONS_HINT = "give the questions JSON of VQAv2 or OK-VQA as `questions`"
_ANSWERS_HINT = "give the answers JSON of the same questions as `annotations` (test sets have no public answers)"

Id = int | str


class Caption(NamedTuple):
    """A document as the JSON describes it: its text and the name of its image's file, or why it is rejected."""

    key: str
    text: str = ""
    image: str = ""
    error: RejectedError | None = None


def find(
    config: ImageTextConfig | ImageQuestionAnswerConfig, field: str, base: Path
) -> list["CocoFile"] | list["VqaFile"]:
    """See ``reader.find_documents``."""
    if isinstance(config, ImageTextConfig):
        assert config.image_dir is not None
        files = source_files(config.source, f"{field}.source", base, (".json",))
        folder = image_directory(config.image_dir, f"{field}.image_dir", base)
        return [CocoFile(**file, image_dir=folder) for file in files]
    sources = {}
    for key, pattern in (("questions", config.questions), ("annotations", config.annotations)):
        files = source_files(pattern, f"{field}.{key}", base)
        if len(files) != 1:
            raise ConfigError(f"{field}.{key}: matches {len(files)} files; name one, and make a dataset of each")
        sources[key] = files[0]
    return [
        VqaFile(
            **sources["questions"],
            annotations=sources["annotations"]["path"],
            image_dir=image_directory(config.image_dir, f"{field}.image_dir", base),
            image_name=config.image_name,
            template=config.template,
        )
    ]


class ImageFolderFile(DocumentFile):
    """A JSON file that names images in the folder ``image_dir``."""

    image_dir: str

    @abstractmethod
    def captions(self) -> Iterator[Caption]:
        """Every document of the JSON file, those of one image one after the other."""

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        folder = image_folder(self.image_dir)
        name: str | None = None
        image: bytes | RejectedError = b""
        crc = 0
        for position, document in enumerate(self.captions()):
            byte_range = ByteRange(position, 0, 0, 0)
            if document.error is not None:
                yield rejected(byte_range, document.key, document.error)
                continue
            if document.image != name:
                name = document.image
                try:
                    image = folder.read(name, max_bytes)
                    crc = google_crc32c.value(image)
                except RejectedError as error:
                    image = error
            group = printable(document.image)
            if isinstance(image, RejectedError):
                yield rejected(byte_range, document.key, image, group)
                continue
            text = document.text.encode("utf-8", "replace")
            length = len(image) + len(text)
            payload = json.dumps([document.image, document.text], separators=(",", ":"))
            byte_range = ByteRange(position, 0, length, google_crc32c.extend(crc, text), payload)
            if length > max_bytes:
                yield rejected(byte_range, document.key, too_large(max_bytes, f"{length} bytes are"), group)
            else:
                yield captioned(byte_range, document.key, image, document.text, group=group)

    def read(self, byte_ranges: Iterable[ByteRange]) -> Iterator[list[Part]]:
        """See ``DocumentFile``."""
        folder = image_folder(self.image_dir)
        last, image, crc = None, b"", 0
        for byte_range in byte_ranges:
            name, text = json.loads(byte_range.payload or "")
            if name != last:
                try:
                    image = folder.read(name, byte_range.length)
                except RejectedError:
                    raise self.changed(byte_range) from None
                last, crc = name, google_crc32c.value(image)
            if google_crc32c.extend(crc, text.encode()) != byte_range.crc:
                raise self.changed(byte_range)
            yield [image, text]


class _Captions:
    """The documents of a JSON file, in the order in which their images are first mentioned; rejected ones last."""

    def __init__(self) -> None:
        self.images: dict[Id, None] = {}
        self.keys: set[str] = set()
        self._captions: list[tuple[Id, Caption]] = []
        self._rejected: list[Caption] = []

    def add(self, key: str, text: str, image: Id) -> None:
        """Adds a document. Raises RejectedError if there is one with its key."""
        if key in self.keys:
            raise RejectedError("duplicate_id", f"the id {key!r:.200} comes a second time")
        self.keys.add(key)
        self.images.setdefault(image)
        self._captions.append((image, Caption(key, text)))

    def reject(self, key: str, error: RejectedError) -> None:
        """Adds a rejected document."""
        self.keys.add(key)
        self._rejected.append(Caption(key, error=error.with_traceback(None)))

    def by_image(self, file_name: Callable[[Id], str]) -> Iterator[Caption]:
        """All documents; ``file_name`` gives the name of an image's file, or raises RejectedError."""
        order = {image: number for number, image in enumerate(self.images)}
        self._captions.sort(key=lambda item: order[item[0]])
        for image, items in itertools.groupby(self._captions, lambda item: item[0]):
            try:
                name, problem = file_name(image), None
            except RejectedError as error:
                name, problem = "", error
            for _, caption in items:
                yield caption._replace(image=name, error=problem)
        yield from self._rejected


class CocoFile(ImageFolderFile):
    """A captions JSON of COCO; every annotation is a document, and its id the key."""

    type: str = "coco"

    def captions(self) -> Iterator[Caption]:
        """See ``ImageFolderFile``."""
        names: dict[Id, str] = {}
        captions = _Captions()
        keep = _only("id", "file_name", "caption", "image_id")
        content = read_object(self.path, self.name, ("images", "annotations"), keep, hint=_COCO_HINT)
        for list_name, entries in content.items():  # in the file's order, which may begin with either
            for number, entry in enumerate(entries):
                key = f"annotations[{number}]"
                try:
                    id = _id(entry, "id")
                    if list_name == "images":
                        names[id] = string_of(entry, "file_name")
                        captions.images.setdefault(id)
                    else:
                        key = printable(str(id))
                        captions.add(key, string_of(entry, "caption"), _id(entry, "image_id"))
                except RejectedError as error:
                    if list_name == "annotations":  # an image without a name is reported by its annotations
                        captions.reject(key, error)

        def file_name(image: Id) -> str:
            if image not in names:
                raise RejectedError("missing_field", f"`images` has no entry with id {image!r:.200} and a file_name")
            return names[image]

        yield from captions.by_image(file_name)


class VqaFile(ImageFolderFile):
    """A questions JSON of VQA; every question is a document, and its ``question_id`` the key.

    ``annotations`` is the JSON file of the answers, ``image_name`` makes the name of an image's file from
    ``data_subtype`` and ``image_id``, and ``template`` makes the text from ``question`` and ``answer``.
    """

    type: str = "vqa"
    annotations: str
    image_name: str
    template: str

    def captions(self) -> Iterator[Caption]:
        """See ``ImageFolderFile``."""
        answers, faulty = self._answers()
        keep = _only("question_id", "question", "image_id")
        content = read_object(
            self.path, self.name, ("questions",), keep, values=("data_subtype",), hint=_QUESTIONS_HINT
        )
        subtype = self._subtype(content)
        captions = _Captions()
        for number, entry in enumerate(content["questions"]):
            key = f"questions[{number}]"
            try:
                id = _id(entry, "question_id")
                key = printable(str(id))
                question = _not_blank(string_of(entry, "question"), "question")
                answer = answers.get(id, RejectedError("missing_field", "no annotation has this question_id"))
                if isinstance(answer, RejectedError):
                    raise answer
                # Only the template's braces have a meaning: those of questions and answers stay as they are.
                captions.add(key, self.template.format(question=question, answer=answer), _id(entry, "image_id"))
            except RejectedError as error:
                captions.reject(key, error)
        for key, problem in faulty:
            captions.reject(key, problem)
        for key in (printable(str(id)) for id in answers):
            if key not in captions.keys:
                captions.reject(key, RejectedError("missing_field", "no question has this question_id"))
        folder = image_folder(self.image_dir)
        yield from captions.by_image(lambda image: self._file_name(folder, subtype, image))

    def _answers(self) -> tuple[dict[Id, str | RejectedError], list[tuple[str, RejectedError]]]:
        """The answer of each question or what is wrong with it, and the annotations that belong to no question."""
        answers: dict[Id, str | RejectedError] = {}
        faulty: list[tuple[str, RejectedError]] = []
        name = os.path.basename(self.annotations)
        content = read_object(self.annotations, name, ("annotations",), _without_answers, hint=_ANSWERS_HINT)
        for number, entry in enumerate(content["annotations"]):
            try:
                id = _id(entry, "question_id")
                if id in answers:
                    raise RejectedError("duplicate_id", f"a second annotation has question_id {id!r:.200}")
            except RejectedError as error:
                faulty.append((f"annotations[{number}]", error))
                continue
            try:
                answers[id] = _not_blank(_answer(entry), "answer")
            except RejectedError as error:
                answers[id] = error
        return answers, faulty

    def _subtype(self, content: dict[str, Any]) -> str:
        subtype = content.get("data_subtype")
        used = any(name == "data_subtype" for _, name, _, _ in string.Formatter().parse(self.image_name))
        if used and not isinstance(subtype, str):
            raise DataError(
                f"{self.name}: has no 'data_subtype', which `image_name` uses; write it out in `image_name`"
            )
        return str(subtype)

    def _file_name(self, folder: ImageFolder, subtype: str, image: Id) -> str:
        """The name of an image's file, with another suffix if it is there with that one only."""
        try:
            name = self.image_name.format(data_subtype=subtype, image_id=image)
        except ValueError as error:
            raise RejectedError("wrong_shape", f"image_id {image!r:.200} does not fit `image_name`: {error}") from None
        stem = os.path.splitext(name)[0]
        names = [name, *(stem + suffix for suffix in SUFFIXES)]
        return next((name for name in names if folder.has(name)), name)


def _id(entry: Any, field: str) -> Id:
    """The id that a JSON object has under ``field``. Raises RejectedError if there is none."""
    value = value_of(entry, field)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RejectedError("wrong_shape", f"{field!r} holds neither a whole number nor a string")
    return value


def _only(*fields: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda entry: {field: entry[field] for field in fields if field in entry}


def _without_answers(annotation: dict[str, Any]) -> dict[str, Any]:
    """An annotation of VQAv2, which names the answer, without the ten answers that take most of the file."""
    answer = annotation.get("multiple_choice_answer")
    if answer is None:
        return annotation
    return {"question_id": annotation.get("question_id"), "multiple_choice_answer": answer}


def _answer(entry: dict[str, Any]) -> str:
    """The answer that the file names, else the one that most annotators gave, the first of several such."""
    if entry.get("multiple_choice_answer") is not None:
        return string_of(entry, "multiple_choice_answer")
    answers = entry.get("answers")
    if not isinstance(answers, list) or not answers:
        raise RejectedError("missing_field", "the annotation has neither 'multiple_choice_answer' nor 'answers'")
    return Counter(string_of(answer, "answer") for answer in answers).most_common(1)[0][0]


def _not_blank(text: str, subject: str) -> str:
    if not text.strip():
        raise RejectedError("empty", f"the {subject} is empty")
    return text
