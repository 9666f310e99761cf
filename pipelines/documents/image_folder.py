"""Images in a folder and their captions in a JSON file: COCO (cocodataset.org), VQAv2 (visualqa.org) and OK-VQA
(okvqa.allenai.org).

Documents are ordered by image, so that each image is opened once for all its texts.
"""

import errno
import functools
import itertools
import json
import os
import stat
import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c

from gatokit.pipelines.documents import reader
from gatokit.pipelines.documents.reader import DocumentFile, Loaded, ScannedDocument
from gatokit.pipelines.formats.json_lines import DamagedObjectError, read_object
from gatokit.pipelines.formats.records import ByteRange
from gatokit.pipelines.inputs import SourcePath
from gatokit.pipelines.scan_cache import LOOKED_AT, state
from gatokit.schemas.config import ImageQuestionAnswerConfig, ImageTextConfig
from gatokit.schemas.errors import ConfigError, DataError, RejectedError
from gatokit.schemas.index import ENDS_EARLY
from gatokit.storage import files as storage

SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")
"""Suffixes under which an image of VQA is looked for if it is not there under its own."""

_COCO_HINT = "give a captions JSON of COCO, such as captions_train2017.json (test sets have no captions)"
_QUESTIONS_HINT = "give the questions JSON of VQAv2 or OK-VQA as `questions`"
_ANSWERS_HINT = "give the answers JSON of the same questions as `annotations` (test sets have no public answers)"
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES}
_NO_FILE = {errno.EISDIR, errno.ENXIO}

Id = int | str


# --- folders ---------------------------------------------------------------------------------------------------


class ImageFolder:
    """Reads images by name from a folder on a disk or on ``gs://``; no name leads out of it, and no link unless
    ``follow_links`` is set."""

    def __init__(self, path: str, follow_links: bool = False) -> None:
        """Raises DataError if there is no folder."""
        self._is_remote = storage.is_remote(path)
        if not (_has_objects(path) if self._is_remote else os.path.isdir(path)):
            raise DataError(f"{path}: is no folder; set `image_dir` to the folder of the images")
        self._path, self._root, self._follow_links = path, os.path.realpath(path), follow_links

    def has(self, name: str) -> bool:
        """Whether there is something of that name."""
        self._note(name)
        path = os.path.join(self._path, name)
        return _is_inside(name) and storage.exists(path) if self._is_remote else os.path.lexists(path)

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of the file ``name``.

        Raises RejectedError if it is missing, is not a file or lies outside of the folder (``missing_image``), or if it
        has more than ``max_bytes`` bytes.
        """
        self._note(name)
        return self._read_object(name, max_bytes) if self._is_remote else self._read_file(name, max_bytes)

    def _note(self, name: str) -> None:
        """Says what there is to a scan that asks what its rows depend on."""
        looked_at = LOOKED_AT.get()
        if looked_at is not None and name not in looked_at:
            looked_at[name] = state(f"{self._path}/{name}")

    def _read_object(self, name: str, max_bytes: int) -> bytes:
        if not _is_inside(name):
            raise RejectedError("missing_image", f"{name!r:.200} leads out of image_dir")
        path = f"{self._path}/{name}"
        try:
            size = storage.size(path)
            if size > max_bytes:
                raise reader.too_large(max_bytes, f"{size} bytes are")
            return storage.read_bytes(path)
        except FileNotFoundError:
            raise RejectedError("missing_image", f"{name!r:.200} is not in image_dir") from None

    def _read_file(self, name: str, max_bytes: int) -> bytes:
        try:
            with open(name, "rb", buffering=0, opener=self._open) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise RejectedError("missing_image", f"{name!r:.200} is no file")
                if status.st_size > max_bytes:
                    raise reader.too_large(max_bytes, f"{status.st_size} bytes are")
                return file.read(status.st_size)
        except ValueError:
            problem = "is no name of a file"
        except OSError as error:
            if error.errno not in _NOT_THERE | _NO_FILE:
                raise
            problem = "is no file" if error.errno in _NO_FILE else f"is not in image_dir: {error.strerror}"
        raise RejectedError("missing_image", f"{name!r:.200} {problem}")

    def _open(self, name: str, flags: int) -> int:
        path = os.path.join(self._root, name)
        # A plain name that is no link needs no look at where it really lies; O_NONBLOCK, so that a pipe does not wait.
        if "/" not in name:
            try:
                return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
        if os.path.isabs(name) or ".." in name.split("/"):
            raise RejectedError("missing_image", f"{name!r:.200} leads out of image_dir")
        real = os.path.realpath(path)
        if not self._follow_links and not real.startswith(os.path.join(self._root, "")):
            problem = "is a link out of image_dir; set `follow_links: true` to read it"
            raise RejectedError("missing_image", f"{name!r:.200} {problem}")
        return os.open(real, flags | os.O_NONBLOCK)


def _is_inside(name: str) -> bool:
    return not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


@functools.lru_cache(maxsize=64)
def _has_objects(path: str) -> bool:
    return storage.is_directory(path)


# --- captions --------------------------------------------------------------------------------------------------


class Caption(NamedTuple):
    """A document as the JSON describes it: its text and the name of its image's file, or why it is rejected."""

    key: str
    text: str = ""
    image: str = ""
    error: RejectedError | None = None


