import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.pipelines.documents.image_folder import VqaFile
from gatokit.pipelines.documents.reader import content_digest
from gatokit.pipelines.formats.records import ByteRange
from gatokit.schemas.errors import DataError

LARGE = 1 << 30
NAME = "COCO_{data_subtype}_{image_id:012d}.jpg"


def vqa(folder: Path, questions: list[Any], annotations: list[Any], pictures: dict[str, bytes], **more: Any) -> VqaFile:
    """Files as VQAv2's are: an object with the subtype behind or before the list."""
    (folder / "images").mkdir(exist_ok=True)
    for name, data in pictures.items():
        (folder / "images" / name).write_bytes(data)
    head = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {"name": "CC"}}
    subtype = {"data_subtype": "val2014"}
    (folder / "questions.json").write_text(json.dumps({**head, "questions": questions, **subtype}))
    (folder / "annotations.json").write_text(json.dumps({**head, **subtype, "annotations": annotations}))
    options = {"image_name": NAME, "template": "Q: {question} A: {answer}", **more}
    return VqaFile(
        path=os.fspath(folder / "questions.json"),
        name="questions.json",
        size=(folder / "questions.json").stat().st_size,
        annotations=os.fspath(folder / "annotations.json"),
        image_dir=os.fspath(folder / "images"),
        **options,
    )


def ask(id: int, image_id: int, question: str) -> dict[str, Any]:
    return {"image_id": image_id, "question": question, "question_id": id}


def answer(id: int, image_id: int, *answers: str, best: str | None = None) -> dict[str, Any]:
    """An annotation of VQAv2 with ``best``, of OK-VQA without."""
    given = [
        {"answer": each, "raw_answer": each + "s", "answer_confidence": "yes", "answer_id": at}
        for at, each in enumerate(answers)
    ]
    named = {} if best is None else {"multiple_choice_answer": best}
    return {"question_id": id, "image_id": image_id, "question_type": "what", "answers": given, **named}


def rows(file: VqaFile) -> dict[str, str | None]:
    return {found.key: found.reason for found in file.scan(LARGE)}


def kept(file: VqaFile) -> list[ByteRange]:
    return [found.byte_range for found in file.scan(LARGE) if found.reason is None]


def test_questions_in_full(tmp_path: Path) -> None:
    file = vqa(
        tmp_path,
        [ask(420000, 42, "What is this?"), ask(7000, 7, "Why {answer}?"), ask(420001, 42, "Is it {0}{{}}?")],
        [answer(7000, 7, "a", "b", best="{question}"), answer(420001, 42, best="yes"), answer(420000, 42, best="net")],
        {"COCO_val2014_000000000042.jpg": b"forty-two", "COCO_val2014_000000000007.jpg": b"seven"},
    )
    found = list(file.scan(LARGE))
    assert [(one.key, one.group, one.byte_range.position) for one in found] == [
        ("420000", "COCO_val2014_000000000042.jpg", 0),
        ("420001", "COCO_val2014_000000000042.jpg", 1),
        ("7000", "COCO_val2014_000000000007.jpg", 2),
    ]
    expected: list[list[str | bytes]] = [
        [b"forty-two", "Q: What is this? A: net"],
        [b"forty-two", "Q: Is it {0}{{}}? A: yes"],
        [b"seven", "Q: Why {answer}? A: {question}"],
    ]
    assert [one.content for one in found] == [content_digest(parts) for parts in expected]
    assert list(file.read(one.byte_range for one in found)) == expected


@pytest.mark.parametrize(
    ("answers", "best"),
    [(["a", "b", "b"], "b"), (["a", "b"], "a"), (["c", "b", "a", "b", "a"], "b"), (["x"] * 10, "x")],
)
def test_the_answer_that_most_gave_the_first_of_several(tmp_path: Path, answers: list[str], best: str) -> None:
    file = vqa(
        tmp_path, [ask(1, 1, "?")], [answer(1, 1, *answers)], {NAME.format(data_subtype="val2014", image_id=1): b"x"}
    )
    assert list(file.read(kept(file))) == [[b"x", f"Q: ? A: {best}"]]


