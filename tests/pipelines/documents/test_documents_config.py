"""Configs of corpora that cannot be built: one sentence with the field's path, before any work begins."""

import gzip
import json
import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import zstandard

from gatokit.pipelines.documents.reader import FORMATS, file_from_json, plan_documents
from gatokit.pipelines.run import build
from gatokit.schemas.config import TextConfig
from gatokit.schemas.errors import ConfigError, DataError

PNG = cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
TEXT = "kind: text, source: text/*.jsonl"
TARS = "kind: image_text, format: webdataset, source: a.tar"
COCO = "kind: image_text, format: coco, source: c.json, image_dir: images"
VQA = (
    "kind: image_question_answer, questions: q.json, annotations: a.json, image_dir: images, "
    "image_name: '{image_id}.png'"
)
MMC4 = "kind: interleaved, format: mmc4, source: p.jsonl, image_dir: images"
OBELICS = "kind: interleaved, format: obelics, source: p.parquet"
PARQUET = "kind: image_text, format: parquet, source: i.parquet"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small source of every kind, each of which builds as it is."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "text" / "b.csv").write_text("text\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(PNG)
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "0", "png": PNG, "txt": "one"})
    images, annotations = [{"id": 1, "file_name": "1.png"}], [{"id": 1, "image_id": 1, "caption": "one"}]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    question = {"question_id": 1, "image_id": 1, "question": "one?"}
    (tmp_path / "q.json").write_text(json.dumps({"questions": [question]}))
    annotation = {"question_id": 1, "multiple_choice_answer": "one"}
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [annotation]}))
    info = {"image_name": "1.png", "matched_text_index": 0}
    (tmp_path / "p.jsonl").write_text(json.dumps({"text_list": ["one"], "image_info": [info]}))
    pq.write_table(pa.table({"images": [[PNG, None]], "texts": [[None, "one"]]}), tmp_path / "p.parquet")
    pq.write_table(pa.table({"image": [PNG], "caption": ["one"]}), tmp_path / "i.parquet")
    return tmp_path


@pytest.fixture
def run(root: Path, exact_vocabulary: Path) -> Callable[[str], None]:
    """Builds a config whose second dataset is the given one."""

    def go(dataset: str) -> None:
        path = root / "c.yaml"
        datasets = f"  - {{name: first, {TEXT}}}\n  - {{name: second, {dataset}}}\n"
        path.write_text(f"vocabulary: {exact_vocabulary}\ndatasets:\n{datasets}")
        build(path, root / "out")

    return go


@pytest.mark.parametrize("dataset", [TEXT, TARS, COCO, VQA, MMC4, OBELICS, PARQUET])
def test_each_source_builds_as_it_is(dataset, root, run):
    run(dataset)
    assert (root / "out" / "manifest.json").exists()


