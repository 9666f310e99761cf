"""Of every format, what a whole build keeps of damaged files and what it names as lost are what the format's own reader
finds in the same files; test_documents_kinds.py compares sound ones, document by document."""

import gzip
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordReader

from gatokit.pipelines.run import build
from gatokit.schemas.errors import DataError

N = 30
JPEG = [cv2.imencode(".jpg", np.full((16, 16, 3), 8 * at, np.uint8))[1].tobytes() for at in range(N)]
TEXTS = [f"the text {at}" for at in range(N)]
LINES = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
PARTS = [b"".join(LINES[at : at + 5]) for at in range(0, N, 5)]
MEMBERS = [gzip.compress(part, mtime=0) for part in PARTS]
FRAMES = [zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in PARTS]
Case = tuple[str, int, int]
"""The keys of the dataset, the documents that the format's own reader finds, and those that were written."""


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)


def text_lines(folder: Path) -> Case:
    damaged = LINES.copy()
    damaged[4] = damaged[4].replace(b'"', b"", 1)
    damaged[9] = b'["no object"]\n'
    (folder / "a.jsonl").write_bytes(b"".join(damaged))

    def is_document(line: str) -> bool:
        try:
            return isinstance(json.loads(line), dict)
        except ValueError:
            return False

    found = sum(map(is_document, (folder / "a.jsonl").read_text().splitlines()))
    return "kind: text, source: '*.jsonl'", found, N