@settings(max_examples=50)
@given(
    pairs=st.lists(
        st.tuples(st.integers(0, 3), st.text(min_size=1), st.text(min_size=1)).filter(
            lambda each: bool(each[1].strip() and each[2].strip())
        ),
        max_size=8,
    ),
    order=st.randoms(),
    data=st.data(),
)
def test_any_pairs_come_back_in_any_selection(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, str, str]], order: Any, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("vqa")
    questions = [ask(at, image, question) for at, (image, question, _) in enumerate(pairs)]
    annotations = [answer(at, image, best=best) for at, (image, _, best) in enumerate(pairs)]
    order.shuffle(annotations)
    pictures = {f"{at}.png": bytes([at] * 9) for at in range(4)}
    options = {"image_name": "{image_id}.jpg", "template": "{answer}|{question}|{{}}"}
    file = vqa(folder, questions, annotations, pictures, **options)
    found = list(file.scan(LARGE))
    assert sorted(int(one.key) for one in found) == list(range(len(pairs)))
    chosen = [one for one in found if data.draw(st.booleans())]
    expected = [pairs[int(one.key)] for one in chosen]
    assert list(file.read(one.byte_range for one in chosen)) == [
        [bytes([image] * 9), best + "|" + question + "|{}"] for image, question, best in expected
    ]


def test_each_fault_has_its_reason(tmp_path: Path) -> None:
    file = vqa(
        tmp_path,
        [
            ask(1, 1, "good?"),
            ask(2, 1, "without answer?"),
            ask(3, 9, "without picture?"),
            ask(1, 1, "an id that is taken?"),
            ask(4, 1, " "),
            ask(5, 1, "blank answer?"),
            ask(6, 1, "no answers?"),
            {"question_id": 7, "image_id": 1},
            {"image_id": 1, "question": "no id?"},
            {"question_id": 8, "question": "no image?"},
            {"question_id": 9, "question": "image of another kind?", "image_id": "one"},
            ask(11, 1, "half \udc00?"),
        ],
        [
            *(answer(id, 1, best="yes") for id in (1, 4, 7, 8, 10, 11)),
            answer(3, 9, best="yes"),
            {**answer(9, 1, best="yes"), "image_id": "one"},
            answer(5, 1, best=""),
            answer(6, 1),
            answer(1, 1, best="another"),
            {"image_id": 1},
        ],
        {NAME.format(data_subtype="val2014", image_id=1): b"x"},
    )
    details = {found.key: (found.reason, found.detail) for found in file.scan(LARGE) if found.key != "1"}
    assert details == {
        "11": ("not_utf8", "the text holds half of a surrogate pair"),
        "2": ("missing_field", "no annotation has this question_id"),
        "3": ("missing_image", "'COCO_val2014_000000000009.jpg' is not in image_dir: No such file or directory"),
        "4": ("empty", "the question is empty"),
        "5": ("empty", "the answer is empty"),
        "6": ("missing_field", "the annotation has neither 'multiple_choice_answer' nor 'answers'"),
        "7": ("missing_field", "the JSON has no 'question'"),
        "questions[8]": ("missing_field", "the JSON has no 'question_id'"),
        "8": ("missing_field", "the JSON has no 'image_id'"),
        "9": (
            "wrong_shape",
            "image_id 'one' does not fit `image_name`: Unknown format code 'd' for object of type 'str'",
        ),
        "10": ("missing_field", "no question has this question_id"),
        "annotations[10]": ("duplicate_id", "a second annotation has question_id 1"),
        "annotations[11]": ("missing_field", "the JSON has no 'question_id'"),
    }
    assert [found.reason for found in file.scan(LARGE) if found.key == "1"] == [None, "duplicate_id"]
    assert list(file.read(kept(file))) == [[b"x", "Q: good? A: yes"]]


def test_an_answer_about_another_picture(tmp_path: Path) -> None:
    pictures = {NAME.format(data_subtype="val2014", image_id=number): bytes([number]) for number in (1, 2)}
    nameless = answer(3, 0, best="yes")
    del nameless["image_id"]
    file = vqa(
        tmp_path,
        [ask(1, 1, "red?"), ask(2, 2, "blue?"), ask(3, 2, "is it?"), ask(4, 1, "a string?")],
        [answer(1, 2, best="no"), answer(2, 2, best="yes"), nameless, {**answer(4, 1, best="so"), "image_id": "1"}],
        pictures,
    )
    assert {found.key: (found.reason, found.detail) for found in file.scan(LARGE)} == {
        "1": ("contradiction", "the question is of the picture 1, and its annotation is of 2"),
        "2": (None, None),
        "3": (None, None),
        "4": (None, None),
    }


