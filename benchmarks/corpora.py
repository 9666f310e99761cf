"""Builds of text and pictures against the libraries that do their heavy work, alone; and the memory of a build.

Text against SentencePiece's own batch encoding of the same documents, pictures that fit against reading the tar and
writing the same bytes to ArrayRecord, and pictures that do not fit against decoding, resizing and encoding alone.
Both sides are single processes that stay up, warm, and take turns. The corpora are those of examples/:

    python examples/make_prose.py --out data/corpora/prose/prose.jsonl
    python examples/make_captions.py --out data/corpora/captions-jpg --encode jpg
    python benchmarks/corpora.py                 # about ten minutes on two cores
    python benchmarks/corpora.py --part text --repeats 3
"""

import argparse
import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Once, Sides, compare, machine, memory, run_side, show_memory

MEMORY_SHARD_BYTES = 16 << 20
PARTS = ("text", "copy", "resize", "memory")
COPIES = 4
"""The prose is read under so many names."""
PICTURES = {"copy": 120_000, "resize": 20_000}
"""Pictures of a run; those of the corpus come again and again."""
SAMPLES_A_TAR = 2_000
SIDE = 256
"""Height and width of the pictures that are copied."""


# --- data --------------------------------------------------------------------------------------------------


def prepare_text(corpora: Path, work: Path) -> None:
    """JSONL files of prose, and a few documents to warm up on."""
    source = corpora / "prose" / "prose.jsonl"
    if not source.exists():
        raise SystemExit(f"{source} is missing: python examples/make_prose.py --out {source}")
    link_prose(source, fresh(work / "text"), COPIES)
    write_config(work, "text", "kind: text\n    drop_duplicates: false")
    with open(source, "rb") as lines, open(fresh(work / "text-warm") / "prose.jsonl", "wb") as out:
        out.writelines(next(lines) for _ in range(20))
    write_config(work, "text-warm", "kind: text")


def link_prose(source: Path, folder: Path, copies: int) -> None:
    """The prose under several names."""
    for copy in range(copies):
        (folder / f"{copy:03d}.jsonl").symlink_to(source)