def gzip_members(folder: Path) -> Case:
    (folder / "a.jsonl.gz").write_bytes(b"".join(MEMBERS))
    flip(folder / "a.jsonl.gz", len(MEMBERS[0]) + len(MEMBERS[1]) // 2)
    found = 0
    for part in (b"".join(MEMBERS[:1]), b"".join(MEMBERS[2:])):
        found += len(gzip.decompress(part).splitlines())
    with pytest.raises((OSError, EOFError, zlib.error)):
        gzip.decompress((folder / "a.jsonl.gz").read_bytes())
    return "kind: text, source: '*.gz'", found, N


def zstd_frames(folder: Path) -> Case:
    (folder / "a.jsonl.zst").write_bytes(b"".join(FRAMES))
    flip(folder / "a.jsonl.zst", len(b"".join(FRAMES[:3])) + len(FRAMES[3]) - 2)
    found = 0
    for frame in (*FRAMES[:3], *FRAMES[4:]):
        found += len(zstandard.ZstdDecompressor().decompress(frame).splitlines())
    return "kind: text, source: '*.zst'", found, N


def pages_of(path: Path, column: str) -> int:
    """The rows of the row groups that pyarrow reads."""
    file, found = pq.ParquetFile(path, page_checksum_verification=True), 0
    for group in range(file.num_row_groups):
        try:
            found += file.read_row_group(group, [column]).num_rows
        except (pa.ArrowException, OSError):
            continue
    return found


def write_table(path: Path, table: pa.Table, column: str) -> None:
    pq.write_table(table, path, row_group_size=5, write_page_checksum=True, use_dictionary=False, compression="none")
    metadata = pq.read_metadata(path).row_group(2)
    places = {metadata.column(at).path_in_schema: metadata.column(at) for at in range(metadata.num_columns)}
    chunk = next(chunk for name, chunk in places.items() if name.startswith(column))
    flip(path, chunk.data_page_offset + chunk.total_compressed_size - 3)


def text_rows(folder: Path) -> Case:
    write_table(folder / "a.parquet", pa.table({"text": TEXTS}), "text")
    return "kind: text, source: '*.parquet'", pages_of(folder / "a.parquet", "text"), N


def caption_rows(folder: Path) -> Case:
    rows = [{"image": {"bytes": data, "path": None}, "caption": text} for data, text in zip(JPEG, TEXTS, strict=True)]
    write_table(folder / "a.parquet", pa.Table.from_pylist(rows), "image")
    found = pages_of(folder / "a.parquet", "image")
    return "kind: image_text, format: parquet, source: '*.parquet'", found, N


def web_samples(folder: Path) -> Case:
    path = folder / "a.tar"
    with tarfile.open(path, "w") as tar:
        for at in range(N):
            for name, data in ((f"{at:04}.jpg", JPEG[at]), (f"{at:04}.txt", TEXTS[at].encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        place = tar.getmember("0011.txt").offset
    flip(path, place + 3)
    with tarfile.open(path, ignore_zeros=True) as tar:
        names = tar.getnames()
    found = len({name[:4] for name in names if f"{name[:4]}.jpg" in names and f"{name[:4]}.txt" in names})
    return "kind: image_text, format: webdataset, source: '*.tar'", found, N


def pictures(folder: Path) -> None:
    (folder / "images").mkdir()
    for at in range(N - 3):  # three are not there
        (folder / "images" / f"COCO_val2014_{at:012}.jpg").write_bytes(JPEG[at])


def name(at: int) -> str:
    return f"COCO_val2014_{at:012}.jpg"


def coco(folder: Path) -> Case:
    from pycocotools.coco import COCO

    pictures(folder)
    images = [{"id": at, "file_name": name(at), "height": 16, "width": 16} for at in range(N)]
    annotations = [{"id": at, "image_id": at, "caption": text} for at, text in enumerate(TEXTS)]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (folder / "a.json").write_text(json.dumps(content))
    peer = COCO(os.fspath(folder / "a.json"))
    there = [peer.loadImgs(entry["image_id"])[0]["file_name"] for entry in peer.loadAnns(peer.getAnnIds())]
    found = sum((folder / "images" / file).exists() for file in there)
    return "kind: image_text, format: coco, source: a.json, image_dir: images", found, len(there)


def vqa(folder: Path) -> Case:
    pictures(folder)
    head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    questions = [{"image_id": at, "question": f"What {at}?", "question_id": 100 + at} for at in range(N)]
    answer = [{"answer": "a", "answer_id": 1}]
    answers = [{"question_id": 100 + at, "image_id": at, "answers": answer} for at in range(N)]
    (folder / "q.json").write_text(json.dumps({**head, "questions": questions}))
    (folder / "a.json").write_text(json.dumps({**head, "annotations": answers[:-5]}))
    read = {key: json.loads((folder / f"{key[0]}.json").read_text())[key] for key in ("questions", "annotations")}
    answered = {entry["question_id"] for entry in read["annotations"]}
    sound = [e for e in read["questions"] if e["question_id"] in answered and e["image_id"] < N - 3]
    return "kind: image_question_answer, questions: q.json, annotations: a.json, image_dir: images", len(sound), N


def mmc4(folder: Path) -> Case:
    pictures(folder)
    lines = []
    for at in range(N):
        infos = [{"image_name": name(at), "matched_text_index": 0, "matched_sim": 0.3}]
        lines.append(json.dumps({"url": "http://a", "text_list": [TEXTS[at], "end"], "image_info": infos}))
    lines[2] = lines[2][:40]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    found = 0
    for line in (folder / "a.jsonl").read_text().splitlines():
        try:
            found += all((folder / "images" / info["image_name"]).exists() for info in json.loads(line)["image_info"])
        except ValueError:
            continue
    return "kind: interleaved, format: mmc4, source: a.jsonl, image_dir: images", found, N


def obelics(folder: Path) -> Case:
    pages = [{"images": [{"bytes": JPEG[at], "path": None}, None], "texts": [None, TEXTS[at]]} for at in range(N)]
    write_table(folder / "a.parquet", pa.Table.from_pylist(pages), "images")
    found = pages_of(folder / "a.parquet", "images")
    return "kind: interleaved, format: obelics, source: '*.parquet'", found, N


def tfds_directory(folder: Path, features: Any, examples: list[Any], file_format: str) -> tuple[Any, Path]:
    import tensorflow_datasets as tfds

    path = folder / "made"
    path.mkdir()
    identity = tfds.core.DatasetIdentity(
        name="made", version=tfds.core.Version("1.0.0"), data_dir=os.fspath(path), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, description="a test", features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, 10, file_format=file_format)
    writer.initialize_splits(["train"])
    writer.add_examples({"train": examples})
    writer.close_all()
    return tfds.builder_from_directory(os.fspath(path)), sorted(path.glob(f"*.{file_format}*"))[1]


def examples_of(builder: Any, file_format: str) -> int:
    """The examples that TFDS reads."""
    if file_format == "array_record":
        return sum(1 for _ in builder.as_data_source("train"))
    return sum(1 for _ in builder.as_dataset("train", shuffle_files=False))


def tf_records(path: Path) -> int:
    """The records that TensorFlow reads before the damage, and behind it if it starts there again."""
    import tensorflow as tf

    data, places, at = path.read_bytes(), [], 0
    while at < len(data):
        places.append(at)
        at += 16 + int.from_bytes(data[at : at + 8], "little")
    flip(path, places[4] + 30)
    found = 0
    for begin, end in ((0, places[4]), (places[5], len(data))):
        part = path.with_name("part")
        part.write_bytes(path.read_bytes()[begin:end])
        found += sum(1 for _ in tf.data.TFRecordDataset(os.fspath(part)))
        part.unlink()
    with pytest.raises(tf.errors.DataLossError):
        list(tf.data.TFRecordDataset(os.fspath(path)))
    return found


def array_records(path: Path) -> int:
    data = path.read_bytes()
    flip(path, data.index(b"image/encoded") + 30 if b"image/encoded" in data else len(data) // 2)
    found = 0
    for ordinal in range(10):
        reader = ArrayRecordReader(os.fspath(path))
        try:
            found += len(reader.read(ordinal, ordinal + 1))
        except (RuntimeError, ValueError, IndexError):
            continue
    return found


def tfds_images(file_format: str) -> Callable[[Path], Case]:
    def made(folder: Path) -> Case:
        import tensorflow_datasets as tfds

        features = {"image": tfds.features.Image(encoding_format="png"), "caption": tfds.features.Text()}
        pixels = [np.full((16, 16, 3), 8 * at, np.uint8) for at in range(N)]
        examples = [{"image": image, "caption": text} for image, text in zip(pixels, TEXTS, strict=True)]
        builder, second = tfds_directory(folder, features, examples, file_format)
        assert examples_of(builder, file_format) == N
        found = 20 + (tf_records if file_format == "tfrecord" else array_records)(second)
        return "kind: image_text, format: tfds, source: made", found, N

    return made


def rlds(file_format: str) -> Callable[[Path], Case]:
    def made(folder: Path) -> Case:
        import tensorflow_datasets as tfds

        flags = {flag: tfds.features.Scalar(dtype=np.bool_) for flag in ("is_first", "is_last", "is_terminal")}
        steps = {
            "observation": tfds.features.Tensor(shape=(40,), dtype=np.float32),
            "action": tfds.features.Tensor(shape=(1,), dtype=np.float32),
            "reward": tfds.features.Scalar(dtype=np.float32),
            **flags,
        }
        episodes = []
        for number in range(N):
            episode = []
            for at in range(3):
                values = np.random.default_rng(10 * number + at).normal(size=41).astype(np.float32)
                episode.append(
                    {
                        "observation": values[:40],
                        "action": np.tanh(values[40:]),
                        "reward": np.float32(1),
                        "is_first": at == 0,
                        "is_last": at == 2,
                        "is_terminal": at == 2,
                    }
                )
            episodes.append({"steps": episode})
        builder, second = tfds_directory(folder, {"steps": tfds.features.Dataset(steps)}, episodes, file_format)
        assert examples_of(builder, file_format) == N
        found = 20 + (tf_records if file_format == "tfrecord" else array_records)(second)
        return "kind: episodes, source: made, keep: {all: true}", found, N

    return made


CASES: dict[str, Callable[[Path], Case]] = {
    "jsonl": text_lines,
    "gz": gzip_members,
    "zst": zstd_frames,
    "text rows": text_rows,
    "caption rows": caption_rows,
    "webdataset": web_samples,
    "coco": coco,
    "vqa": vqa,
    "mmc4": mmc4,
    "obelics": obelics,
    "tfds tfrecord": tfds_images("tfrecord"),
    "tfds array_record": tfds_images("array_record"),
    "rlds tfrecord": rlds("tfrecord"),
    "rlds array_record": rlds("array_record"),
}


STREAMS = {"gz": len(MEMBERS[1]), "zst": len(FRAMES[3])}


@pytest.mark.parametrize("format", CASES)
def test_a_build_counts_what_the_formats_own_reader_finds(tmp_path: Path, exact_vocabulary: Path, format: str) -> None:
    dataset, found, written = CASES[format](tmp_path)
    assert 0 < found < written
    head = f"vocabulary: {exact_vocabulary}\ndatasets: [{{name: d, {dataset}}}]\n"
    (tmp_path / "strict.yaml").write_text(head + "max_bad_fraction: 0\n")
    with pytest.raises(DataError, match=r"^d: "):
        build(tmp_path / "strict.yaml", tmp_path / "strict")
    (tmp_path / "c.yaml").write_text(head + "max_bad_fraction: 1\nmax_lost_bytes: 1\n")
    [totals] = build(tmp_path / "c.yaml", tmp_path / "out").manifest.datasets
    assert totals.kept == found
    if format in STREAMS:  # nobody knows how many lines a damaged stream had, so that its bytes are the loss
        assert totals.source_loss is not None
        assert totals.source_loss.lost_bytes == STREAMS[format]
        return
    assert totals.episodes == written
    index = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "out").rglob("*.index.parquet")))
    lost = [row["lost"] for row in index.to_pylist() if row["reason"] is not None]
    assert sum(lost) == written - found
