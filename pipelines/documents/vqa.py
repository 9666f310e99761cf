"""VQAv2 (visualqa.org) and OK-VQA (okvqa.allenai.org): questions in one JSON file, answers in another, and a folder
of pictures."""

import os
import string
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from gatokit.pipelines.documents.descriptions import Descriptions, Id, id_of, key_of, read_lists, text_of
from gatokit.pipelines.documents.image_folder import (
    Caption,
    ObjectFolder,
    PictureFolder,
    PictureFolderFile,
    picture_folder,
)
from gatokit.schemas.errors import DataError, RejectedError

SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")
"""Suffixes under which a picture is looked for that is not there under its own."""

_SUBTYPE = "data_subtype"
_QUESTIONS_HINT = "give the questions JSON of VQAv2 or OK-VQA as `questions`"
_ANNOTATIONS_HINT = "give the answers JSON of the same questions as `annotations` (test sets have no public answers)"
_UNASKED = ("missing_field", "no question has this question_id")
_Why = tuple[str, str]


class VqaFile(PictureFolderFile):
    """A questions JSON file; every question is a document, and its ``question_id`` the key.

    ``annotations`` is the JSON file of the answers, ``image_name`` makes a picture's file name of ``data_subtype``
    and ``image_id``, and ``template`` makes the text of ``question`` and ``answer``.
    """

    annotations: str
    image_name: str
    template: str

    def captions(self) -> Iterator[Caption]:
        """See ``PictureFolderFile``."""
        documents = Descriptions()
        answers, rejected = self._answers()

        def question(entry: Any) -> None:
            key = f"questions[{len(documents)}]"
            try:
                id = id_of(entry, "question_id")
                key = key_of(id)
                asked = _not_blank(text_of(entry, "question"), "question")
                answer = answers.get(id, ("missing_field", "no annotation has this question_id"))
                if not isinstance(answer, str):
                    raise RejectedError(*answer)
                # The one place where braces mean something: those of questions and answers stay as they are.
                documents.add(key, self.template.format(question=asked, answer=answer), id_of(entry, "image_id"))
            except RejectedError as error:
                documents.reject(key, error)

        values = read_lists(self.path, self.name, {"questions": question}, _QUESTIONS_HINT)
        subtype = self._subtype(values)
        rejected.extend((key_of(id), _UNASKED) for id in answers if key_of(id) not in documents)
        for key, why in rejected:
            documents.reject(key, RejectedError(*why))
        folder = picture_folder(self.image_dir)
        named: tuple[Id, str] | None = None
        for document in documents:
            try:
                if document.why is not None:
                    raise document.why
                if named is None or named[0] != document.picture:
                    named = document.picture, self._picture(folder, subtype, document.picture)
                yield Caption(document.key, document.text, named[1])
            except RejectedError as error:
                yield Caption(document.key, why=error)

    def _answers(self) -> tuple[dict[Id, str | _Why], list[tuple[str, _Why]]]:
        """The answer of each question or what is wrong with it, and the annotations that belong to no question."""
        answers: dict[Id, str | _Why] = {}
        others: list[tuple[str, _Why]] = []

        def annotation(entry: Any) -> None:
            try:
                id = id_of(entry, "question_id")
                if id in answers:
                    raise RejectedError("duplicate_id", f"a second annotation has question_id {id!r:.200}")
            except RejectedError as error:
                others.append((f"annotations[{len(answers) + len(others)}]", (error.reason, error.detail)))
                return
            try:
                answers[id] = sys.intern(_not_blank(_answer(entry), "answer"))
            except RejectedError as error:
                answers[id] = error.reason, error.detail

        name = os.path.basename(self.annotations)
        read_lists(self.annotations, name, {"annotations": annotation}, _ANNOTATIONS_HINT)
        return answers, others

    def _subtype(self, values: dict[str, Any]) -> str:
        subtype = values.get(_SUBTYPE)
        used = any(name == _SUBTYPE for _, name, _, _ in string.Formatter().parse(self.image_name))
        if used and not isinstance(subtype, str):
            raise DataError(f"{self.name}: has no {_SUBTYPE!r}, which `image_name` uses; write it out in `image_name`")
        return str(subtype)

    def _picture(self, folder: PictureFolder | ObjectFolder, subtype: str, id: Id) -> str:
        """The name of a picture's file, under another suffix where it is there under that one only."""
        try:
            name = self.image_name.format(data_subtype=subtype, image_id=id)
        except ValueError as error:
            raise RejectedError("wrong_shape", f"image_id {id!r:.200} does not fit `image_name`: {error}") from None
        stem = os.path.splitext(name)[0]
        names = [name, *(stem + suffix for suffix in SUFFIXES)]
        return next((name for name in names if folder.has(name)), name)


def _answer(entry: dict[str, Any]) -> str:
    """The answer that most annotators gave, the first of several, where the file does not name it."""
    if entry.get("multiple_choice_answer") is not None:
        return text_of(entry, "multiple_choice_answer")
    answers = entry.get("answers")
    if not isinstance(answers, list) or not answers:
        raise RejectedError("missing_field", "the annotation has neither 'multiple_choice_answer' nor 'answers'")
    return Counter(text_of(answer, "answer") for answer in answers).most_common(1)[0][0]


def _not_blank(text: str, what: str) -> str:
    if not text.strip():
        raise RejectedError("empty", f"the {what} is empty")
    return text
