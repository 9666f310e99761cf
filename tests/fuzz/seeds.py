"""Writes the first inputs of each target, made by the formats' own writers."""

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import sentencepiece
import zstandard
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from gatokit.pipelines.formats.tfrecord import masked_crc
from gatokit.schemas.record import Record
from gatokit.schemas.tokens import EncodedImage, PlacedImage, TokenSequence


def frame(data: bytes) -> bytes:
    """A record of a TFRecord file."""
    length = len(data).to_bytes(8, "little")
    return length + masked_crc(length).to_bytes(4, "little") + data + masked_crc(data).to_bytes(4, "little")


def archive(form: int) -> bytes:
    """A tar of two samples with a long name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as writer:
        for name in ("a.jpg", "a.txt", "d" * 120 + "/ö.json"):
            info = tarfile.TarInfo(name)
            info.size = 5
            writer.addfile(info, io.BytesIO(b"12345"))
    return out.getvalue()


def vocabulary(**options: Any) -> bytes:
    """A SentencePiece model of few KiB. One with a table of Unicode's normal forms is longer than an input may be."""
    texts, out = ["a text of a few words", "another text, and more words", "the end of texts"], io.BytesIO()
    options |= {"normalization_rule_name": "identity", "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=out, **options)
    return out.getvalue()


def main() -> None:
    """Writes them all."""
    message = tf_example.Example()
    feature = message.features.feature
    feature["steps/reward"].float_list.value.extend([0.5, 1.5, -2.0])
    feature["steps/action"].int64_list.value.extend([1, 300, -1])
    feature["steps/image"].bytes_list.value.extend([b"\x89PNG", b"", b"x" * 200])
    feature["id"].bytes_list.value.append("ö".encode())
    example = message.SerializeToString(deterministic=True)
    sequence = TokenSequence(
        tokens=np.array([65535, 65535, 5, 33024, 32512], np.uint16),
        kinds=np.array([2, 2, 1, 5, 7], np.uint8),
        positions=np.array([0, 1, 2, 65535, 65535], np.uint16),
        step_begin=np.array([0], np.uint32),
        images=[PlacedImage(0, EncodedImage(b"picture", 16, 32))],
    )
    stored = Record("a#1", 0, 1, 0, "spec", sequence, np.array([1.0]), None, np.array([3], np.uint8)).to_bytes()
    image = np.arange(16 * 32 * 3, dtype=np.uint8).reshape(16, 32, 3)
    seeds = {
        "record": [stored],
        "example": [example],
        "tfrecord": [frame(example) + frame(b""), frame(b"x" * 2000)],
        "tar": [archive(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)],
        "header": [cv2.imencode(suffix, image)[1].tobytes() for suffix in (".png", ".jpg")],
    }
    lines = b'{"text": "one"}\n\n{"text": "\\ud800"}\n[1]\n'
    seeds |= {
        "folder": [np.random.default_rng(seed).bytes(48) for seed in range(32)],
        "compressed": [pack(lines[:20]) + pack(lines[20:]) for pack in (gzip.compress, zstandard.compress)],
        "json_lines": [lines, b"\xef\xbb\xbf" + lines[:-9]],
        "vocabulary": [
            vocabulary(vocab_size=300, byte_fallback=True),
            vocabulary(vocab_size=60),
            vocabulary(vocab_size=40, model_type="bpe"),
        ],
        "config": [(Path(__file__).parents[2] / "cli" / "demo.yaml").read_bytes()[:4000], b"a: &a [1, *a]\nb: *a\n"],
    }
    with tarfile.open(Path(__file__).parent / "build.tar.gz") as packed:
        members = {member.name: packed.extractfile(member) for member in packed if member.isfile()}
        stored = {name: file.read() for name, file in members.items() if file is not None}
    for target, suffix in {"manifest": "manifest.json", "descriptions": "dataset.json", "index": ".parquet"}.items():
        seeds[target] = [data for name, data in sorted(stored.items()) if name.endswith(suffix)]
    for name, contents in seeds.items():
        folder = Path(__file__).parent / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(contents):
            (folder / f"seed-{number}").write_bytes(content)


if __name__ == "__main__":
    main()
