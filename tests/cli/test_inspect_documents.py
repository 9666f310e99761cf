"""``gatokit inspect`` and ``verify`` of documents: tables, one document, its pictures in files, JSON, mistakes."""

import hashlib
import io
import json
import os

import numpy as np
import pytest
import webdataset
from PIL import Image

from gatokit.inspection import open_directory
from gatokit.tokenizers.image_codec import encode

CONFIG = """
vocabulary: {vocabulary}
chunk_tokens: 256
datasets:
  - name: notes
    kind: text
    source: notes.jsonl
  - name: captions
    kind: image_text
    format: webdataset
    source: captions.tar
    images: {{max_patches: 16}}
  - name: pages
    kind: interleaved
    format: mmc4
    source: pages.jsonl
    image_dir: images
"""
EPISODES = """
  - name: control
    kind: episodes
    source: {recorded}/dm_control
    keep: {{min_return: 0.5}}
"""
NOTES = [
    "Copy :copyright: of [bold]markup[/bold].",
    "One two three. " * 500,
    "Copy :copyright: of [bold]markup[/bold].",
    "The last of them.",
]


def pixels(height, width, seed):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 3 + seed, columns * 2, rows + columns], axis=2).astype(np.uint8)


def write_sources(root):
    (root / "images").mkdir()
    (root / "notes.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in NOTES))
    with webdataset.TarWriter(str(root / "captions.tar")) as tar:
        for number in range(6):
            data = encode(pixels(32, 48 if number < 4 else 32, 9 * number), "jpeg" if number == 5 else "png")
            name = "jpg" if number == 5 else "png"
            tar.write({"__key__": f"{number}", name: data if number else b"<html>", "txt": f"picture number {number}"})
    names = [f"{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        (root / "images" / name).write_bytes(encode(pixels(16, 16 + 16 * (number % 2), number)))
    page = {
        "text_list": names,
        "image_info": [{"image_name": name, "matched_text_index": at} for at, name in enumerate(names)],
    }
    other = {"text_list": ["Before it."], "image_info": [{"image_name": "0.png", "matched_text_index": 0}]}
    (root / "pages.jsonl").write_text(json.dumps(page) + "\n" + json.dumps(other) + "\n")


@pytest.fixture(scope="session")
def sources(tmp_path_factory, vocabulary, recorded):
    root = tmp_path_factory.mktemp("documents")
    write_sources(root)
    (root / "documents.yaml").write_text(CONFIG.format(vocabulary=vocabulary))
    (root / "both.yaml").write_text(CONFIG.format(vocabulary=vocabulary) + EPISODES.format(recorded=recorded))
    return root


@pytest.fixture(scope="session")
def documents(sources):
    """A build of documents alone."""
    from gatokit.pipelines.run import build

    build(sources / "documents.yaml", sources / "documents")
    return sources / "documents"


@pytest.fixture(scope="session")
def both(sources):
    """A build of documents and episodes."""
    from gatokit.pipelines.run import build

    build(sources / "both.yaml", sources / "both")
    return sources / "both"


@pytest.fixture(scope="session")
def documents_scanned(sources):
    from gatokit.pipelines.run import scan

    scan(sources / "documents.yaml", sources / "scanned")
    return sources / "scanned"


def rows_of(text, name):
    """The cells of the table rows that begin with ``name``."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in text.splitlines()
        if line.startswith(f"│ {name} ")
    ]


def test_overview_of_documents(gatokit, documents, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    text = gatokit("inspect", documents).out
    assert f"{documents}: a finished build" in text
    datasets = open_directory(documents).datasets
    tokens = {name: dataset.totals.tokens for name, dataset in datasets.items()}
    (captions,) = rows_of(text, "captions")
    # dataset, kind, documents, kept, held out, tokens, text and image tokens, pictures, median, longest, records, …
    assert captions[:5] == ["captions", "image_text", "6", "5", str(datasets["captions"].tasks[0].held_out)]
    assert captions[5:9] == [str(tokens["captions"]), str(tokens["captions"] - 26), "26", "5"]
    assert captions[11:13] == ["5", "1"]
    (notes,) = rows_of(text, "notes")
    assert notes[2:4] == ["4", "3"]
    assert notes[6:9] == [f"{tokens['notes']:,}", "0", "0"]
    (pages,) = rows_of(text, "pages")
    assert pages[6:9] == [str(tokens["pages"] - 19), "19", "13"]
    assert "images of captions: 32 x 48: 3, 32 x 32: 2\n" in text
    assert "images of pages: 16 x 16: 7, 16 x 32: 6\n" in text
    assert "dropped of notes:\n        1  duplicate: an earlier document" in text
    assert "bad_image: " in text
    assert "such as captions.tar#0" in text
    for word in ("episodes", "steps", "expert", "threshold", " W ", "estimated"):
        assert word not in text


def test_overview_as_json(gatokit, documents):
    result = gatokit("inspect", documents, "--json")
    assert (result.status, result.err) == (0, "")
    notes, captions, pages = result.json["datasets"]
    assert [line["kind"] for line in (notes, captions, pages)] == ["text", "image_text", "interleaved"]
    assert (captions["episodes"], captions["kept"], captions["records"]) == (6, 5, 5)
    assert captions["picture_sizes"] == [
        {"height": 32, "width": 48, "pictures": 3},
        {"height": 32, "width": 32, "pictures": 2},
    ]
    assert (captions["image_tokens"], captions["pictures"], captions["counted_records"]) == (26, 5, 5)
    assert captions["text_tokens"] == captions["tokens"] - 26
    assert (pages["pictures"], pages["image_tokens"]) == (13, 19)
    rows = list(open_directory(documents).datasets["notes"].rows(kept=True))
    assert notes["longest_document"] == "notes.jsonl#1"
    assert notes["longest_tokens"] == max(row.tokens for row in rows)
    assert notes["median_tokens"] == sorted(row.tokens for row in rows)[1]
    assert (notes["pictures"], notes["picture_sizes"]) == (0, [])
    assert {(drop["dataset"], drop["reason"], drop["episodes"]) for drop in result.json["drops"]} == {
        ("notes", "duplicate", 1),
        ("captions", "bad_image", 1),
    }


def test_a_sample_is_said_to_be_one(gatokit, documents, monkeypatch):
    from gatokit.inspection.tables import overview
    from gatokit.inspection.tables.summary import Effort

    monkeypatch.setattr(overview, "OVERVIEW", Effort(records=2, bytes=1 << 20))
    text = gatokit("inspect", documents).out
    assert "text tokens, image tokens and images of captions: estimated from a sample, see below" in text
    assert "images of captions, in 2 of 5 records, evenly spaced: " in text
    captions = gatokit("inspect", documents, "--json").json["datasets"][1]
    assert captions["counted_records"] == 2
    assert captions["pictures"] == 5
    assert captions["text_tokens"] + captions["image_tokens"] == captions["tokens"]
    assert "estimated" not in gatokit("inspect", documents, "--dataset", "captions").out


def test_a_dataset_in_detail(gatokit, documents):
    text = gatokit("inspect", documents, "--dataset", "captions").out
    assert "notes" not in text
    assert "images of at most 16 patches each, PNG or JPEG (quality 95); a bad image costs its document" in text
    assert rows_of(text, "32 x 48") == [["32 x 48", "6", "3", "60.0%"]]
    assert rows_of(text, "32 x 32") == [["32 x 32", "4", "2", "40.0%"]]
    assert "captions.tar#5" in text
    assert "bad_image" in text
    line = gatokit("inspect", documents, "--dataset", "captions", "--json").json["datasets"][0]
    assert line["rules"]["pictures"]["max_patches"] == 16
    assert [row["episode_id"] for row in line["first_documents"]] == [f"captions.tar#{number}" for number in range(6)]
    assert line["lengths"]["longest"] == line["longest_tokens"]
    assert "text alone; a document ends with </s>" in gatokit("inspect", documents, "--dataset", "notes").out


def test_episodes_and_documents_side_by_side(gatokit, both):
    text = gatokit("inspect", both).out
    episodes, documents = text.index(": a finished build, episodes"), text.index(": a finished build, documents")
    assert episodes < text.index("cartpole-swingup") < documents < text.index("captions")
    assert "control" in text[episodes:documents]
    result = gatokit("inspect", both, "--json").json
    assert [line["name"] for line in result["datasets"]] == ["notes", "captions", "pages", "control"]
    assert gatokit("verify", both).status == 0
    at = gatokit("inspect", both, "--at", "0.9")
    assert "notes, captions, pages hold documents, which have no threshold" in at.out
    assert {row["dataset"] for row in gatokit("inspect", both, "--at", "0.9", "--json").json["tasks"]} == {"control"}


@pytest.mark.parametrize("columns", ["60", "80", "120", "200"])
def test_no_table_is_wider_than_the_terminal(gatokit, documents, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for words in ([], ["--dataset", "captions"], ["--dataset", "notes"]):
        lines = gatokit("inspect", documents, *words).out.splitlines()
        tables = [line for line in lines if line.startswith(("│", "┃", "┏"))]
        assert max(map(len, tables)) <= int(columns)


def test_a_scan_of_documents(gatokit, documents_scanned):
    text = gatokit("inspect", documents_scanned).out
    assert "a finished scan" in text
    assert rows_of(text, "captions")[0][2:4] == ["6", "6"]
    assert "tokens" not in text
    assert "first documents" in gatokit("inspect", documents_scanned, "--dataset", "pages").out
    one = gatokit("inspect", documents_scanned, "--document", "notes.jsonl#0")
    assert "kept; a scan stores no tokens, build to see them" in one.out
    assert gatokit("verify", documents_scanned).status == 0


def test_a_document_part_by_part(gatokit, documents, sources):
    text = gatokit("inspect", documents, "--document", "pages.jsonl#1").out
    data = (sources / "images" / "0.png").read_bytes()
    rgb = hashlib.sha256(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tobytes()).hexdigest()
    tokens = open_directory(documents).datasets["pages"].row("pages.jsonl#1").tokens
    assert text.splitlines()[0:2] == ["pages.jsonl#1", "  pages, interleaved"]
    assert text.splitlines()[4:] == [
        "",
        f"1. image, 16 x 16 png, {len(data):,} bytes, RGB sha256 {rgb}",
        "",
        "2. text, 10 characters",
        "    Before it.",
        "",
        f"{tokens} tokens: {tokens - 1} of text, 1 patch of 1 image",
    ]


def test_episode_is_another_spelling_of_document(gatokit, documents):
    words = ["inspect", documents, "--dataset", "pages"]
    assert gatokit(*words, "--episode", "pages.jsonl#1") == gatokit(*words, "--document", "pages.jsonl#1")


def test_a_text_is_printed_as_it_is(gatokit, documents):
    for words in ([], ["--full"]):
        assert NOTES[0] in gatokit("inspect", documents, "--document", "notes.jsonl#0", *words).out


def test_a_long_text_is_shortened_unless_it_is_asked_for(gatokit, documents, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    short = gatokit("inspect", documents, "--document", "notes.jsonl#1").out.splitlines()
    row = open_directory(documents).datasets["notes"].row("notes.jsonl#1")
    assert "1. text, 7,499 characters" in short
    shown = [line for line in short if line.startswith("    ")]
    assert len(shown) == 9
    assert max(map(len, shown)) <= 100
    assert shown[-1] == "    … --full shows all of it"
    sizes = ", ".join(str(size) for size in row.record_tokens[:8])
    assert f"{row.tokens:,} tokens: {row.tokens:,} of text; {len(row.record_tokens)} records of {sizes}, …" in short
    full = gatokit("inspect", documents, "--document", "notes.jsonl#1", "--full").out
    assert NOTES[1].strip() in full.splitlines()
    assert "--full" not in full


def test_many_parts_are_shortened_unless_they_are_asked_for(gatokit, documents):
    short = gatokit("inspect", documents, "--document", "pages.jsonl#0").out
    assert "20. text, 5 characters" in short
    assert "21. image" not in short
    assert "… and 4 more parts; --full shows all" in short
    full = gatokit("inspect", documents, "--document", "pages.jsonl#0", "--full").out
    assert "24. text, 6 characters\n11.png\n" in full


def test_a_document_as_json(gatokit, documents, sources):
    result = gatokit("inspect", documents, "--document", "pages.jsonl#0", "--json").json
    row = open_directory(documents).datasets["pages"].row("pages.jsonl#0")
    assert result["dataset"] == "pages"
    assert result["document"] == {**row.columns(), "record_tokens": list(row.record_tokens)}
    assert result["tokens"] == {"text": row.tokens - 18, "image": 18}
    assert len(result["parts"]) == 24
    for number in range(12):
        data = (sources / "images" / f"{number}.png").read_bytes()
        rgb = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert result["parts"][2 * number : 2 * number + 2] == [
            {
                "height": 16,
                "width": 16 + 16 * (number % 2),
                "sha256": hashlib.sha256(rgb.tobytes()).hexdigest(),
                "codec": "png",
                "bytes": len(data),
            },
            f"{number}.png",
        ]
    assert "images" not in result


def test_pictures_are_written_as_they_are_stored(gatokit, documents, sources, tmp_path):
    folder = tmp_path / "new" / "pictures"
    words = ["inspect", documents, "--document", "pages.jsonl#0", "--images", folder]
    assert f"wrote 12 images to {folder}: 001.png to 012.png" in gatokit(*words).out
    names = [f"{number:03d}.png" for number in range(1, 13)]
    assert sorted(path.name for path in folder.iterdir()) == names
    for number, name in enumerate(names):
        assert (folder / name).read_bytes() == (sources / "images" / f"{number}.png").read_bytes()
    again = gatokit(*words, "--json")
    assert again.json["images"] == [str(folder / name) for name in names]
    jpeg = gatokit("inspect", documents, "--document", "captions.tar#5", "--images", tmp_path / "jpeg")
    assert f"wrote {tmp_path / 'jpeg' / '001.jpg'}" in jpeg.out
    none = gatokit("inspect", documents, "--document", "notes.jsonl#0", "--images", tmp_path / "none")
    assert "no images" in none.out


def test_other_files_are_never_overwritten(gatokit, documents, tmp_path):
    (tmp_path / "003.png").write_bytes(b"mine")
    result = gatokit("inspect", documents, "--document", "pages.jsonl#0", "--images", tmp_path)
    assert result.status == 2
    assert f"--images {tmp_path}: 003.png exists already and is another file; give another directory" in result.err
    assert os.listdir(tmp_path) == ["003.png"]
    file = tmp_path / "003.png"
    result = gatokit("inspect", documents, "--document", "pages.jsonl#0", "--images", file)
    assert (result.status, len(result.err.splitlines())) == (2, 1)
    assert f"--images {file}: cannot be written to: " in result.err


def test_the_images_of_steps_are_written_too(gatokit, built, tmp_path):
    atari = open_directory(built).datasets["atari"]
    row = next(atari.episodes(kept=True))
    words = ["inspect", built, "--dataset", "atari", "--episode", row.episode_id, "--steps", "2:5"]
    assert "wrote 3 images to" in gatokit(*words, "--images", tmp_path / "out").out
    files = sorted((tmp_path / "out").iterdir())
    images = [placed.image.data for placed in atari.episode(row).sequence.images]
    assert [path.read_bytes() for path in files] == images[2:5]
    assert gatokit(*words, "--images", tmp_path / "out", "--json").json["images"] == [str(path) for path in files]


def test_a_dropped_document_says_why(gatokit, documents):
    result = gatokit("inspect", documents, "--document", "captions.tar#0")
    assert result.status == 0
    assert "dropped: bad_image (the file is an HTML page)" in result.out
    assert gatokit("inspect", documents, "--document", "captions.tar#0", "--json").json["parts"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dataset", "note"], "did you mean 'notes'?"),
        (
            ["--document", "notes.jsonl#11", "--dataset", "notes"],
            "--document notes.jsonl#11: notes has no such name; did you mean 'notes.jsonl#",
        ),
        (["--at", "0.9"], "--at 0.9: notes, captions, pages hold documents, which have no threshold"),
        (["--at", "0.9", "--dataset", "notes"], "--at 0.9: notes holds documents, which have no threshold"),
        (["--task", "notes"], "--task notes: it holds documents, which have no tasks; give --dataset notes"),
        (["--document", "notes.jsonl#0", "--steps", "1:2"], "notes.jsonl#0 is a document, which has no steps"),
        (["--full"], "--full belongs to --document"),
        (["--images", "x"], "--images belongs to --document"),
    ],
)
def test_a_mistake_ends_in_a_sentence(gatokit, documents, words, says):
    result = gatokit("inspect", documents, *words)
    assert (result.status, result.out) == (2, "")
    assert says in result.err
    assert len(result.err.splitlines()) == 1


def test_an_episode_is_not_shown_in_full(gatokit, both):
    id_ = next(open_directory(both).datasets["control"].episodes(kept=True)).episode_id
    result = gatokit("inspect", both, "--episode", id_, "--full")
    assert result.status == 2
    assert "is an episode; --steps A:B shows more of it" in result.err


def test_verify_of_documents(gatokit, documents):
    result = gatokit("verify", documents, "--json")
    assert (result.status, result.json["faults"]) == (0, [])
    assert result.json["records"] == sum(dataset.records for dataset in open_directory(documents).manifest.datasets)