def find(
    config: ImageTextConfig | ImageQuestionAnswerConfig, field: str, base: Path
) -> list["CocoFile"] | list["VqaFile"]:
    """See ``reader.plan_documents``."""
    assert config.image_dir is not None
    if isinstance(config, ImageTextConfig):
        files = reader.source_files(config.source, f"{field}.source", base, (".json",))
        folder = reader.image_directory(config.image_dir, f"{field}.image_dir", base)
        return [CocoFile(**file, image_dir=folder, follow_links=bool(config.follow_links)) for file in files]
    sources = {}
    for key, pattern in (("questions", config.questions), ("annotations", config.annotations)):
        files = reader.source_files(pattern, f"{field}.{key}", base)
        if len(files) != 1:
            raise ConfigError(f"{field}.{key}: matches {len(files)} files; name one, and make a dataset of each")
        sources[key] = files[0]
    return [
        VqaFile(
            **sources["questions"],
            annotations=sources["annotations"]["path"],
            image_dir=reader.image_directory(config.image_dir, f"{field}.image_dir", base),
            follow_links=bool(config.follow_links),
            image_name=config.image_name,
            template=config.template,
        )
    ]


class ImageFolderFile(DocumentFile):
    """A JSON file that names images in the folder ``image_dir``, which may be links if ``follow_links`` is set."""

    image_dir: SourcePath
    follow_links: bool = False

    @abstractmethod
    def captions(self) -> Iterator[Caption]:
        """Every document of the JSON file, those of one image one after the other."""

    def scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        """See ``DocumentFile``."""
        try:
            yield from self._scan(max_bytes)
        except DamagedObjectError as error:
            damage = RejectedError(ENDS_EARLY if error.ends_early else "corrupt_length", str(error))
            yield reader.lost_part(ByteRange(0, 0, 0, 0), "0", damage, self.size)

    def _scan(self, max_bytes: int) -> Iterator[ScannedDocument]:
        folder = ImageFolder(self.image_dir, self.follow_links)
        name, image, image_crc = None, b"", 0
        for position, (key, text, image_name, error) in enumerate(self.captions()):
            byte_range, group = ByteRange(position, 0, 0, 0), None
            try:
                if error is not None:
                    raise error
                group = reader.printable(image_name)
                if image_name != name:
                    image, name = folder.read(image_name, max_bytes), image_name
                    image_crc = google_crc32c.value(image)
                encoded = text.encode("utf-8", "replace")
                crc = google_crc32c.extend(image_crc, encoded)
                payload = json.dumps([image_name, text], separators=(",", ":"))
                byte_range = ByteRange(position, 0, len(image) + len(encoded), crc, payload)
                if byte_range.length > max_bytes:
                    raise reader.too_large(max_bytes, f"{byte_range.length} bytes are")
                yield reader.caption(byte_range, key, image, text, group)
            except RejectedError as problem:
                yield reader.rejected(byte_range, key, problem, group)

    def load(self, byte_ranges: Sequence[ByteRange]) -> Iterator[Loaded]:
        """See ``DocumentFile``."""
        folder = ImageFolder(self.image_dir, self.follow_links)
        last, image, crc = None, b"", 0
        for byte_range in byte_ranges:
            name, text = json.loads(byte_range.payload or "")
            if name != last:
                last, image = name, folder.read(name, byte_range.length)
                crc = google_crc32c.value(image)
            yield google_crc32c.extend(crc, text.encode()), [image, text]


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
        other_names: dict[Id, str] = {}  # of ids that `images` gives to two pictures
        captions = _Captions()
        keep = _only("id", "file_name", "caption", "image_id")
        content = read_object(self.path, self.name, ("images", "annotations"), keep, hint=_COCO_HINT)
        for list_name, entries in content.items():  # in the file's order, which may begin with either
            for number, entry in enumerate(entries):
                key = f"annotations[{number}]"
                try:
                    id = _id(entry, "id")
                    if list_name == "images":
                        name = reader.string_of(entry, "file_name")
                        if names.setdefault(id, name) != name:
                            other_names[id] = name
                        captions.images.setdefault(id)
                    else:
                        key = reader.printable(str(id))
                        captions.add(key, reader.string_of(entry, "caption"), _id(entry, "image_id"))
                except RejectedError as error:
                    if list_name == "annotations":  # an image without a name is reported by its annotations
                        captions.reject(key, error)

        def file_name(image: Id) -> str:
            if image not in names:
                raise RejectedError("missing_field", f"`images` has no entry with id {image!r:.200} and a file_name")
            if image in other_names:
                both = f"{names[image]!r:.200} and {other_names[image]!r:.200}"
                raise RejectedError("contradiction", f"`images` has two pictures with id {image!r:.200}: {both}")
            return names[image]

        yield from captions.by_image(file_name)


