"""Every kind and format of corpus beside recorded episodes in one config: what is built is what the sources hold, and
the bytes are the same whatever the workers, the path and the kills between.

Sources are written by the formats' own public tools. ``expected`` says what the sources say, by id.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import zstandard
from pycocotools.coco import COCO

from gatokit.inspection.verify.directory import verify
from gatokit.pipelines.run import build
from gatokit.schemas.tokens import EncodedImage
from gatokit.tokenizers.image_codec import encode
from gatokit.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Made:
    """A picture that is decoded, resized and encoded: its source, and the size and codec that it gets."""

    source: bytes
    height: int
    width: int
    codec: str


Expected = dict[str, list[Any]]
"""By id, the parts of a document: a text, the bytes of a picture that is copied, or one that is made."""

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
CONFIG = """
vocabulary: text.model
chunk_tokens: 64
shard_bytes: 60000
holdout: 0.2
datasets:
  - {name: notes, kind: text, source: text/notes.jsonl}
  - {name: articles, kind: text, source: text/articles/*, field: body, end_of_document: false}
  - {name: captions, kind: image_text, format: webdataset, source: captions/*.tar, images: {max_patches: 16}}
  - name: coco
    kind: image_text
    format: coco
    source: coco/captions.json
    image_dir: coco/images
    images: {size: [32, 48], codec: jpeg}
  - name: gallery
    kind: image_text
    format: parquet
    source: gallery.parquet
    image_field: picture
    text_field: captions
    images: {size: [48, 32], quality: 80}
  - {name: scenes, kind: image_text, format: tfds, source: scenes, images: {max_patches: 4, codec: png}}
  - name: vqa
    kind: image_question_answer
    questions: vqa/questions.json
    annotations: vqa/annotations.json
    image_dir: vqa/val2014
    images: {max_patches: 9}
  - name: okvqa
    kind: image_question_answer
    questions: okvqa/questions.json
    annotations: okvqa/annotations.json
    image_dir: vqa/val2014
    template: "{answer} <- {question}"
    images: {size: [32, 32]}
  - name: mmc4
    kind: interleaved
    format: mmc4
    source: mmc4/*.jsonl
    image_dir: mmc4/images
    images: {max_patches: 16}
  - {name: obelics, kind: interleaved, format: obelics, source: obelics.parquet, images: {size: [16, 64]}}
  - name: babyai
    kind: episodes
    source: recorded/babyai/*
    order: {metadata: episode_index}
    fields: {observation/grid: {as: discrete}}
  - {name: atari, kind: episodes, source: recorded/atari/*, keep: {all: true}, images: {size: [64, 48]}}
"""


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """A smooth picture, RGB."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(colours, (width, height), interpolation=cv2.INTER_LINEAR)


def jpeg(height: int, width: int, seed: int) -> bytes:
    return cv2.imencode(".jpg", photo(height, width, seed))[1].tobytes()


def png(height: int, width: int, seed: int) -> bytes:
    return cv2.imencode(".png", photo(height, width, seed))[1].tobytes()


def webp(height: int, width: int, seed: int) -> bytes:
    return cv2.imencode(".webp", photo(height, width, seed), [cv2.IMWRITE_WEBP_QUALITY, 70])[1].tobytes()


WORDS = [
    "the",
    "picture",
    "shows",
    "a",
    "red box",
    "on  an old",
    "table;",
    "naïve",
    "café",
    "日本",
    "🙂\n\t",
    "and more",
]


def sentence(number: int) -> str:
    return " ".join(WORDS[number % 5 : number % 5 + 4 + number % 9]) + f" {number}."


def write_texts(folder: Path) -> dict[str, Expected]:
    notes = ["\n".join(sentence(17 * number + line) for line in range(1 + number * 7 % 60)) for number in range(80)]
    (folder / "articles").mkdir(parents=True)
    with open(folder / "notes.jsonl", "w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"id": at, "text": text}, ensure_ascii=at % 2 == 0) + "\n" for at, text in enumerate(notes)
        )
    rows = [f"Row {number}: {sentence(number)}" for number in range(30)]
    pq.write_table(pa.table({"body": rows, "n": range(30)}), folder / "articles" / "a.parquet", row_group_size=7)
    lines = [f"Line {number}: {sentence(number)}" for number in range(12)]
    stored = "".join(json.dumps({"body": text}) + "\r\n" for text in lines).encode()
    (folder / "articles" / "b.jsonl.zst").write_bytes(zstandard.compress(stored))
    plain = "# Title\r\n\r\nA whole file, to the byte.  \n"
    (folder / "articles" / "c.md").write_bytes(plain.encode())
    articles: Expected = {f"a.parquet#{at}": [text] for at, text in enumerate(rows)}
    articles |= {f"b.jsonl.zst#{at}": [text] for at, text in enumerate(lines)}
    return {
        "notes": {f"notes.jsonl#{at}": [text] for at, text in enumerate(notes)},
        "articles": {**articles, "c.md#0": [plain]},
    }


def write_captions(folder: Path) -> Expected:
    folder.mkdir()
    expected: Expected = {}
    for tar in range(2):
        with webdataset.TarWriter(os.fspath(folder / f"{tar:05}.tar")) as writer:
            for number in range(8):
                seed, key = 10 * tar + number, f"{tar:05}{number:04}"
                suffix, data, made = [
                    ("jpg", jpeg(64, 64, seed), None),
                    ("png", png(16, 96, seed), None),
                    ("jpg", jpeg(100, 60, seed), (80, 48, "jpeg")),
                    ("png", png(40, 56, seed), (48, 64, "png")),
                    ("webp", webp(64, 64, seed), (64, 64, "jpeg")),
                    ("png", png(8, 8, seed), (16, 16, "png")),
                    ("jpg", jpeg(48, 80, seed), None),
                    ("jpg", jpeg(300, 300, seed), (64, 64, "jpeg")),
                ][number]
                texts = {"txt": sentence(seed)} if number % 2 else {"json": {"caption": sentence(seed), "width": 1}}
                writer.write({"__key__": key, suffix: data, **texts})
                picture = data if made is None else Made(data, *made)
                expected[f"{tar:05}.tar#{key}"] = [picture, sentence(seed)]
    return expected


def write_coco(folder: Path) -> Expected:
    (folder / "images").mkdir(parents=True)
    images = [{"id": 7 * at, "file_name": f"{7 * at:012d}.jpg", "height": 1, "width": 1} for at in range(6)]
    for at, image in enumerate(images):
        data = jpeg(32, 48, at) if at % 2 else jpeg(96, 70 + at, at)
        (folder / "images" / image["file_name"]).write_bytes(data)
    annotations = [
        {"id": 1000 + at, "image_id": 7 * (at * 5 % 6), "caption": f"{sentence(at)} of COCO"} for at in range(20)
    ]
    content = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}
    (folder / "captions.json").write_text(json.dumps(content))
    peer = COCO(os.fspath(folder / "captions.json"))
    expected: Expected = {}
    for annotation in peer.loadAnns(peer.getAnnIds()):
        data = (folder / "images" / peer.loadImgs(annotation["image_id"])[0]["file_name"]).read_bytes()
        copied = annotation["image_id"] // 7 % 2
        picture = data if copied else Made(data, 32, 48, "jpeg")
        expected[f"captions.json#{annotation['id']}"] = [picture, annotation["caption"]]
    return expected


def write_gallery(path: Path) -> Expected:
    rows, expected = [], {}
    for number in range(9):
        data = png(48, 32, number) if number % 3 else jpeg(50, 20, number)
        captions = [f"{sentence(number)} {at}" for at in range(1 + number % 3)]
        rows.append({"picture": {"bytes": data, "path": f"{number}.png"}, "captions": captions})
        for at, text in enumerate(captions):
            picture = data if number % 3 else Made(data, 48, 32, "jpeg")
            expected[f"gallery.parquet#{number}.{at}"] = [picture, text]
    features = {"picture": {"_type": "Image"}, "captions": {"feature": {"dtype": "string"}, "_type": "List"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema({"picture": IMAGE, "captions": pa.list_(pa.string())}, metadata)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=2)
    return expected


def write_scenes(folder: Path) -> Expected:
    import tensorflow_datasets as tfds

    folder.mkdir()
    identity = tfds.core.DatasetIdentity(
        name="scenes", version=tfds.core.Version("1.0.0"), data_dir=os.fspath(folder), module_name=""
    )
    features = {"image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"), "caption": tfds.features.Text()}
    features = tfds.features.FeaturesDict(features)
    info = tfds.core.DatasetInfo(builder=identity, description="a test", features=features)
    writer = tfds.core.SequentialWriter(info, 4, file_format="array_record")
    writer.initialize_splits(["train"])
    examples = [{"image": photo(32, 32, number), "caption": sentence(number)} for number in range(7)]
    writer.add_examples({"train": examples})
    writer.close_all()
    # Compared by pixels: the bytes are for TFDS to say.
    return {
        f"scenes-train.array_record-{number // 4:05}#{number % 4}": [example["image"], example["caption"]]
        for number, example in enumerate(examples)
    }


def write_vqa(root: Path) -> dict[str, Expected]:
    (root / "vqa" / "val2014").mkdir(parents=True)
    (root / "okvqa").mkdir()
    names = [f"COCO_val2014_{42 + at:012d}.{'jpg' if at % 2 else 'png'}" for at in range(4)]
    pictures = [jpeg(48, 48, at) if at % 2 else png(32, 32, at) for at in range(4)]
    for name, data in zip(names, pictures, strict=True):
        (root / "vqa" / "val2014" / name).write_bytes(data)
    head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    expected: dict[str, Expected] = {"vqa": {}, "okvqa": {}}
    for name in expected:
        questions, annotations = [], []
        for number in range(10):
            image, id_ = number * 3 % 4, 42000 + number
            question, answer = f"What {name} {{{number}}}?", f"answer {number} 🙂"
            questions.append({"image_id": 42 + image, "question": question, "question_id": id_})
            given = [{"answer": each, "answer_id": 1} for each in ("no", answer, answer)]
            chosen = {"multiple_choice_answer": answer} if name == "vqa" else {}
            annotations.append({"question_id": id_, "image_id": 42 + image, "answers": given, **chosen})
            text = f"Q: {question} A: {answer}" if name == "vqa" else f"{answer} <- {question}"
            fits = name == "vqa" or image % 2 == 0
            picture = pictures[image] if fits else Made(pictures[image], 32, 32, "jpeg")
            expected[name][f"questions.json#{id_}"] = [picture, text]
        (root / name / "questions.json").write_text(json.dumps({**head, "questions": questions}))
        (root / name / "annotations.json").write_text(json.dumps({**head, "annotations": annotations[::-1]}))
    return expected


def write_mmc4(folder: Path) -> Expected:
    (folder / "images").mkdir(parents=True)
    copied, large = jpeg(64, 64, 1), png(128, 128, 2)
    (folder / "images" / "a.jpg").write_bytes(copied)
    (folder / "images" / "b.png").write_bytes(large)
    lines, expected = [], {}
    for number in range(9):
        sentences = [sentence(number + at) for at in range(2 + number % 3)]
        last = len(sentences) - 1
        found = [("b.png", last), ("a.jpg", 0), ("b.png", 0)][: 1 + number % 3]
        infos = [{"image_name": name, "matched_text_index": at, "matched_sim": 0.3} for name, at in found]
        lines.append(json.dumps({"url": "http://a", "text_list": sentences, "image_info": infos}))
        made = Made(large, 64, 64, "png")
        begin = [{"a.jpg": copied, "b.png": made}[name] for name, at in found if at == 0]
        expected[f"pages.jsonl#{number}"] = [*begin, " ".join(sentences[:last]), made, sentences[last]]
    (folder / "pages.jsonl").write_text("\n".join(lines))
    return expected


def write_obelics(path: Path) -> Expected:
    pages, expected = [], {}
    for number in range(8):
        fits, other = png(16, 64, number), jpeg(40, 80, number)
        texts = [sentence(number), sentence(number + 1), sentence(number + 2)]
        entries = [("i", fits), ("t", texts[0]), ("t", texts[1]), ("i", other), ("i", fits), ("t", texts[2])]
        entries = entries[number % 2 :]
        pages.append(
            {
                "images": [{"bytes": value, "path": None} if kind == "i" else None for kind, value in entries],
                "texts": [value if kind == "t" else None for kind, value in entries],
            }
        )
        parts = [fits, f"{texts[0]}\n\n{texts[1]}", Made(other, 16, 64, "jpeg"), fits, texts[2]]
        expected[f"obelics.parquet#{number}"] = parts[number % 2 :]
    schema = pa.schema({"images": pa.list_(IMAGE), "texts": pa.list_(pa.string())})
    pq.write_table(pa.Table.from_pylist(pages, schema), path, row_group_size=3)
    return expected


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Expected]]:
    """The folder of all sources but the recorded episodes, and what a build is expected to hold of each."""
    root = tmp_path_factory.mktemp("sources")
    expected = {
        **write_texts(root / "text"),
        "captions": write_captions(root / "captions"),
        "coco": write_coco(root / "coco"),
        "gallery": write_gallery(root / "gallery.parquet"),
        "scenes": write_scenes(root / "scenes"),
        **write_vqa(root),
        "mmc4": write_mmc4(root / "mmc4"),
        "obelics": write_obelics(root / "obelics.parquet"),
    }
    return root, expected


@pytest.fixture(scope="module")
def config(source: tuple[Path, dict[str, Expected]], recorded: Path, exact_vocabulary: Path) -> Path:
    root, _ = source
    (root / "recorded").symlink_to(recorded)
    (root / "text.model").symlink_to(exact_vocabulary)
    (root / "build.yaml").write_text(CONFIG)
    return root / "build.yaml"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """A finished build of all. Not to be written to."""
    out = tmp_path_factory.mktemp("built") / "out"
    build(config, out)
    return out


def contents(directory: Path) -> dict[str, str]:
    """Digest of every file but the log."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "build.log.jsonl" and ".scan" not in path.parts
    }


def resized(made: Made, quality: int) -> EncodedImage:
    """OpenCV's decoder, area filter and encoder, one after the other."""
    pixels = cv2.imdecode(np.frombuffer(made.source, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    if pixels.shape[:2] != (made.height, made.width):
        pixels = cv2.resize(pixels, (made.width, made.height), interpolation=cv2.INTER_AREA)
    if made.codec == "jpeg":
        data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    else:
        data = encode(pixels[..., ::-1])
    return EncodedImage(data, made.height, made.width)


def check_parts(parts: list[str | EncodedImage], expected: list[Any], quality: int) -> None:
    assert len(parts) == len(expected)
    for part, wanted in zip(parts, expected, strict=True):
        if isinstance(wanted, str):
            assert part == wanted
            continue
        assert isinstance(part, EncodedImage)
        if isinstance(wanted, Made):
            assert part == resized(wanted, quality)
            continue
        pixels = cv2.imdecode(np.frombuffer(part.data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert pixels is not None
        assert (part.height, part.width) == pixels.shape[:2]
        if isinstance(wanted, bytes):
            assert part.data == wanted
        else:
            assert (pixels == wanted).all()


def test_the_build_is_sound(out):
    assert verify(out) == []


@pytest.mark.parametrize(
    ("name", "documents"),
    [
        ("notes", 80),
        ("articles", 43),
        ("captions", 16),
        ("coco", 20),
        ("gallery", 18),
        ("scenes", 7),
        ("vqa", 10),
        ("okvqa", 10),
        ("mmc4", 9),
        ("obelics", 8),
    ],
)
def test_every_document_decodes_to_its_source(name, documents, source, out, read_documents):
    expected = source[1][name]
    built = read_documents(out, name)
    assert len(built.rows) == len(built.parts) == documents
    assert {row["episode_id"] for row in built.rows} == expected.keys()
    assert {row["reason"] for row in built.rows} == {None}
    for id_, parts in expected.items():
        check_parts(built.parts[id_], parts, quality=80 if name == "gallery" else 95)
    assert built.totals.held_out >= 1
    assert built.totals.training >= 1


def test_text_ids_are_those_of_the_model_and_documents_end_as_the_rules_say(source, out, read_documents):
    model = TextTokenizer.load(out / "vocabulary.model")
    notes, articles = read_documents(out, "notes"), read_documents(out, "articles")
    for id_, [text] in source[1]["notes"].items():
        assert notes.sequences[id_].tokens.tolist() == [*model.encode(text).tolist(), model.end_id]
    for id_, [text] in source[1]["articles"].items():
        assert articles.sequences[id_].tokens.tolist() == model.encode(text).tolist()
    assert max(len(row["record_tokens"]) for row in notes.rows) > 20
    assert all(size == 64 for row in notes.rows for size in row["record_tokens"][:-1])


def test_images_come_before_their_texts_as_patches(out, read_documents):
    captions = read_documents(out, "captions")
    sequence = captions.sequences["00000.tar#000000002"]
    assert sequence.kinds.tolist() == [2] * 15 + [1] * (len(sequence.kinds) - 15)
    assert sequence.tokens[:15].tolist() == [65535] * 15
    assert sequence.positions.tolist() == [65535] * len(sequence.kinds)


def test_datasets_are_described(out, read_documents):
    totals = {name: read_documents(out, name).totals for name in ("notes", "captions", "vqa", "obelics")}
    assert {name: (one.kind, one.hz, one.ordered) for name, one in totals.items()} == {
        "notes": ("text", None, False),
        "captions": ("image_text", None, False),
        "vqa": ("image_question_answer", None, False),
        "obelics": ("interleaved", None, False),
    }
    assert len(totals["notes"].splits) > 1
    rules = read_documents(out, "coco").described.documents
    assert rules.pictures.size == (32, 48)
    assert (rules.pictures.codec, rules.pictures.max_patches, rules.bad_images) == ("jpeg", None, "reject")
    tasks = pq.read_table(out / "coco" / "tasks.parquet").to_pylist()
    assert [(row["task"], row["agent"], row["kept"], row["expert_return"]) for row in tasks] == [("coco", "", 20, None)]


def test_episodes_are_built_beside(out):
    manifest = json.loads((out / "manifest.json").read_text())
    kept = {dataset["name"]: dataset["kept"] for dataset in manifest["datasets"] if dataset["kind"] == "episodes"}
    assert kept["atari"] == 8
    assert kept["babyai"] > 10


def test_two_processes_give_the_bytes_of_one(tmp_path, config, out):
    build(config, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(out)
    assert sum(path.endswith(".arrayrecord") for path in contents(out)) > 15


def test_neither_path_nor_times_nor_order_on_disk_matters(tmp_path, source, recorded, config, exact_vocabulary, out):
    folder, root = tmp_path / "another place", source[0]
    for path in sorted((path for path in root.rglob("*") if path.is_file()), reverse=True):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        os.utime(target, (1e9, 1e9))
    (folder / "recorded").symlink_to(recorded)
    build(folder / "build.yaml", folder / "out")
    assert contents(folder / "out") == contents(out)


def test_a_build_in_another_place_of_the_images_has_the_same_shards(tmp_path, source, config, out):
    """Only the manifest, which holds the config, knows another ``image_dir``."""
    folder = tmp_path / "config"
    folder.mkdir()
    shutil.copytree(source[0] / "coco" / "images", folder / "other")
    root = os.fspath(source[0])
    text = CONFIG.replace("coco/images", os.fspath(folder / "other"))
    for path in ("text.model", "coco/captions.json"):
        text = text.replace(path, f"{root}/{path}")
    (folder / "build.yaml").write_text(text)
    build(folder / "build.yaml", folder / "out", only="coco")
    names = {name: digest for name, digest in contents(out).items() if name.startswith("coco/")}
    assert {name: digest for name, digest in contents(folder / "out").items() if "/" in name} == names


def test_nothing_names_a_path(source, out):
    forbidden = [os.fspath(source[0]), os.fspath(out), "/tmp/", "/home/", "/root/"]
    for path in out.rglob("*"):
        if path.is_file() and path.name != "build.log.jsonl" and ".scan" not in path.parts:
            data = path.read_bytes()
            assert not [word for word in forbidden if word.encode() in data], path


def test_a_build_that_is_run_again_changes_nothing(tmp_path, config, out):
    shutil.copytree(out, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.arrayrecord")}
    build(config, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(out)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_one_dataset_alone_has_the_bytes_that_it_has_among_others(tmp_path, config, out):
    for name in ("captions", "mmc4"):
        build(config, tmp_path / name, only=name)
        own = {path: digest for path, digest in contents(tmp_path / name).items() if path.startswith(f"{name}/")}
        assert own == {path: digest for path, digest in contents(out).items() if path.startswith(f"{name}/")}
        assert not (tmp_path / name / "notes").exists()


KILLED = """
import fnmatch, os, signal, sys
from gatokit.pipelines import run
config, out, pattern, when = sys.argv[1:]
real = os.replace
def replace(source, target):
    kills = fnmatch.fnmatch(os.path.relpath(target, out), pattern)
    if kills and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    if kills and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
if __name__ == "__main__":
    run.build(config, out)
"""


@pytest.fixture
def kill(tmp_path: Path, config: Path) -> Callable[[Path, str, str], None]:
    """Runs a build that is killed before or after the first rename to a path like ``pattern``."""

    def killed(out: Path, pattern: str, when: str) -> None:
        script = tmp_path / "killed.py"
        script.write_text(KILLED)
        done = subprocess.run([sys.executable, script, config, out, pattern, when], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr

    return killed


@pytest.mark.parametrize(
    ("kills", "least"),
    [
        ([("captions/*.arrayrecord", "before")], 0),
        pytest.param([(".scan/*", "before"), (".work/shards/mmc4*", "after")], 0, marks=pytest.mark.slow),
        pytest.param(
            [("notes/*.arrayrecord", "after"), ("coco/*.index.parquet", "after"), ("manifest.json", "before")],
            16,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(kills, least, tmp_path, kill, config, out):
    """Every file of a build appears by a rename, so each kill falls just before or just after one of them."""
    again = tmp_path / "out"
    finished: dict[Path, int] = {}
    for pattern, when in kills:
        kill(again, pattern, when)
        assert not (again / "manifest.json").exists()
        assert [fault.file for fault in verify(again)] == ["manifest.json"]
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        indexed = {path.name.rpartition("-")[0] for path in again.rglob("*.index.parquet")}
        finished = {
            path: path.stat().st_mtime_ns
            for path in again.rglob("*.arrayrecord")
            if not path.name.startswith(".") and path.stem in indexed
        }
    build(config, again)
    assert contents(again) == contents(out)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(finished) >= least
    assert verify(again) == []
