"""What is held out is held out: what rows share stands on one side, and a row stays where it was when data is added."""

import io
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from gatokit.cli.main import main
from gatokit.inspection import open_directory
from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.holdout import Links, held_out, overlap, row_hash, together
from gatokit.pipelines.run import build, scan
from gatokit.schemas.manifest import Overlap
from gatokit.storage.folder import read_manifest

# --- groups ----------------------------------------------------------------------------------------------------


def links(values: list[list[int]]) -> Links:
    """Links of rows that each have these values."""
    found = Links()
    for row, of_row in enumerate(values):
        found.add(np.full(len(of_row), row), np.array(of_row, np.uint64))
    return found


def connected(kept: np.ndarray, *shared: list[list[int]]) -> list[set[int]]:
    """The rows that are connected, found by walking from row to row."""
    rows_of = defaultdict(set)
    for number, values in enumerate(shared):
        for row in np.flatnonzero(kept).tolist():
            for value in values[row]:
                rows_of[number, value].add(row)
    groups, left = [], set(np.flatnonzero(kept).tolist())
    while left:
        group, new = set(), {left.pop()}
        while new:
            group |= new
            new = {other for rows in rows_of.values() if rows & new for other in rows} - group
        groups.append(group)
        left -= group
    return groups


VALUES = st.lists(st.integers(0, 12), max_size=2)


@settings(max_examples=150)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES, st.booleans()), min_size=1, max_size=10), st.floats(0.01, 0.9))
def test_groups_are_what_a_walk_over_the_links_finds(rows: list[Any], share: float) -> None:
    named, pictures, texts, keeps = ([row[column] for row in rows] for column in range(4))
    kept = np.array(keeps)
    hashes = np.array([row_hash(0, str(row)) for row in range(len(rows))], np.uint64)
    of_groups = together(hashes, kept, links(named), links(pictures), links(texts))
    assert (of_groups[~kept] == hashes[~kept]).all()
    groups = connected(kept, named, pictures, texts)
    found = [{row for row in np.flatnonzero(kept) if of_groups[row] == value} for value in np.unique(of_groups[kept])]
    if len(groups) == 1 < kept.sum():
        return  # see below
    assert sorted(map(sorted, found)) == sorted(map(sorted, groups))
    assert all(of_groups[row] == hashes[row] for group in groups if len(group) == 1 for row in group)
    apart = held_out(of_groups, kept, np.zeros(len(rows), int), share)
    assert overlap(links(pictures), kept, apart) == overlap(links(texts), kept, apart) == 0
    assert (1 <= apart.sum() < kept.sum()) if len(groups) > 1 else not apart.any()


@settings(max_examples=60)
@given(st.lists(VALUES, min_size=1, max_size=30), st.lists(st.booleans(), min_size=30, max_size=30))
def test_overlap_counts_values_on_both_sides(values: list[list[int]], sides: list[bool]) -> None:
    apart = np.array(sides[: len(values)])
    train, held = ({value for row, of in enumerate(values) for value in of if apart[row] == side} for side in (0, 1))
    assert overlap(links(values), np.ones(len(values), bool), apart) == len(train & held)


