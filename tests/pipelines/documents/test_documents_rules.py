"""What of a corpus stays and where it goes: duplicates, document ends, the held-out part, limits, chunks, shards."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build, scan
from gatokit.schemas.manifest import Overlap
from gatokit.storage.folder import read_manifest

Go = Callable[..., Any]
PNG = cv2.imencode(".png", np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))[1].tobytes()


@pytest.fixture
def configured(tmp_path: Path, exact_vocabulary: Path) -> Callable[..., Path]:
    """Writes a config of one dataset ``d``, or of several ``(name, dataset)``."""

    def write(*datasets: str | tuple[str, str], config: str = "") -> Path:
        path = tmp_path / "c.yaml"
        named = [("d", dataset) if isinstance(dataset, str) else dataset for dataset in datasets]
        lines = "".join(f"  - {{name: {name}, {dataset}}}\n" for name, dataset in named)
        path.write_text(f"vocabulary: {exact_vocabulary}\n{config}\ndatasets:\n{lines}")
        return path

    return write


@pytest.fixture
def go(tmp_path: Path, configured: Callable[..., Path], read_documents: Callable[..., Any]) -> Go:
    """Builds and verifies one dataset anew, and reads it back."""

    def built(dataset: str, config: str = "", **options: Any) -> Any:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        build(configured(dataset, config=config), out, **options)
        assert verify(out) == []
        return read_documents(out, "d")

    return built


@pytest.fixture
def scanned(tmp_path: Path, configured: Callable[..., Path]) -> Callable[..., dict[str, list[dict[str, Any]]]]:
    """Scans one dataset anew; by fingerprint of the split, its index rows."""

    def go(dataset: str, config: str = "holdout: 0") -> dict[str, list[dict[str, Any]]]:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        scan(configured(dataset, config=config), out)
        assert verify(out) == []
        [found] = read_manifest(out).datasets
        return {split.fingerprint: pq.read_table(out / "d" / split.index).to_pylist() for split in found.splits}

    return go


def write_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def texts(number: int, begin: int = 0) -> list[str]:
    return [f"The text of document {at}, and what it says." for at in range(begin, begin + number)]


def write_captions(folder: Path, captions: list[tuple[int, str]]) -> None:
    """COCO: each caption with the number of its picture, which is its shade of gray."""
    (folder / "images").mkdir(exist_ok=True)
    numbers = sorted({number for number, _ in captions})
    for number in numbers:
        pixels = np.full((16, 16, 3), number, np.uint8)
        (folder / "images" / f"{number}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    images = [{"id": number, "file_name": f"{number}.png"} for number in numbers]
    annotations = [{"id": at, "image_id": number, "caption": text} for at, (number, text) in enumerate(captions)]
    (folder / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))


COCO = "kind: image_text, format: coco, source: c.json, image_dir: images"


# --- duplicates --------------------------------------------------------------------------------------------


def test_of_equal_documents_the_first_stays(tmp_path, go):
    write_lines(tmp_path / "a.jsonl", ["one", "two", "one", "One", "one "])
    write_lines(tmp_path / "b.jsonl", ["two", "three", "one", "three"])
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1, "text": "th\\u0072ee"}\n{"text": "four"}\n'))
    built = go("kind: text, source: '*.jsonl*'")
    assert [(row["episode_id"], row["reason"]) for row in built.rows] == [
        ("a.jsonl#0", None),
        ("a.jsonl#1", None),
        ("a.jsonl#2", "duplicate"),
        ("a.jsonl#3", None),
        ("a.jsonl#4", None),
        ("b.jsonl#0", "duplicate"),
        ("b.jsonl#1", None),
        ("b.jsonl#2", "duplicate"),
        ("b.jsonl#3", "duplicate"),
        ("c.jsonl.gz#0", "duplicate"),
        ("c.jsonl.gz#1", None),
    ]
    assert (built.totals.episodes, built.totals.kept) == (11, 6)
    every = go("kind: text, source: '*.jsonl*', drop_duplicates: false")
    assert {row["reason"] for row in every.rows} == {None}
    assert [every.parts[f"a.jsonl#{at}"] for at in (0, 2)] == [["one"], ["one"]]
    assert every.totals.kept == 11


def test_no_held_out_document_is_in_the_training_part(tmp_path, go):
    drawn = np.random.default_rng(0).integers(0, 60, 300)
    for name, part in {"a": drawn[:150], "b": drawn[150:]}.items():
        write_lines(tmp_path / f"{name}.jsonl", [f"text {number}" for number in part])
    built = go("kind: text, source: '*.jsonl'", "holdout: 0.3\nshard_bytes: 1024")
    train, apart = ({built.parts[id_][0] for id_ in built.of(split)} for split in ("train", "held_out"))
    assert train & apart == set()
    assert train | apart == {f"text {number}" for number in drawn}
    assert len(apart) > 5
    # Without dropping, the copies of a text stand on one side.
    every = go("kind: text, source: '*.jsonl', drop_duplicates: false", "holdout: 0.3\nshard_bytes: 1024")
    train, apart = ({every.parts[id_][0] for id_ in every.of(split)} for split in ("train", "held_out"))
    assert train & apart == set()
    assert 0 < len(every.of("held_out")) < 300
    assert every.totals.overlap == Overlap(pictures=0, texts=0)


def test_captions_are_equal_where_image_and_text_are(tmp_path, go):
    write_captions(tmp_path, [(0, "a box"), (0, "a box"), (1, "a box"), (0, "a ball"), (1, "a box")])
    assert go(COCO).reasons() == {
        "c.json#0": None,
        "c.json#1": "duplicate",
        "c.json#3": None,
        "c.json#2": None,
        "c.json#4": "duplicate",
    }


def test_a_document_that_cannot_be_read_is_nobodys_first(tmp_path, go):
    (tmp_path / "t.jsonl").write_text('{"text": "one"\n{"text": "one"}\n{"text": "one"}\n')
    assert list(go("kind: text, source: t.jsonl").reasons().values()) == ["corrupt_record", None, "duplicate"]


# --- the end of a document ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [True, False])
def test_documents_end_with_the_end_piece_or_do_not(end, tmp_path, go):
    write_captions(tmp_path, [(0, "é"), (1, "ü")])
    rule = {True: "", False: ", end_of_document: false"}[end]
    built = go(COCO + rule)
    bytes_ = 3  # behind unknown, begin and end
    last = [2] if end else []
    assert built.sequences["c.json#0"].tokens.tolist() == [65535, bytes_ + 0xC3, bytes_ + 0xA9, *last]
    assert built.sequences["c.json#0"].kinds.tolist() == [2, 1, 1, *([1] if end else [])]
    assert built.described.documents.end_of_document is end
    assert built.parts["c.json#1"][1] == "ü"


# --- the held-out part -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "holdout", "least", "most"),
    [(2, 0.01, 1, 1), (2, 0.99, 1, 1), (1, 0.5, 0, 0), (3, 0, 0, 0), (60, 0.001, 1, 1), (60, 0.999, 59, 59)],
)
def test_at_least_one_is_held_out_and_never_all(documents, holdout, least, most, tmp_path, scanned):
    write_lines(tmp_path / "t.jsonl", texts(documents))
    [rows] = scanned("kind: text, source: t.jsonl", f"holdout: {holdout}").values()
    assert least <= [row["split"] for row in rows].count("held_out") <= most
    assert {row["split"] for row in rows} <= {"train", "held_out"}


def test_captions_of_one_image_are_held_out_together(tmp_path, scanned):
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(40), 3))
    write_captions(tmp_path, [(int(number), f"caption {at}") for at, number in enumerate(order)])
    [rows] = scanned(COCO, "holdout: 0.3").values()
    splits: dict[int, set[str]] = {}
    for row in rows:
        splits.setdefault(int(order[int(row["episode_id"].partition("#")[2])]), set()).add(row["split"])
    assert [len(found) for found in splits.values()] == [1] * 40
    assert 3 <= [row["split"] for row in rows].count("held_out") // 3 <= 25


def test_the_held_out_part_does_not_depend_on_what_else_is_there(tmp_path, configured, read_documents):
    write_lines(tmp_path / "a.jsonl", texts(50))
    write_lines(tmp_path / "b.jsonl", texts(30, begin=20))
    one, other = ("d", "kind: text, source: a.jsonl"), ("e", "kind: text, source: b.jsonl")
    drawn = "holdout: 0.2"
    build(configured(one, config=drawn), tmp_path / "alone")
    build(configured(other, one, config=drawn), tmp_path / "both")
    build(configured(other, one, config=drawn), tmp_path / "only", only="d")
    apart = [read_documents(tmp_path / name, "d").of("held_out") for name in ("alone", "both", "only")]
    assert apart[0] == apart[1] == apart[2]
    assert 3 < len(apart[0]) < 25
    assert not (tmp_path / "only" / "e").exists()
    # Another seed draws others, and another dataset does not take the same ones by their ordinals.
    build(configured(one, config=f"{drawn}\nseed: 1"), tmp_path / "seed")
    assert read_documents(tmp_path / "seed", "d").of("held_out") != apart[0]
    numbers = [
        {id_.partition("#")[2] for id_ in found}
        for found in (apart[0], read_documents(tmp_path / "both", "e").of("held_out"))
    ]
    assert numbers[0] != numbers[1]


def test_documents_that_are_added_move_none_of_the_others(tmp_path, scanned):
    write_lines(tmp_path / "a.jsonl", texts(40))
    dataset, config = "kind: text, source: '*.jsonl'", "holdout: 0.3"
    before = {row["episode_id"]: row["split"] for rows in scanned(dataset, config).values() for row in rows}
    write_lines(tmp_path / "b.jsonl", texts(40, begin=40))
    after = {row["episode_id"]: row["split"] for rows in scanned(dataset, config).values() for row in rows}
    assert {id_: after[id_] for id_ in before} == before
    assert len(after) == 80


# --- limits and chunks -------------------------------------------------------------------------------------


def test_a_limit_takes_the_first_documents(tmp_path, go):
    write_lines(tmp_path / "a.jsonl", ["one", "one", " ", "two", "three"])
    write_lines(tmp_path / "b.jsonl", ["four"])
    built = go("kind: text, source: '*.jsonl'", limit=4)
    assert list(built.reasons().items()) == [
        ("a.jsonl#0", None),
        ("a.jsonl#1", "duplicate"),
        ("a.jsonl#2", "empty"),
        ("a.jsonl#3", None),
    ]
    assert (built.totals.episodes, built.totals.kept) == (4, 2)
    assert list(go("kind: text, source: '*.jsonl'", limit=6).reasons()) == [f"a.jsonl#{at}" for at in range(5)] + [
        "b.jsonl#0"
    ]


@pytest.mark.parametrize("chunk_tokens", [1, 7])
def test_small_chunks_make_many_records(chunk_tokens, tmp_path, go):
    """``read_documents`` compares ``record_tokens`` with the records."""
    write_lines(tmp_path / "t.jsonl", ["x" * 30, "é", *texts(5)])
    built = go("kind: text, source: t.jsonl", f"chunk_tokens: {chunk_tokens}\nholdout: 0.3")
    assert built.parts["t.jsonl#0"] == ["x" * 30]
    for row in built.rows:
        assert row["record_tokens"] == [chunk_tokens] * (row["tokens"] // chunk_tokens) + (
            [row["tokens"] % chunk_tokens] if row["tokens"] % chunk_tokens else []
        )
    by_id = {row["episode_id"]: row["record_tokens"] for row in built.rows}
    assert by_id["t.jsonl#1"] == ([1, 1, 1] if chunk_tokens == 1 else [3])
    assert built.totals.training + built.totals.held_out == sum(map(len, by_id.values()))


def test_a_image_is_whole_in_a_record_of_its_own_where_chunks_are_smaller(tmp_path, go):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes())
    page = {"text_list": ["éé", "ü"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(page))
    built = go("kind: interleaved, format: mmc4, source: t.jsonl, image_dir: images", "chunk_tokens: 3")
    [row] = built.rows
    assert row["record_tokens"] == [3, 1, 12, 3]


# --- shards ------------------------------------------------------------------------------------------------


def positions(splits: dict[str, list[dict[str, Any]]]) -> list[list[tuple[str, int]]]:
    return [[(row["source_file"], row["source_position"]) for row in rows] for rows in splits.values()]


def test_a_large_file_divides_at_its_documents_and_a_compressed_one_does_not(tmp_path, go):
    write_lines(tmp_path / "a.jsonl", texts(100))
    size = (tmp_path / "a.jsonl").stat().st_size
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes().replace(b"what", b"all")))
    built = go("kind: text, source: '*.jsonl*'", "shard_bytes: 1500")
    shards = [split.rows for split in built.totals.splits]
    whole = shards.pop()
    assert whole == 100
    assert len(shards) == -(-(size - 100) // 1500)
    assert sum(shards) == 100
    assert max(shards) - min(shards) <= 2
    assert len(built.parts) == 200
    assert [row["source_position"] for row in built.rows] == [*range(100), *range(100)]


def test_neither_units_nor_batches_matter(tmp_path, configured, monkeypatch, read_documents):
    """Of a scan, and of what is tokenized together."""
    from gatokit.pipelines import planning
    from gatokit.pipelines.documents import reader
    from gatokit.pipelines.documents import tokenize as documents

    for name in "abcd":
        write_lines(tmp_path / f"{name}.jsonl", [*texts(14, begin=10 * ord(name)), " "])
    (tmp_path / "0.jsonl").write_bytes(b"\n")
    config = configured("kind: text, source: '*.jsonl'", config="shard_bytes: 1024\nholdout: 0.2")
    build(config, tmp_path / "out")
    monkeypatch.setattr(planning, "SCAN_UNIT_BYTES", 1)
    monkeypatch.setattr(reader, "_BATCH_ROWS", 3)
    monkeypatch.setattr(documents, "_BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(documents, "_BATCH_CHARACTERS", 50)
    build(config, tmp_path / "other")
    digests = [[file.model_dump() for file in read_manifest(tmp_path / out).files] for out in ("out", "other")]
    assert digests[0] == digests[1]
    built = read_documents(tmp_path / "other", "d")
    assert [row["reason"] for row in built.rows].count("duplicate") == 12
    assert 1 < len(built.totals.splits) < 5
    build(config, tmp_path / "limited", limit=16)
    assert [row["episode_id"] for row in read_documents(tmp_path / "limited", "d").rows] == [
        *(f"a.jsonl#{at}" for at in range(15)),
        "b.jsonl#0",
    ]


def write_many(folder: Path, numbers: list[int]) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        write_lines(folder / f"{number:03}.jsonl", texts(3, begin=1000 * number))


def test_small_files_share_shards_and_a_new_one_moves_its_neighbours_alone(tmp_path, scanned):
    dataset, config = "kind: text, source: data/*", "holdout: 0\nshard_bytes: 1500"
    numbers = [*range(40), *range(41, 80)]
    write_many(tmp_path / "data", numbers)
    before = scanned(dataset, config)
    assert 5 < len(before) < 40
    assert [place for split in positions(before) for place in split] == [
        (f"{number:03}.jsonl", at) for number in numbers for at in range(3)
    ]
    write_many(tmp_path / "data", [40])
    after = scanned(dataset, config)
    moved = {row["source_file"] for key in after.keys() - before.keys() for row in after[key]}
    assert "040.jsonl" in moved
    assert len(after.keys() - before.keys()) <= 3
    assert all(20 < int(name[:3]) < 60 for name in moved)
    (tmp_path / "data" / "040.jsonl").unlink()
    assert scanned(dataset, config).keys() == before.keys()


def test_fingerprints_know_content_and_rules_but_no_paths_or_times(tmp_path, scanned):
    write_captions(tmp_path, [(at, f"caption {at}") for at in range(3)])
    [first] = scanned(COCO)
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere" / "pictures")
    for path in (tmp_path / "elsewhere" / "pictures").iterdir():
        os.utime(path, (1e9, 1e9))
    (tmp_path / "elsewhere" / "c.json").write_bytes((tmp_path / "c.json").read_bytes())
    os.utime(tmp_path / "c.json", (1e9, 1e9))
    moved = COCO.replace("c.json", "elsewhere/c.json").replace("image_dir: images", "image_dir: elsewhere/pictures")
    for same in (COCO, moved, f"{COCO}, weight: 3, license: CC0, pairs_per_sequence: 2"):
        assert list(scanned(same)) == [first], same
    for other in (
        f"{COCO}, end_of_document: false",
        f"{COCO}, images: {{size: [16, 16]}}",
        f"{COCO}, images: {{quality: 94}}",
        f"{COCO}, images: {{codec: jpeg}}",
    ):
        assert list(scanned(other)) != [first], other
    assert list(scanned(COCO, "holdout: 0\nchunk_tokens: 100")) != [first]
    assert list(scanned(COCO, "holdout: 0\nmax_bad_fraction: 0.5\nshard_bytes: 2000")) == [first]
    data = (tmp_path / "images" / "1.png").read_bytes()
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "images" / "2.png").read_bytes())
    assert list(scanned(COCO)) != [first]
    (tmp_path / "images" / "1.png").write_bytes(data)
    assert list(scanned(COCO)) == [first]


def test_fingerprints_of_questions_know_their_template(tmp_path, scanned):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(PNG)
    question = {"question_id": 1, "image_id": 1, "question": "?"}
    (tmp_path / "q.json").write_text(json.dumps({"questions": [question]}))
    for name, answer in {"a": "yes", "b": "no", "c": "yes"}.items():
        annotation = {"question_id": 1, "multiple_choice_answer": answer}
        (tmp_path / f"{name}.json").write_text(json.dumps({"annotations": [annotation]}))
    dataset = "kind: image_question_answer, questions: q.json, image_dir: images, image_name: '{image_id}.png'"
    template = "template: '{question} {answer}'"
    keys = [list(scanned(f"{dataset}, annotations: {name}.json")) for name in "abc"]
    assert keys[0] == keys[2] != keys[1]
    assert list(scanned(f"{dataset}, annotations: a.json, {template}")) != keys[0]
