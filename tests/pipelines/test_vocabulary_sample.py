"""Which text a vocabulary is trained on."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatokit.pipelines.vocabulary import CUT, LONGEST_CHARACTERS, Drawn, Piece, Sample, draw, sentences
from gatokit.schemas.config import read_config


def drawn(config: Path, work: Path, most_bytes: int = 1 << 20) -> Drawn:
    work.mkdir()
    return draw(read_config(config), config.parent, work, most_bytes, 1 << 20, lambda stage, done, total: None)


def texts(sample: list[Piece]) -> set[str]:
    return {piece.text for piece in sample}


def jsonl(path: Path, documents: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))


CONFIG = """
vocabulary: text.model
holdout: {holdout}
datasets:
  - {{name: one, kind: text, source: one/*.jsonl}}
  - {{name: two, kind: text, source: two.txt}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    jsonl(tmp_path / "one" / "a.jsonl", ["first", "second\nline", "first", "  "])
    jsonl(tmp_path / "one" / "b.jsonl", ["third\0part", "\u2585"])
    (tmp_path / "two.txt").write_text("fourth \u2581 é\n")
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.format(holdout=0))
    return path


def test_the_whole_of_a_small_corpus(config, tmp_path):
    """Neither duplicates nor empty documents, and SentencePiece's own signs cut."""
    found = drawn(config, tmp_path / "work")
    assert found.names == ["one", "two"]
    assert found.documents == [4, 1]
    assert texts(found.train) == {"first", "second\nline", f"third{CUT}part", f"fourth {CUT} é\n"}
    assert sorted(piece.size for piece in found.train) == [5, 9, 11, 11]
    assert found.held_out == []


def test_held_out_documents_are_no_part_of_it(config, tmp_path):
    config.write_text(CONFIG.format(holdout=0.5))
    jsonl(tmp_path / "one" / "a.jsonl", [f"text {number}" for number in range(50)])
    (tmp_path / "one" / "b.jsonl").unlink()
    found = drawn(config, tmp_path / "work")
    train, apart = texts(found.train), texts(found.held_out)
    assert not train & apart
    assert {f"text {number}" for number in range(50)} | {f"fourth {CUT} é\n"} == train | apart
    assert 10 < len(apart) < 40
    assert found.documents == [50 - len(apart), 1]


def test_the_sample_follows_ids_and_not_the_order_of_lines_or_paths(tmp_path):
    random_ = random.Random(0)
    samples = []
    for place in ("here", "there/below"):
        folder = tmp_path / place
        jsonl(folder / "one" / "a.jsonl", ["a" * random_.randrange(1, 2000) for _ in range(0)] or document_texts("a"))
        jsonl(folder / "one" / "b.jsonl", document_texts("b"))
        (folder / "two.txt").write_text("\n".join(document_texts("c")))
        (folder / "c.yaml").write_text(CONFIG.format(holdout=0.01))
        samples.append(drawn(folder / "c.yaml", folder / "work", 100_000))
    assert samples[0] == samples[1]
    size = sum(piece.size for piece in samples[0].train)
    assert 100_000 - 4 * LONGEST_CHARACTERS < size <= 100_000


def document_texts(seed: str) -> list[str]:
    random_ = random.Random(seed)
    return [f"{seed} {number} " + "word " * random_.randrange(1, 300) for number in range(300)]


def test_every_dataset_has_its_share(tmp_path):
    jsonl(tmp_path / "one" / "a.jsonl", document_texts("a") + document_texts("b") + document_texts("c"))
    (tmp_path / "two.txt").write_text("\n".join(document_texts("d")))
    (tmp_path / "c.yaml").write_text(CONFIG.format(holdout=0))
    whole = drawn(tmp_path / "c.yaml", tmp_path / "whole", 1 << 30)
    part = drawn(tmp_path / "c.yaml", tmp_path / "part", 300_000)
    share = [
        sum(piece.size for piece in sample.train if piece.dataset == 1) / sum(piece.size for piece in sample.train)
        for sample in (whole, part)
    ]
    assert share[0] == pytest.approx(0.25, abs=0.02)
    assert share[1] == pytest.approx(share[0], abs=0.15)
    assert {piece.text for piece in part.train} < {piece.text for piece in whole.train}


def test_a_document_larger_than_the_sample_gives_a_part_of_itself(tmp_path):
    jsonl(tmp_path / "one" / "a.jsonl", ["short"])
    (tmp_path / "two.txt").write_text("".join(f"line {number}\n" for number in range(50_000)))
    (tmp_path / "c.yaml").write_text(CONFIG.format(holdout=0))
    found = drawn(tmp_path / "c.yaml", tmp_path / "work", 100_000)
    parts = [piece for piece in found.train if piece.dataset == 1]
    assert len(parts) > 3
    assert {piece.document for piece in parts} == {1}
    assert all(piece.text.startswith(("line 0", "\nline ")) for piece in parts)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 60)), unique_by=lambda item: item[0]), st.randoms())
def test_a_sample_is_the_lowest_keys_that_fit(items, random_):
    """Against the definition: all keys in order, until one does not fit."""
    sample = Sample(100)
    shuffled = list(items)
    random_.shuffle(shuffled)
    for key, size in shuffled:
        sample.add(key, Piece(0, key, "", size))
    left, expected = 100, []
    for key, size in sorted(items):
        left -= size
        if left < 0:
            break
        expected.append(key)
    assert [piece.document for piece in sample.pieces()] == expected


@given(st.lists(st.sampled_from(["\n", "\r\n", " ", "word", "x" * 5000, "é" * 9000, "\n" * 9000, "\n\n"])).map("".join))
def test_sentences_are_the_text(text):
    parts = list(sentences(text))
    assert "".join(parts) == text
    assert all(0 < len(part) <= LONGEST_CHARACTERS for part in parts)


def test_sentences_are_cut_before_line_ends():
    line = "word " * 1000 + "end.\r\n\r\n"
    parts = list(sentences(line * 5))
    assert [len(part) for part in parts] == [15_020, 10_020]
    assert all(part.startswith("\r\n\r\nword ") for part in parts[1:])
    assert [len(part) for part in sentences("x" * 40_000)] == [16_384, 16_384, 7_232]
    assert [part[:3] for part in sentences("ab " * 10_000)] == ["ab ", " ab"]


def test_missions_of_episodes_are_text(recorded_config, tmp_path):
    found = drawn(recorded_config, tmp_path / "work")
    assert found.names == ["babyai"]
    assert 0 < found.documents[0] < 64
    missions = texts(found.train) | texts(found.held_out)
    assert all(mission.startswith(("go to ", "pick up ")) for mission in missions)
    assert {piece.dataset for piece in found.train} == {0}
    assert len(found.train) == found.documents[0]


def test_pages_captions_and_questions(tmp_path):
    import cv2
    import numpy as np

    picture = cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "COCO_train_000000000007.png").write_bytes(picture)
    questions = [{"question_id": 1, "image_id": 7, "question": "What {is} it?"}]
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": "train", "questions": questions}))
    annotations = [{"question_id": 1, "image_id": 7, "multiple_choice_answer": "a dot"}]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
    captions = {
        "images": [{"id": 7, "file_name": "COCO_train_000000000007.png"}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "One black dot"}],
    }
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    page = {
        "text_list": ["Before.", "Behind."],
        "image_info": [{"image_name": "COCO_train_000000000007.png", "matched_text_index": 1}],
    }
    (tmp_path / "pages.jsonl").write_text(json.dumps(page) + "\n")
    (tmp_path / "c.yaml").write_text("""
vocabulary: text.model
holdout: 0
datasets:
  - {name: vqa, kind: image_question_answer, questions: q.json, annotations: a.json, image_dir: images}
  - {name: captions, kind: image_text, format: coco, source: captions.json, image_dir: images}
  - {name: pages, kind: interleaved, format: mmc4, source: pages.jsonl, image_dir: images}
""")
    found = drawn(tmp_path / "c.yaml", tmp_path / "work")
    assert sorted((piece.dataset, piece.text, piece.size) for piece in found.train) == [
        (0, "Q: What {is} it? A: a dot", 25),
        (1, "One black dot", 13),
        (2, f"Before.{CUT}Behind.", 14),
    ]