def test_answers_that_recur_everywhere_link_nothing_but_pictures_still_do() -> None:
    """Of 3,000 questions, three a picture, two thirds have one of four answers; every tenth picture has a copy."""
    rows = np.arange(3000)
    pictures = [[int(row) // 3 % 900] for row in rows]
    texts = [[int(row) % 4 if row % 3 else 1000 + int(row)] for row in rows]
    hashes, kept = np.array([row_hash(0, str(row)) for row in rows], np.uint64), np.ones(3000, bool)
    of_groups = together(hashes, kept, Links(), links(pictures), links(texts))
    assert len(np.unique(of_groups)) == 900
    apart = held_out(of_groups, kept, np.zeros(3000, int), 0.1)
    assert 150 < apart.sum() < 450
    assert overlap(links(pictures), kept, apart) == 0
    assert overlap(links(texts), kept, apart) == 4


def test_a_logo_on_every_page_links_nothing() -> None:
    pages = [[7, 100 + page // 2] for page in range(400)]
    hashes, kept = np.array([row_hash(0, str(row)) for row in range(400)], np.uint64), np.ones(400, bool)
    of_groups = together(hashes, kept, Links(), links(pages), Links())
    assert len(np.unique(of_groups)) == 200
    apart = held_out(of_groups, kept, np.zeros(400, int), 0.1)
    assert overlap(links(pages), kept, apart) == 1


def test_a_small_dataset_with_one_picture_on_every_page_is_held_out_by_page() -> None:
    pages = [[7, page] for page in range(100, 109)]
    hashes, kept = np.array([row_hash(0, str(row)) for row in range(9)], np.uint64), np.ones(9, bool)
    assert (together(hashes, kept, Links(), links(pages), Links()) == hashes).all()
    # A dataset of one picture cannot be divided, and nothing is held out.
    alone = together(hashes, kept, Links(), links([[7]] * 9), Links())
    assert len(np.unique(alone)) == 1
    assert not held_out(alone, kept, np.zeros(9, int), 0.5).any()


def test_one_picture_with_many_captions_is_never_divided() -> None:
    hashes, kept = np.array([row_hash(0, str(row)) for row in range(900)], np.uint64), np.ones(900, bool)
    of_groups = together(hashes, kept, Links(), links([[row // 300] for row in range(900)]), Links())
    assert len(np.unique(of_groups)) == 3


@settings(max_examples=80)
@given(st.integers(2, 30), st.integers(0, 30), st.floats(0.001, 0.95), st.integers(0, 5))
def test_what_was_held_out_stays_so_when_rows_are_added(count: int, more: int, share: float, seed: int) -> None:
    hashes = np.array([row_hash(seed, str(row)) for row in range(count + more)], np.uint64)
    first = held_out(hashes[:count], np.ones(count, bool), np.zeros(count, int), share)
    before = np.append(first, np.zeros(more, bool))
    then = held_out(hashes, np.ones(count + more, bool), np.zeros(count + more, int), share, before)
    assert then[:count][first].all()
    assert 1 <= then.sum() < count + more
    again = held_out(hashes, np.ones(count + more, bool), np.zeros(count + more, int), share, then)
    assert again.tolist() == then.tolist()


# --- builds of every format ------------------------------------------------------------------------------------


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


Pairs = list[tuple[int, str]]
# Five captions a picture, and each text with a neighbouring picture, so that pictures are linked two and two.
PAIRS = [
    (number, f"caption {at} of {number // 2 if at == 4 else number + 100}") for number in range(40) for at in range(5)
]
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write_webdataset(folder: Path, pairs: Pairs) -> str:
    for name, part in {"a": pairs[::2], "b": pairs[1::2]}.items():  # in files and an order that say nothing
        with webdataset.TarWriter(str(folder / f"{name}.tar")) as tar:
            for at, (number, text) in enumerate(part):
                tar.write({"__key__": f"{name}{at:04d}", "png": picture(number), "txt": text})
    return "kind: image_text, format: webdataset, source: '*.tar'"


def write_parquet(folder: Path, pairs: Pairs) -> str:
    rows = [
        {"image": {"bytes": picture(number), "path": f"{at}.png"}, "caption": text}
        for at, (number, text) in enumerate(pairs)
    ]
    schema = pa.schema({"image": IMAGE, "caption": pa.string()})
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "a.parquet", row_group_size=50)
    return "kind: image_text, format: parquet, source: a.parquet"


def write_images(folder: Path, pairs: Pairs) -> list[str]:
    """A file for each pair, so that names say nothing."""
    (folder / "images").mkdir()
    names = [f"{at:012d}.png" for at in range(len(pairs))]
    for name, (number, _) in zip(names, pairs, strict=True):
        (folder / "images" / name).write_bytes(picture(number))
    return names


def write_coco(folder: Path, pairs: Pairs) -> str:
    images = [{"id": at, "file_name": name} for at, name in enumerate(write_images(folder, pairs))]
    annotations = [{"id": at, "image_id": at, "caption": text} for at, (_, text) in enumerate(pairs)]
    (folder / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return "kind: image_text, format: coco, source: c.json, image_dir: images"


def write_vqa(folder: Path, pairs: Pairs) -> str:
    write_images(folder, pairs)
    asked = [{"question_id": at, "image_id": at, "question": text} for at, (_, text) in enumerate(pairs)]
    answered = [{"question_id": at, "image_id": at, "multiple_choice_answer": "yes"} for at in range(len(pairs))]
    (folder / "q.json").write_text(json.dumps({"questions": asked}))
    (folder / "a.json").write_text(json.dumps({"annotations": answered}))
    files = "questions: q.json, annotations: a.json, image_dir: images, image_name: '{image_id:012d}.png'"
    return f"kind: image_question_answer, {files}"


def write_mmc4(folder: Path, pairs: Pairs) -> str:
    names = write_images(folder, pairs)
    with open(folder / "p.jsonl", "w") as file:
        for name, (_, text) in zip(names, pairs, strict=True):
            info = [{"image_name": name, "matched_text_index": 0}]
            file.write(json.dumps({"text_list": [text], "image_info": info}) + "\n")
    return "kind: interleaved, format: mmc4, source: p.jsonl, image_dir: images"


def write_obelics(folder: Path, pairs: Pairs) -> str:
    rows = [
        {"images": [{"bytes": picture(number), "path": None}, None], "texts": [None, text]} for number, text in pairs
    ]
    schema = pa.schema({"images": pa.list_(IMAGE), "texts": pa.list_(pa.string())})
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "o.parquet")
    return "kind: interleaved, format: obelics, source: o.parquet"


def write_tfds(folder: Path, pairs: Pairs) -> str:
    import tensorflow_datasets as tfds

    (folder / "tfds").mkdir()
    identity = tfds.core.DatasetIdentity(
        name="scenes", version=tfds.core.Version("1.0.0"), data_dir=str(folder / "tfds"), module_name=""
    )
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"), "caption": tfds.features.Text()}
    )
    info = tfds.core.DatasetInfo(builder=identity, description="a test", features=features)
    writer = tfds.core.SequentialWriter(info, 60, file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples({"train": [{"image": io.BytesIO(picture(number)), "caption": text} for number, text in pairs]})
    writer.close_all()
    return "kind: image_text, format: tfds, source: tfds"


def write_text(folder: Path, pairs: Pairs) -> str:
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for _, text in pairs))
    return "kind: text, source: t.jsonl, drop_duplicates: false"


WRITERS = [
    write_webdataset, write_parquet, write_coco, write_vqa, write_mmc4, write_obelics, write_tfds, write_text
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=[write.__name__ for write in WRITERS])
def test_pictures_and_texts_stand_on_one_side(
    write: Callable[[Path, Pairs], str], tmp_path: Path, exact_vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write(tmp_path, PAIRS)
    config = tmp_path / "c.yaml"
    config.write_text(f"vocabulary: {exact_vocabulary}\nholdout: 0.2\ndatasets:\n  - {{name: d, {dataset}}}\n")
    out = tmp_path / "out"
    build(config, out)
    assert verify(out) == []
    sides: dict[str, dict[Any, int]] = {}
    [dataset_reader] = open_directory(out).datasets.values()
    for split in ("train", "held_out"):
        counted = sides[split] = defaultdict(int)
        for document in dataset_reader.documents(split=split):
            for part in document.parts:
                counted[part if isinstance(part, str) else part.data] += 1
    train, held = sides["train"], sides["held_out"]
    of_pictures = 0 if write is write_text else 40
    assert len(train) + len(held) == of_pictures + len({text for _, text in PAIRS})
    assert train.keys() & held.keys() == set()
    # Pictures are linked two and two: of 20 groups about four are held out.
    assert 1 <= sum(isinstance(part, bytes) for part in held) <= 20 or not of_pictures
    [entry] = read_manifest(out).datasets
    assert entry.overlap == Overlap(pictures=0, texts=0)
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"{entry.held_out} documents are held out; shared with the others: 0 pictures and 0 texts" in " ".join(
        shown.split()
    )
    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["datasets"][0]["overlap"] == {"pictures": 0, "texts": 0}


# --- when data is added ----------------------------------------------------------------------------------------


def held(out: Path) -> set[str]:
    rows = [row for path in out.glob("d/*.index.parquet") for row in pq.read_table(path).to_pylist()]
    return {row["episode_id"] for row in rows if row["split"] == "held_out"}


@pytest.fixture
def configured(tmp_path: Path, exact_vocabulary: Path) -> Callable[..., Path]:
    def write(config: str = "", dataset: str = "kind: text, source: 'src/*.jsonl'") -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(f"vocabulary: {exact_vocabulary}\n{config}\ndatasets:\n  - {{name: d, {dataset}}}\n")
        return path

    return write


def add_texts(folder: Path, number: int) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": f"document {number} {at} about things"}) + "\n" for at in range(15)]
    (folder / f"{number:02d}.jsonl").write_text("".join(lines))


def test_an_update_holds_out_what_the_build_before_did(tmp_path: Path, configured: Callable[..., Path]) -> None:
    out, history = tmp_path / "out", [set[str]()]
    for number in range(5):
        add_texts(tmp_path / "src", number)
        build(configured(), out, update=True)
        assert verify(out) == []
        history.append(held(out))
        assert history[-2] <= history[-1]
    assert len(history[1]) == 1
    # Alone, the last build chooses another row: the one that was forced upon the first is remembered.
    build(configured(), tmp_path / "fresh")
    assert not history[1] <= held(tmp_path / "fresh")
    # The same command again finds its own build, and builds nothing.
    result = build(configured(), out)
    assert result.built == 0
    assert held(out) == history[-1]


def test_a_copy_of_a_held_out_text_joins_it(tmp_path: Path, configured: Callable[..., Path]) -> None:
    add_texts(tmp_path / "src", 0)
    config = configured(dataset="kind: text, source: 'src/*.jsonl', drop_duplicates: false")
    out = tmp_path / "out"
    build(config, out)
    [first] = held(out)
    line = (tmp_path / "src" / "00.jsonl").read_text().splitlines()[int(first.split("#")[1])]
    (tmp_path / "src" / "01.jsonl").write_text(f'{{"text": "new"}}\n{line}\n')
    build(config, out, update=True)
    assert held(out) >= {first, "01.jsonl#1"}
    assert read_manifest(out).datasets[0].overlap == Overlap(pictures=0, texts=0)


def test_another_seed_or_share_chooses_anew(tmp_path: Path, configured: Callable[..., Path]) -> None:
    add_texts(tmp_path / "src", 0)
    out = tmp_path / "out"
    for config in ("holdout: 0.5", "holdout: 0.1", "holdout: 0.1\nseed: 1", "holdout: 0"):
        build(configured(config), out, update=True)
        fresh = tmp_path / "fresh"
        scan(configured(config), fresh / config.replace("\n", " "))
        assert held(out) == held(fresh / config.replace("\n", " "))