WRONG = [
    # Keys and values.
    (
        "kind: texts, source: a",
        ".kind: must be 'episodes', 'text', 'image_text', 'image_question_answer', 'interleaved' (got 'texts')",
    ),
    ("source: text/*", ".kind: this key is required"),
    ("kind: text", ".source: this key is required"),
    (f"{TEXT}, images: {{max_patches: 4}}", ".images: unknown key; remove it or check its spelling"),
    (f"{TEXT}, keep: {{all: true}}", ".keep: unknown key; remove it or check its spelling"),
    (f"{TEXT}, field: ''", ".field: must not be empty (got '')"),
    (f"{TEXT}, drop_duplicates: 1", ".drop_duplicates: must be true or false (got 1)"),
    (f"{TEXT}, weight: 0", ".weight: must be greater than 0 (got 0)"),
    ("kind: image_text, source: a.tar", ".format: this key is required"),
    (TARS.replace("webdataset", "tar"), ".format: must be 'webdataset', 'coco', 'parquet' or 'tfds' (got 'tar')"),
    (MMC4.replace("mmc4", "html"), ".format: must be 'mmc4' or 'obelics' (got 'html')"),
    (f"{MMC4}, bad_images: drop", ".bad_images: must be 'reject' or 'skip' (got 'drop')"),
    (f"{MMC4}, pairs_per_sequence: 2", ".pairs_per_sequence: unknown key; remove it or check its spelling"),
    (f"{TARS}, pairs_per_sequence: 0", ".pairs_per_sequence: must be greater than or equal to 1 (got 0)"),
    # Pictures.
    (
        f"{TARS}, images: {{size: [32, 32], max_patches: 4}}",
        ".images: give size or max_patches, not both (got {'size': [32, 32], 'max_patches': 4})",
    ),
    (
        f"{TARS}, images: {{size: [30, 70]}}",
        ".images.size: height and width must be multiples of 16; the nearest are [32, 64] (got [30, 70])",
    ),
    (f"{TARS}, images: {{size: 64}}", ".images.size: must be [height, width] in pixels, two whole numbers (got 64)"),
    (f"{TARS}, images: {{max_patches: 0}}", ".images.max_patches: must be greater than or equal to 1 (got 0)"),
    (f"{TARS}, images: {{codec: webp}}", ".images.codec: must be 'png' or 'jpeg' (got 'webp')"),
    (f"{TARS}, images: {{quality: 101}}", ".images.quality: must be less than or equal to 100 (got 101)"),
    # Folders of pictures.
    (
        "kind: image_text, format: coco, source: c.json",
        ": image_dir belongs to format: coco, which needs it (got {GIVEN})",
    ),
    (f"{TARS}, image_dir: images", ": image_dir belongs to format: coco, which needs it (got {GIVEN})"),
    (
        "kind: interleaved, format: mmc4, source: p.jsonl",
        ": format: mmc4 needs image_dir, the folder of its images (got {GIVEN})",
    ),
    (
        COCO.replace("image_dir: images", "image_dir: pictures"),
        ".image_dir: ROOT/pictures does not exist; give the folder of the images, relative to the config file",
    ),
    (
        VQA.replace("image_dir: images", "image_dir: q.json"),
        ".image_dir: ROOT/q.json is a file; give the folder of the images, relative to the config file",
    ),
    (
        f"{OBELICS}, image_dir: /no/such",
        ".image_dir: /no/such does not exist; give the folder of the images, relative to the config file",
    ),
    # Questions.
    (f"{VQA}, template: '{{question}}'", ".template: must hold {answer} (got '{question}')"),
    (
        f"{VQA}, template: '{{question}} {{answr}}'",
        ".template: {answr} is unknown; use {question} and {answer} (got '{question} {answr}')",
    ),
    (
        VQA.replace("{image_id}", "{id}"),
        ".image_name: {id} is unknown; use {data_subtype} and {image_id} (got '{id}.png')",
    ),
    (VQA.replace("{image_id}", "1"), ".image_name: must hold {image_id} (got '1.png')"),
    (
        VQA.replace("q.json", "'[qa].json'"),
        ".questions: matches 2 files; name one, and make a dataset of each",
    ),
    (
        VQA.replace("a.json", "'?.json'"),
        ".annotations: matches 3 files; name one, and make a dataset of each",
    ),
    (
        VQA.replace("q.json", "no.json"),
        ".questions: ROOT/no.json does not exist; paths are relative to the config file",
    ),
    # Files.
    ("kind: text, source: no/*", ".source: ROOT/no/* matches nothing; paths are relative to the config file"),
    ("kind: text, source: no.txt", ".source: ROOT/no.txt does not exist; paths are relative to the config file"),
    (
        "kind: text, source: text",
        ".source: ROOT/text is no file; name the files in it, such as ROOT/text/*, relative to the config file",
    ),
    (
        "kind: text, source: '*'",
        ".source: ROOT/images is no file; name the files in it, such as ROOT/images/*, relative to the config file",
    ),
    (
        "kind: text, source: s3://bucket/*.jsonl",
        ".source: 's3://bucket/*.jsonl' is neither local nor on gs://; copy or mount the files and give that path",
    ),
    (
        "kind: episodes, source: s3://bucket/data/*",
        ".source: 's3://bucket/data/*' is neither local nor on gs://; copy or mount the files and give that path",
    ),
    (
        COCO.replace("image_dir: images", "image_dir: s3://bucket/images"),
        ".image_dir: 's3://bucket/images' is neither local nor on gs://; copy or mount the files and give that path",
    ),
    (
        "kind: text, source: text/*",
        ".source: ROOT/text/b.csv has none of the suffixes .jsonl, .ndjson, .json, .parquet, .txt, .text, .md, .rst, "
        "and .gz or .zst behind; narrow source, or rename the file",
    ),
    (
        TARS.replace("a.tar", "c.json"),
        ".source: ROOT/c.json has none of the suffixes .tar, and .gz or .zst behind; narrow source, or rename the file",
    ),
    (
        COCO.replace("c.json", "a.tar"),
        ".source: ROOT/a.tar has none of the suffixes .json; narrow source, or rename the file",
    ),
    (
        MMC4.replace("p.jsonl", "p.parquet"),
        ".source: ROOT/p.parquet has none of the suffixes .jsonl, .ndjson, .json, and .gz or .zst behind; "
        "narrow source, or rename the file",
    ),
    (
        OBELICS.replace("p.parquet", "p.jsonl"),
        ".source: ROOT/p.jsonl has none of the suffixes .parquet; narrow source, or rename the file",
    ),
    (
        "kind: image_text, format: parquet, source: i.parquet, follow_links: true",
        ": follow_links belongs to image_dir, which is not given (got {GIVEN})",
    ),
    (
        "kind: image_text, format: tfds, source: text",
        ".source: no directory below ROOT/text holds a TFDS dataset (features.json)",
    ),
]


