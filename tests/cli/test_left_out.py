"""What a build loses: it stops by default, and says so in every command if it is allowed."""

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import sentencepiece

from gatokit.inspection import open_directory
from gatokit.inspection.report.page import report

Gatokit = Callable[..., Any]


@pytest.fixture
def configured(tmp_path: Path, vocabulary: Path) -> Callable[..., Path]:
    """Writes a config of one dataset ``d``."""

    def write(dataset: str, top: str = "", model: Path = vocabulary) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(f"vocabulary: {model}\n{top}\ndatasets:\n  - {{name: d, {dataset}}}\n")
        return path

    return write


def left_out(result: Any) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in ("what", "reason", "count", "of")) for row in result.json["left_out"]]


def test_downloads_that_broke_off(gatokit: Gatokit, configured: Callable[..., Path], tmp_path: Path) -> None:
    generator = random.Random(0)
    sizes = []
    for number in range(10):
        words = (generator.choices("abcdefghij", k=12) for _ in range(300))
        data = gzip.compress("".join(json.dumps({"text": " ".join(line)}) + "\n" for line in words).encode(), mtime=0)
        data = data[: len(data) // 20] if number else data
        (tmp_path / f"{number}.jsonl.gz").write_bytes(data)
        sizes.append(len(data))
    share = f"{100 * sum(sizes[1:]) / sum(sizes):.3g}"
    sentence = f"9 of 10 files end early, {share} % of the bytes (first 1.jsonl.gz: the compressed stream ends early, "
    out = tmp_path / "out"
    config = configured("kind: text, source: '*.gz'")
    for command in ("scan", "build"):
        stopped = gatokit(command, config, "--out", out)
        assert stopped.status == 1
        assert stopped.err.splitlines()[-1].startswith(f"gatokit: d: {sentence}")
        assert "set max_lost_bytes to the share that may be lost" in stopped.err
        assert not (out / "manifest.json").exists()
    stopped = gatokit("build", configured("kind: text, source: '*.gz'", "max_lost_bytes: 0.01"), "--out", out)
    assert "more than the 0.01 that max_lost_bytes allows" in stopped.err
    built = gatokit("build", configured("kind: text, source: '*.gz'", "max_lost_bytes: 0.5"), "--out", out, "--json")
    assert built.status == 0
    assert sentence in built.err
    [lost, row] = left_out(built)
    assert lost == ("bytes of files", "unreadable", sum(sizes[1:]), sum(sizes))
    assert row[:3] == ("documents", "ends_early", 9)
    entry = open_directory(out).manifest.datasets[0]
    assert entry.source_loss is not None
    assert (entry.source_loss.files, entry.source_loss.damaged, entry.source_loss.ends_early) == (10, 0, 9)
    assert (entry.source_loss.bytes, entry.source_loss.lost_bytes) == (sum(sizes), sum(sizes[1:]))
    assert len(entry.source_loss.examples) == 5
    verified = gatokit("verify", out)
    assert verified.status == 0
    assert sentence in verified.out.splitlines()[-1]
    assert gatokit("verify", out, "--json").json["losses"] == {"d": [entry.source_loss.sentence]}
    assert sentence in gatokit("inspect", out).out.replace("\n", " ")
    assert gatokit("inspect", out, "--json").json["losses"] == {"d": [entry.source_loss.sentence]}
    directory = open_directory(out)
    assert report(directory, list(directory.datasets.values()))["datasets"][0]["notes"] == [entry.source_loss.sentence]
    gatokit("inspect", out, "--card", tmp_path / "card.md")
    assert "## Left out" in (tmp_path / "card.md").read_text()
    assert "9 of 10 files end early" in (tmp_path / "card.md").read_text()


def test_rows_that_are_always_free(gatokit: Gatokit, configured: Callable[..., Path], tmp_path: Path) -> None:
    lines = ["{broken\n"] * 10 + [json.dumps({"text": text}) + "\n" for text in ("one", "two")]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    source = "kind: text, source: a.jsonl"
    for top, status in (("max_bad_fraction: 0", 1), ("free_bad_rows: 9", 1), ("free_bad_rows: 10", 0), ("", 0)):
        out = tmp_path / f"out {top}".replace(":", "")
        assert gatokit("build", configured(source, top), "--out", out).status == status, top
    built = gatokit("build", configured(source), "--out", tmp_path / "json", "--json")
    assert left_out(built) == [("documents", "corrupt_record", 10, 12)]
    assert built.json["left_out"][0]["first"].startswith("a.jsonl#0: the line is no JSON: ")
    # Keys at their defaults do not stand in a manifest, so that a finished build goes on being the same.
    assert not {"free_bad_rows", "max_lost_bytes"} & open_directory(tmp_path / "json").manifest.config.keys()


def picture(number: int) -> bytes:
    return cv2.imencode(".png", np.full((32, 32, 3), number, np.uint8))[1].tobytes()


def pages(tmp_path: Path, there: int, bad: int) -> str:
    """Twenty pages with a picture each, of which ``there`` are there, and of these ``bad`` do not decode."""
    (tmp_path / "images").mkdir(exist_ok=True)
    lines = []
    for number in range(20):
        if number < there:
            data = picture(number)
            (tmp_path / "images" / f"{number}.png").write_bytes(data[:60] if number < bad else data)
        info = [{"image_name": f"{number}.png", "matched_text_index": 0}]
        lines.append(json.dumps({"text_list": [f"page {number}"], "image_info": info}) + "\n")
    (tmp_path / "p.jsonl").write_text("".join(lines))
    return "kind: interleaved, format: mmc4, source: p.jsonl, image_dir: images, bad_images: skip"


def test_pictures_that_pages_stay_without(gatokit: Gatokit, configured: Callable[..., Path], tmp_path: Path) -> None:
    config = configured(pages(tmp_path, there=17, bad=2))
    out = tmp_path / "out"
    built = gatokit("build", config, "--out", out, "--json")
    assert left_out(built) == [
        ("pictures left out", "bad_image", 2, 20),
        ("pictures left out", "missing_image", 3, 20),
    ]
    said = "d: pictures left out: 3 of 20 (missing_image, first p.jsonl#17: without 1 of its pictures: "
    assert said in gatokit("inspect", out).out.replace("\n", " ")
    assert said.replace("d: ", "d: of the source, ") in gatokit("verify", out).out
    [index] = (out / "d").glob("*.index.parquet")
    assert json.loads(pq.read_schema(index).metadata[b"gatokit.left_out"])["entries"] == [
        {
            "what": "pictures left out",
            "reason": "bad_image",
            "count": 2,
            "of": 0,
            "first": "p.jsonl#0: the PNG is truncated",
        }
    ]
    stopped = gatokit("build", configured(pages(tmp_path, 17, 2), "max_bad_images: 0.2"), "--out", tmp_path / "other")
    assert stopped.status == 1
    assert "pictures left out: 2 of 20 (bad_image, first p.jsonl#0: the PNG is truncated); pictures left out: 3" in (
        stopped.err
    )
    assert "more than the share 0.2. Get the pictures, or set image_dir to their folder, or raise max_bad_images" in (
        stopped.err
    )


def test_pages_without_any_of_their_pictures(gatokit: Gatokit, configured: Callable[..., Path], tmp_path: Path) -> None:
    for command in ("scan", "build"):
        stopped = gatokit(command, configured(pages(tmp_path, 0, 0)), "--out", tmp_path / "out")
        assert stopped.status == 1
        assert "d: pictures left out: 20 of 20 (missing_image, first p.jsonl#0: without 1 of its pictures: " in (
            stopped.err
        )


def test_a_vocabulary_that_lacks_the_text(gatokit: Gatokit, configured: Callable[..., Path], tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 50),
        model_writer=model,
        vocab_size=40,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (tmp_path / "few.model").write_bytes(model.getvalue())
    lines = [json.dumps({"text": "the lazy fox " * 20 + end}) + "\n" for end in ("", "Ж", "")]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    config = configured("kind: text, source: a.jsonl, drop_duplicates: false", model=tmp_path / "few.model")
    stopped = gatokit("build", config, "--out", tmp_path / "out")
    assert stopped.status == 1
    assert "d: text tokens unknown to the vocabulary: 1 of " in stopped.err
    assert "(unknown_piece, first a.jsonl#1), more than the share 0.001. Train a vocabulary with `gatokit vocab`" in (
        stopped.err
    )
    config = configured("kind: text, source: a.jsonl", "max_unknown_pieces: 0.1", tmp_path / "few.model")
    built = gatokit("build", config, "--out", tmp_path / "out", "--json")
    assert built.status == 0
    [row] = [row for row in left_out(built) if row[0] != "documents"]
    assert row[:3] == ("text tokens unknown to the vocabulary", "unknown_piece", 1)
    assert row[3] > 20