@pytest.mark.parametrize(
    ("ids", "subtype", "sentence"),
    [
        ((1, 2), "train2014", "questions.json: asks of 'val2014', and annotations.json answers of 'train2014'; "),
        ((3, 4), "val2014", "questions.json: annotations.json answers none of its questions; "),
        ((2, 3), "val2014", None),
    ],
)
def test_questions_and_answers_of_different_sets(
    tmp_path: Path, ids: tuple[int, int], subtype: str, sentence: str | None
) -> None:
    file = vqa(
        tmp_path,
        [ask(1, 1, "?"), ask(2, 1, "!")],
        [answer(id, 1, best="yes") for id in ids],
        {NAME.format(data_subtype="val2014", image_id=1): b"x"},
    )
    content = json.loads((tmp_path / "annotations.json").read_text())
    (tmp_path / "annotations.json").write_text(json.dumps({**content, "data_subtype": subtype}))
    if sentence is None:
        assert rows(file) == {"1": "missing_field", "2": None, "3": "missing_field"}
        return
    with pytest.raises(DataError) as caught:
        rows(file)
    hint = "give the answers JSON of the same questions as `annotations` (test sets have no public answers)"
    assert str(caught.value) == sentence + hint


@pytest.mark.parametrize("suffix", [".png", ".jpeg", ".webp"])
def test_a_image_under_another_suffix_is_found(tmp_path: Path, suffix: str) -> None:
    file = vqa(tmp_path, [ask(1, 1, "?")], [answer(1, 1, best="!")], {f"COCO_val2014_000000000001{suffix}": b"x"})
    assert [found.group for found in file.scan(LARGE)] == [f"COCO_val2014_000000000001{suffix}"]
    assert list(file.read(kept(file))) == [[b"x", "Q: ? A: !"]]


def test_the_name_itself_comes_before_other_suffixes(tmp_path: Path) -> None:
    pictures = {"1.png": b"png", "1.jpg": b"jpg", "1.webp": b"webp"}
    file = vqa(tmp_path, [ask(1, 1, "?")], [answer(1, 1, best="!")], pictures, image_name="{image_id}.png")
    assert list(file.read(kept(file))) == [[b"png", "Q: ? A: !"]]


def test_a_name_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"x")
    file = vqa(tmp_path, [ask(1, 1, "?")], [answer(1, 1, best="!")], {}, image_name="../{image_id}.jpg")
    assert rows(file) == {"1": "missing_image"}


def test_files_without_answers_or_questions_are_refused(tmp_path: Path) -> None:
    file = vqa(tmp_path, [], [], {})
    test_set = file.model_copy(update={"annotations": file.path})
    swapped = file.model_copy(update={"path": file.annotations})
    missing = file.model_copy(update={"annotations": os.fspath(tmp_path / "none.json")})
    sentences = []
    for each in (test_set, swapped, missing):
        with pytest.raises(DataError) as caught:
            list(each.scan(LARGE))
        sentences.append(str(caught.value))
    answers = "give the answers JSON of the same questions as `annotations` (test sets have no public answers)"
    assert sentences == [
        f"questions.json: has no list 'annotations'; {answers}",
        "questions.json: has no list 'questions'; give the questions JSON of VQAv2 or OK-VQA as `questions`",
        f"none.json: cannot be read: No such file or directory; {answers}",
    ]


def test_a_subtype_that_a_name_needs_must_be_there(tmp_path: Path) -> None:
    file = vqa(tmp_path, [ask(1, 1, "?")], [answer(1, 1, best="!")], {"1.jpg": b"x"})
    content = json.loads((tmp_path / "questions.json").read_text())
    del content["data_subtype"]
    (tmp_path / "questions.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"questions\.json: has no 'data_subtype', which `image_name` uses"):
        list(file.scan(LARGE))
    assert rows(file.model_copy(update={"image_name": "{image_id}.jpg"})) == {"1": None}