def prepare_pictures(corpora: Path, work: Path) -> None:
    """Tars of captioned JPEGs as they are, and of the same pictures at one size that fits."""
    import cv2

    tars = sorted((corpora / "captions-jpg").glob("*.tar"))
    if not tars:
        raise SystemExit(
            f"{corpora / 'captions-jpg'} holds no tars: "
            f"python examples/make_captions.py --out {corpora / 'captions-jpg'} --encode jpg"
        )
    samples = [sample for tar in tars for sample in read_tar(tar)]

    def fitting() -> Iterator[tuple[bytes, bytes]]:
        for image, text in samples:
            pixels = cv2.imdecode(np_bytes(image), cv2.IMREAD_COLOR)
            pixels = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            yield cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes(), text

    for name, made, rule in (
        ("copy", fitting(), f"size: [{SIDE}, {SIDE}]"),
        ("resize", iter(samples), "size: [128, 128]"),
    ):
        options = f"kind: image_text\n    format: webdataset\n    drop_duplicates: false\n    images: {{{rule}}}"
        if not (work / name).exists():
            pictures = list(made)
            write_tars(fresh(work / f"{name}-warm"), pictures[:50])
            write_tars(fresh(work / f".{name}"), (pictures * -(-PICTURES[name] // len(pictures)))[: PICTURES[name]])
            (work / f".{name}").rename(work / name)
        write_config(work, name, options)
        write_config(work, f"{name}-warm", options)


def read_tar(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(picture, caption) of each sample, with Python's own reader."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            parts = found.setdefault(key, {})
            parts[suffix] = file.read()
            if "jpg" in parts and "txt" in parts:
                yield parts["jpg"], parts["txt"]
                parts.clear()


def write_tars(folder: Path, samples: list[tuple[bytes, bytes]]) -> None:
    """Tars of ``KEY.jpg`` and ``KEY.txt``."""
    for number in range(0, len(samples), SAMPLES_A_TAR):
        with tarfile.open(folder / f"{number // SAMPLES_A_TAR:05d}.tar", "w") as tar:
            for key, (image, text) in enumerate(samples[number : number + SAMPLES_A_TAR], number):
                for suffix, data in (("jpg", image), ("txt", text)):
                    member = tarfile.TarInfo(f"{key:09d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_config(work: Path, name: str, options: str, settings: str = "") -> None:
    """A config of one dataset over the files of ``work/name``."""
    text = f"vocabulary: vocabulary.model\n{settings}datasets:\n  - name: {name}\n    source: {name}/*\n    {options}\n"
    (work / f"{name}.yaml").write_text(text)


def np_bytes(data: bytes) -> Any:
    """Bytes as OpenCV takes them."""
    import numpy as np

    return np.frombuffer(data, np.uint8)


# --- the two sides: each function does the work once and returns (units, seconds) ----------------------------


def gatokit_build(config: Path) -> Once:
    """``gatokit.pipelines.run.build``, both passes; units are bytes of the source's documents."""
    from gatokit.pipelines.run import build

    units = source_bytes(config)

    def once() -> tuple[int, float]:
        out = config.parent / "built"
        shutil.rmtree(out, ignore_errors=True)
        begin = time.perf_counter()
        build(config, out)
        return units, time.perf_counter() - begin

    return once


def sentencepiece_alone(config: Path) -> Once:
    """SentencePiece's batch encoding of texts that are in memory already."""
    import sentencepiece

    units = source_bytes(config)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(config.parent / "vocabulary.model"))
    texts = [json.loads(line)["text"] for path in files(config) for line in path.open(encoding="utf-8")]

    def once() -> tuple[int, float]:
        begin = time.perf_counter()
        processor.encode(texts, out_type=int, num_threads=1)
        return units, time.perf_counter() - begin

    return once


def tar_to_array_record(config: Path) -> Once:
    """Reads the tars with Python's own reader and writes pictures and captions to an ArrayRecord file
    with a build's own options."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from gatokit.pipelines.shards.writer import WRITER_OPTIONS

    units = source_bytes(config)

    def once() -> tuple[int, float]:
        begin = time.perf_counter()
        out = config.parent / "alone.arrayrecord"
        writer = ArrayRecordWriter(str(out), WRITER_OPTIONS)
        for path in files(config):
            for image, text in read_tar(path):
                writer.write(image + text)
        writer.close()
        with open(out, "rb") as file:
            os.fsync(file.fileno())
        return units, time.perf_counter() - begin

    return once


def three_calls(config: Path) -> Once:
    """OpenCV's imdecode, resize and imencode of pictures that are in memory already."""
    import cv2

    units = source_bytes(config)
    pictures = [np_bytes(image) for path in files(config) for image, _ in read_tar(path)]

    def once() -> tuple[int, float]:
        begin = time.perf_counter()
        for picture in pictures:
            pixels = cv2.imdecode(picture, cv2.IMREAD_COLOR)
            pixels = cv2.resize(pixels, (128, 128), interpolation=cv2.INTER_AREA)
            cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
        return units, time.perf_counter() - begin

    return once


def files(config: Path) -> list[Path]:
    """The source files of a config."""
    return sorted((config.parent / config.stem).iterdir())


def source_bytes(config: Path) -> int:
    """Bytes of the source files."""
    return sum(path.stat().st_size for path in files(config))


SIDES: Sides = {
    "gatokit_build": gatokit_build,
    "sentencepiece": sentencepiece_alone,
    "tar_to_array_record": tar_to_array_record,
    "three_calls": three_calls,
}
PEERS = {"text": "sentencepiece", "copy": "tar_to_array_record", "resize": "three_calls"}


# --- measurements --------------------------------------------------------------------------------------------


def main() -> None:
    """Runs the parts and prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, default=Path("data/corpora"), help="what the examples made")
    parser.add_argument("--vocabulary", type=Path, default=Path("data/corpora/text32k.model"))
    parser.add_argument("--work", type=Path, default=Path("data/benchmark/corpora"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        name, config, warm = arguments.side
        run_side(SIDES, name, Path(config), Path(warm))
        return
    work, corpora = arguments.work.resolve(), arguments.corpora.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not arguments.vocabulary.exists():
        raise SystemExit(f"{arguments.vocabulary} is missing: train it with gatokit vocab")
    shutil.copy(arguments.vocabulary, work / "vocabulary.model")
    parts = arguments.part or PARTS
    result: dict[str, Any] = {"machine": machine()}
    if {"text", "memory"} & set(parts):
        prepare_text(corpora, work)
    if {"copy", "resize"} & set(parts):
        prepare_pictures(corpora, work)
    for part in (part for part in parts if part in PEERS):
        row = compare(
            "gatokit_build", PEERS[part], work / f"{part}.yaml", work / f"{part}-warm.yaml", arguments.repeats
        )
        result[part] = row
        print(
            f"{part:8} {row['units'] / 1e6:7.1f} MB: {row['rate'] / 1e6:6.2f} MB/s "
            f"({row['rates'][0] / 1e6:.2f} to {row['rates'][1] / 1e6:.2f}); {PEERS[part]} alone "
            f"{row['usual'] / 1e6:.2f} MB/s; ratio {row['ratio']:.2f}; import and warm-up {row['start_seconds']:.1f} s",
            flush=True,
        )
    if "memory" in parts:
        configs = {}
        for copies in (10, 1):
            name = f"text-{copies}"
            link_prose(corpora / "prose" / "prose.jsonl", fresh(work / name), copies)
            # A worker holds one split: both have several of them.
            write_config(work, name, "kind: text\n    drop_duplicates: false", f"shard_bytes: {MEMORY_SHARD_BYTES}\n")
            configs[f"{source_bytes(work / f'{name}.yaml') / 1e6:,.0f} MB"] = work / f"{name}.yaml"
        result["memory"] = memory("gatokit_build", configs, work / "text-warm.yaml")
        show_memory(result["memory"], "text")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
