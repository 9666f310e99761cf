"""Makes a corpus of questions about pictures, in the files of VQAv2 or of OK-VQA, from a public package.

    pip install easy-vqa==1.0 pillow
    python examples/make_vqa.py --format vqav2 --out data/vqa

The package (MIT, 2 MB) has 5,000 drawn shapes of 64x64 pixels with 48,248 questions. It has one true answer to a
question, which stands here for all ten people's answers. A corpus has 60 MB, most of it JSON, and takes two seconds.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import easy_vqa
from packages import finished_at
from PIL import Image
from rich.progress import track

SPLITS = {
    "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
    "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
}
FILES = {
    "vqav2": ("v2_OpenEnded_easyvqa_{}_questions.json", "v2_easyvqa_{}_annotations.json"),
    "okvqa": ("OpenEnded_easyvqa_{}_questions.json", "easyvqa_{}_annotations.json"),
}
ANSWERS = 10
"""A question has the answers of ten people."""

QUESTION_TYPES = {"one": "Shapes", "two": "Colors", "three": "Yes or No"}
"""OK-VQA numbers its kinds of knowledge."""

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


def questions_and_annotations(split: str, format_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both files of a split, as the data set's download page describes them."""
    common = {
        "info": {"description": "easy-VQA", "url": "", "version": "1.0", "year": 2019, "contributor": "Victor Zhou"},
        "license": {"name": "MIT", "url": ""},
        "data_type": "easyvqa",
        "data_subtype": split,
    }
    questions, annotations, asked = [], [], {}
    for question, answer, image_id in zip(*SPLITS[split][0](), strict=True):
        asked[image_id] = asked.get(image_id, -1) + 1
        question_id = image_id * 1000 + asked[image_id]
        questions.append({"image_id": image_id, "question": question, "question_id": question_id})
        annotations.append(annotation(question, answer, image_id, question_id, format_name))
    more = {"question_types": QUESTION_TYPES} if format_name == "okvqa" else {}
    return common | {"task_type": "Open-Ended", "questions": questions}, common | more | {"annotations": annotations}


def annotation(question: str, answer: str, image_id: int, question_id: int, format_name: str) -> dict[str, Any]:
    """A question's answers; OK-VQA has each as written and stemmed, and no multiple choice."""
    given = {"answer": answer, "answer_confidence": "yes"}
    ids = {"image_id": image_id, "question_id": question_id}
    if format_name == "okvqa":
        kind = "three" if answer in ("yes", "no") else "two" if answer in COLORS else "one"
        answers = [{"answer_id": number, "raw_answer": answer, **given} for number in range(1, ANSWERS + 1)]
        return {**ids, "question_type": kind, "answer_type": "other", "answers": answers, "confidence": 5}
    answers = [{**given, "answer_id": number} for number in range(1, ANSWERS + 1)]
    return {
        **ids,
        "question_type": " ".join(question.split()[:2]),
        "answer_type": "yes/no" if answer in ("yes", "no") else "other",
        "multiple_choice_answer": answer,
        "answers": answers,
    }


def write_images(split: str, folder: Path, suffix: str) -> None:
    """The split's pictures under the names that VQA's own tools look for; as JPEG where ``suffix`` is ``jpg``."""
    folder.mkdir()
    for image_id, file in track(sorted(SPLITS[split][1]().items()), f"{split} pictures"):
        path = folder / f"COCO_{split}_{image_id:012d}.{suffix}"
        if suffix == "png":
            shutil.copyfile(file, path)
        else:
            with Image.open(file) as image:
                image.convert("RGB").save(path, quality=95)


def main() -> None:
    """Reads the arguments and writes the corpus, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--format", choices=FILES, default="vqav2", help="default: vqav2")
    parser.add_argument("--images", choices=["png", "jpg"], default="png", help="png copies the files; default: png")
    arguments = parser.parse_args()
    if arguments.out.exists():
        print(f"{arguments.out} is there already")
        return
    counts = []
    with finished_at(arguments.out) as out:
        out.mkdir()
        for split in SPLITS:
            files = questions_and_annotations(split, arguments.format)
            for name, content in zip(FILES[arguments.format], files, strict=True):
                (out / name.format(split)).write_text(json.dumps(content), encoding="utf-8")
            write_images(split, out / split, arguments.images)
            counts.append(f"{len(files[0]['questions'])} questions to {split}")
    print(f"{arguments.out}: {', '.join(counts)}")


if __name__ == "__main__":
    main()