class _Answer(NamedTuple):
    """An answer, and the id of the picture that its annotation names (None if it names none)."""

    text: str
    image: Id | None


class VqaFile(ImageFolderFile):
    """A questions JSON of VQA; every question is a document, and its ``question_id`` the key.

    ``annotations`` is the JSON file of the answers, ``image_name`` makes the name of an image's file from
    ``data_subtype`` and ``image_id``, and ``template`` makes the text from ``question`` and ``answer``.
    """

    type: str = "vqa"
    annotations: SourcePath
    image_name: str
    template: str

    def captions(self) -> Iterator[Caption]:
        """See ``ImageFolderFile``."""
        answers, faulty, answered = self._answers()
        keep = _only("question_id", "question", "image_id")
        content = read_object(
            self.path, self.name, ("questions",), keep, values=("data_subtype",), hint=_QUESTIONS_HINT
        )
        subtype = content.get("data_subtype")
        used = any(name == "data_subtype" for _, name, _, _ in string.Formatter().parse(self.image_name))
        if used and not isinstance(subtype, str):
            raise DataError(
                f"{self.name}: has no 'data_subtype', which `image_name` uses; write it out in `image_name`"
            )
        other = os.path.basename(self.annotations)
        if isinstance(subtype, str) and isinstance(answered, str) and subtype != answered:
            raise DataError(f"{self.name}: asks of {subtype!r}, and {other} answers of {answered!r}; {_ANSWERS_HINT}")
        captions = _Captions()
        is_answered = not answers or not content["questions"]
        for number, entry in enumerate(content["questions"]):
            key = f"questions[{number}]"
            try:
                id = _id(entry, "question_id")
                key = reader.printable(str(id))
                question = _not_blank(reader.string_of(entry, "question"), "question")
                is_answered |= id in answers
                answer = answers.get(id, RejectedError("missing_field", "no annotation has this question_id"))
                if isinstance(answer, RejectedError):
                    raise answer
                image = _id(entry, "image_id")
                if answer.image is not None and str(answer.image) != str(image):
                    pictures = f"of the picture {image!r:.200}, and its annotation is of {answer.image!r:.200}"
                    raise RejectedError("contradiction", f"the question is {pictures}")
                # Only the template's braces have a meaning: those of questions and answers stay as they are.
                captions.add(key, self.template.format(question=question, answer=answer.text), image)
            except RejectedError as error:
                captions.reject(key, error)
        if not is_answered:
            raise DataError(f"{self.name}: {other} answers none of its questions; {_ANSWERS_HINT}")
        for key, problem in faulty:
            captions.reject(key, problem)
        for key in (reader.printable(str(id)) for id in answers):
            if key not in captions.keys:
                captions.reject(key, RejectedError("missing_field", "no question has this question_id"))
        folder = ImageFolder(self.image_dir, self.follow_links)

        def file_name(image: Id) -> str:
            """The name of an image's file, with another suffix if it is there with that one only."""
            try:
                name = self.image_name.format(data_subtype=subtype, image_id=image)
            except ValueError as error:
                problem = f"image_id {image!r:.200} does not fit `image_name`: {error}"
                raise RejectedError("wrong_shape", problem) from None
            stem = os.path.splitext(name)[0]
            names = [name, *(stem + suffix for suffix in SUFFIXES)]
            return next((name for name in names if folder.has(name)), name)

        yield from captions.by_image(file_name)

    def _answers(self) -> tuple[dict[Id, _Answer | RejectedError], list[tuple[str, RejectedError]], Any]:
        """The answer of each question or what is wrong with it, the annotations that belong to no question, and the
        ``data_subtype`` of the file (None if it has none)."""
        answers: dict[Id, _Answer | RejectedError] = {}
        faulty: list[tuple[str, RejectedError]] = []
        name = os.path.basename(self.annotations)
        content = read_object(
            self.annotations, name, ("annotations",), _without_answers, values=("data_subtype",), hint=_ANSWERS_HINT
        )
        for number, entry in enumerate(content["annotations"]):
            try:
                id = _id(entry, "question_id")
                if id in answers:
                    raise RejectedError("duplicate_id", f"a second annotation has question_id {id!r:.200}")
            except RejectedError as error:
                faulty.append((f"annotations[{number}]", error))
                continue
            try:
                image = entry.get("image_id")
                is_id = isinstance(image, int | str) and not isinstance(image, bool)
                answers[id] = _Answer(_not_blank(_answer(entry), "answer"), image if is_id else None)
            except RejectedError as error:
                answers[id] = error
        return answers, faulty, content.get("data_subtype")


def _id(entry: Any, field: str) -> Id:
    """The id that a JSON object has under ``field``. Raises RejectedError if there is none."""
    value = reader.value_of(entry, field)
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
    return {field: annotation.get(field) for field in ("question_id", "image_id", "multiple_choice_answer")}


def _answer(entry: dict[str, Any]) -> str:
    """The answer that the file names, else the one that most annotators gave, the first of several such."""
    if entry.get("multiple_choice_answer") is not None:
        return reader.string_of(entry, "multiple_choice_answer")
    answers = entry.get("answers")
    if not isinstance(answers, list) or not answers:
        raise RejectedError("missing_field", "the annotation has neither 'multiple_choice_answer' nor 'answers'")
    return Counter(reader.string_of(answer, "answer") for answer in answers).most_common(1)[0][0]


def _not_blank(text: str, subject: str) -> str:
    if not text.strip():
        raise RejectedError("empty", f"the {subject} is empty")
    return text