@pytest.mark.parametrize(("dataset", "sentence"), WRONG, ids=[sentence[:50] for _, sentence in WRONG])
def test_a_wrong_dataset_is_one_sentence(dataset, sentence, root, run):
    with pytest.raises(ConfigError) as raised:
        run(dataset)
    assert raised.value.exit_status == 2
    said = str(raised.value).removeprefix(f"{root / 'c.yaml'}: ").replace(os.fspath(root), "ROOT")
    assert re.sub(r"\{'name': .*\.\.\.", "{GIVEN}", said) == "datasets[1]" + sentence
    assert "\n" not in said
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    ("name", "data", "store"),
    [
        ("X.JSONL.GZ", b'{"text": "one"}\n', gzip.compress),
        ("x.Json.Zst", b'{"text": "one"}\n', zstandard.compress),
        ("X.NDJSON", b'{"text": "one"}\n', bytes),
        ("X.TXT.GZ", b"one", gzip.compress),
        ("X.MD", b"one", bytes),
    ],
)
def test_suffixes_may_be_capitals(name: str, data: bytes, store: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(store(data))
    [file] = plan_documents(TextConfig(name="second", kind="text", source=name), "datasets[1]", tmp_path).files
    assert list(file.read([found.byte_range for found in file.scan(1000)])) == [["one"]]


DIFFERENT = [
    (
        "kind: text, source: t.jsonl, field: body",
        b'{"text": "one"}\n',
        "second: the source holds 1 documents, of which none is sound: 1 missing_field",
    ),
    (
        "kind: text, source: t.parquet",
        b"PAR1",
        "second: 1 of 1 files is damaged, 100 % of the bytes (first t.parquet: the file's footer is damaged or "
        "missing: Parquet file size is 4 bytes, smaller than the minimum file footer (8 bytes)). Fetch or mend the "
        "files, leave them out of the source, or set max_lost_bytes to the share that may be lost",
    ),
    ("kind: text, source: t.jsonl", b"PK\x03\x04", "t.jsonl: is a zip archive; unpack it"),
    (
        "kind: text, source: t.jsonl.gz",
        b'{"text"',
        "t.jsonl.gz: is not compressed as .gz files are; give it its right name",
    ),
    (
        "kind: image_text, format: webdataset, source: t.tar",
        b"\x1f\x8b\x08".ljust(1000),
        "t.tar: is compressed with gzip; unpack it and give the .tar in `source`",
    ),
    (
        "kind: image_text, format: coco, source: t.json, image_dir: images",
        b'{"images": []}',
        "t.json: has no list 'annotations'; give a captions JSON of COCO, such as captions_train2017.json "
        "(test sets have no captions)",
    ),
    (
        "kind: image_text, format: parquet, source: i.parquet, text_field: title",
        b"",
        "i.parquet: has no column 'title'; set `text_field` to one of its columns: 'image', 'caption'",
    ),
]


@pytest.mark.parametrize(("dataset", "content", "sentence"), DIFFERENT, ids=[item[0] for item in DIFFERENT])
def test_files_that_hold_something_else_end_the_scan_by_name(dataset, content, sentence, root, run):
    name = dataset.partition("source: ")[2].partition(",")[0]
    if content:
        (root / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        run(dataset)
    assert raised.value.exit_status == 1
    assert str(raised.value) == sentence
    assert not (root / "out" / "manifest.json").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_table_can_be_found_and_read(format):
    module_name, types = FORMATS[format]
    package = "gatokit.pipelines.documents"
    assert callable(import_module(f"{package}.{module_name}").find)
    for type_, name in types.items():
        module, _, class_name = name.partition(".")
        file_class = getattr(import_module(f"{package}.{module}"), class_name)
        fields = dict.fromkeys(file_class.model_fields, "1") | {"type": type_, "skip_bad": False, "follow_links": True}
        file = file_class(**{name: fields[name] for name in file_class.model_fields})
        assert file_from_json(json.loads(json.dumps(file.model_dump(mode="json")))) == file
        assert file.divides == (not type_.startswith("compressed"))
